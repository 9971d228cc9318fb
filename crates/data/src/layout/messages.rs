//! Conversations (TRL language modelling, conversational; OpenAI; mlx-lm `chat`; Axolotl `chat_template`).
//!
//! Per-message training flags and spans are read as told in [`crate::Message`]. A `prompt` text beside the
//! messages (UltraChat) repeats the first of them and is kept as an extra column.

use super::Layout;
use super::fields::is_messages;
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "messages",
    summary: "a conversation of role/content messages (TRL, OpenAI, mlx-lm chat, Axolotl chat_template)",
    columns: &["messages"],
    optional: &["prompt", "system", "tools"],
    example: r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!", "train": true}]}"#,
    fits: |row| is_messages(row, "messages"),
    convert: |fields| Ok(vec![Body::LanguageModel(Content::Messages(fields.take_conversation("messages")?))]),
};
