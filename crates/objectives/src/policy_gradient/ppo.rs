//! Proximal policy optimisation: clipped surrogate and clipped value loss.
//!
//! ```text
//! ℓ = −min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A)                    mean over the tokens of the step
//! v = ½ max((V − R)², (clip(V, V_old ± c) − R)²)                 mean over the scored rows of the step
//! x = −log π                                                     mean over the step's tokens of gold replies
//! L = ℓ + vf_coef · v + ptx_coef · x
//! ```
//!
//! Source: Schulman et al. 2017, "Proximal policy optimization algorithms" (arXiv:1707.06347), equations 7 and 9, for language models as
//! in Ziegler et al. 2019 and TRL's `PPOTrainer` (whose `cliprange` is `epsilon`). V is the score head's output, R
//! [`crate::Scores::targets`], V_old [`crate::Scores::old_values`] (without them nothing is clipped). Advantages and returns (GAE,
//! whitening, the divergence in the rewards) are computed in `pt-rl`. The last term is PPO-ptx's (Ouyang et al. 2022, "Training language
//! models to follow instructions with human feedback", arXiv:2203.02155, equation 2): texts beside the samples, of kind
//! [`CompletionKind::Gold`], keep the policy from forgetting them. InstructGPT's coefficient is 27.8, for losses that are sums; here both are means.
//!
//! Difference from TRL: `policy/approxkl_avg` averages over trained tokens only, TRL's over padding too.

use pt_core::catalogue::OptionInfo;

use super::options::{self, COMMON, EPSILON, EPSILON_HIGH, PTX_COEF, VALUE};
use super::value::value_part;
use super::{Aggregation, Form, PolicyGradient, RatioLevel, SCORE_TOTAL, Surrogate};
use crate::catalogue::ObjectiveInfo;
use crate::{
    Completion, CompletionKind, Metric, Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput,
    PrePass, Scores, TokenBatch,
};

const FORM: Form = Form {
    name: "ppo",
    surrogate: Surrogate::Clip,
    aggregation: Aggregation::TokenMean,
    level: Some(RatioLevel::Token),
};

const OPTIONS: [OptionInfo; 3 + VALUE.len() + COMMON.len()] =
    options::join(&[&[EPSILON, EPSILON_HIGH], &VALUE, &[PTX_COEF], &COMMON]);

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: FORM.name,
    summary: "clipped surrogate and a clipped value loss (PPO)",
    source: "Schulman et al. 2017, arXiv:1707.06347, equations 7 and 9",
    equation: "-min(r A, clip(r, 1 - e, 1 + e_high) A) + vf_coef / 2 max((V - R)^2, (clip(V, V_old +- c) - R)^2) - ptx_coef log p",
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
        self.0.weight(&Samples::of(batch).batch(batch))
    }

    fn totals(&self, batch: &TokenBatch<'_>) -> Vec<f64> {
        let mut totals = self.0.totals(&Samples::of(batch).batch(batch));
        totals.push(gold_tokens(batch).map(|t| f64::from(batch.weights[t])).sum());
        totals
    }

    fn pre_pass(&self) -> PrePass {
        self.0.pre_pass()
    }

    fn prepare(&self, whole: &TokenBatch<'_>) -> Result<Vec<f64>, ObjectiveError> {
        self.0.prepare(&Samples::of(whole).batch(whole))
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
        // What is said of ratios, advantages and entropy is said of the samples alone.
        let samples = Samples::of(batch);
        let sampled = samples.batch(batch);
        let mut output = self.0.evaluate(&sampled, step)?;
        output.metrics.extend(self.policy_metrics(&sampled));
        self.add_text(batch, step, &mut output)?;
        if let Some(scores) = batch.scores.filter(|_| self.needs().score_outputs > 0) {
            self.add_value_loss(batch, scores, step, &mut output)?;
        }
        Ok(output)
    }
}

impl Ppo {
    /// The cross-entropy of texts beside the samples.
    fn add_text(
        &self,
        batch: &TokenBatch<'_>,
        step: &Normaliser,
        output: &mut ObjectiveOutput,
    ) -> Result<(), ObjectiveError> {
        let (mut sum, mut weight) = (0.0, 0.0);
        batch.check(FORM.name, Needs::default())?;
        for t in gold_tokens(batch) {
            let w = f64::from(batch.weights[t]);
            sum -= w * f64::from(batch.logp[t]);
            weight += w;
        }
        if weight == 0.0 {
            return Ok(());
        }
        let what = "the step's number of tokens beside the samples (`totals`)";
        let missing = ObjectiveError::Missing { name: FORM.name, what };
        let total = *step.totals().get(GOLD_TOTAL).ok_or(missing)?;
        let coef = self.0.config().ptx_coef / total;
        output.loss += coef * sum;
        for t in gold_tokens(batch) {
            output.d_logp[t] = (-coef * f64::from(batch.weights[t])) as f32;
        }
        output.metrics.push(Metric::mean("loss/ptx_avg", sum, weight));
        Ok(())
    }

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
        let part = value_part(scores, range);
        // A step none of whose rows counts has a total of 0, and a gradient of zeros.
        let share = |of: f64| if total > 0.0 { coef * of / total } else { 0.0 };
        output.loss += share(part.sum);
        output.d_scores = Some(part.slopes.iter().map(|&slope| share(slope) as f32).collect());
        output.metrics.extend(part.metrics);
        Ok(())
    }
}

/// Where the weight of texts beside the samples stands in [`Normaliser::totals`].
const GOLD_TOTAL: usize = super::SCORE_TOTAL + 1;

/// A batch's samples by themselves: their completions, and the weights of their tokens.
struct Samples {
    completions: Vec<Completion>,
    weights: Vec<f32>,
}

impl Samples {
    fn of(batch: &TokenBatch<'_>) -> Samples {
        let is_sample = |completion: &&Completion| completion.kind != CompletionKind::Gold;
        let mut weights = batch.weights.to_vec();
        gold_tokens(batch).for_each(|t| weights[t] = 0.0);
        Samples { completions: batch.completions.iter().filter(is_sample).cloned().collect(), weights }
    }

    fn batch<'s>(&'s self, whole: &TokenBatch<'s>) -> TokenBatch<'s> {
        TokenBatch { completions: &self.completions, weights: &self.weights, ..*whole }
    }
}

/// The trained tokens of texts beside the samples.
fn gold_tokens<'a>(batch: &TokenBatch<'a>) -> impl Iterator<Item = usize> + use<'a> {
    let weights = batch.weights;
    let texts = batch.completions.iter().filter(|completion| completion.kind == CompletionKind::Gold);
    texts
        .flat_map(|completion| completion.tokens.clone())
        .filter(move |&t| weights.get(t).is_some_and(|w| *w > 0.0))
}

impl Ppo {
    /// TRL's names for what the policy's ratio does.
    fn policy_metrics(&self, batch: &TokenBatch<'_>) -> Vec<Metric> {
        let log_ratio =
            |t: usize| batch.old_logp.map_or(0.0, |old| f64::from(batch.logp[t]) - f64::from(old[t]));
        let ratio = |t: usize| log_ratio(t).min(super::LOG_RATIO_LIMIT).exp();
        let config = self.0.config();
        let (low, high) = (1.0 - config.epsilon, 1.0 + config.epsilon_high());
        let advantage = |t: usize| batch.advantages.map_or(0.0, |advantages| advantages[t]);
        let is_clipped =
            |t: usize| (ratio(t) < low && advantage(t) < 0.0) || (ratio(t) > high && advantage(t) > 0.0);
        let mut metrics = vec![
            batch.metric("policy/approxkl_avg", |t| log_ratio(t).powi(2) / 2.0),
            batch.metric("policy/clipfrac_avg", |t| f64::from(u8::from(is_clipped(t)))),
            batch.metric("loss/policy_avg", |t| {
                let a = f64::from(advantage(t));
                -(ratio(t) * a).min(ratio(t).clamp(low, high) * a)
            }),
            batch.metric("val/ratio", ratio),
        ];
        let entropy =
            batch.entropy.map(|entropy| batch.metric("policy/entropy_avg", |t| f64::from(entropy[t])));
        metrics.extend(entropy);
        metrics
    }
}
