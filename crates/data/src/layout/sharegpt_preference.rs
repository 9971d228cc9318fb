//! A ShareGPT conversation with a better and a worse last message (LLaMA-Factory `sharegpt`, `ranking: true`).

use serde_json::Value;

use super::Layout;
use super::fields::{Fields, is_messages};
use crate::message::{Message, Problem, looks_like_message, parse_message};
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "sharegpt_preference",
    summary: "a conversation with a chosen and a rejected last message (LLaMA-Factory sharegpt with ranking)",
    columns: &["conversations", "chosen", "rejected"],
    optional: &["system", "tools", "margin", "soft_label"],
    example: r#"{"conversations": [{"from": "human", "value": "Name a colour."}], "chosen": {"from": "gpt", "value": "Blue."}, "rejected": {"from": "gpt", "value": "Seven."}}"#,
    fits: |row| {
        let answer = |column: &str| looks_like_message(&row[column]) || row[column].is_string();
        is_messages(row, "conversations") && answer("chosen") && answer("rejected")
    },
    convert: |fields| {
        let prompt = Some(Content::Messages(fields.take_conversation("conversations")?));
        let chosen = take_answer(fields, "chosen")?;
        let rejected = take_answer(fields, "rejected")?;
        Ok(vec![Body::Preference {
            prompt,
            chosen,
            rejected,
            margin: fields.take_number("margin")?,
            soft_label: fields.take_soft_label()?,
        }])
    },
};

fn take_answer(fields: &mut Fields, name: &str) -> Result<Content, Problem> {
    let message = match fields.take(name)? {
        Value::String(text) => Message::new("assistant", text),
        value => parse_message(&value, name)?,
    };
    if message.role != "assistant" {
        return Err(Problem::new(name, "an assistant message", format!("a `{}` message", message.role)));
    }
    Ok(Content::Messages(vec![message]))
}
