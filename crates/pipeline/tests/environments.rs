//! Stages that learn from conversations with an environment: only what the model sampled trains, in the very tokens it was sampled
//! in, whatever stood between; what breaks is counted and survived; and a resumed run ends with the same bytes.

mod common;

use std::path::Path;

use common::*;
use pt_pipeline::RunOutcome;
use pt_rl::RolloutRecord;

/// A guessing game of at most three turns.
const GUESS: &str = "\
environment.type = \"guess\"
environment.max_turns = 3
environment.max_tokens = 90
eval.n = 2
eval.max_new_tokens = 4
";
const BY_ENVIRONMENT: &str = "[[stage.reward]]\ntype = \"environment\"\n";

fn guess(more: &str, rewards: &str) -> String {
    format!("{}{}{GUESS}{more}{rewards}", on_base(), grpo_on("guess", 4))
}

fn rollouts(run: &Path) -> Vec<RolloutRecord> {
    rollouts_of(run, "01-grpo").concat()
}

fn values(run: &Path, key: &str) -> Vec<f64> {
    metric(run, "01-grpo", key).into_iter().map(|(_, value)| value).collect()
}

#[test]
fn only_what_was_sampled_trains_in_the_tokens_it_was_sampled_in() {
    let lora = "train.method = \"lora\"\nlora.rank = 4\nlora.targets = \"all-linear\"\n";
    for (case, more) in [
        ("full", ""),
        ("bf16", ""),
        ("small batches", "train.tokens_per_micro_batch = 64\n"),
        ("lora", lora),
        ("colder", "rollout.temperature = 0.7\n"),
    ] {
        let dir = tempdir();
        let out = dir.path().join("run");
        let dtype = if case == "bf16" { "bf16" } else { "f32" };
        finish(&guess(more, A_OR_E), &[&format!("model.dtype={dtype}")], &out);
        assert_eq!(values(&out, "sampling/sampling_logp_difference/max"), [0.0; 4], "{case}");
        assert!(values(&out, "grad_norm").iter().any(|norm| *norm > 0.0), "{case}");
        let records = rollouts(&out);
        assert_eq!(records.len(), 4 * 3 * 4, "{case}");
        let turns = values(&out, "turns/mean");
        assert!(turns.iter().any(|mean| *mean > 1.0), "{case}: {turns:?}");
        for record in &records {
            check_masks(record, case);
        }
    }
}

/// The mask is that of the turns, and what is masked is what the template writes.
fn check_masks(record: &RolloutRecord, case: &str) {
    let tokenizer = pt_text::Tokenizer::from_dir(base_model()).unwrap();
    let expected: Vec<f32> = record
        .turns
        .iter()
        .flat_map(|turn| vec![if turn.role == "assistant" { 1.0 } else { 0.0 }; turn.n_tokens])
        .collect();
    assert_eq!(record.weights, expected, "{case}: {record:?}");
    assert_eq!(record.completion_ids.len(), expected.len(), "{case}");
    assert!(expected.len() <= 90, "{case}");
    let mut at = 0;
    for (i, turn) in record.turns.iter().enumerate() {
        let ids = &record.completion_ids[at..at + turn.n_tokens];
        let logprobs = &record.logprobs[at..at + turn.n_tokens];
        at += turn.n_tokens;
        match turn.role.as_str() {
            "assistant" => {
                assert!(turn.n_tokens <= 12 && logprobs.iter().all(|logp| *logp <= 0.0), "{case}");
                let is_last = i + 1 == record.turns.len();
                let end = tokenizer.id_to_token(*ids.last().unwrap()).unwrap();
                assert!(is_last || end == "<|im_end|>", "{case}: a turn that is answered has ended: {end}");
            }
            "user" => {
                assert!(["Higher.", "Lower.", "Say a number."].contains(&turn.text.as_str()), "{case}");
                let text = tokenizer.decode(ids, false).unwrap();
                let template =
                    format!("\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", turn.text);
                assert_eq!(text, template, "{case}");
                assert!(logprobs.iter().all(|logp| *logp == 0.0), "{case}");
            }
            other => panic!("{case}: nobody called {other} plays"),
        }
    }
    assert!(["stop", "length", "max_turns"].contains(&record.finish_reason.as_str()), "{case}: {record:?}");
    assert!(record.turns.iter().filter(|turn| turn.role == "assistant").count() <= 3, "{case}");
}

/// What a run leaves that must not depend on how it went: rollouts and the model.
fn left(run: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let is_kept = |path: &Path| {
        let text = path.to_string_lossy();
        text.contains("rollouts") || text.ends_with("model.safetensors") && !text.contains("checkpoints")
    };
    files(run).into_iter().filter(|(path, _)| is_kept(path)).collect()
}

#[test]
fn samples_do_not_depend_on_when_the_environment_answers_nor_on_where_a_run_was_interrupted() {
    let more = "train.save_every = 1\nrollout.passes = 2\n";
    let text = guess(more, A_OR_E);
    let dir = tempdir();
    let whole = dir.path().join("whole");
    finish(&text, &["stage.0.environment.parallel=1"], &whole);
    let again = dir.path().join("again");
    finish(&text, &["stage.0.environment.parallel=16"], &again);
    assert!(left(&whole) == left(&again), "one worker or sixteen");
    for step in [1, 2] {
        let out = dir.path().join(format!("resumed-{step}"));
        let mut seen = Seen::stopping(StopAt::Step("grpo", step));
        let first = go(&text, &["stage.0.environment.parallel=1"], &out, &mut seen).unwrap();
        assert!(matches!(first, RunOutcome::Interrupted { .. }));
        let second = go(&text, &["stage.0.environment.parallel=1"], &out, &mut Seen::default()).unwrap();
        assert!(matches!(second, RunOutcome::Finished(_)));
        assert!(left(&whole) == left(&out), "resumed after step {step}");
    }
}

/// An environment in the language of the shell.
fn command(script: &str) -> String {
    let script = script.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "environment.command = [\"sh\", \"-c\", \"{script}\"]\nenvironment.timeout_s = 0.3\nenvironment.startup_s = 0.3\n\
         environment.max_restarts = 1\n"
    )
}

#[test]
fn an_environment_of_ones_own_judges_and_what_breaks_is_counted() {
    let plays = "while read -r line; do case \"$line\" in *'\"event\":\"start\"'*) echo '{}';; *'\"turn\":0'*) \
                 echo '{\"message\": \"Go on.\"}';; *) echo '{\"done\": true, \"score\": 0.5}';; esac; done";
    for (case, script, aborted, reward) in [
        ("plays", plays, 0.0, Some(0.5)),
        ("crashes", "exit 3", 1.0, None),
        ("babbles", "while read -r line; do echo hello; done", 1.0, None),
        ("is not there", "exec /no/such/program", 1.0, None),
    ] {
        let text = guess(&command(script), BY_ENVIRONMENT)
            .replace("environment.type = \"guess\"", "environment.type = \"command\"")
            .replace("train.steps = 4", "train.steps = 1");
        let dir = tempdir();
        let out = dir.path().join("run");
        finish(&text, &[], &out);
        let ended: Vec<RolloutRecord> = rollouts(&out)
            .into_iter()
            .filter(|record| record.turns[0].n_tokens < 12 || record.finish_reason != "length")
            .collect();
        assert!(!ended.is_empty(), "{case}: some turn must end by itself");
        for record in ended.iter().filter(|record| record.finish_reason != "length") {
            assert_eq!(record.reward, reward, "{case}: {record:?}");
            assert_eq!(record.finish_reason == "aborted", aborted == 1.0, "{case}");
            let said = record.turns.iter().any(|turn| turn.text == "Go on.");
            assert_eq!(said, case == "plays", "{case}");
        }
        assert_eq!(values(&out, "environment/aborted")[0] > 0.0, aborted == 1.0, "{case}");
    }
}

#[test]
fn rows_methods_and_options_that_do_not_go_with_an_environment_are_refused() {
    let letters = "generated:letters?level=4&n=40&form=prompt_only";
    for (change, message) in [
        (format!("stage.0.data.train=[\"{letters}\"]"), "the environment `guess` cannot play this row"),
        ("stage.0.type=ppo".to_owned(), "has a critic"),
        ("stage.0.type=nash_md".to_owned(), "mixture of two models"),
    ] {
        let found = refusal(&guess("", ""), &[&change]);
        assert!(found.contains(message), "{change}: {found}");
    }
}
