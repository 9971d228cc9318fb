//! What can be wrong with data: one enum, with the place and the way out in every message.

use std::io;
use std::path::{Path, PathBuf};

use crate::row::Origin;

/// Everything the crate can report. User data never panics.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file system said no.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done to it.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing at the place the recipe names.
    #[error("{location}: no such file, folder, pattern or downloaded hub dataset ({detail})")]
    NotFound {
        /// The location as written.
        location: String,
        /// What was tried.
        detail: String,
    },
    /// A hub dataset that has not been downloaded.
    #[error(
        "hub dataset `{name}` is not in the local cache (looked for {}); this program downloads nothing, so run `hf download --repo-type dataset {name}` first, or give a path",
        looked_in.display()
    )]
    HubAbsent {
        /// `organisation/name`.
        name: String,
        /// The snapshots folder that was expected.
        looked_in: PathBuf,
    },
    /// A folder that holds data, but not this split.
    #[error("{}: no data file of split `{split}`; found: {found}", dir.display())]
    NoSplit {
        /// The folder.
        dir: PathBuf,
        /// The split asked for.
        split: String,
        /// The data files there are.
        found: String,
    },
    /// A folder whose split exists in several configurations.
    #[error(
        "{}: split `{split}` exists in several configurations: {found}; set `subset` to one of them", dir.display()
    )]
    SeveralSubsets {
        /// The folder.
        dir: PathBuf,
        /// The split asked for.
        split: String,
        /// The configurations.
        found: String,
    },
    /// A file whose name and content do not tell its format.
    #[error(
        "{}: cannot tell the format from the name or the content; set `format` to one of jsonl, json, parquet, csv, tsv, text", file.display()
    )]
    UnknownFormat {
        /// The file.
        file: PathBuf,
    },
    /// A file without rows.
    #[error("{}: no rows ({detail})", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
        /// Why it counts as empty.
        detail: &'static str,
    },
    /// Compressed data that ends early or is damaged.
    #[error("{}: the {codec} stream is truncated or damaged after {n_bytes} decompressed bytes ({detail}); download or copy the file again", file.display())]
    Compressed {
        /// The file.
        file: PathBuf,
        /// `gzip` or `zstd`.
        codec: &'static str,
        /// Decompressed bytes before the damage.
        n_bytes: u64,
        /// The decoder's message.
        detail: String,
    },
    /// Bytes that are not UTF-8.
    #[error(
        "{origin}: byte {byte} of the file is not UTF-8 (0x{value:02x}); convert the file to UTF-8, for example with iconv"
    )]
    NotUtf8 {
        /// File and line.
        origin: Origin,
        /// Offset of the first bad byte in the (decompressed) file, from 0.
        byte: u64,
        /// The bad byte.
        value: u8,
    },
    /// A line or row above the bound.
    #[error(
        "{origin}: longer than {limit} bytes; this is probably not one row per line. If it is, raise `max_record_bytes`"
    )]
    TooLong {
        /// File and line.
        origin: Origin,
        /// The bound in bytes.
        limit: usize,
    },
    /// A row that is not valid JSON, or has a key twice.
    #[error("{}:{line}:{column}: {message}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in bytes, from 1.
        column: usize,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A JSON value where an object was expected.
    #[error("{origin}: expected an object with named columns, found {found}")]
    NotAnObject {
        /// File and row.
        origin: Origin,
        /// The kind of value found.
        found: &'static str,
    },
    /// A damaged or unsupported Parquet file.
    #[error("{origin}: Parquet: {message}")]
    Parquet {
        /// File and row (0 for the file as a whole).
        origin: Origin,
        /// What the reader said.
        message: String,
    },
    /// A malformed CSV or TSV record.
    #[error("{origin}: {message}")]
    Csv {
        /// File and line.
        origin: Origin,
        /// What is wrong.
        message: String,
    },
    /// No layout fits the columns.
    #[error(
        "{origin}: no known layout has these columns: {columns}. {hint}. Rename columns with a map such as `columns = {{ prompt = \"question\" }}`, or name the layout with `layout = \"...\"`"
    )]
    NoLayout {
        /// File and row.
        origin: Origin,
        /// The columns found, with their types.
        columns: String,
        /// The nearest layouts and what they lack.
        hint: String,
    },
    /// Several layouts fit equally well.
    #[error(
        "{origin}: the columns {columns} fit several layouts: {layouts}. Name one with `layout = \"...\"`"
    )]
    AmbiguousLayout {
        /// File and row.
        origin: Origin,
        /// The columns found.
        columns: String,
        /// The layouts that fit.
        layouts: String,
    },
    /// Two rows of one dataset have different layouts.
    #[error(
        "{second_origin}: this row is `{second}`, but {first_origin} is `{first}`; one source must have one layout"
    )]
    MixedLayouts {
        /// Where the first row was.
        first_origin: Origin,
        /// Its layout.
        first: &'static str,
        /// Where the other row is.
        second_origin: Origin,
        /// Its layout.
        second: &'static str,
    },
    /// A layout name that is not in the catalogue.
    #[error("unknown layout `{name}`; {hint}")]
    UnknownLayout {
        /// The name as written.
        name: String,
        /// The nearest name, and all of them.
        hint: String,
    },
    /// A column of the row does not hold what its layout wants.
    #[error("{origin}: layout `{layout}`, column `{column}`: expected {expected}, found {found}")]
    BadColumn {
        /// File and row.
        origin: Origin,
        /// The layout in use.
        layout: &'static str,
        /// The column, or a path within it.
        column: String,
        /// What it must hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The renaming map names a column the row lacks, or would overwrite one.
    #[error("{origin}: cannot rename column `{from}` to `{to}`: {detail}")]
    Rename {
        /// File and row.
        origin: Origin,
        /// The column as it is in the file.
        from: String,
        /// The column's new name.
        to: String,
        /// Why not.
        detail: String,
    },
    /// A record cannot be turned into the kind that was asked for.
    #[error("{origin}: cannot {action} a {kind} record: {detail}")]
    Unconvertible {
        /// File and row.
        origin: Origin,
        /// What was asked.
        action: &'static str,
        /// The record's kind.
        kind: &'static str,
        /// Why not.
        detail: String,
    },
    /// A mixture that cannot be drawn.
    #[error("mixture: {0}")]
    Mixture(String),
    /// Rows that cannot be batched as asked.
    #[error("batching: {0}")]
    Batching(String),
    /// A tokenised row that breaks the contract.
    #[error("{origin}: tokenised row: {detail}")]
    BadTokens {
        /// File and row.
        origin: Origin,
        /// What is wrong.
        detail: String,
    },
    /// A tokenised cache that cannot be trusted.
    #[error("{}: the token cache is damaged: {detail}; delete it or let it be rebuilt", path.display())]
    DamagedCache {
        /// The cache file.
        path: PathBuf,
        /// What does not match.
        detail: String,
    },
    /// An error of the caller's own step (tokenising, rendering a template) on a row.
    #[error("{origin}: {source}")]
    Row {
        /// File and row.
        origin: Origin,
        /// The caller's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl DataError {
    /// Wraps a caller's error (a tokenizer's, a template's) with the row it happened on.
    pub fn row(origin: &Origin, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        DataError::Row { origin: origin.clone(), source: source.into() }
    }

    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> DataError {
        let path = path.to_owned();
        move |source| DataError::Io { path, action, source }
    }
}
