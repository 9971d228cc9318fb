//! Choosing a token from a row of logits.
//!
//! Two distributions are kept apart. The *model's* is the softmax of its logits at the sampling temperature: what a
//! trainer computes for the token. The *filtered* one is what the token was really drawn from, after biases, penalties
//! and filters. Without any of these the two are one.

use std::collections::HashMap;

use pt_engine::Logprobs;
use pt_kernels::math::{LANES, exp, fold_lanes};

use crate::SamplingParams;

/// How often tokens occurred, as far as penalties ask.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    counts: HashMap<u32, Count>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    in_sample: u32,
}

impl History {
    /// The prompt's tokens; nothing is kept where there are no penalties.
    pub(crate) fn new(prompt: &[u32], params: &SamplingParams) -> History {
        let tokens = if params.penalises() { prompt } else { &[] };
        History { counts: tokens.iter().map(|&token| (token, Count::default())).collect() }
    }

    /// Counts a sampled token.
    pub(crate) fn add(&mut self, token: u32, params: &SamplingParams) {
        if params.penalises() {
            self.counts.entry(token).or_default().in_sample += 1;
        }
    }
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) token: u32,
    /// Log-probability under the model at the sampling temperature.
    pub(crate) logprob: f32,
    /// Log-probability under the filtered distribution, where that is another one.
    pub(crate) filtered_logprob: Option<f32>,
    /// The most probable tokens under the model at the sampling temperature.
    pub(crate) top: Vec<(u32, f32)>,
}

/// Why no token can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoToken {
    /// The logits are not finite.
    NotFinite,
    /// Biases and hidden stop tokens leave nothing.
    NothingLeft,
}

/// Draws a token with 128 random bits. `logits` are the model's at temperature `model_temperature`: not divided by it.
pub(crate) fn draw(
    params: &SamplingParams,
    mut logits: Vec<f32>,
    model_temperature: f32,
    history: &History,
    n_sampled: usize,
    random: [u32; 4],
) -> Result<Drawn, NoToken> {
    let divisor = model_temperature * params.scoring_temperature();
    let hides = params.hides_stops(n_sampled);
    let adjusted = (params.adjusts() || hides).then(|| {
        let mut adjusted = logits.clone();
        divide(&mut adjusted, model_temperature);
        adjust(&mut adjusted, params, history, hides);
        divide(&mut adjusted, params.scoring_temperature());
        adjusted
    });
    divide(&mut logits, divisor);
    let choices = adjusted.as_deref().unwrap_or(&logits);
    let (token, filtered) = choose(params, choices, uniform(random));
    let scored = Logprobs::of_logits(&logits, token);
    if !scored.logp.is_finite() {
        return Err(NoToken::NotFinite);
    }
    if choices[token as usize] == f32::NEG_INFINITY {
        return Err(NoToken::NothingLeft);
    }
    let filtered_logprob = params.changes_distribution().then(|| filtered.unwrap_or(scored.logp));
    let top = top_logprobs(&logits, params.top_logprobs);
    Ok(Drawn { token, logprob: scored.logp, filtered_logprob, top })
}

fn divide(logits: &mut [f32], divisor: f32) {
    if divisor != 1.0 {
        logits.iter_mut().for_each(|x| *x /= divisor);
    }
}

/// Uniform in `[0, 1)`.
fn uniform(random: [u32; 4]) -> f64 {
    let bits = (u64::from(random[0]) | u64::from(random[1]) << 32) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

/// Step 1 of [`SamplingParams`].
fn adjust(logits: &mut [f32], params: &SamplingParams, history: &History, hides_stops: bool) {
    for &(token, bias) in &params.logit_bias {
        logits[token as usize] += bias;
    }
    for (&token, count) in &history.counts {
        let logit = &mut logits[token as usize];
        let penalty = params.repetition_penalty;
        *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        if count.in_sample > 0 {
            *logit -= params.presence_penalty + count.in_sample as f32 * params.frequency_penalty;
        }
    }
    if hides_stops {
        // An id outside the vocabulary stops nothing, and there is nothing to hide.
        for &token in &params.stop_token_ids {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// The token, and its log-probability under the distribution it was chosen from, where that may be another than the
/// model's.
fn choose(params: &SamplingParams, logits: &[f32], uniform: f64) -> (u32, Option<f32>) {
    if params.filters() {
        let kept = filter(params, logits);
        let at = invert(&kept, uniform);
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        return (kept[at].0, Some((kept[at].1 / total).ln() as f32));
    }
    if params.temperature == 0.0 && !params.changes_distribution() {
        return (argmax(logits), None);
    }
    let weights = Weights::new(logits);
    let token = if params.temperature == 0.0 { argmax(logits) } else { weights.invert(uniform) };
    (token, Some((f64::from(logits[token as usize]) - weights.log_total()) as f32))
}

/// Probabilities relative to the most probable token.
struct Weights {
    max: f32,
    weights: Vec<f32>,
    /// Sums of [`CHUNK`] weights each.
    sums: Vec<f64>,
}

/// Weights that are summed at once.
const CHUNK: usize = 1024;

impl Weights {
    fn new(logits: &[f32]) -> Weights {
        let max = largest(logits);
        let mut weights = vec![0.0; logits.len()];
        let chunks = logits.chunks(CHUNK).zip(weights.chunks_mut(CHUNK));
        let sums = chunks.map(|(logits, weights)| f64::from(weigh(logits, max, weights))).collect();
        Weights { max, weights, sums }
    }

    fn log_total(&self) -> f64 {
        f64::from(self.max) + self.sums.iter().sum::<f64>().ln()
    }

    /// Inverse of the cumulative distribution, tokens by id; never a token of weight 0.
    fn invert(&self, uniform: f64) -> u32 {
        let threshold = uniform * self.sums.iter().sum::<f64>();
        let (mut before, mut last) = (0.0, 0);
        let last_chunk = self.sums.iter().rposition(|sum| *sum > 0.0).unwrap_or(0);
        for (chunk, sum) in self.sums.iter().enumerate().take(last_chunk + 1) {
            if before + sum <= threshold && chunk < last_chunk {
                before += sum;
                continue;
            }
            let start = chunk * CHUNK;
            for (i, &weight) in self.weights[start..].iter().take(CHUNK).enumerate() {
                if weight > 0.0 {
                    last = start + i;
                    before += f64::from(weight);
                    if before > threshold {
                        break;
                    }
                }
            }
            if before > threshold {
                break;
            }
        }
        last as u32
    }
}

pt_kernels::kernel! {
    fn largest(['a] x: &'a [f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (vectors, rest) = x.as_chunks::<LANES>();
        for x in vectors {
            for i in 0..LANES {
                lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane = lane.max(x);
        }
        fold_lanes(lanes, f32::max)
    }
}

pt_kernels::kernel! {
    fn weigh(['a] x: &'a [f32], max: f32, out: &'a mut [f32]) -> f32 {
        let mut lanes = [0.0; LANES];
        let (vectors, rest) = x.as_chunks::<LANES>();
        let (outs, out_rest) = out.as_chunks_mut::<LANES>();
        for (x, out) in vectors.iter().zip(outs) {
            for i in 0..LANES {
                out[i] = exp::<FMA>(x[i] - max);
                lanes[i] += out[i];
            }
        }
        for (i, (x, out)) in rest.iter().zip(out_rest).enumerate() {
            *out = exp::<FMA>(*x - max);
            lanes[i] += *out;
        }
        fold_lanes(lanes, |a, b| a + b)
    }
}

/// The tokens that pass step 3 of [`SamplingParams`] and their probabilities relative to the most probable one; most
/// probable first, ties by id.
fn filter(params: &SamplingParams, logits: &[f32]) -> Vec<(u32, f64)> {
    let by_logit = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut kept: Vec<(u32, f32)> = logits.iter().enumerate().map(|(id, &x)| (id as u32, x)).collect();
    if params.top_k > 0 && params.top_k < kept.len() {
        let (_, &mut (_, least), _) = kept.select_nth_unstable_by(params.top_k - 1, by_logit);
        // As in transformers, tokens exactly as probable as the k-th stay.
        kept.retain(|(_, x)| x.total_cmp(&least).is_ge());
    }
    kept.sort_unstable_by(by_logit);
    let max = kept[0].1;
    let mut kept: Vec<(u32, f64)> = kept.into_iter().map(|(id, x)| (id, f64::from(x - max).exp())).collect();
    if params.top_p < 1.0 {
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let mut sum = 0.0;
        let reaches = kept.iter().position(|(_, weight)| {
            sum += weight / total;
            sum >= f64::from(params.top_p)
        });
        kept.truncate(reaches.map_or(kept.len(), |at| at + 1));
    }
    // Weights that are not numbers stay, to be found out by the caller.
    kept.retain(|(_, weight)| *weight >= f64::from(params.min_p) || weight.is_nan());
    kept
}

fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// Where the running sum of weights first exceeds `uniform` of the total; never at a weight of 0.
fn invert(weights: &[(u32, f64)], uniform: f64) -> usize {
    let threshold = uniform * weights.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut sum = 0.0;
    let mut last = 0;
    for (at, (_, weight)) in weights.iter().enumerate().filter(|(_, (_, weight))| *weight > 0.0) {
        last = at;
        sum += weight;
        if sum > threshold {
            break;
        }
    }
    last
}

/// The `n` most probable tokens with their log-probabilities, most probable first, ties by id.
pub fn top_logprobs(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    if n == 0 {
        return Vec::new();
    }
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if n < order.len() {
        order.select_nth_unstable_by(n - 1, by_logit);
        order.truncate(n);
    }
    order.sort_unstable_by(by_logit);
    order.into_iter().map(|id| (id, Logprobs::of_logits(logits, id).logp)).collect()
}

#[cfg(test)]
mod tests {
    use pt_core::rng::Stream;

    use super::*;

    const PROBABILITIES: [f32; 4] = [0.5, 0.25, 0.15, 0.1];

    fn base() -> SamplingParams {
        SamplingParams::default()
    }

    fn logits() -> Vec<f32> {
        PROBABILITIES.iter().map(|p| p.ln() + 3.0).collect()
    }

    fn drawn(params: &SamplingParams, history: &History, i: u64) -> Drawn {
        draw(params, logits(), 1.0, history, 0, Stream::new(3, "t").words(i, 0)).unwrap()
    }

    /// Draws follow `expected`, and say so in their log-probabilities.
    fn check(params: &SamplingParams, history: &History, expected: [f64; 4]) {
        let n = 20_000;
        let mut counts = [0.0; 4];
        for i in 0..n {
            let drawn = drawn(params, history, i);
            counts[drawn.token as usize] += 1.0 / n as f64;
            let (token, filtered) = (drawn.token as usize, drawn.filtered_logprob);
            assert_eq!(filtered.is_some(), params.changes_distribution());
            if params.temperature > 0.0 {
                let logp = f64::from(filtered.unwrap_or(drawn.logprob));
                assert!((logp.exp() - expected[token]).abs() < 1e-5, "{params:?}: {logp} at {token}");
            }
        }
        for (found, expected) in counts.iter().zip(expected) {
            // Five standard errors of a frequency.
            let slack = 5.0 * (expected * (1.0 - expected) / n as f64).sqrt() + 1e-9;
            assert!((found - expected).abs() <= slack, "{params:?}: {found}, expected {expected}");
        }
    }

    #[test]
    fn filters_keep_what_they_say_and_draws_follow_the_distribution() {
        let none = History::default();
        let third = [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0];
        check(&base(), &none, [0.5, 0.25, 0.15, 0.1]);
        check(&SamplingParams { temperature: 0.0, ..base() }, &none, [1.0, 0.0, 0.0, 0.0]);
        check(&SamplingParams { top_k: 2, ..base() }, &none, third);
        check(&SamplingParams { top_p: 0.8, ..base() }, &none, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0.0]);
        check(&SamplingParams { min_p: 0.4, ..base() }, &none, third);
        // top_p sees what top_k left (0.5 of 0.9 is below 0.6), and min_p what top_p left.
        check(&SamplingParams { top_k: 3, top_p: 0.6, ..base() }, &none, third);
        check(&SamplingParams { top_p: 0.9, min_p: 0.4, ..base() }, &none, third);
        // At temperature 1/2, probabilities are squared and normalised.
        let squares = PROBABILITIES.map(|p| f64::from(p * p) / 0.345);
        check(&SamplingParams { temperature: 0.5, ..base() }, &none, squares);
    }

    #[test]
    fn biases_and_penalties_change_the_logits_as_defined() {
        let logits = [4.0f64, 3.0, -1.0, 2.0];
        let cases: [(SamplingParams, [f64; 4]); 4] = [
            (
                SamplingParams { logit_bias: vec![(3, 1.5), (0, f32::NEG_INFINITY)], ..base() },
                [f64::NEG_INFINITY, 3.0, -1.0, 3.5],
            ),
            // Token 0 is in the prompt, 2 in the sample (twice), 3 in both (once).
            (SamplingParams { repetition_penalty: 2.0, ..base() }, [2.0, 3.0, -2.0, 1.0]),
            (SamplingParams { presence_penalty: 0.5, ..base() }, [4.0, 3.0, -1.5, 1.5]),
            (SamplingParams { frequency_penalty: 0.5, temperature: 2.0, ..base() }, [2.0, 1.5, -1.0, 0.75]),
        ];
        for (params, expected) in cases {
            let mut history = History::new(&[0, 3], &params);
            [2, 3, 2].iter().for_each(|&token| history.add(token, &params));
            let mut found = logits.map(|x| x as f32);
            adjust(&mut found, &params, &history, false);
            divide(&mut found, params.temperature);
            assert_eq!(found.map(f64::from), expected, "{params:?}");
        }
    }

    #[test]
    fn stops_are_hidden_before_the_least_length_and_nothing_left_is_an_error() {
        let params = SamplingParams { min_new_tokens: 2, stop_token_ids: vec![0], ..base() };
        let run = |params: &SamplingParams, n, i| {
            draw(params, logits(), 1.0, &History::default(), n, Stream::new(1, "t").words(i, 0))
        };
        let first = |n| (0..200).filter(|&i| run(&params, n, i).unwrap().token == 0).count();
        assert_eq!((first(0), first(1)), (0, 0));
        assert!(first(2) > 50);
        let outside = SamplingParams { stop_token_ids: vec![0, 4, u32::MAX], ..params.clone() };
        assert_eq!(run(&outside, 0, 7), run(&params, 0, 7), "ids outside the vocabulary are no tokens");
        for temperature in [0.0, 1.0] {
            for top_k in [0, 2] {
                let all =
                    SamplingParams { stop_token_ids: (0..4).collect(), temperature, top_k, ..params.clone() };
                assert_eq!(run(&all, 0, 0), Err(NoToken::NothingLeft));
            }
        }
    }

    #[test]
    fn logits_that_are_not_finite_are_found() {
        for bad in [f32::NAN, f32::INFINITY] {
            for params in [base(), SamplingParams { top_k: 1, min_p: 0.1, ..base() }] {
                let result = draw(&params, vec![1.0, bad, 0.0], 1.0, &History::default(), 0, [7; 4]);
                assert_eq!(result, Err(NoToken::NotFinite), "{bad} {params:?}");
            }
        }
    }

    #[test]
    fn alternatives_are_the_most_probable_tokens_of_the_model() {
        let params = SamplingParams { top_logprobs: 2, top_k: 1, temperature: 1.0, ..base() };
        let drawn = drawn(&params, &History::default(), 0);
        assert_eq!(drawn.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1]);
        for ((_, logprob), p) in drawn.top.iter().zip(PROBABILITIES) {
            assert!((logprob - p.ln()).abs() < 1e-6);
        }
        assert_eq!((drawn.top[0].1, drawn.filtered_logprob), (drawn.logprob, Some(0.0)));
    }

    /// A vocabulary of several chunks, with impossible tokens at its ends: the same tokens as plain summation gives.
    #[test]
    fn inversion_by_chunks_is_inversion() {
        let n = 3 * CHUNK + 17;
        let stream = Stream::new(9, "t");
        let logits: Vec<f32> = (0..n as u64)
            .map(|i| if i < 20 || i > n as u64 - 20 { -1e30 } else { stream.at(i).normal() as f32 })
            .collect();
        let weights = Weights::new(&logits);
        let exact: Vec<f64> = logits.iter().map(|&x| f64::from(x).exp()).collect();
        let total: f64 = exact.iter().sum();
        for i in 0..=1000 {
            let uniform = f64::from(i) / 1000.0;
            let token = weights.invert(uniform) as usize;
            assert!(exact[token] > 0.0, "token {token} is impossible");
            let before: f64 = exact[..token].iter().sum::<f64>() / total;
            let after = before + exact[token] / total;
            // Sums of a chunk are f32.
            assert!(before - 1e-5 <= uniform && uniform <= after + 1e-5, "{before} {uniform} {after}");
        }
    }
}
