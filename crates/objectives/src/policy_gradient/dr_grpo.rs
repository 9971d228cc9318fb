//! GRPO done right: no division by length.
//!
//! ```text
//! ℓ = −min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A)        L = Σ ℓ / (completions · max_completion_length)
//! ```
//!
//! Source: Liu et al. 2025, "Understanding R1-Zero-like training" (arXiv:2503.20783), section 3.2; TRL: `loss_type="dr_grpo"`. The other
//! half of it, advantages that are not divided by their deviation, is `scale_rewards = "none"` of the advantages.

use pt_core::catalogue::OptionInfo;

use super::options::{self, MAX_COMPLETION_LENGTH};
use super::{Aggregation, Form, Surrogate};
use crate::catalogue::ObjectiveInfo;

const FORM: Form =
    Form { name: "dr_grpo", surrogate: Surrogate::Clip, aggregation: Aggregation::FixedLength, level: None };

const OPTIONS: [OptionInfo; 1 + options::GRPO.len()] =
    options::join(&[&[MAX_COMPLETION_LENGTH], &options::GRPO]);

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: FORM.name,
    summary: "clipped surrogate, sum over tokens divided by a fixed length (Dr. GRPO)",
    source: "Liu et al. 2025, arXiv:2503.20783, section 3.2",
    equation: "-min(r A, clip(r, 1 - e, 1 + e_high) A); sum over tokens / (completions * max_completion_length)",
    options: &OPTIONS,
    build: |given| Ok(Box::new(options::build(FORM, &OPTIONS, given)?)),
};
