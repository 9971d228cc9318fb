//! Simple preference optimisation: mean log-probabilities, no reference, and a target margin.
//!
//! ```text
//! ℓ = −log σ(β (mean log p of y_w − mean log p of y_l) − γ)
//! ```
//!
//! Source: Meng et al. 2024, "SimPO" (arXiv:2405.14734), equation 6, whose β (2 to 10) and γ/β (about 0.5) are the defaults
//! here. As TRL's `CPOTrainer` with `loss_type="simpo"`, `cpo_alpha=0`, whose defaults (0.1 and 0.5) are CPO's.

use pt_core::catalogue::OptionInfo;
use serde::{Deserialize, Serialize};

use super::contrast::{Contrast, ContrastLoss};
use super::pairs::Form;
use crate::ObjectiveError;
use crate::catalogue::{ObjectiveInfo, bad_option, parse};

const NAME: &str = "simpo";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "simple preference optimisation: mean log-probabilities and a margin, without a reference",
    source: "Meng et al. 2024, arXiv:2405.14734, equation 6",
    equation: "-log sigmoid(beta * (mean log p(chosen) - mean log p(rejected)) - simpo_gamma)",
    options: &[
        OptionInfo {
            name: "beta",
            kind: "number above 0",
            default: "2.0",
            doc: "factor of the mean log-probabilities",
        },
        OptionInfo {
            name: "simpo_gamma",
            kind: "number",
            default: "1.0",
            doc: "the margin to win by; about beta / 2",
        },
        OptionInfo {
            name: "label_smoothing",
            kind: "number in [0, 0.5)",
            default: "0.0",
            doc: "how often labels are wrong",
        },
    ],
    build: |options| Ok(Box::new(contrast(parse(NAME, options)?)?)),
};

/// Options of SimPO.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimpoConfig {
    /// β.
    pub beta: f64,
    /// γ.
    pub simpo_gamma: f64,
    /// ε.
    pub label_smoothing: f64,
}

impl Default for SimpoConfig {
    fn default() -> SimpoConfig {
        SimpoConfig { beta: 2.0, simpo_gamma: 1.0, label_smoothing: 0.0 }
    }
}

/// Simple preference optimisation, with these options checked.
fn contrast(config: SimpoConfig) -> Result<Contrast, ObjectiveError> {
    let SimpoConfig { beta, simpo_gamma, label_smoothing } = config;
    super::check_beta(beta)
        .and_then(|()| super::check_smoothing(label_smoothing, true))
        .and_then(|()| super::check_finite("simpo_gamma", simpo_gamma))
        .map_err(|problem| bad_option(NAME, problem))?;
    Ok(Contrast {
        form: Form::plain(NAME),
        loss: ContrastLoss::Sigmoid,
        beta,
        gamma: simpo_gamma,
        smoothing: label_smoothing,
        is_per_token: true,
        alpha: 0.0,
        nll: None,
    })
}
