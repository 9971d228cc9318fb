//! Attention in `f64`, as its definition says: slow, obvious, and what the kernels are tested against.

use super::{AttentionShape, Rows, Span};
use crate::elem::Elem;

/// What [`forward`] gives, dense and row-major.
pub struct Outputs {
    /// `[q_rows, heads * head_dim]`; rows in no span are 0.
    pub out: Vec<f64>,
    /// `[q_rows, heads]`; rows in no span are 0.
    pub lse: Vec<f64>,
}

/// What [`backward()`] gives, dense and row-major.
pub struct Gradients {
    /// `[rows, heads * head_dim]`.
    pub dq: Vec<f64>,
    /// `[rows, kv_heads * head_dim]`.
    pub dk: Vec<f64>,
    /// `[rows, kv_heads * head_dim]`.
    pub dv: Vec<f64>,
}

impl Rows<'_> {
    /// Element (`row`, `col`) in `f64`, exactly.
    pub fn at(&self, row: usize, col: usize) -> f64 {
        match *self {
            Rows::F32(values, ld) => f64::from(values[row * ld + col]),
            Rows::Bf16(values, ld) => f64::from(Elem::get(values[row * ld + col])),
        }
    }
}

/// One query's scores, probabilities and the derivative of its scores by the raw products.
struct Query {
    first: usize,
    p: Vec<f64>,
    slope: Vec<f64>,
    lse: f64,
}

fn query(shape: &AttentionShape, q: Rows<'_>, k: Rows<'_>, span: &Span<'_>, i: usize, head: usize) -> Query {
    let (d, kv_head) = (shape.head_dim, head / shape.group());
    let visible = shape.visible(span.positions().start + i);
    let scale = f64::from(shape.scale);
    let (scores, slope): (Vec<f64>, Vec<f64>) = visible
        .clone()
        .map(|position| {
            let row = span.context[position] as usize;
            let dot: f64 =
                (0..d).map(|c| q.at(span.q_row + i, head * d + c) * k.at(row, kv_head * d + c)).sum();
            match shape.softcap.map(f64::from) {
                None => (scale * dot, scale),
                Some(cap) => {
                    let t = (scale * dot / cap).tanh();
                    (cap * t, scale * (1.0 - t * t))
                }
            }
        })
        .unzip();
    let max = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    let lse = max + sum.ln();
    Query { first: visible.start, p: scores.iter().map(|s| (s - lse).exp()).collect(), slope, lse }
}

/// The definition of [`super::forward()`].
pub fn forward(
    shape: &AttentionShape,
    q: Rows<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    spans: &[Span<'_>],
    q_rows: usize,
) -> Outputs {
    let d = shape.head_dim;
    let mut outputs =
        Outputs { out: vec![0.0; q_rows * shape.heads * d], lse: vec![0.0; q_rows * shape.heads] };
    for span in spans {
        for (i, head) in (0..span.q_len).flat_map(|i| (0..shape.heads).map(move |head| (i, head))) {
            let at = (span.q_row + i) * shape.heads + head;
            let query = query(shape, q, k, span, i, head);
            outputs.lse[at] = query.lse;
            for (p, row) in query.p.iter().zip(&span.context[query.first..]) {
                for c in 0..d {
                    outputs.out[at * d + c] += p * v.at(*row as usize, head / shape.group() * d + c);
                }
            }
        }
    }
    outputs
}

/// The definition of [`super::backward()`]: `dv = p^T do`, `ds = p (do v - do o)`, `dq = ds k`, `dk = ds^T q`.
pub fn backward(
    shape: &AttentionShape,
    q: Rows<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    d_out: Rows<'_>,
    spans: &[Span<'_>],
    rows: usize,
) -> Gradients {
    let d = shape.head_dim;
    let zeros = |heads: usize| vec![0.0; rows * heads * d];
    let mut g = Gradients { dq: zeros(shape.heads), dk: zeros(shape.kv_heads), dv: zeros(shape.kv_heads) };
    for span in spans {
        for (i, head) in (0..span.q_len).flat_map(|i| (0..shape.heads).map(move |head| (i, head))) {
            let (q_row, kv_head) = (span.q_row + i, head / shape.group());
            let query = query(shape, q, k, span, i, head);
            let context = &span.context[query.first..][..query.p.len()];
            let dp: Vec<f64> = context
                .iter()
                .map(|row| {
                    (0..d)
                        .map(|c| d_out.at(q_row, head * d + c) * v.at(*row as usize, kv_head * d + c))
                        .sum::<f64>()
                })
                .collect();
            let mean: f64 = query.p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for (j, row) in context.iter().map(|row| *row as usize).enumerate() {
                let ds = query.p[j] * (dp[j] - mean) * query.slope[j];
                for c in 0..d {
                    let (at_q, at_k) =
                        ((q_row * shape.heads + head) * d + c, (row * shape.kv_heads + kv_head) * d + c);
                    g.dq[at_q] += ds * k.at(row, kv_head * d + c);
                    g.dk[at_k] += ds * q.at(q_row, head * d + c);
                    g.dv[at_k] += query.p[j] * d_out.at(q_row, head * d + c);
                }
            }
        }
    }
    g
}

#[cfg(test)]
mod tests {
    use super::*;
    use pt_core::rng::Stream;

    /// A power of two, so that moving an `f32` input by it is nearly exact; the central difference is then
    /// wrong by about `STEP^2 / 6` times a third derivative of order 1 to 10.
    const STEP: f32 = 1.0 / 1024.0;
    const TOLERANCE: f64 = 1e-5;

    /// Central differences of `sum(weights * out)` by every input against [`backward()`].
    fn check(shape: &AttentionShape, spans: &[Span<'_>], rows: usize) {
        let widths = [shape.heads, shape.kv_heads, shape.kv_heads].map(|heads| heads * shape.head_dim);
        let draw = |name: &str, width: usize| -> Vec<f32> {
            let stream = Stream::new(2, name);
            (0..rows * width).map(|i| stream.at(i as u64).normal() as f32).collect()
        };
        let mut inputs = [draw("q", widths[0]), draw("k", widths[1]), draw("v", widths[2])];
        let weights = draw("weights", widths[0]);
        let loss = |inputs: &[Vec<f32>; 3]| -> f64 {
            let [q, k, v] = std::array::from_fn(|i| Rows::F32(&inputs[i], widths[i]));
            let out = forward(shape, q, k, v, spans, rows).out;
            out.iter().zip(&weights).map(|(o, w)| o * f64::from(*w)).sum()
        };
        let [q, k, v] = std::array::from_fn(|i| Rows::F32(&inputs[i], widths[i]));
        let g = backward(shape, q, k, v, Rows::F32(&weights, widths[0]), spans, rows);
        for (part, gradient) in [&g.dq, &g.dk, &g.dv].into_iter().enumerate() {
            for (i, expected) in gradient.iter().enumerate() {
                let value = inputs[part][i];
                let (high, low) = (value + STEP, value - STEP);
                inputs[part][i] = high;
                let above = loss(&inputs);
                inputs[part][i] = low;
                let below = loss(&inputs);
                inputs[part][i] = value;
                let slope = (above - below) / (f64::from(high) - f64::from(low));
                assert!(
                    (slope - expected).abs() <= TOLERANCE,
                    "{shape:?} input {part} element {i}: {expected}, by difference {slope}"
                );
            }
        }
    }

    #[test]
    fn gradients_are_those_of_the_definition() {
        let plain =
            AttentionShape { heads: 4, kv_heads: 2, head_dim: 3, scale: 0.6, window: None, softcap: None };
        // A prompt of 3 with two continuations, and a row that nothing sees.
        let contexts: [&[u32]; 3] = [&[0, 1, 2], &[0, 1, 2, 3, 4], &[0, 1, 2, 5]];
        let spans: Vec<Span<'_>> = [(0, 3), (3, 2), (5, 1)]
            .iter()
            .zip(contexts)
            .map(|(&(q_row, q_len), context)| Span { q_row, q_len, context })
            .collect();
        for (window, softcap) in [(None, None), (Some(2), None), (None, Some(1.5)), (Some(3), Some(2.0))] {
            check(&AttentionShape { window, softcap, ..plain }, &spans, 7);
        }
    }
}
