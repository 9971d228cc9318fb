//! Training learns: a new model does toy tasks after seconds.

mod common;

use common::*;
use pt_core::rng::Stream;
use pt_engine::Dtype;
use pt_models::Model;
use pt_train::{Example, MicroBatch};

const STEPS: u64 = 150;
const ROWS_PER_STEP: u64 = 16;
/// Ten digits; `EQUALS` asks for the digits before it, `END` ends the answer.
const EQUALS: u32 = 10;
const END: u32 = 11;
const N_DIGITS: usize = 3;

/// `d1 d2 d3 = d1 d2 d3 end`: what follows the sign trains.
fn copy_digits(key: u64) -> Example {
    let mut draws = Stream::new(1, "digits").at(key);
    let digits: Vec<u32> = (0..N_DIGITS).map(|_| draws.below(10) as u32).collect();
    let token_ids = [&digits[..], &[EQUALS], &digits[..], &[END]].concat();
    example(token_ids, N_DIGITS + 1, key)
}

fn batch(first_key: u64, n: u64) -> Vec<MicroBatch> {
    vec![MicroBatch::new((first_key..first_key + n).map(copy_digits).collect())]
}

/// Held-out loss and accuracy before and after training.
fn learn(model: Model, setup: Setup) -> [(f64, f64); 2] {
    let setup = Setup { schedule: "name = 'cosine'\nwarmup_steps = 10", steps: STEPS, ..setup };
    let mut trainer = setup.trainer(model);
    let held_out = batch(1 << 20, 64);
    let score = |trainer: &pt_train::Trainer| {
        let stats = trainer.evaluate(&held_out).unwrap();
        let accuracy = stats.metrics.iter().find(|(name, _)| name == "mean_token_accuracy").unwrap().1;
        (stats.loss, accuracy)
    };
    let before = score(&trainer);
    for step in 0..STEPS {
        trainer.step(&batch(step * ROWS_PER_STEP, ROWS_PER_STEP)).unwrap();
    }
    [before, score(&trainer)]
}

/// A case learns if its loss falls below this, from 2.8 (16 tokens, all alike): three digits copied right almost always.
const LEARNT_LOSS: f64 = 0.05;
const LEARNT_ACCURACY: f64 = 0.98;

#[test]
fn a_new_model_learns_to_copy_digits() {
    let adamw = Setup { optimiser_options: "weight_decay = 0.01", ..Setup::default() };
    let cases = [
        ("adamw in f32", Dtype::F32, adamw),
        ("adamw in bf16", Dtype::Bf16, adamw),
        ("adamw8bit", Dtype::F32, Setup { optimiser: "adamw8bit", ..adamw }),
        ("muon", Dtype::F32, Setup { optimiser: "muon", learning_rate: 2e-2, ..adamw }),
    ];
    for (name, dtype, setup) in cases {
        let model = all_training(tiny_model().build(dtype, 5).unwrap());
        let [before, after] = learn(model, Setup { dtype, ..setup });
        assert!(before.0 > 2.0 && before.1 < 0.5, "{name} knows nothing at first: {before:?}");
        assert!(after.0 < LEARNT_LOSS && after.1 > LEARNT_ACCURACY, "{name}: {after:?}");
    }
}
