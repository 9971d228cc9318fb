//! Result files: JSON lines, plain or compressed, that appear under their names together when all is done.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use crate::error::CurateError;

/// zstd's own default level.
const ZSTD_LEVEL: i32 = 3;

enum Encoder {
    Plain(BufWriter<File>),
    Gzip(Box<GzEncoder<BufWriter<File>>>),
    Zstd(Box<zstd::Encoder<'static, BufWriter<File>>>),
}

/// A file of JSON lines under a temporary name; removed when it is dropped before [`RowWriter::publish`].
pub(crate) struct RowWriter {
    path: PathBuf,
    temporary: PathBuf,
    encoder: Option<Encoder>,
    pub(crate) n_rows: u64,
}

/// Whether a path is something that renaming must not replace: a device, a pipe.
pub(crate) fn is_special(path: &Path) -> bool {
    path.exists() && !path.is_file()
}

impl RowWriter {
    pub(crate) fn create(path: &Path) -> Result<RowWriter, CurateError> {
        // What a link points to is replaced, not the link.
        let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let name =
            path.file_name().map_or_else(|| "out".to_owned(), |name| name.to_string_lossy().into_owned());
        let temporary = match is_special(path) {
            true => path.to_owned(),
            false => path.with_file_name(format!(".{name}.{}.partial", std::process::id())),
        };
        let file = File::options().write(true).create(true).truncate(true).open(&temporary);
        let file = BufWriter::new(file.map_err(CurateError::io(path, "create"))?);
        let encoder = match path.extension().and_then(|e| e.to_str()) {
            Some("gz") => Encoder::Gzip(Box::new(GzEncoder::new(file, Compression::default()))),
            Some("zst") => {
                let encoder =
                    zstd::Encoder::new(file, ZSTD_LEVEL).map_err(CurateError::io(path, "compress"))?;
                Encoder::Zstd(Box::new(encoder))
            }
            _ => Encoder::Plain(file),
        };
        Ok(RowWriter { path: path.to_owned(), temporary, encoder: Some(encoder), n_rows: 0 })
    }

    pub(crate) fn write(&mut self, row: &impl Serialize) -> Result<(), CurateError> {
        let mut line = serde_json::to_vec(row).expect("rows are JSON");
        line.push(b'\n');
        self.n_rows += 1;
        let written = match self.encoder.as_mut().expect("it is not finished") {
            Encoder::Plain(writer) => writer.write_all(&line),
            Encoder::Gzip(writer) => writer.write_all(&line),
            Encoder::Zstd(writer) => writer.write_all(&line),
        };
        written.map_err(CurateError::io(&self.path, "write"))
    }

    /// Ends the file and flushes it to disk, still under its temporary name.
    pub(crate) fn finish(&mut self) -> Result<(), CurateError> {
        let Some(encoder) = self.encoder.take() else { return Ok(()) };
        let end = || -> io::Result<()> {
            let writer = match encoder {
                Encoder::Plain(writer) => writer,
                Encoder::Gzip(writer) => writer.finish()?,
                Encoder::Zstd(writer) => writer.finish()?,
            };
            let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
            // A device or pipe has nothing to flush.
            if is_special(&self.temporary) { Ok(()) } else { file.sync_all() }
        };
        end().map_err(CurateError::io(&self.path, "write"))
    }

    /// Gives the finished file its name.
    pub(crate) fn publish(mut self) -> Result<(), CurateError> {
        self.finish()?;
        if self.temporary == self.path {
            return Ok(());
        }
        fs::rename(&self.temporary, &self.path).map_err(CurateError::io(&self.path, "rename into place"))
    }

    pub(crate) fn temporary(&self) -> &Path {
        &self.temporary
    }
}

impl Drop for RowWriter {
    fn drop(&mut self) {
        // After publishing there is nothing of this name.
        if self.temporary != self.path {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
