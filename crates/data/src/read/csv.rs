//! CSV and TSV with a header line; every value is a string.
//!
//! Quoting is RFC 4180's. A record of another width than the header is an error. An empty field is an
//! empty string, not an absent column.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use csv::ByteRecord;
use serde_json::{Map, Value};

use super::decompress::{self, Content};
use super::{ReadOptions, RowIter};
use crate::error::DataError;
use crate::row::{Origin, Row};

/// What the record in progress has used up of the input.
#[derive(Default)]
struct Meter {
    n_bytes: AtomicUsize,
    n_quotes: AtomicUsize,
    /// Whether lines end in CR LF: the reader then leaves the LF to the next record, whose line is one more.
    is_crlf: AtomicBool,
    /// Whether the input has ended.
    at_end: AtomicBool,
}

/// A reader that refuses to feed one record more than `limit` bytes, and counts quotes.
struct Metered {
    content: Content,
    meter: Arc<Meter>,
    limit: usize,
}

impl Read for Metered {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.meter.n_bytes.load(Ordering::Relaxed) > self.limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "record above the bound"));
        }
        let n = self.content.read(out).map_err(|error| io::Error::other(self.content.wrap(error)))?;
        self.meter.n_bytes.fetch_add(n, Ordering::Relaxed);
        self.meter.at_end.fetch_or(n == 0, Ordering::Relaxed);
        let n_quotes = out[..n].iter().filter(|&&byte| byte == b'"').count();
        self.meter.n_quotes.fetch_add(n_quotes, Ordering::Relaxed);
        if out[..n].windows(2).any(|pair| pair == b"\r\n") {
            self.meter.is_crlf.store(true, Ordering::Relaxed);
        }
        Ok(n)
    }
}

struct Records {
    reader: csv::Reader<Metered>,
    meter: Arc<Meter>,
    file: Arc<PathBuf>,
    header: Vec<String>,
    limit: usize,
    ended: bool,
}

/// Opens a file of records separated by `delimiter`.
pub(crate) fn open(path: &Path, delimiter: u8, options: &ReadOptions) -> Result<RowIter, DataError> {
    let meter = Arc::new(Meter::default());
    let metered = Metered {
        content: decompress::open(path)?,
        meter: Arc::clone(&meter),
        limit: options.max_record_bytes,
    };
    let reader =
        csv::ReaderBuilder::new().delimiter(delimiter).has_headers(false).flexible(true).from_reader(metered);
    let limit = options.max_record_bytes;
    let file = Arc::new(path.to_owned());
    let mut records = Records { reader, meter, file, header: Vec::new(), limit, ended: false };
    if let Some((fields, origin)) = records.next_fields()? {
        records.header = checked_header(fields, &origin)?;
    }
    Ok(Box::new(records))
}

fn checked_header(fields: Vec<String>, origin: &Origin) -> Result<Vec<String>, DataError> {
    for (idx, name) in fields.iter().enumerate() {
        if fields[..idx].contains(name) {
            let message = format!("the header names column `{name}` twice");
            return Err(DataError::Csv { origin: origin.clone(), message });
        }
    }
    Ok(fields)
}

impl Iterator for Records {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.next_fields() {
            Ok(None) => None,
            Ok(Some((fields, origin))) => Some(self.row(fields, origin)),
            Err(error) => Some(Err(error)),
        }
    }
}

impl Records {
    fn row(&self, fields: Vec<String>, origin: Origin) -> Result<Row, DataError> {
        if fields.len() != self.header.len() {
            let message = format!(
                "{} fields where the header has {}; is a quote or a delimiter missing?",
                fields.len(),
                self.header.len()
            );
            return Err(DataError::Csv { origin, message });
        }
        let value: Map<String, Value> =
            self.header.iter().cloned().zip(fields.into_iter().map(Value::String)).collect();
        Ok(Row { origin, value })
    }

    fn next_fields(&mut self) -> Result<Option<(Vec<String>, Origin)>, DataError> {
        self.meter.n_bytes.store(0, Ordering::Relaxed);
        let leftover = usize::from(!self.header.is_empty() && self.meter.is_crlf.load(Ordering::Relaxed));
        let line = self.reader.position().line() as usize;
        let mut record = ByteRecord::new();
        let read = self.reader.read_byte_record(&mut record);
        let origin =
            self.origin(record.position().map_or(line, |position| position.line() as usize) + leftover);
        match read {
            Ok(true) => {
                self.check_closed(&record, &origin)?;
                text_fields(&record, &origin).map(|fields| Some((fields, origin)))
            }
            Ok(false) => {
                self.ended = true;
                Ok(None)
            }
            Err(error) => {
                self.ended = true;
                Err(self.explain(error, origin))
            }
        }
    }

    /// An unclosed quote swallows the rest of the file into one field: the count of quotes is then odd.
    fn check_closed(&mut self, record: &ByteRecord, origin: &Origin) -> Result<(), DataError> {
        let odd = self.meter.n_quotes.load(Ordering::Relaxed) % 2 == 1;
        let spans_lines = record.iter().next_back().is_some_and(|field| field.contains(&b'\n'));
        if !odd || !spans_lines || !self.meter.at_end.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.ended = true;
        let message = "a quote opened in this record is never closed".to_owned();
        Err(DataError::Csv { origin: origin.clone(), message })
    }

    fn explain(&self, error: csv::Error, origin: Origin) -> DataError {
        match error.into_kind() {
            csv::ErrorKind::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                DataError::TooLong { origin, limit: self.limit }
            }
            csv::ErrorKind::Io(error) => match error.downcast::<DataError>() {
                Ok(inner) => inner,
                Err(source) => DataError::Io { path: self.file.to_path_buf(), action: "read", source },
            },
            other => DataError::Csv { origin, message: format!("{other:?}") },
        }
    }

    fn origin(&self, line: usize) -> Origin {
        Origin { file: Arc::clone(&self.file), line }
    }
}

fn text_fields(record: &ByteRecord, origin: &Origin) -> Result<Vec<String>, DataError> {
    record
        .iter()
        .map(|field| match std::str::from_utf8(field) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => {
                // Quotes and delimiters make the exact offset unknown: the record's start stands for it.
                let byte = record.position().map_or(0, csv::Position::byte);
                Err(DataError::NotUtf8 { origin: origin.clone(), byte, value: field[error.valid_up_to()] })
            }
        })
        .collect()
}
