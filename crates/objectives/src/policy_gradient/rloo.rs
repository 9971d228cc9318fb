//! REINFORCE with a leave-one-out baseline: a completion is one action.
//!
//! ```text
//! ρ = exp(Σ_t (log π − log π_old))        ℓ = −min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A)        L = mean over completions
//! ```
//!
//! Source: Ahmadian et al. 2024, "Back to basics" (arXiv:2402.14740). On policy (ρ = 1) its gradient is that of
//! −A Σ_t log π. Baseline and divergence (k1, in the reward) belong to the advantages, in `pt-rl`; TRL's `RLOOTrainer` is the same with
//! `beta = 0` here.

use pt_core::catalogue::OptionInfo;

use super::options::{self, COMMON, EPSILON, EPSILON_HIGH};
use super::{Aggregation, Form, RatioLevel, Surrogate};
use crate::catalogue::ObjectiveInfo;

const FORM: Form = Form {
    name: "rloo",
    surrogate: Surrogate::Clip,
    aggregation: Aggregation::SequenceMean,
    level: Some(RatioLevel::SequenceSum),
};

const OPTIONS: [OptionInfo; 2 + COMMON.len()] = options::join(&[&[EPSILON, EPSILON_HIGH], &COMMON]);

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: FORM.name,
    summary: "clipped surrogate of the whole completion's probability (RLOO)",
    source: "Ahmadian et al. 2024, arXiv:2402.14740; clipped as TRL's RLOOTrainer",
    equation: "-min(r A, clip(r, 1 - e, 1 + e_high) A) with r = exp(sum over tokens of log p - log p_old); mean over completions",
    options: &OPTIONS,
    build: |given| Ok(Box::new(options::build(FORM, &OPTIONS, given)?)),
};
