//! The page is whole HTML, loads nothing, obeys no sample, and comes whatever is missing.

mod common;

use std::fs;
use std::path::Path;

use common::{HOSTILE, paired, write, write_run};
use pt_report::{ReportError, RunData, page};

/// What a page holds.
#[derive(Debug, Default)]
struct Checked {
    /// Elements by name, in order.
    tags: Vec<String>,
    /// Names of attributes with their values.
    attributes: Vec<(String, String)>,
    /// Text outside of elements' tags, script and style.
    text: String,
}

/// Follows every tag of a page.
///
/// # Panics
/// Where a tag is not closed, closes another, or has an attribute that is not quoted.
fn checked(html: &str) -> Checked {
    let (mut found, mut open) = (Checked::default(), Vec::<String>::new());
    let mut rest = html.strip_prefix("<!DOCTYPE html>\n").expect("a document type");
    while let Some(at) = rest.find('<') {
        found.text.push_str(&rest[..at]);
        assert!(!rest[..at].contains('>'), "a bare > in {:?}", &rest[..at]);
        rest = &rest[at + 1..];
        let end = rest.find('>').expect("a tag ends");
        let tag = &rest[..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(
                open.pop().as_deref(),
                Some(name),
                "closed out of order, at {:?}",
                &rest[..rest.len().min(80)]
            );
            continue;
        }
        let name = tag.split([' ', '/']).next().unwrap().to_owned();
        assert!(!name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric()), "a tag <{tag}>");
        attributes(tag[name.len()..].trim_end_matches('/'), &mut found.attributes);
        let is_void = tag.ends_with('/') || ["meta", "br", "hr", "img", "link"].contains(&name.as_str());
        if name == "script" || name == "style" {
            let end = rest.find(&format!("</{name}>")).expect("script and style end");
            rest = &rest[end..];
        }
        if !is_void {
            open.push(name.clone());
        }
        found.tags.push(name);
    }
    assert!(open.is_empty(), "not closed: {open:?}");
    found
}

fn attributes(text: &str, all: &mut Vec<(String, String)>) {
    let mut rest = text.trim();
    while !rest.is_empty() {
        let Some((name, after)) = rest.split_once("=\"") else {
            panic!("an attribute without quotes: {rest}")
        };
        let (value, after) = after.split_once('"').expect("quotes close");
        all.push((name.trim().to_owned(), value.to_owned()));
        rest = after.trim();
    }
}

impl Checked {
    fn n(&self, tag: &str) -> usize {
        self.tags.iter().filter(|name| *name == tag).count()
    }
}

/// What holds for every page.
fn check(runs: &[RunData]) -> (String, Checked) {
    let html = page(runs, paired);
    let found = checked(&html);
    for tag in ["img", "link", "iframe", "object", "embed", "base", "form", "image", "use", "audio", "video"]
    {
        assert_eq!(found.n(tag), 0, "<{tag}> could load something");
    }
    assert_eq!(
        (found.n("script"), found.n("style"), found.n("title")),
        (1, 1, 1 + title_tags(&found)),
        "one script, one style"
    );
    for (name, value) in &found.attributes {
        assert!(!name.starts_with("on"), "{name}={value} runs a script");
        assert!(
            !matches!(name.as_str(), "src" | "action" | "srcset" | "xlink:href" | "style"),
            "{name}={value}"
        );
        assert!(name != "href" || value.starts_with('#'), "{name}={value} leads away");
    }
    assert!(!html.contains('\u{0}') && !html.contains('\u{202e}'));
    let css = html.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
    let script = html.rsplit_once("<script>").unwrap().1;
    for loads in [
        "url(",
        "@import",
        "@font-face",
        "fetch(",
        "XMLHttpRequest",
        "import(",
        "innerHTML",
        "http:",
        "https:",
    ] {
        assert!(!css.contains(loads) && !script.contains(loads), "{loads} in style or script");
    }
    for (name, value) in found.attributes.iter().filter(|(name, _)| name.starts_with("aria-labelledby")) {
        assert!(found.attributes.contains(&("id".to_owned(), value.clone())), "{name}={value} names nothing");
    }
    assert!(!html.contains("NaN\"") && !html.contains("=\"inf"), "a place in a chart is not finite");
    (html, found)
}

/// Titles inside charts.
fn title_tags(found: &Checked) -> usize {
    found.n("title") - 1
}

fn a_run(steps: u64) -> (tempfile::TempDir, RunData) {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path(), steps);
    let run = RunData::read(dir.path()).unwrap();
    (dir, run)
}

#[test]
fn a_page_has_all_its_parts() {
    let (_dir, run) = a_run(12);
    assert_eq!(run.problems, Vec::<String>::new());
    let (html, found) = check(&[run]);
    let said = [
        "A &lt;run&gt; &amp; more",
        "<strong>90.0\u{a0}%</strong> of 100 held-out problems",
        "gain of <strong>+80.0 points</strong>",
        "no significant change",
        "▲ gain",
        "Accuracy: sum, digits, n = 100",
        "by kind of problem",
        "Reward by verifier",
        "KL divergence",
        "Completion length",
        "Implicit rewards",
        "Log-probabilities of replies",
        "Groups without signal",
        "Clipped ratios",
        "not finite, so not drawn: 1",
        "logarithmic axis",
        "Did not change: learning rate",
        "newly right <b>40</b>",
        "✓ right",
        "✗ wrong",
        "samples it trained on",
        "rollouts of steps 1<",
        "Samples of step 1, prompt 1<",
        "advantage 3.5",
        "40.2\u{a0}%",
        "planned 2.5\u{a0}s",
        "warning",
        "a signal",
        "27b1b8b178369600",
        "ab12",
        "How to reproduce",
        "odd&lt;key&gt;",
        ">kept<",
    ];
    for text in said {
        assert!(html.contains(text), "the page does not say {text}");
    }
    assert!(found.n("figure") >= 25, "{} figures", found.n("figure"));
    assert_eq!(found.n("figure"), found.n("figcaption"));
    let labels =
        found.attributes.iter().filter(|(name, value)| name == "aria-label" && !value.is_empty()).count();
    assert_eq!(labels, found.n("svg") + 1, "every chart and the contents have a label");
    assert_eq!(found.n("table"), found.n("caption"));
}

#[test]
fn stages_that_evaluate_are_not_asked_what_they_changed() {
    let rows = |kind: &str| {
        let (dir, _) = a_run(4);
        let path = dir.path().join("plan.json");
        let mut plan: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        plan["others"] = serde_json::json!([{"number": 4, "name": "last", "type": kind, "settings": {}}]);
        fs::write(&path, plan.to_string()).unwrap();
        let (html, _) = check(&[RunData::read(dir.path()).unwrap()]);
        html.matches("not measured").count()
    };
    assert_eq!((rows("eval"), rows("curate")), (0, 1));
}

#[test]
fn rounds_are_shown_by_the_steps_that_trained_on_them() {
    let (dir, mut run) = a_run(12);
    let folder = dir.path().join("stages/03-grpo/rollouts");
    fs::copy(folder.join("step-00000000.jsonl.zst"), folder.join("step-00000002.jsonl.zst")).unwrap();
    run.plan["stages"][2]["rollout"] = serde_json::json!({"passes": 2, "mini_batches": 2});
    write(&dir.path().join("plan.json"), &run.plan.to_string());
    let html = page(&[RunData::read(dir.path()).unwrap()], paired);
    for text in ["rollouts of steps 1 to 4, 9 to 12<", "Samples of step 9 to 12, prompt 1<"] {
        assert!(html.contains(text), "the page does not say {text}");
    }
}

#[test]
fn samples_are_shown_and_not_obeyed() {
    let (_dir, run) = a_run(5);
    let (html, found) = check(&[run]);
    assert!(HOSTILE.contains("<script>"));
    assert_eq!(html.matches("<script>").count(), 1, "only the page's own");
    assert!(found.text.contains("&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;"));
}

/// Spoils a run, and says what the page must say of it.
fn spoiled(spoil: impl Fn(&Path), problem: &str) {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path(), 5);
    spoil(dir.path());
    let run = RunData::read(dir.path()).unwrap();
    assert!(run.problems.iter().any(|p| p.contains(problem)), "no {problem} in {:?}", run.problems);
    let (html, _) = check(&[run]);
    assert!(html.contains("Missing or damaged"));
}

#[test]
fn a_damaged_run_has_a_page_that_says_so() {
    for file in ["plan.json", "metrics.jsonl", "timing.jsonl", "events.jsonl", "stages/02-dpo/outcome.json"] {
        spoiled(|dir| fs::remove_file(dir.join(file)).unwrap(), file);
        spoiled(|dir| write(&dir.join(file), "{\"torn\": "), file);
        spoiled(|dir| write(&dir.join(file), "\u{0}\u{1}[1, 2]\n[]\n"), file);
    }
    spoiled(|dir| fs::remove_dir_all(dir.join("stages")).unwrap(), "has not begun");
    spoiled(
        |dir| write(&dir.join("stages/01-sft/eval/tasks-after.json"), "[{\"samples\": 3}]"),
        "tasks-after.json is damaged",
    );
    spoiled(
        |dir| write(&dir.join("stages/03-grpo/rollouts/step-00000000.jsonl.zst"), "not zstd"),
        "step-00000000.jsonl.zst",
    );
    spoiled(
        |dir| {
            write(
                &dir.join("metrics.jsonl"),
                "{\"step\": 1}\n{\"stage\": \"01-sft\", \"step\": 1, \"loss\": 1e308}\n",
            )
        },
        "no stage or no step",
    );
}

#[test]
fn plans_of_any_shape_have_a_page() {
    for plan in [
        "null",
        "3",
        "[]",
        "{}",
        "{\"stages\": 3}",
        "{\"stages\": [null, 1, {\"name\": 4}]}",
        "{\"stages\": [{\"name\": \"../../x\", \"data\": []}]}",
    ] {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("plan.json"), plan);
        check(&[RunData::read(dir.path()).unwrap()]);
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(RunData::read(empty.path()), Err(ReportError::NotARun { .. })));
}

#[test]
fn a_long_run_has_a_small_page_with_every_spike() {
    let (_dir, run) = a_run(10_000);
    let (html, _) = check(&[run]);
    assert!(html.len() < 1_500_000, "{} bytes", html.len());
    assert!(html.contains("line: mean of about 42 values, band: least to greatest"));
    assert!(html.contains("900 <span class=\"soft\">at 2</span>"), "the greatest gradient norm is named");
}

#[test]
fn runs_stand_side_by_side() {
    let ((_a, first), (_b, mut second)) = (a_run(6), a_run(9));
    second.plan["seed"] = 8.into();
    let (html, found) = check(&[first, second]);
    for text in ["2 runs side by side", "<code>seed</code>", "Different settings", "no significant change"] {
        assert!(html.contains(text), "the page does not say {text}");
    }
    assert!(found.n("figure") > 12);
}
