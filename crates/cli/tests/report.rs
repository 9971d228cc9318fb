//! `report` and `why` on run folders made by hand, and the page that `run` writes by itself.

mod common;

use std::fs;
use std::path::Path;

use common::run;
use serde_json::json;

/// A run of one stage with one task, of whose 50 problems `n_right` are solved at the end.
fn write_run(root: &Path, name: &str, rate: f64, n_right: usize) {
    let put = |file: &str, text: String| {
        let path = root.join(name).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let plan = json!({"name": name, "seed": 7, "model": {"base": null, "parameters": 10}, "stages": [
        {"number": 1, "name": "sft", "type": "sft", "steps": 2, "schedule": {"learning_rate": rate}}]});
    let tasks = |n_right: usize| {
        let sample = |i: usize| json!({"family": "sum", "prompt": format!("{i} + 1"), "reply": "2", "passed": i < n_right});
        let samples: Vec<_> = (0..50).map(sample).collect();
        json!([{"task": "sums", "accuracy": n_right as f64 / 50.0, "interval95": [0.0, 1.0], "samples": samples}]).to_string()
    };
    put("plan.json", plan.to_string());
    put("metrics.jsonl", format!("{}\n", json!({"stage": "01-sft", "step": 1, "loss": 2.0 + rate})));
    put("timing.jsonl", String::new());
    put("events.jsonl", format!("{}\n", json!({"time": "2026-11-24T11:30:00Z", "event": "finished"})));
    put("stages/01-sft/eval/tasks-before.json", tasks(0));
    put("stages/01-sft/eval/tasks-after.json", tasks(n_right));
    put("stages/01-sft/model/config.json", "{}".to_owned());
    put(
        "stages/01-sft/outcome.json",
        json!({"steps": 2, "gains": [], "output": "stages/01-sft/model"}).to_string(),
    );
}

/// Runs the program in a folder with two runs, and checks its status and what it says on either stream.
fn check(root: &Path, args: &[&str], code: i32, said: &[&str]) {
    let outcome = run(root, args);
    assert_eq!(outcome.code, code, "{args:?}: {}{}", outcome.stdout, outcome.stderr);
    let all = outcome.stdout + &outcome.stderr;
    for text in said {
        assert!(all.contains(text), "{args:?} does not say {text}:\n{all}");
    }
}

#[test]
fn reports_cards_and_reasons_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write_run(root, "a", 0.5, 10);
    write_run(root, "b", 0.25, 40);
    check(root, &["report", "a"], 0, &["wrote a/report.html"]);
    check(root, &["report", "a", "b", "--out", "both.html"], 0, &["wrote both.html"]);
    check(
        root,
        &["why", "a", "b"],
        0,
        &["stages.sft.schedule.learning_rate: 0.5 -> 0.25", "B is better", "they part at step 1 of sft"],
    );
    check(root, &["why", "a", "a"], 0, &["bit for bit", "byte for byte"]);
    check(root, &["report", "a", "--card"], 0, &["wrote a/stages/01-sft/model/README.md", "TO BE WRITTEN"]);
    check(root, &["report", "a", "--card"], 0, &["wrote"]);
    check(root, &["report", "a", "--card", "--stage", "dpo"], 1, &["no stage `dpo`", "01-sft"]);
    check(root, &["report", "a", "b", "--card"], 1, &["about one run"]);
    check(root, &["report", "nowhere"], 1, &["nowhere is not a run folder"]);
    check(root, &["report", "a", "--stage", "sft"], 2, &["--card"]);
    fs::write(root.join("mine.md"), "# My own words\n").unwrap();
    check(root, &["report", "a", "--card", "--out", "mine.md"], 1, &["left as it is"]);
    assert_eq!(fs::read_to_string(root.join("mine.md")).unwrap(), "# My own words\n");
    fs::write(root.join("latin1.md"), b"# Mod\xe8le\n").unwrap();
    check(root, &["report", "a", "--card", "--out", "latin1.md"], 1, &["left as it is"]);
    assert_eq!(fs::read(root.join("latin1.md")).unwrap(), b"# Mod\xe8le\n");
    // A folder cannot be read as a file; nor can what its owner has locked.
    fs::create_dir(root.join("locked.md")).unwrap();
    check(root, &["report", "a", "--card", "--out", "locked.md"], 1, &["cannot be read", "left as it is"]);
    fs::remove_file(root.join("b/metrics.jsonl")).unwrap();
    check(root, &["report", "b"], 0, &["metrics.jsonl cannot be read", "wrote b/report.html"]);
    let page = fs::read_to_string(root.join("both.html")).unwrap();
    assert!(page.contains("2 runs side by side") && page.ends_with("</html>\n"));
}

const RECIPE: &str = r#"
name = "tiny"
seed = 7
[model]
dtype = "f32"
tokenizer = "bpe:300"
[model.new]
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 256
[[stage]]
type = "sft"
data.train = ["generated:sum?level=1&n=20&seed=2"]
data.max_length = 256
train.rows_per_step = 10
train.log_every = 1
optimizer.learning_rate = 1e-3
eval.n = 4
"#;

#[test]
fn a_sweep_reads_every_variant_before_it_runs_one() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tiny.toml"), RECIPE).unwrap();
    let vary = "stage.sft.optimizer.learning_rate=[1e-3, \"much\"]";
    check(dir.path(), &["sweep", "tiny.toml", "--out", "s", "--vary", vary], 1, &["learning_rate", "much"]);
    assert!(!dir.path().join("s").exists(), "nothing was run");
}

#[test]
fn every_stage_type_has_a_title() {
    for name in pt_recipe::STAGE_TYPE_NAMES {
        assert_ne!(pt_recipe::title_of(name), *name, "a report shows the bare name");
    }
}

#[test]
fn a_finished_run_has_its_report_unless_told_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tiny.toml"), RECIPE).unwrap();
    check(dir.path(), &["run", "tiny.toml", "--out", "with"], 0, &["its report in with/report.html"]);
    let page = fs::read_to_string(dir.path().join("with/report.html")).unwrap();
    assert!(page.contains("<h1>tiny</h1>") && !page.contains("Missing or damaged"));
    check(
        dir.path(),
        &["run", "tiny.toml", "--out", "without", "--no-report"],
        0,
        &["the run is in without"],
    );
    assert!(!dir.path().join("without/report.html").exists());
    check(
        dir.path(),
        &["why", "with", "without"],
        0,
        &["have the same hash", "bit for bit", "byte for byte"],
    );
}
