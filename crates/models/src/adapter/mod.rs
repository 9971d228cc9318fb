//! Low-rank adapters: attaching them to a model. [`peft`] reads and writes them, [`merge`] folds them in.
//!
//! A target layer `y = x W^T` becomes `y = x W^T + s (x A^T) B^T` with `A` `[rank, n_in]`, `B` `[n_out, rank]` and
//! `s = alpha / rank` (Hu et al. 2021, arXiv:2106.09685), or `alpha / sqrt(rank)` for rsLoRA (Kalajdzievski 2023,
//! arXiv:2312.03732). Adapters are `f32` and train; everything else is frozen.

pub mod merge;
pub mod peft;
mod peft_config;
mod pissa;
mod svd;

pub use peft_config::PeftConfig;

use pt_core::rng::Stream;
use pt_engine::{Linear, Lora, Param, ParamId, Weight};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};
use crate::init::fill_random;
use crate::model::Model;

/// An adapter as a recipe describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Inner width.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Probability with which an input of the adapter is dropped in training.
    #[serde(default)]
    pub dropout: f64,
    /// Which linear layers.
    #[serde(default)]
    pub targets: Targets,
    /// Divide by the square root of the rank.
    #[serde(default)]
    pub rslora: bool,
    /// Train the norm of each row apart (DoRA, Liu et al. 2024, arXiv:2402.09353).
    #[serde(default)]
    pub dora: bool,
    /// Where `A` and `B` start.
    #[serde(default)]
    pub init: LoraInit,
}

/// Which linear layers an adapter is attached to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected \"all-linear\" or a list of layer names")]
pub enum Targets {
    /// A word; only `all-linear`, every linear layer but the head.
    Word(AllLinear),
    /// Names, each a module's whole path or its end: `q_proj`, `self_attn.q_proj`, `model.layers.0.mlp.up_proj`.
    Names(Vec<String>),
}

impl Default for Targets {
    fn default() -> Self {
        Targets::Word(AllLinear::AllLinear)
    }
}

/// The word for every linear layer but the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllLinear {
    /// Every linear layer but the head.
    #[serde(rename = "all-linear")]
    AllLinear,
}

/// Where `A` and `B` start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraInit {
    /// `A` uniform in `±1/sqrt(n_in)` (Kaiming with a = sqrt 5, as PEFT), `B` zero: the model starts unchanged.
    #[default]
    Default,
    /// The leading singular vectors of `W`, the rest of `W` staying frozen (Meng et al. 2024, arXiv:2404.02948, eqs. 2
    /// to 4). The base model's weights change, so such an adapter is saved relative to the weights before.
    Pissa,
}

/// An adapter attached to a model.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// How it was described, or read.
    pub config: LoraConfig,
    /// For PiSSA, `A` and `B` at the start, by layer: what must be subtracted to be relative to the original weights.
    pub(crate) pissa: Vec<PissaStart>,
}

#[derive(Clone, Debug)]
pub(crate) struct PissaStart {
    pub(crate) module: String,
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
}

impl LoraConfig {
    /// The factor of the update.
    pub fn scale(&self) -> f32 {
        scale_of(self.alpha, self.rank, self.rslora)
    }

    fn check(&self) -> Result<()> {
        let bad = |what: String| Err(ModelError::adapter(what));
        if self.rank == 0 {
            return bad("rank is 0; expected at least 1".into());
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return bad(format!("alpha is {}; expected a number above 0", self.alpha));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad(format!("dropout is {}; expected at least 0 and less than 1", self.dropout));
        }
        Ok(())
    }
}

pub(crate) fn scale_of(alpha: f64, rank: usize, rslora: bool) -> f32 {
    let rank = rank as f64;
    (alpha / if rslora { rank.sqrt() } else { rank }) as f32
}

impl Targets {
    /// Whether `module` is meant.
    pub fn matches(&self, module: &str) -> bool {
        match self {
            Targets::Word(AllLinear::AllLinear) => true,
            Targets::Names(names) => names.iter().any(|name| is_path_end(module, name)),
        }
    }
}

/// Whether `name` is `module` or its last components.
pub(crate) fn is_path_end(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

/// The parameters' names in an adapter file.
pub(crate) fn name_a(module: &str) -> String {
    format!("base_model.model.{module}.lora_A.weight")
}

pub(crate) fn name_b(module: &str) -> String {
    format!("base_model.model.{module}.lora_B.weight")
}

pub(crate) fn name_magnitude(module: &str) -> String {
    format!("base_model.model.{module}.lora_magnitude_vector")
}

/// Values of one layer's adapter, about to be attached.
pub(crate) struct LayerAdapter {
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
    pub(crate) magnitude: Option<Vec<f32>>,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
    pub(crate) dropout: f32,
}

impl Model {
    /// Attaches a new adapter, freezing everything else. `A` draws from streams named after the layers, so it depends
    /// on the seed and the layer only.
    ///
    /// # Errors
    /// [`ModelError::Adapter`] for targets that match no layer and for values out of range; [`ModelError::State`] if
    /// one is attached already.
    pub fn attach_lora(&mut self, config: &LoraConfig, seed: u64) -> Result<()> {
        config.check()?;
        self.expect_no_adapter()?;
        let targets: Vec<Linear> = self.targets(&config.targets)?;
        if config.init == LoraInit::Pissa {
            pissa::check(config, &targets)?;
        }
        self.freeze();
        let mut pissa = Vec::new();
        for linear in &targets {
            let mut layer = self.new_layer(linear, config, seed)?;
            if config.init == LoraInit::Pissa {
                self.start_from_singular_vectors(linear, &mut layer, seed)?;
                pissa.push(PissaStart {
                    module: linear.name.clone(),
                    a: layer.a.clone(),
                    b: layer.b.clone(),
                });
            }
            if config.dora {
                let norms = row_norms(
                    &self.updated_weight(linear, &layer.a, &layer.b, layer.rank, layer.scale),
                    linear.n_in,
                );
                layer.magnitude = Some(norms);
            }
            self.attach_layer(&linear.name, layer);
        }
        self.adapter = Some(Adapter { config: config.clone(), pissa });
        Ok(())
    }

    pub(crate) fn expect_no_adapter(&self) -> Result<()> {
        match &self.adapter {
            None => Ok(()),
            Some(_) => Err(ModelError::State {
                problem: "an adapter is attached already; merge it before attaching another".to_owned(),
            }),
        }
    }

    fn targets(&self, targets: &Targets) -> Result<Vec<Linear>> {
        let linears = self.arch.linears();
        if let Targets::Names(names) = targets {
            if names.is_empty() {
                return Err(ModelError::adapter(
                    "targets is an empty list; expected names, or \"all-linear\"",
                ));
            }
            for name in names {
                if !linears.iter().any(|linear| is_path_end(&linear.name, name)) {
                    return Err(ModelError::adapter(format!(
                        "target `{name}` matches no linear layer; {}",
                        pt_core::suggest::hint(name, &last_names(&linears))
                    )));
                }
            }
        }
        Ok(linears.into_iter().filter(|linear| targets.matches(&linear.name)).cloned().collect())
    }

    fn new_layer(&self, linear: &Linear, config: &LoraConfig, seed: u64) -> Result<LayerAdapter> {
        let mut a = vec![0.0; config.rank * linear.n_in];
        let bound = 1.0 / (linear.n_in as f64).sqrt();
        let stream = Stream::new(seed, &format!("lora/{}", linear.name));
        fill_random(&mut a, &stream, |draws| (2.0 * draws.uniform() - 1.0) * bound);
        Ok(LayerAdapter {
            a,
            b: vec![0.0; linear.n_out * config.rank],
            magnitude: None,
            rank: config.rank,
            scale: config.scale(),
            dropout: config.dropout as f32,
        })
    }

    /// `W + scale B A` in `f32`.
    pub(crate) fn updated_weight(
        &self,
        linear: &Linear,
        a: &[f32],
        b: &[f32],
        rank: usize,
        scale: f32,
    ) -> Vec<f32> {
        let mut weight = self.params.get(linear.weight).weight.to_f32();
        add_product(&mut weight, a, b, rank, linear.n_in, scale);
        weight
    }

    pub(crate) fn attach_layer(&mut self, module: &str, layer: LayerAdapter) {
        let mut linears = self.arch.linears_mut();
        let linear = linears.iter_mut().find(|linear| linear.name == module).expect("a layer of this model");
        let mut add = |name: String, shape: Vec<usize>, values: &[f32]| -> ParamId {
            self.params.add(Param { name, shape, weight: Weight::from_f32(values), trainable: true })
        };
        let a = add(name_a(module), vec![layer.rank, linear.n_in], &layer.a);
        let b = add(name_b(module), vec![linear.n_out, layer.rank], &layer.b);
        let magnitude = layer.magnitude.map(|m| add(name_magnitude(module), vec![linear.n_out], &m));
        linear.lora =
            Some(Lora { a, b, rank: layer.rank, scale: layer.scale, dropout: layer.dropout, magnitude });
    }
}

/// The distinct last components of the layers' names.
pub(crate) fn last_names<'a>(linears: &[&'a Linear]) -> Vec<&'a str> {
    let mut names: Vec<&str> = linears.iter().filter_map(|linear| linear.name.rsplit('.').next()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// `weight += scale b a`, each element's sum over the rank in `f64`.
fn add_product(weight: &mut [f32], a: &[f32], b: &[f32], rank: usize, n_in: usize, scale: f32) {
    weight.par_chunks_mut(n_in).zip(b.par_chunks(rank)).for_each(|(row, b)| {
        let mut sums = vec![0.0f64; n_in];
        for (b, a) in b.iter().zip(a.chunks_exact(n_in)) {
            let b = f64::from(*b);
            sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * f64::from(*a));
        }
        for (w, sum) in row.iter_mut().zip(sums) {
            *w = (f64::from(*w) + f64::from(scale) * sum) as f32;
        }
    });
}

/// Euclidean norm of each row.
pub(crate) fn row_norms(weight: &[f32], n_in: usize) -> Vec<f32> {
    let norm = |row: &[f32]| row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>().sqrt() as f32;
    weight.par_chunks(n_in).map(norm).collect()
}

#[cfg(test)]
mod tests;
