//! Twenty optimiser steps against those of PyTorch, transformers and PEFT, computed in f64.

mod common;

use common::*;
use pt_engine::Dtype;
use pt_train::{Example, MicroBatch, Trainer};
use serde_json::Value;

/// Losses, which are 2 to 8: PyTorch's own f32 run is within 2e-5 of the f64 one.
const LOSS_TOLERANCE: f64 = 1e-4;
/// Gradient norms, relative.
const NORM_TOLERANCE: f64 = 1e-4;
/// Learning rates: both are f64, and the cosine may differ in its last bits.
const RATE_TOLERANCE: f64 = 1e-15;
/// Gradients of single tensors, by their largest element.
const GRADIENT_TOLERANCE: f64 = 1e-4;
/// Final weights: norm of the difference over norm.
const WEIGHT_TOLERANCE: f64 = 5e-6;
/// Single final weights, absolute, after twenty updates of up to 1e-2. Adam divides by the gradient's own size, so an
/// element whose gradient is near zero moves by the rounding errors of the sums it comes from. In the full run there is
/// one such element, in the embedding, 8.7e-5 off (PyTorch's own f32 run: 2.1e-5); no other tensor has one beyond 4e-6.
const STRAY_TOLERANCE: f64 = 2e-4;

struct Case {
    name: &'static str,
    adapter: bool,
    decay_1d: bool,
}

const CASES: &[Case] = &[
    Case { name: "full", adapter: false, decay_1d: false },
    Case { name: "full_decay_all", adapter: false, decay_1d: true },
    Case { name: "lora", adapter: true, decay_1d: true },
    Case { name: "rslora", adapter: true, decay_1d: true },
    Case { name: "dora", adapter: true, decay_1d: true },
];

fn json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden(path)).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The steps, each cut into micro-batches of one and of all other sequences.
fn batches() -> Vec<Vec<MicroBatch>> {
    let lists = |value: &Value| -> Vec<Vec<u32>> { serde_json::from_value(value.clone()).unwrap() };
    let batch = |batch: &Value| {
        let rows = lists(&batch["tokens"]).into_iter().zip(lists(&batch["mask"])).enumerate();
        let examples: Vec<Example> = rows
            .map(|(i, (token_ids, mask))| {
                let weights = mask.iter().map(|m| *m as f32).collect();
                Example::sequence(token_ids, weights, i as u64, "golden".into())
            })
            .collect();
        let micro_batches = cut(&examples, &[1, examples.len() - 1]);
        let n_targets: usize = micro_batches.iter().map(|b| b.predictions().rows.len()).sum();
        assert_eq!(n_targets as u64, batch["n_targets"].as_u64().unwrap());
        micro_batches
    };
    json("train/batches.json").as_array().unwrap().iter().map(batch).collect()
}

fn trainer(case: &Case) -> Trainer {
    let mut model = load_golden("llama", Dtype::F32);
    match case.adapter {
        true => model.attach_peft(&golden("train").join(case.name).join("initial")).unwrap(),
        false => model.train_all().unwrap(),
    }
    let setup = Setup {
        schedule: "name = 'cosine'\nwarmup_steps = 4",
        steps: 20,
        decay_1d: case.decay_1d,
        ..Setup::default()
    };
    setup.trainer(model)
}

#[test]
fn twenty_steps_are_those_of_pytorch() {
    let batches = batches();
    for case in CASES {
        let (name, mut trainer) = (case.name, trainer(case));
        let log = json(&format!("train/{name}/log.json"));
        let [losses, norms, rates] = ["loss", "grad_norm", "learning_rate"].map(|key| numbers(&log[key]));
        assert_eq!(batches.len(), losses.len(), "{name}");
        for (i, batch) in batches.iter().enumerate() {
            let (stats, _) = trainer.step(batch).unwrap();
            let loss_gap = (stats.loss - losses[i]).abs();
            assert!(loss_gap < LOSS_TOLERANCE, "{name} step {i}: loss {} is {loss_gap:.1e} off", stats.loss);
            let norm_gap = (stats.grad_norm / norms[i] - 1.0).abs();
            assert!(
                norm_gap < NORM_TOLERANCE,
                "{name} step {i}: norm {} is {norm_gap:.1e} off",
                stats.grad_norm
            );
            assert!(
                (stats.learning_rate - rates[i]).abs() < RATE_TOLERANCE,
                "{name} step {i}: learning rate"
            );
        }
        let file = if case.adapter { "final/adapter_model.safetensors" } else { "final.safetensors" };
        let (expected, found) = (tensors(&golden("train").join(name).join(file)), trained(&trainer));
        assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, values) in &expected {
            let stray = absolute_error(&found[tensor], values);
            assert!(stray < STRAY_TOLERANCE, "{name} {tensor}: one is {stray:.1e} off");
            let error = norm_error(&found[tensor], values);
            assert!(error < WEIGHT_TOLERANCE, "{name} {tensor}: {error:.1e}");
        }
    }
}

/// `golden/train.py` kept the gradients' own memory, so the files hold them after clipping to norm 1, not before.
#[test]
fn the_first_gradients_of_adapters_are_those_of_peft() {
    for case in CASES.iter().filter(|case| case.adapter) {
        let (name, mut trainer) = (case.name, trainer(case));
        trainer.accumulate(&batches()[0]).unwrap();
        let found = gradients(&trainer);
        let unclip = numbers(&json(&format!("train/{name}/log.json"))["grad_norm"])[0] + 1e-6;
        let expected = tensors(&golden("train").join(name).join("golden.safetensors"));
        let expected: Vec<_> =
            expected.iter().filter_map(|(key, values)| Some((key.strip_prefix("grad.")?, values))).collect();
        assert_eq!(expected.len(), found.len(), "{name}: the adapter trains and nothing else");
        for (tensor, values) in expected {
            let values: Vec<f64> = values.iter().map(|value| value * unclip).collect();
            let error = relative_error(&found[tensor], &values);
            assert!(error < GRADIENT_TOLERANCE, "{name} {tensor}: {error:.1e}");
        }
    }
}

/// The golden files hold no run whose decay is left out by mistake: the two full runs end apart.
#[test]
fn decaying_norms_or_not_makes_a_difference_larger_than_the_tolerance() {
    let [spared, decayed] = ["full", "full_decay_all"].map(|name| {
        tensors(&golden("train").join(name).join("final.safetensors"))["model.norm.weight"].clone()
    });
    let gap = spared.iter().zip(&decayed).fold(0.0f64, |max, (a, b)| max.max((a - b).abs()));
    assert!(gap > 10.0 * STRAY_TOLERANCE, "{gap:.1e}");
}
