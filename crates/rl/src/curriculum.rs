//! Which problems to sample next: those of which a group is most likely to have signal.
//!
//! For a problem with s successes of n attempts (both fading by `decay` whenever it is tried again):
//!
//! ```text
//! p = (s + 1) / (n + 2)
//! weight = floor + (1 − floor) · (1 − p^G − (1 − p)^G) / (1 − 2^(1−G))
//! ```
//!
//! the chance that G samples are neither all right nor all wrong, scaled so that p = 1/2 gives 1. A problem never tried has p = 1/2, so
//! new ones come early; `floor` keeps every problem in play, so that what was too hard is tried again. Problems are drawn
//! without replacement (Efraimidis and Spirakis 2006), keyed by seed and step: a resumed run draws the same.

use std::collections::BTreeMap;

use pt_core::rng::Stream;
use serde::{Deserialize, Serialize};

use crate::RlError;

/// How problems are weighed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CurriculumConfig {
    /// The least weight; 1 weighs all problems alike.
    pub floor: f64,
    /// What earlier attempts are multiplied by when a problem is tried again; 1 forgets nothing.
    pub decay: f64,
    /// A verdict of at least this is a success.
    pub success: f64,
}

impl Default for CurriculumConfig {
    fn default() -> CurriculumConfig {
        CurriculumConfig { floor: 0.05, decay: 0.7, success: 1.0 }
    }
}

/// What is known of a problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Successes, faded.
    pub successes: f64,
    /// Attempts, faded.
    pub attempts: f64,
    /// The step in which it was last tried.
    pub last_step: u64,
}

impl Estimate {
    /// The estimated rate of success.
    pub fn rate(&self) -> f64 {
        (self.successes + 1.0) / (self.attempts + 2.0)
    }
}

/// Estimates by problem; it is its own state and goes into checkpoints as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curriculum {
    config: CurriculumConfig,
    /// By a key of the problem that stays the same from run to run.
    problems: BTreeMap<u64, Estimate>,
}

impl Curriculum {
    /// Nothing tried yet.
    ///
    /// # Errors
    /// [`RlError::Option`] for a value out of range.
    pub fn new(config: CurriculumConfig) -> Result<Curriculum, RlError> {
        for (option, value) in [("floor", config.floor), ("decay", config.decay)] {
            if !(0.0..=1.0).contains(&value) {
                let expected = "a number from 0 to 1".to_owned();
                return Err(RlError::Option { option, value: value.to_string(), expected });
            }
        }
        if config.floor == 0.0 {
            // Without it a problem that was solved throughout could never be drawn again.
            let expected = "above 0".to_owned();
            return Err(RlError::Option { option: "floor", value: "0".to_owned(), expected });
        }
        Ok(Curriculum { config, problems: BTreeMap::new() })
    }

    /// What is known of a problem, if it was tried.
    pub fn estimate(&self, problem: u64) -> Option<&Estimate> {
        self.problems.get(&problem)
    }

    /// Takes in the raw verdicts of a group; samples that nothing could judge are no attempts.
    pub fn observe(&mut self, problem: u64, step: u64, verdicts: &[Option<f64>]) {
        let n = verdicts.iter().flatten().count();
        if n == 0 {
            return;
        }
        let successes = verdicts.iter().flatten().filter(|score| **score >= self.config.success).count();
        let known = self.problems.entry(problem).or_default();
        known.successes = known.successes * self.config.decay + successes as f64;
        known.attempts = known.attempts * self.config.decay + n as f64;
        known.last_step = step;
    }

    /// How likely the problem should be drawn, relative to others: `floor` to 1.
    pub fn weight(&self, problem: u64, group_size: usize) -> f64 {
        let group = group_size.max(2) as f64;
        let p = self.problems.get(&problem).map_or(0.5, Estimate::rate);
        let mixed = (1.0 - p.powf(group) - (1.0 - p).powf(group)) / (1.0 - 2.0_f64.powf(1.0 - group));
        self.config.floor + (1.0 - self.config.floor) * mixed
    }

    /// `n` different problems for a step (fewer if there are fewer), in the order they were drawn. `round` tells apart the draws of
    /// one step; `excluded` are left out.
    pub fn draw(
        &self,
        problems: &[u64],
        n: usize,
        group_size: usize,
        (seed, step, round): (u64, u64, u64),
        excluded: &std::collections::BTreeSet<u64>,
    ) -> Vec<u64> {
        let stream =
            Stream::new(seed ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15), &format!("curriculum {round}"));
        let mut keyed: Vec<(f64, u64)> = problems
            .iter()
            .filter(|problem| !excluded.contains(problem))
            // Keyed by problem, not by place: what else is in the list does not matter.
            .map(|&problem| {
                let uniform = stream.at(problem).uniform();
                (-(1.0 - uniform).ln() / self.weight(problem, group_size), problem)
            })
            .collect();
        keyed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        keyed.into_iter().take(n).map(|(_, problem)| problem).collect()
    }

    /// `curriculum/*`: how many problems were tried, and how they are spread.
    pub fn metrics(&self) -> Vec<(String, f64)> {
        let rates: Vec<f64> = self.problems.values().map(Estimate::rate).collect();
        let n = rates.len() as f64;
        let share = |of: &dyn Fn(f64) -> bool| rates.iter().filter(|r| of(**r)).count() as f64 / n.max(1.0);
        vec![
            ("curriculum/problems_tried".to_owned(), n),
            ("curriculum/success_rate".to_owned(), rates.iter().sum::<f64>() / n.max(1.0)),
            ("curriculum/frac_hard".to_owned(), share(&|rate| rate < 0.2)),
            ("curriculum/frac_easy".to_owned(), share(&|rate| rate > 0.8)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn curriculum() -> Curriculum {
        let mut curriculum = Curriculum::new(CurriculumConfig::default()).unwrap();
        for step in 0..5 {
            curriculum.observe(1, step, &[Some(1.0); 8]);
            curriculum.observe(2, step, &[Some(0.0); 8]);
            curriculum.observe(3, step, &[Some(1.0), Some(0.0), None, Some(1.0), Some(0.0)]);
            curriculum.observe(4, step, &[None; 4]);
        }
        curriculum
    }

    #[test]
    fn problems_of_middling_difficulty_weigh_most() {
        let known = curriculum();
        let weight = |problem| known.weight(problem, 8);
        assert!((weight(3) - 1.0).abs() < 1e-9 && (weight(9) - 1.0).abs() < 1e-9);
        assert!(weight(1) < 0.4 && weight(2) < 0.4 && weight(1) > 0.05, "{} {}", weight(1), weight(2));
        assert!(known.estimate(4).is_none(), "skips are no attempts");
        assert!(known.estimate(1).unwrap().attempts < 8.0 / (1.0 - 0.7) + 1e-9, "attempts fade");
    }

    #[test]
    fn what_was_hard_is_forgotten_when_it_is_solved() {
        let mut known = curriculum();
        let before = known.weight(2, 8);
        known.observe(2, 9, &[Some(1.0), Some(0.0), Some(0.0), Some(1.0)]);
        assert!(known.weight(2, 8) > 1.5 * before);
    }

    #[test]
    fn draws_follow_the_weights_and_depend_on_seed_step_and_round_only() {
        let known = curriculum();
        let none = BTreeSet::new();
        let problems = [1, 2, 3, 9];
        let first = |step| known.draw(&problems, 1, 8, (7, step, 0), &none)[0];
        let n = 4000;
        let count =
            |problem| (0..n).filter(|&step| first(step) == problem).count() as f64 / f64::from(n as u32);
        let total: f64 = problems.iter().map(|&p| known.weight(p, 8)).sum();
        for problem in problems {
            let expected = known.weight(problem, 8) / total;
            assert!(
                (count(problem) - expected).abs() < 0.04,
                "{problem}: {} against {expected}",
                count(problem)
            );
        }
        let draw = |list: &[u64], round| known.draw(list, 4, 8, (7, 3, round), &none);
        assert_eq!(draw(&problems, 0), draw(&[9, 3, 2, 1], 0));
        assert_ne!(
            (0..20).map(|r| draw(&problems, r)).collect::<BTreeSet<_>>().len(),
            1,
            "rounds are drawn apart"
        );
        let mut all = draw(&problems, 0);
        all.sort_unstable();
        assert_eq!(all, problems, "without replacement");
        assert_eq!(known.draw(&problems, 4, 8, (7, 3, 0), &BTreeSet::from([1, 2, 3])), [9]);
    }

    #[test]
    fn state_survives_and_options_are_checked() {
        let known = curriculum();
        let text = serde_json::to_string(&known).unwrap();
        assert_eq!(serde_json::from_str::<Curriculum>(&text).unwrap(), known);
        for (floor, decay) in [(0.0, 1.0), (1.5, 1.0), (0.1, -1.0), (f64::NAN, 1.0)] {
            assert!(Curriculum::new(CurriculumConfig { floor, decay, success: 1.0 }).is_err());
        }
        let metrics = known.metrics();
        assert_eq!(metrics[0], ("curriculum/problems_tried".to_owned(), 3.0));
    }
}
