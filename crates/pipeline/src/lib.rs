//! From a recipe to a plan, and from a plan to a trained model.
//!
//! ```text
//! recipe --load_recipe--> Recipe --prepare--> Prepared { Plan, data, tokenizer } --run--> run folder
//! ```
//!
//! This crate sees every other one and holds no algorithm: it reads sources, tokenises and audits them, finds or makes
//! the model, and hands ready objects to the trainer. What it learns on the way is given to a [`Watch`]; it prints
//! nothing, and reads nothing from its surroundings but what [`Surroundings`] holds.

mod difficulty;
mod displacement;
mod distil;
mod error;
mod example;
mod fitting;
mod folder;
mod graph;
mod invariance;
mod kinds;
mod loaded;
pub mod model;
mod output;
mod prepare;
mod probe;
pub mod process_scorer;
mod reference;
mod replies;
mod report;
mod reuse;
mod reward_report;
pub mod rl;
mod row_fit;
mod run;
pub mod scorer;
pub mod source;
pub mod stage;
mod stage_steps;
pub mod steps;
mod stop;
pub mod tasks;
pub mod tokenise;
mod trainable;
mod verify;

pub use difficulty::CurationModels;
pub use error::{PipelineError, PlanChange, Result};
pub use invariance::{LayoutResult, verify_invariance};
pub use loaded::{Loaded, own_dtype, stop_tokens};
pub use output::write_model;
pub use prepare::{Prepared, catalogue, check_fits, load_recipe, prepare, prepare_again};
pub use probe::{flops_per_token, matrix_peak};
pub use reference::{Extent, expect_same_tokens};
pub use report::{Contrast, Measure, StageReport, TaskGain};
pub use reward_report::{CalibrationBin, LengthBias, RankedPair, RewardReport, Share};
pub use run::{RunOptions, RunOutcome, Watch, run};
pub use source::Surroundings;
pub use stop::stop_token_ids;
pub use verify::{Verdict, verify_resume};
