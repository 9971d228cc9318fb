//! Tool calls in what a model writes: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Hermes, Qwen, ...).
//!
//! The server reads replies with [`ToolParser`] as they grow; training with tools reads whole ones with [`Reply::parse`]. Both
//! see the same calls.

use serde_json::{Map, Value, json};

use crate::template::Message;

/// Begins a call.
pub const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// A part of a reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Text for the reader.
    Text(String),
    /// A tool to be called, with its arguments as JSON.
    Call {
        /// The tool.
        name: String,
        /// JSON as text, which may be wrong where the model wrote it as a text.
        arguments: String,
    },
}

/// Takes a reply apart as it grows. What cannot be a call, or is none after all, is text.
#[derive(Debug, Default)]
pub struct ToolParser {
    /// Text that may be the beginning of a call, or the inside of one.
    held: String,
    in_call: bool,
}

impl ToolParser {
    /// Takes more of the reply.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held += text;
        let mut parts = Vec::new();
        loop {
            let mark = if self.in_call { CLOSE } else { OPEN };
            let Some(at) = self.held.find(mark) else { break };
            let rest = self.held.split_off(at + mark.len());
            self.held.truncate(at);
            let before = std::mem::replace(&mut self.held, rest);
            if self.in_call {
                parts.push(
                    parse_call(&before).unwrap_or_else(|| Part::Text(format!("{OPEN}{before}{CLOSE}"))),
                );
            } else if !before.trim().is_empty() {
                // White space before a call is its layout.
                parts.push(Part::Text(before.trim_end().to_owned()));
            }
            self.in_call = !self.in_call;
        }
        if !self.in_call {
            let keep = self.held.len() - undecided(&self.held);
            let text: String = self.held.drain(..keep).collect();
            if !text.is_empty() {
                parts.push(Part::Text(text));
            }
        }
        parts
    }

    /// The reply has ended.
    pub fn finish(&mut self) -> Option<Part> {
        let held = std::mem::take(&mut self.held);
        if self.in_call {
            // A model may end its turn without closing the call.
            return Some(parse_call(&held).unwrap_or_else(|| Part::Text(format!("{OPEN}{held}"))));
        }
        (!held.is_empty()).then_some(Part::Text(held))
    }
}

/// A call of a whole reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The tool.
    pub name: String,
    /// Its arguments; what is no JSON object is an empty one, with `problem`.
    pub arguments: Map<String, Value>,
    /// What is wrong with the arguments.
    pub problem: Option<String>,
}

/// A whole reply, taken apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// Its text without the calls.
    pub content: String,
    /// The calls, in order.
    pub calls: Vec<Call>,
    /// Calls that were begun and cannot be read; their text is part of `content`.
    pub n_unreadable: usize,
}

impl Reply {
    /// Takes a reply apart.
    pub fn parse(text: &str) -> Reply {
        let mut parser = ToolParser::default();
        let mut parts = parser.push(text);
        parts.extend(parser.finish());
        let mut reply = Reply::default();
        for part in parts {
            match part {
                Part::Text(text) => {
                    reply.n_unreadable += text.matches(OPEN).count();
                    reply.content += &text;
                }
                Part::Call { name, arguments } => reply.calls.push(call_of(name, &arguments)),
            }
        }
        reply
    }

    /// The reply as a message that a chat template renders, its calls numbered from `first_id`.
    pub fn to_message(&self, first_id: usize) -> Message {
        let mut message = Message::new();
        message.insert("role".to_owned(), json!("assistant"));
        message.insert("content".to_owned(), json!(self.content));
        if !self.calls.is_empty() {
            let call = |(i, call): (usize, &Call)| {
                json!({
                    "id": format!("call_{}", first_id + i), "type": "function",
                    "function": { "name": call.name, "arguments": call.arguments },
                })
            };
            message.insert("tool_calls".to_owned(), self.calls.iter().enumerate().map(call).collect());
        }
        message
    }
}

fn call_of(name: String, arguments: &str) -> Call {
    let (arguments, problem) = match serde_json::from_str(arguments) {
        Ok(Value::Object(arguments)) => (arguments, None),
        Ok(other) => (Map::new(), Some(format!("the arguments are {other}, expected an object"))),
        Err(error) => (Map::new(), Some(format!("the arguments are not JSON: {error}"))),
    };
    Call { name, arguments, problem }
}

fn parse_call(text: &str) -> Option<Part> {
    let call: Value = serde_json::from_str(text.trim()).ok()?;
    let name = call.get("name")?.as_str()?.to_owned();
    let arguments = match call.get("arguments").or_else(|| call.get("parameters")) {
        None => json!({}).to_string(),
        // Some models write the arguments as JSON in a string.
        Some(Value::String(text)) => text.clone(),
        Some(arguments) => arguments.to_string(),
    };
    Some(Part::Call { name, arguments })
}

/// Bytes at the end that may yet become white space before a call, or the beginning of [`OPEN`].
fn undecided(text: &str) -> usize {
    let n_mark = (1..OPEN.len()).rev().find(|&n| text.ends_with(&OPEN[..n])).unwrap_or(0);
    let before = &text[..text.len() - n_mark];
    text.len() - before.trim_end().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_replies_give_content_calls_and_what_cannot_be_read() {
        let check = |text: &str, content: &str, calls: &[&str], n_unreadable: usize| {
            let reply = Reply::parse(text);
            assert_eq!((reply.content.as_str(), reply.n_unreadable), (content, n_unreadable), "{text}");
            let message = reply.to_message(4);
            let found: Vec<String> = message
                .get("tool_calls")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(|call| {
                    format!("{} {} {}", call["id"], call["function"]["name"], call["function"]["arguments"])
                })
                .collect();
            assert_eq!(found, calls, "{text}");
        };
        check("plain", "plain", &[], 0);
        check(
            "Let me.\n<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>\n<tool_call>{\"name\": \"g\"}</tool_call>",
            "Let me.",
            &["\"call_4\" \"f\" {\"a\":1}", "\"call_5\" \"g\" {}"],
            0,
        );
        check("<tool_call>{nonsense}</tool_call>", "<tool_call>{nonsense}</tool_call>", &[], 1);
        let reply = Reply::parse("<tool_call>{\"name\": \"f\", \"arguments\": \"2 +\"}</tool_call>");
        assert!(reply.calls[0].problem.as_deref().unwrap().contains("not JSON"), "{reply:?}");
    }

    #[test]
    fn calls_are_found_however_the_text_is_cut() {
        let text = |text: &str| Part::Text(text.to_owned());
        let call = |name: &str, arguments: &str| Part::Call {
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        };
        let cases: [(&str, Vec<Part>); 8] = [
            ("plain text, x < y\n", vec![text("plain text, x < y\n")]),
            (
                "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
                vec![text("Let me see."), call("f", "{\"a\":1}")],
            ),
            (
                "<tool_call>{\"name\":\"f\"}</tool_call>\n<tool_call>{\"name\":\"g\",\"arguments\":\"{}\"}</tool_call>",
                vec![call("f", "{}"), call("g", "{}")],
            ),
            ("<tool_call>{\"name\": \"f\", \"arguments\": {}}", vec![call("f", "{}")]),
            (
                "<tool_call>{\"name\": \"f\", </tool_call> oops",
                vec![text("<tool_call>{\"name\": \"f\", </tool_call> oops")],
            ),
            ("<tool_call>not closed", vec![text("<tool_call>not closed")]),
            ("a <tool_ b", vec![text("a <tool_ b")]),
            ("ends with <tool_c", vec![text("ends with <tool_c")]),
        ];
        for (reply, expected) in cases {
            for size in 1..=reply.len() {
                let mut parser = ToolParser::default();
                let pieces = reply.as_bytes().chunks(size).map(|chunk| std::str::from_utf8(chunk).unwrap());
                let mut parts: Vec<Part> = pieces.flat_map(|piece| parser.push(piece)).collect();
                parts.extend(parser.finish());
                // Neighbouring texts are one text.
                let mut joined: Vec<Part> = Vec::new();
                for part in parts {
                    match (joined.last_mut(), part) {
                        (Some(Part::Text(before)), Part::Text(more)) => *before += &more,
                        (_, part) => joined.push(part),
                    }
                }
                assert_eq!(joined, expected, "in pieces of {size}: {reply}");
            }
        }
    }
}
