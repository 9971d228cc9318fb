//! Rotary position embedding of queries and keys, in place.
//!
//! `(x_i, x_{i+h}) -> (x_i cos - x_{i+h} sin, x_{i+h} cos + x_i sin)` for `i < h`, `h` half the rotated width of a
//! head (the half-split pairing of Hugging Face weights). Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
//! Backward is the transpose, the rotation by the opposite angle.
//!
//! Every scaling variant is a choice of angles and of one factor on cosine and sine; the model makes them.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use pt_kernels::elem::Elem;
use pt_kernels::isa::fma;

use super::attention::AttentionShape;
use super::for_rows;
use crate::device::{Array, DeviceRef, Kernel};
use crate::tape::{Backward, Op, Tape, Var};
use crate::tensor::{Tensor, with_elems};

/// Cosine and sine of each row's angles, `[T, half]` each.
#[derive(Clone, Debug)]
pub struct Angles {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// The same where they are used, placed once for all layers.
    placed: RefCell<Option<Rc<[Array; 2]>>>,
}

impl Angles {
    /// For each row, `half` angles `angle(row, i)` in radians; cosine and sine are multiplied by `factor`.
    pub fn new(rows: usize, half: usize, factor: f64, angle: impl Fn(usize, usize) -> f64) -> Angles {
        let (mut cos, mut sin) = (Vec::with_capacity(rows * half), Vec::with_capacity(rows * half));
        for row in 0..rows {
            for i in 0..half {
                let (s, c) = angle(row, i).sin_cos();
                cos.push((c * factor) as f32);
                sin.push((s * factor) as f32);
            }
        }
        Angles { half, cos, sin, placed: RefCell::default() }
    }

    fn on(&self, device: DeviceRef) -> Rc<[Array; 2]> {
        let mut placed = self.placed.borrow_mut();
        match &*placed {
            Some(arrays) if arrays[0].device() == device => arrays.clone(),
            _ => {
                let place = |values: &Vec<f32>| Array::from_f32(values).to_device(device);
                placed.insert(Rc::new([place(&self.cos), place(&self.sin)])).clone()
            }
        }
    }
}

struct Rope {
    angles: Rc<Angles>,
    shape: AttentionShape,
}

impl<'m> Op<'m> for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn backward(self: Box<Self>, mut d_out: Tensor, _: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>> {
        rotate(&mut d_out, &self.shape, &self.angles, -1.0);
        vec![Some(d_out)]
    }
}

fn rotate(qkv: &mut Tensor, shape: &AttentionShape, angles: &Angles, direction: f32) {
    let device = qkv.device();
    let arrays = angles.on(device);
    let [cos, sin] = &*arrays;
    device.run(&mut Rotate { qkv, shape, half: angles.half, cos, sin, direction });
}

struct Rotate<'a> {
    qkv: &'a mut Tensor,
    shape: &'a AttentionShape,
    half: usize,
    cos: &'a Array,
    sin: &'a Array,
    direction: f32,
}

impl Kernel for Rotate<'_> {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu(&mut self) {
        let (half, direction, head_dim) = (self.half, self.direction, self.shape.head_dim);
        let (width, rotated) = (self.qkv.cols(), self.shape.heads + self.shape.kv_heads);
        let (cos, sin) = (self.cos.open().f32s(), self.sin.open().f32s());
        with_elems!(mut self.qkv, |values| for_rows(values, width, |t, row| {
            let at = t * half..(t + 1) * half;
            rotate_heads(&mut row[..rotated * head_dim], head_dim, &cos[at.clone()], &sin[at], direction);
        }));
    }
}

pt_kernels::kernel! {
    fn rotate_heads<E: Elem>(['a] heads: &'a mut [E], head_dim: usize, cos: &'a [f32], sin: &'a [f32], direction: f32) {
        let half = cos.len();
        for head in heads.chunks_exact_mut(head_dim) {
            let (low, high) = head.split_at_mut(half);
            let (high, sin) = (&mut high[..half], &sin[..half]);
            for i in 0..half {
                let (a, b, s) = (low[i].get(), high[i].get(), sin[i] * direction);
                low[i] = E::put(fma::<FMA>(-b, s, a * cos[i]));
                high[i] = E::put(fma::<FMA>(a, s, b * cos[i]));
            }
        }
    }
}

impl Tape<'_> {
    /// Rotates the queries and keys of `qkv` `[T, (heads + 2 kv_heads) head_dim]`; only the first `2 half` columns of
    /// each head turn. Takes the value, so that it is changed in place when nobody else holds it.
    pub fn rope(&mut self, qkv: Var, shape: &AttentionShape, angles: &Rc<Angles>) -> Var {
        let start = Instant::now();
        assert_eq!(qkv.value().cols(), shape.qkv_width(), "columns of queries, keys and values");
        assert_eq!(angles.cos.len(), qkv.value().rows() * angles.half, "angles of every row");
        assert!(2 * angles.half <= shape.head_dim, "no more than a head is rotated");
        let node = qkv.node;
        let records = self.records(&[&qkv], false);
        let mut value = qkv.into_owned();
        rotate(&mut value, shape, angles, 1.0);
        self.profile.add("rope", "forward", start);
        if records {
            let input = Var {
                value: Rc::new(Tensor::zeros(value.device(), value.dtype(), 0, 0)),
                node,
                recipe: None,
            };
            self.push(Rope { angles: angles.clone(), shape: *shape }, &[&input], Rc::new(value))
        } else {
            self.constant(value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;

    #[test]
    fn gradient_matches_finite_differences() {
        let shape =
            AttentionShape { heads: 2, kv_heads: 1, head_dim: 8, scale: 1.0, window: None, softcap: None };
        for half in [4, 3] {
            let mut setup = Setup::new(&[4]);
            let x = setup.input(shape.qkv_width());
            let angle = |t: usize, i: usize| t as f64 * 0.7 / (i + 1) as f64;
            let angles = Rc::new(Angles::new(4, half, 1.1, angle));
            let reference = |v: &[Vec<f64>]| {
                let mut out = v[0].clone();
                for (index, head) in out.chunks_mut(8).enumerate().filter(|(index, _)| index % 4 < 3) {
                    for i in 0..half {
                        let (sin, cos) = angle(index / 4, i).sin_cos();
                        let (a, b) = (head[i], head[i + half]);
                        head[i] = 1.1 * (a * cos - b * sin);
                        head[i + half] = 1.1 * (b * cos + a * sin);
                    }
                }
                out
            };
            setup.check(|tape, v| tape.rope(v[0].clone(), &shape, &angles), reference, &[x], &[]);
        }
    }
}
