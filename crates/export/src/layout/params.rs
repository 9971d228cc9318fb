//! A configuration as metadata.

use pt_models::ModelConfig;
use serde_json::Value as Json;

use super::architecture_of;
use super::rope::put_rope;
use crate::error::{ExportError, Result};
use crate::gguf::Metadata;

/// Layers by which llama.cpp knows the models whose scores are scaled by `hidden / heads` in place of the head's width.
pub(super) const GEMMA2_27B_LAYERS: usize = 46;
pub(super) const GEMMA3_27B_LAYERS: usize = 62;
/// In Gemma 3 every sixth layer sees everything, in Gemma 2 every second.
const GEMMA3_PATTERN: usize = 6;
const GEMMA2_PATTERN: usize = 2;

/// The longest sequence for which the file means the same as the model.
pub fn context_length(config: &ModelConfig) -> usize {
    match (architecture_of(&config.model_type), window(config)) {
        (Some("gemma2" | "gemma3"), _) | (_, None) => config.max_positions,
        (_, Some(window)) => config.max_positions.min(window),
    }
}

/// The sliding window, if any layer has one.
fn window(config: &ModelConfig) -> Option<usize> {
    let raw = config.raw();
    let switch = raw.get("use_sliding_window").and_then(Json::as_bool).unwrap_or(false);
    let default = match config.model_type.as_str() {
        "mistral" | "gemma2" | "gemma3_text" => Some(4096),
        "qwen2" | "qwen3" if switch => Some(4096),
        "qwen2" | "qwen3" => return None,
        _ => None,
    };
    let layers = raw.get("layer_types").and_then(Json::as_array);
    if layers.is_some_and(|layers| layers.iter().all(|kind| kind == "full_attention")) {
        return None;
    }
    match raw.get("sliding_window") {
        None => default,
        Some(value) => value.as_u64().map(|n| n as usize),
    }
}

/// The entries that describe the architecture.
///
/// # Errors
/// [`ExportError::Unsupported`] for options that have no place in the file.
pub fn metadata_of(config: &ModelConfig) -> Result<Metadata> {
    let architecture = architecture_of(&config.model_type)
        .ok_or_else(|| ExportError::gguf(format!("`{}` has no architecture there", config.model_type)))?;
    let mut out = Metadata::default();
    out.set("general.architecture", architecture);
    let key = |name: &str| format!("{architecture}.{name}");
    out.set(key("vocab_size"), config.vocab_size as u32);
    out.set(key("context_length"), context_length(config) as u32);
    out.set(key("embedding_length"), config.hidden_size as u32);
    out.set(key("block_count"), config.n_layers as u32);
    out.set(key("feed_forward_length"), config.ffn_size as u32);
    out.set(key("attention.head_count"), config.n_heads as u32);
    out.set(key("attention.head_count_kv"), config.n_kv_heads as u32);
    out.set(key("attention.key_length"), config.head_dim as u32);
    out.set(key("attention.value_length"), config.head_dim as u32);
    out.set(key("attention.layer_norm_rms_epsilon"), config.norm_eps);
    put_rope(config, architecture, &mut out)?;
    match architecture {
        "phi3" => out.set(key("attention.sliding_window"), window(config).unwrap_or(0) as u32),
        "gemma2" | "gemma3" => put_gemma(config, architecture, &mut out)?,
        _ => {}
    }
    Ok(out)
}

fn put_gemma(config: &ModelConfig, architecture: &str, out: &mut Metadata) -> Result<()> {
    let raw = config.raw();
    let (pattern, large) = match architecture {
        "gemma2" => (GEMMA2_PATTERN, GEMMA2_27B_LAYERS),
        _ => (GEMMA3_PATTERN, GEMMA3_27B_LAYERS),
    };
    check_pattern(config, pattern)?;
    let expected =
        if config.n_layers == large { config.hidden_size / config.n_heads } else { config.head_dim };
    let scalar = raw.get("query_pre_attn_scalar").and_then(Json::as_f64).unwrap_or(256.0);
    if scalar != expected as f64 {
        let problem = format!(
            "query_pre_attn_scalar is {scalar}, and llama.cpp takes {expected} for a {architecture} of {} layers",
            config.n_layers
        );
        return Err(ExportError::gguf(problem));
    }
    if let Some(window) = window(config) {
        out.set(format!("{architecture}.attention.sliding_window"), window as u32);
    }
    let caps = [
        ("attn_logit_softcapping", (architecture == "gemma2").then_some(50.0)),
        ("final_logit_softcapping", (architecture == "gemma2").then_some(30.0)),
    ];
    for (name, default) in caps {
        let cap = if raw.contains_key(name) { raw[name].as_f64() } else { default };
        match cap {
            Some(cap) => out.set(format!("{architecture}.{name}"), cap as f32),
            // Absent keys mean llama.cpp's defaults, which are the published models'.
            None if architecture == "gemma2" => {
                return Err(ExportError::gguf(format!("a Gemma 2 without {name} has no place there")));
            }
            None => {}
        }
    }
    Ok(())
}

/// Which layers slide is not in the file: llama.cpp has the published models' pattern.
fn check_pattern(config: &ModelConfig, pattern: usize) -> Result<()> {
    let raw = config.raw();
    let sees_all = |layer: usize| (layer + 1).is_multiple_of(pattern);
    let layers = raw.get("layer_types").and_then(Json::as_array);
    let wrong_layer = layers.is_some_and(|layers| {
        let as_published = |(i, kind): (usize, &Json)| (kind == "full_attention") == sees_all(i);
        !layers.iter().enumerate().all(as_published)
    });
    let stated = raw.get("sliding_window_pattern").and_then(Json::as_u64);
    if wrong_layer || (layers.is_none() && stated.is_some_and(|stated| stated != pattern as u64)) {
        let problem = format!(
            "llama.cpp lets one layer in {pattern} see everything, the model another selection of layers"
        );
        return Err(ExportError::gguf(problem));
    }
    Ok(())
}
