//! Sampling from a model with the trainer's own kernels.
//!
//! Requests are decoded together: whenever one ends, the next takes its place. What a request yields depends on its
//! prompt, its key and the parameters alone, never on its neighbours: random numbers are keyed by (seed, request,
//! sample, position), and the kernels give a row the same bits in any batch. The log-probability a token was
//! sampled with is therefore the one the trainer computes for it, bit for bit.
//!
//! A prompt is computed once, however many samples continue it. The rows a sample may need are set aside when it
//! begins, so that no sample ever has to be thrown out and computed again.
//!
//! Left out: prefixes shared between requests, stop strings, penalties.

mod decoder;
mod sampling;

use std::collections::VecDeque;
use std::ops::ControlFlow;

use pt_engine::Dtype;
use pt_models::Model;

use crate::decoder::{CACHE_BYTES, Decoder};
pub use sampling::{Picked, SamplingParams};

/// A prompt to continue.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt_ids: Vec<u32>,
    /// Identity of the request: with the seed it determines the draws.
    pub key: u64,
}

/// Why a sample ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token was sampled; it is the last of the ids.
    Stop,
    /// The token limit was reached.
    Length,
}

/// A continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Sampled ids, a final stop token included.
    pub token_ids: Vec<u32>,
    /// Log-probability of each id at the sampling temperature (at temperature 1 when greedy), before filters.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
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
}

/// Continues every request `params.n` times. Results are in order of request, then sample.
///
/// `watch` is called for each token as it is sampled, with (request, sample, token id).
///
/// # Errors
/// [`RolloutError`].
pub fn generate(
    model: &Model,
    dtype: Dtype,
    requests: &[Request],
    params: &SamplingParams,
    watch: &mut dyn FnMut(usize, usize, u32),
) -> Result<Vec<Vec<Sample>>, RolloutError> {
    params.check()?;
    check_requests(model, requests)?;
    let jobs: VecDeque<(usize, usize)> =
        (0..requests.len()).flat_map(|request| (0..params.n).map(move |sample| (request, sample))).collect();
    let mut results: Vec<Vec<Option<Sample>>> = vec![vec![None; params.n]; requests.len()];
    let mut decoder = Decoder::new(model, dtype, requests, params, jobs, CACHE_BYTES);
    while decoder.advance(&mut results, watch)? {}
    Ok(results.into_iter().map(|samples| samples.into_iter().flatten().collect()).collect())
}

/// Continues one request once, giving out each token as it is sampled; a final stop token is given out too.
///
/// The tokens are those that [`generate`] gives for the request's first sample. `None` if `on_token` broke off.
///
/// # Errors
/// [`RolloutError`].
pub fn stream(
    model: &Model,
    dtype: Dtype,
    request: &Request,
    params: &SamplingParams,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Option<Sample>, RolloutError> {
    params.check()?;
    let requests = std::slice::from_ref(request);
    check_requests(model, requests)?;
    let mut results = vec![vec![None]];
    let mut decoder = Decoder::new(model, dtype, requests, params, VecDeque::from([(0, 0)]), CACHE_BYTES);
    let mut flow = ControlFlow::Continue(());
    while flow.is_continue() && decoder.advance(&mut results, &mut |_, _, token| flow = on_token(token))? {}
    // A sample that was complete when its watcher broke off is complete.
    Ok(results[0][0].take())
}

fn check_requests(model: &Model, requests: &[Request]) -> Result<(), RolloutError> {
    let vocabulary = model.params.get(model.arch.head()).shape[0];
    for (request, r) in requests.iter().enumerate() {
        if r.prompt_ids.is_empty() {
            return Err(RolloutError::EmptyPrompt { request });
        }
        if let Some(&token) = r.prompt_ids.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(RolloutError::Vocabulary { request, token, vocabulary });
        }
    }
    Ok(())
}
