//! What a model's metadata and tensors are called in a GGUF file, both ways.
//!
//! Source: the names and conventions that llama.cpp reads, as its documentation and the `gguf` package list them. Reading
//! back ([`config_of`], [`GgufWeights`]) uses nothing but the file, so that a wrong key or a wrong order of rows shows as
//! other logits.
//!
//! Conventions of the files:
//! - queries and keys of Llama and Mistral have the two halves of each head interleaved;
//! - gains of Gemma are stored as `1 + weight`;
//! - Llama 3's scaling of rotary frequencies is a tensor of divisors, as are Phi 3's short and long lists.
//!
//! **Windows.** The files' architectures `llama`, `qwen2`, `qwen3` and `phi3` see everything. A model with a sliding window
//! is the same as long as no sequence is longer than the window, so that is the context length its file states.

mod config;
mod names;
mod params;
mod rope;

pub use config::{GgufWeights, config_of, model_of};
pub use names::{Place, Transform, place};
pub use params::{context_length, metadata_of};
pub use rope::{ExtraTensor, extra_tensors};

/// Architectures by their name in `config.json` and in GGUF files.
pub(crate) const ARCHITECTURES: &[(&str, &str)] = &[
    ("llama", "llama"),
    ("mistral", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("gemma2", "gemma2"),
    ("gemma3_text", "gemma3"),
    ("phi3", "phi3"),
];

/// The GGUF name of a `model_type`.
pub(crate) fn architecture_of(model_type: &str) -> Option<&'static str> {
    ARCHITECTURES.iter().find(|(hf, _)| *hf == model_type).map(|(_, gguf)| *gguf)
}
