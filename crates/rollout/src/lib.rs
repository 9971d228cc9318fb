//! Sampling from a model with the trainer's own kernels.
//!
//! [`Engine`] decodes requests together: whenever a sample ends, the next takes its place. What a request yields depends
//! on its prompt, its key and the parameters alone, never on its neighbours: random numbers are keyed by (seed,
//! request, sample, position), and the kernels give a row the same bits in any batch. The log-probability a token was
//! sampled with is therefore the one the trainer computes for it, bit for bit.
//!
//! Keys and values are kept in blocks that are counted and shared: a prompt is computed once, however many samples
//! continue it, and so is what several requests have in common at their beginning. A sample that loses its blocks to an
//! older one is computed again later, to the same bits.
//!
//! [`generate`] and [`stream`] are the engine for those who have all requests at once.
//!
//! **Length-dependent models** (rope scaling `dynamic` and `longrope`): keys depend on how long their sequence was, so
//! requests share no prefixes; agreement with the trainer holds for sequences on one side of the original length (see
//! `pt_models`, `rope.rs`).
//!
//! Left out: beams, grammars, speculative decoding, log-probabilities of the prompt.

mod blocks;
mod engine;
mod params;
mod sampling;
mod stop;

use std::ops::ControlFlow;
use std::sync::Arc;

use pt_models::Model;

pub use crate::blocks::BLOCK_TOKENS;
pub use crate::engine::{Engine, EngineOptions, EngineStats, Event, RequestId};
pub use crate::params::SamplingParams;
pub use crate::sampling::top_logprobs;
pub use crate::stop::Detokenise;

/// A prompt to continue.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt_ids: Vec<u32>,
    /// Identity of the request: with the seed it determines the draws.
    pub key: u64,
}

/// 64 bits of a prompt's hash: a [`Request::key`] that depends on what the prompt is, not on where it stands.
pub fn content_key(prompt_ids: &[u32]) -> u64 {
    let bytes: Vec<u8> = prompt_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let hash = pt_core::hash::of_bytes(&bytes);
    u64::from_str_radix(&hash[..16], 16).expect("a hash is hexadecimal")
}

/// Why a sample ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token or a stop string came: see [`Sample::stop`].
    Stop,
    /// The token limit was reached.
    Length,
}

/// What stopped a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// This token; it is the last of the ids.
    Token(u32),
    /// A stop string. Its text is in that of the ids, the last of which completed it; [`Sample::text`] ends before it.
    Text {
        /// Index in [`SamplingParams::stop`].
        which: usize,
        /// Bytes of the sample's text before it.
        n_bytes: usize,
    },
}

/// A continuation.
///
/// Which log-probabilities to use: `logprobs` are the policy's own, equal bit for bit to the trainer's at the same
/// temperature. They are what objectives take as the old policy's, and the ratio to them is exactly 1 on-policy. Where
/// filters, penalties or biases are on, tokens were drawn from another distribution, that of `filtered_logprobs`; they
/// are for importance correction and for looking at, and differ from what any trainer computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Sampled ids, those that stopped it included.
    pub token_ids: Vec<u32>,
    /// Log-probability of each id under the model at the sampling temperature (at temperature 1 when greedy), before
    /// penalties and filters.
    pub logprobs: Vec<f32>,
    /// Log-probability of each id under the distribution it was drawn from, if the parameters make that another one
    /// ([`SamplingParams::changes_distribution`]). At temperature 0 filters do nothing, and these are at temperature 1
    /// after penalties.
    pub filtered_logprobs: Option<Vec<f32>>,
    /// For each id, the most probable tokens at its place with their log-probabilities (as in `logprobs`), most probable
    /// first; empty if none were asked for.
    pub top_logprobs: Vec<Vec<(u32, f32)>>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What stopped it, if something did.
    pub stop: Option<Stop>,
    /// The text up to the stop string, if the parameters have stop strings.
    pub text: Option<String>,
}

/// What cannot be sampled.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RolloutError {
    /// Nothing to condition on.
    #[error("request {request} has an empty prompt: give it at least a BOS token")]
    EmptyPrompt {
        /// Its index.
        request: usize,
    },
    /// A token the model has no embedding for.
    #[error("request {request}: token id {token} is outside the model's vocabulary of {vocabulary}")]
    Vocabulary {
        /// Its index.
        request: usize,
        /// The id.
        token: u32,
        /// The model's vocabulary.
        vocabulary: usize,
    },
    /// The model gave something that is not a distribution.
    #[error(
        "request {request}: the model's logits are not finite after {n_tokens} tokens: its weights are damaged"
    )]
    NotFinite {
        /// Its index.
        request: usize,
        /// Tokens sampled before.
        n_tokens: usize,
    },
    /// Every token is forbidden.
    #[error(
        "request {request}: after {n_tokens} tokens `logit_bias` and the stop tokens hidden by `min_new_tokens` leave \
         no token to sample: allow at least one"
    )]
    NothingLeft {
        /// Its index.
        request: usize,
        /// Tokens sampled before.
        n_tokens: usize,
    },
    /// A parameter out of range.
    #[error("sampling parameter `{name}` is {value}, expected {expected}")]
    Parameter {
        /// Which.
        name: &'static str,
        /// What was given.
        value: f64,
        /// What is accepted.
        expected: &'static str,
    },
    /// Text is asked for where there is none.
    #[error("stop strings are found in text, and the engine was given no way to turn tokens into text")]
    StopNeedsText,
}

/// Continues every request `params.n` times. Results are in order of request, then sample.
///
/// `watch` is called for each token as it is sampled, with (request, sample, token id).
///
/// # Errors
/// [`RolloutError`].
pub fn generate<'m>(
    model: &'m Model,
    options: impl Into<EngineOptions<'m>>,
    requests: &[Request],
    params: &SamplingParams,
    watch: &mut dyn FnMut(usize, usize, u32),
) -> Result<Vec<Vec<Sample>>, RolloutError> {
    // Nobody comes back to a prefix that no request at hand uses.
    let mut engine = Engine::new(model, EngineOptions { keeps_prefixes: false, ..options.into() });
    let params = Arc::new(params.clone());
    params.check()?;
    for request in requests {
        engine.submit(request.clone(), params.clone())?;
    }
    let mut results: Vec<Vec<Option<Sample>>> = vec![vec![None; params.n]; requests.len()];
    while !engine.is_idle() {
        for event in engine.step() {
            match event {
                Event::Token { request, sample, token, .. } => watch(request.0 as usize, sample, token),
                Event::Finished { request, index, sample } => {
                    results[request.0 as usize][index] = Some(sample);
                }
                Event::Failed { error, .. } => return Err(error),
            }
        }
    }
    Ok(results.into_iter().map(|samples| samples.into_iter().flatten().collect()).collect())
}

/// Continues one request once, giving out each token as it is sampled; a final stop token is given out too.
///
/// The tokens are those that [`generate`] gives for the request's first sample. `None` if `on_token` broke off.
///
/// # Errors
/// [`RolloutError`].
pub fn stream<'m>(
    model: &'m Model,
    options: impl Into<EngineOptions<'m>>,
    request: &Request,
    params: &SamplingParams,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Option<Sample>, RolloutError> {
    params.check()?;
    let mut engine = Engine::new(model, EngineOptions { keeps_prefixes: false, ..options.into() });
    engine.submit(request.clone(), SamplingParams { n: 1, ..params.clone() })?;
    let mut flow = ControlFlow::Continue(());
    while flow.is_continue() {
        for event in engine.step() {
            match event {
                Event::Token { token, .. } => flow = on_token(token),
                // A sample that was complete when its watcher broke off is complete.
                Event::Finished { sample, .. } => return Ok(Some(sample)),
                Event::Failed { error, .. } => return Err(error),
            }
        }
    }
    Ok(None)
}
