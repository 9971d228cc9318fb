//! Generation by a random model of SmolLM2-135M's shape, as `bench/peer_generate.py` measures it.
//!
//! `cargo run --release -p pt-rollout --example generate_speed -- bf16|f32 REQUESTS PROMPT NEW [ROUNDS [SAMPLES]]`
//!
//! Prints one JSON object. Tokens per second count new tokens over the whole call, prompt included; `decode_s` is the median
//! of the passes in which every sequence gets one token, which is what the shares of memory bandwidth (all weights once per
//! pass) and of the matrix units (two operations per weight and token) are computed from.
#![allow(clippy::print_stdout, missing_docs)]

use std::time::Instant;

use pt_engine::Dtype;
use pt_models::{Model, NewModel};
use pt_rollout::{Engine, Event, Request, SamplingParams};

use process::{cpu_s, median, peak_rss_bytes};

#[path = "../../../bench/process.rs"]
mod process;

const VOCABULARY: usize = 49_152;

struct Call {
    elapsed_s: f64,
    processor_s: f64,
    /// Until the last prompt is computed.
    prefill_s: f64,
    /// Passes that gave every sequence a token and computed no prompt.
    decode_s: Vec<f64>,
    prefilled_tokens: u64,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let dtype = if args.first().is_some_and(|d| d == "f32") { Dtype::F32 } else { Dtype::Bf16 };
    let (requests, n_prompt, n_new) = (number(1, 64), number(2, 128), number(3, 128));
    let (rounds, samples) = (number(4, 1).max(1), number(5, 1));
    let model = NewModel::smollm2_135m().build(dtype, 1).expect("the shape is right");
    let prompt = |r: usize| (0..n_prompt).map(|i| ((r * 7919 + i * 104_729) % VOCABULARY) as u32).collect();
    let requests: Vec<Request> =
        (0..requests).map(|r| Request { prompt_ids: prompt(r), key: r as u64 }).collect();
    generate(&model, dtype, &requests, samples, 2);
    let calls: Vec<Call> = (0..rounds).map(|_| generate(&model, dtype, &requests, samples, n_new)).collect();
    let sequences = requests.len() * samples;
    let speeds: Vec<f64> = calls.iter().map(|call| (sequences * n_new) as f64 / call.elapsed_s).collect();
    let passes: Vec<f64> = calls.iter().flat_map(|call| call.decode_s.clone()).collect();
    let pass_s = median(&passes);
    let weights = model
        .params
        .iter()
        .filter(|(_, p)| p.shape.len() == 2)
        .map(|(_, p)| p.shape.iter().product::<usize>());
    let weights: usize = weights.sum();
    println!(
        "{}",
        serde_json::json!({
            "median_tokens_per_s": median(&speeds),
            "tokens_per_s": speeds,
            "prefill_s": median(&calls.iter().map(|call| call.prefill_s).collect::<Vec<_>>()),
            "processor_s": calls.iter().map(|call| call.processor_s).collect::<Vec<_>>(),
            "prefilled_tokens": calls[0].prefilled_tokens,
            "decode_s": pass_s,
            "decode_best_s": passes.iter().copied().fold(f64::MAX, f64::min),
            "decode_tokens_per_s": sequences as f64 / pass_s,
            "read_gb_per_s": model.weight_bytes() as f64 / pass_s / 1e9,
            "gflop_per_s": 2.0 * (weights * sequences) as f64 / pass_s / 1e9,
            "peak_rss_bytes": peak_rss_bytes(),
        })
    );
}

fn generate(model: &Model, dtype: Dtype, requests: &[Request], samples: usize, n_new: usize) -> Call {
    let params = SamplingParams { n: samples, max_new_tokens: n_new, ..SamplingParams::default() };
    let sequences = requests.len() * samples;
    let (start, cpu) = (Instant::now(), cpu_s());
    let mut engine = Engine::new(model, dtype);
    for request in requests {
        engine.submit(request.clone(), params.clone()).expect("the request is right");
    }
    let (mut decode_s, mut n_tokens, mut prefill_s) = (Vec::new(), 0, 0.0);
    while !engine.is_idle() {
        let (pass, prefilled) = (Instant::now(), engine.stats().prefilled_tokens);
        let drawn = engine.step().iter().filter(|event| matches!(event, Event::Token { .. })).count();
        n_tokens += drawn;
        if engine.stats().prefilled_tokens > prefilled {
            prefill_s = start.elapsed().as_secs_f64();
        } else if drawn == sequences {
            decode_s.push(pass.elapsed().as_secs_f64());
        }
    }
    assert_eq!(n_tokens, sequences * n_new);
    let elapsed_s = start.elapsed().as_secs_f64();
    Call {
        elapsed_s,
        processor_s: cpu_s() - cpu,
        prefill_s,
        decode_s,
        prefilled_tokens: engine.stats().prefilled_tokens,
    }
}
