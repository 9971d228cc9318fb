//! What will run, with no option left open.

use crate::keys::{
    AlarmMode, Architecture, Baseline, DecayShape, Dtype, FileFormat, LoraInit, Mask, Method, Packing,
    QuantType, Recompute, RewardAggregation, RewardKl, ScaleRewards, ScheduleType, StoppingStrategy,
    Truncation,
};
use crate::recipe::{MODEL, stage_of};
use crate::sampling_keys::{PlannedEnvironment, PlannedServer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The plan of a run: stored as `plan.json`, printed by `posttrain plan`.
///
/// Fields are written in this order, so equal plans are equal bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of this form.
    pub format_version: u32,
    /// What the run is called.
    pub name: String,
    /// The seed of every random draw.
    pub seed: u64,
    /// What the first stage starts from.
    pub model: PlannedModel,
    /// The stages that train on what is there before the run begins, in order.
    pub stages: Vec<PlannedStage>,
    /// The other stages, in order; their numbers are their places among all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<PlannedWork>,
}

/// A stage that trains nothing, or that reads what an earlier one makes and is planned in full when that is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedWork {
    /// Position among all stages, from 1.
    pub number: u32,
    /// Its name; with the number, the stage's folder.
    pub name: String,
    /// Its type.
    pub r#type: String,
    /// What it is in a report's words.
    pub title: String,
    /// What it reads: names of stages, and `model`.
    pub reads: Vec<String>,
    /// Every option, decided.
    pub settings: Value,
    /// Files it reads.
    pub files: Vec<PlannedFile>,
    /// What it will do, for people: a word and what it stands for.
    pub summary: Vec<(String, String)>,
}

/// A stage of either kind.
#[derive(Clone, Copy, Debug)]
pub enum AnyStage<'p> {
    /// One that trains on what is there.
    Training(&'p PlannedStage),
    /// Another.
    Other(&'p PlannedWork),
}

impl AnyStage<'_> {
    /// Position among all stages, from 1.
    pub fn number(&self) -> u32 {
        match self {
            AnyStage::Training(stage) => stage.number,
            AnyStage::Other(work) => work.number,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            AnyStage::Training(stage) => &stage.name,
            AnyStage::Other(work) => &work.name,
        }
    }

    /// Its type.
    pub fn kind(&self) -> &str {
        match self {
            AnyStage::Training(stage) => &stage.r#type,
            AnyStage::Other(work) => &work.r#type,
        }
    }

    /// The stage's label and folder name, as in `01-sft`.
    pub fn label(&self) -> String {
        label(self.number(), self.name())
    }

    /// What it reads: names of stages, and `model`.
    pub fn reads(&self) -> Vec<&str> {
        match self {
            AnyStage::Training(stage) => vec![stage_of(&stage.base).unwrap_or(MODEL)],
            AnyStage::Other(work) => work.reads.iter().map(String::as_str).collect(),
        }
    }
}

fn label(number: u32, name: &str) -> String {
    format!("{number:02}-{name}")
}

/// A file and its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedFile {
    /// Where it was found.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3, in hexadecimal.
    pub blake3: String,
}

/// The model of the first stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedModel {
    /// The folder or hub name; `None` for a new model.
    pub base: Option<String>,
    /// Branch, tag or commit, for a hub name.
    pub revision: String,
    /// The shape of a new model; `None` with a base.
    pub new: Option<PlannedNewModel>,
    /// The tokenizer given apart from the base.
    pub tokenizer: Option<String>,
    /// Storage type of the weights.
    pub dtype: Dtype,
    /// Number of weights.
    pub parameters: u64,
    /// Weights, configuration and tokenizer.
    pub files: Vec<PlannedFile>,
}

/// The shape of a model made from scratch. Names are those of config.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in keys.rs, under the same names")]
pub struct PlannedNewModel {
    pub architecture: Architecture,
    pub hidden_size: u64,
    pub intermediate_size: u64,
    pub num_hidden_layers: u64,
    pub num_attention_heads: u64,
    pub num_key_value_heads: u64,
    pub vocab_size: u64,
    pub max_position_embeddings: u64,
    pub rope_theta: f64,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    pub initializer_range: f64,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedStage {
    /// Position, from 1.
    pub number: u32,
    /// Its name; with the number, the stage's folder.
    pub name: String,
    /// Its type.
    pub r#type: String,
    /// What it is in a report's words.
    #[serde(default)]
    pub title: String,
    /// What it begins with: `stage:NAME`, or `model`.
    #[serde(default)]
    pub base: String,
    /// Optimiser steps.
    pub steps: u64,
    /// Tokens seen in all steps.
    pub tokens: u64,
    /// Weights that train.
    pub trainable_parameters: u64,
    /// What it trains on.
    pub data: PlannedData,
    /// How it trains.
    pub train: PlannedTrain,
    /// Adapters; `None` when every weight trains.
    pub lora: Option<PlannedLora>,
    /// Storage of the frozen weights; `None` when they keep their type.
    pub quantization: Option<PlannedQuantization>,
    /// What is minimised.
    pub objective: PlannedComponent,
    /// How gradients become updates; its parameters are without the learning rate.
    pub optimizer: PlannedComponent,
    /// The learning rate over time.
    pub schedule: PlannedSchedule,
    /// How replies are sampled; `None` where a stage learns from data.
    pub rollout: Option<PlannedRollout>,
    /// What answers the model between its turns; `None` where a sample is one turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<PlannedEnvironment>,
    /// The server that samples; `None` where the model in training does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<PlannedServer>,
    /// What replies are judged by.
    pub rewards: Vec<PlannedReward>,
    /// How rewards become advantages of tokens; `None` where there is no value head.
    pub ppo: Option<PlannedPpo>,
    /// What sets an online method apart; `None` for other stages.
    pub online: Option<PlannedOnline>,
    /// Where the reference policy is not simply the model as the stage finds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<PlannedReference>,
    /// Whom the stage learns from; `None` where it has no teacher.
    pub distillation: Option<PlannedDistillation>,
    /// Accuracy on generated tasks; no tasks, no measurement.
    pub eval: PlannedEval,
    /// Peak memory, part by part.
    pub memory: Vec<MemoryPart>,
    /// How long the stage should take on this machine.
    pub expected_seconds: f64,
}

impl PlannedStage {
    /// Most tokens of a sample, whatever its turns; 0 for a stage that learns from data.
    pub fn completion_limit(&self) -> u64 {
        let of_turn = self.rollout.as_ref().map_or(0, |rollout| rollout.max_new_tokens);
        self.environment.as_ref().map_or(of_turn, |environment| environment.max_tokens)
    }
}

/// One part of a stage's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryPart {
    /// What it holds: weights, gradients, optimiser state, activations ...
    pub part: String,
    /// Bytes at the peak.
    pub bytes: u64,
}

/// A stage's data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedData {
    /// Training sources.
    pub train: Vec<PlannedSource>,
    /// How the training sources are mixed.
    pub mixture: Mixture,
    /// Held-out sources.
    pub eval: Vec<PlannedSource>,
    /// Share of the training rows held out.
    pub eval_fraction: f64,
    /// Most tokens of a row.
    pub max_length: u64,
    /// What happens to longer rows.
    pub truncation: Truncation,
    /// How rows become segments.
    pub packing: Packing,
    /// Whether the token that ends a trained turn trains too.
    pub train_end_of_turn: bool,
    /// The chat template; `None` when no row is a conversation.
    pub chat_template: Option<PlannedTemplate>,
    /// Whether every epoch has its own order.
    pub shuffle: bool,
}

/// A chat template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedTemplate {
    /// A file, or `tokenizer`.
    pub origin: String,
    /// BLAKE3 of its text.
    pub blake3: String,
}

/// One source of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedSource {
    /// As written in the recipe.
    pub source: String,
    /// The layout of its rows.
    pub layout: String,
    /// Columns that play a part under another name.
    pub columns: BTreeMap<String, String>,
    /// The split.
    pub split: String,
    /// The configuration of a hub dataset.
    pub subset: Option<String>,
    /// The most rows to use.
    pub limit: Option<u64>,
    /// The format of the files, where their names do not tell.
    pub format: Option<FileFormat>,
    /// What makes a row of a text file.
    pub text_unit: String,
    /// The key that holds the rows of a JSON object.
    pub rows_key: Option<String>,
    /// Which tokens train.
    pub mask: Mask,
    /// Its files; none for a generated source.
    pub files: Vec<PlannedFile>,
    /// Rows used.
    pub rows: u64,
    /// Tokens of those rows, after truncation.
    pub tokens: u64,
    /// Of these, tokens that train.
    pub trained_tokens: u64,
    /// Rows that were longer than `max_length` and were cut.
    pub rows_truncated: u64,
    /// Rows left out, for their length or because nothing of them trains.
    pub rows_dropped: u64,
}

/// How training sources are mixed; one number for each source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixture {
    /// How often each row is seen in an epoch.
    Repeats(Vec<f64>),
    /// Shares of the rows, relative to their sum, until some or all sources are used up.
    Shares {
        /// One for each source.
        weights: Vec<f64>,
        /// When an epoch ends.
        stopping_strategy: StoppingStrategy,
    },
}

/// The size of an optimiser step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepSize {
    /// This many rows, or pieces of `max_length` tokens with `wrapped` packing.
    Rows(u64),
    /// As many rows as fit this many tokens.
    Tokens(u64),
}

/// How a stage trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in keys.rs, under the same names")]
pub struct PlannedTrain {
    pub method: Method,
    /// Passes over the data, however the length was given.
    pub epochs: f64,
    pub step_size: StepSize,
    pub tokens_per_micro_batch: u64,
    pub recompute: Recompute,
    pub max_grad_norm: f64,
    pub log_every: u64,
    pub eval_every: u64,
    pub save_every: u64,
    pub keep_last: u64,
    pub keep_best: bool,
}

/// Adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in keys.rs, under the same names")]
pub struct PlannedLora {
    pub rank: u64,
    pub alpha: f64,
    pub dropout: f64,
    pub targets: Vec<String>,
    pub rslora: bool,
    pub dora: bool,
    pub init: LoraInit,
    pub lora_plus_ratio: f64,
}

/// Storage of frozen weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in keys.rs, under the same names")]
pub struct PlannedQuantization {
    pub r#type: QuantType,
    pub double: bool,
}

/// An entry of a catalogue with all of its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedComponent {
    /// Its name.
    pub r#type: String,
    /// Its parameters, defaults included, as the component itself resolved them.
    pub params: Value,
}

/// The learning rate over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedSchedule {
    /// Shape after warm-up.
    pub r#type: ScheduleType,
    /// Learning rate after warm-up.
    pub learning_rate: f64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// Steps at the end in which the learning rate falls.
    pub decay_steps: u64,
    /// The same as a share of all steps, for `warmup_stable_decay`; otherwise 0.
    pub decay_ratio: f64,
    /// Shape of the fall of `warmup_stable_decay`.
    pub decay_shape: DecayShape,
    /// Learning rate at the last step, relative to the peak.
    pub min_ratio: f64,
}

/// How replies are sampled and rewards become advantages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in keys.rs, under the same names")]
pub struct PlannedRollout {
    pub n: u64,
    pub max_new_tokens: u64,
    pub temperature: f64,
    pub top_k: u64,
    pub top_p: f64,
    pub min_p: f64,
    pub mini_batches: u64,
    pub passes: u64,
    pub baseline: Baseline,
    pub scale_rewards: ScaleRewards,
    pub aggregation: RewardAggregation,
    pub normalize_advantages: bool,
    pub reward_kl: f64,
    pub mask_truncated: bool,
    pub missing_eos_penalty: f64,
    pub overlong_cache: u64,
    pub sampling_rounds: u64,
    pub curriculum: bool,
    pub alarms: AlarmMode,
}

/// How rewards become advantages of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in keys.rs, under the same names")]
pub struct PlannedPpo {
    pub kl_coef: f64,
    pub kl_target: Option<f64>,
    pub kl_horizon: f64,
    pub kl_estimator: RewardKl,
    pub gamma: f64,
    pub lam: f64,
    pub whiten_rewards: bool,
    pub whiten_advantages: bool,
    /// The model of its own that says values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critic: Option<PlannedCritic>,
    /// Text beside the samples.
    pub ptx: Vec<PlannedSource>,
    pub ptx_rows_per_step: u64,
}

/// Whom a stage learns from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedDistillation {
    /// The folder or hub name.
    pub teacher: String,
    /// Its weights and configuration.
    pub files: Vec<PlannedFile>,
    /// For a stage on rows: the share of steps on the student's samples, and whether the others are on the teacher's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_policy: Option<PlannedOnPolicy>,
}

/// The critic of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedCritic {
    /// `policy`, or the folder or hub name.
    pub model: String,
    /// Its weights and configuration; none for a copy of the policy.
    pub files: Vec<PlannedFile>,
    /// Its learning rate after warm-up.
    pub learning_rate: f64,
}

/// On which sequences a student is compared with its teacher.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in keys.rs, under the same names")]
pub struct PlannedOnPolicy {
    pub lmbda: f64,
    pub seq_kd: bool,
}

/// The reference policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedReference {
    /// Another model than the stage begins with.
    pub model: Option<String>,
    /// Its weights and configuration.
    pub files: Vec<PlannedFile>,
    /// Steps between updates by the policy.
    pub sync_steps: Option<u64>,
    /// The policy's share in an update.
    pub mixup_alpha: f64,
}

/// What sets an online method apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in keys.rs, under the same names")]
pub struct PlannedOnline {
    pub mixture_coef: f64,
    pub min_reward: Option<f64>,
}

/// A bound on the mean of a reward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in keys.rs, under the same names")]
pub struct PlannedConstraint {
    pub bound: PlannedBound,
    pub multiplier_init: f64,
    pub multiplier_lr: f64,
    pub multiplier_max: f64,
}

/// Which side of a bound a mean must be on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlannedBound {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

/// What replies are judged by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in keys.rs, under the same names")]
pub struct PlannedReward {
    pub name: String,
    pub r#type: String,
    pub weight: f64,
    pub gate: Option<f64>,
    pub gold: Option<String>,
    pub hidden: bool,
    /// What its mean is bounded by; none where it is no constraint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<PlannedConstraint>,
    pub params: Value,
    /// Weights and configuration of the model that judges; none where no model of ours does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PlannedFile>,
}

/// Accuracy on generated tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in keys.rs, under the same names")]
pub struct PlannedEval {
    pub tasks: Vec<String>,
    pub n: u64,
    pub max_new_tokens: u64,
    pub temperature: f64,
}

impl PlannedEval {
    /// Most tokens of an answer to a generated task, where nothing is said.
    pub const DEFAULT_MAX_NEW_TOKENS: u64 = 256;
}

/// The fields that say how the plan is carried out or reported, not what comes out of it, by the
/// object that holds them. A run may be resumed under a plan that differs in these only.
const WITHOUT_EFFECT_ON_RESULTS: &[(&str, &[&str])] = &[
    ("", &["name"]),
    ("model", &["base", "revision", "tokenizer"]), // `files` says what they contain
    ("stages", &["memory", "expected_seconds", "title"]),
    ("others", &["title", "summary"]),
    ("train", &["save_every", "keep_last"]),
    ("files", &["path"]),
    ("distillation", &["teacher"]), // `files` says what it contains
    ("chat_template", &["origin"]),
];

impl Plan {
    /// Identifies everything that affects the results: BLAKE3 of the plan without names, paths
    /// (the content's hash is in), memory and time estimates, and which checkpoints stay.
    ///
    /// # Panics
    /// If a number of the plan is not finite.
    pub fn hash(&self) -> String {
        pt_core::hash::of_bytes(self.what_matters().to_string().as_bytes())
    }

    /// The plan as its hash sees it.
    fn what_matters(&self) -> Value {
        let mut value = serde_json::to_value(self).expect("a plan is plain JSON");
        remove_without_effect(&mut value, "");
        for stage in value["stages"].as_array_mut().into_iter().flatten() {
            for list in ["/data/train", "/data/eval", "/ppo/ptx"] {
                items_mut(stage, list).for_each(forget_location);
            }
            items_mut(stage, "/rewards").for_each(forget_model);
            for other in ["/ppo/critic", "/reference"] {
                stage.pointer_mut(other).into_iter().for_each(forget_name);
            }
        }
        value
    }

    /// What one stage is by itself, as the plan's hash sees it, without its place and name: what it reads is named, not described.
    ///
    /// # Panics
    /// If there is no stage of this number.
    pub fn stage_alone(&self, number: u32) -> Value {
        let all = self.what_matters();
        // Of a stage that was planned when its turn came, what the run began with counts.
        let both =
            ["others", "stages"].into_iter().flat_map(|list| all[list].as_array().into_iter().flatten());
        let mut stage =
            both.into_iter().find(|stage| stage["number"] == number).expect("a stage of the plan").clone();
        let fields = stage.as_object_mut().expect("a stage is an object");
        for field in ["number", "name", "base", "reads"] {
            fields.shift_remove(field);
        }
        stage
    }

    /// The model that the run begins with, as the plan's hash sees it.
    pub fn model_alone(&self) -> Value {
        self.what_matters()["model"].clone()
    }

    /// The stage's label and folder name, as in `01-sft`.
    pub fn stage_label(stage: &PlannedStage) -> String {
        label(stage.number, &stage.name)
    }

    /// All stages, in order.
    pub fn all_stages(&self) -> Vec<AnyStage<'_>> {
        // A stage that was planned when its turn came is in both lists; what it reads is said in the second one.
        let is_other = |stage: &&PlannedStage| self.others.iter().any(|other| other.number == stage.number);
        let at_once = self.stages.iter().filter(|stage| !is_other(stage)).map(AnyStage::Training);
        let mut all: Vec<AnyStage<'_>> = at_once.chain(self.others.iter().map(AnyStage::Other)).collect();
        all.sort_by_key(AnyStage::number);
        all
    }

    /// The stage called `name`.
    pub fn stage_named(&self, name: &str) -> Option<AnyStage<'_>> {
        self.all_stages().into_iter().find(|stage| stage.name() == name)
    }

    /// The stages that read what the stage called `name` makes.
    pub fn readers_of(&self, name: &str) -> Vec<AnyStage<'_>> {
        self.all_stages().into_iter().filter(|stage| stage.reads().contains(&name)).collect()
    }
}

fn items_mut<'v>(stage: &'v mut Value, list: &str) -> impl Iterator<Item = &'v mut Value> {
    stage.pointer_mut(list).and_then(Value::as_array_mut).into_iter().flatten()
}

fn has_files(item: &Value) -> bool {
    item["files"].as_array().is_some_and(|files| !files.is_empty())
}

/// A source with files is its files; a generated one is its name.
fn forget_location(source: &mut Value) {
    if has_files(source) {
        source.as_object_mut().map(|source| source.shift_remove("source"));
    }
}

/// A critic or reference with files is its files.
fn forget_name(other: &mut Value) {
    if has_files(other) {
        other.as_object_mut().map(|other| other.shift_remove("model"));
    }
}

/// A reward's model with files is its files.
fn forget_model(reward: &mut Value) {
    if has_files(reward) {
        reward["params"].as_object_mut().map(|params| params.shift_remove("model"));
    }
}

fn remove_without_effect(value: &mut Value, inside: &str) {
    match value {
        Value::Object(object) => {
            let fields =
                WITHOUT_EFFECT_ON_RESULTS.iter().find(|(holder, _)| *holder == inside).map(|(_, f)| *f);
            for field in fields.unwrap_or_default() {
                object.shift_remove(*field);
            }
            object.iter_mut().for_each(|(key, item)| remove_without_effect(item, key));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| remove_without_effect(item, inside)),
        _ => {}
    }
}
