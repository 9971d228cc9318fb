//! The architectures, one file each: what it has of its own, and its forward pass from top to bottom.
//!
//! To add one: a file with `build` and the [`CausalLm`] implementation, a line in [`ARCHITECTURES`], a tiny
//! configuration in `golden/models.py`, and its name in the golden test.

mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;

use crate::builder::Builder;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::model::CausalLm;
use crate::options::Options;

/// An entry of the catalogue.
#[derive(Debug)]
pub struct Architecture {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Class in transformers.
    pub class_name: &'static str,
    /// One line for lists.
    pub summary: &'static str,
    /// Which published models it is, and what is particular about it.
    pub notes: &'static str,
    pub(crate) defaults: Defaults,
    pub(crate) build: fn(&ModelConfig, &Options<'_>, &mut Builder<'_>) -> Result<Box<dyn CausalLm>>,
}

/// Values of absent keys, as in transformers' configuration class.
#[derive(Debug)]
pub(crate) struct Defaults {
    pub(crate) n_kv_heads: Option<usize>,
    pub(crate) head_dim: Option<usize>,
    pub(crate) max_positions: usize,
    pub(crate) norm_eps: f64,
    pub(crate) tied: bool,
}

/// Everything that can be loaded.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        model_type: "llama",
        class_name: "LlamaForCausalLM",
        summary: "grouped-query attention, rotary positions, SwiGLU",
        notes: "Llama 1 to 3.3, SmolLM 1 and 2, TinyLlama, Yi, DeepSeek-Coder 1, and many that took its form. Biases are optional.",
        defaults: Defaults {
            n_kv_heads: None,
            head_dim: None,
            max_positions: 2048,
            norm_eps: 1e-6,
            tied: false,
        },
        build: llama::build,
    },
    Architecture {
        model_type: "mistral",
        class_name: "MistralForCausalLM",
        summary: "Llama with a sliding window",
        notes: "Mistral 7B 0.1 to 0.3, Mistral Nemo (its head_dim is not hidden/heads). The window is off where config.json says null.",
        defaults: Defaults {
            n_kv_heads: Some(8),
            head_dim: None,
            max_positions: 1 << 17,
            norm_eps: 1e-6,
            tied: false,
        },
        build: mistral::build,
    },
    Architecture {
        model_type: "qwen2",
        class_name: "Qwen2ForCausalLM",
        summary: "Llama with biases on query, key and value",
        notes: "Qwen 1.5, 2 and 2.5, and what was distilled into them (DeepSeek-R1-Distill-Qwen).",
        defaults: Defaults {
            n_kv_heads: Some(32),
            head_dim: None,
            max_positions: 32768,
            norm_eps: 1e-6,
            tied: false,
        },
        build: qwen2::build,
    },
    Architecture {
        model_type: "qwen3",
        class_name: "Qwen3ForCausalLM",
        summary: "Llama with normalised queries and keys",
        notes: "Qwen 3 dense, 0.6B to 32B.",
        defaults: Defaults {
            n_kv_heads: Some(32),
            head_dim: Some(128),
            max_positions: 32768,
            norm_eps: 1e-6,
            tied: false,
        },
        build: qwen3::build,
    },
    Architecture {
        model_type: "gemma2",
        class_name: "Gemma2ForCausalLM",
        summary: "norms on both sides, soft-caps, every other layer slides",
        notes: "Gemma 2. Gains are 1 + weight, embeddings are multiplied by sqrt(hidden).",
        defaults: Defaults {
            n_kv_heads: Some(4),
            head_dim: Some(256),
            max_positions: 8192,
            norm_eps: 1e-6,
            tied: true,
        },
        build: gemma2::build,
    },
    Architecture {
        model_type: "gemma3_text",
        class_name: "Gemma3ForCausalLM",
        summary: "Gemma 2 with normalised queries and keys, five of six layers slide",
        notes: "The text models of Gemma 3 (270M, 1B). Sliding layers have their own rotary base.",
        defaults: Defaults {
            n_kv_heads: Some(4),
            head_dim: Some(256),
            max_positions: 1 << 17,
            norm_eps: 1e-6,
            tied: true,
        },
        build: gemma3::build,
    },
    Architecture {
        model_type: "phi3",
        class_name: "Phi3ForCausalLM",
        summary: "Llama with fused projections, part of a head rotated",
        notes: "Phi 3 and 3.5 mini and medium, Phi 4, Phi 4 mini (text).",
        defaults: Defaults {
            n_kv_heads: None,
            head_dim: None,
            max_positions: 4096,
            norm_eps: 1e-5,
            tied: false,
        },
        build: phi3::build,
    },
];

/// Well-known model types that are not here, and why.
pub const UNSUPPORTED: &[(&str, &str)] = &[
    ("gemma3", "it has a vision tower; only text models are supported, whose type is `gemma3_text`"),
    ("gemma", "Gemma 1"),
    ("mixtral", "a mixture of experts"),
    ("qwen2_moe", "a mixture of experts"),
    ("qwen3_moe", "a mixture of experts"),
    ("deepseek_v2", "a mixture of experts with latent attention"),
    ("deepseek_v3", "a mixture of experts with latent attention"),
    ("llama4", "a mixture of experts with vision"),
    ("mllama", "it has a vision tower"),
    ("qwen2_vl", "it has a vision tower"),
    ("qwen2_5_vl", "it has a vision tower"),
    ("gpt2", "learned positions and LayerNorm"),
    ("gpt_neox", "LayerNorm and parallel blocks"),
    ("phi", "LayerNorm and parallel blocks"),
    ("falcon", "LayerNorm"),
    ("bert", "an encoder"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_complete_and_its_names_are_unique() {
        for (i, a) in ARCHITECTURES.iter().enumerate() {
            assert!(!a.summary.is_empty() && !a.notes.is_empty(), "{}", a.model_type);
            assert!(a.class_name.ends_with("ForCausalLM"), "{}", a.class_name);
            for b in &ARCHITECTURES[i + 1..] {
                assert!(a.model_type != b.model_type && a.class_name != b.class_name, "{}", a.model_type);
            }
            assert!(UNSUPPORTED.iter().all(|(name, _)| *name != a.model_type), "{}", a.model_type);
        }
    }
}
