//! JSON as rows need it: a key given twice is an error, and errors carry the line of the file.

use std::fmt;
use std::path::Path;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::DataError;

/// Where a piece of JSON text starts in its file, both from 1.
#[derive(Clone, Copy)]
pub(crate) struct Start {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// Parses `text`, which starts at `start` in `file`.
pub(crate) fn parse(text: &str, file: &Path, start: Start) -> Result<Value, DataError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let parsed = StrictValue.deserialize(&mut deserializer);
    match parsed.and_then(|value| deserializer.end().map(|()| value)) {
        Ok(value) => Ok(value),
        Err(error) => Err(located(text, file, start, &error)),
    }
}

/// The name of a value's type, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn located(text: &str, file: &Path, start: Start, error: &serde_json::Error) -> DataError {
    let (line, column) = (error.line().max(1), error.column().max(1));
    // serde_json appends "at line L column C" of the piece; the file's own place replaces it.
    let full = error.to_string();
    let cause = full.rfind(" at line ").map_or(full.as_str(), |at| &full[..at]);
    DataError::Json {
        file: file.to_owned(),
        line: start.line + line - 1,
        column: if line == 1 { start.column + column - 1 } else { column },
        message: format!("invalid JSON: {cause}{}", advice(text, line, column, cause)),
    }
}

/// What to do about the mistakes that Python's `json` and people make.
fn advice(text: &str, line: usize, column: usize, cause: &str) -> String {
    let text_line = text.lines().nth(line - 1).unwrap_or("");
    // serde_json points at the last byte it read; the offending word may start there or end there.
    let from = floor_char_boundary(text_line, column.saturating_sub(4));
    let near = &text_line[from..floor_char_boundary(text_line, column + 9)];
    let is_literal = ["NaN", "Infinity"].iter().find(|word| near.contains(*word));
    match (is_literal, cause) {
        (Some(word), _) => {
            format!("; `{word}` is not JSON (Python writes it): write null or leave the key out")
        }
        (None, "trailing comma") => "; remove the comma before the closing bracket".to_owned(),
        (None, "trailing characters") => "; JSONL wants exactly one object per line".to_owned(),
        (None, _) if cause.starts_with("EOF") => {
            "; the row is cut off, or it spans several lines (JSONL wants one row per line)".to_owned()
        }
        (None, _) if near.contains('\'') => "; JSON strings take double quotes".to_owned(),
        _ => String::new(),
    }
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Builds a `Value`, refusing duplicate keys at any depth.
struct StrictValue;

impl<'de> DeserializeSeed<'de> for StrictValue {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("number out of range"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(StrictValue)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(de::Error::custom(format_args!("key `{key}` appears twice")));
            }
            let value = access.next_value_seed(StrictValue)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
