//! Time of a step and of sampling.
//!
//! Per token, a matrix product with a weight of `n` elements does `2 n` operations forward, `2 n` for the gradient of its
//! input and `2 n` for its own if it trains (Narayanan et al. 2021, arXiv:2104.04473, appendix: the 6 of `6 N`); blocks that
//! run again add `2 n`. Causal attention over sequences of `s` tokens does `2 s q` per token and block forward (half of the
//! square, two products) and two and a half times that backward, where the scores are made again (Dao 2023,
//! arXiv:2307.08691, section 4.1).
//!
//! On named devices all of it runs at `efficiency` times the matrix peak. On this machine the parts run at their own shares of
//! its measured peak and bandwidth. The shares were read from `bench/README.md`'s profile of SmolLM2-135M on a 2-core
//! machine with AVX512-BF16 and are kept as constants below; `crates/planner/examples/check.rs` holds them against
//! another measurement.
//!
//! Decoding one token for each of `b` sequences reads every weight and all cached keys and values once, or does `2 N b`
//! operations, whichever takes longer (roofline: Williams et al. 2009; for decoding, Pope et al. 2022, arXiv:2211.05102,
//! section 2).

use serde::Serialize;

use crate::error::Result;
use crate::hardware::Device;
use crate::memory::{Method, Storage, Training, block_tensors, state_bytes, trainable_params, weight_bytes};
use crate::shape::Shape;

/// Share of this machine's matrix peak that linear layers and head reach.
pub const CPU_MATRIX_EFFICIENCY: f64 = 0.93;
/// The same with adapters, whose narrow products cost more than their operations.
pub const CPU_ADAPTER_EFFICIENCY: f64 = 0.92;
/// Share of this machine's matrix peak that attention reaches.
pub const CPU_ATTENTION_EFFICIENCY: f64 = 0.5;
/// Times that elementwise operations pass over what a block keeps: norms, gates, rotations, sums, packing.
pub const CPU_ELEMENTWISE_PASSES: f64 = 10.0;
/// Share of the read bandwidth that passes which also write reach.
pub const CPU_WRITE_EFFICIENCY: f64 = 0.7;
/// Share of the bandwidth that decoding reaches here.
pub const CPU_DECODE_EFFICIENCY: f64 = 0.8;
/// How much slower products with NF4 weights are on named devices, which decode them before each product: QLoRA runs take
/// about 1.4 times the time of LoRA with 16-bit weights (Dettmers et al. 2023 say "39 % slower" of their released code).
const NF4_SLOWDOWN: f64 = 1.4;

/// Operations and bytes of a training step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Work {
    /// Matrix products, floating-point operations per token.
    pub matrix_flops: f64,
    /// Attention, operations per token.
    pub attention_flops: f64,
    /// Passes over activations, bytes per token.
    pub elementwise_bytes: f64,
    /// The update, bytes per step.
    pub update_bytes: f64,
}

/// Counts a training step's work.
///
/// # Errors
/// An unknown optimiser.
pub fn work(shape: &Shape, training: &Training) -> Result<Work> {
    let (linear, head) = (shape.linear_params() as f64, shape.head_params() as f64);
    let (adapter, again) = match training.method {
        Method::Full => (0.0, if training.recompute { 2.0 } else { 0.0 }),
        _ => (shape.adapter_params(training.rank) as f64, if training.recompute { 2.0 } else { 0.0 }),
    };
    let full = training.method == Method::Full;
    let per_linear = if full { 6.0 } else { 4.0 } + again;
    // A head that does not train gives its input's gradient on the way; one that trains computes logits twice, unless
    // the gradient is known before.
    let per_head = match (full, training.one_pass_head) {
        (true, true) => 6.0,
        (true, false) => 8.0,
        (false, _) => 4.0,
    };
    let forward = 2.0 * training.sequence as f64 * shape.q_width() as f64 * shape.n_layers as f64;
    let trained = trainable_params(shape, training) as f64;
    let element = if full { training.dtype.bytes() as f64 } else { 4.0 };
    let kept: u64 = block_tensors(shape, training).iter().sum();
    Ok(Work {
        matrix_flops: per_linear * linear + per_head * head + (6.0 + again) * adapter,
        attention_flops: forward * (3.5 + again / 2.0),
        elementwise_bytes: CPU_ELEMENTWISE_PASSES * (kept * shape.n_layers as u64) as f64,
        // Weight and state are read and written; the gradient is read for its norm and for the update.
        update_bytes: 2.0 * (state_bytes(shape, training)? as f64 + element * trained) + 8.0 * trained,
    })
}

/// Operations per second of matrix products.
fn peak(device: &Device, dtype: Storage) -> f64 {
    1e12 * match dtype {
        Storage::F32 => device.tflops_f32,
        Storage::Bf16 => device.tflops_bf16,
    }
}

/// Seconds of a training step of `step_tokens` tokens on one device.
pub fn step_seconds(device: &Device, training: &Training, work: &Work, step_tokens: f64) -> f64 {
    let peak = peak(device, training.dtype);
    let bandwidth = device.bandwidth_gbs * 1e9;
    if !device.is_this {
        let nf4 = if training.method == Method::Qlora { NF4_SLOWDOWN } else { 1.0 };
        let flops = (work.matrix_flops * nf4 + work.attention_flops) * step_tokens;
        return flops / (peak * device.efficiency) + work.update_bytes / (bandwidth * 0.8);
    }
    let matrix = match training.method {
        Method::Full => CPU_MATRIX_EFFICIENCY,
        Method::Lora | Method::Qlora => CPU_ADAPTER_EFFICIENCY,
    };
    let write = bandwidth * CPU_WRITE_EFFICIENCY;
    let per_token = work.matrix_flops / (peak * matrix)
        + work.attention_flops / (peak * CPU_ATTENTION_EFFICIENCY)
        + work.elementwise_bytes / write;
    per_token * step_tokens + work.update_bytes / write
}

/// Seconds of a forward pass per token, as a reference needs: without gradients.
pub fn forward_seconds_per_token(device: &Device, shape: &Shape, training: &Training) -> f64 {
    let flops = 2.0 * (shape.linear_params() + shape.head_params()) as f64
        + 2.0 * training.sequence as f64 * shape.q_width() as f64 * shape.n_layers as f64;
    let efficiency = if device.is_this { CPU_ADAPTER_EFFICIENCY } else { device.efficiency };
    flops / (peak(device, training.dtype) * efficiency)
}

/// What is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rollout {
    /// Tokens of a prompt.
    pub prompt: u64,
    /// Tokens sampled per answer.
    pub new: u64,
    /// Answers per prompt.
    pub group: u64,
    /// Sequences decoded together.
    pub concurrent: u64,
}

/// Seconds to sample `n` answers on one device, prompts computed once per group.
pub fn sampling_seconds(
    device: &Device,
    shape: &Shape,
    training: &Training,
    rollout: &Rollout,
    n: f64,
) -> f64 {
    let b = (rollout.concurrent as f64).min(n).max(1.0);
    let active = (shape.linear_params() + shape.head_params()) as f64;
    // The embedding is looked up, not read.
    let looked_up = if shape.tied { 0.0 } else { shape.head_params() as f64 * training.dtype.bytes() as f64 };
    let weights = weight_bytes(shape, training.method, training.dtype) as f64 - looked_up;
    let context = rollout.prompt as f64 + rollout.new as f64 / 2.0;
    let cache = b * context * shape.cache_bytes_per_token(training.dtype.bytes()) as f64;
    let read = (weights + cache) / (device.bandwidth_gbs * 1e9 * device.decode_efficiency);
    let efficiency = if device.is_this { CPU_ADAPTER_EFFICIENCY } else { device.efficiency };
    let rate = peak(device, training.dtype) * efficiency;
    let compute = 2.0 * active * b / rate;
    let decode = (n / b) * rollout.new as f64 * read.max(compute);
    let prefill = n / rollout.group.max(1) as f64 * rollout.prompt as f64 * 2.0 * active / rate;
    decode + prefill
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::{devices, find};
    use crate::memory::tests::training;

    #[test]
    fn a_step_does_six_operations_a_weight() {
        let shape = Shape::find("Llama-3.1-8B").unwrap();
        let full = work(&shape, &training(Method::Full)).unwrap();
        let weights = (shape.linear_params() + shape.head_params()) as f64;
        assert_eq!(full.matrix_flops, 6.0 * weights);
        let again = work(&shape, &Training { recompute: true, ..training(Method::Full) }).unwrap();
        assert_eq!(again.matrix_flops - full.matrix_flops, 2.0 * shape.linear_params() as f64);
        assert_eq!(again.attention_flops / full.attention_flops, 4.5 / 3.5);
        let lora = work(&shape, &training(Method::Lora)).unwrap();
        assert_eq!(lora.matrix_flops, 4.0 * weights + 6.0 * shape.adapter_params(16) as f64);
    }

    #[test]
    fn one_sequence_decodes_at_the_bandwidth_and_many_at_the_peak() {
        let shape = Shape::find("Llama-3.1-8B").unwrap();
        let device = find("H100", &devices(None).unwrap()).unwrap().device;
        let training = training(Method::Full);
        let rollout = |concurrent| Rollout { prompt: 0, new: 100, group: 1, concurrent };
        let one = sampling_seconds(&device, &shape, &training, &rollout(1), 1.0);
        let bytes = (shape.n_params() - shape.head_params()) as f64 * 2.0;
        let cache = 50.0 * shape.cache_bytes_per_token(2) as f64;
        let expected = 100.0 * (bytes + cache) / (3350e9 * 0.7);
        assert!((one / expected - 1.0).abs() < 1e-9);
        let many = sampling_seconds(&device, &shape, &training, &rollout(4096), 4096.0);
        let flops = 2.0 * (shape.linear_params() + shape.head_params()) as f64 * 4096.0 * 100.0;
        assert!((many / (flops / (989.4e12 * device.efficiency)) - 1.0).abs() < 1e-9);
        // A batch never takes longer than its sequences alone.
        let eight = sampling_seconds(&device, &shape, &training, &rollout(8), 8.0);
        assert!(one < eight && eight < 8.0 * one);
    }

    /// `bench/README.md`: SmolLM2-135M's shape, 4 x 256 tokens a step, on an idle 2-core machine that reached 190 GFLOP/s in
    /// f32 and 393 to 399 in bf16; `examples/check.rs` reads 50 to 60 GB/s there. The estimate lies within a fifth of each.
    #[test]
    fn the_benchmarks_are_met() {
        const TOLERANCE: f64 = 0.20;
        let machine = Device::this(crate::Measured {
            memory_bytes: 24 << 30,
            gflops_f32: 190.0,
            gflops_bf16: 396.0,
            bandwidth_gbs: 55.0,
        });
        let shape = Shape::find("SmolLM2-135M").unwrap();
        let check = |method, dtype, options: &str, measured: f64| {
            let optimizer_options = options.parse().unwrap();
            let training = Training { dtype, sequence: 256, optimizer_options, ..training(method) };
            let seconds = step_seconds(&machine, &training, &work(&shape, &training).unwrap(), 1024.0);
            let off = 1024.0 / seconds / measured - 1.0;
            assert!(off.abs() < TOLERANCE, "{method:?} {dtype:?}: {:.0} of {measured}", 1024.0 / seconds);
        };
        check(Method::Full, Storage::Bf16, "bf16_params = 'stochastic'\nstate = 'bf16'", 406.0);
        check(Method::Lora, Storage::Bf16, "", 490.0);
        check(Method::Lora, Storage::Bf16, "", 556.0);
        check(Method::Qlora, Storage::Bf16, "", 560.0);
        check(Method::Full, Storage::F32, "", 207.0);
        check(Method::Lora, Storage::F32, "", 281.0);
    }
}
