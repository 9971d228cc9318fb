//! Steps of a student that is compared with its teacher's whole distribution (GKD): on its own samples, on the teacher's, or on rows.
//!
//! Each step is on the student's own samples with probability λ; the draw is keyed by the step, so that a resumed run draws the same. A
//! sample continues what stands before the last stretch of a row that trains, which is the prompt of a row with one, and the last
//! prompt of a conversation. Everything here is a function of the step, the seed and the weights: there is nothing to record.
//!
//! Differences from TRL: there every process draws for itself; here a step is one thing. A sample that was cut has no end token to
//! learn, there as here.

use std::sync::Arc;

use pt_core::rng::Stream;
use pt_models::Model;
use pt_recipe::{Mask, Packing, PlannedOnPolicy, PlannedStage, Recipe, StageSection};
use pt_text::Tokenizer;
use pt_train::{Alarm, Example, SourceResult, StepData, StepSource, StepStats, Trainer};

use crate::error::{PipelineError, Result};
use crate::model::load_teacher;
use crate::rl::{Sampler, pack_groups};
use crate::source::Surroundings;
use crate::steps::Steps;

/// The steps of a distillation stage on rows.
pub(crate) struct Distilled<'t> {
    rows: Steps,
    sampler: Sampler<'t>,
    teacher: Arc<Model>,
    on_policy: PlannedOnPolicy,
    seed: u64,
    tokens_per_micro_batch: usize,
}

impl<'t> Distilled<'t> {
    pub(crate) fn new(
        rows: Steps,
        sampler: Sampler<'t>,
        teacher: Arc<Model>,
        on_policy: PlannedOnPolicy,
        seed: u64,
        tokens_per_micro_batch: usize,
    ) -> Distilled<'t> {
        Distilled { rows, sampler, teacher, on_policy, seed, tokens_per_micro_batch }
    }

    /// Whether a step is on the student's own samples.
    fn is_on_policy(&self, step_idx: u64) -> bool {
        Stream::new(self.seed, "on-policy").at(step_idx).uniform() < self.on_policy.lmbda
    }

    /// A step's rows with what `author` writes in place of their replies.
    fn sampled(&mut self, step_idx: u64, author: &Model) -> Result<StepData> {
        let mut rows = Vec::new();
        for (i, at) in self.rows.rows(step_idx)?.into_iter().enumerate() {
            rows.push(self.rows.sources()[at.source_idx].example(at.row_idx, step_idx << 32 | i as u64)?);
        }
        let request = |row: &Example| (row.key, prompt_of(row).to_vec());
        let requests: Vec<(u64, Vec<u32>)> = rows.iter().map(request).collect();
        let drawn = self.sampler.groups(author, &requests)?;
        let (mut examples, mut n_tokens, mut n_cut) = (Vec::new(), 0, 0);
        for (row, sample) in rows.iter().zip(drawn.into_iter().flatten()) {
            n_tokens += sample.token_ids.len();
            n_cut += usize::from(sample.is_truncated);
            examples.push(continued(row, &sample.token_ids));
        }
        let n = examples.len().max(1) as f64;
        let metrics = vec![
            ("completions/mean_length".to_owned(), n_tokens as f64 / n),
            ("completions/clipped_ratio".to_owned(), n_cut as f64 / n),
        ];
        Ok(StepData { micro_batches: pack_groups(examples, self.tokens_per_micro_batch), metrics })
    }
}

/// The trainer with the stage's teacher, where its objective compares with one.
///
/// # Errors
/// A teacher that cannot be read, or has other tokens than the student.
pub(crate) fn with_teacher(
    trainer: Trainer,
    recipe: &Recipe,
    section: &StageSection,
    tokenizer: &Tokenizer,
    surroundings: &Surroundings,
) -> Result<Trainer> {
    if trainer.objective().needs().divergence.is_none() {
        return Ok(trainer);
    }
    let teacher = load_teacher(recipe, section, tokenizer, surroundings, &trainer.model)?;
    Ok(trainer.with_teacher(Arc::new(teacher))?)
}

/// What stands before the last stretch of a row that trains; at least its first token.
fn prompt_of(row: &Example) -> &[u32] {
    let trains = |at: &usize| row.weights[*at] > 0.0;
    let end = (0..row.weights.len()).rev().find(trains).unwrap_or(0);
    let start = (0..=end).rev().take_while(trains).last().unwrap_or(end);
    &row.token_ids[..start.max(1)]
}

/// A row's prompt with another reply, all of which trains.
fn continued(row: &Example, reply: &[u32]) -> Example {
    let prompt = prompt_of(row);
    let token_ids = [prompt, reply].concat();
    let weights = (0..token_ids.len()).map(|at| if at < prompt.len() { 0.0 } else { 1.0 }).collect();
    Example::sequence(token_ids, weights, row.key, row.origin.clone())
}

/// Refuses rows that nothing can be sampled from, where the stage samples.
///
/// # Errors
/// [`PipelineError::Unsupported`] for rows without a prompt, and for rows that are joined and cut.
pub(crate) fn check_rows(planned: &PlannedStage, on_policy: PlannedOnPolicy) -> Result<()> {
    if on_policy.lmbda == 0.0 && !on_policy.seq_kd {
        return Ok(());
    }
    let unsupported = |what: String| {
        let advice = "give rows with a prompt or conversations, or set distillation.lmbda = 0 and leave out seq_kd: the stage then \
                      learns on its rows alone";
        Err(PipelineError::Unsupported { what, advice: advice.to_owned() })
    };
    if planned.data.packing == Packing::Wrapped {
        return unsupported(
            "pieces of rows that are joined and cut (packing = \"wrapped\") have no prompt to sample from"
                .to_owned(),
        );
    }
    match planned.data.train.iter().find(|source| source.mask == Mask::All) {
        Some(source) => unsupported(format!(
            "every token of the rows of {} trains, so that they have no prompt to sample from",
            source.source
        )),
        None => Ok(()),
    }
}

impl StepSource for Distilled<'_> {
    fn step(&mut self, step_idx: u64, model: &Model) -> SourceResult<StepData> {
        let is_on_policy = self.is_on_policy(step_idx);
        let teacher = self.teacher.clone();
        let mut data = match (is_on_policy, self.on_policy.seq_kd) {
            (true, _) => self.sampled(step_idx, model)?,
            (false, true) => self.sampled(step_idx, &teacher)?,
            (false, false) => StepData::from(self.rows.micro_batches(step_idx)?),
        };
        data.metrics.push(("on_policy".to_owned(), f64::from(u8::from(is_on_policy))));
        Ok(data)
    }

    fn epoch(&mut self, steps_done: u64) -> f64 {
        self.rows.epoch(steps_done)
    }

    fn state(&self) -> serde_json::Value {
        self.rows.state()
    }

    fn restore(&mut self, state: &serde_json::Value) -> SourceResult<()> {
        self.rows.restore(state)
    }

    fn after_step(&mut self, step_idx: u64, stats: &StepStats) -> SourceResult<Vec<Alarm>> {
        self.rows.after_step(step_idx, stats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_continues_what_stands_before_the_last_trained_stretch() {
        let check = |weights: &[f32], expected: usize| {
            let ids: Vec<u32> = (10..10 + weights.len() as u32).collect();
            let row = Example::sequence(ids, weights.to_vec(), 3, "t".into());
            assert_eq!(prompt_of(&row).len(), expected, "{weights:?}");
            let other = continued(&row, &[7, 8]);
            assert_eq!(other.token_ids.len(), expected + 2);
            assert_eq!(&other.token_ids[expected..], [7, 8]);
            assert_eq!(other.weights.iter().sum::<f32>(), 2.0);
            assert_eq!((other.key, &*other.origin), (3, "t"));
        };
        // A completion; an end of turn that does not train; two turns; everything; a lone first token.
        check(&[0.0, 0.0, 1.0, 1.0], 2);
        check(&[0.0, 0.0, 1.0, 0.5, 0.0], 2);
        check(&[0.0, 1.0, 1.0, 0.0, 0.0, 1.0], 5);
        check(&[1.0, 1.0, 1.0], 1);
        check(&[0.0, 1.0], 1);
    }
}
