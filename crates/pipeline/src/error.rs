//! What can go wrong between a recipe and a trained model.

use std::path::PathBuf;

/// An error of a pipeline; each variant is one boundary it came from.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// From reading the recipe.
    #[error(transparent)]
    Recipe(#[from] pt_recipe::RecipeError),
    /// From resolving it.
    #[error(transparent)]
    Plan(#[from] pt_recipe::PlanError),
    /// From reading data.
    #[error(transparent)]
    Data(#[from] pt_data::DataError),
    /// From tokenizers, templates and masks.
    #[error(transparent)]
    Text(Box<pt_text::TextError>),
    /// From loading or saving models.
    #[error(transparent)]
    Model(#[from] pt_models::ModelError),
    /// From generated sources.
    #[error(transparent)]
    Task(#[from] pt_tasks::TaskError),
    /// From training.
    #[error(transparent)]
    Train(pt_train::TrainError),
    /// From objectives.
    #[error(transparent)]
    Objective(#[from] pt_objectives::ObjectiveError),
    /// From optimisers and schedules.
    #[error(transparent)]
    Optim(#[from] pt_optim::OptimError),
    /// From sampling.
    #[error(transparent)]
    Rollout(#[from] pt_rollout::RolloutError),
    /// From the run folder.
    #[error(transparent)]
    Run(#[from] pt_run::RunError),
    /// A file that could not be read or written.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A hub name that is not in the local cache.
    #[error(
        "`{name}` is neither a folder nor a model in the local hub cache ({cache}); download it once, for example with \
         `hf download {name}`, or give the path of its folder"
    )]
    NotDownloaded {
        /// The name.
        name: String,
        /// Where it was looked for.
        cache: String,
    },
    /// A row of a kind that the stage cannot train on.
    #[error("{origin}: a {kind} row cannot be used in a `{stage}` stage; {advice}")]
    RowKind {
        /// File and line.
        origin: String,
        /// What it is.
        kind: &'static str,
        /// The stage's type.
        stage: String,
        /// What to do.
        advice: &'static str,
    },
    /// An objective that is not on the rows of its stage.
    #[error(
        "a `{stage}` stage gives its objective {rows}, which `{objective}` is not made for; set objective.type to one of \
         {fitting}, or the stage's type to one whose rows are `{objective}`'s"
    )]
    RowsDoNotFit {
        /// The stage's type.
        stage: String,
        /// The objective.
        objective: String,
        /// What the stage's rows are.
        rows: &'static str,
        /// Objectives that fit.
        fitting: String,
    },
    /// From what lies between verdicts and the loss.
    #[error(transparent)]
    Rl(#[from] pt_rl::RlError),
    /// A reward that is not understood.
    #[error(transparent)]
    Reward(#[from] pt_verify::RewardError),
    /// A pair whose sides do not begin with the same prompt tokens.
    #[error(
        "{origin}: the prompt's tokens are not the same before the chosen and before the rejected reply; check that both continue \
         one prompt, and that the chat template renders it in the same way before each"
    )]
    PromptsDiffer {
        /// File and line.
        origin: String,
    },
    /// A row of which nothing is left to train on once it is cut.
    #[error(
        "{origin}: nothing of a reply is left once its {tokens} tokens are cut to max_length = {max_length}; raise it, or set \
         truncation to drop, which leaves such rows out and counts them"
    )]
    NothingLeft {
        /// File and line.
        origin: String,
        /// Its length.
        tokens: usize,
        /// The recipe's limit.
        max_length: usize,
    },
    /// A policy that is not its reference at step 0.
    #[error(
        "before the first step the policy gives a token of {origin} the log-probability {policy}, its reference {reference}: they \
         must be equal, so one of the two models is not what it should be"
    )]
    ReferenceDiffers {
        /// The example's file and line.
        origin: String,
        /// The policy's.
        policy: f32,
        /// The reference's.
        reference: f32,
    },
    /// A row longer than allowed, where the recipe says that is an error.
    #[error(
        "{origin}: the row has {tokens} tokens, more than max_length = {max_length}; raise it, or set truncation to keep_start, keep_end or drop"
    )]
    TooLong {
        /// File and line.
        origin: String,
        /// Its length.
        tokens: usize,
        /// The recipe's limit.
        max_length: usize,
    },
    /// A piece of joined rows in which nothing trains.
    #[error(
        "step {step}: none of its tokens trains: packing = \"wrapped\" cuts rows where it likes, and the pieces from {origin} \
         hold prompts alone; use packing = \"bfd\", or larger steps"
    )]
    EmptyStep {
        /// The step, from 1.
        step: u64,
        /// File and line of its first row.
        origin: String,
    },
    /// A source of which nothing is left.
    #[error(
        "{source_name}: none of its {n_dropped} rows is left: all are longer than max_length = {max_length}; raise it, or set truncation to keep_start or keep_end"
    )]
    AllDropped {
        /// The source, as the recipe names it.
        source_name: String,
        /// Rows it had.
        n_dropped: u64,
        /// The recipe's limit.
        max_length: u64,
    },
    /// A run that would not fit.
    #[error(
        "stage `{stage}` needs about {needed_gib:.1} GiB and this machine has {available_gib:.1} GiB free; lower tokens_per_micro_batch, set \
         recompute = \"block\", or use method = \"lora\" or \"qlora\""
    )]
    DoesNotFit {
        /// The stage.
        stage: String,
        /// Planned peak.
        needed_gib: f64,
        /// Free memory.
        available_gib: f64,
    },
    /// A run folder that holds another run.
    #[error("{path} holds a run already; continue it with --resume, or choose another folder with --out", path = path.display())]
    RunExists {
        /// The folder.
        path: PathBuf,
    },
    /// A run folder whose plan is another one.
    #[error(
        "{path} holds the run of another plan, which cannot go on under this one:{}\nundo the changes to resume it, or choose \
         another folder with --out",
        changes_shown(changes), path = path.display()
    )]
    PlanChanged {
        /// The folder.
        path: PathBuf,
        /// Every entry that differs and affects the results.
        changes: Vec<PlanChange>,
    },
    /// A row with a token that the model has no embedding for.
    #[error(
        "{origin}: token id {id} (`{token}`) is outside the model's vocabulary of {vocabulary}: the tokenizer, with \
         {tokenizer_size} tokens, and the model do not belong together; name the model's own with model.tokenizer"
    )]
    Vocabulary {
        /// File and line.
        origin: String,
        /// The id.
        id: u32,
        /// Its text.
        token: String,
        /// The model's vocabulary.
        vocabulary: usize,
        /// The tokenizer's vocabulary.
        tokenizer_size: usize,
    },
    /// A round in the middle of its steps whose samples are not there any more.
    #[error(
        "the samples of round {round} are gone: step {step} of the stage trains on them, and its rollouts folder has no \
         step-{round:08}.jsonl.zst; put the file back, or remove the stage's checkpoints after step {first} and resume: the \
         round is then sampled again"
    )]
    SamplesGone {
        /// The round, from 0, as its file is named.
        round: u64,
        /// The step that needs them, from 1.
        step: u64,
        /// Steps done before the round.
        first: u64,
    },
    /// A task that cannot be measured as the recipe asks.
    #[error("stage `{stage}`, task `{task}` of its eval.tasks: {source}; correct eval.tasks or eval.n")]
    EvalTask {
        /// The stage.
        stage: String,
        /// The task.
        task: String,
        /// What is wrong with it.
        source: Box<PipelineError>,
    },
    /// From a stage that trains nothing.
    #[error("stage `{stage}`: {source}")]
    Stage {
        /// The stage.
        stage: String,
        /// What went wrong.
        source: Box<PipelineError>,
    },
    /// A model that lost more than the recipe allows.
    #[error(
        "the gate of stage `{stage}` fails: {reasons}; what was found is in {path}. Train less or on more like what was lost, or \
         raise gate.max_loss: the stages before it need not run again",
        path = path.display()
    )]
    Gate {
        /// The stage.
        stage: String,
        /// Which models lost what.
        reasons: String,
        /// Where all of it is.
        path: PathBuf,
    },
    /// From evaluation.
    #[error(transparent)]
    Eval(Box<pt_eval::EvalError>),
    /// From a server that judges or answers.
    #[error(transparent)]
    Client(#[from] pt_client::ClientError),
    /// From AI feedback.
    #[error(transparent)]
    Feedback(Box<pt_feedback::FeedbackError>),
    /// From curation.
    #[error(transparent)]
    Curate(Box<pt_curate::CurateError>),
    /// From merging and exporting.
    #[error(transparent)]
    Export(Box<pt_export::ExportError>),
    /// A round of which a server gave nothing.
    #[error(
        "the server at {url} gave no sample that can be trained on: {reasons}. What is saved is unharmed; see to the server, and resume"
    )]
    NoSamples {
        /// The server.
        url: String,
        /// What became of the samples.
        reasons: String,
    },
    /// A program that should give a server new weights.
    #[error(
        "server.reload_command `{command}` failed: {problem}. What was saved is unharmed: see to the command and the server (it may \
         take server.reload_timeout_s seconds), and resume"
    )]
    Reload {
        /// The program with its arguments.
        command: String,
        /// What happened.
        problem: String,
    },
    /// A row that an environment cannot play.
    #[error("{origin}: the environment `{environment}` cannot play this row: {problem}")]
    EnvironmentRow {
        /// File and line.
        origin: String,
        /// The environment.
        environment: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// An environment that panicked.
    #[error(
        "{origin}: the environment `{environment}` panicked in an episode of this row: {problem}. This is a bug of the environment; \
         what was saved is unharmed: mend it or take the row out, and resume"
    )]
    EnvironmentPanicked {
        /// File and line.
        origin: String,
        /// The environment.
        environment: &'static str,
        /// What the panic said.
        problem: String,
    },
    /// From an environment's options.
    #[error(transparent)]
    Environment(#[from] pt_core::catalogue::CatalogueError),
    /// A recipe that names what this version does not do.
    #[error("{what}; {advice}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What to do instead.
        advice: String,
    },
}

/// An entry of a plan that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanChange {
    /// Where in `plan.json`, as in `stages.0.schedule.learning_rate`.
    pub key: String,
    /// As the run began.
    pub old: String,
    /// As the recipe has it now.
    pub new: String,
}

fn changes_shown(changes: &[PlanChange]) -> String {
    const MOST: usize = 12;
    let line = |change: &PlanChange| format!("\n  {} was {}, is {}", change.key, change.old, change.new);
    let mut text: String = changes.iter().take(MOST).map(line).collect();
    if let Some(more) = changes.len().checked_sub(MOST).filter(|more| *more > 0) {
        text += &format!("\n  and {more} more");
    }
    text
}

impl From<pt_text::TextError> for PipelineError {
    fn from(error: pt_text::TextError) -> PipelineError {
        // It shows rows, and would make every result of this crate as large.
        PipelineError::Text(Box::new(error))
    }
}

/// The errors that are boxed, as they would make every result of this crate as large as they are.
macro_rules! boxed {
    ($($variant:ident($source:ty),)*) => {
        $(impl From<$source> for PipelineError {
            fn from(error: $source) -> PipelineError {
                PipelineError::$variant(Box::new(error))
            }
        })*
    };
}

boxed! {
    Eval(pt_eval::EvalError),
    Feedback(pt_feedback::FeedbackError),
    Curate(pt_curate::CurateError),
    Export(pt_export::ExportError),
}

impl PipelineError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> PipelineError {
        let path = path.into();
        move |source| PipelineError::Io { action, path, source }
    }
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, PipelineError>;

/// What a step's source could not do is this crate's own error, carried through the training loop.
impl From<pt_train::TrainError> for PipelineError {
    fn from(error: pt_train::TrainError) -> PipelineError {
        match error {
            pt_train::TrainError::Source(source) => match source.downcast::<PipelineError>() {
                Ok(own) => *own,
                Err(other) => PipelineError::Train(pt_train::TrainError::Source(other)),
            },
            other => PipelineError::Train(other),
        }
    }
}
