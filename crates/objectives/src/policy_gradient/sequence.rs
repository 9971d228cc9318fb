//! A completion's trained tokens in `f64`, and what they have in common.

use super::{LOG_RATIO_LIMIT, PolicyGradientConfig, RatioLevel, SamplerCorrection};
use crate::{Completion, TokenBatch};

/// ln 1e-8, the least log weight of VESPO.
const VESPO_FLOOR: f64 = -18.420_680_743_952_367;

/// A trained token.
#[derive(Clone, Debug)]
pub(super) struct Token {
    /// Its place in the batch.
    pub at: usize,
    pub weight: f64,
    pub logp: f64,
    /// log π − log π_old.
    pub log_ratio: f64,
    pub advantage: f64,
    pub entropy: f64,
    pub reference: Option<f64>,
    /// log π_old − log π_sampler.
    pub mismatch: Option<f64>,
    /// Whether its entropy is at or above the threshold.
    pub is_uncertain: bool,
}

/// A ratio of probabilities.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ratio {
    pub value: f64,
    /// Whether its logarithm was beyond the limit, so that it has no gradient.
    pub is_held: bool,
}

impl Ratio {
    fn of(log: f64) -> Ratio {
        Ratio {
            value: log.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp(),
            is_held: log.abs() > LOG_RATIO_LIMIT,
        }
    }
}

/// A completion's trained tokens.
#[derive(Clone, Debug)]
pub(super) struct Sequence {
    pub tokens: Vec<Token>,
    /// Its own weight.
    pub weight: f64,
    /// The weight of its tokens.
    pub n_tokens: f64,
    /// Mean over tokens of log π_sampler (or old) − log π; `None` without either.
    pub off_policy_kl: Option<f64>,
}

impl Sequence {
    pub(super) fn new(batch: &TokenBatch<'_>, completion: &Completion, threshold: Option<f64>) -> Sequence {
        let wide = |array: Option<&[f32]>, t: usize| array.map(|values| f64::from(values[t]));
        let trained = completion.tokens.clone().filter(|&t| batch.weights[t] > 0.0);
        let mut seen_policy = Vec::new();
        let tokens: Vec<Token> = trained
            .map(|at| {
                let logp = f64::from(batch.logp[at]);
                let old = wide(batch.old_logp, at).unwrap_or(logp);
                let sampler = wide(batch.sampler_logp, at);
                seen_policy.push(sampler.unwrap_or(old) - logp);
                let entropy = wide(batch.entropy, at).unwrap_or(0.0);
                Token {
                    at,
                    weight: f64::from(batch.weights[at]),
                    logp,
                    log_ratio: logp - old,
                    advantage: wide(batch.advantages, at).unwrap_or(0.0),
                    entropy,
                    reference: wide(batch.reference_logp, at),
                    mismatch: sampler.map(|sampler| old - sampler),
                    is_uncertain: threshold.is_none_or(|threshold| entropy >= threshold),
                }
            })
            .collect();
        let n_tokens: f64 = tokens.iter().map(|token| token.weight).sum();
        let kl: f64 = tokens.iter().zip(&seen_policy).map(|(token, d)| token.weight * d).sum();
        let is_known = batch.old_logp.is_some() || batch.sampler_logp.is_some();
        let off_policy_kl = (is_known && n_tokens > 0.0).then(|| kl / n_tokens);
        Sequence { tokens, weight: f64::from(completion.weight), n_tokens, off_policy_kl }
    }

    /// ρ of every token.
    pub(super) fn ratios(&self, level: RatioLevel) -> Vec<Ratio> {
        let logs = || self.tokens.iter().map(|token| token.log_ratio);
        let same = |log: f64| vec![Ratio::of(log); self.tokens.len()];
        match level {
            RatioLevel::Token => logs().map(Ratio::of).collect(),
            RatioLevel::SequenceSum => same(logs().sum()),
            RatioLevel::Sequence | RatioLevel::SequenceToken => {
                let sum: f64 = self.tokens.iter().map(|token| token.weight * token.log_ratio).sum();
                same(sum / self.n_tokens)
            }
        }
    }

    /// The factor of every token's surrogate for π_old / π_sampler.
    pub(super) fn corrections(&self, config: &PolicyGradientConfig) -> Vec<f64> {
        let logs = || self.tokens.iter().map(|token| token.mismatch.unwrap_or(0.0));
        let (min, max) = (config.importance_sampling_clip_min, config.importance_sampling_clip_max);
        let ratio = |log: f64| log.min(f64::from(f32::MAX).ln()).exp();
        let held = |ratio: f64| ratio.clamp(min, max);
        let kept = |ratio: f64| {
            if (min..=max).contains(&ratio) { ratio } else { 0.0 }
        };
        let same = |value: f64| vec![value; self.tokens.len()];
        match config.importance_sampling_correction {
            SamplerCorrection::Off => same(1.0),
            SamplerCorrection::TokenTruncate => logs().map(|log| held(ratio(log))).collect(),
            SamplerCorrection::TokenMask => logs().map(|log| kept(ratio(log))).collect(),
            SamplerCorrection::SequenceTruncate => same(held(ratio(logs().sum()))),
            SamplerCorrection::SequenceMask => same(kept(ratio(logs().sum()))),
        }
    }

    /// Logarithm of VESPO's sequence weight: Σ log ratio, and the correction's logarithm.
    pub(super) fn vespo_log_weight(&self, corrections: &[f64], config: &PolicyGradientConfig) -> f64 {
        let floored = |ratio: &f64| ratio.ln().clamp(VESPO_FLOOR, LOG_RATIO_LIMIT);
        let own: f64 = self.tokens.iter().map(|t| t.log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)).sum();
        let correction: f64 = match config.importance_sampling_correction {
            SamplerCorrection::Off => 0.0,
            SamplerCorrection::TokenTruncate | SamplerCorrection::TokenMask => {
                corrections.iter().map(floored).sum()
            }
            _ => corrections.first().map_or(0.0, floored),
        };
        (own + correction).clamp(VESPO_FLOOR, LOG_RATIO_LIMIT)
    }
}
