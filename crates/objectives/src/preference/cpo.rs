//! Contrastive preference optimisation: a preference loss without a reference, and the likelihood of the chosen reply.
//!
//! ```text
//! Δ = log π(y_w|x) − log π(y_l|x)
//! loss = mean over pairs of −log σ(βΔ) + cpo_alpha · mean over chosen tokens of −log p
//! ```
//!
//! Source: Xu et al. 2024, "Contrastive preference optimization" (arXiv:2401.08417), equation 5; `hinge` is SLiC's loss
//! (arXiv:2305.10425), `ipo` that of IPO (arXiv:2310.12036) on mean log-probabilities. As TRL's `CPOTrainer`, whose likelihood is
//! the mean over each micro-batch's tokens where ours is over the step's. SimPO and AlphaPO have entries of their own.

use pt_core::catalogue::OptionInfo;
use serde::{Deserialize, Serialize};

use super::contrast::Contrast;
pub use super::contrast::ContrastLoss;
use super::pairs::Form;
use crate::catalogue::{ObjectiveInfo, bad_option, parse};
use crate::{CompletionKind, ObjectiveError};

const NAME: &str = "cpo";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "contrastive preference optimisation: pairs without a reference, and likelihood of the chosen",
    source: "Xu et al. 2024, arXiv:2401.08417, equation 5",
    equation: "-log sigmoid(beta * (log p(chosen) - log p(rejected))) + cpo_alpha * -log p(chosen) per token",
    options: &[
        OptionInfo {
            name: "loss_type",
            kind: "sigmoid, hinge or ipo",
            default: "'sigmoid'",
            doc: "the preference loss",
        },
        OptionInfo {
            name: "beta",
            kind: "number above 0",
            default: "0.1",
            doc: "factor of the log-probabilities",
        },
        OptionInfo {
            name: "cpo_alpha",
            kind: "number of at least 0",
            default: "1.0",
            doc: "weight of the chosen reply's negative log-likelihood",
        },
        OptionInfo {
            name: "label_smoothing",
            kind: "number in [0, 0.5)",
            default: "0.0",
            doc: "how often labels are wrong; read by sigmoid",
        },
    ],
    build: |options| Ok(Box::new(contrast(parse(NAME, options)?)?)),
};

/// Options of CPO.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CpoConfig {
    /// The preference loss.
    pub loss_type: ContrastLoss,
    /// β.
    pub beta: f64,
    /// Weight of the likelihood term.
    pub cpo_alpha: f64,
    /// ε.
    pub label_smoothing: f64,
}

impl Default for CpoConfig {
    fn default() -> CpoConfig {
        CpoConfig { loss_type: ContrastLoss::Sigmoid, beta: 0.1, cpo_alpha: 1.0, label_smoothing: 0.0 }
    }
}

/// Contrastive preference optimisation, with these options checked.
fn contrast(config: CpoConfig) -> Result<Contrast, ObjectiveError> {
    let CpoConfig { loss_type, beta, cpo_alpha, label_smoothing } = config;
    super::check_beta(beta)
        .and_then(|()| super::check_smoothing(label_smoothing, loss_type == ContrastLoss::Sigmoid))
        .and_then(|()| super::check_not_negative("cpo_alpha", cpo_alpha))
        .map_err(|problem| bad_option(NAME, problem))?;
    Ok(Contrast {
        form: Form::plain(NAME),
        loss: loss_type,
        beta,
        gamma: 0.0,
        smoothing: label_smoothing,
        is_per_token: loss_type == ContrastLoss::Ipo,
        alpha: 0.0,
        nll: (cpo_alpha != 0.0).then_some((cpo_alpha, CompletionKind::Chosen)),
    })
}
