//! Problems as dataset rows, and replies judged from a row alone.
//!
//! Every row has, besides its text, the columns `family`, `level`, `answer` and `check`. `check` is
//! the JSON of a [`Check`] as a string, so that all rows have columns of one type and any tool can
//! carry them.

use serde_json::{Map, Value, json};

use crate::check::{Check, Verdict};
use crate::error::TaskError;
use crate::problem::Problem;

/// A row of a dataset.
pub type Row = Map<String, Value>;

/// The layout of a row's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `messages`: a user turn and an assistant turn, for supervised fine-tuning.
    Messages,
    /// `prompt` and `completion` as plain text.
    PromptCompletion,
    /// `prompt` as a list of one user turn, for reinforcement learning and evaluation.
    PromptOnly,
    /// `prompt`, `chosen` (the solution) and `rejected` (a wrong reply) as turns.
    Preference,
}

impl Form {
    /// The names accepted in a source, in the order of the variants.
    pub const NAMES: &'static [&'static str] =
        &["messages", "prompt_completion", "prompt_only", "preference"];

    const ALL: [Form; 4] = [Form::Messages, Form::PromptCompletion, Form::PromptOnly, Form::Preference];

    /// The form of that name.
    pub fn from_name(name: &str) -> Option<Form> {
        Form::ALL.into_iter().find(|form| form.name() == name)
    }

    /// The name of this form.
    pub fn name(self) -> &'static str {
        Form::NAMES[self as usize]
    }
}

/// The problem as a row of that form.
pub fn row(problem: &Problem, form: Form) -> Row {
    let user = || json!({"role": "user", "content": problem.prompt});
    let assistant = |text: &str| json!({"role": "assistant", "content": text});
    let mut row = match form {
        Form::Messages => {
            Row::from_iter([("messages".to_string(), json!([user(), assistant(&problem.solution)]))])
        }
        Form::PromptCompletion => Row::from_iter([
            ("prompt".to_string(), json!(problem.prompt)),
            ("completion".to_string(), json!(problem.solution)),
        ]),
        Form::PromptOnly => Row::from_iter([("prompt".to_string(), json!([user()]))]),
        Form::Preference => Row::from_iter([
            ("prompt".to_string(), json!([user()])),
            ("chosen".to_string(), json!([assistant(&problem.solution)])),
            ("rejected".to_string(), json!([assistant(&problem.wrong)])),
        ]),
    };
    let check = serde_json::to_string(&problem.check).expect("a check is plain data");
    for (name, value) in [
        ("family", json!(problem.family)),
        ("level", json!(problem.level)),
        ("answer", json!(problem.answer)),
        ("check", json!(check)),
    ] {
        row.insert(name.to_string(), value);
    }
    row
}

/// [`row`] as conversation turns, for supervised fine-tuning.
pub fn sft_row(problem: &Problem) -> Row {
    row(problem, Form::Messages)
}

/// Judges a reply with the `check` column of a row, for rewards and evaluation from files.
///
/// # Errors
/// If the column is missing or is not a check.
pub fn check_row(row: &Row, reply: &str) -> Result<Verdict, TaskError> {
    let bad = |reason: String| TaskError::BadCheck { reason };
    match row.get("check") {
        Some(Value::String(text)) => {
            let check: Check = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
            Ok(check.judge(reply))
        }
        Some(other) => Err(bad(format!("it is `{other}`, expected a string"))),
        None => Err(bad("it is absent".to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Split, all_levels, draw, problem};

    #[test]
    fn rows_have_the_documented_columns() {
        let p = problem("sum", 1, 1, Split::Train, 0).unwrap();
        for (form, columns) in [
            (Form::Messages, vec!["messages"]),
            (Form::PromptCompletion, vec!["prompt", "completion"]),
            (Form::PromptOnly, vec!["prompt"]),
            (Form::Preference, vec!["prompt", "chosen", "rejected"]),
        ] {
            let expected: Vec<&str> =
                columns.into_iter().chain(["family", "level", "answer", "check"]).collect();
            let row = row(&p, form);
            assert_eq!(row.keys().collect::<Vec<_>>(), expected);
            assert_eq!(Form::from_name(form.name()), Some(form));
        }
        let expected = json!([
            {"role": "user", "content": p.prompt},
            {"role": "assistant", "content": p.solution},
        ]);
        assert_eq!(sft_row(&p)["messages"], expected);
    }

    #[test]
    fn a_row_judges_as_its_problem_does() {
        for (family, level) in all_levels() {
            for index in 0..20 {
                let p = draw(family, level, 2, Split::Train, index);
                let row = row(&p, Form::PromptOnly);
                for reply in [&p.solution, &p.wrong] {
                    assert_eq!(check_row(&row, reply).unwrap(), p.check(reply));
                }
            }
        }
    }

    #[test]
    fn rows_without_a_check_say_so() {
        for (row, message) in [
            (json!({}), "it is absent"),
            (json!({"check": 3}), "it is `3`, expected a string"),
            (json!({"check": "{\"kind\":\"numbr\"}"}), "unknown variant `numbr`"),
        ] {
            let Value::Object(row) = row else { unreachable!() };
            let error = check_row(&row, "7").unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
