//! Python methods of strings and lists that the engine's own compatibility layer lacks.

use minijinja::value::{Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Calls a method that the engine does not know.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let found = match (value.as_str(), value.kind()) {
        (Some(text), _) => string_method(text, method, args)?,
        (None, ValueKind::Seq) => list_method(value, method, args)?,
        _ => None,
    };
    match found {
        Some(result) => Ok(result),
        None => unknown_method_callback(state, value, method, args),
    }
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let result = match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let parts = partition(text, separator, method == "rpartition");
            Value::from(Tuple::new(parts.map(Value::from).to_vec()))
        }
        "rsplit" => {
            let (separator, limit): (Option<&str>, Option<i64>) = from_args(args)?;
            rsplit(text, separator, limit).into()
        }
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let at = if method == "index" { text.find(part) } else { text.rfind(part) };
            let at = at.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "substring not found"))?;
            text[..at].chars().count().into()
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            format!("{sign}{}{digits}", "0".repeat(width.saturating_sub(text.chars().count()))).into()
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            justify(text, method, width, fill.unwrap_or(' ')).into()
        }
        "swapcase" => {
            let swap = |c: char| {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().to_string() }
            };
            text.chars().map(swap).collect::<String>().into()
        }
        "casefold" => text.to_lowercase().replace('ß', "ss").into(),
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn list_method(list: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    if method != "index" {
        return Ok(None);
    }
    let (wanted,): (&Value,) = from_args(args)?;
    let at = list.try_iter()?.position(|item| item == *wanted);
    at.map(|at| Some(at.into()))
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "the list does not hold it"))
}

fn partition(text: &str, separator: &str, from_the_right: bool) -> [String; 3] {
    let at = if from_the_right { text.rfind(separator) } else { text.find(separator) };
    let parts = match (at, from_the_right) {
        (Some(at), _) => [&text[..at], separator, &text[at + separator.len()..]],
        (None, false) => [text, "", ""],
        (None, true) => ["", "", text],
    };
    parts.map(str::to_owned)
}

fn rsplit(text: &str, separator: Option<&str>, limit: Option<i64>) -> Vec<String> {
    let n_parts = limit.and_then(|n| usize::try_from(n).ok()).map_or(usize::MAX, |n| n.saturating_add(1));
    let mut parts: Vec<String> = match separator {
        Some(separator) => text.rsplitn(n_parts, separator).map(str::to_owned).collect(),
        None => {
            let mut rest = text.trim_end();
            let mut words = Vec::new();
            while !rest.is_empty() && words.len() + 1 < n_parts {
                let start = rest
                    .rfind(char::is_whitespace)
                    .map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
                words.push(rest[start..].to_owned());
                rest = rest[..start].trim_end();
            }
            if !rest.is_empty() {
                words.push(rest.to_owned());
            }
            words
        }
    };
    parts.reverse();
    parts
}

fn justify(text: &str, method: &str, width: usize, fill: char) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // Python puts the odd character to the left when the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    let pad = |n: usize| fill.to_string().repeat(n);
    format!("{}{text}{}", pad(left), pad(missing - left))
}
