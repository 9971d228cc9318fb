//! JSONL, JSON arrays, and JSON objects that hold a list.
//!
//! Arrays are read element by element in bounded memory. An object file (`{"data": [...]}`) is read
//! whole, up to [`DOCUMENT_FACTOR`] times the row bound.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::chunks::Chunks;
use super::decompress::{self, Content};
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
        Some(b'[') => array(path, options),
        _ => lines(path, options),
    }
}

/// Opens a `.json` file: an array, an object with a list, one row, or JSONL under the wrong name.
pub(crate) fn open_json(path: &Path, options: &ReadOptions) -> Result<RowIter, DataError> {
    let mut content = decompress::open(path)?;
    match first_byte(&mut content)? {
        Some(b'{') if is_jsonl(path, options)? => lines(path, options),
        Some(b'{') => object(path, options),
        _ => array(path, options),
    }
}

fn lines(path: &Path, options: &ReadOptions) -> Result<RowIter, DataError> {
    let mut chunks = Chunks::new(decompress::open(path)?, b"\n", options.max_record_bytes);
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

fn array(path: &Path, options: &ReadOptions) -> Result<RowIter, DataError> {
    let mut elements = Elements::new(decompress::open(path)?, options.max_record_bytes);
    Ok(Box::new(std::iter::from_fn(move || {
        let next = elements.next_element();
        if next.is_err() {
            elements.state = State::Ended;
        }
        let (text, start) = match next {
            Ok(found) => found?,
            Err(error) => return Some(Err(error)),
        };
        let origin = elements.origin();
        let parsed = json_value::parse(&text, &origin.file, start);
        Some(parsed.and_then(|value| as_row(value, origin)))
    })))
}

fn object(path: &Path, options: &ReadOptions) -> Result<RowIter, DataError> {
    let limit = options.max_record_bytes.saturating_mul(DOCUMENT_FACTOR);
    let text = read_whole(decompress::open(path)?, limit)?;
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

fn first_byte(content: &mut Content) -> Result<Option<u8>, DataError> {
    loop {
        let buffered = content.peek()?;
        let n = buffered.len();
        if n == 0 {
            return Ok(None);
        }
        if let Some(byte) = buffered.iter().find(|byte| !byte.is_ascii_whitespace()) {
            return Ok(Some(*byte));
        }
        content.consume(n);
    }
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    BeforeArray,
    BeforeFirst,
    AfterElement,
    Ended,
}

/// The elements of a top-level array, one text at a time.
struct Elements {
    content: Content,
    file: Arc<PathBuf>,
    limit: usize,
    state: State,
    at: Start,
    n_elements: usize,
}

impl Elements {
    fn new(content: Content, limit: usize) -> Self {
        let file = Arc::new(content.path.clone());
        Elements {
            content,
            file,
            limit,
            state: State::BeforeArray,
            at: Start { line: 1, column: 1 },
            n_elements: 0,
        }
    }

    fn origin(&self) -> Origin {
        Origin { file: Arc::clone(&self.file), line: self.n_elements }
    }

    fn next_element(&mut self) -> Result<Option<(String, Start)>, DataError> {
        if self.state == State::BeforeArray {
            match self.skip_space()? {
                None => {
                    self.state = State::Ended;
                    return Ok(None);
                }
                Some(b'[') => self.advance(),
                Some(_) => return Err(self.error("expected `[` or `{` at the start of a JSON file")),
            }
            self.state = State::BeforeFirst;
        }
        match (self.state, self.skip_space_unless_ended()?) {
            (State::Ended, _) => return Ok(None),
            (_, None) => return Err(self.error("the array is cut off: the file ends before `]`")),
            (_, Some(b']')) => return self.finish(),
            (State::AfterElement, Some(b',')) => {
                let comma = self.at;
                self.advance();
                if self.skip_space()? == Some(b']') {
                    self.at = comma;
                    return Err(self.error("trailing comma; remove the comma before the closing bracket"));
                }
            }
            (State::AfterElement, Some(_)) => return Err(self.error("expected `,` or `]` after an element")),
            _ => {}
        }
        self.state = State::AfterElement;
        self.n_elements += 1;
        let start = self.at;
        let from = self.content.offset();
        let bytes = self.take_value()?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            DataError::NotUtf8 { origin: self.origin(), byte: from + at as u64, value: error.as_bytes()[at] }
        })?;
        Ok(Some((text, start)))
    }

    fn finish(&mut self) -> Result<Option<(String, Start)>, DataError> {
        self.advance();
        self.state = State::Ended;
        match self.skip_space()? {
            None => Ok(None),
            Some(_) => Err(self.error("something follows the closing `]`")),
        }
    }

    fn skip_space_unless_ended(&mut self) -> Result<Option<u8>, DataError> {
        if self.state == State::Ended { Ok(None) } else { self.skip_space() }
    }

    fn skip_space(&mut self) -> Result<Option<u8>, DataError> {
        loop {
            match self.content.peek()?.first().copied() {
                Some(byte) if byte.is_ascii_whitespace() => self.advance(),
                other => return Ok(other),
            }
        }
    }

    fn advance(&mut self) {
        if self.content.peek().is_ok_and(|buffered| buffered.first() == Some(&b'\n')) {
            self.at = Start { line: self.at.line + 1, column: 1 };
        } else {
            self.at.column += 1;
        }
        self.content.consume(1);
    }

    /// Bytes up to the end of the value that starts here: brackets are balanced outside strings.
    fn take_value(&mut self) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        loop {
            let buffered = self.content.peek()?;
            if buffered.is_empty() {
                return Ok(bytes); // The parser reports the missing end, with its place.
            }
            let mut taken = 0;
            let mut complete = false;
            for &byte in buffered {
                let ends_scalar = depth == 0 && !in_string && (byte == b',' || byte == b']' || byte == b'}');
                if ends_scalar {
                    complete = true;
                    break;
                }
                taken += 1;
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if in_string => escaped = true,
                    b'"' => in_string = !in_string,
                    b'{' | b'[' if !in_string => depth += 1,
                    b'}' | b']' if !in_string => {
                        depth -= 1;
                        complete = depth == 0;
                    }
                    b'\n' => self.at = Start { line: self.at.line + 1, column: 0 },
                    _ => {}
                }
                self.at.column += 1;
                if complete {
                    break;
                }
            }
            bytes.extend_from_slice(&buffered[..taken]);
            self.content.consume(taken);
            if bytes.len() > self.limit {
                return Err(DataError::TooLong { origin: self.origin(), limit: self.limit });
            }
            if complete {
                return Ok(bytes);
            }
        }
    }

    fn error(&self, message: &str) -> DataError {
        DataError::Json {
            file: self.file.to_path_buf(),
            line: self.at.line,
            column: self.at.column,
            message: format!("invalid JSON: {message}"),
        }
    }
}
