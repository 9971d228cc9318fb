//! The reply does not repeat itself.
//!
//! ```text
//! score = unique n-grams / all n-grams
//! ```
//!
//! which is 1 plus TRL's `get_repetition_penalty_reward` with its defaults, on words in place of tokens. Besides, a unit
//! said over and over without anything between (`ha ha ha ha`) may be limited: `max_run` words, or the score is 0.

use std::collections::HashSet;

use pt_core::catalogue::{CatalogueError, OptionInfo, parse};
use serde::Deserialize;

use crate::catalogue::{KIND, VerifierInfo};
use crate::text::shortened;
use crate::{Part, Question, Verdict, Verifier};

const NAME: &str = "repetition";
/// The longest unit of a run, in words or characters.
const MAX_PERIOD: usize = 32;

/// The catalogue's entry.
pub(crate) const INFO: VerifierInfo = VerifierInfo {
    name: NAME,
    summary: "the reply does not repeat itself: the share of its n-grams that are new",
    reads: "nothing of the row",
    options: &[
        OptionInfo { name: "ngram", kind: "integer", default: "3", doc: "how many words an n-gram has" },
        OptionInfo {
            name: "unit",
            kind: "text",
            default: "\"words\"",
            doc: "`words`, or `chars` for languages without spaces",
        },
        OptionInfo {
            name: "max_run",
            kind: "integer",
            default: "0",
            doc: "the most words that may repeat what stands right before them, or the score is 0; 0: any number",
        },
    ],
    examples: include_str!("repetition.md"),
    build: |options| Ok(Box::new(parse::<Repetition>(KIND, NAME, options)?.checked()?)),
};

/// What an n-gram is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// What stands between spaces.
    Words,
    /// Characters other than spaces.
    Chars,
}

/// The share of new n-grams.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Repetition {
    /// How many words an n-gram has.
    pub ngram: usize,
    /// What it is made of.
    pub unit: Unit,
    /// The most words that may repeat what stands right before them; 0 is any number.
    pub max_run: usize,
}

impl Default for Repetition {
    fn default() -> Self {
        Repetition { ngram: 3, unit: Unit::Words, max_run: 0 }
    }
}

impl Repetition {
    fn checked(self) -> Result<Repetition, CatalogueError> {
        if (1..=MAX_PERIOD).contains(&self.ngram) {
            return Ok(self);
        }
        let problem = format!("`ngram` is {}; expected 1 to {MAX_PERIOD}", self.ngram);
        Err(CatalogueError::Option { kind: KIND, name: NAME.to_owned(), problem })
    }
}

impl Verifier for Repetition {
    fn name(&self) -> &'static str {
        NAME
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        let reply = question.reply.to_lowercase();
        let units: Vec<&str> = match self.unit {
            Unit::Words => reply.split_whitespace().collect(),
            Unit::Chars => {
                let ends = reply.char_indices().filter(|(_, c)| !c.is_whitespace());
                ends.map(|(at, c)| &reply[at..at + c.len_utf8()]).collect()
            }
        };
        let n_all = (units.len() + 1).saturating_sub(self.ngram);
        let n_unique = units.windows(self.ngram).collect::<HashSet<_>>().len();
        let share = if n_all == 0 { 1.0 } else { n_unique as f64 / n_all as f64 };
        let (run, start) = longest_run(&units);
        let parts = vec![
            Part { name: "unique_ngrams".to_owned(), score: share },
            Part { name: "longest_run".to_owned(), score: run as f64 },
        ];
        if self.max_run > 0 && run > self.max_run {
            let text = shortened(&units[start..(start + run).min(units.len())].join(" "), 60);
            let reason = format!("{run} words in a row repeat what stands before them: `{text}`");
            return Verdict::fail(reason).with_parts(parts);
        }
        Verdict::scored(share, format!("{n_unique} of {n_all} {}-grams are new", self.ngram))
            .with_parts(parts)
    }
}

/// The most units in a row that each equal the one a fixed distance before, as many as that distance at least, and where
/// they start.
fn longest_run(units: &[&str]) -> (usize, usize) {
    let mut longest = (0, 0);
    for period in 1..=MAX_PERIOD.min(units.len()) {
        let mut run = 0;
        for at in period..units.len() {
            run = if units[at] == units[at - period] { run + 1 } else { 0 };
            if run >= period && run > longest.0 {
                longest = (run, at + 1 - run);
            }
        }
    }
    longest
}
