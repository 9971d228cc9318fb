//! Folding an adapter into the weights it was trained on.
//!
//! `W' = W + s B A`; with DoRA each row is scaled to its magnitude, `W'_n = m_n (W + s B A)_n / ||(W + s B A)_n||`.
//! A quantised `W` is decoded to the values that products in training used, which are rounded to `bf16` whatever the
//! type of the activations: merging into the original, unquantised weights would give a model that was never trained.
//! The result is floating point; quantise again by loading it so.

use pt_engine::{Dtype, Linear, Param, ParamId, Params, Storage, Weight};
use rayon::prelude::*;

use super::row_norms;
use crate::error::{ModelError, Result};
use crate::init::float_weight;
use crate::model::Model;

impl Model {
    /// Merges the attached adapter and removes it. Quantised layers become `dtype`, others keep their type.
    ///
    /// # Errors
    /// [`ModelError::State`] if no adapter is attached.
    pub fn merge_adapter(&mut self, dtype: Dtype) -> Result<()> {
        if self.adapter.take().is_none() {
            return Err(ModelError::State {
                problem: "no adapter is attached, so there is nothing to merge".to_owned(),
            });
        }
        let targets: Vec<Linear> =
            self.arch.linears().into_iter().filter(|l| l.lora.is_some()).cloned().collect();
        for linear in &targets {
            let merged = self.merged_weight(linear, dtype);
            self.params.get_mut(linear.weight).set_weight(merged);
        }
        self.drop_adapter_params(&targets);
        Ok(())
    }

    fn merged_weight(&mut self, linear: &Linear, quantised_to: Dtype) -> Weight {
        let lora = linear.lora.as_ref().expect("a layer with an adapter");
        let [a, b] = [lora.a, lora.b].map(|id| self.params.get(id).weight.to_f32());
        let updated = |model: &Model| model.updated_weight(linear, &a, &b, lora.rank, lora.scale);
        // Training takes the norms of the decoded values before they are rounded for products.
        let factors = lora.magnitude.map(|id| {
            let magnitude = self.params.get(id).weight.to_f32();
            let norms = row_norms(&updated(self), linear.n_in);
            magnitude.iter().zip(norms).map(|(m, norm)| m / norm).collect::<Vec<f32>>()
        });
        let base = &self.params.get(linear.weight).weight;
        let dtype = match base.storage() {
            Storage::F32 => Dtype::F32,
            Storage::Bf16 => Dtype::Bf16,
            _ => {
                let decoded = Weight::bf16_from_f32(&base.to_f32());
                self.params.get_mut(linear.weight).set_weight(decoded);
                quantised_to
            }
        };
        let mut weight = updated(self);
        if let Some(factors) = factors {
            let rows = weight.par_chunks_mut(linear.n_in).zip(factors);
            rows.for_each(|(row, factor)| row.iter_mut().for_each(|w| *w *= factor));
        }
        float_weight(&weight, dtype)
    }

    /// Adapters were declared last, so the ids of the base model's parameters stay. Only a score head may stand behind them.
    fn drop_adapter_params(&mut self, targets: &[Linear]) {
        let first = targets.iter().filter_map(|l| l.lora.as_ref()).map(|lora| lora.a.index()).min();
        let n_base = first.unwrap_or(self.params.len());
        let mut params = Params::on(self.params.device());
        let of_head = self.score_head();
        let is_of_head = |id: ParamId| of_head.is_some_and(|head| head.weight == id || head.bias == Some(id));
        for (id, param) in self.params.iter_mut().filter(|(id, _)| id.index() < n_base || is_of_head(*id)) {
            let moved = params.add(Param {
                name: std::mem::take(&mut param.name),
                shape: std::mem::take(&mut param.shape),
                weight: std::mem::replace(&mut param.weight, Weight::from_f32(&[])),
                trainable: param.trainable,
            });
            match (of_head, &mut self.score_head) {
                (Some(old), Some((head, _))) if old.weight == id => head.weight = moved,
                (Some(old), Some((head, _))) if old.bias == Some(id) => head.bias = Some(moved),
                _ => {}
            }
        }
        self.params = params;
        self.arch.linears_mut().into_iter().for_each(|linear| linear.lora = None);
    }
}
