//! What the optimisers' tests share: golden files, runs of several steps, and the promises every
//! optimiser keeps.

use crate::{OPTIMISERS, Optimiser, ParamSpec, ParamState, Role, Step, build};
use pt_core::rng::Stream;
use pt_engine::Array;
use safetensors::{Dtype, SafeTensors};

/// A file of `golden/train`.
pub(crate) struct Golden(Vec<u8>);

impl Golden {
    pub(crate) fn open(name: &str) -> Golden {
        let path = pt_core::testdata::workspace_root().join("golden/train").join(name);
        Golden(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).data().to_vec()
    }

    pub(crate) fn shape(&self, name: &str) -> Vec<usize> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        tensors.tensor(name).unwrap().shape().to_vec()
    }
}

/// A decaying matrix inside a model.
pub(crate) fn matrix(shape: &[usize]) -> ParamSpec {
    crate::Groups::default().spec("w", shape, Role::Hidden)
}

/// Steps over the rows of `grads` at a constant learning rate.
pub(crate) fn run_f32(state: &mut dyn ParamState, param: &mut [f32], grads: &[f32], lr: f64) {
    let mut array = Array::from_f32(param);
    for (t, grad) in (1..).zip(grads.chunks(param.len())) {
        state.step(Step { t, lr, grad_scale: 1.0 }, &mut array, &Array::from_f32(grad));
    }
    param.copy_from_slice(&array.to_f32());
}

/// The largest difference.
pub(crate) fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

pub(crate) fn normals(n: usize, name: &str) -> Vec<f32> {
    let mut draws = Stream::new(1, name).at(0);
    (0..n).map(|_| draws.normal() as f32).collect()
}

/// Every optimiser, with every way to store its state.
fn variants() -> Vec<Box<dyn Optimiser>> {
    let options = [
        ("adamw", ""),
        ("adamw", "state = 'bf16'\nbf16_params = 'stochastic'\nweight_decay = 0.1"),
        ("adamw8bit", ""),
        ("adamw8bit", "bf16_params = 'stochastic'"),
        ("muon", ""),
        ("muon", "bf16_params = 'stochastic'\nadjust_lr = 'original'\nnesterov = false"),
    ];
    for info in OPTIMISERS {
        assert!(options.iter().any(|(name, _)| *name == info.name), "`{}` is not tested here", info.name);
    }
    options.iter().map(|(name, options)| build(name, &options.parse().unwrap(), 7).unwrap()).collect()
}

/// Larger than one piece, and not a multiple of a tile.
const SHAPE: [usize; 2] = [190, 180];

/// Four steps on a bf16 and an f32 parameter, saving and restoring the state after `cut` of them; the values' bits.
fn four_steps(optimiser: &dyn Optimiser, cut: Option<u64>) -> [Vec<u32>; 2] {
    let spec = matrix(&SHAPE);
    let n = spec.len();
    let start = normals(n, "start");
    let mut params = [Array::from_f32(&start), Array::bf16_from_f32(&start)];
    let mut states = params.each_ref().map(|param| optimiser.state(&spec, param));
    for t in 1..=4 {
        let grad = Array::from_f32(&normals(n, &format!("grad {t}")));
        let step = Step { t, lr: 1e-3, grad_scale: 0.5 };
        states.iter_mut().zip(&mut params).for_each(|(state, param)| state.step(step, param, &grad));
        if cut == Some(t) {
            let saved = states.each_ref().map(|state| state.export());
            let zeros = vec![0.0; n];
            states = [Array::from_f32(&zeros), Array::bf16_from_f32(&zeros)]
                .map(|param| optimiser.state(&spec, &param));
            for (state, saved) in states.iter_mut().zip(&saved) {
                state.import(saved).unwrap();
                assert_eq!(&state.export(), saved);
                let names: Vec<&str> = saved.iter().map(|tensor| tensor.name.as_str()).collect();
                assert_eq!(state.tensor_names(), names);
            }
        }
    }
    params.map(|param| param.to_f32().iter().map(|v| v.to_bits()).collect())
}

#[test]
fn interrupted_runs_and_other_thread_counts_give_the_same_bits() {
    for optimiser in variants() {
        let with = |threads, cut| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| four_steps(&*optimiser, cut))
        };
        let plain = with(1, None);
        assert_eq!(with(1, Some(2)), plain, "{optimiser:?} interrupted");
        assert_eq!(with(3, None), plain, "{optimiser:?} on three threads");
    }
}

#[test]
fn bytes_are_what_the_planner_is_told() {
    for optimiser in variants() {
        for (shape, role) in
            [(&SHAPE[..], Role::Hidden), (&[100], Role::Vector), (&[70, 64], Role::Embedding)]
        {
            let spec = crate::Groups::default().spec("w", shape, role);
            let zeros = vec![0.0; spec.len()];
            for (values, is_bf16) in [(Array::from_f32(&zeros), false), (Array::bf16_from_f32(&zeros), true)]
            {
                let state = optimiser.state(&spec, &values);
                assert_eq!(state.bytes(), optimiser.state_bytes(&spec, is_bf16), "{optimiser:?} {shape:?}");
                assert_eq!(state.bytes(), state.export().iter().map(|t| t.bytes.len()).sum::<usize>());
            }
        }
    }
}

#[test]
fn state_of_other_settings_is_refused_by_name() {
    let spec = matrix(&[70, 64]);
    let values = Array::from_f32(&vec![0.0; spec.len()]);
    let states = variants().into_iter().map(|o| o.state(&spec, &values));
    let exports: Vec<_> = states.map(|state| state.export()).collect();
    let mut state = build("adamw", &toml::Table::new(), 1).unwrap().state(&spec, &values);
    let mut check = |tensors: &[crate::StateTensor], expected: &str| {
        let message = state.import(tensors).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("`w`"), "{message} should mention {expected}");
    };
    check(&exports[1], "`exp_avg` holds 4480 of Bf16, expected 4480 of F32");
    check(&exports[2], "it holds `exp_avg_scale`");
    check(&exports[4], "it holds `momentum`");
    check(&exports[0][..1], "`exp_avg_sq` is missing");
}
