//! The reply matches a regular expression, in linear time.
//!
//! The expression is an option or the gold answer, in the syntax of Rust's `regex`: no look-around, no back-references,
//! and so no reply that takes for ever. If it has a group named `answer`, that group of its last match must be the gold
//! answer.

use pt_core::catalogue::{CatalogueError, OptionInfo, parse};
use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::Value;

use crate::catalogue::{KIND, VerifierInfo};
use crate::text::shortened;
use crate::{Question, Verdict, Verifier};

const NAME: &str = "regex";
/// The group that is compared with the gold answer.
const GROUP: &str = "answer";
/// The largest compiled expression, in bytes.
const MAX_COMPILED_BYTES: usize = 4 << 20;

/// The catalogue's entry.
pub(crate) const INFO: VerifierInfo = VerifierInfo {
    name: NAME,
    summary: "the reply matches a regular expression",
    reads: "the gold answer: the expression, or what its group `answer` must be",
    options: &[
        OptionInfo {
            name: "pattern",
            kind: "text",
            default: "\"\"",
            doc: "the expression; empty: the gold answer of each row",
        },
        OptionInfo {
            name: "full",
            kind: "bool",
            default: "false",
            doc: "whether the whole reply must match, but for space around it",
        },
        OptionInfo {
            name: "ignore_case",
            kind: "bool",
            default: "false",
            doc: "whether upper and lower case are the same",
        },
        OptionInfo {
            name: "dot_all",
            kind: "bool",
            default: "true",
            doc: "whether `.` also matches a line's end",
        },
        OptionInfo {
            name: "forbid",
            kind: "bool",
            default: "false",
            doc: "whether a match fails and none passes",
        },
    ],
    examples: include_str!("regex.md"),
    build: |options| Ok(Box::new(Matches::new(parse::<Options>(KIND, NAME, options)?)?)),
};

/// How the expression is read.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    pattern: String,
    full: bool,
    ignore_case: bool,
    dot_all: bool,
    forbid: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { pattern: String::new(), full: false, ignore_case: false, dot_all: true, forbid: false }
    }
}

/// A match with an expression.
#[derive(Debug)]
pub struct Matches {
    options: Options,
    /// The expression of all rows, if there is one.
    pattern: Option<Regex>,
}

impl Matches {
    fn new(options: Options) -> Result<Matches, CatalogueError> {
        let refuse = |problem: String| CatalogueError::Option { kind: KIND, name: NAME.to_owned(), problem };
        let pattern = match options.pattern.as_str() {
            "" => None,
            text => Some(compile(text, &options).map_err(|e| refuse(format!("`pattern`: {e}")))?),
        };
        if options.forbid && pattern.as_ref().is_some_and(has_group) {
            return Err(refuse(format!("`forbid` does not go with a group `{GROUP}`")));
        }
        Ok(Matches { options, pattern })
    }

    fn judge(&self, pattern: &Regex, question: &Question<'_>) -> Verdict {
        let reply = question.reply.trim();
        if has_group(pattern) && self.pattern.is_some() {
            return judge_group(pattern, question.gold, reply);
        }
        let found = pattern.find(reply);
        match (found, self.options.forbid) {
            (Some(found), false) => Verdict::pass(format!("`{}` matches", shortened(found.as_str(), 60))),
            (Some(found), true) => Verdict::fail(format!("`{}` matches", shortened(found.as_str(), 60))),
            (None, false) => Verdict::fail(format!("nothing matches `{pattern}`")),
            (None, true) => Verdict::pass(format!("nothing matches `{pattern}`")),
        }
    }
}

fn has_group(pattern: &Regex) -> bool {
    pattern.capture_names().flatten().any(|name| name == GROUP)
}

fn compile(text: &str, options: &Options) -> Result<Regex, String> {
    let anchored = if options.full { format!(r"\A(?:{text})\z") } else { text.to_owned() };
    RegexBuilder::new(&anchored)
        .case_insensitive(options.ignore_case)
        .dot_matches_new_line(options.dot_all)
        .size_limit(MAX_COMPILED_BYTES)
        .build()
        .map_err(|e| format!("not an expression of the linear-time kind: {e}"))
}

fn judge_group(pattern: &Regex, gold: Option<&Value>, reply: &str) -> Verdict {
    let gold = match gold {
        Some(Value::String(text)) => text.trim().to_owned(),
        Some(Value::Number(number)) => number.to_string(),
        _ => return Verdict::skip("the gold answer is neither a text nor a number"),
    };
    match pattern.captures_iter(reply).last().and_then(|captures| captures.name(GROUP)) {
        None => Verdict::fail(format!("nothing matches `{pattern}`")),
        Some(found) if found.as_str().trim() == gold => Verdict::pass("equal"),
        Some(found) => {
            Verdict::fail(format!("found `{}`, expected `{gold}`", shortened(found.as_str().trim(), 60)))
        }
    }
}

impl Verifier for Matches {
    fn name(&self) -> &'static str {
        NAME
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        if let Some(pattern) = &self.pattern {
            return self.judge(pattern, question);
        }
        let Some(text) = question.gold.and_then(Value::as_str).filter(|text| !text.is_empty()) else {
            return Verdict::skip("there is no `pattern`, and the gold answer is no text");
        };
        match compile(text, &self.options) {
            Ok(pattern) => self.judge(&pattern, question),
            Err(reason) => Verdict::skip(format!("the gold answer: {reason}")),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn expressions_that_cannot_be_used_are_refused() {
        for (options, message) in [
            ("pattern = '('", "`pattern`"),
            ("pattern = '(?=a)'", "linear-time"),
            (r"pattern = '(a)\1'", "linear-time"),
            ("pattern = '((a{1000}){1000}){1000}'", "linear-time"),
            ("pattern = '(?<answer>a)'\nforbid = true", "`forbid`"),
        ] {
            let error = crate::build("regex", &options.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
