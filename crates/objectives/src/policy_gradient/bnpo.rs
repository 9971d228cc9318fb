//! Batch-normalised policy optimisation, as TRL names it: `grpo` with a mean over tokens.
//!
//! ```text
//! ℓ = −min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A)        L = Σ ℓ / number of tokens
//! ```
//!
//! TRL (`loss_type="bnpo"`) divides by the tokens of each micro-batch and averages micro-batches, so that its cut changes the
//! loss. Over the whole step this is `dapo` with `epsilon_high = epsilon`; with one micro-batch it is TRL's.

use pt_core::catalogue::OptionInfo;

use super::{Aggregation, Form, Surrogate};
use crate::catalogue::ObjectiveInfo;
use crate::policy_gradient::options;

const FORM: Form =
    Form { name: "bnpo", surrogate: Surrogate::Clip, aggregation: Aggregation::TokenMean, level: None };

const OPTIONS: [OptionInfo; options::GRPO.len()] = options::GRPO;

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: FORM.name,
    summary: "clipped surrogate, mean over all tokens of the step",
    source: "TRL, loss_type=\"bnpo\"; Shao et al. 2024, arXiv:2402.03300",
    equation: "-min(r A, clip(r, 1 - e, 1 + e_high) A); mean over the tokens of the step",
    options: &OPTIONS,
    build: |given| Ok(Box::new(options::build(FORM, &OPTIONS, given)?)),
};
