//! The alarm for likelihood displacement: chosen replies grow less likely while the margin grows.
//!
//! A pairwise loss sees only the difference of two log-probabilities, so it can be lowered by pushing both down, the rejected
//! one faster; the probability goes to replies in neither. Source: Razin et al. 2024, "Unintentional unalignment: likelihood
//! displacement in direct preference optimization" (arXiv:2410.08847).

use std::collections::VecDeque;

use crate::Metric;

/// What the alarm saw: means over the earlier and the later half of its window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Displacement {
    /// `rewards/chosen` before and now.
    pub chosen: (f64, f64),
    /// `rewards/margins` before and now.
    pub margin: (f64, f64),
}

/// Watches the steps of a preference objective.
///
/// The chosen reward is taken, not its log-probability: against the reference, it does not move with the lengths of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct DisplacementAlarm {
    half: usize,
    steps: VecDeque<(f64, f64)>,
}

impl DisplacementAlarm {
    /// An alarm that compares the last `half` steps with the `half` steps before them; at least 1.
    pub fn new(half: usize) -> DisplacementAlarm {
        DisplacementAlarm { half: half.max(1), steps: VecDeque::new() }
    }

    /// Takes in a step's metrics; what it says is so as long as the chosen reward falls while the margin grows.
    pub fn observe(&mut self, metrics: &[Metric]) -> Option<Displacement> {
        let value = |name| metrics.iter().find(|m| m.name == name).and_then(Metric::value);
        self.observe_means(value("rewards/chosen")?, value("rewards/margins")?)
    }

    /// The steps it compares: `rewards/chosen` and `rewards/margins` of each, as [`DisplacementAlarm::observe_means`] takes them.
    pub fn window(&self) -> Vec<(f64, f64)> {
        self.steps.iter().copied().collect()
    }

    /// The same as [`DisplacementAlarm::observe`], of a step's `rewards/chosen` and `rewards/margins`.
    pub fn observe_means(&mut self, chosen: f64, margin: f64) -> Option<Displacement> {
        self.steps.push_back((chosen, margin));
        if self.steps.len() > 2 * self.half {
            self.steps.pop_front();
        }
        if self.steps.len() < 2 * self.half {
            return None;
        }
        let mean = |from: usize, of: fn(&(f64, f64)) -> f64| {
            self.steps.range(from..from + self.half).map(of).sum::<f64>() / self.half as f64
        };
        let chosen = (mean(0, |s| s.0), mean(self.half, |s| s.0));
        let margin = (mean(0, |s| s.1), mean(self.half, |s| s.1));
        (chosen.1 < chosen.0 && margin.1 > margin.0).then_some(Displacement { chosen, margin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rings_only_while_chosen_falls_and_margin_grows() {
        let check = |chosen: [f64; 4], margins: [f64; 4], rings: bool| {
            let mut alarm = DisplacementAlarm::new(2);
            let steps = chosen.iter().zip(margins).map(|(&chosen, margin)| {
                [
                    Metric::mean("rewards/chosen", 3.0 * chosen, 3.0),
                    Metric::mean("rewards/margins", margin, 1.0),
                ]
            });
            let seen: Vec<_> = steps.map(|metrics| alarm.observe(&metrics)).collect();
            assert!(seen[..3].iter().all(Option::is_none), "too few steps");
            assert_eq!(seen[3].is_some(), rings, "{chosen:?} {margins:?}");
            seen[3]
        };
        let seen = check([0.0, -1.0, -2.0, -3.0], [0.0, 1.0, 2.0, 3.0], true).unwrap();
        assert_eq!(seen, Displacement { chosen: (-0.5, -2.5), margin: (0.5, 2.5) });
        check([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0], false);
        check([0.0, -1.0, -2.0, -3.0], [0.0, -1.0, -2.0, -3.0], false);
        assert!(DisplacementAlarm::new(1).observe(&[]).is_none());
    }
}
