//! Prompts to sample from (TRL prompt-only).

use super::Layout;
use super::fields::{is_messages, is_text};
use crate::record::Body;

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "prompt_only",
    summary: "a prompt to sample from, text or messages (TRL prompt-only); other columns go to reward functions",
    columns: &["prompt"],
    optional: &[],
    example: r#"{"prompt": "Is the sky blue?", "solution": "yes"}"#,
    fits: |row| is_text(row, "prompt") || is_messages(row, "prompt"),
    convert: |fields| Ok(vec![Body::PromptOnly { prompt: fields.take_content("prompt")? }]),
};
