//! Groups of replies to prompts.

use pt_engine::Dtype;
use pt_models::Model;
use pt_recipe::PlannedRollout;
use pt_rollout::{FinishReason, Request, SamplingParams};
use pt_text::{ChatTemplate, Tokenizer};

use crate::error::Result;
use crate::stop::stop_token_ids;

/// Samples replies the way a stage says.
pub(crate) struct Sampler<'t> {
    tokenizer: &'t Tokenizer,
    params: SamplingParams,
    dtype: Dtype,
}

/// One reply.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drawn {
    /// Its tokens, what ended it included.
    pub(crate) token_ids: Vec<u32>,
    /// Log-probabilities as the trainer computes them.
    pub(crate) logprobs: Vec<f32>,
    /// Log-probabilities under the filtered distribution it was drawn from, where there is a filter.
    pub(crate) filtered_logprobs: Option<Vec<f32>>,
    /// Its text, special tokens removed.
    pub(crate) text: String,
    /// Whether it was cut at the token limit.
    pub(crate) is_truncated: bool,
}

impl<'t> Sampler<'t> {
    pub(crate) fn new(
        tokenizer: &'t Tokenizer,
        template: Option<&ChatTemplate>,
        rollout: &PlannedRollout,
        seed: u64,
        dtype: Dtype,
    ) -> Sampler<'t> {
        let params = SamplingParams {
            n: rollout.n as usize,
            max_new_tokens: rollout.max_new_tokens as usize,
            temperature: rollout.temperature as f32,
            top_k: rollout.top_k as usize,
            top_p: rollout.top_p as f32,
            min_p: rollout.min_p as f32,
            stop_token_ids: stop_token_ids(tokenizer, template),
            seed,
            ..SamplingParams::default()
        };
        Sampler { tokenizer, params, dtype }
    }

    /// Replies to each prompt.
    pub(crate) fn n(&self) -> usize {
        self.params.n
    }

    pub(crate) fn params(&self) -> &SamplingParams {
        &self.params
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The same with another number of replies.
    pub(crate) fn of_size(&self, n: usize) -> Sampler<'t> {
        Sampler { params: SamplingParams { n, ..self.params.clone() }, ..*self }
    }

    /// The same with other draws.
    pub(crate) fn seeded(&self, seed: u64) -> Sampler<'t> {
        Sampler { params: SamplingParams { seed, ..self.params.clone() }, ..*self }
    }

    /// The same with shorter replies.
    pub(crate) fn limited_to(&self, n_tokens: usize) -> Sampler<'t> {
        let max_new_tokens = self.params.max_new_tokens.min(n_tokens);
        Sampler { params: SamplingParams { max_new_tokens, ..self.params.clone() }, ..*self }
    }

    /// A group for each prompt. `key` identifies the draws of each: with the seed it decides what is sampled.
    pub(crate) fn groups(&self, model: &Model, prompts: &[(u64, Vec<u32>)]) -> Result<Vec<Vec<Drawn>>> {
        let request =
            |(key, prompt_ids): &(u64, Vec<u32>)| Request { prompt_ids: prompt_ids.clone(), key: *key };
        let requests: Vec<Request> = prompts.iter().map(request).collect();
        let samples = pt_rollout::generate(model, self.dtype, &requests, &self.params, &mut |_, _, _| {})?;
        samples
            .into_iter()
            .map(|group| group.into_iter().map(|sample| self.drawn(sample)).collect::<Result<Vec<_>>>())
            .collect()
    }

    fn drawn(&self, sample: pt_rollout::Sample) -> Result<Drawn> {
        let is_truncated = sample.finish_reason == FinishReason::Length;
        let drawn = self.finished(sample.token_ids, sample.logprobs, is_truncated)?;
        Ok(Drawn { filtered_logprobs: sample.filtered_logprobs, ..drawn })
    }

    /// A reply of these tokens.
    pub(crate) fn finished(
        &self,
        token_ids: Vec<u32>,
        logprobs: Vec<f32>,
        is_truncated: bool,
    ) -> Result<Drawn> {
        let is_stop = |id: &u32| self.params.stop_token_ids.contains(id);
        let spoken: Vec<u32> = token_ids.iter().copied().filter(|id| !is_stop(id)).collect();
        let text = self.tokenizer.decode(&spoken, true)?;
        Ok(Drawn { text, token_ids, logprobs, filtered_logprobs: None, is_truncated })
    }
}
