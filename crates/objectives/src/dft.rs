//! Dynamic fine-tuning: cross-entropy whose tokens are weighted by their own probability.
//!
//! ```text
//! ℓ = −sg(p_target) · log p_target        ∂ℓ/∂logp = −p_target
//! ```
//!
//! where sg stops the gradient. Seen as policy gradient, cross-entropy rewards a token by 1 / p, so
//! unlikely tokens dominate; the factor takes that out. Source: Wu et al. 2025, "On the generalization of
//! SFT: a reinforcement learning perspective with reward rectification" (arXiv:2508.05629), equation 9;
//! the same as TRL's `loss_type="dft"`.

use crate::catalogue::ObjectiveInfo;
use crate::{Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, TokenBatch};

const NAME: &str = "dft";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "cross-entropy weighted by the token's own probability (dynamic fine-tuning)",
    source: "Wu et al. 2025, arXiv:2508.05629, equation 9",
    equation: "-stopgrad(p(target)) * log p(target)",
    options: &[],
    build: |_| Ok(Box::new(Dft)),
};

/// Dynamic fine-tuning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dft;

impl Objective for Dft {
    fn name(&self) -> &'static str {
        NAME
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        batch.check(NAME, self.needs())?;
        let mut d_logp = vec![0.0; batch.logp.len()];
        let mut sum = 0.0;
        for (i, w) in batch.trained() {
            let logp = f64::from(batch.logp[i]);
            // Rounding can leave log p of a certain token just above 0.
            let p = logp.exp().min(1.0);
            sum -= w * p * logp;
            d_logp[i] = (-p * w / step.total_weight()) as f32;
        }
        let metrics = batch.language_metrics();
        Ok(ObjectiveOutput { loss: sum / step.total_weight(), d_logp, metrics, ..ObjectiveOutput::default() })
    }
}
