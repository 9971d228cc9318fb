//! Training objectives as pure functions of per-token arrays.
//!
//! The model side computes, for each predicted token, log-probabilities and whatever else
//! [`Objective::needs`] asks for. The objective turns these arrays and the loss weights into a loss,
//! its gradient with respect to each array, and metrics. It sees no model, tokenizer, file or recipe,
//! and the training loop sees no algorithm.
//!
//! **Normalisation.** A step's loss is `Σ w·ℓ / W` over *all* its tokens, where `W` is the step's total
//! weight ([`Normaliser`]), known from the data before any forward pass. A micro-batch contributes its
//! share of that sum; the shares add up, so cutting a step into micro-batches changes nothing. What else depends on the step
//! (another denominator, a reference point, an order of pairs) comes by [`Objective::totals`] and [`Objective::prepare`].
//!
//! **Adding an objective**: one file with formula, source, options, loss and gradient; one line in
//! [`OBJECTIVES`]; and its f64 reference in `harness.rs` of its folder, whose tests run over the catalogue. An objective on other
//! arrays adds a field to [`TokenBatch`] and a flag to [`Needs`].

mod batch;
pub mod catalogue;
pub mod cross_entropy;
pub mod dft;
mod error;
#[cfg(test)]
mod harness;
pub mod policy_gradient;
pub mod preference;

pub use batch::{
    Completion, CompletionKind, Divergence, Metric, Needs, Normaliser, ObjectiveOutput, PrePass, Reduce,
    Scores, TokenBatch,
};
pub use catalogue::{OBJECTIVES, ObjectiveInfo, build};
pub use error::ObjectiveError;

/// A loss on per-token arrays.
pub trait Objective: Send + Sync + std::fmt::Debug {
    /// Its name in the catalogue.
    fn name(&self) -> &'static str;

    /// The arrays it reads beyond log-probabilities and weights.
    fn needs(&self) -> Needs;

    /// What a micro-batch adds to the step's total weight: its loss weights, or the number of its pairs or sequences. Only
    /// `weights`, `completions` and the weights of `scores` are there to read: it is known before any forward pass.
    fn weight(&self, batch: &TokenBatch<'_>) -> f64 {
        batch.weights.iter().map(|&w| f64::from(w)).sum()
    }

    /// Further sums over the step beside the weight, for a term that is averaged over something else (the tokens of the
    /// chosen replies): [`Normaliser::totals`]. As many for every micro-batch, and known from what [`Objective::weight`] reads.
    fn totals(&self, batch: &TokenBatch<'_>) -> Vec<f64> {
        let _ = batch;
        Vec::new()
    }

    /// What is computed before the step begins, for an objective that depends on the whole step at once.
    fn pre_pass(&self) -> PrePass {
        PrePass::None
    }

    /// What a step's micro-batches must know of each other: `whole` are the arrays of the pre-pass, one micro-batch after the
    /// other. The result is [`Normaliser::shared`] in every [`Objective::evaluate`] of the step.
    ///
    /// # Errors
    /// As [`Objective::evaluate`].
    fn prepare(&self, whole: &TokenBatch<'_>) -> Result<Vec<f64>, ObjectiveError> {
        let _ = whole;
        Ok(Vec::new())
    }

    /// Numbers carried from step to step (a moving average, an adaptive coefficient); a checkpoint keeps them.
    fn state(&self) -> Vec<f64> {
        Vec::new()
    }

    /// Puts back what [`Objective::state`] gave.
    fn set_state(&mut self, state: &[f64]) {
        let _ = state;
    }

    /// Called after every step with its metrics, for what is carried on.
    fn end_step(&mut self, metrics: &[Metric]) {
        let _ = metrics;
    }

    /// The gradient with respect to `logp` that [`Objective::evaluate`] will give for these loss weights, bit for bit,
    /// where it depends on nothing else and is the only gradient; `None` otherwise. Knowing it before the forward pass
    /// saves computing the logits twice.
    fn expected_d_logp(&self, weights: &[f32], step: &Normaliser) -> Option<Vec<f32>> {
        let _ = (weights, step);
        None
    }

    /// The micro-batch's share of the step's loss, its gradients and its metrics.
    ///
    /// # Errors
    /// [`ObjectiveError::Length`] or [`ObjectiveError::Missing`] if arrays do not fit,
    /// [`ObjectiveError::NonFinite`] or [`ObjectiveError::Weight`] for a value that cannot be trained on.
    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError>;
}
