//! A step's gradients do not depend on how the step was cut, on recomputation or on threads.
//!
//! Bit for bit wherever the order of sums is the same; where it is not, a tolerance says why.

mod common;

use std::collections::BTreeMap;

use common::*;
use pt_engine::Dtype;
use pt_models::Model;
use pt_train::{Example, MicroBatch, StepStats};

/// The mean loss is summed in `f64` per micro-batch and then over them: other groups, other last bits.
const LOSS_REGROUPING: f64 = 1e-14;
/// Gradients summed in another order, by the tensor's largest element: sums of at most 32 terms in `f32`, whose unit
/// is 6e-8, where terms may cancel to a tenth of their size.
const REORDERING: f64 = 5e-6;

/// Every architecture and every variant of one that changes what runs (not how it is stored).
const MODELS: &[&str] = &[
    "gemma2",
    "gemma3",
    "gemma3_v5",
    "llama",
    "llama_bias",
    "llama_rope_dynamic",
    "llama_rope_linear",
    "llama_rope_llama3",
    "llama_rope_yarn",
    "llama_tied",
    "mistral",
    "phi3",
    "phi3_longrope",
    "phi3_longrope_partial",
    "qwen2",
    "qwen3",
];
/// Same code and values as `llama`, stored otherwise.
const STORED_OTHERWISE: &[&str] = &["llama_bf16", "llama_f16", "llama_sharded"];

/// What trains.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trains {
    Full,
    Lora,
    Dora,
}

const TRAINS: &[Trains] = &[Trains::Full, Trains::Lora, Trains::Dora];
const DTYPES: &[Dtype] = &[Dtype::F32, Dtype::Bf16];

fn prepared(model: Model, trains: Trains) -> Model {
    let lora = |dropout, dora| serde_json::json!({"rank": 4, "alpha": 8, "dropout": dropout, "dora": dora});
    match trains {
        Trains::Full => all_training(model),
        Trains::Lora => with_lora(model, lora(0.3, false)),
        Trains::Dora => with_lora(model, lora(0.0, true)),
    }
}

/// Sequences of even length with an even number of targets, one of them longer than windows and original lengths.
fn examples(vocabulary: usize) -> Vec<Example> {
    let lens_and_contexts = [(12, 2), (6, 4), (8, 2), (4, 2), (2, 2)];
    let one = |(i, (len, n_context))| random_example(vocabulary, len, n_context, i as u64);
    lens_and_contexts.into_iter().enumerate().map(one).collect()
}

/// A step's statistics and gradients.
#[derive(Clone, Debug, PartialEq)]
struct Outcome {
    stats: StepStats,
    gradients: BTreeMap<String, Vec<f32>>,
}

fn outcome(make: impl Fn() -> Model, setup: Setup, micro_batches: &[MicroBatch]) -> Outcome {
    outcome_of(make(), setup, micro_batches)
}

fn outcome_of(model: Model, setup: Setup, micro_batches: &[MicroBatch]) -> Outcome {
    let mut trainer = setup.trainer(model);
    let (stats, _) = trainer.accumulate(micro_batches).unwrap();
    Outcome { stats, gradients: gradients(&trainer) }
}

impl Outcome {
    fn assert_same_loss(&self, other: &Outcome, what: &str) {
        let (a, b) = (&self.stats, &other.stats);
        let close = |a: f64, b: f64| (a - b).abs() <= LOSS_REGROUPING * a.abs().max(1.0);
        assert!(close(a.loss, b.loss), "{what}: loss {} and {}", a.loss, b.loss);
        assert_eq!((a.n_tokens, a.n_targets), (b.n_tokens, b.n_targets), "{what}");
        for ((name, a), (other_name, b)) in a.metrics.iter().zip(&b.metrics) {
            assert!(name == other_name && close(*a, *b), "{what}: {name} {a}, {other_name} {b}");
        }
        assert_eq!(self.gradients.keys().collect::<Vec<_>>(), other.gradients.keys().collect::<Vec<_>>());
    }

    fn assert_same_bits(&self, other: &Outcome, what: &str) {
        self.assert_same_loss(other, what);
        for (name, values) in &self.gradients {
            let n_differing =
                values.iter().zip(&other.gradients[name]).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert_eq!(n_differing, 0, "{what}: gradient of {name} of {} values", values.len());
        }
    }

    fn assert_close(&self, other: &Outcome, what: &str) {
        self.assert_same_loss(other, what);
        for (name, values) in &self.gradients {
            let error = relative_error(&other.gradients[name], &widened(values));
            assert!(error < REORDERING, "{what}: gradient of {name}: {error:.1e}");
        }
    }

    fn assert_some_gradient(&self, what: &str) {
        for (name, values) in &self.gradients {
            assert!(values.iter().any(|g| *g != 0.0), "{what}: {name} has a gradient");
        }
    }
}

/// Runs `check(label, model maker, vocabulary, setup)` for every model, storage type and way of training.
fn for_all(check: impl Fn(&str, &dyn Fn() -> Model, usize, Setup)) {
    for name in MODELS {
        for &dtype in DTYPES {
            for &trains in TRAINS {
                let make = || prepared(load_golden(name, dtype), trains);
                let vocabulary = make().config.vocab_size;
                check(
                    &format!("{name} {dtype:?} {trains:?}"),
                    &make,
                    vocabulary,
                    Setup { dtype, ..Setup::default() },
                );
            }
        }
    }
}

#[test]
fn no_golden_model_is_forgotten() {
    let folder = std::fs::read_dir(golden("models")).unwrap();
    let mut names: Vec<String> =
        folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let mut listed = [MODELS, STORED_OTHERWISE].concat();
    listed.sort_unstable();
    assert_eq!(names, listed);
}

#[test]
fn any_cut_into_micro_batches_gives_the_same_gradients() {
    for_all(|label, make, vocabulary, setup| {
        let examples = examples(vocabulary);
        let whole = outcome(make, setup, &cut(&examples, &[5]));
        whole.assert_some_gradient(label);
        for sizes in [&[1, 4][..], &[2, 3], &[2, 2, 1], &[1, 1, 1, 1, 1]] {
            let parts = outcome(make, setup, &cut(&examples, sizes));
            let what = format!("{label} cut {sizes:?}");
            parts.assert_same_bits(&whole, &what);
        }
    });
}

/// A `bf16` product takes its reduction in pairs: a micro-batch of an odd number of tokens, or of targets for the head,
/// ends in half a pair, and the next one begins a new pair. In `f32` the same cuts are bitwise.
#[test]
fn odd_cuts_are_bitwise_in_f32_and_close_in_bf16() {
    for_all(|label, make, vocabulary, setup| {
        let lens_and_contexts = [(11, 1), (5, 2), (7, 4), (2, 1), (9, 3)];
        let one = |(i, (len, n_context))| random_example(vocabulary, len, n_context, i as u64);
        let examples: Vec<Example> = lens_and_contexts.into_iter().enumerate().map(one).collect();
        let whole = outcome(make, setup, &cut(&examples, &[5]));
        for sizes in [&[1, 4][..], &[3, 2], &[1, 1, 1, 1, 1]] {
            let parts = outcome(make, setup, &cut(&examples, sizes));
            let what = format!("{label} cut {sizes:?}");
            match setup.dtype {
                Dtype::F32 => parts.assert_same_bits(&whole, &what),
                Dtype::Bf16 => parts.assert_close(&whole, &what),
            }
        }
    });
}

#[test]
fn examples_in_another_order_give_the_same_gradients_but_for_the_order_of_sums() {
    for_all(|label, make, vocabulary, setup| {
        let examples = examples(vocabulary);
        let straight = outcome(make, setup, &cut(&examples, &[5]));
        let reordered: Vec<Example> = [3, 0, 4, 2, 1].iter().map(|&i: &usize| examples[i].clone()).collect();
        for sizes in [&[5][..], &[2, 3]] {
            let other = outcome(make, setup, &cut(&reordered, sizes));
            other.assert_close(&straight, &format!("{label} {sizes:?}"));
        }
    });
}

#[test]
fn recomputing_blocks_gives_the_same_gradients() {
    for_all(|label, make, vocabulary, setup| {
        let batches = cut(&examples(vocabulary), &[2, 3]);
        let kept = outcome(make, setup, &batches);
        let again = outcome(make, Setup { recompute: true, ..setup }, &batches);
        again.assert_same_bits(&kept, label);
    });
}

#[test]
fn micro_batches_without_targets_change_nothing() {
    let make = || prepared(load_golden("llama", Dtype::F32), Trains::Full);
    let (examples, context_only) = (examples(100), random_example(100, 5, 5, 77));
    let without = outcome(make, Setup::default(), &cut(&examples, &[5]));
    let mut batches = cut(&examples, &[5]);
    batches.insert(0, MicroBatch::new(vec![context_only]));
    let with = outcome(make, Setup::default(), &batches);
    assert_eq!(with.gradients, without.gradients);
    assert_eq!((with.stats.loss, with.stats.n_tokens), (without.stats.loss, without.stats.n_tokens + 5));
}

#[test]
fn dropout_depends_on_the_example_and_the_step_and_nothing_else() {
    let make = || prepared(load_golden("llama", Dtype::F32), Trains::Lora);
    let first = examples(100);
    let rekeyed: Vec<Example> = first.iter().map(|e| Example { key: e.key + 10, ..e.clone() }).collect();
    let of = |examples: &[Example]| outcome(make, Setup::default(), &cut(examples, &[5]));
    assert_ne!(of(&first).stats.loss, of(&rekeyed).stats.loss, "other keys drop other inputs");

    // A learning rate of 0 leaves the weights alone, so only the step's number differs.
    let mut trainer = Setup { learning_rate: 0.0, ..Setup::default() }.trainer(make());
    let batches = cut(&first, &[5]);
    let losses: Vec<f64> = (0..2).map(|_| trainer.step(&batches).unwrap().0.loss).collect();
    assert_ne!(losses[0], losses[1], "another step drops other inputs");
    let evals: Vec<f64> = (0..2).map(|_| trainer.evaluate(&batches).unwrap().loss).collect();
    assert_eq!(evals[0], evals[1]);
    assert!(losses.iter().all(|loss| *loss != evals[0]), "evaluation drops nothing");
}

/// Runs `work` in a pool of its own.
fn on_threads<T: Send>(n_threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap().install(work)
}

/// Weights after steps whose every part runs in parallel: products large enough to be split, many rows, all optimisers.
#[test]
fn threads_change_nothing() {
    for dtype in DTYPES {
        for (optimiser, optimiser_options) in [("adamw", ""), ("adamw8bit", ""), ("muon", "")] {
            for &trains in TRAINS {
                let setup = Setup { dtype: *dtype, optimiser, optimiser_options, ..Setup::default() };
                let run = || {
                    let mut trainer = setup.trainer(prepared(wide_model(*dtype), trains));
                    let lens = [40, 61, 23, 30];
                    let examples: Vec<Example> =
                        lens.iter().zip(0..).map(|(&len, key)| random_example(128, len, 1, key)).collect();
                    let stats: Vec<StepStats> =
                        (0..3).map(|_| trainer.step(&cut(&examples, &[3, 1])).unwrap().0).collect();
                    (stats, trained(&trainer), trainer.evaluate(&cut(&examples, &[4])).unwrap())
                };
                let (one, two, three) = (on_threads(1, run), on_threads(2, run), on_threads(3, run));
                assert!(one == two && one == three, "{dtype:?} {optimiser} {trains:?}");
            }
        }
    }
}

/// The same of one step of every architecture.
#[test]
fn threads_change_no_architecture() {
    for_all(|label, make, vocabulary, setup| {
        let batches = cut(&examples(vocabulary), &[5]);
        let step = |model: Model| outcome_of(model, setup, &batches);
        let [one, two] = [make(), make()];
        let (one, two) = (on_threads(1, || step(one)), on_threads(2, || step(two)));
        two.assert_same_bits(&one, label);
        assert_eq!(one.stats, two.stats, "{label}");
    });
}

/// Micro-batches longer than any block a product or the head works in.
#[test]
fn cuts_of_long_steps_change_nothing() {
    for &dtype in DTYPES {
        for &trains in TRAINS {
            let make = || prepared(wide_model(dtype), trains);
            let setup = Setup { dtype, ..Setup::default() };
            let lens = [600, 500, 302];
            let examples: Vec<Example> =
                lens.iter().zip(0..).map(|(&len, key)| random_example(128, len, 2, key)).collect();
            let whole = outcome(make, setup, &cut(&examples, &[3]));
            for sizes in [&[1, 2][..], &[1, 1, 1]] {
                let parts = outcome(make, setup, &cut(&examples, sizes));
                parts.assert_same_bits(&whole, &format!("{dtype:?} {trains:?} cut {sizes:?}"));
            }
        }
    }
}
