//! Verifiers: what a model's reply is worth, and why.
//!
//! A verifier sees one [`Question`] (the prompt, the reply, the row it came from) and gives a [`Verdict`]: a score, a
//! reason, parts. It sees no model, no recipe and no training loop. A gold answer that cannot be understood is a
//! *skip*: it is counted and shown, and never a zero, because a zero would teach the model that a right reply is wrong.
//!
//! **Adding a verifier**: one file `name.rs` with its documentation, options and code, one file `name.md` beside it with
//! replies it must accept and reject, and one line in [`VERIFIERS`]. The tests run over the catalogue and its Markdown.

mod catalogue;
mod child;
mod code;
mod command;
mod contains;
mod exact;
mod examples;
mod format;
mod ifeval;
mod json;
mod json_fields;
mod json_schema;
mod length;
mod math;
mod multiple_choice;
mod process;
mod regex;
mod repetition;
mod rewards;
mod text;
mod tool_calls;
mod verdict;

pub use catalogue::{VERIFIERS, VerifierInfo, build};
pub use child::run_within;
pub use code::{PythonRunner, Ran};
pub use math::boxed;
pub use process::{Command, Process, complaint_of, verdict_of};
pub use rewards::{RewardError, RewardSpec, Rewards, Scored};
pub use verdict::{Part, Question, Verdict, Verifier};
