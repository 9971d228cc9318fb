//! Tokens per second and peak memory of a training step, for the side-by-side comparison in `bench/`.
//!
//! `cargo run --release -p pt-train --example step_speed -- MODE DTYPE STEPS [SEQUENCES LENGTH]`, with MODE one of
//! full, lora, qlora and DTYPE one of bf16, f32. The model is a Llama of SmolLM2-135M's shape with random weights.
//! Prints one JSON object: tokens/s per step, their median, peak resident memory, and time by operation.
#![allow(clippy::print_stdout, missing_docs)]

use std::sync::Arc;
use std::time::Instant;

use pt_core::rng::Stream;
use pt_engine::{Dtype, Profile};
use pt_models::NewModel;
use pt_train::{Example, MicroBatch};

use process::{cpu_s, median, peak_rss_bytes};

mod common;
#[path = "../../../bench/process.rs"]
mod process;

const VOCABULARY: usize = 49_152;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, default: &str| args.get(i).cloned().unwrap_or_else(|| default.to_owned());
    let (mode, dtype_name) = (arg(0, "lora"), arg(1, "bf16"));
    let steps: u64 = arg(2, "5").parse().expect("STEPS is a number");
    let sequences: usize = arg(3, "4").parse().expect("SEQUENCES is a number");
    let length: usize = arg(4, "256").parse().expect("LENGTH is a number");
    let dtype = if dtype_name == "f32" { Dtype::F32 } else { Dtype::Bf16 };
    let model = NewModel::smollm2_135m().build(dtype, 1).expect("a valid model");
    let mut trainer = common::trainer(model, "cross_entropy", &mode, dtype, 1e-4, steps);
    let (mut rates, mut profile) = (Vec::new(), Profile::default());
    let (mut losses, mut core_share) = (Vec::new(), Vec::new());
    for step in 0..=steps {
        let batch =
            MicroBatch::new((0..sequences).map(|i| example(step * 1000 + i as u64, length)).collect());
        let (start, cpu) = (Instant::now(), cpu_s());
        let (stats, step_profile) = trainer.step(&[batch]).expect("a step on valid data");
        let elapsed = start.elapsed().as_secs_f64();
        losses.push(stats.loss);
        // The first step pays for fresh memory, as the peers' warm-up does.
        if step > 0 {
            rates.push((sequences * length) as f64 / elapsed);
            core_share.push((cpu_s() - cpu) / elapsed / rayon::current_num_threads() as f64);
            profile.merge(&step_profile);
        }
    }
    let total: f64 = profile.rows().iter().map(|row| row.2.as_secs_f64()).sum();
    let operations: Vec<_> = profile
        .rows()
        .iter()
        .map(|(op, direction, time, calls)| {
            serde_json::json!({
                "op": op, "direction": direction, "calls": calls,
                "ms_per_step": time.as_secs_f64() * 1e3 / steps as f64,
                "share": time.as_secs_f64() / total,
            })
        })
        .collect();
    let report = serde_json::json!({
        "mode": mode, "dtype": dtype_name, "tokens": sequences * length,
        "isa": pt_kernels::isa::current().name(),
        "tokens_per_s": rates, "median_tokens_per_s": median(&rates),
        "core_share": core_share,
        "peak_rss_bytes": peak_rss_bytes(), "peak_buffer_bytes": pt_kernels::buffer::peak_bytes(),
        "losses": losses, "operations": operations,
    });
    println!("{report:#}");
}

fn example(key: u64, length: usize) -> Example {
    let mut draws = Stream::new(9, "bench").at(key);
    let token_ids = (0..length).map(|_| draws.below(VOCABULARY) as u32).collect();
    Example::sequence(token_ids, vec![1.0; length], key, Arc::from("bench"))
}
