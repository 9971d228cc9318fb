//! An advantage of each sample, by comparison with its group: GRPO and its kin.

use pt_recipe::PlannedRollout;
use pt_rl::metrics::reward_metrics;
use pt_rl::{AdvantageConfig, MultiObjective, RolloutRecord};
use pt_train::Example;

use super::credit::{Credit, Figures, JudgedRound};
use crate::error::Result;

/// An advantage of each sample, the same for all of its tokens.
pub(crate) struct GroupAdvantages(AdvantageConfig);

impl GroupAdvantages {
    pub(crate) fn new(rollout: &PlannedRollout) -> GroupAdvantages {
        GroupAdvantages(advantage_config(rollout))
    }
}

impl Credit for GroupAdvantages {
    fn judge(
        &mut self,
        round: &JudgedRound<'_>,
        _: &[Example],
        records: &mut [RolloutRecord],
    ) -> Result<Figures> {
        let advantages = match self.0.multi_objective_aggregation {
            MultiObjective::SumThenNormalize => self.0.of_totals(&round.totals, &round.members)?,
            MultiObjective::NormalizeThenSum => {
                self.0.advantages(&round.scores, &round.weights, &round.members)?
            }
        };
        for (record, advantage) in records.iter_mut().zip(&advantages.values) {
            record.advantage = *advantage as f32;
        }
        Ok(reward_metrics(&round.names, &round.scores, &advantages))
    }

    fn apply(&self, records: &[RolloutRecord], group: &mut Example) {
        for (reply, record) in group.replies.iter_mut().zip(records) {
            reply.known.advantages = vec![record.advantage; reply.token_ids.len()];
        }
    }
}

fn advantage_config(rollout: &PlannedRollout) -> AdvantageConfig {
    use pt_recipe::{Baseline, RewardAggregation, ScaleRewards};
    AdvantageConfig {
        baseline: match rollout.baseline {
            Baseline::Group => pt_rl::Baseline::Group,
            Baseline::Batch => pt_rl::Baseline::Batch,
            Baseline::LeaveOneOut => pt_rl::Baseline::LeaveOneOut,
            Baseline::None => pt_rl::Baseline::None,
        },
        scale_rewards: match rollout.scale_rewards {
            ScaleRewards::Group => pt_rl::ScaleRewards::Group,
            ScaleRewards::Batch => pt_rl::ScaleRewards::Batch,
            ScaleRewards::None => pt_rl::ScaleRewards::None,
        },
        multi_objective_aggregation: match rollout.aggregation {
            RewardAggregation::SumThenNormalize => MultiObjective::SumThenNormalize,
            RewardAggregation::NormalizeThenSum => MultiObjective::NormalizeThenSum,
        },
        reward_clip_range: None,
        normalize_advantages: rollout.normalize_advantages,
    }
}
