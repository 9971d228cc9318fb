//! How fast all threads together read and write memory that is in no cache: what decoding one sequence is measured by.
//!
//! `cargo run --release -p pt-kernels --example memory_speed [ROUNDS]`
//!
//! Prints one JSON object in GB/s (10^9 bytes): `read` sums an array; `triad` is McCalpin's `a = b + s c` and counts three
//! arrays, not the lines of `a` that are read before they are written. Best and median of the rounds.
#![allow(clippy::print_stdout, missing_docs)]

use std::time::Instant;

use rayon::prelude::*;

/// 256 MiB, eight times the largest cache we know of.
const VALUES: usize = 1 << 26;

pt_kernels::kernel! {
    fn sum(['a] x: &'a [f32]) -> f32 {
        let mut lanes = [0.0f32; 64];
        for x in x.as_chunks::<64>().0 {
            for i in 0..64 {
                lanes[i] += x[i];
            }
        }
        lanes.iter().sum()
    }
}

pt_kernels::kernel! {
    fn triad(['a] a: &'a mut [f32], b: &'a [f32], c: &'a [f32], s: f32) {
        for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
            *a = pt_kernels::isa::fma::<FMA>(s, *c, *b);
        }
    }
}

fn main() {
    let rounds: usize = std::env::args().nth(1).map_or(7, |arg| arg.parse().expect("ROUNDS is a number"));
    let (mut a, b, c) = (vec![0.0f32; VALUES], vec![1.0f32; VALUES], vec![2.0f32; VALUES]);
    let share = VALUES / rayon::current_num_threads();
    let seconds = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    let (mut reads, mut triads) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let elapsed = seconds(&mut || {
            let total: f32 = b.par_chunks(share).map(sum).sum();
            assert!(total > 0.0, "the sum is used");
        });
        reads.push((4 * VALUES) as f64 / elapsed / 1e9);
        let elapsed = seconds(&mut || {
            let parts = a.par_chunks_mut(share).zip(b.par_chunks(share)).zip(c.par_chunks(share));
            parts.for_each(|((a, b), c)| triad(a, b, c, 0.5));
        });
        assert!(a[VALUES / 2] == 2.0, "1 + 0.5 * 2");
        triads.push((12 * VALUES) as f64 / elapsed / 1e9);
    }
    let figures = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        serde_json::json!({ "best": values[values.len() - 1], "median": values[values.len() / 2] })
    };
    let threads = rayon::current_num_threads();
    println!(
        "{}",
        serde_json::json!({ "threads": threads, "read": figures(reads), "triad": figures(triads) })
    );
}
