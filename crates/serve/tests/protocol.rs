//! The protocol over a real socket, with an engine that says what it is told to.

mod common;

use std::io::BufRead;
use std::time::Duration;

use common::{Running, Told, reply, start, tokenizer};
use pt_client::{Client, ClientOptions, Prompt, Request};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
/// Long enough for anything that is to happen; reached only when a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

fn submitted(running: &Running) -> pt_serve::Job {
    match running.told.recv_timeout(PATIENCE).unwrap() {
        Told::Submitted(job) => *job,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_chat_is_rendered_answered_and_counted() {
    let running = start("the cat sat", |_| {});
    let (status, answer) =
        running.post(CHAT, &json!({ "model": "parrot", "messages": user("the dog"), "seed": 7 }));
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"], json!({ "role": "assistant", "content": "the cat sat", "refusal": null }));
    assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("stop"), &Value::Null));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("parrot")));
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let job = submitted(&running);
    let tokenizer = tokenizer();
    let text = tokenizer.decode(&job.prompt_ids, false).unwrap();
    assert_eq!(text, "<|user|>the dog<|end|><|assistant|>");
    let n_reply = tokenizer.encode("the cat sat", false).unwrap().ids.len() + 1;
    let expected = json!({
        "prompt_tokens": job.prompt_ids.len(), "completion_tokens": n_reply,
        "total_tokens": job.prompt_ids.len() + n_reply,
    });
    assert_eq!(answer["usage"], expected, "the end token counts");
    assert_eq!((job.seed, job.max_new_tokens), (7, 2000 - job.prompt_ids.len()));
}

#[test]
fn parameters_reach_the_engine() {
    let running = start("the", |_| {});
    let body = json!({
        "prompt": [5, 6], "max_tokens": 9, "temperature": 0.5, "top_p": 0.75, "top_k": 4, "min_p": 0.25, "n": 2,
        "repetition_penalty": 1.5, "presence_penalty": -1.0, "frequency_penalty": 2.0, "logit_bias": { "3": -100 },
        "stop": "x", "stop_token_ids": [8], "ignore_eos": true, "min_tokens": 1, "logprobs": 3, "seed": -1, "user": "me",
    });
    assert_eq!(running.post(TEXT, &body).0, 200);
    let job = submitted(&running);
    let sampling = job.sampling;
    assert_eq!((job.prompt_ids, job.max_new_tokens, job.top_logprobs), (vec![5, 6], 9, 3));
    assert_eq!((job.stop_token_ids, job.seed), (vec![8], u64::MAX));
    assert_eq!((sampling.n, sampling.top_k, sampling.min_tokens), (2, 4, 1));
    assert_eq!((sampling.temperature, sampling.top_p, sampling.min_p), (0.5, 0.75, 0.25));
    assert_eq!((sampling.repetition_penalty, sampling.presence_penalty), (1.5, -1.0));
    assert_eq!((sampling.frequency_penalty, sampling.logit_bias), (2.0, vec![(3, -100.0)]));
    assert_eq!(sampling.stop, ["x"]);
    for _ in 0..2 {
        running.post(TEXT, &json!({ "prompt": "the" }));
    }
    assert_ne!(submitted(&running).seed, submitted(&running).seed, "without a seed, draws differ");
}

#[test]
fn text_is_cut_before_stop_strings_however_tokens_cut_them() {
    let check = |script: &str, stop: Value, text: &str, finish: &str| {
        let running = start(script, |_| {});
        let body = json!({ "prompt": "the", "max_tokens": 30, "stop": stop });
        let (_, answer) = running.post(TEXT, &body);
        let choice = &answer["choices"][0];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &json!(finish)), "{script}");
        let mut body = body;
        body["stream"] = json!(true);
        let streamed = running.stream(TEXT, &body);
        let joined: String =
            streamed.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(joined, text);
        assert_eq!(streamed.last().unwrap()["choices"][0]["finish_reason"], json!(finish));
    };
    check("the cat sat on the mat", json!("sat"), "the cat ", "stop");
    check("the cat sat on the mat", json!(["on the mat", "t on", "zzz"]), "the cat sa", "stop");
    check("the cat sat on the mat", json!(["mats"]), "the cat sat on the mat", "stop");
    check("äöü the cat 日本 ran", json!(["本"]), "äöü the cat 日", "stop");
    let (long, tokenizer) = ("the cat ".repeat(30), tokenizer());
    let ids = tokenizer.encode(&long, false).unwrap().ids;
    check(&long, json!([]), &tokenizer.decode(&ids[..30], true).unwrap(), "length");
}

#[test]
fn a_stream_joined_is_the_whole_answer() {
    let running = start("the cat äöü 日本", |_| {});
    let body = json!({
        "messages": user("hi"), "n": 2, "logprobs": true, "top_logprobs": 1, "stream": true,
        "stream_options": { "include_usage": true }, "return_token_ids": true,
    });
    let events = running.stream(CHAT, &body);
    let mut whole_body = body.clone();
    whole_body.as_object_mut().unwrap().retain(|key, _| !key.starts_with("stream"));
    let (_, whole) = running.post(CHAT, &whole_body);
    for choice in 0..2 {
        let of_choice = || {
            let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
            choices.filter(move |c| c["index"] == json!(choice))
        };
        let text: String = of_choice().filter_map(|c| c["delta"]["content"].as_str()).collect();
        assert_eq!(text, "the cat äöü 日本");
        assert_eq!(whole["choices"][choice]["message"]["content"], json!(text));
        let lists = |pointer: &str| -> Vec<Value> {
            of_choice().filter_map(|c| c.pointer(pointer)?.as_array().cloned()).flatten().collect()
        };
        assert_eq!(json!(lists("/logprobs/content")), whole["choices"][choice]["logprobs"]["content"]);
        assert_eq!(json!(lists("/token_ids")), whole["choices"][choice]["token_ids"]);
        let ends: Vec<_> = of_choice().map(|c| &c["finish_reason"]).filter(|f| !f.is_null()).collect();
        assert_eq!(ends, [&json!("stop")]);
    }
    assert_eq!(events[0]["choices"][0]["delta"]["role"], json!("assistant"));
    let last = events.last().unwrap();
    assert_eq!((&last["usage"], &last["choices"]), (&whole["usage"], &json!([])));
}

#[test]
fn log_probabilities_have_the_text_of_their_tokens() {
    let running = start("the cat 日", |_| {});
    let (_, answer) =
        running.post(CHAT, &json!({ "messages": user("hi"), "logprobs": true, "top_logprobs": 2 }));
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let texts: Vec<&str> = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert!(texts.concat().starts_with("the cat "), "{texts:?}");
    assert_eq!(texts.last(), Some(&"<|end|>"), "the token that ended it is one of them");
    assert_eq!(tokens[0]["logprob"], json!(-0.5));
    assert_eq!(tokens[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(tokens[0]["bytes"], json!(texts[0].as_bytes()));
    let broken = tokens.iter().find(|token| token["token"].as_str().unwrap().contains('\u{FFFD}')).unwrap();
    assert_eq!(broken["bytes"], Value::Null, "half a character has no bytes that are right");
}

#[test]
fn an_echo_has_the_prompt_s_own_log_probabilities() {
    let running = start("ran", |_| {});
    let ids = tokenizer().encode("the cat", false).unwrap().ids;
    for max_tokens in [0, 1] {
        let body = json!({
            "prompt": [ids, [9, 10]], "echo": true, "max_tokens": max_tokens, "logprobs": 1, "temperature": 0,
        });
        let (status, answer) = running.post(TEXT, &body);
        assert_eq!(status, 200, "{answer}");
        let choice = &answer["choices"][0];
        assert!(choice["text"].as_str().unwrap().starts_with("the cat"));
        let logprobs = &choice["logprobs"];
        let expected: Vec<Value> =
            std::iter::once(Value::Null).chain(ids[1..].iter().map(|&id| json!(-f64::from(id)))).collect();
        let found = logprobs["token_logprobs"].as_array().unwrap();
        assert_eq!(found[..ids.len()], expected);
        assert_eq!(found.len(), ids.len() + max_tokens);
        assert_eq!(logprobs["top_logprobs"][0], Value::Null);
        assert_eq!(logprobs["top_logprobs"][1].as_object().unwrap().len(), 1);
        let (tokens, offsets) =
            (logprobs["tokens"].as_array().unwrap(), logprobs["text_offset"].as_array().unwrap());
        let text = choice["text"].as_str().unwrap();
        for (token, offset) in tokens.iter().zip(offsets) {
            assert!(text[offset.as_u64().unwrap() as usize..].starts_with(token.as_str().unwrap()));
        }
        assert_eq!(answer["choices"][1]["index"], json!(1));
        assert_eq!(answer["usage"]["completion_tokens"], json!(2 * max_tokens));
    }
}

#[test]
fn offsets_of_text_count_characters() {
    let running = start("é ran", |_| {});
    let body =
        json!({ "prompt": "né the ", "echo": true, "max_tokens": 30, "logprobs": 0, "temperature": 0 });
    let check = |text: &str, logprobs: &[Value]| {
        let list = |name: &str| -> Vec<Value> {
            logprobs.iter().flat_map(|part| part[name].as_array().unwrap().clone()).collect()
        };
        let (tokens, offsets) = (list("tokens"), list("text_offset"));
        assert_eq!((text, offsets.len()), ("né the é ran", tokens.len()));
        let mut n_compared = 0;
        for (token, offset) in tokens.iter().zip(&offsets) {
            let (token, offset) = (token.as_str().unwrap(), offset.as_u64().unwrap() as usize);
            // Half a character and the end token are not in the text.
            if token.contains('\u{FFFD}') || token == "<|end|>" {
                continue;
            }
            let rest: String = text.chars().skip(offset).collect();
            assert!(rest.starts_with(token), "`{token}` is not at {offset} of `{text}`");
            n_compared += 1;
        }
        assert!(n_compared > 5, "{tokens:?}");
    };
    let (_, answer) = running.post(TEXT, &body);
    let choice = &answer["choices"][0];
    check(choice["text"].as_str().unwrap(), std::slice::from_ref(&choice["logprobs"]));
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let events = running.stream(TEXT, &streamed);
    let choices = || events.iter().map(|event| &event["choices"][0]);
    let text: String = choices().filter_map(|choice| choice["text"].as_str()).collect();
    check(&text, &choices().map(|choice| choice["logprobs"].clone()).collect::<Vec<_>>());
}

#[test]
fn tool_calls_come_back_as_calls() {
    let script =
        "I look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>";
    let running = start(script, |_| {});
    let tools = json!([{ "type": "function", "function": { "name": "weather", "parameters": {} } }]);
    let body = json!({ "messages": user("rain?"), "tools": tools, "tool_choice": "auto" });
    let (_, answer) = running.post(CHAT, &body);
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &json!("I look."))
    );
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"], json!({ "name": "weather", "arguments": "{\"city\":\"Bern\"}" }));
    let prompt = tokenizer().decode(&submitted(&running).prompt_ids, false).unwrap();
    assert!(prompt.starts_with("<|sys|>weather <|end|>"), "{prompt}");

    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let events = running.stream(CHAT, &streamed);
    let deltas = || events.iter().map(|event| &event["choices"][0]["delta"]);
    let text: String = deltas().filter_map(|delta| delta["content"].as_str()).collect();
    assert_eq!(text, "I look.");
    let calls: Vec<_> = deltas().filter_map(|delta| delta.get("tool_calls")).collect();
    assert_eq!(calls.len(), 1);
    assert_eq!((&calls[0][0]["index"], &calls[0][0]["function"]), (&json!(0), &call["function"]));
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], json!("tool_calls"));
    submitted(&running);

    // The conversation goes on with what was called, its arguments as the protocol has them: JSON in a string.
    let conversation = json!([
        { "role": "user", "content": [{ "type": "text", "text": "ra" }, { "type": "text", "text": "in?" }] },
        choice["message"],
        { "role": "tool", "tool_call_id": call["id"], "content": "dry" },
    ]);
    let (status, answer) =
        running.post(CHAT, &json!({ "messages": conversation, "tools": tools, "tool_choice": "none" }));
    assert_eq!(status, 200, "{answer}");
    let prompt = tokenizer().decode(&submitted(&running).prompt_ids, false).unwrap();
    let expected =
        "<|user|>rain?<|end|><|assistant|>I look.[weather:Bern]<|end|><|tool|>dry<|end|><|assistant|>";
    assert_eq!(prompt, expected);
    assert_eq!(answer["choices"][0]["finish_reason"], json!("stop"), "no tools, no calls");
    assert_eq!(answer["choices"][0]["message"]["content"], json!(script));
}

#[test]
fn what_is_wrong_is_said_with_its_field_and_status() {
    let running = start("the", |_| {});
    let check = |path: &str, body: Value, status: u16, param: Option<&str>, expected: &str| {
        let (found, answer) = running.post(path, &body);
        let error = &answer["error"];
        assert_eq!((found, error["param"].as_str()), (status, param), "{body}: {answer}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(expected), "`{message}` lacks `{expected}`");
        assert_eq!(error["type"], json!("invalid_request_error"));
    };
    let chat = |field: &str, value: Value| {
        let mut body = json!({ "messages": user("hi") });
        body[field] = value;
        body
    };
    let text = |field: &str, value: Value| {
        let mut body = json!({ "prompt": "the" });
        body[field] = value;
        body
    };
    check(CHAT, chat("model", json!("gpt-4")), 404, Some("model"), "this server has `parrot`");
    check(CHAT, chat("temperature", json!("hot")), 400, Some("temperature"), "a number, 0 or more");
    check(CHAT, chat("temperature", json!(-1)), 400, Some("temperature"), "-1");
    check(CHAT, chat("n", json!(0)), 400, Some("n"), "from 1 to");
    check(CHAT, chat("top_p", json!(0)), 400, Some("top_p"), "above 0");
    check(CHAT, chat("seed", json!(1.5)), 400, Some("seed"), "whole number");
    check(CHAT, chat("stop", json!([""])), 400, Some("stop"), "none of them empty");
    check(CHAT, chat("logit_bias", json!({ "x": 1 })), 400, Some("logit_bias"), "token ids");
    check(CHAT, chat("max_tokens", json!(5000)), 400, Some("max_tokens"), "the model's context is 2000");
    check(CHAT, chat("min_tokens", json!(5000)), 400, Some("min_tokens"), "5000");
    check(CHAT, chat("top_logprobs", json!(2)), 400, Some("top_logprobs"), "needs `logprobs: true`");
    check(
        CHAT,
        chat("response_format", json!({ "type": "json_object" })),
        400,
        Some("response_format"),
        "constrain",
    );
    check(CHAT, chat("tool_choice", json!("required")), 400, Some("tool_choice"), "cannot force");
    check(CHAT, chat("stream_options", json!({})), 400, Some("stream_options"), "stream: true");
    let streams =
        |options: Value| json!({ "messages": user("hi"), "stream": true, "stream_options": options });
    let usage = "stream_options.include_usage";
    check(CHAT, streams(json!({ "include_usage": "yes" })), 400, Some(usage), "true or false");
    let unknown = "stream_options.chunk_size";
    check(CHAT, streams(json!({ "chunk_size": 9 })), 400, Some(unknown), "does not know");
    check(CHAT, chat("parallel_tool_calls", json!(false)), 400, Some("parallel_tool_calls"), "several tools");
    let stops = json!({ "prompt": "the", "stop_token_ids": [3, 4294967295u32], "min_tokens": 1 });
    check(TEXT, stops, 400, Some("stop_token_ids"), "outside the model's vocabulary");
    check(CHAT, chat("stop_token_ids", json!([300_000])), 400, Some("stop_token_ids"), "300000 is outside");
    check(CHAT, chat("guided_regex", json!("a+")), 400, Some("guided_regex"), "does not know");
    check(CHAT, chat("messages", json!([])), 400, Some("messages"), "at least one message");
    check(CHAT, chat("messages", json!([{ "content": "x" }])), 400, Some("messages[0].role"), "a role");
    let image = json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }]);
    check(CHAT, chat("messages", image), 400, Some("messages[0].content"), "images");
    check(CHAT, json!({}), 400, Some("messages"), "missing");
    check(CHAT, json!([1]), 400, None, "a list, expected an object");
    check(TEXT, json!({}), 400, Some("prompt"), "missing");
    check(TEXT, text("prompt", json!({})), 400, Some("prompt"), "token ids");
    check(TEXT, text("prompt", json!([])), 400, Some("prompt"), "empty");
    check(TEXT, text("prompt", json!([99999])), 400, Some("prompt"), "outside the model's vocabulary");
    check(TEXT, text("prompt", json!([1, -2])), 400, Some("prompt"), "token ids");
    check(TEXT, text("best_of", json!(3)), 400, Some("best_of"), "ask for `n`");
    check(TEXT, text("suffix", json!("end")), 400, Some("suffix"), "gaps");
    check(TEXT, text("max_tokens", json!(0)), 400, Some("max_tokens"), "echo");
    check(TEXT, text("logprobs", json!(true)), 400, Some("logprobs"), "whole number");
    check("/v1/embeddings", json!({}), 404, None, "/v1/chat/completions");
    assert!(running.told.try_recv().is_err(), "nothing of this reached the engine");
}

#[test]
fn wrong_http_gets_the_right_status() {
    let running = start("the", |options| options.max_body_bytes = 100);
    let check = |method: &str, path: &str, kind: &str, body: &str, status: u16, expected: &str| {
        let headers = [("content-type", kind)];
        let (found, text) = reply(running.send(method, path, &headers, body));
        assert_eq!(found, status, "{text}");
        let json: Value = serde_json::from_str(&text).unwrap();
        assert!(json["error"]["message"].as_str().unwrap().contains(expected), "{text}");
    };
    check("GET", CHAT, "application/json", "", 405, "asked with POST");
    check("POST", "/v1/models", "application/json", "{}", 405, "asked with GET");
    check("POST", CHAT, "text/plain", "{}", 415, "expected `application/json`");
    check("POST", CHAT, "application/json", "{\"messages\": [", 400, "not JSON");
    check("POST", CHAT, "application/json", &" ".repeat(101), 413, "longer than 100 bytes");
    check("GET", "/v1/models/other", "", "", 404, "no model `other`");
    check("GET", "/", "", "", 404, "there is nothing at");
}

#[test]
fn a_key_is_asked_for_where_there_is_one() {
    let running = start("the", |options| options.api_key = Some("sesame".to_owned()));
    let check = |header: Option<&str>, status: u16| {
        let headers: Vec<_> = header.map(|value| ("authorization", value)).into_iter().collect();
        let (found, text) = reply(running.send("GET", "/v1/models", &headers, ""));
        assert_eq!(found, status, "{text}");
        assert!(status == 200 || text.contains("authentication_error"), "{text}");
    };
    check(None, 401);
    check(Some("Bearer wrong"), 401);
    check(Some("sesame"), 401);
    check(Some("Bearer sesame"), 200);
    assert_eq!(running.get("/health").0, 200, "whether it is alive is no secret");
}

#[test]
fn models_health_and_metrics() {
    let running = start("the", |_| {});
    let (_, models) = running.get("/v1/models");
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][0]["max_model_len"]),
        (&json!("parrot"), &json!(2000))
    );
    assert_eq!(running.get("/v1/models/parrot").0, 200);
    running.post(TEXT, &json!({ "prompt": [5, 6, 7] }));
    running.post(TEXT, &json!({}));
    let (_, metrics) = running.get("/metrics");
    for line in [
        "posttrain_requests_total{path=\"/v1/completions\",status=\"200\"} 1",
        "posttrain_requests_total{path=\"/v1/completions\",status=\"400\"} 1",
        "posttrain_prompt_tokens_total 3",
        "posttrain_generation_tokens_total 2",
        "posttrain_running_requests 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no `{line}` in\n{metrics}");
    }
}

/// A script without end: what runs, runs until it is cancelled.
#[test]
fn a_client_that_goes_away_cancels_its_request() {
    let running = start("", |_| {});
    for stream in [false, true] {
        let body = json!({ "prompt": "the", "max_tokens": 1900, "stream": stream, "n": 3 });
        let connection =
            running.send("POST", TEXT, &[("content-type", "application/json")], &body.to_string());
        submitted(&running);
        drop(connection);
        assert_eq!(running.told.recv_timeout(PATIENCE), Ok(Told::Cancelled), "stream: {stream}");
    }
}

#[test]
fn too_many_requests_are_told_to_come_later() {
    let running = start("the", |options| options.max_waiting = 0);
    let mut stream =
        running.send("POST", TEXT, &[("content-type", "application/json")], "{\"prompt\": \"the\"}");
    let mut head = String::new();
    while stream.read_line(&mut head).unwrap() > 2 {}
    assert!(
        head.starts_with("HTTP/1.1 429") && head.to_ascii_lowercase().contains("retry-after: 1"),
        "{head}"
    );
}

/// A request is one however many prompts it has, and until its answer is there.
#[test]
fn requests_are_counted_and_not_their_prompts() {
    let running = start("", |options| options.max_waiting = 2);
    let headers = [("content-type", "application/json")];
    let two_prompts = json!({ "prompt": ["the", "cat"], "max_tokens": 1900 }).to_string();
    let first = running.send("POST", TEXT, &headers, &two_prompts);
    submitted(&running);
    submitted(&running);
    let n_running =
        |n: usize| running.get("/metrics").1.contains(&format!("posttrain_running_requests {n}\n"));
    assert!(n_running(1));
    let echo = json!({ "prompt": "the", "echo": true, "max_tokens": 0, "logprobs": 0 });
    assert_eq!(running.post(TEXT, &echo).0, 200, "there is room for another");
    assert!(n_running(1), "it is over");
    let second = running.send("POST", TEXT, &headers, &two_prompts);
    submitted(&running);
    submitted(&running);
    assert_eq!(running.post(TEXT, &echo).0, 429);
    drop((first, second));
}

#[test]
fn an_engine_that_dies_is_said_to_be_dead() {
    let running = start("the", |_| {});
    let poison = tokenizer().token_to_id("<|end|>").unwrap();
    let (status, answer) = running.post(TEXT, &json!({ "prompt": [poison] }));
    assert_eq!((status, &answer["error"]["type"]), (503, &json!("server_error")));
    assert_eq!(running.get("/health").0, 503);
    assert_eq!(running.post(TEXT, &json!({ "prompt": "the" })).0, 503);
    running.server.stop_handle().stop();
    let error = running.server.wait().unwrap_err().to_string();
    assert!(error.contains("the engine is poisoned"), "{error}");
}

#[test]
fn stopping_lets_short_requests_finish_and_cuts_long_ones() {
    let running = start("the cat", |_| {});
    running.server.stop_handle().stop();
    running.server.wait().unwrap();

    let running = start("", |options| options.grace_s = 0.0);
    let body = json!({ "prompt": "the", "max_tokens": 1900 });
    let whole = running.send("POST", TEXT, &[("content-type", "application/json")], &body.to_string());
    submitted(&running);
    running.server.stop_handle().stop();
    let address = running.server.address();
    running.server.wait().unwrap();
    let (status, text) = reply(whole);
    assert!(status == 503 && text.contains("shutting down"), "{status} {text}");
    assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens");
}

#[test]
fn the_project_s_own_client_understands_the_server() {
    let running = start("the cat sat", |_| {});
    let client = Client::new(ClientOptions::new(format!("http://{}/v1", running.server.address()))).unwrap();
    assert_eq!(client.models().unwrap(), ["parrot"]);
    let mut request = Request::chat("parrot", "hello");
    (request.n, request.logprobs, request.max_tokens) = (2, Some(1), Some(50));
    request.extra.insert("return_token_ids".to_owned(), json!(true));
    let reply = client.complete(&request).unwrap();
    assert_eq!(reply.choices.iter().map(|c| c.text.as_str()).collect::<Vec<_>>(), ["the cat sat"; 2]);
    let choice = &reply.choices[0];
    assert_eq!(choice.token_ids.as_ref().unwrap().len(), choice.logprobs.as_ref().unwrap().len());
    assert_eq!(reply.prompt_token_ids.unwrap(), submitted(&running).prompt_ids);
    let mut request = Request::new("parrot", Prompt::TokenIds(vec![5, 6]));
    request.logprobs = Some(1);
    let requests: Vec<Request> = (0..9).map(|seed| Request { seed: Some(seed), ..request.clone() }).collect();
    for reply in client.complete_all(&requests, 3) {
        let reply = reply.unwrap();
        assert_eq!(reply.choices[0].logprobs.as_ref().unwrap()[0].logprob, Some(-0.5));
        assert_eq!(reply.usage.unwrap().prompt_tokens, 2);
    }
    let error = client.complete(&Request::text("other", "x")).unwrap_err().to_string();
    assert!(error.contains("404") && error.contains("this server has `parrot`"), "{error}");
}
