//! The list of optimisers, from which names, options and manual pages come.

pub use pt_core::catalogue::OptionInfo;

use crate::{OptimError, Optimiser, adamw, adamw8bit, muon};

/// Builds an optimiser from options whose keys are known to be right, and the run's seed.
pub type Build = fn(&toml::Table, u64) -> Result<Box<dyn Optimiser>, OptimError>;

/// An entry of [`OPTIMISERS`].
pub struct OptimiserInfo {
    /// Its name in recipes.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// Its options.
    pub options: &'static [OptionInfo],
    /// Builds it.
    pub build: Build,
}

/// Every optimiser.
pub const OPTIMISERS: &[OptimiserInfo] = &[adamw::INFO, adamw8bit::INFO, muon::INFO];

/// The entry called `name`.
pub(crate) fn find(name: &str) -> Result<&'static OptimiserInfo, OptimError> {
    OPTIMISERS.iter().find(|info| info.name == name).ok_or_else(|| {
        let names: Vec<&str> = OPTIMISERS.iter().map(|info| info.name).collect();
        OptimError::UnknownName {
            kind: "optimiser",
            name: name.to_owned(),
            hint: pt_core::suggest::hint(name, &names),
        }
    })
}

/// Refuses keys that are not options.
pub(crate) fn check_keys(name: &str, known: &[OptionInfo], given: &toml::Table) -> Result<(), OptimError> {
    let names: Vec<&str> = known.iter().map(|option| option.name).collect();
    match given.keys().find(|key| !names.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(OptimError::UnknownOption {
            name: name.to_owned(),
            option: key.clone(),
            hint: pt_core::suggest::hint(key, &names),
        }),
    }
}

/// Reads a configuration whose keys are right.
pub(crate) fn parse<C: serde::de::DeserializeOwned>(
    name: &str,
    options: &toml::Table,
) -> Result<C, OptimError> {
    toml::Value::Table(options.clone()).try_into().map_err(|e: toml::de::Error| OptimError::Option {
        name: name.to_owned(),
        problem: e.message().to_owned(),
    })
}

#[cfg(test)]
pub(crate) fn check_defaults(options: &[OptionInfo], defaults: &impl serde::Serialize) {
    let written = toml::Table::try_from(defaults).unwrap();
    for option in options.iter().filter(|option| !option.default.is_empty()) {
        let listed: toml::Table = format!("{} = {}", option.name, option.default).parse().unwrap();
        assert_eq!(listed.get(option.name), written.get(option.name), "default of `{}`", option.name);
    }
    for key in written.keys() {
        assert!(options.iter().any(|option| option.name == key), "`{key}` is not in the catalogue");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build;

    #[test]
    fn every_entry_builds_with_its_defaults_and_has_docs() {
        for info in OPTIMISERS {
            assert_eq!(build(info.name, &toml::Table::new(), 1).unwrap().name(), info.name);
            assert!(!info.summary.is_empty() && !info.source.is_empty());
            let names: Vec<_> = info.options.iter().map(|o| o.name).collect();
            assert!(info.options.iter().all(|o| !o.doc.is_empty() && !o.kind.is_empty()), "{names:?}");
        }
    }

    #[test]
    fn wrong_names_options_and_values_say_what_was_expected() {
        let check = |name: &str, options: &str, expected: &str| {
            let message = build(name, &options.parse().unwrap(), 1).unwrap_err().to_string();
            assert!(message.contains(expected), "{message} should mention {expected}");
        };
        check("adam", "", "did you mean `adamw`?");
        check("adamw", "weigth_decay = 0.1", "did you mean `weight_decay`?");
        check("adamw", "beta1 = 1.0", "beta1 is 1, expected at least 0 and below 1");
        check("adamw", "beta1 = \"x\"", "expected");
        check("adamw", "state = \"f16\"", "unknown variant `f16`");
        check("adamw8bit", "eps = 0.0", "eps is 0, expected above 0");
        check("muon", "momentum = -0.1", "momentum is -0.1");
        check("muon", "adamw = { beta3 = 1 }", "did you mean `beta1`?");
    }
}
