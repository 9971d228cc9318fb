//! What can be wrong with a request for generated problems.

/// An error of this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// No such family.
    #[error("there is no family `{name}` of generated problems; {hint}")]
    UnknownFamily {
        /// The name asked for.
        name: String,
        /// The nearest name and all of them.
        hint: String,
    },
    /// The family has no such level.
    #[error("family `{family}` has no level {level}; its levels are 1 to {n_levels}")]
    UnknownLevel {
        /// The family.
        family: &'static str,
        /// The level asked for.
        level: u32,
        /// How many it has.
        n_levels: u32,
    },
    /// The text is not a generated source at all.
    #[error("`{source_name}` is not a generated source; write for example `{example}`")]
    NotGenerated {
        /// What was given.
        source_name: String,
        /// What a valid one looks like.
        example: &'static str,
    },
    /// A parameter this source does not have.
    #[error("`{source_name}`: unknown parameter `{name}`; {hint}")]
    UnknownParameter {
        /// The whole source.
        source_name: String,
        /// The parameter.
        name: String,
        /// The nearest name and all of them.
        hint: String,
    },
    /// A parameter was written twice.
    #[error("`{source_name}`: parameter `{name}` is given twice; keep one")]
    RepeatedParameter {
        /// The whole source.
        source_name: String,
        /// The parameter.
        name: String,
    },
    /// A parameter's value cannot be read.
    #[error("`{source_name}`: `{name}={value}` is not valid; expected {expected}")]
    BadValue {
        /// The whole source.
        source_name: String,
        /// The parameter.
        name: String,
        /// Its value.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// Fewer different problems exist than were asked for.
    #[error(
        "`{source_name}`: only {n_found} different prompts were found where n={n_wanted} were asked for; \
         lower n, add levels or families, or drop `unique=true`"
    )]
    Exhausted {
        /// The whole source.
        source_name: String,
        /// How many were asked for.
        n_wanted: usize,
        /// How many there are.
        n_found: usize,
    },
    /// A row's `check` column is absent or not one that this crate wrote.
    #[error("the row has no readable `check` column: {reason}; use rows of a `generated:` source")]
    BadCheck {
        /// What is wrong with it.
        reason: String,
    },
}
