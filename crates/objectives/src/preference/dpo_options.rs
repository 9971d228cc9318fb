//! The options of direct preference optimisation.

use pt_core::catalogue::OptionInfo;
use serde::de::{Error, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::dpo_losses::{Divergence, DpoLoss, LengthNormalization};

/// For the catalogue.
pub(crate) const OPTIONS: &[OptionInfo] = &[
    OptionInfo {
        name: "loss_type",
        kind: "a loss or a list of losses: sigmoid, cdpo, hinge, ipo, exo_pair, nca_pair, robust, bco_pair, sppo_hard, aot, aot_unpaired, apo_zero, apo_down, discopop, sft, sigmoid_norm",
        default: "'sigmoid'",
        doc: "the loss; of a list, the weighted sum",
    },
    OptionInfo {
        name: "loss_weights",
        kind: "list of numbers",
        default: "[]",
        doc: "one weight for each loss; empty: 1 for each",
    },
    OptionInfo {
        name: "beta",
        kind: "number above 0",
        default: "0.1",
        doc: "how strongly the policy is held to its reference",
    },
    OptionInfo {
        name: "label_smoothing",
        kind: "number in [0, 0.5)",
        default: "0.0",
        doc: "how often labels are wrong; read by cdpo, robust, exo_pair (above 0), aot and aot_unpaired",
    },
    OptionInfo {
        name: "f_divergence_type",
        kind: "reverse_kl, forward_kl, js_divergence or alpha_divergence",
        default: "'reverse_kl'",
        doc: "the divergence from the reference; not of nca_pair, bco_pair, sppo_hard, aot and apo losses",
    },
    OptionInfo {
        name: "f_alpha_divergence_coef",
        kind: "number",
        default: "0.5",
        doc: "alpha of alpha_divergence; 1 is reverse_kl",
    },
    OptionInfo {
        name: "length_normalization",
        kind: "loss, always or never",
        default: "'loss'",
        doc: "log ratios per token: in ipo and sigmoid_norm, in all losses, or in none (online IPO)",
    },
    OptionInfo {
        name: "ld_alpha",
        kind: "number in [0, 1]",
        default: "1.0",
        doc: "factor of tokens past the length of the shorter reply (length desensitisation)",
    },
    OptionInfo {
        name: "use_weighting",
        kind: "bool",
        default: "false",
        doc: "weight pairs by how likely the policy is to write them (WPO)",
    },
    OptionInfo {
        name: "discopop_tau",
        kind: "number above 0",
        default: "0.05",
        doc: "temperature of discopop's blend",
    },
];

/// Options of [`super::dpo::Dpo`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpoConfig {
    /// The losses; a name or a list in a recipe.
    #[serde(deserialize_with = "one_or_more")]
    pub loss_type: Vec<DpoLoss>,
    /// Their weights; empty for 1 each.
    pub loss_weights: Vec<f64>,
    /// β.
    pub beta: f64,
    /// ε.
    pub label_smoothing: f64,
    /// The divergence.
    pub f_divergence_type: Divergence,
    /// α of the alpha divergence.
    pub f_alpha_divergence_coef: f64,
    /// Which losses are per token.
    pub length_normalization: LengthNormalization,
    /// Factor of tokens past the length of the shorter reply.
    pub ld_alpha: f64,
    /// WPO.
    pub use_weighting: bool,
    /// τ of DiscoPOP.
    pub discopop_tau: f64,
}

impl Default for DpoConfig {
    fn default() -> DpoConfig {
        DpoConfig {
            loss_type: vec![DpoLoss::Sigmoid],
            loss_weights: Vec::new(),
            beta: 0.1,
            label_smoothing: 0.0,
            f_divergence_type: Divergence::ReverseKl,
            f_alpha_divergence_coef: 0.5,
            length_normalization: LengthNormalization::Loss,
            ld_alpha: 1.0,
            use_weighting: false,
            discopop_tau: 0.05,
        }
    }
}

/// A name, or a list of names.
fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<DpoLoss>, D::Error> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Vec<DpoLoss>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("the name of a loss or a list of names")
        }

        fn visit_str<E: Error>(self, name: &str) -> Result<Vec<DpoLoss>, E> {
            DpoLoss::deserialize(name.into_deserializer()).map(|loss| vec![loss])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Vec<DpoLoss>, A::Error> {
            let mut losses = Vec::new();
            while let Some(loss) = names.next_element()? {
                losses.push(loss);
            }
            Ok(losses)
        }
    }
    deserializer.deserialize_any(Names)
}

impl DpoConfig {
    /// What is wrong with the options.
    pub(crate) fn check(&self) -> Result<(), String> {
        let DpoConfig { loss_type, loss_weights, beta, label_smoothing, ld_alpha, discopop_tau, .. } = self;
        if loss_type.is_empty() {
            return Err("loss_type is an empty list, expected at least one loss".to_owned());
        }
        if !loss_weights.is_empty() && loss_weights.len() != loss_type.len() {
            let (found, expected) = (loss_weights.len(), loss_type.len());
            return Err(format!(
                "loss_weights has {found} numbers, expected one for each of {expected} losses"
            ));
        }
        if let Some(weight) = loss_weights.iter().find(|weight| !weight.is_finite()) {
            return Err(format!("loss_weights has {weight}, expected finite numbers"));
        }
        super::check_beta(*beta)?;
        super::check_smoothing(*label_smoothing, loss_type.iter().any(|loss| loss.reads_smoothing()))?;
        if *label_smoothing == 0.0 && loss_type.contains(&DpoLoss::ExoPair) {
            return Err("label_smoothing is 0, but exo_pair needs it above 0, such as 1e-3".to_owned());
        }
        if !(0.0..=1.0).contains(ld_alpha) {
            return Err(format!("ld_alpha is {ld_alpha}, expected at least 0 and at most 1"));
        }
        if !(*discopop_tau > 0.0 && discopop_tau.is_finite()) {
            return Err(format!("discopop_tau is {discopop_tau}, expected a number above 0"));
        }
        if !self.f_alpha_divergence_coef.is_finite() {
            return Err(format!(
                "f_alpha_divergence_coef is {}, expected a number",
                self.f_alpha_divergence_coef
            ));
        }
        let alone = loss_type.iter().find(|loss| !loss.takes_divergence());
        match alone {
            Some(loss) if self.f_divergence_type != Divergence::ReverseKl => Err(format!(
                "f_divergence_type is {:?}, but the loss {loss:?} is defined for reverse_kl only",
                self.f_divergence_type
            )),
            _ => Ok(()),
        }
    }
}
