//! `posttrain eval` and `posttrain gate`, on a tiny chat model.

mod common;

use common::*;
use serde_json::Value;

const TASK: &str = "generated:sum?level=1&n=12";

#[test]
fn results_are_written_compared_and_gated() {
    let fixture = Fixture::new();
    fixture.write("text.txt", "Hello there, how are you today?\none two three\n");
    let args = ["eval", "--model", "model", "--benchmarks", TASK, "--max-new-tokens", "4", "--chat"];
    let outcome = fixture.run(&[&args[..], &["--out", "one"]].concat()).ok();
    assert!(
        outcome.stdout.contains("families=sum@1-1") && outcome.stdout.contains("acc"),
        "{}",
        outcome.stdout
    );
    let results: Value = serde_json::from_str(&fixture.read("one/results.json")).unwrap();
    let result = &results["benchmarks"][0];
    assert_eq!((result["n"].as_u64(), result["asked"]["chat"].as_bool()), (Some(12), Some(true)));
    let samples = json_lines(&fixture.read(&format!("one/{}", result["samples_file"].as_str().unwrap())));
    assert_eq!(samples.len(), 12);
    assert!(samples[0]["prompt"].as_str().unwrap().starts_with("<|im_start|>user"), "{}", samples[0]);

    // The same again: the same bytes, and the gate passes.
    fixture.run(&[&args[..], &["--out", "again"]].concat()).ok();
    assert_eq!(fixture.read("one/results.json"), fixture.read("again/results.json"));
    let outcome = fixture.run(&["gate", "one", "again", "--max-loss", "0"]).ok();
    assert!(outcome.stderr.contains("the gate passes"), "{}", outcome.stderr);
    let outcome = fixture.run(&["gate", "one", "again", "--fail-on", "possible"]);
    assert!(outcome.code == 1 && outcome.stderr.contains("the gate fails"), "{}", outcome.stderr);

    // What a new evaluation lacks may be what was lost.
    let two = format!("{TASK},perplexity?data=text.txt");
    fixture
        .run(&[
            "eval",
            "--model",
            "model",
            "--benchmarks",
            &two,
            "--max-new-tokens",
            "4",
            "--chat",
            "--out",
            "two",
        ])
        .ok();
    fixture.run(&["gate", "one", "two", "--max-loss", "0"]).ok();
    let outcome = fixture.run(&["gate", "two", "one", "--max-loss", "0"]);
    assert!(
        outcome.code == 1 && outcome.stderr.contains("perplexity?data=text.txt: not in one"),
        "{}",
        outcome.stderr
    );

    // A benchmark that cannot be measured takes none of the finished ones with it.
    let args = ["eval", "--model", "model", "--benchmarks", "perplexity?data=text.txt", "--benchmarks", TASK];
    let outcome = fixture.run(&[&args[..], &["--max-new-tokens", "256", "--out", "half"]].concat());
    assert!(outcome.code == 1 && outcome.stderr.contains("a smaller --max-new-tokens"), "{}", outcome.stderr);
    let results: Value = serde_json::from_str(&fixture.read("half/results.json")).unwrap();
    assert_eq!(results["benchmarks"].as_array().unwrap().len(), 1);

    // Two models, several replies, a text.
    let both = "model,./model";
    let benchmarks = format!("{TASK},perplexity?data=text.txt&unit=line");
    let args = ["eval", "--model", both, "--benchmarks", &benchmarks, "--samples", "2", "--temperature", "1"];
    let outcome = fixture.run(&[&args[..], &["--max-new-tokens", "4", "--out", "both"]].concat()).ok();
    assert!(outcome.stdout.contains("./model against model"), "{}", outcome.stdout);
    let compared: Value = serde_json::from_str(&fixture.read("both/comparison.json")).unwrap();
    assert_eq!(compared[0]["difference"], 0.0);
    assert_eq!((&compared[0]["base"], &compared[0]["model"]), (&"model".into(), &"./model".into()));
    let results: Value = serde_json::from_str(&fixture.read("both/model/results.json")).unwrap();
    let names = results["benchmarks"][0]["metrics"].as_array().unwrap();
    assert!(names.iter().any(|metric| metric["name"] == "pass@2"), "{names:?}");
}

#[test]
fn what_is_wrong_is_said_before_a_model_is_loaded() {
    let fixture = Fixture::new();
    fixture.write("prompts.jsonl", "{\"prompt\": \"one\"}\n");
    for (args, says) in [
        (&["--benchmarks", "gsm8k"][..], "--data-dir"),
        (&["--benchmarks", "gms8k"], "gsm8k"),
        (&["--benchmarks", TASK, "--samples", "4"], "--temperature"),
        (&["--benchmarks", "generated:raw"], "raw text"),
        (&["--benchmarks", "win_rate?data=prompts.jsonl"], "needs a judge"),
        (
            &["--benchmarks", "win_rate?data=prompts.jsonl", "--judge", "http://127.0.0.1:1/v1"],
            "--against MODEL",
        ),
        (&["--benchmarks", TASK, "--against", "model"], "no benchmark of --benchmarks compares"),
    ] {
        let outcome = fixture.run(&[&["eval", "--model", "no-such-model"], args].concat());
        assert!(outcome.code == 1 && outcome.stderr.contains(says), "{args:?}: {}", outcome.stderr);
    }
    let list = fixture.run(&["eval", "--list"]).ok();
    assert!(list.stdout.contains("truthfulqa") && list.stdout.contains("?subjects"), "{}", list.stdout);
    let outcome = fixture.run(&["gate", "nothing", "nowhere"]);
    assert!(outcome.code == 1 && outcome.stderr.contains("nothing"), "{}", outcome.stderr);
}
