//! How fast attention is on this machine, for the heads of a small Llama (9 query and 3 key heads of 64).
//!
//! `cargo run --release -p pt-kernels --example attention_speed`
#![allow(clippy::print_stdout, missing_docs)]

use std::time::Instant;

use half::bf16;
use pt_core::rng::Stream;
use pt_kernels::attention::{AttentionShape, Columns, Rows, RowsMut, Span, backward, forward};

const SHAPE: AttentionShape =
    AttentionShape { heads: 9, kv_heads: 3, head_dim: 64, scale: 0.125, window: None, softcap: None };
const REPEATS: usize = 30;

fn best_ms(mut work: impl FnMut()) -> f64 {
    let time = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64() * 1e3
    };
    (0..REPEATS).map(|_| time(&mut work)).fold(f64::MAX, f64::min)
}

fn report(name: &str, ms: f64, flops: f64) {
    println!("{name:42} {ms:8.3} ms {:7.1} GFLOP/s", flops / ms / 1e6);
}

/// Multiply-adds count two; only visible pairs count. Forward has 2 products, backward 5.
fn pair_flops(spans: &[Span<'_>]) -> f64 {
    let pairs: usize = spans.iter().flat_map(|span| span.positions()).map(|p| SHAPE.visible(p).len()).sum();
    2.0 * (pairs * SHAPE.heads * SHAPE.head_dim) as f64
}

fn main() {
    let (width, kv) = (SHAPE.heads * SHAPE.head_dim, SHAPE.kv_heads * SHAPE.head_dim);
    let ld = width + 2 * kv;
    let all: Vec<u32> = (0..2048).collect();
    let stream = Stream::new(1, "speed");
    let values: Vec<f32> = (0..2048 * ld).map(|i| stream.at(i as u64).normal() as f32).collect();
    let halves: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
    let columns = Columns { q: 0, k: width, v: width + kv };

    let cases: [(&str, Vec<Span<'_>>); 3] = [
        (
            "4 x 256",
            (0..4).map(|i| Span { q_row: i * 256, q_len: 256, context: &all[i * 256..][..256] }).collect(),
        ),
        ("1 x 2048", vec![Span { q_row: 0, q_len: 2048, context: &all }]),
        (
            "32 decodes at 1024",
            (0..32).map(|i| Span { q_row: i, q_len: 1, context: &all[32 * i..][..1024] }).collect(),
        ),
    ];
    for (name, spans) in cases {
        let rows = spans.last().map_or(0, |span| span.q_row + span.q_len);
        let flops = pair_flops(&spans);
        let groups: Vec<_> = (0..spans.len()).map(|i| i..i + 1).collect();
        let mut lse = vec![0.0; rows * SHAPE.heads];
        let training = spans[0].q_len > 1;
        {
            let [q, k, v] = [columns.q, columns.k, columns.v].map(|col| Rows::Bf16(&halves[col..], ld));
            let mut out = vec![bf16::ZERO; rows * width];
            let ms = best_ms(|| forward(&SHAPE, q, k, v, &spans, RowsMut::Bf16(&mut out, width), &mut lse));
            report(&format!("bf16 {name} forward"), ms, 2.0 * flops);
            let mut grad = vec![bf16::ZERO; rows * ld];
            let o = Rows::Bf16(&out, width);
            if training {
                let ms = best_ms(|| {
                    let grad = RowsMut::Bf16(&mut grad, ld);
                    backward(&SHAPE, q, k, v, o, &lse, o, &spans, &groups, grad, columns);
                });
                report(&format!("bf16 {name} backward"), ms, 5.0 * flops);
            }
        }
        let [q, k, v] = [columns.q, columns.k, columns.v].map(|col| Rows::F32(&values[col..], ld));
        let mut out = vec![0.0; rows * width];
        let ms = best_ms(|| forward(&SHAPE, q, k, v, &spans, RowsMut::F32(&mut out, width), &mut lse));
        report(&format!("f32  {name} forward"), ms, 2.0 * flops);
        let mut grad = vec![0.0; rows * ld];
        let o = Rows::F32(&out, width);
        if training {
            let ms = best_ms(|| {
                let grad = RowsMut::F32(&mut grad, ld);
                backward(&SHAPE, q, k, v, o, &lse, o, &spans, &groups, grad, columns);
            });
            report(&format!("f32  {name} backward"), ms, 5.0 * flops);
        }
    }
}
