//! The reference policy of a stage that samples: the model as the stage found it, another one, one that follows the policy, or a teacher.

use pt_engine::{Dtype, Tape};
use pt_models::Model;
use pt_recipe::{LoraInit, PlannedStage, StageSection};
use pt_train::{Example, FollowingReference, MicroBatch, Trainer, score_with};

use super::credit::Credit;
use super::group_examples;

/// Where the reference's log-probabilities come from.
#[derive(Debug)]
pub(crate) enum Reference {
    /// The model being trained without its adapter: nothing more in memory.
    WithoutAdapter,
    /// A model of its own.
    Frozen(Box<Model>),
    /// One that follows the policy.
    Following(Box<FollowingReference>),
}

/// Which reference policy a stage has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReferenceKind {
    /// Another model, from which the stage distils.
    Teacher,
    /// Another model that the stage names.
    Named,
    /// The model being trained without its adapter, which began without effect.
    WithoutAdapter,
    /// The model as the stage found it, read once more.
    Frozen,
}

impl ReferenceKind {
    /// That of a stage that samples; `None` where nothing reads one.
    pub(crate) fn of(
        planned: &PlannedStage,
        section: &StageSection,
        trainer: &Trainer,
        credit: &dyn Credit,
    ) -> Option<ReferenceKind> {
        let is_reward_cut = planned.rollout.as_ref().is_some_and(|rollout| rollout.reward_kl > 0.0);
        let is_read = trainer.objective().needs().reference_logp || is_reward_cut || credit.reads_reference();
        let begins_without_effect = section.lora.init == LoraInit::Default;
        let other = planned.reference.as_ref();
        match (credit.samples_reference(), is_read) {
            _ if planned.distillation.is_some() => Some(ReferenceKind::Teacher),
            (false, false) => None,
            _ if other.is_some_and(|reference| reference.model.is_some()) => Some(ReferenceKind::Named),
            // One that moves is a model of its own.
            _ if other.is_some() => Some(ReferenceKind::Frozen),
            (true, _) => Some(ReferenceKind::Frozen),
            (false, true) if trainer.model.adapter().is_some() && begins_without_effect => {
                Some(ReferenceKind::WithoutAdapter)
            }
            (false, true) => Some(ReferenceKind::Frozen),
        }
    }
}

impl Reference {
    /// Fills in the log-probability of every token of these examples' replies, at the sampling temperature; also of those that are
    /// masked, since a divergence in the reward counts for them too. Groups are cut to `max_tokens`, as in training.
    pub(crate) fn fill(
        &self,
        model: &Model,
        dtype: Dtype,
        temperature: f32,
        max_tokens: usize,
        examples: &mut [Example],
    ) {
        let own = self.own_model();
        let scorer = GroupScorer {
            model: own.unwrap_or(model),
            has_adapters: own.is_some(),
            dtype,
            temperature,
            max_tokens,
        };
        for example in examples {
            let mut logp = scorer.logp(example.clone());
            for reply in &mut example.replies {
                reply.known.reference_logp = logp.by_ref().take(reply.token_ids.len()).collect();
            }
        }
    }

    /// The reference as a model, where it is one of its own.
    pub(crate) fn own_model(&self) -> Option<&Model> {
        match self {
            Reference::WithoutAdapter => None,
            Reference::Frozen(model) => Some(model),
            Reference::Following(following) => Some(&following.model),
        }
    }
}

/// What a model says of groups.
pub(super) struct GroupScorer<'m> {
    pub(super) model: &'m Model,
    /// Whether its adapters take part.
    pub(super) has_adapters: bool,
    pub(super) dtype: Dtype,
    pub(super) temperature: f32,
    /// What groups are cut to, as in training.
    pub(super) max_tokens: usize,
}

impl GroupScorer<'_> {
    /// Log-probabilities of every token of a group's replies, also of those that are masked, one reply after the other.
    pub(super) fn logp(&self, mut group: Example) -> std::vec::IntoIter<f32> {
        let mut replies = std::mem::take(&mut group.replies);
        replies.iter_mut().for_each(|reply| reply.weights.fill(1.0));
        let parts = group_examples(&group, replies, self.max_tokens);
        parts.into_iter().flat_map(|part| self.logp_of(part)).collect::<Vec<f32>>().into_iter()
    }

    fn logp_of(&self, part: Example) -> Vec<f32> {
        let micro_batch = MicroBatch::new(vec![part]);
        let predictions = micro_batch.predictions();
        if predictions.rows.is_empty() {
            return Vec::new();
        }
        let batch = micro_batch.batch().expect("prompts and replies have tokens");
        let tape = Tape::inference(&self.model.params, &batch, self.dtype);
        let tape = if self.has_adapters { tape } else { tape.without_adapters() };
        score_with(tape, self.model, self.temperature, &predictions).logp
    }
}
