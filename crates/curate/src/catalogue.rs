//! The list of steps, from which names, options and manual pages come.

use pt_core::catalogue::OptionInfo;

use crate::error::CurateError;
use crate::step::{AnyStep, Given};
use crate::steps;

/// What the catalogue lists, for messages.
pub(crate) const KIND: &str = "curation step";

/// A step of any type.
pub(crate) type BoxedStep = Box<dyn AnyStep>;

/// An entry of [`CURATORS`].
pub struct CuratorInfo {
    /// Its name in curation files.
    pub name: &'static str,
    /// What it is about: `duplicates`, `diversity`, `complexity`, `accuracy`, `contamination`, `privacy`, `text`, `sampling`.
    pub group: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Its options.
    pub options: &'static [OptionInfo],
    /// Builds it.
    pub(crate) build: fn(&toml::Table, &Given) -> Result<BoxedStep, CurateError>,
}

/// Every step, in the order the manual lists them.
pub const CURATORS: &[CuratorInfo] = &[
    steps::encoding::INFO,
    steps::exact_duplicates::INFO,
    steps::near_duplicates::INFO,
    steps::contamination::INFO,
    steps::personal_data::INFO,
    steps::secrets::INFO,
    steps::complexity::INFO,
    steps::difficulty::INFO,
    steps::equations::INFO,
    steps::verify::INFO,
    steps::json::INFO,
    steps::score::INFO,
    steps::rejection_sampling::INFO,
    steps::ngram_coverage::INFO,
    steps::clusters::INFO,
    steps::instruction_profile::INFO,
    steps::domains::INFO,
];

/// The step called `name` with the given options; missing ones take their defaults.
///
/// # Errors
/// An unknown name or option with the nearest one, or what a value should have been.
pub(crate) fn build(name: &str, options: &toml::Table, given: &Given) -> Result<BoxedStep, CurateError> {
    let info = pt_core::catalogue::find(KIND, CURATORS, |info| info.name, name)?;
    pt_core::catalogue::check_options(KIND, name, info.options, options)?;
    (info.build)(options, given)
}

/// Reads options whose keys are right.
pub(crate) fn parse<C: serde::de::DeserializeOwned>(
    name: &'static str,
    options: &toml::Table,
) -> Result<C, CurateError> {
    Ok(pt_core::catalogue::parse(KIND, name, options)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn entries_are_documented_and_their_listed_defaults_are_accepted() {
        let mut names = BTreeSet::new();
        for info in CURATORS {
            assert!(names.insert(info.name), "`{}` twice", info.name);
            assert!(!info.summary.is_empty() && !info.group.is_empty());
            let mut listed = toml::Table::new();
            for option in info.options {
                assert!(!option.doc.is_empty() && !option.kind.is_empty(), "{}.{}", info.name, option.name);
                if !option.default.is_empty() {
                    let line: toml::Table = format!("{} = {}", option.name, option.default).parse().unwrap();
                    listed.extend(line);
                }
            }
            let outcome = |options: &toml::Table| {
                build(info.name, options, &Given::default()).err().map(|e| e.to_string())
            };
            assert_eq!(outcome(&listed), outcome(&toml::Table::new()), "`{}`: listed defaults", info.name);
            let unknown = "no_such_option = 1".parse().unwrap();
            let error = build(info.name, &unknown, &Given::default()).err().unwrap().to_string();
            assert!(error.contains("no option `no_such_option`"), "{error}");
        }
        let error = build("near_duplicate", &toml::Table::new(), &Given::default()).err().unwrap();
        assert!(error.to_string().contains("did you mean `near_duplicates`"), "{error}");
    }
}
