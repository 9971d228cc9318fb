//! Anthropic hh-rlhf: two transcripts with `\n\nHuman:` and `\n\nAssistant:` turns.
//!
//! Both become conversations with an implicit prompt. Text of a turn loses the space around it. Turns of
//! one side in a row (12 of the first 2,000 test rows) are kept apart. An answer may be empty (4 rows).

use super::Layout;
use super::fields::{Fields, is_text};
use crate::message::{Message, Problem};
use crate::record::{Body, Content};
use crate::row::Columns;

const MARKS: [(&str, &str); 2] = [("\n\nHuman:", "user"), ("\n\nAssistant:", "assistant")];
const COLUMNS: &[&str] = &["chosen", "rejected"];

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "hh_rlhf",
    summary: "two transcripts with Human:/Assistant: turns (Anthropic hh-rlhf)",
    columns: COLUMNS,
    optional: &[],
    example: r#"{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}"#,
    fits: |row| COLUMNS.iter().all(|c| is_transcript(row, c)),
    convert: |fields| {
        let chosen = take_transcript(fields, "chosen")?;
        let rejected = take_transcript(fields, "rejected")?;
        Ok(vec![Body::Preference {
            prompt: None,
            chosen,
            rejected,
            margin: fields.take_number("margin")?,
            soft_label: fields.take_soft_label()?,
        }])
    },
};

/// Whether a column is a transcript that starts with a human turn and has an answer.
pub(super) fn is_transcript(row: &Columns, name: &str) -> bool {
    is_text(row, name)
        && row[name].as_str().is_some_and(|text| text.starts_with(MARKS[0].0) && text.contains(MARKS[1].0))
}

fn take_transcript(fields: &mut Fields, name: &str) -> Result<Content, Problem> {
    let text = fields.take_string(name)?;
    let messages = turns(&text);
    match messages.last() {
        Some(last) if last.role == "assistant" && text.starts_with(MARKS[0].0) => {
            Ok(Content::Messages(messages))
        }
        _ => {
            Err(Problem::new(name, "turns from `\\n\\nHuman:` to a last `\\n\\nAssistant:`", "another text"))
        }
    }
}

fn turns(text: &str) -> Vec<Message> {
    let mut starts: Vec<(usize, &str, &str)> = MARKS
        .iter()
        .flat_map(|(mark, role)| text.match_indices(mark).map(move |(at, _)| (at, *mark, *role)))
        .collect();
    starts.sort_unstable();
    let ends = starts.iter().skip(1).map(|start| start.0).chain([text.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|((at, mark, role), end)| Message::new(role, text[at + mark.len()..end].trim()))
        .collect()
}
