//! Decoupled clip and dynamic sampling policy optimisation: its loss.
//!
//! ```text
//! ℓ = −min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A)        L = Σ ℓ / number of tokens in the step
//! ```
//!
//! Source: Yu et al. 2025, "DAPO" (arXiv:2503.14476), equation 8: clip-higher with ε 0.2 and ε_high 0.28, token-level loss. TRL:
//! `loss_type="dapo"`, whose `epsilon_high` is `epsilon` unless given. Dynamic sampling and the soft overlong punishment are not
//! part of the loss; they are in `pt-rl`.

use pt_core::catalogue::OptionInfo;

use super::options::{self, COMMON, DELTA, EPSILON, EPSILON_HIGH, LEVEL, with_default};
use super::{Aggregation, Form, Surrogate};
use crate::catalogue::ObjectiveInfo;

const FORM: Form =
    Form { name: "dapo", surrogate: Surrogate::Clip, aggregation: Aggregation::TokenMean, level: None };

const OPTIONS: [OptionInfo; 4 + COMMON.len()] =
    options::join(&[&[EPSILON, with_default(EPSILON_HIGH, "0.28"), DELTA, LEVEL], &COMMON]);

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: FORM.name,
    summary: "clipped surrogate with a higher upper bound, mean over all tokens of the step (DAPO)",
    source: "Yu et al. 2025, arXiv:2503.14476, equation 8",
    equation: "-min(r A, clip(r, 1 - e, 1 + e_high) A); mean over the tokens of the step",
    options: &OPTIONS,
    build: |given| Ok(Box::new(options::build(FORM, &OPTIONS, given)?)),
};
