//! Prompts with a verifiable answer (open-instruct RLVR).
//!
//! `dataset` names the verifier; it and `ground_truth` stay as extra columns. An assistant message at the
//! end is a sample solution, not part of the prompt: it is kept as the extra column `reference_completion`.

use super::Layout;
use super::fields::is_messages;
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "rlvr",
    summary: "messages, ground_truth, and dataset (the verifier's name) (open-instruct RLVR)",
    columns: &["messages", "ground_truth", "dataset"],
    optional: &["tools"],
    example: r#"{"messages": [{"role": "user", "content": "What is 1 + 2?"}], "ground_truth": "3", "dataset": "math"}"#,
    fits: |row| is_messages(row, "messages"),
    convert: |fields| {
        let mut messages = fields.take_conversation("messages")?;
        if messages.len() > 1
            && let Some(last) = messages.pop_if(|last| last.role == "assistant")
        {
            fields.keep("reference_completion", last.to_row());
        }
        Ok(vec![Body::PromptOnly { prompt: Content::Messages(messages) }])
    },
};
