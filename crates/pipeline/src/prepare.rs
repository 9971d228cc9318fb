//! From a recipe to a plan: data read, tokenised and audited, model found, memory and time measured.

use std::path::Path;
use std::sync::Arc;

use pt_data::layout::LAYOUTS;
use pt_engine::Dtype;
use pt_environments::ENVIRONMENTS;
use pt_models::ModelConfig;
use pt_objectives::OBJECTIVES;
use pt_optim::{Groups, OPTIMISERS};
use pt_recipe::{
    Catalogue, Component, Credit, Facts, MemoryPart, Method, OtherStage, Plan, PlannedFile, PlannedReward,
    PlannedRollout, PlannedStage, PlannedWork, Recipe, StageFacts, StageSection, title_of,
};
use pt_text::Tokenizer;
use pt_train::Trainer;
use pt_verify::VERIFIERS;

use crate::distil::{check_rows, with_teacher};
use crate::error::{PipelineError, Result};
use crate::kinds::{Around, Planning, kind_named};
use crate::model::tokenizer_note;
use crate::model::{engine_dtype, load_base, load_tokenizer, model_config, model_files, model_files_at};
use crate::probe::{Estimate, probe};
use crate::reference::{POLICY, check_is_read, fill_with_zeros, load_critic, named_bytes, named_files};
use crate::rl::ReferenceKind;
use crate::rl::server::Server;
use crate::rl::{
    LOCAL_VERIFIERS, LongestRounds, Sampler, build_credit, build_rewards, check_rollout, decode_speed,
    process_reward, reward_model,
};
use crate::row_fit::check_rows_fit;
use crate::scorer::base_of;
use crate::source::{Surroundings, read_source};
use crate::stage::{
    StageData, planned_schedule, planned_template, prepare_model, stage_data, stage_trainer, with_defaults,
};
use crate::stage_steps::on_policy;
use crate::tasks::{check_task, is_task};
use crate::trainable::{critic_trainer, objective_options};

/// The names a recipe may use, from the catalogues that own them.
pub fn catalogue() -> Catalogue {
    let component = |name: &str, keys: Vec<String>| Component { name: name.to_owned(), keys };
    Catalogue {
        objectives: OBJECTIVES
            .iter()
            .map(|info| {
                component(info.name, info.options.iter().map(|option| option.name.to_owned()).collect())
            })
            .collect(),
        optimizers: OPTIMISERS
            .iter()
            .map(|info| {
                component(info.name, info.options.iter().map(|option| option.name.to_owned()).collect())
            })
            .collect(),
        environments: ENVIRONMENTS
            .iter()
            .map(|info| component(info.name, info.options.iter().map(|o| o.name.to_owned()).collect()))
            .collect(),
        layouts: LAYOUTS.iter().map(|layout| component(layout.name, Vec::new())).collect(),
        verifiers: VERIFIERS
            .iter()
            .map(|info| component(info.name, info.options.iter().map(|o| o.name.to_owned()).collect()))
            .chain(LOCAL_VERIFIERS.iter().map(|local| {
                component(local.name, local.options.iter().map(|o| o.name.to_owned()).collect())
            }))
            .collect(),
    }
}

/// Reads a recipe, changed by `sets` (`key=value` each).
///
/// # Errors
/// Every problem found, with line and column.
pub fn load_recipe(path: &Path, sets: &[String]) -> Result<Recipe> {
    Ok(Recipe::load(path, sets, &catalogue())?)
}

/// A recipe that is ready to run.
pub struct Prepared {
    /// As written.
    pub recipe: Recipe,
    /// What will run.
    pub plan: Plan,
    /// The tokenizer of all stages.
    pub tokenizer: Arc<Tokenizer>,
    /// Data of each stage.
    pub stages: Vec<StageData>,
}

/// Resolves a recipe on its data and model, and measures what its stages need on this machine.
///
/// # Errors
/// Whatever is wrong with data, model or options, before anything is trained.
pub fn prepare(recipe: Recipe, surroundings: &Surroundings) -> Result<Prepared> {
    prepare_again(recipe, surroundings, None)
}

/// As [`prepare`], for a recipe that has been planned before: where the plan comes out the same, its measurements are taken over
/// instead of made again.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_again(recipe: Recipe, surroundings: &Surroundings, known: Option<&Plan>) -> Result<Prepared> {
    let tokenizer = load_tokenizer(&recipe, surroundings, || first_texts(&recipe, surroundings))?;
    let others = plan_others(&recipe, &tokenizer, surroundings)?;
    prepare_stages(recipe, Arc::new(tokenizer), others, surroundings, known)
}

/// The plans of stages that train nothing, and of those that read what is not there yet.
fn plan_others(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    surroundings: &Surroundings,
) -> Result<Vec<PlannedWork>> {
    let around = Around { recipe, tokenizer, surroundings };
    let plan = |other: &OtherStage| -> Result<PlannedWork> {
        let (name, kind) = (other.section.name.clone().unwrap_or_default(), &other.section.r#type);
        let planning = match kind_named(kind) {
            Some(kind) => kind.plan(&other.section, &around),
            None => plan_later(other, &around),
        };
        let planning = planning
            .map_err(|source| PipelineError::Stage { stage: name.clone(), source: Box::new(source) })?;
        Ok(PlannedWork {
            number: other.number,
            name,
            r#type: kind.clone(),
            title: title_of(kind).to_owned(),
            reads: other.reads.clone(),
            settings: planning.settings,
            files: planning.files,
            summary: planning.summary,
        })
    };
    recipe.others.iter().map(plan).collect()
}

/// What is known of a stage that trains on what an earlier one makes.
fn plan_later(other: &OtherStage, around: &Around<'_>) -> Result<Planning> {
    let section = &other.section;
    check_rows_fit(section)?;
    let mut settings = serde_json::to_value(section).expect("a section is plain JSON");
    // Names are no part of what a stage is; what it begins with is among what it reads.
    ["name", "base"]
        .iter()
        .for_each(|key| drop(settings.as_object_mut().map(|fields| fields.shift_remove(*key))));
    let mut planning = Planning { settings, ..Planning::default() };
    let sources = section.data.train.iter().chain(section.data.eval.iter().flatten());
    let sources: Vec<_> = sources.chain(section.ppo.ptx.iter().flatten()).cloned().collect();
    planning.files = around.source_files(&sources)?;
    if let Some(base) = &section.base {
        planning.line("begins with", base.as_str());
    }
    for source in &sources {
        planning.line("data", source.source.as_str());
    }
    planning.line("steps, memory, time", "known when what it reads is there; it is planned then");
    Ok(planning)
}

/// As [`prepare_again`], with the tokenizer and the plans of all stages that are not trained at once.
pub(crate) fn prepare_stages(
    recipe: Recipe,
    tokenizer: Arc<Tokenizer>,
    others: Vec<PlannedWork>,
    surroundings: &Surroundings,
    known: Option<&Plan>,
) -> Result<Prepared> {
    let mut stages = Vec::with_capacity(recipe.stage.len());
    for stage in &recipe.stage {
        stages.push(stage_data(&recipe, stage, &tokenizer, surroundings)?);
    }
    if let (Some(first), Some(note)) = (stages.first_mut(), tokenizer_note(&recipe, &tokenizer)) {
        first.notes.push(note);
    }
    let config = model_config(&recipe, &tokenizer, surroundings)?;
    stages.iter().try_for_each(|data| data.check_vocabulary(&tokenizer, config.vocab_size))?;
    check_least(&recipe, &config, surroundings)?;
    let mut facts = Facts {
        parameters: config.n_params() as u64,
        vocab_size: tokenizer.vocab_size() as u64,
        files: model_files(&recipe, surroundings)?,
        stages: recipe.stage.iter().zip(&stages).map(|(stage, data)| stage_facts(stage, data)).collect(),
    };
    for (stage, facts) in recipe.stage.iter().zip(&mut facts.stages) {
        facts.teacher = named_files(stage.distillation.teacher.as_deref(), surroundings)?;
        let critic = stage.ppo.critic.as_deref().filter(|name| *name != POLICY);
        facts.critic = named_files(critic, surroundings)?;
        facts.reference = named_files(stage.reference.model.as_deref(), surroundings)?;
        facts.reward_models = reward_model_files(stage)?;
    }
    // A first plan decides the steps, on which the schedule and so the probe depend; the second one has the estimates.
    let resolve =
        |facts: &Facts| -> Result<Plan> { Ok(Plan { others: others.clone(), ..recipe.resolve(facts)? }) };
    let draft = with_tasks(&recipe, resolve(&facts)?)?;
    if let Some(plan) = known.and_then(|known| measured_before(&resolve, &facts, &draft, known)) {
        return Ok(Prepared { recipe, plan, tokenizer, stages });
    }
    for (i, stage) in recipe.stage.iter().enumerate() {
        let steps = draft.stages[i].steps;
        stages[i].steps.check_targets(steps)?;
        let estimate = estimate(&recipe, stage, &draft, i, &tokenizer, &mut stages[i], surroundings)?;
        facts.stages[i].trainable_parameters = estimate.trainable_parameters;
        facts.stages[i].memory = estimate.estimate.memory;
        let eval_tokens: usize = stages[i].eval.iter().map(pt_train::MicroBatch::n_tokens).sum();
        let n_evals = if eval_tokens == 0 { 0 } else { steps.div_ceil(draft.stages[i].train.eval_every) };
        // A forward pass is a third of a training step.
        let tokens = draft.stages[i].tokens as f64 + (n_evals as usize * eval_tokens) as f64 / 3.0;
        facts.stages[i].expected_seconds = tokens / estimate.estimate.tokens_per_second;
    }
    let mut plan = resolve(&facts)?;
    for (planned, draft) in plan.stages.iter_mut().zip(draft.stages) {
        planned.eval.tasks = draft.eval.tasks;
    }
    Ok(Prepared { recipe, plan, tokenizer, stages })
}

/// The plan with the measurements of one made before, if it is the same but for them.
fn measured_before(
    resolve: &dyn Fn(&Facts) -> Result<Plan>,
    facts: &Facts,
    draft: &Plan,
    known: &Plan,
) -> Option<Plan> {
    let mut facts = facts.clone();
    if facts.stages.len() != known.stages.len() {
        return None;
    }
    for (stage, known) in facts.stages.iter_mut().zip(&known.stages) {
        stage.trainable_parameters = known.trainable_parameters;
        stage.memory = known.memory.clone();
        stage.expected_seconds = known.expected_seconds;
    }
    let mut plan = resolve(&facts).ok()?;
    for (planned, draft) in plan.stages.iter_mut().zip(&draft.stages) {
        planned.eval.tasks = draft.eval.tasks.clone();
    }
    (plan.hash() == known.hash()).then_some(plan)
}

/// Leaves out the sources of raw text among the tasks that a recipe did not name itself, and refuses tasks that could
/// not be measured.
fn with_tasks(recipe: &Recipe, mut plan: Plan) -> Result<Plan> {
    for (stage, planned) in recipe.stage.iter().zip(&mut plan.stages) {
        if stage.eval.tasks.is_none() {
            planned.eval.tasks.retain(|task| is_task(task));
        }
        for task in &planned.eval.tasks {
            let named = |source| PipelineError::EvalTask {
                stage: planned.name.clone(),
                task: task.clone(),
                source: Box::new(source),
            };
            check_task(task, planned.eval.n as usize).map_err(named)?;
        }
    }
    Ok(plan)
}

/// Refuses a model that cannot fit whatever its batches, by arithmetic, before a byte of it is allocated: weights, and
/// where they all train, gradients and the optimiser's state.
fn check_least(recipe: &Recipe, config: &ModelConfig, surroundings: &Surroundings) -> Result<()> {
    let Some(available) = surroundings.memory_bytes else { return Ok(()) };
    let dtype = engine_dtype(recipe.model.dtype);
    for stage in &recipe.stage {
        let is_full = stage.train.method == Method::Full;
        let optimiser =
            pt_optim::build(&stage.optimizer.r#type, &stage.optimizer.params.to_toml(), recipe.seed)?;
        let mut needed = 0u64;
        for spec in config.param_specs() {
            let n = spec.n_elements() as u64;
            let quantised = stage.train.method == Method::Qlora && spec.role == pt_models::Role::Linear;
            // Half a byte and its scale, at the least.
            needed =
                needed.saturating_add(if quantised { n / 2 } else { n.saturating_mul(dtype.bytes() as u64) });
            if is_full {
                let role = if spec.shape.len() < 2 { pt_optim::Role::Vector } else { pt_optim::Role::Hidden };
                let spec = Groups::default().spec(spec.name.as_str(), &spec.shape, role);
                let state = optimiser.state_bytes(&spec, dtype == Dtype::Bf16) as u64;
                needed = needed.saturating_add(n.saturating_mul(4)).saturating_add(state);
            }
        }
        let name = stage.name.as_deref().unwrap_or(&stage.r#type);
        refuse_beyond(name, needed, available)?;
    }
    Ok(())
}

/// Refuses a plan that does not fit into `available_bytes`, by its measured estimate.
///
/// # Errors
/// [`PipelineError::DoesNotFit`] names the first stage that does not.
pub fn check_fits(plan: &Plan, available_bytes: u64) -> Result<()> {
    plan.stages.iter().try_for_each(|stage| {
        refuse_beyond(&stage.name, stage.memory.iter().map(|part| part.bytes).sum(), available_bytes)
    })
}

fn refuse_beyond(stage: &str, needed: u64, available: u64) -> Result<()> {
    const GIB: f64 = (1u64 << 30) as f64;
    if needed <= available {
        return Ok(());
    }
    Err(PipelineError::DoesNotFit {
        stage: stage.to_owned(),
        needed_gib: needed as f64 / GIB,
        available_gib: available as f64 / GIB,
    })
}

/// The texts of all stages, for training a tokenizer.
pub(crate) fn first_texts(recipe: &Recipe, surroundings: &Surroundings) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for source in recipe.stage.iter().flat_map(|stage| &stage.data.train) {
        for record in read_source(source, surroundings)?.records {
            let mut strings = Vec::new();
            collect_strings(&serde_json::Value::Object(record.to_row()), &mut strings);
            texts.push(strings.join("\n"));
        }
    }
    Ok(texts)
}

/// The columns of every kind of row that hold text, and within them the keys of messages and segments.
const TEXT_KEYS: [&str; 9] =
    ["text", "content", "prompt", "completion", "completions", "messages", "segments", "chosen", "rejected"];

/// Contents only: the words `role`, `user` and `assistant` would otherwise be learned as text.
fn collect_strings(value: &serde_json::Value, strings: &mut Vec<String>) {
    match value {
        serde_json::Value::String(text) => strings.push(text.clone()),
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect_strings(item, strings)),
        serde_json::Value::Object(map) => {
            map.iter()
                .filter(|(key, _)| TEXT_KEYS.contains(&key.as_str()))
                .for_each(|(_, value)| collect_strings(value, strings));
        }
        _ => {}
    }
}

/// Verifiers whose `model` is one of ours.
const OWN_JUDGES: [&str; 2] = [reward_model::NAME, process_reward::NAME];

/// For each reward, the files of the reward model that judges, hashed, with those an adapter stands on.
fn reward_model_files(stage: &StageSection) -> Result<Vec<Vec<PlannedFile>>> {
    let files = |reward: &PlannedReward| -> Result<Vec<PlannedFile>> {
        if !OWN_JUDGES.contains(&reward.r#type.as_str()) {
            return Ok(Vec::new());
        }
        let one = reward.params["model"].as_str();
        let several =
            reward.params["model"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
        let mut files = Vec::new();
        // What is not there is an error where the verifier is built, which says more.
        for path in one.into_iter().chain(several).map(Path::new).filter(|path| path.exists()) {
            files.extend(model_files_at(path.to_owned())?);
            if let Some(base) = base_of(path)?.filter(|base| base.exists()) {
                files.extend(model_files_at(base)?);
            }
        }
        Ok(files)
    };
    stage.planned_rewards().iter().map(files).collect()
}

fn stage_facts(stage: &StageSection, data: &StageData) -> StageFacts {
    let objective = OBJECTIVES.iter().find(|info| info.name == stage.objective_type());
    let optimizer = OPTIMISERS.iter().find(|info| info.name == stage.optimizer.r#type);
    let defaults = objective.into_iter().flat_map(|info| info.options).map(|o| (o.name, o.default));
    let optimizer_options = optimizer.into_iter().flat_map(|info| info.options).map(|o| (o.name, o.default));
    let rows = data.train_facts.iter().chain(&data.eval_facts);
    let rollout = stage.planned_rollout();
    let steps_per_round = rollout.as_ref().map_or(1, |rollout| rollout.passes * rollout.mini_batches);
    let n_prompts: u64 = data.train_facts.iter().map(|facts| facts.rows).sum();
    // A stage on rows and samples has about as many tokens in one as in the other.
    let rollout = rollout.filter(|_| stage.credit() != Some(Credit::Divergence));
    let limit = stage.completion_limit().unwrap_or(0);
    let n_sampled = rollout.as_ref().map_or(0, |rollout| n_prompts * rollout.n * limit * rollout.passes);
    let renders =
        rows.into_iter().any(|facts| facts.is_conversation) || stage.eval_tasks().iter().any(|t| is_task(t));
    StageFacts {
        train: data.train_facts.clone(),
        eval: data.eval_facts.clone(),
        ptx: data.ptx_facts.clone(),
        teacher: Vec::new(),
        critic: Vec::new(),
        reference: Vec::new(),
        reward_models: Vec::new(),
        steps_per_epoch: data.steps.steps_per_epoch() * steps_per_round,
        tokens_per_epoch: data.steps.tokens_per_epoch() + n_sampled,
        chat_template: planned_template(stage, data.template.as_ref().filter(|_| renders)),
        trainable_parameters: 0,
        objective: with_defaults(defaults, &objective_options(stage)),
        optimizer: with_defaults(optimizer_options, stage.optimizer.params.values()),
        memory: Vec::<MemoryPart>::new(),
        expected_seconds: 0.0,
    }
}

/// What rounds of sampling cost at the most: every reply as long as it may be.
fn estimate_rounds(
    recipe: &Recipe,
    stage: &StageSection,
    planned: &PlannedStage,
    rollout: PlannedRollout,
    trainer: Trainer,
    tokenizer: &Tokenizer,
    data: &mut StageData,
    surroundings: &Surroundings,
) -> Result<Estimate> {
    check_rollout(&rollout, planned)?;
    build_rewards(&planned.rewards)?;
    if let Some(server) = &planned.server {
        Server::new(server, &rollout, recipe.seed)?;
    }
    let dtype = engine_dtype(recipe.model.dtype);
    let sampler = Sampler::new(tokenizer, data.template.as_ref(), &rollout, recipe.seed, dtype);
    let decoded_per_second = decode_speed(&sampler, &trainer.model, &mut data.steps)?;
    let credit = build_credit(planned, recipe.seed)?;
    let needs_reference =
        trainer.objective().needs().reference_logp || rollout.reward_kl > 0.0 || credit.reads_reference();
    // A second set of weights beside those that train.
    let beside = match ReferenceKind::of(planned, stage, &trainer, &*credit) {
        Some(ReferenceKind::Teacher) => Some(("teacher", teacher_bytes(recipe, stage, surroundings)?)),
        Some(ReferenceKind::Named) => {
            Some(("reference", reference_bytes(recipe, stage, &trainer, surroundings)?))
        }
        Some(ReferenceKind::Frozen) => Some(("reference", trainer.model.weight_bytes())),
        Some(ReferenceKind::WithoutAdapter) | None => None,
    };
    check_is_read(planned, needs_reference || credit.samples_reference())?;
    let critic = critic_bytes(recipe, stage, planned, tokenizer, surroundings)?;
    let passes = rollout.passes as f64;
    let mut rounds = LongestRounds {
        prompts: &mut data.steps,
        ptx: data.ptx.as_mut(),
        credit: &*credit,
        rollout: PlannedRollout { max_new_tokens: planned.completion_limit(), ..rollout },
        tokens_per_micro_batch: planned.train.tokens_per_micro_batch as usize,
        needs_reference,
    };
    let mut estimate = probe(trainer, &mut rounds, &[])?;
    if let Some((part, bytes)) = beside {
        estimate.memory.push(MemoryPart { part: part.to_owned(), bytes: bytes as u64 });
    }
    // Seconds of a token that is sampled once and trained on in every pass, by a critic too, which says values before.
    let forward = if needs_reference { 1.0 / 3.0 } else { 0.0 };
    let of_critic = if critic.is_some() { passes + 1.0 / 3.0 } else { 0.0 };
    if let Some(bytes) = critic {
        estimate.memory.push(MemoryPart { part: "critic".to_owned(), bytes: bytes as u64 });
    }
    let trained = (passes + forward + of_critic) / estimate.tokens_per_second;
    estimate.tokens_per_second = passes / (trained + 1.0 / decoded_per_second);
    Ok(estimate)
}

/// What steps on rows cost beside a teacher, with the samples that stand in some rows' place.
fn estimate_distilled(
    recipe: &Recipe,
    stage: &StageSection,
    planned: &PlannedStage,
    trainer: Trainer,
    tokenizer: &Tokenizer,
    data: &mut StageData,
    surroundings: &Surroundings,
) -> Result<Estimate> {
    let on_policy = on_policy(planned);
    check_rows(planned, on_policy)?;
    let bytes = teacher_bytes(recipe, stage, surroundings)?;
    let trainer = with_teacher(trainer, recipe, stage, tokenizer, surroundings)?;
    let share_sampled = if on_policy.seq_kd { 1.0 } else { on_policy.lmbda };
    let seconds_per_sampled = match planned.rollout.as_ref().filter(|_| share_sampled > 0.0) {
        Some(rollout) => {
            let dtype = engine_dtype(recipe.model.dtype);
            let sampler = Sampler::new(tokenizer, data.template.as_ref(), rollout, recipe.seed, dtype);
            1.0 / decode_speed(&sampler, &trainer.model, &mut data.steps)?
        }
        None => 0.0,
    };
    let mut estimate = probe(trainer, &mut data.steps, &data.eval)?;
    estimate.memory.push(MemoryPart { part: "teacher".to_owned(), bytes: bytes as u64 });
    estimate.tokens_per_second =
        1.0 / (1.0 / estimate.tokens_per_second + share_sampled * seconds_per_sampled);
    Ok(estimate)
}

/// What a stage's critic takes in memory: weights, gradients and the optimiser's state.
fn critic_bytes(
    recipe: &Recipe,
    stage: &StageSection,
    planned: &PlannedStage,
    tokenizer: &Tokenizer,
    surroundings: &Surroundings,
) -> Result<Option<usize>> {
    let model = match stage.ppo.critic.as_deref() {
        None => return Ok(None),
        Some(POLICY) => load_base(recipe, tokenizer, surroundings)?,
        Some(name) => load_critic(name, recipe, tokenizer, surroundings)?,
    };
    let critic = critic_trainer(model, recipe, stage, planned_schedule(&planned.schedule, planned.steps)?)?;
    let trained = critic.model.params.iter().filter(|(_, param)| param.trainable);
    let gradients: usize = trained.map(|(_, param)| param.len() * 4).sum();
    Ok(Some(critic.model.weight_bytes() + gradients + critic.state_bytes()))
}

/// What a stage's teacher takes in memory.
fn teacher_bytes(recipe: &Recipe, stage: &StageSection, surroundings: &Surroundings) -> Result<usize> {
    let name = stage.distillation.teacher.as_deref().expect("a distillation stage names its teacher");
    named_bytes(name, recipe, surroundings)
}

/// What the stage's reference takes in memory: the model it names, or as much as the one that trains.
fn reference_bytes(
    recipe: &Recipe,
    stage: &StageSection,
    trainer: &Trainer,
    surroundings: &Surroundings,
) -> Result<usize> {
    match stage.reference.model.as_deref() {
        Some(name) => named_bytes(name, recipe, surroundings),
        None => Ok(trainer.model.weight_bytes()),
    }
}

struct StageEstimate {
    estimate: Estimate,
    trainable_parameters: u64,
}

fn estimate(
    recipe: &Recipe,
    stage: &StageSection,
    draft: &Plan,
    index: usize,
    tokenizer: &Tokenizer,
    data: &mut StageData,
    surroundings: &Surroundings,
) -> Result<StageEstimate> {
    let mut model = load_base(recipe, tokenizer, surroundings)?;
    prepare_model(&mut model, recipe, stage)?;
    let trained = model.params.iter().filter(|(_, param)| param.trainable);
    let trainable_parameters = trained.map(|(_, param)| param.len() as u64).sum();
    let planned = &draft.stages[index];
    let schedule = planned_schedule(&planned.schedule, planned.steps)?;
    let trainer = stage_trainer(model, recipe, stage, schedule)?;
    let needs_reference = trainer.objective().needs().reference_logp;
    if let Some(Credit::Divergence) = stage.credit() {
        let estimate = estimate_distilled(recipe, stage, planned, trainer, tokenizer, data, surroundings)?;
        return Ok(StageEstimate { estimate, trainable_parameters });
    }
    if let Some(rollout) = planned.rollout.clone() {
        let estimate =
            estimate_rounds(recipe, stage, planned, rollout, trainer, tokenizer, data, surroundings)?;
        return Ok(StageEstimate { estimate, trainable_parameters });
    }
    check_is_read(planned, needs_reference)?;
    if needs_reference {
        fill_with_zeros(data);
    }
    let beside = match &planned.reference {
        Some(_) => Some(reference_bytes(recipe, stage, &trainer, surroundings)?),
        None => None,
    };
    let mut estimate = probe(trainer, &mut data.steps, &data.eval)?;
    if let Some(bytes) = beside {
        estimate.memory.push(MemoryPart { part: "reference".to_owned(), bytes: bytes as u64 });
    }
    if needs_reference {
        // The reference is one forward pass over all rows: a third of a training step.
        let (once, all) = (data.steps.tokens_per_epoch() as f64, planned.tokens as f64);
        estimate.tokens_per_second /= 1.0 + once / 3.0 / all.max(1.0);
    }
    pt_kernels::buffer::release_idle();
    pt_kernels::buffer::reset_peak();
    Ok(StageEstimate { estimate, trainable_parameters })
}
