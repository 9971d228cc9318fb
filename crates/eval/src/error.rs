//! What can go wrong in an evaluation.

use std::path::PathBuf;

use pt_core::catalogue::CatalogueError;

/// The result of everything here.
pub type Result<T> = std::result::Result<T, EvalError>;

/// Why something cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A benchmark or an option that is not there.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// A benchmark's name that cannot be read.
    #[error("benchmark `{name}`: {problem}; write it as `gsm8k` or `mmlu?mode=generative&subjects=anatomy`")]
    Name {
        /// What was written.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An option whose value the benchmark cannot use.
    #[error("benchmark `{benchmark}`: `{option}` is {found}, expected {expected}")]
    Option {
        /// The benchmark.
        benchmark: &'static str,
        /// The option.
        option: &'static str,
        /// Its value.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// A benchmark without a question.
    #[error(
        "benchmark `{benchmark}`: no question is left; look at its options (`posttrain eval --list`) and its data"
    )]
    NoQuestions {
        /// The benchmark with its options.
        benchmark: String,
    },
    /// Replies as long as the model's whole context.
    #[error(
        "{model} was made for {max_length} tokens and replies may have {max_new_tokens}, which leaves no room for a prompt: \
         give a smaller --max-new-tokens"
    )]
    NoRoom {
        /// The model.
        model: String,
        /// The longest sequence it was made for.
        max_length: usize,
        /// Most tokens of a reply.
        max_new_tokens: usize,
    },
    /// The benchmark's data are not there.
    #[error(
        "benchmark `{benchmark}`: no data: looked for {looked}; name a file or folder with `{benchmark}?data=PATH`, a \
         folder that has it with --data-dir, or download the dataset {dataset} into the hub cache"
    )]
    NoData {
        /// The benchmark.
        benchmark: &'static str,
        /// Where it was looked for.
        looked: String,
        /// The dataset on the hub.
        dataset: &'static str,
    },
    /// A row that is not what the benchmark's rows are.
    #[error("{origin}: benchmark `{benchmark}` reads {expected}, and this row has {found}")]
    Row {
        /// The benchmark.
        benchmark: &'static str,
        /// Where the row is.
        origin: String,
        /// What should be there.
        expected: String,
        /// What is.
        found: String,
    },
    /// More examples are to be shown than there are.
    #[error("benchmark `{benchmark}`: --few-shot {wanted}, but there are only {available} examples to show")]
    FewShot {
        /// The benchmark.
        benchmark: &'static str,
        /// Examples asked for.
        wanted: usize,
        /// Examples there are.
        available: usize,
    },
    /// A question the model cannot be asked.
    #[error("benchmark `{benchmark}`, question {key}: {problem}")]
    Question {
        /// The benchmark.
        benchmark: String,
        /// The question.
        key: String,
        /// Why not.
        problem: String,
    },
    /// Chat was asked for, and there is no template.
    #[error("{model} has no chat template: give one with --template, or ask with plain text (--raw)")]
    NoTemplate {
        /// The model.
        model: String,
    },
    /// A benchmark that needs something that was not given.
    #[error("benchmark `{benchmark}` needs {what}: {advice}")]
    Missing {
        /// The benchmark.
        benchmark: &'static str,
        /// What is missing.
        what: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The model's probabilities are not numbers.
    #[error("{model} gives no probability (not a number) to question {key}: its weights are damaged")]
    NotFinite {
        /// The model.
        model: String,
        /// The question.
        key: String,
    },
    /// Results that cannot be read or compared.
    #[error("{path}: {problem}")]
    Results {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file that cannot be read or written.
    #[error("cannot {doing} {path}")]
    Io {
        /// Read or write.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Data that cannot be read.
    #[error(transparent)]
    Data(#[from] pt_data::DataError),
    /// A generated task that cannot be made.
    #[error(transparent)]
    Task(#[from] pt_tasks::TaskError),
    /// Text that cannot be tokenised or rendered.
    #[error(transparent)]
    Text(#[from] pt_text::TextError),
    /// Prompts that cannot be continued.
    #[error(transparent)]
    Rollout(#[from] pt_rollout::RolloutError),
    /// A judge that does not answer.
    #[error(transparent)]
    Client(#[from] pt_client::ClientError),
}

impl EvalError {
    /// For `map_err`: a file that cannot be read or written.
    pub(crate) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> EvalError {
        let path = path.into();
        move |source| EvalError::Io { doing, path, source }
    }
}
