//! What judged samples are turned into: the one thing in which the kinds of rounds differ.
//!
//! ```text
//! groups --judge--> records (written to the rollouts file) --apply--> examples that train
//! ```
//!
//! What trains is made from the records alone, so that a run resumed in the middle of a round, which reads them back, trains on
//! the same.

use std::collections::BTreeMap;

use pt_engine::Dtype;
use pt_models::Model;
use pt_recipe::PlannedStage;
use pt_rl::metrics::reward_metrics;
use pt_rl::{AdvantageConfig, Baseline, RolloutRecord, ScaleRewards};
use pt_run::{OwnedTensor, TensorEntry};
use pt_train::{Example, MicroBatch, Trainer};

use super::advantages::GroupAdvantages;
use super::best::Best;
use super::pairs::{Mixture, Pairs};
use super::reference::Reference;
use super::sampler::{Drawn, Prompt, Sampler};
use super::taught::Taught;
use super::values::Values;
use crate::error::Result;

/// Figures by name.
pub(crate) type Figures = Vec<(String, f64)>;

/// A round's samples, judged; arrays have a place for each sample, group after group.
pub(crate) struct JudgedRound<'a> {
    /// The policy as it sampled.
    pub(crate) model: &'a Model,
    /// Storage of activations.
    pub(crate) dtype: Dtype,
    /// What passes over groups are cut to.
    pub(crate) tokens_per_micro_batch: usize,
    /// The rewards' names.
    pub(crate) names: Vec<&'a str>,
    /// Their weights.
    pub(crate) weights: Vec<f64>,
    /// What each reward says of each sample.
    pub(crate) scores: Vec<Vec<Option<f64>>>,
    /// What each sample is worth.
    pub(crate) totals: Vec<Option<f64>>,
    /// Each sample's group.
    pub(crate) members: Vec<usize>,
}

impl JudgedRound<'_> {
    /// What the rewards were, whatever is made of them.
    pub(crate) fn reward_metrics(&self) -> Result<Figures> {
        let (baseline, scale_rewards) = (Baseline::None, ScaleRewards::None);
        let plain = AdvantageConfig { baseline, scale_rewards, ..AdvantageConfig::default() };
        Ok(reward_metrics(&self.names, &self.scores, &plain.of_totals(&self.totals, &self.members)?))
    }
}

/// Turns judged samples into what a round trains on.
pub(crate) trait Credit {
    /// Draws a group of replies to each prompt.
    ///
    /// # Errors
    /// Those of sampling.
    fn sample(
        &self,
        sampler: &Sampler<'_>,
        model: &Model,
        reference: Option<&Reference>,
        prompts: &[Prompt<'_>],
    ) -> Result<Vec<Vec<Drawn>>> {
        let _ = reference;
        sampler.samples(model, prompts)
    }

    /// Notes in the records, one to each sample, what the round makes of them. The examples are the groups, with every reply and
    /// what the reference says of it.
    ///
    /// # Errors
    /// Numbers that are not finite.
    fn judge(
        &mut self,
        round: &JudgedRound<'_>,
        examples: &[Example],
        records: &mut [RolloutRecord],
    ) -> Result<Figures>;

    /// Makes of a group what trains; `records` are those of its replies, in order.
    fn apply(&self, records: &[RolloutRecord], group: &mut Example);

    /// Whether the replies of a group must be in one micro-batch.
    fn keeps_groups(&self) -> bool {
        false
    }

    /// Whether a group whose samples are all worth the same teaches nothing.
    fn compares_groups(&self) -> bool {
        true
    }

    /// Whether [`Credit::judge`] reads what the reference says of each token.
    fn reads_reference(&self) -> bool {
        false
    }

    /// Whether [`Credit::sample`] needs the reference as a model of its own.
    fn samples_reference(&self) -> bool {
        false
    }

    /// Trains what the credit itself learns beside the policy, such as a critic, on what a step trains on; nothing at all: the step is
    /// left out.
    ///
    /// # Errors
    /// Those of a training step.
    fn train(&mut self, micro_batches: &[MicroBatch]) -> Result<Figures> {
        let _ = micro_batches;
        Ok(Vec::new())
    }

    /// What a checkpoint keeps beside [`Credit::state`] that is too large for it.
    fn tensors(&self) -> Vec<TensorEntry<'static>> {
        Vec::new()
    }

    /// Puts back what [`Credit::tensors`] gave, by name; after [`Credit::restore`].
    ///
    /// # Errors
    /// If they are not tensors of this kind.
    fn restore_tensors(&mut self, tensors: &mut BTreeMap<String, OwnedTensor>) -> Result<()> {
        let _ = tensors;
        Ok(())
    }

    /// What a checkpoint keeps.
    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Puts back what [`Credit::state`] gave.
    ///
    /// # Errors
    /// If it is not a state of this kind.
    fn restore(&mut self, state: &serde_json::Value) -> std::result::Result<(), serde_json::Error> {
        let _ = state;
        Ok(())
    }
}

/// Values said by a critic.
///
/// # Errors
/// Options out of range.
///
/// # Panics
/// If the stage has no options of ppo.
pub(crate) fn values_of_critic(planned: &PlannedStage, critic: Trainer) -> Result<Box<dyn Credit>> {
    Ok(Box::new(Values::new(planned.ppo.as_ref().expect("ppo has its options"))?.with_critic(critic)))
}

/// What the stage makes of its samples.
///
/// # Errors
/// Options out of range.
///
/// # Panics
/// If the stage does not sample.
pub(crate) fn build_credit(planned: &PlannedStage, seed: u64) -> Result<Box<dyn Credit>> {
    use pt_recipe::Credit as Kind;
    let kind = pt_recipe::StageType::named(&planned.r#type).and_then(|kind| kind.rollout);
    let (kind, rollout) = (kind.expect("the stage samples").credit, planned.rollout.as_ref());
    let rollout = rollout.expect("the stage samples");
    let online = || planned.online.as_ref().expect("an online method has its options");
    Ok(match kind {
        Kind::Advantages => Box::new(GroupAdvantages::new(rollout)),
        Kind::Values => Box::new(Values::new(planned.ppo.as_ref().expect("ppo has its options"))?),
        Kind::Pair => Box::new(Pairs::of_policy()),
        Kind::ReferencePair => Box::new(Pairs::with_reference(seed)),
        Kind::Mixture => Box::new(Mixture::new(online().mixture_coef, seed)),
        Kind::Teacher => Box::new(Taught),
        Kind::Divergence => panic!("a stage on rows and a teacher judges no samples"),
        Kind::Best => Box::new(Best::new(online().min_reward)),
    })
}
