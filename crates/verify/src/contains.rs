//! The reply has the required texts and none of the forbidden ones.

use pt_core::catalogue::{CatalogueError, OptionInfo, parse};
use serde::Deserialize;
use serde_json::Value;

use crate::catalogue::{KIND, VerifierInfo};
use crate::text::shortened;
use crate::{Part, Question, Verdict, Verifier};

const NAME: &str = "contains";

/// The catalogue's entry.
pub(crate) const INFO: VerifierInfo = VerifierInfo {
    name: NAME,
    summary: "the reply has required texts and no forbidden ones",
    reads: "the gold answer, unless texts are given as options: a text or a list of texts, all required",
    options: &[
        OptionInfo { name: "required", kind: "array of texts", default: "[]", doc: "what must occur" },
        OptionInfo {
            name: "forbidden",
            kind: "array of texts",
            default: "[]",
            doc: "what must not occur; if it does, the score is 0",
        },
        OptionInfo {
            name: "any",
            kind: "bool",
            default: "false",
            doc: "whether one of the required texts is enough",
        },
        OptionInfo {
            name: "ignore_case",
            kind: "bool",
            default: "false",
            doc: "whether upper and lower case are the same",
        },
        OptionInfo {
            name: "whole_words",
            kind: "bool",
            default: "false",
            doc: "whether no letter or digit may stand before or after a text",
        },
        OptionInfo {
            name: "partial",
            kind: "bool",
            default: "false",
            doc: "whether the score is the share of required texts that occur, rather than 1 or 0",
        },
    ],
    examples: include_str!("contains.md"),
    build: |options| Ok(Box::new(parse::<Contains>(KIND, NAME, options)?.checked()?)),
};

/// Texts that must and must not occur.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Contains {
    /// What must occur.
    pub required: Vec<String>,
    /// What must not occur.
    pub forbidden: Vec<String>,
    /// Whether one of the required texts is enough.
    pub any: bool,
    /// Whether upper and lower case are the same.
    pub ignore_case: bool,
    /// Whether no letter or digit may stand before or after a text.
    pub whole_words: bool,
    /// Whether the score is the share of required texts that occur.
    pub partial: bool,
}

impl Contains {
    fn checked(self) -> Result<Contains, CatalogueError> {
        if !self.required.iter().chain(&self.forbidden).any(String::is_empty) {
            return Ok(self);
        }
        let problem =
            "an empty text is in `required` or `forbidden`, and would occur in every reply".to_owned();
        Err(CatalogueError::Option { kind: KIND, name: NAME.to_owned(), problem })
    }

    fn occurs(&self, text: &str, reply: &str) -> bool {
        let text = if self.ignore_case { text.to_lowercase() } else { text.to_owned() };
        let is_free = |(at, found): (usize, &str)| {
            let before = reply[..at].chars().next_back();
            let after = reply[at + found.len()..].chars().next();
            !self.whole_words || ![before, after].into_iter().flatten().any(char::is_alphanumeric)
        };
        reply.match_indices(text.as_str()).any(is_free)
    }
}

/// The required texts of a row.
fn of_gold(gold: Option<&Value>) -> Result<Vec<String>, String> {
    let text = |value: &Value| match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let texts = match gold {
        Some(Value::Array(list)) => list.iter().map(text).collect::<Option<Vec<_>>>(),
        Some(value) => text(value).map(|text| vec![text]),
        None => None,
    };
    texts.filter(|texts| !texts.is_empty()).ok_or_else(|| {
        let gold = gold.map_or("absent".to_owned(), |gold| shortened(&gold.to_string(), 80));
        format!("the gold answer is {gold}, expected a text or a list of texts")
    })
}

impl Verifier for Contains {
    fn name(&self) -> &'static str {
        NAME
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        let required = match self.required.is_empty() && self.forbidden.is_empty() {
            true => of_gold(question.gold),
            false => Ok(self.required.clone()),
        };
        let required = match required {
            Ok(required) => required,
            Err(reason) => return Verdict::skip(reason),
        };
        let reply = if self.ignore_case { question.reply.to_lowercase() } else { question.reply.to_owned() };
        if let Some(text) = self.forbidden.iter().find(|text| self.occurs(text, &reply)) {
            return Verdict::fail(format!("`{text}` occurs and is forbidden"));
        }
        let parts: Vec<Part> = required
            .iter()
            .map(|text| Part { name: text.clone(), score: f64::from(u8::from(self.occurs(text, &reply))) })
            .collect();
        let missing: Vec<&str> = parts.iter().filter(|p| p.score < 1.0).map(|p| p.name.as_str()).collect();
        let n_found = parts.len() - missing.len();
        let share = if parts.is_empty() { 1.0 } else { n_found as f64 / parts.len() as f64 };
        let score = match (self.any, self.partial) {
            (true, _) => f64::from(u8::from(n_found > 0 || parts.is_empty())),
            (false, true) => share,
            (false, false) => share.floor(),
        };
        let reason = match score >= 1.0 {
            true => "what is required occurs, and nothing forbidden".to_owned(),
            false => format!("does not occur: {}", missing.join(", ")),
        };
        Verdict::scored(score, reason).with_parts(parts)
    }
}
