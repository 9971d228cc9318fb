//! A recorded step trained on again, without sampling: what another objective would have made of its samples.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pt_models::Model;
use pt_objectives::{OBJECTIVES, Objective};
use pt_optim::{Groups, ScheduleConfig};
use pt_recipe::{Credit, Method, Plan, PlannedStage, StageType, stage_of};
use pt_rl::{RolloutRecord, RolloutsFolder};
use pt_run::{CheckpointStore, Retention};
use pt_train::{Example, Known, Reply, Trainer, TrainerOptions};
use serde_json::{Map, Value};

use super::reference::Reference;
use super::{group_examples, pack_groups};
use crate::error::{PipelineError, Result};
use crate::graph::{model_folder, path_of};
use crate::model::{engine_dtype, load_model, locate_model};
use crate::source::Surroundings;

/// What is replayed.
#[derive(Clone, Debug, Default)]
pub struct ReplayOptions {
    /// Another objective than the stage's.
    pub objective: Option<String>,
    /// Its options, or changes to those of the stage.
    pub options: toml::Table,
    /// Another model than that of the newest checkpoint before the step.
    pub model: Option<PathBuf>,
}

/// What a replay found; nothing was changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Replayed {
    /// The objective.
    pub objective: String,
    /// Where the weights came from.
    pub model: String,
    /// `loss`, `grad_norm` and the objective's metrics.
    pub values: Vec<(String, f64)>,
}

/// Computes loss, gradient norm and metrics of all samples of the round that step `step`, from 1, used.
///
/// # Errors
/// A step without samples, a stage whose samples train otherwise than by group advantages, an adapter without `model`, a reference that
/// has moved, options that are not understood.
pub fn replay(
    run: &Path,
    plan: &Plan,
    stage: &PlannedStage,
    step: u64,
    options: &ReplayOptions,
    surroundings: &Surroundings,
) -> Result<Replayed> {
    let refuse =
        |what: String, advice: &str| Err(PipelineError::Unsupported { what, advice: advice.to_owned() });
    let Some(rollout) = &stage.rollout else {
        return refuse(format!("stage `{}` does not sample", stage.name), "name one that does");
    };
    let credit = StageType::named(&stage.r#type).and_then(|kind| kind.rollout).map(|rollout| rollout.credit);
    if credit != Some(Credit::Advantages) {
        return refuse(
            format!(
                "stage `{}` is a `{}` stage, whose samples have no advantages by comparison with their group, which is what \
                 a replay trains on",
                stage.name, stage.r#type
            ),
            "name a stage of group advantages, as grpo, dapo or rloo",
        );
    }
    let dir = run.join("stages").join(Plan::stage_label(stage));
    let round = (step - 1) / (rollout.passes * rollout.mini_batches);
    let Some(records) = RolloutsFolder::open(dir.join("rollouts"), true)?.read(round)? else {
        return refuse(format!("there are no samples of step {step}"), "choose a step that was sampled");
    };
    let name = options.objective.clone().unwrap_or_else(|| stage.objective.r#type.clone());
    let objective = objective(stage, &name, &options.options, stage.completion_limit())?;
    let needs = objective.needs();
    if needs.score_outputs > 0 {
        return refuse(
            format!("objective `{name}` has a critic, whose values were not recorded"),
            "choose another",
        );
    }
    let weights = weights(run, plan, stage, &dir, step, options, surroundings)?;
    let temperature = rollout.temperature as f32;
    let trainer_options = TrainerOptions {
        dtype: engine_dtype(plan.model.dtype),
        learning_rate: 0.0,
        recompute: false,
        max_grad_norm: None,
        seed: plan.seed,
        groups: Groups::default(),
        temperature,
    };
    let mut model = weights.model;
    model.train_all()?;
    let optimiser = pt_optim::build("adamw", &toml::Table::new(), plan.seed)?;
    let schedule = ScheduleConfig::from_table(&toml::toml! { name = "constant" })?.resolve(1)?;
    let mut trainer = Trainer::new(model, objective, optimiser.as_ref(), schedule, trainer_options)?;
    if let Some(path) = &weights.checkpoint {
        trainer.import_params(&mut CheckpointStore::load(path)?)?;
    }
    let max_tokens = stage.train.tokens_per_micro_batch as usize;
    let mut groups = examples_of(&records, rollout.mask_truncated);
    if needs.reference_logp {
        let dtype = engine_dtype(plan.model.dtype);
        let model = load_model(&reference_folder(run, plan, stage, surroundings)?, Some(dtype))?;
        Reference::Frozen(Box::new(model)).fill(&trainer.model, dtype, temperature, max_tokens, &mut groups);
    }
    let cut = groups.into_iter().flat_map(|mut whole| {
        let replies = std::mem::take(&mut whole.replies);
        group_examples(&whole, replies, max_tokens)
    });
    let (stats, _) = trainer.accumulate(&pack_groups(cut.collect(), max_tokens))?;
    let trained = trainer.model.params.iter().filter(|(_, param)| param.trainable);
    let grads = trained.filter_map(|(id, _)| trainer.grads().get(id)).flat_map(pt_engine::Array::to_f32);
    let squares: f64 = grads.map(|g| f64::from(g) * f64::from(g)).sum();
    let mut values = vec![("loss".to_owned(), stats.loss), ("grad_norm".to_owned(), squares.sqrt())];
    values.extend(stats.metrics);
    Ok(Replayed { objective: name, model: weights.name, values })
}

/// The objective with the stage's options where it is the stage's, changed by those given.
fn objective(
    stage: &PlannedStage,
    name: &str,
    changes: &toml::Table,
    max_tokens: u64,
) -> Result<Box<dyn Objective>> {
    let mut options = match (name == stage.objective.r#type, &stage.objective.params) {
        (true, Value::Object(params)) => params.clone(),
        _ => Map::new(),
    };
    let info = OBJECTIVES.iter().find(|info| info.name == name);
    if info.is_some_and(|info| info.options.iter().any(|option| option.name == "max_completion_length")) {
        options.entry("max_completion_length").or_insert_with(|| max_tokens.into());
    }
    let mut options = toml::Table::try_from(&options).expect("options read from TOML are TOML");
    options.extend(changes.clone());
    Ok(pt_objectives::build(name, &options)?)
}

/// A model and the checkpoint whose weights go into it.
struct Weights {
    model: Model,
    checkpoint: Option<PathBuf>,
    name: String,
}

fn weights(
    run: &Path,
    plan: &Plan,
    stage: &PlannedStage,
    dir: &Path,
    step: u64,
    options: &ReplayOptions,
    surroundings: &Surroundings,
) -> Result<Weights> {
    let dtype = Some(engine_dtype(plan.model.dtype));
    if let Some(path) = &options.model {
        let name = path.display().to_string();
        return Ok(Weights { model: load_model(path, dtype)?, checkpoint: None, name });
    }
    if stage.train.method != Method::Full {
        return Err(PipelineError::Unsupported {
            what: format!("stage `{}` trains an adapter, which a replay does not attach", stage.name),
            advice: "merge one with `posttrain merge` and name its folder with --model".to_owned(),
        });
    }
    let input = input_folder(run, plan, stage, surroundings)?;
    let store =
        CheckpointStore::open(&dir.join("checkpoints"), Retention { keep_last: usize::MAX, best: None })?;
    // Weights before the step's update.
    let before = store.steps()?.into_iter().rfind(|saved| *saved < step);
    let name =
        before.map_or_else(|| input.display().to_string(), |saved| format!("the checkpoint of step {saved}"));
    Ok(Weights {
        model: load_model(&input, dtype)?,
        checkpoint: before.map(|saved| store.path_of(saved)),
        name,
    })
}

/// The folder of the model that the stage began with.
fn input_folder(
    run: &Path,
    plan: &Plan,
    stage: &PlannedStage,
    surroundings: &Surroundings,
) -> Result<PathBuf> {
    let before = stage_of(&stage.base).and_then(|name| model_folder(run, plan, name));
    match (before, &plan.model.base) {
        (Some(before), _) => Ok(before),
        (None, Some(base)) => locate_model(base, &plan.model.revision, surroundings),
        (None, None) => Err(PipelineError::Unsupported {
            what: "the stage began with a model from nothing, which was not kept".to_owned(),
            advice: "name a model with --model".to_owned(),
        }),
    }
}

/// The folder of the stage's reference: the one that it names, or the model that it began with.
fn reference_folder(
    run: &Path,
    plan: &Plan,
    stage: &PlannedStage,
    surroundings: &Surroundings,
) -> Result<PathBuf> {
    if stage.reference.as_ref().is_some_and(|reference| reference.sync_steps.is_some()) {
        return Err(PipelineError::Unsupported {
            what: format!("the reference of stage `{}` follows the policy, and was not kept", stage.name),
            advice: "choose an objective that reads no reference, such as one with beta = 0".to_owned(),
        });
    }
    match stage.reference.as_ref().and_then(|reference| reference.model.as_deref()) {
        None => input_folder(run, plan, stage, surroundings),
        Some(named) if stage_of(named).is_some() => path_of(run, plan, named),
        Some(named) => locate_model(named, "main", surroundings),
    }
}

/// Groups of recorded samples, with the advantages they had.
fn examples_of(records: &[RolloutRecord], masks_truncated: bool) -> Vec<Example> {
    let group = |records: &[RolloutRecord]| {
        let first = &records[0];
        let origin: Arc<str> = Arc::from(first.origin.clone().unwrap_or_default());
        let mut example = Example::prompt(first.prompt_ids.clone(), Vec::new(), first.group as u64, origin);
        example.replies = records.iter().map(|record| reply_of(record, masks_truncated)).collect();
        example
    };
    records.chunk_by(|a, b| a.group == b.group).map(group).collect()
}

fn reply_of(record: &RolloutRecord, masks_truncated: bool) -> Reply {
    let n = record.completion_ids.len();
    let is_truncated = record.finish_reason == "length";
    let or = |values: &[f32], other: Vec<f32>| if values.is_empty() { other } else { values.to_vec() };
    let weights = or(&record.weights, vec![1.0; n]);
    Reply {
        token_ids: record.completion_ids.clone(),
        weights: if masks_truncated && is_truncated { vec![0.0; n] } else { weights },
        is_truncated,
        known: Known {
            sampler_logp: or(&record.sampler_logprobs, record.logprobs.clone()),
            old_logp: record.logprobs.clone(),
            advantages: vec![record.advantage; n],
            ..Known::default()
        },
        ..Reply::default()
    }
}
