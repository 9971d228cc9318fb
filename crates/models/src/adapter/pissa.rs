//! Starting an adapter from the leading singular vectors of its layer (PiSSA).
//!
//! Source: Meng et al. 2024, arXiv:2404.02948, eqs. 2 to 4: `A = sqrt(S_r) V_r^T / sqrt(s)`, `B = U_r sqrt(S_r) / sqrt(s)`,
//! and the frozen weight becomes `W - s B A`.

use pt_core::rng::Stream;
use pt_engine::{Host, Linear, Storage, Weight};
use pt_kernels::quant::QuantError;
use pt_kernels::quant::nf4::{Nf4Matrix, Scales};

use super::{LayerAdapter, LoraConfig, svd};
use crate::error::{ModelError, Result};
use crate::load::{Quantise, quantised};
use crate::model::Model;

impl Model {
    /// PiSSA: `B A` is the best approximation of `W / s` of its rank, and `W` becomes what is left. A quantised base is
    /// quantised again, so there `W + s B A` changes by that rounding (as in QPiSSA, section 4).
    pub(super) fn start_from_singular_vectors(
        &mut self,
        linear: &Linear,
        layer: &mut LayerAdapter,
        seed: u64,
    ) -> Result<()> {
        let weight = self.params.get(linear.weight).weight.to_f32();
        let stream = Stream::new(seed, &format!("pissa/{}", linear.name));
        let svd = svd::leading(&weight, linear.n_out, linear.n_in, layer.rank, &stream);
        for (k, sigma) in svd.sigma.iter().enumerate() {
            let root = (sigma / f64::from(layer.scale)).sqrt();
            (0..linear.n_in)
                .for_each(|j| layer.a[k * linear.n_in + j] = (svd.v[k * linear.n_in + j] * root) as f32);
            (0..linear.n_out)
                .for_each(|i| layer.b[i * layer.rank + k] = (svd.u[k * linear.n_out + i] * root) as f32);
        }
        let rest = self.updated_weight(linear, &layer.a, &layer.b, layer.rank, -layer.scale);
        let rest = stored_like(&self.params.get(linear.weight).weight, &rest, linear).map_err(|source| {
            ModelError::adapter(format!("`{}` cannot be quantised again after PiSSA: {source}", linear.name))
        })?;
        self.params.get_mut(linear.weight).set_weight(rest);
        Ok(())
    }
}

pub(super) fn check(config: &LoraConfig, targets: &[Linear]) -> Result<()> {
    match targets.iter().find(|linear| linear.n_in.min(linear.n_out) < config.rank) {
        None => Ok(()),
        Some(linear) => Err(ModelError::adapter(format!(
            "PiSSA of rank {} needs matrices at least that wide, and `{}` is [{}, {}]",
            config.rank, linear.name, linear.n_out, linear.n_in
        ))),
    }
}

/// `values` in the storage type of `like`.
fn stored_like(like: &Weight, values: &[f32], linear: &Linear) -> std::result::Result<Weight, QuantError> {
    let requantise = |how| quantised(values, linear.n_out, linear.n_in, how);
    match like.storage() {
        Storage::F32 => Ok(Weight::from_f32(values)),
        Storage::Bf16 => Ok(Weight::bf16_from_f32(values)),
        Storage::Nf4 => {
            let nested = |matrix: &Nf4Matrix| matches!(matrix.scales(), Scales::Nested(_));
            let double = matches!(&*like.to_host(), Host::Nf4(matrix) if nested(matrix));
            requantise(Quantise::Nf4 { double })
        }
        Storage::Int8 => requantise(Quantise::Int8),
        Storage::U8 => unreachable!("bytes are no weights"),
    }
}
