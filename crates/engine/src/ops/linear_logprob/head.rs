//! The passes over the head: blocks of rows, chunks of the vocabulary.
//!
//! A chunk of logits is a matrix product into scratch, then a pass over its rows; what the rows become (weights, or
//! gradients) is the left operand of further products while it is still in the cache.

use std::ops::Range;

use pt_kernels::buffer::{Buffer, Plain};
use pt_kernels::elem::{Elem, narrow};
use pt_kernels::gemm::{Epilogue, Operand, Output, Packed, Part, Precision, Right, Values, gemm, pack_left};
use pt_kernels::isa::fma;
use pt_kernels::math::exp;
use rayon::prelude::*;

use super::stats::{CHUNK_COLS, RowStats};
use super::{LogprobOptions, RESULT_COLS, RowLogprob};
use crate::params::{Param, copy_row};
use crate::tensor::{Dtype, Tensor};

/// Rows whose logits of one chunk are held at once.
const BLOCK_ROWS: usize = 1024;
/// Bytes of scratch for rows whose weights are held over the whole vocabulary, in [`Head::step`].
const STEP_BYTES: usize = 64 << 20;
/// Rows one task handles; results do not depend on it.
const ROWS_PER_TASK: usize = 8;

/// An element type that weights and gradients of logits are stored in.
trait Storage: Elem + Plain {
    fn values(slice: &[Self]) -> Values<'_>;
}

impl Storage for f32 {
    fn values(slice: &[f32]) -> Values<'_> {
        Values::F32(slice)
    }
}

impl Storage for half::bf16 {
    fn values(slice: &[half::bf16]) -> Values<'_> {
        Values::Bf16(slice)
    }
}

/// The head and how its products become logits.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) param: &'a Param,
    pub(super) options: &'a LogprobOptions,
    pub(super) dtype: Dtype,
}

/// What scoring found.
pub(super) struct Scored {
    pub(super) rows: Vec<RowLogprob>,
    /// The logit of each row's target.
    pub(super) target_logits: Vec<f32>,
    /// `d logp / d hidden`, `[n, width]`, if it was asked for.
    pub(super) unit: Option<Buffer<f32>>,
}

/// Upstream gradients and statistics that the gradient of the logits is computed from.
pub(super) struct Upstream<'a> {
    /// `[n, RESULT_COLS]`.
    pub(super) d_out: &'a [f32],
    pub(super) entropy: &'a [f32],
    pub(super) logsumexp: &'a [f32],
    /// d logit / d product at each row's target.
    pub(super) target_slope: &'a [f32],
}

/// Where gradients go; an empty slice where none are wanted.
pub(super) struct Gradients<'a> {
    /// `[n, width]`.
    pub(super) hidden: &'a mut [f32],
    /// `[vocabulary, width]`.
    pub(super) head: &'a mut [f32],
    /// Whether the head's gradient holds anything to add to; if not, all of it is written.
    pub(super) accumulate: bool,
}

impl Gradients<'_> {
    /// Without rows nothing is written: the head's gradient is zeros then.
    fn start(&mut self, n_rows: usize) {
        if n_rows == 0 && !self.accumulate {
            self.head.fill(0.0);
        }
    }

    /// The part that a block of rows adds to.
    fn block(&mut self, rows: &Range<usize>, width: usize) -> Gradients<'_> {
        let hidden = match self.hidden.is_empty() {
            true => &mut [],
            false => &mut self.hidden[rows.start * width..rows.end * width],
        };
        Gradients { hidden, head: self.head, accumulate: self.accumulate || rows.start > 0 }
    }
}

impl<'a> Head<'a> {
    fn vocabulary(&self) -> usize {
        self.param.shape[0]
    }

    fn width(&self) -> usize {
        self.param.shape[1]
    }

    fn precision(&self) -> Precision {
        self.dtype.precision()
    }

    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let vocabulary = self.vocabulary();
        (0..vocabulary).step_by(CHUNK_COLS).map(move |first| first..(first + CHUNK_COLS).min(vocabulary))
    }

    /// The head's rows `cols.start ..`.
    fn weight(&self, cols: &Range<usize>) -> Values<'a> {
        skip(self.param.weight.open().values(), cols.start * self.width())
    }

    fn pack(&self, hidden: &Tensor, rows: &Range<usize>) -> Packed {
        let operand = Operand::k_inner(skip(hidden.values(), rows.start * self.width()), self.width());
        pack_left(&operand, rows.len(), self.width(), self.precision())
    }

    /// `hidden W^T` of packed rows at some columns.
    fn products(&self, left: &Packed, n_rows: usize, cols: &Range<usize>, out: &mut [f32]) {
        let part = Part { a: left, b: Right::Operand(Operand::k_inner(self.weight(cols), self.width())) };
        let out = Output::F32(out, cols.len());
        gemm(n_rows, cols.len(), &[part], out, Epilogue::default(), self.precision());
    }

    /// `sums += d W` for `d` `[n_rows, cols]` at leading dimension `ld`.
    fn add_to_hidden<E: Storage>(
        &self,
        d: &[E],
        ld: usize,
        n_rows: usize,
        cols: &Range<usize>,
        sums: &mut [f32],
    ) {
        let left = pack_left(&Operand::k_inner(E::values(d), ld), n_rows, cols.len(), self.precision());
        let part = Part { a: &left, b: Right::Operand(Operand::k_outer(self.weight(cols), self.width())) };
        let epilogue = Epilogue { accumulate: true, ..Default::default() };
        gemm(n_rows, self.width(), &[part], Output::F32(sums, self.width()), epilogue, self.precision());
    }

    /// `d^T hidden`, added to some rows of the head's gradient.
    fn add_to_head<E: Storage>(
        &self,
        d: &[E],
        ld: usize,
        hidden: &Tensor,
        rows: &Range<usize>,
        cols: &Range<usize>,
        into: &mut Gradients<'_>,
    ) {
        let width = self.width();
        let left = pack_left(&Operand::k_outer(E::values(d), ld), cols.len(), rows.len(), self.precision());
        let hidden = skip(hidden.values(), rows.start * width);
        let part = Part { a: &left, b: Right::Operand(Operand::k_outer(hidden, width)) };
        let out = Output::F32(&mut into.head[cols.start * width..cols.end * width], width);
        let epilogue = Epilogue { accumulate: into.accumulate, ..Default::default() };
        gemm(cols.len(), width, &[part], out, epilogue, self.precision());
    }

    /// Scores each row of `hidden`; with `unit`, also sums `E_p[W]`, from which the gradient of `logp` follows whatever
    /// its upstream gradient will be.
    pub(super) fn score(&self, hidden: &Tensor, targets: &[u32], unit: bool) -> Scored {
        let n = targets.len();
        let mut stats = vec![RowStats::default(); n];
        let mut target_logits = vec![f32::NAN; n];
        let mut pulls = Buffer::<f32>::zeroed(if unit { n * self.width() } else { 0 });
        for first in (0..n).step_by(BLOCK_ROWS) {
            let rows = first..(first + BLOCK_ROWS).min(n);
            let (stats, logits) = (&mut stats[rows.clone()], &mut target_logits[rows.clone()]);
            let pulls = if unit {
                &mut pulls[rows.start * self.width()..rows.end * self.width()]
            } else {
                &mut [][..]
            };
            match self.dtype {
                Dtype::F32 => self.score_block::<f32>(hidden, rows, targets, stats, logits, pulls),
                Dtype::Bf16 => self.score_block::<half::bf16>(hidden, rows, targets, stats, logits, pulls),
            }
        }
        if unit {
            self.subtract_pulls(&mut pulls, &stats, targets, &target_logits);
        }
        let rows = stats.iter().zip(&target_logits).map(|(s, &x)| s.row(x, self.vocabulary())).collect();
        Scored { rows, target_logits, unit: unit.then_some(pulls) }
    }

    fn score_block<E: Storage>(
        &self,
        hidden: &Tensor,
        rows: Range<usize>,
        targets: &[u32],
        stats: &mut [RowStats],
        target_logits: &mut [f32],
        pulls: &mut [f32],
    ) {
        let (n_rows, width) = (rows.len(), self.width());
        let left = self.pack(hidden, &rows);
        let targets = &targets[rows];
        let mut logits = Buffer::<f32>::dirty(n_rows * CHUNK_COLS.min(self.vocabulary()));
        let mut weights = Buffer::<E>::dirty(if pulls.is_empty() { 0 } else { logits.len() });
        for cols in self.chunks() {
            let n_cols = cols.len();
            let logits = &mut logits[..n_rows * n_cols];
            self.products(&left, n_rows, &cols, logits);
            let rows =
                logits.par_chunks_exact_mut(n_cols).zip(&mut *stats).zip(&mut *target_logits).zip(targets);
            if pulls.is_empty() {
                rows.with_min_len(ROWS_PER_TASK).for_each(|(((logits, stats), target_logit), &target)| {
                    self.add_row(logits, &cols, stats, target, target_logit);
                });
                continue;
            }
            let weights = &mut weights[..n_rows * n_cols];
            let outputs = weights.par_chunks_exact_mut(n_cols).zip(pulls.par_chunks_exact_mut(width));
            let rows = rows.zip(outputs).with_min_len(ROWS_PER_TASK);
            rows.for_each(|((((logits, stats), target_logit), &target), (weights, pull))| {
                let keep = self.add_row(logits, &cols, stats, target, target_logit);
                narrow(logits, weights);
                if keep != 1.0 {
                    pull.iter_mut().for_each(|v| *v *= keep);
                }
            });
            self.add_to_hidden(weights, n_cols, n_rows, &cols, pulls);
        }
    }

    /// Turns one row of products into weights (see [`RowStats::add`]), noting the target's logit on the way.
    fn add_row(
        &self,
        row: &mut [f32],
        cols: &Range<usize>,
        stats: &mut RowStats,
        target: u32,
        target_logit: &mut f32,
    ) -> f32 {
        self.options.make_logits(row);
        if cols.contains(&(target as usize)) {
            *target_logit = row[target as usize - cols.start];
        }
        stats.add(row, self.options)
    }

    /// `d logp / d hidden = slope W[target] - E_p[slope W]`, in place of the sums `sum_j e^{x_j - max} slope_j W_j`.
    fn subtract_pulls(&self, pulls: &mut [f32], stats: &[RowStats], targets: &[u32], target_logits: &[f32]) {
        let width = self.width();
        let rows = pulls.par_chunks_exact_mut(width).zip(stats).zip(targets).zip(target_logits);
        rows.with_min_len(ROWS_PER_TASK).for_each(|(((pull, stats), &target), &logit)| {
            let mut own = vec![0.0f32; width];
            copy_row(self.param.weight.open(), target as usize, width, self.options.slope(logit), &mut own);
            let share = (1.0 / stats.sum) as f32;
            for (pull, own) in pull.iter_mut().zip(own) {
                *pull = own - *pull * share;
            }
        });
    }

    /// Computes the logits again and adds the gradients that any upstream gradient leads to.
    pub(super) fn gradients(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        upstream: &Upstream<'_>,
        mut into: Gradients<'_>,
    ) {
        let (n, width) = (targets.len(), self.width());
        into.start(n);
        for first in (0..n).step_by(BLOCK_ROWS) {
            let rows = first..(first + BLOCK_ROWS).min(n);
            let into = into.block(&rows, width);
            match self.dtype {
                Dtype::F32 => self.block_gradients::<f32>(hidden, rows, targets, upstream, into),
                Dtype::Bf16 => self.block_gradients::<half::bf16>(hidden, rows, targets, upstream, into),
            }
        }
    }

    fn block_gradients<E: Storage>(
        &self,
        hidden: &Tensor,
        rows: Range<usize>,
        targets: &[u32],
        upstream: &Upstream<'_>,
        mut into: Gradients<'_>,
    ) {
        let n_rows = rows.len();
        let left = self.pack(hidden, &rows);
        let mut logits = Buffer::<f32>::dirty(n_rows * CHUNK_COLS.min(self.vocabulary()));
        let mut d_logits = Buffer::<E>::dirty(logits.len());
        for cols in self.chunks() {
            let n_cols = cols.len();
            let (logits, d_logits) = (&mut logits[..n_rows * n_cols], &mut d_logits[..n_rows * n_cols]);
            self.products(&left, n_rows, &cols, logits);
            let pairs = logits.par_chunks_exact_mut(n_cols).zip(d_logits.par_chunks_exact_mut(n_cols));
            pairs.enumerate().with_min_len(ROWS_PER_TASK).for_each(|(r, (row, d))| {
                let i = rows.start + r;
                self.row_gradient(row, &cols, targets[i] as usize, i, upstream);
                narrow(row, d);
            });
            if !into.hidden.is_empty() {
                self.add_to_hidden(d_logits, n_cols, n_rows, &cols, into.hidden);
            }
            if !into.head.is_empty() {
                self.add_to_head(d_logits, n_cols, hidden, &rows, &cols, &mut into);
            }
        }
    }

    /// Turns row `i` of products into gradients with respect to them.
    fn row_gradient(
        &self,
        row: &mut [f32],
        cols: &Range<usize>,
        target: usize,
        i: usize,
        upstream: &Upstream<'_>,
    ) {
        let d_out = &upstream.d_out[i * RESULT_COLS..(i + 1) * RESULT_COLS];
        let grad = RowGrad {
            d_logp: d_out[0],
            d_entropy: d_out[1],
            d_mean_logp: d_out[3],
            entropy: upstream.entropy[i],
            logsumexp: upstream.logsumexp[i],
            uniform: 1.0 / self.vocabulary() as f32,
        };
        self.options.make_logits(row);
        logit_gradients(row, &grad, self.options);
        if cols.contains(&target) {
            // The indicator's term, with the slope at the target's logit.
            row[target - cols.start] += upstream.target_slope[i] * grad.d_logp;
        }
    }

    /// Scores and differentiates in one pass, for an upstream gradient of `logp` that is known before: the weights of a
    /// block of rows are kept over the whole vocabulary (in scratch of a constant size), so nothing is computed twice.
    pub(super) fn step(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        d_logp: &[f32],
        mut into: Gradients<'_>,
    ) -> Scored {
        let (n, width) = (targets.len(), self.width());
        into.start(n);
        let most = STEP_BYTES / (self.vocabulary() * self.dtype.bytes());
        let blocks = n.div_ceil(most.max(1)).max(1);
        // Blocks of even size pair the same rows in bf16 products, however many blocks there are.
        let block = n.div_ceil(blocks).next_multiple_of(2).max(2);
        let mut stats = vec![RowStats::default(); n];
        let mut target_logits = vec![f32::NAN; n];
        for first in (0..n).step_by(block) {
            let rows = first..(first + block).min(n);
            let (stats, logits) = (&mut stats[rows.clone()], &mut target_logits[rows.clone()]);
            let into = into.block(&rows, width);
            match self.dtype {
                Dtype::F32 => self.step_block::<f32>(hidden, rows, targets, d_logp, stats, logits, into),
                Dtype::Bf16 => {
                    self.step_block::<half::bf16>(hidden, rows, targets, d_logp, stats, logits, into)
                }
            }
        }
        let rows = stats.iter().zip(&target_logits).map(|(s, &x)| s.row(x, self.vocabulary())).collect();
        Scored { rows, target_logits, unit: None }
    }

    fn step_block<E: Storage>(
        &self,
        hidden: &Tensor,
        rows: Range<usize>,
        targets: &[u32],
        d_logp: &[f32],
        stats: &mut [RowStats],
        target_logits: &mut [f32],
        mut into: Gradients<'_>,
    ) {
        let (n_rows, vocabulary) = (rows.len(), self.vocabulary());
        let left = self.pack(hidden, &rows);
        let (targets, d_logp) = (&targets[rows.clone()], &d_logp[rows.clone()]);
        let mut logits = Buffer::<f32>::dirty(n_rows * CHUNK_COLS.min(vocabulary));
        let mut weights = Buffer::<E>::dirty(n_rows * vocabulary);
        // The maximum that each row's weights of each chunk are relative to.
        let mut maxima = Vec::with_capacity(vocabulary.div_ceil(CHUNK_COLS));
        for cols in self.chunks() {
            let logits = &mut logits[..n_rows * cols.len()];
            self.products(&left, n_rows, &cols, logits);
            let rows = logits
                .par_chunks_exact_mut(cols.len())
                .zip(&mut *stats)
                .zip(&mut *target_logits)
                .zip(targets);
            let rows = rows.zip(weights.par_chunks_exact_mut(vocabulary)).with_min_len(ROWS_PER_TASK);
            rows.for_each(|((((logits, stats), target_logit), &target), weights)| {
                self.add_row(logits, &cols, stats, target, target_logit);
                narrow(logits, &mut weights[cols.clone()]);
            });
            maxima.push(stats.iter().map(|stats| stats.max).collect::<Vec<f32>>());
        }
        drop(logits);
        for (cols, maxima) in self.chunks().zip(&maxima) {
            let tasks =
                weights.par_chunks_exact_mut(vocabulary).zip(&*stats).zip(&*target_logits).zip(targets);
            let tasks = tasks.zip(d_logp).zip(maxima).with_min_len(ROWS_PER_TASK);
            tasks.for_each(|(((((weights, stats), &logit), &target), &d_logp), &max)| {
                let share = f64::from(max - stats.max).exp() / stats.sum;
                scale_row(&mut weights[cols.clone()], (-f64::from(d_logp) * share) as f32);
                if cols.contains(&(target as usize)) {
                    let p = (f64::from(logit) - stats.logsumexp()).exp();
                    let d = f64::from(d_logp * self.options.slope(logit)) * (1.0 - p);
                    weights[target as usize] = E::put(d as f32);
                }
            });
            let d = &weights[cols.start..];
            if !into.hidden.is_empty() {
                self.add_to_hidden(d, vocabulary, n_rows, &cols, into.hidden);
            }
            if !into.head.is_empty() {
                self.add_to_head(d, vocabulary, hidden, &rows, &cols, &mut into);
            }
        }
    }
}

pub(in crate::ops) fn skip(values: Values<'_>, elements: usize) -> Values<'_> {
    match values {
        Values::F32(v) => Values::F32(&v[elements..]),
        Values::Bf16(v) => Values::Bf16(&v[elements..]),
        Values::Nf4(_) | Values::Int8(_) => unreachable!("heads are never quantised"),
    }
}

/// What the gradient of a row's logits depends on.
struct RowGrad {
    d_logp: f32,
    d_entropy: f32,
    d_mean_logp: f32,
    entropy: f32,
    logsumexp: f32,
    uniform: f32,
}

pt_kernels::kernel! {
    /// Turns logits into the gradient with respect to products, but for the target's indicator.
    fn logit_gradients(['a] logits: &'a mut [f32], row: &'a RowGrad, options: &'a LogprobOptions) {
        let pull = row.d_logp + row.d_mean_logp;
        let push = row.d_mean_logp * row.uniform;
        for x in logits.iter_mut() {
            let p = exp::<FMA>(*x - row.logsumexp);
            let d = push - p * fma::<FMA>(row.d_entropy, *x - row.logsumexp + row.entropy, pull);
            *x = d * options.slope(*x);
        }
    }
}

pt_kernels::kernel! {
    fn scale_row<E: Elem>(['a] row: &'a mut [E], factor: f32) {
        for value in row.iter_mut() {
            *value = E::put(value.get() * factor);
        }
    }
}
