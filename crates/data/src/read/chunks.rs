//! Cuts a byte stream at a delimiter, with a bound on the length of a piece.

use std::path::PathBuf;
use std::sync::Arc;

use super::decompress::Content;
use crate::error::DataError;
use crate::row::Origin;

/// Pieces of a file between delimiters.
pub(crate) struct Chunks {
    content: Content,
    file: Arc<PathBuf>,
    delimiter: Vec<u8>,
    limit: usize,
    n_chunks: usize,
    ended: bool,
}

/// One piece, without its delimiter.
pub(crate) struct Chunk {
    pub(crate) text: String,
    /// Number of the piece from 1: the line number when the delimiter is a line feed.
    pub(crate) origin: Origin,
}

impl Chunks {
    /// Cuts `content` at `delimiter` (not empty) into pieces of at most `limit` bytes.
    pub(crate) fn new(content: Content, delimiter: &[u8], limit: usize) -> Self {
        assert!(!delimiter.is_empty(), "a delimiter has at least one byte");
        let file = Arc::new(content.path.clone());
        Chunks { content, file, delimiter: delimiter.to_vec(), limit, n_chunks: 0, ended: false }
    }

    /// The next piece; `None` at the end. A trailing delimiter does not make an empty last piece.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<Chunk>, DataError> {
        if self.ended {
            return Ok(None);
        }
        let start = self.content.offset();
        let bytes = self.next_bytes();
        // After an error there is no next piece to be found: stop.
        self.ended |= bytes.is_err();
        let Some(bytes) = bytes? else { return Ok(None) };
        let origin = Origin { file: Arc::clone(&self.file), line: self.n_chunks };
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(Chunk { text, origin })),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let value = error.as_bytes()[at];
                Err(DataError::NotUtf8 { origin, byte: start + at as u64, value })
            }
        }
    }

    fn next_bytes(&mut self) -> Result<Option<Vec<u8>>, DataError> {
        let last = self.delimiter[self.delimiter.len() - 1];
        let mut bytes = Vec::new();
        self.n_chunks += 1;
        loop {
            let buffered = self.content.peek()?;
            if buffered.is_empty() {
                self.ended = true;
                return Ok((!bytes.is_empty()).then_some(bytes));
            }
            let found = memchr(last, buffered);
            let taken = found.map_or(buffered.len(), |at| at + 1);
            bytes.extend_from_slice(&buffered[..taken]);
            self.content.consume(taken);
            if found.is_some() && bytes.ends_with(&self.delimiter) {
                bytes.truncate(bytes.len() - self.delimiter.len());
                return self.bounded(bytes.len()).map(|()| Some(bytes));
            }
            self.bounded(bytes.len().saturating_sub(self.delimiter.len()))?;
        }
    }

    fn bounded(&self, len: usize) -> Result<(), DataError> {
        if len <= self.limit {
            return Ok(());
        }
        let origin = Origin { file: Arc::clone(&self.file), line: self.n_chunks };
        Err(DataError::TooLong { origin, limit: self.limit })
    }
}

fn memchr(byte: u8, bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&b| b == byte)
}
