//! Proximal policy optimisation: clipped surrogate and clipped value loss.
//!
//! ```text
//! ℓ = −min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A)                    mean over the tokens of the step
//! v = ½ max((V − R)², (clip(V, V_old ± c) − R)²)                 mean over the scored rows of the step
//! L = ℓ + vf_coef · v
//! ```
//!
//! Source: Schulman et al. 2017, "Proximal policy optimization algorithms" (arXiv:1707.06347), equations 7 and 9, for language models as
//! in Ziegler et al. 2019 and TRL's `PPOTrainer` (whose `cliprange` is `epsilon`). V is the score head's output, R
//! [`crate::Scores::targets`], V_old [`crate::Scores::old_values`] (without them nothing is clipped). Advantages and returns (GAE,
//! whitening, the divergence in the rewards) are computed in `pt-rl`.
//!
//! Difference from TRL: `policy/approxkl_avg` averages over trained tokens only, TRL's over padding too.

use pt_core::catalogue::OptionInfo;

use super::options::{self, COMMON, EPSILON, EPSILON_HIGH, VALUE};
use super::{Aggregation, Form, PolicyGradient, RatioLevel, SCORE_TOTAL, Surrogate};
use crate::catalogue::ObjectiveInfo;
use crate::{
    Metric, Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, PrePass, Scores, TokenBatch,
};

const FORM: Form = Form {
    name: "ppo",
    surrogate: Surrogate::Clip,
    aggregation: Aggregation::TokenMean,
    level: Some(RatioLevel::Token),
};

const OPTIONS: [OptionInfo; 2 + VALUE.len() + COMMON.len()] =
    options::join(&[&[EPSILON, EPSILON_HIGH], &VALUE, &COMMON]);

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: FORM.name,
    summary: "clipped surrogate and a clipped value loss (PPO)",
    source: "Schulman et al. 2017, arXiv:1707.06347, equations 7 and 9",
    equation: "-min(r A, clip(r, 1 - e, 1 + e_high) A) + vf_coef / 2 max((V - R)^2, (clip(V, V_old +- c) - R)^2)",
    options: &OPTIONS,
    build: |given| Ok(Box::new(Ppo(options::build(FORM, &OPTIONS, given)?))),
};

/// Proximal policy optimisation.
#[derive(Clone, Debug)]
struct Ppo(PolicyGradient);

impl Objective for Ppo {
    fn name(&self) -> &'static str {
        FORM.name
    }

    fn needs(&self) -> Needs {
        let score_outputs = usize::from(self.0.config().vf_coef > 0.0);
        Needs { score_outputs, ..self.0.needs() }
    }

    fn weight(&self, batch: &TokenBatch<'_>) -> f64 {
        self.0.weight(batch)
    }

    fn totals(&self, batch: &TokenBatch<'_>) -> Vec<f64> {
        self.0.totals(batch)
    }

    fn pre_pass(&self) -> PrePass {
        self.0.pre_pass()
    }

    fn prepare(&self, whole: &TokenBatch<'_>) -> Result<Vec<f64>, ObjectiveError> {
        self.0.prepare(whole)
    }

    fn state(&self) -> Vec<f64> {
        self.0.state()
    }

    fn set_state(&mut self, state: &[f64]) {
        self.0.set_state(state);
    }

    fn end_step(&mut self, metrics: &[Metric]) {
        self.0.end_step(metrics);
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        let mut output = self.0.evaluate(batch, step)?;
        output.metrics.extend(policy_metrics(batch));
        if let Some(scores) = batch.scores.filter(|_| self.needs().score_outputs > 0) {
            self.add_value_loss(batch, scores, step, &mut output)?;
        }
        Ok(output)
    }
}

impl Ppo {
    fn add_value_loss(
        &self,
        batch: &TokenBatch<'_>,
        scores: Scores<'_>,
        step: &Normaliser,
        output: &mut ObjectiveOutput,
    ) -> Result<(), ObjectiveError> {
        batch.check(FORM.name, self.needs())?;
        if scores.n_outputs != 1 {
            let what = "one output of the score head, a value,";
            return Err(ObjectiveError::Missing { name: FORM.name, what });
        }
        let what = "the step's number of scored rows (`totals`)";
        let missing = ObjectiveError::Missing { name: FORM.name, what };
        let total = *step.totals().get(SCORE_TOTAL).ok_or(missing)?;
        let (coef, range) = (self.0.config().vf_coef, self.0.config().cliprange_value);
        let mut gradient = vec![0.0; scores.values.len()];
        let (mut sum, mut weight, mut n_clipped) = (0.0, 0.0, 0.0);
        for (row, &w) in scores.weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
            let old = scores.old_values.map(|old| f64::from(old[row]));
            let (loss, slope, is_clipped) =
                value_loss(f64::from(scores.values[row]), f64::from(scores.targets[row]), old, range);
            let w = f64::from(w);
            sum += w * loss;
            weight += w;
            n_clipped += if is_clipped { w } else { 0.0 };
            gradient[row] = (coef * w * slope / total) as f32;
        }
        if total > 0.0 {
            output.loss += coef * sum / total;
        }
        output.d_scores = Some(gradient);
        output.metrics.push(Metric::mean("loss/value_avg", sum, weight));
        output.metrics.push(Metric::mean("val/clipfrac_avg", n_clipped, weight));
        Ok(())
    }
}

/// Half the greater square, its derivative, and whether that is the clipped one.
fn value_loss(value: f64, target: f64, old: Option<f64>, range: f64) -> (f64, f64, bool) {
    let clipped = old.map_or(value, |old| value.clamp(old - range, old + range));
    let (plain, other) = (value - target, clipped - target);
    match other * other > plain * plain {
        // Within the range the two are one; beyond it the clipped value does not move.
        true => (other * other / 2.0, 0.0, true),
        false => (plain * plain / 2.0, plain, false),
    }
}

/// TRL's names for what the policy's ratio does.
fn policy_metrics(batch: &TokenBatch<'_>) -> [Metric; 2] {
    let log_ratio = |t: usize| batch.old_logp.map_or(0.0, |old| f64::from(batch.logp[t]) - f64::from(old[t]));
    [
        batch.metric("policy/approxkl_avg", |t| log_ratio(t).powi(2) / 2.0),
        batch.metric("val/ratio", |t| log_ratio(t).min(super::LOG_RATIO_LIMIT).exp()),
    ]
}
