//! Prompts to sample from (TRL prompt-only).
//!
//! A row with an answer beside the prompt is not of this layout: if the answer's type fits no other, that
//! is an error and not a prompt.

use super::Layout;
use super::fields::{is_messages, is_text};
use crate::record::Body;

const ANSWERS: &[&str] = &["completion", "completions", "chosen", "rejected"];

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "prompt_only",
    summary: "a prompt to sample from, text or messages (TRL prompt-only); other columns go to reward functions",
    columns: &["prompt"],
    optional: &[],
    example: r#"{"prompt": "Is the sky blue?", "solution": "yes"}"#,
    fits: |row| {
        let has_answer = ANSWERS.iter().any(|column| row.contains_key(*column));
        (is_text(row, "prompt") || is_messages(row, "prompt")) && !has_answer
    },
    convert: |fields| Ok(vec![Body::PromptOnly { prompt: fields.take_content("prompt")? }]),
};
