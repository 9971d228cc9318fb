//! Twenty optimiser steps of preference, reward and process-reward objectives against TRL's, computed in f64
//! (`golden/preference_train`).

mod common;

use std::sync::Arc;

use common::*;
use pt_engine::Dtype;
use pt_models::{Model, ScoreHeadKind};
use pt_objectives::CompletionKind::{self, Chosen, Desirable, Mismatched, Rejected, Undesirable};
use pt_train::{Example, MicroBatch, ReferenceSync, Reply, ScoredToken, Trainer, score};
use serde_json::Value;

/// Losses, which are 0.5 to 8: PyTorch's own f32 run is within 3e-6 of the f64 one.
const LOSS_TOLERANCE: f64 = 1e-4;
/// Gradient norms, relative.
const NORM_TOLERANCE: f64 = 1e-4;
/// Metrics, relative to their size where that is above 1: rewards are differences of sums of log-probabilities.
const METRIC_TOLERANCE: f64 = 2e-4;

/// What TRL logs and this program computes otherwise, or under a condition: token metrics over each batch's rows.
const OTHER_METRICS: &[&str] = &["entropy", "mean_token_accuracy", "num_tokens"];

fn json(name: &str) -> Value {
    let path = golden("preference_train").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn reply(kind: CompletionKind, token_ids: Vec<u32>) -> Reply {
    Reply { weights: vec![1.0; token_ids.len()], token_ids, kind, ..Reply::default() }
}

fn origin() -> Arc<str> {
    "golden".into()
}

/// Pairs, whose prompt trains if TRL trains it.
fn pairs(batch: &Value, prompt_weight: f32) -> Vec<Example> {
    let pair = |pair: &Value| {
        let replies = vec![reply(Chosen, ids(&pair["chosen"])), reply(Rejected, ids(&pair["rejected"]))];
        let mut example = Example::prompt(ids(&pair["prompt"]), replies, 0, origin());
        example.weights.iter_mut().skip(1).for_each(|weight| *weight = prompt_weight);
        example
    };
    batch["pairs"].as_array().unwrap().iter().map(pair).collect()
}

fn labelled(batch: &Value) -> Vec<Example> {
    let sides = [("chosen", Desirable), ("rejected", Undesirable)];
    let pairs = batch["pairs"].as_array().unwrap();
    let one = |(side, kind)| {
        pairs.iter().map(move |pair| {
            let replies = vec![reply(kind, ids(&pair[side])), reply(Mismatched, ids(&pair["mismatched"]))];
            Example::prompt(ids(&pair["prompt"]), replies, 0, origin())
        })
    };
    sides.into_iter().flat_map(one).collect()
}

fn scored(position: usize, target: f32) -> ScoredToken {
    ScoredToken { position: Some(position), target, weight: 1.0, old_value: None }
}

fn scored_pairs(batch: &Value) -> Vec<Example> {
    let mut examples = pairs(batch, 0.0);
    for (example, pair) in examples.iter_mut().zip(batch["pairs"].as_array().unwrap()) {
        for reply in &mut example.replies {
            reply.weights.fill(0.0);
            reply.margin = pair["margin"].as_f64().unwrap() as f32;
            reply.scored = vec![scored(reply.token_ids.len() - 1, 0.0)];
        }
    }
    examples
}

fn solutions(batch: &Value) -> Vec<Example> {
    let solution = |solution: &Value| {
        let mut reply = Reply::default();
        let steps = solution["steps"].as_array().unwrap().iter().zip(ids(&solution["labels"]));
        for (step, label) in steps {
            reply.token_ids.extend(ids(step));
            reply.scored.push(scored(reply.token_ids.len() - 1, label as f32));
        }
        reply.weights = vec![0.0; reply.token_ids.len()];
        Example::prompt(ids(&solution["prompt"]), vec![reply], 0, origin())
    };
    batch["solutions"].as_array().unwrap().iter().map(solution).collect()
}

/// What the reference says, kept for the step.
fn fill_reference(reference: &Model, examples: &mut [Example]) {
    let micro_batch = MicroBatch::new(examples.to_vec());
    let (batch, predictions) = (micro_batch.batch().unwrap(), micro_batch.predictions());
    let mut logp = score(reference, &batch, Dtype::F32, &predictions).logp.into_iter();
    for reply in examples.iter_mut().flat_map(|example| &mut example.replies) {
        reply.known.reference_logp = logp.by_ref().take(reply.token_ids.len()).collect();
    }
    assert!(logp.next().is_none(), "a value for every token of the replies");
}

struct Case {
    name: &'static str,
    examples: fn(&Value) -> Vec<Example>,
    head: Option<(ScoreHeadKind, usize)>,
    /// Where the reference begins.
    reference: &'static str,
}

const PAIRS: Case = Case { name: "dpo", examples: |batch| pairs(batch, 0.0), head: None, reference: "llama" };

const CASES: &[Case] = &[
    PAIRS,
    Case { name: "dpo_other", reference: "qwen3", ..PAIRS },
    Case { name: "tr_dpo", ..PAIRS },
    Case { name: "kto", examples: labelled, ..PAIRS },
    // TRL's likelihood is over prompt and reply.
    Case { name: "orpo", examples: |batch| pairs(batch, 1.0), ..PAIRS },
    Case { name: "simpo", ..PAIRS },
    Case { name: "reward", examples: scored_pairs, head: Some((ScoreHeadKind::Sequence, 1)), ..PAIRS },
    Case { name: "prm", examples: solutions, head: Some((ScoreHeadKind::Token, 2)), ..PAIRS },
];

fn trainer(case: &Case, log: &Value) -> Trainer {
    let mut model = load_golden("llama", Dtype::F32);
    model.train_all().unwrap();
    if let Some((kind, n_outputs)) = case.head {
        let values = json("heads.json")["heads"][n_outputs.to_string()].clone();
        model.add_score_head(kind, &serde_json::from_value::<Vec<f32>>(values).unwrap()).unwrap();
    }
    let objective = log["objective"].as_str().unwrap();
    let options = log["options"].as_str().unwrap().parse().unwrap();
    let setup = Setup {
        schedule: "name = 'cosine'\nwarmup_steps = 4",
        steps: 20,
        learning_rate: log["settings"]["lr"].as_f64().unwrap(),
        ..Setup::default()
    };
    setup.trainer_of(model, pt_objectives::build(objective, &options).unwrap()).unwrap()
}

/// A step as micro-batches.
type Cut = fn(Vec<Example>) -> Vec<MicroBatch>;

/// The step in one micro-batch, and in one for each example.
const CUTS: &[Cut] = &[
    |examples| vec![MicroBatch::new(examples)],
    |examples| examples.into_iter().map(|example| MicroBatch::new(vec![example])).collect(),
];

#[test]
fn twenty_steps_are_those_of_trl() {
    let batches = json("batches.json");
    for case in CASES {
        let (name, log) = (case.name, json(&format!("{}.json", case.name)));
        for (cut, micro_batches) in CUTS.iter().enumerate() {
            let mut trainer = trainer(case, &log);
            let needs_reference = trainer.objective().needs().reference_logp;
            let mut reference = load_golden(case.reference, Dtype::F32);
            let sync = log["sync"].as_object().map(|sync| ReferenceSync {
                steps: sync["ref_model_sync_steps"].as_u64().unwrap(),
                mixup_alpha: sync["ref_model_mixup_alpha"].as_f64().unwrap(),
            });
            let steps: Vec<Vec<Example>> = batches.as_array().unwrap().iter().map(case.examples).collect();
            assert_eq!(steps.len(), log["loss"].as_array().unwrap().len(), "{name}");
            for (i, mut examples) in steps.into_iter().enumerate() {
                if let Some(sync) = sync.filter(|sync| sync.is_due(i as u64, 1)) {
                    sync.update(&mut reference, &trainer.model).unwrap();
                }
                if needs_reference {
                    fill_reference(&reference, &mut examples);
                }
                let (stats, _) = trainer.step(&micro_batches(examples)).unwrap();
                let expected = |key: &str| log[key][i].as_f64().unwrap();
                let at = format!("{name}, cut {cut}, step {i}");
                let loss_gap = (stats.loss - expected("loss")).abs();
                assert!(loss_gap < LOSS_TOLERANCE, "{at}: loss {} is {loss_gap:.1e} off", stats.loss);
                let norm_gap = (stats.grad_norm / expected("grad_norm") - 1.0).abs();
                assert!(norm_gap < NORM_TOLERANCE, "{at}: norm {} is {norm_gap:.1e} off", stats.grad_norm);
                check_metrics(&at, &stats.metrics, &log["metrics"][i]);
            }
        }
    }
}

/// Every metric that both have is the same, and they have some.
fn check_metrics(at: &str, found: &[(String, f64)], expected: &Value) {
    let mut n_shared = 0;
    for (key, value) in found.iter().filter(|(key, _)| !OTHER_METRICS.contains(&&**key)) {
        let Some(expected) = expected[key].as_f64() else { continue };
        let gap = (value - expected).abs() / expected.abs().max(1.0);
        assert!(gap < METRIC_TOLERANCE, "{at}: {key} is {value}, expected {expected}");
        n_shared += 1;
    }
    assert!(n_shared > 0, "{at}: {found:?} and {expected}");
}

/// Distillation by the whole distribution against TRL's `GKDTrainer` (`golden/gkd/train.json`).
#[test]
fn twenty_steps_of_distillation_are_those_of_trl() {
    let read = |path| serde_json::from_str::<Value>(&std::fs::read_to_string(golden(path)).unwrap()).unwrap();
    let (log, batches) = (read("gkd/train.json"), json("batches.json"));
    for (name, run) in log["runs"].as_object().unwrap() {
        for (cut, micro_batches) in CUTS.iter().enumerate() {
            let mut model = load_golden("llama", Dtype::F32);
            model.train_all().unwrap();
            let objective = pt_objectives::build("gkd", &run["options"].as_str().unwrap().parse().unwrap());
            let setup = Setup {
                schedule: "name = 'cosine'\nwarmup_steps = 4",
                steps: 20,
                learning_rate: log["learning_rate"].as_f64().unwrap(),
                ..Setup::default()
            };
            let teacher = load_golden("qwen3", Dtype::F32);
            let trainer = setup.trainer_of(model, objective.unwrap()).unwrap();
            let mut trainer = trainer.with_teacher(Arc::new(teacher)).unwrap();
            for (i, batch) in batches.as_array().unwrap().iter().enumerate() {
                let chosen = pairs(batch, 0.0).into_iter().map(|mut pair| {
                    pair.replies.truncate(1);
                    pair
                });
                let step = micro_batches(chosen.collect());
                let held_out = trainer.evaluate(&step).unwrap().loss;
                let (stats, _) = trainer.step(&step).unwrap();
                assert!((held_out - stats.loss).abs() < 1e-6, "{name}: {held_out} and {}", stats.loss);
                let expected = |key: &str| run[key][i].as_f64().unwrap();
                let at = format!("{name}, cut {cut}, step {i}");
                let loss_gap = (stats.loss - expected("loss")).abs();
                assert!(loss_gap < LOSS_TOLERANCE, "{at}: loss {} is {loss_gap:.1e} off", stats.loss);
                let norm_gap = (stats.grad_norm / expected("grad_norm") - 1.0).abs();
                assert!(norm_gap < NORM_TOLERANCE, "{at}: norm {} is {norm_gap:.1e} off", stats.grad_norm);
                assert!(stats.metrics.iter().any(|(key, _)| key == "divergence"), "{:?}", stats.metrics);
            }
        }
    }
}

#[test]
fn a_teacher_of_another_vocabulary_is_refused() {
    let mut model = tiny_model().build(Dtype::F32, 1).unwrap();
    model.train_all().unwrap();
    let objective = pt_objectives::build("gkd", &toml::Table::new()).unwrap();
    let trainer = Setup::default().trainer_of(model, objective).unwrap();
    let problem = trainer.with_teacher(Arc::new(load_golden("llama", Dtype::F32))).err().unwrap().to_string();
    assert!(problem.contains("has 112 tokens, the student's 16"), "{problem}");
}
