//! `y_t = scale * W[token_t]`.
//!
//! Backward adds `scale * dy_t` to row `token_t`, tokens in order, so that a token that occurs twice gets its
//! gradients in one fixed order. The sums stay apart from the matrix's other gradient until the step is complete
//! ([`crate::Grads::settle`]).

use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use pt_kernels::elem::Elem;
use rayon::prelude::*;

use super::for_rows;
use crate::device::Kernel;
use crate::params::{LookedUp, ParamId, Weight, copy_row};
use crate::tape::{Backward, Op, Tape, Var};
use crate::tensor::{Tensor, with_elems};

struct Embedding {
    weight: ParamId,
    scale: f32,
}

impl<'m> Op<'m> for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn backward(self: Box<Self>, d_out: Tensor, ctx: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>> {
        let sums = ctx.grads.looked_up(ctx.params, self.weight);
        let tokens = ctx.batch.tokens();
        ctx.params.device().run(&mut ScatterAdd::new(sums, &d_out, tokens, self.scale));
        vec![]
    }
}

/// Adds each row of `d` to its token's sum: tokens side by side, the rows of one token in order.
struct ScatterAdd<'a> {
    sums: &'a mut LookedUp,
    d: &'a Tensor,
    /// The rows of `d` by token, each token's in order.
    order: Vec<u32>,
    /// For each place among the sums, its part of `order`.
    parts: Vec<Range<usize>>,
    scale: f32,
}

impl<'a> ScatterAdd<'a> {
    fn new(sums: &'a mut LookedUp, d: &'a Tensor, tokens: &[u32], scale: f32) -> ScatterAdd<'a> {
        let mut order: Vec<u32> = (0..tokens.len() as u32).collect();
        order.sort_by_key(|&t| (tokens[t as usize], t));
        let mut parts = vec![0..0; sums.places.len()];
        let mut start = 0;
        for run in order.chunk_by(|a, b| tokens[*a as usize] == tokens[*b as usize]) {
            let place = *sums.places.entry(tokens[run[0] as usize]).or_insert(parts.len());
            parts.resize(parts.len().max(place + 1), 0..0);
            parts[place] = start..start + run.len();
            start += run.len();
        }
        sums.grow(d.cols());
        ScatterAdd { sums, d, order, parts, scale }
    }
}

impl Kernel for ScatterAdd<'_> {
    fn name(&self) -> &'static str {
        "embedding_backward"
    }

    fn cpu(&mut self) {
        let (cols, sums, scale) = (self.d.cols(), self.sums.sums.open_mut().f32s_mut(), self.scale);
        with_elems!(self.d, |d| {
            sums.par_chunks_mut(cols).zip(&self.parts).with_min_len(32).for_each(|(row, part)| {
                for &t in &self.order[part.clone()] {
                    add_scaled(row, &d[t as usize * cols..(t as usize + 1) * cols], scale);
                }
            });
        });
    }
}

pt_kernels::kernel! {
    fn add_scaled<E: Elem>(['a] sum: &'a mut [f32], values: &'a [E], scale: f32) {
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum = pt_kernels::isa::fma::<FMA>(scale, value.get(), *sum);
        }
    }
}

struct LookUp<'a> {
    weight: &'a Weight,
    tokens: &'a [u32],
    scale: f32,
    out: &'a mut Tensor,
}

impl Kernel for LookUp<'_> {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu(&mut self) {
        let (cols, weight, tokens, scale) = (self.out.cols(), self.weight.open(), self.tokens, self.scale);
        with_elems!(mut self.out, |values| for_rows(values, cols, |t, row| {
            copy_row(weight, tokens[t] as usize, cols, scale, row);
        }));
    }
}

impl Tape<'_> {
    /// Rows of `weight` `[vocabulary, width]` for the batch's tokens, times `scale`. Returns `[T, width]`.
    ///
    /// # Panics
    /// If a token is not below the vocabulary; callers check token ids when they read data.
    pub fn embedding(&mut self, weight: ParamId, scale: f32) -> Var {
        let start = Instant::now();
        let param = self.params.get(weight);
        let (vocabulary, cols) = (param.shape[0], param.shape[1]);
        let tokens = self.batch.tokens();
        if let Some(bad) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            panic!("token {bad} is outside the vocabulary of {vocabulary}");
        }
        let device = self.params.device();
        let mut out = Tensor::dirty(device, self.mode.dtype, tokens.len(), cols);
        device.run(&mut LookUp { weight: &param.weight, tokens, scale, out: &mut out });
        self.profile.add("embedding", "forward", start);
        if self.records(&[], param.trainable) {
            self.push(Embedding { weight, scale }, &[], Rc::new(out))
        } else {
            self.constant(out)
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::*;

    #[test]
    fn gradient_matches_finite_differences() {
        let mut setup = Setup::new(&[5, 3]);
        let weight = setup.param("w", &[7, 6]);
        let tokens = setup.tokens.clone();
        let reference = |v: &[Vec<f64>]| {
            tokens
                .iter()
                .flat_map(|&t| v[0][t as usize * 6..(t as usize + 1) * 6].iter().map(|x| 1.5 * x))
                .collect()
        };
        setup.check(|tape, _| tape.embedding(weight, 1.5), reference, &[], &[weight]);
    }
}
