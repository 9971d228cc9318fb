//! Sampling from a model with the trainer's own kernels.
//!
//! Requests are decoded together: whenever one ends, the next takes its place. What a request yields depends on its
//! prompt, its key and the parameters alone, never on its neighbours: random numbers are keyed by (seed, request,
//! sample, position), and the kernels give a row the same bits in any batch. The log-probability a token was
//! sampled with is therefore the one the trainer computes for it, bit for bit.
//!
//! Left out for now: paging and prefix sharing (each sample holds its own rows of the cache), stop strings, penalties.

mod sampling;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use pt_core::rng::Stream;
use pt_engine::{Batch, CachedSpan, Dtype, KvCache, LogprobOptions, Tape};
use pt_models::Model;
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

/// Sequences decoded at once, at most.
const SLOTS: usize = 64;
/// Prompt tokens computed in one pass, at least those of one request.
const PREFILL_TOKENS: usize = 2048;

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
    let mut decoder = Decoder::new(model, dtype, requests, params, jobs);
    while decoder.advance(&mut results, watch)? {}
    Ok(results.into_iter().map(|samples| samples.into_iter().flatten().collect()).collect())
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

/// A sample being decoded.
struct Active {
    request: usize,
    sample: usize,
    slot: usize,
    /// Tokens whose keys are not in the cache yet.
    pending: Vec<u32>,
    /// Positions in the cache.
    n_cached: usize,
    token_ids: Vec<u32>,
    logprobs: Vec<f32>,
}

struct Decoder<'a> {
    model: &'a Model,
    dtype: Dtype,
    requests: &'a [Request],
    params: &'a SamplingParams,
    stream: Stream,
    waiting: VecDeque<(usize, usize)>,
    active: Vec<Active>,
    free_slots: Vec<usize>,
    /// Cache rows of each slot.
    capacity: usize,
    cache: Rc<RefCell<KvCache>>,
}

impl<'a> Decoder<'a> {
    fn new(
        model: &'a Model,
        dtype: Dtype,
        requests: &'a [Request],
        params: &'a SamplingParams,
        waiting: VecDeque<(usize, usize)>,
    ) -> Decoder<'a> {
        let longest = requests.iter().map(|r| r.prompt_ids.len()).max().unwrap_or(0);
        let capacity = longest + params.max_new_tokens;
        let slots = SLOTS.min(waiting.len());
        let cache = KvCache::new(dtype, slots * capacity, &model.arch.kv_widths());
        Decoder {
            model,
            dtype,
            requests,
            params,
            stream: Stream::new(params.seed, "sampling"),
            waiting,
            active: Vec::new(),
            free_slots: (0..slots).rev().collect(),
            capacity,
            cache: Rc::new(RefCell::new(cache)),
        }
    }

    /// One forward pass and one sampled token per active sample. Returns whether there is more to do.
    fn advance(
        &mut self,
        results: &mut [Vec<Option<Sample>>],
        watch: &mut dyn FnMut(usize, usize, u32),
    ) -> Result<bool, RolloutError> {
        self.admit();
        if self.active.is_empty() {
            return Ok(false);
        }
        let logits = self.forward();
        for (i, active) in self.active.iter_mut().enumerate() {
            let row = logits.row_to_f32(i);
            let index = self.requests[active.request].key;
            let at = (active.sample as u64) << 32 | active.token_ids.len() as u64;
            let word = self.stream.words(index, at);
            let picked = self.params.pick(&row, word, self.dtype).ok_or(RolloutError::NotFinite {
                request: active.request,
                n_tokens: active.token_ids.len(),
            })?;
            active.token_ids.push(picked.token);
            active.logprobs.push(picked.logp);
            active.pending = vec![picked.token];
            watch(active.request, active.sample, picked.token);
        }
        self.retire(results);
        Ok(!self.active.is_empty() || !self.waiting.is_empty())
    }

    fn admit(&mut self) {
        let mut prefill = 0;
        while let (Some(&(request, sample)), Some(&slot)) = (self.waiting.front(), self.free_slots.last()) {
            let prompt = &self.requests[request].prompt_ids;
            if prefill > 0 && prefill + prompt.len() > PREFILL_TOKENS {
                break;
            }
            prefill += prompt.len();
            self.waiting.pop_front();
            self.free_slots.pop();
            self.active.push(Active {
                request,
                sample,
                slot,
                pending: prompt.clone(),
                n_cached: 0,
                token_ids: Vec::new(),
                logprobs: Vec::new(),
            });
        }
    }

    /// Logits after the last pending token of each active sample.
    fn forward(&mut self) -> pt_engine::Tensor {
        let (mut tokens, mut spans, mut last_rows) = (Vec::new(), Vec::new(), Vec::new());
        for active in &mut self.active {
            let first = active.slot * self.capacity;
            let end = active.n_cached + active.pending.len();
            spans.push(CachedSpan {
                q_row: tokens.len(),
                q_len: active.pending.len(),
                rows: (first..first + end).map(|row| row as u32).collect(),
            });
            tokens.append(&mut active.pending);
            active.n_cached = end;
            last_rows.push(tokens.len() as u32 - 1);
        }
        let batch = Batch::cached(tokens, self.cache.clone(), spans);
        let mut tape = Tape::inference(&self.model.params, &batch, self.dtype);
        let hidden = self.model.arch.hidden(&mut tape, false);
        let options = self.model.arch.logprob_options();
        let temperature = if self.params.temperature > 0.0 { self.params.temperature } else { 1.0 };
        let options = LogprobOptions { temperature: options.temperature * temperature, ..options };
        tape.logits(&hidden, self.model.arch.head(), &last_rows, &options)
    }

    fn retire(&mut self, results: &mut [Vec<Option<Sample>>]) {
        let params = self.params;
        let free_slots = &mut self.free_slots;
        self.active.retain_mut(|active| {
            let last = *active.token_ids.last().expect("a token was just sampled");
            let finish_reason = if params.stop_token_ids.contains(&last) {
                FinishReason::Stop
            } else if active.token_ids.len() >= params.max_new_tokens {
                FinishReason::Length
            } else {
                return true;
            };
            results[active.request][active.sample] = Some(Sample {
                token_ids: std::mem::take(&mut active.token_ids),
                logprobs: std::mem::take(&mut active.logprobs),
                finish_reason,
            });
            free_slots.push(active.slot);
            false
        });
    }
}
