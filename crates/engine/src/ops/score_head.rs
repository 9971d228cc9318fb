//! A score head: `s_ij = h_{r_i} . w_j` for selected rows of the hidden states, in `f32`.
//!
//! Rewards, values and step labels are read from it. Heads have a handful of outputs and the rows are few, so a dot product at
//! a time is enough; each sum runs over the width in one order, whatever else is in the batch.
//!
//! Backward: `dh_r = sum_j ds_j w_j`, `dw_j = sum_i ds_ij h_{r_i}`, rows in order.

use std::rc::Rc;
use std::time::Instant;

use crate::params::ParamId;
use crate::tape::{Backward, Op, Tape, Var};
use crate::tensor::{Dtype, Tensor, with_elems};
use pt_kernels::elem::Elem;

struct ScoreHead {
    hidden: Rc<Tensor>,
    head: ParamId,
    rows: Vec<u32>,
    hidden_needs_grad: bool,
}

impl<'m> Op<'m> for ScoreHead {
    fn name(&self) -> &'static str {
        "score_head"
    }

    fn backward(self: Box<Self>, d_out: Tensor, ctx: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>> {
        let (width, n_outputs) = (self.hidden.cols(), d_out.cols());
        let d_scores = d_out.to_f32();
        if ctx.params.trains(self.head) {
            let d_head = ctx.grads.slot(ctx.params, self.head);
            for (&row, d) in self.rows.iter().zip(d_scores.chunks_exact(n_outputs)) {
                let hidden = self.hidden.row_to_f32(row as usize);
                for (d_head, &d) in d_head.chunks_exact_mut(width).zip(d) {
                    d_head.iter_mut().zip(&hidden).for_each(|(sum, &h)| *sum += d * h);
                }
            }
        }
        let d_hidden = self.hidden_needs_grad.then(|| {
            let head = ctx.params.get(self.head).weight.to_f32();
            let mut d_hidden = Tensor::zeros(self.hidden.dtype(), self.hidden.rows(), width);
            with_elems!(mut d_hidden, |values| {
                for (&row, d) in self.rows.iter().zip(d_scores.chunks_exact(n_outputs)) {
                    let target = &mut values[row as usize * width..(row as usize + 1) * width];
                    for (k, target) in target.iter_mut().enumerate() {
                        let sum = d
                            .iter()
                            .enumerate()
                            .fold(target.get(), |sum, (j, &d)| sum + d * head[j * width + k]);
                        *target = Elem::put(sum);
                    }
                }
            });
            d_hidden
        });
        vec![d_hidden]
    }
}

impl Tape<'_> {
    /// Scores `[rows.len(), n_outputs]` of the given rows of `hidden` `[T, width]` under the head `[n_outputs, width]`, in `f32`.
    ///
    /// # Panics
    /// If widths disagree or a row is outside `hidden`.
    pub fn score_head(&mut self, hidden: &Var, head: ParamId, rows: &[u32]) -> Var {
        let start = Instant::now();
        let param = self.params.get(head);
        let (n_outputs, width) = (param.shape[0], param.shape[1]);
        assert_eq!(hidden.value().cols(), width, "the head fits the hidden states");
        let weights = param.weight.to_f32();
        let mut scores = Vec::with_capacity(rows.len() * n_outputs);
        for &row in rows {
            let hidden = hidden.value().row_to_f32(row as usize);
            let dot =
                |w: &[f32]| w.iter().zip(&hidden).map(|(&w, &h)| f64::from(w) * f64::from(h)).sum::<f64>();
            scores.extend(weights.chunks_exact(width).map(|w| dot(w) as f32));
        }
        let out = Tensor::from_f32(&scores, rows.len(), n_outputs, Dtype::F32);
        self.profile.add("score_head", "forward", start);
        if !self.records(&[hidden], param.trainable) {
            return self.constant(out);
        }
        let hidden_needs_grad = hidden.node.is_some();
        let op = ScoreHead { hidden: hidden.value.clone(), head, rows: rows.to_vec(), hidden_needs_grad };
        self.push(op, &[hidden], Rc::new(out))
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::*;

    const WIDTH: usize = 6;

    #[test]
    fn gradients_match_finite_differences() {
        for n_outputs in [1, 3] {
            let mut setup = Setup::new(&[4, 3]);
            let (x, head) = (setup.input(WIDTH), setup.param("score", &[n_outputs, WIDTH]));
            // A row may be scored twice.
            let rows = [3, 6, 3];
            let reference = |v: &[Vec<f64>]| {
                let dot = |row: u32, w: &[f64]| -> f64 {
                    let hidden = &v[0][row as usize * WIDTH..(row as usize + 1) * WIDTH];
                    hidden.iter().zip(w).map(|(h, w)| h * w).sum()
                };
                rows.iter().flat_map(|&row| v[1].chunks(WIDTH).map(move |w| dot(row, w))).collect()
            };
            setup.check(|tape, v| tape.score_head(&v[0], head, &rows), reference, &[x], &[head]);
        }
    }
}
