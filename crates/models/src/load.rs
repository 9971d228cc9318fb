//! Reading a Hugging Face directory.
//!
//! Every tensor the configuration asks for must be there, with its shape and finite values, and nothing else may be,
//! except buffers that are computed (`rotary_emb.inv_freq`) and a tied head that equals the embedding. What is read
//! lands in its final storage at once: `f32`, `bf16`, or quantised.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use pt_engine::{DeviceRef, Dtype, Host, Weight};
use pt_kernels::quant::int8::Int8Matrix;
use pt_kernels::quant::nf4::{DEFAULT_BLOCK, Nf4Matrix};
use pt_kernels::quant::{QuantError, StateDict};
use safetensors::Dtype as StoredDtype;
use serde_json::Value;

use crate::builder::{ParamSpec, Role, WeightSource};
use crate::config::{ModelConfig, StoredQuantisation};
use crate::error::{ModelError, Result};
use crate::file::WeightFile;
use crate::model::Model;
use crate::options::parse_object;
use crate::score_head::{SCORE_BIAS, SCORE_HEAD, ScoreHead};
use crate::shards::open_files;

/// Names listed in an error before it says how many there are.
const NAMES_SHOWN: usize = 5;

/// How weights are held in memory.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The floating-point type; `None` keeps that of the file (`f16` becomes `f32`).
    pub dtype: Option<Dtype>,
    /// Quantise the linear layers of the decoder while loading.
    pub quantise: Option<Quantise>,
    /// Where the weights go, each as soon as it is read.
    pub device: DeviceRef,
    /// Accept a reward model, too: transformers' sequence or token classification.
    pub score_head: bool,
    /// Keys of config.json that may have any value, because the user knows that they change nothing.
    pub ignored_options: Vec<String>,
}

/// A quantised storage for the linear layers of the decoder. Embeddings, head, norms and biases keep their type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantise {
    /// 4 bits in blocks of 64, of the values as rounded to [`LoadOptions::dtype`] (QLoRA, arXiv:2305.14314).
    Nf4 {
        /// Quantise the scales, too.
        double: bool,
    },
    /// 8 bits, a scale for each row.
    Int8,
}

/// Reads `config.json`.
///
/// # Errors
/// [`ModelError::Io`] and the option variants.
pub fn load_config(dir: &Path, ignored_options: &[String]) -> Result<ModelConfig> {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(ModelError::io(&path, "reading"))?;
    ModelConfig::parse(&path.display().to_string(), &text, ignored_options)
}

/// Reads `config.json`, also of a classifier.
///
/// # Errors
/// As [`load_config`].
pub fn load_any_config(dir: &Path, ignored_options: &[String]) -> Result<ModelConfig> {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(ModelError::io(&path, "reading"))?;
    let file = path.display().to_string();
    ModelConfig::of_any(&file, parse_object(&file, &text)?, ignored_options)
}

/// Reads a model directory.
///
/// # Errors
/// Any [`ModelError`] of configuration or files.
pub fn load(dir: &Path, options: &LoadOptions) -> Result<Model> {
    let config = match options.score_head {
        true => load_any_config(dir, &options.ignored_options)?,
        false => load_config(dir, &options.ignored_options)?,
    };
    let mut checkpoint = Checkpoint::open(dir, &config, options)?;
    let mut model = Model::build(config, &mut checkpoint)?;
    if let Some(head) = model.config.score_head {
        let (values, bias) = checkpoint.score_head(head)?;
        model.add_score_head(head.kind, &values)?;
        if let Some(bias) = bias {
            model.set_score_bias(&bias);
        }
        model.freeze();
    }
    let path = dir.join("generation_config.json");
    if path.exists() {
        let text = std::fs::read_to_string(&path).map_err(ModelError::io(&path, "reading"))?;
        model.generation_config = Some(Value::Object(parse_object(&path.display().to_string(), &text)?));
    }
    Ok(model)
}

/// The weights of a directory.
struct Checkpoint {
    files: Vec<WeightFile>,
    file_of: HashMap<String, usize>,
    options: LoadOptions,
    stored: Option<StoredQuantisation>,
}

impl Checkpoint {
    fn open(dir: &Path, config: &ModelConfig, options: &LoadOptions) -> Result<Checkpoint> {
        if let (Some(stored), Some(asked)) = (config.quantisation, options.quantise) {
            let problem = format!(
                "{}: the weights are stored as {stored:?} already, so they cannot be quantised to {asked:?}; leave \
                 quantisation out, or start from the original weights",
                dir.display()
            );
            return Err(ModelError::State { problem });
        }
        let files = open_files(dir)?;
        let mut file_of = HashMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(other) = file_of.insert(name.to_owned(), i) {
                    let problem = format!("tensor `{name}` is also in {}", files[other].path.display());
                    return Err(ModelError::BadFile { file: file.path.clone(), problem });
                }
            }
        }
        let mut checkpoint =
            Checkpoint { files, file_of, options: options.clone(), stored: config.quantisation };
        let specs = config.param_specs();
        checkpoint.check_missing(dir, &specs)?;
        checkpoint.check_extra(dir, config, &specs)?;
        checkpoint.check_shapes(&specs)?;
        if let Some(head) = config.score_head {
            checkpoint.check_score_head(dir, head, config.hidden_size)?;
        }
        if config.tied {
            checkpoint.check_tied_head(&specs)?;
        }
        Ok(checkpoint)
    }

    /// The values of a score head, and of its bias where that is not zero.
    fn score_head(&mut self, head: ScoreHead) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
        debug_assert!(head.n_outputs > 0, "a head has outputs");
        let bias = match self.file_of.contains_key(SCORE_BIAS) {
            true => Some(self.file(SCORE_BIAS).values::<f32>(SCORE_BIAS)?.to_vec()),
            false => None,
        };
        let values = self.file(SCORE_HEAD).values::<f32>(SCORE_HEAD)?.to_vec();
        Ok((values, bias.filter(|bias| bias.iter().any(|value| *value != 0.0))))
    }

    fn file(&mut self, name: &str) -> &mut WeightFile {
        &mut self.files[self.file_of[name]]
    }

    fn check_score_head(&self, dir: &Path, head: ScoreHead, width: usize) -> Result<()> {
        let Some(&file) = self.file_of.get(SCORE_HEAD) else {
            return Err(ModelError::MissingTensors {
                dir: dir.to_owned(),
                count: 1,
                first: vec![SCORE_HEAD.to_owned()],
                hint: "config.json describes a classifier; its head was not saved".to_owned(),
            });
        };
        self.files[file].expect_shape(SCORE_HEAD, &[head.n_outputs, width])?;
        match self.file_of.get(SCORE_BIAS) {
            Some(&file) => self.files[file].expect_shape(SCORE_BIAS, &[head.n_outputs]),
            None => Ok(()),
        }
    }

    fn check_missing(&self, dir: &Path, specs: &[ParamSpec]) -> Result<()> {
        let missing: Vec<&ParamSpec> =
            specs.iter().filter(|spec| !self.file_of.contains_key(&spec.name)).collect();
        let Some(first) = missing.first() else { return Ok(()) };
        let unprefixed =
            first.name.strip_prefix("model.").is_some_and(|rest| self.file_of.contains_key(rest));
        let wrapped = self.file_of.keys().any(|name| name.ends_with(&format!(".{}", first.name)));
        let hint = if self.file_of.keys().any(|name| name.contains("lora_")) {
            "these are the weights of an adapter: load the base model and attach the adapter to it"
        } else if missing.len() == 1 && first.role == Role::Head {
            "if the head is the embedding, set `tie_word_embeddings` to true in config.json"
        } else if unprefixed || wrapped {
            "the same names exist with another prefix: save the model as its ...ForCausalLM class"
        } else if missing.iter().all(|spec| spec.role == Role::Bias) {
            "config.json asks for biases that the weights do not have"
        } else {
            "config.json and weights do not belong together, or a shard is missing"
        };
        Err(ModelError::MissingTensors {
            dir: dir.to_owned(),
            count: missing.len(),
            first: missing.iter().take(NAMES_SHOWN).map(|spec| spec.name.clone()).collect(),
            hint: hint.to_owned(),
        })
    }

    fn check_extra(&self, dir: &Path, config: &ModelConfig, specs: &[ParamSpec]) -> Result<()> {
        let roles: HashMap<&str, Role> = specs.iter().map(|spec| (spec.name.as_str(), spec.role)).collect();
        let belongs = |name: &String| {
            roles.contains_key(name.as_str())
                || name.ends_with("rotary_emb.inv_freq")
                || (config.tied && config.score_head.is_none() && name == HEAD)
                || (config.score_head.is_some() && [SCORE_HEAD, SCORE_BIAS].contains(&name.as_str()))
                || (self.stored.is_some() && is_beside_linear(name, &roles))
        };
        let mut extra: Vec<&String> = self.file_of.keys().filter(|name| !belongs(name)).collect();
        extra.sort();
        if extra.is_empty() {
            return Ok(());
        }
        Err(ModelError::ExtraTensors {
            dir: dir.to_owned(),
            count: extra.len(),
            first: extra.into_iter().take(NAMES_SHOWN).cloned().collect(),
            architecture: config.class_name.clone(),
        })
    }

    /// Checks all shapes before anything is read. Packed NF4 codes are checked when they are decoded.
    fn check_shapes(&self, specs: &[ParamSpec]) -> Result<()> {
        for spec in specs {
            let file = &self.files[self.file_of[&spec.name]];
            let is_packed = file.info(&spec.name).is_some_and(|info| info.dtype == StoredDtype::U8);
            if !(is_packed && self.stored == Some(StoredQuantisation::Nf4)) {
                file.expect_shape(&spec.name, &spec.shape)?;
            }
        }
        Ok(())
    }

    fn check_tied_head(&mut self, specs: &[ParamSpec]) -> Result<()> {
        let embedding = specs.iter().find(|spec| spec.role == Role::Embedding);
        let (Some(embedding), true) = (embedding, self.file_of.contains_key(HEAD)) else { return Ok(()) };
        let head = self.file(HEAD).raw(HEAD)?;
        if head != self.file(&embedding.name).raw(&embedding.name)? {
            return Err(ModelError::UntiedHead {
                file: self.file(HEAD).path.clone(),
                tensor: HEAD.to_owned(),
            });
        }
        Ok(())
    }

    /// The tensors bitsandbytes keeps for one linear layer, named as they are in the file.
    fn state_dict(&mut self, weight: &str) -> Result<StateDict> {
        let module = weight.strip_suffix("weight").unwrap_or(weight).to_owned();
        let names: Vec<String> =
            self.file_of.keys().filter(|name| name.starts_with(&module)).cloned().collect();
        let mut dict = BTreeMap::new();
        for name in names.into_iter().filter(|name| !name.ends_with(".bias")) {
            dict.insert(name.clone(), self.file(&name).raw(&name)?);
        }
        Ok(dict)
    }

    fn stored_weight(&mut self, spec: &ParamSpec) -> Result<Option<Host>> {
        let dtype = self.file(&spec.name).info(&spec.name).map(|info| info.dtype);
        let is_codes = matches!(dtype, Some(StoredDtype::U8 | StoredDtype::I8));
        let Some(stored) = self.stored.filter(|_| is_codes) else { return Ok(None) };
        if spec.role != Role::Linear {
            return Err(self
                .file(&spec.name)
                .wrong_dtype(&spec.name, "F32, F16 or BF16: only linear layers may be quantised"));
        }
        let dict = self.state_dict(&spec.name)?;
        let weight = match stored {
            StoredQuantisation::Nf4 => Nf4Matrix::from_state_dict(&dict, &spec.name).map(Host::Nf4),
            StoredQuantisation::Int8 => {
                Int8Matrix::from_state_dict(&without_module(&dict, &spec.name)).map(Host::Int8)
            }
        };
        let weight = weight.map_err(self.quant_error(spec))?;
        let found = match &weight {
            Host::Nf4(m) => vec![m.rows(), m.cols()],
            Host::Int8(m) => vec![m.rows(), m.cols()],
            _ => unreachable!("made quantised just above"),
        };
        if found != spec.shape {
            let file = self.file(&spec.name).path.clone();
            return Err(ModelError::WrongShape {
                file,
                tensor: spec.name.clone(),
                found,
                expected: spec.shape.clone(),
            });
        }
        Ok(Some(weight))
    }

    fn quant_error(&mut self, spec: &ParamSpec) -> impl Fn(QuantError) -> ModelError + use<> {
        let (file, tensor) = (self.file(&spec.name).path.clone(), spec.name.clone());
        move |source| ModelError::Quantise { file: file.clone(), tensor: tensor.clone(), source }
    }
}

impl WeightSource for Checkpoint {
    fn device(&self) -> DeviceRef {
        self.options.device
    }

    fn weight(&mut self, spec: &ParamSpec) -> Result<Weight> {
        if let Some(stored) = self.stored_weight(spec)? {
            return Ok(stored.into());
        }
        let dtype = self.options.dtype;
        let weight = self.file(&spec.name).weight(&spec.name, dtype)?;
        match self.options.quantise {
            Some(quantise) if spec.role == Role::Linear => {
                quantised(&weight.to_f32(), spec.shape[0], spec.shape[1], quantise)
                    .map_err(self.quant_error(spec))
            }
            _ => Ok(weight.into()),
        }
    }
}

/// Quantises a row-major matrix.
///
/// # Errors
/// [`QuantError`].
pub fn quantised(
    values: &[f32],
    rows: usize,
    cols: usize,
    how: Quantise,
) -> std::result::Result<Weight, QuantError> {
    let packed = match how {
        Quantise::Nf4 { double } => {
            Nf4Matrix::quantise(values, rows, cols, DEFAULT_BLOCK, double).map(Host::Nf4)
        }
        Quantise::Int8 => Int8Matrix::quantise(values, rows, cols).map(Host::Int8),
    };
    packed.map(Weight::from)
}

/// The head's name in all architectures.
const HEAD: &str = "lm_head.weight";

/// Whether a tensor is one of those kept beside a quantised linear layer's weight.
fn is_beside_linear(name: &str, roles: &HashMap<&str, Role>) -> bool {
    let weight = match name.strip_suffix(".SCB").or_else(|| name.strip_suffix(".weight_format")) {
        Some(module) => format!("{module}.weight"),
        None => match name.split_once(".weight.") {
            Some((module, _)) => format!("{module}.weight"),
            None => return false,
        },
    };
    roles.get(weight.as_str()) == Some(&Role::Linear)
}

/// The entries with the module's path taken off.
fn without_module(dict: &StateDict, weight: &str) -> StateDict {
    let module = weight.strip_suffix("weight").unwrap_or(weight);
    dict.iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(module)?.to_owned(), tensor.clone())))
        .collect()
}
