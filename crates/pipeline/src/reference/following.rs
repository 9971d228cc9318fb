//! Steps on rows, compared with a reference that follows the policy.

use std::collections::BTreeMap;

use pt_engine::Dtype;
use pt_models::Model;
use pt_run::{OwnedTensor, TensorEntry};
use pt_train::{Alarm, FollowingReference, SourceResult, StepData, StepSource, StepStats, Trainer};

use super::Scoring;
use crate::error::Result;
use crate::steps::Steps;

/// Rows, each step's compared with the reference as it is then.
pub(crate) struct Following {
    steps: Steps,
    reference: FollowingReference,
    dtype: Dtype,
    temperature: f32,
}

impl Following {
    /// Steps whose rows `reference` scores as `trainer` scores them.
    pub(crate) fn new(steps: Steps, reference: FollowingReference, trainer: &Trainer) -> Following {
        let options = trainer.options();
        Following { steps, reference, dtype: options.dtype, temperature: options.temperature }
    }

    /// Fills in what the reference says as it is now.
    ///
    /// # Errors
    /// Rows that cannot be read, a reference that does not know a token.
    pub(crate) fn micro_batches(&mut self, step_idx: u64) -> Result<Vec<pt_train::MicroBatch>> {
        let mut micro_batches = self.steps.micro_batches(step_idx)?;
        let scoring =
            Scoring { model: &self.reference.model, dtype: self.dtype, temperature: self.temperature };
        micro_batches.iter_mut().try_for_each(|micro_batch| scoring.fill(micro_batch))?;
        Ok(micro_batches)
    }
}

impl StepSource for Following {
    fn step(&mut self, step_idx: u64, policy: &Model) -> SourceResult<StepData> {
        self.reference.follow(policy, step_idx, 1)?;
        Ok(self.micro_batches(step_idx)?.into())
    }

    fn epoch(&mut self, steps_done: u64) -> f64 {
        self.steps.epoch(steps_done)
    }

    fn state(&self) -> serde_json::Value {
        self.steps.state()
    }

    fn restore(&mut self, state: &serde_json::Value) -> SourceResult<()> {
        self.steps.restore(state)
    }

    fn tensors(&self) -> Vec<TensorEntry<'static>> {
        self.reference.tensors()
    }

    fn restore_tensors(&mut self, tensors: BTreeMap<String, OwnedTensor>) -> SourceResult<()> {
        Ok(self.reference.restore(&tensors)?)
    }

    fn after_step(&mut self, step_idx: u64, stats: &StepStats) -> SourceResult<Vec<Alarm>> {
        self.steps.after_step(step_idx, stats)
    }
}
