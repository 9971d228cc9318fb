//! Values written as Python writes them: `json.dumps` and `repr`.
//!
//! Chat templates were written against Python, so a number, a string or a dictionary that reaches
//! the text must look as it would there, to the byte.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Options of Python's `json.dumps` that templates use.
#[derive(Clone, Debug)]
pub(super) struct JsonStyle {
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
    pub ensure_ascii: bool,
}

impl Default for JsonStyle {
    fn default() -> Self {
        Self {
            indent: None,
            item_separator: ", ".into(),
            key_separator: ": ".into(),
            sort_keys: false,
            ensure_ascii: false,
        }
    }
}

impl JsonStyle {
    /// Reads the keyword arguments of the `tojson` filter, with `json.dumps`' defaults.
    pub(super) fn from_kwargs(positional_indent: Option<Value>, kwargs: &Kwargs) -> Result<Self, Error> {
        let mut style = Self::default();
        if let Some(flag) = kwargs.get::<Option<bool>>("ensure_ascii")? {
            style.ensure_ascii = flag;
        }
        if let Some(flag) = kwargs.get::<Option<bool>>("sort_keys")? {
            style.sort_keys = flag;
        }
        let indent = match kwargs.get::<Option<Value>>("indent")? {
            Some(value) => Some(value),
            None => positional_indent,
        };
        style.indent =
            indent.filter(|v| !v.is_none() && !v.is_undefined()).map(|v| indent_text(&v)).transpose()?;
        if style.indent.is_some() {
            // As in Python: with an indent, items end in a bare comma.
            style.item_separator = ",".into();
        }
        if let Some(separators) = kwargs.get::<Option<Value>>("separators")?.filter(|v| !v.is_none()) {
            let parts: Vec<String> = separators.try_iter()?.map(|v| v.to_string()).collect();
            let [item, key] = <[String; 2]>::try_from(parts).map_err(|_| {
                Error::new(ErrorKind::InvalidOperation, "separators must be a pair of strings")
            })?;
            style.item_separator = item;
            style.key_separator = key;
        }
        kwargs.assert_all_used()?;
        Ok(style)
    }
}

fn indent_text(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let width = value
        .as_i64()
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "indent must be a number or a string"))?;
    Ok(" ".repeat(usize::try_from(width).unwrap_or(0)))
}

/// `json.dumps(value, ...)`.
///
/// # Errors
/// For values Python's `json` refuses: undefined values, functions, objects.
pub(super) fn to_json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    write_json(&mut out, value, style, 0)?;
    Ok(out)
}

fn write_json(out: &mut String, value: &Value, style: &JsonStyle, depth: usize) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&json_number(value)),
        ValueKind::String => write_json_string(out, value.as_str().unwrap_or_default(), style.ensure_ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            write_container(out, ['[', ']'], &items, style, depth, |out, item| {
                write_json(out, item, style, depth + 1)
            })?;
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort_by_key(Value::to_string);
            }
            write_container(out, ['{', '}'], &keys, style, depth, |out, key| {
                write_json_string(out, &json_key(key), style.ensure_ascii);
                out.push_str(&style.key_separator);
                write_json(out, &value.get_item(key)?, style, depth + 1)
            })?;
        }
        other => {
            let message = format!("Object of type {other} is not JSON serializable");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    Ok(())
}

fn write_container(
    out: &mut String,
    brackets: [char; 2],
    items: &[Value],
    style: &JsonStyle,
    depth: usize,
    mut write_item: impl FnMut(&mut String, &Value) -> Result<(), Error>,
) -> Result<(), Error> {
    out.push(brackets[0]);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(&style.item_separator);
        }
        new_line(out, style, depth + 1);
        write_item(out, item)?;
    }
    if !items.is_empty() {
        new_line(out, style, depth);
    }
    out.push(brackets[1]);
    Ok(())
}

fn new_line(out: &mut String, style: &JsonStyle, depth: usize) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        for _ in 0..depth {
            out.push_str(indent);
        }
    }
}

fn json_key(key: &Value) -> String {
    match key.kind() {
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
        ValueKind::None => "null".into(),
        ValueKind::Number => json_number(key),
        _ => key.to_string(),
    }
}

fn json_number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(x) if x.is_nan() => "NaN".into(),
        Ok(x) if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        Ok(x) => float_repr(x),
        Err(_) => value.to_string(),
    }
}

fn write_json_string(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c if ensure_ascii && (c as u32) > 0x7e => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// `repr(float)`: the shortest digits that read back, in scientific notation below 1e-4 and from 1e16.
pub(super) fn float_repr(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').expect("{:e} always writes an exponent");
    let exponent: i32 = exponent.parse().expect("{:e} writes an integer exponent");
    if (-4..16).contains(&exponent) {
        let plain = x.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// `str(value)`, as `{{ value }}` writes it.
pub(super) fn to_str(value: &Value) -> String {
    match value.kind() {
        ValueKind::String => value.as_str().unwrap_or_default().to_owned(),
        ValueKind::Undefined => String::new(),
        _ => repr(value),
    }
}

/// `repr(value)`.
pub(super) fn repr(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => "Undefined".into(),
        ValueKind::None => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float_repr)
        }
        ValueKind::String => string_repr(value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            let items: Vec<String> = value.try_iter().into_iter().flatten().map(|v| repr(&v)).collect();
            match (value.is_tuple(), items.as_slice()) {
                (false, _) => format!("[{}]", items.join(", ")),
                (true, [only]) => format!("({only},)"),
                (true, _) => format!("({})", items.join(", ")),
            }
        }
        ValueKind::Map => {
            let entries: Vec<String> = value
                .try_iter()
                .into_iter()
                .flatten()
                .map(|k| {
                    let v = value.get_item(&k).unwrap_or_default();
                    format!("{}: {}", repr(&k), repr(&v))
                })
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
        _ => value.to_string(),
    }
}

fn string_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            c if c == quote || c == '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) || c == '\u{ad}' => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use minijinja::value::Serde;

    use super::*;

    #[test]
    fn floats_look_like_pythons() {
        let cases = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-0.0, "-0.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (123_456.789, "123456.789"),
        ];
        for (x, expected) in cases {
            assert_eq!(float_repr(x), expected);
        }
    }

    #[test]
    fn json_looks_like_pythons() {
        let value = |text: &str| Value::from(Serde(serde_json::from_str::<serde_json::Value>(text).unwrap()));
        let indented =
            JsonStyle { indent: Some("  ".into()), item_separator: ",".into(), ..JsonStyle::default() };
        let ascii = JsonStyle { ensure_ascii: true, sort_keys: true, ..JsonStyle::default() };
        let cases = [
            (
                r#"{"b": 1.0, "a": [true, null, "é\n"]}"#,
                JsonStyle::default(),
                r#"{"b": 1.0, "a": [true, null, "é\n"]}"#,
            ),
            (r#"{"b": [], "a": [1]}"#, indented, "{\n  \"b\": [],\n  \"a\": [\n    1\n  ]\n}"),
            (r#"{"b": "é🙂", "a": 1}"#, ascii, r#"{"a": 1, "b": "\u00e9\ud83d\ude42"}"#),
        ];
        for (input, style, expected) in cases {
            assert_eq!(to_json(&value(input), &style).unwrap(), expected);
        }
        assert!(to_json(&Value::UNDEFINED, &JsonStyle::default()).is_err());
    }

    #[test]
    fn reprs_look_like_pythons() {
        let value = Value::from(Serde(serde_json::json!({"a": ["it's", "\"", "\n", 1, 2.5, true, null]})));
        assert_eq!(repr(&value), r#"{'a': ["it's", '"', '\n', 1, 2.5, True, None]}"#);
    }
}
