//! The reply has about the wanted length.
//!
//! ```text
//! score = 1                          for min <= n <= max
//! score = 1 - (min - n) / ramp       below, and 1 - (n - max) / ramp above, but never less than 0
//! ```
//!
//! Words are what stands between spaces, which is within a factor of about 1.3 of tokens for English. The punishment of
//! replies near the token limit (DAPO's soft overlong) counts tokens and belongs to training.

use pt_core::catalogue::{CatalogueError, OptionInfo, parse};
use serde::Deserialize;

use crate::catalogue::{KIND, VerifierInfo};
use crate::{Question, Verdict, Verifier};

const NAME: &str = "length";

/// The catalogue's entry.
pub(crate) const INFO: VerifierInfo = VerifierInfo {
    name: NAME,
    summary: "the reply has about the wanted length",
    reads: "nothing of the row",
    options: &[
        OptionInfo { name: "unit", kind: "text", default: "\"words\"", doc: "`words`, `chars` or `lines`" },
        OptionInfo { name: "min", kind: "integer", default: "1", doc: "the least length of full score" },
        OptionInfo {
            name: "max",
            kind: "integer",
            default: "1000000",
            doc: "the largest length of full score",
        },
        OptionInfo {
            name: "ramp",
            kind: "integer",
            default: "0",
            doc: "how far outside the score reaches 0, on a straight line; 0: at once",
        },
    ],
    examples: include_str!("length.md"),
    build: |options| Ok(Box::new(parse::<Length>(KIND, NAME, options)?.checked()?)),
};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// What stands between spaces.
    Words,
    /// Unicode scalar values.
    Chars,
    /// Lines that are not blank.
    Lines,
}

/// A range of lengths.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Length {
    /// What is counted.
    pub unit: Unit,
    /// The least length of full score.
    pub min: u64,
    /// The largest length of full score.
    pub max: u64,
    /// How far outside the score reaches 0.
    pub ramp: u64,
}

impl Default for Length {
    fn default() -> Self {
        Length { unit: Unit::Words, min: 1, max: 1_000_000, ramp: 0 }
    }
}

impl Length {
    fn checked(self) -> Result<Length, CatalogueError> {
        if self.min <= self.max {
            return Ok(self);
        }
        let problem = format!("`min` is {}, more than `max`, {}", self.min, self.max);
        Err(CatalogueError::Option { kind: KIND, name: NAME.to_owned(), problem })
    }
}

impl Verifier for Length {
    fn name(&self) -> &'static str {
        NAME
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        let reply = question.reply.trim();
        let (n, unit) = match self.unit {
            Unit::Words => (reply.split_whitespace().count(), "words"),
            Unit::Chars => (reply.chars().count(), "characters"),
            Unit::Lines => (reply.lines().filter(|line| !line.trim().is_empty()).count(), "lines"),
        };
        let n = n as u64;
        let excess = self.min.saturating_sub(n).max(n.saturating_sub(self.max));
        let score = match (excess, self.ramp) {
            (0, _) => 1.0,
            (_, 0) => 0.0,
            (excess, ramp) => (1.0 - excess as f64 / ramp as f64).max(0.0),
        };
        Verdict::scored(score, format!("{n} {unit}, expected {} to {}", self.min, self.max))
    }
}
