//! Constraints on a text that a few lines can check.

use serde::{Deserialize, Serialize};

/// One thing that must hold of a reply. Words are separated by white space and compared without
/// case and without the punctuation around them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Constraint {
    /// Exactly `n` words.
    Words {
        /// How many.
        n: usize,
    },
    /// No lower-case letter, and at least one upper-case letter.
    Capitals,
    /// No upper-case letter, and at least one lower-case letter.
    SmallLetters,
    /// The last word.
    EndsWith {
        /// The word.
        word: String,
    },
    /// The first word.
    StartsWith {
        /// The word.
        word: String,
    },
    /// Somewhere among the words.
    Includes {
        /// The word.
        word: String,
    },
    /// Nowhere among the words.
    Excludes {
        /// The word.
        word: String,
    },
    /// Exactly `n` lines, each starting with `- ` and followed by something.
    Items {
        /// How many.
        n: usize,
    },
    /// This word `n` times and nothing else.
    Repeats {
        /// The word.
        word: String,
        /// How often.
        n: usize,
    },
}

impl Constraint {
    /// Whether it holds of `reply`.
    pub fn holds(&self, reply: &str) -> bool {
        let words = words_of(reply);
        match self {
            Constraint::Words { n } => words.len() == *n,
            Constraint::Capitals => {
                reply.chars().any(char::is_uppercase) && !reply.chars().any(char::is_lowercase)
            }
            Constraint::SmallLetters => {
                reply.chars().any(char::is_lowercase) && !reply.chars().any(char::is_uppercase)
            }
            Constraint::EndsWith { word } => words.last() == Some(word),
            Constraint::StartsWith { word } => words.first() == Some(word),
            Constraint::Includes { word } => words.contains(word),
            Constraint::Excludes { word } => !words.contains(word),
            Constraint::Items { n } => {
                let mut lines = reply.trim().lines();
                lines.clone().count() == *n
                    && lines.all(|line| line.trim().strip_prefix("- ").is_some_and(|i| !i.trim().is_empty()))
            }
            Constraint::Repeats { word, n } => words.len() == *n && words.iter().all(|w| w == word),
        }
    }

    /// The constraint in words, for reasons.
    pub fn describe(&self) -> String {
        match self {
            Constraint::Words { n } => format!("exactly {n} words"),
            Constraint::Capitals => "all capitals".to_string(),
            Constraint::SmallLetters => "all small letters".to_string(),
            Constraint::EndsWith { word } => format!("ends with `{word}`"),
            Constraint::StartsWith { word } => format!("starts with `{word}`"),
            Constraint::Includes { word } => format!("includes `{word}`"),
            Constraint::Excludes { word } => format!("excludes `{word}`"),
            Constraint::Items { n } => format!("a list of {n} items"),
            Constraint::Repeats { word, n } => format!("`{word}` {n} times and nothing else"),
        }
    }
}

/// The words of a text, lower-case, without the punctuation around them; a bare dash is no word.
pub(crate) fn words_of(text: &str) -> Vec<String> {
    text.split_whitespace()
        .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase())
        .filter(|word| !word.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_constraint_holds_where_it_should() {
        let word = |w: &str| w.to_string();
        for (constraint, good, bad) in [
            (Constraint::Words { n: 2 }, "red  ball.", "red"),
            (Constraint::Capitals, "RED BALL 2", "RED bALL"),
            (Constraint::Capitals, "A", "12"),
            (Constraint::SmallLetters, "red ball", "Red ball"),
            (Constraint::EndsWith { word: word("moon") }, "see the Moon.", "moon light"),
            (Constraint::StartsWith { word: word("moon") }, "Moon, go", "a moon"),
            (Constraint::Includes { word: word("moon") }, "a \"moon\" here", "moons"),
            (Constraint::Excludes { word: word("moon") }, "moons", "a moon"),
            (Constraint::Items { n: 2 }, "- red\n- blue\n", "- red"),
            (Constraint::Items { n: 2 }, "- a b\n- c", "- red\nblue"),
            (Constraint::Items { n: 1 }, "- red", "-"),
            (Constraint::Repeats { word: word("hi"), n: 3 }, "hi Hi hi", "hi hi ho"),
            (Constraint::Repeats { word: word("hi"), n: 3 }, "hi, hi, hi!", "hi hi"),
        ] {
            assert!(constraint.holds(good), "{} of {good:?}", constraint.describe());
            assert!(!constraint.holds(bad), "{} of {bad:?}", constraint.describe());
        }
    }
}
