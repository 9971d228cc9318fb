//! Tests that run over the whole catalogue, and golden values.

use crate::{Metric, Normaliser, OBJECTIVES, Objective, ObjectiveError, ObjectiveOutput, TokenBatch, build};
use pt_core::rng::Stream;
use safetensors::SafeTensors;

/// Arrays of a batch in f64, for references.
#[derive(Clone, Default)]
struct Arrays {
    logp: Vec<f64>,
    entropy: Vec<f64>,
    mean_logp: Vec<f64>,
    divergence: Vec<f64>,
}

/// The loss of one token, from values that carry gradient and values that do not.
type Reference = fn(live: [f64; 4], stopped: [f64; 4]) -> f64;

/// One of the arrays.
type Field = fn(&mut Arrays) -> &mut Vec<f64>;

/// Options to try, and the definition in f64. One or more for every entry of the catalogue.
const CASES: &[(&str, &str, Reference)] = &[
    ("cross_entropy", "", |[logp, ..], _| -logp),
    ("cross_entropy", "label_smoothing = 0.1", |[logp, _, mean, _], _| 0.9 * -logp + 0.1 * -mean),
    ("dft", "", |[logp, ..], [stopped, ..]| -stopped.exp() * logp),
    ("gkd", "", |[.., divergence], _| divergence),
    ("gkd", "nll_coef = 0.3", |[logp, .., divergence], _| divergence - 0.3 * logp),
];

/// Both sides are f32 at best: gradients are compared relative to the largest of them.
const GRADIENT_TOLERANCE: f64 = 1e-6;

/// A batch that owns its arrays.
#[derive(Clone)]
struct Owned {
    logp: Vec<f32>,
    weights: Vec<f32>,
    entropy: Vec<f32>,
    mean_logp: Vec<f32>,
    divergence: Vec<f32>,
    correct: Vec<bool>,
}

impl Owned {
    /// Log-probabilities from nearly 0 to -80, weights with zeros, fractions and ones.
    fn random(n: usize, seed: u64) -> Owned {
        let mut draws = Stream::new(seed, "batch").at(0);
        let mut value = |scale: f64| (draws.normal() * scale) as f32;
        let mut batch = Owned {
            logp: (0..n).map(|_| -value(3.0).abs()).collect(),
            weights: (0..n).map(|_| value(1.0).clamp(0.0, 1.0)).collect(),
            entropy: (0..n).map(|_| value(2.0).abs()).collect(),
            mean_logp: (0..n).map(|_| -8.0 - value(1.0).abs()).collect(),
            correct: (0..n).map(|_| value(1.0) > 0.0).collect(),
            divergence: (0..n).map(|_| value(1.0).abs()).collect(),
        };
        for (i, extreme) in [-1e-7, -80.0, 0.0].into_iter().enumerate().take(n) {
            (batch.logp[i], batch.weights[i]) = (extreme, 1.0);
        }
        batch
    }

    fn view(&self) -> TokenBatch<'_> {
        self.slice(0, self.logp.len())
    }

    fn slice(&self, from: usize, to: usize) -> TokenBatch<'_> {
        TokenBatch {
            logp: &self.logp[from..to],
            weights: &self.weights[from..to],
            entropy: Some(&self.entropy[from..to]),
            mean_logp: Some(&self.mean_logp[from..to]),
            divergence: Some(&self.divergence[from..to]),
            correct: Some(&self.correct[from..to]),
            ..TokenBatch::default()
        }
    }

    fn permuted(&self, order: &[usize]) -> Owned {
        let pick = |v: &[f32]| order.iter().map(|&i| v[i]).collect();
        Owned {
            logp: pick(&self.logp),
            weights: pick(&self.weights),
            entropy: pick(&self.entropy),
            mean_logp: pick(&self.mean_logp),
            divergence: pick(&self.divergence),
            correct: order.iter().map(|&i| self.correct[i]).collect(),
        }
    }

    fn arrays(&self) -> Arrays {
        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect();
        Arrays {
            logp: wide(&self.logp),
            entropy: wide(&self.entropy),
            mean_logp: wide(&self.mean_logp),
            divergence: wide(&self.divergence),
        }
    }
}

fn cases() -> impl Iterator<Item = (String, Box<dyn Objective>, Reference)> {
    let elsewhere =
        |name| crate::policy_gradient::tests::covers(name) || crate::preference::harness::covers(name);
    for info in OBJECTIVES.iter().filter(|info| !elsewhere(info.name)) {
        assert!(CASES.iter().any(|(name, ..)| *name == info.name), "`{}` has no reference here", info.name);
    }
    CASES.iter().map(|&(name, options, reference)| {
        (format!("{name} {options}"), build(name, &options.parse().unwrap()).unwrap(), reference)
    })
}

fn evaluate(objective: &dyn Objective, batch: &Owned) -> ObjectiveOutput {
    let step = Normaliser::new(objective.weight(&batch.view())).unwrap();
    objective.evaluate(&batch.view(), &step).unwrap()
}

fn reference_loss(reference: Reference, live: &Arrays, stopped: &Arrays, weights: &[f32]) -> f64 {
    let at = |a: &Arrays, i: usize| [a.logp[i], a.entropy[i], a.mean_logp[i], a.divergence[i]];
    let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let trained = weights.iter().enumerate().filter(|(_, w)| **w > 0.0);
    trained.map(|(i, &w)| f64::from(w) * reference(at(live, i), at(stopped, i))).sum::<f64>() / total
}

/// The number of cases that know their gradient beforehand: cross-entropy without smoothing.
const N_EXPECTED: usize = 1;

#[test]
fn a_gradient_known_beforehand_is_the_gradient() {
    let mut n_expected = 0;
    for (what, objective, _) in cases() {
        let mut batch = Owned::random(23, 4);
        batch.weights[5] = 0.0;
        let step = Normaliser::new(objective.weight(&batch.view()) + 3.0).unwrap();
        let Some(expected) = objective.expected_d_logp(&batch.weights, &step) else { continue };
        let output = objective.evaluate(&batch.view(), &step).unwrap();
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        assert_eq!(bits(&expected), bits(&output.d_logp), "{what}");
        assert!(output.d_entropy.is_none() && output.d_mean_logp.is_none(), "{what}: other gradients");
        n_expected += 1;
    }
    assert_eq!(n_expected, N_EXPECTED);
}

#[test]
fn losses_and_gradients_are_those_of_the_definition() {
    for (what, objective, reference) in cases() {
        let batch = Owned::random(23, 1);
        let output = evaluate(&*objective, &batch);
        let base = batch.arrays();
        let loss = reference_loss(reference, &base, &base, &batch.weights);
        assert!((output.loss - loss).abs() <= 1e-12 * loss.abs(), "{what}: {} against {loss}", output.loss);
        let zeros = vec![0.0; 23];
        let gradients: [(&[f32], Field); 4] = [
            (&output.d_logp, |a| &mut a.logp),
            (output.d_entropy.as_deref().unwrap_or(&zeros), |a| &mut a.entropy),
            (output.d_mean_logp.as_deref().unwrap_or(&zeros), |a| &mut a.mean_logp),
            (output.d_divergence.as_deref().unwrap_or(&zeros), |a| &mut a.divergence),
        ];
        for (array, (gradient, field)) in gradients.into_iter().enumerate() {
            for i in 0..23 {
                let moved = |by: f64| {
                    let mut live = base.clone();
                    field(&mut live)[i] += by;
                    reference_loss(reference, &live, &base, &batch.weights)
                };
                let difference = (moved(1e-3) - moved(-1e-3)) / 2e-3;
                let error = (f64::from(gradient[i]) - difference).abs();
                assert!(error < GRADIENT_TOLERANCE, "{what}, array {array}, token {i}: off by {error}");
            }
        }
    }
}

#[test]
fn order_does_not_matter() {
    for (what, objective, _) in cases() {
        let batch = Owned::random(40, 2);
        let mut order: Vec<usize> = (0..40).collect();
        Stream::new(1, "order").at(0).shuffle(&mut order);
        let (plain, moved) = (evaluate(&*objective, &batch), evaluate(&*objective, &batch.permuted(&order)));
        assert!((plain.loss - moved.loss).abs() <= 1e-12 * plain.loss.abs(), "{what}");
        // The total weight is summed in another order, so its last bit may differ.
        for (to, &from) in order.iter().enumerate() {
            assert!(
                (moved.d_logp[to] - plain.d_logp[from]).abs() <= 1e-6 * plain.d_logp[from].abs(),
                "{what}"
            );
        }
    }
}

#[test]
fn micro_batches_add_up_to_the_step() {
    for (what, objective, _) in cases() {
        let batch = Owned::random(31, 3);
        let whole = evaluate(&*objective, &batch);
        for cuts in [vec![0, 31], vec![0, 1, 31], vec![0, 7, 7, 20, 31]] {
            let pieces = || cuts.windows(2).map(|w| batch.slice(w[0], w[1]));
            let step = Normaliser::new(objective.weight(&batch.view())).unwrap();
            let outputs: Vec<_> = pieces().map(|piece| objective.evaluate(&piece, &step).unwrap()).collect();
            let loss: f64 = outputs.iter().map(|o| o.loss).sum();
            assert!((loss - whole.loss).abs() <= 1e-12 * whole.loss.abs(), "{what} {cuts:?}");
            let gradients: Vec<f32> = outputs.iter().flat_map(|o| o.d_logp.clone()).collect();
            assert_eq!(gradients, whole.d_logp, "{what} {cuts:?}: bit for bit");
            let mut totals: Vec<Metric> = Vec::new();
            outputs.iter().for_each(|o| Metric::accumulate(&mut totals, &o.metrics));
            for (ours, theirs) in totals.iter().zip(&whole.metrics) {
                let (a, b) = (ours.value().unwrap(), theirs.value().unwrap());
                assert!(ours.name == theirs.name && (a - b).abs() <= 1e-12 * b.abs(), "{what} {}", ours.name);
            }
            let weight: f64 = pieces().map(|piece| objective.weight(&piece)).sum();
            assert!((weight - step.total_weight()).abs() < 1e-9, "{what}: weights add up");
        }
    }
}

#[test]
fn certain_and_impossible_tokens_stay_finite() {
    for (what, objective, _) in cases() {
        for (logp, weight) in
            [(0.0, 1.0), (1e-7, 1.0), (-1e-30, 1.0), (-120.0, 1.0), (-5000.0, 1e-6), (-1.0, 1.0)]
        {
            let mut batch = Owned::random(1, 4);
            (batch.logp[0], batch.weights[0]) = (logp, weight);
            let output = evaluate(&*objective, &batch);
            assert!(output.loss.is_finite() && output.d_logp[0].is_finite(), "{what} at {logp}");
            // A lone token's gradient does not depend on its weight, and is at most that of -log p.
            assert!((-1.0..=0.0).contains(&output.d_logp[0]), "{what} at {logp}: {}", output.d_logp[0]);
        }
    }
}

#[test]
fn tokens_without_weight_are_not_read() {
    for (what, objective, _) in cases() {
        let mut batch = Owned::random(10, 5);
        batch.weights[4] = 0.0;
        let before = evaluate(&*objective, &batch);
        (batch.logp[4], batch.mean_logp[4], batch.entropy[4]) = (f32::NEG_INFINITY, f32::NAN, f32::NAN);
        batch.divergence[4] = f32::NAN;
        assert_eq!(evaluate(&*objective, &batch), before, "{what}");
        assert_eq!(before.d_logp[4], 0.0);
        let step = Normaliser::new(1.0).unwrap();
        let nothing = objective.evaluate(&batch.slice(4, 5), &step).unwrap();
        assert_eq!((nothing.loss, nothing.d_logp), (0.0, vec![0.0]), "{what}: a micro-batch of padding");
        assert!(nothing.metrics.iter().all(|m| m.value().is_none()));
    }
}

#[test]
fn bad_batches_are_errors() {
    for total in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(Normaliser::new(total), Err(ObjectiveError::NothingTrained { .. })), "{total}");
    }
    for (what, objective, _) in cases() {
        let step = Normaliser::new(1.0).unwrap();
        let check = |change: &dyn Fn(&mut Owned), expected: &str| {
            let mut batch = Owned::random(5, 6);
            change(&mut batch);
            let view = TokenBatch {
                logp: &batch.logp,
                weights: &batch.weights,
                entropy: Some(&batch.entropy),
                mean_logp: Some(&batch.mean_logp),
                divergence: Some(&batch.divergence),
                correct: Some(&batch.correct),
                ..TokenBatch::default()
            };
            let message = objective.evaluate(&view, &step).unwrap_err().to_string();
            assert!(message.contains(expected), "{what}: {message} should mention {expected}");
        };
        check(&|b| b.weights.truncate(4), "weights has 4 tokens, expected 5");
        check(&|b| b.entropy.truncate(4), "the entropy has 4 tokens, expected 5");
        check(&|b| b.correct.truncate(4), "correctness has 4 tokens, expected 5");
        check(&|b| b.weights[3] = -0.5, "the loss weight of token 3 is -0.5");
        check(&|b| b.logp[1] = f32::NEG_INFINITY, "the log-probability of trained token 1 is -inf");
        let batch = Owned::random(3, 7);
        let bare = TokenBatch { logp: &batch.logp, weights: &batch.weights, ..TokenBatch::default() };
        match objective.needs().mean_logp || objective.needs().divergence.is_some() {
            true => assert!(
                matches!(objective.evaluate(&bare, &step), Err(ObjectiveError::Missing { .. })),
                "{what}"
            ),
            false => assert!(objective.evaluate(&bare, &step).is_ok(), "{what} needs no optional array"),
        }
    }
}

#[test]
fn metrics_are_weighted_means() {
    let batch = Owned {
        logp: vec![-1.0, -3.0, -9.0],
        weights: vec![1.0, 0.5, 0.0],
        entropy: vec![2.0, 5.0, 7.0],
        mean_logp: vec![-4.0; 3],
        divergence: vec![0.5; 3],
        correct: vec![true, false, true],
    };
    for (what, objective, _) in cases() {
        let metrics = evaluate(&*objective, &batch).metrics;
        for (name, expected) in
            [("nll", 2.5 / 1.5), ("entropy", 4.5 / 1.5), ("mean_token_accuracy", 1.0 / 1.5)]
        {
            let metric =
                metrics.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("{what}: no {name}"));
            assert!((metric.value().unwrap() - expected).abs() < 1e-12, "{what} {name}");
        }
    }
}

/// PyTorch and transformers on logits (golden/train/losses.safetensors), through the chain rule
/// `∂logp/∂z = onehot − p` and `∂mean_logp/∂z = 1/V − p`.
#[test]
fn equals_the_golden_losses() {
    let path = pt_core::testdata::workspace_root().join("golden/train/losses.safetensors");
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words =
        |name: &str| -> Vec<[u8; 4]> { tensors.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec() };
    let floats = |name: &str| -> Vec<f64> {
        words(name).into_iter().map(|b| f64::from(f32::from_le_bytes(b))).collect()
    };
    let labels: Vec<i32> = words("labels").into_iter().map(i32::from_le_bytes).collect();
    let logits = floats("logits");
    let vocab = logits.len() / labels.len();
    let log_probs: Vec<Vec<f64>> = logits
        .chunks(vocab)
        .map(|row| {
            let normaliser = row.iter().map(|z| z.exp()).sum::<f64>().ln();
            row.iter().map(|z| z - normaliser).collect()
        })
        .collect();
    let target = |i: usize| labels[i].max(0) as usize;
    let batch = Owned {
        logp: (0..labels.len()).map(|i| log_probs[i][target(i)] as f32).collect(),
        weights: labels.iter().map(|&l| if l < 0 { 0.0 } else { 1.0 }).collect(),
        entropy: vec![0.0; labels.len()],
        mean_logp: log_probs.iter().map(|row| (row.iter().sum::<f64>() / vocab as f64) as f32).collect(),
        divergence: vec![0.0; labels.len()],
        correct: vec![false; labels.len()],
    };
    for (golden, name, options) in [
        ("nll", "cross_entropy", ""),
        ("label_smoothing_0.1", "cross_entropy", "label_smoothing = 0.1"),
        ("dft", "dft", ""),
    ] {
        let output = evaluate(&*build(name, &options.parse().unwrap()).unwrap(), &batch);
        let loss = floats(&format!("{golden}.loss"))[0];
        assert!((output.loss - loss).abs() < 1e-6 * loss, "{golden}: {} against {loss}", output.loss);
        let gradient = floats(&format!("{golden}.grad"));
        for i in 0..labels.len() {
            for v in 0..vocab {
                let p = log_probs[i][v].exp();
                let onehot = f64::from(u8::from(v == target(i)));
                let mut ours = f64::from(output.d_logp[i]) * (onehot - p);
                if let Some(d_mean_logp) = &output.d_mean_logp {
                    ours += f64::from(d_mean_logp[i]) * (1.0 / vocab as f64 - p);
                }
                let theirs = gradient[i * vocab + v];
                assert!(
                    (ours - theirs).abs() < GRADIENT_TOLERANCE,
                    "{golden} [{i}, {v}]: {ours} against {theirs}"
                );
            }
        }
    }
}
