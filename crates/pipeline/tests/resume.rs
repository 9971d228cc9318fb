//! A run that was interrupted, or crashed, anywhere and was resumed ends with the bytes of the run that never stopped.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use common::*;
use pt_pipeline::{PipelineError, RunOutcome, verify_resume};
use pt_run::{Difference, compare_runs};

/// A base, an adapter with dropout on it, and a quantised adapter on what came out.
fn three_stages() -> String {
    let adapter = "train.method = \"lora\"\nlora.rank = 4\nlora.dropout = 0.1\n";
    let quantised = "train.method = \"qlora\"\nlora.rank = 4\n";
    let saving = "train.save_every = 4\n";
    format!("{NEW_MODEL}{PRETRAIN}{saving}{SFT}{saving}{adapter}{}{saving}{quantised}", without_tasks(SFT))
}

const ALL: [&str; 3] = ["stage.0.train.steps=9", "stage.1.train.steps=10", "stage.2.train.steps=8"];

fn assert_same(whole: &Path, resumed: &Path, case: &str) {
    // A run that is asked to stop saves a checkpoint where the other one has no reason to.
    let only_there = |difference: &Difference| !matches!(difference, Difference::CheckpointOnlyIn { .. });
    let differences: Vec<String> = compare_runs(whole, resumed)
        .unwrap()
        .into_iter()
        .filter(only_there)
        .map(|difference| difference.to_string())
        .collect();
    assert!(differences.is_empty(), "{case}: {differences:#?}");
    let ours = |dir: &Path| -> Vec<_> {
        let kept = |path: &Path| {
            path.starts_with("stages") && !path.components().any(|c| c.as_os_str() == "checkpoints")
        };
        files(dir).into_iter().filter(|(path, _)| kept(path)).collect()
    };
    let (a, b) = (ours(whole), ours(resumed));
    assert!(a.len() > 20, "models, adapters, tokenizers, scores: {}", a.len());
    for (a, b) in a.iter().zip(&b) {
        assert!(a == b, "{case}: {} and {}", a.0.display(), b.0.display());
    }
}

#[test]
fn interrupted_or_crashed_anywhere_it_ends_the_same() {
    let text = three_stages();
    let dir = tempdir();
    let whole = dir.path().join("whole");
    finish(&text, &ALL, &whole);
    let places = [
        StopAt::Step("pretrain", 5),
        StopAt::Ended("pretrain"),
        StopAt::Measuring("sft", "before"),
        StopAt::Step("sft", 7),
        StopAt::Step("sft", 10),
        StopAt::Measuring("sft", "after"),
        StopAt::Ended("sft"),
        StopAt::Step("sft-2", 1),
        StopAt::Step("sft-2", 7),
    ];
    for (i, place) in places.into_iter().enumerate() {
        for crash in [false, true] {
            let case = format!("{place:?}, crash {crash}");
            let out = dir.path().join(format!("{i}-{crash}"));
            let mut seen = if crash { Seen::crashing(place) } else { Seen::stopping(place) };
            let first = catch_unwind(AssertUnwindSafe(|| go(&text, &ALL, &out, &mut seen)));
            match first {
                Err(_) => assert!(crash, "{case}"),
                Ok(outcome) => {
                    // Asked to stop while it measures the end of a stage, a run stops before the next one.
                    let outcome = outcome.unwrap();
                    assert!(matches!(outcome, RunOutcome::Interrupted { .. }), "{case}: {outcome:?}");
                    assert!(!crash, "{case}");
                }
            }
            let mut seen = Seen::default();
            let outcome = go(&text, &ALL, &out, &mut seen).unwrap_or_else(|error| panic!("{case}: {error}"));
            assert!(matches!(outcome, RunOutcome::Finished(_)), "{case}: {outcome:?}");
            assert_same(&whole, &out, &case);
        }
    }
}

#[test]
fn interrupted_again_and_again_it_ends_the_same() {
    let text = three_stages();
    let dir = tempdir();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("resumed"));
    finish(&text, &ALL, &whole);
    for stage in ["pretrain", "sft", "sft-2"] {
        for step in [2, 3, 6] {
            go(&text, &ALL, &out, &mut Seen::stopping(StopAt::Step(stage, step))).unwrap();
        }
    }
    finish(&text, &ALL, &out);
    assert_same(&whole, &out, "nine stops");
    // Once more, where nothing is left to do.
    let (reports, seen) = finish(&text, &ALL, &out);
    assert!(reports.len() == 3 && seen.losses.is_empty());
    assert_same(&whole, &out, "resumed when finished");
}

#[test]
fn verify_resume_says_the_same() {
    let recipe = recipe(&format!("{NEW_MODEL}{}", without_tasks(SFT)), &[]);
    let dir = tempdir();
    let mut said = Vec::new();
    let mut progress = |what: &str| said.push(what.to_owned());
    let verdict = verify_resume(&recipe, 0, dir.path(), &nothing_around(), &mut progress).unwrap();
    assert_eq!((verdict.stopped_at, verdict.steps), (6, 12));
    assert!(verdict.differences.is_empty(), "{:?}", verdict.differences);
    assert!(said.iter().any(|what| what == "resuming"), "{said:?}");
    // It would see a byte that is not the same.
    let model = dir.path().join("resumed/stages/01-sft/model/config.json");
    let text = std::fs::read_to_string(&model).unwrap();
    std::fs::write(&model, text.replace("\"hidden_size\": 32", "\"hidden_size\": 33")).unwrap();
    assert_eq!(compare_runs(&dir.path().join("whole"), &dir.path().join("resumed")).unwrap().len(), 1);
}

#[test]
fn a_changed_recipe_is_refused_and_says_what_changed() {
    let text = three_stages();
    let dir = tempdir();
    let out = dir.path().join("run");
    go(&text, &ALL, &out, &mut Seen::stopping(StopAt::Step("pretrain", 5))).unwrap();
    let plan = std::fs::read(out.join("plan.json")).unwrap();
    for (set, expected) in [
        ("seed=4", "seed was 3, is 4"),
        ("stage.0.optimizer.learning_rate=0.004", "stages.0.schedule.learning_rate was 0.005, is 0.004"),
        ("stage.1.lora.rank=8", "stages.1.lora.rank was 4, is 8"),
        ("stage.2.train.method=lora", "stages.2.quantization was given, is none"),
        ("stage.2.optimizer.beta2=0.95", "stages.2.optimizer.params.beta2 was 0.999, is 0.95"),
        ("stage.0.data.train=[\"generated:raw?chars=12001&seed=1\"]", "stages.0.data.train.0.source was"),
        ("model.new.hidden_size=64", "model.new.hidden_size was 32, is 64"),
    ] {
        let sets = [&ALL[..], &[set]].concat();
        match go(&text, &sets, &out, &mut Seen::default()) {
            Err(error @ PipelineError::PlanChanged { .. }) => {
                let message = error.to_string();
                assert!(message.contains(expected), "{set}: {message}");
                assert!(!message.contains("expected_seconds") && !message.contains("memory"), "{message}");
            }
            other => panic!("{set}: {other:?}"),
        }
    }
    assert_eq!(plan, std::fs::read(out.join("plan.json")).unwrap());
    // How often a checkpoint is saved does not change what comes out.
    let sets =
        [&ALL[..], &["stage.0.train.save_every=3", "stage.1.train.keep_last=1", "name=other"]].concat();
    let outcome = go(&text, &sets, &out, &mut Seen::default()).unwrap();
    assert!(matches!(outcome, RunOutcome::Finished(_)));
}

#[test]
fn changed_data_are_refused() {
    let dir = tempdir();
    let data = dir.path().join("rows.jsonl");
    let rows = |n: usize| -> String {
        let row = |i: usize| format!("{{\"prompt\": \"Say {i}\", \"completion\": \" {i}!\"}}\n");
        (0..n).map(row).collect()
    };
    std::fs::write(&data, rows(40)).unwrap();
    let text = format!("{}[[stage]]\ntype = \"sft\"\ndata.train = [{data:?}]\ntrain.steps = 8\n", on_base());
    let out = dir.path().join("run");
    go(&text, &[], &out, &mut Seen::stopping(StopAt::Step("sft", 3))).unwrap();
    std::fs::write(&data, rows(39) + "{\"prompt\": \"Say 39\", \"completion\": \" 40!\"}\n").unwrap();
    let message = go(&text, &[], &out, &mut Seen::default()).unwrap_err().to_string();
    assert!(message.contains("stages.0.data.train.0.files.0.blake3"), "{message}");
    std::fs::write(&data, rows(40)).unwrap();
    assert!(matches!(go(&text, &[], &out, &mut Seen::default()).unwrap(), RunOutcome::Finished(_)));
}

#[test]
fn a_cache_that_vanishes_is_an_error_and_not_a_crash() {
    use pt_pipeline::{RunOptions, Surroundings, prepare, run};
    let dir = tempdir();
    let cache = dir.path().join("cache");
    let around = Surroundings { hf_home: None, cache_dir: Some(cache.clone()), memory_bytes: None };
    let text = format!("{}{}", on_base(), without_tasks(SFT));
    let many = "stage.sft.data.train=[\"generated:sum?level=3&n=2000\"]";
    let prepare = || prepare(recipe(&text, &[many]), &around).unwrap();
    let first = prepare();
    let cached = files(&cache);
    assert!(!cached.is_empty(), "2,000 rows are kept");
    let [first, second] = [first, prepare()];
    assert_eq!(first.plan.hash(), second.plan.hash(), "rows from the cache are the rows that went into it");
    let rows = cached.iter().filter(|(path, _)| path.extension().is_none_or(|extension| extension != "json"));
    for (path, bytes) in rows {
        std::fs::OpenOptions::new()
            .write(true)
            .open(cache.join(path))
            .unwrap()
            .set_len(bytes.len() as u64 / 2)
            .unwrap();
    }
    let options = RunOptions { out: dir.path().join("run"), resume: false, reuse: Vec::new() };
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut quiet = Quiet;
    let error = run(second, &options, &around, &mut quiet, &stop).unwrap_err();
    assert!(matches!(error, PipelineError::Data(_)), "{error}");
    // A damaged cache is made anew, and said to be.
    let again = prepare();
    assert!(
        again.stages[0].notes.iter().any(|note| note.contains("tokenised anew")),
        "{:?}",
        again.stages[0].notes
    );
    assert_eq!(again.plan.hash(), first.plan.hash());
    // One that cannot be written is no reason not to run.
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let unwritable = Surroundings { hf_home: None, cache_dir: Some(file.join("cache")), memory_bytes: None };
    let anew = pt_pipeline::prepare(recipe(&text, &[many]), &unwritable).unwrap();
    assert!(
        anew.stages[0].notes.iter().any(|note| note.contains("could not be kept")),
        "{:?}",
        anew.stages[0].notes
    );
    assert_eq!(anew.plan.hash(), first.plan.hash());
}
