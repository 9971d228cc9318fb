//! `adapter_config.json` of PEFT. Fails closed, as config.json does.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::{AllLinear, LoraConfig, LoraInit, Targets, is_path_end};
use crate::error::{ModelError, Result};
use crate::options::{Options, parse_object};
use crate::score_head::ScoreHeadKind;

/// The file's name.
pub(super) const CONFIG: &str = "adapter_config.json";

/// What `adapter_config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftConfig {
    /// The description, with rank and alpha of layers outside the patterns.
    pub lora: LoraConfig,
    /// Ranks of layers whose names end so.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of layers whose names end so.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// The model it was trained on, where it says so.
    pub base_model: Option<String>,
    /// The score head that it brings along, for a classifier.
    pub score_head: Option<ScoreHeadKind>,
}

impl PeftConfig {
    /// Reads the folder's `adapter_config.json`.
    ///
    /// # Errors
    /// [`ModelError::Io`] and the option variants.
    pub fn read(dir: &Path) -> Result<PeftConfig> {
        let path = dir.join(CONFIG);
        let text = std::fs::read_to_string(&path).map_err(ModelError::io(&path, "reading"))?;
        let name = path.display().to_string();
        let map = parse_object(&name, &text)?;
        PeftConfig::parse(&Options::new(&name, &map))
    }

    fn parse(o: &Options<'_>) -> Result<PeftConfig> {
        o.only("peft_type", "LORA", |v| v == "LORA")?;
        if !o.has("peft_type") {
            return Err(o.missing("peft_type", "LORA"));
        }
        let tasks = ["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS"];
        o.only("task_type", &tasks.join(", "), |v| tasks.iter().any(|task| v == *task))?;
        let score_head = match o.text("task_type")? {
            Some("SEQ_CLS") => Some(ScoreHeadKind::Sequence),
            Some("TOKEN_CLS") => Some(ScoreHeadKind::Token),
            _ => None,
        };
        o.only("bias", "none: biases do not train", |v| v == "none")?;
        // PEFT adds both names of a classifier's head by itself.
        let heads = ["score", "classifier"];
        o.only("modules_to_save", "null, or the score head of a classifier", |v| {
            v.as_array().is_some_and(|names| {
                names.is_empty() || score_head.is_some() && names.iter().all(|n| heads.iter().any(|h| n == h))
            })
        })?;
        // How the values came to be does not matter once they are read, except where the base weights changed with
        // them (PiSSA, OLoRA, CorDA, LoftQ): those adapters are only right on the changed base, which is not here.
        let by_name = ["gaussian", "orthogonal", "eva"];
        o.only(
            "init_lora_weights",
            "true, false, gaussian, orthogonal or eva: others change the base weights",
            |v| v.is_boolean() || v.as_str().is_some_and(|name| by_name.contains(&name)),
        )?;
        let lora = LoraConfig {
            rank: o.required_size("r", 1..=1 << 16)?,
            alpha: o.required_positive("lora_alpha")?,
            dropout: o
                .value("lora_dropout")
                .map_or(Some(0.0), Value::as_f64)
                .filter(|p| (0.0..1.0).contains(p))
                .ok_or_else(|| o.bad("lora_dropout", "a number from 0 to below 1"))?,
            targets: read_targets(o)?,
            rslora: o.flag("use_rslora")?.unwrap_or(false),
            dora: o.flag("use_dora")?.unwrap_or(false),
            init: LoraInit::Default,
        };
        let config = PeftConfig {
            rank_pattern: read_pattern(o, "rank_pattern", |v| {
                v.as_u64().map(|n| n as usize).filter(|n| *n > 0)
            })?,
            alpha_pattern: read_pattern(o, "alpha_pattern", |v| v.as_f64().filter(|x| *x > 0.0))?,
            base_model: o.text("base_model_name_or_path")?.map(str::to_owned),
            score_head,
            lora,
        };
        o.finish("a LoRA adapter", |key| IGNORABLE.contains(&key))?;
        Ok(config)
    }

    pub(super) fn rank_of(&self, module: &str) -> usize {
        pattern(&self.rank_pattern, module).unwrap_or(self.lora.rank)
    }

    pub(super) fn alpha_of(&self, module: &str) -> f64 {
        pattern(&self.alpha_pattern, module).unwrap_or(self.lora.alpha)
    }
}

/// Keys that say where an adapter came from, or configure features that are off.
const IGNORABLE: &[&str] = &[
    "auto_mapping",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

/// Which layers are adapted is read off the tensors; this is kept for writing the adapter again.
fn read_targets(o: &Options<'_>) -> Result<Targets> {
    match o.value("target_modules") {
        Some(Value::Array(_)) => {
            let names = o.texts("target_modules")?.unwrap_or_default();
            Ok(Targets::Names(names.into_iter().map(str::to_owned).collect()))
        }
        Some(Value::String(_)) | None => Ok(Targets::Word(AllLinear::AllLinear)),
        Some(_) => Err(o.bad("target_modules", "a list of names, or a string")),
    }
}

fn read_pattern<T>(
    o: &Options<'_>,
    key: &'static str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<BTreeMap<String, T>> {
    let Some(map) = o.value(key) else { return Ok(BTreeMap::new()) };
    let Some(map) = map.as_object() else { return Err(o.bad(key, "an object of numbers by layer name")) };
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
    map.iter()
        .map(|(name, value)| match read(value) {
            _ if !is_name(name) => {
                Err(o.unsupported(key, "names or ends of names as keys, no regular expressions"))
            }
            Some(value) => Ok((name.clone(), value)),
            None => Err(o.bad(key, "an object of numbers above 0 by layer name")),
        })
        .collect()
}

fn pattern<T: Copy>(patterns: &BTreeMap<String, T>, module: &str) -> Option<T> {
    patterns.iter().find(|(name, _)| is_path_end(module, name)).map(|(_, value)| *value)
}
