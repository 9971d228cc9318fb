//! Sampling from the geometric mixture of two policies: `π_mix ∝ π^(1 − α) π_ref^α`, the opponent of Nash-MD.
//!
//! As TRL's `GeometricMixtureWrapper`: the mixture's logits are `(1 − α) log π + α log π_ref`, each normalised, at the sampling
//! temperature. Both models compute all sequences again for every token, without a cache: it costs as many forward passes as there
//! are tokens in the longest sample, which is meant for replies of some tens of tokens. Filters (`top_k`, `top_p`, `min_p`) do not
//! apply here.

use pt_core::rng::Stream;
use pt_engine::Tape;
use pt_models::Model;
use pt_train::{Example, MicroBatch, Reply};

use super::sampler::{Drawn, Prompt, Sampler};
use crate::error::Result;

/// A sample under way.
struct Growing {
    token_ids: Vec<u32>,
    /// Log-probabilities under the mixture.
    logprobs: Vec<f32>,
    has_ended: bool,
}

/// A group of samples for each prompt; `coef` is the reference's share.
pub(super) fn groups(
    sampler: &Sampler<'_>,
    policy: &Model,
    reference: &Model,
    coef: f64,
    prompts: &[Prompt<'_>],
) -> Result<Vec<Vec<Drawn>>> {
    let (n, params) = (sampler.n(), sampler.params());
    let random = Stream::new(params.seed, "mixture");
    let mut samples: Vec<Growing> = (0..n * prompts.len())
        .map(|_| Growing { token_ids: Vec::new(), logprobs: Vec::new(), has_ended: false })
        .collect();
    for _ in 0..params.max_new_tokens {
        let open: Vec<usize> = (0..samples.len()).filter(|&i| !samples[i].has_ended).collect();
        if open.is_empty() {
            break;
        }
        let rows = |model: &Model| -> Vec<Vec<f64>> {
            let (prompt_of, grown) = (|i: usize| &prompts[i / n].token_ids, |i: usize| &samples[i].token_ids);
            open.iter().map(|&i| log_softmax(sampler, model, prompt_of(i), grown(i))).collect()
        };
        let (ours, theirs) = (rows(policy), rows(reference));
        for ((&i, ours), theirs) in open.iter().zip(ours).zip(theirs) {
            let mixed: Vec<f64> =
                ours.iter().zip(&theirs).map(|(a, b)| (1.0 - coef) * a + coef * b).collect();
            let mixed = normalised(mixed);
            let sample = &mut samples[i];
            let u = uniform(&random, prompts[i / n].key, i % n, sample.token_ids.len());
            let token = pick(&mixed, u);
            sample.token_ids.push(token);
            sample.logprobs.push(mixed[token as usize] as f32);
            sample.has_ended = params.stop_token_ids.contains(&token);
        }
    }
    let mut drawn = samples.into_iter().map(|sample| {
        let Growing { token_ids, logprobs, has_ended } = sample;
        sampler.finished(token_ids, logprobs, !has_ended)
    });
    (0..prompts.len()).map(|_| drawn.by_ref().take(n).collect()).collect()
}

/// Uniform in `[0, 1)`, keyed by prompt, sample and position: the same whatever else is drawn. The prompt's key, which takes all
/// 64 bits (round, attempt, group), is the index, the other two are the block, so that no two draws share words.
fn uniform(random: &Stream, prompt_key: u64, sample: usize, position: usize) -> f64 {
    let [low, high, ..] = random.words(prompt_key, (sample as u64) << 32 | position as u64);
    let word = u64::from(low) | u64::from(high) << 32;
    (word >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Log-probabilities of the next token at the sampling temperature.
fn log_softmax(sampler: &Sampler<'_>, model: &Model, prompt: &[u32], grown: &[u32]) -> Vec<f64> {
    let token_ids: Vec<u32> = prompt.iter().chain(grown).copied().collect();
    let (last, weights) = (token_ids.len() as u32 - 1, vec![0.0; token_ids.len()]);
    let example = Example { token_ids, weights, replies: Vec::<Reply>::new(), ..Example::default() };
    let batch = MicroBatch::new(vec![example]).batch().expect("prompts have tokens");
    let mut tape = Tape::inference(&model.params, &batch, sampler.dtype());
    let hidden = model.arch.hidden(&mut tape, false);
    let options = model.arch.logprob_options();
    let logits = tape.logits(&hidden, model.arch.head(), &[last], &options).to_f32();
    let temperature = f64::from(sampler.params().temperature);
    normalised(logits.into_iter().map(|logit| f64::from(logit) / temperature).collect())
}

/// With probabilities that sum to one.
fn normalised(logits: Vec<f64>) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = max + logits.iter().map(|logit| (logit - max).exp()).sum::<f64>().ln();
    logits.into_iter().map(|logit| logit - log_sum).collect()
}

/// The token at which the summed probability passes `u` in [0, 1).
fn pick(logp: &[f64], u: f64) -> u32 {
    let mut sum = 0.0;
    let passed = logp.iter().position(|logp| {
        sum += logp.exp();
        sum > u
    });
    // Rounding may leave the sum just below 1.
    let likeliest = || (0..logp.len()).max_by(|&a, &b| logp[a].total_cmp(&logp[b])).unwrap_or(0);
    passed.unwrap_or_else(likeliest) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_draws_are_the_same() {
        let random = Stream::new(7, "mixture");
        let mut seen = std::collections::BTreeSet::new();
        let (rounds, attempts, groups) = ([0u64, 1, 255, 256, 257, 512], [0u64, 1, 16], [0u64, 1, 16]);
        // As rounds key their prompts.
        let mut keys = Vec::new();
        for round in rounds {
            keys.extend(attempts.iter().flat_map(|a| groups.map(|g| round << 32 | a << 24 | g)));
        }
        for &key in &keys {
            for sample in [0, 1, 2, 15, 16, 17, 256] {
                for position in [0, 1, 2, 3, 255, 256, 257] {
                    let u = uniform(&random, key, sample, position);
                    assert!((0.0..1.0).contains(&u));
                    assert!(seen.insert(u.to_bits()), "prompt {key:x}, sample {sample}, position {position}");
                }
            }
        }
        assert_eq!(seen.len(), keys.len() * 7 * 7);
    }

    #[test]
    fn tokens_are_picked_by_their_probability() {
        let logp = normalised(vec![0.0, 2.0_f64.ln(), f64::NEG_INFINITY, 1.0_f64.ln()]);
        let check = |u: f64, expected: u32| assert_eq!(pick(&logp, u), expected, "{u}");
        check(0.0, 0);
        check(0.24, 0);
        check(0.26, 1);
        check(0.74, 1);
        check(0.76, 3);
        check(1.0, 1);
    }
}
