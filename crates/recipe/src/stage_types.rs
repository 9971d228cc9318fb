//! The catalogue of stage types: what `type` of a `[[stage]]` may be, and the defaults it brings.

use crate::keys::{Method, Packing};

/// What rows a type of stage trains on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// Texts, conversations, prompts with completions.
    Text,
    /// A better and a worse reply to a prompt.
    Pairs,
    /// The same, scored at their ends.
    ScoredPairs,
    /// A reply that is good or bad.
    Labelled,
    /// A solution in steps, each labelled.
    Steps,
    /// Prompts, whose replies are sampled.
    Prompts,
}

/// A type of stage and what it decides when the recipe does not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StageType {
    /// The value of `type`.
    pub name: &'static str,
    /// What the stage does.
    pub doc: &'static str,
    /// Default `objective.type`.
    pub objective: &'static str,
    /// Default `train.epochs`.
    pub epochs: f64,
    /// Default `optimizer.learning_rate` when every weight trains.
    pub learning_rate_full: f64,
    /// Default `optimizer.learning_rate` when an adapter trains: ten times the full one, as in
    /// "LoRA Without Regret" (Schulman et al. 2025).
    pub learning_rate_adapter: f64,
    /// Default `data.packing`.
    pub packing: Packing,
    /// Whether every token trains, whatever the layout of the rows.
    pub trains_all_tokens: bool,
    /// What it trains on.
    pub rows: RowKind,
}

impl StageType {
    /// The stage type called `name`.
    pub fn named(name: &str) -> Option<&'static StageType> {
        STAGE_TYPES.iter().find(|kind| kind.name == name)
    }

    /// The learning rate of `method` when the recipe gives none.
    pub fn learning_rate(&self, method: Method) -> f64 {
        match method {
            Method::Full => self.learning_rate_full,
            Method::Lora | Method::Qlora => self.learning_rate_adapter,
        }
    }
}

/// Every stage type, in the order the manual lists them.
pub const STAGE_TYPES: &[StageType] = &[
    StageType {
        name: "pretrain",
        doc: "next-token training on plain text, every token; also continued pre-training",
        objective: "cross_entropy",
        epochs: 1.0,
        learning_rate_full: 3e-4,
        learning_rate_adapter: 3e-3,
        packing: Packing::Wrapped,
        trains_all_tokens: true,
        rows: RowKind::Text,
    },
    StageType {
        name: "sft",
        doc: "supervised fine-tuning on completions or on assistant turns",
        objective: "cross_entropy",
        epochs: 3.0,
        learning_rate_full: 2e-5,
        learning_rate_adapter: 2e-4,
        packing: Packing::Bfd,
        trains_all_tokens: false,
        rows: RowKind::Text,
    },
    aligning(
        "dpo",
        "preference pairs: direct preference optimisation and its family of losses",
        RowKind::Pairs,
    ),
    aligning(
        "orpo",
        "preference pairs: likelihood and odds ratio at once, without a reference",
        RowKind::Pairs,
    ),
    aligning(
        "cpo",
        "preference pairs: contrastive preference optimisation, without a reference",
        RowKind::Pairs,
    ),
    aligning("simpo", "preference pairs: length-normalised margins, without a reference", RowKind::Pairs),
    aligning("kto", "replies that are good or bad: Kahneman-Tversky optimisation", RowKind::Labelled),
    aligning("bco", "replies that are good or bad: a binary classifier's loss", RowKind::Labelled),
    StageType {
        learning_rate_full: 1e-5,
        ..aligning("reward", "a reward model from preference pairs", RowKind::ScoredPairs)
    },
    StageType {
        learning_rate_full: 1e-5,
        ..aligning("prm", "a process reward model from labelled steps", RowKind::Steps)
    },
];

/// A stage that learns from comparisons; the objective has the stage's name. The learning rate is TRL's.
const fn aligning(name: &'static str, doc: &'static str, rows: RowKind) -> StageType {
    StageType {
        name,
        doc,
        objective: name,
        epochs: 1.0,
        learning_rate_full: 1e-6,
        learning_rate_adapter: 1e-5,
        packing: Packing::Bfd,
        trains_all_tokens: false,
        rows,
    }
}

/// The names of [`STAGE_TYPES`].
pub const STAGE_TYPE_NAMES: &[&str] = &{
    let mut names = [""; STAGE_TYPES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = STAGE_TYPES[i].name;
        i += 1;
    }
    names
};
