//! How tokens are to be chosen, as requests say it.

use serde_json::json;

use crate::error::ApiError;
use crate::fields::Fields;

/// Choices of one prompt, at most.
const MAX_CHOICES: u64 = 1024;

/// What a job asks of the engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Samples of the prompt.
    pub n: usize,
    /// Most tokens of each; `None` is what the context has room for.
    pub max_tokens: Option<usize>,
    /// Fewest tokens of each.
    pub min_tokens: usize,
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Only the k most probable tokens; 0 is all.
    pub top_k: usize,
    /// Only the most probable tokens that together reach this probability.
    pub top_p: f32,
    /// Only tokens at least this share as probable as the most probable one.
    pub min_p: f32,
    /// Divides positive logits of tokens seen, multiplies negative ones.
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens sampled.
    pub presence_penalty: f32,
    /// Taken off, as often as sampled.
    pub frequency_penalty: f32,
    /// Added to logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Further tokens that end a sample.
    pub stop_token_ids: Vec<u32>,
    /// The model's own end tokens do not end a sample.
    pub ignore_eos: bool,
    /// Texts that end a sample.
    pub stop: Vec<String>,
    /// Keys the draws; `None` draws a key.
    pub seed: Option<u64>,
}

impl Sampling {
    /// Takes the fields that chat and text completions share.
    pub(crate) fn take(fields: &mut Fields, max_tokens: Option<u64>) -> Result<Sampling, ApiError> {
        let at_least_0 = "a number, 0 or more";
        let penalty = "a number from -2 to 2";
        let within_2 = |x: f64| (-2.0..=2.0).contains(&x);
        Ok(Sampling {
            n: fields.whole("n", 1, MAX_CHOICES)?.unwrap_or(1) as usize,
            max_tokens: max_tokens.map(|n| n as usize),
            min_tokens: fields.whole("min_tokens", 0, u32::MAX.into())?.unwrap_or(0) as usize,
            temperature: fields.number("temperature", at_least_0, |t| t >= 0.0)?.unwrap_or(1.0) as f32,
            top_k: top_k(fields)?,
            top_p: fields
                .number("top_p", "a number above 0, at most 1", |p| p > 0.0 && p <= 1.0)?
                .unwrap_or(1.0) as f32,
            min_p: fields
                .number("min_p", "a number from 0 to 1", |p| (0.0..=1.0).contains(&p))?
                .unwrap_or(0.0) as f32,
            repetition_penalty: fields
                .number("repetition_penalty", "a number above 0", |p| p > 0.0)?
                .unwrap_or(1.0) as f32,
            presence_penalty: fields.number("presence_penalty", penalty, within_2)?.unwrap_or(0.0) as f32,
            frequency_penalty: fields.number("frequency_penalty", penalty, within_2)?.unwrap_or(0.0) as f32,
            logit_bias: logit_bias(fields)?,
            stop_token_ids: fields.ids("stop_token_ids")?,
            ignore_eos: fields.flag("ignore_eos")?,
            stop: fields.texts("stop")?,
            seed: seed(fields)?,
        })
    }
}

/// -1 is what vLLM calls "all".
fn top_k(fields: &mut Fields) -> Result<usize, ApiError> {
    match fields.take("top_k") {
        None => Ok(0),
        Some(value) if value == json!(-1) => Ok(0),
        Some(value) => match value.as_u64() {
            Some(k) => Ok(k as usize),
            None => Err(crate::fields::wrong("top_k", &value, "a whole number, 0 or more (0 and -1: all)")),
        },
    }
}

fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    match fields.take("seed") {
        None => Ok(None),
        Some(value) => match value.as_u64().or_else(|| value.as_i64().map(|seed| seed as u64)) {
            Some(seed) => Ok(Some(seed)),
            None => Err(crate::fields::wrong("seed", &value, "a whole number")),
        },
    }
}

/// `{"token id": bias}`.
fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(value) = fields.take("logit_bias") else { return Ok(Vec::new()) };
    let expected = "an object of token ids with numbers from -100 to 100";
    let entry = |(id, bias): (&String, &serde_json::Value)| {
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias))?;
        Some((id.parse().ok()?, bias as f32))
    };
    let entries = value.as_object().and_then(|map| map.iter().map(entry).collect());
    entries.ok_or_else(|| crate::fields::wrong("logit_bias", &value, expected))
}
