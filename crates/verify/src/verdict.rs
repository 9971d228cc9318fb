//! What verifiers are given, and what they say.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One reply to be judged.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The text of the last user turn, or the whole prompt.
    pub prompt: &'a str,
    /// What the model answered, special tokens removed.
    pub reply: &'a str,
    /// The gold answer of the row, where it has one.
    pub gold: Option<&'a Value>,
    /// All columns of the row.
    pub row: &'a Map<String, Value>,
    /// Whether the reply was cut at the token limit.
    pub is_truncated: bool,
}

/// A named share of a verdict, for example one test of many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// What was looked at.
    pub name: String,
    /// Its score, usually 0 to 1.
    pub score: f64,
}

/// What a verifier says of a reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The score, usually 0 to 1; `None` is a skip: the reply could not be judged, through no fault of its own.
    pub score: Option<f64>,
    /// Why, in words a person understands.
    pub reason: String,
    /// What the score is made of; may be empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
}

impl Verdict {
    /// A score with its reason.
    pub fn scored(score: f64, reason: impl Into<String>) -> Verdict {
        Verdict { score: Some(score), reason: reason.into(), parts: Vec::new() }
    }

    /// Score 1.
    pub fn pass(reason: impl Into<String>) -> Verdict {
        Verdict::scored(1.0, reason)
    }

    /// Score 0.
    pub fn fail(reason: impl Into<String>) -> Verdict {
        Verdict::scored(0.0, reason)
    }

    /// No score: the gold answer, or the verifier, is at fault.
    pub fn skip(reason: impl Into<String>) -> Verdict {
        Verdict { score: None, reason: reason.into(), parts: Vec::new() }
    }

    /// The same verdict with its parts.
    #[must_use]
    pub fn with_parts(mut self, parts: Vec<Part>) -> Verdict {
        self.parts = parts;
        self
    }

    /// Whether the score is full marks (at least 1).
    pub fn is_pass(&self) -> bool {
        self.score.is_some_and(|score| score >= 1.0)
    }
}

/// Judges replies.
pub trait Verifier: Send + Sync + std::fmt::Debug {
    /// Its name in the catalogue.
    fn name(&self) -> &'static str;

    /// Judges one reply. Never panics on any text; whatever goes wrong is a verdict with a reason.
    fn verify(&self, question: &Question<'_>) -> Verdict;

    /// Judges many replies, in order. The default judges them side by side; what each gets does not depend on the others.
    fn verify_all(&self, questions: &[Question<'_>]) -> Vec<Verdict> {
        use rayon::prelude::*;
        questions.par_iter().map(|question| self.verify(question)).collect()
    }
}
