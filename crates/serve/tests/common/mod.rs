//! A server with an engine that says what it is told to, and a plain socket to talk with it.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;

use pt_serve::backend::{Backend, BackendError, Event, Job, Sampled, Scored};
use pt_serve::{Server, ServerOptions, TextSide};
use pt_text::{ChatTemplate, Tokenizer, train_byte_bpe};
use serde_json::Value;

const TEMPLATE: &str = "{% if tools %}<|sys|>{% for t in tools %}{{ t.function.name }} {% endfor %}<|end|>{% endif %}\
     {% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}[{{ c.function.name }}:\
     {{ c.function.arguments.city }}]{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

pub fn tokenizer() -> Tokenizer {
    let special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|sys|>", "<|tool|>"];
    train_byte_bpe(["the cat sat on the mat and the dog ran"], 300, &special).unwrap()
}

pub fn text_side() -> TextSide {
    let tokenizer = tokenizer();
    TextSide {
        stop_token_ids: vec![tokenizer.token_to_id("<|end|>").unwrap()],
        template: Some(ChatTemplate::new(TEMPLATE).unwrap()),
        context: 2000,
        vocabulary: tokenizer.vocab_size(),
        tokenizer: std::sync::Arc::new(tokenizer),
    }
}

/// What the engine was told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    Submitted(Box<Job>),
    Cancelled,
}

/// Says the same to everyone: a token per step and sample, then the end token. An empty script goes on until it is
/// cancelled, whatever the limit.
pub struct Parrot {
    script: Vec<u32>,
    end: u32,
    jobs: BTreeMap<u64, (Job, usize)>,
    told: mpsc::Sender<Told>,
    /// A prompt of this one token breaks the engine.
    poison: u32,
}

impl Parrot {
    pub fn new(script: &str, told: mpsc::Sender<Told>) -> Parrot {
        let tokenizer = tokenizer();
        let script = tokenizer.encode(script, false).unwrap().ids;
        let end = tokenizer.token_to_id("<|end|>").unwrap();
        Parrot { script, end, jobs: BTreeMap::new(), told, poison: end }
    }
}

impl Backend for Parrot {
    fn submit(&mut self, id: u64, job: &Job) -> Result<(), BackendError> {
        assert_ne!(job.prompt_ids, [self.poison], "the engine is poisoned");
        let _ = self.told.send(Told::Submitted(Box::new(job.clone())));
        self.jobs.insert(id, (job.clone(), 0));
        Ok(())
    }

    fn step(&mut self, emit: &mut dyn FnMut(u64, Event)) {
        let mut over = Vec::new();
        for (&id, (job, at)) in &mut self.jobs {
            let token = match self.script.get(*at) {
                Some(&token) => token,
                None if self.script.is_empty() => 5,
                None => self.end,
            };
            let sampled = Sampled { token, logprob: -0.5, top: vec![(token, -0.5), (1, -1.5)] };
            *at += 1;
            let stopped = job.stop_token_ids.contains(&token);
            for sample in 0..job.sampling.n {
                emit(id, Event::Token { sample, sampled: sampled.clone() });
                if stopped || (*at == job.max_new_tokens && !self.script.is_empty()) {
                    emit(id, Event::Finished { sample, stopped });
                    over.push(id);
                }
            }
        }
        over.iter().for_each(|id| drop(self.jobs.remove(id)));
    }

    fn cancel(&mut self, id: u64) {
        if self.jobs.remove(&id).is_some() {
            let _ = self.told.send(Told::Cancelled);
        }
    }

    fn score(&mut self, ids: &[u32], top: usize) -> Result<Vec<Scored>, BackendError> {
        let scored = |&id: &u32| Scored { logprob: -(id as f32), top: vec![(id, -(id as f32)); top.min(1)] };
        Ok(ids[1..].iter().map(scored).collect())
    }
}

/// A running server with a parrot.
pub struct Running {
    pub server: Server,
    pub told: mpsc::Receiver<Told>,
}

pub fn start(script: &str, change: impl FnOnce(&mut ServerOptions)) -> Running {
    let mut options = ServerOptions::new("parrot");
    change(&mut options);
    let (sender, told) = mpsc::channel();
    let script = script.to_owned();
    let engine = move |commands| pt_serve::backend::run(&mut Parrot::new(&script, sender), commands);
    Running { server: Server::start("127.0.0.1", 0, options, text_side(), engine).unwrap(), told }
}

impl Running {
    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> BufReader<TcpStream> {
        send(self.server.address(), method, path, headers, body)
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        reply(self.send("GET", path, &[], ""))
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) =
            reply(self.send("POST", path, &[("content-type", "application/json")], &body.to_string()));
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
    }

    /// The events of a stream.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let (status, text) =
            reply(self.send("POST", path, &[("content-type", "application/json")], &body.to_string()));
        assert_eq!(status, 200, "{text}");
        let mut events: Vec<&str> = text.split("\n\n").filter(|event| !event.is_empty()).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{text}");
        events
            .iter()
            .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
            .collect()
    }
}

pub fn send(
    address: std::net::SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
    BufReader::new(stream)
}

/// Status and body of a reply whose connection then closes.
pub fn reply(mut stream: BufReader<TcpStream>) -> (u16, String) {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("no status in `{line}`")).parse().unwrap();
    let mut chunked = false;
    loop {
        line.clear();
        stream.read_line(&mut line).unwrap();
        chunked |= line.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
        if line.trim_end().is_empty() {
            break;
        }
    }
    let mut body = String::new();
    if chunked {
        loop {
            line.clear();
            stream.read_line(&mut line).unwrap();
            let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
            let mut chunk = vec![0; length + 2];
            stream.read_exact(&mut chunk).unwrap();
            if length == 0 {
                return (status, body);
            }
            body += std::str::from_utf8(&chunk[..length]).unwrap();
        }
    }
    stream.read_to_string(&mut body).unwrap();
    (status, body)
}
