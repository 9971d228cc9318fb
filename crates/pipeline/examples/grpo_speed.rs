//! One GRPO step of a random model of SmolLM2-135M's shape: a group sampled, rewarded, and trained on.
//!
//! `cargo run --release -p pt-pipeline --example grpo_speed -- full|lora bf16|f32 [steps] [group] [prompt] [new]`
//!
//! Prints one JSON object for `bench/run.py`. The first step pays for fresh memory and is not counted.
#![allow(clippy::print_stdout, missing_docs)]

use std::time::Instant;

use pt_engine::Dtype;
use pt_models::NewModel;
use pt_rollout::{Request, SamplingParams, generate};
use pt_train::{Example, Known, MicroBatch, Reply};

use process::{cpu_s, median, peak_rss_bytes};

#[path = "../../train/examples/common/mod.rs"]
mod common;
#[path = "../../../bench/process.rs"]
mod process;

const VOCABULARY: usize = 49_152;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (mode, dtype) =
        (args.first().map_or("full", String::as_str), args.get(1).map_or("bf16", String::as_str));
    let (steps, group, n_prompt, n_new) = (number(2, 2), number(3, 8), number(4, 128), number(5, 128));
    let dtype = if dtype == "f32" { Dtype::F32 } else { Dtype::Bf16 };
    let model = NewModel::smollm2_135m().build(dtype, 1).expect("the shape is right");
    let mut trainer = common::trainer(model, "grpo", mode, dtype, 1e-6, steps as u64);
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
    let report = serde_json::json!({
        "mode": mode, "median_step_s": median(&whole), "median_sampling_s": median(&sampling), "step_s": whole,
        "processor_s": processor_s, "sampler_trainer_difference": worst, "peak_rss_bytes": peak_rss_bytes(),
    });
    println!("{report}");
}
