//! The generic tests of `harness.rs` over the policy-gradient entries, whose batches have groups of completions.

use super::*;
use crate::{OBJECTIVES, Scores, build};
use pt_core::rng::Stream;

mod golden;
mod reference;

use reference::{Arrays, reference_loss};

/// Options to try; one or more for every entry over the shared core.
const CASES: &[(&str, &str)] = &[
    ("grpo", ""),
    ("grpo", "delta = 1.3\nbeta = 0.2\nentropy_coef = 0.1"),
    ("grpo", "importance_sampling_level = 'sequence'\nbeta = 0.2\nuse_bias_correction_kl = true"),
    ("grpo", "beta = 0.1\nkl_estimator = 'k1'\nuse_bias_correction_kl = true"),
    ("grpo", "beta = 0.1\nkl_estimator = 'k2'\ntop_entropy_quantile = 0.3\nentropy_coef = -0.1"),
    ("dapo", ""),
    ("dapo", "importance_sampling_correction = 'token_mask'\nimportance_sampling_clip_max = 1.1"),
    ("dapo", "importance_sampling_correction = 'sequence_truncate'\nimportance_sampling_clip_min = 0.9"),
    ("dapo", "off_policy_mask_threshold = 0.02"),
    ("dr_grpo", "max_completion_length = 9\nentropy_coef = 0.3"),
    ("bnpo", "epsilon_high = 0.4"),
    ("gspo", ""),
    ("gspo", "epsilon = 0.1\nepsilon_high = 0.1"),
    ("gspo", "epsilon = 0.1\nepsilon_high = 0.1\nimportance_sampling_level = 'sequence_token'"),
    ("luspo", "epsilon = 0.1\nepsilon_high = 0.1"),
    ("cispo", "epsilon_high = 0.1"),
    ("cispo", "importance_sampling_level = 'sequence'\nbeta = 0.3"),
    ("sapo", ""),
    ("sapo", "importance_sampling_level = 'sequence'\ntop_entropy_quantile = 0.5"),
    ("vespo", ""),
    ("vespo", "importance_sampling_correction = 'token_truncate'\nimportance_sampling_clip_max = 1.2"),
    ("vespo", "importance_sampling_correction = 'sequence_mask'\nimportance_sampling_clip_max = 1.2"),
    ("rloo", ""),
    ("rloo", "epsilon = 0.3\nbeta = 0.1"),
    ("reinforce_pp", "beta = 0.1\nkl_estimator = 'k2'"),
    ("ppo", ""),
    ("ppo", "epsilon = 0.1\nvf_coef = 0.5\ncliprange_value = 0.1\nentropy_coef = 0.05"),
    ("ppo", "vf_coef = 0.0"),
];

/// Gradients are f32: compared relative to the largest of them.
const GRADIENT_TOLERANCE: f64 = 1e-6;

/// Whether this harness tests the entry.
pub(crate) fn covers(name: &str) -> bool {
    CASES.iter().any(|(covered, _)| *covered == name)
}

/// A batch that owns its arrays; each token has a scored row.
#[derive(Clone, Default)]
struct Owned {
    logp: Vec<f32>,
    weights: Vec<f32>,
    entropy: Vec<f32>,
    reference: Vec<f32>,
    old: Option<Vec<f32>>,
    sampler: Option<Vec<f32>>,
    advantages: Vec<f32>,
    values: Vec<f32>,
    targets: Vec<f32>,
    old_values: Vec<f32>,
    completions: Vec<Completion>,
}

/// The lengths of groups of completions; one is empty, one has a single token.
const LENGTHS: &[&[usize]] = &[&[5, 1, 3], &[4, 0], &[2, 6, 2, 1], &[3]];

impl Owned {
    /// Weights with zeros, fractions and ones; ratios on both sides of the clipping bounds.
    fn random(lengths: &[&[usize]], seed: u64) -> Owned {
        let mut draws = Stream::new(seed, "policy gradients").at(0);
        let mut batch = Owned { old: Some(vec![]), sampler: Some(vec![]), ..Owned::default() };
        for (group, &length) in lengths.iter().enumerate().flat_map(|(g, l)| l.iter().map(move |n| (g, n))) {
            let start = batch.logp.len();
            let advantage = draws.normal() as f32;
            for _ in 0..length {
                let mut value = |scale: f64| (draws.normal() * scale) as f32;
                let logp = -value(2.0).abs();
                batch.logp.push(logp);
                batch.weights.push((value(1.0) + 1.0).clamp(0.0, 1.0));
                batch.entropy.push(value(1.0).abs());
                batch.reference.push(logp + value(0.5));
                let old = logp + value(0.3);
                batch.old.as_mut().unwrap().push(old);
                batch.sampler.as_mut().unwrap().push(old + value(0.1));
                batch.advantages.push(advantage);
                let old_value = value(1.0);
                batch.old_values.push(old_value);
                batch.values.push(old_value + value(0.2));
                batch.targets.push(old_value + value(1.0));
            }
            batch.completions.push(Completion {
                tokens: start..start + length,
                scores: start..start + length,
                group,
                index: batch.completions.len(),
                weight: if group == 2 { 0.5 } else { 1.0 },
                ..Completion::default()
            });
        }
        batch
    }

    fn view(&self) -> TokenBatch<'_> {
        let rows = 0..self.logp.len();
        self.view_of(&self.completions, rows)
    }

    /// With completions that lie in `rows`, counted from its start.
    fn view_of<'a>(&'a self, completions: &'a [Completion], rows: std::ops::Range<usize>) -> TokenBatch<'a> {
        TokenBatch {
            logp: &self.logp[rows.clone()],
            weights: &self.weights[rows.clone()],
            entropy: Some(&self.entropy[rows.clone()]),
            reference_logp: Some(&self.reference[rows.clone()]),
            old_logp: self.old.as_ref().map(|old| &old[rows.clone()]),
            sampler_logp: self.sampler.as_ref().map(|sampler| &sampler[rows.clone()]),
            advantages: Some(&self.advantages[rows.clone()]),
            completions,
            scores: Some(Scores {
                n_outputs: 1,
                values: &self.values[rows.clone()],
                targets: &self.targets[rows.clone()],
                weights: &self.weights[rows.clone()],
                old_values: Some(&self.old_values[rows]),
            }),
            ..TokenBatch::default()
        }
    }

    /// These completions, in this order.
    fn pick(&self, order: &[usize]) -> Owned {
        let mut picked = Owned {
            old: self.old.as_ref().map(|_| vec![]),
            sampler: self.sampler.as_ref().map(|_| vec![]),
            ..Owned::default()
        };
        for &i in order {
            let completion = &self.completions[i];
            let rows = completion.tokens.clone();
            let start = picked.logp.len();
            for (to, from) in [
                (&mut picked.logp, &self.logp),
                (&mut picked.weights, &self.weights),
                (&mut picked.entropy, &self.entropy),
                (&mut picked.reference, &self.reference),
                (&mut picked.advantages, &self.advantages),
                (&mut picked.values, &self.values),
                (&mut picked.targets, &self.targets),
                (&mut picked.old_values, &self.old_values),
            ] {
                to.extend_from_slice(&from[rows.clone()]);
            }
            for (to, from) in [(&mut picked.old, &self.old), (&mut picked.sampler, &self.sampler)] {
                if let (Some(to), Some(from)) = (to, from) {
                    to.extend_from_slice(&from[rows.clone()]);
                }
            }
            let tokens = start..picked.logp.len();
            picked.completions.push(Completion {
                tokens: tokens.clone(),
                scores: tokens,
                ..completion.clone()
            });
        }
        picked
    }
}

fn cases() -> impl Iterator<Item = (String, Box<dyn Objective>)> {
    CASES.iter().map(|&(name, options)| {
        (format!("{name} {options}"), build(name, &options.parse().unwrap()).unwrap())
    })
}

fn normaliser(objective: &dyn Objective, batch: &Owned) -> Normaliser {
    let step = Normaliser::of_step(objective, std::iter::once(batch.view())).unwrap();
    step.with_shared(objective.prepare(&batch.view()).unwrap())
}

fn evaluate(objective: &dyn Objective, batch: &Owned) -> ObjectiveOutput {
    objective.evaluate(&batch.view(), &normaliser(objective, batch)).unwrap()
}

fn metric(output: &ObjectiveOutput, name: &str) -> Option<f64> {
    output.metrics.iter().find(|m| m.name == name).and_then(Metric::value)
}

#[test]
fn every_entry_over_the_core_is_tested_here() {
    let names: Vec<&str> = OBJECTIVES.iter().map(|info| info.name).collect();
    for (name, _) in CASES {
        assert!(names.contains(name), "`{name}` is not in the catalogue");
    }
    for info in
        OBJECTIVES.iter().filter(|info| info.options.iter().any(|o| o.name == "off_policy_mask_threshold"))
    {
        assert!(covers(info.name), "`{}` has no case here", info.name);
    }
}

#[test]
fn losses_and_gradients_are_those_of_the_definition() {
    for (case, (what, objective)) in CASES.iter().zip(cases()) {
        for (has_old, has_sampler) in [(true, true), (true, false), (false, true)] {
            let mut batch = Owned::random(LENGTHS, 1);
            if !has_old {
                batch.old = None;
            }
            if !has_sampler && !objective.needs().sampler_logp {
                batch.sampler = None;
            }
            let output = evaluate(&*objective, &batch);
            let base = Arrays::of(&batch);
            let loss = reference_loss(case, &batch, &base, &base);
            let error = (output.loss - loss).abs();
            assert!(error <= 1e-12 * loss.abs().max(1e-3), "{what}: {} against {loss}", output.loss);
            for (array, gradient) in
                [Some(&output.d_logp[..]), output.d_entropy.as_deref(), output.d_scores.as_deref()]
                    .into_iter()
                    .enumerate()
            {
                for i in 0..batch.logp.len() {
                    let moved = |by: f64| {
                        let mut live = base.clone();
                        live.0[array][i] += by;
                        reference_loss(case, &batch, &live, &base)
                    };
                    let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    let error = (gradient.map_or(0.0, |g| f64::from(g[i])) - difference).abs();
                    assert!(
                        error < GRADIENT_TOLERANCE,
                        "{what} (old {has_old}), array {array}, token {i}: off by {error} from {difference}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_order_of_groups_does_not_matter() {
    let order = [9, 5, 6, 7, 8, 0, 1, 2, 3, 4];
    for (what, objective) in cases() {
        let batch = Owned::random(LENGTHS, 2);
        let plain = evaluate(&*objective, &batch);
        let moved_batch = batch.pick(&order);
        let moved = evaluate(&*objective, &moved_batch);
        assert!((plain.loss - moved.loss).abs() <= 1e-12, "{what}: {} and {}", plain.loss, moved.loss);
        for (completion, &from) in moved_batch.completions.iter().zip(&order) {
            for (to, from) in completion.tokens.clone().zip(batch.completions[from].tokens.clone()) {
                let (a, b) = (moved.d_logp[to], plain.d_logp[from]);
                assert!((a - b).abs() <= 1e-6 * b.abs(), "{what}: {a} and {b}");
            }
        }
    }
}

#[test]
fn micro_batches_cut_between_groups_add_up_to_the_step() {
    for (what, objective) in cases() {
        let batch = Owned::random(LENGTHS, 3);
        let whole = evaluate(&*objective, &batch);
        let step = normaliser(&*objective, &batch);
        for cuts in [&[0, 3, 10][..], &[0, 3, 5, 9, 10], &[0, 5, 5, 10]] {
            let pieces: Vec<Owned> =
                cuts.windows(2).map(|w| batch.pick(&(w[0]..w[1]).collect::<Vec<_>>())).collect();
            let summed = Normaliser::of_step(&*objective, pieces.iter().map(Owned::view)).unwrap();
            assert!((summed.total_weight() - step.total_weight()).abs() < 1e-9, "{what}: weights add up");
            let outputs: Vec<ObjectiveOutput> =
                pieces.iter().map(|piece| objective.evaluate(&piece.view(), &step).unwrap()).collect();
            let loss: f64 = outputs.iter().map(|o| o.loss).sum();
            assert!((loss - whole.loss).abs() <= 1e-12, "{what} {cuts:?}");
            let joined = |of: &dyn Fn(&ObjectiveOutput) -> Option<Vec<f32>>| -> Vec<f32> {
                outputs.iter().flat_map(|o| of(o).unwrap_or_default()).collect()
            };
            assert_eq!(joined(&|o| Some(o.d_logp.clone())), whole.d_logp, "{what} {cuts:?}: bit for bit");
            assert_eq!(
                joined(&|o| o.d_entropy.clone()),
                whole.d_entropy.clone().unwrap_or_default(),
                "{what}"
            );
            assert_eq!(joined(&|o| o.d_scores.clone()), whole.d_scores.clone().unwrap_or_default(), "{what}");
            let mut totals: Vec<Metric> = Vec::new();
            outputs.iter().for_each(|o| Metric::accumulate(&mut totals, &o.metrics));
            assert_eq!(totals.len(), whole.metrics.len(), "{what}");
            for (ours, theirs) in totals.iter().zip(&whole.metrics) {
                let (a, b) = (ours.value().unwrap(), theirs.value().unwrap());
                let is_same = ours.name == theirs.name && (a - b).abs() <= 1e-12 * b.abs().max(1e-3);
                assert!(is_same, "{what} {}: {a} against {b}", ours.name);
            }
        }
    }
}

#[test]
fn advantages_of_zero_move_nothing() {
    for (what, objective) in
        cases().filter(|(what, _)| !what.contains("beta") && !what.contains("entropy_coef"))
    {
        let mut batch = Owned::random(LENGTHS, 4);
        batch.advantages.fill(0.0);
        batch.targets = batch.values.clone();
        batch.old_values = batch.values.clone();
        let output = evaluate(&*objective, &batch);
        assert_eq!(output.loss, 0.0, "{what}");
        assert!(output.d_logp.iter().all(|d| *d == 0.0), "{what}");
    }
}

#[test]
fn one_token_empty_and_masked_completions_work() {
    for (what, objective) in cases() {
        let single = evaluate(&*objective, &Owned::random(&[&[1], &[1, 1]], 5));
        assert!(single.loss.is_finite() && single.d_logp.iter().all(|d| d.is_finite()), "{what}");
        // Cut completions are masked by weights of zero: their values are not read, their gradients zero.
        let mut batch = Owned::random(LENGTHS, 6);
        let masked = batch.completions[2].tokens.clone();
        batch.weights[masked.clone()].fill(0.0);
        let before = evaluate(&*objective, &batch);
        for t in masked.clone() {
            (batch.logp[t], batch.reference[t], batch.entropy[t]) = (f32::NEG_INFINITY, f32::NAN, f32::NAN);
            (batch.advantages[t], batch.old.as_mut().unwrap()[t]) = (f32::NAN, f32::NAN);
        }
        assert_eq!(evaluate(&*objective, &batch), before, "{what}");
        assert!(before.d_logp[masked].iter().all(|d| *d == 0.0), "{what}");
        // A micro-batch without trained tokens adds nothing.
        let empty = Owned {
            completions: vec![Completion { weight: 1.0, ..Completion::default() }],
            old: Some(vec![]),
            sampler: Some(vec![]),
            ..Owned::default()
        };
        let nothing = objective.evaluate(&empty.view(), &normaliser(&*objective, &batch)).unwrap();
        assert_eq!((nothing.loss, nothing.d_logp), (0.0, vec![]), "{what}");
    }
}

/// Tokens train, and no value counts.
#[test]
fn scored_rows_of_no_weight_have_gradients_of_zero() {
    let objective = build("ppo", &toml::Table::new()).unwrap();
    let batch = Owned::random(LENGTHS, 7);
    let none = vec![0.0; batch.logp.len()];
    let scores = batch.view().scores.map(|scores| Scores { weights: &none, ..scores });
    let view = || TokenBatch { scores, ..batch.view() };
    let step = Normaliser::of_step(&*objective, std::iter::once(view())).unwrap();
    let output = objective.evaluate(&view(), &step).unwrap();
    assert!(output.loss.is_finite() && output.d_logp.iter().any(|d| *d != 0.0));
    assert_eq!(output.d_scores, Some(none.clone()));
}

#[test]
fn extreme_probabilities_stay_finite() {
    for (what, objective) in cases() {
        for (logp, old) in [(0.0, -5000.0), (-5000.0, 0.0), (1e-7, -1e-30), (-120.0, -119.0), (-80.0, -1e-3)]
        {
            for advantage in [-3.0, 3.0] {
                let mut batch = Owned::random(&[&[2, 1], &[3]], 7);
                (batch.logp[0], batch.old.as_mut().unwrap()[0], batch.weights[0]) = (logp, old, 1.0);
                (batch.reference[0], batch.sampler.as_mut().unwrap()[0]) = (old, logp);
                batch.advantages.fill(advantage);
                let output = evaluate(&*objective, &batch);
                assert!(output.loss.is_finite(), "{what} at {logp}, {old}: {}", output.loss);
                assert!(output.d_logp.iter().all(|d| d.is_finite()), "{what} at {logp}, {old}");
                assert!(output.metrics.iter().filter_map(Metric::value).all(f64::is_finite), "{what}");
            }
        }
    }
}

#[test]
fn bad_batches_and_options_are_errors() {
    let check = |options: &str, change: &dyn Fn(&mut TokenBatch<'_>), expected: &str| {
        let objective = build("grpo", &options.parse().unwrap()).unwrap();
        let batch = Owned::random(LENGTHS, 8);
        let mut view = batch.view();
        change(&mut view);
        let step = Normaliser::new(1.0).unwrap();
        let message = objective.evaluate(&view, &step).unwrap_err().to_string();
        assert!(message.contains(expected), "{message} should mention {expected}");
    };
    check("", &|b| b.advantages = None, "needs the advantage");
    check("", &|b| b.completions = &[], "trained token 0 is in none of them");
    check("beta = 0.1", &|b| b.reference_logp = None, "the reference log-probability");
    check("entropy_coef = 0.1", &|_| (), "the step's number of tokens");
    check("top_entropy_quantile = 0.5", &|_| (), "a pre-pass finds");
    check("importance_sampling_correction = 'token_mask'", &|b| b.sampler_logp = None, "the sampler's");
    let check = |name: &str, options: &str, expected: &str| {
        let message = build(name, &options.parse().unwrap()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message} should mention {expected}");
    };
    check("grpo", "epsilon = -0.1", "epsilon is -0.1, expected a number of at least 0");
    check("grpo", "delta = 1.1", "delta is 1.1, expected a number above 1.2");
    check("grpo", "top_entropy_quantile = 1.5", "expected at most 1");
    check("grpo", "importance_sampling_level = 'sequence_sum'", "expected");
    check("grpo", "vf_coef = 0.1", "no option `vf_coef`");
    check("dr_grpo", "max_completion_length = 0", "expected a number of at least 1");
}

#[test]
fn forms_are_related_as_their_definitions_say() {
    let batch = Owned::random(LENGTHS, 9);
    let on_policy = Owned { old: None, sampler: None, ..batch.clone() };
    let out = |batch: &Owned, name: &str, options: &str| {
        evaluate(&*build(name, &options.parse().unwrap()).unwrap(), batch)
    };
    let check = |what: &str, a: &ObjectiveOutput, b: &ObjectiveOutput, values_too: bool| {
        assert!(!values_too || (a.loss - b.loss).abs() < 1e-12, "{what}: {} and {}", a.loss, b.loss);
        for (a, b) in a.d_logp.iter().zip(&b.d_logp) {
            assert!((a - b).abs() <= 1e-6 * b.abs(), "{what}: {a} and {b}");
        }
    };
    check(
        "bnpo",
        &out(&batch, "bnpo", "epsilon = 0.1"),
        &out(&batch, "dapo", "epsilon = 0.1\nepsilon_high = 0.1"),
        true,
    );
    let gspo = out(&batch, "gspo", "epsilon = 0.1");
    check(
        "gspo-token",
        &out(&batch, "gspo", "epsilon = 0.1\nimportance_sampling_level = 'sequence_token'"),
        &gspo,
        true,
    );
    // With ρ = 1, all of these are −A ∇log π.
    check("sapo", &out(&on_policy, "sapo", ""), &out(&on_policy, "grpo", ""), false);
    check("cispo", &out(&on_policy, "cispo", ""), &out(&on_policy, "dapo", ""), false);
    check("vespo", &out(&on_policy, "vespo", ""), &out(&on_policy, "dapo", ""), false);
    check(
        "reinforce_pp",
        &out(&on_policy, "reinforce_pp", ""),
        &out(&on_policy, "ppo", "vf_coef = 0.0"),
        true,
    );
    let stale = Owned { old: Some(batch.logp.clone()), sampler: None, ..batch.clone() };
    check("absent old", &out(&on_policy, "grpo", ""), &out(&stale, "grpo", ""), true);
    // Its reported loss is the mean advantage, and nothing is clipped.
    let output = out(&on_policy, "grpo", "");
    assert_eq!(metric(&output, "clip_ratio/region_mean"), Some(0.0));
    assert_eq!(metric(&output, "policy_loss"), Some(output.loss));
}

#[test]
fn state_goes_through_a_checkpoint() {
    let options = "use_adaptive_entropy = true\nentropy_target = 10.0";
    let mut objective = build("grpo", &options.parse().unwrap()).unwrap();
    let batch = Owned::random(LENGTHS, 10);
    let first = evaluate(&*objective, &batch);
    objective.end_step(&first.metrics);
    let second = evaluate(&*objective, &batch);
    assert!(second.loss < first.loss, "the bonus applies once an entropy was measured");
    let mut resumed = build("grpo", &options.parse().unwrap()).unwrap();
    resumed.set_state(&objective.state());
    assert_eq!(evaluate(&*resumed, &batch), second);
}
