//! Alpaca: an instruction, an optional input, an output (Stanford Alpaca; LLaMA-Factory `alpaca`).
//!
//! As in LLaMA-Factory the row is a conversation: `system`, the turns of `history` (a list of
//! [user, assistant] pairs), then instruction and input joined by a line break as the last user message;
//! the output is the completion, so earlier answers do not train. The `text` column of Stanford's file is
//! a rendering of the others and is dropped.

use serde_json::Value;

use super::Layout;
use super::fields::{Fields, is_text};
use crate::message::{Message, Problem};
use crate::read::kind;
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "alpaca",
    summary: "instruction, input, output, with optional system and history (Stanford Alpaca, LLaMA-Factory)",
    columns: &["instruction", "output"],
    optional: &["input", "system", "history", "text"],
    example: r#"{"instruction": "Translate to French.", "input": "cheese", "output": "fromage", "system": "Be brief.", "history": [["Hi", "Hello!"]]}"#,
    fits: |row| is_text(row, "instruction") && is_text(row, "output"),
    convert: |fields| {
        let prompt = take_prompt(fields)?;
        let completion = Content::Messages(vec![Message::new("assistant", fields.take_string("output")?)]);
        Ok(vec![Body::PromptCompletion { prompt, completion }])
    },
};

/// The conversation up to the answer.
pub(super) fn take_prompt(fields: &mut Fields) -> Result<Content, Problem> {
    let mut messages = Vec::new();
    if let Some(system) = fields.take_text("system")? {
        messages.push(Message::new("system", system));
    }
    if let Some(history) = fields.take_optional("history") {
        for (user, assistant) in turns(&history)? {
            messages.push(Message::new("user", user));
            messages.push(Message::new("assistant", assistant));
        }
    }
    fields.take_optional("text");
    let instruction = fields.take_string("instruction")?;
    messages.push(Message::new("user", joined(instruction, fields.take_text("input")?)));
    Ok(Content::Messages(messages))
}

/// Instruction and input as one text.
pub(super) fn joined(instruction: String, input: Option<String>) -> String {
    match input {
        Some(input) if instruction.is_empty() => input,
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction,
    }
}

fn turns(history: &Value) -> Result<Vec<(&str, &str)>, Problem> {
    let expected = "a list of [user, assistant] pairs of texts";
    let items = history.as_array().ok_or_else(|| Problem::new("history", expected, kind(history)))?;
    items
        .iter()
        .map(|item| match item.as_array().map(Vec::as_slice) {
            Some([Value::String(user), Value::String(assistant)]) => Ok((user.as_str(), assistant.as_str())),
            _ => Err(Problem::new("history", expected, item.to_string())),
        })
        .collect()
}
