//! Groups of replies to prompts.

use std::sync::Arc;

use pt_data::Record;
use pt_engine::Dtype;
use pt_models::Model;
use pt_recipe::PlannedRollout;
use pt_rl::metrics::EpisodeFigures;
use pt_rollout::{FinishReason, Request, SamplingParams};
use pt_text::{ChatTemplate, Tokenizer};

use super::drawing::draw;
use super::environment::Stage;
use super::play::{End, Played, text_of};
use super::policy::Own;
use super::server::{Remote, Server};
use crate::error::Result;
use crate::stop::stop_token_ids;

/// Samples replies the way a stage says.
pub(crate) struct Sampler<'t> {
    tokenizer: &'t Tokenizer,
    template: Option<&'t ChatTemplate>,
    params: SamplingParams,
    dtype: Dtype,
    stage: Option<Arc<Stage>>,
    server: Option<Arc<Server>>,
}

/// What is to be continued.
#[derive(Clone, Debug)]
pub(crate) struct Prompt<'r> {
    /// Identifies its draws: with the seed it decides what is sampled.
    pub(crate) key: u64,
    /// Its tokens.
    pub(crate) token_ids: Vec<u32>,
    /// The row it came from; an environment needs it.
    pub(crate) record: Option<&'r Record>,
}

impl Prompt<'_> {
    /// The row.
    ///
    /// # Panics
    /// If none was given.
    pub(super) fn row(&self) -> &Record {
        self.record.expect("a stage with an environment knows the rows of its prompts")
    }

    pub(super) fn request(&self) -> Request {
        Request { prompt_ids: self.token_ids.clone(), key: self.key }
    }
}

/// One reply.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drawn {
    /// Its tokens, what ended it included.
    pub(crate) token_ids: Vec<u32>,
    /// 1 for each token that was sampled, 0 for what an environment said.
    pub(crate) weights: Vec<f32>,
    /// Log-probabilities as the trainer computes them.
    pub(crate) logprobs: Vec<f32>,
    /// Log-probabilities under the filtered distribution it was drawn from, where there is a filter.
    pub(crate) filtered_logprobs: Option<Vec<f32>>,
    /// Its text, special tokens removed; of several turns the last one's.
    pub(crate) text: String,
    /// Whether it was cut at the token limit.
    pub(crate) is_truncated: bool,
    /// How it ended.
    pub(crate) end: End,
    /// What happened in the environment, if there is one.
    pub(crate) episode: Option<Box<Played>>,
}

impl Drawn {
    /// What metrics count of an episode; nothing without an environment.
    pub(crate) fn figures(&self) -> Option<EpisodeFigures> {
        self.episode.as_ref().map(|played| EpisodeFigures {
            n_turns: played.n_turns,
            n_calls: played.n_calls,
            n_failures: played.n_failures,
            is_out_of_turns: self.end == End::MaxTurns,
            is_rewritten: self.end == End::Rewritten,
            is_aborted: self.end == End::Aborted,
        })
    }

    /// The tokens that were sampled.
    pub(crate) fn sampled_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.token_ids.iter().zip(&self.weights).filter(|(_, weight)| **weight > 0.0).map(|(id, _)| *id)
    }
}

impl<'t> Sampler<'t> {
    pub(crate) fn new(
        tokenizer: &'t Tokenizer,
        template: Option<&'t ChatTemplate>,
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
        Sampler::of_params(tokenizer, template, params, dtype)
    }

    /// Samples with these parameters.
    pub(crate) fn of_params(
        tokenizer: &'t Tokenizer,
        template: Option<&'t ChatTemplate>,
        params: SamplingParams,
        dtype: Dtype,
    ) -> Sampler<'t> {
        Sampler { tokenizer, template, params, dtype, stage: None, server: None }
    }

    /// The same, with an environment between the turns.
    pub(crate) fn with_stage(&self, stage: Option<Arc<Stage>>) -> Sampler<'t> {
        Sampler { params: self.params.clone(), stage, server: self.server.clone(), ..*self }
    }

    /// The same, with a server that samples.
    pub(crate) fn with_server(&self, server: Option<Arc<Server>>) -> Sampler<'t> {
        Sampler { params: self.params.clone(), stage: self.stage.clone(), server, ..*self }
    }

    pub(super) fn server(&self) -> Option<&Server> {
        self.server.as_deref()
    }

    pub(super) fn stage(&self) -> Option<&Stage> {
        self.stage.as_deref()
    }

    pub(super) fn tokenizer(&self) -> &'t Tokenizer {
        self.tokenizer
    }

    pub(super) fn template(&self) -> Option<&'t ChatTemplate> {
        self.template
    }

    fn with(&self, params: SamplingParams) -> Sampler<'t> {
        Sampler { params, stage: self.stage.clone(), server: self.server.clone(), ..*self }
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
        self.with(SamplingParams { n, ..self.params.clone() })
    }

    /// The same with other draws.
    pub(crate) fn seeded(&self, seed: u64) -> Sampler<'t> {
        self.with(SamplingParams { seed, ..self.params.clone() })
    }

    /// The same with shorter replies.
    pub(crate) fn limited_to(&self, n_tokens: usize) -> Sampler<'t> {
        let max_new_tokens = self.params.max_new_tokens.min(n_tokens);
        self.with(SamplingParams { max_new_tokens, ..self.params.clone() })
    }

    /// A group for each prompt, of one turn each. The first of a pair identifies its draws: with the seed it decides what is sampled.
    pub(crate) fn groups(&self, model: &Model, prompts: &[(u64, Vec<u32>)]) -> Result<Vec<Vec<Drawn>>> {
        let prompts: Vec<Prompt<'_>> = prompts
            .iter()
            .map(|(key, token_ids)| Prompt { key: *key, token_ids: token_ids.clone(), record: None })
            .collect();
        self.with_stage(None).with_server(None).samples(model, &prompts)
    }

    /// A group for each prompt, in the stage's environment if there is one.
    pub(crate) fn samples(&self, model: &Model, prompts: &[Prompt<'_>]) -> Result<Vec<Vec<Drawn>>> {
        match &self.server {
            None => draw(&mut Own::new(model, self.dtype, self.stage.is_some()), self, prompts),
            Some(server) => draw(&mut Remote::new(server, self.tokenizer)?, self, prompts),
        }
    }

    pub(super) fn drawn(&self, sample: pt_rollout::Sample) -> Result<Drawn> {
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
        let text = text_of(self.tokenizer, &self.params.stop_token_ids, &token_ids, false)?;
        Ok(Drawn {
            text,
            weights: vec![1.0; token_ids.len()],
            token_ids,
            logprobs,
            filtered_logprobs: None,
            is_truncated,
            end: if is_truncated { End::Length } else { End::Stop },
            episode: None,
        })
    }
}
