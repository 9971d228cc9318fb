//! The reply is JSON that a JSON Schema accepts.
//!
//! The schema is an option, or else the gold answer. Drafts 4 to 2020-12 are understood. A reference to another
//! document is refused: nothing is read from the network or from files. Patterns are of the linear-time kind.

use jsonschema::{PatternOptions, Validator};
use pt_core::catalogue::{CatalogueError, OptionInfo, parse};
use serde::Deserialize;
use serde_json::Value;

use crate::catalogue::{KIND, VerifierInfo};
use crate::json::{find_json, gold_json};
use crate::text::shortened;
use crate::{Question, Verdict, Verifier};

const NAME: &str = "json_schema";
/// How many violations a reason names.
const MAX_NAMED: usize = 3;

/// The catalogue's entry.
pub(crate) const INFO: VerifierInfo = VerifierInfo {
    name: NAME,
    summary: "the reply is JSON that a JSON Schema accepts",
    reads: "the schema in the gold answer, unless it is an option",
    options: &[
        OptionInfo {
            name: "schema",
            kind: "text",
            default: "\"\"",
            doc: "the schema as JSON; empty: the gold answer of each row",
        },
        OptionInfo {
            name: "strict",
            kind: "bool",
            default: "false",
            doc: "whether the whole reply must be JSON, rather than hold it in a code fence or in text",
        },
    ],
    examples: include_str!("json_schema.md"),
    build: |options| Ok(Box::new(JsonSchema::new(&parse::<Options>(KIND, NAME, options)?)?)),
};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    schema: String,
    strict: bool,
}

/// Validity under a schema.
#[derive(Debug)]
pub struct JsonSchema {
    /// The schema of all rows, if there is one.
    validator: Option<Validator>,
    strict: bool,
}

impl JsonSchema {
    fn new(options: &Options) -> Result<JsonSchema, CatalogueError> {
        let refuse = |problem: String| CatalogueError::Option {
            kind: KIND,
            name: NAME.to_owned(),
            problem: format!("`schema`: {problem}"),
        };
        let validator = match options.schema.trim() {
            "" => None,
            text => {
                let schema = serde_json::from_str(text).map_err(|e| refuse(format!("not JSON: {e}")))?;
                Some(compile(&schema).map_err(refuse)?)
            }
        };
        Ok(JsonSchema { validator, strict: options.strict })
    }
}

fn compile(schema: &Value) -> Result<Validator, String> {
    jsonschema::options()
        .with_pattern_options(PatternOptions::regex())
        .build(schema)
        .map_err(|e| format!("not a JSON Schema that can be used: {e}"))
}

impl Verifier for JsonSchema {
    fn name(&self) -> &'static str {
        NAME
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        match &self.validator {
            Some(validator) => self.judge(validator, question.reply),
            None => match gold_json(question.gold).and_then(|schema| compile(&schema)) {
                Ok(validator) => self.judge(&validator, question.reply),
                Err(reason) => Verdict::skip(reason),
            },
        }
    }
}

impl JsonSchema {
    fn judge(&self, validator: &Validator, reply: &str) -> Verdict {
        let value = match self.strict {
            true => serde_json::from_str(reply.trim()).ok(),
            // A schema may ask for a number or a text, which only a whole reply can be.
            false => find_json(reply).or_else(|| serde_json::from_str(reply.trim()).ok()),
        };
        let Some(value) = value else {
            return Verdict::fail(if self.strict {
                "the reply is not JSON"
            } else {
                "the reply holds no JSON"
            });
        };
        let named: Vec<String> = validator
            .iter_errors(&value)
            .take(MAX_NAMED)
            .map(|error| {
                let place = error.instance_path().to_string();
                let place = if place.is_empty() { "the whole".to_owned() } else { place };
                format!("{place}: {}", shortened(&error.to_string(), 160))
            })
            .collect();
        match named.is_empty() {
            true => Verdict::pass("the schema accepts it"),
            false => Verdict::fail(named.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn schemas_that_cannot_be_used_are_refused() {
        for (schema, message) in [
            ("{", "not JSON"),
            (r#"{"type": "thing"}"#, "not a JSON Schema"),
            (r#"{"pattern": "(?=a)"}"#, "not a JSON Schema"),
            (r#"{"$ref": "http://example.com/schema.json"}"#, "not a JSON Schema"),
            (r#"{"$ref": "file:///etc/passwd"}"#, "not a JSON Schema"),
        ] {
            let mut options = toml::Table::new();
            options.insert("schema".to_owned(), schema.into());
            let error = crate::build("json_schema", &options).unwrap_err().to_string();
            assert!(error.contains(message), "{schema}: {error}");
        }
    }
}
