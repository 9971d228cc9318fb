//! Metrics of a step's samples, by TRL's names.

use crate::advantages::Advantages;
use crate::stats::{deviation, mean, present};

/// `completions/*`: from the length of every completion and whether it was cut at the limit. Lengths of those that ended by
/// themselves are 0 where there are none, as in TRL.
pub fn completion_metrics(completions: &[(usize, bool)]) -> Vec<(String, f64)> {
    if completions.is_empty() {
        return Vec::new();
    }
    let lengths: Vec<f64> = completions.iter().map(|(length, _)| *length as f64).collect();
    let ended: Vec<f64> =
        completions.iter().filter(|(_, cut)| !cut).map(|(length, _)| *length as f64).collect();
    let n_cut = (completions.len() - ended.len()) as f64;
    let mut metrics = Vec::new();
    let mut three = |what: &str, values: &[f64]| {
        let least = values.iter().copied().reduce(f64::min).unwrap_or(0.0);
        let greatest = values.iter().copied().reduce(f64::max).unwrap_or(0.0);
        metrics.push((format!("completions/mean_{what}"), mean(values).unwrap_or(0.0)));
        metrics.push((format!("completions/min_{what}"), least));
        metrics.push((format!("completions/max_{what}"), greatest));
    };
    three("length", &lengths);
    three("terminated_length", &ended);
    metrics.insert(3, ("completions/clipped_ratio".to_owned(), n_cut / completions.len() as f64));
    metrics
}

/// What is counted of a sample from an environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpisodeFigures {
    /// Turns of the model.
    pub n_turns: usize,
    /// Tools that were called.
    pub n_calls: usize,
    /// Of these, how many failed.
    pub n_failures: usize,
    /// Whether it ended because no more turns were allowed.
    pub is_out_of_turns: bool,
    /// Whether it ended because the chat template would have written earlier turns in another way.
    pub is_rewritten: bool,
    /// Whether the environment broke.
    pub is_aborted: bool,
}

/// `turns/mean`, `turns/max`; TRL's `tools/call_frequency` (calls per sample) and `tools/failure_frequency` (the share of calls that
/// failed); the shares of episodes that ended otherwise than by a last turn: `environment/out_of_turns`, `environment/rewritten`,
/// `environment/aborted`. Nothing without episodes.
pub fn episode_metrics(episodes: &[EpisodeFigures]) -> Vec<(String, f64)> {
    if episodes.is_empty() {
        return Vec::new();
    }
    let n = episodes.len() as f64;
    let sum = |of: fn(&EpisodeFigures) -> usize| episodes.iter().map(of).sum::<usize>() as f64;
    let share = |of: fn(&EpisodeFigures) -> bool| episodes.iter().filter(|e| of(e)).count() as f64 / n;
    let most = episodes.iter().map(|episode| episode.n_turns).max().unwrap_or(0);
    let n_calls = sum(|episode| episode.n_calls);
    let failed = sum(|episode| episode.n_failures) / n_calls.max(1.0);
    [
        ("turns/mean", sum(|episode| episode.n_turns) / n),
        ("turns/max", most as f64),
        ("tools/call_frequency", n_calls / n),
        ("tools/failure_frequency", failed),
        ("environment/out_of_turns", share(|episode| episode.is_out_of_turns)),
        ("environment/rewritten", share(|episode| episode.is_rewritten)),
        ("environment/aborted", share(|episode| episode.is_aborted)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// `rewards/{name}/mean`, `rewards/{name}/std`, `rewards/{name}/skipped` (the share that could not be judged; not in TRL), `reward`,
/// `reward_std`, `frac_reward_zero_std`. Where nothing could be judged, a mean is left out.
pub fn reward_metrics(
    names: &[&str],
    rewards: &[Vec<Option<f64>>],
    advantages: &Advantages,
) -> Vec<(String, f64)> {
    let mut metrics = Vec::new();
    for (k, name) in names.iter().enumerate() {
        let own: Vec<f64> = rewards.iter().filter_map(|row| row[k]).collect();
        if let Some(mean) = mean(&own) {
            metrics.push((format!("rewards/{name}/mean"), mean));
            metrics.push((format!("rewards/{name}/std"), deviation(&own)));
        }
        let n_skipped = (rewards.len() - own.len()) as f64;
        metrics.push((format!("rewards/{name}/skipped"), n_skipped / rewards.len().max(1) as f64));
    }
    let totals = present(&advantages.rewards);
    if let Some(mean) = mean(&totals) {
        metrics.push(("reward".to_owned(), mean));
        metrics.push(("reward_std".to_owned(), deviation(&totals)));
    }
    metrics.push(("frac_reward_zero_std".to_owned(), advantages.frac_reward_zero_std));
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AdvantageConfig;

    #[test]
    fn lengths_are_of_all_and_of_those_that_ended() {
        let names_and_values = |completions: &[(usize, bool)]| -> Vec<(String, f64)> {
            completion_metrics(completions)
                .into_iter()
                .map(|(n, v)| (n.replace("completions/", ""), v))
                .collect()
        };
        let expected = [
            ("mean_length", 5.0),
            ("min_length", 2.0),
            ("max_length", 9.0),
            ("clipped_ratio", 1.0 / 3.0),
            ("mean_terminated_length", 3.0),
            ("min_terminated_length", 2.0),
            ("max_terminated_length", 4.0),
        ];
        let found = names_and_values(&[(2, false), (9, true), (4, false)]);
        for ((name, value), (expected_name, expected)) in found.iter().zip(expected) {
            assert!(name == expected_name && (value - expected).abs() < 1e-12, "{name} {value}");
        }
        assert_eq!(found.len(), expected.len());
        assert!(names_and_values(&[(9, true)]).contains(&("max_terminated_length".to_owned(), 0.0)));
        assert!(completion_metrics(&[]).is_empty());
    }

    #[test]
    fn episodes_have_turns_calls_and_ends() {
        let one = EpisodeFigures { n_turns: 3, n_calls: 2, n_failures: 1, ..EpisodeFigures::default() };
        let other = EpisodeFigures { n_turns: 1, is_aborted: true, ..EpisodeFigures::default() };
        let metrics = episode_metrics(&[one, other]);
        let value = |name: &str| metrics.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        for (name, expected) in [
            ("turns/mean", 2.0),
            ("turns/max", 3.0),
            ("tools/call_frequency", 1.0),
            ("tools/failure_frequency", 0.5),
            ("environment/aborted", 0.5),
            ("environment/rewritten", 0.0),
        ] {
            assert_eq!(value(name), Some(expected), "{name}");
        }
        assert!(episode_metrics(&[]).is_empty());
    }

    #[test]
    fn rewards_have_means_and_skips() {
        let rewards = vec![vec![Some(1.0), None], vec![Some(0.0), None], vec![None, None]];
        let advantages = AdvantageConfig::default().advantages(&rewards, &[1.0, 1.0], &[0, 0, 0]).unwrap();
        let metrics = reward_metrics(&["a", "b"], &rewards, &advantages);
        let value = |name: &str| metrics.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        assert_eq!(value("rewards/a/mean"), Some(0.5));
        assert!((value("rewards/a/std").unwrap() - 0.5_f64.sqrt()).abs() < 1e-12);
        assert!((value("rewards/a/skipped").unwrap() - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!((value("rewards/b/mean"), value("rewards/b/skipped")), (None, Some(1.0)));
        assert_eq!((value("reward"), value("frac_reward_zero_std")), (Some(0.5), Some(0.0)));
    }
}
