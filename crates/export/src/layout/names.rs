//! Names of tensors, and how their rows are stored.

use pt_models::{ModelConfig, ParamSpec, Role};

use super::architecture_of;
use crate::error::{ExportError, Result};

/// How a tensor's values in the file differ from those in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// Not at all.
    Plain,
    /// Each head's rows `0, 1, .., d-1` come as `0, d/2, 1, d/2 + 1, ..`.
    Interleave {
        /// Rows of a head.
        head_dim: usize,
    },
    /// One is added.
    PlusOne,
}

/// Where a parameter goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name in the file.
    pub name: String,
    /// How its values are stored.
    pub transform: Transform,
}

/// Parts of a layer: their names in checkpoints and in files.
const LAYER: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

/// Biases that llama.cpp reads, by architecture.
const BIASES: &[(&str, &[&str])] = &[
    ("llama", &["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]),
    ("qwen2", &["attn_q", "attn_k", "attn_v"]),
];

/// Where the parameter `spec` of a model goes.
///
/// # Errors
/// [`ExportError::Unsupported`] for architectures and tensors that have no place.
pub fn place(config: &ModelConfig, spec: &ParamSpec) -> Result<Place> {
    let unknown =
        || ExportError::gguf(format!("tensor `{}` of {} has no place", spec.name, config.class_name));
    let architecture = architecture_of(&config.model_type)
        .ok_or_else(|| ExportError::gguf(format!("`{}` has no architecture there", config.model_type)))?;
    let is_gemma = architecture.starts_with("gemma");
    let plus_one = if is_gemma && spec.role == Role::Norm { Transform::PlusOne } else { Transform::Plain };
    let whole = match spec.name.as_str() {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(name) = whole {
        return Ok(Place { name: name.to_owned(), transform: plus_one });
    }
    let (layer, rest) =
        spec.name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')).ok_or_else(unknown)?;
    let (module, kind) = rest.rsplit_once('.').ok_or_else(unknown)?;
    let part = match module {
        "post_attention_layernorm" if is_gemma => "post_attention_norm",
        "post_attention_layernorm" => "ffn_norm",
        _ => LAYER.iter().find(|(hf, _)| *hf == module).map(|(_, gguf)| *gguf).ok_or_else(unknown)?,
    };
    let may_have_bias = BIASES.iter().any(|(name, parts)| *name == architecture && parts.contains(&part));
    if kind == "bias" && !may_have_bias {
        return Err(ExportError::gguf(format!("llama.cpp reads no bias `{}` for {architecture}", spec.name)));
    }
    let transform = match part {
        "attn_q" | "attn_k" if architecture == "llama" => Transform::Interleave { head_dim: config.head_dim },
        _ => plus_one,
    };
    Ok(Place { name: format!("blk.{layer}.{part}.{kind}"), transform })
}

impl Transform {
    /// Values as the file has them; `width` is the length of a row.
    pub fn apply(self, values: Vec<f32>, width: usize) -> Vec<f32> {
        match self {
            Transform::Plain => values,
            Transform::PlusOne => values.into_iter().map(|x| x + 1.0).collect(),
            Transform::Interleave { head_dim } => reorder(&values, width, |row| {
                let (head, i) = (row / head_dim, row % head_dim);
                head * head_dim + i % 2 * (head_dim / 2) + i / 2
            }),
        }
    }

    /// Values as the model has them.
    pub fn undo(self, values: Vec<f32>, width: usize) -> Vec<f32> {
        match self {
            Transform::Plain => values,
            Transform::PlusOne => values.into_iter().map(|x| x - 1.0).collect(),
            Transform::Interleave { head_dim } => reorder(&values, width, |row| {
                let (head, i) = (row / head_dim, row % head_dim);
                head * head_dim + i % (head_dim / 2) * 2 + i / (head_dim / 2)
            }),
        }
    }
}

/// Row `i` of the result is row `from(i)` of `values`.
fn reorder(values: &[f32], width: usize, from: impl Fn(usize) -> usize) -> Vec<f32> {
    let n_rows = values.len() / width;
    (0..n_rows).flat_map(|row| &values[from(row) * width..][..width]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transforms_are_undone() {
        let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        for transform in [Transform::Plain, Transform::PlusOne, Transform::Interleave { head_dim: 6 }] {
            let stored = transform.apply(values.clone(), 2);
            assert_eq!(transform.undo(stored, 2), values, "{transform:?}");
        }
        let stored = Transform::Interleave { head_dim: 6 }.apply((0..12).map(|i| i as f32).collect(), 1);
        assert_eq!(stored, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0]);
    }
}
