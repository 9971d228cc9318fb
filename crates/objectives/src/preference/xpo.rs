//! Exploratory preference optimisation: online DPO that is also pushed away from what the reference writes.
//!
//! ```text
//! ℓ = −log σ(βΔ) + α log π(y_ref|x)       or, with `ipo`, (Δ − 1/(2β))² + α log π(y_ref|x)
//! ```
//!
//! where Δ is DPO's difference of log-ratios, and y_ref the reply of the pair that the reference wrote
//! ([`crate::Completion::is_reference_sample`]); the other one is the policy's. Source: Xie et al. 2024, "Exploratory preference
//! optimization" (arXiv:2405.21046), algorithm 1. As `XPOTrainer._compute_losses` of TRL 0.24, the last that had it; `ipo` is not
//! per token there and here.

use pt_core::catalogue::OptionInfo;
use serde::{Deserialize, Serialize};

use super::math::{logistic, square};
use super::pairs::{self, Form, Pair, PairLoss, Sum, expected_loss};
use crate::catalogue::{ObjectiveInfo, bad_option, parse};
use crate::{Metric, Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, TokenBatch};

const NAME: &str = "xpo";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "exploratory preference optimisation: online DPO with a bonus for leaving the reference",
    source: "Xie et al. 2024, arXiv:2405.21046, algorithm 1",
    equation: "-log sigmoid(beta * difference of log ratios) + alpha * log p(reply of the reference)",
    options: &[
        OptionInfo {
            name: "loss_type",
            kind: "sigmoid or ipo",
            default: "'sigmoid'",
            doc: "the preference loss",
        },
        OptionInfo {
            name: "beta",
            kind: "number above 0",
            default: "0.1",
            doc: "how strongly the policy is held to its reference",
        },
        OptionInfo {
            name: "alpha",
            kind: "number of at least 0",
            default: "1e-5",
            doc: "weight of the exploration bonus",
        },
    ],
    build: |options| Ok(Box::new(Xpo::new(parse(NAME, options)?)?)),
};

/// The preference loss of [`Xpo`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XpoLoss {
    /// Logistic.
    #[default]
    Sigmoid,
    /// Squared.
    Ipo,
}

/// Options of [`Xpo`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct XpoConfig {
    /// The preference loss.
    pub loss_type: XpoLoss,
    /// β.
    pub beta: f64,
    /// α.
    pub alpha: f64,
}

impl Default for XpoConfig {
    fn default() -> XpoConfig {
        XpoConfig { loss_type: XpoLoss::Sigmoid, beta: 0.1, alpha: 1e-5 }
    }
}

/// Exploratory preference optimisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Xpo(XpoConfig);

impl Xpo {
    /// XPO with these options.
    ///
    /// # Errors
    /// [`ObjectiveError::Catalogue`] for a value out of range.
    pub fn new(config: XpoConfig) -> Result<Xpo, ObjectiveError> {
        super::check_beta(config.beta)
            .and_then(|()| super::check_not_negative("alpha", config.alpha))
            .map_err(|problem| bad_option(NAME, problem))?;
        Ok(Xpo(config))
    }

    fn preference(&self, pair: &Pair<'_>) -> PairLoss {
        let (beta, difference) = (self.0.beta, pair.chosen.log_ratio() - pair.rejected.log_ratio());
        let (loss, d) = match self.0.loss_type {
            XpoLoss::Sigmoid => {
                let (loss, d) = logistic(beta * difference, 0.0);
                (loss, beta * d)
            }
            XpoLoss::Ipo => square(difference - 0.5 / beta),
        };
        PairLoss { loss, d_chosen: d, d_rejected: -d }
    }

    fn bonus(&self, pair: &Pair<'_>) -> Result<PairLoss, ObjectiveError> {
        let alpha = self.0.alpha;
        let (chosen, rejected) = (&pair.chosen, &pair.rejected);
        match (chosen.completion.is_reference_sample, rejected.completion.is_reference_sample) {
            (true, false) => Ok(PairLoss { loss: alpha * chosen.logp, d_chosen: alpha, d_rejected: 0.0 }),
            (false, true) => Ok(PairLoss { loss: alpha * rejected.logp, d_chosen: 0.0, d_rejected: alpha }),
            (is_chosen, _) => Err(ObjectiveError::Group {
                name: NAME,
                group: chosen.completion.group,
                found: format!("a pair with {} replies of the reference", if is_chosen { 2 } else { 0 }),
                expected: "one reply of the policy and one of the reference",
            }),
        }
    }
}

impl Objective for Xpo {
    fn name(&self) -> &'static str {
        NAME
    }

    fn needs(&self) -> Needs {
        Needs { reference_logp: true, ..Needs::default() }
    }

    fn weight(&self, batch: &TokenBatch<'_>) -> f64 {
        pairs::weight(batch)
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        batch.check(NAME, self.needs())?;
        let pairs = pairs::pairs(batch, Form::plain(NAME))?;
        let mut sum = Sum::new(batch);
        let (mut dpo, mut xpo) = (Metric::mean("loss/dpo", 0.0, 0.0), Metric::mean("loss/xpo", 0.0, 0.0));
        for pair in &pairs {
            let preference = expected_loss(pair, |pair| self.preference(pair));
            let bonus = self.bonus(pair)?;
            sum.add_pair(pair, preference.add(1.0, bonus), step);
            for (metric, loss) in [(&mut dpo, preference), (&mut xpo, bonus)] {
                metric.sum += pair.weight * loss.loss;
                metric.weight += pair.weight;
            }
        }
        let beta = self.0.beta;
        let rewards = |p: &Pair<'_>| (beta * p.chosen.log_ratio(), beta * p.rejected.log_ratio());
        let mut metrics = pairs::metrics(batch, &pairs, rewards, |side| side.logp);
        metrics.extend([dpo, xpo]);
        sum.finish(metrics)
    }
}
