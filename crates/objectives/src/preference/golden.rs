//! Losses, gradients and metrics against TRL's own code (golden/preference/losses.json).

use serde_json::Value;

use super::harness::step::Owned;
use crate::{
    Completion, CompletionKind as Kind, Metric, Normaliser, Objective, ObjectiveOutput, PrePass, build,
};

/// Of losses, of metrics, and of gradients relative to the largest of them. Ours are f32 at the end, TRL's f64.
const TOLERANCE: f64 = 1e-6;

/// Where TRL computes in f32 itself (the alpha divergence, whose clamp knows no f64).
const TOLERANCE_F32: f64 = 1e-5;

fn golden() -> Value {
    let path = pt_core::testdata::workspace_root().join("golden/preference/losses.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn push_prompt(batch: &mut Owned, logp: &Value, weight: f32) {
    let logp = floats(logp);
    let n = logp.len();
    batch.reference.extend(&logp);
    batch.logp.extend(logp);
    batch.weights.extend(vec![weight; n]);
    batch.collision.extend(vec![0.0; n]);
    batch.entropy.extend(vec![0.0; n]);
    batch.correct.extend(vec![false; n]);
}

fn push_reply<'b>(
    batch: &'b mut Owned,
    reply: &Value,
    kind: Kind,
    group: usize,
    shift: f32,
) -> &'b mut Completion {
    let start = batch.logp.len();
    batch.logp.extend(floats(&reply["logp"]).iter().map(|logp| logp + shift));
    batch.weights.resize(batch.logp.len(), 1.0);
    batch.reference.extend(floats(&reply["reference"]));
    batch.collision.extend(floats(&reply["collision"]));
    batch.entropy.extend(floats(&reply["entropy"]));
    batch.correct.extend(reply["correct"].as_array().unwrap().iter().map(|c| c.as_bool().unwrap()));
    let (tokens, index) = (start..batch.logp.len(), batch.completions.len());
    batch.completions.push(Completion {
        tokens,
        group,
        index,
        kind,
        label: 1.0,
        weight: 1.0,
        ..Completion::default()
    });
    batch.completions.last_mut().unwrap()
}

/// The batch of a case, and the mismatched replies of its pre-pass.
fn batches(pairs: &[Value], case: &Value) -> (Owned, Owned) {
    let (mut batch, mut mismatched) = (Owned::default(), Owned::default());
    let layout = case["layout"].as_str().unwrap();
    let n = pairs.len();
    let order: Vec<usize> = match case["order"].as_array() {
        Some(order) => order.iter().map(|i| i.as_u64().unwrap() as usize).collect(),
        None => (0..n).collect(),
    };
    match layout {
        "labelled" => {
            let shift = case["shift"].as_f64().unwrap_or(0.0) as f32;
            let n_bad = 4;
            let weights = case["weights"].as_array().map_or(vec![1.0; n_bad], |_| floats(&case["weights"]));
            for i in 0..n + n_bad {
                let (pair, side, kind) = match i < n {
                    true => (&pairs[i], "chosen", Kind::Desirable),
                    false => (&pairs[i - n], "rejected", Kind::Undesirable),
                };
                let completion = push_reply(&mut batch, &pair[side], kind, i, 0.0);
                completion.weight = if i < n { 1.0 } else { weights[i - n] };
                push_reply(&mut mismatched, &pair["mismatched"], Kind::Mismatched, i, shift);
            }
        }
        "samples" => {
            let labels = floats(&case["labels"]);
            for (i, pair) in pairs.iter().enumerate() {
                push_reply(&mut batch, &pair["chosen"], Kind::Sample, i, 0.0).label = labels[i];
            }
        }
        "steps" => {
            batch.n_outputs = 2;
            batch.values = floats(&case["values"]);
            batch.targets = floats(&case["targets"]);
            batch.score_weights = vec![1.0; batch.targets.len()];
            let mut start = 0;
            for n in case["lengths"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize) {
                batch.completions.push(Completion { scores: start..start + n, ..Completion::default() });
                start += n;
            }
        }
        _ => {
            for (place, &i) in order.iter().enumerate() {
                push_pair(&mut batch, &pairs[i], layout, place);
            }
        }
    }
    (batch, mismatched)
}

fn push_pair(batch: &mut Owned, pair: &Value, layout: &str, group: usize) {
    let has_scores = layout.starts_with("scores");
    push_prompt(batch, &pair["prompt"], if layout == "pairs_with_prompt" { 1.0 } else { 0.0 });
    if layout == "triples" {
        push_reply(batch, &pair["gold"], Kind::Gold, group, 0.0);
    }
    for (side, name, kind) in [(0, "chosen", Kind::Chosen), (1, "rejected", Kind::Rejected)] {
        let completion = push_reply(batch, &pair[name], kind, group, 0.0);
        completion.is_reference_sample = layout == "online" && (side == 0) == (group % 2 == 1);
        if layout == "scores_with_margins" {
            completion.margin = pair["margin"].as_f64().unwrap() as f32;
        }
        if has_scores {
            completion.scores = 2 * group + side..2 * group + side + 1;
        }
    }
    if has_scores {
        batch.n_outputs = 1;
        batch.values.extend(floats(&pair["scores"]));
        batch.targets.extend([0.0; 2]);
        batch.score_weights.extend([1.0; 2]);
    }
}

fn evaluate(objective: &dyn Objective, batch: &Owned, mismatched: &Owned) -> ObjectiveOutput {
    let normaliser = Normaliser::of_step(objective, std::iter::once(batch.view())).unwrap();
    let shared = match objective.pre_pass() {
        PrePass::None => Vec::new(),
        PrePass::Mismatched => objective.prepare(&mismatched.view()).unwrap(),
        PrePass::All => objective.prepare(&batch.view()).unwrap(),
    };
    objective.evaluate(&batch.view(), &normaliser.with_shared(shared)).unwrap()
}

fn near(ours: f64, theirs: f64, scale: f64, tolerance: f64, what: &str) {
    assert!((ours - theirs).abs() <= tolerance * scale, "{what}: {ours} against {theirs}");
}

fn metric(output: &ObjectiveOutput, name: &str) -> Option<f64> {
    output.metrics.iter().find(|m| m.name == name).and_then(Metric::value)
}

#[test]
fn equals_trl() {
    let golden = golden();
    let pairs = golden["pairs"].as_array().unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 90);
    for case in cases {
        let (name, options) = (case["objective"].as_str().unwrap(), case["options"].as_str().unwrap());
        let what = format!("{name} {options} {}", case["layout"]);
        let mut objective = build(name, &options.parse().unwrap()).unwrap();
        if let Some(state) = case["state"].as_array() {
            objective.set_state(&state.iter().map(|v| v.as_f64().unwrap()).collect::<Vec<f64>>());
        }
        let (batch, mismatched) = batches(pairs, case);
        let output = evaluate(&*objective, &batch, &mismatched);
        let tolerance = if options.contains("alpha_divergence") { TOLERANCE_F32 } else { TOLERANCE };
        let loss = case["loss"].as_f64().unwrap();
        near(output.loss, loss, loss.abs(), tolerance, &what);
        let gradient: Vec<f64> =
            case["gradient"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let ours = output.d_scores.as_ref().unwrap_or(&output.d_logp);
        assert_eq!(ours.len(), gradient.len(), "{what}");
        let largest = gradient.iter().fold(0.0, |largest: f64, g| largest.max(g.abs()));
        assert!(largest > 0.0, "{what}: TRL has no gradient");
        for (i, (&ours, &theirs)) in ours.iter().zip(&gradient).enumerate() {
            near(f64::from(ours), theirs, largest, tolerance, &format!("{what}, gradient {i}"));
        }
        for (name, value) in case["metrics"].as_object().unwrap() {
            let ours = metric(&output, name).unwrap_or_else(|| panic!("{what}: no {name}"));
            let theirs = value.as_f64().unwrap();
            near(ours, theirs, theirs.abs().max(0.1), tolerance, &format!("{what}, {name}"));
        }
    }
}

/// What is named apart from TRL's names is what the files' headers say it is.
#[test]
fn differences_from_trl_are_as_stated() {
    let golden = golden();
    let pairs = golden["pairs"].as_array().unwrap();
    let loss = |name: &str, options: &str, layout: &str| {
        let case = serde_json::json!({ "layout": layout });
        let (batch, mismatched) = batches(pairs, &case);
        evaluate(&*build(name, &options.parse().unwrap()).unwrap(), &batch, &mismatched).loss
    };
    let same = |a: f64, b: f64| near(a, b, a.abs(), 1e-12, "relation");
    // TRL's sigmoid goes on without the smoothing it is given; ours is refused, and cDPO reads it.
    assert!(build("dpo", &"label_smoothing = 0.2".parse().unwrap()).is_err());
    let smoothed = loss("dpo", "loss_type = 'cdpo'\nlabel_smoothing = 0.2", "pairs");
    let robust = loss("dpo", "loss_type = 'robust'\nlabel_smoothing = 0.2", "pairs");
    // (1 - e) l+ + e l- and ((1 - e) l+ - e l-) / (1 - 2 e) have this sum.
    same(smoothed + 0.6 * robust, 1.6 * loss("dpo", "", "pairs"));
    // Online IPO, which XPO without its bonus is.
    same(
        loss("xpo", "loss_type = 'ipo'\nalpha = 0.0", "online"),
        loss("dpo", "loss_type = 'ipo'\nlength_normalization = 'never'", "pairs"),
    );
    same(
        loss("dpo", "loss_type = 'sigmoid'\nlength_normalization = 'always'", "pairs"),
        loss("dpo", "loss_type = 'sigmoid_norm'", "pairs"),
    );
    // ORPO's likelihood is over prompt and reply in TRL; without the prompt's, the rest of the loss is the same.
    let (with_prompt, without) = (loss("orpo", "", "pairs_with_prompt"), loss("orpo", "", "pairs"));
    let likelihood =
        |layout: &str| 2.0 * loss("orpo", "beta = 0.1", layout) - loss("orpo", "beta = 0.2", layout);
    near(
        with_prompt - likelihood("pairs_with_prompt"),
        without - likelihood("pairs"),
        1.0,
        1e-12,
        "odds ratio",
    );
    assert!((with_prompt - without).abs() > 1e-3);
    same(loss("alphapo", "alpha = 0.0", "pairs"), loss("simpo", "", "pairs"));
    same(
        loss("dpo", "f_divergence_type = 'alpha_divergence'\nf_alpha_divergence_coef = 1.0", "pairs"),
        loss("dpo", "", "pairs"),
    );
}
