//! What can go wrong with a run folder.

use std::io;
use std::path::{Path, PathBuf};

/// The result of anything that touches a run folder.
pub type Result<T> = std::result::Result<T, RunError>;

/// What can go wrong with a run folder.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The file system refused.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// Another process writes this run.
    #[error(
        "{} is being written by process {holder}; wait for it to end, stop it, or choose another --out folder",
        path.display()
    )]
    Locked {
        /// The run folder.
        path: PathBuf,
        /// The process that holds it, as it wrote itself into the lock file.
        holder: String,
    },
    /// The folder is not empty, so a new run may not begin in it.
    #[error(
        "{} already holds {found}; pass --resume to continue the run in it, or choose another --out folder",
        path.display()
    )]
    NotEmpty {
        /// The folder.
        path: PathBuf,
        /// The first thing found in it.
        found: String,
    },
    /// The folder holds no run.
    #[error("{} is not a run folder: it has no plan.json; give the folder that was --out of a run", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// A line that is not the last one of a JSON-lines file does not parse.
    #[error(
        "{} line {line}: {problem}; only a last line can be torn by a crash, so the file was changed by something else",
        path.display()
    )]
    BadLine {
        /// The file.
        path: PathBuf,
        /// One-based line number.
        line: usize,
        /// Why it does not parse.
        problem: String,
    },
    /// A JSON file does not hold what it should.
    #[error("{}: {problem}", path.display())]
    BadJson {
        /// The file.
        path: PathBuf,
        /// Why it does not parse.
        problem: String,
    },
    /// A file of a checkpoint is not what was written.
    #[error("{} is corrupt: {problem}", path.display())]
    Corrupt {
        /// The corrupt file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
    /// A checkpoint was written by a newer program.
    #[error(
        "{} has checkpoint format {found}, this program reads up to {known}; use the newer posttrain that wrote it",
        path.display()
    )]
    NewerFormat {
        /// The state file.
        path: PathBuf,
        /// Its format version.
        found: u64,
        /// The newest version this program reads.
        known: u64,
    },
    /// The checkpoint belongs to a different plan.
    #[error(
        "{} was saved under plan {found}, this run's plan is {expected}: the recipe, its data or its model changed; \
         undo the change to resume, or start a new run",
        path.display()
    )]
    PlanChanged {
        /// The checkpoint folder.
        path: PathBuf,
        /// The plan hash the caller runs under.
        expected: String,
        /// The plan hash in the checkpoint.
        found: String,
    },
    /// Checkpoints exist but none of them can be read.
    #[error("no valid checkpoint in {}: {}", path.display(), problems.join("; "))]
    NoValidCheckpoint {
        /// The checkpoints folder.
        path: PathBuf,
        /// What is wrong with each, newest first.
        problems: Vec<String>,
    },
    /// Two tensors of one file have the same name.
    #[error("tensor `{name}` is given twice for {}", path.display())]
    DuplicateTensor {
        /// The file being written.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A tensor's bytes do not fit its type and shape.
    #[error("tensor `{name}` of type {dtype:?} and shape {shape:?} needs {expected} bytes, got {found}")]
    TensorSize {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: crate::DtypeTag,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes that type and shape ask for.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A checkpoint lacks a tensor, or has it in another type.
    #[error("tensor `{name}`: expected {expected}, found {found}")]
    TensorMismatch {
        /// The tensor.
        name: String,
        /// What the reader asked for.
        expected: String,
        /// What is there.
        found: String,
    },
}

impl RunError {
    /// Attributes an I/O error to `action` on `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunError {
        let path = path.to_owned();
        move |source| RunError::Io { action, path, source }
    }

    /// Whether the data itself is damaged, so that an older checkpoint may serve instead.
    pub fn is_corruption(&self) -> bool {
        matches!(self, RunError::Corrupt { .. })
    }
}
