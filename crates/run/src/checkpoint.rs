//! Checkpoints that are whole or absent, and that prove it when they are read.
//!
//! A checkpoint is a folder `step-000123/` with `tensors.safetensors` and `state.json`. The first
//! line of `state.json` is the BLAKE3 of the rest of it, and the rest holds length and BLAKE3 of
//! every other file, so any changed, missing or added byte is noticed before a tensor is used.

use crate::error::{Result, RunError};
use crate::recover::{recover_partials, remove_published};
use crate::tensors::{OwnedTensor, TensorEntry, read_tensors, write_tensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The newest checkpoint format this program reads, and the one it writes.
const FORMAT_VERSION: u64 = 1;
pub(crate) const TENSORS_FILE: &str = "tensors.safetensors";
pub(crate) const STATE_FILE: &str = "state.json";
/// How `state.json` begins in every format version, now and later; the hash follows.
const SEAL: &str = "{\"blake3_of_the_rest\":\"";
const HASH_LEN: usize = 64;

/// What a run needs, beside its tensors, to go on as if it had never stopped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointState {
    /// Steps completed.
    pub step: u64,
    /// Hash of the plan the run follows.
    pub plan_hash: String,
    /// The recipe's seed. Draws are keyed by (seed, stream, index), so no generator state is needed.
    pub seed: u64,
    /// Where the data reader stands, in the reader's own terms.
    pub data: Value,
    /// Counters that go on, such as `num_tokens`.
    pub counters: BTreeMap<String, u64>,
    /// Metrics measured at this step, among them the one that decides which checkpoint is best.
    pub metrics: BTreeMap<String, f64>,
    /// Whatever else the trainer keeps.
    pub extra: Value,
}

/// Length and hash of one file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3, in hexadecimal.
    pub blake3: String,
}

/// A checkpoint that was read and found whole.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Its state.
    pub state: CheckpointState,
    /// Its tensors. Take them out one by one to keep peak memory low.
    pub tensors: BTreeMap<String, OwnedTensor>,
}

impl Checkpoint {
    /// Refuses a checkpoint of another plan.
    ///
    /// # Errors
    /// [`RunError::PlanChanged`].
    pub fn expect_plan(&self, plan_hash: &str) -> Result<()> {
        if self.state.plan_hash == plan_hash {
            return Ok(());
        }
        Err(RunError::PlanChanged {
            path: self.path.clone(),
            expected: plan_hash.to_owned(),
            found: self.state.plan_hash.clone(),
        })
    }

    /// Takes the tensor `name` out.
    ///
    /// # Errors
    /// [`RunError::TensorMismatch`] when it is not there.
    pub fn take(&mut self, name: &str) -> Result<OwnedTensor> {
        self.tensors.remove(name).ok_or_else(|| RunError::TensorMismatch {
            name: name.to_owned(),
            expected: "a tensor of this name".to_owned(),
            found: format!("none in {}", self.path.display()),
        })
    }
}

/// What [`CheckpointStore::latest_valid`] found.
#[derive(Debug)]
pub struct Found {
    /// The newest whole checkpoint; `None` when the folder holds no checkpoint at all.
    pub checkpoint: Option<Checkpoint>,
    /// The damaged ones that were passed over, newest first, each a [`RunError::Corrupt`].
    pub skipped: Vec<RunError>,
}

/// Which metric makes a checkpoint the best one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BestBy {
    /// Its key in [`CheckpointState::metrics`].
    pub metric: String,
    /// Whether more is better.
    pub higher_is_better: bool,
}

impl BestBy {
    /// Equals are not better, nor is NaN.
    fn is_better(&self, value: f64, than: f64) -> bool {
        if self.higher_is_better { value > than } else { value < than }
    }
}

/// Which checkpoints stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How many of the newest; at least one always stays.
    pub keep_last: usize,
    /// Also the best one by this metric; the earlier of two equals.
    pub best: Option<BestBy>,
}

/// The checkpoints of one stage.
#[derive(Debug)]
pub struct CheckpointStore {
    dir: PathBuf,
    retention: Retention,
}

impl CheckpointStore {
    /// Opens or creates `dir` and clears away what a dead writer left unfinished.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn open(dir: &Path, retention: Retention) -> Result<CheckpointStore> {
        fs::create_dir_all(dir).map_err(RunError::io("create", dir))?;
        recover_partials(dir)?;
        Ok(CheckpointStore { dir: dir.to_owned(), retention })
    }

    /// Publishes a checkpoint of `state.step`, replacing one of the same step, then removes those
    /// that need not stay. Returns its folder.
    ///
    /// # Errors
    /// [`RunError::Io`], [`RunError::DuplicateTensor`], [`RunError::TensorSize`]. Nothing
    /// half-written is left, and older checkpoints are untouched.
    ///
    /// # Panics
    /// If a metric is not finite: JSON has no such number.
    pub fn save<'a>(
        &self,
        state: &CheckpointState,
        tensors: impl IntoIterator<Item = TensorEntry<'a>>,
    ) -> Result<PathBuf> {
        for (key, value) in &state.metrics {
            assert!(value.is_finite(), "metric `{key}` of a checkpoint is {value}, not a finite number");
        }
        let path = self.path_of(state.step);
        pt_core::atomic_file::publish_dir(&path, |temporary| fill(temporary, state, tensors))
            .map_err(|Located(error)| relocate(error, &path))?;
        self.prune(state.step)?;
        Ok(path)
    }

    /// The folder of the checkpoint of `step`.
    pub fn path_of(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step:06}"))
    }

    /// The steps that have a checkpoint, whole or not, in ascending order.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn steps(&self) -> Result<Vec<u64>> {
        let io = |e| RunError::io("read", &self.dir)(e);
        let mut steps = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            steps.extend(
                name.to_str().and_then(|n| n.strip_prefix("step-")).and_then(|n| n.parse::<u64>().ok()),
            );
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Reads and verifies the checkpoint in the folder `path`.
    ///
    /// # Errors
    /// [`RunError::Corrupt`] names the first damaged file; [`RunError::NewerFormat`]; [`RunError::Io`].
    pub fn load(path: &Path) -> Result<Checkpoint> {
        let sealed = read_state(path)?;
        for (name, record) in &sealed.files {
            verify(&path.join(name), record)?;
        }
        let tensors = read_tensors(&path.join(TENSORS_FILE))?;
        Ok(Checkpoint { path: path.to_owned(), state: sealed.state, tensors })
    }

    /// The newest whole checkpoint, passing over damaged ones.
    ///
    /// # Errors
    /// [`RunError::NoValidCheckpoint`] when there are some and all are damaged: starting over
    /// silently would throw work away. [`RunError::NewerFormat`] and [`RunError::Io`] are not
    /// damage and stop the search.
    pub fn latest_valid(&self) -> Result<Found> {
        let mut skipped = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            match Self::load(&self.path_of(step)) {
                Ok(checkpoint) => return Ok(Found { checkpoint: Some(checkpoint), skipped }),
                Err(error) if error.is_corruption() => skipped.push(error),
                Err(error) => return Err(error),
            }
        }
        if skipped.is_empty() {
            return Ok(Found { checkpoint: None, skipped });
        }
        let problems = skipped.iter().map(ToString::to_string).collect();
        Err(RunError::NoValidCheckpoint { path: self.dir.clone(), problems })
    }

    /// The step of the best checkpoint by the retention's metric, among those whose state is whole.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn best_step(&self) -> Result<Option<u64>> {
        Ok(self.best()?.map(|(step, _)| step))
    }

    /// Whether a checkpoint with these metrics, saved now, would be the best one kept. Never, unless the retention
    /// keeps a best one and `metrics` holds its metric, finite. Reads no tensors.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn would_be_best(&self, metrics: &BTreeMap<String, f64>) -> Result<bool> {
        let Some(by) = &self.retention.best else { return Ok(false) };
        let Some(&value) = metrics.get(&by.metric).filter(|value| value.is_finite()) else {
            return Ok(false);
        };
        Ok(self.best()?.is_none_or(|(_, old)| by.is_better(value, old)))
    }

    /// Step and value of the best checkpoint.
    fn best(&self) -> Result<Option<(u64, f64)>> {
        let Some(by) = &self.retention.best else { return Ok(None) };
        let mut best: Option<(u64, f64)> = None;
        for step in self.steps()? {
            let Ok(sealed) = read_state(&self.path_of(step)) else { continue };
            let Some(&value) = sealed.state.metrics.get(&by.metric) else { continue };
            if best.is_none_or(|(_, old)| by.is_better(value, old)) {
                best = Some((step, value));
            }
        }
        Ok(best)
    }

    /// Removes the checkpoints after `step`: those a resume from `step` will write again.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn discard_after(&self, step: u64) -> Result<()> {
        for later in self.steps()?.into_iter().filter(|&s| s > step) {
            remove_published(&self.path_of(later))?;
        }
        Ok(())
    }

    /// Keeps the newest `keep_last`, the best, and always `just_saved`.
    fn prune(&self, just_saved: u64) -> Result<()> {
        let steps = self.steps()?;
        let best = self.best_step()?;
        let n_old = steps.len().saturating_sub(self.retention.keep_last.max(1));
        for &step in &steps[..n_old] {
            if Some(step) != best && step != just_saved {
                remove_published(&self.path_of(step))?;
            }
        }
        Ok(())
    }
}

/// `state.json` as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SealedState {
    format_version: u64,
    files: BTreeMap<String, FileRecord>,
    state: CheckpointState,
}

/// Lets `publish_dir` turn its own I/O errors into ours; the path is filled in afterwards.
struct Located(RunError);

impl From<io::Error> for Located {
    fn from(source: io::Error) -> Self {
        Located(RunError::Io { action: "publish", path: PathBuf::new(), source })
    }
}

/// Errors name the checkpoint, not the temporary folder that no longer exists.
fn relocate(error: RunError, checkpoint: &Path) -> RunError {
    match error {
        RunError::Io { action, path, source } if action == "publish" || !path.starts_with(checkpoint) => {
            let path = match path.file_name() {
                Some(name) => checkpoint.join(name),
                None => checkpoint.to_owned(),
            };
            RunError::Io { action, path, source }
        }
        RunError::DuplicateTensor { name, .. } => {
            RunError::DuplicateTensor { path: checkpoint.to_owned(), name }
        }
        other => other,
    }
}

fn fill<'a>(
    dir: &Path,
    state: &CheckpointState,
    tensors: impl IntoIterator<Item = TensorEntry<'a>>,
) -> std::result::Result<(), Located> {
    let (bytes, blake3) = write_tensors(&dir.join(TENSORS_FILE), tensors).map_err(Located)?;
    let files = BTreeMap::from([(TENSORS_FILE.to_owned(), FileRecord { bytes, blake3 })]);
    let sealed = SealedState { format_version: FORMAT_VERSION, files, state: state.clone() };
    let path = dir.join(STATE_FILE);
    fs::write(&path, seal(&sealed)).map_err(|e| Located(RunError::io("write", &path)(e)))
}

/// The text of `state.json`: valid JSON whose first line is the hash of all that follows it.
fn seal(sealed: &SealedState) -> String {
    let body = serde_json::to_string_pretty(sealed).expect("a checkpoint's state is plain JSON");
    let rest = format!("\",\n\"body\":{body}}}\n");
    format!("{SEAL}{}{rest}", pt_core::hash::of_bytes(rest.as_bytes()))
}

/// Reads and verifies `state.json` of the checkpoint folder `dir`.
fn read_state(dir: &Path) -> Result<SealedState> {
    let path = dir.join(STATE_FILE);
    unseal(&path, &read_or_missing(&path)?)
}

/// The state in `bytes`, the content of `path`, if the seal holds.
fn unseal(path: &Path, bytes: &[u8]) -> Result<SealedState> {
    #[derive(Deserialize)]
    struct Outer {
        body: Value,
    }
    let corrupt = |problem: String| RunError::Corrupt { path: path.to_owned(), problem };
    let after_seal = bytes.strip_prefix(SEAL.as_bytes()).filter(|rest| rest.len() > HASH_LEN);
    let (hash, rest) =
        after_seal.ok_or_else(|| corrupt("it does not begin with its hash".into()))?.split_at(HASH_LEN);
    let found = pt_core::hash::of_bytes(rest);
    if hash != found.as_bytes() {
        return Err(corrupt(format!(
            "its content has BLAKE3 {found}, but {} was written",
            String::from_utf8_lossy(hash)
        )));
    }
    let outer: Outer = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
    match outer.body.get("format_version").and_then(Value::as_u64) {
        Some(FORMAT_VERSION) => serde_json::from_value(outer.body).map_err(|e| corrupt(e.to_string())),
        Some(found) if found > FORMAT_VERSION => {
            Err(RunError::NewerFormat { path: path.to_owned(), found, known: FORMAT_VERSION })
        }
        other => Err(corrupt(format!("it has format version {other:?}"))),
    }
}

fn verify(path: &Path, record: &FileRecord) -> Result<()> {
    let corrupt = |problem: String| RunError::Corrupt { path: path.to_owned(), problem };
    let len = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(corrupt("the file is missing".into())),
        Err(e) => return Err(RunError::io("read", path)(e)),
    };
    if len != record.bytes {
        return Err(corrupt(format!("it has {len} bytes, but {} were written", record.bytes)));
    }
    let found = pt_core::hash::of_file(path).map_err(RunError::io("read", path))?;
    if found != record.blake3 {
        return Err(corrupt(format!("its content has BLAKE3 {found}, but {} was written", record.blake3)));
    }
    Ok(())
}

fn read_or_missing(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            RunError::Corrupt { path: path.to_owned(), problem: "the file is missing".into() }
        }
        _ => RunError::io("read", path)(e),
    })
}

#[cfg(test)]
mod tests;
