//! From hidden states to log-probabilities, without ever holding a `[tokens, vocabulary]` matrix.
//!
//! For each selected row `i` with target `t_i`, over logits `x_j = cap tanh(scale h.w_j / cap) / temperature`:
//!
//! - `logsumexp_i = ln sum_j e^{x_j}`
//! - `logp_i = x_{t_i} - logsumexp_i`
//! - `entropy_i = logsumexp_i - sum_j p_j x_j`
//! - `mean_logp_i = mean_j x_j - logsumexp_i` (for label smoothing)
//! - `correct_i`: no logit exceeds the target's.
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

use std::rc::Rc;
use std::time::Instant;

use pt_kernels::buffer::Buffer;
use pt_kernels::elem::Elem;
use pt_kernels::gemm::{Epilogue, Micro, Operand, Output, Packed, Part, Right, TILE_MAX, Values};
use pt_kernels::gemm::{gemm, gemm_mapped, operand, pack_left};
use pt_kernels::math::{LANES, exp, fold_lanes, tanh};
use rayon::prelude::*;

use crate::params::ParamId;
use crate::tape::{Backward, Op, Tape, Var};
use crate::tensor::{Data, Dtype, Tensor};

/// Vocabulary columns whose statistics are kept in one running state; a multiple of every tile's width.
const STAT_COLS: usize = 2048;
/// Rows per task in forward; any value gives the same results.
const STAT_ROWS: usize = 14 * 16;
/// Vocabulary columns whose logit gradients are held at once in backward.
const GRAD_COLS: usize = 4096;
/// Rows whose logit gradients are held at once in backward.
const GRAD_ROWS: usize = 1024;
/// Columns of the result: see [`Logprobs`].
const RESULT_COLS: usize = 5;

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

    /// d logit / d product, given the logit.
    #[inline(always)]
    fn slope(&self, logit: f32) -> f32 {
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
}

impl Logprobs {
    /// Reads the value of [`Tape::linear_logprob`].
    pub fn of(var: &Var) -> Logprobs {
        let values = var.value().to_f32();
        let column = |c: usize| values.iter().skip(c).step_by(RESULT_COLS).copied().collect::<Vec<f32>>();
        Logprobs {
            logp: column(0),
            entropy: column(1),
            logsumexp: column(2),
            mean_logp: column(3),
            correct: column(4).iter().map(|c| *c > 0.0).collect(),
        }
    }

    /// Log-probability and statistics of `target` under a row of [`Tape::logits`]: the same bits that
    /// [`Tape::linear_logprob`] gives for the row.
    ///
    /// # Panics
    /// If `target` is outside the row.
    pub fn of_logits(logits: &[f32], target: u32, dtype: Dtype) -> RowLogprob {
        let nr = Micro::of(dtype.precision()).nr;
        let mut total = Total::default();
        for chunk in logits.chunks(STAT_COLS) {
            let mut stats = [LaneStats::default()];
            for tile in chunk.chunks(nr) {
                update_stats(tile, tile.len(), tile.len(), &mut stats);
            }
            total.merge(&stats[0]);
        }
        total.row(logits[target as usize], logits.len())
    }

    /// A gradient to seed a backward pass from `var` with.
    ///
    /// # Panics
    /// If the arrays do not have one value per row.
    pub fn seed(var: &Var, grad: &LogprobGrad<'_>) -> crate::tape::Seed {
        let n = var.value().rows();
        let mut values = vec![0.0; n * RESULT_COLS];
        for (col, source) in [(0, Some(grad.d_logp)), (1, grad.d_entropy), (3, grad.d_mean_logp)] {
            for (i, value) in source.into_iter().flatten().enumerate() {
                values[i * RESULT_COLS + col] = *value;
            }
            assert!(source.is_none_or(|s| s.len() == n), "one gradient per row");
        }
        crate::tape::Seed { var: var.clone(), grad: Tensor::from_f32(&values, n, RESULT_COLS, Dtype::F32) }
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

/// Running statistics of a chunk of logits, lane by lane.
#[derive(Clone, Copy)]
struct LaneStats {
    max: [f32; LANES],
    /// `sum e^{x - max}`
    sum: [f32; LANES],
    /// `sum e^{x - max} x`
    weighted: [f32; LANES],
    /// `sum x`
    plain: [f32; LANES],
}

impl Default for LaneStats {
    fn default() -> Self {
        LaneStats {
            max: [f32::NEG_INFINITY; LANES],
            sum: [0.0; LANES],
            weighted: [0.0; LANES],
            plain: [0.0; LANES],
        }
    }
}

pt_kernels::kernel! {
    /// Adds a tile `[stats.len(), nr]` of logits, of which the first `n_cols` columns count.
    fn update_stats(['a] tile: &'a [f32], nr: usize, n_cols: usize, stats: &'a mut [LaneStats]) {
        for (row, stats) in tile.chunks_exact(nr).zip(stats) {
            for lanes in row[..n_cols].chunks(LANES) {
                if let Ok(x) = <&[f32; LANES]>::try_from(lanes) {
                    for i in 0..LANES {
                        let max = stats.max[i].max(x[i]);
                        let keep = exp::<FMA>(stats.max[i] - max);
                        let e = exp::<FMA>(x[i] - max);
                        stats.max[i] = max;
                        stats.sum[i] = stats.sum[i] * keep + e;
                        stats.weighted[i] = stats.weighted[i] * keep + e * x[i];
                        stats.plain[i] += x[i];
                    }
                } else {
                    for (i, &x) in lanes.iter().enumerate() {
                        let max = stats.max[i].max(x);
                        let keep = exp::<FMA>(stats.max[i] - max);
                        let e = exp::<FMA>(x - max);
                        stats.max[i] = max;
                        stats.sum[i] = stats.sum[i] * keep + e;
                        stats.weighted[i] = stats.weighted[i] * keep + e * x;
                        stats.plain[i] += x;
                    }
                }
            }
        }
    }
}

/// Statistics of a whole row, merged chunk by chunk in `f64`.
struct Total {
    max: f32,
    sum: f64,
    weighted: f64,
    plain: f64,
}

impl Default for Total {
    fn default() -> Self {
        Total { max: f32::NEG_INFINITY, sum: 0.0, weighted: 0.0, plain: 0.0 }
    }
}

impl Total {
    fn merge(&mut self, stats: &LaneStats) {
        let chunk_max = fold_lanes(stats.max, f32::max);
        let max = self.max.max(chunk_max);
        let keep = f64::from(self.max - max).exp();
        let (mut sum, mut weighted, mut plain) = (0.0, 0.0, 0.0);
        for i in 0..LANES {
            let scale = f64::from(stats.max[i] - max).exp();
            sum += f64::from(stats.sum[i]) * scale;
            weighted += f64::from(stats.weighted[i]) * scale;
            plain += f64::from(stats.plain[i]);
        }
        // A first chunk finds an empty total: 0 * e^-inf is 0 * 0, never NaN.
        self.sum = self.sum * keep + sum;
        self.weighted = self.weighted * keep + weighted;
        self.plain += plain;
        self.max = max;
    }

    fn row(&self, target_logit: f32, n_vocabulary: usize) -> RowLogprob {
        let logsumexp = f64::from(self.max) + self.sum.ln();
        RowLogprob {
            logp: (f64::from(target_logit) - logsumexp) as f32,
            entropy: (logsumexp - self.weighted / self.sum) as f32,
            logsumexp: logsumexp as f32,
            mean_logp: (self.plain / n_vocabulary as f64 - logsumexp) as f32,
            correct: target_logit >= self.max,
        }
    }
}

struct LinearLogprob {
    /// The selected rows of the hidden states, `[n, width]`.
    selected: Tensor,
    hidden_rows: usize,
    head: ParamId,
    rows: Vec<u32>,
    targets: Vec<u32>,
    entropy: Vec<f32>,
    logsumexp: Vec<f32>,
    /// d logit / d product at each row's target.
    target_slope: Vec<f32>,
    options: LogprobOptions,
    hidden_needs_grad: bool,
}

impl<'m> Op<'m> for LinearLogprob {
    fn name(&self) -> &'static str {
        "linear_logprob"
    }

    fn backward(self: Box<Self>, d_out: Tensor, ctx: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>> {
        let d_out = d_out.to_f32();
        let (n, width) = (self.selected.rows(), self.selected.cols());
        let vocabulary = ctx.params.get(self.head).shape[0];
        let mut d_hidden = Buffer::<f32>::zeroed(if self.hidden_needs_grad { n * width } else { 0 });
        for first in (0..n).step_by(GRAD_ROWS) {
            let rows = first..(first + GRAD_ROWS).min(n);
            for col0 in (0..vocabulary).step_by(GRAD_COLS) {
                let cols = col0..(col0 + GRAD_COLS).min(vocabulary);
                match ctx.mode.dtype {
                    Dtype::F32 => self.block_backward::<f32>(rows.clone(), cols, &d_out, &mut d_hidden, ctx),
                    Dtype::Bf16 => {
                        self.block_backward::<half::bf16>(rows.clone(), cols, &d_out, &mut d_hidden, ctx)
                    }
                }
            }
        }
        vec![self.hidden_needs_grad.then(|| self.scatter(&d_hidden, ctx.mode.dtype))]
    }
}

/// An element type that gradients of logits are stored in.
trait Storage: Elem + pt_kernels::buffer::Plain {
    fn values(slice: &[Self]) -> Values<'_>;
    fn output(slice: &mut [Self], ld: usize) -> Output<'_>;
}

impl Storage for f32 {
    fn values(slice: &[f32]) -> Values<'_> {
        Values::F32(slice)
    }
    fn output(slice: &mut [f32], ld: usize) -> Output<'_> {
        Output::F32(slice, ld)
    }
}

impl Storage for half::bf16 {
    fn values(slice: &[half::bf16]) -> Values<'_> {
        Values::Bf16(slice)
    }
    fn output(slice: &mut [half::bf16], ld: usize) -> Output<'_> {
        Output::Bf16(slice, ld)
    }
}

impl LinearLogprob {
    /// Recomputes the logits of a block, turns them into gradients, and adds their products.
    fn block_backward<E: Storage>(
        &self,
        rows: std::ops::Range<usize>,
        cols: std::ops::Range<usize>,
        d_out: &[f32],
        d_hidden: &mut [f32],
        ctx: &mut Backward<'_, '_>,
    ) {
        let (width, precision) = (self.selected.cols(), ctx.mode.dtype.precision());
        let (n_rows, n_cols) = (rows.len(), cols.len());
        let head = ctx.params.get(self.head);
        let hidden = skip_rows(self.selected.values(), rows.start * width);
        let weight = skip_rows(head.weight.values(), cols.start * width);
        let left = pack_left(&Operand::k_inner(hidden, width), n_rows, width, precision);
        let mut d_logits = Buffer::<E>::dirty(n_rows * n_cols);
        let uniform = 1.0 / head.shape[0] as f32;
        let part = Part { a: &left, b: Right::Operand(Operand::k_inner(weight, width)) };
        let to_gradient = |row: usize, col: usize, products: &mut [f32]| {
            let i = rows.start + row;
            let upstream = &d_out[i * RESULT_COLS..(i + 1) * RESULT_COLS];
            let row = RowGrad {
                d_logp: upstream[0],
                d_entropy: upstream[1],
                d_mean_logp: upstream[3],
                entropy: self.entropy[i],
                logsumexp: self.logsumexp[i],
                uniform,
            };
            logit_gradients(products, &row, &self.options);
            let (target, first) = (self.targets[i] as usize, cols.start + col);
            if (first..first + products.len()).contains(&target) {
                // The indicator's term, with the slope at the target's logit.
                products[target - first] += self.target_slope[i] * row.d_logp;
            }
        };
        gemm_mapped(n_rows, n_cols, &[part], E::output(&mut d_logits, n_cols), precision, &to_gradient);
        drop(left);
        if self.hidden_needs_grad {
            let left = pack_left(&Operand::k_inner(E::values(&d_logits), n_cols), n_rows, n_cols, precision);
            let part = Part { a: &left, b: Right::Operand(Operand::k_outer(weight, width)) };
            let out = Output::F32(&mut d_hidden[rows.start * width..rows.end * width], width);
            gemm(n_rows, width, &[part], out, Epilogue { accumulate: true, ..Default::default() }, precision);
        }
        if ctx.params.trains(self.head) {
            let left = pack_left(&Operand::k_outer(E::values(&d_logits), n_cols), n_cols, n_rows, precision);
            let part = Part { a: &left, b: Right::Operand(Operand::k_outer(hidden, width)) };
            let grad = ctx.grads.slot(ctx.params, self.head);
            let out = Output::F32(&mut grad[cols.start * width..cols.end * width], width);
            gemm(n_cols, width, &[part], out, Epilogue { accumulate: true, ..Default::default() }, precision);
        }
    }

    /// Gradients of the selected rows at their places among all rows.
    fn scatter(&self, d_selected: &[f32], dtype: Dtype) -> Tensor {
        let width = self.selected.cols();
        let mut d_hidden = Tensor::zeros(dtype, self.hidden_rows, width);
        crate::tensor::with_elems!(mut d_hidden, |values| {
            for (&row, d) in self.rows.iter().zip(d_selected.chunks_exact(width)) {
                let target = &mut values[row as usize * width..(row as usize + 1) * width];
                target.iter_mut().zip(d).for_each(|(t, d)| *t = Elem::put(t.get() + d));
            }
        });
        d_hidden
    }
}

fn skip_rows(values: Values<'_>, elements: usize) -> Values<'_> {
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
    /// Turns products with the head into the gradient with respect to them, but for the target's indicator.
    fn logit_gradients(['a] products: &'a mut [f32], row: &'a RowGrad, options: &'a LogprobOptions) {
        let pull = row.d_logp + row.d_mean_logp;
        let push = row.d_mean_logp * row.uniform;
        for value in products.iter_mut() {
            let x = options.logit::<FMA>(*value);
            let p = exp::<FMA>(x - row.logsumexp);
            let d = push - p * (pull + row.d_entropy * (x - row.logsumexp + row.entropy));
            *value = d * options.slope(x);
        }
    }
}

pt_kernels::kernel! {
    fn to_logits(['a] products: &'a mut [f32], options: &'a LogprobOptions) {
        for value in products.iter_mut() {
            *value = options.logit::<FMA>(*value);
        }
    }
}

/// What one task of the forward pass found: statistics of its rows over its columns, and the target logits it met.
struct TaskStats {
    stats: Vec<LaneStats>,
    targets: Vec<(usize, f32)>,
}

/// Where the forward pass reads from.
struct Scoring<'a> {
    left: &'a Packed,
    weight: Values<'a>,
    width: usize,
    vocabulary: usize,
    targets: &'a [u32],
    options: &'a LogprobOptions,
    micro: Micro,
}

impl Scoring<'_> {
    /// Scores row panels `panels` over the vocabulary columns `cols`.
    fn task(&self, panels: std::ops::Range<usize>, cols: std::ops::Range<usize>) -> TaskStats {
        let Micro { mr, nr, precision, .. } = self.micro;
        let n = self.targets.len();
        let row0 = panels.start * mr;
        let mut stats = vec![LaneStats::default(); (panels.end * mr).min(n) - row0];
        let mut targets = Vec::new();
        let mut panel_words = Buffer::<u32>::dirty(operand::panel_words(nr, self.width, precision));
        let weight = Operand::k_inner(self.weight, self.width);
        for first in cols.clone().step_by(nr) {
            let n_cols = nr.min(cols.end - first);
            operand::pack_panel(&weight, first, n_cols, self.width, nr, precision, &mut panel_words);
            for panel in panels.clone() {
                let (row, n_rows) = (panel * mr, mr.min(n - panel * mr));
                let mut tile = [0.0f32; TILE_MAX];
                let tile = &mut tile[..n_rows * nr];
                self.micro.run(n_rows, self.width, self.left.panel(panel), &panel_words, tile);
                to_logits(tile, self.options);
                update_stats(tile, nr, n_cols, &mut stats[row - row0..row - row0 + n_rows]);
                for r in 0..n_rows {
                    let target = self.targets[row + r] as usize;
                    if (first..first + n_cols).contains(&target) {
                        targets.push((row + r, tile[r * nr + target - first]));
                    }
                }
            }
        }
        TaskStats { stats, targets }
    }

    /// Scores all rows; the merge runs over chunks in order.
    fn run(&self) -> (Vec<RowLogprob>, Vec<f32>) {
        let n = self.targets.len();
        let panels = n.div_ceil(self.micro.mr);
        let panels_per_task = STAT_ROWS / self.micro.mr;
        let chunks = self.vocabulary.div_ceil(STAT_COLS);
        let blocks = panels.div_ceil(panels_per_task);
        let tasks: Vec<TaskStats> = (0..chunks * blocks)
            .into_par_iter()
            .with_max_len(1)
            .map(|task| {
                let (chunk, block) = (task / blocks, task % blocks);
                let rows = block * panels_per_task..((block + 1) * panels_per_task).min(panels);
                self.task(rows, chunk * STAT_COLS..((chunk + 1) * STAT_COLS).min(self.vocabulary))
            })
            .collect();
        let mut target_logits = vec![f32::NAN; n];
        for &(row, logit) in tasks.iter().flat_map(|task| &task.targets) {
            target_logits[row] = logit;
        }
        let rows_per_task = panels_per_task * self.micro.mr;
        let rows = (0..n).map(|row| {
            let mut total = Total::default();
            for chunk in 0..chunks {
                total.merge(&tasks[chunk * blocks + row / rows_per_task].stats[row % rows_per_task]);
            }
            total.row(target_logits[row], self.vocabulary)
        });
        (rows.collect(), target_logits)
    }
}

/// The rows of `hidden` with the given indices.
fn select_rows(hidden: &Tensor, rows: &[u32]) -> Tensor {
    let width = hidden.cols();
    let mut selected = Tensor::dirty(hidden.dtype(), rows.len(), width);
    match (&hidden.data, &mut selected.data) {
        (Data::F32(from), Data::F32(to)) => copy_rows(from, to, rows, width),
        (Data::Bf16(from), Data::Bf16(to)) => copy_rows(from, to, rows, width),
        _ => unreachable!("the selection has the type of its source"),
    }
    selected
}

fn copy_rows<E: Elem>(from: &[E], to: &mut [E], rows: &[u32], width: usize) {
    for (&row, to) in rows.iter().zip(to.chunks_exact_mut(width)) {
        to.copy_from_slice(&from[row as usize * width..(row as usize + 1) * width]);
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
        assert_eq!(rows.len(), targets.len(), "one target per row");
        let param = self.params.get(head);
        let (vocabulary, width) = (param.shape[0], param.shape[1]);
        if let Some(bad) = targets.iter().find(|&&target| target as usize >= vocabulary) {
            panic!("target {bad} is outside the vocabulary of {vocabulary}");
        }
        let precision = self.mode.dtype.precision();
        let selected = select_rows(hidden.value(), rows);
        let left = pack_left(&Operand::k_inner(selected.values(), width), rows.len(), width, precision);
        let micro = Micro::of(precision);
        let scoring = Scoring {
            left: &left,
            weight: param.weight.values(),
            width,
            vocabulary,
            targets,
            options,
            micro,
        };
        let (scored, target_logits) = scoring.run();
        let mut values = Vec::with_capacity(rows.len() * RESULT_COLS);
        for row in &scored {
            values.extend([
                row.logp,
                row.entropy,
                row.logsumexp,
                row.mean_logp,
                f32::from(u8::from(row.correct)),
            ]);
        }
        let out = Tensor::from_f32(&values, rows.len(), RESULT_COLS, Dtype::F32);
        self.profile.add("linear_logprob", "forward", start);
        if !self.records(&[hidden], param.trainable) {
            return self.constant(out);
        }
        let op = LinearLogprob {
            selected,
            hidden_rows: hidden.value().rows(),
            head,
            rows: rows.to_vec(),
            targets: targets.to_vec(),
            entropy: scored.iter().map(|row| row.entropy).collect(),
            logsumexp: scored.iter().map(|row| row.logsumexp).collect(),
            target_slope: target_logits.iter().map(|&x| options.slope(x)).collect(),
            options: *options,
            hidden_needs_grad: hidden.node.is_some(),
        };
        self.push(op, &[hidden], Rc::new(out))
    }

    /// The logits of the given rows, `[rows.len(), vocabulary]` in `f32`: for sampling, where they are needed whole.
    pub fn logits(&mut self, hidden: &Var, head: ParamId, rows: &[u32], options: &LogprobOptions) -> Tensor {
        let start = Instant::now();
        let param = self.params.get(head);
        let (vocabulary, width) = (param.shape[0], param.shape[1]);
        let precision = self.mode.dtype.precision();
        let selected = select_rows(hidden.value(), rows);
        let left = pack_left(&Operand::k_inner(selected.values(), width), rows.len(), width, precision);
        let mut out = Tensor::dirty(Dtype::F32, rows.len(), vocabulary);
        let part = Part { a: &left, b: Right::Operand(Operand::k_inner(param.weight.values(), width)) };
        let map = |_: usize, _: usize, products: &mut [f32]| to_logits(products, options);
        gemm_mapped(rows.len(), vocabulary, &[part], out.output_from(0), precision, &map);
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
            // The last two columns carry no gradient in the operation: constants here.
            out.extend([logits[target as usize] - lse, entropy, 0.0, mean, 0.0]);
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

    /// More columns than one running state holds, and than one gradient block: chunks must merge without a seam.
    #[test]
    fn chunks_of_a_large_vocabulary_merge() {
        let vocabulary = GRAD_COLS + STAT_COLS + 37;
        let mut setup = Setup::new(&[3]);
        let (x, head) = (setup.input(WIDTH), setup.param("head", &[vocabulary, WIDTH]));
        let (rows, targets) = ([0, 1, 2], [0, STAT_COLS as u32, vocabulary as u32 - 1]);
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
                let row = Logprobs::of_logits(&logits[i * vocabulary..(i + 1) * vocabulary], target, dtype);
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
