//! Replies in steps: what each step is worth, and how to find better replies by it.
//!
//! ```text
//! a solution --label--> how often completions of each of its beginnings are right    (trains a process reward model)
//! many replies --pick--> the best one, the majority's, the one with the most weight  (a reward model or a process one)
//! beginnings --beam--> the beginnings whose steps score best, one step longer        (a process reward model)
//! ```
//!
//! Who writes, who scores and who judges are functions given from above: nothing here knows a model, a tokenizer or a verifier.
//! Draws are identified by [`Ask::key`], which depends on the question and the place in its search alone, so that a question's result
//! does not depend on the others.
//!
//! Left out: Monte-Carlo tree search, and the binary search of OmegaPRM (arXiv:2406.06592) for the first wrong step.

pub mod aggregate;
pub mod beam;
pub mod label;
pub mod pick;
pub mod steps;

pub use aggregate::Aggregate;
pub use beam::{BeamOptions, Found, Searched, beam_search};
pub use label::{Labelled, Solution, StepValue, label_steps};
pub use pick::{best, majority, weighted_majority};
pub use steps::Splitter;

/// A beginning of a reply to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Which question the reply is to.
    pub question: usize,
    /// The reply so far; empty at its beginning.
    pub beginning: String,
    /// Continuations wanted.
    pub n: usize,
    /// Identifies the draws, with the seed of whoever writes: different for every ask of a question.
    pub key: u64,
    /// Most tokens of a continuation.
    pub max_tokens: usize,
}

/// A continuation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// What was added to the beginning.
    pub text: String,
    /// Whether the reply ended by itself.
    pub is_end: bool,
    /// Tokens that were written.
    pub n_tokens: usize,
}
