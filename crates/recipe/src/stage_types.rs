//! The catalogue of stage types: what `type` of a `[[stage]]` may be, and the defaults it brings.

use crate::keys::{Baseline, Method, Packing, ScaleRewards};

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
    /// What it decides about samples, for a stage that learns from them.
    pub rollout: Option<RolloutDefaults>,
}

/// What the judged samples of a prompt are turned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credit {
    /// An advantage of each sample, by comparison with its group.
    Advantages,
    /// Advantages of tokens, by a value head (PPO).
    Values,
    /// A pair: the best and the worst.
    Pair,
    /// A pair: one of the policy and one of the reference policy (XPO).
    ReferencePair,
    /// The probability that the policy beats a mixture of itself and the reference (Nash-MD).
    Mixture,
    /// The best, to imitate (rejection sampling).
    Best,
    /// What a teacher thinks of each token (on-policy distillation).
    Teacher,
}

/// What a type of stage decides about samples when the recipe does not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RolloutDefaults {
    /// What judged samples are turned into.
    pub credit: Credit,
    /// Default `rollout.n`.
    pub n: u64,
    /// Default `rollout.passes`.
    pub passes: u64,
    /// Default `rollout.baseline`.
    pub baseline: Baseline,
    /// Default `rollout.scale_rewards`.
    pub scale_rewards: ScaleRewards,
    /// Default `rollout.reward_kl`.
    pub reward_kl: f64,
    /// Default `rollout.sampling_rounds`.
    pub sampling_rounds: u64,
}

impl StageType {
    /// The stage type called `name`.
    pub fn named(name: &str) -> Option<&'static StageType> {
        STAGE_TYPES.iter().find(|kind| kind.name == name)
    }

    /// Whether what the stage writes scores texts instead of writing them: a reward model, on which no later stage trains.
    pub fn writes_scorer(&self) -> bool {
        matches!(self.rows, RowKind::ScoredPairs | RowKind::Steps)
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
        rollout: None,
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
        rollout: None,
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
    sampling("grpo", "samples and verifiers: group-relative policy optimisation", GROUPED),
    sampling(
        "dapo",
        "samples and verifiers: GRPO with a loss per token, a higher upper clip, and groups without signal sampled again",
        RolloutDefaults { sampling_rounds: 10, ..GROUPED },
    ),
    sampling(
        "dr_grpo",
        "samples and verifiers: GRPO without what favours long wrong answers",
        RolloutDefaults { scale_rewards: ScaleRewards::None, ..GROUPED },
    ),
    sampling("bnpo", "samples and verifiers: GRPO normalised by the step's tokens", GROUPED),
    sampling("gspo", "samples and verifiers: ratios of whole sequences", GROUPED),
    sampling("cispo", "samples and verifiers: clipped importance weights", GROUPED),
    sampling("sapo", "samples and verifiers: soft gates in place of clipping", GROUPED),
    sampling(
        "rloo",
        "samples and verifiers: REINFORCE with the other samples as baseline",
        RolloutDefaults {
            baseline: Baseline::LeaveOneOut,
            scale_rewards: ScaleRewards::None,
            reward_kl: 0.05,
            ..GROUPED
        },
    ),
    sampling(
        "reinforce_pp",
        "samples and verifiers: REINFORCE++, advantages standardised over the step",
        RolloutDefaults { baseline: Baseline::Batch, scale_rewards: ScaleRewards::Batch, ..GROUPED },
    ),
    StageType {
        learning_rate_full: 3e-6,
        learning_rate_adapter: 3e-5,
        ..sampling(
            "ppo",
            "samples and verifiers: proximal policy optimisation with a value head, the divergence in the reward",
            RolloutDefaults { credit: Credit::Values, n: 1, passes: 4, ..GROUPED },
        )
    },
    comparing(
        "online_dpo",
        "dpo",
        "two samples and verifiers: direct preference optimisation of the better against the worse",
        Credit::Pair,
    ),
    comparing(
        "xpo",
        "xpo",
        "a sample of the policy, one of its reference, and verifiers: exploratory preference optimisation",
        Credit::ReferencePair,
    ),
    comparing(
        "nash_md",
        "nash_md",
        "a sample of the policy, one of its mixture with the reference, and verifiers: Nash mirror descent",
        Credit::Mixture,
    ),
    StageType {
        objective: "cross_entropy",
        learning_rate_full: 2e-5,
        learning_rate_adapter: 2e-4,
        ..sampling(
            "rejection",
            "samples and verifiers: the best of each group is imitated (rejection sampling, best-of-n)",
            RolloutDefaults { credit: Credit::Best, ..GROUPED },
        )
    },
    StageType {
        objective: "on_policy_distillation",
        learning_rate_full: 2e-5,
        learning_rate_adapter: 2e-4,
        ..sampling(
            "distillation",
            "samples and a teacher: on-policy distillation by the reverse KL of sampled tokens",
            RolloutDefaults { credit: Credit::Teacher, n: 1, ..GROUPED },
        )
    },
];

/// A stage that compares two samples of each prompt. The learning rate is that of TRL's online methods.
const fn comparing(
    name: &'static str,
    objective: &'static str,
    doc: &'static str,
    credit: Credit,
) -> StageType {
    StageType {
        objective,
        learning_rate_full: 5e-7,
        learning_rate_adapter: 5e-6,
        ..sampling(name, doc, RolloutDefaults { credit, n: 2, ..GROUPED })
    }
}

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
        rollout: None,
    }
}

/// A stage that learns from its own samples; the objective has the stage's name. The learning rate is TRL's.
const fn sampling(name: &'static str, doc: &'static str, rollout: RolloutDefaults) -> StageType {
    StageType { rollout: Some(rollout), ..aligning(name, doc, RowKind::Prompts) }
}

/// Compared with its group, in units of the group's spread.
const GROUPED: RolloutDefaults = RolloutDefaults {
    credit: Credit::Advantages,
    n: 8,
    passes: 1,
    baseline: Baseline::Group,
    scale_rewards: ScaleRewards::Group,
    reward_kl: 0.0,
    sampling_rounds: 1,
};

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
