//! Reinforcement learning between the verdicts and the loss, as pure functions and small state machines.
//!
//! ```text
//! samples in groups --pt-verify--> verdicts --[`advantages`], [`ppo`]--> advantages --pt-objectives--> loss
//!      ^                              |
//!      +--[`dynamic`]: sample again --+--[`curriculum`]: which problems next     [`alarms`]: whether to go on
//! ```
//!
//! It sees no model, tokenizer or recipe, draws nothing but through `pt_core::rng`, and only [`rollouts`] touches files. A
//! sample that nothing could judge has no reward (`None`): it is left out of every mean and deviation, and its advantage
//! is 0.

pub mod advantages;
pub mod alarms;
pub mod constraints;
pub mod curriculum;
pub mod dynamic;
mod error;
#[cfg(test)]
mod golden;
pub mod kl;
pub mod length;
pub mod metrics;
pub mod ppo;
pub mod rollouts;
mod stats;

pub use advantages::{AdvantageConfig, Advantages, Baseline, MultiObjective, ScaleRewards};
pub use alarms::{Action, Alarms, AlarmsConfig, Alert, StepFigures};
pub use constraints::{Bound, Constraint, ConstraintState, Constraints};
pub use curriculum::{Curriculum, CurriculumConfig};
pub use dynamic::{DynamicSampling, DynamicSamplingConfig, Round};
pub use error::RlError;
pub use kl::KlController;
pub use rollouts::{RolloutRecord, RolloutsFolder, TokenCredit, TurnRecord};
