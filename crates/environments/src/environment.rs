//! What an environment is.

use pt_text::Message;
use pt_text::tools::Reply;
use pt_verify::Verdict;
use serde_json::{Map, Value};

/// What an episode begins with.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// The prompt's messages.
    pub messages: &'a [Message],
    /// The row's columns, but for those that make its prompt.
    pub row: &'a Map<String, Value>,
    /// The tools that the prompt shows.
    pub tools: &'a [Value],
    /// The same whenever this sample of this prompt is drawn by this recipe: what an environment draws at random it draws from it.
    pub seed: u64,
}

/// A turn of the model.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// Its number, from 0.
    pub index: usize,
    /// What the model wrote, special tokens removed.
    pub text: &'a str,
    /// The same, taken apart.
    pub reply: &'a Reply,
    /// Calls of the turns before, by which the calls of this one are numbered on: `call_0`, `call_1`, ...
    pub first_call: usize,
    /// Whether the model may take another turn after this one.
    pub is_last: bool,
}

/// What follows a turn.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// These messages, and then the model again. At least one; none is the assistant's.
    Continue(Vec<Message>),
    /// Nothing: the episode is over. Some environments judge it.
    End(Option<Verdict>),
    /// The environment broke, through no fault of the model: the sample is not judged.
    Failed(String),
}

/// What follows a turn, and what was done for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Reaction {
    /// What follows.
    pub outcome: Outcome,
    /// Tools that were called.
    pub n_calls: usize,
    /// Of these, how many failed: no such tool, bad arguments, an error within it.
    pub n_failures: usize,
}

impl Reaction {
    /// An outcome without any tool.
    pub fn of(outcome: Outcome) -> Reaction {
        Reaction { outcome, n_calls: 0, n_failures: 0 }
    }

    /// Another user turn.
    pub fn say(text: impl Into<String>) -> Reaction {
        Reaction::of(Outcome::Continue(vec![user(text)]))
    }

    /// The end, judged by the rewards alone.
    pub fn end() -> Reaction {
        Reaction::of(Outcome::End(None))
    }
}

/// A user's message.
pub(crate) fn user(text: impl Into<String>) -> Message {
    Message::from_iter([
        ("role".to_owned(), "user".into()),
        ("content".to_owned(), Value::String(text.into())),
    ])
}

/// Answers models between their turns.
pub trait Environment: Send + Sync + std::fmt::Debug {
    /// Its name in the catalogue.
    fn name(&self) -> &'static str;

    /// The tools it has, as a chat template lists them: what a row that names none is given.
    fn tools(&self) -> Vec<Value> {
        Vec::new()
    }

    /// Refuses a row it cannot play, before anything is trained; `tools` are those the row names.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    fn check(&self, row: &Map<String, Value>, tools: &[Value]) -> Result<(), String> {
        let _ = (row, tools);
        Ok(())
    }

    /// Begins an episode. Whatever goes wrong is told by its first reaction.
    fn begin(&self, start: &Start<'_>) -> Box<dyn Episode + '_>;
}

/// One sample's dealings with an environment.
pub trait Episode: Send {
    /// What follows a turn of the model that ended by itself. Never panics on any text.
    fn react(&mut self, turn: &Turn<'_>) -> Reaction;

    /// The episode is over without a word of the environment's: the last turn was cut (`length`), there may be no more of them
    /// (`max_turns`), the template cannot go on after what was said (`rewritten`), or a turn of the model never came (`lost`), which
    /// leaves nothing to judge. Some environments judge it.
    fn end(&mut self, reason: &str) -> Option<Verdict> {
        let _ = reason;
        None
    }
}
