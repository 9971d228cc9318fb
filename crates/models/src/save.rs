//! Writing a Hugging Face directory: `config.json`, `generation_config.json`, and the weights in shards with an index.
//!
//! A file appears whole or not at all, and [`save`] publishes the whole folder at once. Tokenizer files are the
//! caller's: `also` writes them into the folder before it is published.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use half::bf16;
use pt_core::atomic_file;
use pt_engine::{Dtype, Host, Param, Storage, Weight};
use pt_kernels::elem::Elem;
use pt_kernels::quant::{RawDtype, RawTensor};
use safetensors::tensor::View;
use safetensors::{Dtype as StoredDtype, SafeTensorError};
use serde_json::{Map, Value, json};

use crate::config::StoredQuantisation;
use crate::error::{ModelError, PUBLISHING, Result};
use crate::model::{Model, torch_name};
use crate::score_head::{SCORE_BIAS, ScoreHead, ScoreHeadKind};

/// How weights are written.
#[derive(Clone, Debug)]
pub struct SaveOptions {
    /// The floating-point type; `None` keeps each tensor's own.
    pub dtype: Option<Dtype>,
    /// Largest size of one file; a tensor larger than that has a file of its own.
    pub max_shard_bytes: u64,
}

impl Default for SaveOptions {
    /// Own types, shards of 5 GB as transformers writes them.
    fn default() -> Self {
        SaveOptions { dtype: None, max_shard_bytes: 5_000_000_000 }
    }
}

/// Writes a model folder under `dir`, replacing an older one whole. `also` adds files before it is published.
///
/// # Errors
/// [`ModelError::State`] if an adapter is attached; [`ModelError::Io`].
pub fn save(
    model: &Model,
    dir: &Path,
    options: &SaveOptions,
    also: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let fill = |folder: &Path| {
        save_into(model, folder, options)?;
        also(folder)
    };
    atomic_file::publish_dir(dir, fill).map_err(|error| match error {
        ModelError::Io { doing: PUBLISHING, source, .. } => ModelError::io(dir, PUBLISHING)(source),
        other => other,
    })
}

/// Writes the model's files into a folder that exists, each atomically, leaving other files alone.
///
/// # Errors
/// [`ModelError::State`] if an adapter is attached; [`ModelError::Io`].
pub fn save_into(model: &Model, folder: &Path, options: &SaveOptions) -> Result<()> {
    if model.adapter.is_some() {
        let problem =
            "an adapter is attached; save the adapter on its own, or merge it before saving the model";
        return Err(ModelError::State { problem: problem.to_owned() });
    }
    let (tensors, dtype) = (stored_tensors(model, options)?, main_dtype(model, options));
    write_shards(folder, tensors, options.max_shard_bytes)?;
    let mut config = model.config.to_json(torch_name(dtype), quantisation(model)?);
    if let Some(head) = model.classifier() {
        head.describe(model.config.architecture(), &mut config);
    }
    write_json(&folder.join("config.json"), &Value::Object(config))?;
    if let Some(value) =
        model.generation_config.clone().or_else(|| default_generation_config(model.config.raw()))
    {
        write_json(&folder.join("generation_config.json"), &value)?;
    }
    Ok(())
}

/// The library creates its files for the owner alone; a model is for whoever may read its folder's other files.
#[cfg(unix)]
fn open_to_readers(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    // What the umask leaves is seen on a file made the ordinary way.
    let sample = path.with_extension("mode.partial");
    let mode = std::fs::File::create(&sample).and_then(|file| Ok(file.metadata()?.permissions().mode()));
    std::fs::remove_file(&sample)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode?))
}

#[cfg(not(unix))]
fn open_to_readers(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// Writes tensors as one safetensors file, atomically.
pub(crate) fn write_tensors(path: &Path, tensors: Vec<(String, Stored<'_>)>) -> Result<()> {
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let temporary = path.with_file_name(match path.file_name() {
        Some(name) => format!(".{}.partial", name.to_string_lossy()),
        None => unreachable!("callers give the path of a file"),
    });
    let written = safetensors::serialize_to_file(tensors, Some(format), &temporary)
        .map_err(|error| match error {
            SafeTensorError::IoError(source) => ModelError::io(path, "writing")(source),
            other => {
                ModelError::BadFile { file: path.to_owned(), problem: format!("cannot be written: {other}") }
            }
        })
        .and_then(|()| {
            let publish = || {
                open_to_readers(&temporary)?;
                std::fs::File::open(&temporary)?.sync_all().and_then(|()| std::fs::rename(&temporary, path))
            };
            publish().map_err(ModelError::io(path, "writing"))
        });
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).expect("a JSON value is always serialisable");
    text.push('\n');
    atomic_file::write(path, text.as_bytes()).map_err(ModelError::io(path, "writing"))
}

/// A tensor on its way into a file.
pub(crate) enum Stored<'a> {
    /// Floating point, converted when its turn comes, so that no second copy of the model exists.
    Float(&'a Param, Dtype),
    /// Anything else, as it is.
    Raw(RawTensor),
}

impl View for Stored<'_> {
    fn dtype(&self) -> StoredDtype {
        match self {
            Stored::Float(_, Dtype::F32) => StoredDtype::F32,
            Stored::Float(_, Dtype::Bf16) => StoredDtype::BF16,
            Stored::Raw(tensor) => match tensor.dtype {
                RawDtype::U8 => StoredDtype::U8,
                RawDtype::I8 => StoredDtype::I8,
                RawDtype::F32 => StoredDtype::F32,
                RawDtype::Bf16 => StoredDtype::BF16,
                RawDtype::F16 => StoredDtype::F16,
            },
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Stored::Float(param, _) => &param.shape,
            Stored::Raw(tensor) => &tensor.shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Stored::Float(param, dtype) => Cow::Owned(float_bytes(&param.weight, *dtype)),
            Stored::Raw(tensor) => Cow::Borrowed(&tensor.bytes),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Stored::Float(param, dtype) => param.len() * dtype.bytes(),
            Stored::Raw(tensor) => tensor.bytes.len(),
        }
    }
}

fn float_bytes(weight: &Weight, dtype: Dtype) -> Vec<u8> {
    match (&*weight.to_host(), dtype) {
        (Host::Bf16(values), Dtype::Bf16) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        (Host::F32(values), Dtype::F32) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        (weight, Dtype::F32) => weight.to_f32().iter().flat_map(|v| v.to_le_bytes()).collect(),
        (weight, Dtype::Bf16) => {
            weight.to_f32().iter().flat_map(|v| <bf16 as Elem>::put(*v).to_le_bytes()).collect()
        }
    }
}

fn own_dtype(weight: &Weight) -> Dtype {
    if weight.storage() == Storage::Bf16 { Dtype::Bf16 } else { Dtype::F32 }
}

/// The type config.json names: that of the embedding, which is never quantised.
fn main_dtype(model: &Model, options: &SaveOptions) -> Dtype {
    let embedding = model.params.iter().find(|(_, param)| !param.weight.is_quantised());
    options.dtype.unwrap_or_else(|| embedding.map_or(Dtype::F32, |(_, param)| own_dtype(&param.weight)))
}

fn quantisation(model: &Model) -> Result<Option<StoredQuantisation>> {
    let kinds = model.params.iter().filter_map(|(_, param)| match param.weight.storage() {
        Storage::Nf4 => Some(StoredQuantisation::Nf4),
        Storage::Int8 => Some(StoredQuantisation::Int8),
        Storage::F32 | Storage::Bf16 | Storage::U8 => None,
    });
    let mut kinds: Vec<StoredQuantisation> = kinds.collect();
    kinds.dedup();
    match kinds.as_slice() {
        [] => Ok(None),
        [kind] => Ok(Some(*kind)),
        _ => Err(ModelError::State {
            problem: "a model with NF4 and int8 layers has no file format".to_owned(),
        }),
    }
}

fn stored_tensors<'m>(model: &'m Model, options: &SaveOptions) -> Result<Vec<(String, Stored<'m>)>> {
    let mut tensors = Vec::new();
    let classifier = model.classifier();
    let language_head = model.arch.head();
    for (id, param) in model.params.iter() {
        let is_left_out = match classifier {
            Some(_) => id == language_head && !model.config.tied,
            None => model.score_head().is_some_and(|head| head.weight == id || head.bias == Some(id)),
        };
        if is_left_out {
            continue;
        }
        if !param.weight.is_quantised() {
            let dtype = options.dtype.unwrap_or_else(|| own_dtype(&param.weight));
            tensors.push((param.name.clone(), Stored::Float(param, dtype)));
            continue;
        }
        match &*param.weight.to_host() {
            Host::Nf4(matrix) => {
                let dict = matrix.to_state_dict(&param.name, torch_name(main_dtype(model, options)));
                tensors.extend(dict.into_iter().map(|(name, tensor)| (name, Stored::Raw(tensor))));
            }
            Host::Int8(matrix) => {
                let module = param.name.strip_suffix("weight").unwrap_or(&param.name);
                let dict = matrix.to_state_dict();
                tensors.extend(
                    dict.into_iter().map(|(name, tensor)| (format!("{module}{name}"), Stored::Raw(tensor))),
                );
            }
            _ => unreachable!("quantised weights are NF4 or int8"),
        }
    }
    let has_bias = model.score_head().is_some_and(|head| head.bias.is_some());
    if let Some(ScoreHead { kind: ScoreHeadKind::Token, n_outputs }) = classifier.filter(|_| !has_bias) {
        let zeros = RawTensor::from_f32(&vec![0.0; n_outputs]);
        let stored = match main_dtype(model, options) {
            Dtype::F32 => zeros,
            Dtype::Bf16 => RawTensor { dtype: RawDtype::Bf16, bytes: vec![0; 2 * n_outputs], ..zeros },
        };
        tensors.push((SCORE_BIAS.to_owned(), Stored::Raw(stored)));
    }
    Ok(tensors)
}

/// Fills shards in declaration order, so that a layer's tensors lie together.
fn write_shards(folder: &Path, tensors: Vec<(String, Stored<'_>)>, max_bytes: u64) -> Result<()> {
    let total: u64 = tensors.iter().map(|(_, tensor)| tensor.data_len() as u64).sum();
    let mut shards: Vec<Vec<(String, Stored<'_>)>> = Vec::new();
    let mut filled = max_bytes;
    for (name, tensor) in tensors {
        let bytes = tensor.data_len() as u64;
        if shards.is_empty() || filled + bytes > max_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        shards.last_mut().expect("a shard was just pushed").push((name, tensor));
    }
    let n = shards.len();
    if n <= 1 {
        let only = shards.pop().unwrap_or_default();
        remove_if_there(&folder.join("model.safetensors.index.json"))?;
        return write_tensors(&folder.join("model.safetensors"), only);
    }
    let mut weight_map = Map::new();
    for (i, shard) in shards.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{n:05}.safetensors", i + 1);
        weight_map.extend(shard.iter().map(|(name, _)| (name.clone(), json!(file))));
        write_tensors(&folder.join(&file), shard)?;
    }
    weight_map.sort_keys();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    write_json(&folder.join("model.safetensors.index.json"), &index)?;
    // A reader prefers the single file; an older one must not shadow the shards.
    remove_if_there(&folder.join("model.safetensors"))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ModelError::io(path, "removing")(error))
        }
        _ => Ok(()),
    }
}

/// The special tokens of config.json, as transformers derives a generation configuration from it.
fn default_generation_config(config: &Map<String, Value>) -> Option<Value> {
    let keys = ["bos_token_id", "eos_token_id", "pad_token_id"];
    let ids: Map<String, Value> = keys
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), config.get(*key).filter(|v| !v.is_null())?.clone())))
        .collect();
    (!ids.is_empty()).then(|| Value::Object(ids))
}
