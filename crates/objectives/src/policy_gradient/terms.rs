//! One token's terms: value, derivative by the ratio, derivative by log π at a fixed ratio.

use super::sequence::Token;
use super::{KlEstimator, LOG_RATIO_LIMIT, PolicyGradientConfig, Surrogate};

/// A term of a token's loss.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Term {
    pub value: f64,
    pub d_ratio: f64,
    pub d_logp: f64,
}

impl Term {
    pub(super) fn scale(&mut self, factor: f64) {
        *self = Term::default().plus(self, factor);
    }

    pub(super) fn add(&mut self, other: &Term, factor: f64) {
        *self = self.plus(other, factor);
    }

    fn plus(&self, other: &Term, factor: f64) -> Term {
        Term {
            value: self.value + factor * other.value,
            d_ratio: self.d_ratio + factor * other.d_ratio,
            d_logp: self.d_logp + factor * other.d_logp,
        }
    }
}

/// What is optimised of a token; `log_weight` is its sequence's, for VESPO.
pub(super) fn surrogate(
    surrogate: Surrogate,
    config: &PolicyGradientConfig,
    token: &Token,
    ratio: f64,
    log_weight: f64,
) -> Term {
    let by_logp = |factor: f64| Term {
        value: -factor * token.advantage * token.logp,
        d_ratio: 0.0,
        d_logp: -factor * token.advantage,
    };
    match surrogate {
        Surrogate::Clip => clip(config, token.advantage, ratio),
        Surrogate::Cispo => by_logp(ratio.min(1.0 + config.epsilon_high())),
        Surrogate::Sapo => sapo(config, token.advantage, ratio),
        Surrogate::Vespo => by_logp(phi(config, token, log_weight)),
    }
}

fn clip(config: &PolicyGradientConfig, advantage: f64, ratio: f64) -> Term {
    let (low, high) = (1.0 - config.epsilon, 1.0 + config.epsilon_high());
    let cap = config.delta.unwrap_or(f64::INFINITY);
    let (plain, clipped) = (ratio.min(cap) * advantage, ratio.clamp(low, high) * advantage);
    let moves = if plain <= clipped { ratio <= cap } else { (low..=high).contains(&ratio) };
    Term { value: -plain.min(clipped), d_ratio: if moves { -advantage } else { 0.0 }, d_logp: 0.0 }
}

fn sapo(config: &PolicyGradientConfig, advantage: f64, ratio: f64) -> Term {
    let is_positive = advantage > 0.0;
    let tau = if is_positive { config.sapo_temperature_pos } else { config.sapo_temperature_neg };
    let gate = 1.0 / (1.0 + (-tau * (ratio - 1.0)).exp());
    Term {
        value: -gate * 4.0 / tau * advantage,
        d_ratio: -4.0 * gate * (1.0 - gate) * advantage,
        d_logp: 0.0,
    }
}

/// φ(w) = w^k e^(λ − λ w), which is 1 at w = 1.
pub(super) fn phi(config: &PolicyGradientConfig, token: &Token, log_weight: f64) -> f64 {
    let (k, lambda) = match token.advantage >= 0.0 {
        true => (config.vespo_k_pos, config.vespo_lambda_pos),
        false => (config.vespo_k_neg, config.vespo_lambda_neg),
    };
    let lambda = lambda.max(1e-4);
    (lambda + k * log_weight - lambda * log_weight.exp()).exp()
}

/// The divergence from the reference; times the ratio, where that is asked for.
pub(super) fn kl(config: &PolicyGradientConfig, logp: f64, reference: f64, ratio: f64) -> Term {
    let r = reference - logp;
    let (value, d_logp) = match config.kl_estimator {
        KlEstimator::K1 => (-r, 1.0),
        KlEstimator::K2 => (r * r / 2.0, -r),
        KlEstimator::K3 => {
            let slope = r.min(LOG_RATIO_LIMIT).exp();
            (slope * (1.0 + (r - LOG_RATIO_LIMIT).max(0.0)) - r - 1.0, 1.0 - slope)
        }
    };
    match config.use_bias_correction_kl {
        true => Term { value: value * ratio, d_ratio: value, d_logp: d_logp * ratio },
        false => Term { value, d_ratio: 0.0, d_logp },
    }
}
