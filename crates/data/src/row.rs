//! A row as a reader gives it: columns and where they came from.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Columns of a row, in file order.
pub type Columns = serde_json::Map<String, serde_json::Value>;

/// Where a row came from.
///
/// `line` counts from 1: the line for JSONL, CSV and text split by lines, the element or row for
/// JSON arrays, Parquet and text split by a separator. 0 means the file as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// The file.
    pub file: Arc<PathBuf>,
    /// The line or row, from 1.
    pub line: usize,
}

impl Origin {
    /// Line `line` of `file`.
    pub fn new(file: impl AsRef<Path>, line: usize) -> Self {
        Origin { file: Arc::new(file.as_ref().to_owned()), line }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.file.display()),
            line => write!(f, "{}:{line}", self.file.display()),
        }
    }
}

/// One row of a dataset, before its layout is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Where it came from.
    pub origin: Origin,
    /// Its columns.
    pub value: Columns,
}
