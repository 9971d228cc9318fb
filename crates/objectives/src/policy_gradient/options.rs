//! Options of the policy-gradient objectives: each written once, taken up by the entries that have it.

use pt_core::catalogue::OptionInfo;
use serde::Deserialize;

use super::{Form, KlEstimator, PolicyGradient, RatioLevel, SamplerCorrection};
use crate::ObjectiveError;
use crate::catalogue::{bad_option, parse};

/// All options; an entry of the catalogue lists which of them it reads, and their defaults there.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyGradientConfig {
    /// How far a ratio may fall below 1.
    pub epsilon: f64,
    /// How far it may rise above 1; `epsilon` if not given.
    pub epsilon_high: Option<f64>,
    /// Where a ratio is held even where its advantage is negative (two-sided clipping).
    pub delta: Option<f64>,
    /// What ratios are taken over.
    pub importance_sampling_level: RatioLevel,
    /// Coefficient of the divergence from the reference policy, in the loss.
    pub beta: f64,
    /// How that is estimated.
    pub kl_estimator: KlEstimator,
    /// Whether the estimate is multiplied by the ratio (DeepSeek-V3.2).
    pub use_bias_correction_kl: bool,
    /// Coefficient of the entropy bonus; the first one if it is adaptive.
    pub entropy_coef: f64,
    /// Whether the coefficient follows the entropy.
    pub use_adaptive_entropy: bool,
    /// The least coefficient.
    pub entropy_coef_min: f64,
    /// The greatest coefficient.
    pub entropy_coef_max: f64,
    /// By how much it moves after a step.
    pub entropy_coef_delta: f64,
    /// The entropy at and below which it rises and applies.
    pub entropy_target: f64,
    /// The share of the step's tokens, those of highest entropy, whose surrogate trains.
    pub top_entropy_quantile: f64,
    /// The correction for a sampler whose probabilities are not the trainer's.
    pub importance_sampling_correction: SamplerCorrection,
    /// Greatest correcting ratio.
    pub importance_sampling_clip_max: f64,
    /// Least correcting ratio.
    pub importance_sampling_clip_min: f64,
    /// Sequences of negative advantage train only up to this mean divergence from what sampled them.
    pub off_policy_mask_threshold: Option<f64>,
    /// The length every completion is divided by (`dr_grpo`).
    pub max_completion_length: u32,
    /// τ of tokens with positive advantage (`sapo`).
    pub sapo_temperature_pos: f64,
    /// τ of the others (`sapo`).
    pub sapo_temperature_neg: f64,
    /// k of advantages of at least 0 (`vespo`).
    pub vespo_k_pos: f64,
    /// λ of advantages of at least 0 (`vespo`).
    pub vespo_lambda_pos: f64,
    /// k of negative advantages (`vespo`).
    pub vespo_k_neg: f64,
    /// λ of negative advantages (`vespo`).
    pub vespo_lambda_neg: f64,
    /// Coefficient of the value loss (`ppo`).
    pub vf_coef: f64,
    /// How far a value may move before its loss is clipped (`ppo`).
    pub cliprange_value: f64,
    /// Coefficient of the cross-entropy of text beside the samples (`ppo`).
    pub ptx_coef: f64,
}

impl Default for PolicyGradientConfig {
    fn default() -> PolicyGradientConfig {
        PolicyGradientConfig {
            epsilon: 0.2,
            epsilon_high: None,
            delta: None,
            importance_sampling_level: RatioLevel::Token,
            beta: 0.0,
            kl_estimator: KlEstimator::K3,
            use_bias_correction_kl: false,
            entropy_coef: 0.0,
            use_adaptive_entropy: false,
            entropy_coef_min: 0.0,
            entropy_coef_max: 1.0,
            entropy_coef_delta: 0.005,
            entropy_target: 0.2,
            top_entropy_quantile: 1.0,
            importance_sampling_correction: SamplerCorrection::Off,
            importance_sampling_clip_max: 3.0,
            importance_sampling_clip_min: 0.0,
            off_policy_mask_threshold: None,
            max_completion_length: 512,
            sapo_temperature_pos: 1.0,
            sapo_temperature_neg: 1.05,
            vespo_k_pos: 2.0,
            vespo_lambda_pos: 3.0,
            vespo_k_neg: 3.0,
            vespo_lambda_neg: 2.0,
            vf_coef: 0.1,
            cliprange_value: 0.2,
            ptx_coef: 1.0,
        }
    }
}

impl PolicyGradientConfig {
    /// `epsilon_high`, or `epsilon`.
    pub fn epsilon_high(&self) -> f64 {
        self.epsilon_high.unwrap_or(self.epsilon)
    }

    /// Refuses values out of range.
    pub(super) fn check(&self, name: &'static str) -> Result<(), ObjectiveError> {
        let least = [
            ("epsilon", self.epsilon, 0.0),
            ("epsilon_high", self.epsilon_high(), 0.0),
            ("beta", self.beta, 0.0),
            ("entropy_coef", self.entropy_coef, f64::NEG_INFINITY),
            ("entropy_coef_max", self.entropy_coef_max, self.entropy_coef_min),
            ("entropy_coef_delta", self.entropy_coef_delta, 0.0),
            ("entropy_target", self.entropy_target, 0.0),
            ("importance_sampling_clip_min", self.importance_sampling_clip_min, 0.0),
            (
                "importance_sampling_clip_max",
                self.importance_sampling_clip_max,
                self.importance_sampling_clip_min,
            ),
            ("off_policy_mask_threshold", self.off_policy_mask_threshold.unwrap_or(0.0), 0.0),
            ("max_completion_length", f64::from(self.max_completion_length), 1.0),
            ("vf_coef", self.vf_coef, 0.0),
            ("cliprange_value", self.cliprange_value, 0.0),
            ("ptx_coef", self.ptx_coef, 0.0),
        ];
        // `!(a >= b)` refuses NaN too.
        if let Some((option, value, least)) =
            least.into_iter().find(|(_, value, least)| !(value >= least && value.is_finite()))
        {
            return Err(bad_option(
                name,
                format!("{option} is {value}, expected a number of at least {least}"),
            ));
        }
        let above = [
            ("delta", self.delta.unwrap_or(f64::INFINITY), 1.0 + self.epsilon_high()),
            ("top_entropy_quantile", self.top_entropy_quantile, 0.0),
            ("sapo_temperature_pos", self.sapo_temperature_pos, 0.0),
            ("sapo_temperature_neg", self.sapo_temperature_neg, 0.0),
        ];
        if let Some((option, value, bound)) =
            above.into_iter().find(|(_, value, bound)| value.is_nan() || value <= bound)
        {
            return Err(bad_option(name, format!("{option} is {value}, expected a number above {bound}")));
        }
        if self.top_entropy_quantile > 1.0 {
            let problem =
                format!("top_entropy_quantile is {}, expected at most 1", self.top_entropy_quantile);
            return Err(bad_option(name, problem));
        }
        Ok(())
    }
}

/// Builds an objective of `form` from the defaults of its entry's `listed` options and what was `given`.
pub(crate) fn build(
    form: Form,
    listed: &[OptionInfo],
    given: &toml::Table,
) -> Result<PolicyGradient, ObjectiveError> {
    let mut options: toml::Table = listed
        .iter()
        .filter(|option| !option.default.is_empty())
        .map(|option| format!("{} = {}\n", option.name, option.default))
        .collect::<String>()
        .parse()
        .expect("listed defaults are TOML");
    options.extend(given.clone());
    PolicyGradient::new(form, parse(form.name, &options)?)
}

/// Several lists of options as one; `N` is their length together.
pub(crate) const fn join<const N: usize>(parts: &[&[OptionInfo]]) -> [OptionInfo; N] {
    let mut all = [EPSILON; N];
    let (mut part, mut n) = (0, 0);
    while part < parts.len() {
        let mut i = 0;
        while i < parts[part].len() {
            all[n] = parts[part][i];
            (n, i) = (n + 1, i + 1);
        }
        part += 1;
    }
    assert!(n == N, "the length of all options together");
    all
}

/// The option with another default.
pub(crate) const fn with_default(option: OptionInfo, default: &'static str) -> OptionInfo {
    OptionInfo { default, ..option }
}

const fn option(
    name: &'static str,
    kind: &'static str,
    default: &'static str,
    doc: &'static str,
) -> OptionInfo {
    OptionInfo { name, kind, default, doc }
}

const NUMBER: &str = "number of at least 0";

pub(crate) const EPSILON: OptionInfo =
    option("epsilon", NUMBER, "0.2", "e: how far a ratio may fall below 1 before a token stops training");
pub(crate) const EPSILON_HIGH: OptionInfo =
    option("epsilon_high", NUMBER, "", "e_high: how far it may rise above 1; `epsilon` if not given");
pub(crate) const DELTA: OptionInfo = option(
    "delta",
    "number above 1 + epsilon_high",
    "",
    "where a ratio is held even where its advantage is negative (two-sided clipping); off if not given",
);
pub(crate) const LEVEL: OptionInfo = option(
    "importance_sampling_level",
    "\"token\", \"sequence\" or \"sequence_token\"",
    "\"token\"",
    "what a ratio is taken over: a token, the geometric mean over a sequence, or that with each token's own gradient",
);
pub(crate) const MAX_COMPLETION_LENGTH: OptionInfo = option(
    "max_completion_length",
    "integer of at least 1",
    "512",
    "the length every completion is divided by: the greatest number of tokens that may be sampled",
);
pub(crate) const SAPO: [OptionInfo; 2] = [
    option("sapo_temperature_pos", "number above 0", "1.0", "t of tokens with positive advantage"),
    option("sapo_temperature_neg", "number above 0", "1.05", "t of the others"),
];
pub(crate) const VESPO: [OptionInfo; 4] = [
    option("vespo_k_pos", "number", "2.0", "k where the advantage is at least 0"),
    option("vespo_lambda_pos", "number", "3.0", "lambda where the advantage is at least 0"),
    option("vespo_k_neg", "number", "3.0", "k where the advantage is negative"),
    option("vespo_lambda_neg", "number", "2.0", "lambda where the advantage is negative"),
];
pub(crate) const VALUE: [OptionInfo; 2] = [
    option("vf_coef", NUMBER, "0.1", "coefficient of the value loss; 0 trains no value head"),
    option(
        "cliprange_value",
        NUMBER,
        "0.2",
        "how far a value may move from its old one before its loss is clipped",
    ),
];

pub(crate) const PTX_COEF: OptionInfo = option(
    "ptx_coef",
    NUMBER,
    "1.0",
    "coefficient of the cross-entropy of plain text beside the samples (PPO-ptx), a mean over its tokens",
);

/// What every entry has.
pub(crate) const COMMON: [OptionInfo; 14] = [
    option(
        "beta",
        NUMBER,
        "0.0",
        "coefficient of the divergence from the reference policy; 0 needs no reference",
    ),
    option(
        "kl_estimator",
        "\"k1\", \"k2\" or \"k3\"",
        "\"k3\"",
        "with r = log p_ref - log p: -r, r^2 / 2 or exp(r) - r - 1; k1 in a loss has an expected gradient of zero",
    ),
    option("use_bias_correction_kl", "bool", "false", "whether the divergence is multiplied by the ratio"),
    option("entropy_coef", "number", "0.0", "coefficient of the entropy bonus"),
    option("use_adaptive_entropy", "bool", "false", "whether the coefficient follows the entropy"),
    option("entropy_coef_min", "number", "0.0", "the least coefficient"),
    option("entropy_coef_max", "number", "1.0", "the greatest coefficient"),
    option("entropy_coef_delta", NUMBER, "0.005", "by how much the coefficient moves after a step"),
    option(
        "entropy_target",
        NUMBER,
        "0.2",
        "the entropy, in nats, at and below which the coefficient rises and applies",
    ),
    option(
        "top_entropy_quantile",
        "number in (0, 1]",
        "1.0",
        "the share of the step's tokens, those of highest entropy, that trains; below 1 costs a forward pass more",
    ),
    option(
        "importance_sampling_correction",
        "\"off\", \"token_truncate\", \"token_mask\", \"sequence_truncate\" or \"sequence_mask\"",
        "\"off\"",
        "what is done about samples of another engine; our own sampler's probabilities are the trainer's, bit for bit",
    ),
    option("importance_sampling_clip_max", NUMBER, "3.0", "greatest correcting ratio"),
    option("importance_sampling_clip_min", NUMBER, "0.0", "least correcting ratio"),
    option(
        "off_policy_mask_threshold",
        NUMBER,
        "",
        "sequences of negative advantage train only up to this mean divergence from their sampler; off if not given",
    ),
];

const CLIPPED: [OptionInfo; 4] = [EPSILON, EPSILON_HIGH, DELTA, LEVEL];

/// `COMMON` and clipping: `grpo` and what differs from it in aggregation only.
pub(crate) const GRPO: [OptionInfo; CLIPPED.len() + COMMON.len()] = join(&[&CLIPPED, &COMMON]);
