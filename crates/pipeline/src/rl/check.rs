//! Settings of a stage that samples which do not go together.

use pt_recipe::{Baseline, PlannedRollout, PlannedStage, RewardAggregation, ScaleRewards, StageType};
use pt_rl::length::SoftOverlong;

use crate::error::{PipelineError, Result};

/// Refuses settings of which one would have no effect.
///
/// # Errors
/// [`PipelineError::Unsupported`] says which, [`PipelineError::Rl`] for numbers out of range.
pub(crate) fn check_rollout(rollout: &PlannedRollout, stage: &PlannedStage) -> Result<()> {
    check_environment(stage)?;
    check_server(stage)?;
    if let Some(overlong) = soft_overlong(rollout, stage.completion_limit()) {
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

/// Refuses methods whose samples cannot come from an environment.
fn check_environment(stage: &PlannedStage) -> Result<()> {
    use pt_recipe::Credit;
    let credit = StageType::named(&stage.r#type).and_then(|kind| kind.rollout).map(|own| own.credit);
    let why = match credit.filter(|_| stage.environment.is_some()) {
        Some(Credit::Values) => "has a critic, which would value what the environment said",
        Some(Credit::Mixture) => "plays against a mixture of two models, which takes one turn",
        _ => return Ok(()),
    };
    Err(PipelineError::Unsupported {
        what: format!("a stage of type `{}` {why}", stage.r#type),
        advice: "use a method of group advantages, as grpo, dapo or rloo, or remove [stage.environment]"
            .to_owned(),
    })
}

/// Refuses methods that sample from other models beside the policy, which the server does not have.
fn check_server(stage: &PlannedStage) -> Result<()> {
    use pt_recipe::Credit;
    let credit = StageType::named(&stage.r#type).and_then(|kind| kind.rollout).map(|own| own.credit);
    if stage.server.is_none() || !matches!(credit, Some(Credit::ReferencePair | Credit::Mixture)) {
        return Ok(());
    }
    Err(PipelineError::Unsupported {
        what: format!(
            "a stage of type `{}` samples from its reference too, which the server has not",
            stage.r#type
        ),
        advice: "use another method, or remove [stage.server]".to_owned(),
    })
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
pub(super) fn soft_overlong(rollout: &PlannedRollout, limit: u64) -> Option<SoftOverlong> {
    (rollout.overlong_cache > 0).then_some(SoftOverlong {
        max_completion_len: limit as usize,
        soft_punish_cache: rollout.overlong_cache as usize,
    })
}
