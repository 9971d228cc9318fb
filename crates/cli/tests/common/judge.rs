//! A judge on this machine that answers by rules, over the OpenAI protocol.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// What the judge does with a request.
pub enum Act {
    /// Answers with this text and, for A and B, their probabilities.
    Say(String, Option<[f64; 2]>),
    /// Refuses with a status.
    Status(u16),
    /// Says nothing until the client goes away.
    Hang,
}

pub fn say(text: &str) -> Act {
    Act::Say(text.to_owned(), None)
}

pub type Rule = dyn Fn(usize, &str) -> Act + Send + Sync;

/// A server of chat completions on this machine, whose model is called `rules`.
pub struct JudgeServer {
    pub url: String,
    asked: Arc<Mutex<Vec<String>>>,
    /// What came as `authorization`, with each request that had it.
    pub keys: Arc<Mutex<Vec<String>>>,
}

impl JudgeServer {
    /// `rule` is given the number of the request and the last message.
    pub fn start(rule: impl Fn(usize, &str) -> Act + Send + Sync + 'static) -> JudgeServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let keys = Arc::new(Mutex::new(Vec::new()));
        let (rule, log, seen): (Arc<Rule>, _, _) = (Arc::new(rule), asked.clone(), keys.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (rule, log, seen) = (rule.clone(), log.clone(), seen.clone());
                std::thread::spawn(move || serve(stream, &*rule, &log, &seen));
            }
        });
        JudgeServer { url, asked, keys }
    }

    pub fn n_asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn serve(mut stream: TcpStream, rule: &Rule, log: &Mutex<Vec<String>>, keys: &Mutex<Vec<String>>) {
    let Some((path, body, key)) = read_request(&mut stream) else { return };
    keys.lock().unwrap().extend(key);
    if path.ends_with("/models") {
        return reply(&mut stream, 200, &json!({ "data": [{ "id": "rules" }] }));
    }
    let request: Value = serde_json::from_slice(&body).unwrap();
    let messages = request["messages"].as_array().unwrap();
    let last = messages.last().unwrap()["content"].as_str().unwrap().to_owned();
    let n = {
        let mut log = log.lock().unwrap();
        log.push(last.clone());
        log.len() - 1
    };
    match rule(n, &last) {
        Act::Say(text, probabilities) => {
            let logprobs = probabilities.filter(|_| request["logprobs"] == json!(true)).map(|[a, b]| {
                let top = json!([{ "token": "A", "logprob": a.ln() }, { "token": "B", "logprob": b.ln() }]);
                json!({ "content": [{ "token": text, "logprob": -0.1, "top_logprobs": top }] })
            });
            let choice = json!({
                "index": 0, "finish_reason": "stop", "logprobs": logprobs,
                "message": { "role": "assistant", "content": text },
            });
            let usage = json!({ "prompt_tokens": last.len() / 4, "completion_tokens": text.len() / 4 + 1 });
            reply(&mut stream, 200, &json!({ "model": "rules", "choices": [choice], "usage": usage }));
        }
        Act::Status(status) => {
            reply(&mut stream, status, &json!({ "error": { "message": "told to refuse" } }))
        }
        // The client may be gone already; either way this thread ends.
        Act::Hang => {
            let _ = stream.read(&mut [0; 1]);
        }
    }
}

/// Path, body and `authorization`.
fn read_request(stream: &mut TcpStream) -> Option<(String, Vec<u8>, Option<String>)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split_whitespace().nth(1)?.to_owned();
    let (mut length, mut key) = (0, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
        if name.eq_ignore_ascii_case("authorization") {
            key = Some(value.trim().to_owned());
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, body, key))
}

fn reply(stream: &mut TcpStream, status: u16, body: &Value) {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all((head + &body).as_bytes());
}

/// What stands between `<tag ...>` and its end.
pub fn between<'a>(text: &'a str, tag: &str) -> &'a str {
    let inside = text.split(&format!("<{tag} ")).last().unwrap().split_once(">\n").unwrap().1;
    inside.split(&format!("\n</{tag} ")).next().unwrap()
}

/// How good a reply is by the rules: polite ones are better.
fn worth(reply: &str) -> i32 {
    i32::from(reply.contains("please")) - i32::from(reply.contains("stupid"))
}

/// Answers everything that Constitutional AI asks, by rules.
pub fn by_rules(text: &str) -> Act {
    if text.contains("Critique request:") {
        return say(if worth(between(text, "reply")) < 1 {
            "The reply is not polite."
        } else {
            "There is nothing."
        });
    }
    if text.contains("Revision request:") {
        let reply = between(text, "reply").replace("stupid", "dear");
        return Act::Say(if reply.contains("please") { reply } else { format!("{reply} please") }, None);
    }
    if text.contains("<reply-A ") {
        let (a, b) = (worth(between(text, "reply-A")), worth(between(text, "reply-B")));
        return match a.cmp(&b) {
            std::cmp::Ordering::Greater => Act::Say("A".to_owned(), Some([0.9, 0.1])),
            std::cmp::Ordering::Less => Act::Say("B".to_owned(), Some([0.2, 0.8])),
            std::cmp::Ordering::Equal => say("C"),
        };
    }
    if text.contains("Rubric:") {
        return Act::Say((5 + 3 * worth(between(text, "reply"))).to_string(), None);
    }
    say("you are stupid")
}

/// As [`by_rules`], with the longer of two replies that are equally polite.
pub fn by_rules_then_length(text: &str) -> Act {
    let length = |tag: &str| between(text, tag).chars().count();
    match by_rules(text) {
        Act::Say(answer, _) if answer == "C" => {
            say(if length("reply-A") > length("reply-B") { "A" } else { "B" })
        }
        act => act,
    }
}
