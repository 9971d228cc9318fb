//! Kahneman-Tversky optimisation: replies labelled good or bad, measured against how far the policy has moved in general.
//!
//! ```text
//! h = log π(y|x) − log π_ref(y|x)
//! z₀ = max(0, mean over mismatched (x, y′) of log π(y′|x) − log π_ref(y′|x))       (carries no gradient)
//! good: ℓ = λ_D (1 − σ(β (h − z₀)))        bad: ℓ = λ_U (1 − σ(β (z₀ − h)))
//! ```
//!
//! Source: Ethayarajh et al. 2024, "KTO" (arXiv:2402.01306), equations 7 and 8, whose reference point is an expectation over the
//! data. Ours is the mean over the mismatched replies of the whole step, which a pre-pass computes. TRL takes each
//! micro-batch's, so that its loss depends on the micro-batch size; equal when a step is one micro-batch.

use std::ops::RangeInclusive;

use pt_core::catalogue::OptionInfo;
use serde::{Deserialize, Serialize};

use super::math::sigmoid;
use super::unpaired::{self, Reply};
use crate::catalogue::{ObjectiveInfo, bad_option, parse};
use crate::{
    CompletionKind, Metric, Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, PrePass,
    TokenBatch,
};

const NAME: &str = "kto";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "Kahneman-Tversky optimisation of replies labelled good or bad",
    source: "Ethayarajh et al. 2024, arXiv:2402.01306, equations 7 and 8",
    equation: "1 - sigmoid(beta * (log ratio - z0)) if good, 1 - sigmoid(beta * (z0 - log ratio)) if bad",
    options: &[
        OptionInfo {
            name: "beta",
            kind: "number above 0",
            default: "0.1",
            doc: "how strongly the policy is held to its reference",
        },
        OptionInfo {
            name: "desirable_weight",
            kind: "number of at least 0",
            default: "1.0",
            doc: "factor of the losses of good replies",
        },
        OptionInfo {
            name: "undesirable_weight",
            kind: "number of at least 0",
            default: "1.0",
            doc: "factor of the losses of bad replies",
        },
    ],
    build: |options| Ok(Box::new(Kto::new(parse(NAME, options)?)?)),
};

/// Options of [`Kto`] and [`super::apo_zero_unpaired::ApoZeroUnpaired`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KtoConfig {
    /// β.
    pub beta: f64,
    /// λ_D.
    pub desirable_weight: f64,
    /// λ_U.
    pub undesirable_weight: f64,
}

impl Default for KtoConfig {
    fn default() -> KtoConfig {
        KtoConfig { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0 }
    }
}

impl KtoConfig {
    /// What is wrong with the options.
    pub(crate) fn check(&self) -> Result<(), String> {
        super::check_beta(self.beta)?;
        super::check_not_negative("desirable_weight", self.desirable_weight)?;
        super::check_not_negative("undesirable_weight", self.undesirable_weight)
    }

    /// The mean loss of replies against the reference point z₀.
    pub(crate) fn evaluate(
        &self,
        batch: &TokenBatch<'_>,
        step: &Normaliser,
        replies: &[Reply<'_>],
        z0: f64,
    ) -> Result<ObjectiveOutput, ObjectiveError> {
        unpaired::evaluate(batch, step, replies, self.beta, |reply| {
            let (sign, factor) = match reply.is_desirable {
                true => (1.0, self.desirable_weight),
                false => (-1.0, self.undesirable_weight),
            };
            let z = sign * self.beta * (reply.side.log_ratio() - z0);
            (factor * sigmoid(-z), -factor * sign * self.beta * sigmoid(z) * sigmoid(-z))
        })
    }

    /// Where `desirable_weight` should lie for so many good and bad replies, if it does not: `λ_D n_D / (λ_U n_U)` should be
    /// between 1 and 4/3 (section 4.3 of the paper; TRL warns outside of it, with 1.33). `None` also where one kind is absent.
    pub fn better_desirable_weight(
        &self,
        n_desirable: u64,
        n_undesirable: u64,
    ) -> Option<RangeInclusive<f64>> {
        if n_desirable == 0 || n_undesirable == 0 || self.undesirable_weight == 0.0 {
            return None;
        }
        let least = n_undesirable as f64 * self.undesirable_weight / n_desirable as f64;
        let range = least..=least * 4.0 / 3.0;
        (!range.contains(&self.desirable_weight)).then_some(range)
    }
}

/// Kahneman-Tversky optimisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kto(KtoConfig);

impl Kto {
    /// KTO with these options.
    ///
    /// # Errors
    /// [`ObjectiveError::Catalogue`] for a value out of range.
    pub fn new(config: KtoConfig) -> Result<Kto, ObjectiveError> {
        config.check().map_err(|problem| bad_option(NAME, problem))?;
        Ok(Kto(config))
    }
}

impl Objective for Kto {
    fn name(&self) -> &'static str {
        NAME
    }

    fn needs(&self) -> Needs {
        Needs { reference_logp: true, ..Needs::default() }
    }

    fn weight(&self, batch: &TokenBatch<'_>) -> f64 {
        self.totals(batch).iter().sum()
    }

    fn totals(&self, batch: &TokenBatch<'_>) -> Vec<f64> {
        unpaired::weights(batch, |weight| weight).to_vec()
    }

    fn pre_pass(&self) -> PrePass {
        PrePass::Mismatched
    }

    fn prepare(&self, whole: &TokenBatch<'_>) -> Result<Vec<f64>, ObjectiveError> {
        whole.check(NAME, self.needs())?;
        let (mut sum, mut weight) = (0.0, 0.0);
        for completion in whole.completions.iter().filter(|c| c.kind == CompletionKind::Mismatched) {
            let reply = unpaired::reply(whole, completion, NAME)?;
            sum += reply.weight * reply.side.log_ratio();
            weight += reply.weight;
        }
        if weight <= 0.0 {
            let what = "mismatched replies, of which the step has none";
            return Err(ObjectiveError::NoPrePass { name: NAME, found: 0, expected: 1, what });
        }
        Ok(vec![(sum / weight).max(0.0)])
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        batch.check(NAME, self.needs())?;
        let &[z0] = step.shared() else {
            let (found, what) = (step.shared().len(), "the step's mismatched replies");
            return Err(ObjectiveError::NoPrePass { name: NAME, found, expected: 1, what });
        };
        let replies = unpaired::replies(batch, NAME)?;
        let mut output = self.0.evaluate(batch, step, &replies, z0)?;
        let weight = replies.iter().map(|reply| reply.weight).sum();
        output.metrics.push(Metric::mean("kl", z0 * weight, weight));
        Ok(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unbalanced_labels_have_a_better_weight() {
        let check = |weights: (f64, f64), n: (u64, u64), expected: Option<(f64, f64)>| {
            let config = KtoConfig {
                desirable_weight: weights.0,
                undesirable_weight: weights.1,
                ..KtoConfig::default()
            };
            let range = config.better_desirable_weight(n.0, n.1);
            assert_eq!(range.map(|range| (*range.start(), *range.end())), expected, "{weights:?} {n:?}");
        };
        check((1.0, 1.0), (100, 100), None);
        check((4.0 / 3.0, 1.0), (100, 100), None);
        check((1.0, 1.0), (50, 150), Some((3.0, 4.0)));
        check((3.5, 1.0), (50, 150), None);
        check((1.0, 1.0), (150, 75), Some((0.5, 2.0 / 3.0)));
        check((1.0, 1.0), (0, 75), None);
    }
}
