//! `y = residual + x / rms(x) * (w + offset)`, with `rms(x) = sqrt(mean(x^2) + eps)` per row.
//!
//! Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4; `offset = 1` is Gemma's form.
//!
//! Backward, with `r = 1 / rms(x)` and `g = dy * (w + offset)`:
//! `dx = r g - x r^3 mean(g x)`, `dw = sum_t dy x r`.

use std::rc::Rc;
use std::time::Instant;

use pt_kernels::elem::Elem;
use pt_kernels::isa::fma;
use pt_kernels::math::{LANES, fold_lanes};
use rayon::prelude::*;

use super::{for_columns, for_rows};
use crate::device::{Host, Kernel};
use crate::params::{ParamId, Params, Weight};
use crate::tape::{Backward, Op, Recipe, Tape, Var};
use crate::tensor::{Dtype, Tensor};

struct RmsNorm {
    x: Rc<Tensor>,
    /// `[T, 1]`.
    inverse_rms: Tensor,
    weight: ParamId,
    offset: f32,
    has_residual: bool,
}

impl<'m> Op<'m> for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn backward(self: Box<Self>, d_out: Tensor, ctx: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>> {
        let device = d_out.device();
        let mut dx = Tensor::dirty(device, d_out.dtype(), d_out.rows(), d_out.cols());
        device.run(&mut RmsNormBackward { op: &self, d_out: &d_out, dx: &mut dx, ctx });
        if self.has_residual { vec![Some(dx), Some(d_out)] } else { vec![Some(dx)] }
    }
}

struct RmsNormBackward<'a, 'g, 'm> {
    op: &'a RmsNorm,
    d_out: &'a Tensor,
    dx: &'a mut Tensor,
    ctx: &'a mut Backward<'g, 'm>,
}

impl Kernel for RmsNormBackward<'_, '_, '_> {
    fn name(&self) -> &'static str {
        "rms_norm_backward"
    }

    fn cpu(&mut self) {
        let RmsNormBackward { op, d_out, dx, ctx } = self;
        let gain = shifted(ctx.params.vector(op.weight), op.offset);
        match (op.x.open(), d_out.open(), dx.open_mut()) {
            (Host::F32(x), Host::F32(d), Host::F32(dx)) => op.run(x, d, dx, &gain, ctx),
            (Host::Bf16(x), Host::Bf16(d), Host::Bf16(dx)) => op.run(x, d, dx, &gain, ctx),
            _ => unreachable!("activations of one tape have one type"),
        }
    }
}

impl RmsNorm {
    fn run<E: Elem>(&self, x: &[E], d: &[E], dx: &mut [E], gain: &[f32], ctx: &mut Backward<'_, '_>) {
        let cols = gain.len();
        let inverse_rms = self.inverse_rms.open().f32s();
        for_rows(dx, cols, |t, dx| {
            let at = t * cols..(t + 1) * cols;
            norm_row_backward(&x[at.clone()], &d[at], gain, inverse_rms[t], dx);
        });
        if ctx.params.trains(self.weight) {
            let dw = ctx.grads.slot(ctx.params, self.weight).open_mut().f32s_mut();
            for_columns(dw, |col0, dw| {
                for (t, r) in inverse_rms.iter().enumerate() {
                    let at = t * cols + col0..t * cols + col0 + dw.len();
                    norm_gain_backward(&x[at.clone()], &d[at], *r, dw);
                }
            });
        }
    }
}

/// `w + offset`.
pub(crate) fn shifted(mut weight: Vec<f32>, offset: f32) -> Vec<f32> {
    weight.iter_mut().for_each(|w| *w += offset);
    weight
}

pt_kernels::kernel! {
    /// Normalises one row; returns `1 / rms`.
    pub(crate) fn norm_row<E: Elem>(['a] x: &'a [E], gain: &'a [f32], eps: f32, out: &'a mut [E]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let mut chunks = x.chunks_exact(LANES);
        for chunk in &mut chunks {
            for i in 0..LANES {
                lanes[i] = fma::<FMA>(chunk[i].get(), chunk[i].get(), lanes[i]);
            }
        }
        for (lane, value) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane = fma::<FMA>(value.get(), value.get(), *lane);
        }
        let inverse_rms = 1.0 / (fold_lanes(lanes, |a, b| a + b) / x.len() as f32 + eps).sqrt();
        for ((out, x), g) in out.iter_mut().zip(x).zip(gain) {
            *out = E::put(x.get() * inverse_rms * g);
        }
        inverse_rms
    }
}

pt_kernels::kernel! {
    /// `dx` of one row.
    pub(crate) fn norm_row_backward<E: Elem>(['a] x: &'a [E], d: &'a [E], gain: &'a [f32], inverse_rms: f32, dx: &'a mut [E]) {
        let n = x.len();
        let (d, gain, dx) = (&d[..n], &gain[..n], &mut dx[..n]);
        let mut lanes = [0.0f32; LANES];
        let whole = n / LANES * LANES;
        for base in (0..whole).step_by(LANES) {
            for i in 0..LANES {
                lanes[i] = fma::<FMA>(d[base + i].get() * gain[base + i], x[base + i].get(), lanes[i]);
            }
        }
        for i in whole..n {
            lanes[i - whole] = fma::<FMA>(d[i].get() * gain[i], x[i].get(), lanes[i - whole]);
        }
        let mean = fold_lanes(lanes, |a, b| a + b) / n as f32;
        let pull = inverse_rms * inverse_rms * inverse_rms * mean;
        for i in 0..n {
            dx[i] = E::put(fma::<FMA>(-x[i].get(), pull, inverse_rms * (d[i].get() * gain[i])));
        }
    }
}

pt_kernels::kernel! {
    /// Adds one row's part of the gain's gradient.
    pub(crate) fn norm_gain_backward<E: Elem>(['a] x: &'a [E], d: &'a [E], inverse_rms: f32, dw: &'a mut [f32]) {
        let n = dw.len();
        let (x, d) = (&x[..n], &d[..n]);
        for i in 0..n {
            dw[i] = fma::<FMA>(d[i].get(), x[i].get() * inverse_rms, dw[i]);
        }
    }
}

fn forward_rows<E: Elem>(
    x: &[E],
    gain: &[f32],
    eps: f32,
    residual: Option<&[E]>,
    out: &mut [E],
    inverse_rms: &mut [f32],
) {
    let cols = gain.len();
    out.par_chunks_mut(cols).zip(inverse_rms).enumerate().with_min_len(16).for_each(|(t, (out, inverse))| {
        *inverse = norm_row(&x[t * cols..(t + 1) * cols], gain, eps, out);
        if let Some(residual) = residual {
            for (out, add) in out.iter_mut().zip(&residual[t * cols..]) {
                *out = E::put(out.get() + add.get());
            }
        }
    });
}

impl Tape<'_> {
    /// Root-mean-square normalisation of each row of `x` `[T, width]`, with gain `weight + offset` `[width]`; adds
    /// `residual` if given.
    pub fn rms_norm(
        &mut self,
        x: &Var,
        weight: ParamId,
        eps: f32,
        offset: f32,
        residual: Option<&Var>,
    ) -> Var {
        let start = Instant::now();
        let (out, inverse_rms) =
            normalise(x.value(), self.params, weight, eps, offset, residual.map(|r| r.value()));
        self.profile.add("rms_norm", "forward", start);
        let mut inputs = vec![x];
        inputs.extend(residual);
        if !self.records(&inputs, self.params.trains(weight)) {
            return self.constant(out);
        }
        let input = x.value.clone();
        let op = RmsNorm { x: input.clone(), inverse_rms, weight, offset, has_residual: residual.is_some() };
        let var = self.push(op, &inputs, Rc::new(out));
        let again = move |params: &Params| normalise(&input, params, weight, eps, offset, None).0;
        Var { recipe: residual.is_none().then(|| Recipe::new(again)), ..var }
    }
}

/// The result and `1 / rms` of each row.
fn normalise(
    x: &Tensor,
    params: &Params,
    weight: ParamId,
    eps: f32,
    offset: f32,
    residual: Option<&Tensor>,
) -> (Tensor, Tensor) {
    let weight = &params.get(weight).weight;
    assert_eq!(x.cols(), weight.len(), "one gain per column");
    let device = x.device();
    let mut out = Tensor::dirty(device, x.dtype(), x.rows(), x.cols());
    let mut inverse_rms = Tensor::dirty(device, Dtype::F32, x.rows(), 1);
    let (to, inverse) = (&mut out, &mut inverse_rms);
    device.run(&mut RmsNormForward { x, weight, eps, offset, residual, out: to, inverse_rms: inverse });
    (out, inverse_rms)
}

struct RmsNormForward<'a> {
    x: &'a Tensor,
    weight: &'a Weight,
    eps: f32,
    offset: f32,
    residual: Option<&'a Tensor>,
    out: &'a mut Tensor,
    inverse_rms: &'a mut Tensor,
}

impl Kernel for RmsNormForward<'_> {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu(&mut self) {
        let gain = shifted(self.weight.open().to_f32(), self.offset);
        let (eps, inverse) = (self.eps, self.inverse_rms.open_mut().f32s_mut());
        match (self.x.open(), self.out.open_mut(), self.residual.map(Tensor::open)) {
            (Host::F32(x), Host::F32(out), None) => forward_rows(x, &gain, eps, None, out, inverse),
            (Host::Bf16(x), Host::Bf16(out), None) => forward_rows(x, &gain, eps, None, out, inverse),
            (Host::F32(x), Host::F32(out), Some(Host::F32(r))) => {
                forward_rows(x, &gain, eps, Some(r), out, inverse);
            }
            (Host::Bf16(x), Host::Bf16(out), Some(Host::Bf16(r))) => {
                forward_rows(x, &gain, eps, Some(r), out, inverse);
            }
            _ => unreachable!("activations of one tape have one type"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::ops::testing::*;

    pub(crate) fn reference(x: &[f64], gain: &[f64], eps: f64, offset: f64) -> Vec<f64> {
        x.chunks(gain.len())
            .flat_map(|row| {
                let rms = (row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64 + eps).sqrt();
                row.iter().zip(gain).map(move |(v, g)| v / rms * (g + offset))
            })
            .collect()
    }

    #[test]
    fn gradient_matches_finite_differences() {
        for (cols, offset) in [(6, 0.0), (40, 1.0)] {
            let mut setup = Setup::new(&[5]);
            let (weight, x, r) = (setup.param("w", &[cols]), setup.input(cols), setup.input(cols));
            let plain = |v: &[Vec<f64>]| reference(&v[0], &v[1], 1e-5, f64::from(offset));
            setup.check(|tape, v| tape.rms_norm(&v[0], weight, 1e-5, offset, None), plain, &[x], &[weight]);
            let added = |v: &[Vec<f64>]| {
                reference(&v[0], &v[2], 1e-5, f64::from(offset))
                    .iter()
                    .zip(&v[1])
                    .map(|(a, b)| a + b)
                    .collect()
            };
            setup.check(
                |tape, v| tape.rms_norm(&v[0], weight, 1e-5, offset, Some(&v[1])),
                added,
                &[x, r],
                &[weight],
            );
        }
    }
}
