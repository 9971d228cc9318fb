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

/// What [`backward`] gives, dense and row-major.
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

/// The definition of [`super::forward`].
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

/// The definition of [`super::backward`]: `dv = p^T do`, `ds = p (do v - do o)`, `dq = ds k`, `dk = ds^T q`.
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
