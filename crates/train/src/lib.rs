//! The training step and loop, blind to the objective.
//!
//! [`Trainer`] takes one optimiser step over the micro-batches it is given; [`fit()`] repeats it and writes metrics and
//! checkpoints to a run folder. Neither knows an algorithm's name: an [`Objective`](pt_objectives::Objective) turns
//! per-token arrays into gradients, an [`Optimiser`](pt_optim::Optimiser) turns gradients into updates.

mod error;
mod example;
mod fit;
mod state;
mod trainer;

pub use error::{Result, TrainError};
pub use example::{Example, MicroBatch, Predictions};
pub use fit::{LoopOptions, Outcome, Recorder, StepSource, Watcher, fit, resume};
pub use trainer::{EvalStats, StepStats, Trainer, TrainerOptions, role_of, score};
