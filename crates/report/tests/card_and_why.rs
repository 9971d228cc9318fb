//! The model card, and why two runs differ.

mod common;

use std::fs;

use common::{paired, write_run};
use pt_report::{CARD_MARK, ReportError, RunData, card, why};

fn run(steps: u64, change: impl Fn(String) -> String) -> (tempfile::TempDir, RunData) {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path(), steps);
    let path = dir.path().join("plan.json");
    fs::write(&path, change(fs::read_to_string(&path).unwrap())).unwrap();
    let data = RunData::read(dir.path()).unwrap();
    (dir, data)
}

#[test]
fn a_card_says_what_was_measured_and_marks_what_was_not() {
    let (_dir, data) = run(5, |plan| plan);
    let (text, output) = card(&data, None, paired).unwrap();
    assert_eq!(output.to_str(), Some("stages/03-grpo/model"));
    let front = text.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap().0;
    for line in [
        "base_model: \"org/base\"",
        "base_model_relation: finetune",
        "library_name: transformers",
        "- \"org/data-set\"",
        "- \"dpo\"",
        "- \"accuracy\"",
    ] {
        assert!(front.lines().any(|found| found == line), "no {line} in\n{front}");
    }
    let index = front.lines().find_map(|line| line.strip_prefix("model-index: ")).unwrap();
    let index: serde_json::Value = serde_json::from_str(index).unwrap();
    assert_eq!(index[0]["results"][0]["metrics"][0]["value"], 0.9);
    for text_in in [
        CARD_MARK,
        "**TO BE WRITTEN**",
        "| grpo | sum, digits | 100 | 52.0\u{a0}% | 90.0\u{a0}% | +38.0 [",
        "posttrain 0.1.0",
        "# A \\<run\\> & more",
        "Seed 7",
    ] {
        assert!(text.contains(text_in), "no {text_in} in\n{text}");
    }
    assert!(
        !text.contains("<script>") || text.contains("`</pre><script>"),
        "a source's name stands between backticks only"
    );
    let (of_sft, output) = card(&data, Some("sft"), paired).unwrap();
    assert_eq!(output.to_str(), Some("stages/01-sft/model"));
    assert!(!of_sft.contains("### dpo"));
    assert!(matches!(card(&data, Some("nope"), paired), Err(ReportError::NoStage { .. })));
}

#[test]
fn a_base_on_disk_is_no_name_on_the_hub() {
    for base in ["/tmp/x/model", "./x", "runs/a/b", "data.jsonl"] {
        let (_dir, data) = run(2, |plan| plan.replace("org/base", base));
        let (text, _) = card(&data, None, paired).unwrap();
        assert!(text.contains("# base_model: TO BE WRITTEN"), "{base}");
    }
}

#[test]
fn equal_runs_are_equal_to_the_byte() {
    let ((_a, a), (_b, b)) = (run(4, |plan| plan), run(4, |plan| plan));
    let found = why(&a, &b, paired, false).unwrap();
    assert_eq!((found.plan.len(), found.divergences.len(), found.same_hash), (0, 0, Some(true)));
    assert_eq!(found.files, Some(Vec::new()));
    let text = found.to_text();
    assert!(text.contains("the same, bit for bit") && text.contains("byte for byte"), "{text}");
}

#[test]
fn equal_hashes_are_compared_to_the_byte_wherever_the_base_lies() {
    let ((_a, a), (_b, b)) = (run(4, |plan| plan), run(4, |plan| plan.replace("org/base", "elsewhere/base")));
    let found = why(&a, &b, paired, false).unwrap();
    assert_eq!((found.plan.len(), found.same_hash), (1, Some(true)));
    assert!(!found.plan[0].group.has_effect(), "{:?}", found.plan);
    assert_eq!(found.files, Some(Vec::new()));
}

#[test]
fn what_differs_is_explained() {
    let (a_dir, a) = run(4, |plan| plan);
    let (b_dir, _) = run(4, |plan| {
        plan.replace("\"learning_rate\":0.00005", "\"learning_rate\":0.0001")
            .replace("\"seed\":7", "\"seed\":8")
            .replace("ab12", "99ff")
    });
    let metrics = b_dir.path().join("metrics.jsonl");
    let changed = fs::read_to_string(&metrics).unwrap().replacen("\"loss\":2.5", "\"loss\":2.75", 1);
    fs::write(&metrics, changed).unwrap();
    let tasks = "stages/02-dpo/eval/tasks-after.json";
    let events = b_dir.path().join("events.jsonl");
    let other = fs::read_to_string(&events).unwrap().replace("27b1b8b178369600", "55aa");
    fs::write(&events, other).unwrap();
    fs::copy(a_dir.path().join("stages/03-grpo/eval/tasks-after.json"), b_dir.path().join(tasks)).unwrap();
    let b = RunData::read(b_dir.path()).unwrap();
    let found = why(&a, &b, paired, false).unwrap();
    assert_eq!(found.files, None, "the plans explain it");
    let text = found.to_text();
    let said = [
        "data: what is learned from",
        "stages.sft.data.train.0.files.0.blake3: ab12 -> 99ff",
        "seed: 7 -> 8",
        "stages.dpo.schedule.learning_rate: 0.00005 -> 0.0001",
        "dpo on sum, digits: 52.0\u{a0}% -> 90.0\u{a0}%, +38.0 [",
        "B is better",
        "they part at step 2 of sft",
        "loss: 2.5 in A, 2.75 in B, 9.1\u{a0}% apart",
        "grpo on sum, digits: 90.0\u{a0}% -> 90.0\u{a0}%, 0.0 [",
    ];
    let text = text.replace("5e-5", "0.00005");
    for said in said {
        assert!(text.contains(said), "no {said} in\n{text}");
    }
    assert!(
        why(&a, &b, paired, true)
            .unwrap()
            .files
            .is_some_and(|files| files.iter().any(|file| file.contains("metrics.jsonl")))
    );
}
