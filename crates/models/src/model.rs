//! A model: its parameters, and the architecture that uses them.

use pt_engine::{Dtype, Linear, LogprobOptions, ParamId, Params, ScoreWeights, Tape, Var};
use serde_json::Value;

use crate::adapter::Adapter;
use crate::builder::{Builder, WeightSource};
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::load::{Quantise, quantised};
use crate::score_head::ScoreHeadKind;

/// A causal language model's forward pass over parameters kept elsewhere.
///
/// An architecture holds ids and sizes only, so that it and the parameters can be borrowed separately: the tape
/// borrows both, the optimiser changes one.
pub trait CausalLm: std::fmt::Debug + Send + Sync {
    /// Final hidden states `[T, hidden]` of the tape's batch, after the last normalisation.
    ///
    /// With `recompute`, each block keeps only its input and runs again in backward.
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, recompute: bool) -> Var;

    /// The output layer `[vocabulary, hidden]`; the embedding where the two are tied.
    fn head(&self) -> ParamId;

    /// How logits come from the head's products, at temperature 1.
    fn logprob_options(&self) -> LogprobOptions;

    /// All linear layers but the head, in the order they run.
    fn linears(&self) -> Vec<&Linear>;

    /// The same, to change.
    fn linears_mut(&mut self) -> Vec<&mut Linear>;

    /// Width of the keys of each layer, which is that of its values: `kv_heads * head_dim`.
    fn kv_widths(&self) -> Vec<usize>;
}

/// A language model with its weights.
#[derive(Debug)]
pub struct Model {
    /// Values; adapters come after the base model's.
    pub params: Params,
    /// The forward pass.
    pub arch: Box<dyn CausalLm>,
    /// The configuration it was built from.
    pub config: ModelConfig,
    /// `generation_config.json`, if the directory had one.
    pub generation_config: Option<Value>,
    pub(crate) adapter: Option<Adapter>,
    pub(crate) score_head: Option<(ScoreWeights, ScoreHeadKind)>,
}

impl Model {
    /// Builds the configured architecture with values from `source`. Nothing trains yet.
    ///
    /// # Errors
    /// Those of the source.
    pub fn build(config: ModelConfig, source: &mut dyn WeightSource) -> Result<Model> {
        let mut builder = Builder::new(source);
        let arch = config.build(&mut builder)?;
        Ok(Model {
            params: builder.params,
            arch,
            config,
            generation_config: None,
            adapter: None,
            score_head: None,
        })
    }

    /// The attached adapter.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// Lets every parameter train.
    ///
    /// # Errors
    /// [`ModelError::State`] if some are quantised, or if an adapter is attached, whose point is that they do not.
    pub fn train_all(&mut self) -> Result<()> {
        if self.adapter.is_some() {
            let problem =
                "an adapter is attached, and only the adapter trains; merge it first to train all weights";
            return Err(ModelError::State { problem: problem.to_owned() });
        }
        if let Some((_, param)) = self.params.iter().find(|(_, param)| param.weight.is_quantised()) {
            let problem = format!(
                "`{}` is stored as {}, which cannot train; attach an adapter, or load without quantisation",
                param.name,
                param.weight.dtype_name()
            );
            return Err(ModelError::State { problem });
        }
        self.params.iter_mut().for_each(|(_, param)| param.trainable = true);
        Ok(())
    }

    /// Lets nothing train.
    pub fn freeze(&mut self) {
        self.params.iter_mut().for_each(|(_, param)| param.trainable = false);
    }

    /// Stores the decoder's linear layers quantised from now on, as loading with [`crate::LoadOptions::quantise`] would.
    ///
    /// # Errors
    /// [`ModelError::State`] if an adapter is attached, or if a weight is not finite.
    pub fn quantise(&mut self, how: Quantise) -> Result<()> {
        if self.adapter.is_some() {
            let problem = "an adapter is attached; quantise before attaching, or merge it first";
            return Err(ModelError::State { problem: problem.to_owned() });
        }
        let weights: Vec<ParamId> = self.arch.linears().iter().map(|linear| linear.weight).collect();
        for id in weights {
            let param = self.params.get_mut(id);
            if param.weight.is_quantised() {
                continue;
            }
            let packed = quantised(&param.weight.to_f32(), param.shape[0], param.shape[1], how)
                .map_err(|error| ModelError::State { problem: format!("`{}`: {error}", param.name) })?;
            param.set_weight(packed);
            param.trainable = false;
        }
        Ok(())
    }

    /// Bytes of all weights as stored in memory.
    pub fn weight_bytes(&self) -> usize {
        self.params.iter().map(|(_, param)| param.weight.bytes()).sum()
    }
}

/// The name of a floating-point type in `config.json`.
pub(crate) fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::Bf16 => "bfloat16",
    }
}
