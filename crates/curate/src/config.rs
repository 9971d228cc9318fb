//! A curation as it is written: TOML, or put together from the command line.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::blueprint::Blueprint;
use crate::error::CurateError;

/// A whole curation.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curation {
    /// Where kept rows go, as JSON lines; `.gz` and `.zst` are compressed. With a blueprint there is one file per domain,
    /// the domain put before the extension.
    pub out: PathBuf,
    /// Where dropped rows go, with step, reason, evidence and origin.
    pub dropped: Option<PathBuf>,
    /// The data card: this name with `.md` and `.json`.
    pub card: Option<PathBuf>,
    /// Keys every random choice.
    #[serde(default)]
    pub seed: u64,
    /// What happens to rows that cannot be read.
    #[serde(default)]
    pub unreadable: Unreadable,
    /// In which columns rows are written.
    #[serde(default)]
    pub rows: Form,
    /// Whether scores and clusters are written into a column `curation`.
    #[serde(default)]
    pub annotate: bool,
    /// Examples of each reason in the card.
    #[serde(default = "three")]
    pub examples: usize,
    /// What is read, in order.
    #[serde(default, rename = "input")]
    pub inputs: Vec<Input>,
    /// What is done, in order.
    #[serde(default, rename = "step")]
    pub steps: Vec<StepConfig>,
    /// The composition that is wanted.
    pub blueprint: Option<Blueprint>,
}

/// What happens to rows that cannot be read or have no layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unreadable {
    /// The first one ends the curation.
    #[default]
    Error,
    /// They are counted and go to the dropped rows.
    Drop,
}

/// In which columns rows are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Those they came with; all rows of a file must then have one layout.
    #[default]
    AsRead,
    /// TRL's names of their kind.
    Canonical,
    /// `messages`; prompts and completions become conversations.
    Messages,
}

/// An input.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// A file, folder, pattern, hub dataset or `generated:...`.
    pub source: String,
    /// The layout, where it is not to be recognised; `columns` takes all texts of a row as one.
    pub layout: Option<String>,
    /// Which column plays which part.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
    /// The split of a folder or hub dataset.
    pub split: Option<String>,
    /// The configuration of a hub dataset.
    pub subset: Option<String>,
    /// The format of the files, where names do not tell.
    pub format: Option<pt_data::read::Format>,
    /// What makes a row of a text file: `line`, `file`, or the text between two rows.
    pub text_unit: Option<String>,
    /// Only so many rows.
    pub limit: Option<usize>,
    /// Its licence, for the card.
    pub licence: Option<String>,
    /// The domain of all its rows, where it is known better than by looking.
    pub domain: Option<String>,
}

/// A step: its type and its options.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct StepConfig {
    /// A name of [`crate::CURATORS`].
    #[serde(rename = "type")]
    pub name: String,
    /// Its options.
    #[serde(flatten)]
    pub options: toml::Table,
}

fn three() -> usize {
    3
}

impl Curation {
    /// Reads a curation file; `place` names it in errors.
    ///
    /// # Errors
    /// Where it is no TOML, has unknown keys, or lacks some.
    pub fn parse(text: &str, place: &str) -> Result<Curation, CurateError> {
        let config = |problem: String| CurateError::Config { place: place.to_owned(), problem };
        let curation: Curation =
            toml::from_str(text).map_err(|error| config(error.to_string().trim_end().to_owned()))?;
        if curation.inputs.is_empty() {
            return Err(config("there is no [[input]]; write one with `source = \"data.jsonl\"`".to_owned()));
        }
        Ok(curation)
    }
}

impl StepConfig {
    /// A step from the command line: `NAME` or `NAME:key=value,key=value`, values as in TOML.
    ///
    /// # Errors
    /// Where the part after the colon is no list of TOML values.
    pub fn parse(text: &str) -> Result<StepConfig, CurateError> {
        let (name, options) = text.split_once(':').unwrap_or((text, ""));
        let parsed = toml::from_str::<toml::Table>(&format!("options = {{ {options} }}"));
        let table = parsed.map_err(|error| CurateError::Config {
            place: format!("--step {text}"),
            problem: format!(
                "`{options}` is not `key=value,key=value` with values as in TOML (texts in quotes): {}",
                error.message()
            ),
        })?;
        let options = table.get("options").and_then(toml::Value::as_table).cloned().unwrap_or_default();
        Ok(StepConfig { name: name.trim().to_owned(), options })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_flags_are_read_or_refused() {
        let text =
            "out = \"x.jsonl\"\n[[input]]\nsource = \"a.jsonl\"\n[[step]]\ntype = \"contamination\"\nn = 8\n";
        let curation = Curation::parse(text, "c.toml").unwrap();
        assert_eq!(curation.steps[0], StepConfig::parse("contamination:n=8").unwrap());
        let check = |text: &str, expected: &str| {
            let error = Curation::parse(text, "c.toml").unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("c.toml"), "{error}");
        };
        check("out = \"x\"", "there is no [[input]]");
        check("out = \"x\"\nsede = 1\n[[input]]\nsource = \"a\"", "unknown field `sede`");
        check("[[input]]\nsource = \"a\"", "missing field `out`");
        let error = StepConfig::parse("x:part=prompt").unwrap_err().to_string();
        assert!(error.contains("texts in quotes"), "{error}");
    }
}
