//! Cross-entropy of the next token, with optional label smoothing.
//!
//! ```text
//! ℓ = (1 − ε) (−log p_target) + ε · mean_v(−log p_v)
//! ```
//!
//! Source: Szegedy et al. 2016, "Rethinking the inception architecture" (arXiv:1512.00567), section 7,
//! as `torch.nn.functional.cross_entropy(label_smoothing=ε)` and transformers' `LabelSmoother` compute it.
//! Gradients: `∂ℓ/∂logp = −(1 − ε)`, `∂ℓ/∂mean_logp = −ε`.

use pt_core::catalogue::OptionInfo;

use crate::catalogue::{ObjectiveInfo, bad_option, parse};
use crate::{Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, TokenBatch};
use serde::{Deserialize, Serialize};

const NAME: &str = "cross_entropy";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "negative log-likelihood of the next token",
    source: "label smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7",
    equation: "(1 - e) * -log p(target) + e * mean over the vocabulary of -log p",
    options: &[OptionInfo {
        name: "label_smoothing",
        kind: "number in [0, 1)",
        default: "0.0",
        doc: "e: the part of each target spread evenly over the vocabulary",
    }],
    build: |options| Ok(Box::new(CrossEntropy::new(parse(NAME, options)?)?)),
};

/// Options of cross-entropy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CrossEntropyConfig {
    /// ε.
    pub label_smoothing: f64,
}

/// Cross-entropy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    smoothing: f64,
}

impl CrossEntropy {
    /// Cross-entropy with these options.
    ///
    /// # Errors
    /// [`ObjectiveError::Catalogue`] for a value out of range.
    pub fn new(config: CrossEntropyConfig) -> Result<CrossEntropy, ObjectiveError> {
        let smoothing = config.label_smoothing;
        if (0.0..1.0).contains(&smoothing) {
            return Ok(CrossEntropy { smoothing });
        }
        let problem = format!("label_smoothing is {smoothing}, expected at least 0 and below 1");
        Err(bad_option(NAME, problem))
    }

    /// `∂ℓ/∂logp` of a token of weight `w`.
    fn d_logp(&self, w: f64, step: &Normaliser) -> f32 {
        (-(1.0 - self.smoothing) * (w / step.total_weight())) as f32
    }
}

impl Objective for CrossEntropy {
    fn name(&self) -> &'static str {
        NAME
    }

    fn needs(&self) -> Needs {
        Needs { mean_logp: self.smoothing > 0.0, ..Needs::default() }
    }

    fn expected_d_logp(&self, weights: &[f32], step: &Normaliser) -> Option<Vec<f32>> {
        let d_logp = |&w: &f32| if w > 0.0 { self.d_logp(f64::from(w), step) } else { 0.0 };
        (self.smoothing == 0.0).then(|| weights.iter().map(d_logp).collect())
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        batch.check(NAME, self.needs())?;
        let smoothed = batch.mean_logp.filter(|_| self.smoothing > 0.0);
        let mut d_logp = vec![0.0; batch.logp.len()];
        let mut d_mean_logp = smoothed.map(|_| vec![0.0; batch.logp.len()]);
        let mut sum = 0.0;
        for (i, w) in batch.trained() {
            sum -= w * (1.0 - self.smoothing) * f64::from(batch.logp[i]);
            d_logp[i] = self.d_logp(w, step);
            if let (Some(mean_logp), Some(gradient)) = (smoothed, &mut d_mean_logp) {
                sum -= w * self.smoothing * f64::from(mean_logp[i]);
                gradient[i] = (-self.smoothing * (w / step.total_weight())) as f32;
            }
        }
        let metrics = batch.language_metrics();
        let loss = sum / step.total_weight();
        Ok(ObjectiveOutput { loss, d_logp, d_mean_logp, metrics, ..ObjectiveOutput::default() })
    }
}
