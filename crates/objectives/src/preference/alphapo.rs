//! AlphaPO: SimPO with another shape of reward.
//!
//! ```text
//! r(y) = (1 − p^−α) / α,  p = exp(mean log p of y)      ℓ = −log σ(β (r(y_w) − r(y_l)) − γ)
//! ```
//!
//! α → 0 is SimPO; above 0 unlikely replies weigh more, below 0 less. Source: Gupta et al. 2025, "AlphaPO: reward shape matters
//! for LLM alignment" (arXiv:2501.03884). As TRL's `CPOTrainer` with `loss_type="alphapo"`, except that `p^−α` is held at e^80,
//! where TRL's overflows in f32 and the loss becomes NaN.

use pt_core::catalogue::OptionInfo;
use serde::{Deserialize, Serialize};

use super::contrast::{Contrast, ContrastLoss};
use super::pairs::Form;
use crate::ObjectiveError;
use crate::catalogue::{ObjectiveInfo, bad_option, parse};

const NAME: &str = "alphapo";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "SimPO with a reward of another shape",
    source: "Gupta et al. 2025, arXiv:2501.03884",
    equation: "-log sigmoid(beta * (r(chosen) - r(rejected)) - simpo_gamma), r = (1 - exp(-alpha * mean log p)) / alpha",
    options: &[
        OptionInfo { name: "alpha", kind: "number", default: "0.25", doc: "the shape; 0 is SimPO" },
        OptionInfo { name: "beta", kind: "number above 0", default: "2.0", doc: "factor of the rewards" },
        OptionInfo { name: "simpo_gamma", kind: "number", default: "1.0", doc: "the margin to win by" },
        OptionInfo {
            name: "label_smoothing",
            kind: "number in [0, 0.5)",
            default: "0.0",
            doc: "how often labels are wrong",
        },
    ],
    build: |options| Ok(Box::new(contrast(parse(NAME, options)?)?)),
};

/// Options of AlphaPO.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlphaPoConfig {
    /// α.
    pub alpha: f64,
    /// β.
    pub beta: f64,
    /// γ.
    pub simpo_gamma: f64,
    /// ε.
    pub label_smoothing: f64,
}

impl Default for AlphaPoConfig {
    fn default() -> AlphaPoConfig {
        AlphaPoConfig { alpha: 0.25, beta: 2.0, simpo_gamma: 1.0, label_smoothing: 0.0 }
    }
}

/// AlphaPO, with these options checked.
fn contrast(config: AlphaPoConfig) -> Result<Contrast, ObjectiveError> {
    let AlphaPoConfig { alpha, beta, simpo_gamma, label_smoothing } = config;
    super::check_beta(beta)
        .and_then(|()| super::check_smoothing(label_smoothing, true))
        .and_then(|()| super::check_finite("simpo_gamma", simpo_gamma))
        .and_then(|()| super::check_finite("alpha", alpha))
        .map_err(|problem| bad_option(NAME, problem))?;
    Ok(Contrast {
        form: Form::plain(NAME),
        loss: ContrastLoss::Sigmoid,
        beta,
        gamma: simpo_gamma,
        smoothing: label_smoothing,
        is_per_token: true,
        alpha,
        nll: None,
    })
}
