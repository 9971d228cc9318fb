//! The moments of a run, in the order they happened.

use serde::{Deserialize, Serialize};

/// One line of `events.jsonl`: `{"time": ..., "event": ..., fields}`.
///
/// Events are history: a resume never removes one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The run began.
    Started {
        /// Version of the program.
        version: String,
        /// Hash of the plan.
        plan_hash: String,
    },
    /// The run goes on after an interruption.
    Resumed {
        /// Stage label, as in `01-sft`.
        stage: String,
        /// Last completed step of that stage.
        step: u64,
    },
    /// A stage began.
    StageBegun {
        /// Stage label.
        stage: String,
    },
    /// A stage ended and published its output.
    StageEnded {
        /// Stage label.
        stage: String,
        /// Steps it ran.
        steps: u64,
    },
    /// A checkpoint was published.
    CheckpointSaved {
        /// Stage label.
        stage: String,
        /// Step it holds.
        step: u64,
    },
    /// A checkpoint was found damaged and an older one was used.
    CheckpointSkipped {
        /// Stage label.
        stage: String,
        /// What was wrong with it.
        problem: String,
    },
    /// The run stopped before its end.
    Interrupted {
        /// Stage label.
        stage: String,
        /// Last completed step.
        step: u64,
        /// Why: a signal, a full disk, a time limit.
        reason: String,
    },
    /// Something a person should know that does not stop the run.
    Warning {
        /// What was found, and what to do.
        message: String,
    },
    /// The run is complete.
    Finished,
}

/// An event with its time.
#[derive(Serialize)]
pub(crate) struct TimedEvent<'a> {
    /// UTC, RFC 3339.
    pub time: String,
    #[serde(flatten)]
    pub event: &'a Event,
}
