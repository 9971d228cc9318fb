//! The reward rises while a verifier that is not trained on falls: the policy has found what the reward does not see.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::threshold::Streak;
use super::{Action, Alert};
use crate::RlError;

/// Options of [`RewardHacking`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RewardHackingConfig {
    /// How many steps are looked at: the mean of their second half against that of their first.
    pub window: usize,
    /// The rise and the fall at which it warns.
    pub warn: f64,
    /// The rise and the fall at which it acts.
    pub act: f64,
    /// What it does there; `off` switches the alarm off.
    pub action: Action,
    /// How many steps in a row the condition must hold.
    pub patience: u32,
}

impl Default for RewardHackingConfig {
    fn default() -> RewardHackingConfig {
        RewardHackingConfig { window: 20, warn: 0.05, act: 0.15, action: Action::Rollback, patience: 3 }
    }
}

/// The alarm, with the window it has seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardHacking {
    config: RewardHackingConfig,
    /// Step, reward, hidden score.
    seen: VecDeque<(u64, f64, f64)>,
    warning: Streak,
    acting: Streak,
}

impl RewardHacking {
    /// Nothing seen yet.
    ///
    /// # Errors
    /// [`RlError::Option`] for values out of range.
    pub fn new(config: &RewardHackingConfig) -> Result<RewardHacking, RlError> {
        let is_ordered = config.warn > 0.0 && config.act >= config.warn && config.act.is_finite();
        if config.window >= 4 && is_ordered && config.patience > 0 {
            return Ok(RewardHacking {
                config: config.clone(),
                seen: VecDeque::new(),
                warning: Streak::default(),
                acting: Streak::default(),
            });
        }
        let value = format!("{config:?}");
        let expected = "a window of at least 4, 0 < warn <= act, patience of at least 1".to_owned();
        Err(RlError::Option { option: "reward_hacking", value, expected })
    }

    /// Takes in a step; one without both figures is left out.
    pub fn observe(&mut self, step: u64, reward: Option<f64>, hidden: Option<f64>) -> Option<Alert> {
        let (reward, hidden) = (reward.filter(|r| r.is_finite())?, hidden.filter(|h| h.is_finite())?);
        self.seen.push_back((step, reward, hidden));
        if self.seen.len() > self.config.window {
            self.seen.pop_front();
        }
        if self.config.action == Action::Off || self.seen.len() < self.config.window {
            return None;
        }
        let (rise, fall) = (self.change(|seen| seen.1), -self.change(|seen| seen.2));
        let is_beyond = |by: f64| rise >= by && fall >= by;
        // Where the half begins that is compared with the one before it.
        let (middle, ..) = self.seen[self.config.window / 2];
        let warned = self.warning.push(middle, is_beyond(self.config.warn), self.config.patience);
        let acted = self.acting.push(middle, is_beyond(self.config.act), self.config.patience);
        let (since_step, action) = match (warned, acted) {
            (_, Some(since)) => (since, self.config.action),
            (Some(since), None) => (since, Action::Warn),
            (None, None) => return None,
        };
        let reason = format!(
            "over {} steps the reward rose by {rise:.3} while the hidden verifier fell by {fall:.3}: the policy may \
             exploit the reward; read its best-rewarded samples",
            self.config.window
        );
        Some(Alert { alarm: "reward_hacking".to_owned(), action, step, since_step, reason })
    }

    /// Mean of the window's second half less that of its first.
    fn change(&self, of: impl Fn(&(u64, f64, f64)) -> f64) -> f64 {
        let half = self.seen.len() / 2;
        let mean =
            |from: usize, n: usize| self.seen.iter().skip(from).take(n).map(&of).sum::<f64>() / n as f64;
        mean(half, self.seen.len() - half) - mean(0, half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(reward: impl Fn(f64) -> f64, hidden: impl Fn(f64) -> Option<f64>) -> Vec<(u64, Action, u64)> {
        let mut alarm = RewardHacking::new(&RewardHackingConfig::default()).unwrap();
        let said =
            (0..100).filter_map(|step| alarm.observe(step, Some(reward(step as f64)), hidden(step as f64)));
        said.map(|alert| (alert.step, alert.action, alert.since_step)).collect()
    }

    #[test]
    fn only_a_rise_with_a_fall_is_an_alarm() {
        let rise = |t: f64| 0.01 * t;
        let turns = |t: f64| Some(if t < 40.0 { 0.01 * t } else { 0.4 - 0.02 * (t - 40.0) });
        let said = run(rise, turns);
        assert_eq!(said[0].1, Action::Warn);
        assert!(said[0].0 > 45 && said[0].0 < 60, "{said:?}");
        assert!(
            // The middle of the window with which the streak began: patience - 1 steps before the one that speaks.
            said[0].2 == said[0].0 - 9 - 2 && said.len() == 1,
            "{said:?}: rises by 0.1 in a window, below `act`"
        );
        let steep = run(|t| 0.02 * t, |t| Some(1.0 - 0.02 * t));
        assert_eq!(steep.last().unwrap().1, Action::Rollback);
        assert!(run(rise, |t| Some(0.01 * t)).is_empty(), "both rise");
        assert!(run(|t| 1.0 - 0.01 * t, |t| Some(1.0 - 0.01 * t)).is_empty(), "both fall");
        assert!(run(rise, |_| None).is_empty(), "no hidden verifier");
        assert!(run(rise, |t| Some(0.5 + 0.04 * (t * 1.9).sin())).is_empty(), "noise");
    }

    #[test]
    fn options_are_checked() {
        for (window, warn, act) in [(2, 0.1, 0.2), (20, 0.0, 0.2), (20, 0.3, 0.2), (20, 0.1, f64::NAN)] {
            let config = RewardHackingConfig { window, warn, act, ..RewardHackingConfig::default() };
            assert!(RewardHacking::new(&config).is_err(), "{config:?}");
        }
    }
}
