//! A programming task with a solution and tests (MBPP). Tests stay as extra columns for the verifier.

use super::Layout;
use super::fields::{is_text, strings};
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "code_tests",
    summary: "task text, code, and test_list (MBPP)",
    columns: &["text", "code", "test_list"],
    optional: &[],
    example: r#"{"text": "Write a function that adds one.", "code": "def f(x): return x + 1", "task_id": 1, "test_setup_code": "", "test_list": ["assert f(1) == 2"]}"#,
    fits: |row| is_text(row, "text") && is_text(row, "code") && strings(&row["test_list"]).is_some(),
    convert: |fields| {
        let prompt = Content::Text(fields.take_string("text")?);
        let completion = Content::Text(fields.take_string("code")?);
        Ok(vec![Body::PromptCompletion { prompt, completion }])
    },
};
