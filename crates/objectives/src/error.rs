//! What can go wrong.

/// Errors of objectives.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ObjectiveError {
    /// A name or an option that is not right.
    #[error(transparent)]
    Catalogue(#[from] pt_core::catalogue::CatalogueError),
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
    /// A completion whose tokens do not follow those of the one before.
    #[error(
        "completion {index} has tokens {found:?}, expected a range within {expected:?}: completions lie in order"
    )]
    Completion {
        /// Which.
        index: usize,
        /// Its tokens.
        found: std::ops::Range<usize>,
        /// What is left for it.
        expected: std::ops::Range<usize>,
    },
    /// A group that is not what the objective compares.
    #[error("objective `{name}`: group {group} is {found}, expected {expected}")]
    Group {
        /// The objective.
        name: &'static str,
        /// Which group.
        group: usize,
        /// What it consists of.
        found: String,
        /// What it should consist of.
        expected: &'static str,
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
