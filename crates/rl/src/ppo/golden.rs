//! Targets against TRL's own statements on recorded batches (`golden/rl/ppo.json`).

use serde_json::Value;

use super::*;

/// Both sides compute in f64, from numbers that f32 holds exactly; but TRL's correction of a variance, n / (n − 1), is a quotient of
/// integers, which PyTorch takes in f32.
const TOLERANCE: f64 = 1e-7;

fn golden() -> Value {
    let path = pt_core::testdata::workspace_root().join("golden/rl/ppo.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn rows(value: &Value) -> Vec<Vec<f64>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn narrow(row: &[f64]) -> Vec<f32> {
    row.iter().map(|&x| x as f32).collect()
}

fn config(options: &Value) -> PpoConfig {
    let number = |name: &str| options[name].as_f64().unwrap();
    PpoConfig {
        kl_coef: number("kl_coef"),
        kl_estimator: if options["kl_estimator"] == "k3" { RewardKl::K3 } else { RewardKl::K1 },
        gamma: number("gamma"),
        lam: number("lam"),
        whiten_rewards: options["whiten_rewards"].as_bool().unwrap(),
        ..PpoConfig::default()
    }
}

fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= TOLERANCE * b.abs().max(1.0), "{what}[{i}]: {a}, TRL has {b}");
    }
}

/// Where every completion is as long as the padded matrix, everything is TRL's, whitening included.
#[test]
fn targets_of_full_completions_are_trls() {
    let golden = golden();
    let batch = &golden["batches"]["full"];
    let [logp, reference, values] = ["logprobs", "ref_logprobs", "values"].map(|name| rows(&batch[name]));
    let scores: Vec<f64> = serde_json::from_value(batch["scores"].clone()).unwrap();
    let narrowed: Vec<[Vec<f32>; 3]> =
        (0..logp.len()).map(|i| [narrow(&logp[i]), narrow(&reference[i]), narrow(&values[i])]).collect();
    let samples: Vec<Sampled<'_>> = narrowed
        .iter()
        .zip(&scores)
        .map(|([logp, reference, values], score)| Sampled {
            score: Some(*score),
            logp,
            reference_logp: Some(reference),
            values,
            has_ended: true,
        })
        .collect();
    let cases = golden["cases"].as_array().unwrap().iter().filter(|case| case["batch"] == "full");
    for case in cases {
        let what = case["options"].to_string();
        let targets = config(&case["options"]).targets(&samples).unwrap();
        let (advantages, returns) = (rows(&case["advantages"]), rows(&case["returns"]));
        for (i, target) in targets.iter().enumerate() {
            assert_close(&format!("{what} advantages of {i}"), &target.advantages, &advantages[i]);
            assert_close(&format!("{what} returns of {i}"), &target.returns, &returns[i]);
        }
    }
}

/// Where a completion is shorter, TRL's score stands one position later, at padding: it is as if the completion had one more token
/// there, of no divergence, with the value that the model gives to padding. Given that token, the rest is the same.
#[test]
fn the_place_of_the_score_is_the_only_difference() {
    let golden = golden();
    let batch = &golden["batches"]["cut"];
    let [logp, reference, values] = ["logprobs", "ref_logprobs", "values"].map(|name| rows(&batch[name]));
    let scores: Vec<f64> = serde_json::from_value(batch["scores"].clone()).unwrap();
    let last: Vec<usize> = serde_json::from_value(batch["sequence_lengths"].clone()).unwrap();
    let width = logp[0].len();
    for case in golden["cases"].as_array().unwrap().iter().filter(|case| case["batch"] == "cut") {
        let what = case["options"].to_string();
        let raw = PpoConfig { whiten_advantages: false, ..config(&case["options"]) };
        let narrowed: Vec<[Vec<f32>; 3]> = (0..logp.len())
            .map(|i| {
                let n = (last[i] + 2).min(width);
                let mut own = narrow(&reference[i][..n]);
                if n == last[i] + 2 {
                    own[n - 1] = logp[i][n - 1] as f32;
                }
                [narrow(&logp[i][..n]), own, narrow(&values[i][..n])]
            })
            .collect();
        let samples: Vec<Sampled<'_>> = narrowed
            .iter()
            .zip(&scores)
            .map(|([logp, reference, values], score)| Sampled {
                score: Some(*score),
                logp,
                reference_logp: Some(reference),
                values,
                has_ended: true,
            })
            .collect();
        let targets = raw.targets(&samples).unwrap();
        let (advantages, returns) = (rows(&case["raw_advantages"]), rows(&case["returns"]));
        for (i, target) in targets.iter().enumerate() {
            let n = target.returns.len();
            assert_close(&format!("{what} advantages of {i}"), &target.advantages, &advantages[i][..n]);
            assert_close(&format!("{what} returns of {i}"), &target.returns, &returns[i][..n]);
        }
        // Without that token, which is what this program does, the value of padding takes no part.
        let short = Sampled {
            score: Some(scores[0]),
            logp: &narrowed[0][0][..=last[0]],
            reference_logp: Some(&narrowed[0][1][..=last[0]]),
            values: &narrowed[0][2][..=last[0]],
            has_ended: true,
        };
        let own = PpoConfig { whiten_rewards: false, ..raw }.targets(&[short]).unwrap();
        let end = own[0].advantages[last[0]];
        let plain = own[0].rewards[last[0]] - f64::from(narrowed[0][2][last[0]]);
        assert!((end - plain).abs() < TOLERANCE, "{what}: {end} and {plain}");
    }
}
