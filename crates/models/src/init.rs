//! New models with random weights, for a pipeline that starts from nothing.
//!
//! Matrices are normal with mean 0 and the given deviation, gains are 1, biases 0, as transformers initialises a
//! Llama (`initializer_range`). Each tensor draws from the stream of its own name, so its values depend neither on
//! other tensors nor on the order of drawing.

use pt_core::rng::Stream;
use pt_engine::{Dtype, Weight};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use crate::builder::{ParamSpec, Role, WeightSource};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::model::{Model, torch_name};

/// Values per index of a stream.
const VALUES_PER_INDEX: usize = 1 << 12;

/// A Llama to be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewModel {
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Width of the feed-forward layers.
    pub ffn_size: usize,
    /// The longest sequence.
    #[serde(default = "default_max_positions")]
    pub max_positions: usize,
    /// Whether the head is the embedding.
    #[serde(default = "default_tied")]
    pub tied: bool,
    /// Base of the rotary frequencies.
    #[serde(default = "default_theta")]
    pub rope_theta: f64,
    /// Added to the mean square inside the normalisations.
    #[serde(default = "default_norm_eps")]
    pub norm_eps: f64,
    /// Deviation of the matrices.
    #[serde(default = "default_std")]
    pub init_std: f64,
    /// Token ids that start, end and fill sequences, where the tokenizer has them.
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    /// See `bos_token_id`.
    #[serde(default)]
    pub eos_token_id: Option<u32>,
    /// See `bos_token_id`.
    #[serde(default)]
    pub pad_token_id: Option<u32>,
}

fn default_max_positions() -> usize {
    2048
}

fn default_tied() -> bool {
    true
}

fn default_theta() -> f64 {
    10_000.0
}

fn default_norm_eps() -> f64 {
    1e-5
}

fn default_std() -> f64 {
    0.02
}

impl NewModel {
    /// SmolLM2-135M's shape and settings, without its special tokens: what the project's benchmarks measure.
    ///
    /// Source: `config.json` of `HuggingFaceTB/SmolLM2-135M`.
    pub fn smollm2_135m() -> NewModel {
        NewModel {
            vocab_size: 49_152,
            hidden_size: 576,
            n_layers: 30,
            n_heads: 9,
            n_kv_heads: 3,
            ffn_size: 1536,
            max_positions: 8192,
            tied: true,
            rope_theta: 100_000.0,
            norm_eps: default_norm_eps(),
            init_std: default_std(),
            bos_token_id: None,
            eos_token_id: None,
            pad_token_id: None,
        }
    }

    /// The `config.json` of such a model.
    pub fn config_json(&self, dtype: Dtype) -> Map<String, serde_json::Value> {
        let value = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.ffn_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "max_position_embeddings": self.max_positions,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tied,
            "attention_bias": false,
            "attention_dropout": 0.0,
            "mlp_bias": false,
            "initializer_range": self.init_std,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "use_cache": true,
            "torch_dtype": torch_name(dtype),
        });
        match value {
            serde_json::Value::Object(map) => map,
            _ => unreachable!("an object was written above"),
        }
    }

    /// Makes the model; the same seed gives the same bytes.
    ///
    /// # Errors
    /// The option variants of [`crate::ModelError`] for sizes that do not fit together.
    pub fn build(&self, dtype: Dtype, seed: u64) -> Result<Model> {
        let config = ModelConfig::from_map("the new model", self.config_json(dtype), &[])?;
        Model::build(config, &mut RandomWeights { std: self.init_std, dtype, seed })
    }
}

struct RandomWeights {
    std: f64,
    dtype: Dtype,
    seed: u64,
}

impl WeightSource for RandomWeights {
    fn weight(&mut self, spec: &ParamSpec) -> Result<Weight> {
        let mut values = vec![0.0; spec.n_elements()];
        match spec.role {
            Role::Norm => values.fill(1.0),
            Role::Bias => {}
            Role::Embedding | Role::Head | Role::Linear => {
                let stream = Stream::new(self.seed, &format!("init/{}", spec.name));
                fill_random(&mut values, &stream, |draws| draws.normal() * self.std);
            }
        }
        Ok(float_weight(&values, self.dtype))
    }
}

/// Fills `values` with draws; which value is which draw depends on its position only.
pub(crate) fn fill_random(
    values: &mut [f32],
    stream: &Stream,
    draw: impl Fn(&mut pt_core::rng::Draws) -> f64 + Sync,
) {
    values.par_chunks_mut(VALUES_PER_INDEX).enumerate().for_each(|(index, values)| {
        let mut draws = stream.at(index as u64);
        values.iter_mut().for_each(|value| *value = draw(&mut draws) as f32);
    });
}

pub(crate) fn float_weight(values: &[f32], dtype: Dtype) -> Weight {
    match dtype {
        Dtype::F32 => Weight::from_f32(values),
        Dtype::Bf16 => Weight::bf16_from_f32(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_every_value_and_names_decide_streams() {
        let new: NewModel = serde_json::from_value(json!({
            "vocab_size": 300, "hidden_size": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_size": 64,
        }))
        .unwrap();
        let values = |seed| {
            let model = new.build(Dtype::F32, seed).unwrap();
            model.params.iter().map(|(_, p)| p.weight.to_f32()).collect::<Vec<_>>()
        };
        assert_eq!(values(1), values(1));
        assert_ne!(values(1), values(2));
        let model = new.build(Dtype::F32, 1).unwrap();
        let get = |name: &str| model.params.get(model.params.find(name).unwrap()).weight.to_f32();
        assert_ne!(
            get("model.layers.0.self_attn.q_proj.weight"),
            get("model.layers.1.self_attn.q_proj.weight")
        );
        assert_eq!(get("model.norm.weight"), [1.0; 32]);
        let embedding = get("model.embed_tokens.weight");
        let n = embedding.len() as f64;
        let deviation = (embedding.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n).sqrt();
        // Five standard errors of a deviation estimated from n values.
        assert!((deviation / 0.02 - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "{deviation}");
        let n_values: usize = model.params.iter().map(|(_, p)| p.len()).sum();
        assert_eq!(model.config.n_params(), n_values);
    }

    #[test]
    fn sizes_that_do_not_fit_are_errors() {
        let new = json!({"vocab_size": 300, "hidden_size": 30, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_size": 64});
        let new: NewModel = serde_json::from_value(new).unwrap();
        assert!(new.build(Dtype::F32, 1).unwrap_err().to_string().contains("hidden_size"));
    }
}
