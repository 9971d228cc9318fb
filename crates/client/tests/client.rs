//! The client against servers that misbehave in every way.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Act, Server};
use pt_client::{
    Client, ClientError, ClientOptions, Counts, ManualClock, Price, Prompt, Request, RetryPolicy, Trouble,
};
use serde_json::{Value, json};

fn client_with(url: &str, change: impl FnOnce(&mut ClientOptions)) -> (Client, Arc<ManualClock>) {
    let mut options = ClientOptions::new(format!("{url}/v1/"));
    options.retry = RetryPolicy { max_retries: 2, ..RetryPolicy::default() };
    change(&mut options);
    // 1994-11-06 08:49:00 GMT.
    let clock = Arc::new(ManualClock::at_unix(784_111_740.0));
    (Client::with_clock(options, clock.clone()).unwrap(), clock)
}

fn answer(text: &str) -> Value {
    json!({
        "id": "x", "object": "text_completion", "model": "served",
        "choices": [{ "index": 0, "text": text, "finish_reason": "stop", "logprobs": null }],
        "usage": { "prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14 },
    })
}

fn as_json(body: &[u8]) -> Vec<(&'static str, String)> {
    assert!(!body.is_empty());
    vec![("content-type", "application/json".to_owned())]
}

/// What comes of each way to misbehave: once, then well; and for ever.
#[test]
fn every_misbehaviour_has_a_name_and_the_transient_ones_are_tried_again() {
    fn check(act: Act, transient: bool, expected: &[&str]) {
        let once = act.clone();
        let server =
            Server::start(move |n, _| if n == 0 { once.clone() } else { Act::json(200, answer("ok")) });
        let (client, clock) = client_with(&server.url, |_| {});
        let outcome = client.complete(&Request::text("m", "p"));
        assert_eq!(outcome.is_ok(), transient, "{act:?}: {outcome:?}");
        assert_eq!(clock.sleeps().len(), usize::from(transient), "{act:?}");
        assert_eq!(client.counts().n_retries, u64::from(transient));

        let server = Server::start({
            let act = act.clone();
            move |_, _| act.clone()
        });
        let (client, _) = client_with(&server.url, |_| {});
        let error = client.complete(&Request::text("m", "p")).unwrap_err();
        let ClientError::Request { n_attempts, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*n_attempts, if transient { 3 } else { 1 }, "{act:?}");
        for part in expected {
            assert!(error.to_string().contains(part), "{act:?}: `{error}` lacks `{part}`");
        }
        assert_eq!(server.seen().len() as u32, *n_attempts);
        assert_eq!(client.counts().n_failures, 1);
    }
    let whole = answer("a long text").to_string().into_bytes();
    let html = || vec![("content-type", "text/html".to_owned())];
    let error =
        json!({ "error": { "message": "the model `m` does not exist", "type": "invalid_request_error" } });
    let no_choices = json!({ "choices": [], "model": "m" });
    let two = json!({ "choices": [{ "index": 0, "text": "a" }, { "index": 1, "text": "b" }] });
    check(Act::Drop, true, &["broke before the answer was complete", "tried 3 times"]);
    check(Act::Garbage(b"SSH-2.0-OpenSSH_9.6\r\n"), true, &["broke before"]);
    check(Act::Cut(200, as_json(&whole), whole.clone(), 20), true, &["broke before the answer was complete"]);
    check(
        Act::Reply(200, as_json(&whole), whole[..40].to_vec()),
        true,
        &["not whole JSON", "40 bytes", "text_completion"],
    );
    check(Act::Reply(200, html(), b"<html>bad gateway".to_vec()), true, &["text/html", "<html>bad gateway"]);
    check(Act::Reply(200, vec![], whole.clone()), true, &["no content type"]);
    check(Act::json(200, no_choices), true, &["no choices, expected 1"]);
    check(Act::json(429, json!({ "detail": "slow down" })), true, &["429", "slow down"]);
    check(Act::json(500, json!({ "error": "oom" })), true, &["500", "oom"]);
    check(Act::Reply(503, html(), b"overloaded".to_vec()), true, &["503", "overloaded"]);
    check(Act::json(404, error), false, &["404", "`m` does not exist"]);
    check(Act::json(401, json!({ "message": "no key" })), false, &["401", "no key"]);
    check(Act::json(501, json!({})), false, &["501"]);
    check(Act::json(200, two), false, &["2 choices, expected 1"]);
    check(
        Act::json(200, json!({ "error": { "message": "hidden" } })),
        false,
        &["error with a status of success", "hidden"],
    );
    check(Act::json(200, json!({ "choices": [{ "index": 0 }] })), false, &["neither `text` nor `message`"]);
    check(Act::json(200, json!([1, 2])), false, &["is no completion"]);
}

#[test]
fn a_server_that_is_not_there_and_one_that_hangs() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (client, clock) = client_with(&format!("http://127.0.0.1:{port}"), |_| {});
    let error = client.complete(&Request::text("m", "p")).unwrap_err();
    assert!(matches!(error.trouble(), Some(Trouble::Unreachable { .. })), "{error:?}");
    assert_eq!(clock.sleeps().len(), 2);

    let server = Server::start(|_, _| Act::Hang);
    let (client, _) = client_with(&server.url, |options| {
        options.http.timeout_s = 0.05;
        options.retry.max_retries = 1;
    });
    let error = client.complete(&Request::text("m", "p")).unwrap_err();
    assert_eq!(error.trouble(), Some(&Trouble::Timeout { after_s: 0.05 }));
    assert!(error.to_string().contains("no answer within 0.05 s"), "{error}");
}

#[test]
fn retry_after_is_honoured_in_both_forms_and_given_up_on_when_too_long() {
    let check = |value: &'static str, expected: Option<f64>| {
        let server = Server::start(move |n, _| match n {
            0 => Act::Reply(429, vec![("retry-after", value.to_owned())], b"wait".to_vec()),
            _ => Act::json(200, answer("ok")),
        });
        let (client, clock) = client_with(&server.url, |_| {});
        let outcome = client.complete(&Request::text("m", "p"));
        assert_eq!(outcome.is_ok(), expected.is_some(), "{value}: {outcome:?}");
        assert_eq!(clock.sleeps(), Vec::from_iter(expected), "{value}");
    };
    check("17", Some(17.0));
    check("Sun, 06 Nov 1994 08:49:37 GMT", Some(37.0));
    check("86400", None);
}

#[test]
fn requests_reach_the_server_as_the_protocol_has_them() {
    fn check(request: &Request, path: &str, expected: Value) {
        let server = Server::start(|_, seen| {
            let mut reply = answer("x");
            if seen.path.contains("chat") {
                reply["choices"][0] =
                    json!({ "index": 0, "message": { "role": "assistant", "content": "x" } });
            }
            Act::json(200, reply)
        });
        let (client, _) = client_with(&server.url, |options| options.api_key = Some("secret".to_owned()));
        assert_eq!(client.complete(request).unwrap().choices[0].text, "x");
        let seen = &server.seen()[0];
        assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", path));
        assert_eq!(seen.header("authorization"), Some("Bearer secret"));
        assert_eq!(seen.header("content-type"), Some("application/json"));
        assert_eq!(seen.json(), expected);
    }
    let mut chat = Request::chat("m", "hello");
    chat.logprobs = Some(3);
    chat.tools = Some(json!([{ "type": "function", "function": { "name": "f" } }]));
    chat.extra.insert("top_k".to_owned(), json!(5));
    check(
        &chat,
        "/v1/chat/completions",
        json!({
            "model": "m", "messages": [{ "role": "user", "content": "hello" }], "n": 1, "logprobs": true,
            "top_logprobs": 3, "tools": [{ "type": "function", "function": { "name": "f" } }], "top_k": 5,
        }),
    );
    let mut ids = Request::new("m", Prompt::TokenIds(vec![1, 2]));
    (ids.max_tokens, ids.temperature, ids.top_p, ids.seed) = (Some(7), Some(0.5), Some(0.75), Some(9));
    (ids.stop, ids.logprobs) = (vec!["\n".to_owned()], Some(0));
    check(
        &ids,
        "/v1/completions",
        json!({
            "model": "m", "prompt": [1, 2], "n": 1, "max_tokens": 7, "temperature": 0.5, "top_p": 0.75, "seed": 9,
            "stop": ["\n"], "logprobs": 0,
        }),
    );
}

#[test]
fn answers_are_understood_in_full() {
    let chat = json!({
        "model": "served",
        "choices": [
            { "index": 1, "message": { "content": null, "reasoning_content": "hm", "tool_calls": [
                { "id": "c1", "type": "function", "function": { "name": "add", "arguments": "{\"a\": 1}" } }] },
              "finish_reason": "tool_calls", "token_ids": [4, 5] },
            { "index": 0, "message": { "content": "hi" }, "finish_reason": "stop", "logprobs": { "content": [
                { "token": "hi", "logprob": -0.5, "bytes": [104, 105],
                  "top_logprobs": [{ "token": "hi", "logprob": -0.5 }, { "token": "ho", "logprob": -1.5 }] }] } },
        ],
        "prompt_token_ids": [1, 2, 3],
    });
    let text = json!({
        "choices": [{ "index": 0, "text": "a b", "logprobs": {
            "tokens": ["a", " b"], "token_logprobs": [null, -2.0], "text_offset": [0, 1],
            "top_logprobs": [null, { " c": -3.0, " b": -2.0 }] } }],
    });
    let server = Server::start(move |_, seen| {
        Act::json(200, if seen.path.contains("chat") { chat.clone() } else { text.clone() })
    });
    let (client, _) = client_with(&server.url, |_| {});
    let mut request = Request::chat("m", "hello");
    request.n = 2;
    let reply = client.complete(&request).unwrap();
    assert_eq!((reply.usage, reply.prompt_token_ids), (None, Some(vec![1, 2, 3])));
    let [first, second] = reply.choices.as_slice() else { panic!("two choices") };
    assert_eq!((first.text.as_str(), first.finish_reason.as_deref()), ("hi", Some("stop")));
    let token = &first.logprobs.as_ref().unwrap()[0];
    assert_eq!((token.logprob, token.top[1].clone()), (Some(-0.5), ("ho".to_owned(), -1.5)));
    assert_eq!((second.reasoning.as_deref(), second.token_ids.clone()), (Some("hm"), Some(vec![4, 5])));
    assert_eq!(
        (second.tool_calls[0].name.as_str(), second.tool_calls[0].arguments.as_str()),
        ("add", "{\"a\": 1}")
    );

    let reply = client.complete(&Request::text("m", "a")).unwrap();
    let tokens = reply.choices[0].logprobs.clone().unwrap();
    assert_eq!((tokens[0].logprob, tokens[1].logprob), (None, Some(-2.0)));
    assert_eq!(tokens[1].top, [(" b".to_owned(), -2.0), (" c".to_owned(), -3.0)]);
    assert_eq!(client.counts().n_without_usage, 2);
}

#[test]
fn many_requests_keep_their_order_their_limit_and_their_failures() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let server = Server::start({
        let (running, most) = (running.clone(), most.clone());
        move |_, seen| {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let prompt = seen.json()["prompt"].as_str().unwrap().to_owned();
            running.fetch_sub(1, Ordering::SeqCst);
            if prompt == "p7" {
                Act::json(400, json!({ "error": "seven" }))
            } else {
                Act::json(200, answer(&prompt))
            }
        }
    });
    let (client, _) = client_with(&server.url, |options| {
        options.prices = BTreeMap::from([(
            "m".to_owned(),
            Price { prompt_per_million: 1e5, completion_per_million: 1e6 },
        )]);
    });
    let requests: Vec<Request> = (0..20).map(|i| Request::text("m", &format!("p{i}"))).collect();
    let replies = client.complete_all(&requests, 4);
    for (i, reply) in replies.iter().enumerate() {
        match reply {
            Ok(reply) => assert_eq!(reply.choices[0].text, format!("p{i}")),
            Err(error) => assert!(i == 7 && error.to_string().contains("seven"), "{error}"),
        }
    }
    assert!(replies[7].is_err());
    assert!(most.load(Ordering::SeqCst) <= 4);
    let counts = client.counts();
    let expected = Counts {
        n_requests: 20,
        n_calls: 20,
        n_failures: 1,
        prompt_tokens: 190,
        completion_tokens: 76,
        cost: counts.cost,
        ..Counts::default()
    };
    assert_eq!(counts, expected);
    assert!((counts.cost - 95.0).abs() < 1e-9, "{}", counts.cost);
    assert!(client.complete_all(&[], 3).is_empty());
}

#[test]
fn a_run_that_was_stopped_goes_on_from_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|n, seen| {
        let prompt = seen.json()["prompt"].to_string();
        if n == 2 { Act::json(400, json!({ "error": "stopped" })) } else { Act::json(200, answer(&prompt)) }
    });
    let requests: Vec<Request> = (0..4).map(|i| Request::text("m", &i.to_string())).collect();
    let run = || {
        let (client, _) =
            client_with(&server.url, |options| options.cache_dir = Some(dir.path().join("cache")));
        (client.complete_all(&requests, 1), client.counts())
    };
    let (first, counts) = run();
    assert_eq!((counts.n_calls, counts.n_cache_hits, counts.n_failures), (4, 0, 1));
    let (second, counts) = run();
    assert_eq!((counts.n_calls, counts.n_cache_hits, counts.n_failures), (1, 3, 0));
    assert_eq!((counts.prompt_tokens, counts.completion_tokens), (10, 4), "what is cached costs nothing");
    for (i, (first, second)) in first.iter().zip(&second).enumerate() {
        let second = second.as_ref().unwrap();
        assert_eq!(second.from_cache, i != 2);
        if let Ok(first) = first {
            assert_eq!(first.choices, second.choices);
        }
    }
    // A damaged file is asked for again, and put right.
    for folder in std::fs::read_dir(dir.path().join("cache")).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            std::fs::write(file.unwrap().path(), b"{\"request\": {").unwrap();
        }
    }
    assert_eq!(run().1.n_calls, 4);
    assert_eq!(run().1.n_cache_hits, 4);
    let mut other = requests[0].clone();
    other.seed = Some(1);
    let (client, _) = client_with(&server.url, |options| options.cache_dir = Some(dir.path().join("cache")));
    assert!(!client.complete(&other).unwrap().from_cache, "another seed is another request");
}

#[test]
fn the_rate_limit_counts_attempts() {
    let server =
        Server::start(|n, _| if n == 1 { Act::json(500, json!({})) } else { Act::json(200, answer("x")) });
    let (client, clock) = client_with(&server.url, |options| {
        options.requests_per_minute = Some(6.0);
        options.retry.base_delay_s = 0.0;
    });
    for i in 0..3 {
        client.complete(&Request::text("m", &i.to_string())).unwrap();
    }
    assert_eq!(clock.sleeps(), [10.0, 0.0, 10.0, 10.0]);
}

#[test]
fn models_are_listed() {
    let server = Server::start(|n, seen| {
        assert_eq!((seen.method.as_str(), seen.path.as_str()), ("GET", "/v1/models"));
        let good = json!({ "object": "list", "data": [{ "id": "a" }, { "id": "b" }] });
        Act::json(200, if n == 0 { good } else { json!({ "models": [] }) })
    });
    let (client, _) = client_with(&server.url, |_| {});
    assert_eq!(client.models().unwrap(), ["a", "b"]);
    assert!(client.models().unwrap_err().to_string().contains("no list of models"));
}

#[test]
fn absurd_options_are_refused() {
    let check = |expected: &str, change: fn(&mut ClientOptions)| {
        let mut options = ClientOptions::new("http://127.0.0.1:1/v1");
        change(&mut options);
        let error = Client::new(options).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("base_url", |o| o.base_url = "localhost:8000".to_owned());
    check("requests_per_minute", |o| o.requests_per_minute = Some(0.0));
    check("timeout_s", |o| o.http.timeout_s = f64::NAN);
    check("base_delay_s", |o| o.retry.base_delay_s = -1.0);
}
