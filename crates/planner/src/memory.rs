//! Memory of a training step and of a rollout, part by part.
//!
//! Weights, gradients and optimiser state are sums over the model's tensors, in the storage types of this program. The
//! activations are counted operation by operation as the tape of `pt-engine` keeps them. Per token and block, in elements of
//! the activations' type:
//!
//! | kept | full | adapter |
//! | --- | --- | --- |
//! | inputs of the two normalisations | `2 h` | `2 h` |
//! | queries, keys, values | `q + 2 kv` | `q + 2 kv` |
//! | attention's output | `q` | `q` |
//! | gate and up | `2 f` | `2 f` |
//! | inputs of q/k/v, of gate/up, and of down | made again | `2 h + f` |
//! | `s x A^T` of each adapted layer | | `r` each |
//! | Gemma's outputs before their normalisation | `2 h` | `2 h` |
//! | queries, keys, values before their normalisation | `q + 2 kv` | `q + 2 kv` |
//!
//! and one `f32` per query head. It is the count of Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1: eq. 1 with the
//! attention scores of section 3 left out, as attention here never holds them), for this architecture in place of GPT's and
//! with cheap inputs made again. With recomputation each block keeps its input (their section 5: `2 s b h L` bytes in 16
//! bits) and one block at a time has the rest.
//!
//! The peak comes on top of what is kept: the largest of the head's scratch (chunks of logits, never a `[tokens, vocabulary]`
//! matrix) and the temporaries of the last block's backward pass.

use pt_models::Role;
use pt_optim::Groups;
use serde::Serialize;

use crate::error::{PlannerError, Result};
use crate::shape::Shape;

/// Columns of a chunk of logits (`pt-engine`, `linear_logprob`).
const CHUNK_COLS: u64 = 2048;
/// Rows of a block of logits.
const BLOCK_ROWS: u64 = 1024;
/// Scratch in which the one-pass head holds a block's weights over the vocabulary.
const STEP_BYTES: u64 = 64 << 20;
/// Scratch of the threads: panels of a product, tiles of attention.
const THREAD_SCRATCH_BYTES: u64 = 512 << 10;

/// What trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Every weight.
    Full,
    /// Low-rank adapters beside frozen weights.
    Lora,
    /// The same beside weights in NF4.
    Qlora,
}

impl Method {
    /// All, from the most to the least memory.
    pub const ALL: [Method; 3] = [Method::Full, Method::Lora, Method::Qlora];

    /// As recipes write it.
    pub fn name(self) -> &'static str {
        match self {
            Method::Full => "full",
            Method::Lora => "lora",
            Method::Qlora => "qlora",
        }
    }
}

/// Storage of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// 32 bits.
    F32,
    /// 16 bits.
    Bf16,
}

impl Storage {
    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            Storage::F32 => 4,
            Storage::Bf16 => 2,
        }
    }
}

/// How a model is trained.
#[derive(Clone, Debug, Serialize)]
pub struct Training {
    /// What trains.
    pub method: Method,
    /// Storage of weights and activations.
    pub dtype: Storage,
    /// Rank of the adapters.
    pub rank: usize,
    /// The optimiser, as recipes write it.
    pub optimizer: String,
    /// Its options.
    #[serde(skip)]
    pub optimizer_options: toml::Table,
    /// Tokens of a micro-batch: what is in memory at once.
    pub micro_tokens: u64,
    /// Tokens of a sequence.
    pub sequence: u64,
    /// Whether blocks keep only their input.
    pub recompute: bool,
    /// Whether the loss's gradient is known before its value, so that the head runs once (cross-entropy).
    pub one_pass_head: bool,
    /// Whether buffers come from this program's pool, whose sizes are rounded up.
    pub pooled: bool,
}

/// Bytes, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Weights, and adapters.
    pub weights: u64,
    /// Gradients, `f32`.
    pub gradients: u64,
    /// The optimiser's moments and what else it keeps.
    pub optimizer_state: u64,
    /// What the forward pass keeps, and the backward pass's temporaries.
    pub activations: u64,
    /// Of the head: chunks of logits.
    pub logits: u64,
}

impl Memory {
    /// All parts.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer_state + self.activations + self.logits
    }

    /// What is there between two steps.
    pub fn resident(&self) -> u64 {
        self.weights + self.gradients + self.optimizer_state
    }
}

/// The pool's size of a buffer: an eighth of a power of two (`pt-kernels`, `buffer`).
fn pooled(bytes: u64) -> u64 {
    let bytes = bytes.max(64);
    let step = (bytes.next_power_of_two() / 16).max(64);
    bytes.div_ceil(step) * step
}

impl Training {
    fn buffer(&self, bytes: u64) -> u64 {
        if self.pooled { pooled(bytes) } else { bytes }
    }

    fn adapts(&self) -> bool {
        self.method != Method::Full
    }
}

/// Bytes of an NF4 matrix: half a byte a weight, a code per block of 64 and an `f32` per 256 of these, as QLoRA's double
/// quantisation (Dettmers et al. 2023, arXiv:2305.14314, section 3).
fn nf4_bytes(n: u64) -> u64 {
    let blocks = n.div_ceil(64);
    n.div_ceil(2) + blocks + 4 * blocks.div_ceil(256) + 4 + 4 * 256
}

/// Bytes of the weights as `method` stores them, without adapters.
pub fn weight_bytes(shape: &Shape, method: Method, dtype: Storage) -> u64 {
    let bytes = |spec: &pt_models::ParamSpec| match (method, spec.role) {
        (Method::Qlora, Role::Linear) => nf4_bytes(spec.n_elements() as u64),
        _ => spec.n_elements() as u64 * dtype.bytes(),
    };
    shape.tensors.iter().map(bytes).sum()
}

/// Parameters that train.
pub fn trainable_params(shape: &Shape, training: &Training) -> u64 {
    if training.adapts() { shape.adapter_params(training.rank) } else { shape.n_params() }
}

/// Bytes of an adapter's elements: it is kept in `f32` beside weights of any type.
pub(crate) const ADAPTER_BYTES: u64 = 4;

/// Bytes of optimiser state for everything that trains, from the optimiser's own account of each tensor.
///
/// # Errors
/// If there is no such optimiser or option.
pub fn state_bytes(shape: &Shape, training: &Training) -> Result<u64> {
    let optimiser = pt_optim::build(&training.optimizer, &training.optimizer_options, 0)?;
    let groups = Groups::default();
    let bytes = |name: &str, dims: &[usize], role: pt_optim::Role, bf16: bool| {
        optimiser.state_bytes(&groups.spec(name, dims, role), bf16) as u64
    };
    if !training.adapts() {
        let role_of = |spec: &pt_models::ParamSpec| match spec.role {
            Role::Embedding => pt_optim::Role::Embedding,
            Role::Head => pt_optim::Role::Head,
            Role::Linear => pt_optim::Role::Hidden,
            Role::Norm | Role::Bias => pt_optim::Role::Vector,
        };
        let is_bf16 = training.dtype == Storage::Bf16;
        return Ok(shape.tensors.iter().map(|s| bytes(&s.name, &s.shape, role_of(s), is_bf16)).sum());
    }
    let rank = training.rank;
    let adapter = |spec: &pt_models::ParamSpec| {
        bytes(&spec.name, &[rank, spec.shape[1]], pt_optim::Role::LoraA, false)
            + bytes(&spec.name, &[spec.shape[0], rank], pt_optim::Role::LoraB, false)
    };
    Ok(shape.linears().map(adapter).sum())
}

/// Bytes of one block's activations for one token, tensor by tensor: the block's input first.
pub(crate) fn block_tensors(shape: &Shape, training: &Training) -> Vec<u64> {
    let e = training.dtype.bytes();
    let [h, f, q, kv] =
        [shape.hidden_size, shape.ffn_size, shape.q_width(), shape.kv_width()].map(|n| n as u64 * e);
    let mut kept = vec![h, q + 2 * kv, q, 4 * shape.n_heads as u64, h, 2 * f];
    if training.adapts() {
        kept.extend([h, h, f]);
        kept.extend(std::iter::repeat_n(training.rank as u64 * e, shape.linears_per_block));
    }
    if shape.sandwich_norms {
        kept.extend([h, h]);
    }
    if shape.head_norms {
        kept.push(q + 2 * kv);
    }
    kept
}

/// Temporaries of the last block's backward pass beyond what all blocks keep, at their largest.
fn backward_peak(shape: &Shape, training: &Training) -> u64 {
    let tokens = training.micro_tokens;
    let e = training.dtype.bytes();
    let c = |width: usize| training.buffer(tokens * width as u64 * e);
    let (h, f, two_f) = (c(shape.hidden_size), c(shape.ffn_size), c(2 * shape.ffn_size));
    // Packed operands of the gate/up gradient: by row of both, by column of one; a fused layer packs both at once.
    let fused = shape.linears().any(|spec| spec.name.contains("gate_up_proj"));
    let packs = if fused { 2 * two_f } else { 3 * f };
    let sandwich = if shape.sandwich_norms { h } else { 0 };
    let moments = if training.adapts() {
        // Down, its input kept: gradient, two packed, or one packed and the input's gradient. Gate: two gradients.
        let down = (3 * h).max(2 * h + f);
        let gated = h + two_f;
        // What of the block is gone by then: gate/up and down's input.
        let gate_up = (h + two_f + packs).saturating_sub(f + two_f);
        [down, gated, gate_up]
    } else {
        let down = 2 * h + f + h.max(f);
        let gated = h + f + two_f;
        let gate_up = 2 * h + packs;
        [down, gated, gate_up]
    };
    moments.into_iter().max().unwrap_or(0).max(3 * h) + sandwich + THREAD_SCRATCH_BYTES
}

/// Scratch of the head at its largest, and what of it is chunks of logits.
fn head_peak(shape: &Shape, training: &Training) -> (u64, u64) {
    let (n, e) = (training.micro_tokens, training.dtype.bytes());
    let c = |bytes: u64| training.buffer(bytes);
    let (h, v) = (shape.hidden_size as u64, shape.vocab_size as u64);
    let chunk = CHUNK_COLS.min(v);
    // The last normalisation's input and output, and the selected rows.
    let held = 3 * c(n * h * e);
    let (rows, logits) = if training.one_pass_head && !training.adapts() {
        let blocks = n.div_ceil((STEP_BYTES / (v * e)).max(1)).max(1);
        let rows = n.div_ceil(blocks).next_multiple_of(2);
        (rows, c(rows * v * e) + c(rows * chunk * 4))
    } else {
        let rows = n.min(BLOCK_ROWS);
        // Logits, their weights, and these packed once more.
        (rows, c(rows * chunk * 4) + 2 * c(rows * chunk * e))
    };
    (held + c(n * h * 4) + c(rows * h * e) + THREAD_SCRATCH_BYTES, logits)
}

/// Bytes at the peak of a training step.
///
/// # Errors
/// Numbers that are 0, an unknown optimiser.
pub fn training_memory(shape: &Shape, training: &Training) -> Result<Memory> {
    check(training)?;
    let adapter = if training.adapts() { shape.adapter_params(training.rank) } else { 0 };
    let (activations, logits) = activation_peak(shape, training);
    Ok(Memory {
        weights: weight_bytes(shape, training.method, training.dtype) + adapter * ADAPTER_BYTES,
        gradients: trainable_params(shape, training) * 4,
        optimizer_state: state_bytes(shape, training)?,
        activations,
        logits,
    })
}

pub(crate) fn check(training: &Training) -> Result<()> {
    let numbers = [
        ("the number of tokens of a micro-batch", training.micro_tokens),
        ("the length of a sequence", training.sequence),
        ("the adapter's rank", training.rank as u64),
    ];
    match numbers.iter().find(|(_, n)| *n == 0) {
        Some((what, _)) => {
            Err(PlannerError::Number { what, found: "0".to_owned(), expected: "1 or more".to_owned() })
        }
        None => Ok(()),
    }
}

/// Activations and logits at the peak: the head's moment or the last block's backward pass, whichever is larger.
pub(crate) fn activation_peak(shape: &Shape, training: &Training) -> (u64, u64) {
    let tokens = training.micro_tokens;
    let kept: Vec<u64> =
        block_tensors(shape, training).iter().map(|bytes| training.buffer(bytes * tokens)).collect();
    let (input, block) = (kept[0], kept.iter().sum::<u64>());
    let layers = shape.n_layers as u64;
    let (forward, last) = match training.recompute {
        true => (layers * input, block - input),
        // Nothing trains before the first block's adapters, so its first normalisation keeps nothing.
        false => (layers * block - if training.adapts() { input } else { 0 }, 0),
    };
    let backward = forward + last + backward_peak(shape, training);
    let (head, logits) = head_peak(shape, training);
    if forward + head + logits > backward { (forward + head, logits) } else { (backward, 0) }
}

/// Bytes of a rollout beyond the resident ones: cache and logits of `n_sequences` at once, prompts of `prompt` tokens held
/// once per `group` of them.
pub fn rollout_bytes(
    shape: &Shape,
    dtype: Storage,
    n_sequences: u64,
    group: u64,
    prompt: u64,
    new: u64,
) -> RolloutBytes {
    let tokens = n_sequences.div_ceil(group.max(1)) * prompt + n_sequences * new;
    RolloutBytes {
        cache: tokens * shape.cache_bytes_per_token(dtype.bytes()),
        logits: n_sequences * shape.vocab_size as u64 * 4,
    }
}

/// What sampling needs beside the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RolloutBytes {
    /// Keys and values.
    pub cache: u64,
    /// One row of logits per sequence, `f32`.
    pub logits: u64,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What the tests of this crate train with.
    pub(crate) fn training(method: Method) -> Training {
        Training {
            method,
            dtype: Storage::Bf16,
            rank: 16,
            optimizer: "adamw".to_owned(),
            optimizer_options: toml::Table::new(),
            micro_tokens: 4096,
            sequence: 4096,
            recompute: false,
            one_pass_head: true,
            pooled: false,
        }
    }

    #[test]
    fn orders_that_must_hold() {
        for name in ["SmolLM2-135M", "Qwen2.5-7B", "gemma-3-4b", "Phi-3-mini"] {
            let shape = Shape::find(name).unwrap();
            let of = |method, recompute| {
                training_memory(&shape, &Training { recompute, ..training(method) }).unwrap()
            };
            for method in Method::ALL {
                let (kept, again) = (of(method, false), of(method, true));
                assert!(again.activations + again.logits < kept.activations + kept.logits, "{name}");
                assert_eq!(kept.resident(), again.resident());
            }
            let totals = Method::ALL.map(|method| of(method, true).resident());
            assert!(totals[0] > totals[1] && totals[1] > totals[2], "{name}: {totals:?}");
        }
    }

    /// Korthikanti et al. 2022, section 5 with full recomputation: `2 s b h L` bytes in 16 bits, and one block.
    #[test]
    fn recomputation_keeps_the_inputs_of_blocks() {
        let shape = Shape::find("Llama-3.1-8B").unwrap();
        let with = |layers: usize| {
            let shape = Shape { n_layers: layers, ..shape.clone() };
            let training = Training { recompute: true, rank: 16, ..training(Method::Full) };
            let (activations, logits) = activation_peak(&shape, &training);
            activations + logits
        };
        assert_eq!(with(32) - with(31), 2 * 4096 * 4096);
    }

    #[test]
    fn zeros_are_refused() {
        let shape = Shape::find("SmolLM2-135M").unwrap();
        let zero = Training { micro_tokens: 0, ..training(Method::Full) };
        let message = training_memory(&shape, &zero).unwrap_err().to_string();
        assert!(message.contains("micro-batch is 0"), "{message}");
        let unknown = Training { optimizer: "adamv".to_owned(), ..training(Method::Full) };
        assert!(training_memory(&shape, &unknown).unwrap_err().to_string().contains("adamw"));
    }

    #[test]
    fn a_cache_holds_prompts_once_per_group() {
        let shape = Shape::find("Llama-3.1-8B").unwrap();
        let bytes = rollout_bytes(&shape, Storage::Bf16, 16, 8, 100, 50);
        // Two prompts and sixteen answers; 32 layers of 8 heads of 128, keys and values in 2 bytes.
        assert_eq!(bytes.cache, (2 * 100 + 16 * 50) * 32 * 8 * 128 * 2 * 2);
        assert_eq!(bytes.logits, 16 * 128_256 * 4);
    }
}
