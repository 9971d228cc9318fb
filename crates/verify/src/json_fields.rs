//! Structured extraction: the JSON of the reply has the fields of the gold object, each compared by itself.
//!
//! Objects are entered, so a nested field is `a.b`; an array is one field. The score is the share of fields that are
//! equal, of the gold's fields and, with `forbid_extra`, of those that the gold does not have.

use pt_core::catalogue::{CatalogueError, OptionInfo, parse};
use serde::Deserialize;
use serde_json::Value;

use crate::catalogue::{KIND, VerifierInfo};
use crate::json::{Equality, find_json, gold_json};
use crate::text::shortened;
use crate::{Part, Question, Verdict, Verifier};

const NAME: &str = "json_fields";
/// How many wrong fields a reason names.
const MAX_NAMED: usize = 5;

/// The catalogue's entry.
pub(crate) const INFO: VerifierInfo = VerifierInfo {
    name: NAME,
    summary: "the reply's JSON has the fields of the gold answer, with partial credit",
    reads: "the gold answer: an object, or a text that is one",
    options: &[
        OptionInfo {
            name: "ignore_case",
            kind: "bool",
            default: "false",
            doc: "whether upper and lower case are the same in texts",
        },
        OptionInfo {
            name: "ignore_order",
            kind: "bool",
            default: "false",
            doc: "whether the order of arrays matters not",
        },
        OptionInfo {
            name: "tolerance",
            kind: "number",
            default: "0.0",
            doc: "how far apart numbers may be; not with `ignore_order`",
        },
        OptionInfo {
            name: "forbid_extra",
            kind: "bool",
            default: "false",
            doc: "whether fields that the gold answer lacks cost",
        },
    ],
    examples: include_str!("json_fields.md"),
    build: |options| Ok(Box::new(parse::<JsonFields>(KIND, NAME, options)?.checked()?)),
};

/// Comparison field by field.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JsonFields {
    /// Whether upper and lower case are the same in texts.
    pub ignore_case: bool,
    /// Whether the order of arrays matters not.
    pub ignore_order: bool,
    /// How far apart numbers may be.
    pub tolerance: f64,
    /// Whether fields that the gold answer lacks cost.
    pub forbid_extra: bool,
}

impl JsonFields {
    fn checked(self) -> Result<JsonFields, CatalogueError> {
        let problem = match self.tolerance {
            0.0 => return Ok(self),
            // Nearness is not transitive: which numbers of an array go together would depend on their order.
            found if found > 0.0 && self.ignore_order => {
                format!("`tolerance` is {found} with `ignore_order`; expected 0 there")
            }
            found if found > 0.0 => return Ok(self),
            found => format!("`tolerance` is {found}; expected 0 or more"),
        };
        Err(CatalogueError::Option { kind: KIND, name: NAME.to_owned(), problem })
    }
}

impl Verifier for JsonFields {
    fn name(&self) -> &'static str {
        NAME
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        let gold = match gold_json(question.gold) {
            Ok(gold) if gold.as_object().is_some_and(|fields| !fields.is_empty()) => gold,
            Ok(other) => {
                return Verdict::skip(format!(
                    "the gold answer is {}, expected an object with fields",
                    shortened(&other.to_string(), 80)
                ));
            }
            Err(reason) => return Verdict::skip(reason),
        };
        let Some(found) = find_json(question.reply).filter(Value::is_object) else {
            return Verdict::fail("the reply holds no JSON object");
        };
        let equality = Equality {
            ignore_case: self.ignore_case,
            ignore_order: self.ignore_order,
            tolerance: self.tolerance,
        };
        let (mut parts, mut wrong) = (Vec::new(), Vec::new());
        compare(&equality, "", &gold, Some(&found), &mut parts, &mut wrong);
        if self.forbid_extra {
            extra(&gold, &found, "", &mut parts, &mut wrong);
        }
        let n_right = parts.len() - wrong.len();
        let score = n_right as f64 / parts.len() as f64;
        let mut reason = format!("{n_right} of {} fields are right", parts.len());
        if !wrong.is_empty() {
            let n_more = wrong.len().saturating_sub(MAX_NAMED);
            wrong.truncate(MAX_NAMED);
            reason += &format!("; {}", wrong.join("; "));
            if n_more > 0 {
                reason += &format!("; and {n_more} more");
            }
        }
        Verdict::scored(score, reason).with_parts(parts)
    }
}

fn compare(
    equality: &Equality,
    path: &str,
    gold: &Value,
    found: Option<&Value>,
    parts: &mut Vec<Part>,
    wrong: &mut Vec<String>,
) {
    if let Some(fields) = gold.as_object().filter(|fields| !fields.is_empty()) {
        for (key, value) in fields {
            compare(equality, &joined(path, key), value, found.and_then(|f| f.get(key)), parts, wrong);
        }
        return;
    }
    let is_right = found.is_some_and(|found| equality.holds(gold, found));
    parts.push(Part { name: path.to_owned(), score: f64::from(u8::from(is_right)) });
    if !is_right {
        let found = found.map_or("absent".to_owned(), |found| shortened(&found.to_string(), 60));
        wrong.push(format!("`{path}` is {found}, expected {}", shortened(&gold.to_string(), 60)));
    }
}

/// Fields of `found` that `gold` does not have.
fn extra(gold: &Value, found: &Value, path: &str, parts: &mut Vec<Part>, wrong: &mut Vec<String>) {
    let (Some(gold), Some(found)) = (gold.as_object().filter(|g| !g.is_empty()), found.as_object()) else {
        return;
    };
    for (key, value) in found {
        let place = joined(path, key);
        match gold.get(key) {
            Some(gold) => extra(gold, value, &place, parts, wrong),
            None => {
                wrong.push(format!("`{place}` is not in the gold answer"));
                parts.push(Part { name: place, score: 0.0 });
            }
        }
    }
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests {
    use crate::build;

    #[test]
    fn a_tolerance_is_not_negative_and_wants_an_order() {
        let check = |options: &str, is_accepted: bool| {
            let built = build("json_fields", &options.parse().unwrap());
            assert_eq!(built.is_ok(), is_accepted, "{options}: {built:?}");
        };
        check("tolerance = 0.5", true);
        check("tolerance = 0.0\nignore_order = true", true);
        check("tolerance = 0.5\nignore_order = true", false);
        check("tolerance = -0.5", false);
        check("tolerance = nan", false);
    }
}
