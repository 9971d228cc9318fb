//! Log-probabilities of a stage's replies under its reference policy: the model as the stage finds it, another one, or one that
//! follows the policy.
//!
//! A reference that stays as it is scores every row once, before the first step. Where it is the model as the stage finds it, that is
//! done by the trainer's own model, so that at step 0 the policy equals its reference bit for bit, whatever trains (all weights, any
//! adapter, any quantisation). Values are kept by content ([`cache`]), for a resumed run and for others on the same rows. One that
//! follows the policy ([`following`]) scores every step anew, and held-out rows once, as it is at first: their losses can then be
//! compared along the run.

mod cache;
mod following;
mod identity;
mod named;

use std::path::Path;

use pt_engine::{Dtype, Tape};
use pt_models::Model;
use pt_recipe::PlannedStage;
use pt_train::{Example, MicroBatch, ReferenceSync, Trainer, score_with};

use crate::error::{PipelineError, Result};
use crate::stage::StageData;
use cache::{Cache, key_of};
pub(crate) use following::Following;
pub use named::{Extent, expect_same_tokens};
pub(crate) use named::{POLICY, check_same_tokens, load_critic, load_named, named_bytes, named_files};

/// A model that says log-probabilities, and how.
#[derive(Clone, Copy)]
pub(crate) struct Scoring<'m> {
    pub(crate) model: &'m Model,
    /// Storage of activations.
    pub(crate) dtype: Dtype,
    /// Divides the logits.
    pub(crate) temperature: f32,
}

/// Where log-probabilities are kept, beside what else is kept between runs, or in the stage's own folder.
pub(crate) const FOLDER: &str = "reference-logp";

/// Which of a stage's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    All,
    HeldOut,
}

/// Fills in zeros: for measuring what steps cost.
pub(crate) fn fill_with_zeros(data: &mut StageData) {
    let zeros = |example: &mut Example| {
        for reply in &mut example.replies {
            reply.known.reference_logp = vec![0.0; reply.token_ids.len()];
        }
    };
    for_each_example(data, Rows::All, zeros);
}

/// How a stage's reference follows the policy; `None` where it stays as it is.
pub(crate) fn sync_of(planned: &PlannedStage) -> Option<ReferenceSync> {
    let reference = planned.reference.as_ref()?;
    Some(ReferenceSync { steps: reference.sync_steps?, mixup_alpha: reference.mixup_alpha })
}

/// Refuses keys of a reference that nothing reads.
///
/// # Errors
/// [`PipelineError::Unsupported`].
pub(crate) fn check_is_read(planned: &PlannedStage, is_read: bool) -> Result<()> {
    if is_read || planned.reference.is_none() {
        return Ok(());
    }
    Err(PipelineError::Unsupported {
        what: format!(
            "stage `{}` has a [stage.reference], which neither its objective `{}` nor its rewards compare with",
            planned.name, planned.objective.r#type
        ),
        advice: "remove it, or give the divergence a weight (objective.beta, rollout.reward_kl, ppo.kl_coef)"
            .to_owned(),
    })
}

/// Fills in what the policy says before the first step, and refuses to begin where the two differ: then one of them is not what it
/// should be, and every margin would be wrong. Values that were kept and do not agree with the policy are computed again.
///
/// # Errors
/// [`PipelineError::ReferenceDiffers`]; those of scoring.
pub(crate) fn fill_own(
    data: &mut StageData,
    trainer: &Trainer,
    dir: &Path,
    tokens_per_micro_batch: usize,
) -> Result<Vec<String>> {
    let scoring = of_trainer(trainer);
    let cache = Cache::open(dir, &identity::of(scoring));
    let mut notes = fill(data, scoring, Rows::All, Some(&cache), tokens_per_micro_batch)?;
    if check_equal(trainer, &data.steps.micro_batches(0)?).is_err() {
        cache.forget();
        notes.extend(fill(data, scoring, Rows::All, Some(&cache), tokens_per_micro_batch)?);
        check_equal(trainer, &data.steps.micro_batches(0)?)?;
    }
    Ok(notes)
}

/// Fills in what another model says.
///
/// # Errors
/// Those of scoring.
pub(crate) fn fill_other(
    data: &mut StageData,
    rows: Rows,
    scoring: Scoring<'_>,
    dir: &Path,
    tokens_per_micro_batch: usize,
) -> Result<Vec<String>> {
    let cache = Cache::open(dir, &identity::of(scoring));
    fill(data, scoring, rows, Some(&cache), tokens_per_micro_batch)
}

/// The trainer's model, scoring as it trains.
pub(crate) fn of_trainer(trainer: &Trainer) -> Scoring<'_> {
    let options = trainer.options();
    Scoring { model: &trainer.model, dtype: options.dtype, temperature: options.temperature }
}

/// Fills in what a model says, or what was kept of it. Returns what a person should know.
fn fill(
    data: &mut StageData,
    scoring: Scoring<'_>,
    rows: Rows,
    cache: Option<&Cache>,
    tokens_per_micro_batch: usize,
) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for_each_example(data, rows, |example| keys.push(key_of(example)));
    let mut known = cache.map_or_else(Default::default, |cache| cache.read(&keys));
    let mut missing = Vec::new();
    let mut index = 0;
    for_each_example(data, rows, |example| {
        if !known.contains_key(&keys[index]) {
            missing.push((keys[index], example.clone()));
        }
        index += 1;
    });
    missing.sort_by_key(|(key, _)| *key);
    missing.dedup_by_key(|(key, _)| *key);
    let (new_keys, examples): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
    let values = score(examples, scoring, tokens_per_micro_batch)?;
    let new: Vec<_> = new_keys.into_iter().zip(values).collect();
    // What cannot be kept is no worse, only slower the next time.
    let problem = cache.filter(|_| !new.is_empty()).and_then(|cache| cache.add(&new).err());
    known.extend(new);
    let mut keys = keys.into_iter();
    for_each_example(data, rows, |example| {
        let values = &known[&keys.next().expect("a key for every example")];
        spread(example, values);
    });
    let note =
        |problem| format!("the reference's log-probabilities could not be kept for other runs: {problem}");
    Ok(problem.map(note).into_iter().collect())
}

/// Gives every token of an example's replies its value.
fn spread(example: &mut Example, values: &[f32]) {
    let mut values = values.iter().copied();
    for reply in &mut example.replies {
        reply.known.reference_logp = values.by_ref().take(reply.token_ids.len()).collect();
    }
}

/// Refuses to begin where the policy is not its reference.
///
/// # Errors
/// [`PipelineError::ReferenceDiffers`].
pub(crate) fn check_equal(trainer: &Trainer, micro_batches: &[MicroBatch]) -> Result<()> {
    for micro_batch in micro_batches {
        let predictions = micro_batch.predictions();
        let policy = trainer.logprobs(micro_batch)?.logp;
        let reference = &predictions.known.reference_logp;
        let differs = policy.iter().zip(reference).position(|(a, b)| a.to_bits() != b.to_bits());
        if let Some(at) = differs {
            return Err(PipelineError::ReferenceDiffers {
                origin: micro_batch.example_of(predictions.rows[at]).origin.to_string(),
                policy: policy[at],
                reference: reference[at],
            });
        }
    }
    Ok(())
}

fn for_each_example(data: &mut StageData, rows: Rows, mut f: impl FnMut(&mut Example)) {
    if rows == Rows::All {
        for source in data.steps.sources_mut() {
            source.examples_mut().iter_mut().for_each(&mut f);
        }
    }
    for micro_batch in &mut data.eval {
        micro_batch.examples_mut().iter_mut().for_each(&mut f);
    }
}

/// For each example one value per token of every reply, 0 for those that do not train.
fn score(
    examples: Vec<Example>,
    scoring: Scoring<'_>,
    tokens_per_micro_batch: usize,
) -> Result<Vec<Vec<f32>>> {
    let lengths: Vec<usize> = examples.iter().map(Example::n_tokens).collect();
    let packs = pt_data::pack::sequential(&lengths, tokens_per_micro_batch)?;
    let (mut values, mut rest) = (Vec::new(), examples.into_iter());
    for pack in packs {
        let batch = MicroBatch::new(rest.by_ref().take(pack.len()).collect());
        values.extend(scoring.values(&batch)?);
    }
    Ok(values)
}

impl Scoring<'_> {
    /// For each example of a micro-batch one value per token of every reply, 0 for those that do not train.
    ///
    /// # Errors
    /// [`PipelineError::Unsupported`] for a model that does not know a token, or whose log-probabilities are no numbers.
    fn values(&self, micro_batch: &MicroBatch) -> Result<Vec<Vec<f32>>> {
        let vocabulary = self.model.config.vocab_size;
        for example in micro_batch.examples() {
            if let Some(id) = example.all_token_ids().find(|&id| id as usize >= vocabulary) {
                return Err(PipelineError::Unsupported {
                    what: format!(
                        "{}: token {id} is outside the reference's vocabulary of {vocabulary}",
                        example.origin
                    ),
                    advice: "name a reference with the policy's tokenizer".to_owned(),
                });
            }
        }
        let predictions = micro_batch.predictions();
        let logp = match predictions.rows.is_empty() {
            true => Vec::new(),
            false => {
                let batch = micro_batch.batch().expect("examples have tokens: the data loader checked");
                let tape = Tape::inference(&self.model.params, &batch, self.dtype);
                score_with(tape, self.model, self.temperature, &predictions).logp
            }
        };
        if let Some(at) = logp.iter().position(|logp| !logp.is_finite()) {
            return Err(PipelineError::Unsupported {
                what: format!(
                    "the reference gives a token of {} the log-probability {}",
                    micro_batch.example_of(predictions.rows[at]).origin,
                    logp[at]
                ),
                advice: "its weights are damaged, or no numbers: name another".to_owned(),
            });
        }
        let mut logp = logp.into_iter();
        let mut value = |w: &f32| if *w == 0.0 { 0.0 } else { logp.next().expect("one per trained token") };
        Ok(micro_batch
            .examples()
            .iter()
            .map(|example| example.replies.iter().flat_map(|reply| &reply.weights).map(&mut value).collect())
            .collect())
    }

    /// Fills in what the model says of a micro-batch.
    ///
    /// # Errors
    /// As [`Scoring::values`].
    fn fill(&self, micro_batch: &mut MicroBatch) -> Result<()> {
        let values = self.values(micro_batch)?;
        for (example, values) in micro_batch.examples_mut().iter_mut().zip(values) {
            spread(example, &values);
        }
        Ok(())
    }
}
