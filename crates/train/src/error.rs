//! What can go wrong in training.

use pt_objectives::ObjectiveError;
use pt_optim::OptimError;
use pt_run::RunError;

/// An error of the training step or loop.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model produced something that is not a number.
    #[error(
        "step {step}: the {quantity} of token {token} is {value} in the example from {origin}; the weights or the learning \
         rate are to blame: resume from the last checkpoint with a lower learning rate"
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// `log-probability`, or what else of the prediction it is.
        quantity: &'static str,
        /// The first target concerned.
        token: u32,
        /// What was computed.
        value: f32,
        /// The example's file and line.
        origin: String,
    },
    /// A token id the model has no embedding for.
    #[error(
        "token id {token} from {origin} is outside the model's vocabulary of {vocabulary}: the tokenizer and the model do not belong together"
    )]
    Vocabulary {
        /// The id.
        token: u32,
        /// The example's file and line.
        origin: String,
        /// The model's vocabulary.
        vocabulary: usize,
    },
    /// A teacher of another vocabulary.
    #[error(
        "the teacher's output layer has {found} tokens, the student's {expected}: a divergence between their distributions needs one \
         vocabulary; choose a teacher with the student's tokenizer and output layer, or learn from its samples"
    )]
    TeacherVocabulary {
        /// The teacher's.
        found: usize,
        /// The student's.
        expected: usize,
    },
    /// A reference that cannot follow the policy.
    #[error(
        "weight `{name}` of the reference: found {found}, expected {expected}; a reference that follows the policy must be of its \
         architecture and sizes: name another model, or leave out the synchronisation"
    )]
    Reference {
        /// The weight.
        name: String,
        /// What the reference has.
        found: String,
        /// What the policy has.
        expected: String,
    },
    /// Nothing in the model is trainable.
    #[error("no parameter of the model is trainable: attach an adapter or train in full")]
    NoParameters,
    /// From where steps come from.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// From the objective.
    #[error(transparent)]
    Objective(#[from] ObjectiveError),
    /// From the optimiser.
    #[error(transparent)]
    Optim(#[from] OptimError),
    /// From the run folder.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A checkpoint that does not belong to this model.
    #[error(
        "checkpoint tensor `{name}`: found {found}, expected {expected}; it belongs to another model or recipe"
    )]
    Mismatch {
        /// The tensor.
        name: String,
        /// What the checkpoint holds.
        found: String,
        /// What the model needs.
        expected: String,
    },
}

/// Results of training.
pub type Result<T> = std::result::Result<T, TrainError>;

/// What goes wrong where steps come from: the training loop does not know what it is.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Results of a [`crate::StepSource`].
pub type SourceResult<T> = std::result::Result<T, SourceError>;
