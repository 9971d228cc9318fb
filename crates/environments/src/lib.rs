//! Environments: what answers a model between its turns.
//!
//! An [`Environment`] begins an [`Episode`] for every sample. After each of the model's turns the episode gives a [`Reaction`]: more
//! messages (results of tools, another user turn), after which the model goes on, or the end, if it likes with a verdict. Episodes
//! see text and parsed calls, never token ids; how a conversation stays the same tokens, and which of them train, is decided above.
//!
//! **Adding an environment**: one file with its documentation, options and code, and one line in [`ENVIRONMENTS`]; **a tool**: one
//! file, and one line in [`TOOLS`].

mod calculator;
mod catalogue;
mod command;
mod environment;
mod guess;
mod python;
mod tools;

pub use catalogue::{ENVIRONMENTS, EnvironmentInfo, TOOLS, ToolInfo, build};
pub use environment::{Environment, Episode, Outcome, Reaction, Start, Turn};
pub use tools::Tool;
