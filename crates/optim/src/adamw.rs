//! AdamW: adaptive moments with decoupled weight decay.
//!
//! With gradient g (after clipping), step t from 1, learning rate η:
//!
//! ```text
//! m ← m + (1 − β₁)(g − m)              v ← β₂ v + (1 − β₂) g²
//! p ← (1 − η λ) p − η / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```
//!
//! Source: Loshchilov and Hutter 2019, "Decoupled weight decay regularization" (arXiv:1711.05101),
//! algorithm 2, in the arithmetic of `torch.optim.AdamW` (decay multiplied by the learning rate).
//!
//! Parameters in `f32` are updated in place. Parameters in `bf16` cannot hold small updates, so either
//! an `f32` master copy is kept in the state (`bf16_params = "master"`), or the new value is rounded
//! stochastically (`"stochastic"`, 4 bytes a parameter less). Of moments in `bf16` the second is rounded
//! stochastically too: to nearest, β₂ = 0.999 could never lower it.

use crate::catalogue::{OptimiserInfo, OptionInfo, parse};
use crate::error::require;
use crate::state::{Saved, StateTensor};
use crate::storage::{Kind, Noise, PIECE, Piece, Store, TILE};
use crate::{OptimError, Optimiser, ParamSpec, ParamState, Step};
use pt_engine::{Array, Kernel, Storage};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The catalogue's entry.
pub(crate) const INFO: OptimiserInfo = OptimiserInfo {
    name: "adamw",
    summary: "adaptive moments with decoupled weight decay",
    source: "Loshchilov and Hutter 2019, arXiv:1711.05101",
    options: &[BETA1, BETA2, EPS, WEIGHT_DECAY, STATE, BF16_PARAMS],
    build: |options, seed| Ok(Box::new(Adamw::new(parse("adamw", options)?, seed)?)),
};

pub(crate) const BETA1: OptionInfo =
    OptionInfo { name: "beta1", kind: "number in [0, 1)", default: "0.9", doc: "decay of the mean gradient" };
pub(crate) const BETA2: OptionInfo = OptionInfo {
    name: "beta2",
    kind: "number in [0, 1)",
    default: "0.999",
    doc: "decay of the mean squared gradient",
};
pub(crate) const EPS: OptionInfo = OptionInfo {
    name: "eps",
    kind: "number above 0",
    default: "1e-8",
    doc: "added to the root of the second moment",
};
pub(crate) const WEIGHT_DECAY: OptionInfo = OptionInfo {
    name: "weight_decay",
    kind: "number, at least 0",
    default: "0.0",
    doc: "times the learning rate, the part of a weight removed each step",
};
pub(crate) const STATE: OptionInfo = OptionInfo {
    name: "state",
    kind: "\"f32\" or \"bf16\"",
    default: "\"f32\"",
    doc: "storage of the moments",
};
pub(crate) const BF16_PARAMS: OptionInfo = OptionInfo {
    name: "bf16_params",
    kind: "\"master\" or \"stochastic\"",
    default: "\"master\"",
    doc: "bf16 weights: keep an f32 copy, or round at random so that the mean is exact",
};

/// Storage of the moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MomentDtype {
    /// 8 bytes a parameter.
    #[default]
    F32,
    /// 4 bytes a parameter.
    Bf16,
}

/// How `bf16` parameters take updates smaller than their spacing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bf16Params {
    /// An `f32` copy in the state.
    #[default]
    Master,
    /// Stochastic rounding.
    Stochastic,
}

/// Options of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamwConfig {
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub eps: f64,
    /// λ.
    pub weight_decay: f64,
    /// Storage of m and v.
    pub state: MomentDtype,
    /// Treatment of `bf16` parameters.
    pub bf16_params: Bf16Params,
}

impl Default for AdamwConfig {
    fn default() -> Self {
        AdamwConfig {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            state: MomentDtype::F32,
            bf16_params: Bf16Params::Master,
        }
    }
}

/// AdamW.
#[derive(Clone, Debug)]
pub struct Adamw {
    config: AdamwConfig,
    seed: u64,
}

impl Adamw {
    /// AdamW with these options; `seed` keys random rounding.
    ///
    /// # Errors
    /// [`OptimError::Option`] for a value out of range.
    pub fn new(config: AdamwConfig, seed: u64) -> Result<Adamw, OptimError> {
        Rule::new(&config).check("adamw")?;
        Ok(Adamw { config, seed })
    }

    fn layout(&self) -> Layout {
        let kind = match self.config.state {
            MomentDtype::F32 => Kind::F32,
            MomentDtype::Bf16 => Kind::Bf16,
        };
        Layout { m: kind, v: kind, bf16_params: self.config.bf16_params }
    }
}

impl Optimiser for Adamw {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn state(&self, spec: &ParamSpec, values: &Array) -> Box<dyn ParamState> {
        Box::new(AdamwState::new(Rule::new(&self.config), self.layout(), self.seed, spec, values))
    }

    fn state_bytes(&self, spec: &ParamSpec, bf16: bool) -> usize {
        self.layout().bytes(spec.len(), bf16)
    }
}

/// The numbers of the update rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
}

impl Rule {
    pub(crate) fn new(config: &AdamwConfig) -> Rule {
        let AdamwConfig { beta1, beta2, eps, weight_decay, .. } = *config;
        Rule { beta1, beta2, eps, weight_decay }
    }

    pub(crate) fn check(&self, name: &str) -> Result<(), OptimError> {
        for (option, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            let problem = || format!("{option} is {beta}, expected at least 0 and below 1");
            require((0.0..1.0).contains(&beta), name, problem)?;
        }
        let Rule { eps, weight_decay, .. } = *self;
        require(eps > 0.0 && eps.is_finite(), name, || format!("eps is {eps}, expected above 0"))?;
        let problem = || format!("weight_decay is {weight_decay}, expected at least 0");
        require(weight_decay >= 0.0 && weight_decay.is_finite(), name, problem)
    }

    /// What the loop needs for step `t`, computed in `f64` as PyTorch does.
    fn coefficients(&self, step: Step, spec: &ParamSpec) -> Coefficients {
        let t = step.t as f64;
        let lr = step.lr * spec.lr_scale;
        let decay = if spec.decay { self.weight_decay } else { 0.0 };
        Coefficients {
            grad_scale: step.grad_scale,
            mix1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            mix2: (1.0 - self.beta2) as f32,
            inverse_root: (1.0 / (1.0 - self.beta2.powf(t)).sqrt()) as f32,
            eps: self.eps as f32,
            keep: (1.0 - lr * decay) as f32,
            size: (lr / (1.0 - self.beta1.powf(t))) as f32,
        }
    }
}

/// How the state is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) m: Kind,
    pub(crate) v: Kind,
    pub(crate) bf16_params: Bf16Params,
}

impl Layout {
    pub(crate) fn bytes(&self, n: usize, bf16: bool) -> usize {
        let master = bf16 && self.bf16_params == Bf16Params::Master;
        self.m.bytes(n) + self.v.bytes(n) + if master { 4 * n } else { 0 }
    }
}

/// The state of one parameter, for every layout.
pub(crate) struct AdamwState {
    rule: Rule,
    spec: ParamSpec,
    seed: u64,
    /// The parameter's.
    storage: Storage,
    master: Option<Store>,
    m: Store,
    v: Store,
}

impl AdamwState {
    pub(crate) fn new(rule: Rule, layout: Layout, seed: u64, spec: &ParamSpec, values: &Array) -> AdamwState {
        let (n, device) = (values.len(), values.device());
        assert_eq!(n, spec.len(), "`{}` has shape {:?}", spec.name, spec.shape);
        AdamwState {
            rule,
            spec: spec.clone(),
            seed,
            storage: values.storage(),
            master: master(values, layout.bf16_params),
            m: Store::zeros(device, layout.m, n),
            v: Store::zeros(device, layout.v, n),
        }
    }
}

/// The `f32` copy of a `bf16` parameter, where one is kept.
pub(crate) fn master(values: &Array, bf16_params: Bf16Params) -> Option<Store> {
    let kept = values.storage() == Storage::Bf16 && bf16_params == Bf16Params::Master;
    kept.then(|| Store::Plain(values.widened()))
}

/// One step of a parameter.
struct AdamwStep<'a> {
    c: Coefficients,
    noise: [Noise; 2],
    param: &'a mut Array,
    master: Option<&'a mut Store>,
    m: &'a mut Store,
    v: &'a mut Store,
    grad: &'a Array,
}

impl Kernel for AdamwStep<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu(&mut self) {
        let (c, noise) = (self.c, &self.noise);
        let params = Piece::of_array(self.param);
        let masters: Vec<Option<Piece<'_>>> = match &mut self.master {
            Some(master) => master.pieces().into_iter().map(Some).collect(),
            None => params.iter().map(|_| None).collect(),
        };
        let pieces = params.into_iter().zip(masters).zip(self.m.pieces()).zip(self.v.pieces());
        let mut work: Vec<Work<'_>> = pieces
            .zip(self.grad.open().f32s().chunks(PIECE))
            .enumerate()
            .map(|(i, ((((param, master), m), v), grad))| Work {
                first: i * PIECE,
                param,
                master,
                m,
                v,
                grad,
            })
            .collect();
        match work.as_mut_slice() {
            [only] => update_piece(only, c, noise),
            many => many.par_iter_mut().for_each(|work| update_piece(work, c, noise)),
        }
    }
}

impl ParamState for AdamwState {
    fn step(&mut self, step: Step, param: &mut Array, grad: &Array) {
        assert!(step.t > 0, "steps count from 1");
        let n = self.spec.len();
        let fits = (grad.len(), param.len(), param.storage()) == (n, n, self.storage);
        assert!(fits, "`{}`: {} gradients for another parameter", self.spec.name, grad.len());
        let device = param.device();
        device.run(&mut AdamwStep {
            c: self.rule.coefficients(step, &self.spec),
            noise: [0, 1].map(|array| Noise::new(self.seed, &self.spec.name, step.t, array)),
            param,
            master: self.master.as_mut(),
            m: &mut self.m,
            v: &mut self.v,
            grad,
        });
    }

    fn tensor_names(&self) -> Vec<String> {
        let mut names = self.m.names("exp_avg");
        names.extend(self.v.names("exp_avg_sq"));
        names.extend(self.master.iter().flat_map(|master| master.names("master")));
        names
    }

    fn export(&self) -> Vec<StateTensor> {
        let mut out = Vec::new();
        self.m.export("exp_avg", &mut out);
        self.v.export("exp_avg_sq", &mut out);
        if let Some(master) = &self.master {
            master.export("master", &mut out);
        }
        out
    }

    fn import(&mut self, tensors: &[StateTensor]) -> Result<(), OptimError> {
        let saved = Saved { param: &self.spec.name, tensors };
        saved.check_names(&self.tensor_names())?;
        self.m.import("exp_avg", &saved)?;
        self.v.import("exp_avg_sq", &saved)?;
        self.master.as_mut().map_or(Ok(()), |master| master.import("master", &saved))
    }

    fn bytes(&self) -> usize {
        self.m.bytes() + self.v.bytes() + self.master.as_ref().map_or(0, Store::bytes)
    }
}

/// The same elements of everything an update touches.
struct Work<'a> {
    first: usize,
    param: Piece<'a>,
    master: Option<Piece<'a>>,
    m: Piece<'a>,
    v: Piece<'a>,
    grad: &'a [f32],
}

#[derive(Clone, Copy)]
struct Coefficients {
    grad_scale: f32,
    mix1: f32,
    beta2: f32,
    mix2: f32,
    inverse_root: f32,
    eps: f32,
    keep: f32,
    size: f32,
}

/// Values of one tile in `f32`.
struct Tile {
    p: [f32; TILE],
    m: [f32; TILE],
    v: [f32; TILE],
    noise: [u16; TILE],
}

pt_kernels::kernel! {
    fn update_piece(['a, 'w] work: &'a mut Work<'w>, c: Coefficients, noise: &'a [Noise; 2]) {
        let mut tile = Tile { p: [0.0; TILE], m: [0.0; TILE], v: [0.0; TILE], noise: [0; TILE] };
        for (i, grad) in work.grad.chunks(TILE).enumerate() {
            let (at, n) = (i * TILE, grad.len());
            work.master.as_ref().unwrap_or(&work.param).load(at, &mut tile.p[..n]);
            work.m.load(at, &mut tile.m[..n]);
            work.v.load(at, &mut tile.v[..n]);
            update_tile::<FMA>(&mut tile.p[..n], &mut tile.m[..n], &mut tile.v[..n], grad, c);
            work.m.save(at, &tile.m[..n], None);
            save(&mut work.v, at, &tile.v[..n], &noise[1], work.first, &mut tile.noise[..n]);
            match &mut work.master {
                Some(master) => {
                    master.save(at, &tile.p[..n], None);
                    work.param.save(at, &tile.p[..n], None);
                }
                None => save(&mut work.param, at, &tile.p[..n], &noise[0], work.first, &mut tile.noise[..n]),
            }
        }
    }
}

/// Stores a tile, drawing noise only where it is used.
#[inline(always)]
fn save(piece: &mut Piece<'_>, at: usize, values: &[f32], noise: &Noise, first: usize, buffer: &mut [u16]) {
    if piece.is_bf16() {
        noise.fill(first + at, buffer);
        piece.save(at, values, Some(buffer));
    } else {
        piece.save(at, values, None);
    }
}

#[inline(always)]
fn update_tile<const FMA: bool>(p: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], c: Coefficients) {
    use pt_kernels::isa::fma;
    for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(grad) {
        let g = g * c.grad_scale;
        *m = fma::<FMA>(c.mix1, g - *m, *m);
        *v = fma::<FMA>(c.mix2 * g, g, *v * c.beta2);
        let denominator = fma::<FMA>(v.sqrt(), c.inverse_root, c.eps);
        *p = fma::<FMA>(-c.size, *m / denominator, *p * c.keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Golden, gap, matrix, normals, run_f32};
    use half::bf16;

    fn adamw(config: AdamwConfig) -> Adamw {
        Adamw::new(config, 1).unwrap()
    }

    #[test]
    fn the_catalogue_lists_the_defaults() {
        crate::catalogue::check_defaults(INFO.options, &AdamwConfig::default());
    }

    /// Six steps of torch.optim.AdamW.
    #[test]
    fn equals_pytorch() {
        let golden = Golden::open("adamw8bit.safetensors");
        let spec = matrix(&golden.shape("start"));
        let mut param = golden.floats("start");
        let optimiser = adamw(AdamwConfig { weight_decay: 0.1, ..AdamwConfig::default() });
        let mut state = optimiser.state(&spec, &Array::from_f32(&param));
        run_f32(&mut *state, &mut param, &golden.floats("grads"), 1e-2);
        // Rounding of six steps of size 0.01 on values up to 4.
        assert!(gap(&param, &golden.floats("final_adamw")) < 1e-6);
    }

    /// The rule in f64, one element at a time.
    fn slow(p: f32, grads: &[f32], config: &AdamwConfig, lr: f64, scale: f64, decay: f64) -> f64 {
        let (mut p, mut m, mut v) = (f64::from(p), 0.0, 0.0);
        for (t, &g) in (1..).zip(grads) {
            let g = f64::from(g) * scale;
            m = config.beta1 * m + (1.0 - config.beta1) * g;
            v = config.beta2 * v + (1.0 - config.beta2) * g * g;
            let (m_hat, v_hat) = (m / (1.0 - config.beta1.powi(t)), v / (1.0 - config.beta2.powi(t)));
            p = p - lr * decay * p - lr * m_hat / (v_hat.sqrt() + config.eps);
        }
        p
    }

    const LR: f64 = 1e-3;
    const N_STEPS: usize = 5;

    /// Steps on `n` elements from `state`, storage and group settings; the mean and the largest
    /// distance from the rule in f64.
    fn distance(config: AdamwConfig, bf16_param: bool, spec: &ParamSpec) -> (f64, f64) {
        let n = spec.len();
        let start: Vec<f32> = normals(n, "p").iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
        let grads = normals(n * N_STEPS, "g");
        let mut param = if bf16_param { Array::bf16_from_f32(&start) } else { Array::from_f32(&start) };
        let mut state = adamw(config).state(spec, &param);
        for (t, grad) in (1..).zip(grads.chunks(n)) {
            state.step(Step { t, lr: LR, grad_scale: 0.25 }, &mut param, &Array::from_f32(grad));
        }
        let single = param.to_f32();
        let (mut sum, mut largest) = (0.0, 0.0f64);
        for i in 0..n {
            let mine: Vec<f32> = (0..N_STEPS).map(|t| grads[t * n + i]).collect();
            let decay = if spec.decay { config.weight_decay } else { 0.0 };
            let difference =
                f64::from(single[i]) - slow(start[i], &mine, &config, LR * spec.lr_scale, 0.25, decay);
            sum += difference;
            largest = largest.max(difference.abs());
        }
        (sum / n as f64, largest)
    }

    #[test]
    fn every_storage_follows_the_rule() {
        use Bf16Params::{Master, Stochastic};
        let groups = crate::Groups { lora_plus_ratio: 16.0, decay_1d: false };
        let specs = [
            groups.spec("w", &[3, 40_000], crate::Role::Hidden),
            groups.spec("b", &[4, 9], crate::Role::LoraB),
            groups.spec("norm", &[257], crate::Role::Vector),
        ];
        for spec in &specs {
            for (state, bf16_params, bf16_param, bound) in [
                (MomentDtype::F32, Master, false, 1e-6),
                // Half a spacing of bf16 at 4, the largest weights.
                (MomentDtype::F32, Master, true, 0.0079),
                // A spacing a step.
                (MomentDtype::F32, Stochastic, true, 0.0157 * N_STEPS as f64),
                // Moments off by a spacing, 2^-7, a step each.
                (MomentDtype::Bf16, Master, false, 2e-4 * spec.lr_scale),
            ] {
                let config = AdamwConfig { weight_decay: 0.1, state, bf16_params, ..AdamwConfig::default() };
                let (mean, largest) = distance(config, bf16_param, spec);
                assert!(largest <= bound, "{} {state:?} {bf16_params:?}: {largest}", spec.name);
                // Stochastic rounding must not drift: its standard error at 1.2e5 elements is 1e-5.
                if spec.len() > 100_000 {
                    assert!(mean.abs() < 5e-5, "{state:?} {bf16_params:?}: drifts by {mean}");
                }
            }
        }
    }

    #[test]
    fn bf16_second_moments_can_decay() {
        let spec = matrix(&[1, 4096]);
        let mut param = vec![0.0; 4096];
        let mut state = adamw(AdamwConfig { state: MomentDtype::Bf16, ..AdamwConfig::default() })
            .state(&spec, &Array::from_f32(&param));
        let mut grads = vec![1.0; 4096];
        grads.resize(4096 * 101, 0.0);
        run_f32(&mut *state, &mut param, &grads, 0.0);
        let v = &state.export()[1];
        let mean =
            v.bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).sum::<f64>() / 4096.0;
        let expected = 1e-3 * 0.999f64.powi(100);
        assert!((mean / expected - 1.0).abs() < 5e-3, "{mean} against {expected}");
    }
}
