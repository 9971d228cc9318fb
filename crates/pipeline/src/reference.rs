//! Log-probabilities of a stage's replies under its reference policy: the model as the stage finds it.
//!
//! They are computed once, before the first step, by the trainer itself, so that at step 0 the policy equals its reference bit
//! for bit, whatever trains (all weights, any adapter, any quantisation). They stay in the stage's folder, keyed by content: a
//! resumed run reads them.

use std::path::{Path, PathBuf};

use pt_core::{atomic_file, hash};
use pt_train::{Example, MicroBatch, Trainer};

use crate::error::{PipelineError, Result};
use crate::stage::StageData;

/// Bumped when the same tokens would get other values.
const VERSION: &str = "reference log-probabilities 1";

/// Fills in zeros: for measuring what steps cost.
pub(crate) fn fill_with_zeros(data: &mut StageData) {
    let zeros = |example: &mut Example| {
        for reply in &mut example.replies {
            reply.known.reference_logp = vec![0.0; reply.token_ids.len()];
        }
    };
    for_each_example(data, zeros);
}

/// Fills in what `trainer`'s model says, or what an earlier life of the run kept at `path` for the same `identity`.
///
/// # Errors
/// Those of scoring; a file that cannot be written.
pub(crate) fn fill(
    data: &mut StageData,
    trainer: &Trainer,
    identity: &str,
    path: PathBuf,
    tokens_per_micro_batch: usize,
) -> Result<()> {
    let key = key_of(data, identity);
    let values = match read(&path, &key) {
        Some(values) => values,
        None => {
            let values = score(data, trainer, tokens_per_micro_batch)?;
            write(&path, &key, &values)?;
            values
        }
    };
    let mut values = values.into_iter();
    for_each_example(data, |example| {
        for reply in &mut example.replies {
            reply.known.reference_logp = values.by_ref().take(reply.token_ids.len()).collect();
        }
    });
    Ok(())
}

/// Refuses to begin where the policy is not its reference: then one of the two is not what it should be, and every margin
/// would be wrong.
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

fn for_each_example(data: &mut StageData, mut f: impl FnMut(&mut Example)) {
    for source in data.steps.sources_mut() {
        source.examples_mut().iter_mut().for_each(&mut f);
    }
    for micro_batch in &mut data.eval {
        micro_batch.examples_mut().iter_mut().for_each(&mut f);
    }
}

fn examples(data: &mut StageData) -> Vec<Example> {
    let mut all = Vec::new();
    for_each_example(data, |example| all.push(example.clone()));
    all
}

/// One value per token of every reply, 0 for those that do not train.
fn score(data: &mut StageData, trainer: &Trainer, tokens_per_micro_batch: usize) -> Result<Vec<f32>> {
    let examples = examples(data);
    let lengths: Vec<usize> = examples.iter().map(Example::n_tokens).collect();
    let packs = pt_data::pack::sequential(&lengths, tokens_per_micro_batch)?;
    let (mut values, mut rest) = (Vec::new(), examples.into_iter());
    for pack in packs {
        let batch = MicroBatch::new(rest.by_ref().take(pack.len()).collect());
        let mut logp = trainer.logprobs(&batch)?.logp.into_iter();
        for reply in batch.examples().iter().flat_map(|example| &example.replies) {
            let value = |w: &f32| if *w == 0.0 { 0.0 } else { logp.next().expect("one per trained token") };
            values.extend(reply.weights.iter().map(value));
        }
    }
    Ok(values)
}

fn key_of(data: &mut StageData, identity: &str) -> String {
    let mut bytes = Vec::new();
    for_each_example(data, |example| {
        bytes.extend(example.all_token_ids().flat_map(u32::to_le_bytes));
        bytes.push(b'|');
    });
    hash::of_parts([VERSION.as_bytes(), identity.as_bytes(), &bytes])
}

fn write(path: &Path, key: &str, values: &[f32]) -> Result<()> {
    let mut bytes = key.as_bytes().to_vec();
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    let checksum = hash::of_bytes(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    atomic_file::write(path, &bytes).map_err(PipelineError::io("write", path))
}

/// The values of a file that is whole and of this key.
fn read(path: &Path, key: &str) -> Option<Vec<f32>> {
    let bytes = std::fs::read(path).ok()?;
    let (body, checksum) = bytes.split_at_checked(bytes.len().checked_sub(key.len())?)?;
    let values = body.strip_prefix(key.as_bytes())?;
    (hash::of_bytes(body).as_bytes() == checksum)
        .then(|| values.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
