//! Root-mean-square normalisation of each query head and each key head (Qwen3, Gemma 3), values untouched.
//!
//! The formula and its gradient are those of [`super::rms_norm`], over one head's columns.

use std::rc::Rc;
use std::time::Instant;

use pt_kernels::elem::Elem;
use rayon::prelude::*;

use super::attention::AttentionShape;
use super::for_rows;
use super::rms_norm::{norm_gain_backward, norm_row, norm_row_backward, shifted};
use crate::device::{Host, Kernel};
use crate::params::{ParamId, Weight};
use crate::tape::{Backward, Op, Tape, Var};
use crate::tensor::{Dtype, Tensor};

struct HeadNorm {
    qkv: Rc<Tensor>,
    /// `[T, heads + kv_heads]`.
    inverse_rms: Tensor,
    shape: AttentionShape,
    q_weight: ParamId,
    k_weight: ParamId,
    offset: f32,
}

impl<'m> Op<'m> for HeadNorm {
    fn name(&self) -> &'static str {
        "head_norm"
    }

    fn backward(self: Box<Self>, d_out: Tensor, ctx: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>> {
        let mut dx = d_out.clone();
        d_out.device().run(&mut HeadNormBackward { op: &self, d_out: &d_out, dx: &mut dx, ctx });
        vec![Some(dx)]
    }
}

/// Overwrites the columns of queries and keys in `dx`, which starts as the upstream gradient.
struct HeadNormBackward<'a, 'g, 'm> {
    op: &'a HeadNorm,
    d_out: &'a Tensor,
    dx: &'a mut Tensor,
    ctx: &'a mut Backward<'g, 'm>,
}

impl Kernel for HeadNormBackward<'_, '_, '_> {
    fn name(&self) -> &'static str {
        "head_norm_backward"
    }

    fn cpu(&mut self) {
        let HeadNormBackward { op, d_out, dx, ctx } = self;
        let gains = [op.q_weight, op.k_weight].map(|w| shifted(ctx.params.vector(w), op.offset));
        match (op.qkv.open(), d_out.open(), dx.open_mut()) {
            (Host::F32(x), Host::F32(d), Host::F32(dx)) => op.run(x, d, dx, &gains, ctx),
            (Host::Bf16(x), Host::Bf16(d), Host::Bf16(dx)) => op.run(x, d, dx, &gains, ctx),
            _ => unreachable!("activations of one tape have one type"),
        }
    }
}

struct HeadNormForward<'a> {
    qkv: &'a Tensor,
    shape: &'a AttentionShape,
    weights: [&'a Weight; 2],
    eps: f32,
    offset: f32,
    out: &'a mut Tensor,
    inverse_rms: &'a mut Tensor,
}

impl Kernel for HeadNormForward<'_> {
    fn name(&self) -> &'static str {
        "head_norm"
    }

    fn cpu(&mut self) {
        let HeadNormForward { shape, eps, offset, .. } = *self;
        let gains = self.weights.map(|w| shifted(w.open().to_f32(), offset));
        let inverse = self.inverse_rms.open_mut().f32s_mut();
        match (self.qkv.open(), self.out.open_mut()) {
            (Host::F32(x), Host::F32(out)) => forward_rows(x, shape, &gains, eps, out, inverse),
            (Host::Bf16(x), Host::Bf16(out)) => forward_rows(x, shape, &gains, eps, out, inverse),
            _ => unreachable!("activations of one tape have one type"),
        }
    }
}

impl HeadNorm {
    fn run<E: Elem>(
        &self,
        x: &[E],
        d: &[E],
        dx: &mut [E],
        gains: &[Vec<f32>; 2],
        ctx: &mut Backward<'_, '_>,
    ) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let (width, normed) = (self.qkv.cols(), heads + kv_heads);
        let inverse_rms = self.inverse_rms.open().f32s();
        for_rows(dx, width, |t, dx| {
            for h in 0..normed {
                let at = t * width + h * head_dim..t * width + (h + 1) * head_dim;
                let gain = &gains[usize::from(h >= heads)];
                let inverse = inverse_rms[t * normed + h];
                norm_row_backward(
                    &x[at.clone()],
                    &d[at],
                    gain,
                    inverse,
                    &mut dx[h * head_dim..(h + 1) * head_dim],
                );
            }
        });
        for (weight, range) in [(self.q_weight, 0..heads), (self.k_weight, heads..normed)] {
            if !ctx.params.trains(weight) {
                continue;
            }
            let dw = ctx.grads.slot(ctx.params, weight).open_mut().f32s_mut();
            for t in 0..self.qkv.rows() {
                for h in range.clone() {
                    let at = t * width + h * head_dim..t * width + (h + 1) * head_dim;
                    norm_gain_backward(&x[at.clone()], &d[at], inverse_rms[t * normed + h], dw);
                }
            }
        }
    }
}

fn forward_rows<E: Elem>(
    x: &[E],
    shape: &AttentionShape,
    gains: &[Vec<f32>; 2],
    eps: f32,
    out: &mut [E],
    inverse_rms: &mut [f32],
) {
    let (normed, head_dim) = (shape.heads + shape.kv_heads, shape.head_dim);
    let width = (normed + shape.kv_heads) * head_dim;
    out.par_chunks_mut(width).zip(inverse_rms.par_chunks_mut(normed)).enumerate().with_min_len(8).for_each(
        |(t, (out, inverse))| {
            let x = &x[t * width..(t + 1) * width];
            for h in 0..normed {
                let at = h * head_dim..(h + 1) * head_dim;
                inverse[h] =
                    norm_row(&x[at.clone()], &gains[usize::from(h >= shape.heads)], eps, &mut out[at]);
            }
            out[normed * head_dim..].copy_from_slice(&x[normed * head_dim..]);
        },
    );
}

impl Tape<'_> {
    /// Normalises each query head with gain `q_weight + offset` and each key head with `k_weight + offset`, both
    /// `[head_dim]`. `qkv` is `[T, (heads + 2 kv_heads) head_dim]`.
    pub fn head_norm(
        &mut self,
        qkv: &Var,
        shape: &AttentionShape,
        q_weight: ParamId,
        k_weight: ParamId,
        eps: f32,
        offset: f32,
    ) -> Var {
        let start = Instant::now();
        let value = qkv.value();
        assert_eq!(value.cols(), shape.qkv_width(), "columns of queries, keys and values");
        let device = value.device();
        let mut out = Tensor::dirty(device, value.dtype(), value.rows(), value.cols());
        let mut inverse_rms = Tensor::dirty(device, Dtype::F32, value.rows(), shape.heads + shape.kv_heads);
        let weights = [q_weight, k_weight].map(|id| &self.params.get(id).weight);
        let (to, inverse) = (&mut out, &mut inverse_rms);
        device.run(&mut HeadNormForward {
            qkv: value,
            shape,
            weights,
            eps,
            offset,
            out: to,
            inverse_rms: inverse,
        });
        self.profile.add("head_norm", "forward", start);
        if self.records(&[qkv], self.params.trains(q_weight) || self.params.trains(k_weight)) {
            let op =
                HeadNorm { qkv: qkv.value.clone(), inverse_rms, shape: *shape, q_weight, k_weight, offset };
            self.push(op, &[qkv], Rc::new(out))
        } else {
            self.constant(out)
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::attention::AttentionShape;
    use crate::ops::rms_norm::tests::reference as rms_reference;
    use crate::ops::testing::*;

    #[test]
    fn gradient_matches_finite_differences() {
        let shape =
            AttentionShape { heads: 4, kv_heads: 2, head_dim: 6, scale: 1.0, window: None, softcap: None };
        let mut setup = Setup::new(&[3]);
        let (q, k, x) = (setup.param("q", &[6]), setup.param("k", &[6]), setup.input(shape.qkv_width()));
        let reference = |v: &[Vec<f64>]| {
            let heads = v[0].chunks(6).enumerate();
            heads
                .flat_map(|(i, head)| match i % 8 {
                    0..4 => rms_reference(head, &v[1], 1e-6, 1.0),
                    4..6 => rms_reference(head, &v[2], 1e-6, 1.0),
                    _ => head.to_vec(),
                })
                .collect()
        };
        setup.check(|tape, v| tape.head_norm(&v[0], &shape, q, k, 1e-6, 1.0), reference, &[x], &[q, k]);
    }
}
