//! Linear layers that share their input: `y_i = x W_i^T + s (x A_i^T) B_i^T + b_i`, outputs side by side.
//!
//! The low-rank update joins the sum of the main product (see [`pt_kernels::gemm`]), so it costs no second pass
//! over the output. Backward, with `h = s x A^T` and `g = s dy B`:
//! `dx = sum_i dy_i W_i + g_i A_i`, `dW = dy^T x`, `dB = dy^T h`, `dA = g^T x`, `db = sum_t dy_t`; the gradient of a
//! frozen weight is never formed. Quantised weights are decoded while they are packed, in both directions.
//!
//! With DoRA, `y = c * (x W^T + h B^T) + b`, `c_n = m_n / ||W_n + s (B A)_n||`; the norm is constant in backward, so
//! `dm = sum_t dy (y - b) / m` and everything else sees `c dy`.

use std::rc::Rc;
use std::time::Instant;

use pt_core::rng::Stream;
use pt_kernels::elem::Elem;
use pt_kernels::gemm::{Epilogue, Operand, Output, Packed, Part, Right, gemm, pack_left};

use super::{for_columns, for_rows};
use crate::device::{DeviceRef, Kernel};
use crate::linear::{Linear, Lora};
use crate::params::{ParamId, Params};
use crate::tape::{Backward, Mode, Op, Recipe, Tape, Var};
use crate::tensor::{Dtype, Tensor, with_elems};

struct LinearOp {
    /// The input; empty until backward makes it by the recipe, or where nothing needs it.
    x: Rc<Tensor>,
    recipe: Option<Recipe>,
    n_tokens: usize,
    n_in: usize,
    layers: Vec<Saved>,
    has_residual: bool,
    x_needs_grad: bool,
}

struct Saved {
    weight: ParamId,
    bias: Option<ParamId>,
    n_out: usize,
    /// First column of this layer's output.
    col: usize,
    lora: Option<SavedLora>,
}

struct SavedLora {
    a: ParamId,
    b: ParamId,
    rank: usize,
    scale: f32,
    /// `s x A^T`, `[T, rank]`.
    h: Tensor,
    dropout: Option<Dropout>,
    dora: Option<SavedDora>,
}

struct SavedDora {
    magnitude: ParamId,
    /// `c`, `[1, n_out]`.
    col_scale: Tensor,
    /// The whole group's output, without the residual.
    y: Rc<Tensor>,
}

/// Which inputs an adapter does not see; a pure function of the step, the layer and the row's identity.
#[derive(Clone, Copy)]
struct Dropout {
    stream: Stream,
    probability: f32,
}

impl Dropout {
    /// Zeroes dropped elements and scales the others by `1 / (1 - p)`; in kernels on the CPU.
    fn apply(&self, tensor: &mut Tensor, row_keys: &[u64]) {
        let cols = tensor.cols();
        let keep = 1.0 / (1.0 - self.probability);
        let threshold = (f64::from(self.probability) * 4_294_967_296.0) as u32;
        with_elems!(mut tensor, |values| for_rows(values, cols, |t, row| {
            for (block, chunk) in row.chunks_mut(4).enumerate() {
                let words = self.stream.words(row_keys[t], block as u64);
                for (value, word) in chunk.iter_mut().zip(words) {
                    *value = Elem::put(if word < threshold { 0.0 } else { value.get() * keep });
                }
            }
        }));
    }
}

impl<'m> Op<'m> for LinearOp {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward(mut self: Box<Self>, d_out: Tensor, ctx: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>> {
        if let Some(recipe) = self.recipe.take() {
            self.x = Rc::new(recipe.make(ctx.params));
        }
        let mut kernel = LinearBackward { op: &self, d_out: &d_out, d_x: None, ctx };
        d_out.device().run(&mut kernel);
        let d_x = kernel.d_x;
        if self.has_residual { vec![d_x, Some(d_out)] } else { vec![d_x] }
    }
}

/// Gradients of the parameters that train, and of the input where it is wanted.
struct LinearBackward<'a, 'g, 'm> {
    op: &'a LinearOp,
    d_out: &'a Tensor,
    d_x: Option<Tensor>,
    ctx: &'a mut Backward<'g, 'm>,
}

impl Kernel for LinearBackward<'_, '_, '_> {
    fn name(&self) -> &'static str {
        "linear_backward"
    }

    fn cpu(&mut self) {
        let LinearBackward { op, d_out, ctx, .. } = self;
        let mut d_x_parts = Vec::new();
        let mut d_x_dropped = Vec::new();
        for layer in &op.layers {
            op.layer_backward(layer, d_out, ctx, &mut d_x_parts, &mut d_x_dropped);
        }
        self.d_x = op.x_needs_grad.then(|| op.d_x(&d_x_parts, d_x_dropped, ctx));
    }
}

/// One term of `dx`: a packed left operand and the parameter it multiplies.
struct DxPart {
    left: Packed,
    weight: ParamId,
}

impl LinearOp {
    /// Parameter gradients of one layer, and its terms of `dx`.
    fn layer_backward(
        &self,
        layer: &Saved,
        d_group: &Tensor,
        ctx: &mut Backward<'_, '_>,
        d_x_parts: &mut Vec<DxPart>,
        d_x_dropped: &mut Vec<(Tensor, Dropout)>,
    ) {
        let (n_tokens, precision) = (d_group.rows(), ctx.mode.dtype.precision());
        let (params, n) = (ctx.params, layer.n_out);
        if let Some(bias) = layer.bias.filter(|&id| params.trains(id)) {
            let db = ctx.grads.slot(params, bias).open_mut().f32s_mut();
            add_column_sums(db, d_group, layer.col);
        }
        let rescaled = layer.lora.as_ref().and_then(|lora| lora.dora.as_ref()).map(|dora| {
            if params.trains(dora.magnitude) {
                dora.magnitude_backward(layer, d_group, ctx);
            }
            scaled_columns(d_group, layer.col, dora.col_scale.open().f32s())
        });
        let (d, col) = rescaled.as_ref().map_or((d_group, layer.col), |d| (d, 0));
        let d_rows = Operand::k_inner(d.values_from(col), d.cols());
        let d_columns = Operand::k_outer(d.values_from(col), d.cols());
        let train_weight = params.trains(layer.weight);
        let train_b = layer.lora.as_ref().is_some_and(|lora| params.trains(lora.b));
        let by_column = (train_weight || train_b).then(|| pack_left(&d_columns, n, n_tokens, precision));
        let mut accumulate = |left: &Packed, id: ParamId, right: &Tensor, rows: usize| {
            let part = Part { a: left, b: Right::Operand(Operand::k_outer(right.values(), right.cols())) };
            let (sums, accumulate) = ctx.grads.product_slot(params, id);
            let out = Output::F32(sums.open_mut().f32s_mut(), right.cols());
            let epilogue = Epilogue { accumulate, ..Default::default() };
            gemm(rows, right.cols(), &[part], out, epilogue, precision);
        };
        if let (true, Some(left)) = (train_weight, &by_column) {
            accumulate(left, layer.weight, &self.x, n);
        }
        let by_row =
            (self.x_needs_grad || layer.lora.is_some()).then(|| pack_left(&d_rows, n_tokens, n, precision));
        if let (Some(lora), Some(left)) = (&layer.lora, &by_row) {
            if let (true, Some(left)) = (train_b, &by_column) {
                accumulate(left, lora.b, &lora.h, n);
            }
            // g = s dy B
            let mut g = Tensor::dirty(DeviceRef::cpu(), ctx.mode.dtype, n_tokens, lora.rank);
            let b = Operand::k_outer(params.get(lora.b).weight.open().values(), lora.rank);
            let epilogue = Epilogue { scale: Some(lora.scale), ..Default::default() };
            let part = Part { a: left, b: Right::Operand(b) };
            gemm(n_tokens, lora.rank, &[part], g.output_from(0), epilogue, precision);
            if params.trains(lora.a) {
                let left =
                    pack_left(&Operand::k_outer(g.values(), lora.rank), lora.rank, n_tokens, precision);
                match lora.dropout {
                    None => accumulate(&left, lora.a, &self.x, lora.rank),
                    Some(dropout) => {
                        let mut seen = self.x.copy_open();
                        dropout.apply(&mut seen, ctx.batch.row_keys());
                        accumulate(&left, lora.a, &seen, lora.rank);
                    }
                }
            }
            if self.x_needs_grad {
                let left =
                    pack_left(&Operand::k_inner(g.values(), lora.rank), n_tokens, lora.rank, precision);
                let part = DxPart { left, weight: lora.a };
                match lora.dropout {
                    None => d_x_parts.push(part),
                    Some(dropout) => d_x_dropped.push((self.product(&[part], ctx), dropout)),
                }
            }
        }
        if let (true, Some(left)) = (self.x_needs_grad, by_row) {
            d_x_parts.push(DxPart { left, weight: layer.weight });
        }
    }

    fn d_x(&self, parts: &[DxPart], dropped: Vec<(Tensor, Dropout)>, ctx: &Backward<'_, '_>) -> Tensor {
        let mut d_x = self.product(parts, ctx);
        for (mut part, dropout) in dropped {
            dropout.apply(&mut part, ctx.batch.row_keys());
            d_x.add_assign(&part);
        }
        d_x
    }

    /// `sum of left_i W_i`, `[T, n_in]`.
    fn product(&self, parts: &[DxPart], ctx: &Backward<'_, '_>) -> Tensor {
        let (n_tokens, n_in) = (self.n_tokens, self.n_in);
        let mut out = Tensor::dirty(ctx.params.device(), ctx.mode.dtype, n_tokens, n_in);
        let parts: Vec<Part<'_>> = parts
            .iter()
            .map(|part| {
                let weight = Operand::k_outer(ctx.params.get(part.weight).weight.open().values(), n_in);
                Part { a: &part.left, b: Right::Operand(weight) }
            })
            .collect();
        let precision = ctx.mode.dtype.precision();
        gemm(n_tokens, n_in, &parts, out.output_from(0), Epilogue::default(), precision);
        out
    }
}

impl SavedDora {
    /// `dm_n += sum_t dy (y - b) / m`.
    fn magnitude_backward(&self, layer: &Saved, d: &Tensor, ctx: &mut Backward<'_, '_>) {
        let magnitude = ctx.params.vector(self.magnitude);
        let bias = layer.bias.map_or_else(|| vec![0.0; layer.n_out], |id| ctx.params.vector(id));
        let dm = ctx.grads.slot(ctx.params, self.magnitude).open_mut().f32s_mut();
        for t in 0..d.rows() {
            let (dy, y) = (d.read_row(t), self.y.read_row(t));
            for n in 0..layer.n_out {
                dm[n] += dy[layer.col + n] * (y[layer.col + n] - bias[n]) / magnitude[n];
            }
        }
    }
}

fn add_column_sums(sums: &mut [f32], d: &Tensor, col: usize) {
    let ld = d.cols();
    with_elems!(d, |values| for_columns(sums, |first, sums| {
        for row in values.chunks_exact(ld) {
            for (sum, value) in sums.iter_mut().zip(&row[col + first..]) {
                *sum += value.get();
            }
        }
    }));
}

/// Columns `col .. col + scale.len()`, each times its factor.
fn scaled_columns(d: &Tensor, col: usize, scale: &[f32]) -> Tensor {
    let mut values = Vec::with_capacity(d.rows() * scale.len());
    for t in 0..d.rows() {
        values.extend(d.read_row(t)[col..].iter().zip(scale).map(|(v, s)| v * s));
    }
    Tensor::from_f32(&values, d.rows(), scale.len(), d.dtype())
}

/// `m_n / ||W_n + s (B A)_n||` for every output.
fn dora_scale(params: &Params, layer: &Linear, lora: &Lora, magnitude: ParamId) -> Vec<f32> {
    let precision = pt_kernels::gemm::Precision::F32;
    let (n, k) = (layer.n_out, layer.n_in);
    let mut merged = params.vector(layer.weight);
    let scaled_b: Vec<f32> = params.vector(lora.b).iter().map(|b| b * lora.scale).collect();
    let left = pack_left(
        &Operand::k_inner(pt_kernels::gemm::Values::F32(&scaled_b), lora.rank),
        n,
        lora.rank,
        precision,
    );
    let part =
        Part { a: &left, b: Right::Operand(Operand::k_outer(params.get(lora.a).weight.open().values(), k)) };
    let epilogue = Epilogue { accumulate: true, ..Default::default() };
    gemm(n, k, &[part], Output::F32(&mut merged, k), epilogue, precision);
    let norm = |row: &[f32]| row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>().sqrt();
    params
        .vector(magnitude)
        .iter()
        .zip(merged.chunks_exact(k))
        .map(|(m, row)| (f64::from(*m) / norm(row)) as f32)
        .collect()
}

impl<'m> Tape<'m> {
    /// The layers' outputs for one input `[T, n_in]`, side by side: `[T, sum of n_out]`, plus `residual` of that shape.
    ///
    /// # Panics
    /// If widths disagree, or if a residual is given to more than one layer.
    pub fn linear(&mut self, x: &Var, layers: &[&Linear], residual: Option<&Var>) -> Var {
        let start = Instant::now();
        assert!(residual.is_none() || layers.len() == 1, "a residual belongs to a single layer");
        let width: usize = layers.iter().map(|layer| layer.n_out).sum();
        let (n_tokens, n_in, dtype) = (x.value().rows(), x.value().cols(), self.mode.dtype);
        // DoRA's magnitude needs the output without the residual, so there the residual is added afterwards.
        let adapters = self.mode.adapters;
        let has_dora =
            adapters && layers.iter().filter_map(|l| l.lora.as_ref()).any(|l| l.magnitude.is_some());
        let (fused, added) = if has_dora { (None, residual) } else { (residual, None) };
        let device = x.value().device();
        let mut out = Tensor::dirty(device, dtype, n_tokens, width);
        let mut forward = LinearForward {
            x: x.value(),
            layers,
            residual: fused.map(Var::value),
            params: self.params,
            row_keys: self.batch.row_keys(),
            mode: self.mode,
            out: &mut out,
            saved: Vec::with_capacity(layers.len()),
        };
        device.run(&mut forward);
        let mut saved = forward.saved;
        let y = Rc::new(out);
        let out = added.map_or_else(
            || y.clone(),
            |residual| {
                let mut sum = (*y).clone();
                sum.add_assign(residual.value());
                Rc::new(sum)
            },
        );
        self.profile.add("linear", "forward", start);
        let mut inputs = vec![x];
        inputs.extend(residual);
        let trains = layers.iter().any(|layer| self.layer_trains(layer));
        if !self.records(&inputs, trains) {
            return Var { value: out, node: None, recipe: None };
        }
        for dora in saved.iter_mut().filter_map(|layer| layer.lora.as_mut()?.dora.as_mut()) {
            dora.y = y.clone();
        }
        let (kept, recipe) = self.keep_input(x, layers);
        let op = LinearOp {
            x: kept,
            recipe,
            n_tokens,
            n_in,
            layers: saved,
            has_residual: residual.is_some(),
            x_needs_grad: x.node.is_some(),
        };
        self.push(op, &inputs, out)
    }

    /// What backward needs of the input. Where whole weights train, their gradients and moments fill the memory and an
    /// input that is cheaply made again is not kept; adapters leave room for it.
    fn keep_input(&self, x: &Var, layers: &[&Linear]) -> (Rc<Tensor>, Option<Recipe>) {
        let trains = |id: ParamId| self.params.trains(id);
        let none = || Rc::new(Tensor::zeros(x.value().device(), self.mode.dtype, 0, 0));
        if layers.iter().any(|layer| trains(layer.weight)) && x.recipe.is_some() {
            return (none(), x.recipe.clone());
        }
        let needed =
            |layer: &&Linear| trains(layer.weight) || layer.lora.as_ref().is_some_and(|l| trains(l.a));
        (if layers.iter().any(needed) { x.value.clone() } else { none() }, None)
    }

    fn layer_trains(&self, layer: &Linear) -> bool {
        let lora = layer.lora.iter().flat_map(|lora| [Some(lora.a), Some(lora.b), lora.magnitude]);
        [Some(layer.weight), layer.bias].into_iter().chain(lora).flatten().any(|id| self.params.trains(id))
    }
}

/// The outputs, and of adapters what backward needs.
struct LinearForward<'a> {
    x: &'a Tensor,
    layers: &'a [&'a Linear],
    residual: Option<&'a Tensor>,
    params: &'a Params,
    row_keys: &'a [u64],
    mode: Mode,
    out: &'a mut Tensor,
    saved: Vec<Saved>,
}

impl Kernel for LinearForward<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu(&mut self) {
        let (n_tokens, n_in, precision) = (self.x.rows(), self.x.cols(), self.mode.dtype.precision());
        let left = pack_left(&Operand::k_inner(self.x.values(), n_in), n_tokens, n_in, precision);
        let mut col = 0;
        for layer in self.layers {
            assert_eq!(layer.n_in, n_in, "{} takes {} inputs", layer.name, layer.n_in);
            let adapter = layer.lora.as_ref().filter(|_| self.mode.adapters);
            let lora = adapter.map(|lora| self.lora_forward(&left, layer, lora));
            let left_h = lora.as_ref().map(|saved| {
                pack_left(&Operand::k_inner(saved.h.values(), saved.rank), n_tokens, saved.rank, precision)
            });
            let weight = Operand::k_inner(self.params.get(layer.weight).weight.open().values(), n_in);
            let mut parts = vec![Part { a: &left, b: Right::Operand(weight) }];
            if let (Some(lora), Some(left_h)) = (&lora, &left_h) {
                let b = Operand::k_inner(self.params.get(lora.b).weight.open().values(), lora.rank);
                parts.push(Part { a: left_h, b: Right::Operand(b) });
            }
            let bias = layer.bias.map(|id| self.params.vector(id));
            let dora = lora.as_ref().and_then(|lora| lora.dora.as_ref());
            let epilogue = Epilogue {
                bias: bias.as_deref(),
                residual: self.residual.map(Tensor::as_residual),
                col_scale: dora.map(|dora| dora.col_scale.open().f32s()),
                ..Default::default()
            };
            gemm(n_tokens, layer.n_out, &parts, self.out.output_from(col), epilogue, precision);
            self.saved.push(Saved { weight: layer.weight, bias: layer.bias, n_out: layer.n_out, col, lora });
            col += layer.n_out;
        }
    }
}

impl LinearForward<'_> {
    /// `h = s x A^T`, of the input the adapter sees.
    fn lora_forward(&self, left: &Packed, layer: &Linear, lora: &Lora) -> SavedLora {
        let (x, device, dtype) = (self.x, self.x.device(), self.mode.dtype);
        let (n_tokens, n_in, precision) = (x.rows(), x.cols(), dtype.precision());
        let dropout = self
            .mode
            .dropout_seed
            .filter(|_| lora.dropout > 0.0)
            .map(|seed| Dropout { stream: Stream::new(seed, &layer.name), probability: lora.dropout });
        let seen = dropout.map(|dropout| {
            let mut seen = x.copy_open();
            dropout.apply(&mut seen, self.row_keys);
            pack_left(&Operand::k_inner(seen.values(), n_in), n_tokens, n_in, precision)
        });
        let a = Operand::k_inner(self.params.get(lora.a).weight.open().values(), n_in);
        let part = Part { a: seen.as_ref().unwrap_or(left), b: Right::Operand(a) };
        let mut h = Tensor::dirty(device, dtype, n_tokens, lora.rank);
        let epilogue = Epilogue { scale: Some(lora.scale), ..Default::default() };
        gemm(n_tokens, lora.rank, &[part], h.output_from(0), epilogue, precision);
        let dora = lora.magnitude.map(|magnitude| {
            let mut col_scale = Tensor::dirty(device, Dtype::F32, 1, layer.n_out);
            let scale = dora_scale(self.params, layer, lora, magnitude);
            col_scale.open_mut().f32s_mut().copy_from_slice(&scale);
            SavedDora { magnitude, col_scale, y: Rc::new(Tensor::zeros(device, dtype, 0, 0)) }
        });
        SavedLora { a: lora.a, b: lora.b, rank: lora.rank, scale: lora.scale, h, dropout, dora }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;

    fn layer(
        weight: ParamId,
        bias: Option<ParamId>,
        n_in: usize,
        n_out: usize,
        lora: Option<Lora>,
    ) -> Linear {
        Linear { name: "layer".into(), weight, bias, n_in, n_out, lora }
    }

    /// `x W^T` over rows of `x`.
    fn product(x: &[f64], w: &[f64], n_in: usize) -> Vec<f64> {
        x.chunks(n_in)
            .flat_map(|x| w.chunks(n_in).map(move |w| x.iter().zip(w).map(|(a, b)| a * b).sum()))
            .collect()
    }

    #[test]
    fn grouped_layers_with_bias_match_finite_differences() {
        let mut setup = Setup::new(&[3, 4]);
        let x = setup.input(6);
        let (w1, w2, b2) = (setup.param("w1", &[5, 6]), setup.param("w2", &[3, 6]), setup.param("b2", &[3]));
        let (one, two) = (layer(w1, None, 6, 5, None), layer(w2, Some(b2), 6, 3, None));
        let reference = |v: &[Vec<f64>]| {
            let (y1, y2) = (product(&v[0], &v[1], 6), product(&v[0], &v[2], 6));
            (0..7)
                .flat_map(|t| {
                    let second = (0..3).map(|n| y2[t * 3 + n] + v[3][n]).collect::<Vec<_>>();
                    y1[t * 5..(t + 1) * 5].iter().copied().chain(second).collect::<Vec<_>>()
                })
                .collect()
        };
        setup.check(|tape, v| tape.linear(&v[0], &[&one, &two], None), reference, &[x], &[w1, w2, b2]);
    }

    #[test]
    fn residual_and_low_rank_update_match_finite_differences() {
        let mut setup = Setup::new(&[6]);
        let (x, r) = (setup.input(6), setup.input(4));
        let (w, a, b) = (setup.param("w", &[4, 6]), setup.param("a", &[2, 6]), setup.param("b", &[4, 2]));
        let lora = Lora { a, b, rank: 2, scale: 0.5, dropout: 0.0, magnitude: None };
        let linear = layer(w, None, 6, 4, Some(lora));
        let reference = |v: &[Vec<f64>]| {
            let update = product(&product(&v[0], &v[3], 6), &v[4], 2);
            let main = product(&v[0], &v[2], 6);
            main.iter().zip(&update).zip(&v[1]).map(|((m, u), r)| m + 0.5 * u + r).collect()
        };
        setup.check(|tape, v| tape.linear(&v[0], &[&linear], Some(&v[1])), reference, &[x, r], &[w, a, b]);
    }

    /// The norm is constant in backward, so the reference holds it at the point of evaluation.
    #[test]
    fn dora_matches_finite_differences() {
        let mut setup = Setup::new(&[6]);
        let (x, r) = (setup.input(6), setup.input(4));
        let (w, a, b) = (setup.param("w", &[4, 6]), setup.param("a", &[2, 6]), setup.param("b", &[4, 2]));
        let (m, bias) = (setup.param("m", &[4]), setup.param("bias", &[4]));
        let lora = Lora { a, b, rank: 2, scale: 0.5, dropout: 0.0, magnitude: Some(m) };
        let linear = layer(w, Some(bias), 6, 4, Some(lora));
        let norms = std::cell::OnceCell::new();
        let reference = |v: &[Vec<f64>]| {
            let norms: &Vec<f64> = norms.get_or_init(|| {
                (0..4)
                    .map(|n| {
                        let merged = |k: usize| {
                            v[2][n * 6 + k]
                                + 0.5 * (0..2).map(|r| v[4][n * 2 + r] * v[3][r * 6 + k]).sum::<f64>()
                        };
                        (0..6).map(|k| merged(k).powi(2)).sum::<f64>().sqrt()
                    })
                    .collect()
            });
            let update = product(&product(&v[0], &v[3], 6), &v[4], 2);
            let main = product(&v[0], &v[2], 6);
            (0..main.len())
                .map(|i| (main[i] + 0.5 * update[i]) * v[5][i % 4] / norms[i % 4] + v[6][i % 4] + v[1][i])
                .collect()
        };
        setup.check(
            |tape, v| tape.linear(&v[0], &[&linear], Some(&v[1])),
            reference,
            &[x, r],
            &[w, a, b, m, bias],
        );
    }

    /// The input is made again in backward where that is cheap; it must be the input, bit for bit.
    #[test]
    fn inputs_made_again_give_the_same_gradients() {
        let mut setup = Setup::new(&[7]);
        let (x, gain, w) = (setup.input(12), setup.param("gain", &[12]), setup.param("w", &[5, 6]));
        let linear = layer(w, None, 6, 5, None);
        let run = |kept: bool, dtype| {
            let op = |tape: &mut Tape<'_>, v: &[Var]| {
                let strip = |var: Var| if kept { Var { recipe: None, ..var } } else { var };
                let normed = strip(tape.rms_norm(&v[0], gain, 1e-5, 0.0, None));
                let gated = strip(tape.gated(&normed, crate::Activation::Silu));
                assert_eq!(gated.recipe.is_some(), !kept);
                tape.linear(&gated, &[&linear], None)
            };
            let upstream: Vec<f32> = (0..35).map(|i| (i as f32).sin()).collect();
            setup.run(&op, &[x], &[gain, w], dtype, Some(&upstream)).1
        };
        for dtype in [crate::Dtype::F32, crate::Dtype::Bf16] {
            assert_eq!(run(true, dtype), run(false, dtype));
        }
    }

    #[test]
    fn dropout_depends_on_the_row_and_keeps_the_mean() {
        let dropout = Dropout { stream: Stream::new(5, "layer"), probability: 0.25 };
        let drop = |keys: &[u64]| {
            let mut ones =
                Tensor::from_f32(&vec![1.0; keys.len() * 1000], keys.len(), 1000, crate::Dtype::F32);
            dropout.apply(&mut ones, keys);
            ones.to_f32()
        };
        let together = drop(&[7, 8, 9]);
        assert_eq!(together[1000..2000], drop(&[8]), "a row's mask does not depend on its neighbours");
        let mean: f32 = together.iter().sum::<f32>() / together.len() as f32;
        // Standard error of the mean of 3,000 values in {0, 4/3}: 0.0105.
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
        assert!(together.iter().all(|v| *v == 0.0 || (*v - 4.0 / 3.0).abs() < 1e-6));
    }
}
