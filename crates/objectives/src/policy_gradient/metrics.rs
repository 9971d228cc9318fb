//! Metrics, by TRL's names.

use super::sequence::Sequence;
use super::{PolicyGradient, RatioLevel, SamplerCorrection, Surrogate};
use crate::{Metric, TokenBatch};

pub(super) const ENTROPY: &str = "entropy";
/// Mean over the tokens that `top_entropy_quantile` leaves.
pub(super) const TOP_ENTROPY: &str = "top_entropy";

/// Sums over a completion's tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parts {
    pub kl: f64,
    /// Below, above.
    clipped: [f64; 2],
    phi: f64,
}

impl Parts {
    pub(super) fn add(&mut self, clipped: [bool; 2], weight: f64, phi: f64) {
        for (sum, is_clipped) in self.clipped.iter_mut().zip(clipped) {
            *sum += if is_clipped { weight } else { 0.0 };
        }
        self.phi += weight * phi;
    }
}

/// Sums over a micro-batch.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// Not yet divided by the step's total weight.
    pub policy_loss: f64,
    own_weight: f64,
    n_tokens: f64,
    kl: Option<f64>,
    entropy: Option<f64>,
    top_entropy: [f64; 2],
    /// Per completion: its fractions clipped below and above, φ, and the weight of these.
    per_sequence: Vec<([f64; 2], f64, f64)>,
    /// |log π_old − log π_sampler| of every token, with its weight.
    differences: Vec<(f64, f64)>,
    /// π_old / π_sampler as applied, with its weight.
    corrections: Vec<(f64, f64)>,
}

impl Tally {
    pub(super) fn new(batch: &TokenBatch<'_>, own_weight: f64) -> Tally {
        Tally {
            policy_loss: 0.0,
            own_weight,
            n_tokens: 0.0,
            kl: batch.reference_logp.map(|_| 0.0),
            entropy: batch.entropy.map(|_| 0.0),
            top_entropy: [0.0; 2],
            per_sequence: Vec::new(),
            differences: Vec::new(),
            corrections: Vec::new(),
        }
    }

    pub(super) fn add(
        &mut self,
        sequence: &Sequence,
        parts: &Parts,
        corrections: &[f64],
        objective: &PolicyGradient,
    ) {
        let n = sequence.n_tokens;
        self.n_tokens += n;
        self.kl = self.kl.map(|kl| kl + parts.kl);
        for token in &sequence.tokens {
            self.entropy = self.entropy.map(|sum| sum + token.weight * token.entropy);
            if token.is_uncertain {
                self.top_entropy[0] += token.weight * token.entropy;
                self.top_entropy[1] += token.weight;
            }
            self.differences.extend(token.mismatch.map(|d| (d.abs(), token.weight)));
        }
        let weight = if objective.level() == RatioLevel::Token { n } else { 1.0 };
        self.per_sequence.push((parts.clipped.map(|sum| sum / n), parts.phi / n, weight));
        match objective.config.importance_sampling_correction {
            SamplerCorrection::Off => {}
            SamplerCorrection::TokenTruncate | SamplerCorrection::TokenMask => {
                let weights = sequence.tokens.iter().map(|token| token.weight);
                self.corrections.extend(corrections.iter().copied().zip(weights));
            }
            _ => self.corrections.push((corrections[0], 1.0)),
        }
    }

    /// Mean over tokens or sequences of what `pick` takes of each completion.
    fn mean(&self, name: &'static str, pick: impl Fn([f64; 2]) -> f64) -> Metric {
        let sum = self.per_sequence.iter().map(|&(clipped, _, weight)| weight * pick(clipped)).sum();
        Metric::mean(name, sum, self.per_sequence.iter().map(|&(.., weight)| weight).sum())
    }

    fn clip_metrics(&self) -> [Metric; 5] {
        let side = |i: usize| self.per_sequence.iter().map(move |(clipped, ..)| clipped[i]);
        [
            self.mean("clip_ratio/low_mean", |[low, _]| low),
            Metric::min("clip_ratio/low_min", side(0)),
            self.mean("clip_ratio/high_mean", |[_, high]| high),
            Metric::max("clip_ratio/high_max", side(1)),
            self.mean("clip_ratio/region_mean", |[low, high]| low + high),
        ]
    }

    fn sampler_metrics(&self) -> Vec<Metric> {
        let weighted = |name, pairs: &[(f64, f64)]| {
            let sum = pairs.iter().map(|(value, weight)| value * weight).sum();
            Metric::mean(name, sum, pairs.iter().map(|(_, weight)| weight).sum())
        };
        let values = |pairs: &'_ [(f64, f64)]| pairs.iter().map(|&(value, _)| value).collect::<Vec<f64>>();
        let (differences, ratios) = (values(&self.differences), values(&self.corrections));
        let mut metrics = Vec::new();
        if !differences.is_empty() {
            metrics.push(weighted("sampling/sampling_logp_difference/mean", &self.differences));
            metrics.push(Metric::max("sampling/sampling_logp_difference/max", differences.into_iter()));
        }
        if !ratios.is_empty() {
            metrics.push(Metric::min("sampling/importance_sampling_ratio/min", ratios.iter().copied()));
            metrics.push(weighted("sampling/importance_sampling_ratio/mean", &self.corrections));
            metrics.push(Metric::max("sampling/importance_sampling_ratio/max", ratios.into_iter()));
        }
        metrics
    }
}

impl PolicyGradient {
    pub(super) fn metrics(&self, tally: &Tally, batch: &TokenBatch<'_>) -> Vec<Metric> {
        let token_mean =
            |name: &'static str, sum: Option<f64>| sum.map(|sum| Metric::mean(name, sum, tally.n_tokens));
        let mut metrics = vec![Metric::mean("policy_loss", tally.policy_loss, tally.own_weight)];
        metrics.extend(token_mean("kl", tally.kl));
        metrics.extend(token_mean(ENTROPY, tally.entropy));
        if self.has_bonus() {
            metrics.push(Metric::mean(
                "entropy_coef",
                self.applied_coef() * tally.own_weight,
                tally.own_weight,
            ));
        }
        if self.masks_entropy() && batch.entropy.is_some() {
            metrics.push(Metric::mean(TOP_ENTROPY, tally.top_entropy[0], tally.top_entropy[1]));
        }
        match self.form.surrogate {
            Surrogate::Clip => metrics.extend(tally.clip_metrics()),
            Surrogate::Cispo => metrics.push(tally.mean("cispo_clip_ratio", |[_, high]| high)),
            Surrogate::Sapo => {}
            Surrogate::Vespo => {
                let sum = tally.per_sequence.iter().map(|(_, phi, _)| phi).sum();
                metrics.push(Metric::mean("vespo/phi_seq_mean", sum, tally.per_sequence.len() as f64));
            }
        }
        metrics.extend(tally.sampler_metrics());
        metrics
    }
}
