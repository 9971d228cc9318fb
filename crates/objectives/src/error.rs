//! What can go wrong.

/// Errors of objectives.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ObjectiveError {
    /// No objective of that name.
    #[error("unknown objective `{name}`; {hint}")]
    UnknownName {
        /// What was asked for.
        name: String,
        /// The nearest name and all names.
        hint: String,
    },
    /// An option the objective does not have.
    #[error("objective `{name}` has no option `{option}`; {hint}")]
    UnknownOption {
        /// The objective.
        name: &'static str,
        /// The option.
        option: String,
        /// The nearest option and all options.
        hint: String,
    },
    /// An option with a value of the wrong type or out of range.
    #[error("objective `{name}`: {problem}")]
    Option {
        /// The objective.
        name: &'static str,
        /// What was found and what was expected.
        problem: String,
    },
    /// Arrays of different lengths.
    #[error("{what} has {found} tokens, expected {expected} as in the log-probabilities")]
    Length {
        /// The array.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The number of predicted tokens.
        expected: usize,
    },
    /// An array that the objective needs and was not given.
    #[error("objective `{name}` needs {what} for every token, but it was not computed")]
    Missing {
        /// The objective.
        name: &'static str,
        /// The array.
        what: &'static str,
    },
    /// A trained token whose value is NaN or infinite.
    #[error(
        "{what} of trained token {index} is {value}: the model's output overflowed or the token has probability 0"
    )]
    NonFinite {
        /// The array.
        what: &'static str,
        /// The token.
        index: usize,
        /// What was found there.
        value: f32,
    },
    /// A loss weight below zero or not finite.
    #[error("the loss weight of token {index} is {value}, expected a finite number of at least 0")]
    Weight {
        /// The token.
        index: usize,
        /// What was found there.
        value: f32,
    },
    /// A step in which nothing trains.
    #[error(
        "the loss weights of the step add up to {total}: no token is trained on; check masks and truncation"
    )]
    NothingTrained {
        /// The total weight.
        total: f64,
    },
}
