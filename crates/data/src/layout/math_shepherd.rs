//! Math-Shepherd: a solution whose steps end with a marker, and a copy with `+` or `-` in its place.
//!
//! `input` is problem, then `Step 1: ... ки` lines; `label` is the same text with every `ки` replaced. The
//! problem is what precedes `Step 1:`; steps lose the marker and the space around them.

use super::Layout;
use super::fields::{Fields, is_text};
use super::stepwise::check_lengths;
use crate::message::Problem;
use crate::record::Body;

/// The token after each step.
const MARK: &str = "ки";

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "math_shepherd",
    summary: "steps ending in the marker `ки`, and the same text with + or - for it (Math-Shepherd)",
    columns: &["input", "label"],
    optional: &["task"],
    example: r#"{"input": "What is 1+2+3? Step 1: 1+2=3. ки\nStep 2: 3+3=7. ки", "label": "What is 1+2+3? Step 1: 1+2=3. +\nStep 2: 3+3=7. -", "task": "GSM8K"}"#,
    fits: |row| {
        is_text(row, "input")
            && is_text(row, "label")
            && row["input"].as_str().is_some_and(|t| t.contains(MARK))
    },
    convert,
};

fn convert(fields: &mut Fields) -> Result<Vec<Body>, Problem> {
    let input = fields.take_string("input")?;
    let label = fields.take_string("label")?;
    let start =
        input.find("Step 1:").ok_or_else(|| Problem::new("input", "steps from `Step 1:` on", "none"))?;
    let prompt = input[..start].trim().to_owned();
    let (mut completions, mut labels) = (Vec::new(), Vec::new());
    let mut rest = label.as_str();
    // Walk both texts together: each piece of `input` up to a marker must be in `label`, with a sign after it.
    let mut pieces = input.split(MARK).peekable();
    while let Some(piece) = pieces.next() {
        let wrong = || {
            Problem::new("label", "the text of `input` with + or - for each marker", format!("`{rest:.40}`"))
        };
        let after = rest.strip_prefix(piece).ok_or_else(wrong)?;
        if pieces.peek().is_none() {
            break;
        }
        let sign = after.chars().next().filter(|c| matches!(c, '+' | '-')).ok_or_else(wrong)?;
        let step = if completions.is_empty() { piece.get(start..).unwrap_or("") } else { piece };
        completions.push(step.trim().to_owned());
        labels.push(f64::from(u8::from(sign == '+')));
        rest = &after[1..];
    }
    check_lengths(&completions, &labels)?;
    Ok(vec![Body::Stepwise { prompt, completions, labels }])
}
