//! From verdicts to what a round trains on: rewards, advantages, the rollouts file, examples.

use std::sync::Arc;

use pt_models::Model;
use pt_rl::RolloutRecord;
use pt_rl::advantages::subtract_kl;
use pt_rl::alarms::top_ngram;
use pt_rl::metrics::{EpisodeFigures, completion_metrics, episode_metrics};
use pt_rl::rollouts::NamedVerdict;
use pt_train::{Example, Known, Reply};
use pt_verify::Scored;

use super::credit::JudgedRound;
use super::group_examples;
use super::judge::prompt_text;
use super::round::Group;
use super::sampler::Drawn;
use super::source::{RoundData, Rounds};
use crate::error::{PipelineError, Result};

/// Length of the phrases that may take over.
const NGRAM: usize = 5;

/// Identifies a group's example, in dropout among others; the same whether it was just sampled or read back.
fn key_of(round: u64, group: usize) -> u64 {
    round << 32 | group as u64
}

impl Rounds<'_> {
    /// Rewards to advantages; what the round leaves in its file, and what it trains on.
    pub(super) fn weigh(&mut self, round: u64, mut groups: Vec<Group>, model: &Model) -> Result<RoundData> {
        if self.sampler.server().is_some() {
            self.score_own(&mut groups, model);
        }
        let mut examples: Vec<Example> =
            groups.iter().enumerate().map(|(g, group)| self.example(group, key_of(round, g))).collect();
        if let Some(reference) = &self.reference {
            let temperature = self.options.rollout.temperature as f32;
            let max_tokens = self.options.tokens_per_micro_batch;
            reference.fill(model, self.options.dtype, temperature, max_tokens, &mut examples);
        }
        let totals = self.totals(&groups, &examples)?;
        let mut records = self.records_of(round, &groups, &totals);
        let scores: Vec<Vec<Option<f64>>> =
            groups.iter().flat_map(|group| &group.scored).map(Scored::scores).collect();
        let judged = JudgedRound {
            model,
            dtype: self.options.dtype,
            tokens_per_micro_batch: self.options.tokens_per_micro_batch,
            names: self.rewards.names(),
            weights: self.constraints.weights(&self.rewards.weights()),
            scores,
            totals,
            members: groups.iter().enumerate().flat_map(|(g, group)| vec![g; group.drawn.len()]).collect(),
        };
        let mut metrics = self.credit.judge(&judged, &examples, &mut records)?;
        metrics.extend(self.constraints.observe(&judged.scores)?);
        let lengths: Vec<(usize, bool)> = groups
            .iter()
            .flat_map(|group| &group.drawn)
            .map(|drawn| (drawn.sampled_ids().count(), drawn.is_truncated))
            .collect();
        metrics.extend(completion_metrics(&lengths));
        let drawn = groups.iter().flat_map(|group| &group.drawn);
        let episodes: Vec<EpisodeFigures> = drawn.filter_map(Drawn::figures).collect();
        metrics.extend(episode_metrics(&episodes));
        self.folder.write(round, &records)?;
        self.look(&metrics, &groups);
        Ok(RoundData { index: round, groups: self.trained(&records, examples), metrics })
    }

    /// What of a round's groups trains, each cut where it does not fit a micro-batch.
    fn trained(&self, records: &[RolloutRecord], examples: Vec<Example>) -> Vec<Vec<Example>> {
        let max_tokens = self.options.tokens_per_micro_batch;
        let mut groups = Vec::with_capacity(examples.len());
        let by_group = records.chunk_by(|a, b| a.group == b.group);
        for (records, mut whole) in by_group.zip(examples) {
            self.credit.apply(records, &mut whole);
            match whole.replies.is_empty() {
                true => {}
                false if self.credit.keeps_groups() => groups.push(vec![whole]),
                false => {
                    let replies = std::mem::take(&mut whole.replies);
                    groups.push(group_examples(&whole, replies, max_tokens));
                }
            }
        }
        groups
    }

    /// A group as one example, without advantages.
    pub(super) fn example(&self, group: &Group, key: u64) -> Example {
        let is_reused = self.steps_per_round() > 1;
        let replies = group.drawn.iter().map(|drawn| {
            let is_masked = self.options.rollout.mask_truncated && drawn.is_truncated;
            Reply {
                token_ids: drawn.token_ids.clone(),
                weights: if is_masked { vec![0.0; drawn.weights.len()] } else { drawn.weights.clone() },
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
        Example { key, replies: replies.collect(), ..group.prompt.clone() }
    }

    /// Each sample's reward, with what length and divergence cost.
    fn totals(&self, groups: &[Group], examples: &[Example]) -> Result<Vec<Option<f64>>> {
        let punished = |drawn: &Drawn, worth: &Option<f64>| {
            let cost = self.overlong.as_ref().map_or(0.0, |overlong| overlong.reward(drawn.token_ids.len()));
            let missing = self.options.rollout.missing_eos_penalty * f64::from(u8::from(drawn.is_truncated));
            worth.map(|worth| worth + cost - missing)
        };
        let totals: Vec<Option<f64>> = groups
            .iter()
            .flat_map(|group| group.drawn.iter().zip(&group.worth))
            .map(|(drawn, worth)| punished(drawn, worth))
            .collect();
        let coefficient = self.options.rollout.reward_kl;
        if coefficient == 0.0 {
            return Ok(totals);
        }
        let replies = examples.iter().flat_map(|example| &example.replies);
        let drawn = groups.iter().flat_map(|group| &group.drawn);
        // What an environment said is no choice of the policy's, from which it could diverge.
        let chosen = |values: &[f32], drawn: &Drawn| -> Vec<f32> {
            let both = values.iter().zip(&drawn.weights);
            both.filter(|(_, weight)| **weight > 0.0).map(|(value, _)| *value).collect()
        };
        let logprobs: Vec<(Vec<f32>, Vec<f32>)> = drawn
            .zip(replies)
            .map(|(drawn, reply)| {
                (chosen(&drawn.logprobs, drawn), chosen(&reply.known.reference_logp, drawn))
            })
            .collect();
        let logprobs: Vec<(&[f32], &[f32])> =
            logprobs.iter().map(|(own, reference)| (own.as_slice(), reference.as_slice())).collect();
        Ok(subtract_kl(&totals, &logprobs, coefficient)?)
    }

    fn records_of(&self, round: u64, groups: &[Group], totals: &[Option<f64>]) -> Vec<RolloutRecord> {
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
                    sampler_logprobs: drawn.filtered_logprobs.clone().unwrap_or_default(),
                    weights: if drawn.episode.is_some() { drawn.weights.clone() } else { Vec::new() },
                    turns: drawn.episode.as_ref().map_or_else(Vec::new, |played| played.turns.clone()),
                    verdicts: named
                        .map(|(name, verdict)| NamedVerdict {
                            name: (*name).to_owned(),
                            verdict: verdict.clone(),
                        })
                        .collect(),
                    reward: totals[at],
                    finish_reason: drawn.end.as_str().to_owned(),
                    ..RolloutRecord::default()
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
        let drawn = groups.iter().flat_map(|group| &group.drawn);
        let completions: Vec<Vec<u32>> = drawn.map(|drawn| drawn.sampled_ids().collect()).collect();
        self.figures.top_ngram = top_ngram(completions.iter().map(Vec::as_slice), NGRAM);
    }

    /// A round that an earlier life of the run sampled and was in the middle of.
    ///
    /// # Errors
    /// [`PipelineError::SamplesGone`] if its file is.
    pub(super) fn recorded(&mut self, round: u64, step_idx: u64, model: &Model) -> Result<RoundData> {
        let first = round * self.steps_per_round();
        let gone = || PipelineError::SamplesGone { round, step: step_idx + 1, first };
        let records = self.folder.read(round)?.ok_or_else(gone)?;
        let mut groups: Vec<Example> = Vec::new();
        for record in &records {
            if record.group == groups.len() {
                let origin: Arc<str> = Arc::from(record.origin.clone().unwrap_or_default());
                let key = key_of(round, record.group);
                groups.push(Example::prompt(record.prompt_ids.clone(), Vec::new(), key, origin));
            }
            let n = record.completion_ids.len();
            let is_truncated = record.finish_reason == "length";
            let is_masked = self.options.rollout.mask_truncated && is_truncated;
            let reply = Reply {
                weights: match record.weights.is_empty() || is_masked {
                    true => vec![if is_masked { 0.0 } else { 1.0 }; n],
                    false => record.weights.clone(),
                },
                is_truncated,
                known: Known {
                    sampler_logp: match record.sampler_logprobs.is_empty() {
                        true => record.logprobs.clone(),
                        false => record.sampler_logprobs.clone(),
                    },
                    old_logp: record.logprobs.clone(),
                    ..Known::default()
                },
                token_ids: record.completion_ids.clone(),
                ..Reply::default()
            };
            groups.last_mut().expect("just made").replies.push(reply);
        }
        if let Some(reference) = &self.reference {
            let temperature = self.options.rollout.temperature as f32;
            let max_tokens = self.options.tokens_per_micro_batch;
            reference.fill(model, self.options.dtype, temperature, max_tokens, &mut groups);
        }
        let metrics = self.earlier_metrics.clone();
        Ok(RoundData { index: round, groups: self.trained(&records, groups), metrics })
    }
}
