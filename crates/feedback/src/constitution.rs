//! A constitution: the principles that replies are criticised, revised and judged by.
//!
//! ```toml
//! name = "mine"
//!
//! [[principle]]
//! id = "honest"                                  # unique; stands in reports
//! text = "The reply says nothing false."         # what judges are given
//! weight = 2.0                                   # how often it is drawn, how much it counts; 1 if absent
//! category = "honesty"                           # groups of reports; "general" if absent
//! critique = "Say what in the reply is false."   # wording of the critique request; formed from the text if absent
//! revision = "Rewrite the reply without it."     # wording of the revision request; formed from the text if absent
//!
//! [[principle.examples]]                         # shown before critiques and revisions
//! prompt = "Is the earth flat?"
//! reply = "Yes."
//! critique = "The earth is round."
//! revision = "No, it is round."
//! ```
//!
//! Drawing principles at random for each critique, and one for each comparison, is Bai et al. 2022, arXiv:2212.08073,
//! sections 3.1 and 4.1. Weights, categories and examples per principle are ours.

use std::path::Path;

use pt_core::hash;
use pt_core::rng::Stream;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::error::{FeedbackError, Result};

/// The constitution that is used where none is named, as its file.
pub const BUILT_IN: &str = include_str!("../constitution.toml");
/// What it is called in messages.
const DEFAULT_NAME: &str = "the built-in constitution";

/// How a bad reply becomes a good one, by one principle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevisionExample {
    /// What the user says.
    pub prompt: String,
    /// A reply with a fault.
    pub reply: String,
    /// What is wrong with it.
    pub critique: String,
    /// A reply without the fault.
    pub revision: String,
}

/// One principle.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Principle {
    /// Unique in its constitution.
    pub id: String,
    /// What a good reply is like.
    pub text: String,
    /// How often it is drawn, and how much its judgement counts.
    pub weight: f64,
    /// For reports.
    pub category: String,
    /// How a critique is asked for.
    pub critique: String,
    /// How a revision is asked for.
    pub revision: String,
    /// Shown before critiques and revisions.
    pub examples: Vec<RevisionExample>,
}

/// Principles, at least one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Constitution {
    /// For reports.
    pub name: String,
    /// In the order of the file.
    pub principles: Vec<Principle>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConstitution {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    principle: Vec<RawPrinciple>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPrinciple {
    id: Spanned<String>,
    text: Spanned<String>,
    #[serde(default)]
    weight: Option<Spanned<f64>>,
    #[serde(default)]
    category: Option<Spanned<String>>,
    #[serde(default)]
    critique: Option<Spanned<String>>,
    #[serde(default)]
    revision: Option<Spanned<String>>,
    #[serde(default)]
    examples: Vec<Spanned<RevisionExample>>,
}

/// Turns places in the text into errors.
struct Reader<'a> {
    file: &'a str,
    text: &'a str,
}

impl Reader<'_> {
    fn error(&self, at: usize, problem: impl Into<String>) -> FeedbackError {
        let line =
            self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|b| **b == b'\n').count() + 1;
        FeedbackError::Constitution { file: self.file.to_owned(), line, problem: problem.into() }
    }

    /// The text without white space around it, which must not be all there is.
    fn filled(&self, key: &str, value: &Spanned<String>) -> Result<String> {
        match value.get_ref().trim() {
            "" => {
                Err(self
                    .error(value.span().start, format!("`{key}` is empty; write it, or leave the key out")))
            }
            text => Ok(text.to_owned()),
        }
    }

    fn optional(
        &self,
        key: &str,
        value: Option<&Spanned<String>>,
        default: impl FnOnce() -> String,
    ) -> Result<String> {
        value.map_or_else(|| Ok(default()), |value| self.filled(key, value))
    }

    fn principle(&self, raw: &RawPrinciple) -> Result<Principle> {
        let id = self.filled("id", &raw.id)?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !id.chars().all(is_plain) {
            let problem = format!("id `{id}` may have only letters, digits, `-` and `_`");
            return Err(self.error(raw.id.span().start, problem));
        }
        let text = self.filled("text", &raw.text)?;
        let weight = raw.weight.as_ref().map_or(1.0, |weight| *weight.get_ref());
        if !(weight.is_finite() && weight >= 0.0) {
            let at = raw.weight.as_ref().map_or(0, |weight| weight.span().start);
            return Err(self.error(at, format!("weight of `{id}` is {weight}, expected a number, 0 or more")));
        }
        let critique = || format!("Say in what way the reply fails this principle, if it does: {text}");
        let revision = || format!("Rewrite the reply so that it follows this principle: {text}");
        Ok(Principle {
            weight,
            category: self.optional("category", raw.category.as_ref(), || "general".to_owned())?,
            critique: self.optional("critique", raw.critique.as_ref(), critique)?,
            revision: self.optional("revision", raw.revision.as_ref(), revision)?,
            examples: raw.examples.iter().map(|example| self.example(&id, example)).collect::<Result<_>>()?,
            id,
            text,
        })
    }

    fn example(&self, id: &str, raw: &Spanned<RevisionExample>) -> Result<RevisionExample> {
        let example = raw.get_ref();
        let parts = [
            ("prompt", &example.prompt),
            ("reply", &example.reply),
            ("critique", &example.critique),
            ("revision", &example.revision),
        ];
        match parts.into_iter().find(|(_, text)| text.trim().is_empty()) {
            Some((key, _)) => {
                Err(self
                    .error(raw.span().start, format!("an example of `{id}` has an empty `{key}`; write it")))
            }
            None => Ok(example.clone()),
        }
    }

    fn constitution(&self) -> Result<Constitution> {
        let raw: RawConstitution = toml::from_str(self.text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            self.error(at, error.message())
        })?;
        let mut principles: Vec<Principle> = Vec::new();
        for raw in &raw.principle {
            let principle = self.principle(raw)?;
            if principles.iter().any(|earlier| earlier.id == principle.id) {
                let problem = format!("two principles have the id `{}`; give one another id", principle.id);
                return Err(self.error(raw.id.span().start, problem));
            }
            principles.push(principle);
        }
        if principles.is_empty() {
            return Err(self
                .error(0, "there are no principles; write at least one [[principle]] with `id` and `text`"));
        }
        if principles.iter().all(|principle| principle.weight == 0.0) {
            return Err(
                self.error(0, "all weights are 0, so no principle would ever be used; give one a `weight`")
            );
        }
        let name = raw.name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        Ok(Constitution { name: name.unwrap_or_else(|| self.file.to_owned()), principles })
    }
}

impl Default for Constitution {
    /// The built-in one.
    fn default() -> Self {
        Constitution::parse(BUILT_IN, DEFAULT_NAME).expect("the built-in constitution is checked by a test")
    }
}

impl Constitution {
    /// Reads a constitution; `file` is what errors call it.
    ///
    /// # Errors
    /// [`FeedbackError::Constitution`] with the line.
    pub fn parse(text: &str, file: &str) -> Result<Constitution> {
        Reader { file, text }.constitution()
    }

    /// Reads a constitution from a file.
    ///
    /// # Errors
    /// If it cannot be read, and as [`Constitution::parse`].
    pub fn load(path: &Path) -> Result<Constitution> {
        let text = std::fs::read_to_string(path).map_err(FeedbackError::io("read", path))?;
        Constitution::parse(&text, &path.display().to_string())
    }

    /// Identity of the content.
    pub fn hash(&self) -> String {
        let json = serde_json::to_vec(self).expect("a constitution is plain data");
        hash::of_bytes(&json)
    }

    /// Indices of `n` principles for the entry `key`, drawn by weight; none comes twice before all (of weight above 0)
    /// have come.
    pub fn draw(&self, seed: u64, key: u64, n: usize) -> Vec<usize> {
        let mut draws = Stream::new(seed, "constitution").at(key);
        let mut left: Vec<usize> = Vec::new();
        let mut drawn = Vec::with_capacity(n);
        while drawn.len() < n {
            if left.is_empty() {
                left = (0..self.principles.len()).filter(|&i| self.principles[i].weight > 0.0).collect();
            }
            let total: f64 = left.iter().map(|&i| self.principles[i].weight).sum();
            let mut at = draws.uniform() * total;
            let place = left.iter().position(|&i| {
                at -= self.principles[i].weight;
                at < 0.0
            });
            drawn.push(left.remove(place.unwrap_or(left.len() - 1)));
        }
        drawn
    }

    /// How many principles can be drawn at all.
    pub fn n_drawable(&self) -> usize {
        self.principles.iter().filter(|principle| principle.weight > 0.0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_constitution_is_one() {
        let constitution = Constitution::default();
        assert!(constitution.principles.len() >= 8);
        assert!(constitution.principles.iter().any(|principle| !principle.examples.is_empty()));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        fn check(text: &str, expected: &str) {
            let error = Constitution::parse(text, "c.toml").unwrap_err().to_string();
            assert!(error.contains(expected), "`{error}` lacks `{expected}`");
        }
        let good = "[[principle]]\nid = \"a\"\ntext = \"Be kind.\"\n";
        check("", "c.toml:1: there are no principles");
        check("[[principle]]\nid = \"a\"\n", "missing field `text`");
        check("[[principle]]\nid = \"a b\"\ntext = \"x\"\n", "c.toml:2: id `a b` may have only");
        check("[[principle]]\nid = \"a\"\ntext = \" \"\n", "c.toml:3: `text` is empty");
        check(&format!("{good}wieght = 2\n"), "c.toml:4: unknown field `wieght`");
        check(&format!("{good}weight = -1.0\n"), "c.toml:4: weight of `a` is -1");
        check(&format!("{good}weight = 0\n"), "all weights are 0");
        check(&format!("{good}critique = \"\"\n"), "c.toml:4: `critique` is empty");
        check(&format!("{good}\n{good}"), "c.toml:6: two principles have the id `a`");
        check(&format!("{good}weight = \"x\"\n"), "c.toml:4");
        check(&format!("{good}weight = = 1\n"), "c.toml:4");
        let example =
            "[[principle.examples]]\nprompt = \"p\"\nreply = \"r\"\ncritique = \"\"\nrevision = \"v\"\n";
        check(&format!("{good}{example}"), "an example of `a` has an empty `critique`");
    }

    #[test]
    fn wording_is_formed_from_the_text_where_absent() {
        let text = "[[principle]]\nid = \"a\"\ntext = \"Be kind.\"\nweight = 2\n";
        let constitution = Constitution::parse(text, "c.toml").unwrap();
        let principle = &constitution.principles[0];
        assert!(principle.critique.ends_with("Be kind.") && principle.revision.ends_with("Be kind."));
        assert_eq!((principle.weight, principle.category.as_str()), (2.0, "general"));
        assert_eq!(constitution.name, "c.toml");
    }

    #[test]
    fn draws_follow_seed_key_and_weight() {
        let text = "[[principle]]\nid=\"a\"\ntext=\"x\"\nweight=3\n[[principle]]\nid=\"b\"\ntext=\"y\"\n\
                    [[principle]]\nid=\"never\"\ntext=\"z\"\nweight=0\n";
        let constitution = Constitution::parse(text, "c.toml").unwrap();
        let first = |key| constitution.draw(7, key, 1)[0];
        let n_first = (0..4000).filter(|&key| first(key) == 0).count();
        // Three of four; the standard deviation is 27.
        assert!((2880..3120).contains(&n_first), "{n_first}");
        assert_eq!(constitution.draw(7, 3, 4), constitution.draw(7, 3, 4));
        for key in 0..20 {
            let mut two = constitution.draw(7, key, 2);
            two.sort_unstable();
            assert_eq!(two, [0, 1], "no principle twice before all have come");
            assert!(!constitution.draw(7, key, 6).contains(&2), "weight 0 is never drawn");
        }
    }
}
