//! From two hidden states to the divergence between their distributions over the vocabulary, without ever holding a
//! `[tokens, vocabulary]` matrix.
//!
//! For each selected row with logits x of the student and y of the teacher (each made by its own head and options, then divided by
//! the temperature), `p = softmax(x)`, `q = softmax(y)`:
//!
//! ```text
//! beta = 0:  KL(q ‖ p) = Σ q (log q − log p)                                   forward
//! beta = 1:  KL(p ‖ q) = Σ p (log p − log q)                                   reverse
//! otherwise: β KL(q ‖ m) + (1 − β) KL(p ‖ m),   m = (1 − β) p + β q            generalised Jensen-Shannon
//! ```
//!
//! Source: Agarwal et al. 2023, "On-policy distillation of language models" (arXiv:2306.13649), equation 1; the ends of β, where the
//! formula is 0, are as in TRL's `generalized_jsd_loss`. With `g_j = ∂D/∂p_j` up to a constant, the gradient of a logit is
//!
//! ```text
//! dx_j = p_j (g_j − Σ p g)      beta = 0: dx_j = p_j − q_j
//!                               beta = 1: g_j = log p_j − log q_j
//!                               otherwise: g_j = (1 − β)(log p_j − log m_j)
//! ```
//!
//! since for the last, ∂/∂p of β KL(q ‖ m) is −β(1 − β) q/m, that of (1 − β) KL(p ‖ m) is (1 − β)(log p/m + 1 − (1 − β) p/m), and
//! the terms with m in the denominator sum to a constant.
//!
//! The teacher has no gradient. Rows are taken in blocks, the vocabulary in chunks of constant size, three times: normalisers,
//! divergence, and in the backward pass gradients, each from logits that are computed again. Sums run in one order, in `f64` across
//! columns, whatever else is in the batch.

use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use pt_kernels::buffer::Buffer;
use pt_kernels::gemm::{Epilogue, Operand, Output, Packed, Part, Precision, Right, Values, gemm, pack_left};
use rayon::prelude::*;

use super::linear_logprob::{LogprobOptions, head_gradient, scatter, select_rows, skip};
use crate::device::Kernel;
use crate::params::{Param, ParamId};
use crate::tape::{Backward, Op, Tape, Var};
use crate::tensor::{Dtype, Tensor};

/// Vocabulary columns whose logits are held at once.
const CHUNK_COLS: usize = 2048;
/// Rows whose logits of one chunk are held at once.
const BLOCK_ROWS: usize = 512;

/// Which divergence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DivergenceOptions {
    /// 0: forward KL, 1: reverse KL, between: generalised Jensen-Shannon.
    pub beta: f64,
    /// Divides both models' logits, beside what their own options say.
    pub temperature: f32,
}

/// The other model's side of [`Tape::linear_divergence`]: what it says at the same places.
#[derive(Clone, Debug)]
pub struct Teacher<'a> {
    /// Hidden states of the selected rows, `[n, width of the teacher]`.
    pub hidden: Tensor,
    /// Its head `[vocabulary, width of the teacher]`.
    pub head: &'a Param,
    /// How its logits are made.
    pub options: LogprobOptions,
}

/// A model's hidden states with its head.
struct Side<'a> {
    hidden: &'a Tensor,
    head: &'a Param,
    options: LogprobOptions,
    precision: Precision,
}

impl Side<'_> {
    fn width(&self) -> usize {
        self.head.shape[1]
    }

    fn pack(&self, rows: &Range<usize>) -> Packed {
        let operand = Operand::k_inner(skip(self.hidden.values(), rows.start * self.width()), self.width());
        pack_left(&operand, rows.len(), self.width(), self.precision)
    }

    fn weight(&self, cols: &Range<usize>) -> Values<'_> {
        skip(self.head.weight.open().values(), cols.start * self.width())
    }

    /// The logits of packed rows at some columns.
    fn logits(&self, left: &Packed, n_rows: usize, cols: &Range<usize>, out: &mut [f32]) {
        let part = Part { a: left, b: Right::Operand(Operand::k_inner(self.weight(cols), self.width())) };
        let output = Output::F32(out, cols.len());
        gemm(n_rows, cols.len(), &[part], output, Epilogue::default(), self.precision);
        self.options.make_logits(out);
    }
}

/// A running `ln Σ e^x`.
#[derive(Clone, Copy)]
struct LogSum {
    max: f64,
    sum: f64,
}

impl LogSum {
    const EMPTY: LogSum = LogSum { max: f64::NEG_INFINITY, sum: 0.0 };

    fn add(&mut self, logits: &[f32]) {
        let max = logits.iter().fold(self.max, |max, &x| max.max(f64::from(x)));
        let scale = if self.sum == 0.0 { 0.0 } else { (self.max - max).exp() };
        self.sum = self.sum * scale + logits.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>();
        self.max = max;
    }

    fn value(self) -> f64 {
        self.max + self.sum.ln()
    }
}

/// What of a row stays between passes.
#[derive(Clone, Copy, Default)]
struct RowState {
    /// Normaliser of the student.
    lse: f64,
    /// Normaliser of the teacher.
    teacher_lse: f64,
    divergence: f64,
    /// Σ p g.
    mean_slope: f64,
}

/// A token's part of the divergence, its probability p under the student, and g.
fn terms(log_p: f64, log_q: f64, beta: f64) -> (f64, f64, f64) {
    let (p, q) = (log_p.exp(), log_q.exp());
    // A product with a probability of 0 is 0, whatever its logarithm.
    let times = |p: f64, log: f64| if p == 0.0 { 0.0 } else { p * log };
    if beta == 0.0 {
        return (times(q, log_q - log_p), p, if p == 0.0 { 0.0 } else { -q / p });
    }
    if beta == 1.0 {
        return (times(p, log_p - log_q), p, if p == 0.0 { 0.0 } else { log_p - log_q });
    }
    let (a, b) = ((1.0 - beta).ln() + log_p, beta.ln() + log_q);
    let max = a.max(b);
    let log_m = if max == f64::NEG_INFINITY { max } else { max + ((a - max).exp() + (b - max).exp()).ln() };
    let divergence = beta * times(q, log_q - log_m) + (1.0 - beta) * times(p, log_p - log_m);
    (divergence, p, if p == 0.0 { 0.0 } else { (1.0 - beta) * (log_p - log_m) })
}

fn blocks(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(BLOCK_ROWS).map(move |first| first..(first + BLOCK_ROWS).min(n))
}

fn chunks(vocabulary: usize) -> impl Iterator<Item = Range<usize>> {
    (0..vocabulary).step_by(CHUNK_COLS).map(move |first| first..(first + CHUNK_COLS).min(vocabulary))
}

/// Calls `f(row of the block, student's logits, teacher's logits)` for every row of a block and every chunk, chunks in order.
fn for_chunks<S: Send>(
    sides: [&Side<'_>; 2],
    rows: &Range<usize>,
    states: &mut [S],
    mut each: impl FnMut(&Range<usize>, &mut [f32], &mut [f32], &mut [S]),
) {
    let [student, teacher] = sides;
    let (left, right) = (student.pack(rows), teacher.pack(rows));
    let vocabulary = student.head.shape[0];
    let mut logits = Buffer::<f32>::dirty(rows.len() * CHUNK_COLS.min(vocabulary));
    let mut others = Buffer::<f32>::dirty(logits.len());
    for cols in chunks(vocabulary) {
        let n = rows.len() * cols.len();
        student.logits(&left, rows.len(), &cols, &mut logits[..n]);
        teacher.logits(&right, rows.len(), &cols, &mut others[..n]);
        each(&cols, &mut logits[..n], &mut others[..n], states);
    }
}

/// Normalisers and divergence of every row.
fn measure(student: &Side<'_>, teacher: &Side<'_>, n: usize, beta: f64) -> Vec<RowState> {
    let mut all = vec![RowState::default(); n];
    for rows in blocks(n) {
        let states = &mut all[rows.clone()];
        let mut sums = vec![[LogSum::EMPTY; 2]; rows.len()];
        for_chunks([student, teacher], &rows, &mut sums, |cols, x, y, sums| {
            let pairs = x.par_chunks_exact(cols.len()).zip(y.par_chunks_exact(cols.len()));
            pairs.zip(sums.par_iter_mut()).for_each(|((x, y), sums)| {
                sums[0].add(x);
                sums[1].add(y);
            });
        });
        for (state, sums) in states.iter_mut().zip(&sums) {
            (state.lse, state.teacher_lse) = (sums[0].value(), sums[1].value());
        }
        for_chunks([student, teacher], &rows, states, |cols, x, y, states| {
            let pairs = x.par_chunks_exact(cols.len()).zip(y.par_chunks_exact(cols.len()));
            pairs.zip(states.par_iter_mut()).for_each(|((x, y), state)| {
                for (&x, &y) in x.iter().zip(y) {
                    let (log_p, log_q) = (f64::from(x) - state.lse, f64::from(y) - state.teacher_lse);
                    let (divergence, p, slope) = terms(log_p, log_q, beta);
                    state.divergence += divergence;
                    state.mean_slope += p * slope;
                }
            });
        });
    }
    all
}

struct LinearDivergence<'m> {
    selected: Tensor,
    hidden_rows: usize,
    head: ParamId,
    options: LogprobOptions,
    rows: Vec<u32>,
    teacher: Teacher<'m>,
    beta: f64,
    states: Vec<RowState>,
    hidden_needs_grad: bool,
}

impl<'m> Op<'m> for LinearDivergence<'m> {
    fn name(&self) -> &'static str {
        "linear_divergence"
    }

    fn backward(self: Box<Self>, d_out: Tensor, ctx: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>> {
        let mut kernel = DivergenceBackward { op: &self, d_out: &d_out, d_hidden: None, ctx };
        d_out.device().run(&mut kernel);
        vec![kernel.d_hidden]
    }
}

struct DivergenceBackward<'a, 'g, 'm> {
    op: &'a LinearDivergence<'m>,
    d_out: &'a Tensor,
    d_hidden: Option<Tensor>,
    ctx: &'a mut Backward<'g, 'm>,
}

impl Kernel for DivergenceBackward<'_, '_, '_> {
    fn name(&self) -> &'static str {
        "linear_divergence_backward"
    }

    fn cpu(&mut self) {
        self.d_hidden = self.op.gradients(self.d_out, self.ctx);
    }
}

/// Divergence of each row, and what backward needs of it.
struct DivergenceForward<'a> {
    student: Side<'a>,
    teacher: Side<'a>,
    beta: f64,
    out: &'a mut Tensor,
    states: Vec<RowState>,
}

impl Kernel for DivergenceForward<'_> {
    fn name(&self) -> &'static str {
        "linear_divergence"
    }

    fn cpu(&mut self) {
        self.states = measure(&self.student, &self.teacher, self.out.rows(), self.beta);
        let out = self.out.open_mut().f32s_mut();
        out.iter_mut().zip(&self.states).for_each(|(out, state)| *out = state.divergence as f32);
    }
}

impl LinearDivergence<'_> {
    /// Adds the head's gradient; returns that of the hidden states.
    fn gradients(&self, d_out: &Tensor, ctx: &mut Backward<'_, '_>) -> Option<Tensor> {
        let upstream = d_out.read();
        let (param, precision) = (ctx.params.get(self.head), ctx.mode.dtype.precision());
        let student = Side { hidden: &self.selected, head: param, options: self.options, precision };
        let (vocabulary, width) = (param.shape[0], param.shape[1]);
        let n = self.rows.len();
        let mut d_selected = Buffer::<f32>::zeroed(if self.hidden_needs_grad { n * width } else { 0 });
        let (head, mut accumulate) = head_gradient(ctx.grads, ctx.params, self.head);
        if n == 0 && !accumulate {
            head.fill(0.0);
        }
        for rows in blocks(n) {
            let teacher = self.teacher.side(precision);
            let mut nothing = vec![(); rows.len()];
            for_chunks([&student, &teacher], &rows, &mut nothing, |cols, x, y, _| {
                let pairs = x.par_chunks_exact_mut(cols.len()).zip(y.par_chunks_exact(cols.len()));
                pairs.enumerate().for_each(|(i, (x, y))| {
                    let (state, d) = (&self.states[rows.start + i], upstream[rows.start + i]);
                    for (x, &y) in x.iter_mut().zip(y) {
                        let slope = self.logit_gradient(f64::from(*x), f64::from(y), state);
                        *x = (f64::from(d) * slope) as f32 * self.options.slope(*x);
                    }
                });
                let (n_rows, n_cols) = (rows.len(), cols.len());
                if self.hidden_needs_grad {
                    let left =
                        pack_left(&Operand::k_inner(Values::F32(x), n_cols), n_rows, n_cols, precision);
                    let part =
                        Part { a: &left, b: Right::Operand(Operand::k_outer(student.weight(cols), width)) };
                    let into = &mut d_selected[rows.start * width..rows.end * width];
                    let epilogue = Epilogue { accumulate: true, ..Default::default() };
                    gemm(n_rows, width, &[part], Output::F32(into, width), epilogue, precision);
                }
                if !head.is_empty() {
                    let left =
                        pack_left(&Operand::k_outer(Values::F32(x), n_cols), n_cols, n_rows, precision);
                    let hidden = skip(self.selected.values(), rows.start * width);
                    let part = Part { a: &left, b: Right::Operand(Operand::k_outer(hidden, width)) };
                    let into = &mut head[cols.start * width..cols.end * width];
                    let epilogue = Epilogue { accumulate, ..Default::default() };
                    gemm(n_cols, width, &[part], Output::F32(into, width), epilogue, precision);
                }
            });
            accumulate = true;
        }
        debug_assert_eq!(self.states.len(), n, "a state for every row of {vocabulary} logits");
        let grad = |d: &[f32]| scatter(d, &self.rows, self.hidden_rows, &self.selected);
        self.hidden_needs_grad.then(|| grad(&d_selected))
    }

    /// The derivative of a row's divergence by a logit.
    fn logit_gradient(&self, x: f64, y: f64, state: &RowState) -> f64 {
        let (log_p, log_q) = (x - state.lse, y - state.teacher_lse);
        if self.beta == 0.0 {
            return log_p.exp() - log_q.exp();
        }
        let (_, p, slope) = terms(log_p, log_q, self.beta);
        p * (slope - state.mean_slope)
    }
}

impl<'a> Teacher<'a> {
    /// What a model says at the given rows of its hidden states, `[T, width of the teacher]`.
    pub fn at(hidden: &Var, rows: &[u32], head: &'a Param, options: LogprobOptions) -> Teacher<'a> {
        Teacher { hidden: select_rows(hidden.value(), rows), head, options }
    }
}

impl Teacher<'_> {
    fn side(&self, precision: Precision) -> Side<'_> {
        Side { hidden: &self.hidden, head: self.head, options: self.options, precision }
    }
}

impl<'m> Tape<'m> {
    /// The divergence, `[rows.len(), 1]` in `f32`, of each of the given rows of `hidden` under the head `[vocabulary, width]` from
    /// what the teacher says there.
    ///
    /// # Panics
    /// If the teacher's rows or vocabulary are others, or `beta` is outside 0 to 1.
    pub fn linear_divergence(
        &mut self,
        hidden: &Var,
        head: ParamId,
        rows: &[u32],
        options: &LogprobOptions,
        teacher: Teacher<'m>,
        divergence: DivergenceOptions,
    ) -> Var {
        let start = Instant::now();
        let DivergenceOptions { beta, temperature } = divergence;
        let param = self.params.get(head);
        assert!((0.0..=1.0).contains(&beta), "beta is {beta}, expected 0 to 1");
        assert_eq!(teacher.hidden.rows(), rows.len(), "the teacher says something of every row");
        assert_eq!(teacher.head.shape[0], param.shape[0], "teacher and student have one vocabulary");
        let tempered = |options: LogprobOptions| LogprobOptions {
            temperature: options.temperature * temperature,
            ..options
        };
        let options = tempered(*options);
        let teacher = Teacher { options: tempered(teacher.options), ..teacher };
        let selected = select_rows(hidden.value(), rows);
        let precision = self.mode.dtype.precision();
        let student = Side { hidden: &selected, head: param, options, precision };
        let device = self.params.device();
        let mut out = Tensor::dirty(device, Dtype::F32, rows.len(), 1);
        let (side, states) = (teacher.side(precision), Vec::new());
        let mut kernel = DivergenceForward { student, teacher: side, beta, out: &mut out, states };
        device.run(&mut kernel);
        let states = kernel.states;
        self.profile.add("linear_divergence", "forward", start);
        if !self.records(&[hidden], param.trainable) {
            return self.constant(out);
        }
        let op = LinearDivergence {
            selected,
            hidden_rows: hidden.value().rows(),
            head,
            options,
            rows: rows.to_vec(),
            teacher,
            beta,
            states,
            hidden_needs_grad: hidden.node.is_some(),
        };
        self.push(op, &[hidden], Rc::new(out))
    }
}

#[cfg(test)]
mod tests {
    use pt_core::rng::Stream;

    use super::*;
    use crate::batch::Batch;
    use crate::ops::testing::*;
    use crate::params::{Grads, Params, Weight};
    use crate::segments::SegmentTable;

    const WIDTH: usize = 6;
    const TEACHER_WIDTH: usize = 4;

    fn random(name: &str, n: usize) -> Vec<f32> {
        let stream = Stream::new(11, name);
        (0..n as u64).map(|i| stream.at(i).normal() as f32).collect()
    }

    fn log_softmax(hidden: &[f64], head: &[f64], options: &LogprobOptions, temperature: f64) -> Vec<f64> {
        let logit = |w: &[f64]| {
            let z = hidden.iter().zip(w).map(|(a, b)| a * b).sum::<f64>() * f64::from(options.scale);
            let capped = options.softcap.map_or(z, |cap| f64::from(cap) * (z / f64::from(cap)).tanh());
            capped / f64::from(options.temperature) / temperature
        };
        let logits: Vec<f64> = head.chunks(hidden.len()).map(logit).collect();
        let max = logits.iter().copied().fold(f64::MIN, f64::max);
        let lse = max + logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
        logits.into_iter().map(|x| x - lse).collect()
    }

    /// The definition, term by term.
    fn reference(log_p: &[f64], log_q: &[f64], beta: f64) -> f64 {
        let kl = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a.exp() * (a - b)).sum::<f64>();
        if beta == 0.0 {
            return kl(log_q, log_p);
        }
        if beta == 1.0 {
            return kl(log_p, log_q);
        }
        let m: Vec<f64> =
            log_p.iter().zip(log_q).map(|(p, q)| ((1.0 - beta) * p.exp() + beta * q.exp()).ln()).collect();
        beta * kl(log_q, &m) + (1.0 - beta) * kl(log_p, &m)
    }

    #[test]
    fn divergences_and_gradients_match_finite_differences() {
        let plain = LogprobOptions::default();
        let capped = LogprobOptions { temperature: 0.7, softcap: Some(3.0), scale: 0.5 };
        for (beta, temperature, vocabulary, options) in [
            (0.0, 1.0, 7, plain),
            (1.0, 1.0, 70, plain),
            (0.5, 2.0, 7, plain),
            (0.1, 0.9, 70, capped),
            (0.9, 1.0, 33, plain),
            (0.0, 1.5, 40, capped),
        ] {
            let mut setup = Setup::new(&[4, 3]);
            let (x, head) = (setup.input(WIDTH), setup.param("head", &[vocabulary, WIDTH]));
            let rows = [5, 0, 2, 6];
            let (hidden, weights) =
                (random("hidden", rows.len() * TEACHER_WIDTH), random("weights", vocabulary * TEACHER_WIDTH));
            let (shape, weight) = (vec![vocabulary, TEACHER_WIDTH], Weight::from_f32(&weights));
            let teacher_head = Param { name: "teacher".to_owned(), shape, weight, trainable: false };
            // The types under test are the student's: the teacher's hidden states are the same in both.
            let values = Tensor::from_f32(&hidden, rows.len(), TEACHER_WIDTH, Dtype::F32);
            let teacher_head: &'static Param = Box::leak(Box::new(teacher_head));
            let op = |tape: &mut Tape<'_>, v: &[Var]| {
                let teacher = Teacher { hidden: values.clone(), head: teacher_head, options: plain };
                let divergence = DivergenceOptions { beta, temperature };
                tape.linear_divergence(&v[0], head, &rows, &options, teacher, divergence)
            };
            let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
            let (hidden, weights, t) = (wide(&hidden), wide(&weights), f64::from(temperature));
            let truth = |v: &[Vec<f64>]| -> Vec<f64> {
                rows.iter()
                    .enumerate()
                    .map(|(i, &row)| {
                        let own = &v[0][row as usize * WIDTH..(row as usize + 1) * WIDTH];
                        let log_p = log_softmax(own, &v[1], &options, t);
                        let theirs = &hidden[i * TEACHER_WIDTH..(i + 1) * TEACHER_WIDTH];
                        reference(&log_p, &log_softmax(theirs, &weights, &plain, t), beta)
                    })
                    .collect()
            };
            setup.check(op, truth, &[x], &[head]);
        }
    }

    /// More columns than one chunk.
    #[test]
    fn chunks_of_a_large_vocabulary_merge() {
        let vocabulary = CHUNK_COLS + 37;
        let mut setup = Setup::new(&[3]);
        let (x, head) = (setup.input(WIDTH), setup.param("head", &[vocabulary, WIDTH]));
        let (rows, plain) = ([0, 2], LogprobOptions::default());
        let (hidden, weights) = (random("h", 2 * TEACHER_WIDTH), random("w", vocabulary * TEACHER_WIDTH));
        let (shape, weight) = (vec![vocabulary, TEACHER_WIDTH], Weight::from_f32(&weights));
        let teacher_head: &'static Param =
            Box::leak(Box::new(Param { name: "teacher".to_owned(), shape, weight, trainable: false }));
        let values = Tensor::from_f32(&hidden, 2, TEACHER_WIDTH, Dtype::F32);
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        for beta in [0.0, 0.3, 1.0] {
            let op = |tape: &mut Tape<'_>, v: &[Var]| {
                let teacher = Teacher { hidden: values.clone(), head: teacher_head, options: plain };
                let divergence = DivergenceOptions { beta, temperature: 1.0 };
                tape.linear_divergence(&v[0], head, &rows, &plain, teacher, divergence)
            };
            let truth = |v: &[Vec<f64>]| -> Vec<f64> {
                let row = |(i, &row): (usize, &u32)| {
                    let own = &v[0][row as usize * WIDTH..(row as usize + 1) * WIDTH];
                    let theirs = &wide(&hidden)[i * TEACHER_WIDTH..(i + 1) * TEACHER_WIDTH];
                    let log_q = log_softmax(theirs, &wide(&weights), &plain, 1.0);
                    reference(&log_softmax(own, &v[1], &plain, 1.0), &log_q, beta)
                };
                rows.iter().enumerate().map(row).collect()
            };
            setup.check_forward(op, truth, &[x], &[head], &[0]);
        }
    }

    /// TRL computed in f64 from numbers that f32 holds exactly; ours are f32.
    const GOLDEN_TOLERANCE: f64 = 1e-5;

    #[test]
    fn losses_and_gradients_are_trls() {
        let path = pt_core::testdata::workspace_root().join("golden/gkd/divergence.json");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let size = |name: &str| golden[name].as_u64().unwrap() as usize;
        let wide = |value: &serde_json::Value| -> Vec<f64> { serde_json::from_value(value.clone()).unwrap() };
        let array = |name: &str| wide(&golden[name]).into_iter().map(|v| v as f32).collect::<Vec<f32>>();
        let (n, width, vocabulary) = (size("n"), size("width"), size("vocabulary"));
        let param = |name: &str, width: usize| Param {
            name: name.to_owned(),
            shape: vec![vocabulary, width],
            weight: Weight::from_f32(&array(name)),
            trainable: name == "head",
        };
        let mut params = Params::default();
        let head = params.add(param("head", width));
        let teacher_head = param("teacher_head", size("teacher_width"));
        let teacher_hidden = Tensor::from_f32(&array("teacher_hidden"), n, size("teacher_width"), Dtype::F32);
        let batch = Batch::new(vec![0; n], SegmentTable::sequences(&[n]).unwrap());
        let rows: Vec<u32> = (0..n as u32).collect();
        let plain = LogprobOptions::default();
        for case in golden["cases"].as_array().unwrap() {
            let (beta, temperature) = (case["beta"].as_f64().unwrap(), case["temperature"].as_f64().unwrap());
            let what = format!("beta {beta}, temperature {temperature}");
            let mut tape = Tape::training(&params, &batch, Dtype::F32, None);
            let hidden = tape.leaf(Tensor::from_f32(&array("hidden"), n, width, Dtype::F32).into());
            let teacher = Teacher { hidden: teacher_hidden.clone(), head: &teacher_head, options: plain };
            let divergence = DivergenceOptions { beta, temperature: temperature as f32 };
            let out = tape.linear_divergence(&hidden, head, &rows, &plain, teacher, divergence);
            let loss: f32 = out.value().to_f32().iter().sum();
            assert_close(&[loss], &[case["loss"].as_f64().unwrap()], GOLDEN_TOLERANCE, &what);
            let seed = Tensor::from_f32(&vec![1.0; n], n, 1, Dtype::F32);
            let (node, mut grads) = (out.node.expect("recorded"), Grads::new());
            drop((hidden, out));
            let leaves = tape.run_backward(vec![(node, seed)], &mut grads, &mut Default::default());
            grads.settle(&params);
            let d_hidden = leaves.into_iter().flatten().next().expect("a gradient").to_f32();
            assert_close(&d_hidden, &wide(&case["d_hidden"]), GOLDEN_TOLERANCE, &what);
            let d_head = grads.get(head).expect("a gradient");
            assert_close(&d_head.to_f32(), &wide(&case["d_head"]), GOLDEN_TOLERANCE, &what);
        }
    }
}
