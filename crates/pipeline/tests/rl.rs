//! Stages that learn from their own samples: what was sampled is what is trained on, to the bit; what goes wrong between sampling
//! and learning is counted and survived; and a run that was interrupted anywhere ends with the bytes of one that was not.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use common::*;
use pt_engine::Profile;
use pt_pipeline::{RunOptions, RunOutcome, StageReport, Watch, run};
use pt_recipe::PlannedStage;
use pt_rl::RolloutRecord;
use pt_run::{Difference, compare_runs};
use pt_train::{Alarm, EvalStats, StepStats, Watcher};

/// Words and their letters; a reply of at most six tokens that says `a` is right.
const GRPO: &str = "
[[stage]]
type = \"grpo\"
data.train = [\"generated:letters?level=1&n=40&seed=5&form=prompt_only\"]
train.rows_per_step = 4
train.steps = 6
train.log_every = 1
optimizer.learning_rate = 5e-3
schedule.type = \"constant\"
rollout.n = 4
rollout.max_new_tokens = 6
eval.n = 1
eval.max_new_tokens = 1
";

fn grpo(more: &str, reward: &str) -> String {
    format!("{}{GRPO}{more}{reward}", on_base())
}

const STAGE: &str = "01-grpo";

fn values(run: &Path, key: &str) -> Vec<f64> {
    metric(run, STAGE, key).into_iter().map(|(_, value)| value).collect()
}

fn rollouts(run: &Path) -> Vec<Vec<RolloutRecord>> {
    rollouts_of(run, STAGE)
}

/// A run of [`GRPO`] with more keys, to its end.
fn ran(more: &str, reward: &str, look: impl FnOnce(&Path, &StageReport)) {
    let dir = tempdir();
    let out = dir.path().join("run");
    let (reports, _) = finish(&grpo(more, reward), &[], &out);
    look(&out, &reports[0]);
}

#[test]
fn what_was_sampled_has_the_trainers_log_probabilities_to_the_bit() {
    let lora = "lora.rank = 4\nlora.targets = \"all-linear\"\n";
    for (case, more) in [
        ("full", String::new()),
        ("bf16", "train.recompute = \"block\"\n".to_owned()),
        ("small batches", "train.tokens_per_micro_batch = 64\n".to_owned()),
        ("lora", format!("train.method = \"lora\"\n{lora}")),
        ("qlora", format!("train.method = \"qlora\"\n{lora}")),
        ("colder", "rollout.temperature = 0.7\n".to_owned()),
    ] {
        let dir = tempdir();
        let out = dir.path().join("run");
        let dtype = if case == "bf16" { "bf16" } else { "f32" };
        finish(&grpo(&more, A_OR_E), &[&format!("model.dtype={dtype}")], &out);
        let difference = values(&out, "sampling/sampling_logp_difference/max");
        assert_eq!(difference, [0.0; 6], "{case}");
        // The weights did change between the rounds, and there was something to learn.
        assert!(values(&out, "grad_norm").iter().any(|norm| *norm > 0.0), "{case}");
        let rounds = rollouts(&out);
        assert_eq!(rounds.iter().map(Vec::len).collect::<Vec<_>>(), [16; 6], "{case}");
        let first = |round: &[RolloutRecord]| round.iter().map(|r| r.text.clone()).collect::<Vec<_>>();
        assert_ne!(first(&rounds[0]), first(&rounds[1]), "{case}");
        let records = rounds.iter().flatten();
        for record in records {
            assert!(record.logprobs.iter().all(|logp| *logp <= 0.0 && logp.is_finite()), "{case}");
            assert!(record.completion_ids.len() <= 6 && record.logprobs.len() == record.completion_ids.len());
        }
    }
}

fn assert_same(whole: &Path, resumed: &Path, case: &str) {
    // A run that is asked to stop saves a checkpoint where the other one has no reason to.
    let only_there = |difference: &Difference| !matches!(difference, Difference::CheckpointOnlyIn { .. });
    let differences: Vec<String> = compare_runs(whole, resumed)
        .unwrap()
        .into_iter()
        .filter(only_there)
        .map(|difference| difference.to_string())
        .collect();
    assert!(differences.is_empty(), "{case}: {differences:#?}");
    let ours = |dir: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        let kept = |path: &Path| {
            path.starts_with("stages") && !path.components().any(|c| c.as_os_str() == "checkpoints")
        };
        files(dir).into_iter().filter(|(path, _)| kept(path)).collect()
    };
    let (a, b) = (ours(whole), ours(resumed));
    let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b), "{case}");
    assert!(a.iter().any(|(path, _)| path.to_string_lossy().contains("rollouts")), "{case}");
    for (a, b) in a.iter().zip(&b) {
        assert!(a == b, "{case}: {}", a.0.display());
    }
}

/// Stops or crashes a run at each of the steps, resumes it, and compares.
fn check_resume(text: &str, steps: &[u64]) {
    let dir = tempdir();
    let whole = dir.path().join("whole");
    finish(text, &[], &whole);
    for &step in steps {
        for crash in [false, true] {
            let case = format!("step {step}, crash {crash}");
            let out = dir.path().join(format!("{step}-{crash}"));
            let place = StopAt::Step("grpo", step);
            let mut seen = if crash { Seen::crashing(place) } else { Seen::stopping(place) };
            let first = catch_unwind(AssertUnwindSafe(|| go(text, &[], &out, &mut seen)));
            assert_eq!(first.is_err(), crash, "{case}");
            let outcome =
                go(text, &[], &out, &mut Seen::default()).unwrap_or_else(|error| panic!("{case}: {error}"));
            assert!(matches!(outcome, RunOutcome::Finished(_)), "{case}");
            assert_same(&whole, &out, &case);
        }
    }
}

#[test]
fn interrupted_or_crashed_anywhere_it_ends_the_same() {
    check_resume(&grpo("train.save_every = 2\n", A_OR_E), &[1, 3, 5]);
}

/// What replies are for, and what they may not have too much of.
const BOUNDED: &str = "[[stage.reward]]\ntype = \"contains\"\nrequired = [\"a\", \"e\"]\npartial = true\n\
    [[stage.reward]]\ntype = \"contains\"\nname = \"e\"\nrequired = [\"e\"]\nat_most = 0.2\nmultiplier_lr = 0.5\nmultiplier_max = 1.2\n";

#[test]
fn a_bounded_reward_is_weighed_by_its_multiplier() {
    ran("", BOUNDED, |run, _| {
        let (multipliers, means) =
            (values(run, "constraint/e/multiplier"), values(run, "constraint/e/value"));
        let rounds = rollouts(run);
        assert_eq!((multipliers.len(), multipliers[0]), (6, 1.0));
        for (i, round) in rounds.iter().enumerate() {
            let score = |record: &RolloutRecord, name: &str| {
                record.verdicts.iter().find(|v| v.name == name).unwrap().verdict.score.unwrap()
            };
            let mean = round.iter().map(|record| score(record, "e")).sum::<f64>() / round.len() as f64;
            assert!((mean - means[i]).abs() < 1e-12, "{mean} and {}", means[i]);
            if let Some(next) = multipliers.get(i + 1) {
                let expected = (multipliers[i] - 0.5 * (0.2 - mean)).clamp(0.0, 1.2);
                assert!((next - expected).abs() < 1e-12, "{next} and {expected}");
            }
            for record in round {
                let parts = score(record, "contains") + multipliers[i] * (0.2 - score(record, "e"));
                let worth = parts / (1.0 + multipliers[i]);
                assert!((record.reward.unwrap() - worth).abs() < 1e-12, "{record:?}");
            }
        }
        assert!(multipliers.windows(2).any(|pair| pair[0] != pair[1]), "{multipliers:?}");
    });
}

#[test]
fn multipliers_are_part_of_what_is_resumed() {
    check_resume(&grpo("train.save_every = 2\n", BOUNDED), &[1, 3]);
    check_resume(&grpo("train.save_every = 3\nrollout.mini_batches = 2\n", BOUNDED), &[3]);
}

#[test]
fn interrupted_in_the_middle_of_a_round_it_ends_the_same() {
    // Rounds of four steps, with a filter, dropout, a reference, a curriculum and prompts in place of others.
    let more = "train.save_every = 1\ntrain.method = \"lora\"\nlora.rank = 4\nlora.dropout = 0.1\nobjective.type = \"grpo\"\nobjective.beta = 0.05\n\
        rollout.mini_batches = 2\nrollout.passes = 2\nrollout.top_k = 40\nrollout.curriculum = true\n\
        rollout.sampling_rounds = 3\nrollout.mask_truncated = true\n";
    check_resume(&grpo(more, A_OR_E).replace("steps = 6", "steps = 10"), &[2, 3, 5, 8]);
}

#[test]
fn groups_without_signal_are_replaced() {
    ran("rollout.sampling_rounds = 8\n", A_OR_E, |run, _| {
        let rounds = rollouts(run);
        let sampled = values(run, "dynamic_sampling/groups_sampled");
        let n_rounds = values(run, "dynamic_sampling/rounds");
        let silent = values(run, "dynamic_sampling/groups_without_signal");
        assert!(n_rounds.iter().any(|n| *n > 1.0), "{n_rounds:?}");
        for (i, round) in rounds.iter().enumerate() {
            assert_eq!(round.len(), 16);
            let has_signal =
                round.chunks(4).filter(|group| group.iter().any(|r| r.reward != group[0].reward));
            let n = has_signal.count();
            // Groups with signal as far as there were any.
            assert_eq!(n as f64, (sampled[i] - silent[i]).min(4.0), "round {i}");
            let mut origins: Vec<_> = round.chunks(4).map(|group| group[0].origin.clone()).collect();
            origins.dedup();
            assert_eq!(origins.len(), 4, "no prompt comes twice in a round");
        }
    });
}

#[test]
fn a_step_whose_samples_are_all_masked_changes_nothing() {
    let more = "rollout.mask_truncated = true\ntrain.save_every = 1\noptimizer.weight_decay = 0.1\n";
    let text = grpo(more, A_OR_E)
        .replace("max_new_tokens = 6", "max_new_tokens = 1")
        .replace("train.steps = 6", "train.steps = 2");
    let dir = tempdir();
    let out = dir.path().join("run");
    let (reports, _) = finish(&text, &[], &out);
    assert_eq!(values(&out, "completions/clipped_ratio"), [1.0; 2], "no reply is one token long");
    assert_eq!(values(&out, "skipped_step"), [1.0; 2]);
    assert_eq!(values(&out, "grad_norm"), [0.0; 2]);
    let weights = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    assert!(weights(base_model()) == weights(&out.join(&reports[0].output)), "weights are as they were");
    check_resume(&text, &[1]);
    // Where only some are, the others train.
    ran("rollout.mask_truncated = true\n", A_OR_E, |run, _| {
        assert!(values(run, "skipped_step").contains(&0.0));
        assert!(values(run, "grad_norm").iter().any(|norm| *norm > 0.0));
    });
}

/// A reward of the user's own, in the language of the shell.
fn command(script: &str, more: &str) -> String {
    let script = script.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "[[stage.reward]]\ntype = \"command\"\nname = \"mine\"\ncommand = [\"sh\", \"-c\", \"{script}\"]\n\
         timeout_s = 0.2\nstartup_s = 0.3\nmax_restarts = 1\n{more}"
    )
}

#[test]
fn a_reward_that_crashes_hangs_or_prints_garbage_is_counted_and_survived() {
    for (case, script, skipped) in [
        ("crashes", "exit 3", 1.0..=1.0),
        ("hangs", "sleep 600", 1.0..=1.0),
        ("garbage", "while read line; do echo no number; done", 1.0..=1.0),
        ("not a number", "while read line; do echo '{\"score\": 1e999}'; done", 1.0..=1.0),
        ("is not there", "exec /no/such/program", 1.0..=1.0),
        ("answers", "i=0; while read line; do i=$((i + 1)); echo $((i % 3)); done", 0.0..=0.0),
        // Crashes at every fourth reply: that reply is skipped, the program started anew.
        ("sometimes", "for i in 1 2 3; do read line || exit; echo 1; done; read line; exit 9", 0.01..=0.99),
    ] {
        let text = grpo("", &command(script, "")).replace("steps = 6", "steps = 2");
        let dir = tempdir();
        let out = dir.path().join("run");
        finish(&text, &[], &out);
        let found = values(&out, "rewards/mine/skipped");
        assert!(found.len() == 2 && found.iter().all(|share| skipped.contains(share)), "{case}: {found:?}");
        let records: Vec<RolloutRecord> = rollouts(&out).into_iter().flatten().collect();
        for record in records {
            let verdict = &record.verdicts[0].verdict;
            assert!(verdict.score.is_some() || !verdict.reason.is_empty(), "{case}: {verdict:?}");
            assert_eq!(record.reward, verdict.score, "{case}");
            // What could not be judged is neither good nor bad.
            assert!(record.reward.is_some() || record.advantage == 0.0, "{case}");
        }
    }
}

/// Puts a file where the rollouts folder is, once so many steps are done: nothing can be written there any more.
struct Sabotage {
    at: u64,
    rollouts: PathBuf,
}

impl Watcher for Sabotage {
    fn step(&mut self, steps_done: u64, _: &StepStats, _: &Profile, _: f64) {
        if steps_done == self.at {
            std::fs::rename(&self.rollouts, self.rollouts.with_extension("away")).unwrap();
            std::fs::write(&self.rollouts, "").unwrap();
        }
    }
    fn eval(&mut self, _: u64, _: &EvalStats) {}
    fn saved(&mut self, _: u64) {}
}

impl Watch for Sabotage {
    fn stage_begun(&mut self, _: &PlannedStage, _: u64, _: f64) {}
    fn measuring(&mut self, _: &PlannedStage, _: &'static str) {}
    fn stage_ended(&mut self, _: &PlannedStage, _: &StageReport) {}
    fn note(&mut self, _: &str) {}
}

#[test]
fn rollouts_that_cannot_be_written_are_an_error_and_the_run_can_go_on() {
    let text = grpo("train.save_every = 1\n", A_OR_E);
    let dir = tempdir();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("run"));
    finish(&text, &[], &whole);
    let folder = out.join("stages").join(STAGE).join("rollouts");
    let mut sabotage = Sabotage { at: 3, rollouts: folder.clone() };
    let options = RunOptions { out: out.clone(), resume: false, reuse: Vec::new() };
    let stop = AtomicBool::new(false);
    let error = run(prepared(&text, &[]), &options, &nothing_around(), &mut sabotage, &stop).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("cannot write") && message.contains("step-00000003.jsonl.zst"), "{message}");
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(folder.with_extension("away"), &folder).unwrap();
    finish(&text, &[], &out);
    assert_same(&whole, &out, "after the disk was full");
}

#[test]
fn the_reference_is_the_model_the_stage_began_with() {
    let lora = "train.method = \"lora\"\nlora.rank = 4\n";
    let masked = "rollout.mask_truncated = true\nrollout.reward_kl = 0.1\n";
    for more in [String::new(), lora.to_owned(), masked.to_owned(), format!("{lora}rollout.passes = 2\n")] {
        ran(&format!("objective.type = \"grpo\"\nobjective.beta = 0.1\n{more}"), A_OR_E, |run, _| {
            let kl = values(run, "kl");
            assert_eq!(kl[0], 0.0, "{more}: {kl:?}");
            assert!(kl[2..].iter().all(|kl| *kl > 0.0 && kl.is_finite()), "{more}: {kl:?}");
        });
    }
}

#[test]
fn dr_grpo_divides_by_the_limit_of_the_samples() {
    for (sets, expected) in [
        (&["stage.0.type=dr_grpo"][..], 6),
        (&["stage.0.type=dr_grpo", "stage.0.rollout.max_new_tokens=9"], 9),
        (
            &[
                "stage.0.type=dr_grpo",
                "stage.0.objective.type=dr_grpo",
                "stage.0.objective.max_completion_length=20",
            ],
            20,
        ),
    ] {
        let plan = prepared(&grpo("", A_OR_E), sets).plan;
        let params = &plan.stages[0].objective.params;
        assert_eq!(params["max_completion_length"], expected, "{params}");
    }
}

#[test]
fn settings_without_effect_are_refused() {
    let sum = "stage.0.rollout.aggregation=normalize_then_sum";
    for (set, expected) in [
        ("stage.0.rollout.reward_kl=0.1", "rollout.reward_kl is part of none"),
        ("stage.0.rollout.overlong_cache=2", "rollout.overlong_cache is part of none"),
        ("stage.0.reward.0.gate=-1.0", "gate of a reward"),
        ("stage.0.rollout.missing_eos_penalty=0.5", "rollout.missing_eos_penalty is part of none"),
        ("stage.0.rollout.normalize_advantages=true", "rollout.normalize_advantages is part of none"),
        ("stage.0.rollout.baseline=leave_one_out", "rollout.baseline is part of none"),
        ("stage.0.rollout.scale_rewards=none", "rollout.scale_rewards is part of none"),
    ] {
        let other = "stage.0.reward.1.type=exact";
        let message = refusal(&grpo("", A_OR_E), &[sum, set, other]);
        assert!(message.contains(expected), "{message}");
    }
    let message = refusal(&grpo("", A_OR_E), &["stage.0.rollout.overlong_cache=7"]);
    assert!(message.contains('7') && message.contains('6'), "{message}");
    // A group's spread is no unit of what is compared with anything else.
    for baseline in ["batch", "none"] {
        let set = format!("stage.0.rollout.baseline={baseline}");
        let message = refusal(&grpo("", A_OR_E), &[&set]);
        assert!(message.contains("scale_rewards") && message.contains(baseline), "{message}");
    }
}

/// Remembers alarms, and can crash between the end of training and the end of the stage.
#[derive(Default)]
struct Listening {
    alarms: Vec<(u64, Alarm)>,
    crashes: bool,
}

impl Watcher for Listening {
    fn step(&mut self, _: u64, _: &StepStats, _: &Profile, _: f64) {}
    fn eval(&mut self, _: u64, _: &EvalStats) {}
    fn saved(&mut self, _: u64) {}
    fn alarm(&mut self, steps_done: u64, alarm: &Alarm) {
        self.alarms.push((steps_done, alarm.clone()));
    }
}

impl Watch for Listening {
    fn stage_begun(&mut self, _: &PlannedStage, _: u64, _: f64) {}
    fn measuring(&mut self, _: &PlannedStage, _: &'static str) {}
    fn stage_ended(&mut self, _: &PlannedStage, _: &StageReport) {}
    fn note(&mut self, message: &str) {
        if self.crashes && message.contains("an alarm ended the stage") {
            std::panic::resume_unwind(Box::new("crash"));
        }
    }
}

fn listened(text: &str, out: &Path, crashes: bool) -> (Option<RunOutcome>, Vec<(u64, Alarm)>) {
    let mut listening = Listening { crashes, ..Listening::default() };
    let options =
        RunOptions { out: out.to_owned(), resume: out.join("plan.json").exists(), reuse: Vec::new() };
    let stop = AtomicBool::new(false);
    let attempt = || run(prepared(text, &[]), &options, &nothing_around(), &mut listening, &stop);
    let outcome = catch_unwind(AssertUnwindSafe(attempt)).ok().map(|outcome| outcome.unwrap());
    (outcome, listening.alarms)
}

/// Nothing passes, so that no group has signal.
const NOTHING: &str = "[[stage.reward]]\ntype = \"regex\"\npattern = \"no reply says this\"\n";

#[test]
fn an_alarm_stops_the_stage_also_when_it_is_resumed() {
    let text = grpo("", NOTHING).replace("steps = 6", "steps = 30");
    let dir = tempdir();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("run"));
    let (outcome, alarms) = listened(&text, &whole, false);
    let Some(RunOutcome::Finished(reports)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(reports[0].steps, 10, "ten steps in a row without any signal: {alarms:?}");
    assert!(
        alarms.iter().any(|(step, alarm)| *step == 10 && alarm.reason.contains("no_signal")),
        "{alarms:?}"
    );
    assert_eq!(rollouts(&whole).len(), 10);
    // It dies once training has ended, and is resumed: it does not train on.
    assert!(listened(&text, &out, true).0.is_none());
    listened(&text, &out, false);
    assert_same(&whole, &out, "resumed after an alarm");
    // Told to warn, it only warns; told to be off, it says nothing.
    for (mode, n_alarms) in [("warn", 1), ("off", 0)] {
        let text = format!(
            "{}\n",
            text.replace("rollout.n = 4", &format!("rollout.n = 4\nrollout.alarms = \"{mode}\""))
        )
        .replace("steps = 30", "steps = 12");
        let (outcome, alarms) = listened(&text, &dir.path().join(mode), false);
        let Some(RunOutcome::Finished(reports)) = outcome else { panic!("{mode}") };
        assert_eq!(reports[0].steps, 12, "{mode}");
        assert!(
            alarms.iter().filter(|(_, alarm)| alarm.reason.contains("no_signal")).count() >= n_alarms,
            "{mode}"
        );
        assert!(n_alarms > 0 || alarms.is_empty(), "{mode}: {alarms:?}");
    }
}

#[test]
fn an_alarm_takes_the_weights_back_to_before_it_began() {
    // The learning rate grows until the policy runs away from its reference.
    let more = "objective.type = \"grpo\"\nobjective.beta = 1e-9\ntrain.save_every = 1\ntrain.keep_last = 40\nschedule.warmup_ratio = 1.0\n\
        train.max_grad_norm = 0.0\n";
    let text = grpo(more, A_OR_E)
        .replace("steps = 6", "steps = 40")
        .replace("learning_rate = 5e-3", "learning_rate = 0.2")
        .replace("schedule.type = \"constant\"\n", "");
    let dir = tempdir();
    let out = dir.path().join("run");
    let (outcome, alarms) = listened(&text, &out, false);
    let Some(RunOutcome::Finished(reports)) = outcome else { panic!("{outcome:?}") };
    let (at, alarm) = alarms.last().unwrap();
    assert!(alarm.reason.contains("kl_runaway"), "{alarms:?}");
    assert!(
        alarm.since_step < *at && reports[0].steps == alarm.since_step - 1,
        "{} {alarms:?}",
        reports[0].steps
    );
    // The model is that of the checkpoint; what was sampled after it is out of the way, and still there.
    assert_eq!(rollouts(&out).len() as u64, reports[0].steps);
    let undone = out.join("stages").join(STAGE).join("rollouts/undone");
    assert_eq!(std::fs::read_dir(undone).unwrap().count() as u64, at - reports[0].steps);
    let short = text.replace("train.steps = 40", &format!("train.steps = {}", reports[0].steps));
    assert_ne!(short, text);
    // Without a checkpoint as old, it is the model that the stage began with.
    let text = text.replace("train.save_every = 1\n", "");
    let (outcome, _) = listened(&text, &dir.path().join("start"), false);
    let Some(RunOutcome::Finished(reports)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(reports[0].steps, 0);
    let weights = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    assert!(weights(base_model()) == weights(&dir.path().join("start").join(&reports[0].output)));
}

#[test]
fn every_type_of_stage_that_samples_learns() {
    for kind in ["grpo", "dapo", "dr_grpo", "bnpo", "gspo", "cispo", "sapo", "rloo", "reinforce_pp"] {
        let dir = tempdir();
        let out = dir.path().join("run");
        let text = grpo("", A_OR_E)
            .replace("steps = 6", "steps = 24")
            .replace("rows_per_step = 4", "rows_per_step = 8");
        let text = text.replace("type = \"grpo\"", &format!("type = \"{kind}\""));
        finish(&text, &["stage.0.optimizer.learning_rate=1e-2"], &out);
        let reward: Vec<f64> =
            metric(&out, &format!("01-{kind}"), "reward").into_iter().map(|(_, value)| value).collect();
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&reward[..4]), mean(&reward[20..]));
        assert!(last > first + 0.1, "{kind}: {first} to {last}: {reward:?}");
    }
}

#[test]
fn a_recorded_step_can_be_replayed_under_another_objective() {
    use pt_pipeline::rl::{ReplayOptions, replay};
    let dir = tempdir();
    let out = dir.path().join("run");
    let text = grpo("train.save_every = 1\ntrain.keep_last = 10\n", A_OR_E);
    finish(&text, &[], &out);
    let plan = prepared(&text, &[]).plan;
    let again = |step: u64, objective: Option<&str>, options: &str| {
        let objective = objective.map(str::to_owned);
        let options = ReplayOptions { objective, options: options.parse().unwrap(), model: None };
        replay(&out, &plan, &plan.stages[0], step, &options, &nothing_around()).unwrap()
    };
    let value = |found: &pt_pipeline::rl::Replayed, name: &str| {
        found.values.iter().find(|(n, _)| n == name).map(|(_, value)| *value).unwrap()
    };
    let (loss, norm) = (values(&out, "loss"), values(&out, "grad_norm"));
    for step in [1, 4, 6] {
        let same = again(step, None, "");
        let at = step as usize - 1;
        assert_eq!(value(&same, "sampling/sampling_logp_difference/max"), 0.0, "{}", same.model);
        assert!((value(&same, "loss") - loss[at]).abs() < 1e-6, "step {step}: {same:?} {loss:?}");
        assert!((value(&same, "grad_norm") - norm[at]).abs() < 1e-4 * norm[at].max(1.0), "{same:?} {norm:?}");
        let other = again(step, Some("dapo"), "epsilon_high = 0.5");
        assert!(other.objective == "dapo" && value(&other, "grad_norm").is_finite());
        let kl = again(step, None, "beta = 0.1");
        assert_eq!(value(&kl, "kl") == 0.0, step == 1, "{kl:?}");
    }
}

#[test]
fn a_replay_compares_with_the_reference_of_the_stage() {
    use pt_pipeline::rl::{ReplayOptions, replay};
    let dir = tempdir();
    let other = dir.path().join("other");
    let (reports, _) = finish(&grpo("", A_OR_E), &["stage.0.train.steps=2"], &other);
    let other = other.join(&reports[0].output).display().to_string();
    let out = dir.path().join("run");
    let text = grpo(&format!("reference.model = {other:?}\nobjective.beta = 0.1\ntrain.steps = 1\n"), A_OR_E)
        .replacen("train.steps = 6\n", "", 1);
    finish(&text, &[], &out);
    let plan = prepared(&text, &[]).plan;
    let options = ReplayOptions::default();
    let found = replay(&out, &plan, &plan.stages[0], 1, &options, &nothing_around()).unwrap();
    let kl = found.values.iter().find(|(name, _)| name == "kl").map(|(_, value)| *value).unwrap();
    let trained = values(&out, "kl")[0];
    assert!(trained > 0.0 && (kl - trained).abs() < 1e-6 * trained.max(1.0), "{kl}, trained with {trained}");
    let mut moving = plan.stages[0].clone();
    moving.reference.as_mut().unwrap().sync_steps = Some(1);
    let refused = replay(&out, &plan, &moving, 1, &options, &nothing_around()).unwrap_err().to_string();
    assert!(refused.contains("follows the policy"), "{refused}");
}

/// A long prompt keeps its end, where it asks and the reply begins, or is left out, or refused; never cut there.
#[test]
fn long_prompts_keep_their_end_or_are_refused() {
    let text = grpo("", A_OR_E);
    let whole = prompts_of(&text, &[]);
    let longest = whole.iter().map(Vec::len).max().unwrap();
    let limit = format!("stage.0.data.max_length={}", longest - 1);
    let cut = prompts_of(&text, &[&limit, "stage.0.data.truncation=keep_end"]);
    let expected: Vec<&[u32]> =
        whole.iter().map(|ids| &ids[ids.len().saturating_sub(longest - 1)..]).collect();
    assert_eq!(cut, expected);
    let n_cut = whole.iter().filter(|ids| ids.len() == longest).count() as u64;
    let plan = prepared(&text, &[&limit, "stage.0.data.truncation=keep_end"]).plan;
    assert_eq!(plan.stages[0].data.train[0].rows_truncated, n_cut, "what lost its beginning is counted");
    for truncation in ["keep_start", "error"] {
        let found = refusal(&text, &[&limit, &format!("stage.0.data.truncation={truncation}")]);
        assert!(found.contains("more than max_length") && found.contains("to keep_end or drop"), "{found}");
    }
    let dropped = prompts_of(&text, &[&limit, "stage.0.data.truncation=drop"]);
    assert!(dropped.iter().all(|ids| ids.len() < longest));
}

/// The prompts of the first round, without their repetitions.
fn prompts_of(text: &str, sets: &[&str]) -> Vec<Vec<u32>> {
    let dir = tempdir();
    let sets = [sets, &["stage.0.train.steps=1", "stage.0.train.rows_per_step=40"]].concat();
    finish(text, &sets, &dir.path().join("run"));
    let round = rollouts(&dir.path().join("run")).remove(0);
    round.into_iter().filter(|record| record.sample == 0).map(|record| record.prompt_ids).collect()
}
