//! Objectives that compare replies, score them, or imitate another model.
//!
//! **Pairs.** Two completions of one group in one micro-batch, the chosen one first ([`pairs`]). A reply's log-probability
//! is the sum over its trained tokens `Σ w·log p`, its length is `Σ w`; with weights of 0 and 1 that is TRL's sum and count.
//! The step's loss is the mean over its pairs (or unpaired replies), weighted by [`crate::Completion::weight`]: TRL takes the
//! mean of each micro-batch and then of those, so the two agree when a step is one micro-batch or all are equally large, and
//! ours alone does not depend on the cut. Terms that TRL averages over tokens (the likelihood in ORPO, CPO and TPO, the loss
//! `sft`) are averaged over the tokens of the whole step, by [`crate::Objective::totals`].
//!
//! **Soft labels.** [`crate::Completion::label`] is the probability that the chosen reply is the better one. Where it is below
//! 1, a pair's loss is its expectation: `label · ℓ(chosen, rejected) + (1 − label) · ℓ(rejected, chosen)`. For the logistic
//! loss that is conservative DPO with a smoothing of its own for every pair.
//!
//! **Numbers.** Everything is computed in f64 and rounded once, to the f32 of the gradient. No exponent exceeds
//! [`math::MAX_EXPONENT`], beyond which a loss is linear and its gradient 0, as TRL clamps its alpha divergence.

mod alarm;
pub mod alphapo;
pub mod apo_zero_unpaired;
pub mod bco;
pub(crate) mod contrast;
pub mod cpo;
pub mod distillation;
pub mod dpo;
mod dpo_losses;
mod dpo_options;
pub mod gkd;
#[cfg(test)]
mod golden;
#[cfg(test)]
pub(crate) mod harness;
pub mod kto;
pub(crate) mod math;
pub mod nash_md;
pub mod orpo;
pub(crate) mod pairs;
pub mod prm;
mod reference;
pub mod reward;
pub mod simpo;
pub mod tpo;
pub(crate) mod unpaired;
pub mod xpo;

use crate::{ObjectiveError, Scores, TokenBatch};

pub use alarm::{Displacement, DisplacementAlarm};
pub use reference::expect_equal_reference;

/// What is wrong with β, if anything.
fn check_beta(beta: f64) -> Result<(), String> {
    match beta > 0.0 && beta.is_finite() {
        true => Ok(()),
        false => Err(format!("beta is {beta}, expected a number above 0")),
    }
}

/// What is wrong with ε, if anything; `is_read`: whether the loss looks at it.
fn check_smoothing(smoothing: f64, is_read: bool) -> Result<(), String> {
    match (0.0..0.5).contains(&smoothing) {
        true if smoothing > 0.0 && !is_read => Err(format!(
            "label_smoothing is {smoothing}, but the loss does not read it: expected 0, or another loss_type"
        )),
        true => Ok(()),
        false => Err(format!("label_smoothing is {smoothing}, expected at least 0 and below 0.5")),
    }
}

/// What is wrong with an option that may be any number.
fn check_finite(option: &str, value: f64) -> Result<(), String> {
    match value.is_finite() {
        true => Ok(()),
        false => Err(format!("{option} is {value}, expected a finite number")),
    }
}

/// What is wrong with an option that may not be negative.
fn check_not_negative(option: &str, value: f64) -> Result<(), String> {
    match value >= 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(format!("{option} is {value}, expected a number of at least 0")),
    }
}

/// The score head's outputs, `n_outputs` a row.
fn scores<'a>(
    name: &'static str,
    batch: &TokenBatch<'a>,
    n_outputs: usize,
) -> Result<Scores<'a>, ObjectiveError> {
    let missing = ObjectiveError::Missing { name, what: "the score head's outputs" };
    let scores = batch.scores.ok_or(missing)?;
    if scores.n_outputs == n_outputs {
        return Ok(scores);
    }
    Err(ObjectiveError::Outputs { name, found: scores.n_outputs, expected: n_outputs })
}

/// The reference's log-probabilities.
fn reference_logp<'a>(name: &'static str, batch: &TokenBatch<'a>) -> Result<&'a [f32], ObjectiveError> {
    batch.reference_logp.ok_or(ObjectiveError::Missing { name, what: "the reference log-probability" })
}
