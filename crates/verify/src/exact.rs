//! The reply is the gold answer, after trimming and, if asked for, without regard to case.

use pt_core::catalogue::{OptionInfo, parse};
use serde::Deserialize;
use serde_json::Value;

use crate::catalogue::{KIND, VerifierInfo};
use crate::{Question, Verdict, Verifier};

const NAME: &str = "exact";

/// The catalogue's entry.
pub(crate) const INFO: VerifierInfo = VerifierInfo {
    name: NAME,
    summary: "the reply equals the gold answer",
    reads: "the gold answer: a text or a number",
    options: &[OptionInfo {
        name: "ignore_case",
        kind: "bool",
        default: "false",
        doc: "whether upper and lower case are the same",
    }],
    examples: include_str!("exact.md"),
    build: |options| Ok(Box::new(parse::<Exact>(KIND, NAME, options)?)),
};

/// Equality of texts.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Exact {
    /// Whether upper and lower case are the same.
    pub ignore_case: bool,
}

impl Verifier for Exact {
    fn name(&self) -> &'static str {
        NAME
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        let gold = match question.gold {
            Some(Value::String(text)) => text.trim().to_owned(),
            Some(Value::Number(number)) => number.to_string(),
            other => {
                return Verdict::skip(format!("the gold answer is {other:?}, expected a text or a number"));
            }
        };
        let fold = |text: &str| if self.ignore_case { text.to_lowercase() } else { text.to_owned() };
        match fold(question.reply.trim()) == fold(&gold) {
            true => Verdict::pass("equal"),
            false => Verdict::fail(format!("expected exactly `{gold}`")),
        }
    }
}
