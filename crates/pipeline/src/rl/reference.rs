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
    /// Fills in the log-probability of every trained token of these examples' replies, at the sampling temperature.
    pub(crate) fn fill(&self, model: &Model, dtype: Dtype, temperature: f32, examples: &mut [Example]) {
        for example in examples {
            let micro_batch = MicroBatch::new(vec![example.clone()]);
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
                let value =
                    |w: &f32| if *w == 0.0 { 0.0 } else { logp.next().expect("one per trained token") };
                reply.known.reference_logp = reply.weights.iter().map(value).collect();
            }
        }
    }
}
