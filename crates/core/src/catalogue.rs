//! What all catalogues share: options as the manual lists them, and their checks.
//!
//! A catalogue is an explicit `const` list of entries, each with a name, documentation, [`OptionInfo`]s and a function
//! that builds it from options. Names and options of every kind are refused in the same words.

use serde::de::DeserializeOwned;

/// One option, for the manual and for errors about unknown keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionInfo {
    /// Its key.
    pub name: &'static str,
    /// Its type and accepted values.
    pub kind: &'static str,
    /// Its default, as TOML; empty if there is none.
    pub default: &'static str,
    /// What it does.
    pub doc: &'static str,
}

/// What is wrong with a name or an option.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CatalogueError {
    /// No entry of that name.
    #[error("unknown {kind} `{name}`; {hint}")]
    UnknownName {
        /// What the catalogue lists.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// The nearest name, or all names.
        hint: String,
    },
    /// An option the entry does not have.
    #[error("{kind} `{name}` has no option `{option}`; {hint}")]
    UnknownOption {
        /// What the catalogue lists.
        kind: &'static str,
        /// The entry.
        name: String,
        /// The option.
        option: String,
        /// The nearest option, or all options.
        hint: String,
    },
    /// An option with a value of the wrong type or out of range.
    #[error("{kind} `{name}`: {problem}")]
    Option {
        /// What the catalogue lists.
        kind: &'static str,
        /// The entry.
        name: String,
        /// What was found and what was expected.
        problem: String,
    },
}

/// The entry of `entries` called `name`.
///
/// # Errors
/// [`CatalogueError::UnknownName`] with the nearest name.
pub fn find<'e, E>(
    kind: &'static str,
    entries: &'e [E],
    name_of: impl Fn(&E) -> &'static str,
    name: &str,
) -> Result<&'e E, CatalogueError> {
    entries.iter().find(|entry| name_of(entry) == name).ok_or_else(|| {
        let names: Vec<&str> = entries.iter().map(name_of).collect();
        CatalogueError::UnknownName { kind, name: name.to_owned(), hint: crate::suggest::hint(name, &names) }
    })
}

/// Refuses keys that are not among `known`.
///
/// # Errors
/// [`CatalogueError::UnknownOption`] with the nearest option.
pub fn check_options(
    kind: &'static str,
    name: &str,
    known: &[OptionInfo],
    given: &toml::Table,
) -> Result<(), CatalogueError> {
    let names: Vec<&str> = known.iter().map(|option| option.name).collect();
    let Some(key) = given.keys().find(|key| !names.contains(&key.as_str())) else { return Ok(()) };
    let hint = match names.as_slice() {
        [] => "it has no options".to_owned(),
        names => crate::suggest::hint(key, names),
    };
    Err(CatalogueError::UnknownOption { kind, name: name.to_owned(), option: key.clone(), hint })
}

/// Reads a configuration whose keys are right; its type has `#[serde(default, deny_unknown_fields)]`.
///
/// # Errors
/// [`CatalogueError::Option`] for a value of the wrong type.
pub fn parse<C: DeserializeOwned>(
    kind: &'static str,
    name: &str,
    options: &toml::Table,
) -> Result<C, CatalogueError> {
    toml::Value::Table(options.clone()).try_into().map_err(|e: toml::de::Error| CatalogueError::Option {
        kind,
        name: name.to_owned(),
        problem: e.message().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_names_and_options_say_what_was_expected() {
        let error = find("fruit", &["apple", "pear"], |e| e, "appel").unwrap_err().to_string();
        assert!(error.contains("unknown fruit `appel`") && error.contains("apple"), "{error}");
        let ripe = OptionInfo { name: "ripe", kind: "bool", default: "true", doc: "whether it is ripe" };
        let given = "rip = true".parse().unwrap();
        let error = check_options("fruit", "apple", &[ripe], &given).unwrap_err().to_string();
        assert!(error.contains("no option `rip`") && error.contains("ripe"), "{error}");
        let error = check_options("fruit", "apple", &[], &given).unwrap_err().to_string();
        assert!(error.contains("it has no options"), "{error}");
        let error = parse::<std::collections::BTreeMap<String, u32>>("fruit", "apple", &given).unwrap_err();
        assert!(error.to_string().contains("fruit `apple`"), "{error}");
    }
}
