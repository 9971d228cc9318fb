//! The list of verifiers, from which names, options and manual pages come.

use pt_core::catalogue::{CatalogueError, OptionInfo};

use crate::Verifier;

/// What the catalogue lists, for messages.
pub(crate) const KIND: &str = "verifier";

/// Builds a verifier from options whose keys are known to be right.
pub type Build = fn(&toml::Table) -> Result<Box<dyn Verifier>, CatalogueError>;

/// An entry of [`VERIFIERS`].
pub struct VerifierInfo {
    /// Its name in recipes.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// What of a row it reads.
    pub reads: &'static str,
    /// Its options.
    pub options: &'static [OptionInfo],
    /// Replies it must accept and reject: the Markdown file beside it.
    pub examples: &'static str,
    /// Builds it.
    pub build: Build,
}

/// Every verifier, in the order the manual lists them.
pub const VERIFIERS: &[VerifierInfo] = &[
    crate::code::INFO,
    crate::command::INFO,
    crate::contains::INFO,
    crate::exact::INFO,
    crate::format::INFO,
    crate::ifeval::INFO,
    crate::json_fields::INFO,
    crate::json_schema::INFO,
    crate::length::INFO,
    crate::multiple_choice::INFO,
    crate::regex::INFO,
    crate::repetition::INFO,
    crate::tool_calls::INFO,
    crate::math::INFO,
];

/// The verifier called `name` with the given options; missing ones take their defaults.
///
/// # Errors
/// [`CatalogueError`] with the nearest name, or what a value should have been.
pub fn build(name: &str, options: &toml::Table) -> Result<Box<dyn Verifier>, CatalogueError> {
    let info = pt_core::catalogue::find(KIND, VERIFIERS, |info| info.name, name)?;
    pt_core::catalogue::check_options(KIND, name, info.options, options)?;
    (info.build)(options)
}
