//! Rewards that must stay on their side of a bound, by Lagrange multipliers: more reasoning while safety stays above a bound.
//!
//! ```text
//! maximise E[r]  subject to  E[c_i] ≥ 0,     c_i = s_i − b_i (at least b_i)  or  b_i − s_i (at most b_i)
//!
//! what a sample is worth:  (r + Σ_i λ_i c_i) / (1 + Σ_i λ_i)
//! after each round:        λ_i ← clip(λ_i − η_i · mean(c_i), 0, max_i)
//! ```
//!
//! The policy is optimised against the combined reward, whatever the objective; the multipliers are learned apart from it, by projected
//! dual ascent on the violation that its samples show. The division keeps the total weight at 1, so that a multiplier that grows does
//! not act as a larger learning rate. A sample that a constraint's verifier skipped counts as one on the bound, and not in its mean.
//! Sources: Dai et al. 2023, Safe RLHF (arXiv:2310.12773), equations 10 and 31 to 33, which ascends on ln λ (a multiplier of 0 would
//! stay there) and has cost models in place of bounds on scores; Tessler et al. 2018 (arXiv:1805.11074), equation 6, the projection.

use serde::{Deserialize, Serialize};

use crate::error::{RlError, check_finite, check_len};
use crate::stats::mean;

/// Which side of a bound the mean of a score must be on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Bound {
    /// By how much a score is on the right side.
    pub fn slack(self, score: f64) -> f64 {
        match self {
            Bound::AtLeast(bound) => score - bound,
            Bound::AtMost(bound) => bound - score,
        }
    }

    /// The derivative of [`Bound::slack`].
    fn sign(self) -> f64 {
        match self {
            Bound::AtLeast(_) => 1.0,
            Bound::AtMost(_) => -1.0,
        }
    }
}

/// One constraint.
#[derive(Clone, Debug, PartialEq)]
pub struct Constraint {
    /// What it is called in metrics.
    pub name: String,
    /// Which of a sample's scores it bounds.
    pub score: usize,
    /// The bound.
    pub bound: Bound,
    /// The multiplier at first.
    pub init: f64,
    /// η: by how much a violation of 1 raises the multiplier.
    pub lr: f64,
    /// The largest multiplier.
    pub max: f64,
}

/// Constraints with their multipliers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Constraints {
    list: Vec<Constraint>,
    multipliers: Vec<f64>,
}

/// The multipliers as a checkpoint keeps them: the bits of each, because JSON's decimals need not give them back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConstraintState(Vec<u64>);

impl Constraints {
    /// With the multipliers at their first values.
    ///
    /// # Errors
    /// [`RlError::Option`] for a number out of range.
    pub fn new(list: Vec<Constraint>) -> Result<Constraints, RlError> {
        for constraint in &list {
            let Constraint { init, lr, max, .. } = *constraint;
            let (Bound::AtLeast(bound) | Bound::AtMost(bound)) = constraint.bound;
            let number = |option, value: f64, is_right: bool, expected: &str| match is_right {
                true => Ok(()),
                false => {
                    Err(RlError::Option { option, value: value.to_string(), expected: expected.to_owned() })
                }
            };
            number("bound", bound, bound.is_finite(), "a finite number")?;
            number("multiplier_lr", lr, lr > 0.0 && lr.is_finite(), "a number above 0")?;
            number("multiplier_max", max, max > 0.0 && max.is_finite(), "a number above 0")?;
            number("multiplier_init", init, (0.0..=max).contains(&init), "between 0 and `multiplier_max`")?;
        }
        let multipliers = list.iter().map(|constraint| constraint.init).collect();
        Ok(Constraints { list, multipliers })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The multipliers, in the order of the constraints.
    pub fn multipliers(&self) -> &[f64] {
        &self.multipliers
    }

    fn total_weight(&self) -> f64 {
        1.0 + self.multipliers.iter().sum::<f64>()
    }

    /// What a sample of reward `reward` and these scores is worth; nothing where its reward is nothing.
    ///
    /// # Panics
    /// If a constraint's score is not there.
    pub fn combine(&self, reward: Option<f64>, scores: &[Option<f64>]) -> Option<f64> {
        if self.is_empty() {
            return reward;
        }
        let part = |(constraint, multiplier): (&Constraint, &f64)| {
            scores[constraint.score].map_or(0.0, |score| multiplier * constraint.bound.slack(score))
        };
        let parts: f64 = self.list.iter().zip(&self.multipliers).map(part).sum();
        reward.map(|reward| (reward + parts) / self.total_weight())
    }

    /// The weights of all scores, for those who weigh each apart: `weights` are those without constraints.
    ///
    /// # Panics
    /// If a constraint's score has no weight.
    pub fn weights(&self, weights: &[f64]) -> Vec<f64> {
        let mut all = weights.to_vec();
        for (constraint, multiplier) in self.list.iter().zip(&self.multipliers) {
            all[constraint.score] += constraint.bound.sign() * multiplier;
        }
        let total = self.total_weight();
        all.iter_mut().for_each(|weight| *weight /= total);
        all
    }

    /// Takes in a round's scores, a list for each sample: figures of the multipliers that weighed it and of what they bound, and then
    /// the multipliers of the next. A constraint that nothing judged keeps its multiplier.
    ///
    /// # Errors
    /// [`RlError`] if a sample has not the score that is bounded, or one is not finite.
    pub fn observe(&mut self, scores: &[Vec<Option<f64>>]) -> Result<Vec<(String, f64)>, RlError> {
        let mut figures = Vec::new();
        for (constraint, multiplier) in self.list.iter().zip(&mut self.multipliers) {
            for row in scores {
                check_len("scores of a sample", row.len(), row.len().max(constraint.score + 1))?;
            }
            let own: Vec<f64> = scores.iter().filter_map(|row| row[constraint.score]).collect();
            check_finite("score", own.iter())?;
            let name = |what| format!("constraint/{}/{what}", constraint.name);
            figures.push((name("multiplier"), *multiplier));
            let Some(value) = mean(&own) else { continue };
            figures.push((name("value"), value));
            let slack = constraint.bound.slack(value);
            *multiplier = (*multiplier - constraint.lr * slack).clamp(0.0, constraint.max);
        }
        Ok(figures)
    }

    /// What a checkpoint keeps.
    pub fn state(&self) -> ConstraintState {
        ConstraintState(self.multipliers.iter().map(|multiplier| multiplier.to_bits()).collect())
    }

    /// Puts back what [`Constraints::state`] gave.
    ///
    /// # Errors
    /// [`RlError::Length`] if it is of other constraints.
    pub fn restore(&mut self, state: &ConstraintState) -> Result<(), RlError> {
        check_len("multipliers of a checkpoint", state.0.len(), self.list.len())?;
        self.multipliers = state.0.iter().map(|bits| f64::from_bits(*bits)).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constraint(score: usize, bound: Bound, init: f64) -> Constraint {
        Constraint { name: format!("c{score}"), score, bound, init, lr: 0.1, max: 2.0 }
    }

    #[test]
    fn a_sample_is_worth_the_normalised_sum() {
        let list = vec![constraint(1, Bound::AtLeast(0.8), 0.5), constraint(2, Bound::AtMost(0.1), 1.5)];
        let constraints = Constraints::new(list).unwrap();
        for (reward, scores, expected) in [
            (Some(1.0), [Some(9.0), Some(1.0), Some(0.0)], Some((1.0 + 0.5 * 0.2 + 1.5 * 0.1) / 3.0)),
            (Some(1.0), [None, Some(0.0), Some(1.0)], Some((1.0 - 0.5 * 0.8 - 1.5 * 0.9) / 3.0)),
            (Some(1.0), [None, None, None], Some(1.0 / 3.0)),
            (None, [Some(1.0), Some(1.0), Some(1.0)], None),
        ] {
            let found = constraints.combine(reward, &scores);
            let near = |(a, b): (f64, f64)| (a - b).abs() < 1e-12;
            assert!(
                found.zip(expected).is_none_or(near) && found.is_some() == expected.is_some(),
                "{found:?}"
            );
        }
        // The weights of scores apart give the same sum, up to the bounds, which are the same for all samples.
        let (weights, scores) = (constraints.weights(&[1.0, 0.0, 0.0]), [0.7, 0.3, 0.9]);
        let sum: f64 = weights.iter().zip(scores).map(|(weight, score)| weight * score).sum();
        let bounds = (0.5 * 0.8 - 1.5 * 0.1) / 3.0;
        let combined = constraints.combine(Some(0.7), &scores.map(Some)).unwrap();
        assert!((sum - bounds - combined).abs() < 1e-12);
        assert!((weights.iter().map(|weight| weight.abs()).sum::<f64>() - 1.0).abs() < 1e-12);
        // Without constraints nothing changes.
        assert_eq!(Constraints::default().combine(Some(0.3), &[]), Some(0.3));
    }

    #[test]
    fn multipliers_rise_with_violations_within_their_range_and_come_back_to_the_bit() {
        let mut constraints = Constraints::new(vec![constraint(0, Bound::AtLeast(0.5), 1.0)]).unwrap();
        let mut seen = Vec::new();
        for scores in [vec![Some(0.2), Some(0.0), None], vec![Some(1.0); 3], vec![None; 3]] {
            let rows: Vec<Vec<Option<f64>>> = scores.into_iter().map(|score| vec![score]).collect();
            seen.push(constraints.observe(&rows).unwrap());
        }
        let figure = |round: usize, at: usize| (seen[round][at].0.as_str(), seen[round][at].1);
        assert_eq!(figure(0, 0), ("constraint/c0/multiplier", 1.0));
        assert_eq!(figure(0, 1), ("constraint/c0/value", 0.1));
        assert_eq!(figure(1, 0).1, 1.0 - 0.1 * (0.1 - 0.5));
        // What nothing judged has no value, and changes nothing.
        assert_eq!(seen[2].len(), 1);
        assert_eq!(constraints.multipliers(), [1.04 - 0.1 * 0.5]);
        for (score, end) in [(-100.0, 2.0), (100.0, 0.0)] {
            constraints.observe(&[vec![Some(score)]]).unwrap();
            assert_eq!(constraints.multipliers(), [end]);
        }
        constraints.observe(&[vec![Some(0.123_456_789)]]).unwrap();
        let text = serde_json::to_string(&constraints.state()).unwrap();
        let mut again = Constraints::new(vec![constraint(0, Bound::AtLeast(0.5), 1.0)]).unwrap();
        again.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(again.multipliers()[0].to_bits(), constraints.multipliers()[0].to_bits());
        assert!(again.restore(&ConstraintState(Vec::new())).is_err());
    }

    /// A policy over three answers by exact policy gradients with an entropy bonus: the first answer is the best reasoning and never
    /// safe, the others are safe. Gives the probability of a safe answer, the multiplier and the reward of the last round.
    fn learn(mut constraints: Constraints) -> (f64, f64, f64) {
        let mut logits = [0.0_f64; 3];
        let mut last = (0.0, 0.0, 0.0);
        for _ in 0..5000 {
            let weights = logits.map(f64::exp);
            let p = weights.map(|weight| weight / weights.iter().sum::<f64>());
            let mean = |values: [f64; 3]| p.iter().zip(values).map(|(p, value)| p * value).sum::<f64>();
            let worth = [0, 1, 2].map(|i| {
                let total = constraints.combine(Some(REWARD[i]), &[Some(SAFETY[i])]);
                total.unwrap() - ENTROPY * p[i].ln()
            });
            let baseline = mean(worth);
            for i in 0..3 {
                logits[i] += 2.0 * p[i] * (worth[i] - baseline);
            }
            let multiplier = constraints.multipliers().first().copied().unwrap_or(0.0);
            last = (mean(SAFETY), multiplier, mean(REWARD));
            constraints.observe(&[vec![Some(mean(SAFETY))]]).unwrap();
        }
        last
    }

    const REWARD: [f64; 3] = [1.0, 0.6, 0.2];
    const SAFETY: [f64; 3] = [0.0, 1.0, 1.0];
    const ENTROPY: f64 = 0.05;
    /// What five thousand rounds leave of the distance to the fixed point.
    const TOLERANCE: f64 = 1e-3;

    #[test]
    fn a_constraint_that_a_free_policy_violates_is_met() {
        let (free, _, reward) = learn(Constraints::default());
        assert!(free < 0.01 && reward > 0.99, "a free policy is unsafe: {free}, {reward}");
        let at_least = vec![constraint(0, Bound::AtLeast(0.8), 0.0)];
        let (safe, multiplier, reward) = learn(Constraints::new(at_least).unwrap());
        assert!((safe - 0.8).abs() < TOLERANCE, "{safe}");
        // No more is given up than the bound asks for: of 0.2 unsafe and 0.8 safe answers the best mix is worth 0.68.
        assert!(reward > 0.67 && reward < 0.68, "{reward}");
        // The multiplier is the one at which the softmax over combined rewards is on the bound.
        let worth = [0, 1, 2].map(|i| (REWARD[i] + multiplier * (SAFETY[i] - 0.8)) / (1.0 + multiplier));
        let weights = worth.map(|worth| (worth / ENTROPY).exp());
        let on_bound = (weights[1] + weights[2]) / weights.iter().sum::<f64>();
        assert!((on_bound - 0.8).abs() < TOLERANCE, "{on_bound} at {multiplier}");
        // A bound that is met anyway costs nothing.
        let loose = vec![constraint(0, Bound::AtMost(0.5), 0.0)];
        let (free_again, multiplier, _) = learn(Constraints::new(loose).unwrap());
        assert!(multiplier == 0.0 && (free_again - free).abs() < 0.05, "{free_again}, {multiplier}");
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let base = || constraint(0, Bound::AtLeast(0.5), 1.0);
        for (broken, option) in [
            (Constraint { bound: Bound::AtMost(f64::NAN), ..base() }, "bound"),
            (Constraint { lr: 0.0, ..base() }, "multiplier_lr"),
            (Constraint { max: -1.0, ..base() }, "multiplier_max"),
            (Constraint { init: 2.5, ..base() }, "multiplier_init"),
        ] {
            let error = Constraints::new(vec![broken]).unwrap_err().to_string();
            assert!(error.starts_with(option), "{error}");
        }
        let mut constraints = Constraints::new(vec![base()]).unwrap();
        assert!(constraints.observe(&[vec![Some(f64::NAN)]]).is_err());
        assert!(constraints.observe(&[vec![]]).is_err());
    }
}
