//! What can go wrong; a row that is dropped is not an error but a decision with a reason.

use std::io;
use std::path::{Path, PathBuf};

use pt_core::catalogue::CatalogueError;
use pt_data::{DataError, Origin};

/// Everything the crate can report.
#[derive(Debug, thiserror::Error)]
pub enum CurateError {
    /// A source that cannot be read or understood.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A step or one of its options.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// A step of the list, with its place.
    #[error("step {position} (`{name}`): {source}")]
    Step {
        /// Its place in the list, from 1.
        position: usize,
        /// Its type.
        name: String,
        /// What is wrong.
        source: Box<CurateError>,
    },
    /// The configuration as a whole.
    #[error("{place}: {problem}")]
    Config {
        /// The file, or `command line`.
        place: String,
        /// What was found, what was expected.
        problem: String,
    },
    /// A file that cannot be written or read back.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// An output that would overwrite an input.
    #[error("{}: this output is also an input; name another file, the raw data are worth keeping", path.display())]
    OverwritesInput {
        /// The file.
        path: PathBuf,
    },
    /// A step that needs a model, where none was given.
    #[error(
        "step `{step}` scores rows with a model, and this program has none to give; run it as `posttrain data curate` or in a curate stage"
    )]
    NeedsModel {
        /// The step.
        step: &'static str,
    },
    /// A column that a step needs and a row has not.
    #[error("{origin}: step `{step}` needs a column `{column}`; {hint}")]
    NoColumn {
        /// The row.
        origin: Origin,
        /// The step.
        step: &'static str,
        /// The column.
        column: String,
        /// The nearest column, or all.
        hint: String,
    },
}

impl CurateError {
    /// For `map_err` on file operations.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> CurateError {
        let path = path.to_owned();
        move |source| CurateError::Io { path, action, source }
    }

    /// A value out of range of a step's option.
    pub(crate) fn option(name: &'static str, problem: impl Into<String>) -> CurateError {
        CurateError::Catalogue(CatalogueError::Option {
            kind: crate::catalogue::KIND,
            name: name.to_owned(),
            problem: problem.into(),
        })
    }
}
