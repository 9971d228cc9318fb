//! Group sequence policy optimisation: a ratio for the whole completion.
//!
//! ```text
//! ρ = exp(mean_t(log π − log π_old))        ℓ = −min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A)        L = mean over completions
//! ```
//!
//! Source: Zheng et al. 2025, "Group sequence policy optimization" (arXiv:2507.18071), equations 5 and 7, and its clipping bounds. TRL:
//! `loss_type="grpo", importance_sampling_level="sequence"`. GSPO-token (equation 13; not in TRL) is
//! `importance_sampling_level = "sequence_token"`: the same values, and the same gradient where all tokens of a completion
//! have one advantage.

use pt_core::catalogue::OptionInfo;

use super::options::{self, COMMON, DELTA, EPSILON, EPSILON_HIGH, LEVEL, with_default};
use super::{Aggregation, Form, Surrogate};
use crate::catalogue::ObjectiveInfo;

const FORM: Form =
    Form { name: "gspo", surrogate: Surrogate::Clip, aggregation: Aggregation::SequenceMean, level: None };

const OPTIONS: [OptionInfo; 4 + COMMON.len()] = options::join(&[
    &[
        with_default(EPSILON, "3e-4"),
        with_default(EPSILON_HIGH, "4e-4"),
        DELTA,
        with_default(LEVEL, "\"sequence\""),
    ],
    &COMMON,
]);

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: FORM.name,
    summary: "clipped surrogate with one ratio for each completion (GSPO)",
    source: "Zheng et al. 2025, arXiv:2507.18071, equations 5 and 7; GSPO-token: equation 13",
    equation: "-min(r A, clip(r, 1 - e, 1 + e_high) A) with r = exp(mean over tokens of log p - log p_old); mean over completions",
    options: &OPTIONS,
    build: |given| Ok(Box::new(options::build(FORM, &OPTIONS, given)?)),
};
