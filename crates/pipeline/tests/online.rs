//! Online comparisons: the better of two samples is learned to be the likelier one, opponents come from the reference or from a mixture,
//! the best of many is imitated; and a run that was interrupted ends with the bytes of one that was not.

mod common;

use std::path::Path;

use common::*;
use pt_pipeline::catalogue;
use pt_recipe::Recipe;
use pt_rl::{RolloutRecord, RolloutsFolder};
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
const REWARD: &str = "[[stage.reward]]\ntype = \"contains\"\nrequired = [\"a\", \"e\"]\npartial = true\n";
const STAGE: &str = "01-sft";

fn online(kind: &str, more: &str) -> String {
    format!("{}\n[[stage]]\ntype = \"{kind}\"\nname = \"sft\"{ONLINE}{more}{REWARD}", on_base())
}

fn values(run: &Path, key: &str) -> Vec<f64> {
    metric(run, STAGE, key).into_iter().map(|(_, value)| value).collect()
}

fn rollouts(run: &Path) -> Vec<Vec<RolloutRecord>> {
    let folder = RolloutsFolder::open(run.join("stages").join(STAGE).join("rollouts"), true).unwrap();
    folder.steps().unwrap().into_iter().map(|step| folder.read(step).unwrap().unwrap()).collect()
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
