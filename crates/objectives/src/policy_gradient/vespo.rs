//! Variational sequence-level soft policy optimisation.
//!
//! ```text
//! w = exp(Σ_t (log π − log π_old) + log correction)     φ = w^k e^(λ − λ w), stopped; k and λ by the sign of A
//! ℓ = −φ A log π        L = Σ ℓ / number of tokens in the step
//! ```
//!
//! TRL: `loss_type="vespo"`. log w is held within ln 1e-8 and 20. The correction for another sampler is part of w, and does not
//! multiply the loss.

use pt_core::catalogue::OptionInfo;

use super::options::{self, COMMON, VESPO};
use super::{Aggregation, Form, Surrogate};
use crate::catalogue::ObjectiveInfo;

const FORM: Form =
    Form { name: "vespo", surrogate: Surrogate::Vespo, aggregation: Aggregation::TokenMean, level: None };

const OPTIONS: [OptionInfo; VESPO.len() + COMMON.len()] = options::join(&[&VESPO, &COMMON]);

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: FORM.name,
    summary: "log-likelihood weighted by advantage and a gamma weight of the whole completion's ratio (VESPO)",
    source: "arXiv:2602.10693; TRL, loss_type=\"vespo\"",
    equation: "-w^k exp(lambda - lambda w) A log p with w = exp(sum of log p - log p_old), stopped; mean over the tokens of the step",
    options: &OPTIONS,
    build: |given| Ok(Box::new(options::build(FORM, &OPTIONS, given)?)),
};
