//! The training step and loop, blind to the objective.
//!
//! [`Trainer`] takes one optimiser step over the micro-batches it is given; [`fit()`] repeats it and writes metrics and
//! checkpoints to a run folder. Neither knows an algorithm's name: an [`Objective`](pt_objectives::Objective) turns
//! per-token arrays into gradients, an [`Optimiser`](pt_optim::Optimiser) turns gradients into updates.

mod error;
mod example;
mod fit;
mod mixing;
mod state;
mod trainer;

pub use error::{Result, SourceError, SourceResult, TrainError};
pub use example::{Example, Known, MicroBatch, Predictions, Reply, ScoredToken};
pub use fit::{
    Alarm, AlarmAction, LoopOptions, Outcome, Recorder, StepData, StepSource, Watcher, fit, resume,
};
pub use mixing::{FollowingReference, ReferenceSync};
pub use trainer::{EvalStats, StepStats, Trainer, TrainerOptions, role_of, score, score_with};
