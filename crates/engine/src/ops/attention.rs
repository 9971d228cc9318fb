//! Causal attention of a `[T, (heads + 2 kv_heads) head_dim]` matrix that holds queries, keys and values side by side.
//!
//! `y = softmax(cap(scale q k^T) + mask) v`, where a row sees the rows of its segment up to itself and all ancestors,
//! within the window if there is one. In decoding, keys and values come from a cache that this batch extends; the
//! kernel is the same, so sampled and trained log-probabilities agree bit for bit.
//! See [`pt_kernels::attention`] for the kernel and its sources.

use std::rc::Rc;
use std::time::Instant;

use pt_kernels::attention::{self, Columns, Span};

use crate::batch::Keys;
use crate::device::Kernel;
use crate::segments::SegmentTable;
use crate::tape::{Backward, Op, Tape, Var};
use crate::tensor::{Dtype, Tensor};

pub use pt_kernels::attention::AttentionShape;

struct Attention {
    qkv: Rc<Tensor>,
    out: Rc<Tensor>,
    /// `[T, heads]`.
    lse: Tensor,
    shape: AttentionShape,
}

impl<'m> Op<'m> for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn backward(self: Box<Self>, d_out: Tensor, ctx: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>> {
        let Keys::InBatch(table) = &ctx.batch.keys else {
            unreachable!("cached batches are not recorded: forward refuses them on a training tape")
        };
        let device = d_out.device();
        let mut d_qkv = Tensor::dirty(device, d_out.dtype(), d_out.rows(), self.shape.qkv_width());
        device.run(&mut AttentionBackward { op: &self, d_out: &d_out, table, d_qkv: &mut d_qkv });
        vec![Some(d_qkv)]
    }
}

/// Outputs and log-sum-exps of rows that see keys and values of `k` and `v`, from the given columns on.
struct AttentionForward<'a> {
    shape: &'a AttentionShape,
    q: &'a Tensor,
    k: (&'a Tensor, usize),
    v: (&'a Tensor, usize),
    spans: &'a [Span<'a>],
    out: &'a mut Tensor,
    lse: &'a mut Tensor,
}

impl Kernel for AttentionForward<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu(&mut self) {
        let [q, k, v] = [(self.q, 0), self.k, self.v].map(|(matrix, col)| matrix.rows_from(col));
        let lse = self.lse.open_mut().f32s_mut();
        attention::forward(self.shape, q, k, v, self.spans, self.out.rows_mut(), lse);
    }
}

struct AttentionBackward<'a> {
    op: &'a Attention,
    d_out: &'a Tensor,
    table: &'a SegmentTable,
    d_qkv: &'a mut Tensor,
}

impl Kernel for AttentionBackward<'_> {
    fn name(&self) -> &'static str {
        "attention_backward"
    }

    fn cpu(&mut self) {
        let Attention { qkv, out, lse, shape } = self.op;
        let columns = columns(shape);
        attention::backward(
            shape,
            qkv.rows_from(columns.q),
            qkv.rows_from(columns.k),
            qkv.rows_from(columns.v),
            out.rows_from(0),
            lse.open().f32s(),
            self.d_out.rows_from(0),
            &spans(self.table),
            self.table.trees(),
            self.d_qkv.rows_mut(),
            columns,
        );
    }
}

fn columns(shape: &AttentionShape) -> Columns {
    let k = shape.heads * shape.head_dim;
    Columns { q: 0, k, v: k + shape.kv_heads * shape.head_dim }
}

fn spans(table: &SegmentTable) -> Vec<Span<'_>> {
    let segments = table.segments().iter().enumerate();
    segments.map(|(i, s)| Span { q_row: s.start, q_len: s.len, context: table.context(i) }).collect()
}

impl Tape<'_> {
    /// Attention of layer `layer`; returns `[T, heads * head_dim]`.
    ///
    /// # Panics
    /// If a batch with a cache is used on a training tape.
    pub fn attention(&mut self, qkv: &Var, shape: &AttentionShape, layer: usize) -> Var {
        let start = Instant::now();
        let value = qkv.value();
        assert_eq!(value.cols(), shape.qkv_width(), "columns of queries, keys and values");
        let columns = columns(shape);
        let device = value.device();
        let mut out = Tensor::dirty(device, value.dtype(), value.rows(), shape.heads * shape.head_dim);
        let mut lse = Tensor::dirty(device, Dtype::F32, value.rows(), shape.heads);
        let records = self.records(&[qkv], false);
        let mut run = |k, v, spans: &[Span<'_>]| {
            let (out, lse) = (&mut out, &mut lse);
            device.run(&mut AttentionForward { shape, q: value, k, v, spans, out, lse });
        };
        match &self.batch.keys {
            Keys::InBatch(table) => run((value, columns.k), (value, columns.v), &spans(table)),
            Keys::Cached { cache, spans } => {
                assert!(!records, "a batch with a cache computes no gradients");
                let mut cache = cache.borrow_mut();
                for span in spans {
                    let new = &span.rows[span.rows.len() - span.q_len..];
                    cache.store(layer, value, span.q_row, [columns.k, columns.v], new);
                }
                let spans: Vec<Span<'_>> =
                    spans.iter().map(|s| Span { q_row: s.q_row, q_len: s.q_len, context: &s.rows }).collect();
                let [k, v] = cache.layer(layer);
                run((k, 0), (v, 0), &spans);
            }
        }
        self.profile.add("attention", "forward", start);
        if !records {
            return self.constant(out);
        }
        let out = Rc::new(out);
        let op = Attention { qkv: qkv.value.clone(), out: out.clone(), lse, shape: *shape };
        self.push(op, &[qkv], out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;
    use crate::segments::Segment;

    /// Plain attention over each row's path.
    fn reference(qkv: &[f64], table: &SegmentTable, shape: &AttentionShape) -> Vec<f64> {
        let (d, width, at) = (shape.head_dim, shape.qkv_width(), columns(shape));
        let mut out = vec![0.0; table.n_tokens() * shape.heads * d];
        for (index, segment) in table.segments().iter().enumerate() {
            for i in 0..segment.len {
                let row = segment.start + i;
                let context = &table.context(index)[..=table.positions()[row] as usize];
                for h in 0..shape.heads {
                    let g = h * shape.kv_heads / shape.heads;
                    let q = &qkv[row * width + h * d..][..d];
                    let visible = shape.visible(context.len() - 1);
                    let scores: Vec<f64> = context[visible.clone()]
                        .iter()
                        .map(|&key| {
                            let k = &qkv[key as usize * width + at.k + g * d..][..d];
                            let s = q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() * f64::from(shape.scale);
                            shape.softcap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh())
                        })
                        .collect();
                    let max = scores.iter().copied().fold(f64::MIN, f64::max);
                    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                    for (&key, s) in context[visible].iter().zip(&scores) {
                        let p = (s - max).exp() / sum;
                        let v = &qkv[key as usize * width + at.v + g * d..][..d];
                        for c in 0..d {
                            out[(row * shape.heads + h) * d + c] += p * v[c];
                        }
                    }
                }
            }
        }
        out
    }

    #[test]
    fn trees_windows_and_caps_match_finite_differences() {
        let segment = |start, len, parent| Segment { start, len, parent };
        let table = SegmentTable::new(vec![
            segment(0, 3, None),
            segment(3, 2, Some(0)),
            segment(5, 4, Some(0)),
            segment(9, 2, None),
        ])
        .unwrap();
        for (window, softcap) in [(None, None), (Some(2), None), (None, Some(1.5))] {
            let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 4, scale: 0.6, window, softcap };
            let mut setup = Setup::with_table(table.clone());
            let x = setup.input(shape.qkv_width());
            setup.check(
                |tape, v| tape.attention(&v[0], &shape, 0),
                |v| reference(&v[0], &table, &shape),
                &[x],
                &[],
            );
        }
    }
}
