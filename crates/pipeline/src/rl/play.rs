//! One sample's conversation with an environment, as one sequence of tokens.
//!
//! ```text
//! prompt | reply 1 <end> | what the template writes, results, next turn's beginning | reply 2 <end> | ...
//!          weight 1        weight 0                                                   weight 1
//! ```
//!
//! The sequence only grows. What was sampled is never tokenised again; what is between is what the chat template writes there
//! ([`Masker::continuation`]).

use pt_environments::{Outcome, Reaction, Turn};
use pt_rl::TurnRecord;
use pt_rollout::{FinishReason, Sample};
use pt_text::tools::{OPEN, Reply};
use pt_text::{Conversation, Masker, Message, Origin, TextError, Tokenizer};
use pt_verify::Verdict;
use serde_json::{Map, Value};

use super::environment::Limits;
use super::sampler::Drawn;
use crate::error::Result;

/// How an episode ended, as rollouts files say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The model's last turn, or the environment's word.
    Stop,
    /// A token limit.
    Length,
    /// No more turns.
    MaxTurns,
    /// The template would have written what was said before in another way.
    Rewritten,
    /// The environment broke.
    Aborted,
    /// A turn of the model never came, or an error ended the round: there is no such sample.
    Lost,
}

impl End {
    /// The word in files and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            End::Stop => "stop",
            End::Length => "length",
            End::MaxTurns => "max_turns",
            End::Rewritten => "rewritten",
            End::Aborted => "aborted",
            End::Lost => "lost",
        }
    }
}

/// What an episode came to, beside its tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Played {
    /// The turns, the environment's too.
    pub(crate) turns: Vec<TurnRecord>,
    /// The turns as messages, for verifiers.
    pub(crate) messages: Vec<Message>,
    /// What the environment says of it.
    pub(crate) verdict: Option<Verdict>,
    /// Why the environment broke.
    pub(crate) failure: Option<String>,
    /// Turns of the model.
    pub(crate) n_turns: usize,
    /// Tools that were called.
    pub(crate) n_calls: usize,
    /// Of these, how many failed.
    pub(crate) n_failures: usize,
}

/// What a prompt's episodes have in common.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    pub(super) origin: Origin,
    /// The prompt's messages.
    pub(super) messages: Vec<Message>,
    pub(super) tools: Option<Value>,
    pub(super) kwargs: Option<Map<String, Value>>,
}

/// An episode under way.
pub(super) struct Play<'s> {
    scene: &'s Scene,
    /// Messages of all turns so far.
    said: Vec<Message>,
    tokens: Sampled,
    played: Played,
    /// The last turn.
    text: String,
    reply: Reply,
    /// The token that ended it.
    end: u32,
}

/// The tokens after a prompt.
#[derive(Default)]
struct Sampled {
    ids: Vec<u32>,
    weights: Vec<f32>,
    logprobs: Vec<f32>,
    filtered: Option<Vec<f32>>,
}

impl Sampled {
    fn sampled(&mut self, sample: Sample) {
        let Sample { token_ids, logprobs, filtered_logprobs, .. } = sample;
        if let Some(more) = filtered_logprobs {
            self.filtered.get_or_insert_default().extend(more);
        }
        self.weights.extend(std::iter::repeat_n(1.0, token_ids.len()));
        self.logprobs.extend(logprobs);
        self.ids.extend(token_ids);
    }

    fn given(&mut self, ids: &[u32]) {
        let zeros = || std::iter::repeat_n(0.0, ids.len());
        if let Some(filtered) = &mut self.filtered {
            filtered.extend(zeros());
        }
        self.weights.extend(zeros());
        self.logprobs.extend(zeros());
        self.ids.extend(ids);
    }
}

/// What is to be done next.
pub(super) enum Next {
    /// The environment is asked about the last turn.
    Ask,
    /// The environment hears that it is over.
    Tell(End),
    /// The model goes on after these tokens, for at most so many.
    GoOn { ids: Vec<u32>, max_new_tokens: usize },
    /// It is over.
    Over(End),
}

impl<'s> Play<'s> {
    pub(super) fn new(scene: &'s Scene) -> Play<'s> {
        Play {
            scene,
            said: Vec::new(),
            tokens: Sampled::default(),
            played: Played::default(),
            text: String::new(),
            reply: Reply::default(),
            end: 0,
        }
    }

    /// The model has taken a turn.
    ///
    /// # Errors
    /// Tokens that are no text.
    pub(super) fn taken(&mut self, sample: Sample, tokenizer: &Tokenizer, stops: &[u32]) -> Result<Next> {
        let was_cut = sample.finish_reason == FinishReason::Length;
        self.text = text_of(tokenizer, stops, &sample.token_ids, has_special_calls(tokenizer))?;
        self.reply = Reply::parse(&self.text);
        self.end = sample.token_ids.last().copied().unwrap_or_default();
        self.said.push(self.reply.to_message(self.played.n_calls));
        self.played.turns.push(TurnRecord {
            role: "assistant".to_owned(),
            text: self.text.clone(),
            n_tokens: sample.token_ids.len(),
        });
        self.played.n_turns += 1;
        self.tokens.sampled(sample);
        Ok(if was_cut { Next::Tell(End::Length) } else { Next::Ask })
    }

    /// The last turn, for the environment.
    pub(super) fn turn(&self, limits: &Limits) -> Turn<'_> {
        Turn {
            index: self.played.n_turns - 1,
            text: &self.text,
            reply: &self.reply,
            first_call: self.played.n_calls,
            is_last: self.played.n_turns >= limits.max_turns,
        }
    }

    /// The environment has answered.
    ///
    /// # Errors
    /// A template that cannot go on with these messages at all.
    pub(super) fn answered(
        &mut self,
        reaction: Reaction,
        masker: &Masker<'_>,
        limits: &Limits,
    ) -> Result<Next> {
        let added = match reaction.outcome {
            Outcome::End(verdict) => {
                self.count(reaction.n_calls, reaction.n_failures);
                self.played.verdict = verdict;
                return Ok(Next::Over(End::Stop));
            }
            Outcome::Failed(problem) => {
                self.played.failure = Some(problem);
                return Ok(Next::Over(End::Aborted));
            }
            Outcome::Continue(added) => added,
        };
        self.count(reaction.n_calls, reaction.n_failures);
        if self.played.n_turns >= limits.max_turns {
            return Ok(Next::Tell(End::MaxTurns));
        }
        let messages: Vec<Message> = self.scene.messages.iter().chain(&self.said).cloned().collect();
        let row = Conversation {
            messages: &messages,
            tools: self.scene.tools.as_ref(),
            documents: None,
            kwargs: self.scene.kwargs.as_ref(),
        };
        let continuation = match masker.continuation(&self.scene.origin, &row, &added, self.end) {
            Ok(continuation) => continuation,
            // The model ended its turn with another token than the template's: nothing can follow that.
            Err(TextError::NoContinuation { .. }) => return Ok(Next::Tell(End::Rewritten)),
            Err(error) => return Err(error.into()),
        };
        if continuation.is_rewritten && !limits.keeps_rewritten {
            return Ok(Next::Tell(End::Rewritten));
        }
        let left = limits.max_tokens.saturating_sub(self.tokens.ids.len() + continuation.token_ids.len());
        if left == 0 {
            return Ok(Next::Tell(End::Length));
        }
        self.tokens.given(&continuation.token_ids);
        self.record(&added, continuation.token_ids.len());
        self.said.extend(added);
        Ok(Next::GoOn { ids: self.tokens.ids.clone(), max_new_tokens: left })
    }

    fn count(&mut self, n_calls: usize, n_failures: usize) {
        self.played.n_calls += n_calls;
        self.played.n_failures += n_failures;
    }

    /// Notes what the environment said; the tokens of all of it stand with the first.
    fn record(&mut self, added: &[Message], n_tokens: usize) {
        let text = |message: &Message, key: &str| {
            message.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        self.played.turns.extend(added.iter().enumerate().map(|(i, message)| TurnRecord {
            role: text(message, "role"),
            text: text(message, "content"),
            n_tokens: if i == 0 { n_tokens } else { 0 },
        }));
    }

    /// Turns of the model so far.
    pub(super) fn n_turns(&self) -> usize {
        self.played.n_turns
    }

    /// The environment has heard that it is over.
    pub(super) fn told(&mut self, verdict: Option<Verdict>) {
        self.played.verdict = verdict;
    }

    /// The sample that it is.
    pub(super) fn finish(self, end: End) -> Drawn {
        let Sampled { ids, weights, logprobs, filtered } = self.tokens;
        Drawn {
            token_ids: ids,
            weights,
            logprobs,
            filtered_logprobs: filtered,
            text: self.text,
            is_truncated: end == End::Length,
            end,
            episode: Some(Box::new(Played { messages: self.said, ..self.played })),
        }
    }
}

/// What a model wrote, without the tokens that end a turn.
pub(super) fn text_of(
    tokenizer: &Tokenizer,
    stops: &[u32],
    ids: &[u32],
    keeps_special: bool,
) -> Result<String> {
    let spoken: Vec<u32> = ids.iter().copied().filter(|id| !stops.contains(id)).collect();
    Ok(tokenizer.decode(&spoken, !keeps_special)?)
}

/// Whether tool calls are written with special tokens, which must then stay in the text to be seen.
fn has_special_calls(tokenizer: &Tokenizer) -> bool {
    tokenizer.token_to_id(OPEN).is_some_and(|id| tokenizer.is_special(id))
}
