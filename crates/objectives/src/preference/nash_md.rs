//! Nash mirror descent: win against a mixture of policy and reference, and stay near the reference.
//!
//! ```text
//! ℓ = β Σ_t sg(log π(y_t) − log π_ref(y_t)) · log π(y_t) − (p − ½) Σ_t log π(y_t)
//! ```
//!
//! where p is the probability that the reply beats its opponent, drawn from the geometric mixture of policy and reference; it
//! stands in [`crate::Completion::label`], and only the policy's reply is a completion (of kind `Sample`). sg stops the gradient, so the
//! first term's gradient estimates that of the KL divergence, each token's log-ratio credited to that token alone. Source: Munos
//! et al. 2023, "Nash learning from human feedback" (arXiv:2312.00886), section 7. As `NashMDTrainer._compute_losses` of TRL 0.24,
//! the last that had it. The loss's value is of no use: look at `rewards/probabilities` and `objective/kl`.

use pt_core::catalogue::OptionInfo;
use serde::{Deserialize, Serialize};

use super::pairs::{self, Form, Side, Sum};
use crate::catalogue::{ObjectiveInfo, bad_option, parse};
use crate::{
    Completion, CompletionKind, Metric, Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput,
    TokenBatch,
};

const NAME: &str = "nash_md";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "Nash mirror descent: win against a mixture of policy and reference",
    source: "Munos et al. 2023, arXiv:2312.00886, section 7",
    equation: "beta * stopgrad(log ratio) * log p - (probability to win - 1/2) * log p",
    options: &[OptionInfo {
        name: "beta",
        kind: "number of at least 0",
        default: "0.1",
        doc: "weight of the divergence from the reference",
    }],
    build: |options| Ok(Box::new(NashMd::new(parse(NAME, options)?)?)),
};

/// Options of [`NashMd`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NashMdConfig {
    /// β.
    pub beta: f64,
}

impl Default for NashMdConfig {
    fn default() -> NashMdConfig {
        NashMdConfig { beta: 0.1 }
    }
}

/// Nash mirror descent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NashMd(NashMdConfig);

impl NashMd {
    /// Nash-MD with these options.
    ///
    /// # Errors
    /// [`ObjectiveError::Catalogue`] for a value out of range.
    pub fn new(config: NashMdConfig) -> Result<NashMd, ObjectiveError> {
        super::check_not_negative("beta", config.beta).map_err(|problem| bad_option(NAME, problem))?;
        Ok(NashMd(config))
    }
}

fn sides<'a>(batch: &TokenBatch<'a>) -> Result<Vec<Side<'a>>, ObjectiveError> {
    let side = |completion: &'a Completion| {
        let (kind, label, weight) = (completion.kind, completion.label, completion.weight);
        let is_weight = weight >= 0.0 && weight.is_finite();
        if kind == CompletionKind::Sample && (0.0..=1.0).contains(&label) && is_weight {
            return pairs::side(batch, completion, Form::plain(NAME), usize::MAX);
        }
        let found = format!("a {} reply of label {label} and weight {weight}", pairs::kind_name(kind));
        let expected =
            "a sampled reply whose label is its probability to win, of a finite weight of at least 0";
        Err(ObjectiveError::Group { name: NAME, group: completion.group, found, expected })
    };
    batch.completions.iter().map(side).collect()
}

impl Objective for NashMd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn needs(&self) -> Needs {
        Needs { reference_logp: true, ..Needs::default() }
    }

    fn weight(&self, batch: &TokenBatch<'_>) -> f64 {
        batch.completions.iter().map(|c| f64::from(c.weight)).sum()
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        batch.check(NAME, self.needs())?;
        let sides = sides(batch)?;
        let reference = super::reference_logp(NAME, batch)?;
        let mut sum = Sum::new(batch);
        for side in &sides {
            let share = f64::from(side.completion.weight) / step.total_weight();
            let advantage = f64::from(side.completion.label) - 0.5;
            for i in side.completion.tokens.clone().filter(|&i| batch.weights[i] > 0.0) {
                let logp = f64::from(batch.logp[i]);
                let log_ratio = logp - f64::from(reference[i]);
                let d = share * f64::from(batch.weights[i]) * (self.0.beta * log_ratio - advantage);
                sum.add_loss(d * logp);
                sum.add_token(i, d);
            }
        }
        let mean = |name, value: &dyn Fn(&Side<'_>) -> f64| {
            let weight = |side: &Side<'_>| f64::from(side.completion.weight);
            let weighted = sides.iter().map(|side| weight(side) * value(side)).sum();
            Metric::mean(name, weighted, sides.iter().map(weight).sum())
        };
        let score = |side: &Side<'_>| (f64::from(side.completion.label) - 0.5) * side.logp;
        sum.finish(vec![
            mean("rewards/probabilities", &|side| f64::from(side.completion.label)),
            mean("loss/score", &score),
            mean("objective/kl", &|side| side.log_ratio()),
        ])
    }
}
