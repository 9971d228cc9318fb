//! A problem and its solution (MATH), as plain text. A short `answer` beside them is kept as an extra.

use super::Layout;
use super::fields::is_text;
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "problem_solution",
    summary: "problem and solution texts (MATH)",
    columns: &["problem", "solution"],
    optional: &["answer"],
    example: r#"{"problem": "What is $1+2$?", "solution": "It is $\\boxed{3}$.", "level": "Level 1"}"#,
    fits: |row| is_text(row, "problem") && is_text(row, "solution"),
    convert: |fields| {
        let prompt = Content::Text(fields.take_string("problem")?);
        let completion = Content::Text(fields.take_string("solution")?);
        Ok(vec![Body::PromptCompletion { prompt, completion }])
    },
};
