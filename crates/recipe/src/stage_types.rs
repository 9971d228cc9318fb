//! The catalogue of stage types: what `type` of a `[[stage]]` may be, and the defaults it brings.
//!
//! [`STAGE_TYPES`] train; [`WORK_TYPES`] do everything else: they make rows, measure, merge, export.

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
    /// What it is in a report's words.
    pub title: &'static str,
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
    /// The divergence from a teacher's whole distribution, on samples or on rows (GKD).
    Divergence,
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

    /// Whether no objective on its rows compares with a reference policy.
    pub fn never_reads_reference(&self) -> bool {
        matches!(self.rows, RowKind::Text | RowKind::ScoredPairs | RowKind::Steps)
    }

    /// The learning rate of `method` when the recipe gives none.
    pub fn learning_rate(&self, method: Method) -> f64 {
        match method {
            Method::Full => self.learning_rate_full,
            Method::Lora | Method::Qlora => self.learning_rate_adapter,
        }
    }
}

/// Every stage type that trains, in the order the manual lists them.
pub const STAGE_TYPES: &[StageType] = &[
    StageType {
        name: "pretrain",
        title: "pretraining",
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
        title: "supervised fine-tuning",
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
        "preference learning (DPO)",
        "preference pairs: direct preference optimisation and its family of losses",
        RowKind::Pairs,
    ),
    aligning(
        "orpo",
        "preference learning (ORPO)",
        "preference pairs: likelihood and odds ratio at once, without a reference",
        RowKind::Pairs,
    ),
    aligning(
        "cpo",
        "preference learning (CPO)",
        "preference pairs: contrastive preference optimisation, without a reference",
        RowKind::Pairs,
    ),
    aligning(
        "simpo",
        "preference learning (SIMPO)",
        "preference pairs: length-normalised margins, without a reference",
        RowKind::Pairs,
    ),
    aligning(
        "kto",
        "preference learning (KTO)",
        "replies that are good or bad: Kahneman-Tversky optimisation",
        RowKind::Labelled,
    ),
    aligning(
        "bco",
        "preference learning (BCO)",
        "replies that are good or bad: a binary classifier's loss",
        RowKind::Labelled,
    ),
    StageType {
        learning_rate_full: 1e-5,
        ..aligning("reward", "reward model", "a reward model from preference pairs", RowKind::ScoredPairs)
    },
    StageType {
        learning_rate_full: 1e-5,
        ..aligning(
            "prm",
            "process reward model",
            "a process reward model from labelled steps",
            RowKind::Steps,
        )
    },
    sampling(
        "grpo",
        "reinforcement learning (GRPO)",
        "samples and verifiers: group-relative policy optimisation",
        GROUPED,
    ),
    sampling(
        "dapo",
        "reinforcement learning (DAPO)",
        "samples and verifiers: GRPO with a loss per token, a higher upper clip, and groups without signal sampled again",
        RolloutDefaults { sampling_rounds: 10, ..GROUPED },
    ),
    sampling(
        "dr_grpo",
        "reinforcement learning (Dr. GRPO)",
        "samples and verifiers: GRPO without what favours long wrong answers",
        RolloutDefaults { scale_rewards: ScaleRewards::None, ..GROUPED },
    ),
    sampling(
        "bnpo",
        "reinforcement learning (BNPO)",
        "samples and verifiers: GRPO normalised by the step's tokens",
        GROUPED,
    ),
    sampling(
        "gspo",
        "reinforcement learning (GSPO)",
        "samples and verifiers: ratios of whole sequences",
        GROUPED,
    ),
    sampling(
        "cispo",
        "reinforcement learning (CISPO)",
        "samples and verifiers: clipped importance weights",
        GROUPED,
    ),
    sampling(
        "sapo",
        "reinforcement learning (SAPO)",
        "samples and verifiers: soft gates in place of clipping",
        GROUPED,
    ),
    sampling(
        "rloo",
        "reinforcement learning (RLOO)",
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
        "reinforcement learning (REINFORCE++)",
        "samples and verifiers: REINFORCE++, advantages standardised over the step",
        RolloutDefaults { baseline: Baseline::Batch, scale_rewards: ScaleRewards::Batch, ..GROUPED },
    ),
    StageType {
        learning_rate_full: 3e-6,
        learning_rate_adapter: 3e-5,
        ..sampling(
            "ppo",
            "reinforcement learning (PPO)",
            "samples and verifiers: proximal policy optimisation with a value head, the divergence in the reward",
            RolloutDefaults { credit: Credit::Values, n: 1, passes: 4, ..GROUPED },
        )
    },
    comparing(
        "online_dpo",
        "preference learning (online DPO)",
        "dpo",
        "two samples and verifiers: direct preference optimisation of the better against the worse",
        Credit::Pair,
    ),
    comparing(
        "xpo",
        "preference learning (XPO)",
        "xpo",
        "a sample of the policy, one of its reference, and verifiers: exploratory preference optimisation",
        Credit::ReferencePair,
    ),
    comparing(
        "nash_md",
        "preference learning (Nash-MD)",
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
            "rejection sampling",
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
            "on-policy distillation",
            "samples and a teacher: on-policy distillation by the reverse KL of sampled tokens",
            RolloutDefaults { credit: Credit::Teacher, n: 1, ..GROUPED },
        )
    },
    StageType {
        objective: "gkd",
        epochs: 3.0,
        learning_rate_full: 2e-5,
        learning_rate_adapter: 2e-4,
        rows: RowKind::Text,
        ..sampling(
            "gkd",
            "distillation (GKD)",
            "rows, samples and a teacher: generalised knowledge distillation from the teacher's whole distribution",
            RolloutDefaults { credit: Credit::Divergence, n: 1, ..GROUPED },
        )
    },
];

/// A stage that compares two samples of each prompt. The learning rate is that of TRL's online methods.
const fn comparing(
    name: &'static str,
    title: &'static str,
    objective: &'static str,
    doc: &'static str,
    credit: Credit,
) -> StageType {
    StageType {
        objective,
        learning_rate_full: 5e-7,
        learning_rate_adapter: 5e-6,
        ..sampling(name, title, doc, RolloutDefaults { credit, n: 2, ..GROUPED })
    }
}

/// A stage that learns from comparisons; the objective has the stage's name. The learning rate is TRL's.
const fn aligning(name: &'static str, title: &'static str, doc: &'static str, rows: RowKind) -> StageType {
    StageType {
        name,
        title,
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
const fn sampling(
    name: &'static str,
    title: &'static str,
    doc: &'static str,
    rollout: RolloutDefaults,
) -> StageType {
    StageType { rollout: Some(rollout), ..aligning(name, title, doc, RowKind::Prompts) }
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

/// What a stage leaves for later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// A language model.
    Model,
    /// A model that scores texts: a reward model.
    Scorer,
    /// Rows to train on.
    Rows,
    /// Nothing that a stage reads.
    Nothing,
}

/// A type of stage that trains nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkType {
    /// The value of `type`.
    pub name: &'static str,
    /// What it is in a report's words.
    pub title: &'static str,
    /// What the stage does.
    pub doc: &'static str,
    /// What it leaves.
    pub product: Product,
    /// The sections of `[[stage]]` that it reads; it needs the first.
    pub sections: &'static [&'static str],
}

/// Every type of stage that trains nothing, in the order the manual lists them.
pub const WORK_TYPES: &[WorkType] = &[
    WorkType {
        name: "curate",
        title: "data curation",
        doc: "rows filtered, repaired and analysed; what was dropped and why; its rows are a source of later stages",
        product: Product::Rows,
        sections: &["curate"],
    },
    WorkType {
        name: "feedback",
        title: "AI feedback",
        doc: "replies revised or pairs judged by a constitution; its rows are a source of later stages",
        product: Product::Rows,
        sections: &["feedback"],
    },
    WorkType {
        name: "eval",
        title: "evaluation",
        doc: "benchmarks and generated tasks on one or several models, compared pair by pair; with a gate, the run fails where too much was lost",
        product: Product::Nothing,
        sections: &["eval", "gate"],
    },
    WorkType {
        name: "merge",
        title: "merged model",
        doc: "several models fused into one, or an adapter folded into its model",
        product: Product::Model,
        sections: &["merge"],
    },
    WorkType {
        name: "export",
        title: "exported model",
        doc: "a model for other programs, read again and held against its source",
        product: Product::Nothing,
        sections: &["export"],
    },
];

impl WorkType {
    /// The type called `name`; `None` for one that trains.
    pub fn named(name: &str) -> Option<&'static WorkType> {
        WORK_TYPES.iter().find(|kind| kind.name == name)
    }
}

/// What a stage of type `name` leaves for later ones.
pub fn product_of(name: &str) -> Product {
    match (WorkType::named(name), StageType::named(name)) {
        (Some(work), _) => work.product,
        (None, Some(kind)) if kind.writes_scorer() => Product::Scorer,
        (None, Some(_)) => Product::Model,
        (None, None) => Product::Nothing,
    }
}

/// What a stage of type `name` is in a report's words; the name itself where there is no such type.
pub fn title_of(name: &str) -> &str {
    let trains = StageType::named(name).map(|kind| kind.title);
    trains.or_else(|| WorkType::named(name).map(|work| work.title)).unwrap_or(name)
}

const N_TYPES: usize = STAGE_TYPES.len() + WORK_TYPES.len();

/// The names of [`STAGE_TYPES`] and [`WORK_TYPES`]: what `type` may be.
pub const STAGE_TYPE_NAMES: &[&str] = &{
    let mut names = [""; N_TYPES];
    let mut i = 0;
    while i < N_TYPES {
        names[i] = match i < STAGE_TYPES.len() {
            true => STAGE_TYPES[i].name,
            false => WORK_TYPES[i - STAGE_TYPES.len()].name,
        };
        i += 1;
    }
    names
};
