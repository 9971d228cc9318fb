//! `score` and `generate`: against published numbers, against each other, and their schema.

mod common;

use common::*;
use pt_core::testdata::shared_data;
use pt_engine::Dtype;
use serde_json::{Value, json};

/// The reference is rounded to five decimals and was computed in `f64`.
const TOLERANCE: f32 = 1e-3;

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// (model, tokenizer, reference) of stories260K.
fn stories() -> Option<(String, String, Value)> {
    let dir = shared_data()?.join("stories260K");
    let reference = serde_json::from_slice(&std::fs::read(dir.join("reference.json")).unwrap()).unwrap();
    let path = |name: &str| dir.join(name).display().to_string();
    Some((path("stories260K.bin"), path("tok512.bin"), reference))
}

#[test]
fn stories260k_scores_as_its_reference() {
    let Some((model, tokenizer, reference)) = stories() else { return };
    let fixture = Fixture::new();
    let expected = reference["score"].as_array().unwrap();
    let rows: Vec<Value> = expected.iter().map(|row| json!({"text": row["text"]})).collect();
    fixture.write("texts.jsonl", &lines(&rows));
    let found = fixture
        .run(&["score", "--model", &model, "--tokenizer", &tokenizer, "--data", "texts.jsonl", "--out", "-"])
        .ok();
    for (found, expected) in found.rows().iter().zip(expected) {
        assert_eq!(found["token_ids"], expected["ids"]);
        assert!(found["logprobs"][0].is_null());
        let (found, expected) = (logprobs(&found["logprobs"]), logprobs(&expected["logprobs"]));
        assert_eq!(found.len(), expected.len() + 1);
        for (found, expected) in found[1..].iter().zip(&expected) {
            assert!((found - expected).abs() < TOLERANCE, "{found} and {expected}");
        }
    }
    assert_eq!(found.rows().len(), expected.len());
    // The tokenizer beside the model is found without being named.
    let beside = fixture.run(&["score", "--model", &model, "--data", "texts.jsonl", "--out", "-"]).ok();
    assert_eq!(beside.stdout, found.stdout);
}

#[test]
fn stories260k_continues_as_published() {
    let Some((model, tokenizer, reference)) = stories() else { return };
    let fixture = Fixture::new();
    let expected = reference["greedy"].as_array().unwrap();
    let rows: Vec<Value> = expected.iter().map(|row| json!({"prompt": row["prompt"]})).collect();
    fixture.write("prompts.jsonl", &lines(&rows));
    let args = ["--data", "prompts.jsonl", "--out", "-", "--temperature", "0", "--max-new-tokens", "100"];
    let found =
        fixture.run(&[&["generate", "--model", &model, "--tokenizer", &tokenizer], &args[..]].concat()).ok();
    for (found, expected) in found.rows().iter().zip(expected) {
        let sample = &found["samples"][0];
        let all = [ids(&found["prompt_token_ids"]), ids(&sample["token_ids"])].concat();
        let expected_ids = ids(&expected["ids"]);
        let n = all.len().min(expected_ids.len());
        assert!(n > 90, "{n}");
        assert_eq!(all[..n], expected_ids[..n]);
    }
    let first = found.rows()[0]["samples"][0]["text"].as_str().unwrap().to_owned();
    let published = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, \
                     she saw a big, red ball. She wanted to play with it, but it was too high.\nLily's mom said,";
    assert!(first.starts_with(published), "{first}");
}

/// Rows of every form that can be scored.
fn rows_to_score() -> Vec<(&'static str, Value)> {
    vec![
        ("text.jsonl", json!({"text": "Hello there, how are you?", "id": 7})),
        ("pair.jsonl", json!({"prompt": "one two", "completion": " three four", "id": 7})),
        (
            "chat.jsonl",
            json!({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "how are you"}], "id": 7}),
        ),
        (
            "chat_pair.jsonl",
            json!({"prompt": [{"role": "user", "content": "Hello"}],
                   "completion": [{"role": "assistant", "content": "how are you"}], "id": 7}),
        ),
        ("ids.jsonl", json!({"input_ids": [70, 71, 72, 73], "completion_mask": [0, 0, 1, 1], "id": 7})),
    ]
}

#[test]
fn every_scored_row_has_the_documented_columns() {
    let fixture = Fixture::new();
    for (name, row) in rows_to_score() {
        fixture.write(name, &lines(&[row]));
        let outcome = fixture.run(&["score", "--model", "model", "--data", name, "--out", "-"]).ok();
        let row = &outcome.rows()[0];
        let columns: Vec<&String> = row.as_object().unwrap().keys().collect();
        assert_eq!(columns, ["token_ids", "logprobs", "sum", "mask", "id"], "{name}");
        let (ids, logprobs, mask) = (ids(&row["token_ids"]), logprobs(&row["logprobs"]), ids(&row["mask"]));
        assert!(ids.len() == logprobs.len() && ids.len() == mask.len(), "{name}: {row}");
        assert!(row["logprobs"][0].is_null() && mask[0] == 0, "{name}");
        assert!(logprobs[1..].iter().all(|logp| *logp <= 0.0), "{name}: {row}");
        assert!(mask.iter().all(|m| *m <= 1) && mask.contains(&1), "{name}: {row}");
        assert_eq!(mask[1..].contains(&0), name != "text.jsonl", "{name}: {row}");
        let counted = logprobs.iter().zip(&mask).filter(|(_, m)| **m == 1).map(|(l, _)| f64::from(*l));
        assert!((counted.sum::<f64>() - row["sum"].as_f64().unwrap()).abs() < 1e-6, "{name}: {row}");
    }
    // A conversation is the same however it is laid out, and its end of turn counts.
    let score = |name: &str| {
        let row =
            fixture.run(&["score", "--model", "model", "--data", name, "--out", "-"]).ok().rows()[0].clone();
        (row["token_ids"].clone(), row["mask"].clone(), row["sum"].clone())
    };
    assert_eq!(score("chat.jsonl"), score("chat_pair.jsonl"));
    let all =
        ["score", "--model", "model", "--data", "pair.jsonl", "--mask", "all", "--append-eos", "--out", "-"];
    let all = fixture.run(&all).ok().rows()[0].clone();
    let one = fixture.run(&["score", "--model", "model", "--data", "pair.jsonl", "--out", "-"]).ok().rows()
        [0]
    .clone();
    assert_eq!(ids(&all["token_ids"]).len(), ids(&one["token_ids"]).len() + 1);
    assert!(ids(&all["mask"])[1..].iter().all(|m| *m == 1));
}

#[test]
fn scores_do_not_depend_on_batches_threads_or_where_they_go() {
    let fixture = Fixture::of_type(Dtype::Bf16);
    let words = ["Hello", "there", "how", "are", "you", "one", "two", "three"];
    let text =
        |i: usize| words.iter().cycle().skip(i).take(1 + i * 5 % 23).copied().collect::<Vec<_>>().join(" ");
    let rows: Vec<Value> = (0..30).map(|i| json!({"text": text(i), "i": i})).collect();
    fixture.write("texts.jsonl", &lines(&rows));
    let score = |more: &[&str]| {
        let args = [&["score", "--model", "model", "--data", "texts.jsonl", "--out", "-"], more].concat();
        fixture.run(&args).ok().stdout
    };
    let together = score(&[]);
    let order: Vec<u64> = json_lines(&together).iter().map(|row| row["i"].as_u64().unwrap()).collect();
    assert_eq!(order, (0..30).collect::<Vec<u64>>());
    assert_eq!(score(&["--tokens-per-batch", "1"]), together);
    assert_eq!(score(&["--threads", "1"]), together);
    fixture.run(&["score", "--model", "model", "--data", "texts.jsonl", "--out", "out.jsonl"]).ok();
    assert_eq!(fixture.read("out.jsonl"), together);
    let stdin = ["score", "--model", "model", "--data", "-", "--out", "-"];
    assert_eq!(run_with(fixture.path(), &stdin, &lines(&rows)).ok().stdout, together);
}

fn prompts(n: usize) -> Vec<Value> {
    let text = ["Hello there", "one two three", "how are you", "user"];
    let chat = |i: usize| json!([{"role": "user", "content": format!("Hello {i}")}]);
    (0..n).map(|i| json!({"prompt": if i % 2 == 0 { chat(i) } else { json!(text[i % 4]) }, "i": i})).collect()
}

fn generate(fixture: &Fixture, data: &str, more: &[&str]) -> Vec<Value> {
    let args = ["generate", "--model", "model", "--data", data, "--out", "-"];
    let limit: &[&str] = if more.contains(&"--max-new-tokens") { &[] } else { &["--max-new-tokens", "12"] };
    fixture.run(&[&args[..], limit, more].concat()).ok().rows()
}

#[test]
fn samples_depend_on_the_prompt_and_the_seed_alone() {
    let fixture = Fixture::new();
    let rows = prompts(9);
    // Text and messages are two forms of one column, so each has its file.
    for (form, name) in [(0, "chat.jsonl"), (1, "text.jsonl")] {
        let rows: Vec<Value> = rows.iter().skip(form).step_by(2).cloned().collect();
        fixture.write(name, &lines(&rows));
        let together = generate(&fixture, name, &["--n", "3", "--seed", "1"]);
        assert_eq!(generate(&fixture, name, &["--n", "3", "--seed", "1", "--threads", "1"]), together);
        assert_ne!(generate(&fixture, name, &["--n", "3", "--seed", "2"]), together);
        // A row whose prompt came before gets other draws, so only first occurrences are compared alone.
        for i in [0, 1] {
            fixture.write("alone.jsonl", &lines(&rows[i..=i]));
            assert_eq!(generate(&fixture, "alone.jsonl", &["--n", "3", "--seed", "1"])[0], together[i]);
        }
    }
    let twice = json!({"prompt": "Hello"});
    fixture.write("twice.jsonl", &lines(&[twice.clone(), twice]));
    let rows = generate(&fixture, "twice.jsonl", &[]);
    assert_ne!(rows[0]["samples"], rows[1]["samples"]);
}

#[test]
fn generated_rows_have_the_documented_columns() {
    let fixture = Fixture::new();
    fixture.write("p.jsonl", "{\"prompt\": \"Hello there\", \"answer\": 42, \"samples\": \"old\"}\n");
    let row =
        generate(&fixture, "p.jsonl", &["--n", "2", "--top-k", "5", "--top-p", "0.9", "--min-p", "0.01"])[0]
            .clone();
    let columns: Vec<&String> = row.as_object().unwrap().keys().collect();
    assert_eq!(columns, ["prompt", "answer", "prompt_token_ids", "samples"]);
    assert_eq!((&row["prompt"], &row["answer"]), (&json!("Hello there"), &json!(42)));
    let samples = row["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 2);
    for sample in samples {
        let keys: Vec<&String> = sample.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["text", "token_ids", "logprobs", "finish_reason"]);
        let n = ids(&sample["token_ids"]).len();
        assert_eq!(logprobs(&sample["logprobs"]).len(), n);
        let stopped = sample["finish_reason"] == "stop";
        assert!(stopped || (sample["finish_reason"] == "length" && n == 12), "{sample}");
    }
}

/// The program's promise: what a token was sampled with is what it is scored with.
#[test]
fn sampled_and_scored_logprobs_are_the_same_bits() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let fixture = Fixture::of_type(dtype);
        fixture
            .write("p.jsonl", &lines(&[json!({"prompt": "Hello"}), json!({"prompt": "one two three four"})]));
        let rows = generate(&fixture, "p.jsonl", &["--n", "4"]);
        let mut sequences = Vec::new();
        let mut expected = Vec::new();
        for row in &rows {
            for sample in row["samples"].as_array().unwrap() {
                let all = [ids(&row["prompt_token_ids"]), ids(&sample["token_ids"])].concat();
                sequences.push(json!({"input_ids": all}));
                expected.push(sample["logprobs"].clone());
            }
        }
        fixture.write("ids.jsonl", &lines(&sequences));
        let scored =
            fixture.run(&["score", "--model", "model", "--data", "ids.jsonl", "--out", "-"]).ok().rows();
        assert_eq!(scored.len(), 8);
        for (scored, expected) in scored.iter().zip(&expected) {
            let (scored, expected) = (scored["logprobs"].as_array().unwrap(), expected.as_array().unwrap());
            assert_eq!(&scored[scored.len() - expected.len()..], &expected[..], "{dtype:?}");
        }
    }
}

#[test]
fn an_end_of_turn_ends_a_reply_and_is_no_text() {
    let fixture = Fixture::new();
    fixture.write("p.jsonl", &lines(&[json!({"prompt": "Hello"})]));
    let rows =
        generate(&fixture, "p.jsonl", &["--n", "64", "--temperature", "2.5", "--max-new-tokens", "100"]);
    let samples = rows[0]["samples"].as_array().unwrap();
    let tokenizer = tokenizer();
    let stops = ["<|im_end|>", "<|end_of_text|>"].map(|token| tokenizer.token_to_id(token).unwrap());
    let mut n_stopped = 0;
    for sample in samples {
        let token_ids = ids(&sample["token_ids"]);
        let last = *token_ids.last().unwrap();
        assert_eq!(stops.contains(&last), sample["finish_reason"] == "stop", "{sample}");
        assert!(!token_ids[..token_ids.len() - 1].iter().any(|id| stops.contains(id)), "{sample}");
        assert!(!sample["text"].as_str().unwrap().contains("<|im_end|>"));
        n_stopped += usize::from(sample["finish_reason"] == "stop");
    }
    assert!(n_stopped > 0, "of 64 hot samples some end by themselves");
}
