//! One round: prompts chosen, groups sampled and judged, again where groups have no signal.

use std::collections::BTreeSet;

use pt_data::Record;
use pt_data::mix::RowAt;
use pt_models::Model;
use pt_rl::dynamic::{Exhausted, has_signal};
use pt_rl::{Curriculum, CurriculumConfig, DynamicSampling, DynamicSamplingConfig, Round, StepFigures};
use pt_train::Example;
use pt_verify::Scored;

use super::judge::Judged;
use super::sampler::{Drawn, Prompt};
use super::source::{RoundData, Rounds};
use crate::error::Result;

/// A prompt with its samples and what they are worth.
pub(super) struct Group {
    pub(super) prompt: Example,
    pub(super) at: RowAt,
    pub(super) drawn: Vec<Drawn>,
    pub(super) scored: Vec<Scored>,
    /// What each is worth: the verifiers' total, with the rewards that have a bound weighed by their multipliers.
    pub(super) worth: Vec<Option<f64>>,
}

impl Rounds<'_> {
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
        let requests: Vec<Prompt<'_>> = prompts
            .iter()
            .zip(rows)
            .map(|(prompt, at)| Prompt {
                key: prompt.key,
                token_ids: prompt.token_ids.clone(),
                record: Some(self.record(*at)),
            })
            .collect();
        let drawn = self.credit.sample(&self.sampler, model, self.reference.as_ref(), &requests)?;
        let replies: Vec<Judged<'_>> = rows
            .iter()
            .zip(&drawn)
            .flat_map(|(at, group)| {
                let record = self.record(*at);
                group.iter().map(move |drawn| Judged {
                    record,
                    text: &drawn.text,
                    is_truncated: drawn.is_truncated,
                    episode: drawn.episode.as_deref(),
                })
            })
            .collect();
        let mut scored = self.rewards.judge(&replies).into_iter();
        let group = |((prompt, at), drawn): ((Example, &RowAt), Vec<Drawn>)| {
            let scored: Vec<Scored> = scored.by_ref().take(drawn.len()).collect();
            let worth = scored.iter().map(|scored| self.constraints.combine(scored.total, &scored.scores()));
            Group { prompt, at: *at, drawn, worth: worth.collect(), scored }
        };
        Ok(prompts.into_iter().zip(rows).zip(drawn).map(group).collect())
    }

    /// What became of the samples that a server was asked for; nothing without one.
    ///
    /// # Errors
    /// A round of which nothing came back.
    fn sampled_elsewhere(&self, groups: &[Group]) -> Result<Vec<(String, f64)>> {
        let Some(server) = self.sampler.server() else { return Ok(Vec::new()) };
        let counts = server.take_counts();
        if groups.is_empty() {
            return Err(server.nothing_came(&counts));
        }
        let mut metrics = counts.metrics();
        metrics.push(("server/staleness".to_owned(), self.staleness as f64));
        Ok(metrics)
    }

    pub(super) fn record(&self, at: RowAt) -> &Record {
        let source = &self.prompts.sources()[at.source_idx];
        &self.records[at.source_idx][source.record_of(at.row_idx)]
    }

    /// Samples a round, again where groups have no signal and the plan allows it.
    pub(super) fn sample(&mut self, round: u64, model: &Model) -> Result<RoundData> {
        let mut rows = self.first_prompts(round)?;
        if let (Some(reload), Some(server)) = (&mut self.reload, self.sampler.server()) {
            let at = (round, round * self.options.rollout.passes * self.options.rollout.mini_batches);
            let (tokenizer, template) = (self.sampler.tokenizer(), self.sampler.template());
            self.staleness = reload.before_round(server, at, model, tokenizer, template)?;
        }
        let config = DynamicSamplingConfig {
            max_rounds: self.options.rollout.sampling_rounds as usize,
            on_exhausted: Exhausted::Fill,
            ..DynamicSamplingConfig::default()
        };
        let mut dynamic = DynamicSampling::new(config, rows.len())?;
        let mut used: BTreeSet<u64> = BTreeSet::new();
        let mut rounds: Vec<Vec<Group>> = Vec::new();
        let selection = loop {
            used.extend(rows.iter().copied().map(problem_of));
            let first_key = (round << 32) | ((rounds.len() as u64) << 24);
            let groups = self.groups(model, &rows, first_key)?;
            let signals: Vec<bool> = groups.iter().map(|group| has_signal(&group.worth)).collect();
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
        let n_silent = selection.n_silent as f64 / selection.n_sampled.max(1) as f64;
        self.figures.frac_without_signal = Some(n_silent).filter(|_| self.credit.compares_groups());
        for group in rounds.iter().flatten() {
            if !group.drawn.is_empty() {
                self.is_unchanged = false;
                self.curriculum.observe(problem_of(group.at), round, &raw_verdicts(group));
            }
        }
        let chosen: BTreeSet<(usize, usize)> =
            selection.groups.iter().map(|at| (at.round, at.group)).collect();
        let groups: Vec<Group> = rounds
            .into_iter()
            .enumerate()
            .flat_map(|(r, groups)| groups.into_iter().enumerate().map(move |(g, group)| ((r, g), group)))
            .filter(|(at, _)| chosen.contains(at))
            .map(|(_, group)| group)
            // Of a server's samples some may be lost on the way.
            .filter(|group| !group.drawn.is_empty())
            .collect();
        let of_server = self.sampled_elsewhere(&groups)?;
        let mut data = self.weigh(round, groups, model)?;
        data.metrics.extend(of_server);
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
}

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
