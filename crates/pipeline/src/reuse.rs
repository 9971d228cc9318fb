//! Stages that another run has carried out already: the same plan up to there, the same tokenizer, so the same result.
//!
//! A complete stage of the same key (see `graph`) in another run folder is taken over, whatever its place and name there: its files
//! are linked (or copied where that is not possible), its metrics written again. Checkpoints stay behind; a complete stage needs none.
//!
//! A stage that measures and then judges what it found is taken over in part where only the judgement changed: a gate whose threshold
//! was raised measures no model again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pt_run::{RunFolder, StageFolder};

use crate::error::{PipelineError, Result};
use crate::report::StageReport;

/// Left behind: what only an unfinished stage needs.
const NOT_TAKEN: &[&str] = &["checkpoints", "outcome.json", crate::reference::FOLDER];

/// A stage of another run.
pub(crate) struct Found {
    /// The run.
    pub run: PathBuf,
    /// The stage's folder there.
    pub label: String,
    /// What it did.
    pub report: StageReport,
}

/// A run that has carried out the stage of this key, and what it found; the first of `candidates`, in order.
pub(crate) fn find(candidates: &[PathBuf], key: &str, needs_model: bool) -> Option<Found> {
    candidates.iter().find_map(|run| {
        let mut labels: Vec<String> = fs::read_dir(run.join("stages"))
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        labels.sort();
        labels.into_iter().find_map(|label| {
            let stage = run.join("stages").join(&label);
            let outcome = fs::read(stage.join("outcome.json")).ok()?;
            let report: StageReport = serde_json::from_slice(&outcome).ok()?;
            let has_model = !needs_model || stage.join("model").is_dir();
            (report.key == key && has_model).then(|| Found { run: run.clone(), label, report })
        })
    })
}

/// Where a stage that measures leaves the key of what it found.
const FOUND: &str = "found.key";

/// Notes the key of what a stage is about to find, in its folder.
///
/// # Errors
/// A file that cannot be written.
pub(crate) fn note_found(stage: &StageFolder, key: &str) -> Result<()> {
    let path = stage.root().join(FOUND);
    pt_core::atomic_file::write(&path, key.as_bytes()).map_err(PipelineError::io("write", &path))
}

/// Takes over what a stage of another run found, whole or in part, whether or not that stage was then judged good; gives the run. It
/// is the caller's to go on from there.
///
/// # Errors
/// Files that cannot be read or written.
pub(crate) fn adopt_found(candidates: &[PathBuf], key: &str, stage: &StageFolder) -> Result<Option<PathBuf>> {
    let has_found = |folder: &&PathBuf| fs::read(folder.join(FOUND)).is_ok_and(|own| own == key.as_bytes());
    // A run that is resumed goes on from its own.
    if has_found(&&stage.root().to_owned()) {
        return Ok(None);
    }
    for run in candidates {
        let Ok(stages) = fs::read_dir(run.join("stages")) else { continue };
        let mut folders: Vec<PathBuf> = stages.filter_map(|entry| Some(entry.ok()?.path())).collect();
        folders.sort();
        if let Some(from) = folders.iter().find(has_found) {
            link_folder(from, stage)?;
            return Ok(Some(run.clone()));
        }
    }
    Ok(None)
}

/// Links what a stage left into another stage's folder.
fn link_folder(from: &Path, stage: &StageFolder) -> Result<()> {
    for entry in fs::read_dir(from).map_err(PipelineError::io("read", from))? {
        let entry = entry.map_err(PipelineError::io("read", from))?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| NOT_TAKEN.contains(&name) || name.starts_with('.')) {
            continue;
        }
        let to = stage.root().join(&name);
        link_all(&entry.path(), &to).map_err(PipelineError::io("take over", &to))?;
    }
    Ok(())
}

/// Takes the stage over, and gives its report with the output where it is now. It is complete once its outcome is written, which
/// the caller does last.
///
/// # Errors
/// Files that cannot be read or written.
pub(crate) fn adopt(found: &Found, folder: &mut RunFolder, stage: &StageFolder) -> Result<StageReport> {
    let (run, label) = (&found.run, found.label.as_str());
    link_folder(&run.join("stages").join(label), stage)?;
    folder.resume_at(stage, 0)?;
    copy_lines(&run.join("metrics.jsonl"), label, |step, values| folder.log_metrics(stage, step, values))?;
    copy_lines(&run.join("timing.jsonl"), label, |step, values| folder.log_timing(stage, step, values))?;
    folder.sync()?;
    let mut report = found.report.clone();
    let there = Path::new("stages").join(label);
    if let Ok(rest) = report.output.strip_prefix(&there) {
        report.output = Path::new("stages").join(stage.label()).join(rest);
    }
    Ok(report)
}

/// The same files under another name; what was there is replaced.
fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            link_all(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Published files are replaced, never written into, so two runs may share one.
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop))
}

/// Calls `log(step, values)` for every line of the stage called `label`.
fn copy_lines(
    path: &Path,
    label: &str,
    mut log: impl FnMut(u64, Vec<(&str, f64)>) -> pt_run::Result<()>,
) -> Result<()> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(PipelineError::Io { action: "read", path: path.to_owned(), source }),
    };
    for line in text.lines() {
        let Ok(serde_json::Value::Object(line)) = serde_json::from_str(line) else { continue };
        if line.get("stage").and_then(|label| label.as_str()) != Some(label) {
            continue;
        }
        let Some(step) = line.get("step").and_then(serde_json::Value::as_u64) else { continue };
        let number = |value: &serde_json::Value| match value.as_str() {
            Some("NaN") => Some(f64::NAN),
            Some("inf") => Some(f64::INFINITY),
            Some("-inf") => Some(f64::NEG_INFINITY),
            _ => value.as_f64(),
        };
        let values = line.iter().filter(|(key, _)| !matches!(key.as_str(), "stage" | "step"));
        let values = values.filter_map(|(key, value)| Some((key.as_str(), number(value)?))).collect();
        log(step, values)?;
    }
    Ok(())
}
