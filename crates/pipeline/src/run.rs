//! Carrying out a plan: every stage trained, measured, and written as a model.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use pt_core::atomic_file;
use pt_engine::Profile;
use pt_models::{Model, ModelError, SaveOptions};
use pt_recipe::{Method, Plan, PlannedStage, Recipe, StageSection};
use pt_run::{BestBy, CheckpointStore, Event, Retention, RunFolder, StageFolder};
use pt_tasks::paired_gain;
use pt_tasks::stats::Gain;
use pt_text::{ChatTemplate, Tokenizer};
use pt_train::{EvalStats, LoopOptions, Outcome, Recorder, StepStats, Trainer, Watcher, fit, resume};
use serde::{Deserialize, Serialize};

use crate::error::{PipelineError, Result};
use crate::model::{engine_dtype, load_base, load_model};
use crate::prepare::Prepared;
use crate::probe::flops_per_token;
use crate::source::Surroundings;
use crate::stage::{StageData, planned_schedule, prepare_model, quantise_model, stage_trainer};
use crate::tasks::{TaskOptions, TaskScore, is_task, measure};

/// Where a run goes.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The run folder.
    pub out: PathBuf,
    /// Continue the run that is there.
    pub resume: bool,
}

/// Sees what happens; can change nothing.
pub trait Watch: Watcher {
    /// A stage begins, or goes on after `steps_done` steps; its steps take `flops_per_token` in matrix products.
    fn stage_begun(&mut self, stage: &PlannedStage, steps_done: u64, flops_per_token: f64);
    /// Tasks are being measured: before or after training.
    fn measuring(&mut self, stage: &PlannedStage, when: &'static str);
    /// A stage is complete.
    fn stage_ended(&mut self, stage: &PlannedStage, report: &StageReport);
    /// Something a person should know.
    fn note(&mut self, message: &str);
}

/// What a stage did; also its `outcome.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// Steps taken.
    pub steps: u64,
    /// Held-out loss at the end, where there are held-out rows.
    pub eval_loss: Option<f64>,
    /// The step whose weights were written, where it is not the last.
    pub best_step: Option<u64>,
    /// Gains on tasks.
    pub gains: Vec<TaskGain>,
    /// Folder of the model or adapter, relative to the run.
    pub output: PathBuf,
}

/// A task before and after a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskGain {
    /// The task.
    pub task: String,
    /// Number of problems.
    pub n: usize,
    /// Share solved before.
    pub before: f64,
    /// Share solved after.
    pub after: f64,
    /// After minus before.
    pub difference: f64,
    /// Its 95 % interval, paired (Newcombe 1998, method 10).
    pub interval95: (f64, f64),
    /// Exact McNemar test.
    pub p_value: f64,
}

impl TaskGain {
    fn new(task: &str, gain: &Gain) -> TaskGain {
        TaskGain {
            task: task.to_owned(),
            n: gain.n,
            before: gain.before_mean,
            after: gain.after_mean,
            difference: gain.difference,
            interval95: gain.interval95,
            p_value: gain.p_value,
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum RunOutcome {
    /// Every stage is complete.
    Finished(Vec<StageReport>),
    /// Asked to stop; it can be resumed.
    Interrupted {
        /// The stage that was running.
        stage: String,
        /// Its steps done and saved.
        step: u64,
    },
}

/// Runs, or resumes, a prepared recipe.
///
/// # Errors
/// Whatever stops a stage. What was saved before remains, and `resume` goes on from it.
pub fn run(
    prepared: Prepared,
    options: &RunOptions,
    surroundings: &Surroundings,
    watch: &mut dyn Watch,
    stop: &AtomicBool,
) -> Result<RunOutcome> {
    let folder = open_folder(&prepared.plan, options)?;
    let Prepared { recipe, plan, tokenizer, stages } = prepared;
    let plan_hash = plan.hash();
    let mut runner = Runner { recipe, plan, plan_hash, tokenizer: &tokenizer, surroundings, folder };
    let mut reports = Vec::new();
    let mut model: Option<Model> = None;
    for (index, data) in stages.into_iter().enumerate() {
        match runner.stage(index, data, model.take(), watch, stop)? {
            StageEnd::Complete { report, model: trained } => {
                reports.push(report);
                model = trained;
            }
            StageEnd::Interrupted { step } => {
                let stage = runner.plan.stages[index].name.clone();
                return Ok(RunOutcome::Interrupted { stage, step });
            }
        }
    }
    runner.folder.event(&Event::Finished)?;
    Ok(RunOutcome::Finished(reports))
}

fn open_folder(plan: &Plan, options: &RunOptions) -> Result<RunFolder> {
    let exists = options.out.join("plan.json").exists();
    if exists && !options.resume {
        return Err(PipelineError::RunExists { path: options.out.clone() });
    }
    if exists {
        return Ok(RunFolder::open(&options.out)?);
    }
    let mut folder = RunFolder::create(&options.out, plan)?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    folder.event(&Event::Started { version, plan_hash: plan.hash() })?;
    Ok(folder)
}

struct Runner<'a> {
    recipe: Recipe,
    plan: Plan,
    plan_hash: String,
    tokenizer: &'a Tokenizer,
    surroundings: &'a Surroundings,
    folder: RunFolder,
}

enum StageEnd {
    Complete {
        report: StageReport,
        /// The trained model, unless the stage was complete already.
        model: Option<Model>,
    },
    Interrupted {
        step: u64,
    },
}

impl Runner<'_> {
    fn stage(
        &mut self,
        index: usize,
        mut data: StageData,
        previous: Option<Model>,
        watch: &mut dyn Watch,
        stop: &AtomicBool,
    ) -> Result<StageEnd> {
        let planned = self.plan.stages[index].clone();
        let section = self.recipe.stage[index].clone();
        let stage_folder = self.folder.stage(planned.number, &planned.name)?;
        if let Some(outcome) = stage_folder.outcome()? {
            if let Ok(report) = serde_json::from_value::<StageReport>(outcome) {
                return Ok(StageEnd::Complete { report, model: None });
            }
        }
        data.notes.iter().for_each(|note| watch.note(note));
        self.folder.event(&Event::StageBegun { stage: stage_folder.label().to_owned() })?;
        let mut model = match previous {
            Some(model) => model,
            None => self.input_of(index)?,
        };
        let before =
            self.measured(&planned, &stage_folder, "before", &model, data.template.as_ref(), watch)?;
        prepare_model(&mut model, &self.recipe, &section)?;
        let schedule = planned_schedule(&planned.schedule, planned.steps)?;
        let mut trainer = stage_trainer(model, &self.recipe, &section, schedule)?;
        let store = stage_folder.checkpoints(retention(&planned, !data.eval.is_empty()))?;
        let mut recorder = Recorder { run: &mut self.folder, stage: &stage_folder, store: &store };
        let n_tokens = resume(&mut trainer, &mut recorder, &self.plan_hash)?;
        watch.stage_begun(&planned, trainer.steps_done(), flops_per_token(&trainer.model));
        let options = loop_options(&planned, &self.plan, &self.plan_hash);
        let mut last_eval = LastEval { inner: watch, loss: None };
        let outcome = fit(
            &mut trainer,
            &mut data.steps,
            &data.eval,
            &options,
            &mut recorder,
            n_tokens,
            &mut last_eval,
            stop,
        )?;
        let eval_loss = last_eval.loss;
        if let Outcome::Interrupted { step } = outcome {
            return Ok(StageEnd::Interrupted { step });
        }
        let best_step = restore_best(&mut trainer, &store, &planned)?;
        let after =
            self.measured(&planned, &stage_folder, "after", &trainer.model, data.template.as_ref(), watch)?;
        let output = self.write_output(&trainer.model, &section, &stage_folder, data.template.as_ref())?;
        let gains = before
            .iter()
            .zip(&after)
            .map(|(b, a)| TaskGain::new(&a.task, &paired_gain(&b.passed(), &a.passed())));
        let report =
            StageReport { steps: planned.steps, eval_loss, best_step, gains: gains.collect(), output };
        stage_folder.finish(&report)?;
        self.folder
            .event(&Event::StageEnded { stage: stage_folder.label().to_owned(), steps: planned.steps })?;
        watch.stage_ended(&planned, &report);
        // What comes next starts from what was written, so that a resumed run continues from the same bytes.
        let is_full = planned.train.method == Method::Full;
        let mut model = trainer.model;
        model.freeze();
        Ok(StageEnd::Complete { report, model: Some(model).filter(|_| is_full) })
    }

    /// The model a stage starts from, read from disk: the base, or what the stage before wrote.
    fn input_of(&mut self, index: usize) -> Result<Model> {
        let Some(before) = index.checked_sub(1) else {
            return load_base(&self.recipe, self.tokenizer, self.surroundings);
        };
        let planned = self.plan.stages[before].clone();
        let folder = self.folder.stage(planned.number, &planned.name)?;
        let dtype = engine_dtype(self.recipe.model.dtype);
        if planned.train.method == Method::Full {
            return load_model(&folder.model_dir(), Some(dtype));
        }
        let mut model = self.input_of(before)?;
        // An adapter is merged into the values it was trained beside: those of the quantised weights, if they were.
        quantise_model(&mut model, &self.recipe.stage[before])?;
        model.attach_peft(&folder.adapter_dir())?;
        model.merge_adapter(dtype)?;
        model.freeze();
        Ok(model)
    }

    /// Task scores, measured once and kept in the stage's folder.
    fn measured(
        &self,
        planned: &PlannedStage,
        stage_folder: &StageFolder,
        when: &'static str,
        model: &Model,
        template: Option<&ChatTemplate>,
        watch: &mut dyn Watch,
    ) -> Result<Vec<TaskScore>> {
        let tasks: Vec<&String> = planned.eval.tasks.iter().filter(|task| is_task(task)).collect();
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let dir = stage_folder.eval_dir();
        let path = dir.join(format!("tasks-{when}.json"));
        if let Some(scores) = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
            return Ok(scores);
        }
        watch.measuring(planned, when);
        let options = TaskOptions {
            tokenizer: self.tokenizer,
            template,
            n: planned.eval.n as usize,
            max_new_tokens: planned.eval.max_new_tokens as usize,
            temperature: planned.eval.temperature,
            seed: self.plan.seed,
            dtype: engine_dtype(self.recipe.model.dtype),
        };
        let scores = tasks.iter().map(|task| measure(task, model, &options)).collect::<Result<Vec<_>>>()?;
        std::fs::create_dir_all(&dir).map_err(PipelineError::io("create", &dir))?;
        let text = serde_json::to_vec_pretty(&scores).expect("scores are JSON");
        atomic_file::write(&path, &text).map_err(PipelineError::io("write", &path))?;
        Ok(scores)
    }

    /// Writes the stage's model or adapter with its tokenizer; returns the folder relative to the run.
    fn write_output(
        &self,
        model: &Model,
        section: &StageSection,
        stage_folder: &StageFolder,
        template: Option<&ChatTemplate>,
    ) -> Result<PathBuf> {
        let template = template.filter(|_| section.data.chat_template.is_some());
        let dir =
            if model.adapter().is_some() { stage_folder.adapter_dir() } else { stage_folder.model_dir() };
        write_model(model, &dir, self.tokenizer, template, self.recipe.model.base.as_deref())?;
        let root = self.folder.root();
        Ok(dir.strip_prefix(root).map_or_else(|_| dir.clone(), Path::to_path_buf))
    }
}

/// Publishes a model (or the adapter attached to it) and its tokenizer as one folder; `template` replaces the tokenizer's
/// own, so that the written model renders as it was trained.
///
/// # Errors
/// Those of the file system.
pub fn write_model(
    model: &Model,
    dir: &Path,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    base: Option<&str>,
) -> Result<()> {
    let save_text = |folder: &Path| {
        tokenizer.save(folder).map_err(|error| ModelError::State { problem: error.to_string() })?;
        let Some(template) = template else { return Ok(()) };
        let path = folder.join("chat_template.jinja");
        atomic_file::write(&path, template.source().as_bytes()).map_err(|error| ModelError::State {
            problem: format!("cannot write {}: {error}", path.display()),
        })
    };
    if model.adapter().is_some() {
        return Ok(atomic_file::publish_dir(dir, |folder| {
            model.save_peft(folder, base)?;
            save_text(folder)
        })?);
    }
    Ok(pt_models::save(model, dir, &SaveOptions::default(), save_text)?)
}

/// The metric that decides which checkpoint is best.
const EVAL_LOSS: &str = "eval_loss";

fn retention(planned: &PlannedStage, has_eval: bool) -> Retention {
    let best = BestBy { metric: EVAL_LOSS.to_owned(), higher_is_better: false };
    Retention {
        keep_last: planned.train.keep_last as usize,
        best: Some(best).filter(|_| has_eval && planned.train.keep_best),
    }
}

fn loop_options(planned: &PlannedStage, plan: &Plan, plan_hash: &str) -> LoopOptions {
    LoopOptions {
        steps: planned.steps,
        log_every: planned.train.log_every,
        eval_every: planned.train.eval_every,
        save_every: planned.train.save_every,
        seed: plan.seed,
        plan_hash: plan_hash.to_owned(),
    }
}

/// Puts the best checkpoint's weights in place; returns its step if it is not the last.
fn restore_best(
    trainer: &mut Trainer,
    store: &CheckpointStore,
    planned: &PlannedStage,
) -> Result<Option<u64>> {
    let Some(best) = store.best_step()?.filter(|&best| best != planned.steps) else { return Ok(None) };
    let mut checkpoint = CheckpointStore::load(&store.path_of(best))?;
    trainer.import_params(&mut checkpoint)?;
    Ok(Some(best))
}

/// Remembers the last held-out loss on its way to the watcher.
struct LastEval<'w> {
    inner: &'w mut dyn Watch,
    loss: Option<f64>,
}

impl Watcher for LastEval<'_> {
    fn step(&mut self, steps_done: u64, stats: &StepStats, profile: &Profile, elapsed_s: f64) {
        self.inner.step(steps_done, stats, profile, elapsed_s);
    }

    fn eval(&mut self, steps_done: u64, stats: &EvalStats) {
        self.loss = Some(stats.loss);
        self.inner.eval(steps_done, stats);
    }

    fn saved(&mut self, steps_done: u64) {
        self.inner.saved(steps_done);
    }
}
