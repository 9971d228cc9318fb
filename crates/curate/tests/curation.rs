//! Whole curations, on rows made here and on the public sets beside the repository.

use std::fs;
use std::path::{Path, PathBuf};

use pt_core::rng::Stream;
use pt_core::testdata::shared_data;
use pt_curate::{CurateError, Curation, Given, Report, run};
use serde_json::{Value, json};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, rows: &[Value]) -> String {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    fn rows(&self, name: &str) -> Vec<Value> {
        let options = Default::default();
        let rows = pt_data::read::read_all(&self.path(name).display().to_string(), &options).unwrap();
        rows.into_iter().map(|row| Value::Object(row.value)).collect()
    }

    /// Carries out a curation of which `out`, `dropped` and `card` are in this folder.
    fn curate(&self, text: &str) -> Result<Report, CurateError> {
        let text = text.replace("DIR", &self.0.path().display().to_string());
        run(&Curation::parse(&text, "curation.toml")?, &Given::default(), &mut |_| {})
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Sentences of random words: no two alike unless they are meant to be.
fn sentence(key: u64, n: usize) -> String {
    let mut draws = Stream::new(11, "sentence").at(key);
    (0..n).map(|_| format!("w{}", draws.below(3000))).collect::<Vec<_>>().join(" ")
}

fn planted(folder: &Folder) {
    let mut rows: Vec<Value> = (0..6000)
        .map(|i| json!({"prompt": sentence(2 * i, 12), "completion": sentence(2 * i + 1, 40)}))
        .collect();
    rows[100] = rows[10].clone();
    rows[5000]["completion"] = json!(format!("{} extra", rows[20]["completion"].as_str().unwrap()));
    rows[5000]["prompt"] = rows[20]["prompt"].clone();
    rows[3000]["completion"] = json!("mail ann@corp.io or CafÃ©");
    rows[4000]["completion"] = json!(format!("as was said: {}", sentence(900_001, 30)));
    folder.put("raw.jsonl", &rows);
    folder.put("eval.jsonl", &[json!({"prompt": sentence(900_001, 30), "completion": "x"})]);
}

const ALL: &str = r#"
out = "DIR/out.jsonl.zst"
dropped = "DIR/dropped.jsonl"
card = "DIR/card"
annotate = true
[[input]]
source = "DIR/raw.jsonl"
licence = "CC0"
[[step]]
type = "encoding"
[[step]]
type = "exact_duplicates"
[[step]]
type = "near_duplicates"
keep = "best"
[[step]]
type = "contamination"
against = ["DIR/eval.jsonl"]
[[step]]
type = "personal_data"
[[step]]
type = "clusters"
k = 4
[[step]]
type = "complexity"
[[step]]
type = "instruction_profile"
[[step]]
type = "ngram_coverage"
bits = 22
[[step]]
type = "domains"
"#;

#[test]
fn what_was_planted_is_found_whatever_the_threads() {
    let folder = Folder::new();
    planted(&folder);
    let report = folder.curate(ALL).unwrap();
    assert_eq!((report.n_read, report.n_kept), (6000, 5997));
    let dropped: Vec<(String, String)> = folder
        .rows("dropped.jsonl")
        .iter()
        .map(|row| {
            let place = row["origin"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
            (row["step"].as_str().unwrap().to_owned(), place)
        })
        .collect();
    let expected = [("exact_duplicates", "101"), ("near_duplicates", "21"), ("contamination", "4001")];
    assert_eq!(dropped, expected.map(|(step, place)| (step.to_owned(), place.to_owned())));
    let shown = folder.rows("dropped.jsonl")[2]["detail"].as_str().unwrap().to_owned();
    assert!(shown.contains(&sentence(900_001, 30)) && shown.contains("eval.jsonl:1"), "{shown}");
    let rows = folder.rows("out.jsonl.zst");
    assert!(rows.iter().any(|row| row["completion"] == "mail [EMAIL] or Café"), "repaired and redacted");
    assert!(rows.iter().all(|row| row["curation"]["cluster"].is_u64() && row["curation"]["depth"].is_u64()));
    let card = fs::read_to_string(folder.path("card.md")).unwrap();
    for expected in
        ["6000 rows read, 5997 written", "| CC0 |", "exact_duplicates", "## Lengths", "[EMAIL]", "cluster "]
    {
        assert!(card.contains(expected), "no `{expected}` in the card");
    }
    assert!(!card.contains("ann@corp.io"), "the card must not show what was redacted");
    let json: Value = serde_json::from_str(&fs::read_to_string(folder.path("card.json")).unwrap()).unwrap();
    assert_eq!(json["steps"][1]["dropped"]["the same as an earlier row"], 1);
    assert_eq!(
        names(folder.0.path()),
        ["card.json", "card.md", "dropped.jsonl", "eval.jsonl", "out.jsonl.zst", "raw.jsonl"]
    );

    let files = ["card.json", "card.md", "dropped.jsonl", "out.jsonl.zst"];
    let bytes = || files.map(|name| fs::read(folder.path(name)).unwrap());
    let first = bytes();
    for n_threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        pool.install(|| folder.curate(ALL)).unwrap();
        assert!(first == bytes(), "{n_threads} threads give other files");
    }
}

#[test]
fn a_blueprint_gives_files_and_a_mixture_a_recipe_takes() {
    let folder = Folder::new();
    let maths = |i: usize| json!({"prompt": format!("Tom has {i} pens and buys 2. How many has he?"), "completion": "some"});
    let chat =
        |i: usize| json!({"prompt": format!("Hello, friend {}", sentence(i as u64, 3)), "completion": "hi"});
    let rows: Vec<Value> = (0..100).map(maths).chain((0..300).map(chat)).collect();
    folder.put("raw.jsonl", &rows);
    let text = "out = \"DIR/sft.jsonl\"\n[[input]]\nsource = \"DIR/raw.jsonl\"\n[blueprint]\nmax_repeats = 2.0\nshares = { maths = 0.5, chat = 0.4, code = 0.1 }";
    let report = folder.curate(text).unwrap();
    assert_eq!(
        names(folder.0.path()),
        ["raw.jsonl", "sft.chat.jsonl", "sft.maths.jsonl", "sft.mixture.toml"]
    );
    assert_eq!(folder.rows("sft.maths.jsonl").len(), 100);
    let mixture = report.mixture.unwrap();
    assert_eq!(mixture.shortfalls[0].domain, "code");
    let drawn: Vec<f64> = mixture.parts.iter().map(|part| part.found.rows as f64 * part.repeats).collect();
    assert!((drawn[0] - 200.0).abs() < 1e-9 && (drawn[1] - 160.0).abs() < 1e-9, "{drawn:?}");
    let pasted = fs::read_to_string(folder.path("sft.mixture.toml")).unwrap();
    let table: toml::Table = format!("[[stage]]\ntype = \"sft\"\n{pasted}").parse().unwrap();
    let sources = table["stage"].as_array().unwrap()[0]["data"]["train"].as_array().unwrap();
    assert_eq!(sources.len(), 2);
    assert!(sources.iter().all(|source| Path::new(source["source"].as_str().unwrap()).exists()));
}

#[test]
fn rows_leave_in_the_form_asked_for() {
    let folder = Folder::new();
    folder.put("a.jsonl", &[json!({"question": "1+1?", "answer": "2"})]);
    folder.put(
        "b.jsonl",
        &[json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]})],
    );
    let text = |rows: &str| {
        format!(
            "out = \"DIR/out.jsonl\"\n{rows}\n[[input]]\nsource = \"DIR/a.jsonl\"\n[[input]]\nsource = \"DIR/b.jsonl\""
        )
    };
    let error = folder.curate(&text("")).unwrap_err().to_string();
    assert!(
        error.contains("b.jsonl:1") && error.contains("`messages`") && error.contains("rows = \"messages\""),
        "{error}"
    );
    assert!(!folder.path("out.jsonl").exists(), "nothing appears after an error");
    folder.curate(&text("rows = \"messages\"")).unwrap();
    let rows = folder.rows("out.jsonl");
    assert_eq!(rows[0]["messages"][1]["content"], "2");
    assert_eq!(rows[1]["messages"][0]["content"], "hi");
}

#[test]
fn wrong_curations_say_what_is_wrong() {
    let folder = Folder::new();
    folder.put("a.jsonl", &[json!({"text": "x"})]);
    let input = "[[input]]\nsource = \"DIR/a.jsonl\"\n";
    let check = |text: &str, expected: &str| {
        let error = folder.curate(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&format!("out = \"DIR/a.jsonl\"\n{input}"), "this output is also an input");
    check(
        &format!("out = \"DIR/o.jsonl\"\n{input}[[step]]\ntype = \"exact\""),
        "step 1 (`exact`): unknown curation step",
    );
    check(&format!("out = \"DIR/o.jsonl\"\n{input}domain = \"math\""), "did you mean `maths`");
    check(
        &format!("out = \"DIR/o.jsonl\"\n{input}[blueprint]\nshares = {{ maths = 2.0 }}"),
        "between 0 and 1",
    );
    check("out = \"DIR/o.jsonl\"\n[[input]]\nsource = \"DIR/none.jsonl\"", "no such file");
    let twice = "two outputs would be written to this file";
    check(&format!("out = \"DIR/o.jsonl\"\ndropped = \"DIR/./o.jsonl\"\n{input}"), twice);
    check(&format!("out = \"DIR/o.json\"\ncard = \"DIR/o\"\n{input}"), twice);
    let blueprint = "[blueprint]\nshares = { maths = 0.5, chat = 0.5 }\n";
    check(&format!("out = \"DIR/o.jsonl\"\ndropped = \"DIR/o.maths.jsonl\"\n{input}{blueprint}"), twice);
    check(&format!("out = \"/dev/null\"\n{input}{blueprint}"), "this is no file");
    folder.put("o.maths.jsonl", &[json!({"text": "x"})]);
    let own = "[[input]]\nsource = \"DIR/o.maths.jsonl\"\n";
    check(&format!("out = \"DIR/o.jsonl\"\n{own}{blueprint}"), "this output is also an input");
    fs::write(
        folder.path("bad.jsonl"),
        "{\"text\": \"a\"}\n{\"text\": \"\\ud83d\"}\nnot json\n{\"text\": \"b\"}\n",
    )
    .unwrap();
    let bad = "out = \"DIR/o.jsonl\"\ndropped = \"DIR/d.jsonl\"\n";
    let bad_input = "[[input]]\nsource = \"DIR/bad.jsonl\"";
    check(&format!("{bad}{bad_input}"), "bad.jsonl:2");
    let report = folder.curate(&format!("{bad}unreadable = \"drop\"\n{bad_input}")).unwrap();
    assert_eq!((report.n_kept, report.inputs[0].n_unreadable), (2, 2));
    assert!(folder.rows("d.jsonl")[0]["detail"].as_str().unwrap().contains("bad.jsonl:2"));
}

#[test]
fn an_input_that_cannot_be_read_is_no_row_to_drop() {
    let folder = Folder::new();
    folder.put("good.jsonl", &[json!({"text": "x"})]);
    folder.put("strange.jsonl", &[json!({"colour": 1}), json!({"colour": 2})]);
    folder.put("part-a.jsonl", &[json!({"text": "x"})]);
    fs::write(folder.path("part-b.jsonl"), "").unwrap();
    fs::write(folder.path("nothing-good.jsonl"), "not json\n").unwrap();
    for (source, expected) in [
        ("strange.jsonl", "no known layout"),
        ("part-*.jsonl", "part-b.jsonl: no rows"),
        ("nothing-good.jsonl", "nothing-good.jsonl:1"),
    ] {
        let text = format!(
            "out = \"DIR/o.jsonl\"\nunreadable = \"drop\"\n[[input]]\nsource = \"DIR/good.jsonl\"\n[[input]]\nsource = \"DIR/{source}\""
        );
        let error = folder.curate(&text).map(|report| report.n_read).unwrap_err().to_string();
        assert!(error.contains(expected), "{source}: {error}");
        assert!(!folder.path("o.jsonl").exists(), "{source}: nothing appears after an error");
    }
}

#[test]
fn public_sets_have_the_duplicates_they_are_known_to_have() {
    let Some(data) = shared_data() else { return };
    let folder = Folder::new();
    let curate = |source: &str, more: &str, steps: &str| {
        let source = data.join(source).display().to_string();
        let report = folder
            .curate(&format!("out = \"DIR/out.jsonl\"\n[[input]]\nsource = \"{source}\"\n{more}\n{steps}"));
        report.unwrap()
    };
    let exact = "[[step]]\ntype = \"exact_duplicates\"\n";
    // 13,500 turns, 91 of them distinct, says the set's description (as written; by words some are the same).
    let report = curate(
        "tinyllm-chat/dialogue.txt.gz",
        "",
        "[[step]]\ntype = \"exact_duplicates\"\nnormalise = false\n",
    );
    assert!(report.n_kept <= 91, "{} of {}", report.n_kept, report.n_read);
    // Four models on the same 252 prompts.
    let report = curate(
        "self-instruct/predictions/*.jsonl.gz",
        "layout = \"prompt_only\"",
        "[[step]]\ntype = \"exact_duplicates\"\npart = \"prompt\"\n",
    );
    assert_eq!(report.n_read, 1008);
    assert!((245..=252).contains(&report.n_kept), "{}", report.n_kept);
    // Questions of different numbers, written by people: hardly any are alike.
    let report =
        curate("gsm8k/train.jsonl.gz", "", &format!("{exact}[[step]]\ntype = \"near_duplicates\"\n"));
    assert!(report.n_kept > 7400, "{} of {}", report.n_kept, report.n_read);
    let report = curate("tinystories/tinystories_sample.txt.gz", "text_unit = \"<|endoftext|>\"", exact);
    assert!(
        report.n_read > 2000 && report.n_kept * 100 >= report.n_read * 99,
        "{} of {}",
        report.n_kept,
        report.n_read
    );
}

#[test]
fn gsm8k_planted_in_conversations_is_found() {
    let Some(data) = shared_data() else { return };
    let folder = Folder::new();
    let read = |name: &str| {
        pt_data::read::read_all(&data.join(name).display().to_string(), &Default::default()).unwrap()
    };
    let questions = read("gsm8k/test.jsonl.gz");
    let mut rows: Vec<Value> = read("self-instruct/predictions/text-davinci-003_predictions.jsonl.gz")
        .iter()
        .map(|row| json!({"prompt": row.value["prompt"], "completion": row.value["response"].as_object().map_or("-", |_| "ok")}))
        .collect();
    for i in 0..20 {
        let question =
            questions[60 * i].value["question"].as_str().unwrap().to_lowercase().replace(['.', ','], " ");
        rows[10 * i]["prompt"] = json!(format!("Here is one for you:\n{question}\nShow your work."));
    }
    folder.put("raw.jsonl", &rows);
    let set = data.join("gsm8k/test.jsonl.gz").display().to_string();
    let text = format!(
        "out = \"DIR/out.jsonl\"\ndropped = \"DIR/d.jsonl\"\n[[input]]\nsource = \"DIR/raw.jsonl\"\n[[step]]\ntype = \"contamination\"\nagainst = [\"{set}\"]"
    );
    folder.curate(&text).unwrap();
    let places: Vec<String> = folder
        .rows("d.jsonl")
        .iter()
        .map(|row| row["origin"].as_str().unwrap().rsplit(':').next().unwrap().to_owned())
        .collect();
    let expected: Vec<String> = (0..20).map(|i| (10 * i + 1).to_string()).collect();
    assert_eq!(places, expected, "all that were planted, and nothing else");
}

#[test]
fn the_guide_shows_curations_that_parse() {
    let page = pt_core::testdata::workspace_root().join("docs/guide/curation.md");
    let text = fs::read_to_string(&page).unwrap();
    let blocks: Vec<&str> =
        text.split("```toml curation\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 2, "{} blocks", blocks.len());
    for block in blocks {
        let curation = Curation::parse(block, "docs/guide/curation.md").unwrap();
        for step in &curation.steps {
            let info = pt_curate::CURATORS.iter().find(|info| info.name == step.name);
            let info = info.unwrap_or_else(|| panic!("there is no step `{}`", step.name));
            for key in step.options.keys() {
                assert!(
                    info.options.iter().any(|option| option.name == key),
                    "`{}` has no `{key}`",
                    step.name
                );
            }
        }
        curation.blueprint.iter().for_each(|blueprint| blueprint.check().unwrap());
    }
    for info in pt_curate::CURATORS {
        assert!(text.contains(&format!("`{}`", info.name)), "the guide does not mention `{}`", info.name);
    }
}
