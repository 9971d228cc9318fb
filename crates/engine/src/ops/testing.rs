//! One harness for all operations: forward against an `f64` reference, gradients against its finite differences.

use pt_core::rng::Stream;

use crate::batch::Batch;
use crate::device::Guarded;
use crate::params::{Grads, Param, ParamId, Params, Weight};
use crate::segments::SegmentTable;
use crate::tape::{Tape, Var};
use crate::tensor::{Dtype, Tensor};

/// `f32` sums of at most a few hundred terms, relative to the largest element.
const F32_TOLERANCE: f64 = 1e-5;
/// bf16 keeps 8 bits: inputs, intermediate and output roundings of 2^-9 each, relative to the largest element.
const BF16_TOLERANCE: f64 = 2e-2;
pub(crate) const TOLERANCES: [(Dtype, f64); 2] = [(Dtype::F32, F32_TOLERANCE), (Dtype::Bf16, BF16_TOLERANCE)];
/// Central differences in f64: truncation h^2, cancellation 1e-16 / h.
const STEP: f64 = 1e-5;

/// Inputs and parameters of an operation under test.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) tokens: Vec<u32>,
    pub(crate) table: SegmentTable,
    params: Params,
    inputs: Vec<(Vec<f32>, usize)>,
}

impl Setup {
    /// Independent sequences of these lengths.
    pub(crate) fn new(lens: &[usize]) -> Setup {
        Setup::with_table(SegmentTable::sequences(lens).unwrap())
    }

    pub(crate) fn with_table(table: SegmentTable) -> Setup {
        let tokens = (0..table.n_tokens() as u32).map(|t| (t * 3) % 7).collect();
        Setup { tokens, table, params: Params::default(), inputs: Vec::new() }
    }

    fn random(name: &str, len: usize) -> Vec<f32> {
        let stream = Stream::new(3, name);
        (0..len as u64).map(|i| stream.at(i).normal() as f32).collect()
    }

    /// A trainable parameter of normal values.
    pub(crate) fn param(&mut self, name: &str, shape: &[usize]) -> ParamId {
        let values = Self::random(name, shape.iter().product());
        let weight = Weight::from_f32(&values);
        self.params.add(Param { name: name.to_owned(), shape: shape.to_vec(), weight, trainable: true })
    }

    /// The parameter trains no more.
    pub(crate) fn freeze(&mut self, id: ParamId) {
        self.params.get_mut(id).trainable = false;
    }

    /// A parameter's values.
    pub(crate) fn values(&self, id: ParamId) -> Vec<f64> {
        self.params.get(id).weight.to_f32().iter().map(|&v| f64::from(v)).collect()
    }

    /// Runs `f` with a training tape and the inputs as leaves.
    pub(crate) fn with_tape<R>(
        &self,
        inputs: &[usize],
        dtype: Dtype,
        f: impl FnOnce(Tape<'_>, Vec<Var>) -> R,
    ) -> R {
        let batch = self.batch();
        let mut tape = Tape::training(&self.params, &batch, dtype, None);
        let vars = inputs
            .iter()
            .map(|&i| {
                let (values, cols) = &self.inputs[i];
                let input = Tensor::from_f32(values, self.tokens.len(), *cols, dtype);
                tape.leaf(input.to_device(self.params.device()).into())
            })
            .collect();
        f(tape, vars)
    }

    /// An input of normal values; returns its index.
    pub(crate) fn input(&mut self, cols: usize) -> usize {
        let name = format!("input {}", self.inputs.len());
        self.inputs.push((Self::random(&name, cols * self.tokens.len()), cols));
        self.inputs.len() - 1
    }

    pub(crate) fn batch(&self) -> Batch {
        Batch::new(self.tokens.clone(), self.table.clone())
    }

    /// Output and gradients (inputs, then parameters) for the given upstream gradient: of the CPU, and bit for bit those of a
    /// device whose memory only kernels may touch.
    pub(crate) fn run(
        &self,
        op: &impl Fn(&mut Tape<'_>, &[Var]) -> Var,
        inputs: &[usize],
        params: &[ParamId],
        dtype: Dtype,
        upstream: Option<&[f32]>,
    ) -> (Vec<f32>, Vec<Vec<f32>>) {
        let on_cpu = self.run_here(op, inputs, params, dtype, upstream);
        let mut guarded = self.clone();
        guarded.params.move_to(Guarded::leak("guarded").device());
        let bits = |(out, grads): &(Vec<f32>, Vec<Vec<f32>>)| -> Vec<u32> {
            out.iter().chain(grads.iter().flatten()).map(|value| value.to_bits()).collect()
        };
        let on_guarded = guarded.run_here(op, inputs, params, dtype, upstream);
        assert_eq!(bits(&on_cpu), bits(&on_guarded), "on another device");
        on_cpu
    }

    fn run_here(
        &self,
        op: &impl Fn(&mut Tape<'_>, &[Var]) -> Var,
        inputs: &[usize],
        params: &[ParamId],
        dtype: Dtype,
        upstream: Option<&[f32]>,
    ) -> (Vec<f32>, Vec<Vec<f32>>) {
        self.with_tape(inputs, dtype, |mut tape, vars| {
            let out = op(&mut tape, &vars);
            let values = out.value().to_f32();
            let Some(upstream) = upstream else { return (values, Vec::new()) };
            let seed =
                Tensor::from_f32(upstream, out.value().rows(), out.value().cols(), out.value().dtype());
            let seed = seed.to_device(self.params.device());
            let mut grads = Grads::new();
            let node = out.node.expect("the output of a trained operation is recorded");
            drop((vars, out));
            let mut leaves = tape.run_backward(vec![(node, seed)], &mut grads, &mut Default::default());
            grads.settle(&self.params);
            leaves.reverse();
            let mut all: Vec<Vec<f32>> =
                leaves.into_iter().map(|g| g.expect("a gradient").to_f32()).collect();
            all.extend(params.iter().map(|&id| grads.get(id).expect("a gradient").to_f32()));
            (values, all)
        })
    }

    /// Checks forward and backward in both types. `reference` gets the inputs, then the parameters.
    pub(crate) fn check(
        &self,
        op: impl Fn(&mut Tape<'_>, &[Var]) -> Var,
        reference: impl Fn(&[Vec<f64>]) -> Vec<f64>,
        inputs: &[usize],
        params: &[ParamId],
    ) {
        self.check_columns(op, reference, inputs, params, &[0]);
    }

    /// The same for an output in whose rows only some columns (of [`OUTPUT_COLS`]) are compared and carry gradients;
    /// `[0]` alone means all of them.
    pub(crate) fn check_columns(
        &self,
        op: impl Fn(&mut Tape<'_>, &[Var]) -> Var,
        reference: impl Fn(&[Vec<f64>]) -> Vec<f64>,
        inputs: &[usize],
        params: &[ParamId],
        columns: &[usize],
    ) {
        let truth = self.check_forward(&op, &reference, inputs, params, columns);
        let mut upstream = Self::random("upstream", truth.len());
        keep_columns(&mut upstream, columns);
        let truth_grads = finite_differences(&reference, &mut self.point(inputs, params), &upstream);
        for (dtype, tolerance) in TOLERANCES {
            let (_, grads) = self.run(&op, inputs, params, dtype, Some(&upstream));
            for (i, (ours, truth)) in grads.iter().zip(&truth_grads).enumerate() {
                assert_close(ours, truth, tolerance, &format!("{dtype:?} gradient {i}"));
            }
        }
    }

    /// Checks forward alone; returns the reference output.
    pub(crate) fn check_forward(
        &self,
        op: impl Fn(&mut Tape<'_>, &[Var]) -> Var,
        reference: impl Fn(&[Vec<f64>]) -> Vec<f64>,
        inputs: &[usize],
        params: &[ParamId],
        columns: &[usize],
    ) -> Vec<f64> {
        let truth = reference(&self.point(inputs, params));
        for (dtype, tolerance) in TOLERANCES {
            let (mut out, _) = self.run(&op, inputs, params, dtype, None);
            keep_columns(&mut out, columns);
            assert_close(&out, &truth, tolerance, &format!("{dtype:?} output"));
        }
        truth
    }

    fn point(&self, inputs: &[usize], params: &[ParamId]) -> Vec<Vec<f64>> {
        let widen = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let inputs = inputs.iter().map(|&i| widen(&self.inputs[i].0));
        inputs.chain(params.iter().map(|&id| widen(&self.params.get(id).weight.to_f32()))).collect()
    }
}

/// Columns of an output that is compared in part.
const OUTPUT_COLS: usize = super::linear_logprob::RESULT_COLS;

fn keep_columns(values: &mut [f32], columns: &[usize]) {
    if columns != [0] {
        for (i, value) in values.iter_mut().enumerate() {
            if !columns.contains(&(i % OUTPUT_COLS)) {
                *value = 0.0;
            }
        }
    }
}

fn finite_differences(
    reference: &impl Fn(&[Vec<f64>]) -> Vec<f64>,
    point: &mut [Vec<f64>],
    upstream: &[f32],
) -> Vec<Vec<f64>> {
    let loss = |point: &[Vec<f64>]| -> f64 {
        reference(point).iter().zip(upstream).map(|(y, u)| y * f64::from(*u)).sum()
    };
    let mut grads = Vec::new();
    for which in 0..point.len() {
        let mut grad = Vec::with_capacity(point[which].len());
        for i in 0..point[which].len() {
            let at = point[which][i];
            point[which][i] = at + STEP;
            let above = loss(point);
            point[which][i] = at - STEP;
            let below = loss(point);
            point[which][i] = at;
            grad.push((above - below) / (2.0 * STEP));
        }
        grads.push(grad);
    }
    grads
}

/// Every element within `tolerance` of the largest.
pub(crate) fn assert_close(ours: &[f32], truth: &[f64], tolerance: f64, what: &str) {
    assert_eq!(ours.len(), truth.len(), "{what}: length");
    let scale = truth.iter().fold(0.0f64, |s, t| s.max(t.abs())).max(1e-3);
    for (i, (o, t)) in ours.iter().zip(truth).enumerate() {
        let error = (f64::from(*o) - t).abs() / scale;
        assert!(error <= tolerance, "{what}: element {i} is {o}, expected {t} (relative error {error:e})");
    }
}
