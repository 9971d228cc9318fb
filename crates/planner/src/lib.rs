//! Memory, time and cost of training a model, by formula: any model, method and hardware, nothing loaded or run.
//!
//! [`Shape`] is what a model is, [`Device`] what it runs on, [`plan()`] the answer. The parts are pure functions, one file
//! each: [`memory`], [`time`], and [`layout`] for models that need many devices. `docs/guide/planning.md` explains them to
//! users.
//!
//! What it leaves out: measuring, which its caller does for this machine, and recipes, whose plans are measured
//! (`pt-pipeline`).

mod error;
pub mod hardware;
pub mod layout;
pub mod memory;
pub mod plan;
pub mod render;
pub mod shape;
pub mod shapes;
pub mod time;

pub use error::{PlannerError, Result};
pub use hardware::{Device, Hardware, Measured};
pub use memory::{Method, Storage, Training};
pub use plan::{Plan, Question, plan};
pub use shape::Shape;
