//! AdamW with both moments in 8 bits: 2 bytes a parameter instead of 8.
//!
//! The rule is that of [`crate::adamw`]; after each step m is stored through the signed dynamic map
//! and v through the unsigned one, in blocks of 256 with one `f32` scale each. The parameter is updated
//! from the moments before they are rounded. Source: Dettmers et al. 2022, "8-bit optimizers via
//! block-wise quantization" (arXiv:2110.02861), section 2. As in bitsandbytes, parameters of fewer than
//! 4096 elements keep `f32` moments. Unlike its CPU kernel (0.50), codes are the nearest ones.

use crate::adamw::{
    AdamwConfig, AdamwState, BETA1, BETA2, BF16_PARAMS, Bf16Params, EPS, Layout, Rule, WEIGHT_DECAY,
};
use crate::catalogue::{OptimiserInfo, parse};
use crate::storage::Kind;
use crate::{OptimError, Optimiser, ParamSpec, ParamState};
use pt_engine::Array;
use serde::{Deserialize, Serialize};

/// The catalogue's entry.
pub(crate) const INFO: OptimiserInfo = OptimiserInfo {
    name: "adamw8bit",
    summary: "AdamW with both moments in 8 bits, block-wise",
    source: "Dettmers et al. 2022, arXiv:2110.02861",
    options: &[BETA1, BETA2, EPS, WEIGHT_DECAY, BF16_PARAMS],
    build: |options, seed| Ok(Box::new(Adamw8bit::new(parse("adamw8bit", options)?, seed)?)),
};

/// Parameters smaller than this keep `f32` moments.
pub const MIN_ELEMENTS: usize = 4096;

/// Options of 8-bit AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adamw8bitConfig {
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub eps: f64,
    /// λ.
    pub weight_decay: f64,
    /// Treatment of `bf16` parameters.
    pub bf16_params: Bf16Params,
}

impl Default for Adamw8bitConfig {
    fn default() -> Self {
        let AdamwConfig { beta1, beta2, eps, weight_decay, bf16_params, .. } = AdamwConfig::default();
        Adamw8bitConfig { beta1, beta2, eps, weight_decay, bf16_params }
    }
}

/// AdamW with 8-bit moments.
#[derive(Clone, Debug)]
pub struct Adamw8bit {
    rule: Rule,
    bf16_params: Bf16Params,
    seed: u64,
}

impl Adamw8bit {
    /// 8-bit AdamW with these options; `seed` keys random rounding.
    ///
    /// # Errors
    /// [`OptimError::Option`] for a value out of range.
    pub fn new(config: Adamw8bitConfig, seed: u64) -> Result<Adamw8bit, OptimError> {
        let Adamw8bitConfig { beta1, beta2, eps, weight_decay, bf16_params } = config;
        let rule = Rule::new(&AdamwConfig { beta1, beta2, eps, weight_decay, ..AdamwConfig::default() });
        rule.check("adamw8bit")?;
        Ok(Adamw8bit { rule, bf16_params, seed })
    }

    fn layout(&self, n: usize) -> Layout {
        let small = n < MIN_ELEMENTS;
        let kind = |signed| if small { Kind::F32 } else { Kind::Dynamic8 { signed } };
        Layout { m: kind(true), v: kind(false), bf16_params: self.bf16_params }
    }
}

impl Optimiser for Adamw8bit {
    fn name(&self) -> &'static str {
        "adamw8bit"
    }

    fn state(&self, spec: &ParamSpec, values: &Array) -> Box<dyn ParamState> {
        Box::new(AdamwState::new(self.rule, self.layout(spec.len()), self.seed, spec, values))
    }

    fn state_bytes(&self, spec: &ParamSpec, bf16: bool) -> usize {
        self.layout(spec.len()).bytes(spec.len(), bf16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Golden, gap, matrix, run_f32};
    use crate::{StateDtype, StateTensor};

    #[test]
    fn the_catalogue_lists_the_defaults() {
        crate::catalogue::check_defaults(INFO.options, &Adamw8bitConfig::default());
    }

    /// Six steps of bitsandbytes' AdamW8bit, codes rounded to nearest.
    #[test]
    fn equals_bitsandbytes() {
        let golden = Golden::open("adamw8bit.safetensors");
        let spec = matrix(&golden.shape("start"));
        let mut param = golden.floats("start");
        let config = Adamw8bitConfig { weight_decay: 0.1, ..Adamw8bitConfig::default() };
        let mut state = Adamw8bit::new(config, 1).unwrap().state(&spec, &Array::from_f32(&param));
        run_f32(&mut *state, &mut param, &golden.floats("grads"), 1e-2);
        let tensors = state.export();
        let find = |name: &str| tensors.iter().find(|t| t.name == name).unwrap();
        for (ours, theirs) in [("exp_avg", "1"), ("exp_avg_sq", "2")] {
            let codes = golden.bytes(&format!("state{theirs}"));
            let differ = find(ours).bytes.iter().zip(&codes).filter(|(a, b)| a != b).count();
            // Only values that rounding of the last bit carries over a midpoint.
            assert!(differ * 1000 <= codes.len(), "{ours}: {differ} of {} codes differ", codes.len());
            let scales = golden.floats(&format!("absmax{theirs}"));
            for (ours, theirs) in floats(find(&format!("{ours}_scale"))).iter().zip(&scales) {
                assert!((ours - theirs).abs() <= 1e-5 * theirs, "{ours} against {theirs}");
            }
        }
        let close = param.iter().zip(golden.floats("final")).filter(|(a, b)| (**a - b).abs() < 1e-6).count();
        assert!(close * 1000 >= param.len() * 999, "{close} of {} weights are equal", param.len());
    }

    fn floats(tensor: &StateTensor) -> Vec<f32> {
        assert_eq!(tensor.dtype, StateDtype::F32);
        tensor.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    #[test]
    fn small_parameters_are_plain_adamw() {
        let spec = matrix(&[63, 65]);
        let grads = crate::testing::normals(spec.len() * 3, "g");
        let run = |optimiser: &dyn Optimiser| {
            let mut param = vec![0.5; spec.len()];
            run_f32(&mut *optimiser.state(&spec, &Array::from_f32(&param)), &mut param, &grads, 1e-3);
            param
        };
        let eight = run(&Adamw8bit::new(Adamw8bitConfig::default(), 1).unwrap());
        let plain = run(&crate::adamw::Adamw::new(AdamwConfig::default(), 1).unwrap());
        assert_eq!(gap(&eight, &plain), 0.0);
    }
}
