//! Alpaca with a good/bad mark (LLaMA-Factory `alpaca` with `kto_tag`).

use super::Layout;
use super::alpaca::take_prompt;
use super::fields::{is_bool, is_text};
use crate::message::Message;
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "alpaca_kto",
    summary: "instruction, input, output and whether it is good (LLaMA-Factory alpaca with kto_tag)",
    columns: &["instruction", "output", "kto_tag"],
    optional: &["input", "system", "history"],
    example: r#"{"instruction": "Name a colour.", "output": "Seven.", "kto_tag": false}"#,
    fits: |row| is_text(row, "instruction") && is_text(row, "output") && is_bool(row, "kto_tag"),
    convert: |fields| {
        let prompt = take_prompt(fields)?;
        let completion = Content::Messages(vec![Message::new("assistant", fields.take_string("output")?)]);
        Ok(vec![Body::Unpaired { prompt, completion, label: fields.take_bool("kto_tag")? }])
    },
};
