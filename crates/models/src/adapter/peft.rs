//! Adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Tensors are named `base_model.model.<module>.lora_A.weight` `[rank, n_in]`, `.lora_B.weight` `[n_out, rank]` and, with
//! DoRA, `.lora_magnitude_vector` `[n_out]`. Which layers have an adapter is read off these names, so `target_modules`
//! may be a list, a regular expression or `all-linear`. `rank_pattern` and `alpha_pattern` are understood where their
//! keys are names or ends of names; any option that changes the result and is not supported is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pt_engine::{Dtype, Linear};
use pt_kernels::quant::RawTensor;
use serde_json::{Map, Value, json};

use super::peft_config::CONFIG;
use super::{
    Adapter, AllLinear, LayerAdapter, LoraConfig, PeftConfig, Targets, is_path_end, last_names, name_a,
    name_b, name_magnitude, scale_of,
};
use crate::error::{ModelError, Result};
use crate::file::WeightFile;
use crate::model::Model;
use crate::save::{Stored, write_json, write_tensors};
use crate::score_head::{SCORE_BIAS, SCORE_HEAD, ScoreHeadKind};

const WEIGHTS: &str = "adapter_model.safetensors";

impl Model {
    /// Attaches the adapter of a PEFT folder; everything else is frozen.
    ///
    /// # Errors
    /// Any [`ModelError`] of configuration and files; [`ModelError::Adapter`] for layers the model does not have.
    pub fn attach_peft(&mut self, dir: &Path) -> Result<()> {
        self.expect_no_adapter()?;
        let config = PeftConfig::read(dir)?;
        let mut file = WeightFile::open(&dir.join(WEIGHTS))?;
        let parts = sort_tensors(&file, &config)?;
        let linears: Vec<Linear> = self.arch.linears().into_iter().cloned().collect();
        let known: BTreeSet<&str> = linears.iter().map(|linear| linear.name.as_str()).collect();
        if let Some(module) = parts.keys().find(|module| !known.contains(module.as_str())) {
            let names = last_names(&linears.iter().collect::<Vec<_>>()).join(", ");
            return Err(ModelError::adapter(format!(
                "{} has weights for `{module}`, which a {} does not have among its linear layers ({names})",
                file.path.display(),
                self.config.class_name
            )));
        }
        let mut layers = Vec::new();
        for linear in linears.iter().filter(|linear| parts.contains_key(&linear.name)) {
            layers.push((&linear.name, read_layer(&mut file, linear, &parts[&linear.name], &config)?));
        }
        let head = match config.score_head {
            Some(kind) => Some((kind, read_score_head(&mut file, self.config.hidden_size)?)),
            None => None,
        };
        self.freeze();
        for (module, layer) in layers {
            self.attach_layer(module, layer);
        }
        if let Some((kind, (values, bias))) = head {
            self.add_score_head(kind, &values)?;
            if let Some(bias) = bias {
                self.set_score_bias(&bias);
            }
        }
        self.adapter = Some(Adapter { config: config.lora, pissa: Vec::new() });
        Ok(())
    }

    /// Writes the attached adapter into a folder that exists, each file atomically.
    ///
    /// One made with PiSSA is written relative to the original base model, at twice its rank: `[A; A0]` and `[B, -B0]`.
    ///
    /// # Errors
    /// [`ModelError::State`] without an adapter; [`ModelError::Io`].
    pub fn save_peft(&self, folder: &Path, base_model: Option<&str>) -> Result<()> {
        let Some(adapter) = &self.adapter else {
            return Err(ModelError::State {
                problem: "no adapter is attached, so there is none to save".to_owned(),
            });
        };
        let linears: Vec<&Linear> =
            self.arch.linears().into_iter().filter(|linear| linear.lora.is_some()).collect();
        let mut tensors = Vec::new();
        for linear in &linears {
            tensors.extend(self.layer_tensors(linear, adapter)?);
        }
        if let (Some(head), Some(weights)) = (self.classifier(), self.score_head()) {
            tensors.push((peft_name(SCORE_HEAD), Stored::Float(self.params.get(weights.weight), Dtype::F32)));
            if let Some(bias) = weights.bias {
                tensors.push((peft_name(SCORE_BIAS), Stored::Float(self.params.get(bias), Dtype::F32)));
            } else if head.kind == ScoreHeadKind::Token {
                let zeros = RawTensor::from_f32(&vec![0.0; head.n_outputs]);
                tensors.push((peft_name(SCORE_BIAS), Stored::Raw(zeros)));
            }
        }
        write_tensors(&folder.join(WEIGHTS), tensors)?;
        write_json(&folder.join(CONFIG), &Value::Object(self.peft_json(adapter, &linears, base_model)))
    }

    fn layer_tensors(&self, linear: &Linear, adapter: &Adapter) -> Result<Vec<(String, Stored<'_>)>> {
        let lora = linear.lora.as_ref().expect("a layer with an adapter");
        let float = |id| Stored::Float(self.params.get(id), Dtype::F32);
        let start = adapter.pissa.iter().find(|start| start.module == linear.name);
        let mut tensors = match start {
            None => vec![(name_a(&linear.name), float(lora.a)), (name_b(&linear.name), float(lora.b))],
            Some(start) => {
                let (a, b) =
                    (self.params.get(lora.a).weight.to_f32(), self.params.get(lora.b).weight.to_f32());
                let rows = a.iter().chain(&start.a).copied().collect::<Vec<f32>>();
                let joined = b.chunks_exact(lora.rank).zip(start.b.chunks_exact(lora.rank));
                let cols: Vec<f32> =
                    joined.flat_map(|(b, b0)| b.iter().copied().chain(b0.iter().map(|x| -x))).collect();
                vec![
                    (name_a(&linear.name), matrix(&rows, 2 * lora.rank, linear.n_in)),
                    (name_b(&linear.name), matrix(&cols, linear.n_out, 2 * lora.rank)),
                ]
            }
        };
        tensors.extend(lora.magnitude.map(|id| (name_magnitude(&linear.name), float(id))));
        Ok(tensors)
    }

    /// Names that mean exactly the adapted layers: as they were given, or their last components, or in full.
    fn target_names(&self, config: &LoraConfig, linears: &[&Linear]) -> Vec<String> {
        let short: Vec<String> = match &config.targets {
            Targets::Names(names) => names.clone(),
            Targets::Word(AllLinear::AllLinear) => {
                last_names(linears).into_iter().map(str::to_owned).collect()
            }
        };
        let is_meant = |linear: &Linear| short.iter().any(|name| is_path_end(&linear.name, name));
        let is_exact = self.arch.linears().iter().all(|linear| is_meant(linear) == linear.lora.is_some());
        if is_exact { short } else { linears.iter().map(|linear| linear.name.clone()).collect() }
    }

    fn peft_json(
        &self,
        adapter: &Adapter,
        linears: &[&Linear],
        base_model: Option<&str>,
    ) -> Map<String, Value> {
        let config = &adapter.config;
        // The doubled rank of PiSSA keeps its scale: alpha / r, or alpha / sqrt(r).
        let grown = if adapter.pissa.is_empty() { 1.0 } else { 2.0 };
        let rank = (config.rank as f64 * grown) as usize;
        let alpha = config.alpha * if config.rslora { grown.sqrt() } else { grown };
        let (mut ranks, mut alphas) = (Map::new(), Map::new());
        for linear in linears {
            let lora = linear.lora.as_ref().expect("a layer with an adapter");
            if lora.rank != config.rank {
                ranks.insert(linear.name.clone(), json!(lora.rank));
            }
            if lora.scale != scale_of(config.alpha, lora.rank, config.rslora) {
                let r = lora.rank as f64;
                alphas.insert(
                    linear.name.clone(),
                    number(f64::from(lora.scale) * if config.rslora { r.sqrt() } else { r }),
                );
            }
        }
        let targets = self.target_names(config, linears);
        let (task_type, modules_to_save) = match self.classifier().map(|head| head.kind) {
            Some(ScoreHeadKind::Sequence) => ("SEQ_CLS", json!(["score"])),
            Some(ScoreHeadKind::Token) => ("TOKEN_CLS", json!(["score"])),
            Some(ScoreHeadKind::Value) | None => ("CAUSAL_LM", Value::Null),
        };
        let value = json!({
            "peft_type": "LORA",
            "task_type": task_type,
            "base_model_name_or_path": base_model,
            "revision": null,
            "inference_mode": true,
            "r": rank,
            "lora_alpha": number(alpha),
            "lora_dropout": config.dropout,
            "target_modules": targets,
            "use_rslora": config.rslora,
            "use_dora": config.dora,
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "modules_to_save": modules_to_save,
            "layers_to_transform": null,
            "layers_pattern": null,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "auto_mapping": null,
        });
        match value {
            Value::Object(map) => map,
            _ => unreachable!("an object was written above"),
        }
    }
}

/// A tensor's name in an adapter's file.
fn peft_name(name: &str) -> String {
    format!("base_model.model.{name}")
}

/// The head of a classifier, saved whole beside its adapter, and its bias where that is not zero.
fn read_score_head(file: &mut WeightFile, width: usize) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
    let (name, bias) = (peft_name(SCORE_HEAD), peft_name(SCORE_BIAS));
    let path = file.path.display().to_string();
    let Some(rows) = file.info(&name).and_then(|info| info.shape.first().copied()) else {
        return Err(ModelError::adapter(format!("{path}: a classifier's adapter has no `{name}`")));
    };
    file.expect_shape(&name, &[rows, width])?;
    let bias = match file.info(&bias).is_some() {
        true => {
            file.expect_shape(&bias, &[rows])?;
            Some(file.values::<f32>(&bias)?.to_vec())
        }
        false => None,
    };
    Ok((file.values::<f32>(&name)?.to_vec(), bias.filter(|bias| bias.iter().any(|value| *value != 0.0))))
}

/// A whole number where it is one: PEFT declares alpha as an integer.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

fn matrix(values: &[f32], rows: usize, cols: usize) -> Stored<'static> {
    Stored::Raw(RawTensor { shape: vec![rows, cols], ..RawTensor::from_f32(values) })
}

/// The file's names of one layer's tensors.
#[derive(Default)]
struct Parts {
    a: Option<String>,
    b: Option<String>,
    magnitude: Option<String>,
}

fn sort_tensors(file: &WeightFile, config: &PeftConfig) -> Result<BTreeMap<String, Parts>> {
    let mut parts: BTreeMap<String, Parts> = BTreeMap::new();
    for name in file.names() {
        let unknown = || {
            ModelError::adapter(format!(
                "{}: tensor `{name}` is not part of a LoRA adapter; expected base_model.model.<layer>.lora_A.weight, \
                 .lora_B.weight or .lora_magnitude_vector",
                file.path.display()
            ))
        };
        let rest = name.strip_prefix("base_model.model.").ok_or_else(unknown)?;
        if config.score_head.is_some() && [SCORE_HEAD, SCORE_BIAS].contains(&rest) {
            continue;
        }
        // Older releases of PEFT end the magnitude's name in `.weight`.
        let split = |suffix: &str| rest.strip_suffix(suffix);
        let (module, slot): (&str, fn(&mut Parts) -> &mut Option<String>) =
            if let Some(m) = split(".lora_A.weight") {
                (m, |p| &mut p.a)
            } else if let Some(m) = split(".lora_B.weight") {
                (m, |p| &mut p.b)
            } else if let Some(m) =
                split(".lora_magnitude_vector").or_else(|| split(".lora_magnitude_vector.weight"))
            {
                (m, |p| &mut p.magnitude)
            } else {
                return Err(unknown());
            };
        *slot(parts.entry(module.to_owned()).or_default()) = Some(name.to_owned());
    }
    for (module, part) in &parts {
        let missing = match part {
            Parts { a: None, .. } => "lora_A.weight",
            Parts { b: None, .. } => "lora_B.weight",
            Parts { magnitude: None, .. } if config.lora.dora => "lora_magnitude_vector",
            Parts { magnitude: Some(_), .. } if !config.lora.dora => {
                let problem = format!("`{module}` has a magnitude, but use_dora is false in {CONFIG}");
                return Err(ModelError::adapter(problem));
            }
            _ => continue,
        };
        let problem = format!("{}: `{module}` has no {missing}; the file is incomplete", file.path.display());
        return Err(ModelError::adapter(problem));
    }
    if parts.is_empty() {
        return Err(ModelError::adapter(format!("{} holds no tensors", file.path.display())));
    }
    Ok(parts)
}

fn read_layer(
    file: &mut WeightFile,
    linear: &Linear,
    parts: &Parts,
    config: &PeftConfig,
) -> Result<LayerAdapter> {
    let rank = config.rank_of(&linear.name);
    let mut read = |name: &Option<String>, shape: &[usize]| -> Result<Vec<f32>> {
        let name = name.as_ref().expect("sort_tensors found all parts");
        file.expect_shape(name, shape)?;
        Ok(file.values::<f32>(name)?.to_vec())
    };
    Ok(LayerAdapter {
        a: read(&parts.a, &[rank, linear.n_in])?,
        b: read(&parts.b, &[linear.n_out, rank])?,
        magnitude: config.lora.dora.then(|| read(&parts.magnitude, &[linear.n_out])).transpose()?,
        rank,
        scale: scale_of(config.alpha_of(&linear.name), rank, config.lora.rslora),
        dropout: config.lora.dropout as f32,
    })
}
