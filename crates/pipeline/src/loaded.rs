//! A model with what it takes to ask it something.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pt_engine::{Dtype, Storage};
use pt_models::Model;
use pt_text::{ChatTemplate, Tokenizer};
use serde_json::Value;

use crate::error::Result;
use crate::model::{chat_template, load_model, tokenizer_at};
use crate::stop::stop_token_ids;

/// A model ready to be asked.
pub struct Loaded {
    /// The weights.
    pub model: Model,
    /// Storage of activations.
    pub dtype: Dtype,
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template, if there is one.
    pub template: Option<ChatTemplate>,
    /// Tokens that end a reply.
    pub stop_token_ids: Vec<u32>,
    /// Where it was read from; `None` for one made from nothing.
    pub folder: Option<PathBuf>,
}

impl Loaded {
    /// A model with its tokenizer, and the tokenizer's own template.
    ///
    /// # Errors
    /// If the template cannot be parsed.
    pub fn new(
        model: Model,
        dtype: Dtype,
        tokenizer: Arc<Tokenizer>,
        folder: Option<PathBuf>,
    ) -> Result<Loaded> {
        let template = chat_template(None, &tokenizer)?;
        let stop_token_ids = stop_tokens(&model, &tokenizer, template.as_ref());
        Ok(Loaded { model, dtype, tokenizer, template, stop_token_ids, folder })
    }

    /// Reads a model's folder or llama2.c file, with its own tokenizer unless another is given.
    ///
    /// # Errors
    /// If one of them is not there or not right.
    pub fn read(path: &Path, dtype: Option<Dtype>, tokenizer: Option<Arc<Tokenizer>>) -> Result<Loaded> {
        let tokenizer = match tokenizer {
            Some(tokenizer) => tokenizer,
            None => Arc::new(match path.is_dir() {
                true => tokenizer_at(path)?,
                false => Tokenizer::from_dir(path.parent().unwrap_or(Path::new(".")))?,
            }),
        };
        let model = load_model(path, dtype)?;
        let dtype = dtype.unwrap_or_else(|| own_dtype(&model));
        Loaded::new(model, dtype, tokenizer, Some(path.to_owned()))
    }
}

/// The type that activations have when nothing is said: that of the output layer, which is never quantised.
pub fn own_dtype(model: &Model) -> Dtype {
    match model.params.get(model.arch.head()).weight.storage() {
        Storage::Bf16 => Dtype::Bf16,
        _ => Dtype::F32,
    }
}

/// Tokens that end a reply: those of tokenizer and template, and those that the model's generation configuration lists.
pub fn stop_tokens(model: &Model, tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Vec<u32> {
    let mut ids = stop_token_ids(tokenizer, template);
    let listed = model.generation_config.as_ref().map(|config| &config["eos_token_id"]);
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    ids.extend(listed.and_then(one));
    ids.extend(listed.and_then(|value| value.as_array()).into_iter().flatten().filter_map(one));
    ids.sort_unstable();
    ids.dedup();
    ids
}
