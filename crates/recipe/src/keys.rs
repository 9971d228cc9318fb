//! Every key of a recipe: name, type, range, default and meaning, each written once, here.
//!
//! The structs, their readers, the error messages and `docs/generated/recipe.md` come from these
//! lists. Names and defaults are TRL's where they mean the same; where they differ the text says so.

use crate::reference_keys::ReferenceSection;
use crate::sampling_keys::{EnvironmentSection, ServerSection};
use crate::schema::Fallback::{Derived, Required, Value};
use crate::schema::Kind::{
    Bool, Choice, Component, Float, Int, Sources, String as Text, StringTable, Strings,
};
use crate::schema::{ComponentKind, FromNode, FromTable, Kind, Reader, SectionDoc, choice, section, wrong};
use crate::stage_types::STAGE_TYPE_NAMES;
use crate::tree::{Node, NodeValue, Table};
use crate::work_keys::{
    CurateSection, EvalSection, ExportSection, FeedbackSection, GateSection, MergeSection,
};
use std::collections::BTreeMap;

choice! {
    /// Storage type of weights.
    Dtype {
        /// bfloat16 storage, `f32` accumulation.
        Bf16 = "bf16",
        /// `f32` storage.
        F32 = "f32",
    }
}

choice! {
    /// What trains.
    Method {
        /// Every weight.
        Full = "full",
        /// Low-rank adapters beside frozen weights.
        Lora = "lora",
        /// Low-rank adapters beside frozen weights stored in 4 or 8 bits.
        Qlora = "qlora",
    }
}

choice! {
    /// What the backward pass finds and what it computes again.
    Recompute {
        /// Everything is kept.
        None = "none",
        /// A block keeps its input only, and runs forward again.
        Block = "block",
    }
}

choice! {
    /// What happens to rows longer than `max_length`.
    Truncation {
        /// The first tokens stay.
        KeepStart = "keep_start",
        /// The last tokens stay.
        KeepEnd = "keep_end",
        /// The row is left out, and counted.
        Drop = "drop",
        /// The run does not begin.
        Error = "error",
    }
}

choice! {
    /// How rows become segments and segments micro-batches. Nothing is ever padded.
    Packing {
        /// A row is a segment; the rows of a step fill micro-batches best-fit, longest first.
        Bfd = "bfd",
        /// A row is a segment; micro-batches hold neighbours in the order.
        Sequential = "sequential",
        /// Rows are joined, with an end-of-text token between, and cut every `max_length` tokens.
        Wrapped = "wrapped",
    }
}

choice! {
    /// Which tokens train.
    Mask {
        /// Every token but the first.
        All = "all",
        /// The completion, not the prompt.
        CompletionOnly = "completion_only",
        /// What the assistant says, in every turn.
        AssistantOnly = "assistant_only",
    }
}

choice! {
    /// What a sample's reward is compared with.
    Baseline {
        /// The mean of its group (GRPO).
        Group = "group",
        /// The mean of all samples of the step.
        Batch = "batch",
        /// The mean of the group's other samples (RLOO).
        LeaveOneOut = "leave_one_out",
        /// Nothing.
        None = "none",
    }
}

choice! {
    /// What the difference from the baseline is divided by.
    ScaleRewards {
        /// The standard deviation of the group's rewards.
        Group = "group",
        /// The standard deviation of all rewards of the step.
        Batch = "batch",
        /// Nothing (Dr. GRPO, RLOO).
        None = "none",
    }
}

choice! {
    /// How several rewards become one advantage.
    RewardAggregation {
        /// Their weighted sum is normalised.
        SumThenNormalize = "sum_then_normalize",
        /// Each is normalised within its group, then they are summed (GDPO).
        NormalizeThenSum = "normalize_then_sum",
    }
}

choice! {
    /// How the divergence of a token is estimated for its reward, with r = log p_ref - log p.
    RewardKl {
        /// -r: without bias.
        K1 = "k1",
        /// e^r - r - 1: never negative, with less spread.
        K3 = "k3",
    }
}

choice! {
    /// What alarms may do.
    AlarmMode {
        /// Nothing is watched.
        Off = "off",
        /// They are recorded, and training goes on.
        Warn = "warn",
        /// Grave ones end the stage, or take it back to its last checkpoint.
        Act = "act",
    }
}

choice! {
    /// How an adapter begins.
    LoraInit {
        /// A random, B zero: the model is unchanged at step 0.
        Default = "default",
        /// The principal singular vectors of the weight, taken out of it (Meng et al. 2024).
        Pissa = "pissa",
    }
}

choice! {
    /// The shape of the learning rate after warm-up.
    ScheduleType {
        /// It stays.
        Constant = "constant",
        /// It falls in a line to `min_ratio` at the last step.
        Linear = "linear",
        /// It falls in a half cosine to `min_ratio` at the last step.
        Cosine = "cosine",
        /// It stays, then falls to `min_ratio` over the last `decay_ratio` of the steps.
        WarmupStableDecay = "warmup_stable_decay",
    }
}

choice! {
    /// The shape of the fall of `warmup_stable_decay`.
    DecayShape {
        /// A line.
        Linear = "linear",
        /// Half a cosine.
        Cosine = "cosine",
        /// 1 minus the square root of the part done.
        OneMinusSqrt = "1-sqrt",
    }
}

choice! {
    /// When an epoch over weighted sources ends.
    StoppingStrategy {
        /// With the first source used up: no row comes twice.
        FirstExhausted = "first_exhausted",
        /// With the last source used up: every row comes at least once.
        AllExhausted = "all_exhausted",
    }
}

choice! {
    /// The format of a source's files.
    FileFormat {
        /// One JSON object per line.
        Jsonl = "jsonl",
        /// An array of objects, or an object that holds one.
        Json = "json",
        /// Apache Parquet.
        Parquet = "parquet",
        /// Comma-separated values with a header.
        Csv = "csv",
        /// Tab-separated values with a header.
        Tsv = "tsv",
        /// Plain text, cut by `text_unit`.
        Text = "text",
    }
}

choice! {
    /// How the frozen weights of `method = "qlora"` are stored.
    QuantType {
        /// 4-bit normal float in blocks of 64 (Dettmers et al. 2023).
        Nf4 = "nf4",
        /// 8-bit integers with a scale per row.
        Int8 = "int8",
    }
}

choice! {
    /// The architecture of a new model.
    Architecture {
        /// RMSNorm, rotary positions, grouped-query attention, SwiGLU.
        Llama = "llama",
    }
}

/// The most tokens, steps or rows a recipe may ask for: a trillion. More is a slip of the finger.
const MANY: u64 = 1_000_000_000_000;
const RATIO: Kind = Float { min: 0.0, max: 1.0 };

section! {
    /// A whole recipe.
    RecipeFile at "" as "(top of the file)"
    keys {
        name: Option<String>, Text, Derived { rule: "the recipe's file name", example: "\"my-run\"" }, "\"other\"",
            "What the run is called in reports.";
        seed: u64, Int { min: 0, max: i64::MAX as u64 }, Value("42"), "7",
            "Every random draw (data order, initial weights, dropout, sampling) follows from it.";
    }
    sections { model: ModelSection; stage: Vec<StageSection>; }
}

section! {
    /// The model the first stage starts from; each later stage starts from the one before it.
    ModelSection at "model" as "[model]"
    keys {
        base: Option<String>, Text, Derived { rule: "none, when `[model.new]` describes a new model", example: "\"models/base\"" },
            "\"HuggingFaceTB/SmolLM2-135M\"",
            "A Hugging Face model folder, or a name on the hub.";
        revision: String, Text, Value("\"main\""), "\"v1.0\"",
            "Branch, tag or commit, for a name on the hub.";
        dtype: Dtype, Choice(Dtype::NAMES), Value("\"bf16\""), "\"f32\"",
            "Storage type of the weights; arithmetic accumulates in f32 either way. (TRL's command line: float32.)";
        tokenizer: Option<String>, Text, Derived { rule: "the one in `base`; required with `[model.new]`", example: "\"tokenizer.json\"" },
            "\"other/tokenizer.json\"",
            "A tokenizer.json, a folder with one, or a name on the hub.";
    }
    sections { new: Option<NewModelSection>; }
}

section! {
    /// A model made from scratch, in place of `base`. Key names are those of config.json.
    NewModelSection at "model.new" as "[model.new]"
    keys {
        architecture: Architecture, Choice(Architecture::NAMES), Value("\"llama\""), "\"llama\"",
            "The family of the model.";
        hidden_size: u64, Int { min: 1, max: 65_536 }, Required { example: "256" }, "128",
            "Width of the residual stream.";
        intermediate_size: Option<u64>, Int { min: 1, max: 262_144 }, Derived { rule: "8/3 of `hidden_size`, rounded up to a multiple of 32", example: "704" }, "512",
            "Width inside the feed-forward block.";
        num_hidden_layers: u64, Int { min: 1, max: 1024 }, Required { example: "4" }, "2",
            "Number of blocks.";
        num_attention_heads: u64, Int { min: 1, max: 1024 }, Required { example: "4" }, "8",
            "Number of query heads; divides `hidden_size`.";
        num_key_value_heads: Option<u64>, Int { min: 1, max: 1024 }, Derived { rule: "`num_attention_heads`", example: "4" }, "2",
            "Number of key and value heads; divides `num_attention_heads`.";
        vocab_size: Option<u64>, Int { min: 2, max: 10_000_000 }, Derived { rule: "the tokenizer's", example: "512" }, "1024",
            "Number of token ids; at least the tokenizer's.";
        max_position_embeddings: u64, Int { min: 2, max: 16_777_216 }, Value("2048"), "512",
            "Longest context.";
        rope_theta: f64, Float { min: 1.0, max: 1e12 }, Value("10000.0"), "500000.0",
            "Base of the rotary frequencies.";
        rms_norm_eps: f64, Float { min: 1e-12, max: 0.1 }, Value("1e-5"), "1e-6",
            "Added to the mean square inside RMSNorm.";
        tie_word_embeddings: bool, Bool, Value("true"), "false",
            "Whether the output layer is the embedding.";
        initializer_range: f64, Float { min: 1e-6, max: 10.0 }, Value("0.02"), "0.01",
            "Standard deviation of the initial weights.";
    }
    sections { }
}

section! {
    /// One stage; stages run in the order they are written. Wherever a stage names a model or a source of rows, `stage:NAME` is what an earlier stage of that name made.
    StageSection at "stage" as "[[stage]]"
    keys {
        r#type: String, Choice(STAGE_TYPE_NAMES), Required { example: "\"sft\"" }, "\"pretrain\"",
            "What the stage does.";
        name: Option<String>, Text, Derived { rule: "the stage's `type`, with a number where a type is repeated", example: "\"warm-up\"" }, "\"main\"",
            "Names the stage's folder, the stage in `--set stage.NAME.key=value`, and what it makes in `stage:NAME`.";
        base: Option<String>, Text, Derived { rule: "the last model that was trained or merged before, or else `model`", example: "\"stage:sft\"" }, "\"model\"",
            "What a stage that trains begins with: `stage:NAME`, an earlier stage's model, or `model`, the one the recipe begins with.";
    }
    sections {
        data: DataSection;
        train: TrainSection;
        lora: LoraSection;
        quantization: QuantSection;
        objective: ObjectiveSection;
        optimizer: OptimizerSection;
        schedule: ScheduleSection;
        rollout: RolloutSection;
        environment: EnvironmentSection;
        server: ServerSection;
        reward: Vec<RewardSection>;
        ppo: PpoSection;
        online: OnlineSection;
        reference: ReferenceSection;
        distillation: DistillationSection;
        eval: EvalSection;
        gate: GateSection;
        curate: CurateSection;
        feedback: FeedbackSection;
        merge: MergeSection;
        export: ExportSection;
    }
}

section! {
    /// How replies are sampled and rewards become advantages, for stages that learn from samples (grpo and its kin).
    RolloutSection at "stage.rollout" as "[stage.rollout]"
    keys {
        n: Option<u64>, Int { min: 1, max: 4096 }, Derived { rule: "1 for ppo, distillation and gkd, 2 for online_dpo, xpo and nash_md, otherwise 8", example: "8" }, "4",
            "Samples of each prompt: the group. (TRL: num_generations.)";
        max_new_tokens: u64, Int { min: 1, max: 1_000_000 }, Value("256"), "64",
            "Most tokens of a sample. (TRL: max_completion_length, 512.)";
        temperature: f64, Float { min: 0.01, max: 10.0 }, Value("1.0"), "0.9",
            "Divides the logits in sampling and in training alike.";
        top_k: u64, Int { min: 0, max: 10_000_000 }, Value("0"), "20",
            "Sample only from the k most probable tokens; 0 is all. Training sees the unfiltered distribution.";
        top_p: f64, Float { min: 1e-6, max: 1.0 }, Value("1.0"), "0.95",
            "Sample only from the most probable tokens that together reach this probability.";
        min_p: f64, Float { min: 0.0, max: 1.0 }, Value("0.0"), "0.05",
            "Sample only tokens at least this share as probable as the most probable one.";
        mini_batches: u64, Int { min: 1, max: 4096 }, Value("1"), "2",
            "Optimiser steps in which the samples of one round are used, each on a part of the groups.";
        passes: Option<u64>, Int { min: 1, max: 64 }, Derived { rule: "4 for ppo, otherwise 1", example: "1" }, "2",
            "How often all samples are gone through before new ones are drawn. (TRL: num_iterations; for PPO, num_ppo_epochs.)";
        baseline: Option<Baseline>, Choice(Baseline::NAMES), Derived { rule: "`leave_one_out` for rloo, `batch` for reinforce_pp, otherwise `group`", example: "\"group\"" }, "\"batch\"",
            "What is taken off a reward.";
        scale_rewards: Option<ScaleRewards>, Choice(ScaleRewards::NAMES), Derived { rule: "`none` for dr_grpo and rloo, `batch` for reinforce_pp, otherwise `group`", example: "\"group\"" }, "\"none\"",
            "What the difference is divided by.";
        aggregation: RewardAggregation, Choice(RewardAggregation::NAMES), Value("\"sum_then_normalize\""), "\"normalize_then_sum\"",
            "How several rewards become one advantage. (TRL: multi_objective_aggregation.)";
        normalize_advantages: bool, Bool, Value("false"), "true",
            "Whether all advantages of a round are standardised together at the end.";
        reward_kl: Option<f64>, Float { min: 0.0, max: 1e6 }, Derived { rule: "0.05 for rloo, otherwise 0", example: "0.0" }, "0.1",
            "What the divergence from the reference policy, summed over a sample, costs of its reward. (The objective's `beta` puts it into the loss instead.)";
        mask_truncated: bool, Bool, Value("false"), "true",
            "Whether samples cut at `max_new_tokens` are left out of the loss. (TRL: mask_truncated_completions.)";
        missing_eos_penalty: f64, Float { min: 0.0, max: 1e6 }, Value("0.0"), "1.0",
            "Taken off the reward of a sample that did not end by itself. (TRL: none.)";
        overlong_cache: u64, Int { min: 0, max: 1_000_000 }, Value("0"), "16",
            "Tokens before `max_new_tokens` from which on length is punished, softly (DAPO); 0 punishes nothing.";
        sampling_rounds: Option<u64>, Int { min: 1, max: 100 }, Derived { rule: "10 for dapo, otherwise 1", example: "1" }, "3",
            "How often a step may sample other prompts in place of groups whose samples are all worth the same; 1 never does.";
        curriculum: bool, Bool, Value("false"), "true",
            "Whether prompts are drawn by measured difficulty: those of which some samples succeed and some fail come more often.";
        alarms: AlarmMode, Choice(AlarmMode::NAMES), Value("\"act\""), "\"warn\"",
            "What alarms may do: entropy collapse, divergence from the reference, length drift, groups without signal, a hidden reward that falls, one phrase that takes over.";
    }
    sections { }
}

section! {
    /// How rewards become advantages of tokens, for ppo. The value loss's options belong to the objective.
    PpoSection at "stage.ppo" as "[stage.ppo]"
    keys {
        kl_coef: f64, Float { min: 0.0, max: 1e6 }, Value("0.05"), "0.1",
            "What a token's divergence from the reference policy costs of its reward; the first value, with `kl_target`.";
        kl_target: Option<f64>, Float { min: 1e-9, max: 1e9 }, Derived { rule: "none: `kl_coef` stays as it is", example: "6.0" }, "3.0",
            "The divergence, summed over a sample, that `kl_coef` is moved to reach (Ziegler et al. 2019).";
        kl_horizon: f64, Float { min: 1.0, max: 1e12 }, Value("10000.0"), "500.0",
            "With `kl_target`: over how many samples a divergence twice the target would double `kl_coef`, were errors not limited to a fifth.";
        kl_estimator: RewardKl, Choice(RewardKl::NAMES), Value("\"k1\""), "\"k3\"",
            "How the divergence of a token is estimated.";
        gamma: f64, Float { min: 0.0, max: 1.0 }, Value("1.0"), "0.99",
            "Discount of later rewards.";
        lam: f64, Float { min: 0.0, max: 1.0 }, Value("0.95"), "1.0",
            "How far generalised advantage estimation trusts rewards rather than values: 0 looks one token ahead, 1 to the end.";
        whiten_rewards: bool, Bool, Value("false"), "true",
            "Whether the rewards of a round are divided by their deviation.";
        whiten_advantages: bool, Bool, Value("true"), "false",
            "Whether the advantages of a round are standardised. (TRL always does.)";
        critic: Option<String>, Text, Derived { rule: "none: a value head on the policy", example: "\"models/reward\"" }, "\"policy\"",
            "A model of its own that says values: `policy`, a copy of the model that the stage begins with, or a folder, a name on the hub or `stage:NAME` of a language or reward model with the policy's tokenizer. It trains as the policy does. (TRL: value_model.)";
        critic_learning_rate: Option<f64>, Float { min: 1e-12, max: 10.0 }, Derived { rule: "`optimizer.learning_rate`", example: "1e-5" }, "9e-6",
            "The critic's learning rate after warm-up.";
        ptx: Option<Vec<Source>>, Sources, Derived { rule: "none", example: "[\"data/text.jsonl\"]" }, "[\"generated:raw?chars=4000&seed=9\"]",
            "Sources of text whose cross-entropy is added to every step, with the objective's `ptx_coef`, so that the policy does not forget it (PPO-ptx).";
        ptx_rows_per_step: u64, Int { min: 1, max: 1_000_000 }, Value("8"), "4",
            "Rows of `ptx` in every optimiser step.";
    }
    sections { }
}

section! {
    /// What sets the online methods apart: online_dpo, xpo, nash_md, rejection.
    OnlineSection at "stage.online" as "[stage.online]"
    keys {
        mixture_coef: f64, RATIO, Value("0.5"), "0.25",
            "The reference policy's share in the geometric mixture that the policy plays against (nash_md).";
        min_reward: Option<f64>, Float { min: -1e9, max: 1e9 }, Derived { rule: "none: every group's best sample trains", example: "1.0" }, "0.5",
            "The least reward of a sample that trains (rejection).";
    }
    sections { }
}

section! {
    /// Whom the student of a distillation stage learns from: on its own samples alone (distillation), or on those and on rows (gkd).
    DistillationSection at "stage.distillation" as "[stage.distillation]"
    keys {
        teacher: Option<String>, Text, Derived { rule: "none; a distillation stage needs it", example: "\"models/teacher\"" }, "\"models/other\"",
            "The teacher: a Hugging Face model folder, a name on the hub, or `stage:NAME`, with the student's tokenizer.";
        lmbda: f64, RATIO, Value("0.5"), "1.0",
            "The share of steps on the student's own samples, drawn step by step; the others are on the rows' replies (gkd).";
        seq_kd: bool, Bool, Value("false"), "true",
            "Whether those others are on the teacher's samples instead of the rows' replies (gkd).";
    }
    sections { }
}

section! {
    /// One reward of a stage that learns from samples. Its other keys belong to the verifier: see `posttrain list verifiers`.
    RewardSection at "stage.reward.0" as "[[stage.reward]]"
    open to ComponentKind::Verifier, default None;
    keys {
        r#type: String, Component(ComponentKind::Verifier), Required { example: "\"math\"" }, "\"exact\"",
            "The verifier.";
        name: Option<String>, Text, Derived { rule: "the verifier's `type`", example: "\"answer\"" }, "\"right\"",
            "What it is called in metrics.";
        weight: Option<f64>, Float { min: -1e6, max: 1e6 }, Derived { rule: "1, or 0 with a `gate`, a bound or `hidden`", example: "1.0" }, "0.5",
            "What its score is multiplied by.";
        gate: Option<f64>, Float { min: -1e6, max: 1e6 }, Derived { rule: "none", example: "0.0" }, "-1.0",
            "The whole reward where this verifier does not pass, whatever the others say.";
        gold: Option<String>, Text, Derived { rule: "the first of `answer`, `solution`, `ground_truth`, `gold`, `target`", example: "\"answer\"" }, "\"solution\"",
            "The column with the right answer.";
        hidden: bool, Bool, Value("false"), "true",
            "Whether it is only watched: a reward that rises while this score falls is an alarm.";
        at_least: Option<f64>, Float { min: -1e6, max: 1e6 }, Derived { rule: "none", example: "0.9" }, "0.8",
            "Makes it a constraint: the mean of its scores is to stay at least this. A Lagrange multiplier, raised while it does not, weighs it against the rewards.";
        at_most: Option<f64>, Float { min: -1e6, max: 1e6 }, Derived { rule: "none", example: "0.1" }, "0.2",
            "The same, for a mean that is to stay at most this.";
        multiplier_init: Option<f64>, Float { min: 0.0, max: 1e6 }, Derived { rule: "1", example: "1.0" }, "0.5",
            "The multiplier at first.";
        multiplier_lr: Option<f64>, Float { min: 1e-9, max: 1e6 }, Derived { rule: "0.1", example: "0.1" }, "0.05",
            "By how much each round raises the multiplier for every 1 by which the mean is on the wrong side, and lowers it where it is on the right one.";
        multiplier_max: Option<f64>, Float { min: 1e-9, max: 1e6 }, Derived { rule: "10", example: "10.0" }, "5.0",
            "The largest multiplier.";
    }
    sections { }
    params params
}

section! {
    /// What the stage trains on.
    DataSection at "stage.data" as "[stage.data]"
    keys {
        train: Vec<Source>, Sources, Derived { rule: "**required** in a stage that trains", example: "[\"data/train.jsonl\"]" }, "[\"data/other.jsonl\", { source = \"hub/name\", repeats = 0.5 }]",
            "Sources of training rows: each a text, or a table with the keys of `[[stage.data.train]]`.";
        eval: Option<Vec<Source>>, Sources, Derived { rule: "none; see `eval_fraction`", example: "[\"data/eval.jsonl\"]" }, "[\"data/held-out.jsonl\"]",
            "Sources of held-out rows, in the same form.";
        eval_fraction: f64, Float { min: 0.0, max: 0.5 }, Value("0.0"), "0.05",
            "Share of the training rows held out instead of `eval`, chosen by the row's content so that it is the same in every run.";
        max_length: u64, Int { min: 2, max: 16_777_216 }, Value("1024"), "512",
            "Most tokens of a row.";
        truncation: Truncation, Choice(Truncation::NAMES), Value("\"keep_start\""), "\"keep_end\"",
            "What happens to longer rows: keep the first or last tokens, drop the row and count it, or refuse to run.";
        packing: Option<Packing>, Choice(Packing::NAMES), Derived { rule: "`wrapped` for pretrain, `bfd` for sft", example: "\"bfd\"" }, "\"wrapped\"",
            "How rows fill micro-batches: whole, best-fit (`bfd`) or in order (`sequential`); or joined, with an end-of-text token between, and cut every `max_length` tokens (`wrapped`). Nothing is ever padded.";
        mask: Option<Mask>, Choice(Mask::NAMES), Derived { rule: "`all` for pretrain and for plain text; `completion_only` for rows with a prompt; `assistant_only` for conversations", example: "\"all\"" }, "\"completion_only\"",
            "Which tokens train. (TRL trains on every token of a conversation unless told otherwise.)";
        train_end_of_turn: bool, Bool, Value("true"), "false",
            "Whether the token that ends a trained turn trains too; without it the model never stops.";
        chat_template: Option<String>, Text, Derived { rule: "the tokenizer's", example: "\"template.jinja\"" }, "\"other.jinja\"",
            "A chat template file, used for training, sampling and evaluation, and saved with the model.";
        shuffle: bool, Bool, Value("true"), "false",
            "Whether rows are visited in a new order in every epoch.";
        stopping_strategy: StoppingStrategy, Choice(StoppingStrategy::NAMES), Value("\"first_exhausted\""), "\"all_exhausted\"",
            "When an epoch over weighted sources ends: with the first one used up, or with the last.";
    }
    sections { }
}

section! {
    /// One source of rows; also the form of `[[stage.data.eval]]`.
    Source at "stage.data.train.0" as "[[stage.data.train]]"
    keys {
        source: String, Text, Required { example: "\"data/train.jsonl\"" }, "\"generated:arithmetic?n=1000\"",
            "A file or glob (jsonl, json, csv, parquet, txt; .gz, .zst), a dataset on the hub, `generated:NAME?key=value&...`, or `stage:NAME`: the rows of an earlier curate or feedback stage.";
        weight: Option<f64>, Float { min: 1e-9, max: 1e9 }, Derived { rule: "none: every row is seen `repeats` times", example: "1.0" }, "0.5",
            "Share of the rows that come from this source, relative to the others; given for every source or for none.";
        repeats: Option<f64>, Float { min: 1e-6, max: 1e4 }, Derived { rule: "1, where no `weight` is given", example: "1.0" }, "3.0",
            "How often each row is seen in an epoch; below 1, a part of the rows, another part in each epoch.";
        layout: Option<String>, Component(ComponentKind::Layout), Derived { rule: "recognised from the columns", example: "\"messages\"" }, "\"text\"",
            "The layout of the rows.";
        columns: Option<BTreeMap<String, String>>, StringTable, Derived { rule: "the layout's own names", example: "{ prompt = \"question\" }" }, "{ prompt = \"input\" }",
            "Which column of the source plays which part of the layout.";
        split: String, Text, Value("\"train\""), "\"test\"",
            "The split, for a dataset on the hub or a generated one.";
        limit: Option<u64>, Int { min: 1, max: MANY }, Derived { rule: "all rows", example: "1000" }, "10",
            "Use only the first rows.";
        subset: Option<String>, Text, Derived { rule: "none", example: "\"main\"" }, "\"socratic\"",
            "The configuration of a dataset on the hub that has several.";
        format: Option<FileFormat>, Choice(FileFormat::NAMES), Derived { rule: "from the file's name", example: "\"jsonl\"" }, "\"text\"",
            "The format of the files.";
        text_unit: String, Text, Value("\"line\""), "\"<|endoftext|>\"",
            "What makes a row of a text file: each `line`, the whole `file`, or what stands between two of the given text.";
        rows_key: Option<String>, Text, Derived { rule: "the only list", example: "\"data\"" }, "\"examples\"",
            "The key that holds the rows of a JSON object with several lists.";
    }
    sections { }
}

section! {
    /// How long and how the stage trains.
    TrainSection at "stage.train" as "[stage.train]"
    keys {
        method: Method, Choice(Method::NAMES), Value("\"full\""), "\"lora\"",
            "What trains: every weight, or adapters beside frozen (`lora`) or frozen and quantised (`qlora`) weights.";
        epochs: Option<f64>, Float { min: 1e-6, max: 1e5 }, Derived { rule: "1 for pretrain, 3 for sft", example: "1.0" }, "2.5",
            "Passes over the training rows; a part of a pass is allowed.";
        steps: Option<u64>, Int { min: 1, max: 1_000_000_000 }, Derived { rule: "from `epochs`", example: "100" }, "50",
            "Optimiser steps, instead of `epochs`.";
        rows_per_step: Option<u64>, Int { min: 1, max: 100_000_000 }, Derived { rule: "8, unless `tokens_per_step` is given", example: "8" }, "16",
            "Rows (with `packing = \"wrapped\"`: pieces of `max_length` tokens) of one optimiser step.";
        tokens_per_step: Option<u64>, Int { min: 1, max: 1_000_000_000 }, Derived { rule: "none; the size of a step is `rows_per_step`", example: "8192" }, "4096",
            "Tokens of one optimiser step, instead of `rows_per_step`.";
        tokens_per_micro_batch: u64, Int { min: 16, max: 100_000_000 }, Value("4096"), "2048",
            "Most tokens in memory at once. Losses are normalised over the whole step, so it changes memory and speed only.";
        recompute: Recompute, Choice(Recompute::NAMES), Value("\"none\""), "\"block\"",
            "`block` computes a block's activations again in the backward pass: less memory, a third more work.";
        max_grad_norm: f64, Float { min: 0.0, max: 1e6 }, Value("1.0"), "0.5",
            "Gradients are scaled down to this global norm; 0 leaves them alone.";
        log_every: u64, Int { min: 1, max: 1_000_000_000 }, Value("1"), "5",
            "Steps between lines of metrics.jsonl. (TRL: 10.)";
        eval_every: Option<u64>, Int { min: 1, max: 1_000_000_000 }, Derived { rule: "every epoch; the last step is always evaluated", example: "50" }, "20",
            "Steps between evaluations on held-out rows.";
        save_every: Option<u64>, Int { min: 1, max: 1_000_000_000 }, Derived { rule: "`eval_every` where there are held-out rows, otherwise 500", example: "100" }, "20",
            "Steps between checkpoints; one is also saved when the run is interrupted.";
        keep_last: u64, Int { min: 1, max: 100_000 }, Value("2"), "1",
            "How many of the newest checkpoints stay.";
        keep_best: bool, Bool, Value("true"), "false",
            "Whether the checkpoint with the lowest held-out loss stays too.";
    }
    sections { }
}

section! {
    /// Adapters, for `method = "lora"` and `"qlora"`.
    LoraSection at "stage.lora" as "[stage.lora]"
    keys {
        rank: u64, Int { min: 1, max: 4096 }, Value("16"), "8",
            "Rank of the update (PEFT: r).";
        alpha: f64, Float { min: 1e-6, max: 1e6 }, Value("32.0"), "16.0",
            "The update is scaled by alpha / rank (PEFT: lora_alpha).";
        dropout: f64, Float { min: 0.0, max: 0.95 }, Value("0.0"), "0.05",
            "Share of the adapter's inputs set to zero. (TRL: 0.05; 0 lets the sampler and the trainer agree.)";
        targets: Vec<String>, Strings, Value("[\"all-linear\"]"), "[\"q_proj\", \"v_proj\"]",
            "The layers that get an adapter: names, or `all-linear` for every linear layer but the output.";
        rslora: bool, Bool, Value("false"), "true",
            "Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023).";
        dora: bool, Bool, Value("false"), "true",
            "Train magnitude and direction apart (Liu et al. 2024).";
        init: LoraInit, Choice(LoraInit::NAMES), Value("\"default\""), "\"pissa\"",
            "How the adapter begins: no change to the model, or the weight's principal part.";
        lora_plus_ratio: f64, Float { min: 1e-3, max: 1e4 }, Value("1.0"), "16.0",
            "Learning rate of B over that of A (LoRA+, Hayou et al. 2024).";
    }
    sections { }
}

section! {
    /// Storage of the frozen weights, for `method = "qlora"`.
    QuantSection at "stage.quantization" as "[stage.quantization]"
    keys {
        r#type: QuantType, Choice(QuantType::NAMES), Value("\"nf4\""), "\"int8\"",
            "4-bit normal float, or 8-bit integers.";
        double: bool, Bool, Value("false"), "true",
            "Whether the scales of nf4 blocks are quantised too.";
    }
    sections { }
}

section! {
    /// What is minimised. Its other keys belong to the objective: see `posttrain list objectives`.
    ObjectiveSection at "stage.objective" as "[stage.objective]"
    open to ComponentKind::Objective, default None;
    keys {
        r#type: Option<String>, Component(ComponentKind::Objective), Derived { rule: "`cross_entropy` for pretrain and sft", example: "\"cross_entropy\"" }, "\"dft\"",
            "The objective.";
    }
    sections { }
    params params
}

section! {
    /// How gradients become updates. Its other keys belong to the optimiser: see `posttrain list optimizers`.
    OptimizerSection at "stage.optimizer" as "[stage.optimizer]"
    open to ComponentKind::Optimizer, default Some("adamw");
    keys {
        r#type: String, Component(ComponentKind::Optimizer), Value("\"adamw\""), "\"muon\"",
            "The optimiser.";
        learning_rate: Option<f64>, Float { min: 1e-12, max: 10.0 }, Derived { rule: "sft: 2e-5 for full, 2e-4 for lora and qlora; pretrain: 3e-4 and 3e-3", example: "1e-4" }, "5e-5",
            "Learning rate after warm-up.";
    }
    sections { }
    params params
}

section! {
    /// The learning rate over time.
    ScheduleSection at "stage.schedule" as "[stage.schedule]"
    keys {
        r#type: ScheduleType, Choice(ScheduleType::NAMES), Value("\"linear\""), "\"cosine\"",
            "Shape after warm-up.";
        warmup_steps: Option<u64>, Int { min: 0, max: 1_000_000_000 }, Derived { rule: "from `warmup_ratio`", example: "10" }, "5",
            "Steps over which the learning rate rises in a line from 0.";
        warmup_ratio: Option<f64>, RATIO, Derived { rule: "0.03, unless `warmup_steps` is given", example: "0.1" }, "0.05",
            "The same as a share of all steps. (TRL: 0.)";
        min_ratio: f64, RATIO, Value("0.0"), "0.1",
            "Learning rate at the last step, relative to the peak.";
        decay_ratio: f64, RATIO, Value("0.1"), "0.3",
            "Share of the steps over which `warmup_stable_decay` falls.";
        decay_shape: DecayShape, Choice(DecayShape::NAMES), Value("\"cosine\""), "\"linear\"",
            "Shape of that fall.";
    }
    sections { }
}

/// Every section, in the order of the reference.
pub const SECTIONS: &[SectionDoc] = &[
    RecipeFile::DOC,
    ModelSection::DOC,
    NewModelSection::DOC,
    StageSection::DOC,
    DataSection::DOC,
    Source::DOC,
    TrainSection::DOC,
    LoraSection::DOC,
    QuantSection::DOC,
    ObjectiveSection::DOC,
    OptimizerSection::DOC,
    ScheduleSection::DOC,
    RolloutSection::DOC,
    EnvironmentSection::DOC,
    ServerSection::DOC,
    RewardSection::DOC,
    PpoSection::DOC,
    OnlineSection::DOC,
    ReferenceSection::DOC,
    DistillationSection::DOC,
    EvalSection::DOC,
    GateSection::DOC,
    CurateSection::DOC,
    FeedbackSection::DOC,
    MergeSection::DOC,
    ExportSection::DOC,
];

/// How the header of the section at `path` is written.
pub(crate) fn header_of(path: &str) -> &'static str {
    SECTIONS.iter().find(|section| section.path == path).map_or("", |section| section.header)
}

/// Names people bring along from TRL, PEFT and Transformers, and the key that means the same here.
pub(crate) const TRL_NAMES: &[(&str, &str)] = &[
    ("model_name_or_path", "model.base"),
    ("model_revision", "model.revision"),
    ("torch_dtype", "model.dtype"),
    ("chat_template_path", "stage.data.chat_template"),
    ("truncation_mode", "stage.data.truncation"),
    ("packing_strategy", "stage.data.packing"),
    ("completion_only_loss", "stage.data.mask = \"completion_only\""),
    ("assistant_only_loss", "stage.data.mask = \"assistant_only\""),
    ("shuffle_dataset", "stage.data.shuffle"),
    ("num_train_epochs", "stage.train.epochs"),
    ("max_steps", "stage.train.steps"),
    ("per_device_train_batch_size", "stage.train.rows_per_step"),
    ("gradient_accumulation_steps", "stage.train.rows_per_step (the whole step) and tokens_per_micro_batch"),
    ("gradient_checkpointing", "stage.train.recompute = \"block\""),
    ("logging_steps", "stage.train.log_every"),
    ("eval_steps", "stage.train.eval_every"),
    ("save_steps", "stage.train.save_every"),
    ("save_total_limit", "stage.train.keep_last"),
    ("load_best_model_at_end", "stage.train.keep_best"),
    ("use_peft", "stage.train.method = \"lora\""),
    ("load_in_4bit", "stage.train.method = \"qlora\""),
    ("load_in_8bit", "stage.train.method = \"qlora\" with quantization.type = \"int8\""),
    ("use_bnb_nested_quant", "stage.quantization.double"),
    ("r", "stage.lora.rank"),
    ("lora_r", "stage.lora.rank"),
    ("lora_alpha", "stage.lora.alpha"),
    ("lora_dropout", "stage.lora.dropout"),
    ("lora_target_modules", "stage.lora.targets"),
    ("target_modules", "stage.lora.targets"),
    ("use_rslora", "stage.lora.rslora"),
    ("use_dora", "stage.lora.dora"),
    ("init_lora_weights", "stage.lora.init"),
    ("loss_type", "stage.objective.type"),
    ("ref_model", "stage.reference.model"),
    ("sync_ref_model", "stage.reference.sync_steps"),
    ("ref_model_sync_steps", "stage.reference.sync_steps"),
    ("ref_model_mixup_alpha", "stage.reference.mixup_alpha"),
    ("teacher_model_name_or_path", "stage.distillation.teacher"),
    ("num_generations", "stage.rollout.n"),
    ("max_completion_length", "stage.rollout.max_new_tokens"),
    ("num_iterations", "stage.rollout.passes"),
    ("num_ppo_epochs", "stage.rollout.passes"),
    ("num_mini_batches", "stage.rollout.mini_batches"),
    ("response_length", "stage.rollout.max_new_tokens"),
    ("steps_per_generation", "stage.rollout.mini_batches"),
    ("mask_truncated_completions", "stage.rollout.mask_truncated"),
    ("multi_objective_aggregation", "stage.rollout.aggregation"),
    ("reward_funcs", "stage.reward.0.type"),
    ("reward_weights", "stage.reward.0.weight"),
    ("optim", "stage.optimizer.type"),
    ("lr", "stage.optimizer.learning_rate"),
    ("adam_epsilon", "stage.optimizer.eps"),
    ("adam_beta1", "stage.optimizer.beta1"),
    ("adam_beta2", "stage.optimizer.beta2"),
    ("lr_scheduler_type", "stage.schedule.type"),
];

impl FromNode for Vec<Source> {
    fn absent() -> Option<Self> {
        Some(Vec::new())
    }

    fn from_node(reader: &mut Reader<'_>, path: &str, node: &Node, _: &Kind) -> Option<Self> {
        let one = std::slice::from_ref(node);
        let items = match &node.value {
            NodeValue::List(items) if !items.is_empty() => items.as_slice(),
            NodeValue::String(_) | NodeValue::Table(_) => one,
            _ => return wrong(reader, path, node, "a list of sources that is not empty"),
        };
        let read = |(i, item): (usize, &Node)| {
            let path = format!("{path}.{i}");
            match &item.value {
                NodeValue::String(_) => Source::from_table(reader, &path, Some(&as_source_table(item))),
                _ => Source::from_table(reader, &path, Some(item)),
            }
        };
        items.iter().enumerate().map(read).collect::<Vec<_>>().into_iter().collect()
    }
}

/// `"path"` is short for `{ source = "path" }`.
fn as_source_table(text: &Node) -> Node {
    let table = Table(vec![("source".to_owned(), text.at.clone(), text.clone())]);
    Node { value: NodeValue::Table(table), at: text.at.clone() }
}
