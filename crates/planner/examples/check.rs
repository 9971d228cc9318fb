//! Holds the planner's figures for this machine against a training step of SmolLM2-135M's shape.
//!
//! `cargo run --release -p pt-planner --example check -- METHOD DTYPE [SEQUENCES LENGTH STEPS block]`, with METHOD one of
//! full, lora, qlora and DTYPE one of bf16, f32; `block` runs blocks again. Prints planned, measured, and their ratio. The
//! machine's peak is measured around each step, and both are counted in processor time, so that a machine that others use is
//! compared with itself.
#![allow(clippy::print_stdout, missing_docs)]

use std::sync::Arc;
use std::time::Instant;

use pt_core::rng::Stream;
use pt_engine::Dtype;
use pt_kernels::buffer;
use pt_kernels::gemm::{Epilogue, Operand, Output, Part, Precision, Right, Values, gemm, pack_left};
use pt_models::{LoraConfig, NewModel, Quantise};
use pt_optim::{Groups, ScheduleConfig};
use pt_planner::memory::training_memory;
use pt_planner::time::{step_seconds, work};
use pt_planner::{Device, Measured, Method, Shape, Storage, Training};
use pt_train::{Example, MicroBatch, Trainer, TrainerOptions};

#[path = "../../../bench/process.rs"]
mod process;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, default: &str| args.get(i).cloned().unwrap_or_else(|| default.to_owned());
    let method =
        Method::ALL.into_iter().find(|m| m.name() == arg(0, "full")).expect("METHOD is full, lora or qlora");
    let is_f32 = arg(1, "bf16") == "f32";
    let number = |i: usize, default: &str| arg(i, default).parse::<usize>().expect("a number");
    let (sequences, length, steps) = (number(2, "4"), number(3, "256"), number(4, "3"));
    let recompute = arg(5, "none") == "block";
    let shape = Shape::find("SmolLM2-135M").expect("a built-in shape");
    let tokens = sequences * length;
    let options = match method {
        Method::Full if !is_f32 => "bf16_params = 'stochastic'\nstate = 'bf16'",
        _ => "",
    };
    let training = Training {
        method,
        dtype: if is_f32 { Storage::F32 } else { Storage::Bf16 },
        rank: 16,
        optimizer: "adamw".to_owned(),
        optimizer_options: options.parse().expect("TOML"),
        micro_tokens: tokens as u64,
        sequence: length as u64,
        recompute,
        one_pass_head: true,
        pooled: true,
    };
    let planned = training_memory(&shape, &training).expect("a valid question");
    let work = work(&shape, &training).expect("a valid question");
    let mut trainer = trainer(&training, steps as u64);
    let vocabulary = shape.vocab_size;
    // Codes of quantised weights are not in buffers.
    let outside =
        (trainer.model.weight_bytes() + trainer.state_bytes()).saturating_sub(buffer::live_bytes()) as u64;
    buffer::reset_peak();
    let mut ratios = Vec::new();
    for step in 0..=steps {
        let batch = MicroBatch::new(
            (0..sequences).map(|i| example((step * 1000 + i) as u64, length, vocabulary)).collect(),
        );
        let before = machine();
        let start = cpu_s();
        trainer.step(&[batch]).expect("a step on valid data");
        let measured = cpu_s() - start;
        let after = machine();
        // A machine that others use is neither as fast as before nor as after.
        let mean = |a: f64, b: f64| f64::midpoint(a, b);
        let device = Device::this(Measured {
            memory_bytes: 1 << 34,
            gflops_f32: mean(before.gflops_f32, after.gflops_f32),
            gflops_bf16: mean(before.gflops_bf16, after.gflops_bf16),
            bandwidth_gbs: mean(before.bandwidth_gbs, after.bandwidth_gbs),
        });
        let expected = step_seconds(&device, &training, &work, tokens as f64);
        println!(
            "step {step}: {:.0} GFLOP/s bf16, {:.0} f32, {:.1} GB/s; planned {expected:.2} s, measured {measured:.2} s, ratio {:.2}",
            device.tflops_bf16 * 1e3,
            device.tflops_f32 * 1e3,
            device.bandwidth_gbs,
            expected / measured
        );
        // The first step pays for fresh memory.
        if step > 0 {
            ratios.push(expected / measured);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let measured = buffer::peak_bytes() as u64 + outside;
    println!(
        "memory: planned {:.3} GB, measured {:.3} GB, ratio {:.3}; {planned:?}",
        planned.total() as f64 / 1e9,
        measured as f64 / 1e9,
        planned.total() as f64 / measured as f64
    );
    println!("time: median ratio {:.2}", ratios[ratios.len() / 2]);
}

fn trainer(training: &Training, steps: u64) -> Trainer {
    let new: NewModel = serde_json::from_value(serde_json::json!({
        "vocab_size": 49_152, "hidden_size": 576, "n_layers": 30, "n_heads": 9, "n_kv_heads": 3, "ffn_size": 1536,
    }))
    .expect("sizes");
    let dtype = if training.dtype == Storage::F32 { Dtype::F32 } else { Dtype::Bf16 };
    let mut model = new.build(dtype, 1).expect("a valid model");
    if training.method == Method::Qlora {
        model.quantise(Quantise::Nf4 { double: true }).expect("finite weights");
    }
    if training.method == Method::Full {
        model.train_all().expect("a model in floating point");
    } else {
        let config = serde_json::json!({"rank": training.rank, "alpha": 32.0});
        let config: LoraConfig = serde_json::from_value(config).expect("a valid adapter");
        model.attach_lora(&config, 1).expect("a valid adapter");
    }
    let objective = pt_objectives::build("cross_entropy", &toml::Table::new()).expect("a known objective");
    let optimiser =
        pt_optim::build(&training.optimizer, &training.optimizer_options, 1).expect("valid options");
    let schedule = ScheduleConfig::default().resolve(steps + 1).expect("a valid schedule");
    let options = TrainerOptions {
        dtype,
        learning_rate: 1e-4,
        recompute: training.recompute,
        max_grad_norm: Some(1.0),
        seed: 1,
        groups: Groups::default(),
        temperature: 1.0,
    };
    Trainer::new(model, objective, optimiser.as_ref(), schedule, options).expect("something trains")
}

fn example(key: u64, length: usize, vocabulary: usize) -> Example {
    let mut draws = Stream::new(9, "check").at(key);
    let ids = (0..length).map(|_| draws.below(vocabulary) as u32).collect();
    Example::sequence(ids, vec![1.0; length], key, Arc::from("check"))
}

fn machine() -> Measured {
    Measured {
        memory_bytes: 1 << 34,
        gflops_f32: gflops(Precision::F32),
        gflops_bf16: gflops(Precision::Bf16),
        bandwidth_gbs: gigabytes_per_s(),
    }
}

/// Processor seconds of this process so far, as if all threads ran at once.
fn cpu_s() -> f64 {
    process::cpu_s() / rayon::current_num_threads() as f64
}

/// The mean processor time of what is done for half a second.
fn mean_seconds(mut work: impl FnMut()) -> f64 {
    work();
    let (start, cpu) = (Instant::now(), cpu_s());
    let mut n = 0;
    while start.elapsed().as_secs_f64() < 0.5 {
        work();
        n += 1;
    }
    (cpu_s() - cpu) / f64::from(n)
}

fn gflops(precision: Precision) -> f64 {
    let (m, n, k) = (1024, 1536, 576);
    let (a, b) = (vec![0.5f32; m * k], vec![0.25f32; n * k]);
    let narrow = |values: &[f32]| values.iter().map(|x| half::bf16::from_f32(*x)).collect::<Vec<_>>();
    let (a16, b16) = (narrow(&a), narrow(&b));
    let (mut out, mut out16) = (vec![0.0f32; m * n], vec![half::bf16::ZERO; m * n]);
    let seconds = mean_seconds(|| {
        let (left, right, out) = match precision {
            Precision::F32 => (Values::F32(&a), Values::F32(&b), Output::F32(&mut out, n)),
            Precision::Bf16 => (Values::Bf16(&a16), Values::Bf16(&b16), Output::Bf16(&mut out16, n)),
        };
        let left = pack_left(&Operand::k_inner(left, k), m, k, precision);
        let part = Part { a: &left, b: Right::Operand(Operand::k_inner(right, k)) };
        gemm(m, n, &[part], out, Epilogue::default(), precision);
    });
    2.0 * (m * n * k) as f64 / seconds / 1e9
}

fn gigabytes_per_s() -> f64 {
    use rayon::prelude::*;
    let values = vec![1u64; 32 << 20];
    let mut total = 0;
    let seconds = mean_seconds(|| {
        total = values.par_chunks(1 << 17).map(|c| c.iter().fold(0u64, |a, b| a.wrapping_add(*b))).sum();
    });
    assert_eq!(total as usize, values.len(), "every value was read");
    (values.len() * 8) as f64 / seconds / 1e9
}
