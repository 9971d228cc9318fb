//! Reasoning and answer stand in their tags, once and in order.
//!
//! With its defaults this is TRL's `think_format_reward`: the reply starts with `<think>`, has no second one, and has a
//! `</think>`. Beyond that: the opening tag may have been written by the prompt, an answer tag may be asked for, and
//! `strict` wants every tag exactly once, a reasoning and an answer that are not blank, and nothing outside the tags.

use pt_core::catalogue::{CatalogueError, OptionInfo, parse};
use serde::Deserialize;

use crate::catalogue::{KIND, VerifierInfo};
use crate::{Part, Question, Verdict, Verifier};

const NAME: &str = "format";

/// The catalogue's entry.
pub(crate) const INFO: VerifierInfo = VerifierInfo {
    name: NAME,
    summary: "reasoning and answer stand in their tags",
    reads: "nothing of the row",
    options: &[
        OptionInfo {
            name: "think_tag",
            kind: "text",
            default: "\"think\"",
            doc: "the name of the reasoning's tag; empty: none is wanted",
        },
        OptionInfo {
            name: "answer_tag",
            kind: "text",
            default: "\"\"",
            doc: "the name of a tag that must hold the answer, after the reasoning; empty: none is wanted",
        },
        OptionInfo {
            name: "prompt_opens",
            kind: "bool",
            default: "false",
            doc: "whether the prompt ends with the opening tag of the reasoning, so that the reply has none",
        },
        OptionInfo {
            name: "strict",
            kind: "bool",
            default: "false",
            doc: "whether every tag stands once, nothing in them is blank and nothing is outside",
        },
        OptionInfo {
            name: "partial",
            kind: "bool",
            default: "false",
            doc: "whether the score is the share of what is right, rather than 1 or 0",
        },
    ],
    examples: include_str!("format.md"),
    build: |options| Ok(Box::new(parse::<Format>(KIND, NAME, options)?.checked()?)),
};

/// Tags around reasoning and answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Format {
    /// The name of the reasoning's tag.
    pub think_tag: String,
    /// The name of the answer's tag.
    pub answer_tag: String,
    /// Whether the prompt ends with the opening tag of the reasoning.
    pub prompt_opens: bool,
    /// Whether every tag stands once, nothing in them is blank and nothing is outside.
    pub strict: bool,
    /// Whether the score is the share of what is right.
    pub partial: bool,
}

impl Default for Format {
    fn default() -> Self {
        let (think_tag, answer_tag) = ("think".to_owned(), String::new());
        Format { think_tag, answer_tag, prompt_opens: false, strict: false, partial: false }
    }
}

impl Format {
    fn checked(self) -> Result<Format, CatalogueError> {
        let is_name = |tag: &str| tag.chars().all(|c| c.is_alphanumeric() || "_-|".contains(c));
        let problem = if self.think_tag.is_empty() && self.answer_tag.is_empty() {
            "`think_tag` and `answer_tag` are both empty, so nothing would be looked at"
        } else if !is_name(&self.think_tag) || !is_name(&self.answer_tag) {
            "a tag has other characters than letters, digits, `_`, `-`; write `think`, not `<think>`"
        } else {
            return Ok(self);
        };
        Err(CatalogueError::Option { kind: KIND, name: NAME.to_owned(), problem: problem.to_owned() })
    }

    /// What is asked for, with whether it holds.
    fn demands(&self, reply: &str) -> Vec<(String, bool)> {
        let mut demands = Vec::new();
        let mut demand = |what: String, holds: bool| demands.push((what, holds));
        let mut rest = reply;
        let tags = |tag: &str| (format!("<{tag}>"), format!("</{tag}>"));
        if !self.think_tag.is_empty() {
            let (open, close) = tags(&self.think_tag);
            let body = match self.prompt_opens {
                true => Some(reply),
                false if self.strict => reply.trim_start().strip_prefix(open.as_str()),
                false => reply.strip_prefix(open.as_str()),
            };
            if !self.prompt_opens {
                demand(format!("starts with {open}"), body.is_some());
            }
            let body = body.unwrap_or(reply);
            let what = if self.prompt_opens { "has no" } else { "has no second" };
            demand(format!("{what} {open}"), !body.contains(open.as_str()));
            let split = body.split_once(close.as_str());
            demand(format!("has {close}"), split.is_some());
            let (inside, after) = split.unwrap_or(("", body));
            if self.strict {
                demand(format!("has {close} once"), !after.contains(close.as_str()));
                demand("has reasoning".to_owned(), !inside.trim().is_empty());
            }
            rest = after;
        }
        if !self.answer_tag.is_empty() {
            let (open, close) = tags(&self.answer_tag);
            let is_once = |tag: &String| reply.matches(tag.as_str()).count() == 1;
            demand(format!("has {open} and {close} once"), is_once(&open) && is_once(&close));
            let split = rest.split_once(open.as_str());
            let parts = split.and_then(|(before, after)| Some((before, after.split_once(close.as_str())?)));
            demand(format!("has {open} and then {close}, after the reasoning"), parts.is_some());
            let (before, (inside, after)) = parts.unwrap_or(("", ("", "")));
            if self.strict {
                demand("has an answer".to_owned(), !inside.trim().is_empty());
                demand(
                    "has nothing outside the tags".to_owned(),
                    before.trim().is_empty() && after.trim().is_empty(),
                );
            }
        } else if self.strict {
            demand("has an answer".to_owned(), !rest.trim().is_empty());
        }
        demands
    }
}

impl Verifier for Format {
    fn name(&self) -> &'static str {
        NAME
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        let demands = self.demands(question.reply);
        let missed: Vec<&str> =
            demands.iter().filter(|(_, holds)| !holds).map(|(what, _)| what.as_str()).collect();
        let share = (demands.len() - missed.len()) as f64 / demands.len() as f64;
        let score = if self.partial { share } else { share.floor() };
        let reason = match missed.is_empty() {
            true => "the tags are right".to_owned(),
            false => format!("does not hold: {}", missed.join("; ")),
        };
        let part = |(name, holds): (String, bool)| Part { name, score: f64::from(u8::from(holds)) };
        Verdict::scored(score, reason).with_parts(demands.into_iter().map(part).collect())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn tags_are_names() {
        for (options, message) in
            [("think_tag = ''", "both empty"), ("think_tag = '<think>'", "write `think`, not `<think>`")]
        {
            let error = crate::build("format", &options.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
