//! The lists of environments and tools, from which names, options and manual pages come.

use pt_core::catalogue::{CatalogueError, OptionInfo};

use crate::tools::{Limits, Tool};
use crate::{Environment, calculator, command, guess, python, tools};

/// What the catalogue lists, for messages.
pub(crate) const KIND: &str = "environment";

/// An entry of [`ENVIRONMENTS`].
pub struct EnvironmentInfo {
    /// Its name in recipes.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// What of a row it reads.
    pub reads: &'static str,
    /// Its options.
    pub options: &'static [OptionInfo],
    /// Builds it from options whose keys are known to be right.
    pub build: fn(&toml::Table) -> Result<Box<dyn Environment>, CatalogueError>,
}

/// Every environment, in the order the manual lists them.
pub const ENVIRONMENTS: &[EnvironmentInfo] = &[tools::INFO, command::INFO, guess::INFO];

/// An entry of [`TOOLS`].
pub struct ToolInfo {
    /// Its name, for recipes and models.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Builds it.
    pub build: fn(&Limits) -> Result<Box<dyn Tool>, String>,
}

/// Every tool of the environment `tools`.
pub const TOOLS: &[ToolInfo] = &[calculator::INFO, python::INFO];

/// The environment called `name` with the given options; missing ones take their defaults.
///
/// # Errors
/// [`CatalogueError`] with the nearest name, or what a value should have been.
pub fn build(name: &str, options: &toml::Table) -> Result<Box<dyn Environment>, CatalogueError> {
    let info = pt_core::catalogue::find(KIND, ENVIRONMENTS, |info| info.name, name)?;
    pt_core::catalogue::check_options(KIND, name, info.options, options)?;
    (info.build)(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_named_once_documented_and_buildable() {
        for (i, info) in ENVIRONMENTS.iter().enumerate() {
            assert!(ENVIRONMENTS[..i].iter().all(|other| other.name != info.name), "{}", info.name);
            assert!(!info.summary.is_empty() && !info.reads.is_empty(), "{}", info.name);
            let mut options = toml::Table::new();
            for option in info.options {
                assert!(!option.doc.is_empty(), "{}: {}", info.name, option.name);
                let Ok(table) = format!("{} = {}", option.name, option.default).parse::<toml::Table>() else {
                    options.insert(option.name.to_owned(), vec!["program"].into());
                    continue;
                };
                options.extend(table);
            }
            let built = build(info.name, &options).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(built.name(), info.name);
        }
        for info in TOOLS {
            let tool = (info.build)(&Limits::default()).unwrap();
            let schema = tool.schema();
            assert_eq!(schema["function"]["name"], info.name, "{schema}");
            assert!(schema["function"]["parameters"]["properties"].is_object(), "{schema}");
        }
        let error = build("tool", &toml::Table::new()).unwrap_err().to_string();
        assert!(error.contains("did you mean `tools`"), "{error}");
    }
}
