//! What rounds cost, before any is sampled: steps over replies of the greatest length, and a short measurement of decoding.

use std::time::Instant;

use pt_models::Model;
use pt_objectives::CompletionKind;
use pt_recipe::PlannedRollout;
use pt_rl::{RolloutRecord, TokenCredit};
use pt_train::{Example, Known, MicroBatch, Reply};

use super::sampler::Sampler;
use super::{Credit, group_examples, pack_groups, texts_beside};
use crate::error::Result;
use crate::probe::ProbeSteps;
use crate::steps::Steps;

/// Tokens sampled of each reply in the measurement.
const MEASURED_TOKENS: u64 = 12;
/// Prompts of the measurement, at most.
const MEASURED_PROMPTS: usize = 8;

/// Rounds whose replies all reach the token limit.
pub(crate) struct LongestRounds<'s> {
    pub(crate) prompts: &'s mut Steps,
    /// Text that trains beside the samples.
    pub(crate) ptx: Option<&'s mut Steps>,
    pub(crate) credit: &'s dyn Credit,
    pub(crate) rollout: PlannedRollout,
    pub(crate) tokens_per_micro_batch: usize,
    pub(crate) needs_reference: bool,
}

impl LongestRounds<'_> {
    fn group(&self, prompt: &Example) -> Vec<Example> {
        let n = self.rollout.max_new_tokens as usize;
        let last = *prompt.token_ids.last().expect("a prompt has tokens");
        let known = |is_needed: bool| if is_needed { vec![0.0; n] } else { Vec::new() };
        let reply = Reply {
            token_ids: vec![last; n],
            weights: vec![1.0; n],
            known: Known {
                advantages: vec![1.0; n],
                sampler_logp: vec![0.0; n],
                reference_logp: known(self.needs_reference),
                old_logp: Vec::new(),
            },
            ..Reply::default()
        };
        // Rewards that differ, so that there is something to compare.
        let record = |sample: usize| RolloutRecord {
            sample,
            reward: Some(sample as f64 / self.rollout.n as f64),
            tokens: TokenCredit { values: vec![0.0; n], advantages: vec![1.0; n], returns: vec![0.0; n] },
            ..RolloutRecord::default()
        };
        let records: Vec<RolloutRecord> = (0..self.rollout.n as usize).map(record).collect();
        let mut whole = Example { replies: vec![reply; records.len()], ..prompt.clone() };
        self.credit.apply(&records, &mut whole);
        if self.credit.keeps_groups() {
            return vec![whole];
        }
        let replies = std::mem::take(&mut whole.replies);
        group_examples(&whole, replies, self.tokens_per_micro_batch)
    }
}

impl ProbeSteps for LongestRounds<'_> {
    fn micro_batches(&mut self, step_idx: u64) -> Result<Vec<MicroBatch>> {
        let prompts = self.prompts.micro_batches(step_idx)?;
        let groups = prompts.iter().flat_map(MicroBatch::examples).flat_map(|prompt| self.group(prompt));
        let mut micro_batches = pack_groups(groups.collect(), self.tokens_per_micro_batch);
        if let Some(ptx) = &mut self.ptx {
            let mut texts = texts_beside(ptx, step_idx)?;
            // A micro-batch is measured by itself, where gold replies alone would be no step.
            let examples = texts.iter_mut().flat_map(MicroBatch::examples_mut);
            examples.flat_map(|text| &mut text.replies).for_each(|reply| reply.kind = CompletionKind::Sample);
            micro_batches.extend(texts);
        }
        Ok(micro_batches)
    }

    fn steps_per_epoch(&self) -> u64 {
        self.prompts.steps_per_epoch()
    }
}

/// Tokens per second of decoding the first prompts' groups.
///
/// # Errors
/// Those of sampling.
pub(crate) fn decode_speed(sampler: &Sampler<'_>, model: &Model, prompts: &mut Steps) -> Result<f64> {
    let first = prompts.micro_batches(0)?;
    let examples = first.iter().flat_map(MicroBatch::examples).take(MEASURED_PROMPTS);
    let requests: Vec<(u64, Vec<u32>)> =
        examples.map(|prompt| (prompt.key, prompt.token_ids.clone())).collect();
    let short = sampler.limited_to(MEASURED_TOKENS as usize);
    let start = Instant::now();
    let groups = short.groups(model, &requests)?;
    let n_tokens: usize = groups.iter().flatten().map(|drawn| drawn.token_ids.len()).sum();
    Ok(n_tokens as f64 / start.elapsed().as_secs_f64())
}
