//! A question with two answers (Intel orca_dpo_pairs and sets like it): a conversation.

use super::Layout;
use super::fields::is_text;
use crate::message::Message;
use crate::record::{Body, Content};

const COLUMNS: &[&str] = &["question", "chosen", "rejected"];

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "orca_preference",
    summary: "question, chosen, rejected, with optional system (Intel orca_dpo_pairs)",
    columns: COLUMNS,
    optional: &["system"],
    example: r#"{"system": "Be brief.", "question": "Name a colour.", "chosen": "Blue.", "rejected": "Seven."}"#,
    fits: |row| COLUMNS.iter().all(|c| is_text(row, c)),
    convert: |fields| {
        let mut prompt = Vec::new();
        prompt.extend(fields.take_text("system")?.map(|system| Message::new("system", system)));
        prompt.push(Message::new("user", fields.take_string("question")?));
        let chosen = Content::Messages(vec![Message::new("assistant", fields.take_string("chosen")?)]);
        let rejected = Content::Messages(vec![Message::new("assistant", fields.take_string("rejected")?)]);
        let margin = fields.take_number("margin")?;
        let soft_label = fields.take_soft_label()?;
        Ok(vec![Body::Preference {
            prompt: Some(Content::Messages(prompt)),
            chosen,
            rejected,
            margin,
            soft_label,
        }])
    },
};
