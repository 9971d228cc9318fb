//! Carrying out a plan: every stage trained, measured, and written as a model.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use pt_core::atomic_file;
use pt_models::Model;
use pt_recipe::{Plan, PlannedStage, Recipe, RowKind};
use pt_rl::RolloutsFolder;
use pt_run::{CheckpointStore, Event, RunFolder, StageFolder};
use pt_text::{ChatTemplate, Tokenizer};
use pt_train::{MicroBatch, Outcome, Recorder, StepSource, Trainer, Watcher, fit, resume};

use crate::error::{PipelineError, Result};
use crate::fitting::{LastEval, loop_options, restore_best, retention};
use crate::folder::open_folder;
use crate::model::{engine_dtype, language_model_before, load_base, load_model, load_teacher, writes_scorer};
use crate::output::{merge, write_model};
use crate::prepare::Prepared;
use crate::probe::flops_per_token;
use crate::reference;
use crate::report::{StageReport, TaskGain};
use crate::reuse;
use crate::reward_report::report_rewards;
use crate::rl::{Reference, ReferenceKind, Rounds, RoundsOptions, Sampler, build_credit, build_rewards};
use crate::source::Surroundings;
use crate::stage::{StageData, planned_schedule, prepare_model, stage_trainer};
use crate::steps::Steps;
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
        tokenizer: &tokenizer,
        surroundings,
        folder,
        reuse: options.reuse.clone(),
    };
    let mut reports = Vec::new();
    for (index, data) in stages.into_iter().enumerate() {
        match runner.stage(index, data, watch, stop)? {
            StageEnd::Complete(report) => reports.push(report),
            StageEnd::Interrupted { step } => {
                let stage = runner.plan.stages[index].name.clone();
                return Ok(RunOutcome::Interrupted { stage, step });
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
    tokenizer: &'a Tokenizer,
    surroundings: &'a Surroundings,
    folder: RunFolder,
    reuse: Vec<PathBuf>,
}

enum StageEnd {
    Complete(StageReport),
    Interrupted { step: u64 },
}

/// Where a stage's steps come from.
enum StageSteps<'t> {
    Data(Box<Steps>),
    Rounds(Box<Rounds<'t>>),
}

impl StageSteps<'_> {
    fn source(&mut self) -> &mut dyn StepSource {
        match self {
            StageSteps::Data(steps) => &mut **steps,
            StageSteps::Rounds(rounds) => &mut **rounds,
        }
    }

    /// Removes what an earlier life of the run left of later steps.
    fn forget_after(&self, steps_done: u64) -> Result<()> {
        match self {
            StageSteps::Data(_) => Ok(()),
            StageSteps::Rounds(rounds) => rounds.forget_after(steps_done),
        }
    }

    /// Moves what was sampled for later steps out of the way: an alarm undid them.
    fn set_aside_after(&self, steps_done: u64) -> Result<()> {
        match self {
            StageSteps::Data(_) => Ok(()),
            StageSteps::Rounds(rounds) => rounds.set_aside_after(steps_done),
        }
    }

    /// Whether an alarm ended training in the life of the run before.
    fn is_halted(&self) -> bool {
        matches!(self, StageSteps::Rounds(rounds) if rounds.is_halted())
    }
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
        if let Some(report) = folder.outcome()?.and_then(|outcome| serde_json::from_value(outcome).ok()) {
            return Ok(StageEnd::Complete(report));
        }
        let key = reuse::stage_key(&self.plan, index, self.tokenizer);
        let needs_model = index + 1 < self.plan.stages.len();
        if let Some((run, report)) = reuse::find(&self.reuse, &planned, &key, needs_model) {
            watch.note(&format!(
                "{}: taken over from {}, where it was carried out",
                planned.name,
                run.display()
            ));
            reuse::adopt(&run, &mut self.folder, &folder)?;
            folder.finish(&report)?;
            watch.stage_ended(&planned, &report);
            return Ok(StageEnd::Complete(report));
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
        let report = StageReport { key, steps, eval_loss, best_step, gains, output };
        folder.finish(&report)?;
        self.folder.event(&Event::StageEnded { stage: folder.label().to_owned(), steps })?;
        watch.stage_ended(&planned, &report);
        Ok(StageEnd::Complete(report))
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
        let mut trainer = stage_trainer(model, &self.recipe, section, schedule)?;
        let (mut steps, eval) = self.steps(index, &trainer, data, template, folder)?;
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
    fn steps(
        &mut self,
        index: usize,
        trainer: &Trainer,
        mut data: StageData,
        template: Option<&ChatTemplate>,
        folder: &StageFolder,
    ) -> Result<(StageSteps<'a>, Vec<MicroBatch>)> {
        let planned = &self.plan.stages[index];
        let tokens_per_micro_batch = planned.train.tokens_per_micro_batch as usize;
        let Some(rollout) = planned.rollout.clone() else {
            if trainer.objective().needs().reference_logp {
                let identity = format!("{} {}", self.plan_hash, folder.label());
                let path = folder.root().join("reference-logp.bin");
                reference::fill(&mut data, trainer, &identity, path, tokens_per_micro_batch)?;
                reference::check_equal(trainer, &data.steps.micro_batches(0)?)?;
            }
            return Ok((StageSteps::Data(Box::new(data.steps)), data.eval));
        };
        let dtype = engine_dtype(self.recipe.model.dtype);
        let seed = self.plan.seed;
        let rewards = build_rewards(&planned.rewards)?;
        let sampler = Sampler::new(self.tokenizer, template, &rollout, seed, dtype);
        let credit = build_credit(planned, seed)?;
        let section = &self.recipe.stage[index];
        let reference = match ReferenceKind::of(planned, section, trainer, &*credit) {
            None => None,
            Some(ReferenceKind::WithoutAdapter) => Some(Reference::WithoutAdapter),
            Some(ReferenceKind::Teacher) => {
                let teacher = load_teacher(&self.recipe, section, self.surroundings, &trainer.model)?;
                Some(Reference::Frozen(Box::new(teacher)))
            }
            Some(ReferenceKind::Frozen) => Some(Reference::Frozen(Box::new(self.frozen_input(index)?))),
        };
        let rollouts = RolloutsFolder::open(folder.rollouts_dir(), true)?;
        let options = RoundsOptions { rollout, tokens_per_micro_batch, dtype, seed };
        let rounds = Rounds::new(
            data.steps,
            data.records,
            sampler,
            rewards,
            reference,
            credit,
            data.ptx,
            rollouts,
            options,
        )?;
        Ok((StageSteps::Rounds(Box::new(rounds)), data.eval))
    }

    /// The model a stage starts from, once more, prepared as the one that trains.
    fn frozen_input(&mut self, index: usize) -> Result<Model> {
        let mut model = self.input_of(index)?;
        prepare_model(&mut model, &self.recipe, &self.recipe.stage[index])?;
        model.freeze();
        Ok(model)
    }

    /// The model a stage starts from, read from disk, so that a resumed run starts from the same bytes: the base, or
    /// what the last stage before wrote that is a language model.
    fn input_of(&mut self, index: usize) -> Result<Model> {
        let Some(before) = language_model_before(&self.plan, index) else {
            return load_base(&self.recipe, self.tokenizer, self.surroundings);
        };
        let planned = &self.plan.stages[before];
        let folder = self.folder.stage(planned.number, &planned.name)?;
        load_model(&folder.model_dir(), Some(engine_dtype(self.recipe.model.dtype)))
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
        };
        let scores = tasks.iter().map(|task| measure(task, model, &options)).collect::<Result<Vec<_>>>()?;
        std::fs::create_dir_all(&dir).map_err(PipelineError::io("create", &dir))?;
        let text = serde_json::to_vec_pretty(&scores).expect("scores are JSON");
        atomic_file::write(&path, &text).map_err(PipelineError::io("write", &path))?;
        Ok(scores)
    }

    /// Writes the stage's model or adapter with its tokenizer; returns the folder relative to the run.
    ///
    /// Where a later stage starts from an adapter, or its base is nowhere on disk, the merged model is written too:
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
        let has_adapter = model.adapter().is_some();
        let base = self.base_of(index);
        if has_adapter {
            write_model(&model, &folder.adapter_dir(), self.tokenizer, template, base.as_deref())?;
            let is_last = index + 1 == self.plan.stages.len();
            if is_last && base.is_some() {
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
        match language_model_before(&self.plan, index) {
            None => self.recipe.model.base.clone(),
            Some(before) => Some(format!("../../{}/model", Plan::stage_label(&self.plan.stages[before]))),
        }
    }
}
