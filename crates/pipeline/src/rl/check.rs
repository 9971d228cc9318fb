//! Settings of a stage that samples which do not go together.

use pt_recipe::{PlannedReward, PlannedRollout, RewardAggregation};
use pt_rl::length::SoftOverlong;

use crate::error::{PipelineError, Result};

/// Refuses settings of which one would have no effect.
///
/// # Errors
/// [`PipelineError::Unsupported`] says which, [`PipelineError::Rl`] for numbers out of range.
pub(crate) fn check_rollout(rollout: &PlannedRollout, rewards: &[PlannedReward]) -> Result<()> {
    if let Some(overlong) = soft_overlong(rollout) {
        overlong.check()?;
    }
    if rollout.aggregation == RewardAggregation::SumThenNormalize {
        return Ok(());
    }
    let refuse = |what: &str| {
        Err(PipelineError::Unsupported {
            what: format!(
                "rollout.aggregation = \"normalize_then_sum\" standardises each verifier by itself, and {what} is part of none"
            ),
            advice: "use aggregation = \"sum_then_normalize\", or leave it out".to_owned(),
        })
    };
    match () {
        () if rollout.reward_kl > 0.0 => refuse("rollout.reward_kl"),
        () if rollout.overlong_cache > 0 => refuse("the punishment of rollout.overlong_cache"),
        () if rewards.iter().any(|reward| reward.gate.is_some()) => refuse("the gate of a reward"),
        () => Ok(()),
    }
}

/// DAPO's punishment of length, if the stage has it.
pub(super) fn soft_overlong(rollout: &PlannedRollout) -> Option<SoftOverlong> {
    (rollout.overlong_cache > 0).then_some(SoftOverlong {
        max_completion_len: rollout.max_new_tokens as usize,
        soft_punish_cache: rollout.overlong_cache as usize,
    })
}
