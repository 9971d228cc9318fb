//! One GRPO step of a random model of SmolLM2-135M's shape: a group sampled, rewarded, and trained on.
//!
//! `cargo run --release -p pt-pipeline --example grpo_speed -- full|lora bf16|f32 [steps] [group] [prompt] [new]`
//!
//! Prints one JSON object for `bench/run.py`. The first step pays for fresh memory and is not counted.
#![allow(clippy::print_stdout, missing_docs)]

use std::time::Instant;

use pt_engine::Dtype;
use pt_models::{LoraConfig, LoraInit, NewModel, Targets};
use pt_optim::{Groups, ScheduleConfig};
use pt_rollout::{Request, SamplingParams, generate};
use pt_train::{Example, Known, MicroBatch, Reply, Trainer, TrainerOptions};

const VOCABULARY: usize = 49_152;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (mode, dtype) =
        (args.first().map_or("full", String::as_str), args.get(1).map_or("bf16", String::as_str));
    let (steps, group, n_prompt, n_new) = (number(2, 2), number(3, 8), number(4, 128), number(5, 128));
    let dtype = if dtype == "f32" { Dtype::F32 } else { Dtype::Bf16 };
    let mut trainer = trainer(mode, dtype);
    let (mut whole, mut sampling, mut processor_s) = (Vec::new(), Vec::new(), Vec::new());
    let mut worst = 0.0f32;
    for step in 0..=steps {
        let (start, cpu) = (Instant::now(), cpu_s());
        let prompt_ids: Vec<u32> =
            (0..n_prompt).map(|i| ((step * 7919 + i * 104_729) % VOCABULARY) as u32).collect();
        let request = Request { prompt_ids: prompt_ids.clone(), key: step as u64 };
        let params = SamplingParams { n: group, max_new_tokens: n_new, ..SamplingParams::default() };
        let samples =
            generate(&trainer.model, dtype, &[request], &params, &mut |_, _, _| {}).expect("sampling works");
        let sampled_s = start.elapsed().as_secs_f64();
        // Half of the group is right: advantages of 1 and -1.
        let replies = samples[0].iter().enumerate().map(|(i, sample)| Reply {
            weights: vec![1.0; sample.token_ids.len()],
            known: Known {
                advantages: vec![if i % 2 == 0 { -1.0 } else { 1.0 }; sample.token_ids.len()],
                sampler_logp: sample.logprobs.clone(),
                ..Known::default()
            },
            token_ids: sample.token_ids.clone(),
            ..Reply::default()
        });
        let example = Example::prompt(prompt_ids, replies.collect(), step as u64, "bench".into());
        let (stats, _) = trainer.step(&[MicroBatch::new(vec![example])]).expect("a step on valid data");
        assert_eq!(stats.n_tokens as usize, n_prompt + group * n_new, "a group trains on its prompt once");
        let difference = stats.metrics.iter().find(|(name, _)| name.ends_with("logp_difference/max"));
        worst = difference.map_or(worst, |(_, value)| worst.max(*value as f32));
        if step > 0 {
            whole.push(start.elapsed().as_secs_f64());
            sampling.push(sampled_s);
            processor_s.push(cpu_s() - cpu);
        }
    }
    let median = |values: &[f64]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    let report = serde_json::json!({
        "mode": mode, "median_step_s": median(&whole), "median_sampling_s": median(&sampling), "step_s": whole,
        "processor_s": processor_s, "sampler_trainer_difference": worst, "peak_rss_bytes": peak_rss_bytes(),
    });
    println!("{report}");
}

fn trainer(mode: &str, dtype: Dtype) -> Trainer {
    let mut model = NewModel::smollm2_135m().build(dtype, 1).expect("the shape is right");
    match mode {
        "full" => model.train_all().expect("nothing is quantised"),
        _ => model.attach_lora(&lora(), 1).expect("layers"),
    }
    let objective = pt_objectives::build("grpo", &toml::Table::new()).expect("it is in the catalogue");
    let optimiser = pt_optim::build("adamw", &toml::Table::new(), 1).expect("it is in the catalogue");
    let schedule =
        ScheduleConfig::from_table(&"name = 'constant'".parse().expect("TOML")).expect("a schedule");
    let options = TrainerOptions {
        dtype,
        learning_rate: 1e-6,
        recompute: false,
        max_grad_norm: Some(1.0),
        seed: 1,
        groups: Groups::default(),
        temperature: 1.0,
    };
    let schedule = schedule.resolve(1000).expect("it fits");
    Trainer::new(model, objective, optimiser.as_ref(), schedule, options).expect("something trains")
}

fn lora() -> LoraConfig {
    LoraConfig {
        rank: 16,
        alpha: 32.0,
        dropout: 0.0,
        targets: Targets::default(),
        rslora: false,
        dora: false,
        init: LoraInit::Default,
    }
}

/// The most memory the process has held, where Linux tells; otherwise 0.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

/// Processor time of this process so far, where Linux tells: user and system ticks of a hundredth of a second.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.map(|t| t.parse::<f64>().unwrap_or(0.0)).sum::<f64>() / 100.0
}
