//! Writing what a stage made as folders that people load.

use std::path::Path;

use pt_core::atomic_file;
use pt_engine::{Dtype, Weight};
use pt_models::{Model, ModelError, SaveOptions};
use pt_text::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::stop::stop_token_ids;

/// Publishes a model (or the adapter attached to it) and its tokenizer as one folder. `own_template` replaces the
/// tokenizer's chat template there, so that the written model renders as it was trained.
///
/// `generation_config.json` of a model names every token that ends a turn as `eos_token_id`, so that other programs
/// stop where this one does; its other keys are the base model's.
///
/// # Errors
/// Those of the file system.
pub fn write_model(
    model: &Model,
    dir: &Path,
    tokenizer: &Tokenizer,
    own_template: Option<&ChatTemplate>,
    base: Option<&str>,
) -> Result<()> {
    let save_text = |folder: &Path| {
        tokenizer.save(folder).map_err(|error| ModelError::State { problem: error.to_string() })?;
        let Some(template) = own_template else { return Ok(()) };
        write(&folder.join("chat_template.jinja"), template.source().as_bytes())
    };
    if model.adapter().is_some() {
        return Ok(atomic_file::publish_dir(dir, |folder| {
            model.save_peft(folder, base)?;
            save_text(folder)
        })?);
    }
    let tokenizers_own = crate::model::chat_template(None, tokenizer)?;
    let config = generation_config(model, tokenizer, own_template.or(tokenizers_own.as_ref()));
    Ok(pt_models::save(model, dir, &SaveOptions::default(), |folder| {
        save_text(folder)?;
        let text = serde_json::to_string_pretty(&config).expect("a map is JSON") + "\n";
        write(&folder.join("generation_config.json"), text.as_bytes())
    })?)
}

fn write(path: &Path, bytes: &[u8]) -> std::result::Result<(), ModelError> {
    atomic_file::write(path, bytes)
        .map_err(|error| ModelError::State { problem: format!("cannot write {}: {error}", path.display()) })
}

/// The model's own generation configuration, ending where the tokenizer and the template end a turn.
fn generation_config(model: &Model, tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Value {
    let mut config = match &model.generation_config {
        Some(Value::Object(config)) => config.clone(),
        _ => Map::new(),
    };
    for (key, id) in [("bos_token_id", tokenizer.bos_id()), ("pad_token_id", tokenizer.pad_id())] {
        if let (Some(id), false) = (id, config.contains_key(key)) {
            config.insert(key.to_owned(), id.into());
        }
    }
    let end = match stop_token_ids(tokenizer, template).as_slice() {
        [] => return Value::Object(config),
        [id] => json!(id),
        ids => json!(ids),
    };
    config.insert("eos_token_id".to_owned(), end);
    Value::Object(config)
}

/// Names the token that fills up batches in a classifier's configuration, as transformers needs it to score several texts at a time:
/// the tokenizer's, unless that ends turns as well; the end of a reply would then be taken for filling, and its score read before it.
/// A configuration that names such a token loses it.
pub(crate) fn name_pad_token(model: &mut Model, tokenizer: &Tokenizer, template: Option<&ChatTemplate>) {
    if model.classifier().is_none() {
        return;
    }
    let ends = stop_token_ids(tokenizer, template);
    model.config.refuse_pad_tokens(&ends);
    if let Some(id) = tokenizer.pad_id().filter(|id| !ends.contains(id)) {
        model.config.default_pad_token(id);
    }
}

/// Folds the adapter in and leaves nothing quantised, so that the model is what it computed with.
///
/// # Errors
/// [`ModelError::State`] if no adapter is attached.
pub(crate) fn merge(model: &mut Model, dtype: Dtype) -> Result<()> {
    model.merge_adapter(dtype)?;
    for (_, param) in model.params.iter_mut().filter(|(_, param)| param.weight.is_quantised()) {
        // Products in training rounded the decoded values to bf16, whatever the type of the activations.
        let computed_with = Weight::bf16_from_f32(&param.weight.to_f32());
        param.set_weight(match dtype {
            Dtype::Bf16 => computed_with,
            Dtype::F32 => Weight::from_f32(&computed_with.to_f32()),
        });
    }
    model.freeze();
    Ok(())
}
