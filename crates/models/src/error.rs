//! Everything that can be wrong with a model directory, an adapter or a configuration.

use std::io;
use std::path::{Path, PathBuf};

use pt_kernels::quant::QuantError;

/// Why a model or an adapter could not be read, built, changed or written.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file system said no.
    #[error("{}: {doing} failed: {source}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Text that is not JSON.
    #[error("{file}: not valid JSON: {problem}")]
    Json {
        /// Which file.
        file: String,
        /// Where and what.
        problem: String,
    },
    /// A model type outside the catalogue.
    #[error("{file}: `model_type` is `{found}`, which is not supported{reason}; {hint}")]
    UnknownArchitecture {
        /// Which file.
        file: String,
        /// The model type found.
        found: String,
        /// Why, where known; starts with a colon then.
        reason: String,
        /// The nearest and all supported names.
        hint: String,
    },
    /// A configuration option that must be there.
    #[error("{file}: `{key}` is missing; expected {expected}")]
    MissingOption {
        /// Which file.
        file: String,
        /// Path of the option.
        key: String,
        /// What it should be.
        expected: String,
    },
    /// A configuration option of the wrong type or out of range.
    #[error("{file}: `{key}` is {found}; expected {expected}")]
    BadOption {
        /// Which file.
        file: String,
        /// Path of the option.
        key: String,
        /// The value found.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A configuration option that is understood and not supported.
    #[error("{file}: `{key}` = {found} is not supported; supported: {supported}")]
    UnsupportedOption {
        /// Which file.
        file: String,
        /// Path of the option.
        key: String,
        /// The value found.
        found: String,
        /// What is.
        supported: String,
    },
    /// A configuration option nobody knows, whose value is not "off".
    #[error(
        "{file}: `{key}` = {found} is not known for {what}, and may change its results; {hint}. If you know that it \
         does not, list it among the ignored options"
    )]
    UnknownOption {
        /// Which file.
        file: String,
        /// Path of the option.
        key: String,
        /// The value found.
        found: String,
        /// What is being configured.
        what: String,
        /// The nearest known name, or that there is none.
        hint: String,
    },
    /// A directory without safetensors.
    #[error("{}: no model.safetensors and no model.safetensors.index.json{hint}", dir.display())]
    NoWeights {
        /// The directory.
        dir: PathBuf,
        /// What else is there and what to do; starts with a colon then.
        hint: String,
    },
    /// A weights file that cannot be what it claims.
    #[error("{}: {problem}", file.display())]
    BadFile {
        /// Which file.
        file: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A file shorter or longer than its header says.
    #[error(
        "{}: has {found_bytes} bytes, but its header describes {expected_bytes}; the file is {}, download or copy it \
         again", file.display(), if found_bytes < expected_bytes { "truncated" } else { "damaged" }
    )]
    Truncated {
        /// Which file.
        file: PathBuf,
        /// Its length.
        found_bytes: u64,
        /// The length it should have.
        expected_bytes: u64,
    },
    /// Tensors the configuration asks for.
    #[error("{}: {count} tensors are missing, first {first:?}; {hint}", dir.display())]
    MissingTensors {
        /// Where they should be.
        dir: PathBuf,
        /// How many.
        count: usize,
        /// The first few.
        first: Vec<String>,
        /// The likely reason.
        hint: String,
    },
    /// Tensors the configuration has no use for.
    #[error(
        "{}: {count} tensors have no place in a {architecture}, first {first:?}; config.json and weights do not belong \
         together, or the checkpoint has parts that are not supported", dir.display()
    )]
    ExtraTensors {
        /// Where they are.
        dir: PathBuf,
        /// How many.
        count: usize,
        /// The first few.
        first: Vec<String>,
        /// The class built.
        architecture: String,
    },
    /// A tensor of another shape than the configuration says.
    #[error("{}: tensor `{tensor}` has shape {found:?}, expected {expected:?} from the configuration", file.display())]
    WrongShape {
        /// Which file.
        file: PathBuf,
        /// Which tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor of a type that is not read in its place.
    #[error("{}: tensor `{tensor}` is stored as {found}; expected {expected}", file.display())]
    WrongDtype {
        /// Which file.
        file: PathBuf,
        /// Which tensor.
        tensor: String,
        /// Its storage type.
        found: String,
        /// What is read.
        expected: String,
    },
    /// A NaN or an infinity among the weights.
    #[error("{}: tensor `{tensor}` has {value} at element {index}; the checkpoint is damaged", file.display())]
    NonFinite {
        /// Which file.
        file: PathBuf,
        /// Which tensor.
        tensor: String,
        /// Position in the flattened tensor.
        index: usize,
        /// What was found, as stored or as rounded to the type asked for.
        value: f32,
    },
    /// A head that should be the embedding and is not.
    #[error(
        "{}: `tie_word_embeddings` is true, but `{tensor}` differs from the embedding; set it to false in config.json \
         to use the separate head, or remove the tensor", file.display()
    )]
    UntiedHead {
        /// Which file.
        file: PathBuf,
        /// The head's name.
        tensor: String,
    },
    /// A quantised tensor that could not be made or read.
    #[error("{}: tensor `{tensor}`: {source}", file.display())]
    Quantise {
        /// Which file.
        file: PathBuf,
        /// Which tensor.
        tensor: String,
        /// What the codec says.
        source: QuantError,
    },
    /// An adapter option or name that does not fit the model.
    #[error("adapter: {problem}")]
    Adapter {
        /// What was found, expected, and what to do.
        problem: String,
    },
    /// An operation that does not fit the state of the model.
    #[error("{problem}")]
    State {
        /// What the state is and what to do first.
        problem: String,
    },
}

impl ModelError {
    /// Wraps an error of the file system.
    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> ModelError {
        let path = path.to_owned();
        move |source| ModelError::Io { path, doing, source }
    }

    pub(crate) fn adapter(problem: impl Into<String>) -> ModelError {
        ModelError::Adapter { problem: problem.into() }
    }
}

/// What a folder was being done when the file system refused to make it appear.
pub(crate) const PUBLISHING: &str = "publishing the folder";

/// What `atomic_file::publish_dir` makes of failures of its own; the caller puts the folder's path in.
impl From<io::Error> for ModelError {
    fn from(source: io::Error) -> ModelError {
        ModelError::Io { path: PathBuf::new(), doing: PUBLISHING, source }
    }
}

/// This crate's results.
pub type Result<T> = std::result::Result<T, ModelError>;
