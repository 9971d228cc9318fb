//! What can go wrong.

/// Errors of optimisers, schedules and the gradient norm.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OptimError {
    /// No optimiser or schedule of that name.
    #[error("unknown {kind} `{name}`; {hint}")]
    UnknownName {
        /// "optimiser" or "schedule".
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// The nearest name and all names.
        hint: String,
    },
    /// An option the optimiser does not have.
    #[error("`{name}` has no option `{option}`; {hint}")]
    UnknownOption {
        /// The optimiser or schedule.
        name: String,
        /// The option.
        option: String,
        /// The nearest option and all options.
        hint: String,
    },
    /// An option with a value of the wrong type or out of range.
    #[error("`{name}`: {problem}")]
    Option {
        /// The optimiser or schedule.
        name: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// A gradient that is NaN or infinite.
    #[error(
        "the gradient of `{param}` has {value} at element {index}: the loss or an activation overflowed; \
         lower the learning rate, or look at the batch of this step"
    )]
    NonFiniteGradient {
        /// The parameter.
        param: String,
        /// Position in the flattened gradient.
        index: usize,
        /// What was found there.
        value: f32,
    },
    /// Saved state that does not fit the parameter or the optimiser's settings.
    #[error(
        "optimiser state of `{param}`: {problem}; resume with the settings the checkpoint was written with"
    )]
    State {
        /// The parameter.
        param: String,
        /// What was found and what was expected.
        problem: String,
    },
}

/// Turns a failed condition on an option into an error.
pub(crate) fn require(holds: bool, name: &str, problem: impl FnOnce() -> String) -> Result<(), OptimError> {
    if holds { Ok(()) } else { Err(OptimError::Option { name: name.to_owned(), problem: problem() }) }
}
