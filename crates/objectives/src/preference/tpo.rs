//! Triple preference optimisation: a preference loss without a reference policy, and the likelihood of a gold reply.
//!
//! ```text
//! loss = mean over pairs of −log σ(β (log π(y_w|x) − log π(y_l|x))) + tpo_alpha · mean over gold tokens of −log p
//! ```
//!
//! `tpo-l` takes mean log-probabilities and a margin `tpo_l_gamma` as SimPO does; `ipo` mean log-probabilities. A group is the
//! gold, the chosen and the rejected reply, in this order; with `tpo_alpha = 0` the gold reply must be left out. Source: Saeidi
//! et al. 2024, "Triple preference optimization" (arXiv:2405.16681). As TRL's `TPOTrainer`, whose likelihood is the mean over
//! each micro-batch's tokens where ours is over the step's.

use pt_core::catalogue::OptionInfo;
use serde::{Deserialize, Serialize};

use super::contrast::{Contrast, ContrastLoss};
use super::pairs::Form;
use crate::catalogue::{ObjectiveInfo, bad_option, parse};
use crate::{CompletionKind, ObjectiveError};

const NAME: &str = "tpo";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "triple preference optimisation: pairs without a reference, and likelihood of a gold reply",
    source: "Saeidi et al. 2024, arXiv:2405.16681",
    equation: "-log sigmoid(beta * (log p(chosen) - log p(rejected))) + tpo_alpha * -log p(gold) per token",
    options: &[
        OptionInfo {
            name: "loss_type",
            kind: "sigmoid, hinge, ipo or tpo-l",
            default: "'sigmoid'",
            doc: "the preference loss; tpo-l is per token and has a margin",
        },
        OptionInfo {
            name: "beta",
            kind: "number above 0",
            default: "0.01",
            doc: "factor of the log-probabilities",
        },
        OptionInfo {
            name: "tpo_alpha",
            kind: "number of at least 0",
            default: "1.0",
            doc: "weight of the gold reply's negative log-likelihood; 0: there is no gold reply",
        },
        OptionInfo { name: "tpo_l_gamma", kind: "number", default: "0.5", doc: "the margin of tpo-l" },
        OptionInfo {
            name: "label_smoothing",
            kind: "number in [0, 0.5)",
            default: "0.0",
            doc: "how often labels are wrong; read by sigmoid and tpo-l",
        },
    ],
    build: |options| Ok(Box::new(contrast(parse(NAME, options)?)?)),
};

/// The preference loss of TPO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TpoLoss {
    /// Logistic, of sums.
    #[default]
    Sigmoid,
    /// Hinge, of sums.
    Hinge,
    /// Squared, of means.
    Ipo,
    /// Logistic, of means, with a margin.
    #[serde(rename = "tpo-l")]
    TpoL,
}

/// Options of TPO.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TpoConfig {
    /// The preference loss.
    pub loss_type: TpoLoss,
    /// β.
    pub beta: f64,
    /// Weight of the likelihood term.
    pub tpo_alpha: f64,
    /// γ of `tpo-l`.
    pub tpo_l_gamma: f64,
    /// ε.
    pub label_smoothing: f64,
}

impl Default for TpoConfig {
    fn default() -> TpoConfig {
        TpoConfig {
            loss_type: TpoLoss::Sigmoid,
            beta: 0.01,
            tpo_alpha: 1.0,
            tpo_l_gamma: 0.5,
            label_smoothing: 0.0,
        }
    }
}

/// Triple preference optimisation, with these options checked.
fn contrast(config: TpoConfig) -> Result<Contrast, ObjectiveError> {
    let TpoConfig { loss_type, beta, tpo_alpha, tpo_l_gamma, label_smoothing } = config;
    super::check_beta(beta)
        .and_then(|()| {
            super::check_smoothing(label_smoothing, matches!(loss_type, TpoLoss::Sigmoid | TpoLoss::TpoL))
        })
        .and_then(|()| super::check_not_negative("tpo_alpha", tpo_alpha))
        .and_then(|()| super::check_finite("tpo_l_gamma", tpo_l_gamma))
        .map_err(|problem| bad_option(NAME, problem))?;
    let loss = match loss_type {
        TpoLoss::Sigmoid | TpoLoss::TpoL => ContrastLoss::Sigmoid,
        TpoLoss::Hinge => ContrastLoss::Hinge,
        TpoLoss::Ipo => ContrastLoss::Ipo,
    };
    Ok(Contrast {
        form: Form { has_gold: tpo_alpha != 0.0, ..Form::plain(NAME) },
        loss,
        beta,
        gamma: if loss_type == TpoLoss::TpoL { tpo_l_gamma } else { 0.0 },
        smoothing: label_smoothing,
        is_per_token: matches!(loss_type, TpoLoss::TpoL | TpoLoss::Ipo),
        alpha: 0.0,
        nll: (tpo_alpha != 0.0).then_some((tpo_alpha, CompletionKind::Gold)),
    })
}
