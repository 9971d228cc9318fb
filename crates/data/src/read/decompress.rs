//! Opens a file and takes off gzip or zstd, told by the content and not by the name.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::DataError;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];

/// Plain bytes of a file, with what error messages need to know about it.
pub(crate) struct Content {
    pub(crate) path: PathBuf,
    reader: BufReader<Box<dyn Read + Send>>,
    codec: Option<&'static str>,
    n_bytes: u64,
}

/// Opens `path`, decompressing if needed; a UTF-8 byte order mark is skipped (and counted).
pub(crate) fn open(path: &Path) -> Result<Content, DataError> {
    let file = File::open(path).map_err(DataError::io(path, "open"))?;
    if file.metadata().map_err(DataError::io(path, "inspect"))?.is_dir() {
        return Err(DataError::Io {
            path: path.to_owned(),
            action: "read as a file",
            source: io::ErrorKind::IsADirectory.into(),
        });
    }
    let mut raw = BufReader::with_capacity(1 << 16, file);
    let head = raw.fill_buf().map_err(DataError::io(path, "read"))?;
    let (codec, inner): (_, Box<dyn Read + Send>) = if head.starts_with(&GZIP_MAGIC) {
        (Some("gzip"), Box::new(flate2::bufread::MultiGzDecoder::new(raw)))
    } else if head.starts_with(&ZSTD_MAGIC) {
        let decoder = zstd::Decoder::with_buffer(raw).map_err(DataError::io(path, "start decompressing"))?;
        (Some("zstd"), Box::new(decoder))
    } else {
        (None, Box::new(raw))
    };
    let reader = BufReader::with_capacity(1 << 16, inner);
    let mut content = Content { path: path.to_owned(), reader, codec, n_bytes: 0 };
    if content.peek()?.starts_with(&BOM) {
        content.consume(BOM.len());
    }
    Ok(content)
}

impl Content {
    /// The bytes that are buffered (at least one unless at the end), not consumed.
    pub(crate) fn peek(&mut self) -> Result<&[u8], DataError> {
        // The borrow checker cannot see that the error branch holds no borrow, hence the two calls.
        if let Err(error) = self.reader.fill_buf() {
            return Err(self.wrap(error));
        }
        Ok(self.reader.buffer())
    }

    /// Marks `n` peeked bytes as read.
    pub(crate) fn consume(&mut self, n: usize) {
        self.reader.consume(n);
        self.n_bytes += n as u64;
    }

    /// Decompressed bytes read so far: the offset of the next byte.
    pub(crate) fn offset(&self) -> u64 {
        self.n_bytes
    }

    /// Turns a reading error into one that tells damage of the compression from trouble with the disk.
    pub(crate) fn wrap(&self, source: io::Error) -> DataError {
        match self.codec {
            Some(codec) => DataError::Compressed {
                file: self.path.clone(),
                codec,
                n_bytes: self.n_bytes,
                detail: source.to_string(),
            },
            None => DataError::Io { path: self.path.clone(), action: "read", source },
        }
    }
}

impl Read for Content {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(out)?;
        self.n_bytes += n as u64;
        Ok(n)
    }
}
