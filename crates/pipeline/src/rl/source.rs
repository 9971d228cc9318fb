//! Rounds of sampling as steps of training.

use std::collections::BTreeSet;
use std::sync::Arc;

use pt_core::rng::Stream;
use pt_data::Record;
use pt_data::mix::RowAt;
use pt_engine::Dtype;
use pt_models::Model;
use pt_recipe::{AlarmMode, PlannedRollout};
use pt_rl::advantages::subtract_kl;
use pt_rl::alarms::top_ngram;
use pt_rl::dynamic::has_signal;
use pt_rl::length::SoftOverlong;
use pt_rl::metrics::{completion_metrics, reward_metrics};
use pt_rl::rollouts::NamedVerdict;
use pt_rl::{
    Action, AdvantageConfig, Alarms, AlarmsConfig, Curriculum, CurriculumConfig, DynamicSampling,
    DynamicSamplingConfig, RolloutRecord, RolloutsFolder, Round, StepFigures,
};
use pt_train::{Alarm, AlarmAction, Example, Known, Reply, SourceResult, StepData, StepSource, StepStats};
use pt_verify::Scored;
use serde::{Deserialize, Serialize};

use super::judge::{Judged, StageRewards, prompt_text};
use super::reference::Reference;
use super::sampler::{Drawn, Sampler};
use super::{group_examples, pack_groups};
use crate::error::Result;
use crate::steps::Steps;

/// How rounds are made.
pub(crate) struct RoundsOptions {
    pub(crate) rollout: PlannedRollout,
    pub(crate) tokens_per_micro_batch: usize,
    pub(crate) dtype: Dtype,
    pub(crate) seed: u64,
    /// Whether the objective reads the reference.
    pub(crate) needs_reference: bool,
}

/// The steps of a stage that samples.
pub(crate) struct Rounds<'t> {
    prompts: Steps,
    /// The rows behind the prompts, by source.
    records: Vec<Vec<Record>>,
    sampler: Sampler<'t>,
    rewards: StageRewards,
    reference: Option<Reference>,
    folder: RolloutsFolder,
    options: RoundsOptions,
    advantages: AdvantageConfig,
    overlong: Option<SoftOverlong>,
    alarms: Alarms,
    curriculum: Curriculum,
    /// The round whose samples are in use.
    current: Option<RoundData>,
    figures: StepFigures,
    /// Metrics of a round that an earlier life of the run sampled.
    earlier_metrics: Vec<(String, f64)>,
}

/// What a checkpoint keeps.
#[derive(Serialize, Deserialize)]
struct State {
    alarms: Alarms,
    curriculum: Curriculum,
    figures: StepFigures,
    /// Metrics of the round whose samples are in use.
    metrics: Vec<(String, f64)>,
}

/// A round's groups, ready to train on.
struct RoundData {
    index: u64,
    groups: Vec<Vec<Example>>,
    metrics: Vec<(String, f64)>,
}

/// A prompt with its samples and what they are worth.
struct Group {
    prompt: Example,
    at: RowAt,
    drawn: Vec<Drawn>,
    scored: Vec<Scored>,
}

impl<'t> Rounds<'t> {
    pub(crate) fn new(
        prompts: Steps,
        records: Vec<Vec<Record>>,
        sampler: Sampler<'t>,
        rewards: StageRewards,
        reference: Option<Reference>,
        folder: RolloutsFolder,
        options: RoundsOptions,
    ) -> Result<Rounds<'t>> {
        let rollout = &options.rollout;
        let overlong = (rollout.overlong_cache > 0).then_some(SoftOverlong {
            max_completion_len: rollout.max_new_tokens as usize,
            soft_punish_cache: rollout.overlong_cache as usize,
        });
        overlong.as_ref().map_or(Ok(()), SoftOverlong::check)?;
        let advantages = advantage_config(rollout);
        Ok(Rounds {
            prompts,
            records,
            sampler,
            rewards,
            reference,
            folder,
            advantages,
            overlong,
            alarms: Alarms::new(&AlarmsConfig::default())?,
            curriculum: Curriculum::new(CurriculumConfig::default())?,
            current: None,
            figures: StepFigures::default(),
            earlier_metrics: Vec::new(),
            options,
        })
    }

    /// Optimiser steps of one round.
    fn steps_per_round(&self) -> u64 {
        self.options.rollout.passes * self.options.rollout.mini_batches
    }

    /// Removes the rollouts of rounds that a resumed run samples again.
    pub(crate) fn forget_after(&self, steps_done: u64) -> Result<()> {
        let per_round = self.steps_per_round();
        // A round in the middle of its steps is still needed.
        let last = steps_done.div_ceil(per_round).checked_sub(1);
        Ok(self.folder.truncate_after(last)?)
    }

    /// The prompts a round begins with.
    fn first_prompts(&mut self, round: u64) -> Result<Vec<RowAt>> {
        let rows = self.prompts.rows(round)?;
        if !self.options.rollout.curriculum {
            return Ok(rows);
        }
        self.drawn_prompts(rows.len(), round, 0, &BTreeSet::new())
    }

    /// `n` prompts by weight: all alike without a curriculum.
    fn drawn_prompts(&self, n: usize, round: u64, attempt: u64, used: &BTreeSet<u64>) -> Result<Vec<RowAt>> {
        let all: Vec<u64> = self.all_prompts().map(problem_of).collect();
        let key = (self.options.seed, round, attempt);
        let group_size = self.options.rollout.n as usize;
        let alike = Curriculum::new(CurriculumConfig { floor: 1.0, ..CurriculumConfig::default() })?;
        let curriculum = if self.options.rollout.curriculum { &self.curriculum } else { &alike };
        let drawn = curriculum.draw(&all, n, group_size, key, used);
        Ok(drawn.into_iter().map(row_of).collect())
    }

    fn all_prompts(&self) -> impl Iterator<Item = RowAt> + '_ {
        self.prompts.sources().iter().enumerate().flat_map(|(source_idx, source)| {
            (0..source.n_rows()).map(move |row_idx| RowAt { source_idx, row_idx })
        })
    }

    /// Samples and judges groups for these prompts. `first_key` begins the identities of their draws.
    fn groups(&self, model: &Model, rows: &[RowAt], first_key: u64) -> Result<Vec<Group>> {
        let prompts = rows
            .iter()
            .enumerate()
            .map(|(i, at)| self.prompts.sources()[at.source_idx].example(at.row_idx, first_key + i as u64))
            .collect::<Result<Vec<Example>>>()?;
        let requests: Vec<(u64, Vec<u32>)> =
            prompts.iter().map(|prompt| (prompt.key, prompt.token_ids.clone())).collect();
        let drawn = self.sampler.groups(model, &requests)?;
        let replies: Vec<Judged<'_>> = rows
            .iter()
            .zip(&drawn)
            .flat_map(|(at, group)| {
                let record = self.record(*at);
                group.iter().map(move |drawn| Judged {
                    record,
                    text: &drawn.text,
                    is_truncated: drawn.is_truncated,
                })
            })
            .collect();
        let mut scored = self.rewards.judge(&replies).into_iter();
        let group = |((prompt, at), drawn): ((Example, &RowAt), Vec<Drawn>)| {
            let scored = scored.by_ref().take(drawn.len()).collect();
            Group { prompt, at: *at, drawn, scored }
        };
        Ok(prompts.into_iter().zip(rows).zip(drawn).map(group).collect())
    }

    fn record(&self, at: RowAt) -> &Record {
        let source = &self.prompts.sources()[at.source_idx];
        &self.records[at.source_idx][source.record_of(at.row_idx)]
    }

    /// Samples a round, again where groups have no signal and the plan allows it.
    fn sample(&mut self, round: u64, model: &Model) -> Result<RoundData> {
        let mut rows = self.first_prompts(round)?;
        let config = DynamicSamplingConfig {
            max_rounds: self.options.rollout.sampling_rounds as usize,
            on_exhausted: pt_rl::dynamic::Exhausted::Fill,
            ..DynamicSamplingConfig::default()
        };
        let mut dynamic = DynamicSampling::new(config, rows.len())?;
        let mut used: BTreeSet<u64> = BTreeSet::new();
        let mut rounds: Vec<Vec<Group>> = Vec::new();
        let selection = loop {
            used.extend(rows.iter().copied().map(problem_of));
            let first_key = (round << 32) | ((rounds.len() as u64) << 24);
            let groups = self.groups(model, &rows, first_key)?;
            let signals: Vec<bool> = groups.iter().map(|group| has_signal(&raw_verdicts(group))).collect();
            rounds.push(groups);
            match dynamic.add_round(&signals) {
                Round::Done(selection) => break selection,
                Round::Again { n_groups } => {
                    rows = self.drawn_prompts(n_groups, round, rounds.len() as u64, &used)?;
                    if rows.is_empty() {
                        // Every prompt was tried: what there is must do.
                        break dynamic.finish();
                    }
                }
            }
        };
        self.figures = StepFigures { step: round, ..StepFigures::default() };
        self.figures.frac_without_signal =
            Some(selection.n_silent as f64 / selection.n_sampled.max(1) as f64);
        for group in rounds.iter().flatten() {
            self.curriculum.observe(problem_of(group.at), round, &raw_verdicts(group));
        }
        let chosen: BTreeSet<(usize, usize)> =
            selection.groups.iter().map(|at| (at.round, at.group)).collect();
        let groups: Vec<Group> = rounds
            .into_iter()
            .enumerate()
            .flat_map(|(r, groups)| groups.into_iter().enumerate().map(move |(g, group)| ((r, g), group)))
            .filter(|(at, _)| chosen.contains(at))
            .map(|(_, group)| group)
            .collect();
        let mut data = self.weigh(round, groups, model)?;
        if self.options.rollout.sampling_rounds > 1 {
            data.metrics.push(("dynamic_sampling/rounds".to_owned(), selection.n_rounds as f64));
            data.metrics.push(("dynamic_sampling/groups_sampled".to_owned(), selection.n_sampled as f64));
            data.metrics
                .push(("dynamic_sampling/groups_without_signal".to_owned(), selection.n_silent as f64));
        }
        if self.options.rollout.curriculum {
            data.metrics.extend(self.curriculum.metrics());
        }
        Ok(data)
    }

    /// Rewards to advantages; what the round leaves in its file, and what it trains on.
    fn weigh(&mut self, round: u64, groups: Vec<Group>, model: &Model) -> Result<RoundData> {
        let mut examples: Vec<Vec<Example>> = groups.iter().map(|group| vec![self.example(group)]).collect();
        if let Some(reference) = &self.reference {
            let temperature = self.options.rollout.temperature as f32;
            for group in &mut examples {
                reference.fill(model, self.options.dtype, temperature, group);
            }
        }
        let members: Vec<usize> =
            groups.iter().enumerate().flat_map(|(g, group)| vec![g; group.drawn.len()]).collect();
        let scores: Vec<Vec<Option<f64>>> = groups
            .iter()
            .flat_map(|group| &group.scored)
            .map(|scored| scored.verdicts.iter().map(|verdict| verdict.score).collect())
            .collect();
        let totals = self.totals(&groups, &examples)?;
        let advantages = match self.advantages.multi_objective_aggregation {
            pt_rl::MultiObjective::SumThenNormalize => self.advantages.of_totals(&totals, &members)?,
            pt_rl::MultiObjective::NormalizeThenSum => {
                self.advantages.advantages(&scores, &self.rewards.weights(), &members)?
            }
        };
        let mut metrics = reward_metrics(&self.rewards.names(), &scores, &advantages);
        let lengths: Vec<(usize, bool)> = groups
            .iter()
            .flat_map(|group| &group.drawn)
            .map(|drawn| (drawn.token_ids.len(), drawn.is_truncated))
            .collect();
        metrics.extend(completion_metrics(&lengths));
        let records = self.records_of(round, &groups, &totals, &advantages.values);
        self.folder.write(round, &records)?;
        self.look(&metrics, &groups);
        let mut values = advantages.values.into_iter();
        for reply in examples.iter_mut().flatten().flat_map(|example| &mut example.replies) {
            let advantage = values.next().expect("one per sample") as f32;
            reply.known.advantages = vec![advantage; reply.token_ids.len()];
        }
        let max_tokens = self.options.tokens_per_micro_batch;
        let cut = |group: Vec<Example>| -> Vec<Example> {
            group
                .into_iter()
                .flat_map(|mut whole| {
                    let replies = std::mem::take(&mut whole.replies);
                    group_examples(&whole, replies, max_tokens)
                })
                .collect()
        };
        Ok(RoundData { index: round, groups: examples.into_iter().map(cut).collect(), metrics })
    }

    /// A group as one example, without advantages.
    fn example(&self, group: &Group) -> Example {
        let is_reused = self.steps_per_round() > 1;
        let replies = group.drawn.iter().map(|drawn| {
            let n = drawn.token_ids.len();
            let is_masked = self.options.rollout.mask_truncated && drawn.is_truncated;
            Reply {
                token_ids: drawn.token_ids.clone(),
                weights: vec![if is_masked { 0.0 } else { 1.0 }; n],
                is_truncated: drawn.is_truncated,
                known: Known {
                    // Where samples are used once, the policy is its own old policy: the ratio is exactly 1.
                    old_logp: if is_reused { drawn.logprobs.clone() } else { Vec::new() },
                    sampler_logp: drawn.filtered_logprobs.clone().unwrap_or_else(|| drawn.logprobs.clone()),
                    ..Known::default()
                },
                ..Reply::default()
            }
        });
        Example { replies: replies.collect(), ..group.prompt.clone() }
    }

    /// Each sample's reward, with what length and divergence cost.
    fn totals(&self, groups: &[Group], examples: &[Vec<Example>]) -> Result<Vec<Option<f64>>> {
        let punished = |drawn: &Drawn, scored: &Scored| {
            let cost = self.overlong.as_ref().map_or(0.0, |overlong| overlong.reward(drawn.token_ids.len()));
            scored.total.map(|total| total + cost)
        };
        let totals: Vec<Option<f64>> = groups
            .iter()
            .flat_map(|group| group.drawn.iter().zip(&group.scored))
            .map(|(drawn, scored)| punished(drawn, scored))
            .collect();
        let coefficient = self.options.rollout.reward_kl;
        if coefficient == 0.0 {
            return Ok(totals);
        }
        let replies = examples.iter().flatten().flat_map(|example| &example.replies);
        let drawn = groups.iter().flat_map(|group| &group.drawn);
        let logprobs: Vec<(&[f32], &[f32])> = drawn
            .zip(replies)
            .map(|(drawn, reply)| (drawn.logprobs.as_slice(), reply.known.reference_logp.as_slice()))
            // A masked sample has no reference and no loss.
            .map(
                |(logp, reference)| {
                    if reference.is_empty() { (&logp[..0], reference) } else { (logp, reference) }
                },
            )
            .collect();
        Ok(subtract_kl(&totals, &logprobs, coefficient)?)
    }

    fn records_of(
        &self,
        round: u64,
        groups: &[Group],
        totals: &[Option<f64>],
        advantages: &[f64],
    ) -> Vec<RolloutRecord> {
        let names = self.rewards.names();
        let mut records = Vec::with_capacity(totals.len());
        for (g, group) in groups.iter().enumerate() {
            let prompt = prompt_text(self.record(group.at));
            for (sample, (drawn, scored)) in group.drawn.iter().zip(&group.scored).enumerate() {
                let at = records.len();
                let named = names.iter().zip(&scored.verdicts);
                records.push(RolloutRecord {
                    step: round,
                    group: g,
                    sample,
                    origin: Some(group.prompt.origin.to_string()),
                    prompt_text: Some(prompt.clone()),
                    prompt_ids: group.prompt.token_ids.clone(),
                    completion_ids: drawn.token_ids.clone(),
                    text: drawn.text.clone(),
                    logprobs: drawn.logprobs.clone(),
                    weights: Vec::new(),
                    verdicts: named
                        .map(|(name, verdict)| NamedVerdict {
                            name: (*name).to_owned(),
                            verdict: verdict.clone(),
                        })
                        .collect(),
                    reward: totals[at],
                    advantage: advantages[at] as f32,
                    finish_reason: if drawn.is_truncated { "length" } else { "stop" }.to_owned(),
                });
            }
        }
        records
    }

    /// Notes what alarms look at.
    fn look(&mut self, metrics: &[(String, f64)], groups: &[Group]) {
        let value = |name: &str| metrics.iter().find(|(n, _)| n == name).map(|(_, value)| *value);
        self.figures.mean_length = value("completions/mean_length");
        self.figures.clipped_ratio = value("completions/clipped_ratio");
        self.figures.reward = value("reward");
        self.figures.hidden_score = self.rewards.hidden_score(groups.iter().flat_map(|group| &group.scored));
        let completions =
            groups.iter().flat_map(|group| &group.drawn).map(|drawn| drawn.token_ids.as_slice());
        self.figures.top_ngram = top_ngram(completions, NGRAM);
    }
}

/// Length of the phrases that may take over.
const NGRAM: usize = 5;

/// A prompt's identity for the curriculum.
fn problem_of(at: RowAt) -> u64 {
    (at.source_idx as u64) << 40 | at.row_idx as u64
}

fn row_of(problem: u64) -> RowAt {
    RowAt { source_idx: (problem >> 40) as usize, row_idx: (problem & ((1 << 40) - 1)) as usize }
}

/// What the verifiers alone say of a group.
fn raw_verdicts(group: &Group) -> Vec<Option<f64>> {
    group.scored.iter().map(|scored| scored.total).collect()
}

fn advantage_config(rollout: &PlannedRollout) -> AdvantageConfig {
    use pt_recipe::{Baseline, RewardAggregation, ScaleRewards};
    AdvantageConfig {
        baseline: match rollout.baseline {
            Baseline::Group => pt_rl::Baseline::Group,
            Baseline::Batch => pt_rl::Baseline::Batch,
            Baseline::LeaveOneOut => pt_rl::Baseline::LeaveOneOut,
            Baseline::None => pt_rl::Baseline::None,
        },
        scale_rewards: match rollout.scale_rewards {
            ScaleRewards::Group => pt_rl::ScaleRewards::Group,
            ScaleRewards::Batch => pt_rl::ScaleRewards::Batch,
            ScaleRewards::None => pt_rl::ScaleRewards::None,
        },
        multi_objective_aggregation: match rollout.aggregation {
            RewardAggregation::SumThenNormalize => pt_rl::MultiObjective::SumThenNormalize,
            RewardAggregation::NormalizeThenSum => pt_rl::MultiObjective::NormalizeThenSum,
        },
        reward_clip_range: None,
        normalize_advantages: rollout.normalize_advantages,
    }
}

impl StepSource for Rounds<'_> {
    fn step(&mut self, step_idx: u64, model: &Model) -> SourceResult<StepData> {
        let per_round = self.steps_per_round();
        let (round, part) = (step_idx / per_round, step_idx % per_round);
        if self.current.as_ref().is_none_or(|current| current.index != round) {
            self.current = Some(match part {
                0 => self.sample(round, model)?,
                _ => self.recorded(round, model)?,
            });
        }
        let current = self.current.as_ref().expect("just made");
        let n_parts = self.options.rollout.mini_batches as usize;
        let mut order: Vec<usize> = (0..current.groups.len()).collect();
        // The first pass takes groups as they were sampled, later ones in other orders.
        if step_idx % per_round >= n_parts as u64 {
            let pass = part / n_parts as u64;
            Stream::new(self.options.seed, "passes").at(round << 8 | pass).shuffle(&mut order);
        }
        let part = part as usize % n_parts;
        let (from, to) = (order.len() * part / n_parts, order.len() * (part + 1) / n_parts);
        let examples =
            order[from..to].iter().flat_map(|&group| current.groups[group].iter().cloned()).collect();
        let micro_batches = pack_groups(examples, self.options.tokens_per_micro_batch);
        Ok(StepData { micro_batches, metrics: current.metrics.clone() })
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
        };
        serde_json::to_value(state).expect("counts and estimates are JSON")
    }

    fn restore(&mut self, state: &serde_json::Value) -> SourceResult<()> {
        let State { alarms, curriculum, figures, metrics } = serde_json::from_value(state.clone())?;
        (self.alarms, self.curriculum, self.figures) = (alarms, curriculum, figures);
        self.earlier_metrics = metrics;
        Ok(())
    }

    fn after_step(&mut self, _: u64, stats: &StepStats) -> SourceResult<Vec<Alarm>> {
        if self.options.rollout.alarms == AlarmMode::Off {
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
            reason: format!("{}: {}", alert.alarm, alert.reason),
        };
        Ok(self.alarms.observe(&self.figures).into_iter().map(alarm).collect())
    }
}

impl Rounds<'_> {
    /// A round that an earlier life of the run sampled and was in the middle of.
    fn recorded(&mut self, round: u64, model: &Model) -> Result<RoundData> {
        let records = self.folder.read(round)?.unwrap_or_default();
        let mut groups: Vec<Vec<Example>> = Vec::new();
        for record in records {
            if record.group == groups.len() {
                let origin: Arc<str> = Arc::from(record.origin.clone().unwrap_or_default());
                let key = round << 32 | record.group as u64;
                groups.push(vec![Example::prompt(record.prompt_ids.clone(), Vec::new(), key, origin)]);
            }
            let n = record.completion_ids.len();
            let is_truncated = record.finish_reason == "length";
            let is_masked = self.options.rollout.mask_truncated && is_truncated;
            let reply = Reply {
                weights: vec![if is_masked { 0.0 } else { 1.0 }; n],
                is_truncated,
                known: Known {
                    old_logp: record.logprobs.clone(),
                    sampler_logp: record.logprobs,
                    advantages: vec![record.advantage; n],
                    ..Known::default()
                },
                token_ids: record.completion_ids,
                ..Reply::default()
            };
            groups.last_mut().expect("just made")[0].replies.push(reply);
        }
        if let Some(reference) = self.reference.as_ref().filter(|_| self.options.needs_reference) {
            let temperature = self.options.rollout.temperature as f32;
            groups.iter_mut().for_each(|group| reference.fill(model, self.options.dtype, temperature, group));
        }
        let max_tokens = self.options.tokens_per_micro_batch;
        let cut = |mut group: Vec<Example>| {
            let mut whole = group.remove(0);
            let replies = std::mem::take(&mut whole.replies);
            group_examples(&whole, replies, max_tokens)
        };
        Ok(RoundData {
            index: round,
            groups: groups.into_iter().map(cut).collect(),
            metrics: self.earlier_metrics.clone(),
        })
    }
}
