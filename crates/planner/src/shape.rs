//! The sizes of a model: what memory and time are computed from.

use pt_models::{ModelConfig, ParamSpec, Role};
use serde_json::{Map, Value, json};

use crate::error::{PlannerError, Result};
use crate::shapes::{self, ShapeInfo};

/// A model's sizes, with every tensor that it has.
#[derive(Clone, Debug)]
pub struct Shape {
    /// As it was asked for.
    pub name: String,
    /// The architecture, as in config.json.
    pub model_type: String,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub ffn_size: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Normalisations behind attention and feed-forward as well (Gemma 2 and 3).
    pub sandwich_norms: bool,
    /// Normalised queries and keys (Qwen 3, Gemma 3).
    pub head_norms: bool,
    /// Linear layers of a block.
    pub linears_per_block: usize,
    /// Every tensor.
    pub tensors: Vec<ParamSpec>,
}

impl Shape {
    /// The sizes of a configuration.
    pub fn of_config(name: &str, config: &ModelConfig) -> Shape {
        let tensors = config.param_specs();
        let has = |end: &str| tensors.iter().any(|spec| spec.name.ends_with(end));
        Shape {
            name: name.to_owned(),
            model_type: config.model_type.clone(),
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            ffn_size: config.ffn_size,
            n_layers: config.n_layers,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            tied: config.tied,
            sandwich_norms: has("pre_feedforward_layernorm.weight"),
            head_norms: has("q_norm.weight"),
            linears_per_block: tensors.iter().filter(|s| s.role == Role::Linear).count() / config.n_layers,
            tensors,
        }
    }

    /// A shape of the built-in list, or one given by its sizes.
    ///
    /// Names are found without their owner, in any case, and with the endings of variants (`-Instruct`, `-it`, ...) left out.
    ///
    /// # Errors
    /// [`PlannerError::UnknownModel`] with the nearest name, [`PlannerError::Sizes`].
    pub fn find(name: &str) -> Result<Shape> {
        if name.contains('=') {
            return Shape::of_sizes(name);
        }
        match shapes::find(name) {
            Some(info) => Ok(Shape::built_in(info)),
            None => {
                let names: Vec<&str> = shapes::SHAPES.iter().map(|info| info.name).collect();
                let hint = shapes::hint(name, &names);
                Err(PlannerError::UnknownModel { name: name.to_owned(), hint })
            }
        }
    }

    /// A shape of the list.
    ///
    /// # Panics
    /// If the list holds a configuration that is none: its tests build every one.
    pub fn built_in(info: &ShapeInfo) -> Shape {
        let config = ModelConfig::from_map(info.name, info.config(), &[])
            .unwrap_or_else(|error| panic!("the built-in shape {}: {error}", info.name));
        Shape::of_config(info.name, &config)
    }

    /// A Llama of the sizes in `key=value,...`; the keys are those of a recipe's `[model.new]`.
    fn of_sizes(given: &str) -> Result<Shape> {
        const KEYS: [(&str, &str); 8] = [
            ("vocab_size", "vocab_size"),
            ("hidden_size", "hidden_size"),
            ("n_layers", "num_hidden_layers"),
            ("n_heads", "num_attention_heads"),
            ("n_kv_heads", "num_key_value_heads"),
            ("ffn_size", "intermediate_size"),
            ("head_dim", "head_dim"),
            ("tied", "tie_word_embeddings"),
        ];
        let wrong = |problem: String| PlannerError::Sizes { given: given.to_owned(), problem };
        let mut map = Map::new();
        map.insert("model_type".to_owned(), json!("llama"));
        for pair in given.split(',') {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| wrong(format!("`{pair}` is not `key=number`")))?;
            let (key, value) = (key.trim(), value.trim());
            let names: Vec<&str> = KEYS.iter().map(|(name, _)| *name).collect();
            let Some((_, theirs)) = KEYS.iter().find(|(name, _)| *name == key) else {
                return Err(wrong(format!("no size `{key}`; {}", pt_core::suggest::hint(key, &names))));
            };
            let value: Value = serde_json::from_str(value)
                .map_err(|_| wrong(format!("`{key}` is `{value}`, expected a number")))?;
            map.insert((*theirs).to_owned(), value);
        }
        let config = ModelConfig::from_map("the sizes", map, &[])?;
        Ok(Shape::of_config(given, &config))
    }

    /// Parameters, a tied head counted once.
    pub fn n_params(&self) -> u64 {
        self.tensors.iter().map(|spec| spec.n_elements() as u64).sum()
    }

    /// Linear layers inside the blocks.
    pub fn linears(&self) -> impl Iterator<Item = &ParamSpec> {
        self.tensors.iter().filter(|spec| spec.role == Role::Linear)
    }

    /// Parameters of the linear layers inside the blocks.
    pub fn linear_params(&self) -> u64 {
        self.linears().map(|spec| spec.n_elements() as u64).sum()
    }

    /// Parameters of the output layer, tied or not.
    pub fn head_params(&self) -> u64 {
        (self.vocab_size * self.hidden_size) as u64
    }

    /// Parameters of embedding and output layer, as stored.
    pub fn vocabulary_params(&self) -> u64 {
        self.head_params() * if self.tied { 1 } else { 2 }
    }

    /// Width of all queries.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all keys, which is that of all values.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Bytes of keys and values of one token over all layers.
    pub fn cache_bytes_per_token(&self, element_bytes: u64) -> u64 {
        2 * (self.kv_width() * self.n_layers) as u64 * element_bytes
    }

    /// Parameters of an adapter of this rank on every linear layer: `rank (n_in + n_out)` each.
    pub fn adapter_params(&self, rank: usize) -> u64 {
        self.linears().map(|spec| (rank * (spec.shape[0] + spec.shape[1])) as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_wrong_ones_named() {
        let sizes = "vocab_size=64,hidden_size=32,n_layers=2,n_heads=4,n_kv_heads=2,ffn_size=48";
        let shape = Shape::find(sizes).unwrap();
        let block = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32;
        assert_eq!(shape.n_params(), 2 * block + 2 * 64 * 32 + 32);
        assert_eq!(shape.adapter_params(4), 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48)));
        assert_eq!(shape.cache_bytes_per_token(2), 2 * 16 * 2 * 2);
        let check = |given: &str, part: &str| {
            let message = Shape::find(given).unwrap_err().to_string();
            assert!(message.contains(part), "{given}: {message}");
        };
        check("hiden_size=32", "did you mean `hidden_size`");
        check("hidden_size=wide", "expected a number");
        check("hidden_size", "no known shape");
        check("hidden_size=32,n_layers", "not `key=number`");
        check("hidden_size=32", "missing");
        check("Qwen2.5-7C", "did you mean `Qwen2.5-7B`");
    }

    #[test]
    fn names_are_found_as_the_hub_writes_them() {
        let check = |asked: &str, found: &str| assert_eq!(Shape::find(asked).unwrap().name, found);
        check("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M");
        check("qwen2.5-0.5b", "Qwen2.5-0.5B");
        check("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B");
        check("google/gemma-2-2b-it", "gemma-2-2b");
        check("meta-llama/Llama-3.3-70B-Instruct", "Llama-3.1-70B");
    }
}
