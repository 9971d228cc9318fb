//! A model of this machine, sampled by the project's own engine.

use std::path::{Path, PathBuf};

use pt_client::cache::Cache;
use pt_core::hash;
use pt_engine::Dtype;
use pt_models::Model;
use pt_rollout::{FinishReason, Request, Sample, SamplingParams};
use pt_text::{ChatTemplate, Conversation, MaskPolicy, Masker, Message, Origin, Tokenizer};
use serde_json::{Map, Value, json};

use crate::chat::{Answer, Answers, Ask, AskOptions, Chat, Token, key_of};
use crate::error::{FeedbackError, Result};

/// Changes whenever the same ask would be answered otherwise.
const VERSION: &str = "local chat 1";

/// A model with its tokenizer and chat template.
pub struct LocalChat {
    /// What reports call it.
    pub name: String,
    /// Identity of its weights by content, for the cache.
    pub identity: String,
    /// The weights.
    pub model: Model,
    /// Storage of activations.
    pub dtype: Dtype,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template.
    pub template: ChatTemplate,
    /// Tokens that end an answer.
    pub stop_token_ids: Vec<u32>,
    /// Where answers are kept between runs; `None` keeps none.
    pub cache_dir: Option<PathBuf>,
}

/// Identity of a model's weights and configurations by content, wherever they lie: its folder, or its file, and its adapter's.
///
/// # Errors
/// [`FeedbackError::Io`].
pub fn identity_of(places: &[&Path]) -> Result<String> {
    let mut parts = Vec::new();
    for place in places {
        let mut files: Vec<PathBuf> = match place.is_dir() {
            true => std::fs::read_dir(place)
                .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
                .map_err(FeedbackError::io("read", *place))?,
            false => vec![place.to_path_buf()],
        };
        let counts = |path: &PathBuf| {
            path.is_file()
                && path.extension().is_some_and(|e| e == "safetensors" || e == "json" || e == "bin")
        };
        files.retain(counts);
        files.sort();
        for file in files {
            parts.push(file.file_name().unwrap_or_default().to_string_lossy().into_owned());
            parts.push(hash::of_file(&file).map_err(FeedbackError::io("read", &file))?);
        }
    }
    Ok(hash::of_parts(parts.iter().map(String::as_bytes)))
}

impl LocalChat {
    fn prompt_ids(&self, ask: &Ask) -> std::result::Result<Vec<u32>, String> {
        let message = |turn: &crate::Turn| -> Message {
            let pair = |key: &str, text: &str| (key.to_owned(), Value::from(text));
            Map::from_iter([pair("role", &turn.role), pair("content", &turn.content)])
        };
        let messages: Vec<Message> = ask.messages.iter().map(message).collect();
        let masker = Masker::new(&self.tokenizer, Some(&self.template), MaskPolicy::default());
        let conversation = Conversation { messages: &messages, ..Conversation::default() };
        let ids =
            masker.prompt(&Origin::default(), &conversation).map_err(|error| error.to_string())?.token_ids;
        let vocabulary = self.model.params.get(self.model.arch.head()).shape[0];
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(format!("token id {id} is outside the model's vocabulary of {vocabulary}"));
        }
        let longest = self.model.config.max_positions;
        if ids.len() >= longest {
            return Err(format!("the prompt has {} tokens, and the model was made for {longest}", ids.len()));
        }
        match ids.is_empty() {
            true => Err("the prompt has no tokens".to_owned()),
            false => Ok(ids),
        }
    }

    fn cache_body(&self, ask: &Ask, options: &AskOptions) -> Map<String, Value> {
        let body = json!({
            "version": VERSION,
            "model": self.identity,
            "tokenizer": self.tokenizer.content_hash(),
            "template": hash::of_bytes(self.template.source().as_bytes()),
            "dtype": format!("{:?}", self.dtype),
            "stop_token_ids": self.stop_token_ids,
            "messages": ask.messages,
            "seed": ask.seed,
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "top_logprobs": options.top_logprobs,
        });
        let Value::Object(body) = body else { unreachable!("it is written as an object") };
        body
    }

    fn sample(&self, prompts: &[(u64, Vec<u32>)], options: &AskOptions) -> Result<Vec<Answer>> {
        let params = SamplingParams {
            max_new_tokens: options.max_tokens as usize,
            temperature: options.temperature as f32,
            stop_token_ids: self.stop_token_ids.clone(),
            top_logprobs: options.top_logprobs as usize,
            ..SamplingParams::default()
        };
        let request =
            |(key, prompt_ids): &(u64, Vec<u32>)| Request { prompt_ids: prompt_ids.clone(), key: *key };
        let requests: Vec<Request> = prompts.iter().map(request).collect();
        let samples = pt_rollout::generate(&self.model, self.dtype, &requests, &params, &mut |_, _, _| {})
            .map_err(|error| FeedbackError::Option {
                name: "model",
                found: format!("one that cannot be sampled from: {error}"),
                expected: "a model that answers",
            })?;
        let answer = |(sample, request): (Vec<Sample>, &Request)| {
            let sample = sample.into_iter().next().expect("one sample was asked for");
            self.answer(&sample, request.prompt_ids.len(), options)
        };
        Ok(samples.into_iter().zip(&requests).map(answer).collect())
    }

    fn answer(&self, sample: &Sample, n_prompt: usize, options: &AskOptions) -> Answer {
        let text = |ids: &[u32]| self.tokenizer.decode(ids, true).unwrap_or_default();
        let n_text = sample.token_ids.len() - usize::from(sample.finish_reason == FinishReason::Stop);
        let ids = &sample.token_ids[..n_text];
        let token = |i: usize| Token {
            text: text(&ids[i..=i]),
            logprob: f64::from(sample.logprobs[i]),
            top: sample.top_logprobs[i]
                .iter()
                .map(|(id, logprob)| (text(&[*id]), f64::from(*logprob)))
                .collect(),
        };
        Answer {
            text: text(ids),
            tokens: if options.top_logprobs > 0 { (0..n_text).map(token).collect() } else { Vec::new() },
            is_truncated: sample.finish_reason == FinishReason::Length,
            prompt_tokens: n_prompt as u64,
            completion_tokens: sample.token_ids.len() as u64,
        }
    }

    fn fresh(&self, asks: &[&Ask], options: &AskOptions) -> Result<Answers> {
        let prompts: Vec<std::result::Result<(u64, Vec<u32>), String>> = asks
            .iter()
            .map(|ask| {
                let texts = ask.messages.iter().flat_map(|turn| [turn.role.as_str(), turn.content.as_str()]);
                Ok((key_of(texts) ^ ask.seed, self.prompt_ids(ask)?))
            })
            .collect();
        let good: Vec<(u64, Vec<u32>)> = prompts.iter().filter_map(|prompt| prompt.clone().ok()).collect();
        let mut answers = self.sample(&good, options)?.into_iter();
        let answer = |prompt: std::result::Result<_, String>| {
            prompt.map(|_| answers.next().expect("every good prompt was sampled"))
        };
        Ok(prompts.into_iter().map(answer).collect())
    }
}

impl Chat for LocalChat {
    fn name(&self) -> &str {
        &self.name
    }

    fn ask_all(&self, asks: &[Ask], options: &AskOptions) -> Result<Answers> {
        let cache = self.cache_dir.as_ref().map(Cache::new);
        let bodies: Vec<Map<String, Value>> = asks.iter().map(|ask| self.cache_body(ask, options)).collect();
        let keys: Vec<String> = bodies.iter().map(|body| Cache::key("local", body)).collect();
        let mut answers: Vec<Option<std::result::Result<Answer, String>>> = vec![None; asks.len()];
        if let Some(cache) = &cache {
            for (slot, key) in answers.iter_mut().zip(&keys) {
                *slot = cache.get(key)?.and_then(|json| serde_json::from_value(json).ok()).map(Ok);
            }
        }
        let missing: Vec<usize> = (0..asks.len()).filter(|&i| answers[i].is_none()).collect();
        let fresh = self.fresh(&missing.iter().map(|&i| &asks[i]).collect::<Vec<_>>(), options)?;
        for (&i, answer) in missing.iter().zip(fresh) {
            if let (Some(cache), Ok(answer)) = (&cache, &answer) {
                cache.put(&keys[i], &bodies[i], &json!(answer))?;
            }
            answers[i] = Some(answer);
        }
        Ok(answers.into_iter().map(|answer| answer.expect("every ask was answered")).collect())
    }
}
