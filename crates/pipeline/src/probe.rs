//! A short measurement on this machine: how much memory and time a stage's steps take.
//!
//! A trainer that is thrown away takes the stage's first steps. The peak of the buffers over two sizes of micro-batch
//! gives the memory per token; the second, warm step gives the speed.

use std::time::Instant;

use pt_recipe::MemoryPart;
use pt_train::{MicroBatch, Trainer};

use crate::error::Result;
use crate::steps::Steps;

/// The probe takes as many micro-batches of a step as hold this many tokens.
const PROBE_TOKENS: usize = 8192;
/// Steps looked at for the largest micro-batch.
const STEPS_SCANNED: u64 = 64;

/// Steps to be measured.
pub trait ProbeSteps {
    /// The micro-batches of a step.
    ///
    /// # Errors
    /// If rows can no longer be read.
    fn micro_batches(&mut self, step_idx: u64) -> Result<Vec<MicroBatch>>;

    /// Steps of the first epoch.
    fn steps_per_epoch(&self) -> u64;
}

impl ProbeSteps for Steps {
    fn micro_batches(&mut self, step_idx: u64) -> Result<Vec<MicroBatch>> {
        Steps::micro_batches(self, step_idx)
    }

    fn steps_per_epoch(&self) -> u64 {
        Steps::steps_per_epoch(self)
    }
}

/// What a stage will need.
pub struct Estimate {
    /// Peak memory, part by part.
    pub memory: Vec<MemoryPart>,
    /// Tokens per second of training steps.
    pub tokens_per_second: f64,
}

/// Measures a trainer on the first steps of its data.
///
/// # Errors
/// Those of a training step.
pub fn probe(mut trainer: Trainer, steps: &mut dyn ProbeSteps, eval: &[MicroBatch]) -> Result<Estimate> {
    let largest = largest_of(steps)?;
    let (weights, state) = (trainer.model.weight_bytes(), trainer.state_bytes());
    let trained = trainer.model.params.iter().filter(|(_, param)| param.trainable);
    let gradients: usize = trained.map(|(_, param)| param.len() * 4).sum();
    // The first pass makes the gradient buffers, so that what follows sees activations alone.
    trainer.accumulate(&[part_of(&largest, PROBE_TOKENS / 8)])?;
    let step =
        |trainer: &mut Trainer, batch: &MicroBatch| trainer.accumulate(std::slice::from_ref(batch)).map(drop);
    let mut activations = peak_of(&mut trainer, &largest, step)?;
    if let Some(largest) = eval.iter().max_by_key(|batch| batch.n_tokens()) {
        let score = |trainer: &mut Trainer, batch: &MicroBatch| {
            trainer.evaluate(std::slice::from_ref(batch)).map(drop)
        };
        activations = activations.max(peak_of(&mut trainer, largest, score)?);
    }
    let part = |part: &str, bytes: usize| MemoryPart { part: part.to_owned(), bytes: bytes as u64 };
    let memory = vec![
        part("weights", weights),
        part("gradients", gradients),
        part("optimizer state", state),
        part("activations", activations),
    ];
    let tokens_per_second = speed_of(&mut trainer, steps)?;
    Ok(Estimate { memory, tokens_per_second })
}

/// The largest micro-batch of the first steps.
fn largest_of(steps: &mut dyn ProbeSteps) -> Result<MicroBatch> {
    let n_scanned = steps.steps_per_epoch().min(STEPS_SCANNED);
    let mut largest: Option<MicroBatch> = None;
    for step in 0..n_scanned {
        for batch in steps.micro_batches(step)? {
            if largest.as_ref().is_none_or(|found| batch.n_tokens() > found.n_tokens()) {
                largest = Some(batch);
            }
        }
    }
    Ok(largest.unwrap_or_else(|| MicroBatch::new(Vec::new())))
}

/// Bytes that `work` needs over `batch` beyond what was live before: measured on a small and a large part of it, and in
/// a straight line from there.
fn peak_of(
    trainer: &mut Trainer,
    batch: &MicroBatch,
    work: impl Fn(&mut Trainer, &MicroBatch) -> pt_train::Result<()>,
) -> Result<usize> {
    let mut measure = |n_tokens: usize| -> Result<(f64, f64)> {
        let part = part_of(batch, n_tokens);
        let device = trainer.model.params.device();
        let live = device.live_bytes();
        device.reset_peak();
        work(trainer, &part)?;
        Ok((device.peak_bytes().saturating_sub(live) as f64, part.n_tokens() as f64))
    };
    let (small, small_tokens) = measure(PROBE_TOKENS / 8)?;
    let (large, large_tokens) = measure(PROBE_TOKENS)?;
    let per_token =
        if large_tokens > small_tokens { (large - small) / (large_tokens - small_tokens) } else { 0.0 };
    Ok((large + per_token.max(0.0) * (batch.n_tokens() as f64 - large_tokens)) as usize)
}

/// The first examples of a micro-batch that hold at most `n_tokens`, at least one.
fn part_of(batch: &MicroBatch, n_tokens: usize) -> MicroBatch {
    let mut sum = 0;
    let examples = batch.examples().iter().take_while(|example| {
        let first = sum == 0;
        sum += example.n_tokens();
        first || sum <= n_tokens
    });
    MicroBatch::new(examples.cloned().collect())
}

/// Tokens per second of the second step.
fn speed_of(trainer: &mut Trainer, steps: &mut dyn ProbeSteps) -> Result<f64> {
    let mut speed = f64::NAN;
    for step in 0..2.min(steps.steps_per_epoch().max(1)) {
        let mut sum = 0;
        let batches: Vec<MicroBatch> = steps
            .micro_batches(step)?
            .into_iter()
            .take_while(|batch| {
                let first = sum == 0;
                sum += batch.n_tokens();
                first || sum <= PROBE_TOKENS
            })
            .collect();
        let start = Instant::now();
        let (stats, _) = trainer.step(&batches)?;
        speed = stats.n_tokens as f64 / start.elapsed().as_secs_f64();
    }
    Ok(speed)
}

/// Multiplications and additions of one training step per token, in matrix products with the model's weights: two per
/// weight forward, two for the input's gradient, two more where the weight trains. Attention and adapters are left out.
pub fn flops_per_token(model: &pt_models::Model) -> f64 {
    let flops = |id: pt_engine::ParamId| {
        let param = model.params.get(id);
        param.len() as f64 * if param.trainable { 6.0 } else { 4.0 }
    };
    model.arch.linears().iter().map(|linear| flops(linear.weight)).sum::<f64>() + flops(model.arch.head())
}

/// Matrix products per second this machine reaches in a tenth of a second, in floating-point operations.
pub fn matrix_peak(dtype: pt_engine::Dtype) -> f64 {
    use pt_kernels::gemm::{
        Epilogue, Operand, Output, Part, Precision, Right, Values, gemm, pack_left, pack_right,
    };
    const M: usize = 896;
    const N: usize = 1024;
    const K: usize = 1024;
    let precision = match dtype {
        pt_engine::Dtype::F32 => Precision::F32,
        pt_engine::Dtype::Bf16 => Precision::Bf16,
    };
    let (a, b) = (vec![0.5f32; M * K], vec![0.25f32; N * K]);
    let left = pack_left(&Operand::k_inner(Values::F32(&a), K), M, K, precision);
    let right = pack_right(&Operand::k_inner(Values::F32(&b), K), N, K, precision);
    let mut c = vec![0.0f32; M * N];
    let (mut best, begin) = (f64::MAX, Instant::now());
    while begin.elapsed().as_secs_f64() < 0.1 {
        let start = Instant::now();
        let part = Part { a: &left, b: Right::Packed(&right) };
        gemm(M, N, &[part], Output::F32(&mut c, N), Epilogue::default(), precision);
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (M * N * K) as f64 / best
}
