//! Pairs per second and peak memory of a preference or reward step, for the side-by-side comparison in `bench/`.
//!
//! `cargo run --release -p pt-train --example preference_speed -- dpo|reward full|lora bf16|f32 [STEPS PAIRS PROMPT REPLY]`
//!
//! The model is a Llama of SmolLM2-135M's shape with random weights; each pair is one prompt with two replies of one length. A
//! step of DPO includes the reference's pass: the base without its adapter, or a second copy of the model. Prints one JSON
//! object. The first step pays for fresh memory and is not counted.
#![allow(clippy::print_stdout, missing_docs)]

use std::sync::Arc;
use std::time::Instant;

use pt_core::rng::Stream;
use pt_engine::{Dtype, Logprobs, Profile, Tape};
use pt_models::{Model, NewModel, ScoreHeadKind};
use pt_objectives::CompletionKind;
use pt_train::{Example, MicroBatch, Reply, ScoredToken, Trainer, score, score_with};

use process::{cpu_s, median, peak_rss_bytes};

mod common;
#[path = "../../../bench/process.rs"]
mod process;

const VOCABULARY: usize = 49_152;

struct Shape {
    pairs: usize,
    n_prompt: usize,
    n_reply: usize,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let name = |i: usize, default: &'static str| args.get(i).map_or(default, String::as_str);
    let number = |i: usize, default: usize| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (objective, mode, dtype_name) = (name(0, "dpo"), name(1, "lora"), name(2, "bf16"));
    let dtype = if dtype_name == "f32" { Dtype::F32 } else { Dtype::Bf16 };
    let steps = number(3, 3) as u64;
    let shape = Shape { pairs: number(4, 4), n_prompt: number(5, 256), n_reply: number(6, 128) };
    let mut trainer = trainer(objective, mode, dtype, steps);
    let other = (objective == "dpo" && mode == "full").then(|| model(dtype));
    let (mut rates, mut reference_s, mut core_share) = (Vec::new(), Vec::new(), Vec::new());
    let (mut losses, mut processor_s, mut profile) = (Vec::new(), Vec::new(), Profile::default());
    for step in 0..=steps {
        let mut examples: Vec<Example> =
            (0..shape.pairs as u64).map(|i| pair(objective, step * 1000 + i, &shape)).collect();
        let (start, cpu) = (Instant::now(), cpu_s());
        if objective == "dpo" {
            fill_reference(&trainer.model, other.as_ref(), dtype, &mut examples);
        }
        let scored_s = start.elapsed().as_secs_f64();
        let (stats, step_profile) = trainer.step(&[MicroBatch::new(examples)]).expect("a step on valid data");
        let elapsed_s = start.elapsed().as_secs_f64();
        losses.push(stats.loss);
        if step > 0 {
            rates.push(shape.pairs as f64 / elapsed_s);
            reference_s.push(scored_s);
            processor_s.push(cpu_s() - cpu);
            core_share.push((cpu_s() - cpu) / elapsed_s / rayon::current_num_threads() as f64);
            profile.merge(&step_profile);
        }
    }
    if objective == "dpo" {
        let gap = (losses[0] - std::f64::consts::LN_2).abs();
        assert!(gap < 1e-6, "before the first step the policy is the reference: loss {}", losses[0]);
    }
    let ms = |(op, direction, time, _): &(&str, &str, std::time::Duration, u64)| {
        (format!("{op} {direction}"), serde_json::json!(time.as_secs_f64() * 1e3 / steps as f64))
    };
    let operations: serde_json::Map<String, serde_json::Value> = profile.rows().iter().map(ms).collect();
    let report = serde_json::json!({
        "objective": objective, "mode": mode, "dtype": dtype_name,
        "pairs_per_s": rates, "median_pairs_per_s": median(&rates), "reference_s": median(&reference_s),
        "core_share": core_share, "processor_s": processor_s, "peak_rss_bytes": peak_rss_bytes(), "losses": losses, "step_ms": operations,
    });
    println!("{report}");
}

fn model(dtype: Dtype) -> Model {
    NewModel::smollm2_135m().build(dtype, 1).expect("a valid model")
}

fn trainer(objective: &str, mode: &str, dtype: Dtype, steps: u64) -> Trainer {
    let mut model = model(dtype);
    if objective == "reward" {
        let values: Vec<f32> = (0..model.config.hidden_size).map(|i| (i as f32).sin() / 30.0).collect();
        model.add_score_head(ScoreHeadKind::Sequence, &values).expect("as wide as the model");
    }
    common::trainer(model, objective, mode, dtype, 1e-6, steps)
}

fn pair(objective: &str, key: u64, shape: &Shape) -> Example {
    let mut draws = Stream::new(9, "bench").at(key);
    let mut ids = |n: usize| -> Vec<u32> { (0..n).map(|_| draws.below(VOCABULARY) as u32).collect() };
    let prompt = ids(shape.n_prompt);
    let replies = [CompletionKind::Chosen, CompletionKind::Rejected].map(|kind| {
        let mut reply = Reply { token_ids: ids(shape.n_reply), kind, ..Reply::default() };
        reply.weights = vec![if objective == "dpo" { 1.0 } else { 0.0 }; shape.n_reply];
        if objective == "reward" {
            let last = Some(shape.n_reply - 1);
            reply.scored = vec![ScoredToken { position: last, target: 0.0, weight: 1.0, old_value: None }];
        }
        reply
    });
    Example::prompt(prompt, replies.into(), key, Arc::from("bench"))
}

/// What the reference says of every token: another model, or this one without its adapter.
fn fill_reference(policy: &Model, other: Option<&Model>, dtype: Dtype, examples: &mut [Example]) {
    let micro_batch = MicroBatch::new(examples.to_vec());
    let (batch, predictions) =
        (micro_batch.batch().expect("examples have tokens"), micro_batch.predictions());
    let scored: Logprobs = match other {
        Some(other) => score(other, &batch, dtype, &predictions),
        None => {
            let tape = Tape::inference(&policy.params, &batch, dtype).without_adapters();
            score_with(tape, policy, 1.0, &predictions)
        }
    };
    let mut logp = scored.logp.into_iter();
    for reply in examples.iter_mut().flat_map(|example| &mut example.replies) {
        reply.known.reference_logp = logp.by_ref().take(reply.token_ids.len()).collect();
    }
}
