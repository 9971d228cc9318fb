//! The reference policy of a stage that samples: the model as the stage found it.

use pt_engine::{Dtype, Tape};
use pt_models::Model;
use pt_train::{Example, MicroBatch, score_with};

/// Where the reference's log-probabilities come from.
#[derive(Debug)]
pub(crate) enum Reference {
    /// The model being trained without its adapter: nothing more in memory.
    WithoutAdapter,
    /// A model of its own.
    Frozen(Box<Model>),
}

impl Reference {
    /// Fills in the log-probability of every token of these examples' replies, at the sampling temperature; also of those that are
    /// masked, since a divergence in the reward counts for them too.
    pub(crate) fn fill(&self, model: &Model, dtype: Dtype, temperature: f32, examples: &mut [Example]) {
        for example in examples {
            let mut whole = example.clone();
            whole.replies.iter_mut().for_each(|reply| reply.weights.fill(1.0));
            let micro_batch = MicroBatch::new(vec![whole]);
            let predictions = micro_batch.predictions();
            if predictions.rows.is_empty() {
                continue;
            }
            let batch = micro_batch.batch().expect("prompts and replies have tokens");
            let model = match self {
                Reference::WithoutAdapter => model,
                Reference::Frozen(frozen) => frozen,
            };
            let tape = Tape::inference(&model.params, &batch, dtype);
            let tape = match self {
                Reference::WithoutAdapter => tape.without_adapters(),
                Reference::Frozen(_) => tape,
            };
            let mut logp = score_with(tape, model, temperature, &predictions).logp.into_iter();
            for reply in &mut example.replies {
                reply.known.reference_logp = logp.by_ref().take(reply.token_ids.len()).collect();
            }
        }
    }
}
