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
use pt_kernels::gemm::{Operand, Part, Right, gemm_mapped, pack_left};
use pt_kernels::math::tanh;
use rayon::prelude::*;

use self::head::{Gradients, Head, Upstream};
use self::stats::{CHUNK_COLS, RowStats};
use crate::params::{Grads, Param, ParamId};
use crate::tape::{Backward, Op, Seed, Tape, Var};
use crate::tensor::{Data, Dtype, Tensor};

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
        let values = var.value().to_f32();
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

    fn of_rows(rows: &[RowLogprob]) -> Logprobs {
        Logprobs {
            logp: rows.iter().map(|row| row.logp).collect(),
            entropy: rows.iter().map(|row| row.entropy).collect(),
            logsumexp: rows.iter().map(|row| row.logsumexp).collect(),
            mean_logp: rows.iter().map(|row| row.mean_logp).collect(),
            correct: rows.iter().map(|row| row.correct).collect(),
            log_collision: rows.iter().map(|row| row.log_collision).collect(),
        }
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
        Seed { var: var.clone(), grad: Tensor::from_f32(&values, n, RESULT_COLS, Dtype::F32) }
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
    entropy: Vec<f32>,
    logsumexp: Vec<f32>,
    /// d logit / d product at each row's target.
    target_slope: Vec<f32>,
    options: LogprobOptions,
    hidden_needs_grad: bool,
    /// `d logp / d hidden` of the selected rows, where the head is frozen.
    unit: Option<Buffer<f32>>,
}

impl<'m> Op<'m> for LinearLogprob {
    fn name(&self) -> &'static str {
        "linear_logprob"
    }

    fn backward(self: Box<Self>, d_out: Tensor, ctx: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>> {
        let d_out = d_out.to_f32();
        let only_logp = d_out.chunks_exact(RESULT_COLS).all(|d| d[1] == 0.0 && d[3] == 0.0);
        let d_selected = match self.unit {
            Some(mut unit) if only_logp => {
                let rows =
                    unit.par_chunks_exact_mut(self.selected.cols()).zip(d_out.par_chunks_exact(RESULT_COLS));
                rows.with_min_len(16).for_each(|(row, d)| row.iter_mut().for_each(|v| *v *= d[0]));
                unit
            }
            _ => self.recompute(&d_out, ctx),
        };
        vec![
            self.hidden_needs_grad
                .then(|| scatter(&d_selected, &self.rows, self.hidden_rows, &self.selected)),
        ]
    }
}

impl LinearLogprob {
    /// Gradients from logits that are computed again; returns that of the selected rows.
    fn recompute(&self, d_out: &[f32], ctx: &mut Backward<'_, '_>) -> Buffer<f32> {
        let len = self.selected.rows() * self.selected.cols();
        let mut hidden = Buffer::<f32>::zeroed(if self.hidden_needs_grad { len } else { 0 });
        let trains = ctx.params.trains(self.head);
        let (head, accumulate) =
            if trains { ctx.grads.product_slot(ctx.params, self.head) } else { (&mut [][..], false) };
        let into = Gradients { hidden: &mut hidden, head, accumulate };
        let upstream = Upstream {
            d_out,
            entropy: &self.entropy,
            logsumexp: &self.logsumexp,
            target_slope: &self.target_slope,
        };
        let param = ctx.params.get(self.head);
        let head = Head { param, options: &self.options, dtype: ctx.mode.dtype };
        head.gradients(&self.selected, &self.targets, &upstream, into);
        hidden
    }
}

/// Gradients of the selected rows at their places among all rows.
pub(super) fn scatter(d_selected: &[f32], rows: &[u32], n_rows: usize, selected: &Tensor) -> Tensor {
    let width = selected.cols();
    let mut d_hidden = Tensor::zeros(selected.dtype(), n_rows, width);
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

fn check_targets(rows: &[u32], targets: &[u32], param: &Param) {
    assert_eq!(rows.len(), targets.len(), "one target per row");
    let vocabulary = param.shape[0];
    if let Some(bad) = targets.iter().find(|&&target| target as usize >= vocabulary) {
        panic!("target {bad} is outside the vocabulary of {vocabulary}");
    }
}

/// The value of [`Tape::linear_logprob`], `[n, RESULT_COLS]`.
fn table(rows: &[RowLogprob]) -> Tensor {
    let values: Vec<f32> = rows
        .iter()
        .flat_map(|row| {
            let correct = f32::from(u8::from(row.correct));
            [row.logp, row.entropy, row.logsumexp, row.mean_logp, correct, row.log_collision]
        })
        .collect();
    Tensor::from_f32(&values, rows.len(), RESULT_COLS, Dtype::F32)
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
        let scoring = Head { param, options, dtype: self.mode.dtype };
        let scored = scoring.score(&selected, targets, recorded && !param.trainable);
        let out = table(&scored.rows);
        self.profile.add("linear_logprob", "forward", start);
        if !recorded {
            return self.constant(out);
        }
        let op = LinearLogprob {
            selected,
            hidden_rows: hidden.value().rows(),
            head,
            rows: rows.to_vec(),
            targets: targets.to_vec(),
            entropy: scored.rows.iter().map(|row| row.entropy).collect(),
            logsumexp: scored.rows.iter().map(|row| row.logsumexp).collect(),
            target_slope: scored.target_logits.iter().map(|&x| options.slope(x)).collect(),
            options: *options,
            hidden_needs_grad: hidden.node.is_some(),
            unit: scored.unit,
        };
        self.push(op, &[hidden], Rc::new(out))
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
        let needs_grad = hidden.needs_grad();
        let mut d_selected = Buffer::<f32>::zeroed(if needs_grad { rows.len() * selected.cols() } else { 0 });
        let (sums, accumulate) =
            if param.trainable { grads.product_slot(self.params, head) } else { (&mut [][..], false) };
        let into = Gradients { hidden: &mut d_selected, head: sums, accumulate };
        let scoring = Head { param, options, dtype: self.mode.dtype };
        let scored = scoring.step(&selected, targets, d_logp, into);
        let seed = needs_grad.then(|| {
            let grad = scatter(&d_selected, rows, hidden.value().rows(), &selected);
            Seed { var: hidden.clone(), grad }
        });
        self.profile.add("linear_logprob", "step", start);
        (Logprobs::of_rows(&scored.rows), seed)
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
            all.extend(grads.get(*head).map(<[f32]>::to_vec));
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
