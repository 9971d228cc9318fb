//! A prompt and its answer (TRL prompt-completion; OpenAI and mlx-lm `completions`).

use super::Layout;
use super::fields::{is_messages, is_text};
use crate::record::Body;

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "prompt_completion",
    summary: "a prompt and its answer, both text or both messages (TRL prompt-completion, mlx-lm completions)",
    columns: &["prompt", "completion"],
    optional: &[],
    example: r#"{"prompt": "The sky is", "completion": " blue."}"#,
    fits: |row| {
        ["prompt", "completion"].iter().all(|c| is_text(row, c))
            || ["prompt", "completion"].iter().all(|c| is_messages(row, c))
    },
    convert: |fields| {
        let prompt = fields.take_content("prompt")?;
        Ok(vec![Body::PromptCompletion { prompt, completion: fields.take_content("completion")? }])
    },
};
