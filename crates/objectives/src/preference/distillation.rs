//! On-policy distillation: the student learns on its own samples, token by token, what the teacher would rather have written.
//!
//! ```text
//! A_t = log π_teacher(y_t) − log π_student(y_t)       (carries no gradient)
//! loss = Σ w_t · ρ_t · (−A_t) / Σ w_t                   ∂loss/∂log π_t = −w_t ρ_t A_t / Σ w_t
//! ```
//!
//! where ρ_t is 1 in value and the student's likelihood ratio in gradient. On samples of the student this is an estimate of the reverse
//! KL divergence, whose gradient it follows with no discount: each token answers for itself. With `importance_sampling`,
//! ρ_t = π_student / π_sampler corrects for samples that a former student or another engine drew, and A_t is of that sampler.
//! The teacher's log-probabilities stand in [`TokenBatch::reference_logp`].
//!
//! Sources: Agarwal et al. 2023, GKD (arXiv:2306.13649), reverse KL on student samples; the estimate by sampled tokens alone as in
//! Gu et al. 2023, MiniLLM (arXiv:2306.08543), equation 4, without its long-range term. Divergences over the whole vocabulary need the
//! teacher's distribution and are not here.

use pt_core::catalogue::OptionInfo;
use serde::{Deserialize, Serialize};

use super::math::MAX_EXPONENT;
use super::pairs::Sum;
use crate::catalogue::{ObjectiveInfo, parse};
use crate::{Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, TokenBatch};

const NAME: &str = "on_policy_distillation";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "distillation on the student's own samples by the reverse KL of sampled tokens",
    source: "Agarwal et al. 2023, arXiv:2306.13649; Gu et al. 2023, arXiv:2306.08543, equation 4",
    equation: "-stopgrad(log p_teacher - log p) * log p",
    options: &[OptionInfo {
        name: "importance_sampling",
        kind: "bool",
        default: "false",
        doc: "correct for samples that are not the student's own, by the sampler's log-probabilities",
    }],
    build: |options| Ok(Box::new(OnPolicyDistillation::new(parse(NAME, options)?))),
};

/// Options of [`OnPolicyDistillation`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OnPolicyDistillationConfig {
    /// Whether to correct for the sampler.
    pub importance_sampling: bool,
}

/// On-policy distillation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnPolicyDistillation(OnPolicyDistillationConfig);

impl OnPolicyDistillation {
    /// Distillation with these options.
    pub fn new(config: OnPolicyDistillationConfig) -> OnPolicyDistillation {
        OnPolicyDistillation(config)
    }
}

impl Objective for OnPolicyDistillation {
    fn name(&self) -> &'static str {
        NAME
    }

    fn needs(&self) -> Needs {
        Needs { reference_logp: true, sampler_logp: self.0.importance_sampling, ..Needs::default() }
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        batch.check(NAME, self.needs())?;
        let teacher = super::reference_logp(NAME, batch)?;
        let sampler = batch.sampler_logp.filter(|_| self.0.importance_sampling);
        let mut sum = Sum::new(batch);
        for (i, w) in batch.trained() {
            let logp = f64::from(batch.logp[i]);
            let sampled = sampler.map_or(logp, |sampler| f64::from(sampler[i]));
            let ratio = (logp - sampled).min(MAX_EXPONENT).exp();
            let share = w / step.total_weight() * ratio * (sampled - f64::from(teacher[i]));
            sum.add_loss(share);
            sum.add_token(i, share);
        }
        let mut metrics = batch.language_metrics();
        metrics.push(batch.metric("reverse_kl", |i| f64::from(batch.logp[i]) - f64::from(teacher[i])));
        sum.finish(metrics)
    }
}
