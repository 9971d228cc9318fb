//! Stages on preference pairs, labelled replies and steps, end to end on a tiny model.

mod common;

use std::path::{Path, PathBuf};

use common::*;
use pt_engine::Dtype;
use pt_models::{LoadOptions, Model, load};
use pt_pipeline::process_scorer::ProcessScorer;
use pt_pipeline::scorer::Scorer;
use pt_pipeline::{RewardReport, RunOutcome, verify_invariance};
use pt_run::{Difference, compare_runs};
use pt_train::{Example, MicroBatch, Reply};
use serde_json::{Value, json};

const PAIRS: &str = "generated:sum?level=1&n=48&seed=5&form=preference";

/// A stage of this type on the base model, with more keys.
fn recipe_of(kind: &str, source: &str, keys: &str) -> String {
    let base = base_model().display().to_string();
    format!(
        "seed = 3\n[model]\nbase = {base:?}\ndtype = \"f32\"\n[[stage]]\ntype = \"{kind}\"\ndata.train = [{source:?}]\n\
         data.max_length = 128\ntrain.rows_per_step = 8\ntrain.steps = 6\noptimizer.learning_rate = 1e-3\neval.n = 1\neval.max_new_tokens = 1\n{keys}\n"
    )
}

fn losses(seen: &Seen) -> Vec<f64> {
    seen.losses.iter().map(|(_, _, loss)| *loss).collect()
}

fn metrics(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Rows in a file of their own.
fn rows(dir: &Path, rows: &[Value]) -> String {
    let path = dir.join("rows.jsonl");
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    path.display().to_string()
}

const METHODS: &[(&str, &str)] = &[
    ("full", ""),
    ("lora", "train.method = \"lora\"\nlora.rank = 4\nlora.dropout = 0.2\n"),
    ("pissa", "train.method = \"lora\"\nlora.rank = 4\nlora.init = \"pissa\"\n"),
    ("nf4", "train.method = \"qlora\"\nlora.rank = 4\n"),
    ("int8", "train.method = \"qlora\"\nlora.rank = 4\nquantization.type = \"int8\"\n"),
];

#[test]
fn at_the_first_step_the_policy_is_its_reference_whatever_trains() {
    for (method, keys) in METHODS {
        let dir = tempdir();
        // Dropout is only in training passes, so the first margin is not zero with it; without, it is exactly.
        let keys = keys.replace("lora.dropout = 0.2", "lora.dropout = 0.0");
        let out = dir.path().join("run");
        let (_, seen) = finish(&recipe_of("dpo", PAIRS, &format!("{keys}train.log_every = 1\n")), &[], &out);
        let losses = losses(&seen);
        assert!((losses[0] - std::f64::consts::LN_2).abs() < 1e-12, "{method}: {losses:?}");
        let first = &metrics(&out)[0];
        assert_eq!(first["rewards/margins"], 0.0, "{method}");
        assert_eq!(first["rewards/chosen"], 0.0, "{method}");
        assert!(losses[5] < losses[0], "{method}: {losses:?}");
    }
}

#[test]
fn every_stage_type_lowers_its_loss() {
    let steps = [
        json!({"prompt": "1 + 2 + 3", "completions": ["1 + 2 = 3", "3 + 3 = 6"], "labels": [true, true]}),
        json!({"prompt": "1 + 2 + 3", "completions": ["1 + 2 = 4", "4 + 3 = 7"], "labels": [false, false]}),
    ];
    let dir = tempdir();
    let steps = rows(dir.path(), &vec![steps; 8].concat());
    for kind in ["dpo", "orpo", "cpo", "simpo", "kto", "bco", "reward", "prm"] {
        let source = if kind == "prm" { &steps } else { PAIRS };
        let out = dir.path().join(kind);
        let (_, seen) = finish(&recipe_of(kind, source, ""), &["stage.0.train.steps=30"], &out);
        let (first, last) = seen.fall(kind);
        assert!(last < first, "{kind}: {first} to {last}");
    }
}

/// The first loss is summed in `f64` over other groups.
const REGROUPED: f64 = 1e-12;
/// Later ones follow gradients whose `f32` sums pair up other rows where a cut falls after an odd number of tokens
/// (see the trainer's own tests of invariance), and optimisers divide by a gradient's size.
const REORDERED: f64 = 1e-4;

#[test]
fn cuts_of_a_step_change_nothing() {
    for kind in ["dpo", "kto", "reward"] {
        let dir = tempdir();
        let losses_of = |tokens: u64| -> Vec<f64> {
            let keys = format!("train.tokens_per_micro_batch = {tokens}\n");
            let out = dir.path().join(tokens.to_string());
            losses(&finish(&recipe_of(kind, PAIRS, &keys), &[], &out).1)
        };
        let whole = losses_of(4096);
        for tokens in [128, 300] {
            for (step, (a, b)) in whole.iter().zip(losses_of(tokens)).enumerate() {
                let tolerance = if step == 0 { REGROUPED } else { REORDERED };
                assert!((a - b).abs() < tolerance, "{kind}, {tokens} tokens, step {step}: {a} and {b}");
            }
        }
    }
}

#[test]
fn a_resumed_stage_ends_in_the_same_bytes() {
    for (kind, keys) in [("dpo", METHODS[1].1), ("kto", ""), ("reward", METHODS[1].1)] {
        let dir = tempdir();
        let text = recipe_of(kind, PAIRS, &format!("{keys}train.save_every = 2\ndata.eval_fraction = 0.2\n"));
        let [whole, cut] = ["whole", "cut"].map(|name| dir.path().join(name));
        finish(&text, &[], &whole);
        for step in [1, 3] {
            let mut seen = Seen::stopping(StopAt::Step("other", step));
            match go(&text, &[], &cut, &mut seen).unwrap() {
                RunOutcome::Interrupted { .. } => {}
                other => panic!("{kind}: {other:?}"),
            }
        }
        finish(&text, &[], &cut);
        let only_there = |d: &Difference| !matches!(d, Difference::CheckpointOnlyIn { .. });
        let differences: Vec<_> =
            compare_runs(&whole, &cut).unwrap().into_iter().filter(only_there).collect();
        assert!(differences.is_empty(), "{kind}: {differences:?}");
        for (path, bytes) in model_files(&whole) {
            assert!(std::fs::read(cut.join(&path)).unwrap() == bytes, "{kind}: {}", path.display());
        }
    }
}

/// Everything that was written of models and measurements.
fn model_files(out: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let wanted =
        |path: &Path| ["model", "adapter", "eval"].iter().any(|name| path.iter().any(|c| c == *name));
    let files: Vec<_> = files(out).into_iter().filter(|(path, _)| wanted(path)).collect();
    assert!(files.len() > 2, "{files:?}");
    files
}

/// The prompt is computed once for both replies, and nothing is different for it.
#[test]
fn a_shared_prompt_gives_what_a_repeated_one_gives() {
    let model =
        load(base_model(), &LoadOptions { dtype: Some(Dtype::F32), ..LoadOptions::default() }).unwrap();
    let reply =
        |ids: &[u32]| Reply { token_ids: ids.to_vec(), weights: vec![1.0; ids.len()], ..Reply::default() };
    let replies = [reply(&[9, 30, 71, 12]), reply(&[44, 5])];
    let prompt = vec![11, 60, 7, 23, 18];
    let example = |replies: &[Reply]| Example::prompt(prompt.clone(), replies.to_vec(), 0, "row".into());
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let logp = |examples: Vec<Example>| -> Vec<u32> {
            let batch = MicroBatch::new(examples);
            let logprobs = pt_train::score(&model, &batch.batch().unwrap(), dtype, &batch.predictions());
            logprobs.logp.iter().map(|x| x.to_bits()).collect()
        };
        let repeated = logp(replies.iter().map(|reply| example(std::slice::from_ref(reply))).collect());
        assert_eq!(logp(vec![example(&replies)]), repeated, "{dtype:?}");
    }
}

fn pair(prompt: &str, chosen: &str, rejected: &str) -> Value {
    json!({"prompt": prompt, "chosen": chosen, "rejected": rejected})
}

/// A good row, so that something is left.
fn good() -> Value {
    pair("What is 1 + 2?", "It is 3.", "It is 5.")
}

#[test]
fn rows_that_teach_nothing_are_left_out_and_counted() {
    let long = "a word and another ".repeat(60);
    let cases: &[(&str, Vec<Value>, &str, &str)] = &[
        (
            "equal",
            vec![pair("p", "same", "same")],
            "",
            "1 rows were left out: chosen and rejected are the same",
        ),
        (
            "equal, with another prompt",
            vec![pair("Human: x Assistant: y", "y", "y")],
            "",
            "1 rows were left out: chosen and rejected are the same",
        ),
        (
            "empty",
            vec![pair("p", "an answer", ""), pair("q", " ", "no")],
            "",
            "2 rows were left out: a reply is empty",
        ),
        (
            "too long",
            vec![pair("p", &long, "short")],
            "data.truncation = \"drop\"\n",
            "1 rows were left out: longer than `max_length`",
        ),
        (
            "the same once cut",
            vec![pair("p", &format!("{long} yes"), &format!("{long} no"))],
            "data.truncation = \"keep_start\"\n",
            "1 rows were left out: chosen and rejected are the same once cut",
        ),
        (
            "contradicting",
            vec![pair("p", "one", "two"), pair("p", "two", "one"), pair("p", "two", "three")],
            "",
            "1 rows contradict an earlier one",
        ),
    ];
    for kind in ["dpo", "reward", "kto"] {
        for (what, more, keys, expected) in cases {
            let dir = tempdir();
            let mut all = vec![good(); 4];
            all.extend(more.clone());
            let source = rows(dir.path(), &all);
            let text = recipe_of(kind, &source, keys);
            let notes = prepared(&text, &[]).stages[0].notes.join("\n");
            // Of a pair that is used as two labelled replies, each half may contradict by itself.
            let expected = if kind == "kto" && *what == "contradicting" {
                "contradict an earlier one"
            } else {
                expected
            };
            assert!(notes.contains(expected), "{kind}, {what}: {notes:?}");
        }
    }
}

#[test]
fn rows_that_would_train_the_wrong_thing_are_refused() {
    let long = "a word and another ".repeat(60);
    let cases: &[(&str, Vec<Value>, &str, &[&str])] = &[
        (
            "dpo",
            vec![pair("p", &long, "short")],
            "data.truncation = \"error\"\n",
            &["rows.jsonl:1", "max_length"],
        ),
        (
            "dpo",
            vec![pair(long.trim_end(), " yes", " no")],
            "data.truncation = \"keep_start\"\n",
            &["rows.jsonl:1", "nothing of a reply is left", "drop"],
        ),
        ("dpo", vec![json!({"text": "only text"})], "", &["rows.jsonl:1", "`dpo` stage", "chosen"]),
        ("reward", vec![json!({"prompt": "p", "completion": "c"})], "", &["rows.jsonl:1", "`reward` stage"]),
        (
            "dpo",
            vec![json!({"chosen": "abc", "rejected": "xyz"})],
            "",
            &["rows.jsonl:1", "no common beginning"],
        ),
        ("prm", vec![good()], "", &["rows.jsonl:1", "completions"]),
        ("dpo", vec![pair("p", "x", "x")], "", &["rows.jsonl"]),
    ];
    for (kind, all, keys, parts) in cases {
        let dir = tempdir();
        let source = rows(dir.path(), all);
        let message = refusal(&recipe_of(kind, &source, keys), &[]);
        assert!(
            parts.iter().all(|part| message.contains(part)),
            "{kind}: {message} should mention {parts:?}"
        );
    }
}

#[test]
fn an_objective_must_be_on_the_rows_of_its_stage() {
    let cases = [
        ("dpo", "kto"),
        ("kto", "dpo"),
        ("reward", "dpo"),
        ("prm", "reward"),
        ("sft", "dpo"),
        ("simpo", "prm"),
    ];
    for (stage, objective) in cases {
        let text = recipe_of(stage, PAIRS, &format!("objective.type = \"{objective}\"\n"));
        let message = refusal(&text, &[]);
        let parts = [format!("`{stage}` stage"), format!("`{objective}`"), "objective.type".to_owned()];
        assert!(parts.iter().all(|part| message.contains(part)), "{stage} {objective}: {message}");
    }
    // Another objective of the same rows is welcome.
    prepared(&recipe_of("dpo", PAIRS, "objective.type = \"alphapo\"\n"), &[]);
    prepared(&recipe_of("kto", PAIRS, "objective.type = \"apo_zero_unpaired\"\n"), &[]);
}

#[test]
fn labels_out_of_balance_are_noted() {
    let dir = tempdir();
    let labelled =
        |i: usize| json!({"prompt": format!("p{i}"), "completion": "c", "label": i.is_multiple_of(4)});
    let source = rows(dir.path(), &(0..16).map(labelled).collect::<Vec<_>>());
    let notes = |keys: &str| prepared(&recipe_of("kto", &source, keys), &[]).stages[0].notes.join("\n");
    let found = notes("");
    assert!(found.contains("4 good and 12 bad") && found.contains("between 3.00 and 4.00"), "{found}");
    assert!(
        !notes("objective.type = \"kto\"\nobjective.desirable_weight = 3.5\n").contains("weigh"),
        "balanced"
    );
}

/// The form of hh-rlhf: two whole dialogues that part at the last reply.
#[test]
fn implicit_prompts_are_found() {
    let dir = tempdir();
    let dialogue = |i: usize, reply: &str| {
        format!("\n\nHuman: say {i}\n\nAssistant: yes?\n\nHuman: now\n\nAssistant: {reply}")
    };
    let row = |i: usize| json!({"chosen": dialogue(i, "well done it is"), "rejected": dialogue(i, "no")});
    let source = rows(dir.path(), &(0..16).map(row).collect::<Vec<_>>());
    let out = dir.path().join("run");
    let (_, seen) = finish(&recipe_of("dpo", &source, ""), &[], &out);
    assert!((losses(&seen)[0] - std::f64::consts::LN_2).abs() < 1e-12);
    // Whole dialogues are understood as conversations.
    let turn = |role: &str, text: String| json!({"role": role, "content": text});
    let explicit = |i: usize| {
        let prompt = [
            turn("user", format!("say {i}")),
            turn("assistant", "yes?".to_owned()),
            turn("user", "now".to_owned()),
        ];
        let reply = |text: &str| [turn("assistant", text.to_owned())];
        json!({"prompt": prompt, "chosen": reply("well done it is"), "rejected": reply("no")})
    };
    let other = tempdir();
    let sources = [source, rows(other.path(), &(0..16).map(explicit).collect::<Vec<_>>())];
    let tokens = sources.map(|source| {
        let mut prepared = prepared(&recipe_of("dpo", &source, "data.shuffle = false\n"), &[]);
        let batches = prepared.stages[0].steps.micro_batches(0).unwrap();
        batches
            .iter()
            .flat_map(|b| b.examples().to_vec())
            .map(|e| (e.token_ids, e.replies))
            .collect::<Vec<_>>()
    });
    assert_eq!(tokens[0], tokens[1], "an implicit prompt is the explicit one");
}

fn scorer(path: &Path) -> Scorer {
    Scorer::open(path, None).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_reward_model_is_reported_on_read_back_and_serves_as_a_reward() {
    for (method, keys) in &METHODS[..2] {
        let dir = tempdir();
        let out = dir.path().join("run");
        let keys = format!("{keys}data.eval_fraction = 0.25\n");
        let text = recipe_of("reward", PAIRS, &keys);
        let (reports, seen) = finish(&text, &["stage.0.train.steps=40"], &out);
        let notes = seen.notes.join("\n");
        assert!(notes.contains("reward model: accuracy"), "{method}: {notes}");
        let report = std::fs::read(out.join("stages/01-reward/eval/rewards.json")).unwrap();
        let report: RewardReport = serde_json::from_slice(&report).unwrap();
        let n_held_out: usize = prepared(&text, &[]).stages[0].eval.iter().map(|b| b.examples().len()).sum();
        assert_eq!(report.accuracy.n, n_held_out);
        // What is learnt in forty steps is known where every weight trains; an adapter of rank 4 learns little.
        assert!(*method != "full" || report.accuracy.value.unwrap() > 0.5, "{report:?}");
        // What was written says what the report says: the mean over held-out replies is finite, and the better reply wins.
        let path = out.join(&reports[0].output);
        let scorer = scorer(&path);
        let score = |prompt: &str, reply: &str| scorer.scores(vec![scorer.texts(prompt, reply).unwrap()])[0];
        let (alone, other) = (score("1 + 2 = ?", "3"), score("1 + 2 = ?", "4"));
        assert!(alone.is_finite() && alone != other, "{method}");
        let examples = ["3", "4"].map(|reply| scorer.texts("1 + 2 = ?", reply).unwrap());
        assert_eq!(scorer.scores(examples.to_vec()), [alone, other], "{method}: in a tree as alone");
        // It is the reward of the next run.
        let grpo = recipe_of(
            "grpo",
            "generated:sum?level=1&n=16&seed=5&form=prompt_only",
            &format!(
                "rollout.n = 4\nrollout.max_new_tokens = 8\n[[stage.reward]]\ntype = \"reward_model\"\nmodel = {:?}\n",
                path.display().to_string()
            ),
        );
        let next = dir.path().join("next");
        finish(&grpo, &["stage.0.train.steps=2"], &next);
        let first = &metrics(&next)[0];
        let mean = first["rewards/reward_model/mean"].as_f64().or(first["reward"].as_f64());
        assert!(mean.is_some_and(|mean| mean.is_finite() && mean != 0.0), "{method}: {first}");
        // Trained again in place, it is another reward, and no stage that it judged is taken over.
        let plan = || prepared(&grpo, &["stage.0.train.steps=2"]).plan;
        let before = plan();
        let weights =
            path.join(if *method == "full" { "model.safetensors" } else { "adapter_model.safetensors" });
        assert!(before.stages[0].rewards[0].files.iter().any(|f| f.path == weights.display().to_string()));
        let mut bytes = std::fs::read(&weights).unwrap();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        std::fs::write(&weights, bytes).unwrap();
        assert_ne!(plan().hash(), before.hash(), "{method}");
    }
}

#[test]
fn a_stage_after_a_reward_model_starts_from_the_language_model() {
    let dir = tempdir();
    let reward = recipe_of("reward", PAIRS, "");
    let stage = "[[stage]]\ntype = \"dpo\"\ndata.train = [\"generated:sum?level=1&n=48&seed=5&form=preference\"]\n\
                 data.max_length = 128\ntrain.rows_per_step = 8\ntrain.steps = 2\neval.n = 1\neval.max_new_tokens = 1\n";
    let out = dir.path().join("run");
    let (reports, seen) = finish(&format!("{reward}{stage}"), &[], &out);
    assert!((losses(&seen)[6] - std::f64::consts::LN_2).abs() < 1e-12);
    let model: Model = load(&out.join(&reports[1].output), &LoadOptions::default()).unwrap();
    assert!(model.score_head().is_none());
    let refused = load(&out.join(&reports[0].output), &LoadOptions::default()).expect_err("a reward model");
    assert!(refused.to_string().contains("ForSequenceClassification"), "{refused}");
    // A language model scores nothing, which its configuration says: no weight need be there.
    let bare = dir.path().join("bare");
    std::fs::create_dir(&bare).unwrap();
    std::fs::copy(out.join(&reports[1].output).join("config.json"), bare.join("config.json")).unwrap();
    for path in [out.join(&reports[1].output), bare] {
        let error = Scorer::open(&path, None).unwrap_err().to_string();
        assert!(error.contains("a language model without a score head"), "{error}");
    }
}

#[test]
fn a_process_reward_model_is_a_token_classifier() {
    let dir = tempdir();
    let row = json!({"prompt": "1 + 2", "completions": ["1 + 2 = 3", "so 3"], "labels": [true, false]});
    let source = rows(dir.path(), &vec![row; 16]);
    let out = dir.path().join("run");
    let (reports, _) = finish(&recipe_of("prm", &source, ""), &[], &out);
    let path = out.join(&reports[0].output);
    let config: Value = serde_json::from_slice(&std::fs::read(path.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "LlamaForTokenClassification");
    let model = load(&path, &LoadOptions { score_head: true, ..LoadOptions::default() }).unwrap();
    assert_eq!(model.classifier().map(|head| head.n_outputs), Some(2));
}

/// Solutions whose soft labels a model can learn: a step that says `6` is right nine times of ten.
fn soft_solutions() -> Vec<Value> {
    let one = |last: &str, p: f64| json!({"prompt": "1 + 2 + 3", "completions": ["1 + 2 = 3", format!("3 + 3 = {last}")], "labels": [0.75, p]});
    vec![[one("6", 0.9), one("7", 0.1)]; 16].concat()
}

#[test]
fn soft_labels_of_steps_are_learnt_as_probabilities_and_serve_as_rewards() {
    for (method, keys) in &METHODS[..2] {
        let dir = tempdir();
        let source = rows(dir.path(), &soft_solutions());
        let out = dir.path().join("run");
        let text = recipe_of("prm", &source, &format!("{keys}optimizer.weight_decay = 0.0\n"));
        let sets = ["stage.0.train.steps=60", "stage.0.optimizer.learning_rate=3e-3"];
        let (reports, _) = finish(&text, &sets, &out);
        for name in ["accuracy/right", "first_error_accuracy", "brier"] {
            assert!(metric(&out, "01-prm", name).iter().any(|(_, value)| value.is_finite()), "{name}");
        }
        let path = out.join(&reports[0].output);
        let scorer = ProcessScorer::open(&path, None).unwrap();
        let steps = |last: &str| vec!["1 + 2 = 3".to_owned(), format!("3 + 3 = {last}")];
        let (good, bad) = (steps("6"), steps("7"));
        let asked: [(&str, &[String]); 3] = [("1 + 2 + 3", &good), ("1 + 2 + 3", &[]), ("1 + 2 + 3", &bad)];
        let found = scorer.probabilities(&asked).unwrap();
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [2, 0, 2], "{method}");
        assert_eq!(found[0], scorer.probabilities(&asked[..1]).unwrap()[0], "{method}: in a tree as alone");
        // What every solution shares is learnt at its target, not at 1; what tells them apart is known by its order after 60 steps.
        // (An adapter of rank 4 learns little in them.)
        if *method == "full" {
            assert!((found[0][0] - 0.75).abs() < LEARNT, "{found:?}");
            assert!(found[0][1] > found[2][1], "{found:?}");
        }
        let grpo = recipe_of(
            "grpo",
            "generated:sum?level=1&n=16&seed=5&form=prompt_only",
            &format!(
                "rollout.n = 4\nrollout.max_new_tokens = 8\n[[stage.reward]]\ntype = \"process_reward_model\"\n\
                 aggregate = \"product\"\nmodel = {:?}\n",
                path.display().to_string()
            ),
        );
        let next = dir.path().join("next");
        finish(&grpo, &["stage.0.train.steps=2"], &next);
        let reward = metrics(&next)[0]["reward"].as_f64();
        assert!(reward.is_some_and(|mean| mean > 0.0 && mean < 1.0), "{method}: {reward:?}");
        // Its files are part of the plan, as those of every model that judges.
        let plan = prepared(&grpo, &["stage.0.train.steps=2"]).plan;
        assert!(!plan.stages[0].rewards[0].files.is_empty());
    }
}

/// What sixty steps leave between a probability and its target.
const LEARNT: f64 = 0.1;

#[test]
fn models_of_the_other_kind_are_refused_as_rewards() {
    let dir = tempdir();
    let out = dir.path().join("run");
    let (reports, _) = finish(&recipe_of("reward", PAIRS, ""), &["stage.0.train.steps=1"], &out);
    let error = ProcessScorer::open(&out.join(&reports[0].output), None).unwrap_err();
    let text = format!("{error:?} {error}");
    assert!(text.contains("token classifier of two classes"), "{text}");
    let error = ProcessScorer::open(base_model(), None).unwrap_err();
    assert!(error.to_string().contains("without a score head"), "{error}");
}

/// The same sums in another order.
const SUMMED: f64 = 1e-9;

#[test]
fn a_soft_label_is_a_smoothing_of_its_own() {
    let pairs = |label: Option<f64>| -> Vec<Value> {
        let one = |i: usize| {
            let mut row =
                json!({"prompt": format!("{i} + 1 ="), "chosen": format!(" {}", i + 1), "rejected": " 77"});
            if let Some(label) = label {
                row["soft_label"] = json!(label);
            }
            row
        };
        (0..24).map(one).collect()
    };
    for (kind, label, keys) in [
        // Labels that f32 holds exactly.
        ("dpo", 0.75, "objective.loss_type = \"cdpo\"\nobjective.label_smoothing = 0.25\n"),
        ("cpo", 0.875, "objective.label_smoothing = 0.125\n"),
        ("dpo", 1.0, ""),
        ("reward", 1.0, ""),
    ] {
        let run = |label: Option<f64>, keys: &str| {
            let dir = tempdir();
            let source = rows(dir.path(), &pairs(label));
            losses(&finish(&recipe_of(kind, &source, keys), &[], &dir.path().join("run")).1)
        };
        let (soft, smoothed) = (run(Some(label), ""), run(None, keys));
        for (a, b) in soft.iter().zip(&smoothed) {
            assert!((a - b).abs() < SUMMED, "{kind}: {soft:?} and {smoothed:?}");
        }
    }
    // A pair that is as likely the other way round teaches a reward model nothing.
    let dir = tempdir();
    let source = rows(dir.path(), &pairs(Some(0.5)));
    let text = recipe_of("reward", &source, "train.log_every = 1\n");
    finish(&text, &["stage.0.train.steps=30"], &dir.path().join("even"));
    let sure = rows(dir.path(), &pairs(None));
    finish(
        &recipe_of("reward", &sure, "train.log_every = 1\n"),
        &["stage.0.train.steps=30"],
        &dir.path().join("sure"),
    );
    let margin = |run: &str| metric(&dir.path().join(run), "01-reward", "margin").last().unwrap().1;
    assert!(margin("even").abs() < 0.5 * margin("sure"), "{} and {}", margin("even"), margin("sure"));
}

/// A learning rate that pushes both replies down.
#[test]
fn displacement_is_an_alarm() {
    let dir = tempdir();
    let out = dir.path().join("run");
    let text = recipe_of("dpo", PAIRS, "objective.type = \"dpo\"\nobjective.beta = 0.05\n");
    finish(&text, &["stage.0.train.steps=40", "stage.0.optimizer.learning_rate=5e-3"], &out);
    let events = std::fs::read_to_string(out.join("events.jsonl")).unwrap();
    let all = metrics(&out);
    let falls = all.last().unwrap()["rewards/chosen"].as_f64().unwrap() < 0.0;
    assert_eq!(events.contains("less likely"), falls, "{events}");
    assert!(falls, "the case displaces: {:?}", all.last());
}

/// A model from nothing trains its tokenizer on every text of its rows, whatever kind they are.
#[test]
fn a_trained_tokenizer_has_seen_every_kind_of_text() {
    let said =
        |word: &str| json!([{"role": "user", "content": "Say it"}, {"role": "assistant", "content": word}]);
    let cases: &[(&str, Value, &[&str])] = &[
        ("dpo", json!({"chosen": "Say: harmless", "rejected": "Say: dreadful"}), &["harmless", "dreadful"]),
        ("dpo", json!({"chosen": said("harmless"), "rejected": said("dreadful")}), &["harmless", "dreadful"]),
        ("prm", json!({"prompt": "Say", "completions": ["harmless"], "labels": [true]}), &["harmless"]),
        (
            "sft",
            json!({"segments": [{"label": false, "text": "Say: "}, {"label": true, "text": "harmless"}]}),
            &["harmless"],
        ),
    ];
    for (kind, row, words) in cases {
        let dir = tempdir();
        let source = rows(dir.path(), &vec![row.clone(); 8]);
        let stage =
            format!("[[stage]]\ntype = \"{kind}\"\ndata.train = [{source:?}]\ntrain.rows_per_step = 4\n");
        let prepared = prepared(&format!("{NEW_MODEL}{stage}"), &["stage.0.train.steps=2"]);
        for word in *words {
            let n = prepared.tokenizer.encode(&format!(" {word}"), false).unwrap().ids.len();
            assert!(n <= 2, "{kind}: {word} is {n} tokens after {row}");
        }
        // Few words have few pairs: less than the 300 tokens that were asked for.
        let notes = &prepared.stages[0].notes;
        assert!(notes.iter().any(|note| note.contains("tokens of the 300 asked for")), "{kind}: {notes:?}");
    }
    let dir = tempdir();
    let source = rows(dir.path(), &[json!({"input_ids": [1, 2, 3], "labels": [1, 2, 3]})]);
    let message = refusal(&format!("{NEW_MODEL}[[stage]]\ntype = \"sft\"\ndata.train = [{source:?}]\n"), &[]);
    assert!(message.contains("no text") && message.contains("model.tokenizer"), "{message}");
}

#[test]
fn a_step_against_a_reference_can_be_laid_out_in_every_way() {
    for kind in ["dpo", "kto", "reward"] {
        let results =
            verify_invariance(&recipe(&recipe_of(kind, PAIRS, ""), &[]), &nothing_around()).unwrap();
        let failed: Vec<_> = results.iter().filter(|result| !result.passed()).collect();
        assert!(results.len() == 8 && failed.is_empty(), "{kind}: {failed:?}");
    }
    let samples = "rollout.max_new_tokens = 4\n[[stage.reward]]\ntype = \"contains\"\nrequired = [\"a\"]\n";
    let text = recipe_of("grpo", "generated:letters?level=1&n=8&form=prompt_only", samples);
    let refused = verify_invariance(&recipe(&text, &[]), &nothing_around()).unwrap_err().to_string();
    assert!(refused.contains("`grpo` stage samples") && refused.contains("sft or dpo"), "{refused}");
}
