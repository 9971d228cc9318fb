//! From a recipe and the facts about its data and model to a plan.

use crate::keys::{
    Mask, Method, NewModelSection, RewardSection, ScheduleSection, ScheduleType, Source, StageSection,
};
use crate::plan::{
    MemoryPart, Mixture, Plan, PlannedBound, PlannedComponent, PlannedConstraint, PlannedCritic, PlannedData,
    PlannedDistillation, PlannedEval, PlannedFile, PlannedLora, PlannedModel, PlannedNewModel,
    PlannedOnPolicy, PlannedOnline, PlannedPpo, PlannedQuantization, PlannedReference, PlannedReward,
    PlannedRollout, PlannedSchedule, PlannedSource, PlannedStage, PlannedTemplate, PlannedTrain, StepSize,
};
use crate::recipe::{MODEL, Recipe};
use crate::stage_types::{Credit, StageType, title_of};
use serde_json::Value;

/// The verifier that asks a generated problem's own check.
pub const TASK_REWARD: &str = "task";

/// TRL's batch size per device.
const DEFAULT_ROWS_PER_STEP: u64 = 8;
/// Transformers' `save_steps`.
const DEFAULT_SAVE_EVERY: u64 = 500;
const DEFAULT_WARMUP_RATIO: f64 = 0.03;

/// What the caller found out about the model and the data.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Number of weights.
    pub parameters: u64,
    /// Vocabulary of the tokenizer: that of a new model unless the recipe gives a larger one.
    pub vocab_size: u64,
    /// Weights, configuration and tokenizer files.
    pub files: Vec<PlannedFile>,
    /// One for each stage of the recipe.
    pub stages: Vec<StageFacts>,
}

/// What the caller found out about one stage.
#[derive(Clone, Debug, PartialEq)]
pub struct StageFacts {
    /// One for each training source.
    pub train: Vec<SourceFacts>,
    /// One for each held-out source.
    pub eval: Vec<SourceFacts>,
    /// One for each source of text beside the samples (PPO-ptx).
    pub ptx: Vec<SourceFacts>,
    /// The files of the teacher, where there is one.
    pub teacher: Vec<PlannedFile>,
    /// The files of the critic, where it is another model.
    pub critic: Vec<PlannedFile>,
    /// The files of the reference, where it is another model.
    pub reference: Vec<PlannedFile>,
    /// One for each reward: the files of the model that judges, none where no model of ours does.
    pub reward_models: Vec<Vec<PlannedFile>>,
    /// Optimiser steps of one pass, as the batches were really formed.
    pub steps_per_epoch: u64,
    /// Tokens of one pass.
    pub tokens_per_epoch: u64,
    /// The chat template in use, if any row is a conversation.
    pub chat_template: Option<PlannedTemplate>,
    /// Weights that train.
    pub trainable_parameters: u64,
    /// The objective's parameters, defaults included.
    pub objective: Value,
    /// The optimiser's parameters, defaults included, without the learning rate.
    pub optimizer: Value,
    /// Peak memory, part by part.
    pub memory: Vec<MemoryPart>,
    /// How long the stage should take on this machine.
    pub expected_seconds: f64,
}

/// What the caller found out about one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFacts {
    /// The layout that was recognised or asked for.
    pub layout: String,
    /// Whether its rows have a prompt and a completion.
    pub has_prompt: bool,
    /// Whether its rows are conversations.
    pub is_conversation: bool,
    /// Its files; none for a generated source.
    pub files: Vec<PlannedFile>,
    /// Rows used.
    pub rows: u64,
    /// Tokens of those rows, after truncation.
    pub tokens: u64,
    /// Of these, tokens that train.
    pub trained_tokens: u64,
    /// Rows that were cut.
    pub rows_truncated: u64,
    /// Rows left out.
    pub rows_dropped: u64,
}

/// Why a checked recipe still cannot run on the data and model it names.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// Nothing to train on.
    #[error(
        "stage `{stage}` has no step: its {n_sources} training sources give no row to train on; check `{stage}.data.train`, `max_length` and `truncation`"
    )]
    NoSteps {
        /// The stage.
        stage: String,
        /// How many sources it has.
        n_sources: usize,
    },
    /// Warm-up and decay are longer than the stage.
    #[error(
        "stage `{stage}`: {warmup_steps} steps of warm-up and {decay_steps} of decay do not fit its {steps} steps;          lower `schedule.warmup_steps` or `decay_ratio`, or train longer"
    )]
    ScheduleTooLong {
        /// The stage.
        stage: String,
        /// Steps of warm-up.
        warmup_steps: u64,
        /// Steps of decay, where it does not take what warm-up leaves.
        decay_steps: u64,
        /// Steps of the stage.
        steps: u64,
    },
    /// The new model cannot hold the tokenizer's ids.
    #[error(
        "`model.new.vocab_size` is {found}, but the tokenizer has {needed} tokens; give at least that, or leave it out"
    )]
    VocabularyTooSmall {
        /// What the recipe says.
        found: u64,
        /// What the tokenizer has.
        needed: u64,
    },
}

/// 8/3 of the width, rounded up to a multiple of 32: the weight count of a plain block of 4 widths
/// (Shazeer 2020, "GLU variants improve Transformer").
pub fn default_intermediate_size(hidden_size: u64) -> u64 {
    (hidden_size * 8).div_ceil(3).next_multiple_of(32)
}

impl Source {
    /// Which tokens of the source's rows train, in a stage of type `kind` that says `written`.
    pub fn mask(kind: &StageType, written: Option<Mask>, has_prompt: bool, is_conversation: bool) -> Mask {
        match written {
            Some(mask) => mask,
            None if kind.trains_all_tokens => Mask::All,
            None if has_prompt => Mask::CompletionOnly,
            None if is_conversation => Mask::AssistantOnly,
            None => Mask::All,
        }
    }
}

impl NewModelSection {
    /// The shape with every size decided; `vocab_size` is the tokenizer's.
    ///
    /// # Errors
    /// [`PlanError::VocabularyTooSmall`].
    pub fn resolve(&self, vocab_size: u64) -> Result<PlannedNewModel, PlanError> {
        let found = self.vocab_size.unwrap_or(vocab_size);
        if found < vocab_size {
            return Err(PlanError::VocabularyTooSmall { found, needed: vocab_size });
        }
        Ok(PlannedNewModel {
            architecture: self.architecture,
            hidden_size: self.hidden_size,
            intermediate_size: self
                .intermediate_size
                .unwrap_or_else(|| default_intermediate_size(self.hidden_size)),
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            vocab_size: found,
            max_position_embeddings: self.max_position_embeddings,
            rope_theta: self.rope_theta,
            rms_norm_eps: self.rms_norm_eps,
            tie_word_embeddings: self.tie_word_embeddings,
            initializer_range: self.initializer_range,
        })
    }
}

impl StageSection {
    /// The stage's type in the catalogue.
    ///
    /// # Panics
    /// If the section was not made by [`Recipe::parse`], which checks it.
    pub fn stage_type(&self) -> &'static StageType {
        StageType::named(&self.r#type)
            .unwrap_or_else(|| panic!("stage type {:?} was checked when read", self.r#type))
    }

    /// The name of the objective.
    pub fn objective_type(&self) -> &str {
        self.objective.r#type.as_deref().unwrap_or(self.stage_type().objective)
    }

    /// The learning rate after warm-up.
    pub fn learning_rate(&self) -> f64 {
        self.optimizer.learning_rate.unwrap_or_else(|| self.stage_type().learning_rate(self.train.method))
    }

    /// How rows become segments.
    pub fn packing(&self) -> crate::Packing {
        self.data.packing.unwrap_or(self.stage_type().packing)
    }

    /// The size of an optimiser step.
    pub fn step_size(&self) -> StepSize {
        match self.train.tokens_per_step {
            Some(tokens) => StepSize::Tokens(tokens),
            None => StepSize::Rows(self.train.rows_per_step.unwrap_or(DEFAULT_ROWS_PER_STEP)),
        }
    }

    /// What judged samples are turned into; `None` for a stage that learns from data.
    pub fn credit(&self) -> Option<Credit> {
        self.stage_type().rollout.map(|rollout| rollout.credit)
    }

    /// How replies are sampled, every option decided; `None` for a stage that learns from data.
    pub fn planned_rollout(&self) -> Option<PlannedRollout> {
        plan_rollout(self)
    }

    /// The rewards, every option decided. A stage that names none is judged by its generated tasks' own checks.
    pub fn planned_rewards(&self) -> Vec<PlannedReward> {
        if matches!(self.credit(), None | Some(Credit::Divergence)) {
            return Vec::new();
        }
        let planned = |reward: &RewardSection| PlannedReward {
            name: reward.name.clone().unwrap_or_else(|| reward.r#type.clone()),
            r#type: reward.r#type.clone(),
            weight: reward.weight.unwrap_or(if is_beside_the_sum(reward) { 0.0 } else { 1.0 }),
            gate: reward.gate,
            gold: reward.gold.clone(),
            hidden: reward.hidden,
            constraint: planned_constraint(reward),
            params: Value::Object(reward.params.values().clone()),
            files: Vec::new(),
        };
        let task = || PlannedReward {
            name: TASK_REWARD.to_owned(),
            r#type: TASK_REWARD.to_owned(),
            weight: 1.0,
            gate: None,
            gold: None,
            hidden: false,
            constraint: None,
            params: Value::Object(serde_json::Map::new()),
            files: Vec::new(),
        };
        if self.reward.is_empty() { vec![task()] } else { self.reward.iter().map(planned).collect() }
    }

    /// Whether there are rows to measure the held-out loss on.
    pub fn has_held_out_rows(&self) -> bool {
        self.data.eval.is_some() || self.data.eval_fraction > 0.0
    }

    /// The generated tasks whose accuracy is measured.
    pub fn eval_tasks(&self) -> Vec<String> {
        if let Some(tasks) = &self.eval.tasks {
            return tasks.clone();
        }
        let generated = |sources: &[Source]| -> Vec<String> {
            let names = sources.iter().map(|source| source.source.clone());
            names.filter(|name| name.starts_with("generated:")).collect()
        };
        let held_out = generated(self.data.eval.as_deref().unwrap_or_default());
        if held_out.is_empty() { generated(&self.data.train) } else { held_out }
    }

    /// Optimiser steps, where one pass over the data is `steps_per_epoch`.
    pub fn steps(&self, steps_per_epoch: u64) -> u64 {
        let epochs = self.train.epochs.unwrap_or(self.stage_type().epochs);
        self.train.steps.unwrap_or_else(|| share(epochs, steps_per_epoch))
    }
}

impl Recipe {
    /// The plan of this recipe on the data and model that `facts` describe.
    ///
    /// # Errors
    /// [`PlanError`]: the recipe is well-formed but does not fit its data or model.
    ///
    /// # Panics
    /// If `facts` are not those of this recipe: another number of stages or sources.
    pub fn resolve(&self, facts: &Facts) -> Result<Plan, PlanError> {
        assert_eq!(facts.stages.len(), self.stage.len(), "facts are given for every stage");
        let new = self.model.new.as_ref().map(|new| new.resolve(facts.vocab_size)).transpose()?;
        let model = PlannedModel {
            base: self.model.base.clone(),
            revision: self.model.revision.clone(),
            new,
            tokenizer: self.model.tokenizer.clone(),
            dtype: self.model.dtype,
            parameters: facts.parameters,
            files: facts.files.clone(),
        };
        let numbered = self.numbers.iter().copied().zip(self.stage.iter().zip(&facts.stages));
        let stages = numbered.map(|(number, (stage, facts))| plan_stage(number, stage, facts));
        Ok(Plan {
            format_version: 1,
            name: self.name.clone().unwrap_or_else(|| "run".to_owned()),
            seed: self.seed,
            model,
            stages: stages.collect::<Result<_, _>>()?,
            others: Vec::new(),
        })
    }
}

fn plan_stage(number: u32, stage: &StageSection, facts: &StageFacts) -> Result<PlannedStage, PlanError> {
    let name = stage.name.clone().unwrap_or_else(|| stage.r#type.clone());
    let steps = stage.steps(facts.steps_per_epoch);
    if facts.steps_per_epoch == 0 || steps == 0 {
        return Err(PlanError::NoSteps { stage: name, n_sources: facts.train.len() });
    }
    let epochs = steps as f64 / facts.steps_per_epoch as f64;
    let schedule = plan_schedule(&name, &stage.schedule, stage.learning_rate(), steps)?;
    let adapts = stage.train.method != Method::Full;
    Ok(PlannedStage {
        number,
        r#type: stage.r#type.clone(),
        title: title_of(&stage.r#type).to_owned(),
        base: stage.base.clone().unwrap_or_else(|| MODEL.to_owned()),
        steps,
        tokens: (epochs * facts.tokens_per_epoch as f64).round() as u64,
        trainable_parameters: facts.trainable_parameters,
        data: plan_data(stage, facts),
        train: plan_train(stage, facts, epochs),
        lora: adapts.then(|| plan_lora(stage)),
        quantization: (stage.train.method == Method::Qlora).then_some(PlannedQuantization {
            r#type: stage.quantization.r#type,
            double: stage.quantization.double,
        }),
        objective: PlannedComponent {
            r#type: stage.objective_type().to_owned(),
            params: facts.objective.clone(),
        },
        optimizer: PlannedComponent {
            r#type: stage.optimizer.r#type.clone(),
            params: facts.optimizer.clone(),
        },
        schedule,
        rollout: plan_rollout(stage),
        environment: stage.planned_environment(),
        server: stage.planned_server(),
        rewards: plan_rewards(stage, facts),
        ppo: plan_ppo(stage, facts),
        online: plan_online(stage),
        reference: plan_reference(stage, facts),
        distillation: plan_distillation(stage, facts),
        eval: PlannedEval {
            tasks: stage.eval_tasks(),
            n: stage.eval.n,
            max_new_tokens: stage.eval.max_new_tokens.unwrap_or(PlannedEval::DEFAULT_MAX_NEW_TOKENS),
            temperature: stage.eval.temperature,
        },
        memory: facts.memory.clone(),
        expected_seconds: facts.expected_seconds,
        name,
    })
}

fn plan_rollout(stage: &StageSection) -> Option<PlannedRollout> {
    let (defaults, rollout) = (stage.stage_type().rollout?, &stage.rollout);
    Some(PlannedRollout {
        n: rollout.n.unwrap_or(defaults.n),
        max_new_tokens: rollout.max_new_tokens,
        temperature: rollout.temperature,
        top_k: rollout.top_k,
        top_p: rollout.top_p,
        min_p: rollout.min_p,
        mini_batches: rollout.mini_batches,
        passes: rollout.passes.unwrap_or(defaults.passes),
        baseline: rollout.baseline.unwrap_or(defaults.baseline),
        scale_rewards: rollout.scale_rewards.unwrap_or(defaults.scale_rewards),
        aggregation: rollout.aggregation,
        normalize_advantages: rollout.normalize_advantages,
        reward_kl: rollout.reward_kl.unwrap_or(defaults.reward_kl),
        mask_truncated: rollout.mask_truncated,
        missing_eos_penalty: rollout.missing_eos_penalty,
        overlong_cache: rollout.overlong_cache,
        sampling_rounds: rollout.sampling_rounds.unwrap_or(defaults.sampling_rounds),
        curriculum: rollout.curriculum,
        alarms: rollout.alarms,
    })
}

/// Whether a reward says what it says otherwise than by its part of the sum.
fn is_beside_the_sum(reward: &RewardSection) -> bool {
    reward.hidden || reward.gate.is_some() || reward.at_least.or(reward.at_most).is_some()
}

fn planned_constraint(reward: &RewardSection) -> Option<PlannedConstraint> {
    let at_least = reward.at_least.map(PlannedBound::AtLeast);
    let bound = at_least.or(reward.at_most.map(PlannedBound::AtMost))?;
    Some(PlannedConstraint {
        bound,
        multiplier_init: reward.multiplier_init.unwrap_or(MULTIPLIER_INIT),
        multiplier_lr: reward.multiplier_lr.unwrap_or(MULTIPLIER_LR),
        multiplier_max: reward.multiplier_max.unwrap_or(MULTIPLIER_MAX),
    })
}

/// Defaults of a constraint's multiplier, as keys.rs documents them.
pub(crate) const MULTIPLIER_INIT: f64 = 1.0;
const MULTIPLIER_LR: f64 = 0.1;
pub(crate) const MULTIPLIER_MAX: f64 = 10.0;

fn plan_rewards(stage: &StageSection, facts: &StageFacts) -> Vec<PlannedReward> {
    let mut rewards = stage.planned_rewards();
    for (reward, files) in rewards.iter_mut().zip(&facts.reward_models) {
        reward.files.clone_from(files);
    }
    rewards
}

fn plan_ppo(stage: &StageSection, facts: &StageFacts) -> Option<PlannedPpo> {
    let ppo = &stage.ppo;
    (stage.credit() == Some(Credit::Values)).then(|| PlannedPpo {
        kl_coef: ppo.kl_coef,
        kl_target: ppo.kl_target,
        kl_horizon: ppo.kl_horizon,
        kl_estimator: ppo.kl_estimator,
        gamma: ppo.gamma,
        lam: ppo.lam,
        whiten_rewards: ppo.whiten_rewards,
        whiten_advantages: ppo.whiten_advantages,
        critic: ppo.critic.clone().map(|model| PlannedCritic {
            model,
            files: facts.critic.clone(),
            learning_rate: ppo.critic_learning_rate.unwrap_or(stage.learning_rate()),
        }),
        ptx: plan_sources(stage, ppo.ptx.as_deref().unwrap_or_default(), &facts.ptx),
        ptx_rows_per_step: ppo.ptx_rows_per_step,
    })
}

fn plan_online(stage: &StageSection) -> Option<PlannedOnline> {
    let is_online = stage.credit().is_some_and(|c| {
        !matches!(c, Credit::Advantages | Credit::Values | Credit::Teacher | Credit::Divergence)
    });
    is_online.then_some(PlannedOnline {
        mixture_coef: stage.online.mixture_coef,
        min_reward: stage.online.min_reward,
    })
}

fn plan_distillation(stage: &StageSection, facts: &StageFacts) -> Option<PlannedDistillation> {
    let section = &stage.distillation;
    let on_policy = PlannedOnPolicy { lmbda: section.lmbda, seq_kd: section.seq_kd };
    Some(PlannedDistillation {
        teacher: section.teacher.clone()?,
        files: facts.teacher.clone(),
        on_policy: (stage.credit() == Some(Credit::Divergence)).then_some(on_policy),
    })
}

fn plan_reference(stage: &StageSection, facts: &StageFacts) -> Option<PlannedReference> {
    let section = &stage.reference;
    let is_other = section.model.is_some() || section.sync_steps.is_some();
    is_other.then(|| PlannedReference {
        model: section.model.clone(),
        files: facts.reference.clone(),
        sync_steps: section.sync_steps,
        mixup_alpha: section.mixup_alpha,
    })
}

fn plan_data(stage: &StageSection, facts: &StageFacts) -> PlannedData {
    PlannedData {
        train: plan_sources(stage, &stage.data.train, &facts.train),
        mixture: plan_mixture(stage),
        eval: plan_sources(stage, stage.data.eval.as_deref().unwrap_or_default(), &facts.eval),
        eval_fraction: stage.data.eval_fraction,
        max_length: stage.data.max_length,
        truncation: stage.data.truncation,
        packing: stage.packing(),
        train_end_of_turn: stage.data.train_end_of_turn,
        chat_template: facts.chat_template.clone(),
        shuffle: stage.data.shuffle,
    }
}

fn plan_sources(stage: &StageSection, sources: &[Source], facts: &[SourceFacts]) -> Vec<PlannedSource> {
    assert_eq!(sources.len(), facts.len(), "facts are given for every source");
    let plan = |(source, facts): (&Source, &SourceFacts)| PlannedSource {
        source: source.source.clone(),
        layout: facts.layout.clone(),
        columns: source.columns.clone().unwrap_or_default(),
        split: source.split.clone(),
        subset: source.subset.clone(),
        limit: source.limit,
        format: source.format,
        text_unit: source.text_unit.clone(),
        rows_key: source.rows_key.clone(),
        mask: Source::mask(stage.stage_type(), stage.data.mask, facts.has_prompt, facts.is_conversation),
        files: facts.files.clone(),
        rows: facts.rows,
        tokens: facts.tokens,
        trained_tokens: facts.trained_tokens,
        rows_truncated: facts.rows_truncated,
        rows_dropped: facts.rows_dropped,
    };
    sources.iter().zip(facts).map(plan).collect()
}

fn plan_mixture(stage: &StageSection) -> Mixture {
    let sources = &stage.data.train;
    match sources.iter().map(|source| source.weight).collect() {
        Some(weights) => Mixture::Shares { weights, stopping_strategy: stage.data.stopping_strategy },
        None => Mixture::Repeats(sources.iter().map(|source| source.repeats.unwrap_or(1.0)).collect()),
    }
}

fn plan_train(stage: &StageSection, facts: &StageFacts, epochs: f64) -> PlannedTrain {
    let train = &stage.train;
    let eval_every = train.eval_every.unwrap_or(facts.steps_per_epoch);
    let save_default = if stage.has_held_out_rows() { eval_every } else { DEFAULT_SAVE_EVERY };
    PlannedTrain {
        method: train.method,
        epochs,
        step_size: stage.step_size(),
        tokens_per_micro_batch: train.tokens_per_micro_batch,
        recompute: train.recompute,
        max_grad_norm: train.max_grad_norm,
        log_every: train.log_every,
        eval_every,
        save_every: train.save_every.unwrap_or(save_default),
        keep_last: train.keep_last,
        keep_best: train.keep_best,
    }
}

fn plan_lora(stage: &StageSection) -> PlannedLora {
    let lora = stage.lora.clone();
    PlannedLora {
        rank: lora.rank,
        alpha: lora.alpha,
        dropout: lora.dropout,
        targets: lora.targets,
        rslora: lora.rslora,
        dora: lora.dora,
        init: lora.init,
        lora_plus_ratio: lora.lora_plus_ratio,
    }
}

fn plan_schedule(
    stage: &str,
    schedule: &ScheduleSection,
    learning_rate: f64,
    steps: u64,
) -> Result<PlannedSchedule, PlanError> {
    let ratio = schedule.warmup_ratio.unwrap_or(DEFAULT_WARMUP_RATIO);
    let warmup_steps = schedule.warmup_steps.unwrap_or_else(|| share(ratio, steps));
    let falls_late = schedule.r#type == ScheduleType::WarmupStableDecay;
    let decay_ratio = if falls_late { schedule.decay_ratio } else { 0.0 };
    // The schedule itself rounds the ratio so (as transformers does); the plan must show what it will do.
    let late_steps = (steps as f64 * decay_ratio).ceil() as u64;
    if warmup_steps + late_steps > steps {
        let stage = stage.to_owned();
        return Err(PlanError::ScheduleTooLong { stage, warmup_steps, decay_steps: late_steps, steps });
    }
    let decay_steps = match schedule.r#type {
        ScheduleType::Constant => 0,
        ScheduleType::Linear | ScheduleType::Cosine => steps - warmup_steps,
        ScheduleType::WarmupStableDecay => late_steps,
    };
    Ok(PlannedSchedule {
        r#type: schedule.r#type,
        learning_rate,
        warmup_steps,
        decay_steps,
        decay_ratio,
        decay_shape: schedule.decay_shape,
        min_ratio: if schedule.r#type == ScheduleType::Constant { 1.0 } else { schedule.min_ratio },
    })
}

/// `ratio` of `n`, rounded up, where a product that is whole but for rounding counts as whole:
/// 0.1 of 30 is 3, though `0.1 * 30.0` is above 3.
fn share(ratio: f64, n: u64) -> u64 {
    const ROUNDING: f64 = 1e-12;
    (ratio * n as f64 * (1.0 - ROUNDING)).ceil() as u64
}

#[cfg(test)]
mod tests;
