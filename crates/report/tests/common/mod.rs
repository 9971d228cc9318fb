//! A run folder as `posttrain run` leaves it, small, and with everything in it that could break a page.

use std::fs;
use std::path::Path;

use pt_report::Gain;
use serde_json::{Value, json};

/// What a reply or prompt of the test run holds: a page must show it and not obey it.
pub const HOSTILE: &str =
    "</pre><script>alert(1)</script><img src=\"https://evil.example/x.png\" onerror='x'> & \u{202e}\u{0}";

/// The paired test of the program itself.
pub fn paired(before: &[bool], after: &[bool]) -> Gain {
    let gain = pt_tasks::paired_gain(before, after);
    Gain { difference: gain.difference, interval95: gain.interval95, p_value: gain.p_value }
}

pub fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn lines(path: &Path, values: impl IntoIterator<Item = Value>) {
    write(path, &values.into_iter().map(|value| format!("{value}\n")).collect::<String>());
}

fn tasks(share: f64) -> Value {
    let sample = |i: usize| {
        let passed = (i as f64) < share * 100.0;
        let family = ["sum", "<i>kind"][i % 2];
        json!({"family": family, "prompt": HOSTILE, "answer": "4", "reply": format!("{HOSTILE} {i}"), "passed": passed, "reason": HOSTILE})
    };
    json!([{"task": "generated:mix?families=sum@2,digits@3&n=100", "accuracy": share, "interval95": [share - 0.09, share + 0.09],
        "samples": (0..100).map(sample).collect::<Vec<_>>()}])
}

fn stage_plan(number: u64, name: &str, kind: &str, steps: u64) -> Value {
    json!({
        "number": number, "name": name, "type": kind, "steps": steps, "tokens": steps * 100, "trainable_parameters": 119_104,
        "data": {"train": [
            {"source": "org/data-set", "layout": "messages", "rows": 2000, "tokens": 81_969, "trained_tokens": 32_932, "rows_truncated": 1, "rows_dropped": 2,
             "files": [{"path": "a<b>.jsonl", "bytes": 12, "blake3": "ab12"}]},
            {"source": HOSTILE, "layout": "text", "rows": 10, "tokens": 100, "trained_tokens": 0, "rows_truncated": 0, "rows_dropped": 0, "files": []}],
            "eval": [], "max_length": 256, "packing": "bfd", "shuffle": true, "mixture": {"repeats": [1.0, 1.0]},
            "chat_template": {"origin": "tokenizer", "blake3": "cd34"}},
        "train": {"method": "full", "epochs": 1.0, "step_size": {"rows": 16}},
        "objective": {"type": "dpo", "params": {"beta": 0.1}}, "optimizer": {"type": "adamw", "params": {"weight_decay": 0.0}},
        "schedule": {"type": "linear", "learning_rate": 5e-5, "warmup_steps": 1},
        "memory": [{"part": "weights", "bytes": 476_416}, {"part": "optimizer state", "bytes": 952_832}], "expected_seconds": 2.5
    })
}

/// Writes a run of SFT, DPO and GRPO of `steps` steps each.
pub fn write_run(dir: &Path, steps: u64) {
    let kinds = ["sft", "dpo", "grpo"];
    let stages: Vec<Value> =
        kinds.iter().zip(1..).map(|(kind, number)| stage_plan(number, kind, kind, steps)).collect();
    let model = json!({"base": "org/base", "new": null, "parameters": 119_104, "files": [{"path": "m.safetensors", "bytes": 5, "blake3": "ef56"}]});
    write(
        &dir.join("plan.json"),
        &json!({"format_version": 1, "name": "A <run> & more", "seed": 7, "model": model, "stages": stages})
            .to_string(),
    );
    let mut metrics = Vec::new();
    for (i, kind) in kinds.iter().enumerate() {
        let stage = format!("{:02}-{kind}", i + 1);
        for step in 1..=steps {
            let x = step as f64;
            let loss = if step == 3 { json!("NaN") } else { json!(5.0 / x) };
            metrics.push(json!({"stage": stage, "step": step, "loss": loss, "grad_norm": if step == 2 { 900.0 } else { 1.0 / x }, "learning_rate": 1e-4,
                "num_tokens": step * 100, "epoch": x / steps as f64, "entropy": 1.0 + x.sin()}));
            let own = match *kind {
                "dpo" => {
                    json!({"rewards/chosen": -x, "rewards/rejected": -2.0 * x, "rewards/margins": x, "logps/chosen": -50.0 - x, "logps/rejected": -51.0, "rewards/accuracies": 0.5 + 0.001 * x})
                }
                "grpo" => {
                    json!({"reward": 0.1 * x, "rewards/task/mean": 0.1 * x, "rewards/format<b>/mean": 0.2, "kl": 0.01 * x, "completions/mean_length": 10.0 + x,
                    "completions/min_length": 3.0, "completions/max_length": 40.0, "frac_reward_zero_std": 0.5 / x, "clip_ratio/region_mean": 0.01 * x})
                }
                _ => json!({"odd<key>": x}),
            };
            let line = metrics.last_mut().unwrap().as_object_mut().unwrap();
            line.extend(own.as_object().unwrap().clone());
        }
        metrics.push(json!({"stage": stage, "step": steps, "eval_loss": 0.5}));
    }
    let timing = metrics.iter().map(|m| json!({"stage": m["stage"], "step": m["step"], "step_time": 0.05, "tokens_per_second": 1000 + m["step"].as_u64().unwrap(), "peak_buffer_bytes": 17_409_792}));
    lines(&dir.join("timing.jsonl"), timing.collect::<Vec<_>>());
    lines(&dir.join("metrics.jsonl"), metrics);
    lines(
        &dir.join("events.jsonl"),
        [
            json!({"time": "2026-11-24T11:30:00.000Z", "event": "started", "version": "0.1.0", "plan_hash": "27b1b8b178369600"}),
            json!({"time": "2026-11-24T11:30:00.000Z", "event": "stage_begun", "stage": "01-sft"}),
            json!({"time": "2026-11-24T11:30:10.000Z", "event": "warning", "message": format!("entropy fell {HOSTILE}")}),
            json!({"time": "2026-11-24T11:30:20.000Z", "event": "interrupted", "stage": "01-sft", "step": 4, "reason": "a signal"}),
            json!({"time": "2026-11-24T12:30:20.000Z", "event": "resumed", "stage": "01-sft", "step": 4}),
            json!({"time": "2026-11-24T12:30:30.000Z", "event": "stage_ended", "stage": "01-sft", "steps": steps}),
            json!({"time": "2026-11-24T12:30:40.000Z", "event": "finished"}),
        ],
    );
    let shares = [0.1, 0.5, 0.52, 0.9];
    for (i, kind) in kinds.iter().enumerate() {
        let folder = dir.join(format!("stages/{:02}-{kind}", i + 1));
        let (before, after) = (tasks(shares[i]), tasks(shares[i + 1]));
        let passed = |list: &Value| {
            list[0]["samples"].as_array().unwrap().iter().map(|s| s["passed"] == true).collect::<Vec<bool>>()
        };
        let gain = paired(&passed(&before), &passed(&after));
        write(&folder.join("outcome.json"), &json!({"steps": steps, "eval_loss": 0.5, "best_step": 2, "output": format!("stages/{:02}-{kind}/model", i + 1), "gains": [
            {"task": before[0]["task"], "n": 100, "before": shares[i], "after": shares[i + 1], "difference": gain.difference, "interval95": gain.interval95, "p_value": gain.p_value}]}).to_string());
        write(&folder.join("eval/tasks-before.json"), &before.to_string());
        write(&folder.join("eval/tasks-after.json"), &after.to_string());
    }
    let rollout = |i: usize| json!({"step": 0, "group": i / 4, "sample": i % 4, "prompt_text": HOSTILE, "text": format!("{HOSTILE} {i}"), "reward": (i % 2) as f64, "advantage": i as f64 - 3.5, "finish_reason": "stop"});
    let text: String = (0..8).map(|i| format!("{}\n", rollout(i))).collect();
    let path = dir.join("stages/03-grpo/rollouts/step-00000000.jsonl.zst");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, zstd::encode_all(text.as_bytes(), 3).unwrap()).unwrap();
}
