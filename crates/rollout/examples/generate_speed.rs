//! One call of generation by a random model of SmolLM2-135M's shape, as `bench/peer_generate.py` measures it.
//!
//! `cargo run --release -p pt-rollout --example generate_speed -- bf16|f32 SEQUENCES PROMPT NEW [ROUNDS]`
//!
//! Prints one JSON object for `bench/rollouts.py`; tokens per second count new tokens over the whole call, prompt included.
#![allow(clippy::print_stdout, missing_docs)]

use std::time::Instant;

use pt_engine::Dtype;
use pt_models::NewModel;
use pt_rollout::{Request, SamplingParams, generate};

const VOCABULARY: usize = 49_152;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let dtype = if args.first().is_some_and(|d| d == "f32") { Dtype::F32 } else { Dtype::Bf16 };
    let (sequences, n_prompt, n_new, rounds) = (number(1, 64), number(2, 128), number(3, 128), number(4, 1));
    let model = NewModel::smollm2_135m().build(dtype, 1).expect("the shape is right");
    let prompt = |r: usize| (0..n_prompt).map(|i| ((r * 7919 + i * 104_729) % VOCABULARY) as u32).collect();
    let requests: Vec<Request> =
        (0..sequences).map(|r| Request { prompt_ids: prompt(r), key: r as u64 }).collect();
    let call = |n_new: usize| {
        let params = SamplingParams { max_new_tokens: n_new, ..SamplingParams::default() };
        let start = Instant::now();
        let samples = generate(&model, dtype, &requests, &params, &mut |_, _, _| {}).expect("sampling works");
        assert_eq!(samples.iter().flatten().map(|s| s.token_ids.len()).sum::<usize>(), sequences * n_new);
        start.elapsed().as_secs_f64()
    };
    call(2);
    let mut speeds: Vec<f64> = (0..rounds.max(1)).map(|_| (sequences * n_new) as f64 / call(n_new)).collect();
    speeds.sort_by(f64::total_cmp);
    println!("{{\"median_tokens_per_s\": {:.2}, \"tokens_per_s\": {speeds:?}}}", speeds[speeds.len() / 2]);
}
