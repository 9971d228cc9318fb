//! An answer marked good or bad (TRL unpaired preference).

use super::Layout;
use super::fields::{is_bool, is_messages, is_text};
use crate::record::Body;

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "unpaired",
    summary: "a prompt, an answer, and whether it is good (TRL unpaired preference, KTO, BCO)",
    columns: &["prompt", "completion", "label"],
    optional: &[],
    example: r#"{"prompt": "The sky is", "completion": " green.", "label": false}"#,
    fits: |row| {
        let same = |is: fn(&crate::row::Columns, &str) -> bool| is(row, "prompt") && is(row, "completion");
        (same(is_text) || same(is_messages)) && is_bool(row, "label")
    },
    convert: |fields| {
        Ok(vec![Body::Unpaired {
            prompt: fields.take_content("prompt")?,
            completion: fields.take_content("completion")?,
            label: fields.take_bool("label")?,
        }])
    },
};
