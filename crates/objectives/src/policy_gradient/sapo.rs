//! Soft adaptive policy optimisation: a sigmoid gate instead of a hard clip.
//!
//! ```text
//! ℓ = −(4 / τ) σ(τ (ρ − 1)) A,   τ by the sign of A        L = mean over completions of the mean over their tokens
//! ```
//!
//! At ρ = 1 its gradient is that of the plain surrogate. Source: Gao et al. 2025, "Soft adaptive policy optimization"
//! (arXiv:2511.20347). TRL: `loss_type="sapo"`.

use pt_core::catalogue::OptionInfo;

use super::options::{self, COMMON, LEVEL, SAPO};
use super::{Aggregation, Form, Surrogate};
use crate::catalogue::ObjectiveInfo;

const FORM: Form =
    Form { name: "sapo", surrogate: Surrogate::Sapo, aggregation: Aggregation::SequenceMean, level: None };

const OPTIONS: [OptionInfo; 1 + SAPO.len() + COMMON.len()] = options::join(&[&SAPO, &[LEVEL], &COMMON]);

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: FORM.name,
    summary: "a soft gate on the ratio instead of clipping (SAPO)",
    source: "Gao et al. 2025, arXiv:2511.20347, equations 5 and 6",
    equation: "-(4 / t) sigmoid(t (r - 1)) A; mean over tokens, then over completions",
    options: &OPTIONS,
    build: |given| Ok(Box::new(options::build(FORM, &OPTIONS, given)?)),
};
