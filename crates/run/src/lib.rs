//! Run folders: metrics, events, checkpoints, atomic publication.
//!
//! A run folder is everything a run leaves behind, and all that a report or a resume reads:
//!
//! ```text
//! run/
//!   plan.json                    what was resolved before the first step
//!   metrics.jsonl                one line per logged step; bitwise reproducible
//!   timing.jsonl                 the same steps' wall-clock and throughput; not reproducible
//!   events.jsonl                 started, resumed, checkpoints, warnings ... each with UTC time
//!   tensorboard/01-sft/events.out.tfevents.*   the same numbers for TensorBoard
//!   run.lock                     who is writing
//!   stages/01-sft/
//!     checkpoints/step-000100/{tensors.safetensors,state.json}
//!     model/ or adapter/, rollouts/, eval/
//!     outcome.json               written last: the stage is complete
//! ```
//!
//! The order that makes a resume exact: everything logged at step k is logged **before** the
//! checkpoint of step k is saved ([`RunFolder::sync`], then [`CheckpointStore::save`]); a resume
//! from that checkpoint first calls [`RunFolder::resume_at`], which cuts away what came after it.
//!
//! Left out: what a checkpoint's tensors mean (the trainer's), and drawing plots (the report's).

mod checkpoint;
mod clock;
mod compare;
mod error;
mod events;
mod folder;
mod jsonl;
mod late;
mod lock;
mod recover;
pub mod tensorboard;
mod tensors;

pub use checkpoint::{BestBy, Checkpoint, CheckpointState, CheckpointStore, FileRecord, Found, Retention};
pub use clock::utc_now;
pub use compare::{Difference, Side, compare_runs};
pub use error::{Result, RunError};
pub use events::Event;
pub use folder::{RunFolder, StageFolder};
pub use jsonl::{JsonlFile, StepKey};
pub use late::join_late_stages;
pub use lock::RunLock;
pub use recover::recover_partials;
pub use tensors::{DtypeTag, OwnedTensor, TensorEntry, read_tensors, write_tensors};
