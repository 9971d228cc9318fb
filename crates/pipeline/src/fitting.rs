//! What the training loop is told of a plan, and what is taken from it.

use pt_engine::Profile;
use pt_recipe::PlannedStage;
use pt_run::{BestBy, CheckpointStore, Retention};
use pt_train::{Alarm, EvalStats, LoopOptions, StepStats, Trainer, Watcher};

use crate::error::Result;
use crate::run::Watch;

/// The metric that decides which checkpoint is best.
const EVAL_LOSS: &str = "eval_loss";

pub(crate) fn retention(planned: &PlannedStage, has_eval: bool) -> Retention {
    let best = BestBy { metric: EVAL_LOSS.to_owned(), higher_is_better: false };
    Retention {
        keep_last: planned.train.keep_last as usize,
        best: Some(best).filter(|_| has_eval && planned.train.keep_best),
    }
}

pub(crate) fn loop_options(planned: &PlannedStage, seed: u64, plan_hash: &str) -> LoopOptions {
    LoopOptions {
        steps: planned.steps,
        log_every: planned.train.log_every,
        eval_every: planned.train.eval_every,
        save_every: planned.train.save_every,
        seed,
        plan_hash: plan_hash.to_owned(),
    }
}

/// Puts the best checkpoint's weights in place; returns its step if it is not the last.
pub(crate) fn restore_best(
    trainer: &mut Trainer,
    store: &CheckpointStore,
    planned: &PlannedStage,
) -> Result<Option<u64>> {
    let Some(best) = store.best_step()?.filter(|&best| best != planned.steps) else { return Ok(None) };
    let mut checkpoint = CheckpointStore::load(&store.path_of(best))?;
    trainer.import_params(&mut checkpoint)?;
    Ok(Some(best))
}

/// Remembers the last held-out loss on its way to the watcher.
pub(crate) struct LastEval<'w> {
    pub(crate) inner: &'w mut dyn Watch,
    pub(crate) loss: Option<f64>,
}

impl Watcher for LastEval<'_> {
    fn step(&mut self, steps_done: u64, stats: &StepStats, profile: &Profile, elapsed_s: f64) {
        self.inner.step(steps_done, stats, profile, elapsed_s);
    }

    fn eval(&mut self, steps_done: u64, stats: &EvalStats) {
        self.loss = Some(stats.loss);
        self.inner.eval(steps_done, stats);
    }

    fn saved(&mut self, steps_done: u64) {
        self.inner.saved(steps_done);
    }

    fn alarm(&mut self, steps_done: u64, alarm: &Alarm) {
        self.inner.alarm(steps_done, alarm);
    }
}
