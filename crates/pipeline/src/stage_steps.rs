//! Where a training stage's steps come from, by what it learns from: rows, rows with a reference, rows and a teacher, or its own samples.

use std::path::Path;
use std::sync::Arc;

use pt_models::Model;
use pt_recipe::{Credit, PlannedOnPolicy, PlannedRollout, PlannedStage, Recipe, StageSection};
use pt_rl::RolloutsFolder;
use pt_run::StageFolder;
use pt_text::{ChatTemplate, Tokenizer};
use pt_train::{FollowingReference, MicroBatch, StepSource, Trainer};

use crate::distil::Distilled;
use crate::error::Result;
use crate::model::{engine_dtype, load_teacher};
use crate::reference::{self, Following, POLICY, Rows, Scoring, load_critic, load_named};
use crate::rl::environment::Stage as Environment;
use crate::rl::server::{Reload, Server};
use crate::rl::{
    Reference, ReferenceKind, Rounds, RoundsOptions, Sampler, build_credit, build_rewards, values_of_critic,
};
use crate::source::Surroundings;
use crate::stage::{StageData, planned_schedule, prepare_model};
use crate::trainable::critic_trainer;

/// Where a stage's steps come from.
pub(crate) enum StageSteps<'t> {
    Source(Box<dyn StepSource + 't>),
    Rounds(Box<Rounds<'t>>),
}

impl<'t> StageSteps<'t> {
    pub(crate) fn source(&mut self) -> &mut (dyn StepSource + 't) {
        match self {
            StageSteps::Source(steps) => &mut **steps,
            StageSteps::Rounds(rounds) => &mut **rounds,
        }
    }

    /// Removes what an earlier life of the run left of later steps.
    pub(crate) fn forget_after(&self, steps_done: u64) -> Result<()> {
        match self {
            StageSteps::Source(_) => Ok(()),
            StageSteps::Rounds(rounds) => rounds.forget_after(steps_done),
        }
    }

    /// Moves what was sampled for later steps out of the way: an alarm undid them.
    pub(crate) fn set_aside_after(&self, steps_done: u64) -> Result<()> {
        match self {
            StageSteps::Source(_) => Ok(()),
            StageSteps::Rounds(rounds) => rounds.set_aside_after(steps_done),
        }
    }

    /// Whether an alarm ended training in the life of the run before.
    pub(crate) fn is_halted(&self) -> bool {
        matches!(self, StageSteps::Rounds(rounds) if rounds.is_halted())
    }
}

/// A stage's steps, its held-out rows, and what a person should know.
pub(crate) struct Made<'t> {
    pub(crate) steps: StageSteps<'t>,
    pub(crate) eval: Vec<MicroBatch>,
    pub(crate) notes: Vec<String>,
}

/// What a stage's steps are made with.
pub(crate) struct Making<'m, 't> {
    pub(crate) recipe: &'m Recipe,
    pub(crate) section: &'m StageSection,
    pub(crate) planned: &'m PlannedStage,
    pub(crate) tokenizer: &'t Tokenizer,
    pub(crate) template: Option<&'t ChatTemplate>,
    pub(crate) surroundings: &'m Surroundings,
    pub(crate) folder: &'m StageFolder,
    pub(crate) seed: u64,
    /// The trainer at step 0.
    pub(crate) trainer: &'m Trainer,
    /// Reads the model that the stage begins with once more.
    pub(crate) input: &'m mut dyn FnMut() -> Result<Model>,
}

impl<'t> Making<'_, 't> {
    /// The stage's steps. What is known of tokens before the first step is filled in.
    ///
    /// # Errors
    /// Models that cannot be read, a policy that is not its reference.
    pub(crate) fn steps(mut self, data: StageData) -> Result<Made<'t>> {
        match (self.planned.rollout.clone(), self.section.credit()) {
            (Some(rollout), Some(Credit::Divergence)) => self.distilled(data, &rollout),
            (Some(rollout), _) => self.rounds(data, rollout),
            (None, _) if self.trainer.objective().needs().reference_logp => self.compared(data),
            (None, _) => Ok(plain(Box::new(data.steps), data.eval, Vec::new())),
        }
    }

    fn tokens_per_micro_batch(&self) -> usize {
        self.planned.train.tokens_per_micro_batch as usize
    }

    /// Rows that are compared with a reference.
    fn compared(&mut self, mut data: StageData) -> Result<Made<'t>> {
        let own = self.folder.root().join(reference::FOLDER);
        let shared = self.surroundings.cache_dir.as_ref().map(|dir| dir.join(reference::FOLDER));
        let (dir, n) = (shared.unwrap_or(own), self.tokens_per_micro_batch());
        let trainer = self.trainer;
        let other = self.other_reference()?;
        let Some(sync) = reference::sync_of(self.planned) else {
            let notes = match &other {
                Some(other) => {
                    reference::fill_other(&mut data, Rows::All, of_model(other, trainer), &dir, n)?
                }
                None => reference::fill_own(&mut data, trainer, &dir, n)?,
            };
            return Ok(plain(Box::new(data.steps), data.eval, notes));
        };
        let is_own = other.is_none();
        let model = self.prepared(other)?;
        let notes = self.held_out(&mut data, &model, &dir)?;
        let mut following =
            Following::new(data.steps, FollowingReference::new(model, &trainer.model, sync)?, trainer);
        if is_own {
            reference::check_equal(trainer, &following.micro_batches(0)?)?;
        }
        Ok(plain(Box::new(following), data.eval, notes))
    }

    fn held_out(&self, data: &mut StageData, model: &Model, dir: &Path) -> Result<Vec<String>> {
        let scoring = of_model(model, self.trainer);
        reference::fill_other(data, Rows::HeldOut, scoring, dir, self.tokens_per_micro_batch())
    }

    /// The model that the stage names as its reference.
    fn other_reference(&self) -> Result<Option<Model>> {
        let name = self.planned.reference.as_ref().and_then(|reference| reference.model.as_deref());
        let load = |name| load_named("reference", name, self.recipe, self.tokenizer, self.surroundings);
        name.map(load).transpose()
    }

    /// A model made ready as the one that trains: `other`, or the one that the stage begins with.
    fn prepared(&mut self, other: Option<Model>) -> Result<Model> {
        let mut model = match other {
            Some(other) => other,
            None => (self.input)()?,
        };
        prepare_model(&mut model, self.recipe, self.section)?;
        model.freeze();
        Ok(model)
    }

    /// Rows and samples, compared with a teacher.
    fn distilled(&self, data: StageData, rollout: &PlannedRollout) -> Result<Made<'t>> {
        let dtype = engine_dtype(self.recipe.model.dtype);
        let sampler = Sampler::new(self.tokenizer, self.template, rollout, self.seed, dtype);
        let teacher = self.trainer.teacher().expect("the trainer was given the stage's teacher").clone();
        let steps = Distilled::new(
            data.steps,
            sampler,
            teacher,
            on_policy(self.planned),
            self.seed,
            self.tokens_per_micro_batch(),
        );
        Ok(plain(Box::new(steps), data.eval, Vec::new()))
    }

    /// The stage's own samples.
    fn rounds(&mut self, data: StageData, rollout: PlannedRollout) -> Result<Made<'t>> {
        let dtype = engine_dtype(self.recipe.model.dtype);
        let rewards = build_rewards(&self.planned.rewards)?;
        let environment = self.planned.environment.as_ref().map(Environment::new).transpose()?;
        let sampler = Sampler::new(self.tokenizer, self.template, &rollout, self.seed, dtype)
            .with_stage(environment.map(Arc::new));
        let planned_server = self.planned.server.as_ref();
        let server = planned_server.map(|planned| Server::new(planned, &rollout, self.seed)).transpose()?;
        let sampler = sampler.with_server(server.map(Arc::new));
        let reload = planned_server.map(|planned| Reload::new(planned, self.folder.root().join("server")));
        let credit = match self.critic()? {
            Some(critic) => values_of_critic(self.planned, critic)?,
            None => build_credit(self.planned, self.seed)?,
        };
        let kind = ReferenceKind::of(self.planned, self.section, self.trainer, &*credit);
        let reference = kind.map(|kind| self.reference_of(kind)).transpose()?;
        let rollouts = RolloutsFolder::open(self.folder.rollouts_dir(), true)?;
        let tokens_per_micro_batch = self.tokens_per_micro_batch();
        let completion_limit = self.planned.completion_limit();
        let options =
            RoundsOptions { rollout, completion_limit, tokens_per_micro_batch, dtype, seed: self.seed };
        let StageData { steps, records, ptx, eval, .. } = data;
        let rounds =
            Rounds::new(steps, records, sampler, rewards, reference, credit, ptx, rollouts, options)?
                .with_reload(reload);
        Ok(Made { steps: StageSteps::Rounds(Box::new(rounds)), eval, notes: Vec::new() })
    }

    /// The stage's critic, at step 0.
    fn critic(&mut self) -> Result<Option<Trainer>> {
        let Some(critic) = self.planned.ppo.as_ref().and_then(|ppo| ppo.critic.as_ref()) else {
            return Ok(None);
        };
        let model = match critic.model.as_str() {
            POLICY => (self.input)()?,
            name => load_critic(name, self.recipe, self.tokenizer, self.surroundings)?,
        };
        let schedule = planned_schedule(&self.planned.schedule, self.planned.steps)?;
        Ok(Some(critic_trainer(model, self.recipe, self.section, schedule)?))
    }

    fn reference_of(&mut self, kind: ReferenceKind) -> Result<Reference> {
        let model = match kind {
            ReferenceKind::WithoutAdapter => return Ok(Reference::WithoutAdapter),
            ReferenceKind::Teacher => {
                let student = &self.trainer.model;
                load_teacher(self.recipe, self.section, self.tokenizer, self.surroundings, student)?
            }
            ReferenceKind::Named => self.other_reference()?.expect("the stage names its reference"),
            ReferenceKind::Frozen => self.prepared(None)?,
        };
        let Some(sync) = reference::sync_of(self.planned) else {
            return Ok(Reference::Frozen(Box::new(model)));
        };
        let model = if kind == ReferenceKind::Named { self.prepared(Some(model))? } else { model };
        let following = FollowingReference::new(model, &self.trainer.model, sync)?;
        Ok(Reference::Following(Box::new(following)))
    }
}

fn plain<'t>(steps: Box<dyn StepSource + 't>, eval: Vec<MicroBatch>, notes: Vec<String>) -> Made<'t> {
    Made { steps: StageSteps::Source(steps), eval, notes }
}

/// A model that scores as the trainer's does.
fn of_model<'m>(model: &'m Model, trainer: &Trainer) -> Scoring<'m> {
    let Scoring { dtype, temperature, .. } = reference::of_trainer(trainer);
    Scoring { model, dtype, temperature }
}

/// On which sequences the student of a planned stage is compared with its teacher.
///
/// # Panics
/// If the stage has no teacher of this kind.
pub(crate) fn on_policy(planned: &PlannedStage) -> PlannedOnPolicy {
    let distillation = planned.distillation.as_ref().expect("a distillation stage names its teacher");
    distillation.on_policy.expect("a stage on rows and samples says on which")
}
