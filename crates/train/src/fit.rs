//! The training loop: steps, logs, evaluations and checkpoints, in that order, and nothing about algorithms.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use pt_engine::Profile;
use pt_run::{CheckpointState, CheckpointStore, Event, RunFolder, StageFolder};

use crate::error::Result;
use crate::example::MicroBatch;
use crate::trainer::{EvalStats, StepStats, Trainer};

/// Where steps come from: a pure function of the step's number, so that a resumed run sees what it would have seen.
pub trait StepSource {
    /// The micro-batches of step `step_idx`, from 0.
    fn step(&mut self, step_idx: u64) -> Vec<MicroBatch>;
    /// Epochs completed after `steps_done` steps.
    fn epoch(&mut self, steps_done: u64) -> f64;
}

/// What happens when.
#[derive(Clone, Debug)]
pub struct LoopOptions {
    /// Steps in all.
    pub steps: u64,
    /// Metrics are written for every n-th step, and the last.
    pub log_every: u64,
    /// Held-out loss is measured after every n-th step, and the last; 0 is never.
    pub eval_every: u64,
    /// A checkpoint is saved after every n-th step, and the last; 0 is only the last.
    pub save_every: u64,
    /// The run's seed, stored in checkpoints.
    pub seed: u64,
    /// Hash of the plan, stored in checkpoints.
    pub plan_hash: String,
}

/// Sees what happens, as a progress bar does; can change nothing.
pub trait Watcher {
    /// A step was taken in `elapsed_s` seconds.
    fn step(&mut self, steps_done: u64, stats: &StepStats, profile: &Profile, elapsed_s: f64);
    /// Held-out data was scored.
    fn eval(&mut self, steps_done: u64, stats: &EvalStats);
    /// A checkpoint was published.
    fn saved(&mut self, steps_done: u64);
}

/// How the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// Asked to stop; the last step is saved.
    Interrupted {
        /// Steps done and saved.
        step: u64,
    },
}

/// Where the loop writes.
pub struct Recorder<'r> {
    /// The run.
    pub run: &'r mut RunFolder,
    /// The stage within it.
    pub stage: &'r StageFolder,
    /// The stage's checkpoints.
    pub store: &'r CheckpointStore,
}

/// Steps done and tokens seen, which a checkpoint carries on.
const NUM_TOKENS: &str = "num_tokens";

/// Continues from the newest whole checkpoint, if there is one. Returns the tokens seen so far.
///
/// # Errors
/// Those of the run folder, and a checkpoint of another plan.
pub fn resume(trainer: &mut Trainer, recorder: &mut Recorder<'_>, plan_hash: &str) -> Result<u64> {
    let found = recorder.store.latest_valid()?;
    for problem in &found.skipped {
        let stage = recorder.stage.label().to_owned();
        recorder.run.event(&Event::CheckpointSkipped { stage, problem: problem.to_string() })?;
    }
    let Some(mut checkpoint) = found.checkpoint else {
        recorder.run.resume_at(recorder.stage, 0)?;
        return Ok(0);
    };
    checkpoint.expect_plan(plan_hash)?;
    trainer.import(&mut checkpoint)?;
    recorder.store.discard_after(trainer.steps_done())?;
    recorder.run.resume_at(recorder.stage, trainer.steps_done())?;
    Ok(checkpoint.state.counters.get(NUM_TOKENS).copied().unwrap_or(0))
}

/// Takes the remaining steps. `stop` is looked at between steps: a step that has begun is finished and saved.
///
/// # Errors
/// [`crate::TrainError`]; what was saved before remains.
pub fn fit(
    trainer: &mut Trainer,
    source: &mut dyn StepSource,
    eval: &[MicroBatch],
    options: &LoopOptions,
    recorder: &mut Recorder<'_>,
    mut n_tokens: u64,
    watcher: &mut dyn Watcher,
    stop: &AtomicBool,
) -> Result<Outcome> {
    while trainer.steps_done() < options.steps {
        let start = Instant::now();
        let micro_batches = source.step(trainer.steps_done());
        let (stats, profile) = trainer.step(&micro_batches)?;
        let done = trainer.steps_done();
        let elapsed_s = start.elapsed().as_secs_f64();
        n_tokens += stats.n_tokens;
        watcher.step(done, &stats, &profile, elapsed_s);
        let is_last = done == options.steps;
        let due = |every: u64| is_last || (every > 0 && done.is_multiple_of(every));
        if due(options.log_every) {
            log_step(recorder, done, &stats, n_tokens, source.epoch(done), elapsed_s)?;
        }
        let mut metrics = BTreeMap::new();
        if !eval.is_empty() && options.eval_every > 0 && due(options.eval_every) {
            let stats = trainer.evaluate(eval)?;
            log_eval(recorder, done, &stats)?;
            metrics.insert("eval_loss".to_owned(), stats.loss);
            watcher.eval(done, &stats);
        }
        let stopping = stop.load(Ordering::Relaxed);
        if due(options.save_every) || stopping || (!metrics.is_empty() && improves(recorder, &metrics)?) {
            save(trainer, recorder, options, n_tokens, metrics)?;
            watcher.saved(done);
        }
        if stopping && !is_last {
            let stage = recorder.stage.label().to_owned();
            recorder.run.event(&Event::Interrupted {
                stage,
                step: done,
                reason: "asked to stop".to_owned(),
            })?;
            return Ok(Outcome::Interrupted { step: done });
        }
    }
    Ok(Outcome::Finished)
}

/// Whether these metrics are better than those of every checkpoint kept.
fn improves(recorder: &Recorder<'_>, metrics: &BTreeMap<String, f64>) -> Result<bool> {
    let Some(best) = recorder.store.best_step()? else { return Ok(true) };
    let best = CheckpointStore::load(&recorder.store.path_of(best))?;
    Ok(metrics.iter().any(|(name, value)| best.state.metrics.get(name).is_none_or(|old| value < old)))
}

fn log_step(
    recorder: &mut Recorder<'_>,
    step: u64,
    stats: &StepStats,
    n_tokens: u64,
    epoch: f64,
    elapsed_s: f64,
) -> Result<()> {
    let fixed = [
        ("loss", stats.loss),
        ("grad_norm", stats.grad_norm),
        ("learning_rate", stats.learning_rate),
        ("epoch", epoch),
        ("num_tokens", n_tokens as f64),
    ];
    let own = stats.metrics.iter().map(|(name, value)| (name.as_str(), *value));
    recorder.run.log_metrics(recorder.stage, step, fixed.into_iter().chain(own))?;
    let timing = [
        ("step_time", elapsed_s),
        ("tokens_per_second", stats.n_tokens as f64 / elapsed_s),
        ("peak_buffer_bytes", pt_kernels::buffer::peak_bytes() as f64),
    ];
    recorder.run.log_timing(recorder.stage, step, timing)?;
    Ok(())
}

fn log_eval(recorder: &mut Recorder<'_>, step: u64, stats: &EvalStats) -> Result<()> {
    let own: Vec<(String, f64)> =
        stats.metrics.iter().map(|(name, value)| (format!("eval_{name}"), *value)).collect();
    let values = std::iter::once(("eval_loss", stats.loss))
        .chain(own.iter().map(|(name, value)| (name.as_str(), *value)));
    recorder.run.log_metrics(recorder.stage, step, values)?;
    Ok(())
}

fn save(
    trainer: &Trainer,
    recorder: &mut Recorder<'_>,
    options: &LoopOptions,
    n_tokens: u64,
    metrics: BTreeMap<String, f64>,
) -> Result<()> {
    recorder.run.sync()?;
    let state = CheckpointState {
        step: trainer.steps_done(),
        plan_hash: options.plan_hash.clone(),
        seed: options.seed,
        // Steps are a pure function of their number: the step is the data position.
        data: serde_json::json!({ "step": trainer.steps_done() }),
        counters: BTreeMap::from([(NUM_TOKENS.to_owned(), n_tokens)]),
        metrics,
        extra: serde_json::Value::Null,
    };
    recorder.store.save(&state, trainer.export())?;
    let stage = recorder.stage.label().to_owned();
    recorder.run.event(&Event::CheckpointSaved { stage, step: trainer.steps_done() })?;
    Ok(())
}
