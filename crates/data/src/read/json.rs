//! JSONL, JSON arrays, and JSON objects that hold a list.
//!
//! Arrays are read element by element in bounded memory ([`super::json_array`]). An object file (`{"data": [...]}`) is read
//! whole, up to [`DOCUMENT_FACTOR`] times the row bound.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::chunks::Chunks;
use super::decompress::{self, Content};
use super::json_array::{Element, Elements};
use super::json_value::{self, Start, kind};
use super::{ReadOptions, RowIter};
use crate::error::DataError;
use crate::row::{Origin, Row};

/// An object file may be this many times longer than a row may be.
const DOCUMENT_FACTOR: usize = 16;

/// Columns of rows that hold lists of objects: an object file with one of these is itself a row.
const ROW_LISTS: &[&str] = &[
    "messages",
    "conversations",
    "prompt",
    "completion",
    "completions",
    "chosen",
    "rejected",
    "segments",
    "instances",
    "tools",
];

/// Opens a `.jsonl` file; a JSON array under that name is read as one.
pub(crate) fn open_jsonl(path: &Path, options: &ReadOptions) -> Result<RowIter, DataError> {
    let mut content = decompress::open(path)?;
    match first_byte(&mut content)? {
        Some(b'[') => array(content, options),
        _ => lines(content, options),
    }
}

/// Opens a `.json` file: an array, an object with a list, one row, or JSONL under the wrong name.
pub(crate) fn open_json(path: &Path, options: &ReadOptions) -> Result<RowIter, DataError> {
    let mut content = decompress::open(path)?;
    match first_byte(&mut content)? {
        Some(b'{') if is_jsonl(path, options)? => lines(content, options),
        Some(b'{') => object(content, options),
        _ => array(content, options),
    }
}

fn lines(content: Content, options: &ReadOptions) -> Result<RowIter, DataError> {
    let mut chunks = Chunks::new(content, b"\n", options.max_record_bytes);
    Ok(Box::new(std::iter::from_fn(move || {
        loop {
            match chunks.next_chunk() {
                Ok(None) => return None,
                Ok(Some(chunk)) if chunk.text.trim().is_empty() => {}
                Ok(Some(chunk)) => {
                    let start = Start { line: chunk.origin.line, column: 1 };
                    let parsed = json_value::parse(&chunk.text, &chunk.origin.file, start);
                    return Some(parsed.and_then(|value| as_row(value, chunk.origin)));
                }
                Err(error) => return Some(Err(error)),
            }
        }
    })))
}

fn array(content: Content, options: &ReadOptions) -> Result<RowIter, DataError> {
    let elements = Elements::new(content, options.max_record_bytes);
    Ok(Box::new(elements.map(|element| {
        let Element { text, start, origin } = element?;
        let parsed = json_value::parse(&text, &origin.file, start);
        parsed.and_then(|value| as_row(value, origin))
    })))
}

fn object(content: Content, options: &ReadOptions) -> Result<RowIter, DataError> {
    let limit = options.max_record_bytes.saturating_mul(DOCUMENT_FACTOR);
    let path = content.path.clone();
    let path = path.as_path();
    let text = read_whole(content, limit)?;
    let value = json_value::parse(&text, path, Start { line: 1, column: 1 })?;
    let origin = Origin::new(path, 1);
    let rows = match rows_key(&value, path, options)? {
        None => vec![value],
        Some(key) => match value {
            Value::Object(mut map) => match map.remove(&key) {
                Some(Value::Array(rows)) => rows,
                other => {
                    let found = other.as_ref().map_or("no such key", kind);
                    return Err(DataError::NotAnObject { origin, found });
                }
            },
            other => return Err(DataError::NotAnObject { origin, found: kind(&other) }),
        },
    };
    Ok(Box::new(rows.into_iter().enumerate().map(move |(row_idx, value)| {
        as_row(value, Origin { file: Arc::clone(&origin.file), line: row_idx + 1 })
    })))
}

/// Which key of an object file holds the rows; `None` when the object is itself a row.
fn rows_key(value: &Value, path: &Path, options: &ReadOptions) -> Result<Option<String>, DataError> {
    let Value::Object(map) = value else { return Ok(None) };
    if let Some(key) = &options.rows_key {
        return match map.contains_key(key) {
            true => Ok(Some(key.clone())),
            false => Err(document_error(
                path,
                format!("no key `{key}` (`rows_key`) in the object; found: {}", keys(map.keys())),
            )),
        };
    }
    let lists: Vec<&String> = map
        .iter()
        .filter(|(_, value)| matches!(value, Value::Array(items) if !items.is_empty() && items.iter().all(Value::is_object)))
        .map(|(key, _)| key)
        .collect();
    match lists.as_slice() {
        [] => Ok(None),
        found if found.iter().any(|key| ROW_LISTS.contains(&key.as_str())) => Ok(None),
        [key] => Ok(Some((*key).clone())),
        several => Err(document_error(
            path,
            format!(
                "the object holds several lists of rows: {}; set `rows_key` to one of them",
                keys(several.iter().copied())
            ),
        )),
    }
}

fn keys<'a>(keys: impl Iterator<Item = &'a String>) -> String {
    keys.map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
}

fn document_error(path: &Path, message: String) -> DataError {
    DataError::Json { file: path.to_owned(), line: 1, column: 1, message }
}

fn as_row(value: Value, origin: Origin) -> Result<Row, DataError> {
    match value {
        Value::Object(value) => Ok(Row { origin, value }),
        other => Err(DataError::NotAnObject { origin, found: kind(&other) }),
    }
}

/// The first byte that is not white space, as far as it is buffered; nothing is consumed, so that a pipe
/// can be read too.
fn first_byte(content: &mut Content) -> Result<Option<u8>, DataError> {
    Ok(content.peek()?.iter().copied().find(|byte| !byte.is_ascii_whitespace()))
}

/// Whether the first line is a whole object and something follows it.
fn is_jsonl(path: &Path, options: &ReadOptions) -> Result<bool, DataError> {
    let mut chunks = Chunks::new(decompress::open(path)?, b"\n", options.max_record_bytes);
    let mut seen = false;
    loop {
        match chunks.next_chunk() {
            Ok(Some(chunk)) if chunk.text.trim().is_empty() => {}
            Ok(Some(_)) if seen => return Ok(true),
            Ok(Some(chunk)) => {
                seen = serde_json::from_str::<serde::de::IgnoredAny>(&chunk.text).is_ok();
                if !seen {
                    return Ok(false);
                }
            }
            // A bad second line is still a second line; the reader proper will report it.
            Err(_) if seen => return Ok(true),
            Ok(None) | Err(DataError::TooLong { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// Reads at most `limit` bytes of text.
pub(crate) fn read_whole(mut content: Content, limit: usize) -> Result<String, DataError> {
    let mut bytes = Vec::new();
    let result = (&mut content).take(limit as u64 + 1).read_to_end(&mut bytes);
    result.map_err(|error| content.wrap(error))?;
    if bytes.len() > limit {
        return Err(DataError::TooLong { origin: Origin::new(&content.path, 0), limit });
    }
    let start = content.offset() - bytes.len() as u64;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count();
        let value = error.as_bytes()[at];
        DataError::NotUtf8 { origin: Origin::new(&content.path, line), byte: start + at as u64, value }
    })
}
