//! Rewards of tokens, returns and advantages: PPO's, and REINFORCE++'s.
//!
//! ```text
//! reward_t = −kl_coef · kl_t  (+ score at the last token)
//! δ_t = reward_t + γ V_{t+1} − V_t          V after the last token is 0
//! A_t = δ_t + γ λ A_{t+1}                   generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438)
//! R_t = A_t + V_t
//! ```
//!
//! REINFORCE++ (Hu et al. 2025, arXiv:2501.03262) has no V: A_t is the sum of the rewards from t on, standardised over all tokens
//! of the batch.
//!
//! **Difference from TRL** (up to 1.9): the score stands at the last token of the completion, where the environment gave it; TRL puts
//! it one position later where the padded matrix has one, so that there the value of a padding token takes part.
//! Otherwise the formulas are the same, whitening included (`golden/rl/ppo.json`, by TRL 0.24's own statements). TRL's mean of advantages
//! leaves that position out, its mean of whitened rewards and its value loss count it.

use serde::{Deserialize, Serialize};

use crate::error::{RlError, check_finite, check_len};
use crate::stats::{mean, variance};

/// What is added to a variance before its root is divided by.
const VARIANCE_FLOOR: f64 = 1e-8;

/// The estimate of a token's divergence, with r = log π_ref − log π.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardKl {
    /// −r, without bias.
    #[default]
    K1,
    /// e^r − r − 1, never negative, with less spread.
    K3,
}

impl RewardKl {
    /// The estimate from one token.
    pub fn estimate(self, logp: f32, reference_logp: f32) -> f64 {
        let r = f64::from(reference_logp) - f64::from(logp);
        match self {
            RewardKl::K1 => -r,
            // Beyond e^20 a straight line, as in the objectives.
            RewardKl::K3 => r.min(20.0).exp() * (1.0 + (r - 20.0).max(0.0)) - r - 1.0,
        }
    }
}

/// A completion as it was sampled.
#[derive(Clone, Copy, Debug)]
pub struct Sampled<'a> {
    /// What the whole completion is worth; none if nothing could judge it.
    pub score: Option<f64>,
    /// `[T]`: log-probabilities under the policy that sampled.
    pub logp: &'a [f32],
    /// `[T]`: under the reference policy; none where there is no divergence in the reward.
    pub reference_logp: Option<&'a [f32]>,
    /// `[T]`: values of the states in which each token was chosen; empty without a critic.
    pub values: &'a [f32],
    /// Whether it ended by itself.
    pub has_ended: bool,
}

/// How PPO's advantages come from scores and values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PpoConfig {
    /// Coefficient of the divergence in the reward; a [`crate::KlController`] may move it.
    pub kl_coef: f64,
    /// How the divergence is estimated.
    pub kl_estimator: RewardKl,
    /// Discount.
    pub gamma: f64,
    /// λ of the estimation.
    pub lam: f64,
    /// Whether rewards are divided by their deviation.
    pub whiten_rewards: bool,
    /// Whether advantages are standardised over the batch.
    pub whiten_advantages: bool,
    /// Taken off the score of a completion that did not end by itself.
    pub missing_eos_penalty: Option<f64>,
}

impl Default for PpoConfig {
    fn default() -> PpoConfig {
        PpoConfig {
            kl_coef: 0.05,
            kl_estimator: RewardKl::K1,
            gamma: 1.0,
            lam: 0.95,
            whiten_rewards: false,
            whiten_advantages: true,
            missing_eos_penalty: None,
        }
    }
}

/// What a completion's tokens learn from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenTargets {
    /// `[T]`: rewards, before whitening.
    pub rewards: Vec<f64>,
    /// `[T]`: advantages.
    pub advantages: Vec<f64>,
    /// `[T]`: what the values should be.
    pub returns: Vec<f64>,
}

impl PpoConfig {
    /// A completion's rewards by token.
    fn rewards(&self, sample: &Sampled<'_>) -> Result<Vec<f64>, RlError> {
        let mut rewards = vec![0.0; sample.logp.len()];
        if let Some(reference) = sample.reference_logp.filter(|_| self.kl_coef != 0.0) {
            check_len("reference log-probabilities of a sample", reference.len(), sample.logp.len())?;
            for ((reward, logp), reference) in rewards.iter_mut().zip(sample.logp).zip(reference) {
                *reward = -self.kl_coef * self.kl_estimator.estimate(*logp, *reference);
            }
        }
        let penalty = self.missing_eos_penalty.filter(|_| !sample.has_ended).unwrap_or(0.0);
        if let (Some(last), Some(score)) = (rewards.last_mut(), sample.score) {
            *last += score - penalty;
        }
        check_finite("reward of token", &rewards)?;
        Ok(rewards)
    }

    /// Advantages and returns of a batch. A completion without a score has advantages of 0 and its values as returns, and is left
    /// out of means and deviations.
    ///
    /// # Errors
    /// [`RlError`] if lengths do not fit or a number is not finite.
    pub fn targets(&self, samples: &[Sampled<'_>]) -> Result<Vec<TokenTargets>, RlError> {
        let rewards: Vec<Vec<f64>> = samples.iter().map(|s| self.rewards(s)).collect::<Result<_, _>>()?;
        let mut scaled = rewards.clone();
        if self.whiten_rewards {
            whiten(&mut judged(&mut scaled, samples), false);
        }
        let mut targets = Vec::with_capacity(samples.len());
        for ((sample, rewards), scaled) in samples.iter().zip(rewards).zip(scaled) {
            check_len("values of a sample", sample.values.len(), sample.logp.len())?;
            let values: Vec<f64> = sample.values.iter().map(|&v| f64::from(v)).collect();
            check_finite("value", &values)?;
            let (advantages, returns) = match sample.score {
                Some(_) => gae(&scaled, &values, self.gamma, self.lam),
                None => (vec![0.0; values.len()], values),
            };
            targets.push(TokenTargets { rewards, advantages, returns });
        }
        if self.whiten_advantages {
            let mut advantages: Vec<Vec<f64>> =
                targets.iter_mut().map(|target| std::mem::take(&mut target.advantages)).collect();
            whiten(&mut judged(&mut advantages, samples), true);
            targets.iter_mut().zip(advantages).for_each(|(target, own)| target.advantages = own);
        }
        Ok(targets)
    }

    /// REINFORCE++: what is left of the reward from each token on, standardised over all tokens. Values are not read.
    ///
    /// # Errors
    /// As [`PpoConfig::targets`].
    pub fn reinforce_pp(&self, samples: &[Sampled<'_>]) -> Result<Vec<Vec<f64>>, RlError> {
        let mut advantages = Vec::with_capacity(samples.len());
        for sample in samples {
            let rewards = self.rewards(sample)?;
            let zeros = vec![0.0; rewards.len()];
            advantages.push(if sample.score.is_some() {
                gae(&rewards, &zeros, self.gamma, 1.0).0
            } else {
                zeros
            });
        }
        if self.whiten_advantages {
            whiten(&mut judged(&mut advantages, samples), true);
        }
        Ok(advantages)
    }
}

/// The rows of samples that have a score.
fn judged<'r>(rows: &'r mut [Vec<f64>], samples: &[Sampled<'_>]) -> Vec<&'r mut Vec<f64>> {
    rows.iter_mut().zip(samples).filter(|(_, sample)| sample.score.is_some()).map(|(row, _)| row).collect()
}

/// Generalised advantage estimation over one completion: advantages and returns.
///
/// # Panics
/// If there are not as many values as rewards.
pub fn gae(rewards: &[f64], values: &[f64], gamma: f64, lam: f64) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(rewards.len(), values.len(), "a value for every reward");
    let mut advantages = vec![0.0; rewards.len()];
    let (mut next_value, mut next_advantage) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        let delta = rewards[t] + gamma * next_value - values[t];
        next_advantage = delta + gamma * lam * next_advantage;
        next_value = values[t];
        advantages[t] = next_advantage;
    }
    let returns = advantages.iter().zip(values).map(|(a, v)| a + v).collect();
    (advantages, returns)
}

/// Divides by the deviation of all values (n − 1, 1e-8 added to the variance); takes their mean off where `shifts_mean`.
pub fn whiten(rows: &mut [&mut Vec<f64>], shifts_mean: bool) {
    let all: Vec<f64> = rows.iter().flat_map(|row| row.iter().copied()).collect();
    let Some(mean) = mean(&all) else { return };
    let scale = 1.0 / (variance(&all) + VARIANCE_FLOOR).sqrt();
    let kept = if shifts_mean { 0.0 } else { mean };
    for value in rows.iter_mut().flat_map(|row| row.iter_mut()) {
        *value = (*value - mean) * scale + kept;
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        assert!(
            found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9),
            "{found:?} against {expected:?}"
        );
    }

    #[test]
    fn advantages_are_discounted_sums_of_errors() {
        let (rewards, values) = ([0.1, -0.2, 1.0], [0.5, 0.4, 0.3]);
        let (gamma, lam) = (0.9, 0.8);
        let (advantages, returns) = gae(&rewards, &values, gamma, lam);
        let delta = [0.1 + 0.9 * 0.4 - 0.5, -0.2 + 0.9 * 0.3 - 0.4, 1.0 - 0.3];
        let sum = |t: usize| -> f64 { (t..3).map(|s| (gamma * lam).powi((s - t) as i32) * delta[s]).sum() };
        close(&advantages, &[sum(0), sum(1), sum(2)]);
        close(&returns, &[sum(0) + 0.5, sum(1) + 0.4, sum(2) + 0.3]);
        // λ = 1 is the return less the value, λ = 0 the one-step error.
        close(&gae(&rewards, &values, 1.0, 1.0).0, &[0.9 - 0.5, 0.8 - 0.4, 1.0 - 0.3]);
        assert_eq!(gae(&[], &[], 1.0, 1.0).0, [0.0; 0]);
    }

    #[test]
    fn the_score_stands_at_the_last_token_and_the_divergence_at_each() {
        let sample = Sampled {
            score: Some(2.0),
            logp: &[-1.0, -2.0],
            reference_logp: Some(&[-1.5, -1.0]),
            values: &[0.0, 0.0],
            has_ended: false,
        };
        let config = PpoConfig {
            kl_coef: 0.1,
            whiten_advantages: false,
            missing_eos_penalty: Some(0.5),
            ..PpoConfig::default()
        };
        close(&config.targets(&[sample]).unwrap()[0].rewards, &[-0.05, 0.1 + 1.5]);
        let k3 = PpoConfig { kl_estimator: RewardKl::K3, missing_eos_penalty: None, ..config };
        let r: [f64; 2] = [-0.5, 1.0];
        let kl = |r: f64| r.exp() - r - 1.0;
        close(&k3.targets(&[sample]).unwrap()[0].rewards, &[-0.1 * kl(r[0]), -0.1 * kl(r[1]) + 2.0]);
    }

    #[test]
    fn whitened_advantages_have_mean_zero_and_deviation_one_over_judged_tokens() {
        let logp = [-1.0_f32; 4];
        let values = [0.2_f32, 0.1, 0.4, 0.3];
        let sample = |score, n| Sampled {
            score,
            logp: &logp[..n],
            reference_logp: None,
            values: &values[..n],
            has_ended: true,
        };
        let samples = [sample(Some(1.0), 4), sample(None, 3), sample(Some(-1.0), 2), sample(Some(0.5), 0)];
        let targets = PpoConfig::default().targets(&samples).unwrap();
        let all: Vec<f64> = [0, 2].iter().flat_map(|&i: &usize| targets[i].advantages.clone()).collect();
        assert!(mean(&all).unwrap().abs() < 1e-12 && (variance(&all) - 1.0).abs() < 1e-6);
        assert_eq!(targets[1].advantages, [0.0; 3]);
        assert_eq!(targets[1].returns, [f64::from(0.2_f32), f64::from(0.1_f32), f64::from(0.4_f32)]);
        assert!(targets[3].advantages.is_empty());
        let pp = PpoConfig::default().reinforce_pp(&samples).unwrap();
        assert!(pp[0][0] > 0.0 && pp[2][0] < 0.0 && pp[1] == [0.0; 3], "{pp:?}");
        assert!(
            pp[0].iter().all(|a| (a - pp[0][0]).abs() < 1e-12),
            "without a divergence every token has one advantage"
        );
    }

    #[test]
    fn lengths_are_checked() {
        let sample =
            Sampled { score: Some(1.0), logp: &[-1.0], reference_logp: None, values: &[], has_ended: true };
        let error = PpoConfig::default().targets(&[sample]).unwrap_err().to_string();
        assert!(error.contains("values of a sample: found 0, expected 1"), "{error}");
    }
}
