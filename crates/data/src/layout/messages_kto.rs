//! A conversation whose last message is marked good or bad (ms-swift KTO, LLaMA-Factory `kto_en_demo`).

use super::Layout;
use super::fields::{is_bool, is_messages, split_last};
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "messages_kto",
    summary: "a conversation and whether its last message is good (ms-swift KTO, LLaMA-Factory)",
    columns: &["messages", "label"],
    optional: &["system", "tools"],
    example: r#"{"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Seven."}], "label": false}"#,
    fits: |row| is_messages(row, "messages") && is_bool(row, "label"),
    convert: |fields| {
        let (prompt, completion) = split_last(fields.take_conversation("messages")?, "messages")?;
        let (prompt, completion) = (Content::Messages(prompt), Content::Messages(completion));
        Ok(vec![Body::Unpaired { prompt, completion, label: fields.take_bool("label")? }])
    },
};
