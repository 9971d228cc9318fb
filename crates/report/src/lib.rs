//! What a run was worth, from its folder alone.
//!
//! [`RunData::read`] takes what a run folder holds, and notes what is missing or damaged instead of failing.
//! [`page()`] makes one HTML page of it that needs nothing else, [`card`](card()) a model card in Hugging Face's form,
//! [`why`](why()) the reasons for which two runs differ.
//!
//! The folder's files are read as plain JSON with every key optional: a report must come also of a run that an older
//! or newer program wrote, or that died. The one thing that is not in the folder, how two lists of right and wrong are
//! compared, is given from above ([`Paired`]), so that a report and the run itself use the same test.
//!
//! Left out: training never calls this crate, and this crate never writes into a run by itself.

mod card;
mod chart;
mod evaluation;
mod front;
mod page;
mod plots;
mod read;
mod scatter;
mod series;
mod text;
mod why;

use std::path::PathBuf;

pub use card::{CARD_MARK, card};
pub use front::{Front, FrontPoint, Measure, Measured};
pub use page::{front_page, page};
pub use read::{Outcome, RolloutSample, RolloutStep, RunData, Sample, StageData, TaskGain, TaskResult};
pub use series::{Point, Series};
pub use why::{Divergence, Group, PlanDifference, ResultDifference, Why, why};

/// What went wrong. Files of a run that are missing or damaged are no error but a note in [`RunData::problems`].
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// There is no run to report on.
    #[error("{} is not a run folder: it holds neither plan.json nor metrics.jsonl nor stages/; give the folder that `posttrain run` wrote", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// No stage of that name.
    #[error("the run has no stage `{name}`; it has {}", known.join(", "))]
    NoStage {
        /// What was asked for.
        name: String,
        /// Labels of its stages.
        known: Vec<String>,
    },
    /// The two runs' files could not be compared.
    #[error(transparent)]
    Run(#[from] pt_run::RunError),
}

/// The difference between two lists of right and wrong over the same problems.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gain {
    /// Share right in the second minus share right in the first.
    pub difference: f64,
    /// Its 95 % interval.
    pub interval95: (f64, f64),
    /// Of the hypothesis that nothing changed.
    pub p_value: f64,
}

impl Gain {
    /// Whether the interval leaves zero out.
    pub fn is_significant(&self) -> bool {
        self.interval95.0 > 0.0 || self.interval95.1 < 0.0
    }
}

/// Compares two lists of equal length: entry `i` of both is problem `i`, right or wrong.
pub type Paired = fn(before: &[bool], after: &[bool]) -> Gain;
