//! Files and folders that appear whole or not at all.
//!
//! A reader, or a run resumed after `kill -9`, never sees half a file: content is written under a
//! temporary name in the same folder, flushed to disk, then renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes a file through `fill` and publishes it under `path` when `fill` has succeeded.
///
/// # Errors
/// Those of `fill` and of the file system; nothing is left under `path` or beside it then.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    // Two processes may write the same file, as a cache: each its own temporary one, and the last to finish wins.
    let temporary = path.with_file_name(format!(".{}.{}.partial", file_name(path), std::process::id()));
    let result = (|| {
        let mut writer = BufWriter::new(File::create(&temporary)?);
        fill(&mut writer)?;
        writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_parent(path)
    })();
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Publishes `bytes` under `path`.
///
/// # Errors
/// Those of the file system.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_with(path, |writer| writer.write_all(bytes))
}

/// Fills a new folder through `fill`, then publishes it under `path`, replacing an older one.
///
/// # Errors
/// Those of `fill` and of the file system; an older folder under `path` is then untouched.
pub fn publish_dir<E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let temporary = temporary_beside(path);
    if temporary.exists() {
        fs::remove_dir_all(&temporary)?;
    }
    fs::create_dir_all(&temporary)?;
    let result = fill(&temporary).and_then(|()| swap_in(&temporary, path).map_err(E::from));
    if result.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    result
}

/// Whether `name` is what an interrupted writer left. All are safe to delete but `.NAME.old.partial`, which is the
/// older folder `NAME` where `NAME` itself is missing.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".partial")
}

fn swap_in(temporary: &Path, path: &Path) -> io::Result<()> {
    sync_tree(temporary)?;
    if path.exists() {
        let old = path.with_file_name(format!(".{}.old.partial", file_name(path)));
        if old.exists() {
            fs::remove_dir_all(&old)?;
        }
        fs::rename(path, &old)?;
        fs::rename(temporary, path)?;
        fs::remove_dir_all(&old)?;
    } else {
        fs::rename(temporary, path)?;
    }
    sync_parent(path)
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    File::open(dir)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn temporary_beside(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.partial", file_name(path)))
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| "file".to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write(&path, b"old").unwrap();
        let error = write_with(&path, |w| {
            w.write_all(b"ne")?;
            Err(io::Error::other("disk full"))
        });
        assert!(error.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_replaces_an_older_one_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        for content in ["one", "two"] {
            publish_dir::<io::Error>(&path, |d| fs::write(d.join(content), content)).unwrap();
        }
        assert!(path.join("two").exists() && !path.join("one").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let failed = publish_dir::<io::Error>(&path, |_| Err(io::Error::other("no")));
        assert!(failed.is_err() && path.join("two").exists());
    }
}
