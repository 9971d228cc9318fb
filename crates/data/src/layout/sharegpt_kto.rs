//! A ShareGPT conversation whose last message is marked good or bad (LLaMA-Factory `sharegpt` with `kto_tag`).

use super::Layout;
use super::fields::{is_bool, is_messages, split_last};
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "sharegpt_kto",
    summary: "a from/value conversation and whether its last message is good (LLaMA-Factory sharegpt with kto_tag)",
    columns: &["conversations", "kto_tag"],
    optional: &["system", "tools"],
    example: r#"{"conversations": [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "Seven."}], "kto_tag": false}"#,
    fits: |row| is_messages(row, "conversations") && is_bool(row, "kto_tag"),
    convert: |fields| {
        let (prompt, completion) = split_last(fields.take_conversation("conversations")?, "conversations")?;
        let (prompt, completion) = (Content::Messages(prompt), Content::Messages(completion));
        Ok(vec![Body::Unpaired { prompt, completion, label: fields.take_bool("kto_tag")? }])
    },
};
