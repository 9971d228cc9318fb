//! PPO: values, returns and advantages of what was sampled; the reward rises at a bounded divergence; and a run that was interrupted in
//! the middle of a round ends with the bytes of one that was not.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use common::*;
use pt_rl::ppo::{gae, whiten};
use pt_rl::{RolloutRecord, RolloutsFolder};
use pt_run::{Difference, compare_runs};

/// Words and their letters; a reply of at most six tokens that says `a` and `e` is right.
const PPO: &str = "
[[stage]]
type = \"ppo\"
data.train = [\"generated:letters?level=1&n=40&seed=5&form=prompt_only\"]
train.rows_per_step = 8
train.log_every = 1
optimizer.learning_rate = 3e-3
schedule.type = \"constant\"
rollout.max_new_tokens = 6
rollout.passes = 2
rollout.mini_batches = 2
rollout.alarms = \"off\"
eval.n = 1
eval.max_new_tokens = 1
";
const REWARD: &str = "[[stage.reward]]\ntype = \"contains\"\nrequired = [\"a\", \"e\"]\npartial = true\n";
const STAGE: &str = "01-ppo";

fn ppo(more: &str) -> String {
    format!("{}{PPO}{more}{REWARD}", on_base())
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
fn the_reward_rises_at_a_bounded_divergence() {
    let dir = tempdir();
    let out = dir.path().join("run");
    let more = "train.steps = 120\nppo.kl_coef = 0.02\nobjective.type = \"ppo\"\nobjective.vf_coef = 0.5\n";
    finish(&ppo(more), &["stage.0.train.rows_per_step=16"], &out);
    let (reward, kl) = (values(&out, "objective/scores"), values(&out, "objective/kl"));
    let (first, last) = (mean(&reward[..16]), mean(&reward[reward.len() - 16..]));
    assert!(last > first + 0.2, "reward from {first} to {last}");
    assert!(kl.iter().all(|kl| kl.is_finite() && *kl < 12.0), "{kl:?}");
    assert_eq!(kl[0], 0.0, "the first round is the reference's own");
    assert!(kl.last().unwrap() > &0.0);
    for key in [
        "objective/rlhf_reward",
        "objective/non_score_reward",
        "objective/entropy",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "policy/entropy_avg",
        "loss/policy_avg",
        "loss/value_avg",
        "val/clipfrac_avg",
        "val/ratio",
        "val/num_eos_tokens",
    ] {
        assert_eq!(values(&out, key).len(), 120, "{key}");
    }
    let (scores, other, sum) = (
        values(&out, "objective/scores"),
        values(&out, "objective/non_score_reward"),
        values(&out, "objective/rlhf_reward"),
    );
    assert!(scores.iter().zip(&other).zip(&sum).all(|((a, b), c)| (a + b - c).abs() < 1e-9));
    // The value head is part of training only.
    let index = std::fs::read(out.join("stages").join(STAGE).join("model/model.safetensors")).unwrap();
    let header = String::from_utf8_lossy(&index[8..8 + usize::from(index[0]) + 256 * usize::from(index[1])]);
    assert!(header.contains("embed_tokens") && !header.contains("score"), "{header}");
}

/// What the rollouts file says of a round follows from its own values, log-probabilities and rewards.
#[test]
fn advantages_and_returns_follow_from_values_and_rewards() {
    for (whitens, more) in [(false, "ppo.whiten_advantages = false\n"), (true, "")] {
        let dir = tempdir();
        let out = dir.path().join("run");
        let more = format!(
            "train.steps = 5\nppo.kl_coef = 0.0\nppo.gamma = 0.9\nppo.lam = 0.8\nrollout.missing_eos_penalty = 0.25\n{more}"
        );
        finish(&ppo(&more), &[], &out);
        let rounds = rollouts(&out);
        assert_eq!(rounds.len(), 2);
        for round in rounds {
            let mut all = Vec::new();
            for record in &round {
                let values: Vec<f64> = record.tokens.values.iter().map(|v| f64::from(*v)).collect();
                let score = record.verdicts[0].verdict.score.unwrap();
                let is_cut = record.finish_reason == "length";
                let reward = record.reward.unwrap();
                assert!((reward - (score - if is_cut { 0.25 } else { 0.0 })).abs() < 1e-9);
                let mut rewards = vec![0.0; values.len()];
                *rewards.last_mut().unwrap() = reward;
                let (advantages, returns) = gae(&rewards, &values, 0.9, 0.8);
                assert!(
                    returns.iter().zip(&record.tokens.returns).all(|(a, b)| (a - f64::from(*b)).abs() < 1e-6)
                );
                all.push(advantages);
            }
            if whitens {
                whiten(&mut all.iter_mut().collect::<Vec<_>>(), true);
            }
            for (expected, record) in all.iter().zip(&round) {
                let found = &record.tokens.advantages;
                assert!(
                    expected.iter().zip(found).all(|(a, b)| (a - f64::from(*b)).abs() < 1e-6),
                    "{whitens}"
                );
            }
            assert!(round.iter().any(|record| record.tokens.values.iter().any(|v| *v != 0.0)));
        }
    }
}

#[test]
fn the_coefficient_follows_its_target_and_text_trains_beside_the_samples() {
    let dir = tempdir();
    let out = dir.path().join("run");
    let more = "train.steps = 12\nppo.kl_target = 1e-6\nppo.kl_horizon = 8.0\nppo.ptx_rows_per_step = 2\n\
                ppo.ptx = [\"generated:raw?chars=2000&seed=1\"]\ndata.max_length = 256\n";
    finish(&ppo(more), &[], &out);
    let coef = values(&out, "objective/kl_coef");
    assert_eq!(coef[..4], [0.05; 4], "the same through a round");
    // The first round has no divergence: a fifth less; later ones far too much: a fifth more, each time.
    assert!((coef[4] - 0.04).abs() < 1e-9 && (coef[8] - 0.048).abs() < 1e-9, "{coef:?}");
    let ptx = values(&out, "loss/ptx_avg");
    assert_eq!(ptx.len(), 12);
    assert!(mean(&ptx[8..]) < mean(&ptx[..4]), "{ptx:?}");
}

#[test]
fn interrupted_in_the_middle_of_a_round_it_ends_the_same() {
    let lora = "train.method = \"lora\"\nlora.rank = 4\n";
    for (case, more) in [("full", ""), ("lora", lora)] {
        let text = ppo(&format!(
            "name = \"sft\"\ntrain.steps = 10\ntrain.save_every = 3\nppo.kl_target = 0.5\nppo.kl_horizon = 20.0\n{more}"
        ));
        let dir = tempdir();
        let whole = dir.path().join("whole");
        finish(&text, &[], &whole);
        for (i, place) in [1, 4, 6, 9].into_iter().enumerate() {
            for crash in [false, true] {
                let case = format!("{case}, step {place}, crash {crash}");
                let out = dir.path().join(format!("{i}-{crash}"));
                let at = StopAt::Step("sft", place);
                let mut seen = if crash { Seen::crashing(at) } else { Seen::stopping(at) };
                let first = catch_unwind(AssertUnwindSafe(|| go(&text, &[], &out, &mut seen)));
                assert_eq!(first.is_err(), crash, "{case}");
                finish(&text, &[], &out);
                let only_there =
                    |difference: &Difference| !matches!(difference, Difference::CheckpointOnlyIn { .. });
                let differences: Vec<String> = compare_runs(&whole, &out)
                    .unwrap()
                    .into_iter()
                    .filter(only_there)
                    .map(|difference| difference.to_string())
                    .collect();
                assert!(differences.is_empty(), "{case}: {differences:#?}");
            }
        }
    }
}

/// Passes over a whole group are cut as training is, and say the same, to the bit.
#[test]
fn values_and_divergences_do_not_depend_on_the_cut() {
    let credits = |tokens: u64| {
        let dir = tempdir();
        let out = dir.path().join("run");
        let more = format!("rollout.n = 4\ntrain.steps = 4\ntrain.tokens_per_micro_batch = {tokens}\n");
        finish(&ppo(&more), &[], &out);
        let folder = RolloutsFolder::open(out.join("stages").join(STAGE).join("rollouts"), true).unwrap();
        let records = folder.read(0).unwrap().unwrap();
        records.into_iter().map(|record| (record.completion_ids, record.tokens)).collect::<Vec<_>>()
    };
    let whole = credits(4096);
    assert!(whole.len() == 32 && whole.iter().all(|(ids, tokens)| tokens.values.len() == ids.len()));
    // A prompt and a reply or two.
    assert!(credits(32) == whole);
}

/// A critic of its own learns values beside the policy, whatever it begins as; the policy has no head for them then.
#[test]
fn a_critic_of_its_own_learns_values() {
    let dir = tempdir();
    let scorer = {
        let text = format!(
            "{}[[stage]]\ntype = \"reward\"\ndata.train = [\"generated:sum?level=1&n=24&seed=5&form=preference\"]\n\
             train.steps = 2\neval.n = 1\neval.max_new_tokens = 1\n",
            on_base()
        );
        let (reports, _) = finish(&text, &[], &dir.path().join("reward"));
        dir.path().join("reward").join(&reports[0].output).display().to_string()
    };
    let base = base_model().display().to_string();
    for (name, critic) in [("policy", "policy"), ("folder", base.as_str()), ("reward model", scorer.as_str())]
    {
        let out = dir.path().join(name);
        let more = format!(
            "train.steps = 24\nppo.critic = {critic:?}\nppo.critic_learning_rate = 3e-3\nppo.lam = 1.0\n"
        );
        // A policy that stays as it is, so that what the critic has to learn does.
        finish(&ppo(&more), &["stage.0.optimizer.learning_rate=1e-9"], &out);
        assert_eq!(values(&out, "critic/loss").len(), 24, "{name}");
        let off = |round: &[RolloutRecord]| {
            let all = |of: fn(&RolloutRecord) -> &Vec<f32>| -> Vec<f64> {
                round.iter().flat_map(of).map(|value| f64::from(*value)).collect()
            };
            let (said, right) = (all(|record| &record.tokens.values), all(|record| &record.tokens.returns));
            (mean(&said) - mean(&right)).abs()
        };
        let rounds = rollouts(&out);
        let (first, last) = (off(&rounds[0]), off(rounds.last().unwrap()));
        assert!(last < 0.5 * first, "{name}: values off by {first}, then {last}");
        assert_eq!(values(&out, "critic/loss"), values(&out, "loss/value_avg"), "{name}");
        assert!((values(&out, "critic/learning_rate")[5] - 3e-3).abs() < 1e-12, "{name}");
        assert!(
            rollouts(&out)
                .iter()
                .flatten()
                .all(|record| record.tokens.values.len() == record.completion_ids.len())
        );
    }
    let plan = prepared(&ppo("train.steps = 1\nppo.critic = \"policy\"\n"), &[]).plan;
    let memory = &plan.stages[0].memory;
    let bytes = |name: &str| memory.iter().find(|part| part.part == name).map_or(0, |part| part.bytes);
    assert!(bytes("critic") > 2 * bytes("weights"), "{memory:?}");
    let refused = |more: &str| {
        let text = ppo(more);
        match pt_recipe::Recipe::parse(&text, Path::new("t.toml"), &[], &pt_pipeline::catalogue()) {
            Err(problem) => problem.to_string(),
            Ok(_) => refusal(&text, &[]),
        }
    };
    let useless = refused("ppo.critic = \"policy\"\nobjective.type = \"ppo\"\nobjective.vf_coef = 0.5\n");
    assert!(useless.contains("vf_coef") && useless.contains("has no effect"), "{useless}");
    let useless = refused("ppo.critic_learning_rate = 1e-3\n");
    assert!(useless.contains("give `ppo.critic`"), "{useless}");
}

/// The critic's weights and its optimiser's state are part of every checkpoint.
#[test]
fn a_resumed_run_with_a_critic_ends_in_the_same_bytes() {
    for more in ["", "train.method = \"lora\"\nlora.rank = 4\n"] {
        let text = ppo(&format!(
            "train.steps = 7\nppo.critic = \"policy\"\nppo.kl_target = 1.0\ntrain.save_every = 1\n{more}"
        ));
        let dir = tempdir();
        let [whole, cut] = ["whole", "cut"].map(|name| dir.path().join(name));
        finish(&text, &[], &whole);
        for step in [1, 4, 6] {
            let mut seen = Seen::stopping(StopAt::Step("other", step));
            go(&text, &[], &cut, &mut seen).unwrap();
        }
        finish(&text, &[], &cut);
        let only_there = |d: &Difference| !matches!(d, Difference::CheckpointOnlyIn { .. });
        let differences: Vec<_> =
            compare_runs(&whole, &cut).unwrap().into_iter().filter(only_there).collect();
        assert!(differences.is_empty(), "{more}: {differences:?}");
    }
}
