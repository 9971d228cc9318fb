//! The objectives by their definitions, in `f64`, slowly: what carries a gradient is `live`, what does not is `stopped`.

use super::{Owned, PolicyGradientConfig};
use crate::OBJECTIVES;
use crate::policy_gradient::{KlEstimator, RatioLevel, SamplerCorrection};

/// Log-probabilities, entropies, values.
#[derive(Clone)]
pub(super) struct Arrays(pub(super) [Vec<f64>; 3]);

fn wide(array: &[f32]) -> Vec<f64> {
    array.iter().map(|&v| f64::from(v)).collect()
}

impl Arrays {
    pub(super) fn of(batch: &Owned) -> Arrays {
        Arrays([wide(&batch.logp), wide(&batch.entropy), wide(&batch.values)])
    }
}

fn config(name: &str, options: &str) -> PolicyGradientConfig {
    let info = OBJECTIVES.iter().find(|info| info.name == name).unwrap();
    let mut all: toml::Table = info
        .options
        .iter()
        .filter(|o| !o.default.is_empty())
        .map(|o| format!("{} = {}\n", o.name, o.default))
        .collect::<String>()
        .parse()
        .unwrap();
    all.extend(options.parse::<toml::Table>().unwrap());
    toml::Value::Table(all).try_into().unwrap()
}

/// The entropy at and above which tokens train.
fn entropy_threshold(batch: &Owned, stopped: &Arrays, share: f64) -> f64 {
    let mut entropies: Vec<f64> =
        (0..batch.logp.len()).filter(|&t| batch.weights[t] > 0.0).map(|t| stopped.0[1][t]).collect();
    entropies.sort_by(f64::total_cmp);
    let at = (1.0 - share) * (entropies.len() - 1) as f64;
    let below = entropies[at as usize];
    let above = entropies[(at as usize + 1).min(entropies.len() - 1)];
    if share < 1.0 { below * (1.0 - at.fract()) + above * at.fract() } else { f64::NEG_INFINITY }
}

pub(super) fn reference_loss(
    &(name, options): &(&str, &str),
    batch: &Owned,
    live: &Arrays,
    stopped: &Arrays,
) -> f64 {
    let config = config(name, options);
    let [logp, entropy, values] = &live.0;
    let old = batch.old.as_ref().map_or(stopped.0[0].clone(), |old| wide(old));
    let sampler = batch.sampler.as_ref().map_or(old.clone(), |sampler| wide(sampler));
    let threshold = entropy_threshold(batch, stopped, config.top_entropy_quantile);
    let (mut numerator, mut denominator) = (0.0, 0.0);
    let (mut bonus, mut n_bonus) = (0.0, 0.0);
    for completion in &batch.completions {
        let own = f64::from(completion.weight);
        let trained: Vec<usize> = completion.tokens.clone().filter(|&t| batch.weights[t] > 0.0).collect();
        let w = |t: usize| f64::from(batch.weights[t]);
        let n: f64 = trained.iter().map(|&t| w(t)).sum();
        let mean = |of: &dyn Fn(usize) -> f64| trained.iter().map(|&t| w(t) * of(t)).sum::<f64>() / n;
        let total = |of: &dyn Fn(usize) -> f64| trained.iter().map(|&t| of(t)).sum::<f64>();
        let ratio = |logp: &[f64], t: usize| match (name, config.importance_sampling_level) {
            ("rloo", _) => total(&|s| logp[s] - old[s]).exp(),
            (_, RatioLevel::Sequence) => mean(&|s| logp[s] - old[s]).exp(),
            (_, RatioLevel::SequenceToken) => {
                (mean(&|s| stopped.0[0][s] - old[s]) + logp[t] - stopped.0[0][t]).exp()
            }
            _ => (logp[t] - old[t]).exp(),
        };
        let limits = config.importance_sampling_clip_min..=config.importance_sampling_clip_max;
        let truncated = |r: f64| r.max(*limits.start()).min(*limits.end());
        let masked = |r: f64| if limits.contains(&r) { r } else { 0.0 };
        let correction = |t: usize| {
            let (own, whole) = ((old[t] - sampler[t]).exp(), total(&|s| old[s] - sampler[s]).exp());
            match config.importance_sampling_correction {
                SamplerCorrection::Off => 1.0,
                SamplerCorrection::TokenTruncate => truncated(own),
                SamplerCorrection::TokenMask => masked(own),
                SamplerCorrection::SequenceTruncate => truncated(whole),
                SamplerCorrection::SequenceMask => masked(whole),
            }
        };
        let is_by_token = matches!(
            config.importance_sampling_correction,
            SamplerCorrection::TokenTruncate | SamplerCorrection::TokenMask
        );
        let floored = |r: f64| r.max(1e-8).ln();
        let mut log_w = total(&|s| stopped.0[0][s] - old[s]);
        log_w += match (is_by_token, trained.first()) {
            (true, _) => total(&|s| floored(correction(s))),
            (false, Some(&t)) => floored(correction(t)),
            (false, None) => 0.0,
        };
        let log_w = log_w.clamp(1e-8_f64.ln(), 20.0);
        let divergence = mean(&|s| sampler[s] - stopped.0[0][s]);
        for &t in &trained {
            let advantage = f64::from(batch.advantages[t]);
            let r = ratio(logp, t);
            let low = 1.0 - config.epsilon;
            let high = 1.0 + config.epsilon_high.unwrap_or(config.epsilon);
            let mut loss = match name {
                "cispo" => -ratio(&stopped.0[0], t).min(high) * advantage * logp[t],
                "sapo" => {
                    let is_positive = advantage > 0.0;
                    let tau =
                        if is_positive { config.sapo_temperature_pos } else { config.sapo_temperature_neg };
                    -4.0 / tau / (1.0 + (-tau * (r - 1.0)).exp()) * advantage
                }
                "vespo" => {
                    let (k, lambda) = match advantage < 0.0 {
                        true => (config.vespo_k_neg, config.vespo_lambda_neg),
                        false => (config.vespo_k_pos, config.vespo_lambda_pos),
                    };
                    -log_w.exp().powf(k) * (lambda * (1.0 - log_w.exp())).exp() * advantage * logp[t]
                }
                _ => {
                    let capped = config.delta.map_or(r, |delta| r.min(delta));
                    -(capped * advantage).min(r.max(low).min(high) * advantage)
                }
            };
            if config.off_policy_mask_threshold.is_some_and(|limit| divergence > limit && advantage < 0.0) {
                loss = 0.0;
            }
            if stopped.0[1][t] < threshold {
                loss = 0.0;
            }
            if name != "vespo" {
                loss *= correction(t);
            }
            let gap = f64::from(batch.reference[t]) - logp[t];
            let kl = match config.kl_estimator {
                KlEstimator::K1 => -gap,
                KlEstimator::K2 => gap.powi(2) / 2.0,
                KlEstimator::K3 => gap.exp() - gap - 1.0,
            };
            loss += config.beta * kl * if config.use_bias_correction_kl { r } else { 1.0 };
            numerator += match name {
                "grpo" | "gspo" | "sapo" | "rloo" => own * w(t) * loss / n,
                _ => own * w(t) * loss,
            };
            if stopped.0[1][t] >= threshold {
                bonus += own * w(t) * entropy[t];
                n_bonus += own * w(t);
            }
        }
        denominator += match name {
            "grpo" | "gspo" | "sapo" | "rloo" | "luspo" => own,
            "dr_grpo" => own * f64::from(config.max_completion_length),
            _ => own * n,
        };
    }
    let mut loss = numerator / denominator - config.entropy_coef * bonus / n_bonus;
    if name == "ppo" {
        let rows = || (0..values.len()).map(|row| (row, f64::from(batch.weights[row])));
        let square = |row: usize| {
            let (target, old) = (f64::from(batch.targets[row]), f64::from(batch.old_values[row]));
            let near = values[row].clamp(old - config.cliprange_value, old + config.cliprange_value);
            (values[row] - target).powi(2).max((near - target).powi(2))
        };
        let sum: f64 = rows().map(|(row, w)| w * square(row)).sum();
        loss += config.vf_coef / 2.0 * sum / rows().map(|(_, w)| w).sum::<f64>();
    }
    loss
}
