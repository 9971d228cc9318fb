//! What of a model trains in a stage, and the trainer over it.

use pt_core::rng::Stream;
use pt_models::{LoraConfig, LoraInit, Model, Quantise, ScoreHeadKind, Targets};
use pt_objectives::Objective;
use pt_objectives::policy_gradient::ValueLoss;
use pt_optim::{Groups, Schedule, ScheduleConfig};
use pt_recipe::{Method, PlannedSchedule, QuantType, Recipe, Recompute, RowKind, StageSection};
use pt_train::{Trainer, TrainerOptions};
use serde_json::{Map, Value};

use crate::error::Result;
use crate::model::engine_dtype;

/// Decides what of the model trains: everything, or adapters beside frozen (and quantised) weights.
///
/// # Errors
/// If a target names no layer, or the weights cannot be quantised.
pub fn prepare_model(model: &mut Model, recipe: &Recipe, stage: &StageSection) -> Result<()> {
    prepare_weights(model, recipe, stage)?;
    let needs = objective_of(stage)?.needs();
    if needs.score_outputs == 0 {
        return Ok(());
    }
    if needs.no_logp && !model.config.tied {
        // A classifier is written without it.
        let head = model.arch.head();
        model.params.get_mut(head).trainable = false;
    }
    let kind = match stage.stage_type().rows {
        RowKind::ScoredPairs => ScoreHeadKind::Sequence,
        RowKind::Steps => ScoreHeadKind::Token,
        _ => ScoreHeadKind::Value,
    };
    let values = new_head(model, recipe, needs.score_outputs);
    model.add_score_head(kind, &values)?;
    Ok(())
}

/// The values of a new score head.
fn new_head(model: &Model, recipe: &Recipe, n_outputs: usize) -> Vec<f32> {
    let n = (n_outputs * model.config.hidden_size) as u64;
    let stream = Stream::new(recipe.seed, "score head");
    (0..n).map(|i| (stream.at(i).normal() * SCORE_HEAD_DEVIATION) as f32).collect()
}

/// Standard deviation of a new score head's weights, as transformers' `initializer_range`.
const SCORE_HEAD_DEVIATION: f64 = 0.02;

/// What the stage minimises.
fn objective_of(stage: &StageSection) -> Result<Box<dyn Objective>> {
    let options = toml::Table::try_from(objective_options(stage)).expect("options read from TOML are TOML");
    Ok(pt_objectives::build(stage.objective_type(), &options)?)
}

/// The option that is the greatest number of tokens of a sample.
const MAX_COMPLETION_LENGTH: &str = "max_completion_length";

/// The option that is the value loss's weight beside the policy's.
const VF_COEF: &str = "vf_coef";

/// The option that corrects for a sampler whose probabilities are not the trainer's.
const SAMPLER_CORRECTION: &str = "importance_sampling_correction";

/// The objective's options: those written, and of the others what the stage decides elsewhere.
pub(crate) fn objective_options(stage: &StageSection) -> Map<String, Value> {
    let mut options = stage.objective.params.values().clone();
    let info = pt_objectives::OBJECTIVES.iter().find(|info| info.name == stage.objective_type());
    let takes_length = info.is_some_and(|info| info.options.iter().any(|o| o.name == MAX_COMPLETION_LENGTH));
    let corrects = info.is_some_and(|info| info.options.iter().any(|o| o.name == SAMPLER_CORRECTION));
    if corrects && stage.planned_server().is_some() {
        // TRL's default for samples of vLLM.
        options.entry(SAMPLER_CORRECTION).or_insert_with(|| "sequence_mask".into());
    }
    if let Some(limit) = stage.completion_limit().filter(|_| takes_length) {
        options.entry(MAX_COMPLETION_LENGTH).or_insert_with(|| limit.into());
    }
    if stage.ppo.critic.is_some() {
        // The critic has the values; the policy has no head for them.
        options.insert(VF_COEF.to_owned(), 0.0.into());
    }
    options
}

fn prepare_weights(model: &mut Model, recipe: &Recipe, stage: &StageSection) -> Result<()> {
    if stage.train.method == Method::Full {
        return Ok(model.train_all()?);
    }
    quantise_model(model, stage)?;
    let lora = &stage.lora;
    let targets = match lora.targets.as_slice() {
        [word] if word == "all-linear" => Targets::default(),
        names => Targets::Names(names.to_vec()),
    };
    let config = LoraConfig {
        rank: lora.rank as usize,
        alpha: lora.alpha,
        dropout: lora.dropout,
        targets,
        rslora: lora.rslora,
        dora: lora.dora,
        init: match lora.init {
            pt_recipe::LoraInit::Default => LoraInit::Default,
            pt_recipe::LoraInit::Pissa => LoraInit::Pissa,
        },
    };
    Ok(model.attach_lora(&config, recipe.seed)?)
}

/// Quantises the frozen weights if the stage says so.
///
/// # Errors
/// If a weight is not finite.
pub fn quantise_model(model: &mut Model, stage: &StageSection) -> Result<()> {
    if stage.train.method != Method::Qlora {
        return Ok(());
    }
    Ok(model.quantise(match stage.quantization.r#type {
        QuantType::Nf4 => Quantise::Nf4 { double: stage.quantization.double },
        QuantType::Int8 => Quantise::Int8,
    })?)
}

/// The trainer of a stage, at step 0, over a model that [`prepare_model`] prepared.
///
/// # Errors
/// If the objective's or optimiser's options are not understood.
pub fn stage_trainer(
    model: Model,
    recipe: &Recipe,
    stage: &StageSection,
    schedule: Schedule,
) -> Result<Trainer> {
    trainer_of(model, objective_of(stage)?, recipe, stage, schedule, stage.learning_rate())
}

/// The trainer of a stage's critic, at step 0: a model with a value head, trained as the policy is, at its own learning rate.
///
/// # Errors
/// A score head of several outputs, and as [`stage_trainer`].
pub(crate) fn critic_trainer(
    mut model: Model,
    recipe: &Recipe,
    stage: &StageSection,
    schedule: Schedule,
) -> Result<Trainer> {
    let options = objective_options(stage);
    let range = options.get(CLIPRANGE_VALUE).and_then(Value::as_f64).unwrap_or(DEFAULT_CLIPRANGE_VALUE);
    let known = model.score_values();
    prepare_weights(&mut model, recipe, stage)?;
    match known {
        // A reward model's head is where its values begin.
        Some(values) => model.use_score_head_for_values(&values)?,
        None => {
            let values = new_head(&model, recipe, 1);
            model.add_score_head(ScoreHeadKind::Value, &values)?;
        }
    }
    if !model.config.tied {
        let head = model.arch.head();
        model.params.get_mut(head).trainable = false;
    }
    let learning_rate = stage.ppo.critic_learning_rate.unwrap_or(stage.learning_rate());
    trainer_of(model, Box::new(ValueLoss::new(range)), recipe, stage, schedule, learning_rate)
}

/// The objective's option that a critic of its own reads, and its default.
const CLIPRANGE_VALUE: &str = "cliprange_value";
const DEFAULT_CLIPRANGE_VALUE: f64 = 0.2;

fn trainer_of(
    model: Model,
    objective: Box<dyn Objective>,
    recipe: &Recipe,
    stage: &StageSection,
    schedule: Schedule,
    learning_rate: f64,
) -> Result<Trainer> {
    let optimiser = pt_optim::build(&stage.optimizer.r#type, &stage.optimizer.params.to_toml(), recipe.seed)?;
    let options = TrainerOptions {
        dtype: engine_dtype(recipe.model.dtype),
        learning_rate,
        recompute: stage.train.recompute == Recompute::Block,
        max_grad_norm: Some(stage.train.max_grad_norm).filter(|norm| *norm > 0.0),
        seed: recipe.seed,
        groups: Groups { lora_plus_ratio: stage.lora.lora_plus_ratio, ..Groups::default() },
        temperature: temperature_of(stage),
    };
    Ok(Trainer::new(model, objective, optimiser.as_ref(), schedule, options)?)
}

/// What divides the logits in training: as in sampling, so that the policy is what sampled; but what is imitated is learned as any
/// text, and a divergence from a teacher has a temperature of its own.
fn temperature_of(stage: &StageSection) -> f32 {
    match stage.credit() {
        Some(pt_recipe::Credit::Best | pt_recipe::Credit::Divergence) | None => 1.0,
        Some(_) => stage.planned_rollout().map_or(1.0, |rollout| rollout.temperature as f32),
    }
}

/// The schedule a plan decided on.
///
/// # Errors
/// If it does not fit its steps.
pub fn planned_schedule(planned: &PlannedSchedule, steps: u64) -> Result<Schedule> {
    let mut table = toml::Table::new();
    table.insert("name".to_owned(), planned.r#type.as_str().into());
    table.insert("warmup_steps".to_owned(), toml::Value::Integer(planned.warmup_steps as i64));
    table.insert("min_ratio".to_owned(), planned.min_ratio.into());
    table.insert("decay_ratio".to_owned(), planned.decay_ratio.into());
    table.insert("decay_shape".to_owned(), planned.decay_shape.as_str().into());
    Ok(ScheduleConfig::from_table(&table)?.resolve(steps)?)
}
