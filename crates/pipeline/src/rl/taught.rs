//! On-policy distillation: samples as they are, with what the teacher thinks of each token as the reference.
//!
//! The teacher stands in the place of the reference policy; the objective `on_policy_distillation` makes the reverse KL divergence of
//! the sampled tokens of the two. Rewards, if the stage names any, are only watched.

use pt_rl::RolloutRecord;
use pt_train::Example;

use super::credit::{Credit, Figures, JudgedRound};
use crate::error::Result;

/// Samples to be compared with a teacher.
pub(crate) struct Taught;

impl Credit for Taught {
    fn judge(&mut self, round: &JudgedRound<'_>, _: &[Example], _: &mut [RolloutRecord]) -> Result<Figures> {
        round.reward_metrics()
    }

    fn apply(&self, _: &[RolloutRecord], _: &mut Example) {}

    fn compares_groups(&self) -> bool {
        false
    }
}
