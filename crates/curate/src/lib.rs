//! Curation: filters and analyses of datasets, each saying what it dropped and why.
//!
//! ```text
//! inputs --read--> Row --view--> Item --step 1--> ... --step n--> kept rows
//!                                        |                          |
//!                                        dropped rows, reasons      composition, card, mixture
//! ```
//!
//! Rows stream through the steps in chunks of [`CHUNK_ROWS`]. A step looks at the rows of a chunk on all cores, then
//! decides on them one after the other in their order, so nothing depends on the number of threads. What a step keeps
//! in memory is hashes, signatures and counts, never rows. A step that must see everything before it can decide takes a
//! *survey* first: the rows that reach it are written to a temporary file and read again.
//!
//! Rows that are kept leave with the columns they came with; only steps that repair or redact change a text.
//!
//! **Adding a step**: one file under `steps` with its documentation, options, code and tests, and one line in
//! [`CURATORS`].
//!
//! Left out: models. What depends on one (perplexity, instruction-following difficulty, token counts) is given from above
//! through [`Given`].

mod blueprint;
mod card;
mod catalogue;
mod config;
mod error;
mod hyperloglog;
mod item;
mod report;
mod run;
mod source;
mod step;
mod steps;
mod view;
mod words;
mod writer;

#[cfg(test)]
mod testing;

pub use blueprint::{Blueprint, MixPart, Mixture, Shortfall, Unit};
pub use card::{card_json, card_markdown};
pub use catalogue::{CURATORS, CuratorInfo};
pub use config::{Curation, Form, Input, StepConfig, Unreadable};
pub use error::CurateError;
pub use item::{Decision, Item};
pub use report::{Amount, Composition, Example, Histogram, InputReport, Report, StepReport, Summary};
pub use run::{CHUNK_ROWS, Progress, check, run};
pub use step::{CountTokens, FindModels, Given, ModelScores, Step};
pub use steps::contamination::{Contact, Index as ContaminationIndex, IndexOptions};
pub use steps::rejection_sampling::{Judged, Prefer, select};
pub use view::View;
