//! The reply calls the expected tools with the expected arguments.
//!
//! Calls are read in the ways models write them: `<tool_call>{"name", "arguments"}</tool_call>` (Hermes, Qwen), JSON
//! objects or arrays of them with `arguments` (OpenAI, Mistral; also as a text) or `parameters` (Llama 3), and Python
//! calls `[f(a=1)]` (Llama 3.2, Gemma). The first of these ways in which a reply holds a call is the one that counts.

use pt_core::catalogue::{OptionInfo, parse};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::catalogue::{KIND, VerifierInfo};
use crate::json::{Equality, embedded};
use crate::text::{after_thinking, fenced, shortened};
use crate::{Part, Question, Verdict, Verifier};

mod python;

const NAME: &str = "tool_calls";

/// The catalogue's entry.
pub(crate) const INFO: VerifierInfo = VerifierInfo {
    name: NAME,
    summary: "the reply calls the expected tools with the expected arguments",
    reads: "the gold answer: a list of calls with `name` and `arguments`; an empty list if none is expected",
    options: &[
        OptionInfo {
            name: "ignore_order",
            kind: "bool",
            default: "false",
            doc: "whether the calls may come in any order",
        },
        OptionInfo {
            name: "partial",
            kind: "bool",
            default: "false",
            doc: "whether the score is the share of calls and arguments that are right, rather than 1 or 0",
        },
    ],
    examples: include_str!("tool_calls.md"),
    build: |options| Ok(Box::new(parse::<ToolCalls>(KIND, NAME, options)?)),
};

/// Comparison of calls.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ToolCalls {
    /// Whether the calls may come in any order.
    pub ignore_order: bool,
    /// Whether the score is the share of what is right, rather than 1 or 0.
    pub partial: bool,
}

/// One call.
#[derive(Clone, Debug, PartialEq)]
struct Call {
    name: String,
    arguments: Map<String, Value>,
}

impl Verifier for ToolCalls {
    fn name(&self) -> &'static str {
        NAME
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        let expected = match gold_calls(question.gold) {
            Ok(calls) => calls,
            Err(reason) => return Verdict::skip(reason),
        };
        let found = match calls_of(question.reply) {
            Ok(found) => found,
            Err(reason) => return Verdict::fail(reason),
        };
        if expected.is_empty() && found.is_empty() {
            return Verdict::pass("no call was expected, and there is none");
        }
        self.compare(&expected, found)
    }
}

impl ToolCalls {
    fn compare(&self, expected: &[Call], found: Vec<Call>) -> Verdict {
        let n_found = found.len();
        let mut left: Vec<Option<Call>> = found.into_iter().map(Some).collect();
        let (mut parts, mut wrong) = (Vec::new(), Vec::new());
        for (index, call) in expected.iter().enumerate() {
            let place = if self.ignore_order { nearest(call, &left) } else { Some(index) };
            let other = place.and_then(|place| left.get_mut(place)).and_then(Option::take);
            let share = other.as_ref().map_or(0.0, |other| likeness(call, other));
            if share < 1.0 {
                wrong.push(difference(call, other.as_ref()));
            }
            parts.push(Part { name: format!("{} {}", index + 1, call.name), score: share });
        }
        if n_found > expected.len() {
            wrong.push(format!("{n_found} calls, expected {}", expected.len()));
        }
        let total: f64 = parts.iter().map(|part| part.score).sum();
        let share = total / expected.len().max(n_found) as f64;
        let score = if self.partial { share } else { f64::from(u8::from(wrong.is_empty())) };
        let reason = match wrong.is_empty() {
            true => format!("all {n_found} calls are right"),
            false => wrong.join("; "),
        };
        Verdict::scored(score, reason).with_parts(parts)
    }
}

/// The place of the call that is most like the given one; the first of several.
fn nearest(call: &Call, calls: &[Option<Call>]) -> Option<usize> {
    let mut best = None;
    for (place, other) in calls.iter().enumerate() {
        let Some(other) = other else { continue };
        let likeness = likeness(call, other);
        if best.is_none_or(|(_, most)| likeness > most) {
            best = Some((place, likeness));
        }
    }
    best.map(|(place, _)| place)
}

/// 0 for another name, else the share of equal things among the name and all arguments of either.
fn likeness(a: &Call, b: &Call) -> f64 {
    if a.name != b.name {
        return 0.0;
    }
    let is_equal = |(key, value): &(&String, &Value)| {
        b.arguments.get(*key).is_some_and(|other| Equality::default().holds(value, other))
    };
    let n_equal = a.arguments.iter().filter(is_equal).count();
    let n_extra = b.arguments.keys().filter(|key| !a.arguments.contains_key(*key)).count();
    (1 + n_equal) as f64 / (1 + a.arguments.len() + n_extra) as f64
}

fn difference(expected: &Call, found: Option<&Call>) -> String {
    let Some(found) = found else { return format!("`{}` is not called", expected.name) };
    if found.name != expected.name {
        return format!("`{}` is called, expected `{}`", shortened(&found.name, 60), expected.name);
    }
    let shown = |call: &Call| shortened(&Value::Object(call.arguments.clone()).to_string(), 120);
    format!("`{}` is called with {}, expected {}", expected.name, shown(found), shown(expected))
}

fn gold_calls(gold: Option<&Value>) -> Result<Vec<Call>, String> {
    let gold = match gold {
        None | Some(Value::Null) => return Err("the row has no gold answer".to_owned()),
        Some(Value::String(text)) => match serde_json::from_str::<Value>(text) {
            Ok(value) => value,
            Err(_) => {
                let calls = calls_of(text)?;
                let found = (!calls.is_empty()).then_some(calls);
                return found
                    .ok_or_else(|| format!("the gold answer holds no call: `{}`", shortened(text, 80)));
            }
        },
        Some(value) => value.clone(),
    };
    from_json(&gold)
        .ok_or_else(|| format!("the gold answer is no list of calls: {}", shortened(&gold.to_string(), 80)))
}

/// The calls of a reply; an error is a call that was begun and cannot be read.
fn calls_of(reply: &str) -> Result<Vec<Call>, String> {
    let answer = after_thinking(reply);
    if answer.contains("<tool_call>") {
        return tagged(answer);
    }
    let from_values: Vec<Call> = embedded(answer).iter().filter_map(from_json).flatten().collect();
    if !from_values.is_empty() {
        return Ok(from_values);
    }
    let plain = answer.replace("<|python_tag|>", "");
    let texts = fenced(&plain).into_iter().chain([plain.as_str()]).chain(plain.lines());
    Ok(texts.map(str::trim).find_map(python::calls).unwrap_or_default())
}

fn tagged(answer: &str) -> Result<Vec<Call>, String> {
    let mut calls = Vec::new();
    for piece in answer.split("<tool_call>").skip(1) {
        let (body, _) = piece.split_once("</tool_call>").ok_or("a <tool_call> is not closed")?;
        let value: Value = serde_json::from_str(body.trim()).map_err(|e| {
            format!("a <tool_call> holds `{}`, which is not JSON: {e}", shortened(body.trim(), 80))
        })?;
        let call = from_json(&value).ok_or_else(|| {
            format!(
                "a <tool_call> holds {}, expected `name` and `arguments`",
                shortened(&value.to_string(), 80)
            )
        })?;
        calls.extend(call);
    }
    Ok(calls)
}

/// Calls in any of the JSON forms, or nothing if the value is no call and no list of calls.
fn from_json(value: &Value) -> Option<Vec<Call>> {
    match value {
        Value::Array(list) => {
            let calls: Option<Vec<Vec<Call>>> = list.iter().map(from_json).collect();
            calls.map(|calls| calls.into_iter().flatten().collect())
        }
        Value::Object(fields) => {
            if let Some(list) = fields.get("tool_calls") {
                return from_json(list);
            }
            if let Some(function) = fields.get("function").filter(|function| function.is_object()) {
                return from_json(function);
            }
            let name = fields.get("name")?.as_str()?.to_owned();
            let arguments = match fields.get("arguments").or_else(|| fields.get("parameters")) {
                None | Some(Value::Null) => Map::new(),
                Some(Value::Object(arguments)) => arguments.clone(),
                Some(Value::String(text)) => serde_json::from_str(text).ok()?,
                Some(_) => return None,
            };
            Some(vec![Call { name, arguments }])
        }
        _ => None,
    }
}
