//! Somebody who answers: a model of this machine, or a server's.

use serde::{Deserialize, Serialize};

use crate::error::{FeedbackError, Result};

/// Calls between two looks at the results: few enough that a dead server is noticed, many enough to keep one busy.
const CALLS_PER_CHUNK: usize = 64;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Turn {
    /// A user's message.
    pub fn user(content: impl Into<String>) -> Turn {
        Turn { role: "user".to_owned(), content: content.into() }
    }

    /// A reply.
    pub fn assistant(content: impl Into<String>) -> Turn {
        Turn { role: "assistant".to_owned(), content: content.into() }
    }
}

/// A conversation to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// What was said so far.
    pub messages: Vec<Turn>,
    /// Keys the draws: the same messages with another seed are another call.
    pub seed: u64,
}

/// How all asks of a batch are answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AskOptions {
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f64,
    /// How many alternatives of each token are reported; 0 asks for no probabilities.
    pub top_logprobs: u32,
}

impl AskOptions {
    fn check(&self) -> Result<()> {
        let bad = |name, found: String, expected| Err(FeedbackError::Option { name, found, expected });
        if self.max_tokens == 0 {
            return bad("max_tokens", "0".to_owned(), "at least 1");
        }
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad("temperature", self.temperature.to_string(), "a finite number, 0 or more");
        }
        Ok(())
    }
}

/// A token of an answer with its log-probability and those of its alternatives, itself among them or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Its text.
    pub text: String,
    /// Nats.
    pub logprob: f64,
    /// The most probable first.
    pub top: Vec<(String, f64)>,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its tokens, where probabilities were asked for and given.
    pub tokens: Vec<Token>,
    /// Whether it was cut at the token limit.
    pub is_truncated: bool,
    /// Tokens of the messages, where they were counted.
    pub prompt_tokens: u64,
    /// Tokens of the answer, where they were counted.
    pub completion_tokens: u64,
}

/// Answers, or why there is none.
pub type Answers = Vec<std::result::Result<Answer, String>>;

/// Answers conversations.
pub trait Chat {
    /// What the model is called, in reports and audits.
    fn name(&self) -> &str;

    /// Answers each ask, in order. What one gets does not depend on the others.
    ///
    /// # Errors
    /// Only what stops everything, as a cache that cannot be written. A call that fails is a reason in its place.
    fn ask_all(&self, asks: &[Ask], options: &AskOptions) -> Result<Answers>;

    /// What so many tokens cost.
    fn cost(&self, tokens: &Tally) -> f64 {
        let _ = tokens;
        0.0
    }
}

/// What a run of calls came to. Answers from the cache count as they did when they were given, so that a run that was
/// stopped and resumed has the figures of one that was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Calls.
    pub n_calls: u64,
    /// Calls without an answer.
    pub n_failed: u64,
    /// Tokens of the answered calls' messages.
    pub prompt_tokens: u64,
    /// Tokens of the answers.
    pub completion_tokens: u64,
}

/// A chat whose calls are counted.
pub struct Counted<'a> {
    chat: &'a dyn Chat,
    tally: Tally,
    watch: &'a mut dyn FnMut(&Tally),
}

impl<'a> Counted<'a> {
    /// Begins at nothing. `watch` is told of the sums as calls are done.
    pub fn new(chat: &'a dyn Chat, watch: &'a mut dyn FnMut(&Tally)) -> Counted<'a> {
        Counted { chat, tally: Tally::default(), watch }
    }

    /// The sums so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// As [`Chat::ask_all`].
    ///
    /// # Errors
    /// Its errors; [`FeedbackError::AllFailed`] if nothing that was asked so far, in a whole chunk, was answered;
    /// [`FeedbackError::Option`].
    pub fn ask_all(&mut self, asks: &[Ask], options: &AskOptions) -> Result<Answers> {
        options.check()?;
        let mut answers = Vec::with_capacity(asks.len());
        for chunk in asks.chunks(CALLS_PER_CHUNK) {
            let more = self.chat.ask_all(chunk, options)?;
            assert_eq!(more.len(), chunk.len(), "a chat gives an answer or a reason for each ask");
            self.count(&more);
            if self.tally.n_failed == self.tally.n_calls {
                let first = more.iter().find_map(|answer| answer.as_ref().err().cloned());
                return Err(FeedbackError::AllFailed {
                    model: self.chat.name().to_owned(),
                    n: self.tally.n_calls as usize,
                    first: first.unwrap_or_default(),
                });
            }
            answers.extend(more);
            (self.watch)(&self.tally);
        }
        Ok(answers)
    }

    fn count(&mut self, answers: &Answers) {
        for answer in answers {
            self.tally.n_calls += 1;
            match answer {
                Ok(answer) => {
                    self.tally.prompt_tokens += answer.prompt_tokens;
                    self.tally.completion_tokens += answer.completion_tokens;
                }
                Err(_) => self.tally.n_failed += 1,
            }
        }
    }
}

/// 64 bits of what these texts are, for keying draws by content.
pub(crate) fn key_of<'a>(parts: impl IntoIterator<Item = &'a str>) -> u64 {
    let hash = pt_core::hash::of_parts(parts.into_iter().map(str::as_bytes));
    u64::from_str_radix(&hash[..16], 16).expect("a hash is hexadecimal")
}
