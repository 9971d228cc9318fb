//! What the policy itself says of samples that another program drew.

use pt_engine::Tape;
use pt_models::Model;
use pt_train::{Example, MicroBatch, score_with};

use super::group_examples;
use super::round::Group;
use super::source::Rounds;

impl Rounds<'_> {
    /// Puts the policy's own log-probabilities in the place of the server's, which stay as those of the sampler.
    pub(super) fn score_own(&self, groups: &mut [Group], model: &Model) {
        let temperature = self.options.rollout.temperature as f32;
        for group in groups {
            let mut whole = self.example(group, 0);
            let mut replies = std::mem::take(&mut whole.replies);
            replies.iter_mut().for_each(|reply| reply.weights.fill(1.0));
            let parts = group_examples(&whole, replies, self.options.tokens_per_micro_batch);
            let logp = parts.into_iter().flat_map(|part| self.logp_of(model, temperature, part));
            let mut logp = logp.collect::<Vec<f32>>().into_iter();
            for drawn in &mut group.drawn {
                let own = logp.by_ref().take(drawn.token_ids.len());
                drawn.logprobs = own
                    .zip(&drawn.weights)
                    .map(|(logp, weight)| if *weight > 0.0 { logp } else { 0.0 })
                    .collect();
            }
        }
    }

    fn logp_of(&self, model: &Model, temperature: f32, group: Example) -> Vec<f32> {
        let micro_batch = MicroBatch::new(vec![group]);
        let predictions = micro_batch.predictions();
        let batch = micro_batch.batch().expect("prompts and replies have tokens");
        let tape = Tape::inference(&model.params, &batch, self.options.dtype);
        score_with(tape, model, temperature, &predictions).logp
    }
}
