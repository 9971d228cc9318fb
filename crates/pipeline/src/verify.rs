//! The proof that a resumed run is the run that never stopped: both are made, and every byte is compared.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use pt_engine::Profile;
use pt_recipe::{PlannedStage, Recipe};
use pt_run::{Difference, compare_runs};
use pt_train::{EvalStats, StepStats, Watcher};

use crate::error::{PipelineError, Result};
use crate::prepare::prepare;
use crate::report::StageReport;
use crate::run::{RunOptions, RunOutcome, Watch, run};
use crate::source::Surroundings;

/// What the comparison found.
#[derive(Debug)]
pub struct Verdict {
    /// Step of the first stage at which the second run was stopped.
    pub stopped_at: u64,
    /// Steps of the first stage in all.
    pub steps: u64,
    /// Where the two runs differ; nothing, if all is well.
    pub differences: Vec<Difference>,
}

/// Runs a recipe once without stopping in `dir/whole`, once stopped after `stop_after` steps of its first stage and
/// resumed in `dir/resumed`, and compares the two folders. `stop_after` 0 is half of the steps.
///
/// # Errors
/// Those of the runs.
pub fn verify_resume(
    recipe: &Recipe,
    stop_after: u64,
    dir: &Path,
    surroundings: &Surroundings,
    progress: &mut dyn FnMut(&str),
) -> Result<Verdict> {
    let never = AtomicBool::new(false);
    let whole = RunOptions { out: dir.join("whole"), resume: false, reuse: Vec::new() };
    progress("running without a stop");
    let prepared = prepare(recipe.clone(), surroundings)?;
    let steps = prepared.plan.stages[0].steps;
    if steps < 2 {
        return Err(PipelineError::Unsupported {
            what: format!("the first stage has {steps} step, so it cannot be stopped in the middle"),
            advice: "give it at least 2".to_owned(),
        });
    }
    let stopped_at = if stop_after == 0 { steps / 2 } else { stop_after.min(steps - 1) };
    run(prepared, &whole, surroundings, &mut Quiet, &never)?;

    let mut resumed = RunOptions { out: dir.join("resumed"), resume: false, reuse: Vec::new() };
    progress(&format!("running again, stopping after step {stopped_at} of {steps}"));
    let stop = AtomicBool::new(false);
    let mut stopper = StopAfter { step: stopped_at, stop: &stop };
    let outcome = run(prepare(recipe.clone(), surroundings)?, &resumed, surroundings, &mut stopper, &stop)?;
    assert!(
        matches!(outcome, RunOutcome::Interrupted { .. }),
        "the run was asked to stop before its last step"
    );
    progress("resuming");
    resumed.resume = true;
    run(prepare(recipe.clone(), surroundings)?, &resumed, surroundings, &mut Quiet, &never)?;
    progress("comparing every byte");
    // The stopped run saved a checkpoint where the other one had no reason to.
    let only_there = |difference: &Difference| !matches!(difference, Difference::CheckpointOnlyIn { .. });
    let differences = compare_runs(&whole.out, &resumed.out)?.into_iter().filter(only_there).collect();
    Ok(Verdict { stopped_at, steps, differences })
}

/// Sees nothing.
struct Quiet;

impl Watcher for Quiet {
    fn step(&mut self, _: u64, _: &StepStats, _: &Profile, _: f64) {}
    fn eval(&mut self, _: u64, _: &EvalStats) {}
    fn saved(&mut self, _: u64) {}
}

impl Watch for Quiet {
    fn stage_begun(&mut self, _: &PlannedStage, _: u64, _: f64) {}
    fn measuring(&mut self, _: &PlannedStage, _: &'static str) {}
    fn stage_ended(&mut self, _: &PlannedStage, _: &StageReport) {}
    fn note(&mut self, _: &str) {}
}

/// Asks the run to stop once a step is done, as Ctrl-C does.
struct StopAfter<'a> {
    step: u64,
    stop: &'a AtomicBool,
}

impl Watcher for StopAfter<'_> {
    fn step(&mut self, steps_done: u64, _: &StepStats, _: &Profile, _: f64) {
        if steps_done == self.step {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
    fn eval(&mut self, _: u64, _: &EvalStats) {}
    fn saved(&mut self, _: u64) {}
}

impl Watch for StopAfter<'_> {
    fn stage_begun(&mut self, _: &PlannedStage, _: u64, _: f64) {}
    fn measuring(&mut self, _: &PlannedStage, _: &'static str) {}
    fn stage_ended(&mut self, _: &PlannedStage, _: &StageReport) {}
    fn note(&mut self, _: &str) {}
}
