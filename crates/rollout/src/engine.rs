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

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use pt_core::rng::Stream;
use pt_engine::{Batch, CachedSpan, Dtype, KvCache, LogprobOptions, Tape, Tensor};
use pt_models::Model;
use rayon::prelude::*;

use crate::blocks::{BLOCK_TOKENS, Blocks, ROOT};
use crate::sampling::{Drawn, History, NoToken, draw};
use crate::stop::{Detokenise, Found, Text};
use crate::{FinishReason, Request, RolloutError, Sample, SamplingParams, Stop};

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

/// A sample that has begun.
struct Sequence {
    /// Prompt and sample.
    tokens: Vec<u32>,
    n_prompt: usize,
    /// Blocks of its positions, in order; none while it waits.
    blocks: Vec<u32>,
    /// Positions whose keys and values are in the blocks.
    n_computed: usize,
    /// Blocks that others can find.
    n_published: usize,
    /// Whether it has not drawn a token since its blocks were last empty.
    prefills: bool,
    logprobs: Vec<f32>,
    filtered_logprobs: Vec<f32>,
    top_logprobs: Vec<Vec<(u32, f32)>>,
    history: History,
    text: Option<Text>,
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
            cache: KvCache::new(options.dtype, 0, &widths),
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

    /// The next tokens of all that have begun, oldest first; the youngest lose their blocks where there are too few.
    fn plan_running(&mut self) -> Vec<Planned> {
        let mut plan = Vec::new();
        let mut budget = self.options.max_prefill_tokens.max(1);
        let keys: Vec<Key> = self.running.keys().copied().collect();
        for key in keys {
            self.match_prefix(key);
            let Some(sequence) = self.running.get(&key) else { continue };
            let n_left = sequence.tokens.len() - sequence.n_computed;
            let n_tokens = if sequence.prefills { n_left.min(budget) } else { n_left };
            if n_tokens == 0 || !self.make_room(key, n_tokens) {
                continue;
            }
            if self.running[&key].prefills {
                budget -= n_tokens;
            }
            self.occupy(key, n_tokens);
            plan.push(Planned { key, n_tokens });
        }
        plan
    }

    /// Begins samples that wait, oldest first, while there is room for all that they have so far.
    fn admit(&mut self, plan: &mut Vec<Planned>) {
        let planned: usize = plan.iter().filter(|p| self.running[&p.key].prefills).map(|p| p.n_tokens).sum();
        let mut budget = self.options.max_prefill_tokens.max(1) - planned;
        let mut from = (0, 0);
        while self.running.len() < self.options.max_sequences.max(1) && budget > 0 {
            let Some((&key, sequence)) = self.waiting.range(from..).next() else { break };
            let group = &self.groups[&key.0];
            let is_new = sequence.is_none();
            if is_new && (group.is_prefilling || group.prompt.is_some()) {
                // It begins from the prompt of its group, when that is computed.
                from = (key.0 + 1, 0);
                continue;
            }
            let sequence = self.waiting.remove(&key).flatten().unwrap_or_else(|| self.begin(key, Vec::new()));
            self.running.insert(key, sequence);
            self.match_prefix(key);
            if !self.has_room_for_all(key) {
                let sequence = self.remove(key).expect("it was just put there");
                self.waiting.insert(key, (!is_new).then_some(sequence));
                break;
            }
            self.groups.get_mut(&key.0).expect("samples have a request").is_prefilling |= is_new;
            let sequence = &self.running[&key];
            let n_tokens = (sequence.tokens.len() - sequence.n_computed).min(budget);
            budget -= n_tokens;
            self.occupy(key, n_tokens);
            plan.push(Planned { key, n_tokens });
        }
    }

    /// Whether a sample that was just admitted has room for all its tokens so far, and each of the others for some more.
    /// The only one always has, once the prompts that are kept are let go.
    fn has_room_for_all(&mut self, key: Key) -> bool {
        let sequence = &self.running[&key];
        let n_needed = sequence.tokens.len().div_ceil(BLOCK_TOKENS) - sequence.blocks.len();
        if self.running.len() == 1 {
            while self.blocks.n_available() < n_needed && self.drop_prompt() {}
            return true;
        }
        n_needed + self.running.len() <= self.blocks.n_available()
    }

    fn begin(&self, key: Key, blocks: Vec<u32>) -> Sequence {
        let group = &self.groups[&key.0];
        let tokens = group.request.prompt_ids.clone();
        let (n_prompt, params) = (tokens.len(), &*group.params);
        Sequence {
            n_computed: if blocks.is_empty() { 0 } else { n_prompt },
            n_published: if self.shares && !blocks.is_empty() { n_prompt / BLOCK_TOKENS } else { 0 },
            prefills: true,
            n_prompt,
            blocks,
            logprobs: Vec::new(),
            filtered_logprobs: Vec::new(),
            top_logprobs: Vec::new(),
            history: History::new(&tokens, params),
            text: (!params.stop.is_empty()).then(|| Text::new(n_prompt)),
            tokens,
        }
    }

    /// Takes over the blocks that hold a sequence's next tokens, but for the last token: its logits are asked for.
    fn match_prefix(&mut self, key: Key) {
        let Some(sequence) = self.running.get_mut(&key).filter(|sequence| sequence.prefills) else { return };
        if !self.shares || sequence.n_computed != sequence.blocks.len() * BLOCK_TOKENS {
            return;
        }
        while sequence.n_computed + BLOCK_TOKENS < sequence.tokens.len() {
            let before = sequence.blocks.last().map_or(ROOT, |&block| self.blocks.id(block));
            let tokens = &sequence.tokens[sequence.n_computed..sequence.n_computed + BLOCK_TOKENS];
            let Some(block) = self.blocks.find(before, tokens) else { return };
            self.blocks.share(block);
            sequence.blocks.push(block);
            sequence.n_computed += BLOCK_TOKENS;
            sequence.n_published += 1;
            self.stats.shared_tokens += BLOCK_TOKENS as u64;
        }
    }

    /// Blocks that the next `n_tokens` of a sequence need, a copy of a shared last one included.
    fn n_needed(&self, sequence: &Sequence, n_tokens: usize) -> usize {
        let n_blocks = (sequence.n_computed + n_tokens).div_ceil(BLOCK_TOKENS);
        n_blocks - sequence.blocks.len() + usize::from(self.writes_to_shared(sequence))
    }

    fn writes_to_shared(&self, sequence: &Sequence) -> bool {
        let at = sequence.n_computed / BLOCK_TOKENS;
        !sequence.n_computed.is_multiple_of(BLOCK_TOKENS) && self.blocks.is_shared(sequence.blocks[at])
    }

    /// Makes as many blocks available as the sequence needs. False if it lost its own.
    fn make_room(&mut self, key: Key, n_tokens: usize) -> bool {
        while self.n_needed(&self.running[&key], n_tokens) > self.blocks.n_available() {
            if self.drop_prompt() {
                continue;
            }
            let youngest = *self.running.keys().next_back().expect("this one runs");
            self.preempt(youngest);
            if youngest == key {
                return false;
            }
        }
        true
    }

    /// Lets go of the youngest prompt that is kept for samples to come.
    fn drop_prompt(&mut self) -> bool {
        let prompt = self.groups.values_mut().rev().find_map(|group| group.prompt.take());
        prompt.iter().for_each(|prompt| self.release(&prompt.blocks));
        prompt.is_some()
    }

    fn preempt(&mut self, key: Key) {
        self.stats.preemptions += 1;
        let sequence = self.remove(key).expect("what is pre-empted runs");
        let has_drawn = sequence.tokens.len() > sequence.n_prompt;
        self.waiting.insert(key, has_drawn.then_some(sequence));
    }

    /// Takes a sequence out and its blocks from it.
    fn remove(&mut self, key: Key) -> Option<Sequence> {
        let mut sequence = self.running.remove(&key)?;
        self.release(&std::mem::take(&mut sequence.blocks));
        if sequence.prefills && sequence.tokens.len() == sequence.n_prompt {
            self.groups.get_mut(&key.0).expect("samples have a request").is_prefilling = false;
        }
        (sequence.n_computed, sequence.n_published, sequence.prefills) = (0, 0, true);
        Some(sequence)
    }

    /// The last block first: see [`Blocks`].
    fn release(&mut self, blocks: &[u32]) {
        blocks.iter().rev().for_each(|&block| self.blocks.release(block));
    }

    /// Gives a sequence the blocks of its next tokens, and makes known those that will be full.
    fn occupy(&mut self, key: Key, n_tokens: usize) {
        let sequence = self.running.get_mut(&key).expect("what is planned runs");
        let n_after = sequence.n_computed + n_tokens;
        let at = sequence.n_computed / BLOCK_TOKENS;
        let n_own = sequence.n_computed % BLOCK_TOKENS;
        let copied = (n_own > 0 && self.blocks.is_shared(sequence.blocks[at])).then(|| {
            let old = std::mem::replace(&mut sequence.blocks[at], self.blocks.take());
            self.blocks.release(old);
            (old, sequence.blocks[at])
        });
        while sequence.blocks.len() * BLOCK_TOKENS < n_after {
            sequence.blocks.push(self.blocks.take());
        }
        let n_rows = self.blocks.len() * BLOCK_TOKENS;
        if n_rows > self.cache.rows() {
            let doubled = (2 * self.cache.rows()).min(self.blocks.most() * BLOCK_TOKENS);
            self.cache.grow(n_rows.max(doubled));
        }
        if let Some((from, to)) = copied {
            self.cache.copy_rows(from as usize * BLOCK_TOKENS, to as usize * BLOCK_TOKENS, n_own);
        }
        while self.shares && (sequence.n_published + 1) * BLOCK_TOKENS <= n_after {
            let i = sequence.n_published;
            let before = if i == 0 { ROOT } else { self.blocks.id(sequence.blocks[i - 1]) };
            let tokens = &sequence.tokens[i * BLOCK_TOKENS..(i + 1) * BLOCK_TOKENS];
            sequence.blocks[i] = self.blocks.publish(before, tokens, sequence.blocks[i]);
            sequence.n_published += 1;
        }
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
        let empty = KvCache::new(self.options.dtype, 0, &[]);
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

    /// Keeps a prompt that was just computed, if other samples of it have not begun.
    fn keep_prompt(&mut self, key: Key, logits: &Tensor, row: usize) {
        let sequence = &self.running[&key];
        let group = self.groups.get_mut(&key.0).expect("samples have a request");
        if sequence.tokens.len() > sequence.n_prompt {
            return;
        }
        group.is_prefilling = false;
        let others = self.waiting.range((key.0, 0)..(key.0 + 1, 0));
        if group.prompt.is_some() || !others.into_iter().any(|(_, sequence)| sequence.is_none()) {
            return;
        }
        sequence.blocks.iter().for_each(|&block| self.blocks.share(block));
        group.prompt =
            Some(Computed { blocks: sequence.blocks.clone(), logits: logits.row_to_f32(row).into() });
    }

    /// Begins samples whose prompt is there, while there is a block for each that runs.
    fn fork(&mut self, sources: &mut BTreeMap<Key, Arc<[f32]>>) {
        let ids: Vec<u64> =
            self.groups.iter().filter(|(_, group)| group.prompt.is_some()).map(|(id, _)| *id).collect();
        for id in ids {
            let keys: Vec<Key> = self
                .waiting
                .range((id, 0)..(id + 1, 0))
                .filter(|(_, sequence)| sequence.is_none())
                .map(|(key, _)| *key)
                .collect();
            let n_keys = keys.len();
            let mut n_begun = 0;
            for key in keys {
                let has_room = self.running.is_empty() || self.running.len() < self.blocks.n_available();
                if self.running.len() >= self.options.max_sequences.max(1) || !has_room {
                    break;
                }
                let prompt = self.groups[&id].prompt.as_ref().expect("chosen by it");
                let blocks = prompt.blocks.clone();
                sources.insert(key, prompt.logits.clone());
                blocks.iter().for_each(|&block| self.blocks.share(block));
                let sequence = self.begin(key, blocks);
                self.stats.shared_tokens += sequence.n_prompt as u64;
                self.waiting.remove(&key);
                self.running.insert(key, sequence);
                n_begun += 1;
            }
            if n_begun == n_keys {
                let prompt = self.groups.get_mut(&id).and_then(|group| group.prompt.take());
                prompt.iter().for_each(|prompt| self.release(&prompt.blocks));
            }
        }
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

/// Why a sample ends.
struct End {
    finish_reason: FinishReason,
    stop: Option<Stop>,
    found: Option<Found>,
}

fn end_of(params: &SamplingParams, token: u32, n_tokens: usize, found: Option<Found>) -> Option<End> {
    let by = |stop, found| Some(End { finish_reason: FinishReason::Stop, stop: Some(stop), found });
    if n_tokens >= params.min_new_tokens {
        if !params.ignore_eos && params.stop_token_ids.contains(&token) {
            return by(Stop::Token(token), None);
        }
        if let Some(found) = found {
            return by(Stop::Text { which: found.which, n_bytes: found.n_bytes }, Some(found));
        }
    }
    let is_long = n_tokens >= params.max_new_tokens;
    is_long.then_some(End { finish_reason: FinishReason::Length, stop: None, found: None })
}

fn finish(sequence: Sequence, end: End, params: &SamplingParams) -> Sample {
    let mut token_ids = sequence.tokens;
    token_ids.drain(..sequence.n_prompt);
    Sample {
        token_ids,
        logprobs: sequence.logprobs,
        filtered_logprobs: params.changes_distribution().then_some(sequence.filtered_logprobs),
        top_logprobs: sequence.top_logprobs,
        finish_reason: end.finish_reason,
        stop: end.stop,
        text: sequence.text.map(|text| text.finish(end.found)),
    }
}

/// Cache rows of the first `n` positions.
fn cache_rows(blocks: &[u32], n: usize) -> Vec<u32> {
    let mut rows = Vec::with_capacity(n);
    for (i, &block) in blocks.iter().take(n.div_ceil(BLOCK_TOKENS)).enumerate() {
        let first = block * BLOCK_TOKENS as u32;
        rows.extend(first..first + (n - i * BLOCK_TOKENS).min(BLOCK_TOKENS) as u32);
    }
    rows
}

/// Whether keys depend on how long their sequence is (`pt_models`, `rope.rs`): then a prefix of another is not the same.
fn depends_on_length(model: &Model) -> bool {
    fn any(value: &serde_json::Value) -> bool {
        let named = |key: &str| matches!(value[key].as_str(), Some("dynamic" | "longrope" | "su"));
        named("rope_type") || named("type") || value.as_object().is_some_and(|map| map.values().any(any))
    }
    model.config.raw().values().any(any)
}
