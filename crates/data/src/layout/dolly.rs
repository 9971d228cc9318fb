//! An instruction, an optional context and a response (Databricks Dolly): a conversation.

use super::Layout;
use super::alpaca::joined;
use super::fields::is_text;
use crate::message::Message;
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "dolly",
    summary: "instruction, optional context, response (Databricks Dolly)",
    columns: &["instruction", "response"],
    optional: &["context"],
    example: r#"{"instruction": "When was it founded?", "context": "The shop was founded in 1901.", "response": "In 1901.", "category": "closed_qa"}"#,
    fits: |row| is_text(row, "instruction") && is_text(row, "response"),
    convert: |fields| {
        let instruction = fields.take_string("instruction")?;
        let user = joined(instruction, fields.take_text("context")?);
        let prompt = Content::Messages(vec![Message::new("user", user)]);
        let completion = Content::Messages(vec![Message::new("assistant", fields.take_string("response")?)]);
        Ok(vec![Body::PromptCompletion { prompt, completion }])
    },
};
