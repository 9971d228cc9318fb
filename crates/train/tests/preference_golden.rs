//! Twenty optimiser steps of preference, reward and process-reward objectives against TRL's, computed in f64
//! (`golden/preference_train`).

mod common;

use std::sync::Arc;

use common::*;
use pt_engine::Dtype;
use pt_models::ScoreHeadKind;
use pt_objectives::CompletionKind::{self, Chosen, Desirable, Mismatched, Rejected, Undesirable};
use pt_train::{Example, MicroBatch, Reply, ScoredToken, Trainer};
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

/// What the policy says before the first step, kept as the reference.
fn fill_reference(trainer: &Trainer, examples: &mut [Example]) {
    let logp = trainer.logprobs(&MicroBatch::new(examples.to_vec())).unwrap().logp;
    let mut logp = logp.into_iter();
    for reply in examples.iter_mut().flat_map(|example| &mut example.replies) {
        reply.known.reference_logp = logp.by_ref().take(reply.token_ids.len()).collect();
    }
    assert!(logp.next().is_none(), "a value for every token of the replies");
}

struct Case {
    name: &'static str,
    examples: fn(&Value) -> Vec<Example>,
    head: Option<(ScoreHeadKind, usize)>,
}

const CASES: &[Case] = &[
    Case { name: "dpo", examples: |batch| pairs(batch, 0.0), head: None },
    Case { name: "kto", examples: labelled, head: None },
    // TRL's likelihood is over prompt and reply.
    Case { name: "orpo", examples: |batch| pairs(batch, 1.0), head: None },
    Case { name: "simpo", examples: |batch| pairs(batch, 0.0), head: None },
    Case { name: "reward", examples: scored_pairs, head: Some((ScoreHeadKind::Sequence, 1)) },
    Case { name: "prm", examples: solutions, head: Some((ScoreHeadKind::Token, 2)) },
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
            let mut steps: Vec<Vec<Example>> =
                batches.as_array().unwrap().iter().map(case.examples).collect();
            if needs_reference {
                steps.iter_mut().for_each(|examples| fill_reference(&trainer, examples));
            }
            assert_eq!(steps.len(), log["loss"].as_array().unwrap().len(), "{name}");
            for (i, examples) in steps.into_iter().enumerate() {
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
