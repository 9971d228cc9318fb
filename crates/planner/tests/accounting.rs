//! The formulae against the program's own accounts: parameters, weights, gradients, optimiser state, and the measured peak
//! of the buffers during a training step.
//!
//! One test, since the peak counter is the process's.

use std::sync::Arc;

use pt_core::rng::Stream;
use pt_engine::Dtype;
use pt_kernels::buffer;
use pt_models::{LoraConfig, Model, ModelConfig, NewModel, Quantise};
use pt_optim::{Groups, ScheduleConfig};
use pt_planner::memory::{trainable_params, training_memory};
use pt_planner::{Method, Shape, Storage, Training};
use pt_train::{Example, MicroBatch, Trainer, TrainerOptions};

/// Issue: the estimate lies within a tenth of what is measured.
const TOLERANCE: f64 = 0.10;
const RANK: usize = 8;

/// `tokens` 0 compares only what needs no step.
struct Case {
    sizes: [usize; 6],
    tied: bool,
    method: Method,
    dtype: Dtype,
    optimiser: &'static str,
    options: &'static str,
    recompute: bool,
    tokens: usize,
}

const SMALL: [usize; 6] = [2000, 192, 6, 6, 2, 512];
const WIDE: [usize; 6] = [4000, 320, 3, 5, 5, 800];
const DEEP: [usize; 6] = [1000, 128, 14, 4, 4, 384];

fn case(method: Method, dtype: Dtype) -> Case {
    Case {
        sizes: SMALL,
        tied: true,
        method,
        dtype,
        optimiser: "adamw",
        options: "",
        recompute: false,
        tokens: 640,
    }
}

fn model(case: &Case) -> Model {
    let [vocab_size, hidden_size, n_layers, n_heads, n_kv_heads, ffn_size] = case.sizes;
    let new: NewModel = serde_json::from_value(serde_json::json!({
        "vocab_size": vocab_size, "hidden_size": hidden_size, "n_layers": n_layers, "n_heads": n_heads,
        "n_kv_heads": n_kv_heads, "ffn_size": ffn_size, "tied": case.tied,
    }))
    .unwrap();
    adapted(new.build(case.dtype, 1).unwrap(), case.method)
}

fn adapted(mut model: Model, method: Method) -> Model {
    if method == Method::Qlora {
        model.quantise(Quantise::Nf4 { double: true }).unwrap();
    }
    if method == Method::Full {
        model.train_all().unwrap();
    } else {
        let config: LoraConfig =
            serde_json::from_value(serde_json::json!({"rank": RANK, "alpha": 16.0})).unwrap();
        model.attach_lora(&config, 1).unwrap();
    }
    model
}

fn trainer(case: &Case, model: Model) -> Trainer {
    let objective = pt_objectives::build("cross_entropy", &toml::Table::new()).unwrap();
    let optimiser = pt_optim::build(case.optimiser, &case.options.parse().unwrap(), 1).unwrap();
    let schedule = ScheduleConfig::default().resolve(3).unwrap();
    let options = TrainerOptions {
        dtype: case.dtype,
        learning_rate: 1e-4,
        recompute: case.recompute,
        max_grad_norm: Some(1.0),
        seed: 1,
        groups: Groups::default(),
        temperature: 1.0,
    };
    Trainer::new(model, objective, optimiser.as_ref(), schedule, options).unwrap()
}

fn batch(n_tokens: usize, vocabulary: usize) -> MicroBatch {
    let length = 128;
    let examples = (0..n_tokens / length).map(|i| {
        let mut draws = Stream::new(9, "planner").at(i as u64);
        let ids = (0..length).map(|_| draws.below(vocabulary) as u32).collect();
        Example::sequence(ids, vec![1.0; length], i as u64, Arc::from("planner"))
    });
    MicroBatch::new(examples.collect())
}

fn training(case: &Case) -> Training {
    Training {
        method: case.method,
        dtype: if case.dtype == Dtype::F32 { Storage::F32 } else { Storage::Bf16 },
        rank: RANK,
        optimizer: case.optimiser.to_owned(),
        optimizer_options: case.options.parse().unwrap(),
        micro_tokens: case.tokens.max(1) as u64,
        sequence: 128,
        recompute: case.recompute,
        one_pass_head: true,
        pooled: true,
    }
}

fn check(name: &str, case: &Case, model: Model) {
    let config: ModelConfig = model.config.clone();
    let shape = Shape::of_config(name, &config);
    let base: usize = config.n_params();
    assert_eq!(shape.n_params(), base as u64, "{name}: parameters");
    let trained: usize = model.params.iter().filter(|(_, p)| p.trainable).map(|(_, p)| p.len()).sum();
    let training = training(case);
    assert_eq!(trainable_params(&shape, &training), trained as u64, "{name}: what trains");
    let planned = training_memory(&shape, &training).unwrap();
    assert_eq!(planned.weights, model.weight_bytes() as u64, "{name}: weights");
    let mut trainer = trainer(case, model);
    assert_eq!(planned.optimizer_state, trainer.state_bytes() as u64, "{name}: state");
    assert_eq!(planned.gradients, 4 * trained as u64, "{name}: gradients");
    if case.tokens == 0 {
        return;
    }
    // Twice, so that the gradients are there before what is measured.
    trainer.accumulate(&[batch(128, config.vocab_size)]).unwrap();
    let batch = batch(case.tokens, config.vocab_size);
    let live = buffer::live_bytes();
    buffer::reset_peak();
    trainer.accumulate(std::slice::from_ref(&batch)).unwrap();
    let measured = (buffer::peak_bytes() - live) as f64;
    let expected = (planned.activations + planned.logits) as f64;
    let off = expected / measured - 1.0;
    assert!(
        off.abs() <= TOLERANCE,
        "{name}: {:.2} MB planned, {:.2} MB measured: {:+.1} %",
        expected / 1e6,
        measured / 1e6,
        100.0 * off
    );
}

#[test]
fn memory_is_within_a_tenth_of_what_is_measured() {
    use Method::{Full, Lora, Qlora};
    let (f32, bf16) = (Dtype::F32, Dtype::Bf16);
    let cases = [
        ("full f32", case(Full, f32)),
        ("full bf16", case(Full, bf16)),
        ("lora f32", case(Lora, f32)),
        ("lora bf16", case(Lora, bf16)),
        ("qlora bf16", case(Qlora, bf16)),
        ("full f32 again", Case { recompute: true, ..case(Full, f32) }),
        ("lora bf16 again", Case { recompute: true, ..case(Lora, bf16) }),
        ("wide full bf16", Case { sizes: WIDE, ..case(Full, bf16) }),
        ("wide untied f32", Case { sizes: WIDE, tied: false, ..case(Full, f32) }),
        ("wide lora f32", Case { sizes: WIDE, ..case(Lora, f32) }),
        ("deep full bf16", Case { sizes: DEEP, tokens: 896, ..case(Full, bf16) }),
        ("deep qlora f32", Case { sizes: DEEP, tokens: 896, ..case(Qlora, f32) }),
        ("deep again bf16", Case { sizes: DEEP, tokens: 896, recompute: true, ..case(Full, bf16) }),
        ("8-bit state", Case { optimiser: "adamw8bit", tokens: 0, ..case(Full, bf16) }),
        (
            "bf16 state",
            Case { options: "state = 'bf16'\nbf16_params = 'stochastic'", tokens: 0, ..case(Full, bf16) },
        ),
        ("muon", Case { optimiser: "muon", tokens: 0, ..case(Full, f32) }),
    ];
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|(name, case)| {
            let outcome = std::panic::catch_unwind(|| check(name, case, model(case)));
            outcome.err().map(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
