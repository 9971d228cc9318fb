//! `y_t = scale * W[token_t]`.
//!
//! Backward adds `scale * dy_t` to row `token_t`, tokens in order, so that a token that occurs twice gets its
//! gradients in one fixed order. The sums stay apart from the matrix's other gradient until the step is complete
//! ([`crate::Grads::settle`]).

use std::rc::Rc;
use std::time::Instant;

use pt_kernels::elem::Elem;
use rayon::prelude::*;

use super::for_rows;
use crate::params::{LookedUp, ParamId, copy_row};
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
        let cols = d_out.cols();
        let tokens = ctx.batch.tokens();
        let sums = ctx.grads.looked_up(self.weight);
        with_elems!(&d_out, |d| scatter_add(sums, cols, tokens, d, self.scale));
        vec![]
    }
}

/// Adds each row of `d` to its token's sum: tokens side by side, the rows of one token in order.
fn scatter_add<E: Elem>(looked_up: &mut LookedUp, cols: usize, tokens: &[u32], d: &[E], scale: f32) {
    let mut order: Vec<u32> = (0..tokens.len() as u32).collect();
    order.sort_by_key(|&t| (tokens[t as usize], t));
    let runs: Vec<&[u32]> = order.chunk_by(|a, b| tokens[*a as usize] == tokens[*b as usize]).collect();
    for run in &runs {
        let n_known = looked_up.places.len();
        looked_up.places.entry(tokens[run[0] as usize]).or_insert(n_known);
    }
    looked_up.sums.resize(looked_up.places.len() * cols, 0.0);
    let mut by_place: Vec<&[u32]> = vec![&[]; looked_up.places.len()];
    for run in runs {
        by_place[looked_up.places[&tokens[run[0] as usize]]] = run;
    }
    looked_up.sums.par_chunks_mut(cols).zip(by_place).with_min_len(32).for_each(|(row, run)| {
        for &t in run {
            add_scaled(row, &d[t as usize * cols..(t as usize + 1) * cols], scale);
        }
    });
}

pt_kernels::kernel! {
    fn add_scaled<E: Elem>(['a] sum: &'a mut [f32], values: &'a [E], scale: f32) {
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum = pt_kernels::isa::fma::<FMA>(scale, value.get(), *sum);
        }
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
        let mut out = Tensor::dirty(self.mode.dtype, tokens.len(), cols);
        with_elems!(mut out, |values| for_rows(values, cols, |t, row| {
            copy_row(&param.weight, tokens[t] as usize, cols, scale, row);
        }));
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
