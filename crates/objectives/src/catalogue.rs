//! The list of objectives, from which names, options and manual pages come.

use pt_core::catalogue::{self, CatalogueError, OptionInfo};

use crate::{Objective, ObjectiveError, cross_entropy, dft, policy_gradient, preference};

/// What the catalogue lists, for messages.
pub(crate) const KIND: &str = "objective";

/// Builds an objective from options whose keys are known to be right.
pub type Build = fn(&toml::Table) -> Result<Box<dyn Objective>, ObjectiveError>;

/// An entry of [`OBJECTIVES`].
pub struct ObjectiveInfo {
    /// Its name in recipes.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// The loss of one token.
    pub equation: &'static str,
    /// Its options.
    pub options: &'static [OptionInfo],
    /// Builds it.
    pub build: Build,
}

/// Every objective.
pub const OBJECTIVES: &[ObjectiveInfo] = &[
    cross_entropy::INFO,
    dft::INFO,
    policy_gradient::grpo::INFO,
    policy_gradient::dapo::INFO,
    policy_gradient::dr_grpo::INFO,
    policy_gradient::bnpo::INFO,
    policy_gradient::gspo::INFO,
    policy_gradient::luspo::INFO,
    policy_gradient::cispo::INFO,
    policy_gradient::sapo::INFO,
    policy_gradient::vespo::INFO,
    policy_gradient::rloo::INFO,
    policy_gradient::reinforce_pp::INFO,
    policy_gradient::ppo::INFO,
    preference::dpo::INFO,
    preference::orpo::INFO,
    preference::cpo::INFO,
    preference::simpo::INFO,
    preference::alphapo::INFO,
    preference::tpo::INFO,
    preference::kto::INFO,
    preference::apo_zero_unpaired::INFO,
    preference::bco::INFO,
    preference::reward::INFO,
    preference::prm::INFO,
    preference::xpo::INFO,
    preference::nash_md::INFO,
    preference::distillation::INFO,
    preference::gkd::INFO,
];

/// The objective called `name` with the given options; missing ones take their defaults.
///
/// # Errors
/// [`ObjectiveError::Catalogue`] with the nearest name, or what a value should have been.
pub fn build(name: &str, options: &toml::Table) -> Result<Box<dyn Objective>, ObjectiveError> {
    let info = catalogue::find(KIND, OBJECTIVES, |info| info.name, name)?;
    catalogue::check_options(KIND, name, info.options, options)?;
    (info.build)(options)
}

/// Reads a configuration whose keys are right.
pub(crate) fn parse<C: serde::de::DeserializeOwned>(
    name: &'static str,
    options: &toml::Table,
) -> Result<C, ObjectiveError> {
    Ok(catalogue::parse(KIND, name, options)?)
}

/// An option whose value is out of range.
pub(crate) fn bad_option(name: &'static str, problem: String) -> ObjectiveError {
    CatalogueError::Option { kind: KIND, name: name.to_owned(), problem }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_builds_with_its_defaults_and_has_docs() {
        for info in OBJECTIVES {
            assert_eq!(build(info.name, &toml::Table::new()).unwrap().name(), info.name);
            let listed: String = info
                .options
                .iter()
                .filter(|o| !o.default.is_empty())
                .map(|o| format!("{} = {}\n", o.name, o.default))
                .collect();
            let from_listed = build(info.name, &listed.parse().unwrap()).unwrap();
            let from_nothing = build(info.name, &toml::Table::new()).unwrap();
            assert_eq!(
                format!("{from_listed:?}"),
                format!("{from_nothing:?}"),
                "listed defaults are the defaults"
            );
            for text in [info.summary, info.source, info.equation] {
                assert!(!text.is_empty(), "`{}`", info.name);
            }
            assert!(info.options.iter().all(|o| !o.doc.is_empty() && !o.kind.is_empty()), "`{}`", info.name);
        }
    }

    #[test]
    fn wrong_names_options_and_values_say_what_was_expected() {
        let check = |name: &str, options: &str, expected: &str| {
            let message = build(name, &options.parse().unwrap()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message} should mention {expected}");
        };
        check("cross_entropi", "", "did you mean `cross_entropy`?");
        check("cross_entropy", "label_smooth = 0.1", "did you mean `label_smoothing`?");
        check(
            "cross_entropy",
            "label_smoothing = 1.5",
            "label_smoothing is 1.5, expected at least 0 and below 1",
        );
        check("cross_entropy", "label_smoothing = 'x'", "expected");
        check("dft", "beta = 1", "it has no options");
    }
}
