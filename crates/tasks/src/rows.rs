//! Problems as dataset rows, and replies judged from a row alone.
//!
//! Every row has, besides its text, the columns `family`, `level`, `answer` and `check`. `check` is
//! the JSON of a [`Check`] as a string, so that all rows have columns of one type and any tool can
//! carry them.

use serde_json::{Map, Value, json};

use crate::check::{ANSWER_MARK, Check, Verdict};
use crate::error::TaskError;
use crate::families::guess::{self, Play};
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
    /// `prompt`, `chosen` and `rejected` as turns; see [`Replies`].
    Preference,
    /// `messages`: a whole game, played as [`Replies::play`] says, for supervised fine-tuning of what plays in an environment. Of the
    /// family [`guess`] alone; problems of one turn are as in [`Form::Messages`].
    Transcript,
}

impl Form {
    /// The names accepted in a source, in the order of the variants.
    pub const NAMES: &'static [&'static str] =
        &["messages", "prompt_completion", "prompt_only", "preference", "transcript"];

    const ALL: [Form; 5] =
        [Form::Messages, Form::PromptCompletion, Form::PromptOnly, Form::Preference, Form::Transcript];

    /// The form of that name.
    pub fn from_name(name: &str) -> Option<Form> {
        Form::ALL.into_iter().find(|form| form.name() == name)
    }

    /// The name of this form.
    pub fn name(self) -> &'static str {
        Form::NAMES[self as usize]
    }
}

/// A way to answer a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The worked solution.
    Worked,
    /// The final answer alone, with no step shown; as right as the worked one. Where nothing is worked, the two are the same.
    Direct,
    /// A plausible reply that fails the check.
    Wrong,
}

impl Reply {
    /// The names accepted in a source, in the order of the variants.
    pub const NAMES: &'static [&'static str] = &["worked", "direct", "wrong"];

    /// The reply of that name.
    pub fn from_name(name: &str) -> Option<Reply> {
        [Reply::Worked, Reply::Direct, Reply::Wrong].into_iter().find(|reply| reply.name() == name)
    }

    /// The name of this reply.
    pub fn name(self) -> &'static str {
        Reply::NAMES[self as usize]
    }

    /// The reply to a problem, as text.
    pub fn to(self, problem: &Problem) -> String {
        match self {
            Reply::Worked => problem.solution.clone(),
            Reply::Direct if problem.solution.contains(ANSWER_MARK) => {
                format!("{ANSWER_MARK} {}", problem.answer)
            }
            Reply::Direct => problem.answer.clone(),
            Reply::Wrong => problem.wrong.clone(),
        }
    }
}

/// Turns of a game where nothing else is said, as an environment's `max_turns`.
pub const DEFAULT_TURNS: usize = 8;

/// Which replies a row shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replies {
    /// The reply that is taught, or preferred.
    pub reply: Reply,
    /// The one that is not preferred, in a [`Form::Preference`].
    pub rejected: Reply,
    /// How a game is played, in a [`Form::Transcript`].
    pub play: Play,
    /// The most guesses of a game there.
    pub n_turns: usize,
}

impl Default for Replies {
    fn default() -> Self {
        Replies { reply: Reply::Worked, rejected: Reply::Wrong, play: Play::Halving, n_turns: DEFAULT_TURNS }
    }
}

/// The problem as a row of that form, with the usual [`Replies`].
pub fn row(problem: &Problem, form: Form) -> Row {
    row_with(problem, form, Replies::default())
}

/// The problem as a row of that form, with these replies.
pub fn row_with(problem: &Problem, form: Form, replies: Replies) -> Row {
    let user = || json!({"role": "user", "content": problem.prompt});
    let assistant = |reply: Reply| json!({"role": "assistant", "content": reply.to(problem)});
    let mut row = match form {
        Form::Transcript if problem.family == guess::NAME => {
            Row::from_iter([("messages".to_string(), game(problem, replies))])
        }
        Form::Messages | Form::Transcript => {
            Row::from_iter([("messages".to_string(), json!([user(), assistant(replies.reply)]))])
        }
        Form::PromptCompletion => Row::from_iter([
            ("prompt".to_string(), json!(problem.prompt)),
            ("completion".to_string(), json!(replies.reply.to(problem))),
        ]),
        Form::PromptOnly => Row::from_iter([("prompt".to_string(), json!([user()]))]),
        Form::Preference => Row::from_iter([
            ("prompt".to_string(), json!([user()])),
            ("chosen".to_string(), json!([assistant(replies.reply)])),
            ("rejected".to_string(), json!([assistant(replies.rejected)])),
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

/// A whole game as messages, the prompt first.
fn game(problem: &Problem, replies: Replies) -> Value {
    let turns = guess::transcript(problem, replies.play, replies.n_turns);
    let said =
        std::iter::once(problem.prompt.clone()).chain(turns).zip(["user", "assistant"].into_iter().cycle());
    said.map(|(text, role)| json!({"role": role, "content": text})).collect()
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
            (Form::Transcript, vec!["messages"]),
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
    fn a_game_is_one_conversation() {
        let p = problem("guess", 3, 1, Split::Train, 0).unwrap();
        let replies = Replies { n_turns: 2, ..Replies::default() };
        let said = |role: &str, text: &str| json!({"role": role, "content": text});
        let expected = [
            said("user", &p.prompt),
            said("assistant", "8"),
            said("user", "Higher."),
            said("assistant", "12"),
        ];
        assert_eq!(row_with(&p, Form::Transcript, replies)["messages"], json!(expected));
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
    fn rows_show_the_replies_that_were_asked_for() {
        let p = problem("sum", 4, 1, Split::Train, 0).unwrap();
        let text = |row: &Row, column: &str| row[column][0]["content"].as_str().unwrap().to_owned();
        for (reply, expected) in [
            (Reply::Worked, p.solution.as_str()),
            (Reply::Direct, "#### 136"),
            (Reply::Wrong, p.wrong.as_str()),
        ] {
            let taught = row_with(&p, Form::Messages, Replies { reply, ..Replies::default() });
            assert_eq!(taught["messages"][1]["content"], expected);
            let pair = Replies { rejected: reply, ..Replies::default() };
            assert_eq!(text(&row_with(&p, Form::Preference, pair), "rejected"), expected);
            assert_eq!(Reply::from_name(reply.name()), Some(reply));
        }
    }

    #[test]
    fn direct_replies_are_right_and_hold_no_working() {
        for (family, level) in all_levels() {
            for index in 0..20 {
                let p = draw(family, level, 2, Split::Train, index);
                let direct = Reply::Direct.to(&p);
                assert!(p.check(&direct).passed(), "{} {level}: {direct} to {}", p.family, p.prompt);
                assert!(!p.shows_working(&direct), "{direct}");
            }
        }
    }

    #[test]
    fn working_is_shown_where_there_is_some() {
        for (family, level, expected) in
            [("sum", 4, true), ("letters", 4, true), ("digits", 4, false), ("chat", 2, false)]
        {
            let p = problem(family, level, 1, Split::Train, 0).unwrap();
            assert_eq!(p.shows_working(&p.solution), expected, "{}", p.solution);
            assert!(!p.shows_working("#### 7") && !p.shows_working("no mark"));
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
