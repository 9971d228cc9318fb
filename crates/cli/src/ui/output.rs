//! Result files: JSON lines to a file that appears whole or not at all, or to standard output.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use pt_core::atomic_file;
use serde::Serialize;

/// The name that means standard output.
const STDOUT: &str = "-";

/// Takes rows as they are finished.
pub(crate) struct JsonLines<'a> {
    writer: &'a mut dyn Write,
}

impl JsonLines<'_> {
    /// Writes one row as a line.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn write(&mut self, row: &impl Serialize) -> anyhow::Result<()> {
        serde_json::to_writer(&mut *self.writer, row).map_err(io::Error::from)?;
        self.writer.write_all(b"\n")?;
        Ok(())
    }

    /// Lets what was written so far be seen.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.writer.flush()?)
    }
}

/// Checks that a file of this name could be written, before hours are spent on its content.
///
/// # Errors
/// If its folder is missing, or if it is a folder itself.
pub(crate) fn check_target(target: &str) -> anyhow::Result<()> {
    if target == STDOUT {
        return Ok(());
    }
    let path = Path::new(target);
    if path.is_dir() {
        bail!("--out {target} is a folder; give the name of a file, or - for standard output");
    }
    match path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        Some(parent) => bail!("--out {target}: there is no folder {}; make it first", parent.display()),
        None => Ok(()),
    }
}

/// Writes JSON lines to `target`: `-` is standard output, a name that ends in `.gz` is compressed. A file appears
/// under its name when `fill` has succeeded, and not before.
///
/// # Errors
/// Those of `fill`, and if the file cannot be written.
pub(crate) fn write_json_lines(
    target: &str,
    fill: impl FnOnce(&mut JsonLines<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if target == STDOUT {
        let mut writer = BufWriter::new(io::stdout().lock());
        fill(&mut JsonLines { writer: &mut writer })?;
        return Ok(writer.flush()?);
    }
    let gzip = target.ends_with(".gz");
    let (path, special) = resolve(target);
    let mut failure = None;
    let fill_file = |file: &mut BufWriter<File>| {
        let outcome = compressed(file, gzip, fill);
        outcome.map_err(|error| {
            failure = Some(error);
            io::Error::other("see the failure beside it")
        })
    };
    let written = if special {
        File::options().write(true).open(&path).and_then(|file| {
            let mut writer = BufWriter::new(file);
            fill_file(&mut writer)?;
            writer.flush()
        })
    } else {
        // `write_with` takes a closure that is called once.
        atomic_file::write_with(&path, fill_file)
    };
    match failure {
        Some(error) => Err(error),
        None => written.with_context(|| format!("cannot write {}", path.display())),
    }
}

fn compressed(
    file: &mut BufWriter<File>,
    gzip: bool,
    fill: impl FnOnce(&mut JsonLines<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if !gzip {
        return fill(&mut JsonLines { writer: file });
    }
    let mut encoder = GzEncoder::new(file, Compression::default());
    fill(&mut JsonLines { writer: &mut encoder })?;
    encoder.try_finish()?;
    Ok(())
}

/// The file behind links, and whether it is something that cannot be replaced by renaming (a pipe, a device).
fn resolve(target: &str) -> (PathBuf, bool) {
    let path = std::fs::canonicalize(target).unwrap_or_else(|_| PathBuf::from(target));
    let special = path.exists() && !path.is_file();
    (path, special)
}
