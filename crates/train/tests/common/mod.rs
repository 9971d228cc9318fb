//! What the tests share: models, trainers and micro-batches from a few words, and comparisons.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use pt_core::rng::Stream;
use pt_engine::{Dtype, Profile};
use pt_models::{LoadOptions, LoraConfig, Model, NewModel, load};
use pt_objectives::Objective;
use pt_optim::{Groups, ScheduleConfig};
use pt_run::{BestBy, Retention, RunFolder};
use pt_train::{
    EvalStats, Example, LoopOptions, MicroBatch, Outcome, Recorder, Result, SourceResult, StepData,
    StepSource, StepStats, Trainer, TrainerOptions, Watcher, fit, resume,
};
use safetensors::SafeTensors;

pub fn golden(path: &str) -> PathBuf {
    pt_core::testdata::workspace_root().join("golden").join(path)
}

pub fn load_golden(name: &str, dtype: Dtype) -> Model {
    let options = LoadOptions { dtype: Some(dtype), ..LoadOptions::default() };
    load(&golden("models").join(name), &options).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A new Llama wide enough that its products run on several threads.
pub fn wide_model(dtype: Dtype) -> Model {
    let new = NewModel { vocab_size: 128, hidden_size: 64, ffn_size: 160, ..tiny_model() };
    new.build(dtype, 5).unwrap()
}

/// A new Llama that learns toy tasks.
pub fn tiny_model() -> NewModel {
    serde_json::from_value(serde_json::json!({
        "vocab_size": 16, "hidden_size": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_size": 64,
        "tied": false, "init_std": 0.1,
    }))
    .unwrap()
}

pub fn with_lora(mut model: Model, lora: serde_json::Value) -> Model {
    let config: LoraConfig = serde_json::from_value(lora).unwrap();
    model.attach_lora(&config, 3).unwrap();
    randomise_b(&mut model);
    model
}

/// Adapters start with B at zero, and then A has no gradient; here both shall have one.
fn randomise_b(model: &mut Model) {
    for (_, param) in model.params.iter_mut().filter(|(_, param)| param.name.contains("lora_B")) {
        let mut draws = Stream::new(4, &param.name).at(0);
        let values: Vec<f32> = (0..param.len()).map(|_| draws.normal() as f32 * 0.1).collect();
        param.weight = pt_engine::Weight::from_f32(&values);
    }
}

pub fn all_training(mut model: Model) -> Model {
    model.train_all().unwrap();
    model
}

/// How a test's trainer is made.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub dtype: Dtype,
    pub optimiser: &'static str,
    pub optimiser_options: &'static str,
    pub schedule: &'static str,
    pub steps: u64,
    pub learning_rate: f64,
    pub recompute: bool,
    pub max_grad_norm: Option<f64>,
    pub decay_1d: bool,
    pub objective_options: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            dtype: Dtype::F32,
            optimiser: "adamw",
            optimiser_options: "weight_decay = 0.1",
            schedule: "name = 'constant'",
            steps: 12,
            learning_rate: 1e-2,
            recompute: false,
            max_grad_norm: Some(1.0),
            decay_1d: false,
            objective_options: "",
        }
    }
}

impl Setup {
    pub fn trainer(&self, model: Model) -> Trainer {
        self.try_trainer(model).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn try_trainer(&self, model: Model) -> Result<Trainer> {
        let options = self.objective_options.parse().unwrap();
        self.trainer_of(model, pt_objectives::build("cross_entropy", &options).unwrap())
    }

    pub fn trainer_of(&self, model: Model, objective: Box<dyn Objective>) -> Result<Trainer> {
        let optimiser =
            pt_optim::build(self.optimiser, &self.optimiser_options.parse().unwrap(), SEED).unwrap();
        let schedule = ScheduleConfig::from_table(&self.schedule.parse().unwrap()).unwrap();
        let options = TrainerOptions {
            dtype: self.dtype,
            learning_rate: self.learning_rate,
            recompute: self.recompute,
            max_grad_norm: self.max_grad_norm,
            seed: SEED,
            groups: Groups { decay_1d: self.decay_1d, ..Groups::default() },
            temperature: 1.0,
        };
        Trainer::new(model, objective, optimiser.as_ref(), schedule.resolve(self.steps).unwrap(), options)
    }
}

pub const SEED: u64 = 17;

/// An example all of whose tokens but the first `n_context` are targets.
pub fn example(token_ids: Vec<u32>, n_context: usize, key: u64) -> Example {
    let weights = (0..token_ids.len()).map(|i| if i < n_context { 0.0 } else { 1.0 }).collect();
    Example::sequence(token_ids, weights, key, format!("data.jsonl:{}", key + 1).into())
}

/// Random tokens below `vocabulary`.
pub fn random_example(vocabulary: usize, len: usize, n_context: usize, key: u64) -> Example {
    let mut draws = Stream::new(9, "tokens").at(key);
    example((0..len).map(|_| draws.below(vocabulary) as u32).collect(), n_context, key)
}

/// Cuts examples into micro-batches of the given sizes.
pub fn cut(examples: &[Example], sizes: &[usize]) -> Vec<MicroBatch> {
    assert_eq!(sizes.iter().sum::<usize>(), examples.len(), "sizes of a cut");
    let mut rest = examples;
    sizes
        .iter()
        .map(|&size| {
            let (first, others) = rest.split_at(size);
            rest = others;
            MicroBatch::new(first.to_vec())
        })
        .collect()
}

/// All tensors of a file as `f64`.
pub fn tensors(path: &Path) -> BTreeMap<String, Vec<f64>> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let decode = |view: safetensors::tensor::TensorView<'_>| -> Vec<f64> {
        let data = view.data();
        match view.dtype() {
            safetensors::Dtype::F32 => {
                data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
            }
            safetensors::Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            other => panic!("{}: {other:?}", path.display()),
        }
    };
    file.tensors().into_iter().map(|(name, view)| (name, decode(view))).collect()
}

/// What trains, by name.
pub fn trained(trainer: &Trainer) -> BTreeMap<String, Vec<f32>> {
    let trainable = trainer.model.params.iter().filter(|(_, param)| param.trainable);
    trainable.map(|(_, param)| (param.name.clone(), param.weight.to_f32())).collect()
}

/// Gradients of the last accumulation, by name.
pub fn gradients(trainer: &Trainer) -> BTreeMap<String, Vec<f32>> {
    let grads = trainer.grads();
    let params = trainer.model.params.iter();
    params.filter_map(|(id, param)| Some((param.name.clone(), grads.get(id)?.to_f32()))).collect()
}

/// Largest absolute error over largest absolute value.
pub fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
    let scale = expected.iter().fold(f64::MIN_POSITIVE, |max, x| max.max(x.abs()));
    absolute_error(found, expected) / scale
}

pub fn absolute_error(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len(), "number of values");
    assert!(found.iter().all(|x| x.is_finite()), "finite values");
    found.iter().zip(expected).fold(0.0, |max: f64, (f, e)| max.max((f64::from(*f) - e).abs()))
}

/// Norm of the difference over norm.
pub fn norm_error(found: &[f32], expected: &[f64]) -> f64 {
    let gap: f64 = found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).powi(2)).sum();
    (gap / expected.iter().map(|e| e * e).sum::<f64>()).sqrt()
}

pub fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// Steps that are a function of their number.
pub struct Steps<F> {
    pub make: F,
    pub per_epoch: u64,
}

impl<F: Fn(u64) -> Vec<MicroBatch>> StepSource for Steps<F> {
    fn step(&mut self, step_idx: u64, _: &Model) -> SourceResult<StepData> {
        Ok((self.make)(step_idx).into())
    }
    fn epoch(&mut self, steps_done: u64) -> f64 {
        steps_done as f64 / self.per_epoch as f64
    }
}

/// Raises the flag after a step, as a signal handler would.
pub struct StopAfter<'s> {
    pub step: u64,
    pub flag: &'s AtomicBool,
}

impl Watcher for StopAfter<'_> {
    fn step(&mut self, steps_done: u64, _: &StepStats, _: &Profile, _: f64) {
        if steps_done == self.step {
            self.flag.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
    fn eval(&mut self, _: u64, _: &EvalStats) {}
    fn saved(&mut self, _: u64) {}
}

/// A run in a folder, as the pipeline makes one.
pub struct Run<'r> {
    pub root: &'r Path,
    pub options: LoopOptions,
    pub keep_last: usize,
    pub eval: &'r [MicroBatch],
}

impl Run<'_> {
    /// Starts or continues: resumes from what is there, then takes steps until the end or until after `stop_after`.
    pub fn go(&self, trainer: &mut Trainer, source: &mut dyn StepSource, stop_after: u64) -> Result<Outcome> {
        let mut run = match self.root.join("plan.json").exists() {
            true => RunFolder::open(self.root)?,
            false => RunFolder::create(self.root, &serde_json::json!({}))?,
        };
        let stage = run.stage(1, "sft")?;
        let best = Some(BestBy { metric: "eval_loss".into(), higher_is_better: false });
        let store = stage.checkpoints(Retention { keep_last: self.keep_last, best })?;
        let mut recorder = Recorder { run: &mut run, stage: &stage, store: &store };
        let n_tokens = resume(trainer, source, &mut recorder, &self.options.plan_hash)?;
        let flag = AtomicBool::new(false);
        let mut watcher = StopAfter { step: stop_after, flag: &flag };
        fit(trainer, source, self.eval, &self.options, &mut recorder, n_tokens, &mut watcher, &flag)
    }
}

/// Saves often, evaluates in between.
pub fn loop_options(steps: u64) -> LoopOptions {
    LoopOptions { steps, log_every: 1, eval_every: 3, save_every: 5, seed: SEED, plan_hash: "plan".into() }
}
