//! A model that is asked: probabilities by the trainer's scorer, replies by the rollout engine.

use std::collections::HashMap;
use std::sync::Arc;

use pt_engine::Dtype;
use pt_models::Model;
use pt_rollout::{EngineOptions, FinishReason, Request, SamplingParams};
use pt_text::{ChatTemplate, Conversation, MaskPolicy, Masker, Origin, Tokenizer};
use pt_train::{Example, MicroBatch, Reply};
use serde_json::{Map, Value};

use crate::error::{EvalError, Result};
use crate::item::{ChoiceScore, Prompt};
use crate::source::Settings;

/// Tokens scored at once; a longer question is scored alone.
const TOKENS_PER_BATCH: usize = 4096;
/// Prompts drawn for before progress is told.
const PROMPTS_PER_CHUNK: usize = 256;
/// Tokens of the prompt from which decoding starts, so that a reply's text continues it (white space).
const DECODE_CONTEXT: usize = 16;

/// A model with what is needed to ask it.
#[derive(Clone)]
pub struct Subject<'m> {
    /// What it is called in results.
    pub name: &'m str,
    /// The weights.
    pub model: &'m Model,
    /// Storage of activations.
    pub dtype: Dtype,
    /// The tokenizer.
    pub tokenizer: &'m Tokenizer,
    /// The chat template, if there is one.
    pub template: Option<&'m ChatTemplate>,
    /// Tokens that end a reply.
    pub stop_token_ids: &'m [u32],
}

/// A prompt as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// The question's name, for errors.
    pub key: String,
    /// The text.
    pub text: String,
    /// Whether the text has its special tokens in it, as a chat template writes them.
    pub is_chat: bool,
}

/// A reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// Its text, up to the stop.
    pub text: String,
    /// Whether it was cut at the token limit.
    pub is_truncated: bool,
    /// Whether the beginning of its prompt was left away, for want of room.
    pub is_prompt_cut: bool,
}

/// A question with its choices, scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// One for each choice.
    pub scores: Vec<ChoiceScore>,
    /// Whether the beginning of the prompt was left away, for want of room.
    pub is_prompt_cut: bool,
}

/// What is told while something runs: steps done, of how many.
pub type Watch<'w> = &'w mut dyn FnMut(usize, usize);

impl<'m> Subject<'m> {
    /// The longest sequence the model was made for.
    pub fn max_length(&self) -> usize {
        self.model.config.max_positions
    }

    fn masker(&self) -> Masker<'m> {
        Masker::new(self.tokenizer, self.template, MaskPolicy::default())
    }

    /// A prompt as the model sees it.
    ///
    /// # Errors
    /// [`EvalError::NoTemplate`], or if the template refuses it.
    pub fn render(&self, key: &str, prompt: &Prompt, chat: bool) -> Result<Rendered> {
        match chat {
            true => self.render_messages(key, &prompt.messages()),
            false => Ok(Rendered { key: key.to_owned(), text: prompt.text(), is_chat: false }),
        }
    }

    fn render_messages(&self, key: &str, messages: &[Map<String, Value>]) -> Result<Rendered> {
        if self.template.is_none() {
            return Err(EvalError::NoTemplate { model: self.name.to_owned() });
        }
        let conversation = Conversation { messages, ..Conversation::default() };
        let prompt = self.masker().prompt(&Origin::new(key, 0), &conversation)?;
        Ok(Rendered { key: key.to_owned(), text: prompt.text, is_chat: true })
    }

    /// Tokens of a text that begins as `rendered` does.
    fn encode(&self, rendered: &Rendered, text: &str) -> Result<Vec<u32>> {
        let ids = match rendered.is_chat {
            true => self.tokenizer.encode_whole(text, false)?.ids,
            false => self.masker().prompt_text(&Origin::new(rendered.key.clone(), 0), text)?.token_ids,
        };
        self.check_vocabulary(&rendered.key, ids)
    }

    fn check_vocabulary(&self, key: &str, ids: Vec<u32>) -> Result<Vec<u32>> {
        let vocabulary = self.model.params.get(self.model.arch.head()).shape[0];
        match ids.iter().find(|&&id| id as usize >= vocabulary) {
            None => Ok(ids),
            Some(id) => Err(self.question(
                key,
                format!(
                    "token id {id} is outside the model's vocabulary of {vocabulary}; is it the model's tokenizer?"
                ),
            )),
        }
    }

    fn question(&self, key: &str, problem: String) -> EvalError {
        EvalError::Question { benchmark: self.name.to_owned(), key: key.to_owned(), problem }
    }

    /// How probable each choice is as a continuation of its prompt.
    ///
    /// As lm-evaluation-harness does it: white space at the prompt's end moves to the choice, prompt and choice are
    /// tokenised together, and the choice's tokens are those after as many as the prompt alone has. What does not fit the model is cut
    /// at its beginning.
    ///
    /// # Errors
    /// If a text cannot be tokenised, a choice has no tokens of its own, or the model's numbers are no numbers.
    pub fn choose(&self, asked: &[(Rendered, Vec<String>)], watch: Watch<'_>) -> Result<Vec<Chosen>> {
        let mut jobs = Vec::with_capacity(asked.len());
        for (rendered, choices) in asked {
            jobs.push(self.job(rendered, choices)?);
        }
        let (mut results, mut start) = (Vec::with_capacity(jobs.len()), 0);
        while start < jobs.len() {
            let (mut end, mut n_tokens) = (start, 0);
            while end < jobs.len() && (end == start || n_tokens + jobs[end].n_tokens() <= TOKENS_PER_BATCH) {
                n_tokens += jobs[end].n_tokens();
                end += 1;
            }
            results.extend(self.score(&jobs[start..end])?);
            start = end;
            watch(start, jobs.len());
        }
        Ok(results)
    }

    fn job(&self, rendered: &Rendered, choices: &[String]) -> Result<Job> {
        let context = rendered.text.trim_end();
        let space = &rendered.text[context.len()..];
        let prompt = self.encode(rendered, context)?;
        let mut continuations = Vec::with_capacity(choices.len());
        for choice in choices {
            let whole = self.encode(rendered, &[context, space, choice].concat())?;
            if whole.len() <= prompt.len() || prompt.is_empty() {
                return Err(self.question(
                    &rendered.key,
                    format!(
                        "the choice {choice:?} has no tokens of its own after the prompt's {}",
                        prompt.len()
                    ),
                ));
            }
            continuations.push(whole[prompt.len()..].to_vec());
        }
        Ok(Job::new(rendered.key.clone(), prompt, continuations, self.max_length()))
    }

    fn score(&self, jobs: &[Job]) -> Result<Vec<Chosen>> {
        let batch = MicroBatch::new(jobs.iter().flat_map(|job| job.examples.iter().cloned()).collect());
        let predictions = batch.predictions();
        let engine_batch = batch.batch().expect("every example has tokens: it was checked");
        let found = pt_train::score(self.model, &engine_batch, self.dtype, &predictions);
        let mut at = 0;
        let mut results = Vec::with_capacity(jobs.len());
        for job in jobs {
            let mut scores = Vec::with_capacity(job.lengths.len());
            for &n_tokens in &job.lengths {
                let range = at..at + n_tokens;
                at += n_tokens;
                let logprob: f64 = found.logp[range.clone()].iter().map(|logp| f64::from(*logp)).sum();
                if logprob.is_nan() {
                    return Err(EvalError::NotFinite { model: self.name.to_owned(), key: job.key.clone() });
                }
                let is_greedy = found.correct[range].iter().all(|correct| *correct);
                scores.push(ChoiceScore { logprob, is_greedy, n_tokens });
            }
            results.push(Chosen { scores, is_prompt_cut: job.is_cut });
        }
        assert_eq!(at, found.logp.len(), "every prediction belongs to a choice");
        Ok(results)
    }

    /// How probable whole texts are, by windows (see `benchmarks::perplexity`).
    ///
    /// # Errors
    /// As [`Subject::choose`]; and if the tokenizer has neither BOS nor EOS.
    pub fn roll(&self, texts: &[Rendered], watch: Watch<'_>) -> Result<Vec<ChoiceScore>> {
        let Some(prefix) = self.tokenizer.bos_id().or(self.tokenizer.eos_id()) else {
            let problem =
                "the tokenizer has neither BOS nor EOS, so the first token has no context".to_owned();
            return Err(self.question("0", problem));
        };
        self.check_vocabulary("0", vec![prefix])?;
        let mut results = Vec::with_capacity(texts.len());
        for (index, rendered) in texts.iter().enumerate() {
            let ids = self.tokenizer.encode_whole(&rendered.text, false)?.ids;
            let ids = self.check_vocabulary(&rendered.key, ids)?;
            let mut total = ChoiceScore { logprob: 0.0, is_greedy: true, n_tokens: 0 };
            for window in windows(&ids, prefix, self.max_length()) {
                let job = Job::sequence(rendered.key.clone(), window);
                let score = self.score(&[job])?.remove(0).scores[0];
                total.logprob += score.logprob;
                total.is_greedy &= score.is_greedy;
                total.n_tokens += score.n_tokens;
            }
            results.push(total);
            watch(index + 1, texts.len());
        }
        Ok(results)
    }

    /// `settings.samples` replies to each prompt. A prompt that leaves no room for a reply is cut at its beginning.
    ///
    /// A reply depends on its prompt, the seed and how often the prompt came before, not on other prompts.
    ///
    /// # Errors
    /// If a prompt cannot be tokenised or continued; [`EvalError::NoRoom`].
    pub fn draw(
        &self,
        prompts: &[Rendered],
        until: &[String],
        max_new_tokens: usize,
        settings: &Settings,
        watch: Watch<'_>,
    ) -> Result<Vec<Vec<Drawn>>> {
        let max_length = self.max_length();
        if max_new_tokens >= max_length {
            return Err(EvalError::NoRoom { model: self.name.to_owned(), max_length, max_new_tokens });
        }
        let room = max_length - max_new_tokens;
        let (mut requests, mut cut, mut seen) = (Vec::new(), Vec::new(), HashMap::<u64, u64>::new());
        for rendered in prompts {
            let mut prompt_ids = self.encode(rendered, &rendered.text)?;
            cut.push(prompt_ids.len() > room);
            prompt_ids.drain(..prompt_ids.len().saturating_sub(room));
            let content = content_key(&prompt_ids);
            let earlier = seen.entry(content).or_default();
            requests.push(Request { prompt_ids, key: content.wrapping_add(*earlier) });
            *earlier += 1;
        }
        let params = SamplingParams {
            n: settings.samples.max(1),
            max_new_tokens,
            temperature: settings.temperature,
            top_p: settings.top_p,
            stop_token_ids: self.stop_token_ids.to_vec(),
            stop: until.to_vec(),
            seed: settings.seed,
            ..SamplingParams::default()
        };
        let tokenizer = self.tokenizer;
        let detokenise = Arc::new(move |ids: &[u32]| tokenizer.decode(ids, true).unwrap_or_default());
        let options = EngineOptions { detokenise: Some(detokenise), ..EngineOptions::new(self.dtype) };
        let mut results = Vec::with_capacity(requests.len());
        for chunk in requests.chunks(PROMPTS_PER_CHUNK) {
            let samples =
                pt_rollout::generate(self.model, options.clone(), chunk, &params, &mut |_, _, _| {})?;
            for (request, samples) in chunk.iter().zip(samples) {
                let is_prompt_cut = cut[results.len()];
                let drawn = samples.iter().map(|sample| {
                    let text = self.continuation(&request.prompt_ids, sample)?;
                    let text = cut_at(&text, until).to_owned();
                    let is_truncated = sample.finish_reason == FinishReason::Length;
                    Ok(Drawn { text, is_truncated, is_prompt_cut })
                });
                results.push(drawn.collect::<Result<Vec<Drawn>>>()?);
            }
            watch(results.len(), requests.len());
        }
        Ok(results)
    }

    /// One reply to each conversation. Without a chat template, or when plain text is asked for, turns are joined by empty
    /// lines.
    ///
    /// # Errors
    /// As [`Subject::draw`].
    pub fn converse(
        &self,
        conversations: &[Vec<Map<String, Value>>],
        max_new_tokens: usize,
        settings: &Settings,
    ) -> Result<Vec<Drawn>> {
        let mut prompts = Vec::with_capacity(conversations.len());
        for (index, messages) in conversations.iter().enumerate() {
            let key = index.to_string();
            prompts.push(match settings.chat {
                true => self.render_messages(&key, messages)?,
                false => {
                    let texts = messages.iter().map(|m| m["content"].as_str().unwrap_or_default());
                    let text = texts.collect::<Vec<_>>().join("\n\n") + "\n\n";
                    Rendered { key, text, is_chat: false }
                }
            });
        }
        let single = Settings { samples: 1, ..settings.clone() };
        let drawn = self.draw(&prompts, &[], max_new_tokens, &single, &mut |_, _| {})?;
        Ok(drawn.into_iter().map(|mut replies| replies.remove(0)).collect())
    }

    /// The text of a sample, as it continues its prompt.
    fn continuation(&self, prompt_ids: &[u32], sample: &pt_rollout::Sample) -> Result<String> {
        let mut stream = self.tokenizer.decode_stream(true);
        for &id in &prompt_ids[prompt_ids.len().saturating_sub(DECODE_CONTEXT)..] {
            stream.push(id)?;
        }
        let mut text = String::new();
        for &id in sample.token_ids.iter().filter(|id| !self.stop_token_ids.contains(id)) {
            text += &stream.push(id)?;
        }
        Ok(text + &stream.finish()?)
    }
}

/// A text up to the earliest of some texts.
fn cut_at<'t>(text: &'t str, until: &[String]) -> &'t str {
    let end = until.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| text.find(stop)).min();
    &text[..end.unwrap_or(text.len())]
}

/// 64 bits of the prompt's hash.
fn content_key(prompt_ids: &[u32]) -> u64 {
    let bytes: Vec<u8> = prompt_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let hash = pt_core::hash::of_bytes(&bytes);
    u64::from_str_radix(&hash[..16], 16).expect("a hash is hexadecimal")
}

/// Windows of a text: tokens, and how many of the last are predicted.
fn windows(ids: &[u32], prefix: u32, max_length: usize) -> Vec<(Vec<u32>, usize)> {
    let (mut windows, mut n_predicted) = (Vec::new(), 0);
    while n_predicted < ids.len() {
        let n = (ids.len() - n_predicted).min(max_length);
        let end = n_predicted + n;
        let tokens = match n_predicted {
            0 => std::iter::once(prefix).chain(ids[..end].iter().copied()).collect(),
            _ => ids[end - max_length - 1..end].to_vec(),
        };
        windows.push((tokens, n));
        n_predicted = end;
    }
    windows
}

/// A prompt with continuations, as the scorer takes it.
struct Job {
    key: String,
    examples: Vec<Example>,
    /// Scored tokens of each continuation.
    lengths: Vec<usize>,
    is_cut: bool,
}

impl Job {
    fn new(key: String, prompt: Vec<u32>, continuations: Vec<Vec<u32>>, max_length: usize) -> Job {
        let longest = continuations.iter().map(Vec::len).max().unwrap_or_default();
        // The last token is only predicted.
        if prompt.len() + longest <= max_length + 1 {
            let lengths = continuations.iter().map(Vec::len).collect();
            let reply =
                |ids: Vec<u32>| Reply { weights: vec![1.0; ids.len()], token_ids: ids, ..Reply::default() };
            let replies = continuations.into_iter().map(reply).collect();
            let examples = vec![Example::prompt(prompt, replies, 0, Arc::from(key.as_str()))];
            return Job { key, examples, lengths, is_cut: false };
        }
        let mut job = Job { key, examples: Vec::new(), lengths: Vec::new(), is_cut: true };
        for continuation in continuations {
            let n = continuation.len().min(max_length);
            let mut tokens = [&prompt[..], &continuation].concat();
            tokens.drain(..tokens.len().saturating_sub(max_length + 1));
            job.push(tokens, n);
        }
        job
    }

    fn sequence(key: String, (tokens, n_predicted): (Vec<u32>, usize)) -> Job {
        let mut job = Job { key, examples: Vec::new(), lengths: Vec::new(), is_cut: false };
        job.push(tokens, n_predicted);
        job
    }

    fn push(&mut self, tokens: Vec<u32>, n_predicted: usize) {
        let first = tokens.len() - n_predicted;
        let weights = (0..tokens.len()).map(|i| if i < first { 0.0 } else { 1.0 }).collect();
        self.examples.push(Example::sequence(tokens, weights, 0, Arc::from(self.key.as_str())));
        self.lengths.push(n_predicted);
    }

    fn n_tokens(&self) -> usize {
        self.examples.iter().map(Example::n_tokens).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_predict_every_token_once() {
        let ids: Vec<u32> = (10..17).collect();
        let found = windows(&ids, 1, 3);
        assert_eq!(found, [(vec![1, 10, 11, 12], 3), (vec![12, 13, 14, 15], 3), (vec![13, 14, 15, 16], 1)]);
        assert_eq!(windows(&ids[..2], 1, 3), [(vec![1, 10, 11], 2)]);
        assert!(windows(&[], 1, 3).is_empty());
    }

    #[test]
    fn what_does_not_fit_is_cut_at_its_beginning() {
        let job = Job::new("k".to_owned(), vec![1, 2, 3], vec![vec![4], vec![5, 6]], 4);
        assert!(!job.is_cut && job.examples.len() == 1 && job.lengths == [1, 2]);
        let job = Job::new("k".to_owned(), vec![1, 2, 3], vec![vec![4], vec![5, 6]], 3);
        assert!(job.is_cut);
        assert_eq!(job.examples[1].token_ids, [2, 3, 5, 6]);
        assert_eq!(job.examples[1].weights, [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(job.examples[0].token_ids, [1, 2, 3, 4]);
        let stops = ["b".to_owned(), "cd".to_owned()];
        assert_eq!((cut_at("xacdb", &stops), cut_at("xyz", &stops)), ("xa", "xyz"));
    }
}
