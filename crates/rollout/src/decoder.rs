//! Decoding many samples together over one cache of keys and values.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use pt_core::rng::Stream;
use pt_engine::{Batch, CachedSpan, Dtype, KvCache, LogprobOptions, Tape, Tensor};
use pt_models::Model;
use rayon::prelude::*;

use crate::{FinishReason, Picked, Request, RolloutError, Sample, SamplingParams};

/// Samples decoded at once, at most.
const SAMPLES: usize = 64;
/// Prompt tokens computed in one pass, at least those of one request.
const PREFILL_TOKENS: usize = 2048;
/// Bytes of keys and values, at most, unless one sample alone needs more.
pub(crate) const CACHE_BYTES: usize = 1 << 30;

/// A prompt in the cache, for all samples that continue it.
struct Prompt {
    request: usize,
    /// Cache rows of its tokens.
    rows: Vec<u32>,
    /// Logits after it.
    logits: Arc<[f32]>,
}

/// A sample being decoded.
struct Active {
    sample: usize,
    prompt: Rc<Prompt>,
    /// Cache rows set aside for its own tokens; the last token needs none, because nothing follows it.
    rows: Vec<u32>,
    token_ids: Vec<u32>,
    logprobs: Vec<f32>,
}

/// Where the logits for a sample's next token are.
enum Logits {
    /// After its prompt.
    Prompt(Arc<[f32]>),
    /// In a row of this pass.
    Row(usize),
}

pub(crate) struct Decoder<'a> {
    model: &'a Model,
    dtype: Dtype,
    requests: &'a [Request],
    params: &'a SamplingParams,
    stream: Stream,
    /// (request, sample), in order of request.
    waiting: VecDeque<(usize, usize)>,
    active: Vec<Active>,
    /// The prompt of the request begun last, while samples of it are still waiting.
    latest: Option<Rc<Prompt>>,
    free_rows: Vec<u32>,
    cache: Rc<RefCell<KvCache>>,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(
        model: &'a Model,
        dtype: Dtype,
        requests: &'a [Request],
        params: &'a SamplingParams,
        waiting: VecDeque<(usize, usize)>,
        cache_bytes: usize,
    ) -> Decoder<'a> {
        let widths = model.arch.kv_widths();
        let most = cache_bytes / row_bytes(&widths, dtype);
        let n_rows = cache_rows(most, requests, params, waiting.len());
        Decoder {
            model,
            dtype,
            requests,
            params,
            stream: Stream::new(params.seed, "sampling"),
            waiting,
            active: Vec::new(),
            latest: None,
            free_rows: (0..n_rows as u32).rev().collect(),
            cache: Rc::new(RefCell::new(KvCache::new(dtype, n_rows, &widths))),
        }
    }

    /// One forward pass and one sampled token per active sample. Returns whether there is more to do.
    pub(crate) fn advance(
        &mut self,
        results: &mut [Vec<Option<Sample>>],
        watch: &mut dyn FnMut(usize, usize, u32),
    ) -> Result<bool, RolloutError> {
        let n_decoding = self.active.len();
        let logits = self.forward(n_decoding);
        assert!(!self.active.is_empty() || self.waiting.is_empty(), "the cache holds at least one sample");
        let picks = self.pick(&logits, n_decoding);
        for (active, picked) in self.active.iter_mut().zip(picks) {
            let request = active.prompt.request;
            let n_tokens = active.token_ids.len();
            let picked = picked.ok_or(RolloutError::NotFinite { request, n_tokens })?;
            active.token_ids.push(picked.token);
            active.logprobs.push(picked.logp);
            watch(request, active.sample, picked.token);
        }
        self.retire(results);
        Ok(!self.active.is_empty() || !self.waiting.is_empty())
    }

    /// Logits after the last token of each of the first `n_decoding` samples, one row each. Prompts that there is
    /// room for are computed in the same pass, and their samples join the active ones.
    fn forward(&mut self, n_decoding: usize) -> Option<Tensor> {
        let (mut tokens, mut spans, mut last_rows) = (Vec::new(), Vec::new(), Vec::new());
        let mut add = |new: &[u32], rows: Vec<u32>| {
            spans.push(CachedSpan { q_row: tokens.len(), q_len: new.len(), rows });
            tokens.extend_from_slice(new);
            last_rows.push(tokens.len() as u32 - 1);
        };
        for active in &self.active {
            let (last, n_tokens) = (active.token_ids.len() - 1, active.token_ids.len());
            let rows = [&*active.prompt.rows, &active.rows[..n_tokens]].concat();
            add(&active.token_ids[last..], rows);
        }
        let begun = self.begin();
        for (request, rows, _) in &begun {
            if let Some(rows) = rows {
                add(&self.requests[*request].prompt_ids, rows.clone());
            }
        }
        let logits = (!tokens.is_empty()).then(|| self.compute(tokens, spans, &last_rows));
        let mut next = n_decoding;
        for (request, rows, sample) in begun {
            if let (Some(rows), Some(logits)) = (rows, &logits) {
                self.latest = Some(Rc::new(Prompt { request, rows, logits: logits.row_to_f32(next).into() }));
                next += 1;
            }
            let prompt = self.latest.clone().expect("a sample begins with its prompt, or after it");
            let rows = self.free_rows.split_off(self.free_rows.len() - self.own_rows());
            self.active.push(Active { sample, prompt, rows, token_ids: Vec::new(), logprobs: Vec::new() });
        }
        if self.waiting.front().map(|(request, _)| *request) != self.latest.as_ref().map(|p| p.request) {
            self.latest = None;
        }
        logits
    }

    /// Takes the waiting samples that there is room for: (request, rows of the prompt if it is new, sample).
    fn begin(&mut self) -> Vec<(usize, Option<Vec<u32>>, usize)> {
        let mut begun = Vec::new();
        let mut present = self.latest.as_ref().map(|prompt| prompt.request);
        let mut prefill = 0;
        // Rows for the samples' own tokens are taken from the pool after the prompts' rows.
        let mut set_aside = 0;
        while let Some(&(request, sample)) = self.waiting.front() {
            let n_prompt = if present == Some(request) { 0 } else { self.requests[request].prompt_ids.len() };
            let fits = n_prompt + set_aside + self.own_rows() <= self.free_rows.len();
            let later = prefill > 0 && prefill + n_prompt > PREFILL_TOKENS;
            if self.active.len() + begun.len() == SAMPLES || !fits || later {
                break;
            }
            self.waiting.pop_front();
            prefill += n_prompt;
            set_aside += self.own_rows();
            let rows = (n_prompt > 0).then(|| self.free_rows.split_off(self.free_rows.len() - n_prompt));
            begun.push((request, rows, sample));
            present = Some(request);
        }
        begun
    }

    /// Cache rows of a sample's own tokens.
    fn own_rows(&self) -> usize {
        self.params.max_new_tokens - 1
    }

    fn compute(&self, tokens: Vec<u32>, spans: Vec<CachedSpan>, last_rows: &[u32]) -> Tensor {
        let batch = Batch::cached(tokens, self.cache.clone(), spans);
        let mut tape = Tape::inference(&self.model.params, &batch, self.dtype);
        let hidden = self.model.arch.hidden(&mut tape, false);
        let options = self.model.arch.logprob_options();
        let temperature = if self.params.temperature > 0.0 { self.params.temperature } else { 1.0 };
        let options = LogprobOptions { temperature: options.temperature * temperature, ..options };
        tape.logits(&hidden, self.model.arch.head(), last_rows, &options)
    }

    /// A token for each active sample; `None` where the logits are not finite.
    fn pick(&self, logits: &Option<Tensor>, n_decoding: usize) -> Vec<Option<Picked>> {
        let draws: Vec<(Logits, [u32; 4])> = self
            .active
            .iter()
            .enumerate()
            .map(|(i, active)| {
                let at = (active.sample as u64) << 32 | active.token_ids.len() as u64;
                let random = self.stream.words(self.requests[active.prompt.request].key, at);
                let logits = if i < n_decoding {
                    Logits::Row(i)
                } else {
                    Logits::Prompt(active.prompt.logits.clone())
                };
                (logits, random)
            })
            .collect();
        let params = self.params;
        let pick = |(source, random): &(Logits, [u32; 4])| match (source, logits) {
            (Logits::Prompt(row), _) => params.pick(row, *random),
            (Logits::Row(i), Some(logits)) => params.pick(&logits.row_to_f32(*i), *random),
            (Logits::Row(_), None) => unreachable!("samples that decode have logits"),
        };
        draws.par_iter().map(pick).collect()
    }

    fn retire(&mut self, results: &mut [Vec<Option<Sample>>]) {
        let params = self.params;
        for mut active in std::mem::take(&mut self.active) {
            let last = *active.token_ids.last().expect("a token was just sampled");
            let finish_reason = if params.stop_token_ids.contains(&last) {
                FinishReason::Stop
            } else if active.token_ids.len() >= params.max_new_tokens {
                FinishReason::Length
            } else {
                self.active.push(active);
                continue;
            };
            self.free_rows.append(&mut active.rows);
            results[active.prompt.request][active.sample] =
                Some(Sample { token_ids: active.token_ids, logprobs: active.logprobs, finish_reason });
            // The last sample of a prompt that nobody waits for gives back its rows, too.
            if let Ok(prompt) = Rc::try_unwrap(active.prompt) {
                self.free_rows.extend(prompt.rows);
            }
        }
    }
}

/// Bytes of the keys and values of one token.
fn row_bytes(widths: &[usize], dtype: Dtype) -> usize {
    let element = match dtype {
        Dtype::F32 => 4,
        Dtype::Bf16 => 2,
    };
    2 * element * widths.iter().sum::<usize>()
}

/// Rows of the cache: what all samples need if that is not more than `most`, and no less than what one needs.
fn cache_rows(most: usize, requests: &[Request], params: &SamplingParams, n_samples: usize) -> usize {
    let longest = requests.iter().map(|r| r.prompt_ids.len()).max().unwrap_or(0);
    let one = longest + params.max_new_tokens - 1;
    (n_samples.min(SAMPLES) * one).min(most).max(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache with room for one sample, for a few, and for all: nothing changes but the time it takes.
    #[test]
    fn a_small_cache_gives_the_same_samples() {
        let dir = pt_core::testdata::workspace_root().join("golden/models/llama");
        let model = pt_models::load(&dir, &pt_models::LoadOptions::default()).unwrap();
        let requests: Vec<Request> = (0..7u32)
            .map(|r| Request {
                prompt_ids: (0..1 + r * 3).map(|i| (i * 5 + r) % 112).collect(),
                key: r.into(),
            })
            .collect();
        let stop_token_ids = (0..20).collect();
        let params = SamplingParams { n: 3, max_new_tokens: 8, stop_token_ids, ..SamplingParams::default() };
        let row = row_bytes(&model.arch.kv_widths(), Dtype::F32);
        let run = |n_rows: usize| {
            let jobs = (0..7).flat_map(|r| (0..3).map(move |s| (r, s))).collect();
            let mut decoder = Decoder::new(&model, Dtype::F32, &requests, &params, jobs, n_rows * row);
            let (mut results, mut n_passes) = (vec![vec![None; 3]; 7], 1);
            let n_rows = decoder.free_rows.len();
            while decoder.advance(&mut results, &mut |_, _, _| {}).unwrap() {
                n_passes += 1;
            }
            assert_eq!(decoder.free_rows.len(), n_rows, "all rows are given back");
            (results, n_passes)
        };
        let (expected, fewest) = run(usize::MAX / row);
        assert!(expected.iter().flatten().all(Option::is_some));
        for n_rows in [0, 40, 90] {
            let (results, n_passes) = run(n_rows);
            assert_eq!(results, expected, "{n_rows} rows");
            assert!(n_passes > fewest, "{n_rows} rows: {n_passes} passes");
        }
    }
}
