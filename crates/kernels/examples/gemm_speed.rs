//! How fast the matrix kernel is on this machine, for the shapes of a small Llama.
//!
//! `cargo run --release -p pt-kernels --example gemm_speed`
#![allow(clippy::print_stdout, missing_docs)]

use std::time::Instant;

use half::bf16;
use pt_kernels::gemm::*;

fn main() {
    let shapes = [
        (1024, 1536, 576),
        (1024, 576, 1536),
        (1024, 960, 576),
        (1024, 8192, 576),
        (576, 1536, 1024),
        (1, 1536, 576),
    ];
    for precision in [Precision::F32, Precision::Bf16] {
        for (m, n, k) in shapes {
            let a = vec![bf16::from_f32(0.5); m * k];
            let b = vec![bf16::from_f32(0.25); n * k];
            let mut c = vec![bf16::ZERO; m * n];
            for (label, b_axis) in [("x W^T", KAxis::Inner), ("y W", KAxis::Outer)] {
                let ld = if b_axis == KAxis::Inner { k } else { n };
                let mut best = f64::MAX;
                for _ in 0..15 {
                    let start = Instant::now();
                    let left = pack_left(&Operand::k_inner(Values::Bf16(&a), k), m, k, precision);
                    let b = Operand { values: Values::Bf16(&b), ld, k_axis: b_axis };
                    let part = Part { a: &left, b: Right::Operand(b) };
                    gemm(m, n, &[part], Output::Bf16(&mut c, n), Epilogue::default(), precision);
                    best = best.min(start.elapsed().as_secs_f64());
                }
                let gflops = 2.0 * (m * n * k) as f64 / best / 1e9;
                println!(
                    "{precision:?} {label:6} {m:5} x {n:5} x {k:5}: {gflops:6.1} GFLOP/s ({:.3} ms)",
                    best * 1e3
                );
            }
        }
    }
}
