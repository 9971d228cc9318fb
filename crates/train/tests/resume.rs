//! A run stopped or killed between any two steps and continued leaves the same bytes as one that never stopped.

mod common;

use std::cell::Cell;
use std::fs;
use std::path::Path;

use common::*;
use pt_engine::Dtype;
use pt_models::Model;
use pt_run::{CheckpointStore, Difference, RunError, compare_runs};
use pt_train::{
    Alarm, AlarmAction, LoopOptions, MicroBatch, Outcome, SourceResult, StepData, StepSource, StepStats,
    TrainError, Trainer,
};
use serde_json::Value;

const STEPS: u64 = 12;
const VOCABULARY: usize = 100;

struct Case {
    name: &'static str,
    model: fn() -> Model,
    setup: Setup,
}

fn full(dtype: Dtype) -> Model {
    all_training(load_golden("llama", dtype))
}

fn cases() -> Vec<Case> {
    let f32 = Setup { schedule: "name = 'cosine'\nwarmup_steps = 2", steps: STEPS, ..Setup::default() };
    let bf16 = Setup { dtype: Dtype::Bf16, ..f32 };
    vec![
        Case { name: "adamw f32", model: || full(Dtype::F32), setup: f32 },
        Case {
            name: "adamw bf16, rounded at random, bf16 state",
            model: || full(Dtype::Bf16),
            setup: Setup { optimiser_options: "state = 'bf16'\nbf16_params = 'stochastic'", ..bf16 },
        },
        Case { name: "adamw bf16 with f32 copies", model: || full(Dtype::Bf16), setup: bf16 },
        Case {
            name: "adamw8bit",
            model: || all_training(wide_model(Dtype::F32)),
            setup: Setup { optimiser: "adamw8bit", ..f32 },
        },
        Case { name: "muon", model: || full(Dtype::F32), setup: Setup { optimiser: "muon", ..f32 } },
        Case {
            name: "lora with dropout, in bf16",
            model: || {
                let lora = serde_json::json!({"rank": 4, "alpha": 8, "dropout": 0.2});
                with_lora(load_golden("llama", Dtype::Bf16), lora)
            },
            setup: bf16,
        },
        Case {
            name: "dora",
            model: || {
                let lora = serde_json::json!({"rank": 4, "alpha": 8, "dora": true});
                with_lora(load_golden("llama", Dtype::F32), lora)
            },
            setup: f32,
        },
    ]
}

/// The micro-batches of a step; a step in `broken` has a token no vocabulary knows, so training ends there unsaved.
fn micro_batches(step: u64, broken: Option<u64>) -> Vec<MicroBatch> {
    let mut examples: Vec<_> =
        (0..3).map(|i| random_example(VOCABULARY, 5 + i as usize, 1, 100 * step + i)).collect();
    if broken == Some(step) {
        examples[1].token_ids[2] = 1 << 20;
    }
    cut(&examples, &[2, 1])
}

fn held_out() -> Vec<MicroBatch> {
    let examples: Vec<_> = (0..2).map(|i| random_example(VOCABULARY, 8, 1, 1_000_000 + i)).collect();
    cut(&examples, &[1, 1])
}

/// How a run is interrupted, by steps done.
#[derive(Clone, Copy, Debug)]
enum Interruption {
    /// Asked to stop: the last step is saved.
    Stop(u64),
    /// Ends without saving, with lines in the logs that no checkpoint vouches for.
    Kill(u64),
}

/// Trains in `root` until the end or the interruption, in a new trainer that continues from what is there.
fn train(case: &Case, root: &Path, keep_last: usize, interruption: Option<Interruption>) -> Trainer {
    let mut trainer = case.setup.trainer((case.model)());
    let eval = held_out();
    let run = Run { root, options: loop_options(STEPS), keep_last, eval: &eval };
    let (stop, broken) = match interruption {
        None => (u64::MAX, None),
        Some(Interruption::Stop(step)) => (step, None),
        Some(Interruption::Kill(step)) => (u64::MAX, Some(step)),
    };
    let mut source = Steps { make: |step| micro_batches(step, broken), per_epoch: 5 };
    let outcome = run.go(&mut trainer, &mut source, stop);
    match interruption {
        None => assert_eq!(outcome.unwrap(), Outcome::Finished, "{}", case.name),
        Some(Interruption::Stop(step)) => assert_eq!(outcome.unwrap(), Outcome::Interrupted { step }),
        Some(Interruption::Kill(_)) => {
            assert!(matches!(outcome, Err(TrainError::Vocabulary { .. })), "{}", case.name);
        }
    }
    trainer
}

/// Whatever interrupts a run, its metrics and the checkpoints it ends with are those of the run that was left alone.
fn check(case: &Case, whole: &Path, interruptions: &[Interruption]) {
    let dir = tempfile::tempdir().unwrap();
    for &interruption in interruptions {
        train(case, dir.path(), 1, Some(interruption));
    }
    let trainer = train(case, dir.path(), 1, None);
    assert_eq!(trainer.steps_done(), STEPS);
    let differences = compare_runs(whole, dir.path()).unwrap();
    assert_eq!(differences, [], "{} {interruptions:?}", case.name);
}

#[test]
fn an_interrupted_run_ends_with_the_same_bytes() {
    use Interruption::{Kill, Stop};
    let several: &[Interruption] = &[Stop(2), Kill(4), Kill(8), Stop(9)];
    let one_by_one: &[&[Interruption]] = &[
        &[Stop(1)],
        &[Stop(7)],
        &[Stop(11)],
        &[Kill(2)],  // nothing is saved yet: from the start
        &[Kill(9)],  // after an evaluation, which may have saved a best one
        &[Kill(11)], // from step 10
    ];
    for (i, case) in cases().iter().enumerate() {
        let whole = tempfile::tempdir().unwrap();
        train(case, whole.path(), 1, None);
        check(case, whole.path(), several);
        // The loop does not know the optimiser: what a single interruption does is seen with the first.
        for interruptions in one_by_one.iter().filter(|_| i == 0) {
            check(case, whole.path(), interruptions);
        }
    }
}

/// The comparison above can fail: another learning rate shows in metrics and in tensors.
#[test]
fn another_run_is_told_apart() {
    let case = &cases()[0];
    let other = Case { setup: Setup { learning_rate: 0.011, ..case.setup }, ..cases().remove(0) };
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(case, a.path(), 1, None);
    train(&other, b.path(), 1, None);
    let differences = compare_runs(a.path(), b.path()).unwrap();
    assert!(differences.iter().any(|d| matches!(d, Difference::Line { .. })), "{differences:?}");
    assert!(differences.iter().any(|d| matches!(d, Difference::TensorElement { .. })), "{differences:?}");
}

fn checkpoints(root: &Path) -> std::path::PathBuf {
    root.join("stages/01-sft/checkpoints")
}

fn checkpoint_names(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(checkpoints(root)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn json_lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn events(root: &Path, kind: &str) -> Vec<Value> {
    json_lines(&root.join("events.jsonl")).into_iter().filter(|event| event["event"] == kind).collect()
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over_with_an_event() {
    let case = &cases()[0];
    let (whole, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(case, whole.path(), 2, None);
    train(case, dir.path(), 2, Some(Interruption::Kill(11)));
    let newest = checkpoint_names(dir.path()).pop().unwrap();
    let tensors = checkpoints(dir.path()).join(&newest).join("tensors.safetensors");
    let mut bytes = fs::read(&tensors).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&tensors, bytes).unwrap();

    // Killed again before it comes to save the damaged one anew: nothing of that may be left.
    train(case, dir.path(), 2, Some(Interruption::Kill(9)));
    assert!(!checkpoint_names(dir.path()).contains(&newest), "{newest}");
    train(case, dir.path(), 2, None);
    let skipped = events(dir.path(), "checkpoint_skipped");
    assert_eq!(skipped.len(), 1, "{skipped:?}");
    assert_eq!(skipped[0]["stage"], "01-sft");
    assert!(skipped[0]["problem"].as_str().unwrap().contains(&newest), "{skipped:?}");
    let resumed = events(dir.path(), "resumed").pop().unwrap();
    assert!(resumed["step"].as_u64().unwrap() < 10, "{resumed}");
    assert_eq!(compare_runs(whole.path(), dir.path()).unwrap(), []);
}

/// Does something to the checkpoints after step 11, then asks to go back to before it.
struct Damaged<'d> {
    checkpoints: std::path::PathBuf,
    damage: &'d dyn Fn(&Path),
}

impl StepSource for Damaged<'_> {
    fn step(&mut self, step_idx: u64, _: &Model) -> SourceResult<StepData> {
        Ok(micro_batches(step_idx, None).into())
    }
    fn epoch(&mut self, _: u64) -> f64 {
        0.0
    }
    fn after_step(&mut self, step_idx: u64, _: &StepStats) -> SourceResult<Vec<Alarm>> {
        if step_idx < 11 {
            return Ok(Vec::new());
        }
        (self.damage)(&self.checkpoints);
        let reason = "something is wrong".to_owned();
        Ok(vec![Alarm { action: AlarmAction::RollBack, since_step: step_idx, reason }])
    }
}

#[test]
fn rolling_back_passes_over_damage_and_removes_nothing_that_may_be_whole() {
    let case = &cases()[0];
    let check = |damage: &dyn Fn(&Path), expected: Option<Outcome>, kept: &[&str], n_skipped: usize| {
        let dir = tempfile::tempdir().unwrap();
        let mut trainer = case.setup.trainer((case.model)());
        let run = Run { root: dir.path(), options: loop_options(STEPS), keep_last: 9, eval: &[] };
        let mut source = Damaged { checkpoints: checkpoints(dir.path()), damage };
        let outcome = run.go(&mut trainer, &mut source, u64::MAX);
        match expected {
            Some(expected) => assert_eq!(outcome.unwrap(), expected),
            None => assert!(matches!(outcome, Err(TrainError::Run(RunError::Io { .. }))), "{outcome:?}"),
        }
        assert_eq!(checkpoint_names(dir.path()), kept);
        assert_eq!(events(dir.path(), "checkpoint_skipped").len(), n_skipped);
    };
    let cut = |dir: &Path, name: &str| fs::write(dir.join(name).join("state.json"), "{").unwrap();
    check(&|_| (), Some(Outcome::Alarmed { step: 10 }), &["step-000005", "step-000010"], 0);
    check(&|dir| cut(dir, "step-000010"), Some(Outcome::Alarmed { step: 5 }), &["step-000005"], 1);
    let both = |dir: &Path| ["step-000005", "step-000010"].iter().for_each(|name| cut(dir, name));
    check(&both, Some(Outcome::BackToStart), &[], 2);
    // A folder where a file should be cannot be read; that says nothing of what was written.
    let unreadable = |dir: &Path| {
        let state = dir.join("step-000010/state.json");
        fs::remove_file(&state).unwrap();
        fs::create_dir(&state).unwrap();
    };
    check(&unreadable, None, &["step-000005", "step-000010"], 0);
}

#[test]
fn steps_are_logged_evaluated_and_saved_when_they_should_be() {
    let case = &cases()[0];
    let dir = tempfile::tempdir().unwrap();
    train(case, dir.path(), 99, None);
    let lines = json_lines(&dir.path().join("metrics.jsonl"));
    let steps_with = |key: &str| -> Vec<u64> {
        lines.iter().filter(|line| !line[key].is_null()).map(|line| line["step"].as_u64().unwrap()).collect()
    };
    assert_eq!(steps_with("loss"), (1..=STEPS).collect::<Vec<_>>());
    for key in ["grad_norm", "learning_rate", "epoch", "num_tokens", "entropy", "mean_token_accuracy"] {
        assert_eq!(steps_with(key), steps_with("loss"), "{key}");
    }
    assert_eq!(steps_with("eval_loss"), [3, 6, 9, 12]);
    assert_eq!(steps_with("eval_entropy"), [3, 6, 9, 12]);
    let value = |step: usize, key: &str| {
        let mut values = lines.iter().filter(|line| line["step"] == step && !line[key].is_null());
        values.next().unwrap()[key].as_f64().unwrap()
    };
    assert_eq!((value(4, "num_tokens"), value(10, "epoch")), (4.0 * 18.0, 2.0));
    // Every fifth, the last, and each that was better than all before it.
    let mut expected: Vec<u64> = vec![5, 10, 12];
    let mut best = f64::INFINITY;
    for step in [3, 6, 9, 12] {
        if value(step, "eval_loss") < best {
            best = value(step, "eval_loss");
            expected.push(step as u64);
        }
    }
    expected.sort_unstable();
    expected.dedup();
    let expected: Vec<String> = expected.iter().map(|step| format!("step-{step:06}")).collect();
    assert_eq!(checkpoint_names(dir.path()), expected);
    assert_eq!(events(dir.path(), "checkpoint_saved").len(), expected.len());
    assert_eq!(json_lines(&dir.path().join("timing.jsonl")).len() as u64, STEPS);
}

#[test]
fn a_finished_run_takes_no_more_steps() {
    let case = &cases()[0];
    let dir = tempfile::tempdir().unwrap();
    train(case, dir.path(), 1, None);
    let mut trainer = case.setup.trainer((case.model)());
    let asked = Cell::new(0);
    let make = |step| {
        asked.set(asked.get() + 1);
        micro_batches(step, None)
    };
    let run = Run { root: dir.path(), options: loop_options(STEPS), keep_last: 1, eval: &[] };
    let outcome = run.go(&mut trainer, &mut Steps { make, per_epoch: 5 }, 1).unwrap();
    assert_eq!((outcome, asked.get(), trainer.steps_done()), (Outcome::Finished, 0, STEPS));
}

#[test]
fn the_best_parameters_can_be_put_back() {
    let case = &cases()[0];
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = train(case, dir.path(), 99, None);
    let at_the_end = trained(&trainer);
    let mut older = CheckpointStore::load(&checkpoints(dir.path()).join("step-000005")).unwrap();
    trainer.import_params(&mut older).unwrap();
    assert_ne!(trained(&trainer), at_the_end);
    assert_eq!(trainer.steps_done(), STEPS);
    let again = tempfile::tempdir().unwrap();
    let at_five = train(case, again.path(), 1, Some(Interruption::Stop(5)));
    assert_eq!(trained(&trainer), trained(&at_five));
}

#[test]
fn a_checkpoint_of_something_else_is_refused() {
    let case = &cases()[0];
    let dir = tempfile::tempdir().unwrap();
    train(case, dir.path(), 1, Some(Interruption::Stop(5)));
    let refused = |model: Model, setup: Setup, options: LoopOptions| {
        let mut trainer = setup.trainer(model);
        let run = Run { root: dir.path(), options, keep_last: 1, eval: &[] };
        let mut source = Steps { make: |step| micro_batches(step, None), per_epoch: 5 };
        run.go(&mut trainer, &mut source, u64::MAX).unwrap_err()
    };
    let options = || loop_options(STEPS);

    let other_plan = LoopOptions { plan_hash: "another plan".into(), ..options() };
    let error = refused(full(Dtype::F32), case.setup, other_plan);
    assert!(matches!(error, TrainError::Run(RunError::PlanChanged { .. })), "{error}");

    let check = |model: Model, setup: Setup, expected: &[&str]| {
        let message = refused(model, setup, options()).to_string();
        for part in expected {
            assert!(message.contains(part), "{message} should mention {part}");
        }
    };
    // Other shapes, another storage type, other tensors, fewer tensors, another optimiser.
    check(
        all_training(wide_model(Dtype::F32)),
        case.setup,
        &["model.embed_tokens.weight", "[112, 32]", "[128, 64]"],
    );
    check(full(Dtype::Bf16), case.setup, &["model.embed_tokens.weight", "F32", "Bf16"]);
    let lora = serde_json::json!({"rank": 4, "alpha": 8});
    check(with_lora(load_golden("llama", Dtype::F32), lora), case.setup, &["lora_A"]);
    let mut fewer = full(Dtype::F32);
    let norm = fewer.params.find("model.norm.weight").unwrap();
    fewer.params.get_mut(norm).trainable = false;
    check(fewer, case.setup, &["model.norm.weight", "no such tensor"]);
    check(full(Dtype::F32), Setup { optimiser: "muon", ..case.setup }, &["momentum"]);
    check(
        full(Dtype::F32),
        Setup { optimiser_options: "state = 'bf16'", ..case.setup },
        &["exp_avg", "Bf16"],
    );
}
