//! Alpaca with a better and a worse output (LLaMA-Factory `alpaca`, `ranking: true`).

use super::Layout;
use super::alpaca::take_prompt;
use super::fields::is_text;
use crate::message::Message;
use crate::record::{Body, Content};

const COLUMNS: &[&str] = &["instruction", "chosen", "rejected"];

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "alpaca_preference",
    summary: "instruction, input, chosen, rejected (LLaMA-Factory alpaca with ranking)",
    columns: COLUMNS,
    optional: &["input", "system", "history"],
    example: r#"{"instruction": "Name a colour.", "input": "", "chosen": "Blue.", "rejected": "Seven."}"#,
    fits: |row| COLUMNS.iter().all(|c| is_text(row, c)),
    convert: |fields| {
        let prompt = Some(take_prompt(fields)?);
        let chosen = Content::Messages(vec![Message::new("assistant", fields.take_string("chosen")?)]);
        let rejected = Content::Messages(vec![Message::new("assistant", fields.take_string("rejected")?)]);
        Ok(vec![Body::Preference {
            prompt,
            chosen,
            rejected,
            margin: fields.take_number("margin")?,
            soft_label: fields.take_soft_label()?,
        }])
    },
};
