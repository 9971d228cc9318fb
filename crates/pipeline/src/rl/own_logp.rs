//! What the policy itself says of samples that another program drew.

use pt_models::Model;

use super::reference::GroupScorer;
use super::round::Group;
use super::source::Rounds;

impl Rounds<'_> {
    /// Puts the policy's own log-probabilities in the place of the server's, which stay as those of the sampler.
    pub(super) fn score_own(&self, groups: &mut [Group], model: &Model) {
        let scorer = GroupScorer {
            model,
            has_adapters: true,
            dtype: self.options.dtype,
            temperature: self.options.rollout.temperature as f32,
            max_tokens: self.options.tokens_per_micro_batch,
        };
        for group in groups {
            let mut logp = scorer.logp(self.example(group, 0));
            for drawn in &mut group.drawn {
                let own = logp.by_ref().take(drawn.token_ids.len());
                drawn.logprobs = own
                    .zip(&drawn.weights)
                    .map(|(logp, weight)| if *weight > 0.0 { logp } else { 0.0 })
                    .collect();
            }
        }
    }
}
