//! How fast a random model of SmolLM2-135M's shape decodes on this machine, in bf16.
//!
//! `cargo run --release -p pt-rollout --example decode_speed`
#![allow(clippy::print_stdout, missing_docs)]

use std::time::Instant;

use pt_engine::Dtype;
use pt_models::NewModel;
use pt_rollout::{Request, SamplingParams, generate};

fn main() {
    let model = NewModel::smollm2_135m().build(Dtype::Bf16, 1).expect("the shape is right");
    let weights = model.weight_bytes() as f64;
    println!("memory is read at {:.1} GB/s; weights are {:.0} MB", memory_speed() / 1e9, weights / 1e6);
    println!("requests x samples, prompt tokens, new tokens: tokens per second");
    for (n_requests, n, n_prompt, n_new) in
        [(1, 1, 16, 64), (1, 1, 16, 64), (1, 16, 256, 16), (64, 1, 16, 32), (8, 8, 256, 16)]
    {
        let prompt = |r: usize| (0..n_prompt).map(|i| ((r * 31 + i * 17) % 49_152) as u32).collect();
        let requests: Vec<Request> =
            (0..n_requests).map(|r| Request { prompt_ids: prompt(r), key: r as u64 }).collect();
        let params = SamplingParams { n, max_new_tokens: n_new, ..SamplingParams::default() };
        let start = Instant::now();
        let samples =
            generate(&model, Dtype::Bf16, &requests, &params, &mut |_, _, _| {}).expect("sampling works");
        let n_tokens: usize = samples.iter().flatten().map(|sample| sample.token_ids.len()).sum();
        let seconds = start.elapsed().as_secs_f64();
        println!("{n_requests:3} x {n:2}, {n_prompt:4}, {n_new:3}: {:8.1}", n_tokens as f64 / seconds);
    }
}

/// Bytes per second at which all threads together read memory that is in no cache.
fn memory_speed() -> f64 {
    let values = vec![1u64; 1 << 26];
    let threads = rayon::current_num_threads();
    let read = || {
        let start = Instant::now();
        let sum: u64 = rayon::broadcast(|thread| {
            let share = values.len() / threads;
            values[thread.index() * share..][..share].iter().fold(0u64, |a, b| a.wrapping_add(*b))
        })
        .into_iter()
        .fold(0, u64::wrapping_add);
        assert!(sum > 0, "the sum is used");
        (values.len() * 8) as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| read()).fold(0.0, f64::max)
}
