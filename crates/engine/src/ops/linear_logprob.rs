//! From hidden states to log-probabilities, without ever holding a `[tokens, vocabulary]` matrix.
//!
//! For each selected row `i` with target `t_i`, over logits `x_j = cap tanh(scale h.w_j / cap) / temperature`:
//!
//! - `logsumexp_i = ln sum_j e^{x_j}`
//! - `logp_i = x_{t_i} - logsumexp_i`
//! - `entropy_i = logsumexp_i - sum_j p_j x_j`
//! - `mean_logp_i = mean_j x_j - logsumexp_i` (for label smoothing)
//! - `correct_i`: no logit exceeds the target's.
//! - `log_collision_i = ln sum_j p_j^2` (for weighted preference optimisation); no gradient flows through it
//!
//! This is the one way from hidden states to language-model losses: objectives are arithmetic on these arrays, and
//! hand back `dlogp`, `dentropy` and `dmean_logp` per row. Backward recomputes the logits and forms
//!
//! `dx_j = dlogp (1[j=t] - p_j) + dmean_logp (1/V - p_j) - dentropy p_j (x_j - logsumexp + entropy)`
//!
//! chunk by chunk. The idea of a chunked, recomputing head is Liger's fused linear cross-entropy (Hsu et al. 2024,
//! arXiv:2410.10989); folding the upstream gradient in per row is what lets every objective share it.
//!
//! Sums over the vocabulary run in chunks of constant size, merged in order: they do not depend on threads, on the
//! other rows, or on whether the row was scored here or sampled from [`Tape::logits`].

pub(super) use self::head::skip;

mod head;
mod stats;

use std::rc::Rc;
use std::time::Instant;

use pt_kernels::buffer::Buffer;
use pt_kernels::elem::Elem;
use pt_kernels::gemm::{Operand, Part, Precision, Right, gemm_mapped, pack_left};
use pt_kernels::math::tanh;
use rayon::prelude::*;

use self::head::{Gradients, Head, Upstream};
use self::stats::{CHUNK_COLS, RowStats};
use crate::device::{Host, Kernel};
use crate::params::{Grads, Param, ParamId, Params};
use crate::tape::{Backward, Op, Seed, Tape, Var};
use crate::tensor::{Dtype, Tensor};

/// Columns of the result: see [`Logprobs`].
pub(super) const RESULT_COLS: usize = 6;

/// How logits are made from products with the head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogprobOptions {
    /// Divides the logits.
    pub temperature: f32,
    /// `cap * tanh(logit / cap)`, before the temperature (Gemma 2).
    pub softcap: Option<f32>,
    /// Multiplies the products.
    pub scale: f32,
}

impl Default for LogprobOptions {
    fn default() -> Self {
        LogprobOptions { temperature: 1.0, softcap: None, scale: 1.0 }
    }
}

impl LogprobOptions {
    /// The logit of a product with the head.
    #[inline(always)]
    fn logit<const FMA: bool>(&self, product: f32) -> f32 {
        let z = product * self.scale;
        let capped = match self.softcap {
            Some(cap) => cap * tanh::<FMA>(z / cap),
            None => z,
        };
        capped / self.temperature
    }

    /// Turns products with the head into logits.
    pub(super) fn make_logits(&self, products: &mut [f32]) {
        if (self.temperature, self.softcap, self.scale) != (1.0, None, 1.0) {
            to_logits(products, self);
        }
    }

    /// d logit / d product, given the logit.
    #[inline(always)]
    pub(super) fn slope(&self, logit: f32) -> f32 {
        let outer = match self.softcap {
            Some(cap) => {
                let t = logit * self.temperature / cap;
                1.0 - t * t
            }
            None => 1.0,
        };
        outer * self.scale / self.temperature
    }
}

/// What [`Tape::linear_logprob`] computes, one value per selected row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logprobs {
    /// Log-probability of the target, nats.
    pub logp: Vec<f32>,
    /// Entropy of the distribution, nats.
    pub entropy: Vec<f32>,
    /// Log of the sum of exponentiated logits.
    pub logsumexp: Vec<f32>,
    /// Mean over the vocabulary of the log-probabilities, nats.
    pub mean_logp: Vec<f32>,
    /// Whether no token is more probable than the target.
    pub correct: Vec<bool>,
    /// Log-probability that two draws agree, nats.
    pub log_collision: Vec<f32>,
}

impl Logprobs {
    /// Reads the value of [`Tape::linear_logprob`].
    pub fn of(var: &Var) -> Logprobs {
        Logprobs::of_table(var.value())
    }

    fn of_table(table: &Tensor) -> Logprobs {
        let values = table.to_f32();
        let column = |c: usize| values.iter().skip(c).step_by(RESULT_COLS).copied().collect::<Vec<f32>>();
        Logprobs {
            logp: column(0),
            entropy: column(1),
            logsumexp: column(2),
            mean_logp: column(3),
            correct: column(4).iter().map(|c| *c > 0.0).collect(),
            log_collision: column(5),
        }
    }

    /// Those of other rows after these.
    pub fn append(&mut self, more: Logprobs) {
        self.logp.extend(more.logp);
        self.entropy.extend(more.entropy);
        self.logsumexp.extend(more.logsumexp);
        self.mean_logp.extend(more.mean_logp);
        self.correct.extend(more.correct);
        self.log_collision.extend(more.log_collision);
    }

    /// Log-probability and statistics of `target` under a row of [`Tape::logits`]: the same bits that
    /// [`Tape::linear_logprob`] gives for the row.
    ///
    /// # Panics
    /// If `target` is outside the row.
    pub fn of_logits(logits: &[f32], target: u32) -> RowLogprob {
        let (mut stats, options) = (RowStats::default(), LogprobOptions::default());
        let mut chunk = Vec::with_capacity(CHUNK_COLS);
        for logits in logits.chunks(CHUNK_COLS) {
            chunk.clear();
            chunk.extend_from_slice(logits);
            stats.add(&mut chunk, &options);
        }
        stats.row(logits[target as usize], logits.len())
    }

    /// A gradient to seed a backward pass from `var` with.
    ///
    /// # Panics
    /// If the arrays do not have one value per row.
    pub fn seed(var: &Var, grad: &LogprobGrad<'_>) -> Seed {
        let n = var.value().rows();
        let mut values = vec![0.0; n * RESULT_COLS];
        for (col, source) in [(0, Some(grad.d_logp)), (1, grad.d_entropy), (3, grad.d_mean_logp)] {
            for (i, value) in source.into_iter().flatten().enumerate() {
                values[i * RESULT_COLS + col] = *value;
            }
            assert!(source.is_none_or(|s| s.len() == n), "one gradient per row");
        }
        let grad = Tensor::from_f32(&values, n, RESULT_COLS, Dtype::F32).to_device(var.value().device());
        Seed { var: var.clone(), grad }
    }
}

/// One row of [`Logprobs`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowLogprob {
    /// Log-probability of the target.
    pub logp: f32,
    /// Entropy of the distribution.
    pub entropy: f32,
    /// Log of the sum of exponentiated logits.
    pub logsumexp: f32,
    /// Mean log-probability over the vocabulary.
    pub mean_logp: f32,
    /// Whether no token is more probable than the target.
    pub correct: bool,
    /// Log-probability that two draws agree.
    pub log_collision: f32,
}

/// Upstream gradients, one value per selected row.
#[derive(Clone, Copy, Debug)]
pub struct LogprobGrad<'a> {
    /// With respect to `logp`.
    pub d_logp: &'a [f32],
    /// With respect to `entropy`.
    pub d_entropy: Option<&'a [f32]>,
    /// With respect to `mean_logp`.
    pub d_mean_logp: Option<&'a [f32]>,
}

struct LinearLogprob {
    /// The selected rows of the hidden states, `[n, width]`.
    selected: Tensor,
    hidden_rows: usize,
    head: ParamId,
    rows: Vec<u32>,
    targets: Vec<u32>,
    /// `[n, RESULT_COLS]`.
    result: Rc<Tensor>,
    /// The logit of each row's target, `[n, 1]`.
    target_logits: Tensor,
    options: LogprobOptions,
    hidden_needs_grad: bool,
    /// `d logp / d hidden` of the selected rows, where the head is frozen.
    unit: Option<Tensor>,
}

impl<'m> Op<'m> for LinearLogprob {
    fn name(&self) -> &'static str {
        "linear_logprob"
    }

    fn backward(self: Box<Self>, d_out: Tensor, ctx: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>> {
        let mut kernel = LogprobBackward { op: *self, d_out: &d_out, d_hidden: None, ctx };
        d_out.device().run(&mut kernel);
        vec![kernel.d_hidden]
    }
}

/// Statistics of the selected rows.
struct LogprobForward<'a> {
    head: Head<'a>,
    selected: &'a Tensor,
    targets: &'a [u32],
    result: &'a mut Tensor,
    target_logits: &'a mut Tensor,
    wants_unit: bool,
    unit: Option<Tensor>,
}

impl Kernel for LogprobForward<'_> {
    fn name(&self) -> &'static str {
        "linear_logprob"
    }

    fn cpu(&mut self) {
        let width = self.selected.cols();
        let scored = self.head.score(self.selected, self.targets, self.wants_unit);
        write_table(&scored.rows, self.result);
        self.target_logits.open_mut().f32s_mut().copy_from_slice(&scored.target_logits);
        self.unit = scored.unit.map(|unit| {
            let host = Host::F32(unit);
            Tensor::of_host(self.selected.device(), host, self.targets.len(), width)
        });
    }
}

struct LogprobBackward<'a, 'g, 'm> {
    op: LinearLogprob,
    d_out: &'a Tensor,
    d_hidden: Option<Tensor>,
    ctx: &'a mut Backward<'g, 'm>,
}

impl Kernel for LogprobBackward<'_, '_, '_> {
    fn name(&self) -> &'static str {
        "linear_logprob_backward"
    }

    fn cpu(&mut self) {
        let d_out = self.d_out.read();
        let only_logp = d_out.chunks_exact(RESULT_COLS).all(|d| d[1] == 0.0 && d[3] == 0.0);
        let mut unit = self.op.unit.take().filter(|_| only_logp);
        let op = &self.op;
        self.d_hidden = match &mut unit {
            Some(unit) => {
                let unit = unit.open_mut().f32s_mut();
                let rows =
                    unit.par_chunks_exact_mut(op.selected.cols()).zip(d_out.par_chunks_exact(RESULT_COLS));
                rows.with_min_len(16).for_each(|(row, d)| row.iter_mut().for_each(|v| *v *= d[0]));
                op.scatter(unit)
            }
            None => op.scatter(&op.recompute(&d_out, self.ctx)),
        };
    }
}

impl LinearLogprob {
    fn scatter(&self, d_selected: &[f32]) -> Option<Tensor> {
        self.hidden_needs_grad.then(|| scatter(d_selected, &self.rows, self.hidden_rows, &self.selected))
    }

    /// Gradients from logits that are computed again; returns that of the selected rows.
    fn recompute(&self, d_out: &[f32], ctx: &mut Backward<'_, '_>) -> Buffer<f32> {
        let len = self.selected.rows() * self.selected.cols();
        let mut hidden = Buffer::<f32>::zeroed(if self.hidden_needs_grad { len } else { 0 });
        let (head, accumulate) = head_gradient(ctx.grads, ctx.params, self.head);
        let into = Gradients { hidden: &mut hidden, head, accumulate };
        let result = self.result.open().f32s();
        let column = |c: usize| result.iter().skip(c).step_by(RESULT_COLS).copied().collect::<Vec<f32>>();
        let (entropy, logsumexp) = (column(1), column(2));
        let target_logits = self.target_logits.open().f32s();
        let target_slope: Vec<f32> = target_logits.iter().map(|&x| self.options.slope(x)).collect();
        let upstream =
            Upstream { d_out, entropy: &entropy, logsumexp: &logsumexp, target_slope: &target_slope };
        let param = ctx.params.get(self.head);
        let head = Head { param, options: &self.options, dtype: ctx.mode.dtype };
        head.gradients(&self.selected, &self.targets, &upstream, into);
        hidden
    }
}

/// Where the head's gradient goes, and whether it is added to; nothing where the head is frozen. For kernels on the CPU.
pub(super) fn head_gradient<'g>(
    grads: &'g mut Grads,
    params: &Params,
    head: ParamId,
) -> (&'g mut [f32], bool) {
    if !params.trains(head) {
        return (&mut [][..], false);
    }
    let (sums, holds) = grads.product_slot(params, head);
    (sums.open_mut().f32s_mut(), holds)
}

/// Scores and differentiates in one pass.
struct LogprobStep<'a> {
    head: Head<'a>,
    id: ParamId,
    hidden: &'a Tensor,
    rows: &'a [u32],
    selected: &'a Tensor,
    targets: &'a [u32],
    d_logp: &'a Tensor,
    result: &'a mut Tensor,
    hidden_needs_grad: bool,
    d_hidden: Option<Tensor>,
    params: &'a Params,
    grads: &'a mut Grads,
}

impl Kernel for LogprobStep<'_> {
    fn name(&self) -> &'static str {
        "linear_logprob_step"
    }

    fn cpu(&mut self) {
        let (n, width) = (self.selected.rows(), self.selected.cols());
        let mut d_selected = Buffer::<f32>::zeroed(if self.hidden_needs_grad { n * width } else { 0 });
        let (head, accumulate) = head_gradient(self.grads, self.params, self.id);
        let into = Gradients { hidden: &mut d_selected, head, accumulate };
        let d_logp = self.d_logp.open().f32s();
        let scored = self.head.step(self.selected, self.targets, d_logp, into);
        write_table(&scored.rows, self.result);
        let d_hidden = || scatter(&d_selected, self.rows, self.hidden.rows(), self.selected);
        self.d_hidden = self.hidden_needs_grad.then(d_hidden);
    }
}

/// The logits of the selected rows.
struct Logits<'a> {
    selected: &'a Tensor,
    param: &'a Param,
    options: &'a LogprobOptions,
    precision: Precision,
    out: &'a mut Tensor,
}

impl Kernel for Logits<'_> {
    fn name(&self) -> &'static str {
        "logits"
    }

    fn cpu(&mut self) {
        let (n, width, vocabulary) = (self.selected.rows(), self.selected.cols(), self.param.shape[0]);
        let left = pack_left(&Operand::k_inner(self.selected.values(), width), n, width, self.precision);
        let weight = Operand::k_inner(self.param.weight.open().values(), width);
        let part = Part { a: &left, b: Right::Operand(weight) };
        let map = |_: usize, _: usize, products: &mut [f32]| to_logits(products, self.options);
        gemm_mapped(n, vocabulary, &[part], self.out.output_from(0), self.precision, &map);
    }
}

/// Gradients of the selected rows at their places among all rows. For kernels on the CPU.
pub(super) fn scatter(d_selected: &[f32], rows: &[u32], n_rows: usize, selected: &Tensor) -> Tensor {
    let width = selected.cols();
    let mut d_hidden = Tensor::zeros(selected.device(), selected.dtype(), n_rows, width);
    crate::tensor::with_elems!(mut d_hidden, |values| {
        for (&row, d) in rows.iter().zip(d_selected.chunks_exact(width)) {
            let target = &mut values[row as usize * width..(row as usize + 1) * width];
            target.iter_mut().zip(d).for_each(|(t, d)| *t = Elem::put(t.get() + d));
        }
    });
    d_hidden
}

pt_kernels::kernel! {
    fn to_logits(['a] products: &'a mut [f32], options: &'a LogprobOptions) {
        for value in products.iter_mut() {
            *value = options.logit::<FMA>(*value);
        }
    }
}

/// The rows of `hidden` with the given indices.
pub(super) fn select_rows(hidden: &Tensor, rows: &[u32]) -> Tensor {
    let device = hidden.device();
    let mut selected = Tensor::dirty(device, hidden.dtype(), rows.len(), hidden.cols());
    device.run(&mut SelectRows { hidden, rows, selected: &mut selected });
    selected
}

struct SelectRows<'a> {
    hidden: &'a Tensor,
    rows: &'a [u32],
    selected: &'a mut Tensor,
}

impl Kernel for SelectRows<'_> {
    fn name(&self) -> &'static str {
        "select_rows"
    }

    fn cpu(&mut self) {
        let width = self.hidden.cols();
        match (self.hidden.open(), self.selected.open_mut()) {
            (Host::F32(from), Host::F32(to)) => copy_rows(from, to, self.rows, width),
            (Host::Bf16(from), Host::Bf16(to)) => copy_rows(from, to, self.rows, width),
            _ => unreachable!("the selection has the type of its source"),
        }
    }
}

fn copy_rows<E: Elem>(from: &[E], to: &mut [E], rows: &[u32], width: usize) {
    for (&row, to) in rows.iter().zip(to.chunks_exact_mut(width)) {
        to.copy_from_slice(&from[row as usize * width..(row as usize + 1) * width]);
    }
}

fn check_targets(rows: &[u32], targets: &[u32], param: &Param) {
    assert_eq!(rows.len(), targets.len(), "one target per row");
    let vocabulary = param.shape[0];
    if let Some(bad) = targets.iter().find(|&&target| target as usize >= vocabulary) {
        panic!("target {bad} is outside the vocabulary of {vocabulary}");
    }
}

/// Writes the value of [`Tape::linear_logprob`], `[n, RESULT_COLS]`.
fn write_table(rows: &[RowLogprob], table: &mut Tensor) {
    for (row, out) in rows.iter().zip(table.open_mut().f32s_mut().chunks_exact_mut(RESULT_COLS)) {
        let correct = f32::from(u8::from(row.correct));
        let values = [row.logp, row.entropy, row.logsumexp, row.mean_logp, correct, row.log_collision];
        out.copy_from_slice(&values);
    }
}

impl Tape<'_> {
    /// Scores `targets[i]` at row `rows[i]` of `hidden` `[T, width]` under the head `[vocabulary, width]`. Read the result
    /// with [`Logprobs::of`], seed its gradient with [`Logprobs::seed`].
    ///
    /// # Panics
    /// If a target is outside the vocabulary or a row outside `hidden`.
    pub fn linear_logprob(
        &mut self,
        hidden: &Var,
        head: ParamId,
        rows: &[u32],
        targets: &[u32],
        options: &LogprobOptions,
    ) -> Var {
        let start = Instant::now();
        let param = self.params.get(head);
        check_targets(rows, targets, param);
        let selected = select_rows(hidden.value(), rows);
        let recorded = self.records(&[hidden], param.trainable);
        let (device, n) = (self.params.device(), rows.len());
        let mut result = Tensor::dirty(device, Dtype::F32, n, RESULT_COLS);
        let mut target_logits = Tensor::dirty(device, Dtype::F32, n, 1);
        let mut kernel = LogprobForward {
            head: Head { param, options, dtype: self.mode.dtype },
            selected: &selected,
            targets,
            result: &mut result,
            target_logits: &mut target_logits,
            wants_unit: recorded && !param.trainable,
            unit: None,
        };
        device.run(&mut kernel);
        let unit = kernel.unit;
        self.profile.add("linear_logprob", "forward", start);
        if !recorded {
            return self.constant(result);
        }
        let result = Rc::new(result);
        let op = LinearLogprob {
            selected,
            hidden_rows: hidden.value().rows(),
            head,
            rows: rows.to_vec(),
            targets: targets.to_vec(),
            result: result.clone(),
            target_logits,
            options: *options,
            hidden_needs_grad: hidden.node.is_some(),
            unit,
        };
        self.push(op, &[hidden], result)
    }

    /// As [`Tape::linear_logprob`] followed by its backward pass, for an upstream gradient `d_logp` (one per row) that is
    /// known beforehand, as that of cross-entropy is: a third less work than computing the logits twice where the
    /// head trains. Adds the head's gradient to `grads` and returns what the rest of the backward pass starts from.
    ///
    /// # Panics
    /// As [`Tape::linear_logprob`]; also if `d_logp` has not one value per row.
    pub fn linear_logprob_step(
        &mut self,
        hidden: &Var,
        head: ParamId,
        rows: &[u32],
        targets: &[u32],
        options: &LogprobOptions,
        d_logp: &[f32],
        grads: &mut Grads,
    ) -> (Logprobs, Option<Seed>) {
        let start = Instant::now();
        let param = self.params.get(head);
        check_targets(rows, targets, param);
        assert_eq!(rows.len(), d_logp.len(), "one gradient per row");
        let selected = select_rows(hidden.value(), rows);
        let device = self.params.device();
        let d_logp = Tensor::from_f32(d_logp, rows.len(), 1, Dtype::F32).to_device(device);
        let mut result = Tensor::dirty(device, Dtype::F32, rows.len(), RESULT_COLS);
        let mut kernel = LogprobStep {
            head: Head { param, options, dtype: self.mode.dtype },
            id: head,
            hidden: hidden.value(),
            rows,
            selected: &selected,
            targets,
            d_logp: &d_logp,
            result: &mut result,
            hidden_needs_grad: hidden.needs_grad(),
            d_hidden: None,
            params: self.params,
            grads,
        };
        device.run(&mut kernel);
        let seed = kernel.d_hidden.map(|grad| Seed { var: hidden.clone(), grad });
        self.profile.add("linear_logprob", "step", start);
        (Logprobs::of_table(&result), seed)
    }

    /// The logits of the given rows, `[rows.len(), vocabulary]` in `f32`: for sampling, where they are needed whole.
    pub fn logits(&mut self, hidden: &Var, head: ParamId, rows: &[u32], options: &LogprobOptions) -> Tensor {
        let start = Instant::now();
        let param = self.params.get(head);
        let (device, precision) = (self.params.device(), self.mode.dtype.precision());
        let selected = select_rows(hidden.value(), rows);
        let mut out = Tensor::dirty(device, Dtype::F32, rows.len(), param.shape[0]);
        device.run(&mut Logits { selected: &selected, param, options, precision, out: &mut out });
        self.profile.add("logits", "forward", start);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;

    const WIDTH: usize = 6;

    fn reference(v: &[Vec<f64>], rows: &[u32], targets: &[u32], options: &LogprobOptions) -> Vec<f64> {
        let vocabulary = v[1].len() / WIDTH;
        let mut out = Vec::new();
        for (&row, &target) in rows.iter().zip(targets) {
            let hidden = &v[0][row as usize * WIDTH..(row as usize + 1) * WIDTH];
            let logits: Vec<f64> = v[1]
                .chunks(WIDTH)
                .map(|w| {
                    let z = hidden.iter().zip(w).map(|(a, b)| a * b).sum::<f64>() * f64::from(options.scale);
                    options.softcap.map_or(z, |cap| f64::from(cap) * (z / f64::from(cap)).tanh())
                        / f64::from(options.temperature)
                })
                .collect();
            let max = logits.iter().copied().fold(f64::MIN, f64::max);
            let lse = max + logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
            let entropy = -logits.iter().map(|x| (x - lse).exp() * (x - lse)).sum::<f64>();
            let mean = logits.iter().sum::<f64>() / vocabulary as f64 - lse;
            // The other columns carry no gradient in the operation: constants here.
            out.extend([logits[target as usize] - lse, entropy, 0.0, mean, 0.0, 0.0]);
        }
        out
    }

    #[test]
    fn every_output_and_gradient_matches_finite_differences() {
        let options =
            [LogprobOptions::default(), LogprobOptions { temperature: 0.7, softcap: Some(3.0), scale: 0.5 }];
        for options in options {
            for vocabulary in [7, 70] {
                let mut setup = Setup::new(&[4, 3]);
                let (x, head) = (setup.input(WIDTH), setup.param("head", &[vocabulary, WIDTH]));
                let (rows, targets) = ([5, 0, 2, 6], [3, 6, 0, 1]);
                let op = |tape: &mut Tape<'_>, v: &[Var]| {
                    tape.linear_logprob(&v[0], head, &rows, &targets, &options)
                };
                let truth = |v: &[Vec<f64>]| reference(v, &rows, &targets, &options);
                setup.check_columns(op, truth, &[x], &[head], &[0, 1, 3]);
            }
        }
    }

    const VARIANTS: [LogprobOptions; 2] = [
        LogprobOptions { temperature: 1.0, softcap: None, scale: 1.0 },
        LogprobOptions { temperature: 0.7, softcap: Some(3.0), scale: 0.5 },
    ];

    /// Rows 0, 2, 5, 6 of seven, scored against a vocabulary of two chunks and a bit.
    struct Case {
        setup: Setup,
        x: usize,
        head: ParamId,
        options: LogprobOptions,
    }

    const ROWS: [u32; 4] = [5, 0, 2, 6];
    const TARGETS: [u32; 4] = [3, 6, CHUNK_COLS as u32 + 1, 1];

    fn cases(trainable: bool) -> impl Iterator<Item = Case> {
        VARIANTS.into_iter().map(move |options| {
            let mut setup = Setup::new(&[4, 3]);
            let (x, head) = (setup.input(WIDTH), setup.param("head", &[2 * CHUNK_COLS + 5, WIDTH]));
            if !trainable {
                setup.freeze(head);
            }
            Case { setup, x, head, options }
        })
    }

    /// A frozen head's gradient is prepared in forward for `logp` alone (column 0), and recomputed for anything else.
    #[test]
    fn frozen_heads_match_finite_differences() {
        for Case { setup, x, head, options } in cases(false) {
            let weights = setup.values(head);
            for columns in [&[0, 0][..], &[0, 1, 3]] {
                let op = |tape: &mut Tape<'_>, v: &[Var]| {
                    tape.linear_logprob(&v[0], head, &ROWS, &TARGETS, &options)
                };
                let truth = |v: &[Vec<f64>]| {
                    let mut all = reference(&[v[0].clone(), weights.clone()], &ROWS, &TARGETS, &options);
                    let other = |(i, value): (usize, &mut f64)| {
                        if !columns.contains(&(i % RESULT_COLS)) {
                            *value = 0.0;
                        }
                    };
                    all.iter_mut().enumerate().for_each(other);
                    all
                };
                setup.check_columns(op, truth, &[x], &[], columns);
            }
        }
    }

    /// Scores and gradients of the hidden states and the head, in two passes or in one.
    fn pass(case: &Case, dtype: Dtype, d_logp: &[f32], at_once: bool) -> (Logprobs, Vec<Vec<f32>>) {
        let Case { setup, x, head, options } = case;
        setup.with_tape(&[*x], dtype, |mut tape, vars| {
            let mut grads = Grads::new();
            let (logprobs, seed) = if at_once {
                let (logprobs, seed) =
                    tape.linear_logprob_step(&vars[0], *head, &ROWS, &TARGETS, options, d_logp, &mut grads);
                (logprobs, seed.expect("the hidden states need a gradient"))
            } else {
                let var = tape.linear_logprob(&vars[0], *head, &ROWS, &TARGETS, options);
                let grad = LogprobGrad { d_logp, d_entropy: None, d_mean_logp: None };
                (Logprobs::of(&var), Logprobs::seed(&var, &grad))
            };
            let node = seed.var.node.expect("recorded");
            let hidden = tape.run_backward(vec![(node, seed.grad)], &mut grads, &mut Default::default());
            let mut all: Vec<Vec<f32>> = hidden.into_iter().flatten().map(|g| g.to_f32()).collect();
            all.extend(grads.get(*head).map(crate::Array::to_f32));
            (logprobs, all)
        })
    }

    #[test]
    fn one_pass_equals_forward_and_backward() {
        let d_logp = [-0.5, 0.25, -1.0, 2.0];
        for (case, n_grads) in cases(true).zip([2; 2]).chain(cases(false).zip([1; 2])) {
            for (dtype, tolerance) in TOLERANCES {
                let (scores, grads) = pass(&case, dtype, &d_logp, false);
                let (scores_at_once, grads_at_once) = pass(&case, dtype, &d_logp, true);
                assert_eq!(scores, scores_at_once, "bitwise");
                assert_eq!((grads.len(), grads_at_once.len()), (n_grads, n_grads));
                for (one, two) in grads_at_once.iter().zip(&grads) {
                    let two: Vec<f64> = two.iter().map(|&v| f64::from(v)).collect();
                    assert_close(one, &two, tolerance, &format!("{dtype:?} {:?}", case.options));
                }
            }
        }
    }

    #[test]
    fn the_collision_probability_is_the_sum_of_squares() {
        for Case { setup, x, head, options } in cases(true) {
            let op =
                |tape: &mut Tape<'_>, v: &[Var]| tape.linear_logprob(&v[0], head, &ROWS, &TARGETS, &options);
            let (scored, _) = setup.run(&op, &[x], &[head], Dtype::F32, None);
            let logits = |tape: &mut Tape<'_>, v: &[Var]| {
                let logits = tape.logits(&v[0], head, &ROWS, &options);
                tape.constant(logits)
            };
            let (logits, _) = setup.run(&logits, &[x], &[head], Dtype::F32, None);
            for (i, row) in logits.chunks(2 * CHUNK_COLS + 5).enumerate() {
                let powers = |k: f64| row.iter().map(|&x| (k * f64::from(x)).exp()).sum::<f64>().ln();
                let (found, expected) = (scored[i * RESULT_COLS + 5], powers(2.0) - 2.0 * powers(1.0));
                // Sums of a chunk are f32.
                assert!((f64::from(found) - expected).abs() < 1e-5, "{found} against {expected}");
            }
        }
    }

    /// More columns than one running state holds, and than one gradient block: chunks must merge without a seam.
    #[test]
    fn chunks_of_a_large_vocabulary_merge() {
        let vocabulary = 2 * CHUNK_COLS + 37;
        let mut setup = Setup::new(&[3]);
        let (x, head) = (setup.input(WIDTH), setup.param("head", &[vocabulary, WIDTH]));
        let (rows, targets) = ([0, 1, 2], [0, CHUNK_COLS as u32, vocabulary as u32 - 1]);
        let options = LogprobOptions::default();
        let op = |tape: &mut Tape<'_>, v: &[Var]| tape.linear_logprob(&v[0], head, &rows, &targets, &options);
        setup.check_forward(op, |v| reference(v, &rows, &targets, &options), &[x], &[head], &[0, 1, 3]);
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let logits = |tape: &mut Tape<'_>, v: &[Var]| {
                let logits = tape.logits(&v[0], head, &rows, &options);
                tape.constant(logits)
            };
            let (scored, _) = setup.run(&op, &[x], &[head], dtype, None);
            let (logits, _) = setup.run(&logits, &[x], &[head], dtype, None);
            for (i, target) in targets.into_iter().enumerate() {
                let row = Logprobs::of_logits(&logits[i * vocabulary..(i + 1) * vocabulary], target);
                let scored = &scored[i * RESULT_COLS..(i + 1) * RESULT_COLS];
                assert_eq!(
                    [row.logp, row.entropy, row.logsumexp, row.mean_logp],
                    scored[..4],
                    "sampled = scored, bitwise"
                );
            }
        }
    }
}
