//! Muon: momentum, orthogonalised, for weight matrices; AdamW for everything else.
//!
//! ```text
//! b ← b + (1 − μ)(g − b)          u = g + μ (b − g)  (Nesterov; otherwise u = b)
//! p ← (1 − η λ) p − η s(rows, cols) · NewtonSchulz(u)
//! ```
//!
//! Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon), in the arithmetic of
//! `torch.optim.Muon`, but orthogonalised in `f32` where PyTorch uses `bf16`. The factor s is
//! `0.2 √max(rows, cols)` by default, which makes the update as large as AdamW's so that both share a
//! learning rate (Liu et al. 2025, "Muon is scalable for LLM training", arXiv:2502.16982, equation 4),
//! or `√max(1, rows / cols)` ("original").
//!
//! Matrices inside the model and the factors of adapters take Muon; embeddings, the head and vectors
//! take AdamW with the options under `adamw`.

use crate::adamw::{Adamw, AdamwConfig, Bf16Params, master};
use crate::catalogue::{OptimiserInfo, OptionInfo, check_keys, parse};
use crate::error::require;
use crate::newton_schulz::orthogonalise;
use crate::state::{Saved, StateTensor};
use crate::storage::{Kind, Noise, PIECE, Piece, Store, TILE};
use crate::{OptimError, Optimiser, ParamSpec, ParamState, Role, Step};
use pt_engine::{Array, Kernel};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The catalogue's entry.
pub(crate) const INFO: OptimiserInfo = OptimiserInfo {
    name: "muon",
    summary: "orthogonalised momentum for weight matrices, AdamW for the rest",
    source: "Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982",
    options: OPTIONS,
    build,
};

const OPTIONS: &[OptionInfo] = &[
    OptionInfo {
        name: "momentum",
        kind: "number in [0, 1)",
        default: "0.95",
        doc: "decay of the mean gradient",
    },
    OptionInfo { name: "nesterov", kind: "true or false", default: "true", doc: "look one step ahead" },
    OptionInfo {
        name: "weight_decay",
        kind: "number, at least 0",
        default: "0.1",
        doc: "times the learning rate, the part of a matrix removed each step",
    },
    OptionInfo { name: "ns_steps", kind: "1 to 99", default: "5", doc: "Newton-Schulz iterations" },
    OptionInfo {
        name: "adjust_lr",
        kind: "\"match_rms_adamw\" or \"original\"",
        default: "\"match_rms_adamw\"",
        doc: "size of the update by the matrix's shape",
    },
    OptionInfo {
        name: "bf16_params",
        kind: "\"master\" or \"stochastic\"",
        default: "\"master\"",
        doc: "bf16 weights: keep an f32 copy, or round at random so that the mean is exact",
    },
    OptionInfo {
        name: "adamw",
        kind: "table",
        default: "",
        doc: "options of AdamW for the other parameters",
    },
];

fn build(options: &toml::Table, seed: u64) -> Result<Box<dyn Optimiser>, OptimError> {
    if let Some(toml::Value::Table(inner)) = options.get("adamw") {
        check_keys("muon.adamw", crate::adamw::INFO.options, inner)?;
    }
    Ok(Box::new(Muon::new(parse("muon", options)?, seed)?))
}

/// How the update's size depends on the matrix's shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdjustLr {
    /// `0.2 √max(rows, cols)`.
    #[default]
    MatchRmsAdamw,
    /// `√max(1, rows / cols)`.
    Original,
}

/// Options of Muon.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MuonConfig {
    /// μ.
    pub momentum: f64,
    /// Nesterov's look-ahead.
    pub nesterov: bool,
    /// λ of matrices.
    pub weight_decay: f64,
    /// Newton–Schulz iterations.
    pub ns_steps: usize,
    /// The factor s.
    pub adjust_lr: AdjustLr,
    /// Treatment of `bf16` matrices.
    pub bf16_params: Bf16Params,
    /// AdamW for the rest.
    pub adamw: AdamwConfig,
}

impl Default for MuonConfig {
    fn default() -> Self {
        MuonConfig {
            momentum: 0.95,
            nesterov: true,
            weight_decay: 0.1,
            ns_steps: 5,
            adjust_lr: AdjustLr::MatchRmsAdamw,
            bf16_params: Bf16Params::Master,
            adamw: AdamwConfig::default(),
        }
    }
}

/// A momentum matrix of a norm below this is not scaled up further, as in PyTorch.
const NORM_EPS: f64 = 1e-7;

/// Muon.
#[derive(Clone, Debug)]
pub struct Muon {
    config: MuonConfig,
    adamw: Adamw,
    seed: u64,
}

impl Muon {
    /// Muon with these options; `seed` keys random rounding.
    ///
    /// # Errors
    /// [`OptimError::Option`] for a value out of range.
    pub fn new(config: MuonConfig, seed: u64) -> Result<Muon, OptimError> {
        let MuonConfig { momentum, weight_decay, ns_steps, .. } = config;
        let problem = || format!("momentum is {momentum}, expected at least 0 and below 1");
        require((0.0..1.0).contains(&momentum), "muon", problem)?;
        let problem = || format!("weight_decay is {weight_decay}, expected at least 0");
        require(weight_decay >= 0.0 && weight_decay.is_finite(), "muon", problem)?;
        require((1..100).contains(&ns_steps), "muon", || {
            format!("ns_steps is {ns_steps}, expected 1 to 99")
        })?;
        Ok(Muon { config, adamw: Adamw::new(config.adamw, seed)?, seed })
    }

    /// Whether a parameter takes Muon's update rather than AdamW's.
    pub fn applies_to(spec: &ParamSpec) -> bool {
        spec.shape.len() == 2 && matches!(spec.role, Role::Hidden | Role::LoraA | Role::LoraB)
    }
}

impl Optimiser for Muon {
    fn name(&self) -> &'static str {
        "muon"
    }

    fn state(&self, spec: &ParamSpec, values: &Array) -> Box<dyn ParamState> {
        if !Muon::applies_to(spec) {
            return self.adamw.state(spec, values);
        }
        Box::new(MuonState {
            config: self.config,
            seed: self.seed,
            momentum: Store::zeros(values.device(), Kind::F32, spec.len()),
            master: master(values, self.config.bf16_params),
            spec: spec.clone(),
        })
    }

    fn state_bytes(&self, spec: &ParamSpec, bf16: bool) -> usize {
        if !Muon::applies_to(spec) {
            return self.adamw.state_bytes(spec, bf16);
        }
        let master = bf16 && self.config.bf16_params == Bf16Params::Master;
        spec.len() * if master { 8 } else { 4 }
    }
}

struct MuonState {
    config: MuonConfig,
    seed: u64,
    spec: ParamSpec,
    momentum: Store,
    master: Option<Store>,
}

impl MuonState {
    fn shape_factor(&self) -> f64 {
        let (rows, cols) = (self.spec.shape[0] as f64, self.spec.shape[1] as f64);
        match self.config.adjust_lr {
            AdjustLr::MatchRmsAdamw => 0.2 * rows.max(cols).sqrt(),
            AdjustLr::Original => (rows / cols).max(1.0).sqrt(),
        }
    }
}

/// One step of a matrix.
struct MuonStep<'a> {
    config: &'a MuonConfig,
    rows: usize,
    cols: usize,
    /// Multiplies the gradient.
    grad_scale: f32,
    /// What is left of the matrix after decay.
    keep: f32,
    /// Size of the update.
    size: f32,
    noise: Noise,
    param: &'a mut Array,
    master: Option<&'a mut Store>,
    momentum: &'a mut Store,
    grad: &'a Array,
}

impl MuonStep<'_> {
    /// Updates the momentum and returns its orthogonalised direction.
    fn direction(&mut self) -> Vec<f32> {
        let MuonConfig { momentum, nesterov, ns_steps, .. } = *self.config;
        let (mix, ahead, scale) = ((1.0 - momentum) as f32, momentum as f32, self.grad_scale);
        let grad = self.grad.open().f32s();
        let mut update = vec![0.0; grad.len()];
        (
            update.par_chunks_mut(PIECE),
            self.momentum.f32s_mut().par_chunks_mut(PIECE),
            grad.par_chunks(PIECE),
        )
            .into_par_iter()
            .for_each(|(update, momentum, grad)| {
                for ((u, b), &g) in update.iter_mut().zip(momentum).zip(grad) {
                    let g = g * scale;
                    *b += mix * (g - *b);
                    *u = if nesterov { g + ahead * (*b - g) } else { *b };
                }
            });
        orthogonalise(&mut update, self.rows, self.cols, ns_steps, NORM_EPS);
        update
    }
}

impl Kernel for MuonStep<'_> {
    fn name(&self) -> &'static str {
        "muon"
    }

    fn cpu(&mut self) {
        let update = self.direction();
        let params = Piece::of_array(self.param);
        let mut masters = self.master.as_mut().map(|m| m.pieces()).unwrap_or_default().into_iter();
        for (i, (mut param, update)) in params.into_iter().zip(update.chunks(PIECE)).enumerate() {
            apply(i * PIECE, &mut param, masters.next(), update, self.keep, self.size, &self.noise);
        }
    }
}

impl ParamState for MuonState {
    fn step(&mut self, step: Step, param: &mut Array, grad: &Array) {
        assert!(step.t > 0, "steps count from 1");
        let n = self.spec.len();
        assert_eq!((grad.len(), param.len()), (n, n), "gradient and values of `{}`", self.spec.name);
        let lr = step.lr * self.spec.lr_scale;
        let decay = if self.spec.decay { self.config.weight_decay } else { 0.0 };
        let device = param.device();
        device.run(&mut MuonStep {
            rows: self.spec.shape[0],
            cols: self.spec.shape[1],
            grad_scale: step.grad_scale,
            keep: (1.0 - lr * decay) as f32,
            size: (lr * self.shape_factor()) as f32,
            noise: Noise::new(self.seed, &self.spec.name, step.t, 0),
            config: &self.config,
            param,
            master: self.master.as_mut(),
            momentum: &mut self.momentum,
            grad,
        });
    }

    fn tensor_names(&self) -> Vec<String> {
        let mut names = self.momentum.names("momentum");
        names.extend(self.master.iter().flat_map(|master| master.names("master")));
        names
    }

    fn export(&self) -> Vec<StateTensor> {
        let mut out = Vec::new();
        self.momentum.export("momentum", &mut out);
        if let Some(master) = &self.master {
            master.export("master", &mut out);
        }
        out
    }

    fn import(&mut self, tensors: &[StateTensor]) -> Result<(), OptimError> {
        let saved = Saved { param: &self.spec.name, tensors };
        saved.check_names(&self.tensor_names())?;
        self.momentum.import("momentum", &saved)?;
        self.master.as_mut().map_or(Ok(()), |master| master.import("master", &saved))
    }

    fn bytes(&self) -> usize {
        self.momentum.bytes() + self.master.as_ref().map_or(0, Store::bytes)
    }
}

/// `p ← keep p − size update` for one piece.
fn apply(
    first: usize,
    param: &mut Piece<'_>,
    mut master: Option<Piece<'_>>,
    update: &[f32],
    keep: f32,
    size: f32,
    noise: &Noise,
) {
    let (mut values, mut random) = ([0.0; TILE], [0; TILE]);
    for (i, update) in update.chunks(TILE).enumerate() {
        let (at, values) = (i * TILE, &mut values[..update.len()]);
        master.as_ref().unwrap_or(param).load(at, values);
        values.iter_mut().zip(update).for_each(|(p, u)| *p = *p * keep - size * u);
        match &mut master {
            Some(master) => {
                master.save(at, values, None);
                param.save(at, values, None);
            }
            None => {
                noise.fill(first + at, &mut random);
                param.save(at, values, Some(&random[..values.len()]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Golden, gap, matrix, run_f32};

    #[test]
    fn the_catalogue_lists_the_defaults() {
        crate::catalogue::check_defaults(OPTIONS, &MuonConfig::default());
        let inner = "adamw = { beta1 = 0.8 }".parse().unwrap();
        assert!(build(&inner, 1).is_ok());
    }

    /// Ten steps of torch.optim.Muon, orthogonalised in f64.
    #[test]
    fn equals_pytorch() {
        let golden = Golden::open("muon.safetensors");
        for shape in ["tall", "wide"] {
            for (adjust_lr, name) in
                [(AdjustLr::Original, "original"), (AdjustLr::MatchRmsAdamw, "match_rms_adamw")]
            {
                let key = |part: &str| format!("{shape}.{part}");
                let spec = matrix(&golden.shape(&key("start")));
                let mut param = golden.floats(&key("start"));
                let config = MuonConfig { adjust_lr, ..MuonConfig::default() };
                let mut state = Muon::new(config, 1).unwrap().state(&spec, &Array::from_f32(&param));
                run_f32(&mut *state, &mut param, &golden.floats(&key("grads")), 0.02);
                let truth = golden.floats(&key(&format!("{name}.final")));
                // Ten updates of 0.02, each orthogonalised within 2e-4; bf16 is 100 times further away.
                assert!(gap(&param, &truth) < 4e-5, "{shape} {name}: {}", gap(&param, &truth));
                assert!(gap(&golden.floats(&key(&format!("{name}.final_bf16"))), &truth) > 1e-4);
                let momentum = &state.export()[0];
                let ours: Vec<f32> = momentum
                    .bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect();
                assert!(gap(&ours, &golden.floats(&key("momentum"))) < 1e-7);
            }
        }
    }

    #[test]
    fn only_matrices_inside_the_model_take_it() {
        let groups = crate::Groups::default();
        for (shape, role, expected) in [
            (&[4, 4][..], Role::Hidden, true),
            (&[4, 2], Role::LoraB, true),
            (&[4, 4], Role::Embedding, false),
            (&[4, 4], Role::Head, false),
            (&[4], Role::Vector, false),
        ] {
            let spec = groups.spec("p", shape, role);
            assert_eq!(Muon::applies_to(&spec), expected, "{role:?}");
            let state = Muon::new(MuonConfig::default(), 1)
                .unwrap()
                .state(&spec, &Array::from_f32(&vec![0.0; spec.len()]));
            assert_eq!(state.export()[0].name == "momentum", expected, "{role:?}");
        }
    }
}
