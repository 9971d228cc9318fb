//! The training loop: steps, logs, evaluations and checkpoints, in that order, and nothing about algorithms.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use pt_engine::Profile;
use pt_run::{
    Checkpoint, CheckpointState, CheckpointStore, Event, OwnedTensor, RunError, RunFolder, StageFolder,
    TensorEntry,
};

use pt_models::Model;

use crate::error::{Result, SourceResult};
use crate::example::MicroBatch;
use crate::trainer::{EvalStats, StepStats, Trainer};

/// Where steps come from: a pure function of the step's number, the model's weights and what [`StepSource::state`] says, so
/// that a resumed run sees what it would have seen.
pub trait StepSource {
    /// What step `step_idx`, from 0, trains on. A source that samples does so from `model`, with its weights as they are.
    ///
    /// # Errors
    /// Rows that cannot be read, samples that cannot be drawn.
    fn step(&mut self, step_idx: u64, model: &Model) -> SourceResult<StepData>;

    /// Whether a [`StepSource::step`] that just failed left the source as it was before: what was trained until then can be saved.
    fn is_unchanged(&self) -> bool {
        false
    }

    /// Epochs completed after `steps_done` steps.
    fn epoch(&mut self, steps_done: u64) -> f64;

    /// What a checkpoint keeps of the source, such as a curriculum; nothing for one that goes by the step's number alone.
    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Puts back what [`StepSource::state`] gave.
    ///
    /// # Errors
    /// If it is not a state of this source.
    fn restore(&mut self, state: &serde_json::Value) -> SourceResult<()> {
        let _ = state;
        Ok(())
    }

    /// What a checkpoint keeps of the source beside [`StepSource::state`] that is too large for it, such as the weights of a
    /// reference that moves.
    fn tensors(&self) -> Vec<TensorEntry<'static>> {
        Vec::new()
    }

    /// Puts back what [`StepSource::tensors`] gave, by name.
    ///
    /// # Errors
    /// If they are not tensors of this source.
    fn restore_tensors(&mut self, tensors: BTreeMap<String, OwnedTensor>) -> SourceResult<()> {
        match tensors.into_keys().next() {
            None => Ok(()),
            Some(name) => {
                Err(format!("the checkpoint has a tensor `{name}`, which these steps do not").into())
            }
        }
    }

    /// Sees what step `step_idx` did, and decides whether training goes on.
    ///
    /// # Errors
    /// What was seen cannot be recorded.
    fn after_step(&mut self, step_idx: u64, stats: &StepStats) -> SourceResult<Vec<Alarm>> {
        let _ = (step_idx, stats);
        Ok(Vec::new())
    }
}

/// What one step trains on.
#[derive(Clone, Debug, Default)]
pub struct StepData {
    /// The step, cut to fit memory. None at all: there is nothing to learn in this step, and it changes neither the weights nor
    /// the optimiser's state.
    pub micro_batches: Vec<MicroBatch>,
    /// What the source has to say of it, by name.
    pub metrics: Vec<(String, f64)>,
}

impl From<Vec<MicroBatch>> for StepData {
    fn from(micro_batches: Vec<MicroBatch>) -> StepData {
        StepData { micro_batches, metrics: Vec::new() }
    }
}

/// Something that went wrong in a way a person should know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// What happens now.
    pub action: AlarmAction,
    /// The first step, from 0, in which it was seen: weights that have taken it are not to be trusted.
    pub since_step: u64,
    /// What was seen, and what to do.
    pub reason: String,
}

/// What an alarm leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlarmAction {
    /// It is recorded, and training goes on.
    Warn,
    /// Training ends here; the weights are kept as they are.
    Stop,
    /// Training ends here, and the weights are those of the newest checkpoint before it began.
    RollBack,
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
    /// The step source raised an alarm.
    fn alarm(&mut self, steps_done: u64, alarm: &Alarm) {
        let _ = (steps_done, alarm);
    }
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
    /// An alarm ended it; the weights that count are in place and saved.
    Alarmed {
        /// Steps that count.
        step: u64,
    },
    /// An alarm asked for weights of before it began, and no checkpoint is as old: what counts is the model that the stage began
    /// with, which the trainer no longer has.
    BackToStart,
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

/// Tokens seen, in metrics and among the counters that a checkpoint carries on.
const NUM_TOKENS: &str = "num_tokens";
/// The held-out loss, in metrics and in checkpoints; what a best checkpoint is usually chosen by.
const EVAL_LOSS: &str = "eval_loss";

/// What the source keeps in a checkpoint's data.
const SOURCE: &str = "source";
/// What the names of the source's tensors in a checkpoint begin with.
const SOURCE_TENSOR: &str = "source.";
/// What the objective keeps there.
const OBJECTIVE: &str = "objective";

/// Continues from the newest whole checkpoint, if there is one. Returns the tokens seen so far.
///
/// # Errors
/// Those of the run folder, and a checkpoint of another plan.
pub fn resume(
    trainer: &mut Trainer,
    source: &mut dyn StepSource,
    recorder: &mut Recorder<'_>,
    plan_hash: &str,
) -> Result<u64> {
    let found = recorder.store.latest_valid()?;
    for problem in &found.skipped {
        record_skipped(recorder, problem)?;
    }
    let Some(mut checkpoint) = found.checkpoint else {
        recorder.run.resume_at(recorder.stage, 0)?;
        return Ok(0);
    };
    checkpoint.expect_plan(plan_hash)?;
    let tensors = source_tensors(&mut checkpoint);
    trainer.import(&mut checkpoint)?;
    let data = &checkpoint.state.data;
    source.restore(data.get(SOURCE).unwrap_or(&serde_json::Value::Null))?;
    source.restore_tensors(tensors)?;
    let numbers = data.get(OBJECTIVE).and_then(serde_json::Value::as_array);
    let numbers: Vec<f64> = numbers.into_iter().flatten().filter_map(serde_json::Value::as_f64).collect();
    trainer.set_objective_state(&numbers);
    recorder.store.discard_after(trainer.steps_done())?;
    recorder.run.resume_at(recorder.stage, trainer.steps_done())?;
    Ok(checkpoint.state.counters.get(NUM_TOKENS).copied().unwrap_or(0))
}

/// Takes out of a checkpoint what the source keeps there; names are then the source's own.
fn source_tensors(checkpoint: &mut Checkpoint) -> BTreeMap<String, OwnedTensor> {
    let of_source = |name: &String| name.starts_with(SOURCE_TENSOR);
    let names: Vec<String> = checkpoint.tensors.keys().filter(|name| of_source(name)).cloned().collect();
    let take = |name: String| {
        let own = name[SOURCE_TENSOR.len()..].to_owned();
        Some((own, checkpoint.tensors.remove(&name)?))
    };
    names.into_iter().filter_map(take).collect()
}

/// Notes that a damaged checkpoint was passed over.
fn record_skipped(recorder: &mut Recorder<'_>, problem: &RunError) -> Result<()> {
    let stage = recorder.stage.label().to_owned();
    Ok(recorder.run.event(&Event::CheckpointSkipped { stage, problem: problem.to_string() })?)
}

/// Takes the remaining steps. `stop` is looked at between steps: a step that has begun is finished and saved.
///
/// Everything a step leads to is logged before its checkpoint is saved, so a resume from the checkpoint finds it.
///
/// # Errors
/// [`crate::TrainError`]; what was saved before remains, and where a source fails without having changed, the steps until then are
/// saved too.
pub fn fit(
    trainer: &mut Trainer,
    source: &mut dyn StepSource,
    eval: &[MicroBatch],
    options: &LoopOptions,
    recorder: &mut Recorder<'_>,
    n_tokens: u64,
    watcher: &mut dyn Watcher,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let mut run = Loop { trainer, options, recorder, watcher, n_tokens };
    while run.trainer.steps_done() < options.steps {
        let alarm = run.step(source)?;
        let action = alarm.as_ref().map(|alarm| alarm.action);
        if let Some(alarm) = alarm.filter(|alarm| alarm.action == AlarmAction::RollBack) {
            return run.roll_back(alarm.since_step);
        }
        let metrics = run.evaluate(eval)?;
        let stopping = stop.load(Ordering::Relaxed) || action == Some(AlarmAction::Stop);
        if stopping || run.is_due(options.save_every) || run.recorder.store.would_be_best(&metrics)? {
            run.save(metrics, source)?;
        }
        if action == Some(AlarmAction::Stop) {
            return Ok(Outcome::Alarmed { step: run.trainer.steps_done() });
        }
        if stopping && !run.is_last() {
            return Ok(Outcome::Interrupted { step: run.trainer.steps_done() });
        }
    }
    Ok(Outcome::Finished)
}

/// What the loop carries from step to step.
struct Loop<'l, 'r> {
    trainer: &'l mut Trainer,
    options: &'l LoopOptions,
    recorder: &'l mut Recorder<'r>,
    watcher: &'l mut dyn Watcher,
    n_tokens: u64,
}

impl Loop<'_, '_> {
    fn is_last(&self) -> bool {
        self.trainer.steps_done() == self.options.steps
    }

    /// Whether something done every `every` steps, and after the last, is to be done now.
    fn is_due(&self, every: u64) -> bool {
        self.is_last() || (every > 0 && self.trainer.steps_done().is_multiple_of(every))
    }

    /// Takes and logs a step; returns the gravest alarm.
    fn step(&mut self, source: &mut dyn StepSource) -> Result<Option<Alarm>> {
        let start = Instant::now();
        let step_idx = self.trainer.steps_done();
        let data = match source.step(step_idx, &self.trainer.model) {
            Ok(data) => data,
            Err(error) => {
                self.keep(source);
                return Err(error.into());
            }
        };
        let (mut stats, profile) = match data.micro_batches.as_slice() {
            [] => (self.trainer.skip_step(), Profile::default()),
            micro_batches => self.trainer.step(micro_batches)?,
        };
        stats.metrics.extend(data.metrics);
        let (done, elapsed_s) = (self.trainer.steps_done(), start.elapsed().as_secs_f64());
        self.n_tokens += stats.n_tokens;
        self.watcher.step(done, &stats, &profile, elapsed_s);
        if self.is_due(self.options.log_every) {
            let peak_bytes = self.trainer.model.params.device().peak_bytes();
            let epoch = source.epoch(done);
            log_step(self.recorder, done, &stats, self.n_tokens, epoch, elapsed_s, peak_bytes)?;
        }
        let alarms = source.after_step(step_idx, &stats)?;
        for alarm in &alarms {
            self.recorder.run.event(&Event::Warning { message: format!("step {done}: {}", alarm.reason) })?;
            self.watcher.alarm(done, alarm);
        }
        // Of equally grave ones, that which began first.
        let gravity = |alarm: &Alarm| (alarm.action as u8, std::cmp::Reverse(alarm.since_step));
        Ok(alarms.into_iter().max_by_key(gravity))
    }

    /// Puts the weights of the newest checkpoint from before step `since_step` in place; later checkpoints are removed. What a
    /// step sees of the model it sees before it changes it, so that the weights which step `since_step` began with are to blame too.
    /// Damaged ones are passed over; one that could not be read for another reason may be whole, and nothing is removed then.
    fn roll_back(self, since_step: u64) -> Result<Outcome> {
        let store = self.recorder.store;
        for step in store.steps()?.into_iter().rev().filter(|step| *step < since_step) {
            match CheckpointStore::load(&store.path_of(step)) {
                Ok(mut checkpoint) => {
                    self.trainer.import_params(&mut checkpoint)?;
                    store.discard_after(step)?;
                    return Ok(Outcome::Alarmed { step });
                }
                Err(problem) if problem.is_corruption() => record_skipped(self.recorder, &problem)?,
                Err(problem) => return Err(problem.into()),
            }
        }
        // All that are left are later, or damaged.
        store.discard_after(0)?;
        Ok(Outcome::BackToStart)
    }

    /// Measures and logs the held-out loss if it is due. Returns what decides which checkpoint is best: nothing if it
    /// was not measured, or is no number.
    fn evaluate(&mut self, eval: &[MicroBatch]) -> Result<BTreeMap<String, f64>> {
        if eval.is_empty() || self.options.eval_every == 0 || !self.is_due(self.options.eval_every) {
            return Ok(BTreeMap::new());
        }
        let done = self.trainer.steps_done();
        let stats = self.trainer.evaluate(eval)?;
        log_eval(self.recorder, done, &stats)?;
        if let Some(problem) = &stats.not_finite {
            let message = format!("held-out data after {problem}");
            self.recorder.run.event(&Event::Warning { message })?;
        }
        self.watcher.eval(done, &stats);
        let loss = Some(stats.loss).filter(|loss| loss.is_finite());
        Ok(loss.map(|loss| (EVAL_LOSS.to_owned(), loss)).into_iter().collect())
    }

    /// Saves what was trained until a step failed, where it was not saved yet. That it cannot be saved is noted where it can be; it
    /// is not what went wrong first.
    fn keep(&mut self, source: &dyn StepSource) {
        let done = self.trainer.steps_done();
        if done == 0 || !source.is_unchanged() {
            return;
        }
        let saved = match self.recorder.store.steps() {
            Ok(steps) if steps.contains(&done) => Ok(()),
            Ok(_) => self.save(BTreeMap::new(), source),
            Err(problem) => Err(problem.into()),
        };
        if let Err(problem) = saved {
            let message = format!("the steps until {done} could not be saved: {problem}");
            // On a full disk there may be no place for this either.
            let _ = self.recorder.run.event(&Event::Warning { message });
        }
    }

    fn save(&mut self, metrics: BTreeMap<String, f64>, source: &dyn StepSource) -> Result<()> {
        self.recorder.run.sync()?;
        let step = self.trainer.steps_done();
        let state = CheckpointState {
            step,
            plan_hash: self.options.plan_hash.clone(),
            seed: self.options.seed,
            // Steps are a pure function of their number, the weights and this state: the step is the data position.
            data: serde_json::json!({
                "step": step,
                SOURCE: source.state(),
                OBJECTIVE: self.trainer.objective().state(),
            }),
            counters: BTreeMap::from([(NUM_TOKENS.to_owned(), self.n_tokens)]),
            metrics,
            extra: serde_json::Value::Null,
        };
        let of_source = source.tensors().into_iter().map(|mut tensor| {
            tensor.name.insert_str(0, SOURCE_TENSOR);
            tensor
        });
        self.recorder.store.save(&state, self.trainer.export().chain(of_source))?;
        let stage = self.recorder.stage.label().to_owned();
        self.recorder.run.event(&Event::CheckpointSaved { stage, step })?;
        self.watcher.saved(step);
        Ok(())
    }
}

fn log_step(
    recorder: &mut Recorder<'_>,
    step: u64,
    stats: &StepStats,
    n_tokens: u64,
    epoch: f64,
    elapsed_s: f64,
    peak_bytes: usize,
) -> Result<()> {
    let fixed = [
        ("loss", stats.loss),
        ("grad_norm", stats.grad_norm),
        ("learning_rate", stats.learning_rate),
        ("epoch", epoch),
        (NUM_TOKENS, n_tokens as f64),
    ];
    let own = stats.metrics.iter().map(|(name, value)| (name.as_str(), *value));
    recorder.run.log_metrics(recorder.stage, step, fixed.into_iter().chain(own))?;
    let timing = [
        ("step_time", elapsed_s),
        ("tokens_per_second", stats.n_tokens as f64 / elapsed_s),
        ("peak_buffer_bytes", peak_bytes as f64),
    ];
    recorder.run.log_timing(recorder.stage, step, timing)?;
    Ok(())
}

fn log_eval(recorder: &mut Recorder<'_>, step: u64, stats: &EvalStats) -> Result<()> {
    let own: Vec<(String, f64)> =
        stats.metrics.iter().map(|(name, value)| (format!("eval_{name}"), *value)).collect();
    let values = std::iter::once((EVAL_LOSS, stats.loss))
        .chain(own.iter().map(|(name, value)| (name.as_str(), *value)));
    recorder.run.log_metrics(recorder.stage, step, values)?;
    Ok(())
}
