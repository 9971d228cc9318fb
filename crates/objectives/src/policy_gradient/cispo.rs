//! Clipped importance-sampling weights: every token trains, its weight is capped.
//!
//! ```text
//! ℓ = −stopgrad(min(ρ, 1 + ε_high)) A log π        L = Σ ℓ / number of tokens in the step
//! ```
//!
//! Source: MiniMax-M1 (arXiv:2506.13585), equations 4 and 5; as there, no lower bound.
//!
//! **Difference from TRL** (`loss_type="cispo"`): TRL caps ρ at `epsilon_high` itself, so that its default of 0.2 scales every
//! on-policy token down to a fifth. Here the cap is the paper's 1 + ε_high; ours with `epsilon_high = x − 1` is TRL's with
//! `epsilon_high = x`. The default cap of 5 is that of ScaleRL (arXiv:2510.13786), which TRL's documentation recommends.

use pt_core::catalogue::OptionInfo;

use super::options::{self, COMMON, EPSILON_HIGH, LEVEL, with_default};
use super::{Aggregation, Form, Surrogate};
use crate::catalogue::ObjectiveInfo;

const FORM: Form =
    Form { name: "cispo", surrogate: Surrogate::Cispo, aggregation: Aggregation::TokenMean, level: None };

const OPTIONS: [OptionInfo; 2 + COMMON.len()] =
    options::join(&[&[with_default(EPSILON_HIGH, "4.0"), LEVEL], &COMMON]);

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: FORM.name,
    summary: "log-likelihood weighted by advantage and by a capped, stopped ratio (CISPO)",
    source: "MiniMax-M1, arXiv:2506.13585, equations 4 and 5; cap 5: Khatri et al. 2025, arXiv:2510.13786",
    equation: "-stopgrad(min(r, 1 + e_high)) A log p; mean over the tokens of the step",
    options: &OPTIONS,
    build: |given| Ok(Box::new(options::build(FORM, &OPTIONS, given)?)),
};
