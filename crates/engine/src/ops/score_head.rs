//! A score head: `s_ij = h_{r_i} . w_j + b_j` for selected rows of the hidden states, in `f32`; most heads have no `b`.
//!
//! Rewards, values and step labels are read from it. Heads have a handful of outputs and the rows are few, so a dot product at
//! a time is enough; each sum runs over the width in one order, whatever else is in the batch.
//!
//! Backward: `dh_r = sum_j ds_j w_j`, `dw_j = sum_i ds_ij h_{r_i}`, `db_j = sum_i ds_ij`, rows in order.

use std::rc::Rc;
use std::time::Instant;

use crate::device::Kernel;
use crate::params::{ParamId, Weight};
use crate::tape::{Backward, Op, Tape, Var};
use crate::tensor::{Dtype, Tensor, with_elems};
use pt_kernels::elem::Elem;

/// The parameters of a score head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoreWeights {
    /// `[n_outputs, width]`.
    pub weight: ParamId,
    /// `[n_outputs]`.
    pub bias: Option<ParamId>,
}

struct ScoreHead {
    hidden: Rc<Tensor>,
    head: ScoreWeights,
    rows: Vec<u32>,
    hidden_needs_grad: bool,
}

impl<'m> Op<'m> for ScoreHead {
    fn name(&self) -> &'static str {
        "score_head"
    }

    fn backward(self: Box<Self>, d_out: Tensor, ctx: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>> {
        let hidden = &self.hidden;
        let zeros = || Tensor::zeros(hidden.device(), hidden.dtype(), hidden.rows(), hidden.cols());
        let mut d_hidden = self.hidden_needs_grad.then(zeros);
        let device = d_out.device();
        device.run(&mut ScoreHeadBackward { op: &self, d_out: &d_out, d_hidden: d_hidden.as_mut(), ctx });
        vec![d_hidden]
    }
}

struct ScoreHeadForward<'a> {
    hidden: &'a Tensor,
    weight: &'a Weight,
    bias: Option<&'a Weight>,
    rows: &'a [u32],
    out: &'a mut Tensor,
}

impl Kernel for ScoreHeadForward<'_> {
    fn name(&self) -> &'static str {
        "score_head"
    }

    fn cpu(&mut self) {
        let (width, n_outputs) = (self.hidden.cols(), self.out.cols());
        let weights = self.weight.open().to_f32();
        let bias = self.bias.map_or_else(|| vec![0.0; n_outputs], |bias| bias.open().to_f32());
        let scores = self.out.open_mut().f32s_mut();
        for (&row, scores) in self.rows.iter().zip(scores.chunks_exact_mut(n_outputs)) {
            let hidden = self.hidden.read_row(row as usize);
            let dot =
                |w: &[f32]| w.iter().zip(&hidden).map(|(&w, &h)| f64::from(w) * f64::from(h)).sum::<f64>();
            for ((score, w), &b) in scores.iter_mut().zip(weights.chunks_exact(width)).zip(&bias) {
                *score = (dot(w) + f64::from(b)) as f32;
            }
        }
    }
}

/// `d_hidden` holds zeros before.
struct ScoreHeadBackward<'a, 'g, 'm> {
    op: &'a ScoreHead,
    d_out: &'a Tensor,
    d_hidden: Option<&'a mut Tensor>,
    ctx: &'a mut Backward<'g, 'm>,
}

impl Kernel for ScoreHeadBackward<'_, '_, '_> {
    fn name(&self) -> &'static str {
        "score_head_backward"
    }

    fn cpu(&mut self) {
        let ScoreHeadBackward { op, d_out, d_hidden, ctx } = self;
        let (width, n_outputs) = (op.hidden.cols(), d_out.cols());
        let d_scores = d_out.read();
        if ctx.params.trains(op.head.weight) {
            let d_head = ctx.grads.slot(ctx.params, op.head.weight).open_mut().f32s_mut();
            for (&row, d) in op.rows.iter().zip(d_scores.chunks_exact(n_outputs)) {
                let hidden = op.hidden.read_row(row as usize);
                for (d_head, &d) in d_head.chunks_exact_mut(width).zip(d) {
                    d_head.iter_mut().zip(&hidden).for_each(|(sum, &h)| *sum += d * h);
                }
            }
        }
        if let Some(bias) = op.head.bias.filter(|bias| ctx.params.trains(*bias)) {
            let d_bias = ctx.grads.slot(ctx.params, bias).open_mut().f32s_mut();
            for d in d_scores.chunks_exact(n_outputs) {
                d_bias.iter_mut().zip(d).for_each(|(sum, &d)| *sum += d);
            }
        }
        let Some(d_hidden) = d_hidden else { return };
        let head = ctx.params.vector(op.head.weight);
        with_elems!(mut d_hidden, |values| {
            for (&row, d) in op.rows.iter().zip(d_scores.chunks_exact(n_outputs)) {
                let target = &mut values[row as usize * width..(row as usize + 1) * width];
                for (k, target) in target.iter_mut().enumerate() {
                    let sum =
                        d.iter().enumerate().fold(target.get(), |sum, (j, &d)| sum + d * head[j * width + k]);
                    *target = Elem::put(sum);
                }
            }
        });
    }
}

impl Tape<'_> {
    /// Scores `[rows.len(), n_outputs]` of the given rows of `hidden` `[T, width]` under the head, in `f32`.
    ///
    /// # Panics
    /// If widths disagree or a row is outside `hidden`.
    pub fn score_head(&mut self, hidden: &Var, head: ScoreWeights, rows: &[u32]) -> Var {
        let start = Instant::now();
        let param = self.params.get(head.weight);
        let (n_outputs, width) = (param.shape[0], param.shape[1]);
        assert_eq!(hidden.value().cols(), width, "the head fits the hidden states");
        let device = self.params.device();
        let mut out = Tensor::dirty(device, Dtype::F32, rows.len(), n_outputs);
        device.run(&mut ScoreHeadForward {
            hidden: hidden.value(),
            weight: &param.weight,
            bias: head.bias.map(|id| &self.params.get(id).weight),
            rows,
            out: &mut out,
        });
        self.profile.add("score_head", "forward", start);
        let trains = param.trainable || head.bias.is_some_and(|bias| self.params.get(bias).trainable);
        if !self.records(&[hidden], trains) {
            return self.constant(out);
        }
        let hidden_needs_grad = hidden.node.is_some();
        let op = ScoreHead { hidden: hidden.value.clone(), head, rows: rows.to_vec(), hidden_needs_grad };
        self.push(op, &[hidden], Rc::new(out))
    }
}

#[cfg(test)]
mod tests {
    use super::ScoreWeights;
    use crate::ops::testing::*;

    const WIDTH: usize = 6;

    #[test]
    fn gradients_match_finite_differences() {
        for (n_outputs, has_bias) in [(1, false), (3, false), (2, true)] {
            let mut setup = Setup::new(&[4, 3]);
            let (x, head) = (setup.input(WIDTH), setup.param("score", &[n_outputs, WIDTH]));
            let bias = has_bias.then(|| setup.param("score bias", &[n_outputs]));
            let params: Vec<_> = std::iter::once(head).chain(bias).collect();
            // A row may be scored twice.
            let rows = [3, 6, 3];
            let reference = |v: &[Vec<f64>]| {
                let dot = |row: u32, w: &[f64]| -> f64 {
                    let hidden = &v[0][row as usize * WIDTH..(row as usize + 1) * WIDTH];
                    hidden.iter().zip(w).map(|(h, w)| h * w).sum()
                };
                let bias = |j: usize| v.get(2).map_or(0.0, |bias| bias[j]);
                let scores = |&row: &u32| -> Vec<f64> {
                    v[1].chunks(WIDTH).enumerate().map(|(j, w)| dot(row, w) + bias(j)).collect()
                };
                rows.iter().flat_map(scores).collect()
            };
            let head = ScoreWeights { weight: head, bias };
            setup.check(|tape, v| tape.score_head(&v[0], head, &rows), reference, &[x], &params);
        }
    }
}
