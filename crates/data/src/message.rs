//! A message of a conversation, from every spelling in use to one.
//!
//! | found | becomes |
//! |---|---|
//! | `role`/`content` (OpenAI, TRL) or `from`/`value` (ShareGPT) | `role`, `content` |
//! | `human`, `gpt`, `observation`, `function` and kin | `user`, `assistant`, `tool` |
//! | role `function_call` with JSON text | `assistant` with `tool_calls` |
//! | a list of parts `text`, `reasoning`, `tool_call` | `content`, `reasoning_content`, `tool_calls` |
//! | `function.arguments` as JSON text | the object itself, which templates print with `tojson` |
//! | `train`, `training`, `weight` | [`Train::Whole`] |
//! | `train_detail`, `training_detail` | [`Train::Spans`] |
//!
//! Keys whose value is null are dropped: Parquet writes every key of a struct. Other keys are kept.

use serde_json::{Value, json};

use crate::read::kind;
use crate::row::Columns;

/// One turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text; `None` only beside `tool_calls`.
    pub content: Option<String>,
    /// Everything else a template may use: `tool_calls`, `name`, `tool_call_id`, `reasoning_content`...
    pub fields: Columns,
    /// Whether the message trains, where the data say so; `None` leaves it to the recipe.
    pub train: Option<Train>,
}

/// What of a message trains.
#[derive(Clone, Debug, PartialEq)]
pub enum Train {
    /// All of it, or nothing.
    Whole(bool),
    /// Parts of its content; what no span covers does not train.
    Spans(Vec<TrainSpan>),
}

/// A stretch of a message's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainSpan {
    /// First character (Unicode code point) of the stretch.
    pub start: usize,
    /// The character after its last. (Axolotl's `end_offset` is the last one: it is one less.)
    pub end: usize,
    /// Whether it trains.
    pub train: bool,
}

impl Message {
    /// A plain message.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Message { role: role.to_owned(), content: Some(content.into()), fields: Columns::new(), train: None }
    }

    /// The message as a chat template sees it: `role`, `content` and the other fields.
    pub fn to_template(&self) -> Value {
        let mut map = Columns::new();
        map.insert("role".to_owned(), self.role.clone().into());
        map.insert("content".to_owned(), self.content.clone().map_or(Value::Null, Value::String));
        map.extend(self.fields.clone());
        Value::Object(map)
    }

    /// The message as canonical data: what the template sees, and the training flags.
    pub fn to_row(&self) -> Value {
        let mut value = self.to_template();
        match &self.train {
            None => {}
            Some(Train::Whole(train)) => value["train"] = json!(train),
            Some(Train::Spans(spans)) => {
                let spans = spans.iter().map(
                    |s| json!({"begin_offset": s.start, "end_offset": s.end as i64 - 1, "train": s.train}),
                );
                value["train_detail"] = spans.collect();
            }
        }
        value
    }
}

/// What is wrong with a value, and where in its column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Problem {
    pub(crate) column: String,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl Problem {
    pub(crate) fn new(
        column: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Problem { column: column.into(), expected: expected.into(), found: found.into() }
    }
}

/// Whether `value` looks like a list of messages in either spelling.
pub(crate) fn looks_like_messages(value: &Value) -> bool {
    value.as_array().is_some_and(|items| !items.is_empty() && items.iter().all(looks_like_message))
}

/// Whether `value` looks like one message.
pub(crate) fn looks_like_message(value: &Value) -> bool {
    let has = |key| value.get(key).is_some_and(Value::is_string);
    has("role") || (has("from") && value.get("value").is_some())
}

/// The messages in `value`; a string is a list of messages as JSON text (CSV has no other way).
pub(crate) fn parse_messages(value: &Value, column: &str) -> Result<Vec<Message>, Problem> {
    let expected = "a list of messages";
    let items = value.as_array().ok_or_else(|| Problem::new(column, expected, kind(value)))?;
    if items.is_empty() {
        return Err(Problem::new(column, "at least one message", "an empty list"));
    }
    items.iter().enumerate().map(|(idx, item)| parse_message(item, &format!("{column}[{idx}]"))).collect()
}

/// The message in `value`.
pub(crate) fn parse_message(value: &Value, column: &str) -> Result<Message, Problem> {
    let object = value.as_object().ok_or_else(|| Problem::new(column, "a message object", kind(value)))?;
    let mut fields: Columns =
        object.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
    let sharegpt = !fields.contains_key("role") && fields.contains_key("from");
    let (role_key, content_key) = if sharegpt { ("from", "value") } else { ("role", "content") };
    let named = match fields.remove(role_key) {
        Some(Value::String(named)) => named,
        Some(other) => return Err(Problem::new(format!("{column}.{role_key}"), "a role name", kind(&other))),
        None => {
            let keys = object.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(Problem::new(column, "the keys `role` and `content` (or `from` and `value`)", keys));
        }
    };
    let role = normal_role(&named).ok_or_else(|| {
        let expected =
            "a role: system, developer, user, assistant, tool, human, gpt, function_call, observation";
        Problem::new(format!("{column}.{role_key}"), expected, format!("`{named}`"))
    })?;
    let content = fields.remove(content_key);
    let train = take_train(&mut fields, column)?;
    let mut message = Message { role: role.to_owned(), content: None, fields, train };
    let at = format!("{column}.{content_key}");
    match content {
        Some(Value::String(text)) if named == "function_call" => add_tool_call(&mut message, &text, &at)?,
        Some(Value::String(text)) => message.content = Some(text),
        Some(Value::Array(parts)) => add_parts(&mut message, &parts, &at)?,
        Some(other) => return Err(Problem::new(at, "text or a list of parts", kind(&other))),
        None => {}
    }
    normalise_tool_calls(&mut message);
    if message.content.is_none() && !message.fields.contains_key("tool_calls") {
        return Err(Problem::new(at, "text (or `tool_calls` beside it)", "nothing"));
    }
    check_spans(&message, column)?;
    Ok(message)
}

fn normal_role(named: &str) -> Option<&'static str> {
    Some(match named.to_ascii_lowercase().as_str() {
        "system" => "system",
        "developer" => "developer",
        "user" | "human" | "prompter" => "user",
        "assistant" | "gpt" | "chatgpt" | "bot" | "model" | "function_call" => "assistant",
        "tool" | "observation" | "function" | "function_response" | "tool_response" | "ipython" => "tool",
        _ => return None,
    })
}

/// Adds one call, or each of a list of calls, written as JSON text.
fn add_tool_call(message: &mut Message, text: &str, column: &str) -> Result<(), Problem> {
    let expected = "JSON text {\"name\": ..., \"arguments\": {...}} or a list of such";
    let parsed: Value =
        serde_json::from_str(text).map_err(|error| Problem::new(column, expected, error.to_string()))?;
    let calls = match parsed {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    let list = message.fields.entry("tool_calls").or_insert_with(|| Value::Array(Vec::new()));
    for call in calls {
        let call =
            if call.get("function").is_some() { call } else { json!({"type": "function", "function": call}) };
        if !call["function"]["name"].is_string() {
            return Err(Problem::new(column, expected, "a call without a name"));
        }
        match list {
            Value::Array(list) => list.push(call),
            other => return Err(Problem::new(column, "`tool_calls` as a list", kind(other))),
        }
    }
    Ok(())
}

fn add_parts(message: &mut Message, parts: &[Value], column: &str) -> Result<(), Problem> {
    for (idx, part) in parts.iter().enumerate() {
        let at = format!("{column}[{idx}]");
        let part_kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
        let keys = ["text", "value", "content", "thinking", "reasoning"];
        let text = part.as_str().or_else(|| keys.iter().find_map(|key| part.get(*key)?.as_str()));
        let Some(text) = text else {
            let expected = "a part with text (this program reads text only)";
            return Err(Problem::new(at, expected, format!("a `{part_kind}` part")));
        };
        match part_kind {
            "text" | "input_text" | "output_text" => message.content.get_or_insert_default().push_str(text),
            "reasoning" | "thinking" => {
                let old = message.fields.get("reasoning_content").and_then(Value::as_str).unwrap_or("");
                let joined = format!("{old}{text}");
                message.fields.insert("reasoning_content".to_owned(), joined.into());
            }
            "tool_call" | "function_call" => add_tool_call(message, text, &at)?,
            other => {
                let expected = "a part of type text, reasoning or tool_call (this program reads text only)";
                return Err(Problem::new(at, expected, format!("`{other}`")));
            }
        }
    }
    Ok(())
}

/// OpenAI writes the arguments as JSON text; templates want the object.
fn normalise_tool_calls(message: &mut Message) {
    let Some(Value::Array(calls)) = message.fields.get_mut("tool_calls") else { return };
    if calls.is_empty() {
        message.fields.remove("tool_calls");
        return;
    }
    for call in calls {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && let Some(Ok(parsed @ Value::Object(_))) = arguments.as_str().map(serde_json::from_str)
        {
            *arguments = parsed;
        }
    }
}

fn take_train(fields: &mut Columns, column: &str) -> Result<Option<Train>, Problem> {
    for key in ["train_detail", "training_detail"] {
        if let Some(value) = fields.remove(key) {
            return parse_spans(&value, &format!("{column}.{key}")).map(|spans| Some(Train::Spans(spans)));
        }
    }
    for key in ["train", "training", "weight"] {
        match fields.remove(key) {
            None => {}
            Some(Value::Bool(train)) => return Ok(Some(Train::Whole(train))),
            Some(Value::Number(n)) if n.as_f64() == Some(0.0) => return Ok(Some(Train::Whole(false))),
            Some(Value::Number(n)) if n.as_f64() == Some(1.0) => return Ok(Some(Train::Whole(true))),
            Some(other) => {
                return Err(Problem::new(
                    format!("{column}.{key}"),
                    "true, false, 0 or 1",
                    other.to_string(),
                ));
            }
        }
    }
    Ok(None)
}

fn parse_spans(value: &Value, column: &str) -> Result<Vec<TrainSpan>, Problem> {
    let expected = "a list of {begin_offset, end_offset, train}, offsets in characters, the end included";
    let wrong = |found: &Value| Problem::new(column, expected, found.to_string());
    let items = value.as_array().ok_or_else(|| wrong(value))?;
    let mut spans: Vec<TrainSpan> = Vec::with_capacity(items.len());
    for item in items {
        let number = |key: &str| item.get(key).and_then(Value::as_u64).map(|n| n as usize);
        let (Some(start), Some(last), Some(train)) =
            (number("begin_offset"), number("end_offset"), item.get("train").and_then(Value::as_bool))
        else {
            return Err(wrong(item));
        };
        let follows = spans.last().is_none_or(|before| before.end <= start);
        if last < start || !follows {
            let expected = "spans in order that do not overlap, each begin_offset <= end_offset";
            return Err(Problem::new(column, expected, item.to_string()));
        }
        spans.push(TrainSpan { start, end: last.saturating_add(1), train });
    }
    Ok(spans)
}

fn check_spans(message: &Message, column: &str) -> Result<(), Problem> {
    let Some(Train::Spans(spans)) = &message.train else { return Ok(()) };
    let n_chars = message.content.as_deref().unwrap_or("").chars().count();
    match spans.last() {
        Some(last) if last.end > n_chars => Err(Problem::new(
            format!("{column}.train_detail"),
            format!("offsets within the {n_chars} characters of the content"),
            format!("end_offset {}", last.end - 1),
        )),
        _ => Ok(()),
    }
}
