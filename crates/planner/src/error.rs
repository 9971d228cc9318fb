//! What can be wrong with a question to the planner.

use pt_core::catalogue::CatalogueError;

/// Result of the planner.
pub type Result<T> = std::result::Result<T, PlannerError>;

/// What is wrong, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum PlannerError {
    /// No shape, folder or list of sizes of that name.
    #[error(
        "`{name}` is no folder with a config.json, no known shape and no list of sizes \
         (`vocab_size=...,hidden_size=...,n_layers=...,n_heads=...,ffn_size=...`); {hint}"
    )]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// The nearest name.
        hint: String,
    },
    /// No hardware of that name.
    #[error("unknown hardware `{name}`; {hint}; `this` is this machine, `NAMEx8` are eight of them")]
    UnknownHardware {
        /// What was asked for.
        name: String,
        /// The nearest name.
        hint: String,
    },
    /// A hardware table that is not one.
    #[error("{file}: {problem}")]
    HardwareTable {
        /// The file.
        file: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A list of sizes with something missing or wrong.
    #[error("the sizes `{given}`: {problem}")]
    Sizes {
        /// What was given.
        given: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A number that makes no sense.
    #[error("{what} is {found}; expected {expected}")]
    Number {
        /// Which number.
        what: &'static str,
        /// What was given.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// The configuration of a model.
    #[error(transparent)]
    Model(#[from] pt_models::ModelError),
    /// The optimiser.
    #[error(transparent)]
    Optimiser(#[from] pt_optim::OptimError),
    /// A name of a catalogue.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}
