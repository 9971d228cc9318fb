//! Where a benchmark's questions come from, and what was asked of it.

use std::path::{Path, PathBuf};

use pt_data::read::{ReadOptions, locate, read_all};
use pt_data::{Columns, Row};
use serde_json::Value;

use crate::catalogue::BenchmarkInfo;
use crate::error::{EvalError, Result};

/// How models are asked. It is recorded with the results.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// A folder with benchmarks' files, each in a folder named as the benchmark or in itself.
    pub data_dir: Option<PathBuf>,
    /// What `$HF_HOME` is.
    pub hf_home: Option<PathBuf>,
    /// Most questions of each benchmark, taken evenly from its categories; `None` is all.
    pub limit: Option<usize>,
    /// Examples shown; `None` is as many as the benchmark's entry says.
    pub few_shot: Option<usize>,
    /// Whether questions go through the chat template.
    pub chat: bool,
    /// Replies to each question.
    pub samples: usize,
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Only the most probable tokens that together reach this probability.
    pub top_p: f32,
    /// Most tokens of a reply; `None` is the benchmark's own.
    pub max_new_tokens: Option<usize>,
    /// Keys all draws.
    pub seed: u64,
}

impl Settings {
    /// One greedy reply to each question, as plain text.
    pub fn greedy() -> Settings {
        Settings { samples: 1, top_p: 1.0, ..Settings::default() }
    }
}

/// What a benchmark's `load` is given.
pub struct Source<'a> {
    /// The entry.
    pub info: &'static BenchmarkInfo,
    /// Its options, whose keys are known to be right.
    pub options: &'a toml::Table,
    /// How models are asked.
    pub settings: &'a Settings,
}

impl Source<'_> {
    /// The text of an option.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).and_then(toml::Value::as_str)
    }

    /// The place in `names` of an option's value; the first where it is not given.
    ///
    /// # Errors
    /// [`EvalError::Option`].
    pub fn one_of(&self, option: &'static str, names: &[&str]) -> Result<usize> {
        let Some(found) = self.option(option) else { return Ok(0) };
        names.iter().position(|name| *name == found).ok_or_else(|| EvalError::Option {
            benchmark: self.info.name,
            option,
            found: format!("`{found}`"),
            expected: pt_core::suggest::hint(found, names),
        })
    }

    /// Whether a list option has this name, or was not given.
    pub fn wants(&self, option: &str, name: &str) -> bool {
        self.option(option).is_none_or(|list| list.split(',').any(|wanted| wanted.trim() == name))
    }

    /// Refuses a name in a list option that none of `names` is.
    ///
    /// # Errors
    /// [`EvalError::Option`].
    pub fn check_names(&self, option: &'static str, names: &[&str]) -> Result<()> {
        let wanted = self.option(option).into_iter().flat_map(|list| list.split(',')).map(str::trim);
        let unknown = wanted.into_iter().find(|name| !names.contains(name));
        unknown.map_or(Ok(()), |name| {
            Err(EvalError::Option {
                benchmark: self.info.name,
                option,
                found: format!("`{name}`"),
                expected: format!("names that the data have; {}", pt_core::suggest::hint(name, names)),
            })
        })
    }

    /// Examples to show.
    pub fn few_shot(&self) -> usize {
        self.settings.few_shot.unwrap_or(self.info.few_shot)
    }

    /// Most tokens of a reply.
    pub fn max_new_tokens(&self) -> usize {
        self.settings.max_new_tokens.unwrap_or(self.info.max_new_tokens)
    }

    /// The first of these files that is there: by the option `data`, in the data folder, in the folder of the benchmark in
    /// it. Names may have `/`; `.gz` is tried, too. Where the option names a file, that is the first one of `files`.
    pub fn file(&self, files: &[&str]) -> Option<PathBuf> {
        let mut roots = Vec::new();
        if let Some(data) = self.option("data").map(PathBuf::from) {
            if data.is_file() {
                return Some(data);
            }
            roots.push(data);
        } else if let Some(root) = &self.settings.data_dir {
            let folders = [self.info.name.to_owned(), self.info.name.replace('_', "-")];
            roots.extend(folders.into_iter().map(|folder| root.join(folder)));
            roots.push(root.clone());
        }
        let names = files.iter().flat_map(|file| [(*file).to_owned(), format!("{file}.gz")]);
        let names: Vec<String> = names.collect();
        roots.iter().flat_map(|root| names.iter().map(|name| root.join(name))).find(|path| path.exists())
    }

    /// As [`Source::file`], beside a file that was found.
    pub fn beside(&self, path: &Path, files: &[&str]) -> Option<PathBuf> {
        let folder = path.parent()?;
        let names = files.iter().flat_map(|file| [(*file).to_owned(), format!("{file}.gz")]);
        names.map(|name| folder.join(name)).find(|path| path.exists())
    }

    /// The rows of the first of these files that is there, or of the dataset's split in the hub cache.
    ///
    /// # Errors
    /// [`EvalError::NoData`], or if they cannot be read.
    pub fn rows(&self, files: &[&str], split: &str, subset: Option<&str>) -> Result<Vec<Row>> {
        let options = ReadOptions {
            split: split.to_owned(),
            subset: subset.map(str::to_owned),
            hf_home: self.settings.hf_home.clone(),
            ..ReadOptions::default()
        };
        let rows = match self.file(files) {
            Some(path) => read_all(&path.to_string_lossy(), &options)?,
            None if locate(self.info.dataset, &options).is_ok() => read_all(self.info.dataset, &options)?,
            None => return Err(self.no_data(files)),
        };
        Ok(rows)
    }

    /// The error that says where data were looked for.
    pub fn no_data(&self, files: &[&str]) -> EvalError {
        let files = files.join(" or ");
        let place = match (self.option("data"), &self.settings.data_dir) {
            (Some(data), _) => format!("{data}, and {files} in it"),
            (None, Some(root)) => {
                format!("{files} in {} and in its folder `{}`", root.display(), self.info.name)
            }
            (None, None) => "the hub cache alone, as no folder was named".to_owned(),
        };
        EvalError::NoData { benchmark: self.info.name, looked: place, dataset: self.info.dataset }
    }

    /// A column that holds text, or a number to be written as one.
    ///
    /// # Errors
    /// [`EvalError::Row`].
    pub fn text(&self, row: &Row, columns: &[&str]) -> Result<String> {
        let value = columns.iter().find_map(|column| row.value.get(*column));
        match value {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(Value::Number(number)) => Ok(number.to_string()),
            other => Err(self.bad_row(row, columns, other)),
        }
    }

    /// A column that holds a list of texts.
    ///
    /// # Errors
    /// [`EvalError::Row`].
    pub fn list(&self, row: &Row, columns: &[&str]) -> Result<Vec<String>> {
        let value = columns.iter().find_map(|column| row.value.get(*column));
        let texts = value.and_then(Value::as_array).map(|all| {
            all.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>()
        });
        texts.flatten().ok_or_else(|| self.bad_row(row, columns, value))
    }

    /// A row without what is needed.
    pub fn bad_row(&self, row: &Row, columns: &[&str], found: Option<&Value>) -> EvalError {
        let found = match found {
            Some(value) => format!("{value}").chars().take(80).collect(),
            None => {
                let names: Vec<&str> = row.value.keys().map(String::as_str).collect();
                format!("the columns {}", names.join(", "))
            }
        };
        let expected = format!("the column `{}`", columns.join("` or `"));
        EvalError::Row { benchmark: self.info.name, origin: row.origin.to_string(), expected, found }
    }

    /// Refuses to show more examples than there are.
    ///
    /// # Errors
    /// [`EvalError::FewShot`].
    pub fn check_shots(&self, wanted: usize, available: usize) -> Result<()> {
        let benchmark = self.info.name;
        if wanted > available { Err(EvalError::FewShot { benchmark, wanted, available }) } else { Ok(()) }
    }
}

/// A text column, or nothing.
pub(crate) fn text_of<'r>(row: &'r Columns, column: &str) -> &'r str {
    row.get(column).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Chosen;

    #[test]
    fn absent_data_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { data_dir: Some(dir.path().to_owned()), ..Settings::greedy() };
        for (name, says) in [
            ("gsm8k", "test.jsonl"),
            ("mmlu", "cais/mmlu"),
            ("truthfulqa?data=/nowhere", "/nowhere"),
            ("bbh", "--data-dir"),
            ("mbpp", "?data=PATH"),
        ] {
            let chosen = Chosen::parse(name).unwrap_or_else(|e| panic!("{e}"));
            let source = Source { info: chosen.info, options: &chosen.options, settings: &settings };
            let error = (chosen.info.load)(&source).err().unwrap().to_string();
            assert!(error.contains(says), "{name}: {error}");
        }
    }
}
