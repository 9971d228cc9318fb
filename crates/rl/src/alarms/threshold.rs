//! A figure that must not cross a line, a warning's and an action's.

use serde::{Deserialize, Serialize};

use super::{Action, Alert};
use crate::RlError;

/// What is bad about a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bad {
    /// To be at or above the threshold.
    Above,
    /// To be at or above the mean of the first steps plus the threshold.
    AboveFirst,
    /// To be at or below the threshold times the mean of the first steps.
    BelowShareOfFirst,
    /// To be as many times the mean of the first steps, or that part of it.
    FactorOfFirst,
}

/// Options of a threshold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThresholdConfig {
    /// Where it warns.
    pub warn: f64,
    /// Where it acts.
    pub act: f64,
    /// What it does there; `off` switches the whole alarm off.
    pub action: Action,
    /// How many steps in a row the condition must hold.
    pub patience: u32,
    /// Over how many first steps the figure's usual value is measured, where it is compared with that.
    pub baseline_steps: u32,
}

/// One alarm of this kind, with what it has seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    name: String,
    bad: Bad,
    config: ThresholdConfig,
    n_first: u32,
    sum_first: f64,
    warning: Streak,
    acting: Streak,
}

/// How long a condition has held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Streak {
    n: u32,
    since: u64,
    has_spoken: bool,
}

impl Streak {
    /// The step it began in, when it has just become long enough.
    pub(super) fn push(&mut self, step: u64, holds: bool, patience: u32) -> Option<u64> {
        if !holds {
            *self = Streak::default();
            return None;
        }
        if self.n == 0 {
            self.since = step;
        }
        self.n += 1;
        let is_due = self.n >= patience && !self.has_spoken;
        self.has_spoken |= is_due;
        is_due.then_some(self.since)
    }
}

impl Threshold {
    /// Nothing seen yet.
    ///
    /// # Errors
    /// [`RlError::Option`] if acting comes before warning, or a count is 0.
    pub fn new(name: &'static str, bad: Bad, config: &ThresholdConfig) -> Result<Threshold, RlError> {
        let is_ordered = match bad {
            Bad::BelowShareOfFirst => config.act <= config.warn,
            _ => config.act >= config.warn,
        };
        let problem = |value: String, expected: &str| {
            Err(RlError::Option { option: name, value, expected: expected.to_owned() })
        };
        if !(is_ordered && config.warn.is_finite() && config.act.is_finite()) {
            let value = format!("warn {} and act {}", config.warn, config.act);
            return problem(value, "finite numbers, `act` no earlier than `warn`");
        }
        if config.patience == 0 || config.baseline_steps == 0 {
            let value = format!("patience {}, baseline_steps {}", config.patience, config.baseline_steps);
            return problem(value, "at least 1");
        }
        Ok(Threshold {
            name: name.to_owned(),
            bad,
            config: config.clone(),
            n_first: 0,
            sum_first: 0.0,
            warning: Streak::default(),
            acting: Streak::default(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes in a step's figure; `what` it is and what may help go into the reason.
    pub fn observe(&mut self, step: u64, value: f64, what: &str, advice: &str) -> Option<Alert> {
        if self.config.action == Action::Off {
            return None;
        }
        let is_first = self.bad != Bad::Above && self.n_first < self.config.baseline_steps;
        if is_first && value.is_finite() {
            (self.n_first, self.sum_first) = (self.n_first + 1, self.sum_first + value);
            return None;
        }
        let warned = self.warning.push(step, self.is_beyond(value, self.config.warn), self.config.patience);
        let acted = self.acting.push(step, self.is_beyond(value, self.config.act), self.config.patience);
        let (since_step, action, threshold) = match (warned, acted) {
            (_, Some(since)) => (since, self.config.action, self.config.act),
            (Some(since), None) => (since, Action::Warn, self.config.warn),
            (None, None) => return None,
        };
        let limit = self.limit(threshold);
        let n = self.config.patience;
        let reason = format!("{what} is {value:.4}, {limit}, for {n} steps in a row; {advice}");
        Some(Alert { alarm: self.name.clone(), action, step, since_step, reason })
    }

    fn first(&self) -> f64 {
        self.sum_first / f64::from(self.n_first.max(1))
    }

    fn is_beyond(&self, value: f64, threshold: f64) -> bool {
        let first = self.first();
        !value.is_finite()
            || match self.bad {
                Bad::Above => value >= threshold,
                Bad::AboveFirst => value >= first + threshold,
                Bad::BelowShareOfFirst => value <= first * threshold,
                Bad::FactorOfFirst => value >= first * threshold || value * threshold <= first,
            }
    }

    fn limit(&self, threshold: f64) -> String {
        let first = self.first();
        match self.bad {
            Bad::Above => format!("at least {threshold}"),
            Bad::AboveFirst => format!("at least {threshold} above the first steps' {first:.4}"),
            Bad::BelowShareOfFirst => format!("at most {threshold} times the first steps' {first:.4}"),
            Bad::FactorOfFirst => {
                format!("{threshold} times the first steps' {first:.4}, or that part of it")
            }
        }
    }
}
