//! Text in segments that train or do not (Axolotl `input_output`): free of any template.

use super::Layout;
use super::fields::Fields;
use crate::message::Problem;
use crate::record::{Body, Content, Segment};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "input_output",
    summary: "text segments, each with a flag that says whether it trains (Axolotl input_output)",
    columns: &["segments"],
    optional: &[],
    example: r#"{"segments": [{"label": false, "text": "<s>Hello "}, {"label": true, "text": "there!</s>"}]}"#,
    fits: |row| {
        row["segments"].as_array().is_some_and(|s| !s.is_empty() && s.iter().all(|s| s.get("text").is_some()))
    },
    convert,
};

fn convert(fields: &mut Fields) -> Result<Vec<Body>, Problem> {
    let expected = "a list of {label: true/false, text: ...}";
    let value = fields.take("segments")?;
    let items = value.as_array().filter(|items| !items.is_empty());
    let items = items.ok_or_else(|| Problem::new("segments", expected, value.to_string()))?;
    let segments: Result<Vec<Segment>, Problem> = items
        .iter()
        .map(|item| {
            match (item.get("label").and_then(|l| l.as_bool()), item.get("text").and_then(|t| t.as_str())) {
                (Some(train), Some(text)) => Ok(Segment { text: text.to_owned(), train }),
                _ => Err(Problem::new("segments", expected, item.to_string())),
            }
        })
        .collect();
    Ok(vec![Body::LanguageModel(Content::Segments(segments?))])
}
