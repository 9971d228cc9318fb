//! What can go wrong.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum RlError {
    /// Arrays that do not belong together.
    #[error("{what}: found {found}, expected {expected}")]
    Length {
        /// What was counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// A number that is NaN or infinite.
    #[error(
        "{what} {index} is {value}, expected a finite number: a reward that cannot be told is a skip, not a number"
    )]
    NotFinite {
        /// What it is.
        what: &'static str,
        /// Which.
        index: usize,
        /// What was found.
        value: f64,
    },
    /// An option out of range.
    #[error("{option} is {value}, expected {expected}")]
    Option {
        /// Its key.
        option: &'static str,
        /// What was found.
        value: String,
        /// What was expected.
        expected: String,
    },
    /// The file system.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A line of a rollouts file that is not a record.
    #[error("{}, line {line}: {problem}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// One-based line.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

/// Refuses NaN and infinities.
pub(crate) fn check_finite<'a>(
    what: &'static str,
    values: impl IntoIterator<Item = &'a f64>,
) -> Result<(), RlError> {
    match values.into_iter().enumerate().find(|(_, value)| !value.is_finite()) {
        Some((index, &value)) => Err(RlError::NotFinite { what, index, value }),
        None => Ok(()),
    }
}

/// Refuses a wrong number of something.
pub(crate) fn check_len(what: &'static str, found: usize, expected: usize) -> Result<(), RlError> {
    if found == expected { Ok(()) } else { Err(RlError::Length { what, found, expected }) }
}
