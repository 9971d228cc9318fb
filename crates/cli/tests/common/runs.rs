//! What a run has left in its folder.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

use std::path::{Path, PathBuf};

/// Everything a run produced, but not when, nor its checkpoints: a stopped run saves one more.
pub fn produced(run: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = vec![(PathBuf::from("metrics.jsonl"), std::fs::read(run.join("metrics.jsonl")).unwrap())];
    let mut open = vec![run.join("stages")];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            match () {
                () if path.ends_with("checkpoints") => {}
                () if path.is_dir() => open.push(path),
                () => found.push((path.strip_prefix(run).unwrap().to_owned(), std::fs::read(&path).unwrap())),
            }
        }
    }
    found.sort();
    found
}

/// The two runs produced the same files with the same bytes.
pub fn assert_same(a: &Path, b: &Path, case: &str) {
    let (a, b) = (produced(a), produced(b));
    let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b), "{case}");
    for ((path, a), (_, b)) in a.iter().zip(&b) {
        assert!(a == b, "{case}: {} differs", path.display());
    }
    let is_model = |path: &Path| path.extension().is_some_and(|extension| extension == "safetensors");
    assert!(a.iter().any(|(path, _)| is_model(path)), "{case}: no model was compared");
}

/// What is left under a temporary name.
pub fn partial_files(run: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![run.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().ends_with(".partial") {
                found.push(path.clone());
            }
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    found
}

/// Lines of metrics so far.
pub fn n_lines(run: &Path) -> usize {
    std::fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}
