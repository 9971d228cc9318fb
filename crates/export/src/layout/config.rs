//! A model from a GGUF file alone.

use pt_engine::Weight;
use pt_models::{Model, ModelConfig, ModelError, ParamSpec, WeightSource};
use serde_json::{Map, Value as Json, json};

use super::ARCHITECTURES;
use super::names::place;
use super::params::{GEMMA2_27B_LAYERS, GEMMA3_27B_LAYERS};
use super::rope::get_rope;
use crate::error::Result;
use crate::gguf::{GgufFile, Value};

/// The configuration a file describes.
///
/// # Errors
/// [`crate::ExportError::BadFile`] for what is missing, and those of [`ModelConfig::from_map`].
pub fn config_of(file: &GgufFile) -> Result<ModelConfig> {
    let metadata = file.metadata();
    let architecture = metadata.get("general.architecture").and_then(Value::as_text).unwrap_or("");
    let Some((model_type, _)) = ARCHITECTURES.iter().find(|(_, gguf)| *gguf == architecture) else {
        return Err(file.bad(format!("architecture `{architecture}` is unknown here")));
    };
    let whole = |name: &str| -> Result<u64> {
        let key = format!("{architecture}.{name}");
        metadata.get(&key).and_then(Value::as_u64).ok_or_else(|| file.bad(format!("it has no `{key}`")))
    };
    let number = |name: &str| metadata.get(&format!("{architecture}.{name}")).and_then(Value::as_f64);
    let (hidden, n_heads, n_layers) =
        (whole("embedding_length")?, whole("attention.head_count")?.max(1), whole("block_count")?);
    let head_dim = whole("attention.key_length").unwrap_or(hidden / n_heads);
    let embedding = file.tensor("token_embd.weight");
    let vocab_size = embedding.and_then(|t| t.shape.first()).copied().unwrap_or(0);
    let mut map = Map::new();
    let mut set = |key: &str, value: Json| drop(map.insert(key.to_owned(), value));
    set("model_type", json!(model_type));
    set("vocab_size", json!(vocab_size));
    set("hidden_size", json!(hidden));
    set("intermediate_size", json!(whole("feed_forward_length")?));
    set("num_hidden_layers", json!(n_layers));
    set("num_attention_heads", json!(n_heads));
    set("num_key_value_heads", json!(whole("attention.head_count_kv").unwrap_or(n_heads)));
    set("head_dim", json!(head_dim));
    set("max_position_embeddings", json!(whole("context_length")?));
    set("rms_norm_eps", json!(number("attention.layer_norm_rms_epsilon")));
    set("tie_word_embeddings", json!(file.tensor("output.weight").is_none()));
    match architecture {
        "llama" => {
            set("attention_bias", json!(file.tensor("blk.0.attn_q.bias").is_some()));
            set("mlp_bias", json!(file.tensor("blk.0.ffn_gate.bias").is_some()));
        }
        "gemma2" | "gemma3" => {
            let large = if architecture == "gemma2" { GEMMA2_27B_LAYERS } else { GEMMA3_27B_LAYERS };
            let scalar = if n_layers == large as u64 { hidden / n_heads } else { head_dim };
            set("query_pre_attn_scalar", json!(scalar));
            set("sliding_window", json!(whole("attention.sliding_window").ok()));
            set("final_logit_softcapping", json!(number("final_logit_softcapping")));
            if architecture == "gemma2" {
                set("attn_logit_softcapping", json!(number("attn_logit_softcapping")));
            }
        }
        _ => {}
    }
    get_rope(file, architecture, &mut map)?;
    Ok(ModelConfig::from_map(&file.path().display().to_string(), map, &[])?)
}

/// The file's tensors, unpacked and in the model's order.
#[derive(Debug)]
pub struct GgufWeights<'a> {
    /// Where they are.
    pub file: &'a GgufFile,
    /// What they are for.
    pub config: &'a ModelConfig,
}

impl WeightSource for GgufWeights<'_> {
    fn weight(&mut self, spec: &ParamSpec) -> pt_models::Result<Weight> {
        let bad = |problem: String| ModelError::BadFile { file: self.file.path().to_owned(), problem };
        let place = place(self.config, spec).map_err(|error| bad(error.to_string()))?;
        let info =
            self.file.tensor(&place.name).ok_or_else(|| bad(format!("it has no tensor `{}`", place.name)))?;
        if info.shape != spec.shape {
            return Err(bad(format!(
                "tensor `{}` has shape {:?}; expected {:?}",
                place.name, info.shape, spec.shape
            )));
        }
        let values = self.file.values(&place.name).map_err(|error| bad(error.to_string()))?;
        let width = if spec.shape.len() == 2 { spec.shape[1] } else { 1 };
        Ok(Weight::from_f32(&place.transform.undo(values, width)))
    }
}

/// The model a file holds, its weights in `f32`.
///
/// # Errors
/// As [`config_of`], and for tensors that are missing or of another shape.
pub fn model_of(file: &GgufFile) -> Result<Model> {
    let config = config_of(file)?;
    let mut weights = GgufWeights { file, config: &config };
    Ok(Model::build(config.clone(), &mut weights)?)
}
