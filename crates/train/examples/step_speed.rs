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
use pt_models::{LoraConfig, LoraInit, NewModel, Quantise, Targets};
use pt_optim::{Groups, ScheduleConfig};
use pt_train::{Example, MicroBatch, Trainer, TrainerOptions};

const VOCABULARY: usize = 49_152;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, default: &str| args.get(i).cloned().unwrap_or_else(|| default.to_owned());
    let (mode, dtype_name) = (arg(0, "lora"), arg(1, "bf16"));
    let steps: u64 = arg(2, "5").parse().expect("STEPS is a number");
    let sequences: usize = arg(3, "4").parse().expect("SEQUENCES is a number");
    let length: usize = arg(4, "256").parse().expect("LENGTH is a number");
    let dtype = if dtype_name == "f32" { Dtype::F32 } else { Dtype::Bf16 };
    let mut trainer = trainer(&mode, dtype, steps);
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
    let mut sorted = rates.clone();
    sorted.sort_by(f64::total_cmp);
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
        "tokens_per_s": rates, "median_tokens_per_s": sorted[sorted.len() / 2],
        "core_share": core_share,
        "peak_rss_bytes": peak_rss_bytes(), "peak_buffer_bytes": pt_kernels::buffer::peak_bytes(),
        "losses": losses, "operations": operations,
    });
    println!("{report:#}");
}

fn trainer(mode: &str, dtype: Dtype, steps: u64) -> Trainer {
    let mut model = NewModel::smollm2_135m().build(dtype, 1).expect("a valid model");
    let mut optimiser = toml::Table::new();
    match mode {
        "full" => {
            model.train_all().expect("a model in floating point");
            if dtype == Dtype::Bf16 {
                optimiser.insert("bf16_params".into(), "stochastic".into());
                optimiser.insert("state".into(), "bf16".into());
            }
        }
        "lora" | "qlora" => {
            if mode == "qlora" {
                model.quantise(Quantise::Nf4 { double: true }).expect("finite weights");
            }
            let config = LoraConfig {
                rank: 16,
                alpha: 32.0,
                dropout: 0.0,
                targets: Targets::default(),
                rslora: false,
                dora: false,
                init: LoraInit::Default,
            };
            model.attach_lora(&config, 1).expect("a valid adapter");
        }
        other => panic!("MODE is {other}, expected full, lora or qlora"),
    }
    let objective = pt_objectives::build("cross_entropy", &toml::Table::new()).expect("a known objective");
    let optimiser = pt_optim::build("adamw", &optimiser, 1).expect("valid options");
    let schedule = ScheduleConfig::default().resolve(steps + 1).expect("a valid schedule");
    let options = TrainerOptions {
        dtype,
        learning_rate: 1e-4,
        recompute: false,
        max_grad_norm: Some(1.0),
        seed: 1,
        groups: Groups::default(),
        temperature: 1.0,
    };
    Trainer::new(model, objective, optimiser.as_ref(), schedule, options).expect("something trains")
}

fn example(key: u64, length: usize) -> Example {
    let mut draws = Stream::new(9, "bench").at(key);
    let token_ids = (0..length).map(|_| draws.below(VOCABULARY) as u32).collect();
    Example::sequence(token_ids, vec![1.0; length], key, Arc::from("bench"))
}

/// Processor time of this process so far, where Linux tells: user and system ticks of a hundredth of a second.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.map(|t| t.parse::<f64>().unwrap_or(0.0)).sum::<f64>() / 100.0
}

fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}
