//! Models of A. Karpathy's llama2.c (version 0 files) as Llamas.
//!
//! The file: seven `i32` (dim, hidden, layers, heads, kv_heads, vocabulary, context), then `f32` values: token
//! embedding; for all layers together attention norm, wq, wk, wv, wo, feed-forward norm, w1 (gate), w2 (down), w3
//! (up); final norm; two tables of rotary cosines and sines, which are not needed; and a head if the vocabulary is
//! negative. Source: llama2.c `export.py`, `legacy_export`.
//!
//! llama2.c rotates neighbours `(2i, 2i+1)` of a head, Hugging Face's Llama the pairs `(i, i + head_dim/2)`: rows of wq
//! and wk are reordered so that both compute the same. The tokenizer is another file and not read here.

use std::collections::HashMap;
use std::path::Path;

use pt_engine::{Dtype, Weight};

use crate::builder::{ParamSpec, WeightSource};
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::init::{NewModel, float_weight};
use crate::model::Model;

/// Tokens that start and end sequences in llama2.c's tokenizers.
const BOS: u32 = 1;
const EOS: u32 = 2;

/// Reads a version 0 file.
///
/// # Errors
/// [`ModelError::Io`]; [`ModelError::BadFile`], [`ModelError::Truncated`] for a file of another kind.
pub fn import(path: &Path, dtype: Dtype) -> Result<Model> {
    let bytes = std::fs::read(path).map_err(ModelError::io(path, "reading"))?;
    let header = Header::parse(path, &bytes)?;
    let config =
        ModelConfig::from_map(&path.display().to_string(), header.describe().config_json(dtype), &[])?;
    let mut values =
        bytes[HEADER_BYTES..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let mut tensors = HashMap::new();
    for (name, len) in header.layout() {
        let tensor: Vec<f32> = values.by_ref().take(len).collect();
        if let Some(index) = tensor.iter().position(|v| !v.is_finite()) {
            let value = tensor[index];
            return Err(ModelError::NonFinite { file: path.to_owned(), tensor: name, index, value });
        }
        tensors.insert(name, tensor);
    }
    Model::build(config, &mut Imported { tensors, head_dim: header.head_dim(), dtype })
}

const HEADER_BYTES: usize = 28;

struct Header {
    dim: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
    context: usize,
    tied: bool,
}

impl Header {
    fn parse(path: &Path, bytes: &[u8]) -> Result<Header> {
        let bad = |problem: String| ModelError::BadFile { file: path.to_owned(), problem };
        if bytes.len() < HEADER_BYTES {
            let (found_bytes, expected_bytes) = (bytes.len() as u64, HEADER_BYTES as u64);
            return Err(ModelError::Truncated { file: path.to_owned(), found_bytes, expected_bytes });
        }
        let word = |i: usize| {
            i32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
        };
        let field = |i: usize, name: &str| match word(i) {
            n @ 1..=0x0010_0000 => Ok(n as usize),
            n => Err(bad(format!("header field {name} is {n}; this is not a llama2.c version 0 file"))),
        };
        let header = Header {
            dim: field(0, "dim")?,
            hidden: field(1, "hidden_dim")?,
            layers: field(2, "n_layers")?,
            heads: field(3, "n_heads")?,
            kv_heads: field(4, "n_kv_heads")?,
            vocabulary: match word(5).unsigned_abs() {
                n @ 1..=0x0080_0000 => n as usize,
                n => {
                    return Err(bad(format!(
                        "header field vocab_size is {n}; this is not a llama2.c version 0 file"
                    )));
                }
            },
            context: field(6, "seq_len")?,
            tied: word(5) > 0,
        };
        if !header.dim.is_multiple_of(header.heads)
            || !header.head_dim().is_multiple_of(2)
            || !header.heads.is_multiple_of(header.kv_heads)
        {
            return Err(bad(format!(
                "dim {}, n_heads {}, n_kv_heads {} do not divide; this is not a llama2.c version 0 file",
                header.dim, header.heads, header.kv_heads
            )));
        }
        let n_values: u64 = header.layout().iter().map(|(_, len)| *len as u64).sum();
        let (found_bytes, expected_bytes) = (bytes.len() as u64, HEADER_BYTES as u64 + 4 * n_values);
        if found_bytes != expected_bytes {
            return Err(ModelError::Truncated { file: path.to_owned(), found_bytes, expected_bytes });
        }
        Ok(header)
    }

    fn head_dim(&self) -> usize {
        self.dim / self.heads
    }

    fn describe(&self) -> NewModel {
        NewModel {
            vocab_size: self.vocabulary,
            hidden_size: self.dim,
            n_layers: self.layers,
            n_heads: self.heads,
            n_kv_heads: self.kv_heads,
            ffn_size: self.hidden,
            max_positions: self.context,
            tied: self.tied,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
            init_std: 0.02,
            bos_token_id: Some(BOS),
            eos_token_id: Some(EOS),
            pad_token_id: None,
        }
    }

    /// Hugging Face name and number of values, in the file's order; the rotary tables are among them.
    fn layout(&self) -> Vec<(String, usize)> {
        let (d, f, kv) = (self.dim, self.hidden, self.kv_heads * self.head_dim());
        let per_layer = [
            ("input_layernorm", d),
            ("self_attn.q_proj", d * d),
            ("self_attn.k_proj", kv * d),
            ("self_attn.v_proj", kv * d),
            ("self_attn.o_proj", d * d),
            ("post_attention_layernorm", d),
            ("mlp.gate_proj", f * d),
            ("mlp.down_proj", d * f),
            ("mlp.up_proj", f * d),
        ];
        let mut layout = vec![("model.embed_tokens.weight".to_owned(), self.vocabulary * d)];
        for (name, len) in per_layer {
            layout.extend((0..self.layers).map(|i| (format!("model.layers.{i}.{name}.weight"), len)));
        }
        layout.push(("model.norm.weight".to_owned(), d));
        layout.push(("cosines".to_owned(), self.context * self.head_dim() / 2));
        layout.push(("sines".to_owned(), self.context * self.head_dim() / 2));
        if !self.tied {
            layout.push(("lm_head.weight".to_owned(), self.vocabulary * d));
        }
        layout
    }
}

struct Imported {
    tensors: HashMap<String, Vec<f32>>,
    head_dim: usize,
    dtype: Dtype,
}

impl WeightSource for Imported {
    fn weight(&mut self, spec: &ParamSpec) -> Result<Weight> {
        let values = self.tensors.remove(&spec.name).expect("the layout lists every tensor of a Llama");
        assert_eq!(values.len(), spec.n_elements(), "values of {}", spec.name);
        let is_rotated = spec.name.ends_with("q_proj.weight") || spec.name.ends_with("k_proj.weight");
        let values = if is_rotated { split_halves(&values, spec.shape[1], self.head_dim) } else { values };
        Ok(float_weight(&values, self.dtype))
    }
}

/// Row `2i` of each head becomes row `i`, row `2i + 1` becomes row `i + head_dim / 2`.
fn split_halves(values: &[f32], cols: usize, head_dim: usize) -> Vec<f32> {
    let rows: Vec<&[f32]> = values.chunks_exact(cols).collect();
    let order = |head: usize| {
        (0..2).flat_map(move |odd| (0..head_dim / 2).map(move |i| head * head_dim + 2 * i + odd))
    };
    (0..rows.len() / head_dim).flat_map(order).flat_map(|row| rows[row].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_halves() {
        let values: Vec<f32> = (0..8).map(|row| row as f32).collect();
        assert_eq!(split_halves(&values, 1, 4), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.bin");
        let check = |words: &[i32], expected: &str| {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            std::fs::write(&path, bytes).unwrap();
            let message = import(&path, Dtype::F32).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check(&[1, 2], "8 bytes");
        check(&[0x616b_3432, 1, 2, 3, 4, 5, 6], "dim is 1634415666");
        check(&[6, 4, 1, 4, 2, 8, 16], "do not divide");
        check(&[8, 4, 1, 2, 1, 8, 16, 0], "truncated");
    }
}
