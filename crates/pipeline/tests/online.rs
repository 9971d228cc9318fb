//! Online comparisons: the better of two samples is learned to be the likelier one, opponents come from the reference or from a mixture,
//! the best of many is imitated; and a run that was interrupted ends with the bytes of one that was not.

mod common;

use std::path::Path;

use common::*;
use pt_pipeline::catalogue;
use pt_pipeline::rl::{ReplayOptions, replay};
use pt_recipe::Recipe;
use pt_rl::RolloutRecord;
use pt_run::{Difference, compare_runs};

const ONLINE: &str = "
data.train = [\"generated:letters?level=1&n=40&seed=5&form=prompt_only\"]
train.rows_per_step = 8
train.log_every = 1
schedule.type = \"constant\"
rollout.max_new_tokens = 6
rollout.alarms = \"off\"
eval.n = 1
eval.max_new_tokens = 1
";
const STAGE: &str = "01-sft";

fn online(kind: &str, more: &str) -> String {
    format!("{}\n[[stage]]\ntype = \"{kind}\"\nname = \"sft\"{ONLINE}{more}{A_OR_E}", on_base())
}

fn values(run: &Path, key: &str) -> Vec<f64> {
    metric(run, STAGE, key).into_iter().map(|(_, value)| value).collect()
}

fn rollouts(run: &Path) -> Vec<Vec<RolloutRecord>> {
    rollouts_of(run, STAGE)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn every_method_raises_the_reward() {
    for (kind, more, n, rise) in [
        ("online_dpo", "optimizer.learning_rate = 1e-3\nrollout.n = 4\n", 4, 0.1),
        ("xpo", "optimizer.learning_rate = 3e-3\nrollout.n = 4\n", 4, 0.1),
        (
            "nash_md",
            "optimizer.learning_rate = 2e-3\nrollout.n = 4\nobjective.type = \"nash_md\"\nobjective.beta = 0.01\n",
            4,
            0.1,
        ),
        ("rejection", "optimizer.learning_rate = 3e-3\nonline.min_reward = 0.5\n", 8, 0.1),
    ] {
        let dir = tempdir();
        let out = dir.path().join("run");
        finish(&online(kind, more), &["stage.0.train.steps=40"], &out);
        let rounds = rollouts(&out);
        // The second half of a group may be another policy's.
        let own = |round: &Vec<RolloutRecord>| {
            let own = round.iter().filter(|record| record.sample < n / 2);
            mean(&own.map(|record| record.reward.unwrap()).collect::<Vec<f64>>())
        };
        let reward: Vec<f64> = rounds.iter().map(own).collect();
        let (first, last) = (mean(&reward[..6]), mean(&reward[34..]));
        assert!(last > first + rise, "{kind}: reward from {first} to {last}");
        assert!(rounds.iter().all(|round| round.len() == 8 * n), "{kind}");
        let marked = |value: f32| rounds.iter().flatten().filter(|record| record.advantage == value).count();
        match kind {
            "online_dpo" | "xpo" => {
                let ties = values(&out, "pairs/ties");
                assert!(ties.iter().all(|ties| (0.0..=1.0).contains(ties)), "{kind}");
                let n_pairs = (40.0 * 8.0 * (1.0 - mean(&ties))).round() as usize;
                assert!(
                    n_pairs > 40 && marked(1.0) == n_pairs && marked(-1.0) == n_pairs,
                    "{kind}: {n_pairs}"
                );
                // The first step's margins are exactly 0.
                assert_eq!(values(&out, "rewards/margins")[0], 0.0, "{kind}");
            }
            "nash_md" => assert_eq!(values(&out, "objective/kl")[0], 0.0),
            _ => {
                let kept = values(&out, "rejection/kept");
                assert_eq!(marked(1.0), (kept.iter().sum::<f64>() * 8.0).round() as usize);
            }
        }
    }
}

/// A student that was led astray comes back to its teacher on its own samples.
#[test]
fn a_student_learns_what_its_teacher_thinks() {
    let dir = tempdir();
    let out = dir.path().join("run");
    let astray = "\n[[stage]]\ntype = \"sft\"\nname = \"astray\"\ndata.train = [\"generated:sum?level=1&n=60&seed=4\"]\n\
                  train.steps = 12\noptimizer.learning_rate = 5e-3\neval.n = 1\neval.max_new_tokens = 1\n";
    let text = format!(
        "{}{astray}\n[[stage]]\ntype = \"distillation\"{ONLINE}optimizer.learning_rate = 3e-3\n\
         distillation.teacher = {:?}\ntrain.steps = 40\n",
        on_base(),
        base_model()
    );
    finish(&text, &[], &out);
    let kl: Vec<f64> = metric(&out, "02-distillation", "reverse_kl").into_iter().map(|(_, kl)| kl).collect();
    let (first, last) = (mean(&kl[..4]), mean(&kl[34..]));
    assert!(first > 0.1 && last < 0.7 * first, "reverse KL from {first} to {last}");
    let without = text.replace("distillation.teacher", "#");
    let refused = Recipe::parse(&without, Path::new("test.toml"), &[], &catalogue()).unwrap_err().to_string();
    assert!(refused.contains("which teacher?"), "{refused}");
}

/// The two halves of a group are different draws, and the second half stays the reference's.
#[test]
fn opponents_are_drawn_apart() {
    for kind in ["xpo", "nash_md"] {
        let dir = tempdir();
        let out = dir.path().join("run");
        finish(
            &online(kind, "rollout.n = 2\noptimizer.learning_rate = 1e-3\n"),
            &["stage.0.train.steps=2"],
            &out,
        );
        let round = &rollouts(&out)[0];
        let n_same = round.chunks(2).filter(|pair| pair[0].completion_ids == pair[1].completion_ids).count();
        assert!(n_same < 5, "{kind}: {n_same} of 8 pairs are the same");
        assert!(round.iter().all(|record| record.logprobs.iter().all(|logp| *logp <= 0.0)), "{kind}");
    }
}

#[test]
fn interrupted_anywhere_it_ends_the_same() {
    for kind in ["online_dpo", "xpo", "nash_md", "rejection"] {
        let more = "rollout.n = 4\nrollout.passes = 2\ntrain.steps = 6\ntrain.save_every = 2\n\
                    optimizer.learning_rate = 1e-3\ntrain.method = \"lora\"\nlora.rank = 4\n";
        let text = online(kind, more);
        let dir = tempdir();
        let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
        finish(&text, &[], &whole);
        for step in [1, 3, 4] {
            go(&text, &[], &out, &mut Seen::stopping(StopAt::Step("sft", step))).unwrap();
        }
        finish(&text, &[], &out);
        let only_there = |difference: &Difference| !matches!(difference, Difference::CheckpointOnlyIn { .. });
        let differences: Vec<String> = compare_runs(&whole, &out)
            .unwrap()
            .into_iter()
            .filter(only_there)
            .map(|difference| difference.to_string())
            .collect();
        assert!(differences.is_empty(), "{kind}: {differences:#?}");
    }
}

/// Samples of other stages than those of group advantages do not train as a replay would have them.
#[test]
fn only_group_advantages_are_replayed() {
    let replayed = |text: &str, stage: usize, run: &Path| {
        let plan = prepared(text, &[]).plan;
        replay(run, &plan, &plan.stages[stage], 1, &ReplayOptions::default(), &nothing_around())
    };
    let teacher = format!("distillation.teacher = {:?}\n", base_model());
    for kind in ["ppo", "online_dpo", "xpo", "nash_md", "rejection", "distillation"] {
        let more = "train.steps = 2\nrollout.n = 2\n";
        let text = match kind {
            "distillation" => online(kind, &format!("{more}{teacher}")).replace(A_OR_E, ""),
            _ => online(kind, more),
        };
        let refused = replayed(&text, 0, Path::new("nowhere")).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("`{kind}` stage")) && refused.contains("grpo"),
            "{kind}: {refused}"
        );
    }
    // A stage after a reward model begins with what was before that.
    let dir = tempdir();
    let out = dir.path().join("run");
    let scorer = "\n[[stage]]\ntype = \"reward\"\ndata.train = [\"generated:sum?level=1&n=8&seed=5&form=preference\"]\n\
                  train.steps = 1\neval.n = 8\n";
    let grpo = online("grpo", "train.steps = 2\nobjective.type = \"grpo\"\nobjective.beta = 0.1\n");
    let text = grpo.replacen("\n[[stage]]", &format!("{scorer}\n[[stage]]"), 1);
    finish(&text, &[], &out);
    let found = replayed(&text, 1, &out).unwrap();
    let value = |name: &str| found.values.iter().find(|(n, _)| n == name).map(|(_, value)| *value);
    assert_eq!(found.model, base_model().display().to_string());
    assert_eq!(value("sampling/sampling_logp_difference/max"), Some(0.0), "{found:?}");
    assert_eq!(value("kl"), Some(0.0), "{found:?}");
}

#[test]
fn a_round_whose_samples_are_gone_is_refused_and_can_be_sampled_again() {
    let text =
        online("online_dpo", "rollout.n = 2\nrollout.passes = 2\ntrain.steps = 6\ntrain.save_every = 1\n");
    let dir = tempdir();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    finish(&text, &[], &whole);
    go(&text, &[], &out, &mut Seen::stopping(StopAt::Step("sft", 3))).unwrap();
    let stage = out.join("stages").join(STAGE);
    std::fs::remove_file(stage.join("rollouts/step-00000001.jsonl.zst")).unwrap();
    let refused = go(&text, &[], &out, &mut Seen::default()).unwrap_err().to_string();
    assert!(refused.contains("samples of round 1 are gone") && refused.contains("after step 2"), "{refused}");
    // What the message says to do.
    std::fs::remove_dir_all(stage.join("checkpoints/step-000003")).unwrap();
    finish(&text, &[], &out);
    let differences: Vec<Difference> = compare_runs(&whole, &out).unwrap();
    assert!(differences.is_empty(), "{differences:?}");
}

/// A second set of weights is part of what a stage needs; an adapter's reference is the model without it.
#[test]
fn a_second_model_is_part_of_the_planned_memory() {
    let teacher = format!("distillation.teacher = {:?}\n", base_model());
    let lora = "train.method = \"lora\"\nlora.rank = 4\n";
    for (kind, more, expected) in [
        ("online_dpo", "", Some("reference")),
        ("online_dpo", lora, None),
        ("xpo", lora, Some("reference")),
        ("grpo", "", None),
        ("grpo", "objective.type = \"grpo\"\nobjective.beta = 0.1\n", Some("reference")),
        ("grpo", "rollout.reward_kl = 0.1\n", Some("reference")),
        ("rejection", "", None),
        ("distillation", teacher.as_str(), Some("teacher")),
    ] {
        let text = online(kind, &format!("train.steps = 1\nrollout.n = 2\n{more}"));
        let text = if kind == "distillation" { text.replace(A_OR_E, "") } else { text };
        let memory = &prepared(&text, &[]).plan.stages[0].memory;
        let bytes = |name: &str| memory.iter().find(|part| part.part == name).map(|part| part.bytes);
        let found = ["reference", "teacher"].into_iter().find(|name| bytes(name).is_some());
        assert_eq!(found, expected, "{kind} {more}");
        if let Some(name) = found {
            assert_eq!(bytes(name), bytes("weights"), "{kind} {more}");
        }
    }
}
