//! A question and its worked answer (GSM8K and sets like it), as plain text.
//!
//! Where the answer has GSM8K's `#### 42` line, the number without its thousands commas also becomes the
//! extra column `ground_truth`.

use super::Layout;
use super::fields::is_text;
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "question_answer",
    summary: "question and answer texts (GSM8K); `#### n` also becomes ground_truth",
    columns: &["question", "answer"],
    optional: &[],
    example: r#"{"question": "Ann has 2 apples and buys 1,000. How many has she?", "answer": "She has 2 + 1000 = <<2+1000=1002>>1002.\n#### 1,002"}"#,
    fits: |row| is_text(row, "question") && is_text(row, "answer"),
    convert: |fields| {
        let prompt = Content::Text(fields.take_string("question")?);
        let answer = fields.take_string("answer")?;
        if let Some((_, number)) = answer.rsplit_once("#### ") {
            fields.keep("ground_truth", number.trim().replace(',', "").into());
        }
        Ok(vec![Body::PromptCompletion { prompt, completion: Content::Text(answer) }])
    },
};
