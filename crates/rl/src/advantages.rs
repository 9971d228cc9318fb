//! Rewards to advantages, one for each sample.
//!
//! ```text
//! R_i = Σ_k weight_k r_ik                  over the rewards that did not skip; none if all did
//! A_i = (R_i − baseline) [/ (deviation + 1e-4)]
//! ```
//!
//! | [`Baseline`] | what is taken off |
//! | --- | --- |
//! | `Group` | the group's mean (GRPO) |
//! | `Batch` | the mean of all samples |
//! | `LeaveOneOut` | the mean of the group's other samples (RLOO) |
//! | `None` | nothing (REINFORCE) |
//!
//! `normalize_then_sum` (GDPO, arXiv:2601.05242) standardises each reward within its group, adds them up by weight, and
//! standardises the sum over the batch; it has no baseline or scale of its own.
//!
//! Deviations are sample deviations (n − 1), as TRL's. A sample without a reward has advantage 0; so has one that is alone in its
//! group among those with one, where its group is what it is compared with or scaled by. A group whose rewards do not differ has
//! no scale: its samples have advantage 0 where that is what they would be divided by, whatever the baseline. Source: TRL 1.16,
//! `GRPOTrainer` and `RLOOTrainer`; formulas in `golden/rl`.

use serde::{Deserialize, Serialize};

use crate::error::{RlError, check_finite, check_len};
use crate::stats::{deviation, mean, members, present};

/// What deviations are increased by before anything is divided by them.
pub const DEVIATION_FLOOR: f64 = 1e-4;

/// A group whose deviation is at most this has no signal (`torch.isclose` to 0).
const ZERO_DEVIATION: f64 = 1e-8;

/// What a reward is compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The mean of its group.
    #[default]
    Group,
    /// The mean of all.
    Batch,
    /// The mean of the others in its group.
    LeaveOneOut,
    /// Nothing.
    None,
}

/// What the difference is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// The deviation of its group.
    #[default]
    Group,
    /// The deviation of all rewards.
    Batch,
    /// Nothing (Dr. GRPO, RLOO).
    None,
}

/// How several rewards become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MultiObjective {
    /// Their weighted sum is normalised.
    #[default]
    SumThenNormalize,
    /// Each is normalised, then they are summed (GDPO).
    NormalizeThenSum,
}

/// How advantages come from rewards.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdvantageConfig {
    /// What is taken off.
    pub baseline: Baseline,
    /// What it is divided by.
    pub scale_rewards: ScaleRewards,
    /// How several rewards become one.
    pub multi_objective_aggregation: MultiObjective,
    /// The least and the largest reward that counts.
    pub reward_clip_range: Option<[f64; 2]>,
    /// Whether all advantages are standardised together at the end.
    pub normalize_advantages: bool,
}

/// Advantages, and what they come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Advantages {
    /// One for each sample.
    pub values: Vec<f64>,
    /// The weighted sum of each sample's rewards.
    pub rewards: Vec<Option<f64>>,
    /// TRL's `frac_reward_zero_std`: the share of samples whose rewards do not differ within what they are scaled by. A group with
    /// fewer than two judged samples is counted too; TRL does not count it.
    pub frac_reward_zero_std: f64,
}

/// Weighted sums of rewards: `rewards[i][k]` is sample i's k-th, `None` where it was skipped.
///
/// # Errors
/// [`RlError`] if a sample does not have as many rewards as there are weights, or one is not finite.
pub fn weighted_sums(rewards: &[Vec<Option<f64>>], weights: &[f64]) -> Result<Vec<Option<f64>>, RlError> {
    rewards
        .iter()
        .map(|row| {
            check_len("rewards of a sample", row.len(), weights.len())?;
            check_finite("reward", row.iter().flatten())?;
            let parts = row.iter().zip(weights).filter_map(|(reward, weight)| reward.map(|r| r * weight));
            Ok(row.iter().any(Option::is_some).then(|| parts.sum()))
        })
        .collect()
}

impl AdvantageConfig {
    /// Advantages of samples with several rewards each; samples with equal `groups` belong together.
    ///
    /// # Errors
    /// [`RlError`] if lengths do not fit or a reward is not finite.
    pub fn advantages(
        &self,
        rewards: &[Vec<Option<f64>>],
        weights: &[f64],
        groups: &[usize],
    ) -> Result<Advantages, RlError> {
        let sums = weighted_sums(rewards, weights)?;
        match self.multi_objective_aggregation {
            MultiObjective::SumThenNormalize => self.of_totals(&sums, groups),
            MultiObjective::NormalizeThenSum => {
                check_len("groups of samples", groups.len(), rewards.len())?;
                let mut result = normalise_then_sum(rewards, weights, groups);
                result.rewards = sums;
                Ok(result)
            }
        }
    }

    /// Advantages of samples with one reward each, which gates and divergences may have changed.
    ///
    /// # Errors
    /// As [`AdvantageConfig::advantages`].
    pub fn of_totals(&self, totals: &[Option<f64>], groups: &[usize]) -> Result<Advantages, RlError> {
        check_len("groups of samples", groups.len(), totals.len())?;
        check_finite("reward", totals.iter().flatten())?;
        let clip =
            |reward: f64| self.reward_clip_range.map_or(reward, |[low, high]| reward.max(low).min(high));
        let rewards: Vec<Option<f64>> = totals.iter().map(|reward| reward.map(clip)).collect();
        let all = present(&rewards);
        let mut values = vec![0.0; totals.len()];
        // What is compared with something; the others stay out of the last normalisation.
        let mut compared = rewards.clone();
        let mut n_zero = 0;
        for members in members(groups) {
            let own: Vec<f64> = members.iter().filter_map(|&i| rewards[i]).collect();
            if own.len() < 2 && self.baseline == Baseline::LeaveOneOut {
                members.iter().for_each(|&i| compared[i] = None);
            }
            let spread = match self.scale_rewards {
                ScaleRewards::Batch => deviation(&all),
                ScaleRewards::Group | ScaleRewards::None => deviation(&own),
            };
            n_zero += if spread <= ZERO_DEVIATION { members.len() } else { 0 };
            if self.scale_rewards == ScaleRewards::Group && spread <= ZERO_DEVIATION {
                continue;
            }
            for &i in &members {
                let Some(reward) = rewards[i] else { continue };
                let centred = reward - self.baseline(reward, &own, &all);
                values[i] = match self.scale_rewards {
                    ScaleRewards::None => centred,
                    _ => centred / (spread + DEVIATION_FLOOR),
                };
            }
        }
        if self.normalize_advantages {
            standardise_present(&mut values, &compared);
        }
        let frac_reward_zero_std = n_zero as f64 / totals.len().max(1) as f64;
        Ok(Advantages { values, rewards: totals.to_vec(), frac_reward_zero_std })
    }

    fn baseline(&self, reward: f64, own: &[f64], all: &[f64]) -> f64 {
        match self.baseline {
            Baseline::None => 0.0,
            Baseline::Group => mean(own).expect("the reward is one of them"),
            Baseline::Batch => mean(all).expect("the reward is one of them"),
            // Alone there is nothing to compare with: no advantage.
            Baseline::LeaveOneOut if own.len() < 2 => reward,
            Baseline::LeaveOneOut => (own.iter().sum::<f64>() - reward) / (own.len() - 1) as f64,
        }
    }
}

/// Standardises the values of samples that have a reward; the others stay 0.
fn standardise_present(values: &mut [f64], rewards: &[Option<f64>]) {
    let there: Vec<f64> = values.iter().zip(rewards).filter(|(_, r)| r.is_some()).map(|(v, _)| *v).collect();
    let Some(mean) = mean(&there) else { return };
    let spread = deviation(&there) + DEVIATION_FLOOR;
    for (value, _) in values.iter_mut().zip(rewards).filter(|(_, reward)| reward.is_some()) {
        *value = (*value - mean) / spread;
    }
}

fn normalise_then_sum(rewards: &[Vec<Option<f64>>], weights: &[f64], groups: &[usize]) -> Advantages {
    let mut sums = vec![0.0; rewards.len()];
    for members in members(groups) {
        for (k, weight) in weights.iter().enumerate() {
            let own: Vec<f64> = members.iter().filter_map(|&i| rewards[i][k]).collect();
            let Some(mean) = mean(&own) else { continue };
            // One alone has no deviation; TRL leaves it out of the sum, and so does a difference of 0.
            let spread = deviation(&own) + DEVIATION_FLOOR;
            for &i in &members {
                sums[i] += rewards[i][k].map_or(0.0, |reward| weight * (reward - mean) / spread);
            }
        }
    }
    let judged: Vec<Option<f64>> =
        rewards.iter().zip(&sums).map(|(row, sum)| row.iter().any(Option::is_some).then_some(*sum)).collect();
    let is_zero = deviation(&present(&judged)) <= ZERO_DEVIATION;
    let mut values = sums;
    standardise_present(&mut values, &judged);
    Advantages { values, rewards: Vec::new(), frac_reward_zero_std: if is_zero { 1.0 } else { 0.0 } }
}

/// Takes `coef` times the whole divergence Σ (log π_old − log π_ref) (k1) off each sample's reward: RLOO's `beta`.
///
/// # Errors
/// [`RlError::Length`] if there is not one pair of log-probabilities for every sample and token.
pub fn subtract_kl(
    totals: &[Option<f64>],
    logprobs: &[(&[f32], &[f32])],
    coef: f64,
) -> Result<Vec<Option<f64>>, RlError> {
    check_len("samples with log-probabilities", logprobs.len(), totals.len())?;
    totals
        .iter()
        .zip(logprobs)
        .map(|(total, (old, reference))| {
            check_len("reference log-probabilities of a sample", reference.len(), old.len())?;
            let kl: f64 = old.iter().zip(*reference).map(|(o, r)| f64::from(*o) - f64::from(*r)).sum();
            Ok(total.map(|total| total - coef * kl))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Option<f64> = None;

    fn check(options: AdvantageConfig, totals: &[Option<f64>], groups: &[usize], expected: &[f64]) {
        let found = options.of_totals(totals, groups).unwrap().values;
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-9, "{options:?}: {found:?} against {expected:?}");
        }
    }

    fn config(baseline: Baseline, scale_rewards: ScaleRewards) -> AdvantageConfig {
        AdvantageConfig { baseline, scale_rewards, ..AdvantageConfig::default() }
    }

    #[test]
    fn baselines_and_scales_are_those_of_the_table() {
        let totals = [Some(1.0), Some(0.0), Some(2.0), Some(4.0)];
        let groups = [0, 0, 1, 1];
        use Baseline as B;
        use ScaleRewards as R;
        let (small, large) = (0.5_f64.sqrt() + 1e-4, 2.0_f64.sqrt() + 1e-4);
        check(config(B::Group, R::None), &totals, &groups, &[0.5, -0.5, -1.0, 1.0]);
        check(
            config(B::Group, R::Group),
            &totals,
            &groups,
            &[0.5 / small, -0.5 / small, -1.0 / large, 1.0 / large],
        );
        check(config(B::LeaveOneOut, R::None), &totals, &groups, &[1.0, -1.0, -2.0, 2.0]);
        check(config(B::Batch, R::None), &totals, &groups, &[-0.75, -1.75, 0.25, 2.25]);
        check(config(B::None, R::None), &totals, &groups, &[1.0, 0.0, 2.0, 4.0]);
        let clipped = AdvantageConfig { reward_clip_range: Some([0.0, 2.0]), ..config(B::None, R::None) };
        check(clipped, &totals, &groups, &[1.0, 0.0, 2.0, 2.0]);
    }

    #[test]
    fn skips_are_left_out_and_groups_without_company_have_no_advantage() {
        use Baseline as B;
        use ScaleRewards as R;
        let totals = [Some(1.0), S, Some(3.0), S, Some(7.0), S];
        let groups = [0, 0, 0, 1, 1, 1];
        for (baseline, expected) in [(B::Group, 1.0), (B::LeaveOneOut, 2.0)] {
            check(config(baseline, R::None), &totals, &groups, &[-expected, 0.0, expected, 0.0, 0.0, 0.0]);
        }
        check(config(B::Group, R::Group), &[S, S], &[0, 0], &[0.0, 0.0]);
        check(config(B::Group, R::Batch), &[Some(3.0)], &[0], &[0.0]);
        check(config(B::Group, R::Group), &[], &[], &[]);
        // A group without spread has no scale, whatever it is compared with; nor has one of a single sample.
        let totals = [Some(1.0), Some(1.0), Some(0.0), Some(1.0), Some(5.0)];
        let own = 0.5_f64.sqrt() + DEVIATION_FLOOR;
        for (baseline, level) in [(B::Group, 0.5), (B::Batch, 1.6), (B::None, 0.0)] {
            let expected = [0.0, 0.0, -level / own, (1.0 - level) / own, 0.0];
            check(config(baseline, R::Group), &totals, &[0, 0, 1, 1, 2], &expected);
        }
        // Alone, and yet compared with the others of the batch.
        check(config(B::Batch, R::None), &[Some(1.0), Some(3.0)], &[0, 1], &[-1.0, 1.0]);
        // Equal rewards are no signal, whatever their level: no advantage, and counted.
        let equal = config(B::Group, R::Group).of_totals(&[Some(0.3); 4], &[0, 0, 1, 1]).unwrap();
        assert_eq!(equal.frac_reward_zero_std, 1.0);
        assert!(equal.values.iter().all(|v| v.abs() < 1e-9), "{equal:?}");
    }

    #[test]
    fn groups_may_lie_apart() {
        let config = config(Baseline::Group, ScaleRewards::None);
        check(config, &[Some(1.0), Some(5.0), Some(3.0), Some(9.0)], &[7, 2, 7, 2], &[-1.0, -2.0, 1.0, 2.0]);
    }

    #[test]
    fn gdpo_keeps_apart_what_a_sum_would_mix() {
        // Two rewards of very different size; each counts alike once it is normalised.
        let rewards: Vec<Vec<Option<f64>>> = [[1.0, 100.0], [0.0, 100.0], [1.0, 0.0], [0.0, 0.0]]
            .iter()
            .map(|r| r.map(Some).to_vec())
            .collect();
        let config = AdvantageConfig {
            multi_objective_aggregation: MultiObjective::NormalizeThenSum,
            ..AdvantageConfig::default()
        };
        let found = config.advantages(&rewards, &[1.0, 1.0], &[0; 4]).unwrap();
        assert!((found.values[1] - found.values[2]).abs() < 1e-3, "{found:?}");
        assert!(found.values[0] > 1.0 && found.values[3] < -1.0);
        assert_eq!(found.rewards[0], Some(101.0));
    }

    #[test]
    fn kl_in_the_reward_is_that_of_the_whole_sample() {
        let totals = [Some(1.0), S];
        let (old, reference) = ([-1.0_f32, -2.0], [-1.5_f32, -2.5]);
        let pairs = [(&old[..], &reference[..]), (&old[..], &reference[..])];
        assert_eq!(subtract_kl(&totals, &pairs, 0.5).unwrap(), [Some(0.5), S]);
        let error =
            subtract_kl(&totals, &[(&old[..], &reference[..1]), pairs[1]], 0.5).unwrap_err().to_string();
        assert!(error.contains("found 1, expected 2"), "{error}");
    }

    #[test]
    fn numbers_that_are_none_are_errors() {
        let config = AdvantageConfig::default();
        let error = config.of_totals(&[Some(f64::NAN)], &[0]).unwrap_err().to_string();
        assert!(error.contains("reward 0 is NaN") && error.contains("a skip"), "{error}");
        let error = config.advantages(&[vec![Some(1.0)]], &[1.0, 2.0], &[0]).unwrap_err().to_string();
        assert!(error.contains("found 1, expected 2"), "{error}");
    }
}
