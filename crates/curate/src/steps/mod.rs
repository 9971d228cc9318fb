//! The steps, one file each.

pub mod contamination;
pub mod rejection_sampling;

pub(crate) mod clusters;
pub(crate) mod complexity;
pub(crate) mod difficulty;
pub(crate) mod domains;
pub(crate) mod encoding;
pub(crate) mod equations;
pub(crate) mod exact_duplicates;
pub(crate) mod instruction_profile;
pub(crate) mod json;
pub(crate) mod near_duplicates;
pub(crate) mod ngram_coverage;
pub(crate) mod personal_data;
pub(crate) mod score;
pub(crate) mod secrets;
pub(crate) mod verify;

mod arithmetic;
mod constraints;
mod redaction;

use pt_core::catalogue::OptionInfo;

use crate::view::PART_KIND;

/// The option that says which text is read.
pub(crate) const fn part_option(default: &'static str) -> OptionInfo {
    OptionInfo { name: "part", kind: PART_KIND, default, doc: "which text of a row is read" }
}
