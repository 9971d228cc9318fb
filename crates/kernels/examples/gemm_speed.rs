//! How fast the matrix kernel is on this machine, for the shapes of a small Llama.
//!
//! `cargo run --release -p pt-kernels --example gemm_speed [few]`
//!
//! With `few`, products of few rows, as in decoding: the right operand comes from memory, not from a cache, and the share of
//! memory bandwidth is what matters. GFLOP/s of processor time stand beside those of the clock: on a machine that others
//! use, they are the ones to compare.
#![allow(clippy::print_stdout, missing_docs)]

use std::time::Instant;

use half::bf16;
use pt_kernels::gemm::*;

const SHAPES: [(usize, usize, usize); 6] = [
    (1024, 1536, 576),
    (1024, 576, 1536),
    (1024, 960, 576),
    (1024, 8192, 576),
    (576, 1536, 1024),
    (1, 1536, 576),
];
const FEW_ROWS: [usize; 9] = [1, 2, 4, 8, 12, 14, 16, 32, 64];
const FEW_SHAPES: [(usize, usize); 4] = [(960, 576), (1536, 576), (576, 1536), (49_152, 576)];
/// Right operands that are used in turn together exceed every cache.
const COLD_ELEMENTS: usize = 64 << 20;

fn main() {
    if std::env::args().nth(1).is_some_and(|arg| arg == "few") {
        return few();
    }
    for precision in [Precision::F32, Precision::Bf16] {
        for shape in SHAPES {
            for axis in [KAxis::Inner, KAxis::Outer] {
                measure(shape, axis, precision, 1, 15);
            }
        }
    }
}

fn few() {
    for (n, k) in FEW_SHAPES {
        for m in FEW_ROWS {
            measure((m, n, k), KAxis::Inner, Precision::Bf16, (COLD_ELEMENTS / (n * k)).max(1), 7);
        }
    }
}

/// The best of `rounds` rounds over `copies` right operands.
fn measure(
    (m, n, k): (usize, usize, usize),
    axis: KAxis,
    precision: Precision,
    copies: usize,
    rounds: usize,
) {
    let a = vec![bf16::from_f32(0.5); m * k];
    let b = vec![bf16::from_f32(0.25); copies * n * k];
    let mut c = vec![bf16::ZERO; m * n];
    let ld = if axis == KAxis::Inner { k } else { n };
    let (mut best_s, mut best_cpu_s) = (f64::MAX, f64::MAX);
    for _ in 0..rounds {
        let (start, cpu) = (Instant::now(), cpu_s());
        for b in b.chunks_exact(n * k) {
            let left = pack_left(&Operand::k_inner(Values::Bf16(&a), k), m, k, precision);
            let b = Operand { values: Values::Bf16(b), ld, k_axis: axis };
            let part = Part { a: &left, b: Right::Operand(b) };
            gemm(m, n, &[part], Output::Bf16(&mut c, n), Epilogue::default(), precision);
        }
        best_s = best_s.min(start.elapsed().as_secs_f64() / copies as f64);
        best_cpu_s = best_cpu_s.min((cpu_s() - cpu) / copies as f64);
    }
    let label = if axis == KAxis::Inner { "x W^T" } else { "y W" };
    let rate = |seconds: f64| 2.0 * (m * n * k) as f64 / seconds / 1e9;
    println!(
        "{precision:?} {label:6} {m:5} x {n:5} x {k:5}: {:6.1} GFLOP/s ({:.3} ms; {:.1} GFLOP/s and {:.1} GB/s of \
         processor time)",
        rate(best_s),
        best_s * 1e3,
        rate(best_cpu_s),
        (2 * n * k) as f64 / best_cpu_s / 1e9,
    );
}

/// Processor time of all threads so far, where Linux tells; otherwise a constant.
fn cpu_s() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
    stats.filter_map(|stat| stat.split_whitespace().next()?.parse::<f64>().ok()).sum::<f64>() / 1e9
}
