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
    /// A trained token outside of all completions, which the objective works on.
    #[error("objective `{name}` works on completions, but trained token {index} is in none of them")]
    Outside {
        /// The objective.
        name: &'static str,
        /// The token.
        index: usize,
    },
    /// A completion's weight below zero or not finite.
    #[error("the weight of completion {index} is {value}, expected a finite number of at least 0")]
    CompletionWeight {
        /// Which, by its index in the step.
        index: usize,
        /// What was found there.
        value: f32,
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
    /// A policy that is not its reference where it must be: before the first step.
    #[error(
        "before the first step the policy must equal the reference, but the log-probabilities of {n_different} of {n_trained} trained tokens differ, by up to {difference} (token {index}: policy {policy}, reference {reference}). \
         Policy and reference must be the same weights, precision and adapter: look for dropout, another data type or \
         quantization of one of the two, an adapter that does not start at zero, a reference cache of another model, or another \
         truncation or template"
    )]
    ReferenceDiffers {
        /// How many trained tokens differ.
        n_different: usize,
        /// How many there are.
        n_trained: usize,
        /// The largest difference.
        difference: f64,
        /// Where it is.
        index: usize,
        /// The policy's log-probability there.
        policy: f32,
        /// The reference's.
        reference: f32,
    },
    /// A step without what its pre-pass should have found.
    #[error(
        "objective `{name}` has {found} values of its pre-pass, expected {expected}: run `prepare` on {what} first"
    )]
    NoPrePass {
        /// The objective.
        name: &'static str,
        /// How many values it was given.
        found: usize,
        /// How many it needs.
        expected: usize,
        /// What the pre-pass runs over.
        what: &'static str,
    },
    /// A step without the totals of an objective with a term per token.
    #[error(
        "objective `{name}` averages a term over tokens of the step, whose number is given as {found:?}: \
         make the normaliser with `Normaliser::of_step`"
    )]
    NoTotals {
        /// The objective.
        name: &'static str,
        /// The number.
        found: Option<f64>,
    },
    /// A score head of another size.
    #[error("objective `{name}` needs a score head of {expected} outputs, found one of {found}")]
    Outputs {
        /// The objective.
        name: &'static str,
        /// Its outputs.
        found: usize,
        /// What the objective's options ask for.
        expected: usize,
    },
    /// The label of a scored row that is not a probability.
    #[error("objective `{name}`: the label of scored row {row} is {value}, expected a number from 0 to 1")]
    Target {
        /// The objective.
        name: &'static str,
        /// Which row.
        row: usize,
        /// What was found there.
        value: f32,
    },
}
