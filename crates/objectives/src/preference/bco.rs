//! Binary classifier optimisation: good and bad replies told apart by their reward, with a running shift.
//!
//! ```text
//! r = β (log π(y|x) − log π_ref(y|x))      δ = mean of r over all replies seen       (carries no gradient)
//! good: ℓ = −log σ(r − δ)        bad: ℓ = −ω log σ(−(r − δ))
//! ```
//!
//! Source: Jung et al. 2024, "Binary classifier optimization" (arXiv:2404.04656), equations 13 and 14. Differences from TRL 0.24's
//! `BCOTrainer`, the last that had it:
//! - TRL's δ takes in a micro-batch's replies before their loss. With `include_step` ours takes in the whole step's, at the price
//!   of a pre-pass, and is TRL's where a step is one micro-batch; without, δ is the mean over the steps before. Before the
//!   first step both are 0, since policy and reference are equal.
//! - ω is [`crate::Completion::weight`] of a bad reply, held between `min_density_ratio` and `max_density_ratio`, if
//!   `density_ratio` is set: the density ratio of its prompt among good replies' prompts to bad ones' (section 4.4). It scales
//!   the loss, and the mean is over the number of replies, as in TRL. Without it, weights are weights as everywhere.

use pt_core::catalogue::OptionInfo;
use serde::{Deserialize, Serialize};

use super::math::{sigmoid, softplus};
use super::unpaired::{self, Reply};
use crate::catalogue::{ObjectiveInfo, bad_option, parse};
use crate::{Metric, Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, PrePass, TokenBatch};

const NAME: &str = "bco";

/// The metric from which the shift of later steps comes.
const STEP_MEAN: &str = "rewards/mean";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "binary classifier optimisation of replies labelled good or bad, with a running shift",
    source: "Jung et al. 2024, arXiv:2404.04656, equations 13 and 14",
    equation: "-log sigmoid(beta * log ratio - delta) if good, -log sigmoid(delta - beta * log ratio) if bad",
    options: &[
        OptionInfo {
            name: "beta",
            kind: "number above 0",
            default: "0.1",
            doc: "how strongly the policy is held to its reference",
        },
        OptionInfo {
            name: "include_step",
            kind: "bool",
            default: "false",
            doc: "let the shift take in the step it is used in, as TRL does; costs one more forward pass",
        },
        OptionInfo {
            name: "density_ratio",
            kind: "bool",
            default: "false",
            doc: "weights of bad replies are density ratios of their prompts",
        },
        OptionInfo {
            name: "min_density_ratio",
            kind: "number of at least 0",
            default: "0.5",
            doc: "the least density ratio",
        },
        OptionInfo {
            name: "max_density_ratio",
            kind: "number of at least 0",
            default: "10.0",
            doc: "the greatest density ratio",
        },
    ],
    build: |options| Ok(Box::new(Bco::new(parse(NAME, options)?)?)),
};

/// Options of [`Bco`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BcoConfig {
    /// β.
    pub beta: f64,
    /// Whether δ takes in the step it is used in.
    pub include_step: bool,
    /// Whether weights of bad replies are density ratios.
    pub density_ratio: bool,
    /// Their least value.
    pub min_density_ratio: f64,
    /// Their greatest.
    pub max_density_ratio: f64,
}

impl Default for BcoConfig {
    fn default() -> BcoConfig {
        BcoConfig {
            beta: 0.1,
            include_step: false,
            density_ratio: false,
            min_density_ratio: 0.5,
            max_density_ratio: 10.0,
        }
    }
}

/// Binary classifier optimisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bco {
    config: BcoConfig,
    /// The weight of all replies seen, and their mean reward.
    seen: [f64; 2],
}

impl Bco {
    /// BCO with these options.
    ///
    /// # Errors
    /// [`ObjectiveError::Catalogue`] for a value out of range.
    pub fn new(config: BcoConfig) -> Result<Bco, ObjectiveError> {
        let BcoConfig { beta, min_density_ratio: least, max_density_ratio: greatest, .. } = config;
        super::check_beta(beta)
            .and_then(|()| super::check_not_negative("min_density_ratio", least))
            .and_then(|()| super::check_not_negative("max_density_ratio", greatest))
            .and_then(|()| match least <= greatest {
                true => Ok(()),
                false => Err(format!(
                    "min_density_ratio is {least}, expected at most max_density_ratio, {greatest}"
                )),
            })
            .map_err(|problem| bad_option(NAME, problem))?;
        Ok(Bco { config, seen: [0.0, 0.0] })
    }

    fn reward(&self, reply: &Reply<'_>) -> f64 {
        self.config.beta * reply.side.log_ratio()
    }

    /// How much a reply of this weight counts in a mean.
    fn count(&self, weight: f64) -> f64 {
        if self.config.density_ratio { 1.0 } else { weight }
    }

    /// What a reply's loss is multiplied with.
    fn factor(&self, reply: &Reply<'_>) -> f64 {
        let BcoConfig { min_density_ratio, max_density_ratio, density_ratio, .. } = self.config;
        match density_ratio && !reply.is_desirable {
            true => f64::from(reply.side.completion.weight).clamp(min_density_ratio, max_density_ratio),
            false => 1.0,
        }
    }

    fn replies<'a>(&self, batch: &TokenBatch<'a>) -> Result<Vec<Reply<'a>>, ObjectiveError> {
        let mut replies = unpaired::replies(batch, NAME)?;
        replies.iter_mut().for_each(|reply| reply.weight = self.count(reply.weight));
        Ok(replies)
    }

    /// The mean reward after `weight` more replies of mean reward `mean`.
    fn after(&self, weight: f64, mean: f64) -> [f64; 2] {
        let total = self.seen[0] + weight;
        if total <= 0.0 {
            return self.seen;
        }
        [total, self.seen[1] + (mean - self.seen[1]) * weight / total]
    }
}

impl Objective for Bco {
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
        unpaired::weights(batch, |weight| self.count(weight)).to_vec()
    }

    fn pre_pass(&self) -> PrePass {
        if self.config.include_step { PrePass::All } else { PrePass::None }
    }

    fn prepare(&self, whole: &TokenBatch<'_>) -> Result<Vec<f64>, ObjectiveError> {
        whole.check(NAME, self.needs())?;
        let replies = self.replies(whole)?;
        let weight: f64 = replies.iter().map(|reply| reply.weight).sum();
        let sum: f64 = replies.iter().map(|reply| reply.weight * self.reward(reply)).sum();
        Ok(vec![if weight > 0.0 { self.after(weight, sum / weight)[1] } else { self.seen[1] }])
    }

    fn state(&self) -> Vec<f64> {
        self.seen.to_vec()
    }

    fn set_state(&mut self, state: &[f64]) {
        if let &[weight, mean] = state {
            self.seen = [weight, mean];
        }
    }

    fn end_step(&mut self, metrics: &[Metric]) {
        if let Some(step) = metrics.iter().find(|metric| metric.name == STEP_MEAN && metric.weight > 0.0) {
            self.seen = self.after(step.weight, step.sum / step.weight);
        }
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        batch.check(NAME, self.needs())?;
        let delta = match step.shared() {
            [] if !self.config.include_step => self.seen[1],
            &[delta] if self.config.include_step => delta,
            shared => {
                let (found, what) = (shared.len(), "all micro-batches of the step");
                return Err(ObjectiveError::NoPrePass { name: NAME, found, expected: 1, what });
            }
        };
        let replies = self.replies(batch)?;
        let mut output = unpaired::evaluate(batch, step, &replies, self.config.beta, |reply| {
            let sign = if reply.is_desirable { 1.0 } else { -1.0 };
            let z = sign * (self.reward(reply) - delta);
            let factor = self.factor(reply);
            (factor * softplus(-z), -factor * sign * self.config.beta * sigmoid(-z))
        })?;
        let weight: f64 = replies.iter().map(|reply| reply.weight).sum();
        let sum = replies.iter().map(|reply| reply.weight * self.reward(reply)).sum();
        output.metrics.push(Metric::mean("delta", delta * weight, weight));
        output.metrics.push(Metric::mean(STEP_MEAN, sum, weight));
        Ok(output)
    }
}
