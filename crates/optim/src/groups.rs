//! Which parameters decay and which learn faster.

use serde::{Deserialize, Serialize};

/// What a parameter is to its model, as far as optimisers care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A weight matrix inside the model.
    Hidden,
    /// The token embedding, also when it serves as the head.
    Embedding,
    /// The output head.
    Head,
    /// A norm's scale, a bias, a DoRA magnitude.
    Vector,
    /// The factor A of an adapter.
    LoraA,
    /// The factor B of an adapter, which starts at zero.
    LoraB,
}

/// A parameter and its place in the parameter groups.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Its name: the key of random rounding and of saved state.
    pub name: String,
    /// Its shape, outermost first.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: Role,
    /// Multiplies the learning rate.
    pub lr_scale: f64,
    /// Whether weight decay applies.
    pub decay: bool,
}

impl ParamSpec {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The rules that put parameters into groups.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Groups {
    /// Learning rate of B over that of A (LoRA+, Hayou et al. 2024, arXiv:2402.12354; the paper
    /// suggests 16). Default 1: the same.
    pub lora_plus_ratio: f64,
    /// Decay one-dimensional parameters (norms and biases) too. Default false, as transformers' Trainer.
    pub decay_1d: bool,
}

impl Default for Groups {
    fn default() -> Self {
        Groups { lora_plus_ratio: 1.0, decay_1d: false }
    }
}

impl Groups {
    /// The parameter with the learning-rate factor and decay these rules give it.
    pub fn spec(&self, name: impl Into<String>, shape: &[usize], role: Role) -> ParamSpec {
        let lr_scale = if role == Role::LoraB { self.lora_plus_ratio } else { 1.0 };
        let decay = self.decay_1d || shape.len() > 1;
        ParamSpec { name: name.into(), shape: shape.to_vec(), role, lr_scale, decay }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_apply_by_shape_and_role() {
        let groups = Groups { lora_plus_ratio: 16.0, decay_1d: false };
        let cases: [(&[usize], Role, f64, bool); 4] = [
            (&[4, 4], Role::Hidden, 1.0, true),
            (&[4], Role::Vector, 1.0, false),
            (&[2, 4], Role::LoraA, 1.0, true),
            (&[4, 2], Role::LoraB, 16.0, true),
        ];
        for (shape, role, lr_scale, decay) in cases {
            let spec = groups.spec("p", shape, role);
            assert_eq!((spec.lr_scale, spec.decay), (lr_scale, decay), "{role:?}");
        }
        assert!(Groups { decay_1d: true, ..groups }.spec("p", &[4], Role::Vector).decay);
    }
}
