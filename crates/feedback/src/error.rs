//! What goes wrong with a constitution, a judge, or an audit.

use std::path::PathBuf;

use pt_client::ClientError;
use pt_data::DataError;

/// Results of this crate.
pub type Result<T> = std::result::Result<T, FeedbackError>;

/// Why feedback cannot be given. A single call that fails is no error: it is counted, with its reason.
#[derive(Debug, thiserror::Error)]
pub enum FeedbackError {
    /// A constitution that is not one.
    #[error("{file}:{line}: {problem}")]
    Constitution {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What was found, and what was expected.
        problem: String,
    },
    /// An option out of range.
    #[error("option `{name}` is {found}, expected {expected}")]
    Option {
        /// Which.
        name: &'static str,
        /// What was given.
        found: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// A row of the wrong kind.
    #[error("{origin}: expected {expected}, and this row is {found}")]
    Row {
        /// File and line.
        origin: String,
        /// What is needed.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// Every call failed, so there is nothing to count.
    #[error("all of the first {n} calls of `{model}` failed; the first: {first}")]
    AllFailed {
        /// The model that was asked.
        model: String,
        /// How many calls.
        n: usize,
        /// Why the first failed.
        first: String,
    },
    /// An audit that does not let its judge serve.
    #[error("the audit {} does not allow this: {problem}", path.display())]
    Audit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The caller asked to stop between calls. Answers that came are in the cache.
    #[error("stopped, as was asked")]
    Stopped,
    /// The client's options, or its cache.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A row's content.
    #[error(transparent)]
    Data(#[from] DataError),
}

impl FeedbackError {
    /// For `map_err`.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> FeedbackError {
        let path = path.into();
        move |source| FeedbackError::Io { action, path, source }
    }
}
