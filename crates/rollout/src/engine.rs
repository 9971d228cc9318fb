//! Many samples decoded together over one cache of keys and values in blocks.
//!
//! Every step is one forward pass over one new token of each sample that decodes and, within a budget of tokens, the next
//! chunk of each that does not yet (its prompt, or what it had before it was pre-empted), and one sampled token for each
//! whose last token was computed.
//!
//! **Order.** Samples are served by age: by request, then by sample. The oldest takes blocks from the youngest when there
//! are none left, so it always ends, and no two samples wait for each other.
//!
//! **Sharing.** Full blocks are found by content (see [`crate::blocks`]), by any request, also in the very pass that
//! computes them: a layer stores all its keys before the first query looks. The samples of one request share its whole
//! prompt, the last block being copied when a sample first writes to it.

mod schedule;
mod sequence;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use pt_core::rng::Stream;
use pt_engine::{Batch, CachedSpan, Dtype, KvCache, LogprobOptions, Tape, Tensor};
use pt_models::Model;
use rayon::prelude::*;

use self::sequence::{Sequence, cache_rows, end_of, finish};
use crate::blocks::{BLOCK_TOKENS, Blocks};
use crate::sampling::{Drawn, NoToken, draw};
use crate::stop::Detokenise;
use crate::{Request, RolloutError, Sample, SamplingParams};

/// How an engine runs. None of it changes what is sampled.
#[derive(Clone)]
pub struct EngineOptions<'m> {
    /// Storage of activations, keys and values.
    pub dtype: Dtype,
    /// Most bytes of keys and values, unless one sample alone needs more. Memory is taken when it is needed.
    pub cache_bytes: usize,
    /// Most samples decoded at once.
    pub max_sequences: usize,
    /// Most tokens per pass, beside one of each sample that decodes: at least 1 is taken of a prompt.
    pub max_prefill_tokens: usize,
    /// Keeps blocks that nobody uses until their memory is needed, for later requests that begin alike.
    pub keeps_prefixes: bool,
    /// Text of token ids, for stop strings.
    pub detokenise: Option<Detokenise<'m>>,
}

impl EngineOptions<'_> {
    /// The defaults: 1 GiB of keys and values, 64 samples at once, 2048 tokens of prompts per pass.
    pub fn new(dtype: Dtype) -> Self {
        EngineOptions {
            dtype,
            cache_bytes: 1 << 30,
            max_sequences: 64,
            max_prefill_tokens: 2048,
            keeps_prefixes: true,
            detokenise: None,
        }
    }
}

impl From<Dtype> for EngineOptions<'_> {
    fn from(dtype: Dtype) -> Self {
        EngineOptions::new(dtype)
    }
}

impl std::fmt::Debug for EngineOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let EngineOptions { dtype, cache_bytes, max_sequences, max_prefill_tokens, keeps_prefixes, .. } =
            self;
        write!(
            f,
            "EngineOptions {{ {dtype:?}, {cache_bytes} bytes, {max_sequences} sequences, {max_prefill_tokens} tokens, \
             keeps_prefixes {keeps_prefixes}, detokenise {} }}",
            self.detokenise.is_some()
        )
    }
}

/// A request that was submitted: numbered from 0 in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What happened to a sample in a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A token was sampled; a final stop token is given out, too.
    Token {
        /// Of which request.
        request: RequestId,
        /// Of which of its samples.
        sample: usize,
        /// The id.
        token: u32,
        /// As in [`Sample::logprobs`].
        logprob: f32,
        /// As in [`Sample::filtered_logprobs`].
        filtered_logprob: Option<f32>,
        /// As in [`Sample::top_logprobs`].
        top: Vec<(u32, f32)>,
    },
    /// A sample is complete.
    Finished {
        /// Of which request.
        request: RequestId,
        /// Which of its samples.
        index: usize,
        /// The sample, whole.
        sample: Sample,
    },
    /// A sample cannot go on.
    Failed {
        /// Of which request.
        request: RequestId,
        /// Which of its samples.
        sample: usize,
        /// Why.
        error: RolloutError,
    },
}

/// What an engine did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct EngineStats {
    /// Forward passes.
    pub passes: u64,
    /// Tokens computed before the first new one of a sample: of prompts, and of samples that were pre-empted.
    pub prefilled_tokens: u64,
    /// Tokens sampled.
    pub decoded_tokens: u64,
    /// Tokens that were not computed because their keys and values were there.
    pub shared_tokens: u64,
    /// Times a sample lost its blocks.
    pub preemptions: u64,
    /// Most blocks in use at once.
    pub peak_blocks: usize,
    /// Blocks in use now.
    pub live_blocks: usize,
}

/// (request, sample): age, oldest first.
type Key = (u64, usize);

/// A request and what its samples share.
struct Group {
    request: Request,
    params: Arc<SamplingParams>,
    stream: Stream,
    /// Samples that have not ended.
    n_open: usize,
    /// One of its samples is computing the prompt; the others wait for it.
    is_prefilling: bool,
    prompt: Option<Computed>,
}

/// A prompt in the cache, kept for samples that have not begun.
struct Computed {
    blocks: Vec<u32>,
    logits: Arc<[f32]>,
}

/// The part of a sequence that is computed in a pass.
struct Planned {
    key: Key,
    n_tokens: usize,
}

/// Samples from a model, many requests at once.
///
/// What a sample is depends on the prompt, the request's key, the parameters and the weights: not on the options, on other
/// requests or on their order. It borrows the model: while weights change there is none, and what it has cached ends
/// with it.
///
/// ```no_run
/// # fn f(model: &pt_models::Model, prompt_ids: Vec<u32>) -> Result<(), pt_rollout::RolloutError> {
/// use pt_rollout::{Engine, EngineOptions, Event, Request, SamplingParams};
/// let mut engine = Engine::new(model, EngineOptions::new(pt_engine::Dtype::Bf16));
/// engine.submit(Request { prompt_ids, key: 0 }, SamplingParams::default())?;
/// while !engine.is_idle() {
///     for event in engine.step() {
///         if let Event::Finished { sample, .. } = event {
///             assert_eq!(sample.token_ids.len(), sample.logprobs.len());
///         }
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Engine<'m> {
    model: &'m Model,
    options: EngineOptions<'m>,
    /// Whether prefixes may be shared between requests.
    shares: bool,
    next_request: u64,
    groups: BTreeMap<u64, Group>,
    /// Samples that have no blocks; `None` has not begun.
    waiting: BTreeMap<Key, Option<Sequence>>,
    running: BTreeMap<Key, Sequence>,
    blocks: Blocks,
    cache: KvCache,
    stats: EngineStats,
}

impl<'m> Engine<'m> {
    /// An engine without requests.
    pub fn new(model: &'m Model, options: impl Into<EngineOptions<'m>>) -> Engine<'m> {
        let options = options.into();
        let widths = model.arch.kv_widths();
        let block_bytes = 2 * options.dtype.bytes() * widths.iter().sum::<usize>() * BLOCK_TOKENS;
        Engine {
            model,
            shares: !depends_on_length(model),
            next_request: 0,
            groups: BTreeMap::new(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            blocks: Blocks::new(options.cache_bytes / block_bytes.max(1), options.keeps_prefixes),
            cache: KvCache::new(model.params.device(), options.dtype, 0, &widths),
            stats: EngineStats::default(),
            options,
        }
    }

    /// Takes a request; its samples begin when there is room.
    ///
    /// # Errors
    /// [`RolloutError`], but for [`RolloutError::NotFinite`] and [`RolloutError::NothingLeft`]: the request was not taken.
    pub fn submit(
        &mut self,
        request: Request,
        params: impl Into<Arc<SamplingParams>>,
    ) -> Result<RequestId, RolloutError> {
        let (id, params) = (self.next_request, params.into());
        self.check(id, &request, &params)?;
        self.next_request += 1;
        let most = request.prompt_ids.len() + params.max_new_tokens - 1;
        self.blocks.raise(most.div_ceil(BLOCK_TOKENS));
        self.waiting.extend((0..params.n).map(|sample| ((id, sample), None)));
        let stream = Stream::new(params.seed, "sampling");
        let n_open = params.n;
        self.groups.insert(id, Group { request, params, stream, n_open, is_prefilling: false, prompt: None });
        Ok(RequestId(id))
    }

    /// Drops what is left of a request; nothing more is heard of it. Returns whether there was anything.
    pub fn cancel(&mut self, request: RequestId) -> bool {
        let keys = (request.0, 0)..(request.0 + 1, 0);
        let running: Vec<Key> = self.running.range(keys.clone()).map(|(key, _)| *key).collect();
        for key in running {
            self.remove(key);
        }
        let waiting: Vec<Key> = self.waiting.range(keys).map(|(key, _)| *key).collect();
        waiting.iter().for_each(|key| drop(self.waiting.remove(key)));
        let Some(group) = self.groups.remove(&request.0) else { return false };
        group.prompt.into_iter().for_each(|prompt| self.release(&prompt.blocks));
        true
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.groups.is_empty()
    }

    /// What was done so far.
    pub fn stats(&self) -> EngineStats {
        EngineStats { peak_blocks: self.blocks.peak_live(), live_blocks: self.blocks.n_live(), ..self.stats }
    }

    /// One forward pass, and one token of each sample that it is enough for. Nothing happens when idle.
    pub fn step(&mut self) -> Vec<Event> {
        // A pass has hundreds of short parallel loops. From outside the pool each would put the caller to sleep and wake
        // all workers; from a worker, only the others have to look up.
        pt_kernels::awake::awake(|| self.step_on_worker())
    }

    fn step_on_worker(&mut self) -> Vec<Event> {
        let mut plan = self.plan_running();
        self.admit(&mut plan);
        let (logits, rows) = self.forward(&plan);
        let mut sources: BTreeMap<Key, Arc<[f32]>> = BTreeMap::new();
        for &(key, row) in &rows {
            let logits = logits.as_ref().expect("rows have logits");
            self.keep_prompt(key, logits, row);
        }
        self.fork(&mut sources);
        let drawn = self.draw_all(logits.as_ref(), &rows, &sources);
        let mut events = Vec::with_capacity(drawn.len());
        for (key, result) in drawn {
            self.take(key, result, &mut events);
        }
        events
    }

    fn check(&self, id: u64, request: &Request, params: &SamplingParams) -> Result<(), RolloutError> {
        params.check()?;
        let (request_number, vocabulary) =
            (id as usize, self.model.params.get(self.model.arch.head()).shape[0]);
        if request.prompt_ids.is_empty() {
            return Err(RolloutError::EmptyPrompt { request: request_number });
        }
        let outside = |token: &&u32| **token as usize >= vocabulary;
        if let Some(&token) = request.prompt_ids.iter().find(outside) {
            return Err(RolloutError::Vocabulary { request: request_number, token, vocabulary });
        }
        let named = params.logit_bias.iter().map(|(token, _)| token);
        if let Some(&token) = named.clone().find(outside) {
            let expected = "token ids within the model's vocabulary";
            return Err(RolloutError::Parameter { name: "logit_bias", value: token.into(), expected });
        }
        if !params.stop.is_empty() && self.options.detokenise.is_none() {
            return Err(RolloutError::StopNeedsText);
        }
        Ok(())
    }

    /// Computes what is planned. Returns the logits after the last token of each sequence that has no more, and which
    /// sequences those are.
    fn forward(&mut self, plan: &[Planned]) -> (Option<Tensor>, Vec<(Key, usize)>) {
        let (mut tokens, mut spans) = (Vec::new(), Vec::new());
        let (mut last_rows, mut rows) = (Vec::new(), Vec::new());
        for &Planned { key, n_tokens } in plan {
            let sequence = self.running.get_mut(&key).expect("what is planned runs");
            let n_after = sequence.n_computed + n_tokens;
            spans.push(CachedSpan {
                q_row: tokens.len(),
                q_len: n_tokens,
                rows: cache_rows(&sequence.blocks, n_after),
                prompt_len: sequence.n_prompt,
            });
            tokens.extend_from_slice(&sequence.tokens[sequence.n_computed..n_after]);
            sequence.n_computed = n_after;
            if sequence.prefills {
                self.stats.prefilled_tokens += n_tokens as u64;
            }
            if n_after == sequence.tokens.len() {
                rows.push((key, last_rows.len()));
                last_rows.push(tokens.len() as u32 - 1);
            }
        }
        if plan.is_empty() {
            return (None, rows);
        }
        self.stats.passes += 1;
        let empty = KvCache::new(self.model.params.device(), self.options.dtype, 0, &[]);
        let cache = Rc::new(RefCell::new(std::mem::replace(&mut self.cache, empty)));
        let logits = self.compute(Batch::cached(tokens, cache.clone(), spans), &last_rows);
        self.cache = Rc::try_unwrap(cache).expect("the batch is gone, and its share with it").into_inner();
        (logits, rows)
    }

    /// Logits of the given rows, not divided by the model's own temperature.
    fn compute(&self, batch: Batch, last_rows: &[u32]) -> Option<Tensor> {
        let mut tape = Tape::inference(&self.model.params, &batch, self.options.dtype);
        let hidden = self.model.arch.hidden(&mut tape, false);
        let options = LogprobOptions { temperature: 1.0, ..self.model.arch.logprob_options() };
        (!last_rows.is_empty()).then(|| tape.logits(&hidden, self.model.arch.head(), last_rows, &options))
    }

    /// A token for every sequence whose logits are there: in a row of this pass, or after its group's prompt.
    fn draw_all(
        &self,
        logits: Option<&Tensor>,
        rows: &[(Key, usize)],
        sources: &BTreeMap<Key, Arc<[f32]>>,
    ) -> Vec<(Key, Result<Drawn, NoToken>)> {
        let model_temperature = self.model.arch.logprob_options().temperature;
        let of_row = rows.iter().map(|&(key, row)| (key, Some(row)));
        let jobs: Vec<(Key, Option<usize>)> = of_row.chain(sources.keys().map(|&key| (key, None))).collect();
        let draw_one = |&(key, row): &(Key, Option<usize>)| {
            let (sequence, group) = (&self.running[&key], &self.groups[&key.0]);
            let logits = match (row, logits) {
                (Some(row), Some(logits)) => logits.row_to_f32(row),
                _ => sources[&key].to_vec(),
            };
            let n_sampled = sequence.tokens.len() - sequence.n_prompt;
            let at = (key.1 as u64) << 32 | n_sampled as u64;
            let random = group.stream.words(group.request.key, at);
            let params = &group.params;
            (key, draw(params, logits, model_temperature, &sequence.history, n_sampled, random))
        };
        let mut drawn: Vec<_> = jobs.par_iter().with_max_len(1).map(draw_one).collect();
        drawn.sort_unstable_by_key(|(key, _)| *key);
        drawn
    }

    /// Adds a drawn token to its sequence, and ends the sequence where that is due.
    fn take(&mut self, key: Key, result: Result<Drawn, NoToken>, events: &mut Vec<Event>) {
        let request = RequestId(key.0);
        let sequence = self.running.get_mut(&key).expect("what drew a token runs");
        let params = self.groups[&key.0].params.clone();
        let n_tokens = sequence.tokens.len() - sequence.n_prompt;
        let drawn = match result {
            Ok(drawn) => drawn,
            Err(problem) => {
                let request_number = key.0 as usize;
                let error = match problem {
                    NoToken::NotFinite => RolloutError::NotFinite { request: request_number, n_tokens },
                    NoToken::NothingLeft => RolloutError::NothingLeft { request: request_number, n_tokens },
                };
                events.push(Event::Failed { request, sample: key.1, error });
                self.close(key);
                return;
            }
        };
        self.stats.decoded_tokens += 1;
        sequence.prefills = false;
        sequence.tokens.push(drawn.token);
        sequence.logprobs.push(drawn.logprob);
        sequence.filtered_logprobs.extend(drawn.filtered_logprob);
        sequence.history.add(drawn.token, &params);
        if params.top_logprobs > 0 {
            sequence.top_logprobs.push(drawn.top.clone());
        }
        let found = sequence.text.as_mut().and_then(|text| {
            let detokenise = self.options.detokenise.as_ref().expect("checked when it was submitted");
            text.push(&sequence.tokens, &**detokenise, &params.stop)
        });
        events.push(Event::Token {
            request,
            sample: key.1,
            token: drawn.token,
            logprob: drawn.logprob,
            filtered_logprob: drawn.filtered_logprob,
            top: drawn.top,
        });
        if let Some(end) = end_of(&params, drawn.token, n_tokens + 1, found) {
            let sequence = self.close(key);
            events.push(Event::Finished { request, index: key.1, sample: finish(sequence, end, &params) });
        }
    }

    /// Takes out a sequence that has ended, and its request after the last one.
    fn close(&mut self, key: Key) -> Sequence {
        let sequence = self.remove(key).expect("what ends runs");
        let group = self.groups.get_mut(&key.0).expect("samples have a request");
        group.n_open -= 1;
        if group.n_open == 0 {
            self.groups.remove(&key.0);
        }
        sequence
    }
}

/// Whether keys depend on how long their sequence is (`pt_models`, `rope.rs`): then a prefix of another is not the same.
fn depends_on_length(model: &Model) -> bool {
    fn any(value: &serde_json::Value) -> bool {
        let named = |key: &str| matches!(value[key].as_str(), Some("dynamic" | "longrope" | "su"));
        named("rope_type") || named("type") || value.as_object().is_some_and(|map| map.values().any(any))
    }
    model.config.raw().values().any(any)
}
