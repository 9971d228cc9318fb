//! Choosing a token from a row of logits.

use pt_engine::Logprobs;

use crate::RolloutError;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Samples per request.
    pub n: usize,
    /// Most tokens of a sample.
    pub max_new_tokens: usize,
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Only the k most probable tokens; 0 is all.
    pub top_k: usize,
    /// Only the most probable tokens that together reach this probability; 1 is all.
    pub top_p: f32,
    /// Only tokens at least this share as probable as the most probable one; 0 is all.
    pub min_p: f32,
    /// Tokens that end a sample.
    pub stop_token_ids: Vec<u32>,
    /// Keys all draws.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            n: 1,
            max_new_tokens: 128,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            stop_token_ids: Vec::new(),
            seed: 0,
        }
    }
}

/// A chosen token and its log-probability before any filter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Picked {
    /// The id.
    pub token: u32,
    /// Nats.
    pub logp: f32,
}

impl SamplingParams {
    pub(crate) fn check(&self) -> Result<(), RolloutError> {
        let bad = |name, value: f64, expected| Err(RolloutError::Parameter { name, value, expected });
        if self.n == 0 {
            return bad("n", 0.0, "at least 1");
        }
        if self.max_new_tokens == 0 {
            return bad("max_new_tokens", 0.0, "at least 1");
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return bad("temperature", f64::from(self.temperature), "a finite number, 0 or more");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top_p", f64::from(self.top_p), "above 0, at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return bad("min_p", f64::from(self.min_p), "between 0 and 1");
        }
        Ok(())
    }

    /// Picks from logits that are already divided by the temperature, with 128 random bits. `None` if the logits are not
    /// finite.
    pub fn pick(&self, logits: &[f32], random: [u32; 4]) -> Option<Picked> {
        let token = if self.temperature == 0.0 { argmax(logits) } else { self.draw(logits, random) };
        let logp = Logprobs::of_logits(logits, token).logp;
        logp.is_finite().then_some(Picked { token, logp })
    }

    /// Inverse of the cumulative distribution over the tokens that pass the filters: by id, or, where there are
    /// filters, most probable first (ties by id).
    fn draw(&self, logits: &[f32], random: [u32; 4]) -> u32 {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let bits = (u64::from(random[0]) | u64::from(random[1]) << 32) >> 11;
        let uniform = bits as f64 / (1u64 << 53) as f64;
        // Not normalised: the most probable token has weight 1.
        let mut kept: Vec<(u32, f64)> =
            logits.iter().enumerate().map(|(id, x)| (id as u32, f64::from(x - max).exp())).collect();
        if self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0 {
            self.filter(&mut kept, logits);
        }
        invert(&kept, uniform)
    }

    /// The top k; of these, those above the least share; of these, the most probable that together reach `top_p`.
    fn filter(&self, kept: &mut Vec<(u32, f64)>, logits: &[f32]) {
        kept.retain(|(_, weight)| *weight >= f64::from(self.min_p));
        let by_logit = |a: &(u32, f64), b: &(u32, f64)| {
            logits[b.0 as usize].total_cmp(&logits[a.0 as usize]).then(a.0.cmp(&b.0))
        };
        if self.top_k > 0 && self.top_k < kept.len() {
            kept.select_nth_unstable_by(self.top_k - 1, by_logit);
            kept.truncate(self.top_k);
        }
        kept.sort_unstable_by(by_logit);
        if self.top_p < 1.0 {
            let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
            let mut sum = 0.0;
            let reaches = kept.iter().position(|(_, weight)| {
                sum += weight / total;
                sum >= f64::from(self.top_p)
            });
            kept.truncate(reaches.map_or(kept.len(), |at| at + 1));
        }
    }
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

/// The first id at which the running sum of weights exceeds `uniform` of the total.
fn invert(weights: &[(u32, f64)], uniform: f64) -> u32 {
    let threshold = uniform * weights.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut sum = 0.0;
    let mut last = 0;
    for &(id, weight) in weights.iter().filter(|(_, weight)| *weight > 0.0) {
        last = id;
        sum += weight;
        if sum > threshold {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use pt_core::rng::Stream;

    use super::*;

    fn frequencies(params: &SamplingParams, logits: &[f32], n: u64) -> Vec<f64> {
        let stream = Stream::new(3, "t");
        let mut counts = vec![0.0; logits.len()];
        for i in 0..n {
            counts[params.pick(logits, stream.words(i, 0)).unwrap().token as usize] += 1.0 / n as f64;
        }
        counts
    }

    #[test]
    fn filters_keep_what_they_say_and_draws_follow_the_distribution() {
        let probabilities = [0.5f32, 0.25, 0.15, 0.1];
        let logits: Vec<f32> = probabilities.iter().map(|p| p.ln() + 3.0).collect();
        let cases: [(SamplingParams, [f64; 4]); 5] = [
            (SamplingParams::default(), [0.5, 0.25, 0.15, 0.1]),
            (SamplingParams { temperature: 0.0, ..Default::default() }, [1.0, 0.0, 0.0, 0.0]),
            (SamplingParams { top_k: 2, ..Default::default() }, [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]),
            (SamplingParams { top_p: 0.8, ..Default::default() }, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0.0]),
            (SamplingParams { min_p: 0.4, ..Default::default() }, [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]),
        ];
        let n = 20_000;
        for (params, expected) in cases {
            for (found, expected) in frequencies(&params, &logits, n).iter().zip(expected) {
                // Five standard errors of a frequency.
                let slack = 5.0 * (expected * (1.0 - expected) / n as f64).sqrt() + 1e-9;
                assert!((found - expected).abs() <= slack, "{params:?}: {found}, expected {expected}");
            }
        }
    }

    #[test]
    fn absurd_parameters_and_logits_are_refused() {
        let bad = |p: SamplingParams| p.check().unwrap_err().to_string();
        assert!(bad(SamplingParams { temperature: f32::NAN, ..Default::default() }).contains("temperature"));
        assert!(bad(SamplingParams { top_p: 0.0, ..Default::default() }).contains("top_p"));
        assert!(bad(SamplingParams { n: 0, ..Default::default() }).contains('n'));
        assert_eq!(SamplingParams::default().pick(&[f32::NAN, 1.0], [0; 4]), None);
    }
}
