//! Dynamic sampling: groups whose samples are all worth the same teach nothing, so others are sampled in their place.
//!
//! Whether a group has signal is decided on the **raw verdict**: after penalties for length or a divergence in the reward
//! hardly any two samples are worth exactly the same, and a group that is right throughout would count as one with
//! something to learn. Source: Yu et al. 2025, "DAPO" (arXiv:2503.14476), equation 11. TRL does not have it.
//!
//! [`DynamicSampling`] is the loop without the sampling: it says how many groups to sample, is told which had signal, and ends
//! after at most `max_rounds` rounds.

use serde::{Deserialize, Serialize};

use crate::RlError;

/// Whether at least two samples that could be judged differ.
pub fn has_signal(raw: &[Option<f64>]) -> bool {
    let mut judged = raw.iter().flatten();
    judged.next().is_some_and(|first| judged.any(|other| other != first))
}

/// What happens when the rounds are spent and groups are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exhausted {
    /// The step trains on the groups there are; on none, it is left out.
    #[default]
    Short,
    /// Groups without signal fill it up, so that every step has the same size.
    Fill,
}

/// How often and how much is sampled again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DynamicSamplingConfig {
    /// How many times a step samples at most, the first included.
    pub max_rounds: usize,
    /// The most groups of one round; as many as the step wants if not given.
    pub max_groups_per_round: Option<usize>,
    /// What happens when the rounds are spent.
    pub on_exhausted: Exhausted,
}

impl Default for DynamicSamplingConfig {
    fn default() -> DynamicSamplingConfig {
        DynamicSamplingConfig { max_rounds: 10, max_groups_per_round: None, on_exhausted: Exhausted::Short }
    }
}

/// A group by when it was sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRef {
    /// Which round, from 0.
    pub round: usize,
    /// Which of its groups.
    pub group: usize,
}

/// What a step trains on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Its groups, in the order they were sampled.
    pub groups: Vec<GroupRef>,
    /// How many rounds it took.
    pub n_rounds: usize,
    /// How many groups were sampled.
    pub n_sampled: usize,
    /// How many had no signal.
    pub n_silent: usize,
    /// How many had signal and were not needed.
    pub n_surplus: usize,
    /// Whether groups with signal are missing.
    pub is_short: bool,
}

/// What to do after a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Round {
    /// Sample this many groups of other prompts.
    Again {
        /// How many.
        n_groups: usize,
    },
    /// Train.
    Done(Selection),
}

/// One step's loop.
#[derive(Clone, Debug)]
pub struct DynamicSampling {
    config: DynamicSamplingConfig,
    n_wanted: usize,
    n_rounds: usize,
    n_sampled: usize,
    with_signal: Vec<GroupRef>,
    silent: Vec<GroupRef>,
}

impl DynamicSampling {
    /// A step that wants `n_wanted` groups. The first round samples as many.
    ///
    /// # Errors
    /// [`RlError::Option`] for a limit of 0.
    pub fn new(config: DynamicSamplingConfig, n_wanted: usize) -> Result<DynamicSampling, RlError> {
        let limits = [
            ("max_rounds", config.max_rounds),
            ("max_groups_per_round", config.max_groups_per_round.unwrap_or(1)),
            ("groups of a step", n_wanted),
        ];
        if let Some((option, value)) = limits.into_iter().find(|(_, value)| *value == 0) {
            return Err(RlError::Option {
                option,
                value: value.to_string(),
                expected: "at least 1".to_owned(),
            });
        }
        Ok(DynamicSampling {
            config,
            n_wanted,
            n_rounds: 0,
            n_sampled: 0,
            with_signal: Vec::new(),
            silent: Vec::new(),
        })
    }

    /// How many groups to sample now.
    pub fn n_next(&self) -> usize {
        let limit = self.config.max_groups_per_round.unwrap_or(self.n_wanted);
        if self.n_rounds == 0 {
            return self.n_wanted.min(limit);
        }
        let n_missing = self.n_wanted - self.with_signal.len();
        // The share that had signal so far, as if one of two more had had it: never 0.
        let share = (self.with_signal.len() + 1) as f64 / (self.n_sampled + 2) as f64;
        ((n_missing as f64 / share).ceil() as usize).min(limit)
    }

    /// Takes in a round: for each of its groups, whether it has signal.
    pub fn add_round(&mut self, signals: &[bool]) -> Round {
        for (group, &has_signal) in signals.iter().enumerate() {
            let to = if has_signal { &mut self.with_signal } else { &mut self.silent };
            to.push(GroupRef { round: self.n_rounds, group });
        }
        self.n_rounds += 1;
        self.n_sampled += signals.len();
        let is_enough = self.with_signal.len() >= self.n_wanted;
        if is_enough || self.n_rounds >= self.config.max_rounds {
            return Round::Done(self.selection());
        }
        Round::Again { n_groups: self.n_next() }
    }

    /// What a step trains on that cannot sample again, for example because every prompt was tried.
    pub fn finish(&self) -> Selection {
        self.selection()
    }

    fn selection(&self) -> Selection {
        let mut groups: Vec<GroupRef> = self.with_signal.iter().copied().take(self.n_wanted).collect();
        let n_missing = self.n_wanted - groups.len();
        if self.config.on_exhausted == Exhausted::Fill {
            groups.extend(self.silent.iter().take(n_missing));
            groups.sort_by_key(|group| (group.round, group.group));
        }
        Selection {
            groups,
            n_rounds: self.n_rounds,
            n_sampled: self.n_sampled,
            n_silent: self.silent.len(),
            n_surplus: self.with_signal.len().saturating_sub(self.n_wanted),
            is_short: n_missing > 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_is_a_difference_between_judged_samples() {
        let check = |raw: &[Option<f64>], expected: bool| assert_eq!(has_signal(raw), expected, "{raw:?}");
        check(&[], false);
        check(&[Some(1.0)], false);
        check(&[Some(1.0), Some(1.0), None], false);
        check(&[None, None], false);
        check(&[Some(0.0), None, Some(1.0)], true);
        check(&[Some(0.5), Some(0.500_000_1)], true);
    }

    fn at(round: usize, group: usize) -> GroupRef {
        GroupRef { round, group }
    }

    #[test]
    fn groups_are_sampled_again_until_there_are_enough() {
        let mut step = DynamicSampling::new(DynamicSamplingConfig::default(), 4).unwrap();
        assert_eq!(step.n_next(), 4);
        // One of four had signal: three missing, about a third of the next may have it, but at most four are sampled at once.
        assert_eq!(step.add_round(&[false, true, false, false]), Round::Again { n_groups: 4 });
        let Round::Done(selection) = step.add_round(&[true, true, true, true]) else { panic!("enough") };
        assert_eq!(selection.groups, [at(0, 1), at(1, 0), at(1, 1), at(1, 2)]);
        assert_eq!((selection.n_rounds, selection.n_sampled, selection.n_silent), (2, 8, 3));
        assert_eq!((selection.n_surplus, selection.is_short), (1, false));
    }

    #[test]
    fn rounds_are_limited_and_the_rest_is_as_told() {
        let run = |on_exhausted: Exhausted| {
            let config =
                DynamicSamplingConfig { max_rounds: 3, on_exhausted, ..DynamicSamplingConfig::default() };
            let mut step = DynamicSampling::new(config, 2).unwrap();
            assert!(matches!(step.add_round(&[false, false]), Round::Again { .. }));
            assert!(matches!(step.add_round(&[false, true]), Round::Again { .. }));
            match step.add_round(&[false, false]) {
                Round::Done(selection) => selection,
                Round::Again { .. } => panic!("a fourth round"),
            }
        };
        let short = run(Exhausted::Short);
        assert!(short.is_short && short.groups == [at(1, 1)]);
        assert_eq!(run(Exhausted::Fill).groups, [at(0, 0), at(1, 1)]);
    }

    #[test]
    fn a_round_is_as_large_as_the_share_with_signal_asks_for() {
        let config =
            DynamicSamplingConfig { max_groups_per_round: Some(100), ..DynamicSamplingConfig::default() };
        let mut step = DynamicSampling::new(config.clone(), 8).unwrap();
        let signals: Vec<bool> = (0..8).map(|i| i % 4 == 0).collect();
        assert_eq!(step.add_round(&signals), Round::Again { n_groups: 20 });
        let error = DynamicSampling::new(DynamicSamplingConfig { max_rounds: 0, ..config }, 8).unwrap_err();
        assert!(error.to_string().contains("max_rounds is 0"));
    }
}
