//! Carrying out a plan: every stage trained, measured, and written as a model.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pt_core::atomic_file;
use pt_models::Model;
use pt_recipe::{AnyStage, Plan, PlannedStage, PlannedWork, Recipe, RowKind, stage_of};
use pt_run::{CheckpointStore, Event, RunFolder, StageFolder};
use pt_text::{ChatTemplate, Tokenizer};
use pt_train::{Outcome, Recorder, Trainer, Watcher, fit, resume};

use crate::distil::with_teacher;
use crate::error::{PipelineError, Result};
use crate::fitting::{LastEval, loop_options, restore_best, retention};
use crate::folder::open_folder;
use crate::graph::{self, model_folder};
use crate::kinds::{Work, kind_named};
use crate::model::{engine_dtype, load_base, load_model, writes_scorer};
use crate::output::{merge, name_pad_token, write_model};
use crate::prepare::{Prepared, catalogue, prepare_stages};
use crate::probe::flops_per_token;
use crate::report::{StageReport, TaskGain};
use crate::reuse;
use crate::reward_report::report_rewards;
use crate::rl::environment::Stage as Environment;
use crate::source::Surroundings;
use crate::stage::{StageData, planned_schedule, prepare_model, stage_trainer};
use crate::stage_steps::{Made, Making};
use crate::tasks::{TaskOptions, TaskScore, measure};

/// Where a run goes.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The run folder.
    pub out: PathBuf,
    /// Continue the run that is there.
    pub resume: bool,
    /// Runs whose complete stages may be taken over where they are the same.
    pub reuse: Vec<PathBuf>,
}

/// Sees what happens; can change nothing.
pub trait Watch: Watcher {
    /// A stage begins, or goes on after `steps_done` steps; its steps take `flops_per_token` in matrix products.
    fn stage_begun(&mut self, stage: &PlannedStage, steps_done: u64, flops_per_token: f64);
    /// Tasks are being measured: before or after training.
    fn measuring(&mut self, stage: &PlannedStage, when: &'static str);
    /// A stage is complete.
    fn stage_ended(&mut self, stage: &PlannedStage, report: &StageReport);
    /// A stage that trains nothing begins, or goes on.
    fn work_begun(&mut self, _stage: &PlannedWork) {}
    /// How far that stage is; `what` it is doing is said when that is new, and empty otherwise.
    fn work_progress(&mut self, _stage: &str, _what: &str, _done: usize, _of: usize) {}
    /// That stage is complete; or one that trains was complete before it was planned in full.
    fn work_ended(&mut self, _stage: &PlannedWork, _report: &StageReport) {}
    /// Something a person should know.
    fn note(&mut self, message: &str);
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

/// Runs, or resumes, a prepared recipe. `stop` is looked at between steps and between measurements.
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
    let mut runner = Runner {
        recipe,
        plan,
        plan_hash,
        shared_tokenizer: tokenizer.clone(),
        tokenizer: &tokenizer,
        surroundings,
        folder,
        reuse: options.reuse.clone(),
    };
    let mut reports = Vec::new();
    let n_stages = runner.plan.all_stages().len() as u32;
    let mut stages = stages.into_iter();
    for number in 1..=n_stages {
        let end = match runner.plan.others.iter().find(|other| other.number == number).cloned() {
            Some(other) => runner.other(&other, watch, stop)?,
            None => {
                let data = stages.next().expect("data of every stage that trains at once");
                runner.stage(runner.index_of(number), data, watch, stop)?
            }
        };
        match end {
            StageEnd::Complete(report) => reports.push(*report),
            StageEnd::Interrupted { step } => {
                let all = runner.plan.all_stages();
                let stage = all.iter().find(|stage| stage.number() == number).expect("a stage of the plan");
                return Ok(RunOutcome::Interrupted { stage: stage.name().to_owned(), step });
            }
        }
    }
    runner.folder.event(&Event::Finished)?;
    Ok(RunOutcome::Finished(reports))
}

struct Runner<'a> {
    recipe: Recipe,
    plan: Plan,
    plan_hash: String,
    shared_tokenizer: Arc<Tokenizer>,
    tokenizer: &'a Tokenizer,
    surroundings: &'a Surroundings,
    folder: RunFolder,
    reuse: Vec<PathBuf>,
}

/// Whether a stage is complete already.
enum Before {
    /// In this run.
    Here(StageReport),
    /// In another run, from which it was taken over now.
    TakenOver(StageReport),
    No,
}

enum StageEnd {
    Complete(Box<StageReport>),
    Interrupted { step: u64 },
}

/// A stage's model after the last step, the trainer's state gone.
struct Trained {
    model: Model,
    /// Steps whose effect it has.
    steps: u64,
    eval_loss: Option<f64>,
    best_step: Option<u64>,
}

impl<'a> Runner<'a> {
    fn stage(
        &mut self,
        index: usize,
        mut data: StageData,
        watch: &mut dyn Watch,
        stop: &AtomicBool,
    ) -> Result<StageEnd> {
        let planned = self.plan.stages[index].clone();
        let folder = self.folder.stage(planned.number, &planned.name)?;
        let key = graph::stage_key(&self.plan, planned.number, self.tokenizer);
        match self.done_before(&planned.name, &folder, &key, watch)? {
            Before::Here(report) => return Ok(StageEnd::Complete(Box::new(report))),
            Before::TakenOver(report) => {
                watch.stage_ended(&planned, &report);
                return Ok(StageEnd::Complete(Box::new(report)));
            }
            Before::No => {}
        }
        let store = folder.checkpoints(retention(&planned, !data.eval.is_empty()))?;
        if stop.load(Ordering::Relaxed) {
            return self.interrupted(&folder, &store);
        }
        data.notes.iter().for_each(|note| watch.note(note));
        self.folder.event(&Event::StageBegun { stage: folder.label().to_owned() })?;
        let model = self.input_of(index)?;
        let template = data.template.take();
        let before = self.measured(&planned, &folder, "before", &model, template.as_ref(), watch)?;
        if stop.load(Ordering::Relaxed) {
            return self.interrupted(&folder, &store);
        }
        let Some(trained) =
            self.train(index, model, data, template.as_ref(), &folder, &store, watch, stop)?
        else {
            return self.interrupted(&folder, &store);
        };
        let Trained { model, steps, eval_loss, best_step } = trained;
        let after = self.measured(&planned, &folder, "after", &model, template.as_ref(), watch)?;
        let output = self.write_output(index, model, &folder, template.as_ref())?;
        let gains = TaskGain::of_all(&before, &after);
        let report =
            StageReport { key, steps, eval_loss, best_step, gains, output, ..StageReport::default() };
        folder.finish(&report)?;
        self.folder.event(&Event::StageEnded { stage: folder.label().to_owned(), steps })?;
        watch.stage_ended(&planned, &report);
        Ok(StageEnd::Complete(Box::new(report)))
    }

    /// Whether the stage is complete, here or in another run, from which it is then taken over.
    fn done_before(
        &mut self,
        name: &str,
        folder: &StageFolder,
        key: &str,
        watch: &mut dyn Watch,
    ) -> Result<Before> {
        if let Some(report) = folder.outcome()?.and_then(|outcome| serde_json::from_value(outcome).ok()) {
            return Ok(Before::Here(report));
        }
        let Some(found) = reuse::find(&self.reuse, key, graph::model_is_read(&self.plan, name)) else {
            return Ok(Before::No);
        };
        watch.note(&format!("{name}: taken over from {}, where it was carried out", found.run.display()));
        let report = reuse::adopt(&found, &mut self.folder, folder)?;
        folder.finish(&report)?;
        Ok(Before::TakenOver(report))
    }

    /// A stage that trains nothing, or that reads what an earlier one made.
    fn other(&mut self, planned: &PlannedWork, watch: &mut dyn Watch, stop: &AtomicBool) -> Result<StageEnd> {
        let folder = self.folder.stage(planned.number, &planned.name)?;
        let key = graph::stage_key(&self.plan, planned.number, self.tokenizer);
        match self.done_before(&planned.name, &folder, &key, watch)? {
            Before::Here(report) => return Ok(StageEnd::Complete(Box::new(report))),
            Before::TakenOver(report) => {
                watch.work_ended(planned, &report);
                return Ok(StageEnd::Complete(Box::new(report)));
            }
            Before::No => {}
        }
        let Some(kind) = kind_named(&planned.r#type) else {
            return self.stage_planned_now(planned, watch, stop);
        };
        if !stop.load(Ordering::Relaxed) {
            self.folder.event(&Event::StageBegun { stage: folder.label().to_owned() })?;
            watch.work_begun(planned);
            self.find_again(planned, kind.judging_settings(), &folder, watch)?;
            let mut work = Work {
                recipe: &self.recipe,
                plan: &self.plan,
                planned,
                tokenizer: &self.shared_tokenizer,
                surroundings: self.surroundings,
                run: self.folder.root(),
                folder: &folder,
                watch,
                stop,
            };
            let others = &self.recipe.others;
            let section =
                others.iter().find(|other| other.number == planned.number).expect("the recipe's stage");
            if let Some(done) = kind.run(&section.section, &mut work)? {
                let output = done.output.strip_prefix(self.folder.root()).unwrap_or(&done.output).to_owned();
                let report = StageReport { key, output, ..done.report };
                folder.finish(&report)?;
                self.folder.event(&Event::StageEnded { stage: folder.label().to_owned(), steps: 0 })?;
                watch.work_ended(planned, &report);
                return Ok(StageEnd::Complete(Box::new(report)));
            }
        }
        let (stage, reason) = (folder.label().to_owned(), "asked to stop".to_owned());
        self.folder.event(&Event::Interrupted { stage, step: 0, reason })?;
        Ok(StageEnd::Interrupted { step: 0 })
    }

    /// Takes over what another run's stage found where only the settings that judge it differ.
    fn find_again(
        &self,
        planned: &PlannedWork,
        judging: &[&str],
        folder: &StageFolder,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        if judging.is_empty() {
            return Ok(());
        }
        let key = graph::key_without(&self.plan, planned.number, self.tokenizer, judging);
        if let Some(run) = reuse::adopt_found(&self.reuse, &key, folder)? {
            let (name, judging) = (&planned.name, judging.join(", "));
            watch.note(&format!(
                "{name}: what was found is from {}; only {judging} is another",
                run.display()
            ));
        }
        reuse::note_found(folder, &key)
    }

    /// Plans a stage that trains, now that what it reads is there, and carries it out. The plan lies in its folder, too.
    fn stage_planned_now(
        &mut self,
        planned: &PlannedWork,
        watch: &mut dyn Watch,
        stop: &AtomicBool,
    ) -> Result<StageEnd> {
        let in_stage = |source: PipelineError| PipelineError::Stage {
            stage: planned.name.clone(),
            source: Box::new(source),
        };
        let others = &self.recipe.others;
        let other = others.iter().find(|other| other.number == planned.number).expect("the recipe's stage");
        let paths = graph::paths_of(self.folder.root(), &self.plan, other).map_err(in_stage)?;
        let with = |reference: &str| paths.get(reference).cloned().unwrap_or_else(|| reference.to_owned());
        let recipe =
            self.recipe.of_stage(other, &with, &catalogue()).map_err(pt_recipe::RecipeError::from)?;
        let folder = self.folder.stage(planned.number, &planned.name)?;
        let path = folder.root().join("plan.json");
        let known = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Plan>(&text).ok());
        let tokenizer = self.shared_tokenizer.clone();
        let prepared = prepare_stages(recipe, tokenizer, Vec::new(), self.surroundings, known.as_ref());
        let Prepared { mut recipe, mut plan, mut stages, .. } = prepared.map_err(in_stage)?;
        let text = serde_json::to_vec_pretty(&plan).expect("a plan is plain JSON");
        atomic_file::write(&path, &text).map_err(PipelineError::io("write", &path))?;
        let index = self.plan.stages.iter().filter(|stage| stage.number < planned.number).count();
        self.plan.stages.insert(index, plan.stages.remove(0));
        self.recipe.stage.insert(index, recipe.stage.remove(0));
        self.recipe.numbers.insert(index, planned.number);
        self.stage(index, stages.remove(0), watch, stop)
    }

    /// The place of stage `number` among those that train.
    fn index_of(&self, number: u32) -> usize {
        self.plan.stages.iter().position(|stage| stage.number == number).expect("a stage that trains")
    }

    /// Stopped between steps: what is saved is the newest checkpoint, if there is one.
    fn interrupted(&mut self, folder: &StageFolder, store: &CheckpointStore) -> Result<StageEnd> {
        let step = store.steps()?.last().copied().unwrap_or(0);
        let (stage, reason) = (folder.label().to_owned(), "asked to stop".to_owned());
        self.folder.event(&Event::Interrupted { stage, step, reason })?;
        Ok(StageEnd::Interrupted { step })
    }

    /// Takes the stage's remaining steps and puts its best weights in place; `None` if it was asked to stop before.
    fn train(
        &mut self,
        index: usize,
        mut model: Model,
        data: StageData,
        template: Option<&ChatTemplate>,
        folder: &StageFolder,
        store: &CheckpointStore,
        watch: &mut dyn Watch,
        stop: &AtomicBool,
    ) -> Result<Option<Trained>> {
        let (planned, section) = (&self.plan.stages[index].clone(), &self.recipe.stage[index].clone());
        prepare_model(&mut model, &self.recipe, section)?;
        let schedule = planned_schedule(&planned.schedule, planned.steps)?;
        let trainer = stage_trainer(model, &self.recipe, section, schedule)?;
        let mut trainer = with_teacher(trainer, &self.recipe, section, self.tokenizer, self.surroundings)?;
        let Made { mut steps, eval, notes } = self.steps(index, &trainer, data, template, folder)?;
        notes.iter().for_each(|note| watch.note(note));
        let mut recorder = Recorder { run: &mut self.folder, stage: folder, store };
        let n_tokens = resume(&mut trainer, steps.source(), &mut recorder, &self.plan_hash)?;
        steps.forget_after(trainer.steps_done())?;
        watch.stage_begun(planned, trainer.steps_done(), flops_per_token(&trainer.model));
        let options = loop_options(planned, self.plan.seed, &self.plan_hash);
        let mut last_eval = LastEval { inner: watch, loss: None };
        let outcome = match steps.is_halted() {
            // Resumed after an alarm, before the stage was complete.
            true => Outcome::Alarmed { step: trainer.steps_done() },
            false => fit(
                &mut trainer,
                steps.source(),
                &eval,
                &options,
                &mut recorder,
                n_tokens,
                &mut last_eval,
                stop,
            )?,
        };
        let steps_done = match outcome {
            Outcome::Interrupted { .. } => return Ok(None),
            Outcome::Finished => trainer.steps_done(),
            Outcome::Alarmed { step } => step,
            Outcome::BackToStart => {
                trainer.model = self.input_of(index)?;
                prepare_model(&mut trainer.model, &self.recipe, section)?;
                0
            }
        };
        if steps_done < planned.steps {
            steps.set_aside_after(steps_done)?;
            let message = format!("an alarm ended the stage; its model is that of step {steps_done}");
            last_eval.inner.note(&message);
            return Ok(Some(Trained {
                model: trainer.model,
                steps: steps_done,
                eval_loss: None,
                best_step: None,
            }));
        }
        let eval_loss = match last_eval.loss {
            // Resumed after its last step, which was evaluated in the life before.
            None if !eval.is_empty() => Some(trainer.evaluate(&eval)?.loss),
            loss => loss,
        };
        let eval_loss = eval_loss.filter(|loss| loss.is_finite());
        let best_step = restore_best(&mut trainer, store, planned)?;
        if section.stage_type().rows == RowKind::ScoredPairs {
            let dtype = engine_dtype(self.recipe.model.dtype);
            let lines = report_rewards(&trainer.model, &eval, dtype, &folder.eval_dir())?;
            lines.iter().for_each(|line| last_eval.inner.note(line));
        }
        Ok(Some(Trained { model: trainer.model, steps: steps_done, eval_loss, best_step }))
    }

    /// Where the stage's steps come from, and its held-out rows. What is known of tokens before the first step is filled in.
    fn steps<'t>(
        &mut self,
        index: usize,
        trainer: &Trainer,
        data: StageData,
        template: Option<&'t ChatTemplate>,
        folder: &StageFolder,
    ) -> Result<Made<'t>>
    where
        'a: 't,
    {
        let (recipe, planned) = (self.recipe.clone(), self.plan.stages[index].clone());
        let (tokenizer, surroundings, seed) = (self.tokenizer, self.surroundings, self.plan.seed);
        let section = &recipe.stage[index];
        let input = &mut || self.input_of(index);
        let making = Making {
            recipe: &recipe,
            section,
            planned: &planned,
            tokenizer,
            template,
            surroundings,
            folder,
            seed,
            trainer,
            input,
        };
        making.steps(data)
    }

    /// The model a stage starts from, read from disk, so that a resumed run starts from the same bytes.
    fn input_of(&mut self, index: usize) -> Result<Model> {
        let base = stage_of(&self.plan.stages[index].base);
        let Some(folder) = base.and_then(|name| model_folder(self.folder.root(), &self.plan, name)) else {
            return load_base(&self.recipe, self.tokenizer, self.surroundings);
        };
        load_model(&folder, Some(engine_dtype(self.recipe.model.dtype)))
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
        let tasks = &planned.eval.tasks;
        // A reward model answers nothing.
        if tasks.is_empty() || writes_scorer(planned) {
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
            environment: planned
                .environment
                .as_ref()
                .map(|planned| Environment::new(planned).map(Arc::new))
                .transpose()?,
        };
        let scores = tasks.iter().map(|task| measure(task, model, &options)).collect::<Result<Vec<_>>>()?;
        std::fs::create_dir_all(&dir).map_err(PipelineError::io("create", &dir))?;
        let text = serde_json::to_vec_pretty(&scores).expect("scores are JSON");
        atomic_file::write(&path, &text).map_err(PipelineError::io("write", &path))?;
        Ok(scores)
    }

    /// Writes the stage's model or adapter with its tokenizer; returns the folder relative to the run.
    ///
    /// Where a later stage reads an adapter's model, or its base is nowhere on disk, the merged model is written too:
    /// it is what the next stage trains, and the base that the next adapter belongs to.
    fn write_output(
        &self,
        index: usize,
        mut model: Model,
        folder: &StageFolder,
        template: Option<&ChatTemplate>,
    ) -> Result<PathBuf> {
        let template = template.filter(|_| self.recipe.stage[index].data.chat_template.is_some());
        let relative = |dir: &Path| {
            dir.strip_prefix(self.folder.root()).map_or_else(|_| dir.to_owned(), Path::to_path_buf)
        };
        name_pad_token(&mut model, self.tokenizer, template);
        let has_adapter = model.adapter().is_some();
        let base = self.base_of(index);
        if has_adapter {
            write_model(&model, &folder.adapter_dir(), self.tokenizer, template, base.as_deref())?;
            let is_read = graph::model_is_read(&self.plan, &self.plan.stages[index].name);
            if !is_read && base.is_some() {
                return Ok(relative(&folder.adapter_dir()));
            }
            merge(&mut model, engine_dtype(self.recipe.model.dtype))?;
        }
        write_model(&model, &folder.model_dir(), self.tokenizer, template, None)?;
        Ok(relative(&if has_adapter { folder.adapter_dir() } else { folder.model_dir() }))
    }

    /// What an adapter of this stage belongs to: as the recipe names it, or the model of the stage before, seen from
    /// the adapter's folder, so that a run folder can be moved.
    fn base_of(&self, index: usize) -> Option<String> {
        let stage = AnyStage::Training(&self.plan.stages[index]);
        graph::base_folder(&self.plan, &stage).or_else(|| self.recipe.model.base.clone())
    }
}
