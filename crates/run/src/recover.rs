//! Cleaning up after a process that died while it published something.

use crate::error::{Result, RunError};
use pt_core::atomic_file::is_temporary;
use std::fs;
use std::path::{Path, PathBuf};

/// Removes what an interrupted writer left directly inside `dir`, and returns what was removed.
///
/// Publishing a folder over an older one moves the older one aside as `.NAME.old.partial` for a
/// moment. If the process died in that moment, the older one is complete and the only one: it is
/// moved back. Every other `.*.partial` is unfinished and deleted. A missing `dir` has nothing to
/// clean.
///
/// # Errors
/// [`RunError::Io`] when the folder cannot be read or changed.
pub fn recover_partials(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for path in partials(dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let published =
            name.strip_prefix('.').and_then(|n| n.strip_suffix(".old.partial")).map(|n| dir.join(n));
        match published {
            Some(published) if !published.exists() => {
                fs::rename(&path, &published).map_err(RunError::io("restore", &published))?;
            }
            _ => {
                remove_all(&path)?;
                removed.push(path);
            }
        }
    }
    Ok(removed)
}

/// Deletes a published folder so that a death half-way leaves a `.partial`, never half a folder.
pub(crate) fn remove_published(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let aside = path.with_file_name(format!(".{name}.gone.partial"));
    if aside.exists() {
        remove_all(&aside)?;
    }
    fs::rename(path, &aside).map_err(RunError::io("remove", path))?;
    remove_all(&aside)
}

/// The temporaries in `dir`, sorted by name.
fn partials(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(RunError::io("read", dir)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(RunError::io("read", dir))?;
        if entry.file_name().to_str().is_some_and(is_temporary) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn remove_all(path: &Path) -> Result<()> {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    result.map_err(RunError::io("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds `dirs` (each with one file), recovers, and returns the names that remain.
    fn check(dirs: &[&str], expected: &[&str]) {
        let root = tempfile::tempdir().unwrap();
        for name in dirs {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("file"), name).unwrap();
        }
        recover_partials(root.path()).unwrap();
        let mut left: Vec<String> = fs::read_dir(root.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, expected, "from {dirs:?}");
    }

    #[test]
    fn unfinished_folders_go_and_an_older_complete_one_comes_back() {
        check(&["model", ".model.partial"], &["model"]);
        check(&[".model.partial"], &[]);
        check(&[".model.old.partial", ".model.partial"], &["model"]);
        check(&["model", ".model.old.partial"], &["model"]);
        check(&[".model.gone.partial", "other"], &["other"]);
    }

    #[test]
    fn a_missing_folder_has_nothing_to_clean() {
        assert!(recover_partials(Path::new("/nonexistent/folder")).unwrap().is_empty());
    }
}
