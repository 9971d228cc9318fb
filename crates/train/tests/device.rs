//! Another device trains, generates, saves and resumes with the bytes of the CPU, and copies nothing of a weight's size.

mod common;

use std::fs;
use std::path::Path;

use common::*;
use pt_engine::device::{Guarded, Traffic};
use pt_engine::{DeviceRef, Dtype};
use pt_models::{LoadOptions, LoraConfig, Model, Quantise, SaveOptions, load, save};
use pt_rollout::{Request, SamplingParams, generate};
use pt_run::compare_runs;
use pt_train::{MicroBatch, Outcome, StepStats, Trainer};
use serde_json::json;

const STEPS: u64 = 6;
const VOCABULARY: usize = 100;
/// Columns of what a pass says of each target: the widest array of the host for a row, beside its angles.
const ROW_BYTES: usize = 6 * 4;

/// What is trained, and how.
struct Case {
    name: &'static str,
    dtype: Dtype,
    quantise: Option<Quantise>,
    /// An adapter's configuration; all weights train without one.
    lora: Option<serde_json::Value>,
    setup: Setup,
}

impl Case {
    fn full(
        name: &'static str,
        dtype: Dtype,
        optimiser: &'static str,
        optimiser_options: &'static str,
    ) -> Case {
        let setup = Setup { dtype, optimiser, optimiser_options, steps: STEPS, ..Setup::default() };
        Case { name, dtype, quantise: None, lora: None, setup }
    }

    fn adapter(
        name: &'static str,
        dtype: Dtype,
        quantise: Option<Quantise>,
        lora: serde_json::Value,
    ) -> Case {
        Case { quantise, lora: Some(lora), ..Case::full(name, dtype, "adamw", "weight_decay = 0.1") }
    }

    /// The model to train, read from its files onto `device`.
    fn model(&self, device: DeviceRef) -> Model {
        let options = LoadOptions {
            dtype: Some(self.dtype),
            quantise: self.quantise,
            device,
            ..LoadOptions::default()
        };
        let mut model = load(&golden("models/llama"), &options).unwrap();
        match &self.lora {
            None => model.train_all().unwrap(),
            Some(lora) => {
                let config: LoraConfig = serde_json::from_value(lora.clone()).unwrap();
                model.attach_lora(&config, 3).unwrap();
            }
        }
        assert!(model.params.iter().all(|(_, param)| param.weight.device() == device), "{}", self.name);
        model
    }

    fn trainer(&self, device: DeviceRef) -> Trainer {
        self.setup.trainer(self.model(device))
    }
}

fn cases() -> Vec<Case> {
    let nf4 = Some(Quantise::Nf4 { double: true });
    let mut recompute = Case::full("full, recomputed", Dtype::F32, "adamw", "weight_decay = 0.1");
    recompute.setup.recompute = true;
    vec![
        Case::full("full", Dtype::F32, "adamw", "weight_decay = 0.1"),
        Case::full("full in bf16 with f32 copies", Dtype::Bf16, "adamw", ""),
        Case::full("rounded at random", Dtype::Bf16, "adamw", "state = 'bf16'\nbf16_params = 'stochastic'"),
        Case::full("adamw8bit", Dtype::F32, "adamw8bit", ""),
        Case::full("muon", Dtype::Bf16, "muon", ""),
        recompute,
        Case::adapter("lora", Dtype::F32, None, json!({"rank": 4, "alpha": 8})),
        Case::adapter("qlora", Dtype::Bf16, nf4, json!({"rank": 4, "alpha": 8, "dropout": 0.2})),
        Case::adapter("int8", Dtype::F32, Some(Quantise::Int8), json!({"rank": 4, "alpha": 8})),
        Case::adapter("dora", Dtype::F32, None, json!({"rank": 4, "alpha": 8, "dora": true})),
        Case::adapter("pissa", Dtype::F32, None, json!({"rank": 4, "alpha": 8, "init": "pissa"})),
    ]
}

fn micro_batches(step: u64) -> Vec<MicroBatch> {
    let examples: Vec<_> =
        (0..3).map(|i| random_example(VOCABULARY, 5 + i as usize, 1, 100 * step + i)).collect();
    cut(&examples, &[2, 1])
}

/// A whole run in a folder, stopped after each of `stops` and continued by a new trainer.
fn run(case: &Case, device: DeviceRef, root: &Path, stops: &[u64]) -> Trainer {
    let eval = cut(&[random_example(VOCABULARY, 8, 1, 1_000_000)], &[1]);
    for stop in stops.iter().copied().chain([u64::MAX]) {
        let mut trainer = case.trainer(device);
        let run = Run { root, options: loop_options(STEPS), keep_last: 1, eval: &eval };
        let mut source = Steps { make: micro_batches, per_epoch: 5 };
        let outcome = run.go(&mut trainer, &mut source, stop).unwrap();
        if outcome == Outcome::Finished {
            return trainer;
        }
    }
    unreachable!("the last part of a run has no stop")
}

/// Tokens and log-probabilities of samples of two prompts.
fn samples(model: &Model, dtype: Dtype) -> Vec<String> {
    let request = |key: u64, prompt: &[u32]| Request { prompt_ids: prompt.to_vec(), key };
    let requests = [request(1, &[5, 9, 33]), request(2, &[7, 7, 21, 40, 2])];
    let params = SamplingParams { n: 2, max_new_tokens: 6, ..SamplingParams::default() };
    let all = generate(model, dtype, &requests, &params, &mut |_, _, _| {}).unwrap();
    all.iter().flatten().map(|sample| format!("{sample:?}")).collect()
}

/// Every file of a folder.
fn files(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect();
    all.sort();
    all
}

/// The adapter as it is saved, if there is one, and the model, merged with it.
fn saved(case: &Case, mut model: Model) -> Vec<Vec<(String, Vec<u8>)>> {
    let dir = tempfile::tempdir().unwrap();
    let mut folders = Vec::new();
    if case.lora.is_some() {
        let path = dir.path().join("adapter");
        fs::create_dir(&path).unwrap();
        model.save_peft(&path, Some("base")).unwrap();
        folders.push(files(&path));
        model.merge_adapter(case.dtype).unwrap();
    }
    let path = dir.path().join("model");
    save(&model, &path, &SaveOptions::default(), |_| Ok(())).unwrap();
    folders.push(files(&path));
    folders
}

#[test]
fn runs_models_and_samples_are_those_of_the_cpu() {
    for case in cases() {
        let guarded = Guarded::leak("guarded").device();
        let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let on_cpu = run(&case, DeviceRef::cpu(), whole.path(), &[]);
        let on_guarded = run(&case, guarded, cut.path(), &[2, 5]);
        assert_eq!(compare_runs(whole.path(), cut.path()).unwrap(), [], "{}", case.name);
        let [expected, found] = [&on_cpu, &on_guarded].map(|trainer| samples(&trainer.model, case.dtype));
        assert_eq!(expected, found, "{}", case.name);
        assert!(saved(&case, on_cpu.model) == saved(&case, on_guarded.model), "{}: saved models", case.name);
    }
}

/// A step on a device that counts: its figures, what went over the border, and the bytes of the smallest matrix.
fn counted_step(case: &Case) -> (StepStats, Traffic, usize) {
    let guarded = Guarded::leak("guarded");
    let mut trainer = case.trainer(guarded.device());
    trainer.step(&micro_batches(0)).unwrap();
    guarded.take_traffic();
    let (stats, _) = trainer.step(&micro_batches(1)).unwrap();
    let matrices = trainer.model.params.iter().filter(|(_, param)| param.shape.len() == 2);
    let smallest = matrices.map(|(_, param)| param.weight.bytes()).min().unwrap();
    (stats, guarded.take_traffic(), smallest)
}

#[test]
fn a_step_copies_a_few_numbers_for_each_row_and_nothing_else() {
    for case in cases() {
        let (stats, traffic, smallest) = counted_step(&case);
        let n = micro_batches(1).len();
        // Of each micro-batch: what the pass said to the host; angles (cosines and sines) and the loss's gradient back.
        assert_eq!((traffic.to_host.len(), traffic.from_host.len()), (n, 3 * n), "{}", case.name);
        let most = stats.n_tokens as usize * ROW_BYTES;
        for bytes in traffic.to_host.iter().chain(&traffic.from_host) {
            assert!(*bytes <= most && *bytes < smallest, "{}: {bytes} of {most}, {smallest}", case.name);
        }
        let n_trained =
            case.trainer(DeviceRef::cpu()).model.params.iter().filter(|(_, p)| p.trainable).count();
        let updates: usize = ["adamw", "muon"].iter().filter_map(|name| traffic.kernels.get(name)).sum();
        assert_eq!((updates, traffic.kernels["sums_of_squares"]), (n_trained, 1), "{}", case.name);
    }
}

/// Sampling copies the logits of the rows that are drawn from, and angles.
#[test]
fn sampling_copies_rows_of_logits() {
    let guarded = Guarded::leak("guarded");
    let model = Case::full("full", Dtype::F32, "adamw", "").model(guarded.device());
    guarded.take_traffic();
    let n_samples = samples(&model, Dtype::F32).len();
    let traffic = guarded.take_traffic();
    let row = 4 * model.config.vocab_size;
    assert!(traffic.to_host.iter().all(|bytes| *bytes == row), "{:?}", traffic.to_host);
    // One row of each prompt is shared by its samples.
    let most = n_samples * 6;
    assert!((1..=most).contains(&traffic.to_host.len()), "{} rows", traffic.to_host.len());
}
