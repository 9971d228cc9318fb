//! The fields of a request's body, taken one by one; what is left over at the end is an error.

use serde_json::{Map, Value};

use crate::error::ApiError;

/// Fields of the OpenAI API that change nothing about the answer of a server like this.
const WITHOUT_EFFECT: [&str; 7] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
];

/// A request's fields, or those of an object in it.
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// The object's name and a dot; nothing for the request itself.
    within: String,
}

impl Fields {
    /// The fields of a body.
    pub(crate) fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| ApiError::invalid(format!("the body is not JSON: {error}")))?;
        match value {
            Value::Object(map) => Ok(Fields { map, within: String::new() }),
            other => Err(ApiError::invalid(format!("the body is {}, expected an object", kind(&other)))),
        }
    }

    /// The fields of an object that a request has under `name`.
    pub(crate) fn inside(name: &str, map: Map<String, Value>) -> Fields {
        Fields { map, within: format!("{name}.") }
    }

    fn wrong(&self, name: &str, found: &Value, expected: &str) -> ApiError {
        wrong(&format!("{}{name}", self.within), found, expected)
    }

    /// A field as it is; `null` counts as absent.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Text.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, &other, "text")),
        }
    }

    /// `true` or `false`; absent is `false`.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(self.wrong(name, &other, "true or false")),
        }
    }

    /// A whole number within bounds.
    pub(crate) fn whole(&mut self, name: &str, low: u64, high: u64) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64().filter(|n| (low..=high).contains(n)) {
            Some(n) => Ok(Some(n)),
            None if high == u64::MAX => {
                Err(self.wrong(name, &value, &format!("a whole number, {low} or more")))
            }
            None => Err(self.wrong(name, &value, &format!("a whole number from {low} to {high}"))),
        }
    }

    /// A number within bounds.
    pub(crate) fn number(
        &mut self,
        name: &str,
        expected: &str,
        accepts: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().filter(|number| number.is_finite() && accepts(*number));
        number.map(Some).ok_or_else(|| self.wrong(name, &value, expected))
    }

    /// A list of text, or one text.
    pub(crate) fn texts(&mut self, name: &str) -> Result<Vec<String>, ApiError> {
        let expected = "text or a list of texts, none of them empty";
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) if !text.is_empty() => Ok(vec![text]),
            Some(Value::Array(items)) => {
                let text = |item: &Value| {
                    let text = item.as_str().filter(|text| !text.is_empty());
                    text.map(str::to_owned).ok_or_else(|| self.wrong(name, item, expected))
                };
                items.iter().map(text).collect()
            }
            Some(other) => Err(self.wrong(name, &other, expected)),
        }
    }

    /// A list of token ids.
    pub(crate) fn ids(&mut self, name: &str) -> Result<Vec<u32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(Vec::new()) };
        token_ids(&value).ok_or_else(|| self.wrong(name, &value, "a list of token ids"))
    }

    /// Refuses a field unless it is absent or has one of the values that ask for nothing special.
    pub(crate) fn only(&mut self, name: &str, accepted: &[Value], why: &str) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !accepted.contains(&value) => {
                let name = format!("{}{name}", self.within);
                Err(ApiError::field(&name, format!("`{name}` is {}: {why}", short(&value))))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what nobody took.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        let unknown = |name: &&String| !self.within.is_empty() || !WITHOUT_EFFECT.contains(&name.as_str());
        match self.map.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name).find(unknown) {
            None => Ok(()),
            Some(name) => {
                let name = format!("{}{name}", self.within);
                Err(ApiError::field(&name, format!("this server does not know the field `{name}` here")))
            }
        }
    }
}

/// Token ids in JSON.
pub(crate) fn token_ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

/// A field of the wrong kind or out of range.
pub(crate) fn wrong(name: &str, found: &Value, expected: &str) -> ApiError {
    ApiError::field(name, format!("`{name}` is {}, expected {expected}", short(found)))
}

fn short(value: &Value) -> String {
    const CHARS: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= CHARS { text } else { text.chars().take(CHARS).chain("...".chars()).collect() }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a flag",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
