//! Takes columns out of a row with their types checked; what is left is extra.

use serde_json::Value;

use crate::message::{Message, Problem, parse_messages};
use crate::read::kind;
use crate::record::Content;
use crate::row::Columns;

/// The column of soft labels, as `posttrain feedback` writes it.
const SOFT_LABEL: &str = "soft_label";

/// A row being converted.
pub(crate) struct Fields {
    columns: Columns,
}

impl Fields {
    pub(crate) fn new(columns: Columns) -> Self {
        Fields { columns }
    }

    pub(crate) fn into_extra(self) -> Columns {
        self.columns
    }

    /// Keeps `value` as an extra column, unless the row has one of that name.
    pub(crate) fn keep(&mut self, name: &str, value: Value) {
        self.columns.entry(name).or_insert(value);
    }

    /// Looks at a column that stays in the row.
    pub(crate) fn peek(&self, name: &str) -> Option<&Value> {
        self.columns.get(name)
    }

    /// Any value; absent is an error.
    pub(crate) fn take(&mut self, name: &str) -> Result<Value, Problem> {
        self.columns.shift_remove(name).ok_or_else(|| Problem::new(name, "a value", "no such column"))
    }

    pub(crate) fn take_optional(&mut self, name: &str) -> Option<Value> {
        self.columns.shift_remove(name)
    }

    pub(crate) fn take_string(&mut self, name: &str) -> Result<String, Problem> {
        match self.take(name)? {
            Value::String(text) => Ok(text),
            other => Err(Problem::new(name, "text", kind(&other))),
        }
    }

    /// Text, or `None` when absent or empty.
    pub(crate) fn take_text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        match self.take_optional(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok((!text.is_empty()).then_some(text)),
            Some(other) => Err(Problem::new(name, "text", kind(&other))),
        }
    }

    /// A boolean, also written 0/1 or true/false.
    pub(crate) fn take_bool(&mut self, name: &str) -> Result<bool, Problem> {
        let value = self.take(name)?;
        as_bool(&value).ok_or_else(|| Problem::new(name, "true or false", value.to_string()))
    }

    /// Text or messages.
    pub(crate) fn take_content(&mut self, name: &str) -> Result<Content, Problem> {
        match self.take(name)? {
            Value::String(text) => Ok(Content::Text(text)),
            value @ Value::Array(_) => parse_messages(&value, name).map(Content::Messages),
            other => Err(Problem::new(name, "text or a list of messages", kind(&other))),
        }
    }

    pub(crate) fn take_messages(&mut self, name: &str) -> Result<Vec<Message>, Problem> {
        parse_messages(&self.take(name)?, name)
    }

    /// A conversation with the `system` column, if any, put before it.
    pub(crate) fn take_conversation(&mut self, name: &str) -> Result<Vec<Message>, Problem> {
        let mut messages = self.take_messages(name)?;
        if let Some(system) = self.take_text("system")? {
            if messages[0].role == "system" {
                return Err(Problem::new(
                    "system",
                    "no system column beside a conversation with a system message",
                    "both",
                ));
            }
            messages.insert(0, Message::new("system", system));
        }
        Ok(messages)
    }

    /// A list of strings.
    pub(crate) fn take_strings(&mut self, name: &str) -> Result<Vec<String>, Problem> {
        let value = self.take(name)?;
        strings(&value).ok_or_else(|| Problem::new(name, "a list of texts", kind(&value)))
    }

    /// An optional number.
    pub(crate) fn take_number(&mut self, name: &str) -> Result<Option<f64>, Problem> {
        match self.take_optional(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(Problem::new(name, "a number", kind(&value))),
            },
        }
    }

    /// How likely the better answer is the better one, where a row says so: a probability.
    pub(crate) fn take_soft_label(&mut self) -> Result<Option<f64>, Problem> {
        let label = self.take_number(SOFT_LABEL)?;
        match label.filter(|label| !(0.0..=1.0).contains(label)) {
            Some(label) => Err(Problem::new(SOFT_LABEL, "a probability from 0 to 1", label.to_string())),
            None => Ok(label),
        }
    }

    /// An optional object, also as JSON text.
    pub(crate) fn take_object(&mut self, name: &str) -> Result<Option<Columns>, Problem> {
        match self.take_optional(name).map(|value| from_text(value, name)).transpose()? {
            None => Ok(None),
            Some(Value::Object(mut object)) => {
                // Parquet writes every key any row has; null ones were not given.
                object.retain(|_, value| !value.is_null());
                Ok((!object.is_empty()).then_some(object))
            }
            Some(other) => Err(Problem::new(name, "an object", kind(&other))),
        }
    }

    /// Tool schemas: a list, or JSON text of one. A bare function is wrapped as `{type, function}`.
    pub(crate) fn take_tools(&mut self) -> Result<Option<Vec<Value>>, Problem> {
        let Some(value) = self.take_optional("tools") else { return Ok(None) };
        if value.as_str().is_some_and(|text| text.trim().is_empty()) {
            return Ok(None);
        }
        let value = from_text(value, "tools")?;
        let Value::Array(tools) = value else {
            return Err(Problem::new("tools", "a list of tool schemas, or JSON text of one", kind(&value)));
        };
        let tools: Result<Vec<Value>, Problem> = tools.into_iter().enumerate().map(wrap_tool).collect();
        tools.map(|tools| (!tools.is_empty()).then_some(tools))
    }

    /// This program reads text only: media columns with something in them are an error.
    pub(crate) fn refuse_media(&mut self) -> Result<(), Problem> {
        for name in ["images", "image", "videos", "video", "audios", "audio"] {
            match self.columns.get(name) {
                None => {}
                Some(Value::Array(items)) if items.is_empty() => {
                    self.columns.shift_remove(name);
                }
                Some(value) => {
                    return Err(Problem::new(name, "nothing (this program reads text only)", kind(value)));
                }
            }
        }
        Ok(())
    }
}

fn wrap_tool((idx, tool): (usize, Value)) -> Result<Value, Problem> {
    match &tool {
        Value::Object(object) if object.contains_key("function") || object.contains_key("type") => Ok(tool),
        Value::Object(object) if object.contains_key("name") => {
            Ok(serde_json::json!({"type": "function", "function": tool}))
        }
        _ => Err(Problem::new(format!("tools[{idx}]"), "an object with `function` or `name`", kind(&tool))),
    }
}

fn from_text(value: Value, name: &str) -> Result<Value, Problem> {
    match value {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| Problem::new(name, "JSON text", format!("text that is not JSON ({error})"))),
        other => Ok(other),
    }
}

/// A boolean, 0/1, or the words.
pub(crate) fn as_bool(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::Number(n) if n.as_f64() == Some(1.0) => Some(true),
        Value::Number(n) if n.as_f64() == Some(0.0) => Some(false),
        Value::String(word) => match word.to_ascii_lowercase().as_str() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// Whether column `name` is text.
pub(crate) fn is_text(row: &Columns, name: &str) -> bool {
    row.get(name).is_some_and(Value::is_string)
}

/// Whether column `name` is a list of messages.
pub(crate) fn is_messages(row: &Columns, name: &str) -> bool {
    row.get(name).is_some_and(crate::message::looks_like_messages)
}

/// Whether column `name` can be a flag.
pub(crate) fn is_bool(row: &Columns, name: &str) -> bool {
    row.get(name).is_some_and(|value| as_bool(value).is_some())
}

/// The strings of a list of strings.
pub(crate) fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

/// Cuts the last message off; it must be the assistant's.
pub(crate) fn split_last(
    mut messages: Vec<Message>,
    column: &str,
) -> Result<(Vec<Message>, Vec<Message>), Problem> {
    match messages.pop() {
        Some(last) if last.role == "assistant" && !messages.is_empty() => Ok((messages, vec![last])),
        last => {
            let found = last.map_or("nothing".to_owned(), |m| {
                format!("{} message(s) ending with `{}`", messages.len() + 1, m.role)
            });
            Err(Problem::new(column, "a prompt and an assistant message at the end", found))
        }
    }
}
