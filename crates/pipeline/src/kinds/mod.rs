//! Stages that train nothing: one file per kind, one line in [`KINDS`].
//!
//! A kind is planned before the run begins, which reads and checks all that is there by then, and carried out when its turn
//! comes. What it writes lies in its stage's folder and appears whole or not at all, so that a run that was stopped goes on.
//! Names, documentation and what each makes are in `pt_recipe::WORK_TYPES`.

mod curate;
mod eval;
mod export;
mod feedback;
mod merge;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use pt_recipe::{MODEL, Plan, PlannedFile, PlannedWork, Recipe, Source, StageSection, stage_of};
use pt_run::StageFolder;
use pt_text::Tokenizer;
use serde_json::Value;

use crate::error::{PipelineError, Result};
use crate::graph;
use crate::loaded::Loaded;
use crate::model::{engine_dtype, load_base, locate_model, model_files_at};
use crate::report::StageReport;
use crate::run::Watch;
use crate::source::{Surroundings, source_files};

/// Every kind of stage that trains nothing.
const KINDS: &[&dyn StageKind] =
    &[&curate::Curate, &feedback::Feedback, &eval::Eval, &merge::Merge, &export::Export];

/// The kind called `name`; `None` for stages that train.
pub(crate) fn kind_named(name: &str) -> Option<&'static dyn StageKind> {
    KINDS.iter().find(|kind| kind.name() == name).copied()
}

/// A kind of stage that trains nothing.
pub(crate) trait StageKind: Sync {
    /// The stage's `type`.
    fn name(&self) -> &'static str;

    /// Of its settings, those that judge what it finds and do not change it: where only they differ, what another run found is taken
    /// over, and [`StageKind::run`] goes on from there.
    fn judging_settings(&self) -> &'static [&'static str] {
        &[]
    }

    /// Decides every option, and checks what can be checked before anything has run.
    ///
    /// # Errors
    /// Whatever is wrong with options or with what the stage reads.
    fn plan(&self, section: &StageSection, around: &Around<'_>) -> Result<Planning>;

    /// Carries the stage out; `None` if it was asked to stop. What was done before must not be done again.
    ///
    /// # Errors
    /// Whatever stops it.
    fn run(&self, section: &StageSection, work: &mut Work<'_>) -> Result<Option<Done>>;
}

/// What a kind decides before the run.
#[derive(Default)]
pub(crate) struct Planning {
    /// Every option.
    pub settings: Value,
    /// Files that it reads, hashed.
    pub files: Vec<PlannedFile>,
    /// For people: a word and what it stands for.
    pub summary: Vec<(String, String)>,
}

impl Planning {
    pub fn line(&mut self, key: &str, value: impl Into<String>) {
        self.summary.push((key.to_owned(), value.into()));
    }
}

/// What a stage left.
pub(crate) struct Done {
    /// The folder or file, in the stage's folder.
    pub output: PathBuf,
    /// What it says of itself.
    pub report: StageReport,
}

impl Done {
    /// With what a person should know, a sentence each.
    pub fn new(output: PathBuf, lines: Vec<String>) -> Done {
        Done { output, report: StageReport { lines, ..StageReport::default() } }
    }
}

/// What is known before the run.
pub(crate) struct Around<'a> {
    pub recipe: &'a Recipe,
    pub tokenizer: &'a Tokenizer,
    pub surroundings: &'a Surroundings,
}

impl Around<'_> {
    /// The files of a model that a stage names and no stage makes, hashed; none for the recipe's own, which the plan has.
    ///
    /// # Errors
    /// If it is not there.
    pub fn model_files(&self, written: &str) -> Result<Vec<PlannedFile>> {
        if written == MODEL || stage_of(written).is_some() {
            return Ok(Vec::new());
        }
        model_files_at(locate_model(written, "main", self.surroundings)?)
    }

    /// The files of sources that no stage makes, hashed.
    ///
    /// # Errors
    /// If one is not there.
    pub fn source_files(&self, sources: &[Source]) -> Result<Vec<PlannedFile>> {
        let there = sources.iter().filter(|source| stage_of(&source.source).is_none());
        Ok(there.map(|source| source_files(source, self.surroundings)).collect::<Result<Vec<_>>>()?.concat())
    }
}

/// What a stage is carried out with.
pub(crate) struct Work<'a> {
    pub recipe: &'a Recipe,
    pub plan: &'a Plan,
    pub planned: &'a PlannedWork,
    pub tokenizer: &'a Arc<Tokenizer>,
    pub surroundings: &'a Surroundings,
    /// The run folder.
    pub run: &'a Path,
    pub folder: &'a StageFolder,
    pub watch: &'a mut dyn Watch,
    pub stop: &'a AtomicBool,
}

impl Work<'_> {
    /// Where a model lies that the stage names; `None` if it is the recipe's and made from nothing.
    ///
    /// # Errors
    /// If it is not there.
    pub fn model_folder(&self, written: &str) -> Result<Option<PathBuf>> {
        if stage_of(written).is_some() {
            return graph::path_of(self.run, self.plan, written).map(Some);
        }
        let (name, revision) = match (written == MODEL, &self.recipe.model.base) {
            (true, None) => return Ok(None),
            (true, Some(base)) => (base.as_str(), self.recipe.model.revision.as_str()),
            (false, _) => (written, "main"),
        };
        locate_model(name, revision, self.surroundings).map(Some)
    }

    /// A model that the stage names, with its tokenizer and template.
    ///
    /// # Errors
    /// If it is not there, or cannot be read.
    pub fn load(&self, written: &str) -> Result<Loaded> {
        let dtype = engine_dtype(self.recipe.model.dtype);
        let Some(folder) = self.model_folder(written)? else {
            let model = load_base(self.recipe, self.tokenizer, self.surroundings)?;
            return Loaded::new(model, dtype, self.tokenizer.clone(), None);
        };
        let own = match written == MODEL {
            true => Some(self.tokenizer.clone()),
            false => None,
        };
        Loaded::read(&folder, Some(dtype), own)
    }

    /// An error of this stage.
    pub fn problem(&self, source: impl Into<PipelineError>) -> PipelineError {
        PipelineError::Stage { stage: self.planned.name.clone(), source: Box::new(source.into()) }
    }
}

/// Refuses what was written and is not what it should be.
fn refuse_problems(out: &Path, proof: &pt_export::Proof) -> Result<()> {
    match proof.problems.is_empty() {
        true => Ok(()),
        false => Err(PipelineError::Unsupported {
            what: format!(
                "{} was written and is not what it should be: {}",
                out.display(),
                proof.problems.join("; ")
            ),
            advice: "look at the files, or let more pass".to_owned(),
        }),
    }
}
