//! Readers: files of any supported format to rows, streaming, with the place in every error.
//!
//! [`open`] takes a location as a recipe writes it (a file, folder, glob pattern or hub dataset name)
//! and gives the rows of one split. Formats are told by extension, then by content; compression by
//! content alone. Which columns mean what is the business of [`crate::layout`].
//!
//! Left out: downloading, and columns that are not text or numbers.

mod chunks;
mod csv;
mod decompress;
mod json;
mod json_array;
mod json_value;
mod locate;
mod parquet;
mod text;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::DataError;
use crate::row::Row;

pub(crate) use json_value::kind;
pub use locate::locate;

/// Rows of one file, or of several one after the other.
pub(crate) type RowIter = Box<dyn Iterator<Item = Result<Row, DataError>>>;

/// A file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One JSON object per line.
    Jsonl,
    /// An array of objects, or an object that holds one.
    Json,
    /// Apache Parquet.
    Parquet,
    /// Comma-separated values with a header.
    Csv,
    /// Tab-separated values with a header.
    Tsv,
    /// Plain text, cut by [`TextUnit`].
    Text,
}

/// The formats by name, with the extensions that mean them.
pub const FORMATS: &[(&str, Format, &[&str])] = &[
    ("jsonl", Format::Jsonl, &["jsonl", "ndjson"]),
    ("json", Format::Json, &["json"]),
    ("parquet", Format::Parquet, &["parquet", "pq"]),
    ("csv", Format::Csv, &["csv"]),
    ("tsv", Format::Tsv, &["tsv"]),
    ("text", Format::Text, &["txt", "text", "md"]),
];

/// What makes a row of a text file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextUnit {
    /// Each line that is not blank.
    Line,
    /// The whole file.
    File,
    /// The text between two occurrences of a separator, such as `<|endoftext|>`.
    Separator(String),
}

/// How to find and read the files of a source.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadOptions {
    /// The format, when names do not tell.
    pub format: Option<Format>,
    /// The split to read from a folder or hub dataset: `train`, `valid` (also found as `validation`,
    /// `val`, `dev`, `eval`), `test`, or any name the files carry. A file given by name is read whatever it is.
    pub split: String,
    /// The configuration of a hub dataset, where it has several (`main`, `socratic`).
    pub subset: Option<String>,
    /// What `$HF_HOME` is; hub datasets are looked up in `hub/` under it.
    pub hf_home: Option<PathBuf>,
    /// What makes a row of a text file.
    pub text_unit: TextUnit,
    /// The key under which an object file holds its rows, where it has several lists.
    pub rows_key: Option<String>,
    /// Longest line, array element or CSV record, in bytes.
    pub max_record_bytes: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions {
            format: None,
            split: "train".to_owned(),
            subset: None,
            hf_home: None,
            text_unit: TextUnit::Line,
            rows_key: None,
            max_record_bytes: 64 << 20,
        }
    }
}

/// The rows of every file at `location`, in the order of the sorted file names.
///
/// An error does not end the iteration where the next row can still be found (a bad JSONL line), so a
/// caller may count all bad rows or stop at the first; after damage to the file it goes on with the next file.
///
/// # Errors
/// When the location names nothing; each item reports its own row.
pub fn open(
    location: &str,
    options: &ReadOptions,
) -> Result<impl Iterator<Item = Result<Row, DataError>> + use<>, DataError> {
    let files = locate(location, options)?;
    let options = options.clone();
    Ok(files.into_iter().flat_map(move |file| match open_file(&file, &options) {
        Ok(rows) => rows,
        Err(error) => Box::new(std::iter::once(Err(error))),
    }))
}

/// All rows at `location`.
///
/// # Errors
/// The first error in row order.
pub fn read_all(location: &str, options: &ReadOptions) -> Result<Vec<Row>, DataError> {
    open(location, options)?.collect()
}

/// One hash of the content of every file at `location`, in order: part of a cache's key.
///
/// # Errors
/// When the location names nothing, or a file cannot be read.
pub fn content_hash(location: &str, options: &ReadOptions) -> Result<String, DataError> {
    let mut hashes = Vec::new();
    for file in locate(location, options)? {
        hashes.push(pt_core::hash::of_file(&file).map_err(DataError::io(&file, "read"))?);
    }
    Ok(pt_core::hash::of_parts(hashes.iter().map(String::as_bytes)))
}

/// The rows of one file. A file without rows is an error.
///
/// # Errors
/// When the file cannot be opened or its format not told; each item reports its own row.
pub fn open_file(path: &Path, options: &ReadOptions) -> Result<RowIter, DataError> {
    let rows = match format_of(path, options)? {
        Format::Jsonl => json::open_jsonl(path, options),
        Format::Json => json::open_json(path, options),
        Format::Parquet => parquet::open(path),
        Format::Csv => csv::open(path, b',', options),
        Format::Tsv => csv::open(path, b'\t', options),
        Format::Text => text::open(path, options),
    }?;
    Ok(Box::new(NotEmpty { rows, file: path.to_owned(), seen: false }))
}

/// Adds an error at the end of a file that gave nothing.
struct NotEmpty {
    rows: RowIter,
    file: PathBuf,
    seen: bool,
}

impl Iterator for NotEmpty {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.rows.next();
        if next.is_none() && !self.seen {
            self.seen = true;
            let detail = "an empty file is usually a failed download or export";
            return Some(Err(DataError::Empty { file: self.file.clone(), detail }));
        }
        self.seen = true;
        next
    }
}

fn format_of(path: &Path, options: &ReadOptions) -> Result<Format, DataError> {
    if let Some(format) = options.format.or_else(|| format_by_name(path)) {
        return Ok(format);
    }
    let mut content = decompress::open(path)?;
    let head = content.peek()?;
    if head.starts_with(&parquet::MAGIC) {
        return Ok(Format::Parquet);
    }
    match head.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{' | b'[') => Ok(Format::Json),
        None => Err(DataError::Empty { file: path.to_owned(), detail: "the file has no content" }),
        Some(_) => Err(DataError::UnknownFormat { file: path.to_owned() }),
    }
}

/// The format an extension means, compression suffixes set aside.
fn format_by_name(path: &Path) -> Option<Format> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    let (_, extension) = without_compression(&name).rsplit_once('.')?;
    FORMATS.iter().find(|(_, _, extensions)| extensions.contains(&extension)).map(|(_, format, _)| *format)
}

/// The file name without `.gz`, `.zst` and their like.
fn without_compression(name: &str) -> &str {
    [".gz", ".gzip", ".zst", ".zstd"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}
