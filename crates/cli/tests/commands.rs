//! The other commands: errors, data, lists, chat, merge.

mod common;

use std::process::Stdio;

use common::*;
use pt_core::testdata::shared_data;
use pt_engine::Dtype;
use serde_json::{Value, json};

#[test]
fn wrong_inputs_say_what_is_wrong_where_and_what_to_do() {
    let fixture = Fixture::new();
    fixture.write("good.jsonl", "{\"text\": \"Hello\"}\n");
    fixture.write("bad.jsonl", "{\"text\": \"Hello\"}\n{\"text\": \n");
    fixture.write("strange.jsonl", "{\"colour\": \"red\"}\n");
    fixture.write(
        "twins.jsonl",
        "{\"text\": \"a\", \"messages\": [{\"role\": \"user\", \"content\": \"b\"}]}\n",
    );
    fixture.write("prompt.jsonl", "{\"prompt\": \"Hello\"}\n");
    let score = |data: &'static str| vec!["score", "--model", "model", "--data", data, "--out", "out.jsonl"];
    let cases: Vec<(Vec<&str>, i32, Vec<&str>)> = vec![
        (score("absent.jsonl"), 1, vec!["absent.jsonl", "no such file"]),
        (score("bad.jsonl"), 1, vec!["bad.jsonl:2", "invalid JSON", "one row per line"]),
        (score("strange.jsonl"), 1, vec!["strange.jsonl:1", "no known layout", "`colour`", "Rename columns"]),
        (score("twins.jsonl"), 1, vec!["twins.jsonl:1", "several layouts", "layout"]),
        (score("prompt.jsonl"), 1, vec!["prompt.jsonl:1", "prompt-only", "data convert"]),
        ([score("good.jsonl"), vec!["--layout", "txt"]].concat(), 2, vec!["--layout", "txt", "'text'"]),
        ([score("good.jsonl"), vec!["--column", "prompt"]].concat(), 2, vec!["--column", "PART=COLUMN"]),
        (
            [score("good.jsonl"), vec!["--column", "prompt=txt"]].concat(),
            1,
            vec!["good.jsonl:1", "`txt`", "text"],
        ),
        ([score("good.jsonl"), vec!["--dtype", "f16"]].concat(), 2, vec!["--dtype", "f32, bf16"]),
        ([score("good.jsonl"), vec!["--threads", "0"]].concat(), 2, vec!["--threads"]),
        (
            vec!["score", "--model", "absent", "--data", "good.jsonl", "--out", "o"],
            1,
            vec!["`absent`", "hf download absent"],
        ),
        (
            vec!["score", "--model", "model", "--data", "good.jsonl", "--out", "no/such/o"],
            1,
            vec!["no/such", "make it first"],
        ),
        (vec!["score", "--model", "model", "--data", "good.jsonl", "--out", "model"], 1, vec!["is a folder"]),
        (
            vec!["score", "--model", "model", "--adapter", "model", "--data", "good.jsonl", "--out", "o"],
            1,
            vec!["adapter_config.json"],
        ),
        (
            vec!["generate", "--model", "model", "--data", "good.jsonl", "--out", "o"],
            1,
            vec!["good.jsonl:1", "`prompt`", "--to prompt_only"],
        ),
        (
            vec![
                "generate",
                "--model",
                "model",
                "--data",
                "prompt.jsonl",
                "--out",
                "o",
                "--temperature",
                "-1",
            ],
            2,
            vec!["--temperature", "0 or more"],
        ),
        (
            vec!["generate", "--model", "model", "--data", "prompt.jsonl", "--out", "o", "--top-p", "0"],
            2,
            vec!["--top-p", "above 0"],
        ),
        (vec!["data", "inspect", "generated:sum?levle=1"], 1, vec!["levle", "did you mean `level`"]),
        (vec!["data", "inspect", "generated:sums"], 1, vec!["sums", "did you mean `sum`"]),
        (vec!["data", "inspect", "good.jsonl", "--row", "9"], 1, vec!["good.jsonl", "1 row", "row 9"]),
        (vec!["data", "inspect", "good.jsonl", "--rows", "3-2"], 2, vec!["--rows", "2-5"]),
        (
            vec!["data", "convert", "good.jsonl", "--to", "preference", "--out", "o"],
            1,
            vec!["good.jsonl:1", "`preference`", "no better and worse answer"],
        ),
        (
            vec!["data", "convert", "good.jsonl", "--to", "pairs", "--out", "o"],
            2,
            vec!["pairs", "preference"],
        ),
        (
            vec!["data", "mix", "good.jsonl:1", "prompt.jsonl", "--out", "o"],
            1,
            vec!["1 of 2 sources have a share"],
        ),
        (
            vec!["data", "mix", "good.jsonl", "prompt.jsonl", "--out", "o"],
            1,
            vec!["`text`", "`prompt`", "convert"],
        ),
        (vec!["list", "objective"], 2, vec!["objectives"]),
        (vec!["scroe"], 2, vec!["scroe", "'score'"]),
        (vec![], 2, vec!["Usage"]),
        (
            vec!["merge", "--model", "model", "--adapter", "absent", "--out", "merged"],
            1,
            vec!["absent/adapter_config.json"],
        ),
        (
            vec!["merge", "--model", "model", "--adapter", "absent", "--out", "model"],
            1,
            vec!["--out model", "not empty"],
        ),
    ];
    for (args, code, fragments) in cases {
        let outcome = fixture.run(&args);
        assert_eq!(outcome.code, code, "{args:?}\n{}", outcome.stderr);
        for fragment in fragments {
            assert!(outcome.stderr.contains(fragment), "{args:?}: no {fragment:?} in\n{}", outcome.stderr);
        }
        if code == 1 {
            assert_eq!(outcome.stderr.matches("error:").count(), 1, "{args:?}\n{}", outcome.stderr);
        }
    }
    for left in ["out.jsonl", "o", "merged"] {
        assert!(!fixture.path().join(left).exists(), "{left} was left by a failed command");
    }
}

#[test]
fn a_failed_command_leaves_the_older_result() {
    let fixture = Fixture::new();
    fixture.write("out.jsonl", "older\n");
    fixture.write("bad.jsonl", "{\"text\": \"Hello\"}\n{\"txt\": 1}\n");
    let outcome = fixture.run(&["score", "--model", "model", "--data", "bad.jsonl", "--out", "out.jsonl"]);
    assert_eq!((outcome.code, fixture.read("out.jsonl").as_str()), (1, "older\n"));
    let partial = std::fs::read_dir(fixture.path()).unwrap();
    assert!(!partial.flatten().any(|entry| entry.file_name().to_string_lossy().contains("partial")));
}

#[test]
fn every_list_is_there_for_people_and_for_machines() {
    let fixture = Fixture::new();
    let kinds =
        ["objectives", "optimizers", "schedules", "models", "layouts", "tasks", "stages", "keys", "isas"];
    for kind in kinds {
        let text = fixture.run(&["list", kind]).ok().stdout;
        let entries: Vec<Value> =
            serde_json::from_str(&fixture.run(&["list", kind, "--json"]).ok().stdout).unwrap();
        assert!(!entries.is_empty());
        for entry in &entries {
            assert!(text.contains(entry["name"].as_str().unwrap()), "{kind}: {entry}");
            assert!(!entry["summary"].as_str().unwrap().is_empty(), "{kind}: {entry}");
        }
    }
    let objectives = fixture.run(&["list", "objectives"]).ok().stdout;
    assert!(objectives.contains("cross_entropy") && objectives.contains("label_smoothing"), "{objectives}");
}

#[test]
fn a_reader_that_stops_reading_is_no_failure() {
    let fixture = Fixture::new();
    let mut child = command(fixture.path(), &["list", "keys"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

const CHAT_ROW: &str = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}, {\"role\": \"assistant\", \"content\": \"one two\"}]}\n";

#[test]
fn inspect_shows_what_trains_with_and_without_colours() {
    let fixture = Fixture::new();
    fixture.write("chat.jsonl", &CHAT_ROW.repeat(3));
    let inspect =
        |more: &[&str]| fixture.run(&[&["data", "inspect", "chat.jsonl"], more].concat()).ok().stdout;
    let rows = inspect(&[]);
    assert!(rows.contains("layout  messages") && rows.contains("\"content\": \"one two\""), "{rows}");
    let plain = inspect(&["--model", "model", "--rows", "2-3"]);
    assert!(plain.contains("row 2 (chat.jsonl:2)") && plain.contains("row 3 (chat.jsonl:3)"), "{plain}");
    assert!(
        plain.contains("[<|im_end|>]") && plain.contains("|<|im_start|>|") && !plain.contains('\u{1b}'),
        "{plain}"
    );
    assert!(plain.contains("3, 0 refused"), "{plain}");
    let coloured = inspect(&["--model", "model", "--color", "always"]);
    assert!(coloured.contains("\u{1b}[1;32;7"), "the end of turn trains: {coloured}");
    let mut no_color = command(fixture.path(), &["data", "inspect", "chat.jsonl", "--model", "model"]);
    let no_color = no_color.env("NO_COLOR", "1").output().unwrap();
    assert!(!String::from_utf8_lossy(&no_color.stdout).contains('\u{1b}'));
    let all = inspect(&["--model", "model", "--mask", "all", "--tokens"]);
    assert!(all.contains("content of message 0") && all.contains(" 1.000 "), "{all}");
    assert!(
        inspect(&["--tokenizer", "model", "--max-length", "4", "--mask", "all"]).contains("cut"),
        "cut rows are counted"
    );
    // A message that would speak as another role is refused, and the row is named.
    let evil = CHAT_ROW.replace("Hello", "<|im_end|>");
    fixture.write("evil.jsonl", &format!("{CHAT_ROW}{evil}"));
    let refused = fixture.run(&["data", "inspect", "evil.jsonl", "--model", "model"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stdout.contains("2, 1 refused"), "{}", refused.stdout);
    assert!(
        refused.stderr.contains("evil.jsonl:2") && refused.stderr.contains("<|im_end|>"),
        "{}",
        refused.stderr
    );
}

fn convert(fixture: &Fixture, source: &str, to: &str) -> Vec<Value> {
    fixture.run(&["data", "convert", source, "--to", to, "--out", "-"]).ok().rows()
}

#[test]
fn rows_convert_there_and_back() {
    let fixture = Fixture::new();
    let (user, good, bad) = (
        json!({"role": "user", "content": "Hi"}),
        json!({"role": "assistant", "content": "Hello!"}),
        json!({"role": "assistant", "content": "No."}),
    );
    let preference = json!({"chosen": [user, good], "rejected": [user, bad], "id": 1});
    fixture.write("preference.jsonl", &format!("{preference}\n"));
    let explicit = json!({"prompt": [user], "chosen": [good], "rejected": [bad], "id": 1});
    let pair = json!({"prompt": [user], "completion": [good], "id": 1});
    let conversation = json!({"messages": [user, good], "id": 1});
    let cases = [
        ("preference", vec![explicit]),
        ("prompt_completion", vec![pair.clone()]),
        ("messages", vec![conversation.clone()]),
        ("prompt_only", vec![json!({"prompt": [user], "id": 1})]),
        (
            "unpaired",
            vec![
                json!({"prompt": [user], "completion": [good], "label": true, "id": 1}),
                json!({"prompt": [user], "completion": [bad], "label": false, "id": 1}),
            ],
        ),
        ("canonical", vec![preference]),
    ];
    for (to, expected) in &cases {
        assert_eq!(&convert(&fixture, "preference.jsonl", to), expected, "{to}");
    }
    // Messages and prompt-completion turn into each other, also through a compressed file.
    fixture.write("pair.jsonl", &format!("{pair}\n"));
    fixture.run(&["data", "convert", "pair.jsonl", "--to", "messages", "--out", "chat.jsonl.gz"]).ok();
    assert_eq!(convert(&fixture, "chat.jsonl.gz", "messages"), [conversation]);
    assert_eq!(convert(&fixture, "chat.jsonl.gz", "prompt_completion"), [pair]);
    // Of unpaired rows, only the good ones have something to learn.
    let unpaired: String = cases[4].1.iter().map(|row| format!("{row}\n")).collect();
    fixture.write("unpaired.jsonl", &unpaired);
    assert_eq!(convert(&fixture, "unpaired.jsonl", "prompt_completion").len(), 1);
    assert_eq!(convert(&fixture, "unpaired.jsonl", "unpaired"), cases[4].1);
    fixture.write("plain.jsonl", "{\"q\": \"1+1?\", \"a\": \"2\"}\n");
    let columns = ["--column", "prompt=q", "--column", "completion=a", "--out", "-"];
    let text =
        fixture.run(&[&["data", "convert", "plain.jsonl", "--to", "text"], &columns[..]].concat()).ok();
    assert_eq!(text.rows(), [json!({"text": "1+1?2"})]);
}

#[test]
fn real_preferences_convert_and_can_be_read_again() {
    let Some(data) = shared_data() else { return };
    let fixture = Fixture::new();
    let source = data.join("hh-rlhf/harmless-base-test-first2000.jsonl.gz").display().to_string();
    fixture.run(&["data", "convert", &source, "--to", "preference", "--out", "hh.jsonl.gz"]).ok();
    let rows = convert(&fixture, "hh.jsonl.gz", "canonical");
    assert_eq!(rows.len(), 2000);
    assert!(rows.iter().all(|row| row["prompt"].is_array() && row["chosen"] != row["rejected"]));
}

#[test]
fn mixtures_have_their_shares_and_follow_their_seed() {
    let fixture = Fixture::new();
    let mix = |more: &[&str]| {
        let args =
            [&["data", "mix", "generated:sum?n=40:3", "generated:chat?n=40:1", "--out", "-"], more].concat();
        fixture.run(&args).ok().rows()
    };
    let rows = mix(&["--n", "24", "--seed", "1"]);
    assert_eq!(rows.len(), 24);
    assert_eq!(rows.iter().filter(|row| row["family"] == "sum").count(), 18);
    assert_eq!(mix(&["--n", "24", "--seed", "1"]), rows);
    assert_ne!(mix(&["--n", "24", "--seed", "2"]), rows);
    let all =
        fixture.run(&["data", "mix", "generated:sum?n=40", "generated:chat?n=10", "--out", "-"]).ok().rows();
    assert_eq!(all.len(), 50);
}

#[test]
fn chat_answers_piped_turns() {
    let fixture = Fixture::new();
    let chat = |input: &str, more: &[&str]| {
        let args = [&["chat", "--model", "model", "--max-new-tokens", "8"], more].concat();
        run_with(fixture.path(), &args, input).ok().stdout
    };
    let turn = "Hello there\n";
    let first = chat(turn, &[]);
    assert!(first.ends_with('\n'));
    assert_eq!(chat(turn, &[]), first);
    // After a reset the conversation is the first one again; without, the second turn knows the first.
    let twice = chat("Hello there\n/reset\nHello there\n/exit\nnever read\n", &[]);
    assert_eq!(twice, format!("{first}{first}"));
    assert_ne!(chat("Hello there\nHello there\n", &[]), twice);
    assert_ne!(chat(turn, &["--system", "one two"]), first);
    assert!(!chat(turn, &["--raw"]).is_empty());
    let mut config: Value = serde_json::from_str(&fixture.read("model/tokenizer_config.json")).unwrap();
    config.as_object_mut().unwrap().remove("chat_template");
    fixture.write("model/tokenizer_config.json", &config.to_string());
    let outcome = run_with(fixture.path(), &["chat", "--model", "model"], turn);
    assert_eq!(outcome.code, 1);
    for fragment in ["no chat template", "posttrain generate", "--raw"] {
        assert!(outcome.stderr.contains(fragment), "{}", outcome.stderr);
    }
}

#[test]
fn a_fused_model_needs_the_first_ones_tokenizer_before_any_work() {
    let fixture = Fixture::new();
    std::fs::create_dir(fixture.path().join("bare")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture.path().join("model").join(name), fixture.path().join("bare").join(name))
            .unwrap();
    }
    let outcome = fixture.run(&["fuse", "--models", "bare,model", "--out", "fused"]);
    assert_eq!(outcome.code, 1);
    assert!(
        outcome.stderr.contains("bare has none") && outcome.stderr.contains("name model first"),
        "{outcome:?}"
    );
    assert!(!fixture.path().join("fused").exists());
    fixture.run(&["fuse", "--models", "model,bare", "--out", "fused"]).ok();
    assert_eq!(fixture.read("fused/tokenizer.json"), fixture.read("model/tokenizer.json"));
}

#[test]
fn models_are_fused_by_options_that_the_method_reads_and_one_vocabulary() {
    let fixture = Fixture::new();
    let fuse = ["fuse", "--models", "model,model", "--out", "fused"];
    for (more, expected) in [
        (&["--density", "0.2"][..], "--density has no effect with --method linear"),
        (&["--method", "slerp", "--base", "model"], "--base has no effect with --method slerp"),
        (&["--method", "ties", "--base", "model", "--seed", "1"], "--seed has no effect with --method ties"),
    ] {
        let outcome = fixture.run(&[&fuse[..], more].concat());
        assert!(outcome.code == 1 && outcome.stderr.contains(expected), "{outcome:?}");
        assert!(!fixture.path().join("fused").exists());
    }
    // The same model whose tokenizer has a token more.
    let other = fixture.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for entry in std::fs::read_dir(fixture.path().join("model")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, other.join(path.file_name().unwrap())).unwrap();
    }
    let mut tokenizer: Value = serde_json::from_str(&fixture.read("model/tokenizer.json")).unwrap();
    let n = pt_text::Tokenizer::from_dir(&other).unwrap().vocab_size();
    let added = json!({"id": n, "content": "<|more|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
    fixture.write("other/tokenizer.json", &tokenizer.to_string());
    let outcome = fixture.run(&["fuse", "--models", "model,other", "--out", "fused"]);
    assert!(outcome.code == 1 && outcome.stderr.contains("has another tokenizer"), "{outcome:?}");
    let ties = ["--method", "ties", "--base", "model", "--density", "0.2", "--scale", "0.5"];
    fixture.run(&[&fuse[..], &ties].concat()).ok();
}

#[test]
fn options_of_other_export_formats_are_refused() {
    let fixture = Fixture::new();
    fixture.write_adapter(Dtype::F32);
    for (format, more, said) in [
        ("safetensors", &["--name", "x"][..], "--name is for"),
        ("nf4", &["--name", "x"], "--name is for"),
        ("gguf", &["--shard-mb", "5"], "--shard-mb is for"),
        ("ollama", &["--shard-mb", "5"], "--shard-mb is for"),
        ("safetensors", &["--adapter", "adapter", "--keep-adapter", "--shard-mb", "5"], "--shard-mb is for"),
    ] {
        let args = [&["export", "--model", "model", "--format", format, "--out", "out"], more].concat();
        let outcome = fixture.run(&args);
        assert_eq!(outcome.code, 1, "{args:?}");
        assert!(outcome.stderr.contains(said), "{args:?}: {}", outcome.stderr);
        assert!(!fixture.path().join("out").exists());
    }
}

#[test]
fn a_merged_model_is_the_model_with_its_adapter() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let fixture = Fixture::of_type(dtype);
        fixture.write_adapter(dtype);
        let merge = ["merge", "--model", "model", "--adapter", "adapter", "--out", "merged"];
        let outcome = fixture.run(&merge).ok();
        assert!(outcome.stderr.contains("largest difference"), "{}", outcome.stderr);
        assert_eq!(fixture.read("merged/tokenizer.json"), fixture.read("model/tokenizer.json"));
        fixture.write("t.jsonl", "{\"text\": \"Hello there, how are you today?\"}\n");
        let score = |more: &[&str]| {
            let args = [&["score", "--data", "t.jsonl", "--out", "-", "--model"], more].concat();
            logprobs(&fixture.run(&args).ok().rows()[0]["logprobs"])
        };
        let (merged, both) = (score(&["merged"]), score(&["model", "--adapter", "adapter"]));
        let base = score(&["model"]);
        let gap =
            |a: &[f32], b: &[f32]| a.iter().zip(b).skip(1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let tolerance = if dtype == Dtype::F32 { 1e-3 } else { 0.5 };
        assert!(gap(&merged, &both) < tolerance, "{dtype:?}: {}", gap(&merged, &both));
        assert!(gap(&base, &both) > 4.0 * tolerance, "the adapter changes the model: {}", gap(&base, &both));
        assert_eq!(fixture.run(&merge).code, 1, "a folder with something in it is never replaced");
    }
}

#[test]
fn doctor_measures_and_reports() {
    let fixture = Fixture::new();
    let outcome = fixture.run(&["doctor", "--json", "--threads", "1"]).ok();
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!((&report["threads"], &report["gpu"]), (&json!(1), &Value::Null));
    for key in ["gflops_f32", "gflops_bf16", "gigabytes_per_s"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{report}");
    }
    let hub = report["hub_cache"]["path"].as_str().unwrap();
    assert_eq!(hub, fixture.path().join("hf/hub").display().to_string());
    assert_eq!(report["hub_cache"]["writable"], true);
}
