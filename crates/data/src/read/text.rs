//! Plain text: one row `{"text": ...}` per line, per separator, or per file.

use std::path::Path;

use serde_json::{Map, Value};

use super::chunks::Chunks;
use super::json::read_whole;
use super::{ReadOptions, RowIter, TextUnit, decompress};
use crate::error::DataError;
use crate::row::{Origin, Row};

/// Opens a text file; blank lines and blank pieces are not rows, ends of rows are trimmed of `\r`.
pub(crate) fn open(path: &Path, options: &ReadOptions) -> Result<RowIter, DataError> {
    let content = decompress::open(path)?;
    let delimiter = match &options.text_unit {
        TextUnit::File => {
            let text = read_whole(content, options.max_record_bytes)?;
            let row = (!text.trim().is_empty()).then(|| Ok(row(text, Origin::new(path, 1))));
            return Ok(Box::new(row.into_iter()));
        }
        TextUnit::Line => "\n",
        TextUnit::Separator(separator) if separator.is_empty() => "\n",
        TextUnit::Separator(separator) => separator.as_str(),
    };
    let is_line = delimiter == "\n";
    let mut chunks = Chunks::new(content, delimiter.as_bytes(), options.max_record_bytes);
    Ok(Box::new(std::iter::from_fn(move || {
        loop {
            match chunks.next_chunk() {
                Ok(None) => return None,
                Ok(Some(chunk)) if chunk.text.trim().is_empty() => {}
                Ok(Some(chunk)) => return Some(Ok(row(trimmed(chunk.text, is_line), chunk.origin))),
                Err(error) => return Some(Err(error)),
            }
        }
    })))
}

/// A line loses its `\r`; a piece between separators loses the line breaks around it.
fn trimmed(mut text: String, is_line: bool) -> String {
    if is_line {
        if text.ends_with('\r') {
            text.pop();
        }
        text
    } else {
        text.trim_matches(['\r', '\n']).to_owned()
    }
}

fn row(text: String, origin: Origin) -> Row {
    Row { origin, value: Map::from_iter([("text".to_owned(), Value::String(text))]) }
}
