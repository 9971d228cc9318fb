//! Recipes of several kinds of stages: each is carried out on what earlier ones made, taken over where it is the same, and run again
//! with those that depend on it where it changed.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use pt_pipeline::{RunOutcome, StageReport};
use serde_json::Value;

/// Rows curated, trained on, measured, merged and exported.
const REST: &str = r#"
[[stage]]
type = "curate"
curate.sources = ["generated:letters?level=1&n=60&seed=2", "generated:letters?level=1&n=20&seed=2"]
curate.steps = ["exact_duplicates"]
[[stage]]
type = "sft"
data.train = ["stage:curate"]
train.steps = 6
optimizer.learning_rate = 5e-3
eval.n = 1
eval.max_new_tokens = 1
[[stage]]
type = "eval"
eval.tasks = ["generated:letters?level=1"]
eval.n = 4
eval.max_new_tokens = 4
gate.max_loss = 1.0
[[stage]]
type = "merge"
merge.models = ["stage:pretrain", "stage:sft"]
[[stage]]
type = "export"
export.format = "gguf"
export.quant = "q8_0"
"#;

const ALL: [&str; 6] = ["pretrain", "curate", "sft", "eval", "merge", "export"];

fn text() -> String {
    format!("{NEW_MODEL}{PRETRAIN}{REST}")
}

fn finish_reusing(sets: &[&str], out: &Path, reuse: &[PathBuf]) -> (Vec<StageReport>, Vec<String>) {
    let mut seen = Seen::default();
    match go_reusing(&text(), sets, out, reuse, &mut seen).unwrap_or_else(|error| panic!("{error}")) {
        RunOutcome::Finished(reports) => {
            let taken = seen.notes.iter().filter(|note| note.contains("taken over"));
            let taken = taken.map(|note| note.split(':').next().unwrap_or_default().to_owned()).collect();
            (reports, taken)
        }
        other => panic!("not finished: {other:?}"),
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        .unwrap()
}

#[test]
fn stages_build_on_each_other_and_only_what_depends_on_a_change_runs_again() {
    let dir = tempdir();
    let first = dir.path().join("first");
    let (reports, taken) = finish_reusing(&[], &first, &[]);
    assert!(taken.is_empty() && reports.len() == ALL.len(), "{taken:?}");
    let at = |run: &Path, i: usize| run.join(&reports[i].output);
    // Of the second source every row is one of the first.
    let rows = fs::read_to_string(at(&first, 1)).unwrap();
    let dropped = fs::read_to_string(first.join("stages/02-curate/dropped.jsonl")).unwrap();
    assert!(rows.lines().count() <= 60 && rows.lines().count() + dropped.lines().count() == 80, "{dropped}");
    // The stage that trained on them was planned when they were there.
    let own = json(&first.join("stages/03-sft/plan.json"));
    assert_eq!(own["stages"][0]["data"]["train"][0]["rows"], rows.lines().count());
    let measures = &reports[3].measures;
    let names: Vec<&str> = measures.iter().map(|measure| measure.model.as_str()).collect();
    assert_eq!((names, reports[3].contrasts.len()), (vec!["pretrain", "sft"], 1));
    assert!(first.join("stages/04-eval/results/sft/results.json").is_file());
    assert!(json(&first.join("stages/04-eval/results/gate.json"))[0]["passes"].as_bool().unwrap());
    assert!(at(&first, 4).join("model.safetensors").is_file());
    assert!(at(&first, 5).extension().is_some_and(|end| end == "gguf") && at(&first, 5).is_file());

    let cases: [(&str, &[&str], &[&str]); 6] = [
        ("same", &[], &ALL),
        ("merge", &["stage.merge.merge.weights=[0.25, 0.75]"], &["pretrain", "curate", "sft", "eval"]),
        ("gate", &["stage.eval.gate.max_loss=0.9"], &["pretrain", "curate", "sft", "merge", "export"]),
        ("curation", &["stage.curate.curate.steps=[]"], &["pretrain"]),
        ("training", &["stage.sft.train.steps=7"], &["pretrain", "curate"]),
        ("base", &["stage.pretrain.train.steps=11"], &["curate"]),
    ];
    for (name, sets, expected) in cases {
        let sets: Vec<&str> = sets
            .iter()
            .map(|set| {
                if *set == "stage.curate.curate.steps=[]" {
                    "stage.curate.curate.steps=encoding"
                } else {
                    set
                }
            })
            .collect();
        let out = dir.path().join(name);
        let (again, taken) = finish_reusing(&sets, &out, std::slice::from_ref(&first));
        assert_eq!(taken, expected, "{name}");
        let same = again.iter().zip(&reports).filter(|(a, b)| a.key == b.key).count();
        assert_eq!(same, expected.len(), "{name}: as many keys as were taken over are the same");
    }
}

#[test]
fn a_gate_that_fails_ends_the_run_and_says_what_was_lost() {
    let dir = tempdir();
    let run = dir.path().join("strict");
    // So few questions cannot exclude a loss.
    let strict = ["stage.eval.gate.max_loss=0", "stage.eval.gate.fail_on=possible"];
    let error = go(&text(), &strict, &run, &mut Seen::default()).unwrap_err().to_string();
    assert!(error.contains("the gate of stage `eval` fails: sft against pretrain"), "{error}");
    let gate = json(&run.join("stages/04-eval/results/gate.json"));
    assert_eq!(gate[0]["passes"], false);
    assert!(
        !run.join("stages/04-eval/outcome.json").exists()
            && !run.join("stages/05-merge/outcome.json").exists()
    );
    let again = go(&text(), &strict, &run, &mut Seen::default()).unwrap_err().to_string();
    assert_eq!(again, error, "a resumed run is held to the same");
    // What was measured is marked, to be known again.
    let results = Path::new("stages/04-eval/results/sft/results.json");
    let mut marked = json(&run.join(results));
    marked["posttrain"] = "marked".into();
    fs::write(run.join(results), marked.to_string()).unwrap();
    let before = fs::read(run.join("stages/04-eval/results/gate.json")).unwrap();
    let allowed = dir.path().join("allowed");
    let (_, taken) = finish_reusing(&[], &allowed, std::slice::from_ref(&run));
    assert_eq!(taken, ["pretrain", "curate", "sft"], "what was done before the gate is done");
    assert_eq!(json(&allowed.join(results))["posttrain"], "marked", "a changed gate measures nothing again");
    assert_eq!(json(&allowed.join("stages/04-eval/results/gate.json"))[0]["passes"], true);
    let after = fs::read(run.join("stages/04-eval/results/gate.json")).unwrap();
    assert!(before == after, "what the other run found stays as it was");
    let other = dir.path().join("other");
    finish_reusing(&["stage.eval.eval.n=7"], &other, std::slice::from_ref(&run));
    assert_ne!(json(&other.join(results))["posttrain"], "marked", "other questions are measured");
}

#[test]
fn a_run_stopped_between_stages_goes_on_to_the_same_bytes() {
    let dir = tempdir();
    let (whole, stopped) = (dir.path().join("whole"), dir.path().join("stopped"));
    finish(&text(), &[], &whole);
    for stop in [StopAt::Step("sft", 3), StopAt::Ended("sft")] {
        let outcome = go(&text(), &[], &stopped, &mut Seen::stopping(stop)).unwrap();
        assert!(matches!(outcome, RunOutcome::Interrupted { .. }), "{outcome:?}");
    }
    finish(&text(), &[], &stopped);
    for path in [
        "stages/03-sft/model/model.safetensors",
        "stages/04-eval/results/comparison.json",
        "stages/05-merge/model/model.safetensors",
    ] {
        assert_eq!(fs::read(whole.join(path)).unwrap(), fs::read(stopped.join(path)).unwrap(), "{path}");
    }
}

#[test]
fn a_branch_begins_with_the_stage_it_names() {
    let text = format!(
        "{NEW_MODEL}{PRETRAIN}{}\n{}name = \"other\"\nbase = \"stage:pretrain\"\n",
        without_tasks(SFT),
        without_tasks(SFT)
    );
    // The second stage's keys come before its tables.
    let prepared = prepared(&text, &[]);
    let bases: Vec<&str> = prepared.plan.stages.iter().map(|stage| stage.base.as_str()).collect();
    assert_eq!(bases, ["model", "stage:pretrain", "stage:pretrain"]);
}

#[test]
fn what_cannot_be_is_refused_before_anything_runs() {
    let parse = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let path = Path::new("test.toml");
        match pt_recipe::Recipe::parse(&text(), path, &sets, &pt_pipeline::catalogue()) {
            Err(error) => error.to_string(),
            Ok(recipe) => match pt_pipeline::prepare(recipe, &nothing_around()) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("{sets:?} should have been refused"),
            },
        }
    };
    let cases: [(&[&str], &str); 17] = [
        (&["stage.sft.data.train=stage:merge"], "no earlier stage is called `merge`"),
        (&["stage.sft.data.train=stage:pretrain"], "here rows can stand, and the stage `pretrain`"),
        (&["stage.merge.merge.models=[\"stage:curate\"]"], "here a model can stand, and the stage `curate`"),
        (&["stage.sft.base=pretrain"], "`stage:NAME`, an earlier stage's"),
        (&["stage.eval.train.steps=3"], "has no effect with `type = \"eval\"`"),
        (&["stage.sft.merge.method=ties"], "has no effect with `type = \"sft\"`"),
        (&["stage.sft.eval.benchmarks=gsm8k"], "has no effect with `type = \"sft\"`"),
        (&["stage.merge.merge.method=ties"], "`base` is absent"),
        (&["stage.merge.merge.weights=[1.0]"], "`weights` is 1 numbers"),
        (&["stage.merge.merge.density=0.2"], "has no effect with `method = \"linear\"`"),
        (&["stage.merge.merge.scale=2.0", "stage.merge.merge.method=slerp"], "write ties or dare"),
        (&["stage.merge.merge.base=model"], "has no effect with `method = \"linear\"`"),
        (&["stage.eval.eval.models=stage:sft"], "a gate compares models"),
        (&["stage.export.export.format=nf4"], "export.quant has no effect"),
        (&["stage.curate.curate.steps=near_duplicatez"], "near_duplicates"),
        (&["stage.curate.curate.steps=difficulty"], "model is not given"),
        (&["stage.curate.curate.steps=[\"difficulty:model='no/such'\"]"], "`no/such`"),
    ];
    for (sets, expected) in cases {
        let error = parse(sets);
        assert!(error.contains(expected), "{sets:?}: {error}");
    }
}
