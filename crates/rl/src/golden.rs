//! TRL's own advantages and metrics: golden/rl/advantages.json.

use serde_json::{Map, Value};

use crate::advantages::subtract_kl;
use crate::metrics::{completion_metrics, reward_metrics};
use crate::{AdvantageConfig, Advantages};

/// TRL computed in f64; its inputs and outputs are written with nine digits, and its metrics of lengths are f32.
const TOLERANCE: f64 = 1e-7;

/// The options that a case names.
fn config(case: &Value) -> AdvantageConfig {
    let known = [
        "baseline",
        "scale_rewards",
        "multi_objective_aggregation",
        "reward_clip_range",
        "normalize_advantages",
    ];
    let given: Map<String, Value> =
        known.iter().filter_map(|key| case.get(*key).map(|v| ((*key).to_owned(), v.clone()))).collect();
    serde_json::from_value(given.into()).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Our advantages for a case, with the divergence taken off where it has one.
fn advantages(case: &Value, rewards: &[Vec<Option<f64>>], lengths: &[usize], groups: &[usize]) -> Advantages {
    let weights: Vec<f64> = serde_json::from_value(case["weights"].clone()).unwrap();
    let config = config(case);
    let beta = case.get("beta").map_or(0.0, |beta| beta.as_f64().unwrap());
    let plain = config.advantages(rewards, &weights, groups).unwrap();
    if beta == 0.0 {
        return plain;
    }
    let (old, reference) = (floats(&case["old"]), floats(&case["reference"]));
    let mut start = 0;
    let pairs: Vec<(&[f32], &[f32])> = lengths
        .iter()
        .map(|n| {
            start += n;
            (&old[start - n..start], &reference[start - n..start])
        })
        .collect();
    // TRL clips the rewards before it takes the divergence off; the clipped case has none.
    let with_kl = config.of_totals(&subtract_kl(&plain.rewards, &pairs, beta).unwrap(), groups).unwrap();
    Advantages { rewards: plain.rewards, ..with_kl }
}

/// The share of samples in groups with fewer than two judged ones. Such a group has no signal; TRL's deviation of it is NaN, which it
/// does not count among those of zero.
fn lonely(case: &Value, rewards: &[Vec<Option<f64>>], group_size: usize) -> f64 {
    let is_by_group = case["scale_rewards"] != "batch" && case["multi_objective_aggregation"].is_null();
    let is_lonely =
        |group: &&[Vec<Option<f64>>]| group.iter().filter(|row| row.iter().any(Option::is_some)).count() < 2;
    let n = rewards.chunks(group_size).filter(is_lonely).count() * group_size;
    if is_by_group { n as f64 / rewards.len() as f64 } else { 0.0 }
}

#[test]
fn advantages_and_metrics_equal_trls() {
    let path = pt_core::testdata::workspace_root().join("golden/rl/advantages.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let golden: Value = serde_json::from_str(&text).unwrap();
    let group_size = golden["group"].as_u64().unwrap() as usize;
    let mut n_metrics = 0;
    for case in golden["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let rewards: Vec<Vec<Option<f64>>> = serde_json::from_value(case["rewards"].clone()).unwrap();
        let lengths: Vec<usize> = serde_json::from_value(case["lengths"].clone()).unwrap();
        let groups: Vec<usize> = (0..rewards.len()).map(|i| i / group_size).collect();
        let found = advantages(case, &rewards, &lengths, &groups);
        let theirs: Vec<f64> = serde_json::from_value(case["advantages"].clone()).unwrap();
        for (i, (a, b)) in found.values.iter().zip(&theirs).enumerate() {
            assert!((a - b).abs() <= TOLERANCE * b.abs().max(1.0), "{name}, sample {i}: {a} against {b}");
        }
        let names = ["a", "b"];
        let mut ours = reward_metrics(&names[..rewards[0].len()], &rewards, &found);
        // The generator's completions end by themselves but every third one.
        let completions: Vec<(usize, bool)> =
            lengths.iter().enumerate().map(|(i, &n)| (n, i % 3 == 0)).collect();
        ours.extend(completion_metrics(&completions));
        for (key, theirs) in case["metrics"].as_object().unwrap() {
            if key == "kl" || key.starts_with("sampling/") {
                continue;
            }
            let mut theirs = theirs.as_f64().unwrap();
            if key == "frac_reward_zero_std" {
                theirs += lonely(case, &rewards, group_size);
            }
            let found = ours.iter().find(|(our_key, _)| our_key == key);
            let (_, found) = found.unwrap_or_else(|| panic!("{name}: no metric {key}"));
            assert!(
                (found - theirs).abs() <= TOLERANCE * theirs.abs().max(1.0),
                "{name} {key}: {found}, {theirs}"
            );
            n_metrics += 1;
        }
    }
    assert!(n_metrics > 100, "only {n_metrics} metrics were compared");
}
