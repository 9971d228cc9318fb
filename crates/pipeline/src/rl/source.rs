//! Rounds of sampling as steps of training.

use std::collections::BTreeMap;

use pt_core::rng::Stream;
use pt_data::Record;
use pt_engine::Dtype;
use pt_models::Model;
use pt_recipe::{AlarmMode, PlannedRollout};
use pt_rl::length::SoftOverlong;
use pt_rl::{
    Action, Alarms, AlarmsConfig, ConstraintState, Constraints, Curriculum, CurriculumConfig, RolloutsFolder,
    StepFigures,
};
use pt_run::{OwnedTensor, TensorEntry};
use pt_train::{Alarm, AlarmAction, Example, SourceResult, StepData, StepSource, StepStats};
use serde::{Deserialize, Serialize};

use super::check::soft_overlong;
use super::credit::Credit;
use super::judge::StageRewards;
use super::reference::Reference;
use super::sampler::Sampler;
use super::server::Reload;
use super::{pack_groups, texts_beside};
use crate::error::Result;
use crate::steps::Steps;

/// How rounds are made.
pub(crate) struct RoundsOptions {
    pub(crate) rollout: PlannedRollout,
    /// Most tokens of a sample, whatever its turns.
    pub(crate) completion_limit: u64,
    pub(crate) tokens_per_micro_batch: usize,
    pub(crate) dtype: Dtype,
    pub(crate) seed: u64,
}

/// The steps of a stage that samples.
pub(crate) struct Rounds<'t> {
    pub(super) prompts: Steps,
    /// The rows behind the prompts, by source.
    pub(super) records: Vec<Vec<Record>>,
    pub(super) sampler: Sampler<'t>,
    pub(super) rewards: StageRewards,
    /// Rewards that have a bound, with their multipliers.
    pub(super) constraints: Constraints,
    pub(super) reference: Option<Reference>,
    pub(super) folder: RolloutsFolder,
    pub(super) options: RoundsOptions,
    /// What samples are turned into.
    pub(super) credit: Box<dyn Credit>,
    /// Text that trains beside the samples.
    pub(super) ptx: Option<Steps>,
    pub(super) overlong: Option<SoftOverlong>,
    pub(super) alarms: Alarms,
    pub(super) curriculum: Curriculum,
    /// The round whose samples are in use.
    pub(super) current: Option<RoundData>,
    pub(super) figures: StepFigures,
    /// Metrics of a round that an earlier life of the run sampled.
    pub(super) earlier_metrics: Vec<(String, f64)>,
    pub(super) is_halted: bool,
    /// What keeps a server's weights near the policy's, if there is one.
    pub(super) reload: Option<Reload>,
    /// Steps by which the server's weights were behind in this round.
    pub(super) staleness: u64,
    /// Whether the step under way, or that just failed, has not changed what a checkpoint keeps.
    pub(super) is_unchanged: bool,
}

/// What a checkpoint keeps.
#[derive(Serialize, Deserialize)]
struct State {
    alarms: Alarms,
    curriculum: Curriculum,
    figures: StepFigures,
    /// Metrics of the round whose samples are in use.
    metrics: Vec<(String, f64)>,
    /// Whether an alarm ended training.
    is_halted: bool,
    /// What the credit keeps.
    credit: serde_json::Value,
    /// Multipliers of the rewards that have a bound.
    #[serde(default)]
    constraints: ConstraintState,
}

/// A round's groups, ready to train on.
pub(super) struct RoundData {
    pub(super) index: u64,
    pub(super) groups: Vec<Vec<Example>>,
    pub(super) metrics: Vec<(String, f64)>,
}

impl<'t> Rounds<'t> {
    pub(crate) fn new(
        prompts: Steps,
        records: Vec<Vec<Record>>,
        sampler: Sampler<'t>,
        rewards: StageRewards,
        reference: Option<Reference>,
        credit: Box<dyn Credit>,
        ptx: Option<Steps>,
        folder: RolloutsFolder,
        options: RoundsOptions,
    ) -> Result<Rounds<'t>> {
        Ok(Rounds {
            constraints: rewards.constraints()?,
            prompts,
            records,
            sampler,
            rewards,
            reference,
            folder,
            credit,
            ptx,
            overlong: soft_overlong(&options.rollout, options.completion_limit),
            alarms: Alarms::new(&AlarmsConfig::default())?,
            curriculum: Curriculum::new(CurriculumConfig::default())?,
            current: None,
            figures: StepFigures::default(),
            earlier_metrics: Vec::new(),
            is_halted: false,
            reload: None,
            staleness: 0,
            is_unchanged: true,
            options,
        })
    }

    /// The same, with what keeps a server's weights near the policy's.
    pub(crate) fn with_reload(self, reload: Option<Reload>) -> Rounds<'t> {
        Rounds { reload, ..self }
    }

    /// Optimiser steps of one round.
    pub(super) fn steps_per_round(&self) -> u64 {
        self.options.rollout.passes * self.options.rollout.mini_batches
    }

    /// The last round of which `steps_done` steps have used something; a round in the middle of its steps is still needed.
    fn last_round(&self, steps_done: u64) -> Option<u64> {
        steps_done.div_ceil(self.steps_per_round()).checked_sub(1)
    }

    /// Removes the rollouts of rounds that a resumed run samples again.
    pub(crate) fn forget_after(&self, steps_done: u64) -> Result<()> {
        Ok(self.folder.truncate_after(self.last_round(steps_done))?)
    }

    /// Moves the rollouts of rounds whose steps an alarm undid out of the way.
    pub(crate) fn set_aside_after(&self, steps_done: u64) -> Result<()> {
        Ok(self.folder.set_aside_after(self.last_round(steps_done))?)
    }

    /// Whether an alarm ended training.
    pub(crate) fn is_halted(&self) -> bool {
        self.is_halted
    }
}

impl StepSource for Rounds<'_> {
    fn step(&mut self, step_idx: u64, model: &Model) -> SourceResult<StepData> {
        let per_round = self.steps_per_round();
        let (round, part) = (step_idx / per_round, step_idx % per_round);
        self.is_unchanged = true;
        if self.current.as_ref().is_none_or(|current| current.index != round) {
            self.current = Some(match part {
                0 => {
                    if let Some(Reference::Following(following)) = &mut self.reference {
                        self.is_unchanged = false;
                        following.follow(model, step_idx, per_round)?;
                    }
                    self.sample(round, model)?
                }
                _ => self.recorded(round, step_idx, model)?,
            });
        }
        self.is_unchanged = false;
        let Rounds { current, ptx, options, .. } = self;
        let current = current.as_ref().expect("just made");
        let n_parts = options.rollout.mini_batches as usize;
        let mut order: Vec<usize> = (0..current.groups.len()).collect();
        // The first pass takes groups as they were sampled, later ones in other orders.
        if step_idx % per_round >= n_parts as u64 {
            let pass = part / n_parts as u64;
            Stream::new(options.seed, "passes").at(round << 8 | pass).shuffle(&mut order);
        }
        let part = part as usize % n_parts;
        let (from, to) = (order.len() * part / n_parts, order.len() * (part + 1) / n_parts);
        let examples =
            order[from..to].iter().flat_map(|&group| current.groups[group].iter().cloned()).collect();
        let mut micro_batches = pack_groups(examples, options.tokens_per_micro_batch);
        let mut metrics = current.metrics.clone();
        // Where every sample is masked, there is no loss to be averaged: the step is left out.
        let is_empty = micro_batches.iter().all(|micro_batch| micro_batch.predictions().rows.is_empty());
        metrics.push(("skipped_step".to_owned(), f64::from(u8::from(is_empty))));
        if let Some(ptx) = ptx.as_mut().filter(|_| !is_empty) {
            micro_batches.extend(texts_beside(ptx, step_idx)?);
        }
        let micro_batches = if is_empty { Vec::new() } else { micro_batches };
        metrics.extend(self.credit.train(&micro_batches)?);
        Ok(StepData { micro_batches, metrics })
    }

    fn is_unchanged(&self) -> bool {
        self.is_unchanged
    }

    fn epoch(&mut self, steps_done: u64) -> f64 {
        let per_round = self.steps_per_round();
        self.prompts.epoch(steps_done / per_round)
    }

    fn state(&self) -> serde_json::Value {
        let state = State {
            alarms: self.alarms.clone(),
            curriculum: self.curriculum.clone(),
            figures: self.figures.clone(),
            metrics: self.current.as_ref().map_or_else(Vec::new, |current| current.metrics.clone()),
            is_halted: self.is_halted,
            credit: self.credit.state(),
            constraints: self.constraints.state(),
        };
        serde_json::to_value(state).expect("counts and estimates are JSON")
    }

    fn restore(&mut self, state: &serde_json::Value) -> SourceResult<()> {
        let State { alarms, curriculum, figures, metrics, is_halted, credit, constraints } =
            serde_json::from_value(state.clone())?;
        (self.alarms, self.curriculum, self.figures) = (alarms, curriculum, figures);
        (self.earlier_metrics, self.is_halted) = (metrics, is_halted);
        self.credit.restore(&credit)?;
        self.constraints.restore(&constraints)?;
        Ok(())
    }

    fn tensors(&self) -> Vec<TensorEntry<'static>> {
        let mut tensors = self.credit.tensors();
        if let Some(Reference::Following(following)) = &self.reference {
            tensors.extend(following.tensors());
        }
        tensors
    }

    fn restore_tensors(&mut self, mut tensors: BTreeMap<String, OwnedTensor>) -> SourceResult<()> {
        self.credit.restore_tensors(&mut tensors)?;
        if let Some(Reference::Following(following)) = &mut self.reference {
            following.restore(&tensors)?;
        }
        Ok(())
    }

    fn after_step(&mut self, step_idx: u64, stats: &StepStats) -> SourceResult<Vec<Alarm>> {
        let per_round = self.steps_per_round();
        // A round is looked at once, when its samples are fresh.
        if self.options.rollout.alarms == AlarmMode::Off || !step_idx.is_multiple_of(per_round) {
            return Ok(Vec::new());
        }
        let value = |name: &str| stats.metrics.iter().find(|(n, _)| n == name).map(|(_, value)| *value);
        self.figures.entropy = value("entropy");
        self.figures.kl = value("kl");
        let acts = self.options.rollout.alarms == AlarmMode::Act;
        let alarm = |alert: pt_rl::Alert| Alarm {
            action: match alert.action {
                Action::Stop if acts => AlarmAction::Stop,
                Action::Rollback if acts => AlarmAction::RollBack,
                _ => AlarmAction::Warn,
            },
            since_step: alert.since_step * per_round,
            reason: format!("{}: {}", alert.alarm, alert.reason),
        };
        let alarms: Vec<Alarm> = self.alarms.observe(&self.figures).into_iter().map(alarm).collect();
        self.is_halted = alarms.iter().any(|alarm| alarm.action != AlarmAction::Warn);
        Ok(alarms)
    }
}
