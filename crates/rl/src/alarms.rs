//! Alarms: what goes wrong in reinforcement learning, seen from the metrics of each step.
//!
//! | alarm | looks at | warns, acts |
//! | --- | --- | --- |
//! | `entropy_collapse` | entropy, relative to that of the first steps | below 0.3, below 0.1 |
//! | `kl_runaway` | divergence from the reference, nats per token | above 0.3, above 2 |
//! | `length_drift` | mean length, relative to that of the first steps, either way | by 2, by 4 |
//! | `truncation` | share of completions cut at the limit | above 0.5, above 0.9 |
//! | `no_signal` | share of groups whose samples are all worth the same | above 0.8, all |
//! | `reward_hacking` | the reward rises while a hidden verifier, which is not trained on, falls | by 0.05, by 0.15 |
//! | `ngram_takeover` | share of the most frequent n-gram, above that of the first steps | by 0.1, by 0.3 |
//!
//! Each speaks up once its condition has held for `patience` steps in a row, once for a warning and once for its action, and again only
//! after a step without the condition. A figure that was not measured leaves an alarm as it is; one that is not finite is as
//! bad as can be, except to `reward_hacking`, which leaves such a step out. All thresholds are options. The state is part of the
//! checkpoint: a resumed run says the same.

use serde::{Deserialize, Serialize};

use crate::RlError;

mod hacking;
mod ngram;
mod threshold;

pub use hacking::{RewardHacking, RewardHackingConfig};
pub use ngram::{NgramShare, top_ngram};
pub use threshold::{Bad, Threshold, ThresholdConfig};

/// What an alarm asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing: the alarm is off.
    Off,
    /// Show it and go on.
    Warn,
    /// End the run as it is.
    Stop,
    /// Go back to the last checkpoint before it began, and stop there.
    Rollback,
}

/// What an alarm says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Which alarm.
    pub alarm: String,
    /// What it asks for: `Warn`, `Stop` or `Rollback`.
    pub action: Action,
    /// The step that set it off.
    pub step: u64,
    /// The first step of the condition: a rollback goes before it.
    pub since_step: u64,
    /// What was seen, against what, and what may help.
    pub reason: String,
}

/// What alarms look at, after a step; what was not measured is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepFigures {
    /// The step.
    pub step: u64,
    /// Mean entropy of a token, nats.
    pub entropy: Option<f64>,
    /// Mean divergence of a token from the reference, nats.
    pub kl: Option<f64>,
    /// Mean number of tokens of a completion.
    pub mean_length: Option<f64>,
    /// Share of completions cut at the limit.
    pub clipped_ratio: Option<f64>,
    /// Share of groups without signal on the raw verdict, before any were replaced.
    pub frac_without_signal: Option<f64>,
    /// Mean reward.
    pub reward: Option<f64>,
    /// Mean score of a verifier that is not trained on.
    pub hidden_score: Option<f64>,
    /// The most frequent n-gram of the step's completions ([`top_ngram`]).
    pub top_ngram: Option<NgramShare>,
}

/// Options of all alarms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlarmsConfig {
    /// Entropy falls.
    pub entropy_collapse: ThresholdConfig,
    /// The divergence from the reference grows.
    pub kl_runaway: ThresholdConfig,
    /// Completions become much longer or shorter.
    pub length_drift: ThresholdConfig,
    /// Completions are cut.
    pub truncation: ThresholdConfig,
    /// Groups teach nothing.
    pub no_signal: ThresholdConfig,
    /// The reward rises, what it stands for does not.
    pub reward_hacking: RewardHackingConfig,
    /// One n-gram takes over.
    pub ngram_takeover: ThresholdConfig,
}

impl Default for AlarmsConfig {
    fn default() -> AlarmsConfig {
        let with =
            |warn, act, action, patience| ThresholdConfig { warn, act, action, patience, baseline_steps: 5 };
        AlarmsConfig {
            entropy_collapse: with(0.3, 0.1, Action::Stop, 3),
            kl_runaway: with(0.3, 2.0, Action::Rollback, 2),
            length_drift: with(2.0, 4.0, Action::Warn, 3),
            truncation: with(0.5, 0.9, Action::Warn, 3),
            no_signal: with(0.8, 1.0, Action::Stop, 10),
            reward_hacking: RewardHackingConfig::default(),
            ngram_takeover: with(0.1, 0.3, Action::Stop, 3),
        }
    }
}

/// All alarms; serialised, it is their state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alarms {
    thresholds: Vec<Threshold>,
    reward_hacking: RewardHacking,
}

impl Alarms {
    /// Nothing seen yet.
    ///
    /// # Errors
    /// [`RlError::Option`] for thresholds in the wrong order.
    pub fn new(config: &AlarmsConfig) -> Result<Alarms, RlError> {
        let c = config;
        let thresholds = vec![
            Threshold::new("entropy_collapse", Bad::BelowShareOfFirst, &c.entropy_collapse)?,
            Threshold::new("kl_runaway", Bad::Above, &c.kl_runaway)?,
            Threshold::new("length_drift", Bad::FactorOfFirst, &c.length_drift)?,
            Threshold::new("truncation", Bad::Above, &c.truncation)?,
            Threshold::new("no_signal", Bad::Above, &c.no_signal)?,
            Threshold::new("ngram_takeover", Bad::AboveFirst, &c.ngram_takeover)?,
        ];
        Ok(Alarms { thresholds, reward_hacking: RewardHacking::new(&c.reward_hacking)? })
    }

    /// Takes in a step; what there is to say, the gravest first.
    pub fn observe(&mut self, figures: &StepFigures) -> Vec<Alert> {
        let mut alerts: Vec<Alert> = self
            .thresholds
            .iter_mut()
            .filter_map(|alarm| {
                let (value, what, advice) = figure(figures, alarm.name());
                alarm.observe(figures.step, value?, &what, advice)
            })
            .collect();
        alerts.extend(self.reward_hacking.observe(figures.step, figures.reward, figures.hidden_score));
        alerts.sort_by_key(|alert| std::cmp::Reverse(alert.action));
        alerts
    }
}

/// What a threshold looks at, in words, and what may help.
fn figure(figures: &StepFigures, alarm: &str) -> (Option<f64>, String, &'static str) {
    match alarm {
        "entropy_collapse" => (
            figures.entropy,
            "the entropy".to_owned(),
            "samples of a group become alike; try a higher epsilon_high, an entropy bonus or a lower learning rate",
        ),
        "kl_runaway" => (
            figures.kl,
            "the divergence from the reference".to_owned(),
            "try a higher beta or a lower learning rate",
        ),
        "length_drift" => (
            figures.mean_length,
            "the mean completion length".to_owned(),
            "look at samples; token-level or fixed-length aggregation and a length penalty change what length is worth",
        ),
        "truncation" => (
            figures.clipped_ratio,
            "the share of completions cut at the limit".to_owned(),
            "try a higher rollout.max_new_tokens, or punish long replies softly with rollout.overlong_cache",
        ),
        "no_signal" => (
            figures.frac_without_signal,
            "the share of groups without signal".to_owned(),
            "problems are too easy or too hard; try dynamic sampling, a curriculum or other data",
        ),
        "ngram_takeover" => match &figures.top_ngram {
            Some(top) => {
                (Some(top.share), format!("the share of the n-gram {:?}", top.ngram), "look at samples")
            }
            None => (None, String::new(), ""),
        },
        _ => unreachable!("a figure for every threshold"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which alarms spoke, when and how, on a curve of figures.
    fn run(
        config: &AlarmsConfig,
        n: u64,
        curve: impl Fn(u64, &mut StepFigures),
    ) -> Vec<(u64, String, Action)> {
        let mut alarms = Alarms::new(config).unwrap();
        let mut said = Vec::new();
        for step in 0..n {
            let mut figures = StepFigures { step, ..StepFigures::default() };
            curve(step, &mut figures);
            for alert in alarms.observe(&figures) {
                assert!(!alert.reason.is_empty() && alert.since_step <= alert.step, "{alert:?}");
                said.push((alert.step, alert.alarm, alert.action));
            }
            // A resumed run goes on as this one.
            let text = serde_json::to_string(&alarms).unwrap();
            assert_eq!(serde_json::from_str::<Alarms>(&text).unwrap(), alarms);
        }
        said
    }

    fn check(n: u64, curve: impl Fn(u64, &mut StepFigures), expected: &[(u64, &str, Action)]) {
        let said = run(&AlarmsConfig::default(), n, curve);
        let expected: Vec<_> = expected.iter().map(|&(s, a, w)| (s, a.to_owned(), w)).collect();
        assert_eq!(said, expected);
    }

    #[test]
    fn a_healthy_run_is_quiet() {
        let wave = |step: u64| (step as f64 * 0.7).sin();
        check(
            300,
            |step, f| {
                let progress = step as f64 / 300.0;
                f.entropy = Some(1.2 - 0.5 * progress + 0.1 * wave(step));
                f.kl = Some(0.05 * progress);
                f.mean_length = Some(200.0 + 100.0 * progress + 20.0 * wave(step));
                f.clipped_ratio = Some(0.05);
                f.frac_without_signal = Some(0.4 + 0.2 * wave(step));
                f.reward = Some(0.3 + 0.4 * progress + 0.05 * wave(step));
                f.hidden_score = Some(0.3 + 0.3 * progress + 0.05 * wave(step + 2));
                f.top_ngram = Some(NgramShare { ngram: vec![1, 2, 3, 4], share: 0.02, n_total: 5000 });
            },
            &[],
        );
        check(50, |_, _| (), &[]);
    }

    #[test]
    fn entropy_collapse_warns_then_stops() {
        let curve = |step: u64, f: &mut StepFigures| f.entropy = Some((-(step as f64) / 10.0).exp());
        // The first five average 0.82; 30 % of that is reached at step 14, 10 % at step 25; both must hold three steps.
        check(40, curve, &[(16, "entropy_collapse", Action::Warn), (27, "entropy_collapse", Action::Stop)]);
        let mut config = AlarmsConfig::default();
        config.entropy_collapse.action = Action::Off;
        assert_eq!(run(&config, 40, curve), []);
    }

    #[test]
    fn a_runaway_divergence_is_rolled_back_to_before_it_began() {
        check(
            12,
            |step, f| f.kl = Some(if step < 6 { 0.01 } else { 5.0 }),
            &[(7, "kl_runaway", Action::Rollback)],
        );
        // Not finite is as bad as can be.
        check(4, |_, f| f.kl = Some(f64::NAN), &[(1, "kl_runaway", Action::Rollback)]);
        let mut alarms = Alarms::new(&AlarmsConfig::default()).unwrap();
        let mut last = Vec::new();
        for step in 3..5 {
            last = alarms.observe(&StepFigures { step, kl: Some(9.0), ..StepFigures::default() });
        }
        assert_eq!((last[0].since_step, last[0].step), (3, 4));
        assert!(last[0].reason.contains("divergence from the reference is 9"), "{}", last[0].reason);
    }

    #[test]
    fn one_bad_step_is_not_enough_and_recovery_rearms() {
        check(30, |step, f| f.kl = Some(if step % 2 == 0 { 0.5 } else { 0.0 }), &[]);
        check(
            12,
            |step, f| f.kl = Some(if step % 6 < 3 { 0.5 } else { 0.0 }),
            &[(1, "kl_runaway", Action::Warn), (7, "kl_runaway", Action::Warn)],
        );
    }

    #[test]
    fn lengths_may_drift_either_way() {
        check(
            20,
            |step, f| f.mean_length = Some(if step < 8 { 100.0 } else { 230.0 }),
            &[(10, "length_drift", Action::Warn)],
        );
        check(
            20,
            |step, f| f.mean_length = Some(if step < 8 { 100.0 } else { 45.0 }),
            &[(10, "length_drift", Action::Warn)],
        );
        check(9, |_, f| f.clipped_ratio = Some(0.6), &[(2, "truncation", Action::Warn)]);
    }

    #[test]
    fn steps_without_signal_stop_the_run_after_a_while() {
        check(30, |_, f| f.frac_without_signal = Some(1.0), &[(9, "no_signal", Action::Stop)]);
        check(30, |_, f| f.frac_without_signal = Some(0.85), &[(9, "no_signal", Action::Warn)]);
    }

    #[test]
    fn an_n_gram_that_was_always_there_is_no_alarm() {
        let share = |share: f64| Some(NgramShare { ngram: vec![7, 7, 7, 7], share, n_total: 1000 });
        check(20, |_, f| f.top_ngram = share(0.4), &[]);
        check(
            20,
            |step, f| f.top_ngram = share(0.02 * step as f64),
            &[(9, "ngram_takeover", Action::Warn), (19, "ngram_takeover", Action::Stop)],
        );
    }

    #[test]
    fn thresholds_in_the_wrong_order_are_refused() {
        let mut config = AlarmsConfig::default();
        (config.entropy_collapse.warn, config.entropy_collapse.act) = (0.1, 0.3);
        let error = Alarms::new(&config).unwrap_err().to_string();
        assert!(error.contains("entropy_collapse") && error.contains("act"), "{error}");
        let mut config = AlarmsConfig::default();
        config.kl_runaway.patience = 0;
        assert!(Alarms::new(&config).unwrap_err().to_string().contains("patience"));
    }
}
