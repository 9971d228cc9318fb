//! Judging a reply: one small data type per way of checking, kept in the row beside the problem.
//!
//! A score is the fraction of a check's parts that hold, so a reply passes at 1.0 and nothing is
//! gained by luck that is not counted. Most checks have one part. Replies are text from a model:
//! whatever they hold, judging ends, executes nothing and does not panic.

use serde::{Deserialize, Serialize};

use crate::constraint::Constraint;
use crate::mini::Function;
use crate::puzzle::Puzzle;

/// What comes before a final answer, as in GSM8K.
pub const ANSWER_MARK: &str = "####";

/// The judgement of a reply.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Fraction of the check that holds, in `[0, 1]`.
    pub score: f64,
    /// Why, in one sentence.
    pub reason: String,
}

impl Verdict {
    /// Whether everything that was asked holds.
    pub fn passed(&self) -> bool {
        self.score >= 1.0
    }

    fn of(passed: bool, reason: String) -> Verdict {
        Verdict { score: if passed { 1.0 } else { 0.0 }, reason }
    }
}

/// How a reply is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Check {
    /// The final answer is this number (see [`final_answer`]; without a mark, the last number).
    Number {
        /// The right number.
        value: i64,
    },
    /// The final answer is this text, ignoring case, spacing, commas and closing punctuation.
    Text {
        /// The right text.
        text: String,
    },
    /// The first line of the reply has this word and none of the rivals (whole words, any case).
    Mentions {
        /// The word that answers the question.
        word: String,
        /// Words that would be another answer.
        rivals: Vec<String>,
    },
    /// The reply defines a function of one variable that passes all tests; the score is the
    /// fraction passed. Only the [mini-language](crate::mini) is understood.
    Function {
        /// Pairs of input and output.
        tests: Vec<(i64, i64)>,
    },
    /// The reply solves the puzzle, in whatever way.
    Puzzle {
        /// What is to be solved.
        puzzle: Puzzle,
    },
    /// The reply meets all constraints; the score is the fraction met.
    Constraints {
        /// What must hold.
        constraints: Vec<Constraint>,
    },
}

impl Check {
    /// Judges `reply`.
    pub fn judge(&self, reply: &str) -> Verdict {
        match self {
            Check::Number { value } => judge_number(*value, reply),
            Check::Text { text } => judge_text(text, reply),
            Check::Mentions { word, rivals } => judge_mentions(word, rivals, reply),
            Check::Function { tests } => judge_function(tests, reply),
            Check::Puzzle { puzzle } => match puzzle.judge(reply) {
                Ok(()) => Verdict::of(true, "solves the puzzle".to_string()),
                Err(reason) => Verdict::of(false, reason),
            },
            Check::Constraints { constraints } => judge_constraints(constraints, reply),
        }
    }
}

/// The text after the first [`ANSWER_MARK`] to the end of that line, if the reply has a mark.
///
/// The first, as in GSM8K's own grader: what a model writes after its answer neither helps nor
/// hurts, so a second guess is worth nothing.
pub fn final_answer(reply: &str) -> Option<&str> {
    let (_, rest) = reply.split_once(ANSWER_MARK)?;
    Some(rest.trim_start_matches(['#', ' ', '\n']).lines().next().unwrap_or("").trim())
}

fn judge_number(value: i64, reply: &str) -> Verdict {
    let (found, place) = match final_answer(reply) {
        Some(line) => match numbers(line).as_slice() {
            [only] => (*only, "after ####"),
            [] => return Verdict::of(false, format!("no number after ####, expected {value}")),
            _ => return Verdict::of(false, format!("several numbers after ####, expected {value} alone")),
        },
        None => match numbers(reply).last() {
            Some(last) => (*last, "last in the reply (no ####)"),
            None => return Verdict::of(false, format!("no number in the reply, expected {value}")),
        },
    };
    Verdict::of(found == value as f64, format!("found {found} {place}, expected {value}"))
}

/// The numbers of a text: digits with thousands commas and decimals; a minus counts as a sign
/// where no operand stands before it (`10-3` holds 10 and 3, `= -3` holds -3).
fn numbers(text: &str) -> Vec<f64> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if !bytes[at].is_ascii_digit() {
            at += 1;
            continue;
        }
        let start = at;
        let continues = |i: usize| {
            bytes[i].is_ascii_digit()
                || (matches!(bytes[i], b',' | b'.') && bytes.get(i + 1).is_some_and(u8::is_ascii_digit))
        };
        while at < bytes.len() && continues(at) {
            at += 1;
        }
        let negative = start > 0
            && bytes[start - 1] == b'-'
            && !(start > 1 && (bytes[start - 2].is_ascii_alphanumeric() || bytes[start - 2] == b')'));
        // "1.2.3" is no number; it is kept as one that equals nothing.
        let size: f64 = text[start..at].replace(',', "").parse().unwrap_or(f64::NAN);
        found.push(if negative { -size } else { size });
    }
    found
}

fn judge_text(expected: &str, reply: &str) -> Verdict {
    let wanted = normalised(expected);
    let found = match final_answer(reply) {
        Some(line) => normalised(line),
        None => {
            // Without a mark the answer may end a sentence: compare as many last words as it has.
            let last_line = reply.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("");
            let words = normalised(last_line);
            words[words.len().saturating_sub(wanted.len())..].to_vec()
        }
    };
    let reason = format!("found `{}`, expected `{}`", shortened(&found.join(" ")), wanted.join(" "));
    Verdict::of(found == wanted, reason)
}

/// Lower-case words; commas separate, and quotes and closing punctuation go.
fn normalised(text: &str) -> Vec<String> {
    let edge = |c: char| matches!(c, '.' | '!' | '?' | '"' | '\'' | '`' | ':' | ';');
    text.to_lowercase()
        .split(|c: char| c.is_whitespace() || c == ',')
        .map(|word| word.trim_matches(edge).to_string())
        .filter(|word| !word.is_empty())
        .collect()
}

fn judge_mentions(word: &str, rivals: &[String], reply: &str) -> Verdict {
    let line = reply.lines().find(|line| !line.trim().is_empty()).unwrap_or("").to_lowercase();
    let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric()).collect();
    if let Some(rival) = rivals.iter().find(|rival| words.contains(&rival.to_lowercase().as_str())) {
        return Verdict::of(false, format!("says `{rival}`, expected `{word}`"));
    }
    if words.contains(&word.to_lowercase().as_str()) {
        return Verdict::of(true, format!("says `{word}`"));
    }
    Verdict::of(false, format!("`{}` does not say `{word}`", shortened(&line)))
}

fn judge_function(tests: &[(i64, i64)], reply: &str) -> Verdict {
    let function = match Function::parse(reply) {
        Ok(function) => function,
        Err(error) => return Verdict::of(false, format!("not a function: {error}")),
    };
    let failed: Vec<&(i64, i64)> = tests.iter().filter(|(x, y)| function.at(*x) != Ok(*y)).collect();
    let score = (tests.len() - failed.len()) as f64 / tests.len().max(1) as f64;
    let reason = match failed.first() {
        None => format!("passes all {} tests", tests.len()),
        Some((x, y)) => {
            let got = function.at(*x).map_or_else(|error| error.to_string(), |value| value.to_string());
            format!("fails {} of {} tests; f({x}) gives {got}, expected {y}", failed.len(), tests.len())
        }
    };
    Verdict { score, reason }
}

fn judge_constraints(constraints: &[Constraint], reply: &str) -> Verdict {
    let reply = reply.trim();
    if reply.is_empty() {
        return Verdict::of(false, "the reply is empty".to_string());
    }
    let failed: Vec<String> =
        constraints.iter().filter(|c| !c.holds(reply)).map(Constraint::describe).collect();
    let score = (constraints.len() - failed.len()) as f64 / constraints.len().max(1) as f64;
    let reason = match failed.is_empty() {
        true => format!("meets all {} constraints", constraints.len()),
        false => format!("does not hold: {}", failed.join("; ")),
    };
    Verdict { score, reason }
}

/// At most 40 characters, for messages.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        let check = Check::Number { value: -1200 };
        for (reply, passes) in [
            ("#### -1200", true),
            ("it is cold\n####-1,200\n", true),
            ("#### -1200.0 apples", true),
            ("so the answer is -1,200.", true),
            ("#### 1200", false),
            ("#### -1200 or -1300", false),
            ("#### -1300\n#### -1200", false),
            ("#### -1200\nQ: 1 + 1? #### 2", true),
            ("5-1200", false),
            ("#### none", false),
            ("####", false),
            ("", false),
            ("-1200 and then 3", false),
            ("#### -1200.5", false),
            ("#### -1.2.00", false),
        ] {
            assert_eq!(check.judge(reply).passed(), passes, "{reply:?}: {:?}", check.judge(reply));
        }
    }

    #[test]
    fn texts_ignore_case_spacing_and_punctuation() {
        let check = Check::Text { text: "1 3 5".into() };
        for (reply, passes) in [
            ("#### 1 3 5", true),
            ("####  1, 3,  5. ", true),
            ("Sorted: 1 3 5", true),
            ("1 5 3", false),
            ("#### 1 3", false),
            ("#### 1 3 5 7", false),
            ("", false),
        ] {
            assert_eq!(check.judge(reply).passed(), passes, "{reply:?}");
        }
        assert!(Check::Text { text: "<".into() }.judge("#### <").passed());
        assert!(Check::Text { text: "tac".into() }.judge("The word is \"TAC\".").passed());
    }

    #[test]
    fn mentions_want_the_word_and_no_rival() {
        let check = Check::Mentions { word: "red".into(), rivals: vec!["blue".into(), "not".into()] };
        for (reply, passes) in [
            ("The ball is red.", true),
            ("RED", true),
            ("\nRed!\nThe cup is blue.", true),
            ("The ball is red or blue.", false),
            ("The ball is not red.", false),
            ("The ball is bored.", false),
            ("", false),
        ] {
            assert_eq!(check.judge(reply).passed(), passes, "{reply:?}");
        }
    }

    #[test]
    fn functions_score_by_the_tests_they_pass() {
        let check = Check::Function { tests: vec![(1, 3), (2, 5), (0, 1), (-1, -1)] };
        for (reply, score) in [
            ("def f(x): return 2 * x + 1", 1.0),
            ("def f(x): return x + x + 1", 1.0),
            ("def f(x): return 3", 0.25),
            ("def f(x): return 1 // 0", 0.0),
            ("no idea", 0.0),
        ] {
            assert_eq!(check.judge(reply).score, score, "{reply:?}: {:?}", check.judge(reply));
        }
    }

    #[test]
    fn strange_replies_do_not_panic() {
        let checks = [
            Check::Number { value: 3 },
            Check::Text { text: "a b".into() },
            Check::Mentions { word: "red".into(), rivals: vec![] },
            Check::Function { tests: vec![(1, 1)] },
            Check::Constraints { constraints: vec![Constraint::Words { n: 2 }] },
        ];
        let long = "(".repeat(100_000);
        for reply in
            ["é####é", "-", "####", "9".repeat(400).as_str(), long.as_str(), "\u{0}", "return", "lambda"]
        {
            for check in &checks {
                assert!(!check.judge(reply).passed(), "{check:?} {}", shortened(reply));
            }
        }
    }

    #[test]
    fn checks_survive_being_written_down() {
        let check = Check::Function { tests: vec![(1, -3)] };
        let text = serde_json::to_string(&check).unwrap();
        assert_eq!(text, r#"{"kind":"function","tests":[[1,-3]]}"#);
        assert_eq!(serde_json::from_str::<Check>(&text).unwrap(), check);
    }
}
