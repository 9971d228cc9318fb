//! Gated activation `y = act(gate) * up` of a `[T, 2 F]` matrix that holds gate and up side by side.
//!
//! SwiGLU and GeGLU: Shazeer 2020, arXiv:2002.05202, eq. 5 and 6.

use std::rc::Rc;
use std::time::Instant;

use pt_kernels::elem::Elem;
use pt_kernels::isa::fma;
use pt_kernels::math::{sigmoid, tanh};

use super::for_rows;
use crate::device::{Host, Kernel};
use crate::tape::{Backward, Op, Recipe, Tape, Var};
use crate::tensor::Tensor;

/// The nonlinearity of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, as `gelu_pytorch_tanh`.
    GeluTanh,
}

impl Activation {
    /// Value and derivative.
    #[inline(always)]
    fn both<const FMA: bool>(self, x: f32) -> (f32, f32) {
        match self {
            Activation::Silu => {
                let s = sigmoid::<FMA>(x);
                (x * s, s * fma::<FMA>(x, 1.0 - s, 1.0))
            }
            Activation::GeluTanh => {
                const SQRT_2_OVER_PI: f32 = 0.797_884_6;
                const CUBIC: f32 = 0.044_715;
                let t = tanh::<FMA>(SQRT_2_OVER_PI * fma::<FMA>(CUBIC * x * x, x, x));
                let slope = SQRT_2_OVER_PI * fma::<FMA>(3.0 * CUBIC * x, x, 1.0);
                (0.5 * x * (1.0 + t), fma::<FMA>(0.5 * x * (1.0 - t * t), slope, 0.5 * (1.0 + t)))
            }
        }
    }
}

struct Gated {
    gate_up: Rc<Tensor>,
    activation: Activation,
}

impl<'m> Op<'m> for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn backward(self: Box<Self>, d_out: Tensor, _: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>> {
        let device = d_out.device();
        let mut dx = Tensor::dirty(device, d_out.dtype(), d_out.rows(), 2 * d_out.cols());
        device.run(&mut GatedBackward { op: &self, d_out: &d_out, dx: &mut dx });
        vec![Some(dx)]
    }
}

struct GatedForward<'a> {
    gate_up: &'a Tensor,
    activation: Activation,
    out: &'a mut Tensor,
}

impl Kernel for GatedForward<'_> {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu(&mut self) {
        let (width, activation) = (self.out.cols(), self.activation);
        match (self.gate_up.open(), self.out.open_mut()) {
            (Host::F32(x), Host::F32(out)) => forward_rows(x, out, width, activation),
            (Host::Bf16(x), Host::Bf16(out)) => forward_rows(x, out, width, activation),
            _ => unreachable!("activations of one tape have one type"),
        }
    }
}

struct GatedBackward<'a> {
    op: &'a Gated,
    d_out: &'a Tensor,
    dx: &'a mut Tensor,
}

impl Kernel for GatedBackward<'_> {
    fn name(&self) -> &'static str {
        "gated_backward"
    }

    fn cpu(&mut self) {
        let (width, activation) = (self.d_out.cols(), self.op.activation);
        match (self.op.gate_up.open(), self.d_out.open(), self.dx.open_mut()) {
            (Host::F32(x), Host::F32(d), Host::F32(dx)) => backward_rows(x, d, dx, width, activation),
            (Host::Bf16(x), Host::Bf16(d), Host::Bf16(dx)) => backward_rows(x, d, dx, width, activation),
            _ => unreachable!("activations of one tape have one type"),
        }
    }
}

fn forward_rows<E: Elem>(x: &[E], out: &mut [E], width: usize, activation: Activation) {
    for_rows(out, width, |t, out| {
        let (gate, up) = x[2 * t * width..2 * (t + 1) * width].split_at(width);
        match activation {
            Activation::Silu => gate_row_silu(gate, up, out),
            Activation::GeluTanh => gate_row_gelu(gate, up, out),
        }
    });
}

fn backward_rows<E: Elem>(x: &[E], d: &[E], dx: &mut [E], width: usize, activation: Activation) {
    for_rows(dx, 2 * width, |t, dx| {
        let (gate, up) = x[2 * t * width..2 * (t + 1) * width].split_at(width);
        let (d_gate, d_up) = dx.split_at_mut(width);
        let d = &d[t * width..(t + 1) * width];
        match activation {
            Activation::Silu => gate_row_silu_backward(gate, up, d, d_gate, d_up),
            Activation::GeluTanh => gate_row_gelu_backward(gate, up, d, d_gate, d_up),
        }
    });
}

/// The loops of one activation; the activation is a literal so that the loop holds no branch.
macro_rules! gate_rows {
    ($forward:ident, $backward:ident, $activation:expr) => {
        pt_kernels::kernel! {
            fn $forward<E: Elem>(['a] gate: &'a [E], up: &'a [E], out: &'a mut [E]) {
                let n = out.len();
                let (gate, up) = (&gate[..n], &up[..n]);
                for i in 0..n {
                    out[i] = E::put($activation.both::<FMA>(gate[i].get()).0 * up[i].get());
                }
            }
        }
        pt_kernels::kernel! {
            fn $backward<E: Elem>(['a] gate: &'a [E], up: &'a [E], d: &'a [E], d_gate: &'a mut [E], d_up: &'a mut [E]) {
                let n = d.len();
                let (gate, up, d_gate, d_up) = (&gate[..n], &up[..n], &mut d_gate[..n], &mut d_up[..n]);
                for i in 0..n {
                    let (value, slope) = $activation.both::<FMA>(gate[i].get());
                    d_gate[i] = E::put(d[i].get() * up[i].get() * slope);
                    d_up[i] = E::put(d[i].get() * value);
                }
            }
        }
    };
}
gate_rows!(gate_row_silu, gate_row_silu_backward, Activation::Silu);
gate_rows!(gate_row_gelu, gate_row_gelu_backward, Activation::GeluTanh);

impl Tape<'_> {
    /// `activation(gate) * up` for `gate_up` `[T, 2 F]`; returns `[T, F]`.
    pub fn gated(&mut self, gate_up: &Var, activation: Activation) -> Var {
        let start = Instant::now();
        let out = gate(gate_up.value(), activation);
        self.profile.add("gated", "forward", start);
        if !self.records(&[gate_up], false) {
            return self.constant(out);
        }
        let input = gate_up.value.clone();
        let op = Gated { gate_up: input.clone(), activation };
        let var = self.push(op, &[gate_up], Rc::new(out));
        Var { recipe: Some(Recipe::new(move |_| gate(&input, activation))), ..var }
    }
}

fn gate(gate_up: &Tensor, activation: Activation) -> Tensor {
    let device = gate_up.device();
    let mut out = Tensor::dirty(device, gate_up.dtype(), gate_up.rows(), gate_up.cols() / 2);
    device.run(&mut GatedForward { gate_up, activation, out: &mut out });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;

    #[test]
    fn gradient_matches_finite_differences() {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut setup = Setup::new(&[3]);
            let x = setup.input(20);
            let act = |x: f64| match activation {
                Activation::Silu => x / (1.0 + (-x).exp()),
                Activation::GeluTanh => {
                    0.5 * x
                        * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
                }
            };
            let reference = |v: &[Vec<f64>]| {
                v[0].chunks(20).flat_map(|row| (0..10).map(move |i| act(row[i]) * row[10 + i])).collect()
            };
            setup.check(|tape, v| tape.gated(&v[0], activation), reference, &[x], &[]);
        }
    }
}
