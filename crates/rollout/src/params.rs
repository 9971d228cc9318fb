//! What a request may ask of its samples.

use crate::RolloutError;

/// How tokens are chosen, and when a sample ends.
///
/// The order is that of transformers (`generation/utils.py`, `_get_logits_processor`) with OpenAI's penalties beside the
/// repetition penalty:
///
/// 1. on the model's logits: `logit_bias`, `repetition_penalty`, `presence_penalty` and `frequency_penalty`, the stop
///    tokens hidden before `min_new_tokens`;
/// 2. divided by `temperature`;
/// 3. `top_k`, then `top_p` of what is left, then `min_p` of what is left.
///
/// At temperature 0 the most probable token after step 1 is taken, of equals the one with the lowest id.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Samples per request.
    pub n: usize,
    /// Most tokens of a sample.
    pub max_new_tokens: usize,
    /// Fewest tokens of a sample: before, no stop token is sampled and no stop string ends it.
    pub min_new_tokens: usize,
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Only tokens at least as probable as the k-th most probable one; 0 is all.
    pub top_k: usize,
    /// Only the most probable tokens that together reach this probability; 1 is all.
    pub top_p: f32,
    /// Only tokens at least this share as probable as the most probable one; 0 is all.
    pub min_p: f32,
    /// Logits of tokens that are in the prompt or the sample are divided by it where positive, multiplied where negative
    /// (Keskar et al. 2019, arXiv:1909.05858, section 4.1; negative logits as in transformers); 1 is none.
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens that are in the sample (OpenAI); 0 is none.
    pub presence_penalty: f32,
    /// Taken off a token's logit as often as the token is in the sample (OpenAI); 0 is none.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens; minus infinity forbids one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tokens that end a sample.
    pub stop_token_ids: Vec<u32>,
    /// Stop tokens do not end a sample; it goes on to a stop string or the limit.
    pub ignore_eos: bool,
    /// Texts that end a sample as soon as they are in it, also within or across tokens. They need
    /// [`crate::EngineOptions::detokenise`].
    pub stop: Vec<String>,
    /// How many of the most probable tokens are reported beside each sampled one.
    pub top_logprobs: usize,
    /// Keys all draws.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            n: 1,
            max_new_tokens: 128,
            min_new_tokens: 0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            stop: Vec::new(),
            top_logprobs: 0,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Refuses values that no sample can be drawn with.
    ///
    /// # Errors
    /// [`RolloutError::Parameter`].
    pub fn check(&self) -> Result<(), RolloutError> {
        let at_least_one = "at least 1";
        let finite = "a finite number";
        let checks: [(&'static str, f64, bool, &'static str); 9] = [
            ("n", self.n as f64, self.n > 0, at_least_one),
            ("max_new_tokens", self.max_new_tokens as f64, self.max_new_tokens > 0, at_least_one),
            (
                "temperature",
                self.temperature.into(),
                self.temperature >= 0.0 && self.temperature.is_finite(),
                "a finite number, 0 or more",
            ),
            ("top_p", self.top_p.into(), self.top_p > 0.0 && self.top_p <= 1.0, "above 0, at most 1"),
            ("min_p", self.min_p.into(), (0.0..=1.0).contains(&self.min_p), "between 0 and 1"),
            (
                "repetition_penalty",
                self.repetition_penalty.into(),
                self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
                "a finite number above 0",
            ),
            ("presence_penalty", self.presence_penalty.into(), self.presence_penalty.is_finite(), finite),
            ("frequency_penalty", self.frequency_penalty.into(), self.frequency_penalty.is_finite(), finite),
            (
                "min_new_tokens",
                self.min_new_tokens as f64,
                self.min_new_tokens <= self.max_new_tokens,
                "at most max_new_tokens",
            ),
        ];
        for (name, value, is_good, expected) in checks {
            if !is_good {
                return Err(RolloutError::Parameter { name, value, expected });
            }
        }
        let bad_bias = self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY);
        if let Some(&(_, value)) = bad_bias {
            let expected = "finite, or minus infinity";
            return Err(RolloutError::Parameter { name: "logit_bias", value: value.into(), expected });
        }
        if self.stop.iter().any(String::is_empty) {
            let expected = "one character or more in each string";
            return Err(RolloutError::Parameter { name: "stop", value: 0.0, expected });
        }
        Ok(())
    }

    /// Whether probabilities depend on what the prompt and the sample hold.
    pub(crate) fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Whether stop tokens are hidden in a sample of this length.
    pub(crate) fn hides_stops(&self, n_sampled: usize) -> bool {
        n_sampled < self.min_new_tokens && !self.stop_token_ids.is_empty()
    }

    /// Whether logits are changed before the temperature, other than by hidden stops.
    pub(crate) fn adjusts(&self) -> bool {
        self.penalises() || !self.logit_bias.is_empty()
    }

    /// Whether tokens are left out after the temperature.
    pub(crate) fn filters(&self) -> bool {
        self.temperature > 0.0 && (self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0)
    }

    /// Whether tokens are drawn from another distribution than the model's at the temperature.
    pub fn changes_distribution(&self) -> bool {
        let hides = self.min_new_tokens > 0 && !self.stop_token_ids.is_empty();
        self.adjusts() || self.filters() || hides
    }

    /// What the trainer divides logits by to get the reported log-probabilities: the temperature, 1 at temperature 0.
    pub fn scoring_temperature(&self) -> f32 {
        if self.temperature > 0.0 { self.temperature } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_parameters_are_refused_by_name() {
        let base = SamplingParams::default;
        let cases = [
            ("n", SamplingParams { n: 0, ..base() }),
            ("max_new_tokens", SamplingParams { max_new_tokens: 0, ..base() }),
            ("min_new_tokens", SamplingParams { min_new_tokens: 129, ..base() }),
            ("temperature", SamplingParams { temperature: f32::NAN, ..base() }),
            ("temperature", SamplingParams { temperature: -1.0, ..base() }),
            ("top_p", SamplingParams { top_p: 0.0, ..base() }),
            ("min_p", SamplingParams { min_p: 1.5, ..base() }),
            ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..base() }),
            ("presence_penalty", SamplingParams { presence_penalty: f32::INFINITY, ..base() }),
            ("frequency_penalty", SamplingParams { frequency_penalty: f32::NAN, ..base() }),
            ("logit_bias", SamplingParams { logit_bias: vec![(1, f32::INFINITY)], ..base() }),
            ("stop", SamplingParams { stop: vec![String::new()], ..base() }),
        ];
        for (expected, params) in cases {
            match params.check() {
                Err(RolloutError::Parameter { name, .. }) => assert_eq!(name, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
        assert_eq!(base().check(), Ok(()));
    }
}
