//! What can go wrong.

use std::path::{Path, PathBuf};

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The file system refused.
    #[error("{doing} {path} failed: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done, as "reading".
        doing: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A GGUF file is not one, or is damaged.
    #[error("{file} is no GGUF file that can be read: {problem}")]
    BadFile {
        /// The file.
        file: PathBuf,
        /// What was found, and where.
        problem: String,
    },
    /// The format has no place for something the model has.
    #[error("the model cannot be written as {format}: {problem}")]
    Unsupported {
        /// The format.
        format: &'static str,
        /// What it has, and what to do.
        problem: String,
    },
    /// Models that should become one do not fit.
    #[error("the models cannot be fused: {problem}")]
    Mismatch {
        /// Which differ in what.
        problem: String,
    },
    /// An option out of its range.
    #[error("`{option}` is {found}; expected {expected}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// Of models.
    #[error(transparent)]
    Model(#[from] pt_models::ModelError),
    /// Of tokenizers and templates.
    #[error(transparent)]
    Text(#[from] pt_text::TextError),
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, ExportError>;

impl ExportError {
    /// Wraps an error of the file system.
    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> ExportError {
        let path = path.to_owned();
        move |source| ExportError::Io { path, doing, source }
    }

    pub(crate) fn gguf(problem: impl Into<String>) -> ExportError {
        ExportError::Unsupported { format: "GGUF", problem: problem.into() }
    }
}
