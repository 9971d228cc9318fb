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
/// A tied embedding's gradient has a part from the head and one from the lookup, and every micro-batch adds both:
/// `h1 + e1 + h2 + e2` against `h1 + h2 + e1 + e2`. So a cut changes its last bits, and its tolerance is this:
/// Gradients summed in another order, by the tensor's largest element: sums of at most 32 terms in `f32`, whose unit
/// is 6e-8, where terms may cancel to a tenth of their size.
const REORDERING: f64 = 2e-5;

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
    tied: Option<String>,
}

fn outcome(make: impl Fn() -> Model, setup: Setup, micro_batches: &[MicroBatch]) -> Outcome {
    let mut trainer = setup.trainer(make());
    let (stats, _) = trainer.accumulate(micro_batches).unwrap();
    let head = trainer.model.params.get(trainer.model.arch.head());
    let tied = (head.trainable && head.name.contains("embed_tokens")).then(|| head.name.clone());
    Outcome { stats, gradients: gradients(&trainer), tied }
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
        self.assert_same_bits_but(other, what, None);
    }

    /// The same bits, except that the parameter `reordered` is only close.
    fn assert_same_bits_but(&self, other: &Outcome, what: &str, reordered: Option<&String>) {
        self.assert_same_loss(other, what);
        for (name, values) in &self.gradients {
            if Some(name) == reordered {
                let error = relative_error(&other.gradients[name], &widened(values));
                assert!(error < REORDERING, "{what}: gradient of {name}: {error:.1e}");
                continue;
            }
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
            parts.assert_same_bits_but(&whole, &what, whole.tied.as_ref());
        }
    });
}
