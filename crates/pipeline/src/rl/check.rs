//! Settings of a stage that samples which do not go together.

use pt_recipe::{Baseline, PlannedRollout, PlannedStage, RewardAggregation, ScaleRewards, StageType};
use pt_rl::length::SoftOverlong;

use crate::error::{PipelineError, Result};

/// Refuses settings of which one would have no effect.
///
/// # Errors
/// [`PipelineError::Unsupported`] says which, [`PipelineError::Rl`] for numbers out of range.
pub(crate) fn check_rollout(rollout: &PlannedRollout, stage: &PlannedStage) -> Result<()> {
    if let Some(overlong) = soft_overlong(rollout) {
        overlong.check()?;
    }
    if rollout.aggregation == RewardAggregation::SumThenNormalize {
        return check_scale(rollout);
    }
    let defaults = StageType::named(&stage.r#type).and_then(|kind| kind.rollout);
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
        () if rollout.missing_eos_penalty > 0.0 => refuse("rollout.missing_eos_penalty"),
        () if rollout.normalize_advantages => refuse("rollout.normalize_advantages"),
        () if defaults.is_some_and(|own| own.baseline != rollout.baseline) => refuse("rollout.baseline"),
        () if defaults.is_some_and(|own| own.scale_rewards != rollout.scale_rewards) => {
            refuse("rollout.scale_rewards")
        }
        () if stage.rewards.iter().any(|reward| reward.gate.is_some()) => refuse("the gate of a reward"),
        () => Ok(()),
    }
}

/// A group's deviation is no unit of the distance from anything else than the group: the more alike its samples are, the larger
/// would be what they share.
fn check_scale(rollout: &PlannedRollout) -> Result<()> {
    let is_of_group = matches!(rollout.baseline, Baseline::Group | Baseline::LeaveOneOut);
    if is_of_group || rollout.scale_rewards != ScaleRewards::Group {
        return Ok(());
    }
    Err(PipelineError::Unsupported {
        what: format!(
            "rollout.scale_rewards = \"group\" divides by the spread within a group, and rollout.baseline = \"{}\" compares \
             with something else",
            rollout.baseline.as_str()
        ),
        advice: "set rollout.scale_rewards to \"batch\" or \"none\", or leave out rollout.baseline"
            .to_owned(),
    })
}

/// DAPO's punishment of length, if the stage has it.
pub(super) fn soft_overlong(rollout: &PlannedRollout) -> Option<SoftOverlong> {
    (rollout.overlong_cache > 0).then_some(SoftOverlong {
        max_completion_len: rollout.max_new_tokens as usize,
        soft_punish_cache: rollout.overlong_cache as usize,
    })
}
