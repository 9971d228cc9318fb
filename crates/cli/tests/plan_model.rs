//! `posttrain plan --model`: what it prints, what it refuses, and how.

use std::process::{Command, Output};

fn plan(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posttrain"));
    command.arg("plan").args(args).output().expect("the program starts")
}

fn refused(args: &[&str], status: i32, parts: &[&str]) {
    let outcome = plan(args);
    let message = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert_eq!(outcome.status.code(), Some(status), "{args:?}: {message}");
    for part in parts {
        assert!(message.contains(part), "{args:?} should say {part}: {message}");
    }
}

fn printed(args: &[&str]) -> String {
    let outcome = plan(args);
    assert!(outcome.status.success(), "{args:?}: {}", String::from_utf8_lossy(&outcome.stderr));
    String::from_utf8(outcome.stdout).unwrap()
}

#[test]
fn wrong_names_and_numbers_are_refused_with_advice() {
    refused(&["--model", "Qwen2.5-7C", "--hardware", "H100"], 1, &["did you mean `Qwen2.5-7B`"]);
    refused(
        &["--model", "Qwen2.5-7B", "--hardware", "H1000"],
        1,
        &["unknown hardware", "did you mean `H100`"],
    );
    refused(&["--model", "Qwen2.5-7B", "--hardware", "thisx2"], 1, &["number of this machine"]);
    refused(&["--model", "Qwen2.5-7B", "--hardware", "H100", "--optimizer", "adamv"], 1, &["adamw"]);
    refused(
        &["--model", "Qwen2.5-7B", "--hardware", "H100", "--hardware-table", "none.toml"],
        1,
        &["none.toml"],
    );
    refused(&["--model", "Qwen2.5-7B", "--tokens", "some"], 2, &["20M"]);
    refused(&["--model", "Qwen2.5-7B", "recipe.toml"], 2, &["cannot be used with"]);
    refused(&["--tokens", "5"], 2, &["--model"]);
    refused(&[], 2, &["RECIPE"]);
    refused(&["--model", "hidden_size=0,vocab_size=5", "--hardware", "H100"], 1, &["hidden_size"]);
    refused(
        &["--model", "Qwen2.5-7B", "--hardware", "H100", "--step-tokens", "5"],
        1,
        &["at least one sequence"],
    );
}

#[test]
fn a_plan_is_a_table_and_json() {
    let question =
        ["--model", "Qwen/Qwen2.5-7B-Instruct", "--hardware", "RTX-4090,H100x8", "--tokens", "20M"];
    let text = printed(&question);
    for part in
        ["7.62B parameters", "RTX-4090", "8 x H100", "qlora", "recommended:", "grpo lora", "layouts, full"]
    {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&printed(&[&question[..], &["--json"]].concat())).unwrap();
    assert_eq!(json["parameters"], 7_615_616_512u64);
    assert_eq!(json["hardware"][0]["methods"].as_array().unwrap().len(), 3);
    assert_eq!(json["hardware"][0]["methods"][0]["fits"], false);
    assert!(json["hardware"][1]["methods"][0]["layouts"][0]["mfu"].as_f64().unwrap() > 0.2);
}

#[test]
fn this_machine_and_a_folder_are_planned() {
    let folder = pt_core::testdata::workspace_root().join("golden/models/llama");
    let text = printed(&["--model", folder.to_str().unwrap(), "--method", "lora", "--tokens", "1M"]);
    assert!(text.contains("this machine") && text.contains("sft lora"), "{text}");
}
