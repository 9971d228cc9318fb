//! TRL's losses, gradients and metrics: golden/rl/losses.json.

use super::*;
use serde_json::Value;

/// Relative to the largest gradient; inputs are exact, TRL computed in f64, gradients are f32 here.
const TOLERANCE: f64 = 1e-6;

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn golden() -> Value {
    let path = pt_core::testdata::workspace_root().join("golden/rl/losses.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn completions_of(lengths: &[usize], group_size: usize) -> Vec<Completion> {
    let mut start = 0;
    let mut completions = Vec::new();
    for (index, &length) in lengths.iter().enumerate() {
        let tokens = start..start + length;
        start += length;
        let (group, scores) = (index / group_size, tokens.clone());
        completions.push(Completion { tokens, scores, group, index, weight: 1.0, ..Completion::default() });
    }
    completions
}

fn batch(recorded: &Value, group_size: usize, token_advantages: bool) -> Owned {
    let lengths: Vec<usize> =
        recorded["lengths"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
    let completions = completions_of(&lengths, group_size);
    let start = lengths.iter().sum();
    let per_sequence = floats(&recorded["advantages"]);
    let advantages = match token_advantages {
        true => floats(&recorded["token_advantages"]),
        false => completions.iter().flat_map(|c| vec![per_sequence[c.index]; c.tokens.len()]).collect(),
    };
    Owned {
        logp: floats(&recorded["logp"]),
        weights: vec![1.0; start],
        entropy: floats(&recorded["entropy"]),
        reference: floats(&recorded["reference"]),
        old: Some(floats(&recorded["old"])),
        sampler: Some(floats(&recorded["sampler"])),
        advantages,
        values: floats(&recorded["values"]),
        targets: floats(&recorded["returns"]),
        old_values: floats(&recorded["old_values"]),
        completions,
    }
}

fn same_gradient(what: &str, ours: Option<&[f32]>, theirs: &Value) {
    let Some(theirs) = theirs.as_array() else {
        return;
    };
    let theirs: Vec<f64> = theirs.iter().map(|v| v.as_f64().unwrap()).collect();
    let ours = ours.unwrap_or_else(|| panic!("{what}: no gradient"));
    let largest = theirs.iter().fold(1e-9, |m: f64, v| m.max(v.abs()));
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        assert!((f64::from(*a) - b).abs() <= TOLERANCE * largest, "{what}, token {i}: {a} against {b}");
    }
}

fn same_loss(what: &str, ours: f64, theirs: &Value) {
    let theirs = theirs.as_f64().unwrap();
    assert!((ours - theirs).abs() <= TOLERANCE * theirs.abs().max(1e-2), "{what}: {ours} against {theirs}");
}

#[test]
fn equals_trl() {
    let golden = golden();
    let group_size = golden["group"].as_u64().unwrap() as usize;
    let mut n_metrics = 0;
    for case in golden["cases"].as_array().unwrap() {
        let text = |key: &str| case[key].as_str().unwrap();
        let what = text("name");
        let mut batch = batch(&golden["batches"][text("batch")], group_size, false);
        if !case["has_old"].as_bool().unwrap() {
            batch.old = None;
        }
        if !case["has_sampler"].as_bool().unwrap() {
            batch.sampler = None;
        }
        let objective = build(text("objective"), &text("options").parse().unwrap()).unwrap();
        let output = evaluate(&*objective, &batch);
        // TRL's RLOO counts −A of a completion without trained tokens, a constant; here it adds nothing.
        let recorded = floats(&golden["batches"][text("batch")]["advantages"]);
        let untrained =
            batch.completions.iter().filter(|c| text("objective") == "rloo" && c.tokens.is_empty());
        let constant: f64 = untrained.map(|c| -f64::from(recorded[c.index])).sum();
        same_loss(what, output.loss + constant / batch.completions.len() as f64, &case["loss"]);
        same_gradient(what, Some(&output.d_logp), &case["d_logp"]);
        same_gradient(what, output.d_entropy.as_deref(), &case["d_entropy"]);
        // TRL counts sequences without trained tokens as unclipped ones; here they say nothing.
        let trained = batch.completions.iter().filter(|c| !c.tokens.is_empty()).count() as f64;
        let has_empty = trained < batch.completions.len() as f64;
        let is_by_sequence = what.contains(" sequence ");
        for (name, theirs) in case["metrics"].as_object().unwrap() {
            let mut theirs = theirs.as_f64().unwrap();
            if is_by_sequence && has_empty && name.starts_with("clip_ratio/low_min") {
                continue;
            }
            if (is_by_sequence && name.contains("clip_ratio") && name.contains("_mean"))
                || name == "cispo_clip_ratio" && is_by_sequence
            {
                theirs *= batch.completions.len() as f64 / trained;
            }
            if name == "vespo/phi_seq_mean" && has_empty {
                continue;
            }
            let ours = metric(&output, name).unwrap_or_else(|| panic!("{what}: no metric {name}"));
            assert!(
                (ours - theirs).abs() <= TOLERANCE * theirs.abs().max(1e-2),
                "{what} {name}: {ours}, {theirs}"
            );
            n_metrics += 1;
        }
    }
    assert!(n_metrics > 1000, "only {n_metrics} metrics were compared");
}

#[test]
fn the_adaptive_bonus_moves_as_in_trl() {
    let golden = golden();
    let adaptive = &golden["adaptive"];
    let options = adaptive["options"].as_str().unwrap();
    // The starting coefficient is the option; the one listed here is what TRL started from.
    let options = format!("entropy_coef = 0.01\n{}", options.replace("entropy_coef = 0.01\n", ""));
    let mut objective = build("grpo", &options.parse().unwrap()).unwrap();
    let mut batch = batch(&golden["batches"]["uneven"], 3, false);
    batch.sampler = None;
    for (i, step) in adaptive["steps"].as_array().unwrap().iter().enumerate() {
        batch.entropy = floats(&step["entropy"]);
        let output = evaluate(&*objective, &batch);
        same_loss(&format!("step {i}"), output.loss, &step["loss"]);
        same_gradient(&format!("step {i}"), output.d_entropy.as_deref(), &step["d_entropy"]);
        objective.end_step(&output.metrics);
        let after = step["entropy_coef_after"].as_f64().unwrap();
        assert!(
            (objective.state()[0] - after).abs() < 1e-12,
            "step {i}: {} against {after}",
            objective.state()[0]
        );
    }
}

#[test]
fn ppo_equals_its_formulas_in_pytorch() {
    let golden = golden();
    for case in golden["ppo"].as_array().unwrap() {
        let batch = batch(&golden["batches"][case["batch"].as_str().unwrap()], 3, true);
        let options = case["options"].as_str().unwrap();
        let output = evaluate(&*build("ppo", &options.parse().unwrap()).unwrap(), &batch);
        same_loss(options, output.loss, &case["loss"]);
        same_gradient(options, Some(&output.d_logp), &case["d_logp"]);
        same_gradient(options, output.d_scores.as_deref(), &case["d_scores"]);
        for (name, theirs) in case["metrics"].as_object().unwrap() {
            same_loss(name, metric(&output, name).unwrap(), theirs);
        }
    }
}

/// With advantages of 1 and ratios of 1, a token's gradient is its correction, by the number of tokens.
#[test]
fn corrections_of_another_sampler_are_trls() {
    for case in golden()["samplers"].as_array().unwrap() {
        let lengths: Vec<usize> =
            case["lengths"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let logp = floats(&case["old"]);
        let mut batch = Owned { completions: completions_of(&lengths, 4), ..Owned::default() };
        for array in [&mut batch.entropy, &mut batch.values, &mut batch.targets, &mut batch.old_values] {
            *array = vec![0.0; logp.len()];
        }
        (batch.weights, batch.advantages) = (vec![1.0; logp.len()], vec![1.0; logp.len()]);
        (batch.reference, batch.sampler) = (logp.clone(), Some(floats(&case["sampler"])));
        (batch.old, batch.logp) = (Some(logp.clone()), logp.clone());
        let options = format!(
            "importance_sampling_correction = {}\nimportance_sampling_clip_min = {}\nimportance_sampling_clip_max = {}",
            case["mode"], case["clip_min"], case["clip_max"]
        );
        let output = evaluate(&*build("dapo", &options.parse().unwrap()).unwrap(), &batch);
        let ratios: Vec<f32> = output.d_logp.iter().map(|d| -d * logp.len() as f32).collect();
        same_gradient(&options, Some(&ratios), &case["ratio"]);
        assert_eq!(case["metrics"].as_object().unwrap().len(), 5);
        for (name, theirs) in case["metrics"].as_object().unwrap() {
            same_loss(name, metric(&output, name).unwrap(), theirs);
        }
    }
}
