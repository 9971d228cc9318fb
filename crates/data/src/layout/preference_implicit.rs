//! A better and a worse answer that both contain the prompt (TRL preference with implicit prompt).
//!
//! The prompt is made explicit by [`crate::Record::extract_prompt`], not here: reward models take the pair
//! as it is. Texts that are hh-rlhf transcripts are [`super::hh_rlhf`]'s.

use super::Layout;
use super::fields::{is_messages, is_text};
use super::hh_rlhf::is_transcript;
use crate::record::Body;

const COLUMNS: &[&str] = &["chosen", "rejected"];

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "preference_implicit",
    summary: "a better and a worse answer that both contain the prompt (TRL preference, implicit prompt; open-instruct)",
    columns: COLUMNS,
    optional: &["margin", "soft_label"],
    example: r#"{"chosen": "The sky is blue.", "rejected": "The sky is green."}"#,
    fits: |row| {
        if row.contains_key("prompt") {
            return false; // An explicit prompt of a type that does not go with the answers.
        }
        let transcripts = COLUMNS.iter().all(|c| is_transcript(row, c));
        (COLUMNS.iter().all(|c| is_text(row, c)) && !transcripts)
            || COLUMNS.iter().all(|c| is_messages(row, c))
    },
    convert: |fields| {
        Ok(vec![Body::Preference {
            prompt: None,
            chosen: fields.take_content("chosen")?,
            rejected: fields.take_content("rejected")?,
            margin: fields.take_number("margin")?,
            soft_label: fields.take_soft_label()?,
        }])
    },
};
