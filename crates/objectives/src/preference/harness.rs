//! The generic tests of this folder's objectives, against definitions in f64 that share no code with them.
//!
//! A step is a list of groups (a prompt and its replies); micro-batches are cuts between them.

pub(super) mod step;

use pt_core::rng::Stream;

use step::{Layout, Owned, View, joined, random, sig};

use crate::{
    Completion, CompletionKind as Kind, Metric, Normaliser, OBJECTIVES, Objective, ObjectiveError,
    ObjectiveOutput, PrePass, Scores, TokenBatch, build,
};

/// Options to try, and the definition in f64. One or more for every objective of this folder.
const CASES: &[(&str, &str, Layout, Reference)] = &[
    ("dpo", "", Layout::Pairs, |v| v.pairs(|p| -sig(0.1 * (p.a - p.b)).ln())),
    ("dpo", "loss_type = 'sigmoid'\nbeta = 0.7\nld_alpha = 0.3", Layout::Pairs, |v| {
        v.desensitised(0.3).pairs(|p| -sig(0.7 * (p.a - p.b)).ln())
    }),
    ("dpo", "loss_type = 'cdpo'\nlabel_smoothing = 0.2", Layout::Pairs, |v| {
        v.pairs(|p| -0.8 * sig(0.1 * (p.a - p.b)).ln() - 0.2 * sig(0.1 * (p.b - p.a)).ln())
    }),
    ("dpo", "loss_type = 'hinge'", Layout::Pairs, |v| v.pairs(|p| (1.0 - 0.1 * (p.a - p.b)).max(0.0))),
    ("dpo", "loss_type = 'ipo'", Layout::Pairs, |v| v.pairs(|p| (p.a / p.nw - p.b / p.nl - 5.0).powi(2))),
    ("dpo", "loss_type = 'ipo'\nlength_normalization = 'never'", Layout::Pairs, |v| {
        v.pairs(|p| (p.a - p.b - 5.0).powi(2))
    }),
    ("dpo", "loss_type = 'exo_pair'\nlabel_smoothing = 1e-3", Layout::Pairs, |v| {
        v.pairs(|p| {
            let q = sig(0.1 * (p.a - p.b));
            q * (q.ln() - 0.999f64.ln()) + (1.0 - q) * ((1.0 - q).ln() - 0.001f64.ln())
        })
    }),
    ("dpo", "loss_type = 'nca_pair'", Layout::Pairs, |v| {
        v.pairs(|p| -sig(0.1 * p.a).ln() - 0.5 * sig(-0.1 * p.a).ln() - 0.5 * sig(-0.1 * p.b).ln())
    }),
    ("dpo", "loss_type = 'robust'\nlabel_smoothing = 0.2", Layout::Pairs, |v| {
        v.pairs(|p| {
            let z = 0.1 * (p.a - p.b);
            (-0.8 * sig(z).ln() + 0.2 * sig(-z).ln()) / 0.6
        })
    }),
    ("dpo", "loss_type = 'bco_pair'", Layout::Pairs, |v| {
        v.pairs(|p| -sig(0.1 * p.a).ln() - sig(-0.1 * p.b).ln())
    }),
    ("dpo", "loss_type = 'sppo_hard'", Layout::Pairs, |v| {
        v.pairs(|p| (p.a - 5.0).powi(2) + (p.b + 5.0).powi(2))
    }),
    ("dpo", "loss_type = 'aot'\nlabel_smoothing = 0.1", Layout::Pairs, |v| v.sorted(true, 0.1)),
    ("dpo", "loss_type = 'aot_unpaired'", Layout::Pairs, |v| v.sorted(false, 0.0)),
    ("dpo", "loss_type = 'apo_zero'", Layout::Pairs, |v| v.pairs(|p| 1.0 - sig(0.1 * p.a) + sig(0.1 * p.b))),
    ("dpo", "loss_type = 'apo_down'", Layout::Pairs, |v| {
        v.pairs(|p| sig(0.1 * p.a) + 1.0 - sig(0.1 * (p.a - p.b)))
    }),
    ("dpo", "loss_type = 'discopop'", Layout::Pairs, |v| v.pairs(|p| discopop(0.1 * (p.a - p.b)))),
    ("dpo", "loss_type = 'sft'", Layout::Pairs, |v| v.nll(Kind::Chosen, false, |_| 1.0)),
    ("dpo", "loss_type = 'sigmoid_norm'\nbeta = 2.0", Layout::Pairs, |v| {
        v.pairs(|p| -sig(2.0 * (p.a / p.nw - p.b / p.nl)).ln())
    }),
    ("dpo", "loss_type = 'nca_pair'\nlength_normalization = 'always'\nbeta = 2.0", Layout::Pairs, |v| {
        v.pairs(|p| {
            let (a, b) = (2.0 * p.a / p.nw, 2.0 * p.b / p.nl);
            -sig(a).ln() - 0.5 * sig(-a).ln() - 0.5 * sig(-b).ln()
        })
    }),
    (
        "dpo",
        "loss_type = ['sigmoid', 'aot', 'sft', 'aot_unpaired']\nloss_weights = [0.5, 2.0, 0.1, 1.5]\nuse_weighting = true",
        Layout::Pairs,
        |v| {
            0.5 * v.pairs(|p| -sig(0.1 * (p.a - p.b)).ln() * p.wpo)
                + 2.0 * v.sorted(true, 0.0)
                + 0.1 * v.nll(Kind::Chosen, false, |p| p.wpo)
                + 1.5 * v.sorted(false, 0.0)
        },
    ),
    ("dpo", "f_divergence_type = 'forward_kl'", Layout::Pairs, |v| {
        v.pairs(|p| -sig(0.1 * ((1.0 - (-p.a).exp()) - (1.0 - (-p.b).exp()))).ln())
    }),
    ("dpo", "f_divergence_type = 'js_divergence'\nloss_type = 'hinge'", Layout::Pairs, |v| {
        v.pairs(|p| (1.0 - 0.1 * (sig(p.a).ln() - sig(p.b).ln())).max(0.0))
    }),
    (
        "dpo",
        "f_divergence_type = 'alpha_divergence'\nf_alpha_divergence_coef = 0.7\nloss_type = 'sigmoid_norm'",
        Layout::Pairs,
        |v| {
            let s = |a: f64| ((-0.3 * a).exp() - 1.0) / -0.3;
            v.pairs(|p| -sig(0.1 * (s(p.a) / p.nw - s(p.b) / p.nl)).ln())
        },
    ),
    ("orpo", "beta = 0.4", Layout::Pairs, |v| {
        let odds = |l: f64| l - (1.0 - l.exp()).ln();
        v.nll(Kind::Chosen, true, |_| 1.0) + v.pairs(|p| -0.4 * sig(odds(p.w / p.nw) - odds(p.l / p.nl)).ln())
    }),
    ("cpo", "label_smoothing = 0.1", Layout::Pairs, |v| {
        v.nll(Kind::Chosen, false, |_| 1.0)
            + v.pairs(|p| -0.9 * sig(0.1 * (p.w - p.l)).ln() - 0.1 * sig(0.1 * (p.l - p.w)).ln())
    }),
    ("cpo", "loss_type = 'hinge'\ncpo_alpha = 0.0", Layout::Pairs, |v| {
        v.pairs(|p| (1.0 - 0.1 * (p.w - p.l)).max(0.0))
    }),
    ("cpo", "loss_type = 'ipo'\ncpo_alpha = 0.3", Layout::Pairs, |v| {
        0.3 * v.nll(Kind::Chosen, false, |_| 1.0) + v.pairs(|p| (p.w / p.nw - p.l / p.nl - 5.0).powi(2))
    }),
    ("simpo", "", Layout::Pairs, |v| v.pairs(|p| -sig(2.0 * (p.w / p.nw - p.l / p.nl) - 1.0).ln())),
    ("alphapo", "alpha = -0.2\nlabel_smoothing = 0.1", Layout::Pairs, |v| {
        let r = |l: f64| (1.0 - (0.2 * l).exp()) / -0.2;
        v.pairs(|p| {
            let z = 2.0 * (r(p.w / p.nw) - r(p.l / p.nl)) - 1.0;
            -0.9 * sig(z).ln() - 0.1 * sig(-z).ln()
        })
    }),
    ("alphapo", "alpha = 0.0", Layout::Pairs, |v| {
        v.pairs(|p| -sig(2.0 * (p.w / p.nw - p.l / p.nl) - 1.0).ln())
    }),
    ("tpo", "beta = 0.2", Layout::Triples, |v| {
        v.nll(Kind::Gold, false, |_| 1.0) + v.pairs(|p| -sig(0.2 * (p.w - p.l)).ln())
    }),
    ("tpo", "loss_type = 'tpo-l'\ntpo_alpha = 0.0\nbeta = 2.0", Layout::Pairs, |v| {
        v.pairs(|p| -sig(2.0 * (p.w / p.nw - p.l / p.nl) - 0.5).ln())
    }),
    ("tpo", "loss_type = 'ipo'\ntpo_alpha = 0.5", Layout::Triples, |v| {
        0.5 * v.nll(Kind::Gold, false, |_| 1.0) + v.pairs(|p| (p.w / p.nw - p.l / p.nl - 50.0).powi(2))
    }),
    ("kto", "desirable_weight = 1.5\nundesirable_weight = 0.5", Layout::Labelled, |v| {
        let (sum, n) = v.stopped().replies(Kind::Mismatched, |h, _| h);
        let z0 = (sum / n).max(0.0);
        v.labelled(|h| 1.5 * (1.0 - sig(0.1 * (h - z0))), |h| 0.5 * (1.0 - sig(0.1 * (z0 - h))))
    }),
    ("apo_zero_unpaired", "beta = 0.3", Layout::Labelled, |v| {
        v.labelled(|h| 1.0 - sig(0.3 * h), |h| sig(0.3 * h))
    }),
    ("bco", "", Layout::Labelled, |v| {
        v.labelled(|h| -sig(0.1 * h - SEEN[1]).ln(), |h| -sig(SEEN[1] - 0.1 * h).ln())
    }),
    ("bco", "include_step = true", Layout::Labelled, |v| {
        let stopped = v.stopped();
        let ((good, n_good), (bad, n_bad)) =
            (stopped.replies(Kind::Desirable, |h, _| h), stopped.replies(Kind::Undesirable, |h, _| h));
        let delta = (SEEN[0] * SEEN[1] + 0.1 * (good + bad)) / (SEEN[0] + n_good + n_bad);
        v.labelled(|h| -sig(0.1 * h - delta).ln(), |h| -sig(delta - 0.1 * h).ln())
    }),
    (
        "bco",
        "density_ratio = true\nmin_density_ratio = 0.8\nmax_density_ratio = 1.2",
        Layout::Labelled,
        |v| {
            let sum = |kind, loss: &dyn Fn(f64, f64) -> f64| {
                let of_kind = v.batch.completions.iter().filter(|c| c.kind == kind);
                of_kind.map(|c| loss(v.log_ratio(c), f64::from(c.weight))).sum::<f64>()
            };
            let n = v.batch.completions.iter().filter(|c| c.kind != Kind::Mismatched).count();
            let bad = |h: f64, w: f64| -w.clamp(0.8, 1.2) * sig(SEEN[1] - 0.1 * h).ln();
            (sum(Kind::Desirable, &|h, _| -sig(0.1 * h - SEEN[1]).ln()) + sum(Kind::Undesirable, &bad))
                / n as f64
        },
    ),
    ("reward", "center_rewards_coefficient = 0.01", Layout::ScoredPairs(1), |v| v.bradley_terry(0.01, false)),
    ("reward", "n_outputs = 3\ncenter_rewards_coefficient = 0.1", Layout::ScoredPairs(3), |v| {
        v.bradley_terry(0.1, false)
    }),
    (
        "reward",
        "n_outputs = 3\nby_objective = true\ncenter_rewards_coefficient = 0.1",
        Layout::RoutedPairs,
        |v| v.bradley_terry(0.1, true),
    ),
    ("prm", "", Layout::Steps(2), |v| {
        v.steps(|s, t| {
            let total = s[0].exp() + s[1].exp();
            -t * (s[1].exp() / total).ln() - (1.0 - t) * (s[0].exp() / total).ln()
        })
    }),
    ("prm", "n_outputs = 1", Layout::Steps(1), |v| {
        v.steps(|s, t| -t * sig(s[0]).ln() - (1.0 - t) * sig(-s[0]).ln())
    }),
    ("xpo", "alpha = 0.02", Layout::OnlinePairs, |v| {
        v.pairs(|p| -sig(0.1 * (p.a - p.b)).ln() + 0.02 * if p.is_reference_chosen { p.w } else { p.l })
    }),
    ("xpo", "loss_type = 'ipo'\nbeta = 0.5", Layout::OnlinePairs, |v| {
        v.pairs(|p| (p.a - p.b - 1.0).powi(2) + 1e-5 * if p.is_reference_chosen { p.w } else { p.l })
    }),
    ("nash_md", "beta = 0.3", Layout::Samples, |v| {
        let (mut sum, mut n) = (0.0, 0.0);
        for c in &v.batch.completions {
            for i in c.tokens.clone() {
                let w = f64::from(c.weight) * f64::from(v.batch.weights[i]);
                let kl = v.stopped[i] - f64::from(v.batch.reference[i]);
                sum += w * (0.3 * kl - (f64::from(c.label) - 0.5)) * v.logp[i];
            }
            n += f64::from(c.weight);
        }
        sum / n
    }),
    ("on_policy_distillation", "", Layout::Samples, |v| {
        v.tokens(|i| {
            let advantage = f64::from(v.batch.reference[i]) - v.stopped[i];
            -advantage * (v.logp[i] - v.stopped[i]).exp()
        })
    }),
    ("on_policy_distillation", "importance_sampling = true", Layout::Samples, |v| {
        v.tokens(|i| {
            let sampler = f64::from(v.batch.sampler[i]);
            -(f64::from(v.batch.reference[i]) - sampler) * (v.logp[i] - sampler).exp()
        })
    }),
];

/// Gradients are f32, compared relative to the largest of them.
const GRADIENT_TOLERANCE: f64 = 1e-6;

/// The step of central differences: their error is its square times the third derivative.
const DIFFERENCE: f64 = 1e-4;

/// Losses are f64 on both sides; naive definitions lose some digits.
const LOSS_TOLERANCE: f64 = 1e-11;

/// What `bco` has seen before the step.
const SEEN: [f64; 2] = [7.0, 0.25];

/// A step's loss.
type Reference = fn(&View<'_>) -> f64;

/// An array that gradients are of.
type Field = for<'v, 'b> fn(&'v mut View<'b>) -> &'v mut Vec<f64>;

/// Whether this harness tests the objective.
pub(crate) fn covers(name: &str) -> bool {
    CASES.iter().any(|(case, ..)| *case == name)
}

fn discopop(z: f64) -> f64 {
    let m = sig(z / 0.05);
    -sig(z).ln() * (1.0 - m) + (-z).exp() * m
}

struct Case {
    what: String,
    objective: Box<dyn Objective>,
    layout: Layout,
    reference: Reference,
    /// Whether the log collision probabilities are read; they are 0 otherwise.
    is_weighted: bool,
}

impl Case {
    fn random(&self, seed: u64, soft: bool) -> Vec<Owned> {
        let mut groups = random(self.layout, seed, soft);
        if !self.is_weighted {
            groups.iter_mut().for_each(|group| group.collision.fill(0.0));
        }
        groups
    }
}

fn cases() -> Vec<Case> {
    let case = |&(name, options, layout, reference): &(&str, &str, Layout, Reference)| {
        let mut objective = build(name, &options.parse().unwrap()).unwrap();
        if name == "bco" {
            objective.set_state(&SEEN);
            assert_eq!(objective.state(), SEEN);
        }
        let is_weighted = objective.needs().log_collision;
        Case { what: format!("{name} {options}"), objective, layout, reference, is_weighted }
    };
    CASES.iter().map(case).collect()
}

/// The outputs of a step's micro-batches.
fn step(objective: &dyn Objective, micro_batches: &[Owned]) -> Result<Vec<ObjectiveOutput>, ObjectiveError> {
    let normaliser = Normaliser::of_step(objective, micro_batches.iter().map(Owned::view))?;
    let shared = match objective.pre_pass() {
        PrePass::None => Vec::new(),
        PrePass::Mismatched | PrePass::All => objective.prepare(&joined(micro_batches).view())?,
    };
    let normaliser = normaliser.with_shared(shared);
    micro_batches.iter().map(|batch| objective.evaluate(&batch.view(), &normaliser)).collect()
}

fn whole(case: &Case, groups: &[Owned]) -> Result<ObjectiveOutput, ObjectiveError> {
    Ok(step(&*case.objective, &[joined(groups)])?.remove(0))
}

#[test]
fn losses_and_gradients_are_those_of_the_definition() {
    for case in cases() {
        for soft in [false, true] {
            let what = format!("{} (soft: {soft})", case.what);
            let groups = case.random(1, soft);
            let batch = joined(&groups);
            let output = whole(&case, &groups).unwrap();
            let view = View::new(&batch);
            let loss = (case.reference)(&view);
            let error = (output.loss - loss).abs();
            assert!(error <= LOSS_TOLERANCE * (1.0 + loss.abs()), "{what}: {} against {loss}", output.loss);
            let d_scores = output.d_scores.clone().unwrap_or_else(|| vec![0.0; batch.values.len()]);
            let fields: [(&[f32], Field); 2] =
                [(&output.d_logp, |v| &mut v.logp), (&d_scores, |v| &mut v.scores)];
            for (gradient, field) in fields {
                let largest = gradient.iter().fold(0f32, |m, g| m.max(g.abs()));
                for i in 0..gradient.len() {
                    let moved = |by: f64| {
                        let mut view = view.clone();
                        field(&mut view)[i] += by;
                        (case.reference)(&view)
                    };
                    let expected = (moved(DIFFERENCE) - moved(-DIFFERENCE)) / (2.0 * DIFFERENCE);
                    let error = (f64::from(gradient[i]) - expected).abs();
                    let allowed = GRADIENT_TOLERANCE * f64::from(largest.max(0.1));
                    assert!(error < allowed, "{what}, {i}: {} against {expected}", gradient[i]);
                }
            }
            let trains = output.d_logp.iter().chain(&d_scores).any(|&g| g != 0.0);
            assert!(trains, "{what}: no gradient at all");
        }
    }
}

#[test]
fn micro_batches_add_up_to_the_step() {
    for case in cases() {
        let groups = case.random(2, true);
        let plain = whole(&case, &groups).unwrap();
        for cuts in [vec![0, 9], vec![0, 1, 9], vec![0, 3, 4, 8, 9], (0..=9).collect::<Vec<usize>>()] {
            let what = format!("{} {cuts:?}", case.what);
            let pieces: Vec<Owned> = cuts.windows(2).map(|w| joined(&groups[w[0]..w[1]])).collect();
            let outputs = step(&*case.objective, &pieces).unwrap();
            let loss: f64 = outputs.iter().map(|o| o.loss).sum();
            assert!((loss - plain.loss).abs() <= 1e-12 * plain.loss.abs(), "{what}: {loss}");
            // The step's weights are summed in another order, so their last bit may differ.
            let same = |ours: Vec<f32>, theirs: &[f32]| {
                assert_eq!(ours.len(), theirs.len(), "{what}");
                for (a, b) in ours.iter().zip(theirs) {
                    assert!((a - b).abs() <= 2.0 * f32::EPSILON * b.abs(), "{what}: {a} against {b}");
                }
            };
            same(outputs.iter().flat_map(|o| o.d_logp.clone()).collect(), &plain.d_logp);
            let d_scores = outputs.iter().flat_map(|o| o.d_scores.clone().unwrap_or_default());
            same(d_scores.collect(), plain.d_scores.as_deref().unwrap_or_default());
            let mut totals: Vec<Metric> = Vec::new();
            outputs.iter().for_each(|o| Metric::accumulate(&mut totals, &o.metrics));
            assert_eq!(totals.len(), plain.metrics.len(), "{what}");
            for (ours, theirs) in totals.iter().zip(&plain.metrics) {
                let (a, b) = (ours.value().unwrap(), theirs.value().unwrap());
                let same = ours.name == theirs.name && (a - b).abs() <= 1e-11 * (1.0 + b.abs());
                assert!(same, "{what} {}: {a} against {b}", ours.name);
            }
        }
    }
}

#[test]
fn order_does_not_matter() {
    for case in cases() {
        let groups = case.random(3, false);
        let mut order: Vec<usize> = (0..groups.len()).collect();
        Stream::new(1, "order").at(0).shuffle(&mut order);
        let permuted: Vec<Owned> = order.iter().map(|&i| groups[i].clone()).collect();
        let (plain, moved) = (whole(&case, &groups).unwrap(), whole(&case, &permuted).unwrap());
        assert!((plain.loss - moved.loss).abs() <= 1e-12 * plain.loss.abs().max(1.0), "{}", case.what);
        let start = |groups: &[Owned]| -> Vec<usize> {
            groups.iter().scan(0, |end, g| Some(std::mem::replace(end, *end + g.logp.len()))).collect()
        };
        let (from, to) = (start(&groups), start(&permuted));
        for (place, &i) in order.iter().enumerate() {
            for token in 0..groups[i].logp.len() {
                let (a, b) = (plain.d_logp[from[i] + token], moved.d_logp[to[place] + token]);
                assert!((a - b).abs() <= 1e-6 * a.abs(), "{}: {a} against {b}", case.what);
            }
        }
    }
}

#[test]
fn tokens_without_weight_are_not_read() {
    for case in cases().into_iter().filter(|case| !case.objective.needs().no_logp) {
        let groups = case.random(4, true);
        let before = whole(&case, &groups).unwrap();
        let mut poisoned = groups.clone();
        let mut n_poisoned = 0;
        for group in &mut poisoned {
            for i in (0..group.logp.len()).filter(|&i| group.weights[i] == 0.0).collect::<Vec<_>>() {
                n_poisoned += 1;
                for array in [
                    &mut group.logp,
                    &mut group.reference,
                    &mut group.collision,
                    &mut group.sampler,
                    &mut group.entropy,
                ] {
                    array[i] = f32::NAN;
                }
            }
        }
        assert!(n_poisoned > 9, "{}", case.what);
        assert_eq!(whole(&case, &poisoned).unwrap(), before, "{}", case.what);
        let trained = poisoned[4].weights.iter().rposition(|&w| w > 0.0).unwrap();
        poisoned[4].logp[trained] = f32::NAN;
        assert!(matches!(whole(&case, &poisoned), Err(ObjectiveError::NonFinite { .. })), "{}", case.what);
    }
}

#[test]
fn certain_and_impossible_replies_stay_finite() {
    for case in cases().into_iter().filter(|case| !case.objective.needs().no_logp) {
        for (policy, reference) in
            [(0.0, 0.0), (-1e-30, -5000.0), (-5000.0, -1e-7), (-1e4, -1e4), (-120.0, 0.0), (0.0, -120.0)]
        {
            for side in 0..2 {
                let mut groups = case.random(5, false);
                let group = &mut groups[0];
                let last = group.completions.len() - 1;
                let tokens = group.completions[last - side.min(last)].tokens.clone();
                group.logp[tokens.clone()].fill(policy);
                group.reference[tokens.clone()].fill(reference);
                group.sampler[tokens].fill(policy);
                let output = whole(&case, &groups).unwrap_or_else(|e| panic!("{}: {e}", case.what));
                let finite = output.loss.is_finite() && output.d_logp.iter().all(|d| d.is_finite());
                assert!(finite, "{} at {policy}, {reference}: {}", case.what, output.loss);
                let metrics = output.metrics.iter().filter_map(Metric::value);
                assert!(metrics.into_iter().all(f64::is_finite), "{}", case.what);
            }
        }
    }
}

#[test]
fn scores_far_apart_stay_finite() {
    for case in cases().into_iter().filter(|case| case.objective.needs().no_logp) {
        for (first, second) in [(1e4, -1e4), (-1e4, 1e4), (0.0, 0.0), (1e-30, 0.0)] {
            let mut groups = case.random(5, true);
            let n = groups[0].values.len() / 2;
            groups[0].values[..n].fill(first);
            groups[0].values[n..].fill(second);
            let output = whole(&case, &groups).unwrap();
            assert!(output.loss.is_finite() && output.d_scores.unwrap().iter().all(|d| d.is_finite()));
        }
        let mut groups = case.random(5, true);
        groups[0].values[0] = f32::NAN;
        assert!(matches!(whole(&case, &groups), Err(ObjectiveError::NonFinite { .. })), "{}", case.what);
    }
}

/// At step 0 the policy is its reference: margins are exactly 0, and the sigmoid loss is ln 2. The same for equal replies.
#[test]
fn without_a_difference_the_margin_is_zero_and_the_loss_ln_2() {
    for (equal_reference, equal_replies) in [(true, false), (false, true)] {
        let mut groups = random(Layout::Pairs, 6, false);
        for group in &mut groups {
            if equal_reference {
                group.reference = group.logp.clone();
            }
            if equal_replies {
                let tokens = group.completions[0].tokens.clone();
                let n = tokens.end;
                for array in [
                    &mut group.logp,
                    &mut group.weights,
                    &mut group.reference,
                    &mut group.entropy,
                    &mut group.collision,
                ] {
                    array.truncate(n);
                    array.extend_from_within(tokens.clone());
                }
                group.correct.truncate(n);
                group.correct.extend_from_within(tokens.clone());
                group.sampler = group.logp.clone();
                group.completions[1].tokens = n..n + tokens.len();
            }
        }
        let batch = joined(&groups);
        let dpo = build("dpo", &toml::Table::new()).unwrap();
        let output = step(&*dpo, &[batch]).unwrap().remove(0);
        assert!((output.loss - std::f64::consts::LN_2).abs() < 1e-15, "{}", output.loss);
        let value = |name| output.metrics.iter().find(|m| m.name == name).and_then(Metric::value).unwrap();
        assert_eq!((value("rewards/margins"), value("rewards/accuracies")), (0.0, 0.0));
    }
}

#[test]
fn groups_that_are_not_what_they_should_be_are_named() {
    let check = |name: &str, layout: Layout, change: &dyn Fn(&mut Owned), expected: &str| {
        let objective = build(name, &toml::Table::new()).unwrap();
        let mut groups = random(layout, 7, false);
        // Of labelled replies, every third is mismatched.
        let which = if layout == Layout::Labelled { 4 } else { 5 };
        change(&mut groups[which]);
        let message = step(&*objective, &[joined(&groups)]).unwrap_err().to_string();
        assert!(
            message.contains(expected) && message.contains(&format!("group {which}")),
            "{name}: {message} should mention {expected}"
        );
    };
    let empty = |which: usize| {
        move |g: &mut Owned| {
            let tokens = g.completions[which].tokens.clone();
            g.weights[tokens].fill(0.0);
        }
    };
    for name in ["dpo", "orpo", "cpo", "simpo", "alphapo", "tpo", "xpo"] {
        let layout = match name {
            "tpo" => Layout::Triples,
            "xpo" => Layout::OnlinePairs,
            _ => Layout::Pairs,
        };
        let last = if layout == Layout::Triples { 2 } else { 1 };
        check(name, layout, &empty(last), "rejected reply has no trained token");
        check(name, layout, &empty(last - 1), "chosen reply has no trained token");
        check(name, layout, &|g| g.completions.truncate(last), "expected one");
        check(name, layout, &|g| g.completions[last].kind = Kind::Chosen, "chosen, chosen");
        check(name, layout, &|g| g.completions[last].weight = 9.0, "they must be finite");
        check(
            name,
            layout,
            &|g| g.completions.iter_mut().for_each(|c| c.label = 1.5),
            "a label is a probability",
        );
    }
    check("tpo", Layout::Triples, &empty(0), "gold reply has no trained token");
    check("tpo", Layout::Triples, &|g| g.completions[0].kind = Kind::Chosen, "one gold");
    check(
        "xpo",
        Layout::OnlinePairs,
        &|g| g.completions[0].is_reference_sample ^= true,
        "replies of the reference",
    );
    for name in ["kto", "apo_zero_unpaired", "bco"] {
        check(name, Layout::Labelled, &|g| g.completions[0].kind = Kind::Sample, "a sampled reply");
    }
    check("apo_zero_unpaired", Layout::Labelled, &|g| g.completions[0].weight = -1.0, "expected a desirable");
    check("nash_md", Layout::Samples, &|g| g.completions[0].label = 2.0, "its probability to win");
    check("nash_md", Layout::Samples, &empty(0), "sampled reply has no trained token");
    check(
        "reward",
        Layout::ScoredPairs(1),
        &|g| g.completions[1].scores.end -= 1,
        "one scored row for each reply",
    );
    check("reward", Layout::ScoredPairs(1), &|g| g.completions[1].margin = 7.0, "the same on both sides");
}

#[test]
fn what_is_missing_is_an_error() {
    let check =
        |name: &str, options: &str, layout: Layout, change: &dyn Fn(&mut TokenBatch<'_>), expected: &str| {
            let objective = build(name, &options.parse().unwrap()).unwrap();
            let batch = joined(&random(layout, 8, false));
            let mut view = batch.view();
            change(&mut view);
            let normaliser = Normaliser::new(9.0).unwrap();
            let message = objective.evaluate(&view, &normaliser).unwrap_err().to_string();
            assert!(message.contains(expected), "{name}: {message} should mention {expected}");
        };
    for (name, layout) in [("dpo", Layout::Pairs), ("kto", Layout::Labelled), ("xpo", Layout::OnlinePairs)] {
        check(name, "", layout, &|v| v.reference_logp = None, "the reference log-probability");
    }
    check("dpo", "use_weighting = true", Layout::Pairs, &|v| v.log_collision = None, "log collision");
    check("dpo", "loss_type = 'aot'", Layout::Pairs, &|_| (), "run `prepare` on all micro-batches");
    check("dpo", "loss_type = 'sft'", Layout::Pairs, &|_| (), "Normaliser::of_step");
    check("kto", "", Layout::Labelled, &|_| (), "run `prepare` on the step's mismatched replies");
    check("bco", "include_step = true", Layout::Labelled, &|_| (), "run `prepare`");
    check("reward", "", Layout::ScoredPairs(1), &|v| v.scores = None, "the score head's outputs");
    check("reward", "", Layout::ScoredPairs(3), &|_| (), "a score head of 1 outputs, found one of 3");
    check(
        "on_policy_distillation",
        "importance_sampling = true",
        Layout::Samples,
        &|v| v.sampler_logp = None,
        "sampler",
    );
    check(
        "reward",
        "n_outputs = 3\nby_objective = true",
        Layout::ScoredPairs(3),
        &|_| (),
        "the index of one output",
    );
    let mut steps = joined(&random(Layout::Steps(2), 8, false));
    (steps.targets[2], steps.score_weights[2]) = (1.5, 1.0);
    let prm = build("prm", &toml::Table::new()).unwrap();
    let message = prm.evaluate(&steps.view(), &Normaliser::new(9.0).unwrap()).unwrap_err().to_string();
    assert!(message.contains("scored row 2 is 1.5"), "{message}");
    let kto = build("kto", &toml::Table::new()).unwrap();
    let message = kto.prepare(&joined(&random(Layout::Pairs, 8, false)).view()).unwrap_err().to_string();
    assert!(message.contains("of which the step has none"), "{message}");
}

#[test]
fn options_out_of_range_are_refused() {
    let check = |name: &str, options: &str, expected: &str| {
        let message = build(name, &options.parse().unwrap()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message} should mention {expected}");
    };
    for name in ["dpo", "orpo", "cpo", "simpo", "alphapo", "tpo", "kto", "apo_zero_unpaired", "bco", "xpo"] {
        check(name, "beta = 0.0", "beta is 0, expected a number above 0");
        check(name, "beta = inf", "beta is inf");
    }
    check("dpo", "loss_type = 'sigmoids'", "unknown variant `sigmoids`");
    check("dpo", "loss_type = []", "an empty list");
    check("dpo", "loss_type = ['sft', 'ipo']\nloss_weights = [1.0]", "1 numbers, expected one for each of 2");
    check("dpo", "loss_type = 'exo_pair'", "exo_pair needs it above 0");
    check("dpo", "label_smoothing = 0.5", "below 0.5");
    check("dpo", "label_smoothing = 0.1", "the loss does not read it");
    check("cpo", "label_smoothing = 0.1\nloss_type = 'hinge'", "the loss does not read it");
    check("tpo", "label_smoothing = 0.1\nloss_type = 'ipo'", "the loss does not read it");
    check("dpo", "f_divergence_type = 'forward_kl'\nloss_type = 'aot'", "defined for reverse_kl only");
    check("dpo", "ld_alpha = 1.5", "ld_alpha is 1.5");
    check("dpo", "discopop_tau = 0.0", "discopop_tau is 0");
    check("prm", "n_outputs = 3", "expected 1 or 2");
    check("reward", "n_outputs = 0", "at least 1");
    check("bco", "min_density_ratio = 11.0", "at most max_density_ratio, 10");
    check("tpo", "loss_type = 'tpo_l'", "unknown variant");
}

#[test]
fn the_shift_of_bco_is_the_mean_of_all_rewards_seen() {
    let mut bco = build("bco", &toml::Table::new()).unwrap();
    let (mut sum, mut weight) = (0.0, 0.0);
    for seed in 0..3 {
        let batch = joined(&random(Layout::Labelled, seed, false));
        let output = step(&*bco, std::slice::from_ref(&batch)).unwrap().remove(0);
        let delta = output.metrics.iter().find(|m| m.name == "delta").and_then(Metric::value).unwrap();
        let expected: f64 = if weight == 0.0 { 0.0 } else { sum / weight };
        assert!((delta - expected).abs() < 1e-12, "{delta} against {expected}");
        bco.end_step(&output.metrics);
        let view = View::new(&batch);
        for kind in [Kind::Desirable, Kind::Undesirable] {
            let (more, n) = view.replies(kind, |h, _| 0.1 * h);
            (sum, weight) = (sum + more, weight + n);
        }
    }
    let mut resumed = build("bco", &toml::Table::new()).unwrap();
    resumed.set_state(&bco.state());
    assert_eq!(format!("{resumed:?}"), format!("{bco:?}"));
}

#[test]
fn the_first_wrong_step_must_be_found() {
    let prm = build("prm", &"n_outputs = 1".parse().unwrap()).unwrap();
    let check = |values: [f32; 3], targets: [f32; 3], accuracy: f64, first_error: f64, kind: &str| {
        let completions = [Completion { scores: 0..3, ..Completion::default() }];
        let scores =
            Scores { n_outputs: 1, values: &values, targets: &targets, weights: &[1.0; 3], old_values: None };
        let batch = TokenBatch { completions: &completions, scores: Some(scores), ..TokenBatch::default() };
        let output = prm.evaluate(&batch, &Normaliser::new(3.0).unwrap()).unwrap();
        let found = |name: &str| output.metrics.iter().find(|m| m.name == name).unwrap().value();
        let near = |a: Option<f64>, b: f64| a.is_some_and(|a| (a - b).abs() < 1e-12);
        assert!(near(found("accuracy"), accuracy), "{values:?} {targets:?}: {:?}", output.metrics);
        assert_eq!(found("first_error_accuracy"), Some(first_error));
        // The completion counts under its own kind alone.
        let other = if kind == "right" { "wrong" } else { "right" };
        assert_eq!(found(&format!("first_error_accuracy/{kind}")), Some(first_error));
        assert_eq!(found(&format!("first_error_accuracy/{other}")), None);
        let of_label = |right: bool| {
            let rows: Vec<usize> = (0..3).filter(|&row| (targets[row] > 0.5) == right).collect();
            let agree = rows.iter().filter(|&&row| (values[row] > 0.0) == right).count();
            (!rows.is_empty()).then(|| agree as f64 / rows.len() as f64)
        };
        assert_eq!(found("accuracy/right"), of_label(true));
        assert_eq!(found("accuracy/wrong"), of_label(false));
        let square = |row: usize| (sig(f64::from(values[row])) - f64::from(targets[row])).powi(2);
        assert!(near(found("brier"), (0..3).map(square).sum::<f64>() / 3.0));
    };
    check([1.0, -1.0, 1.0], [1.0, 0.0, 0.0], 2.0 / 3.0, 1.0, "wrong");
    check([1.0, 1.0, -1.0], [1.0, 0.0, 0.0], 2.0 / 3.0, 0.0, "wrong");
    check([1.0, 1.0, 1.0], [1.0, 0.8, 0.6], 1.0, 1.0, "right");
    check([1.0, 1.0, -1.0], [1.0, 1.0, 1.0], 2.0 / 3.0, 0.0, "right");
}

#[test]
fn every_objective_of_the_folder_has_a_case() {
    let n = OBJECTIVES.iter().filter(|info| covers(info.name)).count();
    assert_eq!(n, 14);
    for pair_loss in OBJECTIVES
        .iter()
        .filter(|info| matches!(info.name, "dpo" | "orpo" | "cpo" | "simpo" | "alphapo" | "tpo" | "xpo"))
    {
        let layout = CASES.iter().find(|(name, ..)| *name == pair_loss.name).unwrap().2;
        let output =
            step(&*build(pair_loss.name, &toml::Table::new()).unwrap(), &[joined(&random(layout, 1, false))]);
        let metrics = output.unwrap().remove(0).metrics;
        for name in [
            "rewards/chosen",
            "rewards/rejected",
            "rewards/accuracies",
            "rewards/margins",
            "logps/chosen",
            "logps/rejected",
        ] {
            assert!(
                metrics.iter().any(|m| m.name == name && m.value().is_some()),
                "{}: {name}",
                pair_loss.name
            );
        }
    }
}
