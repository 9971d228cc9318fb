//! ShareGPT conversations (`from`/`value`; LLaMA-Factory `sharegpt`, FastChat, Axolotl).

use super::Layout;
use super::fields::is_messages;
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "sharegpt",
    summary: "a conversation of from/value messages, with optional system and tools (ShareGPT, LLaMA-Factory, FastChat)",
    columns: &["conversations"],
    optional: &["system", "tools"],
    example: r#"{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "system": "Be brief."}"#,
    fits: |row| is_messages(row, "conversations"),
    convert: |fields| {
        Ok(vec![Body::LanguageModel(Content::Messages(fields.take_conversation("conversations")?))])
    },
};
