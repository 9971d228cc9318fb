//! From a location in a recipe to the files that hold its rows.
//!
//! | location | files |
//! |---|---|
//! | a file | that file |
//! | a glob pattern | every match, sorted |
//! | a folder | the data files of the split, found anywhere below it |
//! | `name` or `organisation/name` | the same, in the newest snapshot of the hub cache |
//!
//! A file belongs to a split when its name without shard numbers (`train-00000-of-00003.parquet`), a
//! word of its name (`data_train.jsonl`), or a folder above it (`train/part1.jsonl`) is the split's name.
//! A folder whose file names mention no split at all is all `train`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{ReadOptions, format_by_name, without_compression};
use crate::error::DataError;

/// Other names under which people store a split.
const SPLIT_NAMES: &[&[&str]] =
    &[&["train", "training"], &["valid", "validation", "val", "dev", "eval"], &["test", "testing"]];

/// Files that lie beside data and are not data.
const NOT_DATA: &[&str] = &[
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
    "dataset_dict.json",
    "config.json",
    "metadata.json",
];

/// Folders are searched this deep.
const DEPTH_MAX: usize = 8;

/// The files at `location`, sorted by name.
///
/// # Errors
/// When nothing is there, when the folder lacks the split, when the hub dataset is not downloaded.
pub fn locate(location: &str, options: &ReadOptions) -> Result<Vec<PathBuf>, DataError> {
    let path = Path::new(location);
    if path.is_dir() {
        return files_of_split(path, options);
    }
    if path.exists() {
        return Ok(vec![path.to_owned()]);
    }
    if location.contains(['*', '?', '[']) {
        return matches(location);
    }
    if is_hub_name(location) {
        return files_of_split(&snapshot(location, options)?, options);
    }
    let detail = "a relative path is taken from the current folder".to_owned();
    Err(DataError::NotFound { location: location.to_owned(), detail })
}

fn matches(pattern: &str) -> Result<Vec<PathBuf>, DataError> {
    let not_found = |detail: String| DataError::NotFound { location: pattern.to_owned(), detail };
    let mut found = Vec::new();
    for entry in glob::glob(pattern).map_err(|error| not_found(format!("bad pattern: {error}")))? {
        let path = entry.map_err(|error| {
            let path = error.path().to_owned();
            DataError::Io { path, action: "search", source: error.into() }
        })?;
        if path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() { Err(not_found("the pattern matches no file".to_owned())) } else { Ok(found) }
}

/// `name` or `organisation/name`, and nothing that looks like a path or a file.
fn is_hub_name(location: &str) -> bool {
    let parts: Vec<&str> = location.split('/').collect();
    let fits = |part: &&str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    parts.len() <= 2 && parts.iter().all(fits) && format_by_name(Path::new(location)).is_none()
}

/// The folder of the revision `main` points to, or else of the newest snapshot.
fn snapshot(name: &str, options: &ReadOptions) -> Result<PathBuf, DataError> {
    let Some(home) = &options.hf_home else {
        let detail = "no such path, and no hub cache folder is set".to_owned();
        return Err(DataError::NotFound { location: name.to_owned(), detail });
    };
    let repository = home.join("hub").join(format!("datasets--{}", name.replace('/', "--")));
    let snapshots = repository.join("snapshots");
    if let Ok(revision) = fs::read_to_string(repository.join("refs/main")) {
        let dir = snapshots.join(revision.trim());
        if dir.is_dir() {
            return Ok(dir);
        }
    }
    let newest =
        fs::read_dir(&snapshots).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    let newest = newest.max_by_key(|entry| (entry.metadata().and_then(|m| m.modified()).ok(), entry.path()));
    newest
        .map(|entry| entry.path())
        .ok_or_else(|| DataError::HubAbsent { name: name.to_owned(), looked_in: snapshots })
}

/// A data file below a folder.
struct Candidate {
    path: PathBuf,
    /// Lower-case folders between the root and the file.
    folders: Vec<String>,
    /// Lower-case file name without extensions and shard numbers.
    stem: String,
}

impl Candidate {
    fn is_in(&self, names: &[String]) -> bool {
        self.folders.iter().chain([&self.stem]).any(|name| names.contains(name))
            || self.stem.split(['-', '_', '.']).any(|word| names.iter().any(|name| name == word))
    }

    /// The configuration a hub dataset would call this: its folder, unless that is `data` or a split.
    fn subset(&self) -> &str {
        let known: Vec<&str> = SPLIT_NAMES.concat();
        let named = self.folders.iter().rev().find(|folder| !known.contains(&folder.as_str()));
        named.map_or("", |folder| if folder == "data" { "" } else { folder.as_str() })
    }
}

fn files_of_split(dir: &Path, options: &ReadOptions) -> Result<Vec<PathBuf>, DataError> {
    let mut candidates = Vec::new();
    collect(dir, &mut Vec::new(), &mut candidates)?;
    if candidates.is_empty() {
        let detail = "the folder holds no jsonl, json, parquet, csv, tsv or text file".to_owned();
        return Err(DataError::NotFound { location: dir.display().to_string(), detail });
    }
    let relative = |c: &Candidate| c.path.strip_prefix(dir).unwrap_or(&c.path).display().to_string();
    let found = list(candidates.iter().map(relative));
    let mut chosen = of_split(candidates, &options.split);
    if let Some(subset) = &options.subset {
        let subset = subset.to_ascii_lowercase();
        chosen.retain(|c| c.folders.contains(&subset));
    }
    if chosen.is_empty() {
        return Err(DataError::NoSplit { dir: dir.to_owned(), split: options.split.clone(), found });
    }
    let subsets: BTreeSet<&str> = chosen.iter().map(Candidate::subset).collect();
    if subsets.len() > 1 {
        let named = |s: &&str| if s.is_empty() { "(top folder)".to_owned() } else { (*s).to_owned() };
        let found = list(subsets.iter().map(named));
        return Err(DataError::SeveralSubsets { dir: dir.to_owned(), split: options.split.clone(), found });
    }
    let mut files: Vec<PathBuf> = chosen.into_iter().map(|c| c.path).collect();
    files.sort();
    Ok(files)
}

/// The candidates of a split; all of them for `train` when no name mentions any split.
fn of_split(candidates: Vec<Candidate>, split: &str) -> Vec<Candidate> {
    let names = names_of(split);
    let any_split: Vec<String> = SPLIT_NAMES.concat().into_iter().map(str::to_owned).collect();
    if !candidates.iter().any(|c| c.is_in(&any_split) || c.is_in(&names)) {
        return if names_of("train").contains(&split.to_ascii_lowercase()) { candidates } else { Vec::new() };
    }
    let mut chosen: Vec<Candidate> = candidates.into_iter().filter(|c| c.is_in(&names)).collect();
    // A file named exactly like the split goes before one that merely mentions it (`train_extra.jsonl`).
    if chosen.iter().any(|c| names.contains(&c.stem)) {
        chosen.retain(|c| names.contains(&c.stem));
    }
    chosen
}

fn names_of(split: &str) -> Vec<String> {
    let split = split.to_ascii_lowercase();
    let known = SPLIT_NAMES.iter().find(|names| names.contains(&split.as_str()));
    known.map_or_else(|| vec![split], |names| names.iter().map(|name| (*name).to_owned()).collect())
}

fn collect(dir: &Path, folders: &mut Vec<String>, into: &mut Vec<Candidate>) -> Result<(), DataError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(DataError::io(dir, "list"))? {
        entries.push(entry.map_err(DataError::io(dir, "list"))?.path());
    }
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            if folders.len() < DEPTH_MAX {
                folders.push(name);
                collect(&path, folders, into)?;
                folders.pop();
            }
        } else if format_by_name(&path).is_some()
            && !NOT_DATA.contains(&name.as_str())
            && !name.ends_with(".md")
        {
            let stem = stem(&name);
            into.push(Candidate { path, folders: folders.clone(), stem });
        }
    }
    Ok(())
}

/// `train-00000-of-00003.parquet` is `train`; `test.jsonl.gz` is `test`.
fn stem(name: &str) -> String {
    let name = without_compression(name);
    let name = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let shard = name.rsplit_once("-of-").and_then(|(left, total)| {
        let (stem, number) = left.rsplit_once('-')?;
        (digits(total) && digits(number)).then_some(stem)
    });
    shard.unwrap_or(name).to_owned()
}

/// At most a dozen names in a message.
fn list(names: impl ExactSizeIterator<Item = String>) -> String {
    const SHOWN_MAX: usize = 12;
    let n = names.len();
    let shown = names.take(SHOWN_MAX).collect::<Vec<_>>().join(", ");
    if n > SHOWN_MAX { format!("{shown} and {} more", n - SHOWN_MAX) } else { shown }
}
