//! REINFORCE++: PPO without a critic.
//!
//! ```text
//! ℓ = −min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A)        L = Σ ℓ / number of tokens in the step
//! ```
//!
//! Source: Hu et al. 2025, "REINFORCE++" (arXiv:2501.03262). What sets it apart is in its advantages (`pt-rl`): the divergence from the
//! reference in each token's reward, returns to the end, normalised over the whole batch. Its baseline variant takes k2 in the
//! loss: `beta` and `kl_estimator = "k2"`. Not in TRL.

use pt_core::catalogue::OptionInfo;

use super::options::{self, COMMON, DELTA, EPSILON, EPSILON_HIGH};
use super::{Aggregation, Form, RatioLevel, Surrogate};
use crate::catalogue::ObjectiveInfo;

const FORM: Form = Form {
    name: "reinforce_pp",
    surrogate: Surrogate::Clip,
    aggregation: Aggregation::TokenMean,
    level: Some(RatioLevel::Token),
};

const OPTIONS: [OptionInfo; 3 + COMMON.len()] = options::join(&[&[EPSILON, EPSILON_HIGH, DELTA], &COMMON]);

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: FORM.name,
    summary: "clipped surrogate, mean over all tokens of the step, for globally normalised advantages (REINFORCE++)",
    source: "Hu et al. 2025, arXiv:2501.03262, equations 4 to 7",
    equation: "-min(r A, clip(r, 1 - e, 1 + e_high) A); mean over the tokens of the step",
    options: &OPTIONS,
    build: |given| Ok(Box::new(options::build(FORM, &OPTIONS, given)?)),
};
