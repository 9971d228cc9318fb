//! Rotary settings between `config.json` and a GGUF file.

use std::f64::consts::TAU;

use pt_models::ModelConfig;
use serde_json::{Map, Value as Json, json};

use crate::error::{ExportError, Result};
use crate::gguf::{GgufFile, Metadata, Value};

/// A tensor that is computed from the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ExtraTensor {
    /// Its name in the file.
    pub name: &'static str,
    /// Its values.
    pub values: Vec<f32>,
}

/// The settings as `config.json` has them, in either of its forms.
pub(super) struct RopeSettings {
    pub(super) theta: f64,
    /// Of Gemma 3's sliding layers.
    pub(super) local_theta: f64,
    pub(super) scaling: Map<String, Json>,
    /// `linear`, `yarn`, ...; `default` for none.
    pub(super) kind: String,
    /// Share of each head that is rotated.
    partial: f64,
    original: Option<u64>,
}

impl RopeSettings {
    pub(super) fn of(config: &ModelConfig) -> RopeSettings {
        let raw = config.raw();
        let default = if config.model_type == "gemma3_text" { 1_000_000.0 } else { 10_000.0 };
        let parameters = raw.get("rope_parameters").and_then(Json::as_object);
        let object = |value: Option<&Json>| value.and_then(Json::as_object).cloned();
        let full = parameters.and_then(|p| object(p.get("full_attention")));
        let sliding = parameters.and_then(|p| object(p.get("sliding_attention")));
        let scaling = full
            .or_else(|| parameters.filter(|_| sliding.is_none()).cloned())
            .or_else(|| object(raw.get("rope_scaling")))
            .unwrap_or_default();
        let number = |map: &Map<String, Json>, key: &str| map.get(key).and_then(Json::as_f64);
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Json::as_str);
        let kind = match kind.unwrap_or("default") {
            "su" => "longrope",
            other => other,
        };
        let local = sliding.and_then(|s| number(&s, "rope_theta"));
        let original =
            |map: &Map<String, Json>| map.get("original_max_position_embeddings").and_then(Json::as_u64);
        RopeSettings {
            theta: number(&scaling, "rope_theta").or_else(|| number(raw, "rope_theta")).unwrap_or(default),
            local_theta: local.or_else(|| number(raw, "rope_local_base_freq")).unwrap_or(10_000.0),
            kind: kind.to_owned(),
            partial: number(&scaling, "partial_rotary_factor")
                .or_else(|| number(raw, "partial_rotary_factor"))
                .unwrap_or(1.0),
            original: original(raw).or_else(|| original(&scaling)),
            scaling,
        }
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.scaling.get(key).and_then(Json::as_f64)
    }

    fn width(&self, config: &ModelConfig) -> usize {
        (config.head_dim as f64 * self.partial) as usize
    }
}

/// `0.1 ln s + 1`, which llama.cpp applies to YaRN by itself.
fn yarn_factor(scale: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * scale.ln() + 1.0 }
}

/// Writes the rotary keys.
pub(super) fn put_rope(config: &ModelConfig, architecture: &str, out: &mut Metadata) -> Result<()> {
    let rope = RopeSettings::of(config);
    let key = |name: &str| format!("{architecture}.rope.{name}");
    out.set(key("freq_base"), rope.theta as f32);
    out.set(key("dimension_count"), rope.width(config) as u32);
    if architecture == "gemma3" {
        out.set(key("freq_base_swa"), rope.local_theta as f32);
    }
    let supported = match rope.kind.as_str() {
        "default" => return Ok(()),
        "linear" | "yarn" => true,
        "llama3" => architecture == "llama",
        "longrope" => architecture == "phi3",
        _ => false,
    };
    if !supported {
        let problem =
            format!("rotary scaling `{}` has no place in a file of architecture {architecture}", rope.kind);
        return Err(ExportError::gguf(problem));
    }
    let original = rope.original.unwrap_or(config.max_positions as u64);
    let scale = rope.number("factor").unwrap_or(config.max_positions as f64 / original as f64);
    match rope.kind.as_str() {
        "linear" => {
            out.set(key("scaling.type"), "linear");
            out.set(key("scaling.factor"), scale as f32);
        }
        "yarn" => {
            if rope.scaling.get("truncate").and_then(Json::as_bool) == Some(false) {
                return Err(ExportError::gguf("YaRN without `truncate` has no place there"));
            }
            out.set(key("scaling.type"), "yarn");
            out.set(key("scaling.factor"), scale as f32);
            out.set(key("scaling.original_context_length"), original as u32);
            out.set(key("scaling.finetuned"), true);
            let mscale = |key: &str| {
                rope.number(key).map(|m| if scale <= 1.0 { 1.0 } else { 0.1 * m * scale.ln() + 1.0 })
            };
            let asked = rope
                .number("attention_factor")
                .or_else(|| Some(mscale("mscale")? / mscale("mscale_all_dim")?));
            if let Some(asked) = asked {
                out.set(key("scaling.attn_factor"), (asked / yarn_factor(scale)) as f32);
            }
            for (name, default) in [("beta_fast", 32.0), ("beta_slow", 1.0)] {
                if let Some(beta) = rope.number(name).filter(|beta| *beta != default) {
                    out.set(key(&format!("scaling.yarn_{name}")), beta as f32);
                }
            }
        }
        "longrope" => {
            let original = rope.original.unwrap_or(4096);
            let scale = rope.number("factor").unwrap_or(config.max_positions as f64 / original as f64);
            let default = if scale <= 1.0 { 1.0 } else { (1.0 + scale.ln() / (original as f64).ln()).sqrt() };
            let factor = rope.number("attention_factor").unwrap_or(default);
            out.set(key("scaling.original_context_length"), original as u32);
            out.set(key("scaling.attn_factor"), factor as f32);
        }
        _ => {} // Llama 3's is a tensor.
    }
    Ok(())
}

/// Tensors of rotary divisors, where the scaling is kept so.
pub fn extra_tensors(config: &ModelConfig) -> Vec<ExtraTensor> {
    let rope = RopeSettings::of(config);
    let list = |key: &str| -> Vec<f32> {
        let values = rope.scaling.get(key).and_then(Json::as_array);
        values.into_iter().flatten().filter_map(Json::as_f64).map(|x| x as f32).collect()
    };
    match rope.kind.as_str() {
        "llama3" => vec![ExtraTensor { name: "rope_freqs.weight", values: llama3_divisors(config, &rope) }],
        "longrope" => vec![
            ExtraTensor { name: "rope_factors_long.weight", values: list("long_factor") },
            ExtraTensor { name: "rope_factors_short.weight", values: list("short_factor") },
        ],
        _ => Vec::new(),
    }
}

/// `w / w'` of Llama 3's scaling (see `pt_models`, `rope.rs`).
fn llama3_divisors(config: &ModelConfig, rope: &RopeSettings) -> Vec<f32> {
    let original = rope.original.unwrap_or(config.max_positions as u64) as f64;
    let number = |key: &str| rope.number(key).expect("the configuration was checked when it was read");
    let (scale, low, high) = (number("factor"), number("low_freq_factor"), number("high_freq_factor"));
    let width = rope.width(config);
    let divisor = |i: usize| {
        let w = rope.theta.powf(-2.0 * i as f64 / width as f64);
        let kept = ((original * w / TAU - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - kept) / scale + kept)) as f32
    };
    (0..width / 2).map(divisor).collect()
}

/// Puts what the file says into a `config.json`.
pub(super) fn get_rope(file: &GgufFile, architecture: &str, out: &mut Map<String, Json>) -> Result<()> {
    let number =
        |name: &str| file.metadata().get(&format!("{architecture}.rope.{name}")).and_then(Value::as_f64);
    let whole =
        |name: &str| file.metadata().get(&format!("{architecture}.rope.{name}")).and_then(Value::as_u64);
    if let Some(theta) = number("freq_base") {
        out.insert("rope_theta".into(), json!(theta));
    }
    if let Some(theta) = number("freq_base_swa").filter(|_| architecture == "gemma3") {
        out.insert("rope_local_base_freq".into(), json!(theta));
    }
    let head_dim = out["head_dim"].as_u64().unwrap_or(0);
    if let Some(width) = whole("dimension_count").filter(|width| *width != head_dim && head_dim > 0) {
        out.insert("partial_rotary_factor".into(), json!(width as f64 / head_dim as f64));
    }
    let divisors = |name: &str| file.tensor(name).map(|_| file.values(name)).transpose();
    let kind = file.metadata().get(&format!("{architecture}.rope.scaling.type")).and_then(Value::as_text);
    let scaling = match (kind, divisors("rope_freqs.weight")?, divisors("rope_factors_long.weight")?) {
        (Some("linear"), ..) => json!({"rope_type": "linear", "factor": number("scaling.factor")}),
        (Some("yarn"), ..) => {
            let scale = number("scaling.factor").unwrap_or(1.0);
            json!({
                "rope_type": "yarn",
                "factor": scale,
                "original_max_position_embeddings": whole("scaling.original_context_length"),
                "attention_factor": number("scaling.attn_factor").unwrap_or(1.0) * yarn_factor(scale),
                "beta_fast": number("scaling.yarn_beta_fast").unwrap_or(32.0),
                "beta_slow": number("scaling.yarn_beta_slow").unwrap_or(1.0),
            })
        }
        // The same divisors at every length.
        (_, Some(list), _) => json!({
            "rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0,
            "original_max_position_embeddings": out["max_position_embeddings"],
            "short_factor": list, "long_factor": list,
        }),
        (_, None, Some(long)) => {
            out.insert(
                "original_max_position_embeddings".into(),
                json!(whole("scaling.original_context_length")),
            );
            json!({
                "rope_type": "longrope",
                "factor": 1.0,
                "attention_factor": number("scaling.attn_factor").unwrap_or(1.0),
                "short_factor": file.values("rope_factors_short.weight")?,
                "long_factor": long,
            })
        }
        _ => return Ok(()),
    };
    out.insert("rope_scaling".into(), scaling);
    Ok(())
}
