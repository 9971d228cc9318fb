//! Learning rate over steps: a peak times a factor, with linear warm-up.
//!
//! The factor of step s (from 0), with W warm-up steps of T, floor m, is s / W during warm-up, then with
//! `r = (s − W) / (T − W)`:
//!
//! | name | factor |
//! | --- | --- |
//! | `constant` | 1 |
//! | `linear` | `m + (1 − m) (1 − r)` |
//! | `cosine` | `m + (1 − m) (1 + cos πr) / 2` |
//! | `warmup_stable_decay` | 1, then over the last D steps `m + (1 − m) shape(q)`, q the part of them done |
//!
//! Equal to the functions of these names in transformers (`linear` has m = 0 there). Two details are
//! theirs: the first step has factor 0 when there is a warm-up, and the warm-up of `warmup_stable_decay`
//! starts at m.

use crate::OptimError;
use crate::catalogue::{OptionInfo, check_keys, parse};
use crate::error::require;
use serde::{Deserialize, Serialize};

/// An entry of [`SCHEDULES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduleInfo {
    /// Its name in recipes.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// What it is.
    pub kind: Kind,
}

/// Every schedule.
pub const SCHEDULES: &[ScheduleInfo] = &[
    ScheduleInfo { name: "constant", summary: "the peak, after warm-up", kind: Kind::Constant },
    ScheduleInfo {
        name: "linear",
        summary: "a straight line from the peak to the floor",
        kind: Kind::Linear,
    },
    ScheduleInfo { name: "cosine", summary: "half a cosine from the peak to the floor", kind: Kind::Cosine },
    ScheduleInfo {
        name: "warmup_stable_decay",
        summary: "the peak, then a decay to the floor over the last steps",
        kind: Kind::WarmupStableDecay,
    },
];

/// The options all schedules share.
pub const OPTIONS: &[OptionInfo] = &[
    OptionInfo {
        name: "name",
        kind: "\"constant\", \"linear\", \"cosine\" or \"warmup_stable_decay\"",
        default: "\"linear\"",
        doc: "shape of the learning rate over steps",
    },
    OptionInfo {
        name: "warmup_steps",
        kind: "integer",
        default: "",
        doc: "steps of linear warm-up; default 0",
    },
    OptionInfo {
        name: "warmup_ratio",
        kind: "number in [0, 1]",
        default: "",
        doc: "warm-up as a part of all steps, rounded up",
    },
    OptionInfo {
        name: "min_ratio",
        kind: "number in [0, 1]",
        default: "0.0",
        doc: "the floor, as a part of the peak",
    },
    OptionInfo {
        name: "decay_ratio",
        kind: "number in [0, 1]",
        default: "0.1",
        doc: "warmup_stable_decay: the last part of all steps, rounded up",
    },
    OptionInfo {
        name: "decay_shape",
        kind: "\"linear\", \"cosine\" or \"1-sqrt\"",
        default: "\"cosine\"",
        doc: "warmup_stable_decay: shape of the decay",
    },
];

/// The shapes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The peak.
    Constant,
    /// A line.
    #[default]
    Linear,
    /// Half a cosine.
    Cosine,
    /// A plateau and a decay.
    WarmupStableDecay,
}

/// The shape of the decay after a plateau.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecayShape {
    /// `1 − q`.
    Linear,
    /// `(1 + cos πq) / 2`.
    #[default]
    Cosine,
    /// `1 − √q`.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// A schedule as written in a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Which one.
    pub name: Kind,
    /// W, in steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// W, as a part of T; rounded up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    /// m.
    pub min_ratio: f64,
    /// D, as a part of T; rounded up.
    pub decay_ratio: f64,
    /// Shape of the decay.
    pub decay_shape: DecayShape,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        ScheduleConfig {
            name: Kind::Linear,
            warmup_steps: None,
            warmup_ratio: None,
            min_ratio: 0.0,
            decay_ratio: 0.1,
            decay_shape: DecayShape::Cosine,
        }
    }
}

impl ScheduleConfig {
    /// Reads a configuration from a recipe's table.
    ///
    /// # Errors
    /// [`OptimError::UnknownName`], [`OptimError::UnknownOption`] or [`OptimError::Option`].
    pub fn from_table(table: &toml::Table) -> Result<ScheduleConfig, OptimError> {
        check_keys("schedule", OPTIONS, table)?;
        if let Some(name) = table.get("name").and_then(toml::Value::as_str) {
            let names: Vec<&str> = SCHEDULES.iter().map(|info| info.name).collect();
            if !names.contains(&name) {
                let hint = pt_core::suggest::hint(name, &names);
                return Err(OptimError::UnknownName { kind: "schedule", name: name.to_owned(), hint });
            }
        }
        parse("schedule", table)
    }

    /// The schedule for `total` steps.
    ///
    /// # Errors
    /// [`OptimError::Option`] for a value out of range, for both ways to give the warm-up, or for
    /// more warm-up (and decay) than there are steps.
    pub fn resolve(&self, total: u64) -> Result<Schedule, OptimError> {
        let ratios = [("min_ratio", self.min_ratio), ("decay_ratio", self.decay_ratio)];
        for (key, value) in ratios.into_iter().chain(self.warmup_ratio.map(|v| ("warmup_ratio", v))) {
            let problem = || format!("{key} is {value}, expected 0 to 1");
            require((0.0..=1.0).contains(&value), "schedule", problem)?;
        }
        let part = |ratio: f64| (total as f64 * ratio).ceil() as u64;
        let warmup = match (self.warmup_steps, self.warmup_ratio) {
            (Some(_), Some(_)) => {
                let problem = "both warmup_steps and warmup_ratio are given, expected one".to_owned();
                return Err(OptimError::Option { name: "schedule".to_owned(), problem });
            }
            (Some(steps), None) => steps,
            (None, ratio) => part(ratio.unwrap_or(0.0)),
        };
        let decay = if self.name == Kind::WarmupStableDecay { part(self.decay_ratio) } else { 0 };
        let problem = || format!("{warmup} warm-up and {decay} decay steps do not fit into {total} steps");
        require(warmup.saturating_add(decay) <= total, "schedule", problem)?;
        Ok(Schedule { kind: self.name, warmup, decay, total, min: self.min_ratio, shape: self.decay_shape })
    }
}

/// A schedule with every number known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    kind: Kind,
    warmup: u64,
    decay: u64,
    total: u64,
    min: f64,
    shape: DecayShape,
}

impl Schedule {
    /// What the peak is multiplied by in step `t`, from 1; steps past the last have its successor's factor.
    pub fn factor(&self, t: u64) -> f64 {
        assert!(t > 0, "steps count from 1");
        let step = t - 1;
        if step < self.warmup {
            let ramp = step as f64 / self.warmup as f64;
            return if self.kind == Kind::WarmupStableDecay { self.floored(ramp) } else { ramp };
        }
        match self.kind {
            Kind::Constant => 1.0,
            Kind::Linear => self.floored(1.0 - done(step, self.warmup, self.total)),
            Kind::Cosine => self.floored(half_cosine(done(step, self.warmup, self.total))),
            Kind::WarmupStableDecay => {
                self.floored(self.decayed(done(step, self.total - self.decay, self.total)))
            }
        }
    }

    /// The learning rate of step `t`, from 1.
    pub fn lr(&self, peak: f64, t: u64) -> f64 {
        peak * self.factor(t)
    }

    /// Warm-up steps.
    pub fn warmup(&self) -> u64 {
        self.warmup
    }

    fn floored(&self, factor: f64) -> f64 {
        factor * (1.0 - self.min) + self.min
    }

    fn decayed(&self, q: f64) -> f64 {
        match self.shape {
            DecayShape::Linear => 1.0 - q,
            DecayShape::Cosine => half_cosine(q),
            DecayShape::OneMinusSqrt => 1.0 - q.sqrt(),
        }
    }
}

/// The part of `start..end` that lies before `step`, in `[0, 1]`.
fn done(step: u64, start: u64, end: u64) -> f64 {
    if step >= end {
        return 1.0;
    }
    step.saturating_sub(start) as f64 / (end - start) as f64
}

fn half_cosine(part: f64) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * part).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Factors of `transformers` (golden/train/schedules.json): 20 steps.
    #[test]
    fn equals_transformers() {
        let path = pt_core::testdata::workspace_root().join("golden/train/schedules.json");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let cases = [
            ("linear", "name = 'linear'\nwarmup_steps = 4"),
            ("linear_no_warmup", "name = 'linear'"),
            ("cosine", "name = 'cosine'\nwarmup_ratio = 0.2"),
            ("cosine_with_min_lr", "name = 'cosine'\nwarmup_steps = 4\nmin_ratio = 0.1"),
            ("constant", "name = 'constant'"),
            ("constant_with_warmup", "name = 'constant'\nwarmup_steps = 4"),
            (
                "wsd_linear",
                "name = 'warmup_stable_decay'\nwarmup_steps = 4\ndecay_ratio = 0.3\ndecay_shape = 'linear'",
            ),
            ("wsd_cosine", "name = 'warmup_stable_decay'\nwarmup_steps = 4\ndecay_ratio = 0.3"),
            (
                "wsd_1-sqrt",
                "name = 'warmup_stable_decay'\nwarmup_steps = 4\ndecay_ratio = 0.3\ndecay_shape = '1-sqrt'",
            ),
            (
                "wsd_min_lr",
                "name = 'warmup_stable_decay'\nwarmup_steps = 4\ndecay_ratio = 0.3\nmin_ratio = 0.1",
            ),
        ];
        for (name, table) in cases {
            let schedule = ScheduleConfig::from_table(&table.parse().unwrap()).unwrap().resolve(20).unwrap();
            let values = golden[name]["values"].as_array().unwrap_or_else(|| panic!("no golden `{name}`"));
            assert_eq!(values.len(), 20);
            for (t, value) in (1..).zip(values) {
                let (ours, theirs) = (schedule.lr(1.0, t), value.as_f64().unwrap());
                assert!((ours - theirs).abs() < 1e-12, "{name}, step {t}: {ours} against {theirs}");
            }
        }
    }

    #[test]
    fn the_end_is_the_floor_and_stays_there() {
        for info in SCHEDULES.iter().filter(|info| info.kind != Kind::Constant) {
            let config = ScheduleConfig { name: info.kind, min_ratio: 0.25, ..ScheduleConfig::default() };
            let schedule = config.resolve(10).unwrap();
            for t in [11, 12, 1000] {
                assert_eq!(schedule.factor(t), 0.25, "{}", info.name);
            }
            assert_eq!(config.resolve(0).unwrap().factor(1), 0.25, "{}: no steps", info.name);
        }
    }

    #[test]
    fn the_catalogue_is_what_serde_reads() {
        crate::catalogue::check_defaults(OPTIONS, &ScheduleConfig::default());
        for info in SCHEDULES {
            let table = format!("name = '{}'", info.name).parse().unwrap();
            assert_eq!(ScheduleConfig::from_table(&table).unwrap().name, info.kind);
        }
    }

    #[test]
    fn wrong_settings_say_what_was_expected() {
        let check = |table: &str, expected: &str| {
            let config = ScheduleConfig::from_table(&table.parse().unwrap());
            let message = config.and_then(|c| c.resolve(10)).unwrap_err().to_string();
            assert!(message.contains(expected), "{message} should mention {expected}");
        };
        check("name = 'cosin'", "did you mean `cosine`?");
        check("warmup_step = 3", "did you mean `warmup_steps`?");
        check("warmup_steps = 11", "11 warm-up and 0 decay steps do not fit into 10 steps");
        check("warmup_steps = 1\nwarmup_ratio = 0.1", "expected one");
        check("warmup_ratio = 1.5", "warmup_ratio is 1.5, expected 0 to 1");
        check("decay_shape = 'x'", "unknown variant `x`");
    }
}
