//! A prompt, a better and a worse answer (TRL preference with explicit prompt).

use super::Layout;
use super::fields::{is_messages, is_text};
use crate::record::Body;

const COLUMNS: &[&str] = &["prompt", "chosen", "rejected"];

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "preference",
    summary: "a prompt, a better and a worse answer, all text or all messages (TRL preference, explicit prompt)",
    columns: COLUMNS,
    optional: &["margin", "soft_label"],
    example: r#"{"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", "margin": 0.5}"#,
    fits: |row| COLUMNS.iter().all(|c| is_text(row, c)) || COLUMNS.iter().all(|c| is_messages(row, c)),
    convert: |fields| {
        Ok(vec![Body::Preference {
            prompt: Some(fields.take_content("prompt")?),
            chosen: fields.take_content("chosen")?,
            rejected: fields.take_content("rejected")?,
            margin: fields.take_number("margin")?,
            soft_label: fields.take_soft_label()?,
        }])
    },
};
