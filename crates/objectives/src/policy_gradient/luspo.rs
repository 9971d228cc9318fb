//! Length-unbiased sequence policy optimisation: GSPO whose completions weigh by their length.
//!
//! ```text
//! ℓ = −min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A)        L = mean over completions of Σ_t ℓ
//! ```
//!
//! with the sequence ratio of `gspo`. TRL: `loss_type="luspo"`, which asks for `importance_sampling_level="sequence"`; here that is the
//! default.

use pt_core::catalogue::OptionInfo;

use super::options::{self, COMMON, DELTA, EPSILON, EPSILON_HIGH, LEVEL, with_default};
use super::{Aggregation, Form, Surrogate};
use crate::catalogue::ObjectiveInfo;

const FORM: Form =
    Form { name: "luspo", surrogate: Surrogate::Clip, aggregation: Aggregation::SequenceSum, level: None };

const OPTIONS: [OptionInfo; 4 + COMMON.len()] =
    options::join(&[&[EPSILON, EPSILON_HIGH, DELTA, with_default(LEVEL, "\"sequence\"")], &COMMON]);

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: FORM.name,
    summary: "clipped surrogate, sum over each completion, mean over completions (LUSPO)",
    source: "TRL, loss_type=\"luspo\"; arXiv:2602.05261",
    equation: "-min(r A, clip(r, 1 - e, 1 + e_high) A); sum over tokens, mean over completions",
    options: &OPTIONS,
    build: |given| Ok(Box::new(options::build(FORM, &OPTIONS, given)?)),
};
