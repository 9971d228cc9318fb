//! Declaring the parameters of an architecture, and where their values come from.
//!
//! An architecture names each of its tensors once, with shape and role. The same declaration serves the loader, the
//! random initialiser, the importer and the planner: they differ in their [`WeightSource`].

use pt_engine::{DeviceRef, Linear, Param, ParamId, Params, Weight};

use crate::error::Result;

/// What a tensor is for, which decides how it is stored and initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Token embedding, perhaps also the head.
    Embedding,
    /// Output layer over the vocabulary.
    Head,
    /// Gain of a normalisation.
    Norm,
    /// Weight of a linear layer inside the decoder; the only role that may be quantised.
    Linear,
    /// Bias of a linear layer.
    Bias,
}

/// A tensor an architecture has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// Name in the checkpoint.
    pub name: String,
    /// `[out, in]` for matrices, `[n]` for vectors.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
}

impl ParamSpec {
    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Gives the values of declared tensors.
pub trait WeightSource {
    /// The values of `spec`, of its shape.
    ///
    /// # Errors
    /// Whatever the source finds wrong.
    fn weight(&mut self, spec: &ParamSpec) -> Result<Weight>;

    /// Where they are placed, each as soon as it is given.
    fn device(&self) -> DeviceRef {
        DeviceRef::cpu()
    }
}

/// Collects the parameters an architecture declares.
pub struct Builder<'a> {
    pub(crate) params: Params,
    source: &'a mut dyn WeightSource,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(source: &'a mut dyn WeightSource) -> Builder<'a> {
        Builder { params: Params::on(source.device()), source }
    }

    /// A token embedding `[vocabulary, width]`.
    ///
    /// # Errors
    /// Those of the source, as for all declarations here.
    pub fn embedding(&mut self, name: &str, vocabulary: usize, width: usize) -> Result<ParamId> {
        self.add(name.to_owned(), vec![vocabulary, width], Role::Embedding)
    }

    /// A head `[vocabulary, width]`.
    ///
    /// # Errors
    /// Those of the source.
    pub fn head(&mut self, name: &str, vocabulary: usize, width: usize) -> Result<ParamId> {
        self.add(name.to_owned(), vec![vocabulary, width], Role::Head)
    }

    /// A gain `[width]`.
    ///
    /// # Errors
    /// Those of the source.
    pub fn norm(&mut self, name: &str, width: usize) -> Result<ParamId> {
        self.add(name.to_owned(), vec![width], Role::Norm)
    }

    /// A linear layer `name.weight` `[n_out, n_in]`, with `name.bias` `[n_out]` if it has one.
    ///
    /// # Errors
    /// Those of the source.
    pub fn linear(&mut self, name: &str, n_out: usize, n_in: usize, has_bias: bool) -> Result<Linear> {
        let weight = self.add(format!("{name}.weight"), vec![n_out, n_in], Role::Linear)?;
        let bias = match has_bias {
            true => Some(self.add(format!("{name}.bias"), vec![n_out], Role::Bias)?),
            false => None,
        };
        Ok(Linear { name: name.to_owned(), weight, bias, n_in, n_out, lora: None })
    }

    fn add(&mut self, name: String, shape: Vec<usize>, role: Role) -> Result<ParamId> {
        let spec = ParamSpec { name, shape, role };
        let weight = self.source.weight(&spec)?;
        Ok(self.params.add(Param { name: spec.name, shape: spec.shape, weight, trainable: false }))
    }
}

/// Notes what is declared and gives nothing.
#[derive(Default)]
pub(crate) struct Inventory {
    pub(crate) specs: Vec<ParamSpec>,
}

impl WeightSource for Inventory {
    fn weight(&mut self, spec: &ParamSpec) -> Result<Weight> {
        self.specs.push(spec.clone());
        Ok(Weight::from_f32(&[]))
    }
}
