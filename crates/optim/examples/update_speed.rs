//! Time of one AdamW step on a 134 M parameter tensor, and the memory bandwidth it amounts to.
//!
//! `cargo run --release -p pt-optim --example update_speed [-- CASE]`

#![allow(clippy::print_stdout, reason = "a measurement is for reading")]

use pt_engine::Array;
use pt_optim::{Groups, Role, Step, build, global_norm};
use std::time::Instant;

fn main() {
    let spec = Groups::default().spec("w", &[134_217_728 / 1024, 1024], Role::Hidden);
    let n = spec.len();
    let grad: Vec<f32> = (0..n).map(|i| ((i % 1009) as f32 - 504.0) * 1e-5).collect();
    let grad = Array::from_f32(&grad);
    let start = Instant::now();
    global_norm(&[("w", &grad)]).expect("the gradient is finite");
    let seconds = start.elapsed().as_secs_f64();
    println!("global norm: {:.0} ms, {:.1} GB/s", 1e3 * seconds, 4.0 * n as f64 / seconds / 1e9);
    let cases = [
        ("adamw", ""),
        ("adamw", "bf16_params = 'stochastic'"),
        ("adamw", "bf16_params = 'stochastic'\nstate = 'bf16'"),
        ("adamw8bit", "bf16_params = 'stochastic'"),
    ];
    let only = std::env::args().nth(1).map(|i| i.parse::<usize>().expect("the index of a case"));
    for (i, (name, options)) in cases.into_iter().enumerate() {
        if only.is_some_and(|only| only != i) {
            continue;
        }
        let optimiser = build(name, &options.parse().expect("TOML"), 1).expect("valid options");
        let mut param = Array::bf16_from_f32(&vec![1.0; n]);
        let mut state = optimiser.state(&spec, &param);
        let mut best = f64::INFINITY;
        for t in 1..=8 {
            let start = Instant::now();
            state.step(Step { t, lr: 1e-3, grad_scale: 1.0 }, &mut param, &grad);
            best = best.min(start.elapsed().as_secs_f64());
        }
        // State and parameter are read and written, the gradient is read (a master makes the parameter write-only).
        let bytes = 2 * state.bytes() + (2 + 2 + 4) * n;
        let options = options.replace('\n', ", ");
        println!("{name} {options}: {:.0} ms, {:.1} GB/s", 1e3 * best, bytes as f64 / best / 1e9);
    }
}
