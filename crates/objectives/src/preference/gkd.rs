//! Distillation from a teacher's whole distribution: generalised knowledge distillation.
//!
//! ```text
//! D_t = KL(q ‖ p)                               beta = 0, forward: the student covers what the teacher says
//!     = KL(p ‖ q)                               beta = 1, reverse: the student keeps to what the teacher says
//!     = beta KL(q ‖ m) + (1 − beta) KL(p ‖ m)   between, with m = (1 − beta) p + beta q
//! loss = Σ w_t (D_t − nll_coef · log p(y_t)) / Σ w_t
//! ```
//!
//! with the student's `p = softmax(x / temperature)` and the teacher's `q = softmax(y / temperature)` at every trained token, whoever
//! wrote it: data, the teacher, or the student itself. The engine makes D_t of the logits ([`TokenBatch::divergence`]).
//!
//! Sources: Agarwal et al. 2023, GKD (arXiv:2306.13649), equation 1; the ends of beta as in TRL's `GKDTrainer`. Differences from TRL: its
//! trainer never hands its `temperature` to the loss, where it stays 1 and is 1 here by default; no term grows with the square of the
//! temperature (Hinton et al. 2015), which is a change of learning rate. `nll_coef` adds the likelihood of the tokens themselves, which
//! TRL has not.

use pt_core::catalogue::OptionInfo;
use serde::{Deserialize, Serialize};

use super::check_not_negative;
use crate::catalogue::{ObjectiveInfo, bad_option, parse};
use crate::{Divergence, Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, TokenBatch};

const NAME: &str = "gkd";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "distillation from a teacher's whole distribution: forward KL, reverse KL or generalised Jensen-Shannon",
    source: "Agarwal et al. 2023, arXiv:2306.13649, equation 1",
    equation: "beta KL(q | m) + (1 - beta) KL(p | m), m = (1 - beta) p + beta q; 0: KL(q | p), 1: KL(p | q)",
    options: &[
        OptionInfo {
            name: "beta",
            kind: "number from 0 to 1",
            default: "0.5",
            doc: "0 is the forward divergence (cover the teacher), 1 the reverse one (keep to the teacher), between is Jensen-Shannon",
        },
        OptionInfo {
            name: "temperature",
            kind: "number above 0",
            default: "1.0",
            doc: "divides the logits of student and teacher in the loss",
        },
        OptionInfo {
            name: "nll_coef",
            kind: "number of at least 0",
            default: "0.0",
            doc: "weight of the tokens' own negative log-likelihood beside the divergence",
        },
    ],
    build: |options| Ok(Box::new(Gkd::new(parse(NAME, options)?)?)),
};

/// Options of [`Gkd`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GkdConfig {
    /// Which divergence.
    pub beta: f64,
    /// Divides the logits of both.
    pub temperature: f64,
    /// Weight of the likelihood.
    pub nll_coef: f64,
}

impl Default for GkdConfig {
    fn default() -> GkdConfig {
        GkdConfig { beta: 0.5, temperature: 1.0, nll_coef: 0.0 }
    }
}

/// Generalised knowledge distillation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gkd(GkdConfig);

impl Gkd {
    /// Distillation with these options.
    ///
    /// # Errors
    /// [`ObjectiveError::Catalogue`] for a value out of range.
    pub fn new(config: GkdConfig) -> Result<Gkd, ObjectiveError> {
        let GkdConfig { beta, temperature, nll_coef } = config;
        let problem = if !(0.0..=1.0).contains(&beta) {
            Err(format!("beta is {beta}, expected 0 to 1"))
        } else if !(temperature > 0.0 && temperature.is_finite()) {
            Err(format!("temperature is {temperature}, expected a number above 0"))
        } else {
            check_not_negative("nll_coef", nll_coef)
        };
        problem.map_err(|problem| bad_option(NAME, problem)).map(|()| Gkd(config))
    }
}

impl Objective for Gkd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn needs(&self) -> Needs {
        let divergence = Divergence { beta: self.0.beta, temperature: self.0.temperature as f32 };
        Needs { divergence: Some(divergence), ..Needs::default() }
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        batch.check(NAME, self.needs())?;
        let missing = ObjectiveError::Missing { name: NAME, what: "the divergence from the teacher" };
        let divergence = batch.divergence.ok_or(missing)?;
        let n = batch.logp.len();
        let (mut sum, mut d_logp, mut d_divergence) = (0.0, vec![0.0; n], vec![0.0; n]);
        for (i, w) in batch.trained() {
            sum += w * (f64::from(divergence[i]) - self.0.nll_coef * f64::from(batch.logp[i]));
            d_logp[i] = (-w * self.0.nll_coef / step.total_weight()) as f32;
            d_divergence[i] = (w / step.total_weight()) as f32;
        }
        let mut metrics = batch.language_metrics();
        metrics.push(batch.metric("divergence", |i| f64::from(divergence[i])));
        Ok(ObjectiveOutput {
            loss: sum / step.total_weight(),
            d_logp,
            d_divergence: Some(d_divergence),
            metrics,
            ..ObjectiveOutput::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_out_of_range_are_refused() {
        let check = |options: &str, expected: &str| {
            let problem = crate::build(NAME, &options.parse().unwrap()).unwrap_err().to_string();
            assert!(problem.contains(expected), "{problem}");
        };
        check("beta = 1.5", "beta is 1.5, expected 0 to 1");
        check("beta = -0.1", "beta is -0.1, expected 0 to 1");
        check("temperature = 0.0", "temperature is 0, expected a number above 0");
        check("nll_coef = -1.0", "nll_coef is -1");
    }
}
