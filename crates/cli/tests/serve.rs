//! `serve`, as its users meet it: the program, a real model, real clients.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use common::*;
use pt_client::{Client, ClientOptions, Prompt, Request};
use serde_json::{Value, json};

/// The program, serving; ended when it goes out of scope.
struct Served {
    child: Child,
    base_url: String,
}

impl Served {
    fn start(fixture: &Fixture, args: &[&str]) -> Served {
        let args = [&["serve", "--port", "0"], args].concat();
        let mut child = command(fixture.path(), &args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let base_url = line.trim_end().rsplit(' ').next().unwrap().to_owned();
        Served { child, base_url }
    }

    fn client(&self) -> Client {
        Client::new(ClientOptions::new(&self.base_url)).unwrap()
    }

    /// Ctrl-C, and how the program ends.
    #[cfg(unix)]
    fn interrupt(mut self) -> i32 {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The same prompt and seed give what `generate` draws, and an echo what `score` says, bit for bit.
#[test]
fn a_server_says_what_generate_and_score_say() {
    let fixture = Fixture::new();
    let served = Served::start(&fixture, &["--model", "model"]);
    let client = served.client();
    assert_eq!(client.models().unwrap(), ["model"]);
    fixture.write("prompts.jsonl", "{\"prompt\": \"the sum of\"}\n");
    let args = ["--data", "prompts.jsonl", "--out", "-", "--n", "3", "--seed", "4", "--max-new-tokens", "12"];
    let generated = fixture.run(&[&["generate", "--model", "model"], &args[..]].concat()).ok().rows();
    let mut request = Request::text("model", "the sum of");
    (request.n, request.seed, request.max_tokens, request.logprobs) = (3, Some(4), Some(12), Some(2));
    request.extra.insert("return_token_ids".to_owned(), json!(true));
    let reply = client.complete(&request).unwrap();
    assert_eq!(json!(reply.prompt_token_ids), generated[0]["prompt_token_ids"]);
    for (choice, sample) in reply.choices.iter().zip(generated[0]["samples"].as_array().unwrap()) {
        assert_eq!(json!(choice.token_ids), sample["token_ids"]);
        assert_eq!(json!(choice.text), sample["text"]);
        let tokens = choice.logprobs.as_ref().unwrap();
        let found: Vec<f32> = tokens.iter().map(|token| token.logprob.unwrap() as f32).collect();
        let expected: Vec<f32> =
            sample["logprobs"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        assert_eq!(found, expected);
        // Two tokens that read the same (half characters) are one alternative: the protocol names them by text.
        assert!(tokens.iter().all(|token| (1..=2).contains(&token.top.len())));
    }

    let ids = &generated[0]["samples"][0]["token_ids"];
    let ids: Vec<u32> = ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    fixture.write("ids.jsonl", &format!("{}\n", json!({ "input_ids": ids })));
    let scored = fixture.run(&["score", "--model", "model", "--data", "ids.jsonl", "--out", "-"]).ok().rows();
    let mut request = Request::new("model", Prompt::TokenIds(ids));
    (request.max_tokens, request.logprobs) = (Some(0), Some(1));
    request.extra.insert("echo".to_owned(), json!(true));
    let reply = client.complete(&request).unwrap();
    let echoed: Vec<Value> = reply.choices[0]
        .logprobs
        .as_ref()
        .unwrap()
        .iter()
        .map(|token| token.logprob.map_or(Value::Null, |logprob| json!(logprob as f32)))
        .collect();
    assert_eq!(echoed, scored[0]["logprobs"].as_array().unwrap().iter().map(as_f32).collect::<Vec<_>>());
    #[cfg(unix)]
    assert_eq!(served.interrupt(), 0, "Ctrl-C is how a server ends well");
}

fn as_f32(value: &Value) -> Value {
    value.as_f64().map_or(Value::Null, |x| json!(x as f32))
}

/// The official Python client, where there is one: `POSTTRAIN_PYTHON` names a Python that has `openai`.
#[test]
#[allow(clippy::print_stderr, reason = "a skipped test must be visible in the test output")]
fn the_official_python_client_agrees() {
    let Some(python) = std::env::var_os("POSTTRAIN_PYTHON") else {
        eprintln!(
            "\n*** SKIPPED: POSTTRAIN_PYTHON is not set, so the official OpenAI client was not tried ***\n"
        );
        return;
    };
    let fixture = Fixture::new();
    let served = Served::start(&fixture, &["--model", "model"]);
    let script = pt_core::testdata::workspace_root().join("crates/serve/tests/openai_client.py");
    let outcome = Command::new(python).arg(script).args([&served.base_url, "model", "yes"]).output().unwrap();
    let said = [outcome.stdout, outcome.stderr].concat();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&said));
}
