//! What is wrong with a recipe: everything at once, each with its place.

use std::fmt;
use std::path::PathBuf;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    /// In the recipe file; both one-based, the column in characters.
    File {
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// In a `--set` argument, given here whole.
    Set(String),
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written.
    pub at: Location,
    /// The key it is about, as in `stage.0.train.epochs`; empty for the file as a whole.
    pub key: String,
    /// What was found, what was expected, and what to do.
    pub message: String,
}

/// Everything that is wrong with a recipe, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct RecipeErrors {
    /// The recipe file.
    pub file: PathBuf,
    /// At least one problem.
    pub problems: Vec<Problem>,
}

/// Why a recipe could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file could not be read.
    #[error("could not read the recipe {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
    /// The recipe is wrong.
    #[error(transparent)]
    Invalid(#[from] RecipeErrors),
}

impl fmt::Display for RecipeErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            match &problem.at {
                Location::File { line, column } => write!(f, "{}:{line}:{column}: ", self.file.display())?,
                Location::Set(argument) => write!(f, "--set {argument}: ")?,
            }
            if !problem.key.is_empty() {
                write!(f, "{}: ", problem.key)?;
            }
            write!(f, "{}", problem.message)?;
        }
        Ok(())
    }
}
