//! An input and its target (MAWPS, BIG-bench), as plain text.
//!
//! A number as target is written as people write it: 43.0 is `43`. It also becomes the extra column
//! `ground_truth`.

use serde_json::Value;

use super::Layout;
use super::fields::{Fields, is_text};
use crate::message::Problem;
use crate::read::kind;
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "input_target",
    summary: "input text and target text or number (MAWPS, BIG-bench)",
    columns: &["input", "target"],
    optional: &[],
    example: r#"{"input": "Ann has 40 shells and finds 3. How many has she?", "target": 43.0}"#,
    fits: |row| is_text(row, "input") && (is_text(row, "target") || row["target"].is_number()),
    convert,
};

fn convert(fields: &mut Fields) -> Result<Vec<Body>, Problem> {
    let prompt = Content::Text(fields.take_string("input")?);
    let target = match fields.take("target")? {
        Value::String(text) => text,
        // Display of f64 leaves the `.0` of whole numbers out; integers print exactly as they are.
        Value::Number(n) if n.is_f64() => n.as_f64().unwrap_or(f64::NAN).to_string(),
        Value::Number(n) => n.to_string(),
        other => return Err(Problem::new("target", "text or a number", kind(&other))),
    };
    fields.keep("ground_truth", target.clone().into());
    Ok(vec![Body::PromptCompletion { prompt, completion: Content::Text(target) }])
}
