//! The rollouts of a run: one file a step, so that samples can be read, sorted and trained on again.
//!
//! `rollouts/step-00000012.jsonl.zst` (or `.jsonl`) has one [`RolloutRecord`] a line, groups in order. A file appears whole or not at
//! all, whenever the writer dies; writing a step again replaces its file with the same bytes. What a resumed or rolled-back run will
//! sample again is removed by [`RolloutsFolder::truncate_after`].
//!
//! Log-probabilities come back bit for bit: a number is written with the shortest digits that are read as itself.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use pt_core::atomic_file;
use pt_verify::Verdict;
use serde::{Deserialize, Serialize};

use crate::RlError;

/// zstd's level: fast, a quarter of the size.
const COMPRESSION_LEVEL: i32 = 3;

/// What one verifier said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedVerdict {
    /// The reward's name.
    pub name: String,
    /// Its verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// What a critic makes of a sample, token by token: kept because the values are those of weights that are gone afterwards.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenCredit {
    /// Values of the states in which each token was chosen.
    pub values: Vec<f32>,
    /// Advantages.
    pub advantages: Vec<f32>,
    /// What the values should be.
    pub returns: Vec<f32>,
}

impl TokenCredit {
    /// Whether there is no critic.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    fn arrays(&self) -> [(&[f32], &'static str); 3] {
        [(&self.values, "values"), (&self.advantages, "advantages"), (&self.returns, "returns")]
    }
}

/// A turn of a sample from an environment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TurnRecord {
    /// `assistant`, or who else spoke.
    pub role: String,
    /// What was said, special tokens removed.
    pub text: String,
    /// Its tokens among the sample's, in order; what the chat template writes around it counts with it.
    pub n_tokens: usize,
}

/// One sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutRecord {
    /// The step that trained on it.
    pub step: u64,
    /// Its group, unique within the step.
    pub group: usize,
    /// Which of the group's samples it is.
    pub sample: usize,
    /// Where the prompt came from: file and line, or family and key of a generated problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The prompt as text, where it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_text: Option<String>,
    /// The prompt's tokens.
    pub prompt_ids: Vec<u32>,
    /// The sample's tokens, the end of turn included where it was sampled.
    pub completion_ids: Vec<u32>,
    /// The sample as text.
    pub text: String,
    /// `[completion_ids]`: log-probabilities as sampled.
    pub logprobs: Vec<f32>,
    /// `[completion_ids]`: log-probabilities under the distribution that was sampled from, where it was filtered (top-k, top-p,
    /// min-p); empty where they are `logprobs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sampler_logprobs: Vec<f32>,
    /// `[completion_ids]`: loss weights, where not every token was sampled (tool results); empty if all are 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<f32>,
    /// The turns, where an environment stood between them; otherwise empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<TurnRecord>,
    /// What each verifier said.
    pub verdicts: Vec<NamedVerdict>,
    /// The reward; none if nothing could judge it.
    pub reward: Option<f64>,
    /// The advantage it trained with.
    pub advantage: f32,
    /// `[completion_ids]`: values, advantages and returns of each token, where there is a critic; otherwise empty.
    #[serde(default, skip_serializing_if = "TokenCredit::is_empty")]
    pub tokens: TokenCredit,
    /// Why it ended: `stop`, `length`, ...
    pub finish_reason: String,
}

impl RolloutRecord {
    /// Refuses what JSON cannot hold, and arrays that do not fit.
    fn check(&self) -> Result<(), String> {
        let n = self.completion_ids.len();
        if self.logprobs.len() != n {
            return Err(format!("it has {n} tokens and {} log-probabilities", self.logprobs.len()));
        }
        for (values, what) in
            [(&self.weights, "weights"), (&self.sampler_logprobs, "sampler's log-probabilities")]
        {
            if !values.is_empty() && values.len() != n {
                return Err(format!("it has {n} tokens and {} {what}", values.len()));
            }
        }
        let numbers = self.logprobs.iter().chain(&self.sampler_logprobs).chain(&self.weights);
        let n_values = self.tokens.values.len();
        for (array, what) in self.tokens.arrays() {
            if array.len() != n_values || (n_values != 0 && n_values != n) {
                return Err(format!("it has {n} tokens and {} {what}", array.len()));
            }
        }
        let credit = self.tokens.arrays().into_iter().flat_map(|(array, _)| array);
        let numbers = numbers.chain([&self.advantage]).chain(credit);
        match numbers.copied().map(f64::from).chain(self.reward).find(|value| !value.is_finite()) {
            Some(value) => Err(format!("a log-probability, weight, reward or advantage is {value}")),
            None => Ok(()),
        }
    }
}

/// The folder of rollouts files.
#[derive(Clone, Debug)]
pub struct RolloutsFolder {
    dir: PathBuf,
    is_compressed: bool,
}

fn io_error<'p>(action: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> RlError + 'p {
    move |source| RlError::Io { action, path: path.to_owned(), source }
}

impl RolloutsFolder {
    /// Opens the folder, making it if need be. Files of either kind are read; new ones are compressed or not as told.
    ///
    /// # Errors
    /// [`RlError::Io`].
    pub fn open(dir: impl Into<PathBuf>, is_compressed: bool) -> Result<RolloutsFolder, RlError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(io_error("make", &dir))?;
        Ok(RolloutsFolder { dir, is_compressed })
    }

    fn paths(&self, step: u64) -> [PathBuf; 2] {
        [".jsonl", ".jsonl.zst"].map(|end| self.dir.join(format!("step-{step:08}{end}")))
    }

    /// Writes a step's file: whole, or not at all.
    ///
    /// # Errors
    /// [`RlError::Record`] for a record that cannot be written as it is, [`RlError::Io`] for a full disk; an older file is then
    /// untouched.
    pub fn write(&self, step: u64, records: &[RolloutRecord]) -> Result<PathBuf, RlError> {
        let [plain, compressed] = self.paths(step);
        let (path, other) = if self.is_compressed { (compressed, plain) } else { (plain, compressed) };
        for (i, record) in records.iter().enumerate() {
            record.check().map_err(|problem| RlError::Record { path: path.clone(), line: i + 1, problem })?;
        }
        atomic_file::write_with(&path, |file| {
            if !self.is_compressed {
                return write_lines(file, records);
            }
            let mut encoder = zstd::Encoder::new(file, COMPRESSION_LEVEL)?;
            encoder.include_checksum(true)?;
            write_lines(&mut encoder, records)?;
            encoder.finish().map(|_| ())
        })
        .map_err(io_error("write", &path))?;
        // One step, one file: an older one of the other kind would be read in its place.
        match fs::remove_file(&other) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &other)(error)),
            _ => Ok(path),
        }
    }

    /// The steps that have a file, in order.
    ///
    /// # Errors
    /// [`RlError::Io`].
    pub fn steps(&self) -> Result<Vec<u64>, RlError> {
        let mut steps = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io_error("list", &self.dir))? {
            let name = entry.map_err(io_error("list", &self.dir))?.file_name();
            steps.extend(step_of(&name.to_string_lossy()));
        }
        steps.sort_unstable();
        steps.dedup();
        Ok(steps)
    }

    /// A step's records, none if it has no file.
    ///
    /// # Errors
    /// [`RlError::Io`] or [`RlError::Record`] with the line.
    pub fn read(&self, step: u64) -> Result<Option<Vec<RolloutRecord>>, RlError> {
        self.paths(step).iter().find(|path| path.exists()).map(|path| read_file(path)).transpose()
    }

    /// Moves the files of steps after `last`, or all of them, into the folder `undone`: what led to an alarm can still be looked at,
    /// and is no longer among what the model learned from.
    ///
    /// # Errors
    /// [`RlError::Io`].
    pub fn set_aside_after(&self, last: Option<u64>) -> Result<(), RlError> {
        let undone = self.dir.join("undone");
        fs::create_dir_all(&undone).map_err(io_error("make", &undone))?;
        for step in self.steps()?.into_iter().filter(|step| last.is_none_or(|last| *step > last)) {
            for path in self.paths(step).iter().filter(|path| path.exists()) {
                let name = path.file_name().expect("files have names");
                fs::rename(path, undone.join(name)).map_err(io_error("move", path))?;
            }
        }
        Ok(())
    }

    /// Removes the files of steps after `last`, or all of them, and what an interrupted writer left.
    ///
    /// # Errors
    /// [`RlError::Io`].
    pub fn truncate_after(&self, last: Option<u64>) -> Result<(), RlError> {
        for entry in fs::read_dir(&self.dir).map_err(io_error("list", &self.dir))? {
            let entry = entry.map_err(io_error("list", &self.dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_later = step_of(&name).is_some_and(|step| last.is_none_or(|last| step > last));
            if is_later || (atomic_file::is_temporary(&name) && name.starts_with(".step-")) {
                fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
            }
        }
        Ok(())
    }
}

fn step_of(name: &str) -> Option<u64> {
    let name = name.strip_prefix("step-")?;
    name.strip_suffix(".jsonl").or_else(|| name.strip_suffix(".jsonl.zst"))?.parse().ok()
}

fn write_lines(out: &mut impl Write, records: &[RolloutRecord]) -> io::Result<()> {
    for record in records {
        serde_json::to_writer(&mut *out, record)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// The records of a file; one that ends in `.zst` is decompressed.
///
/// # Errors
/// [`RlError::Io`], [`RlError::Record`] with the line.
pub fn read_file(path: &Path) -> Result<Vec<RolloutRecord>, RlError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let reader: Box<dyn BufRead> = match path.extension().is_some_and(|end| end == "zst") {
        true => Box::new(BufReader::new(zstd::Decoder::new(file).map_err(io_error("read", path))?)),
        false => Box::new(BufReader::new(file)),
    };
    let mut records = Vec::new();
    for (i, line) in reader.lines().enumerate() {
        let line = line.map_err(io_error("read", path))?;
        let problem = |problem: String| RlError::Record { path: path.to_owned(), line: i + 1, problem };
        let record: RolloutRecord = serde_json::from_str(&line).map_err(|e| problem(e.to_string()))?;
        record.check().map_err(problem)?;
        records.push(record);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pt_core::rng::Stream;

    fn record(step: u64, sample: usize, logprobs: Vec<f32>) -> RolloutRecord {
        let n = logprobs.len();
        RolloutRecord {
            step,
            group: sample / 4,
            sample: sample % 4,
            origin: Some("data.jsonl:3".to_owned()),
            prompt_text: Some("1 + 1 = \u{2028}\n\"?\"".to_owned()),
            prompt_ids: vec![1, 2, 3],
            completion_ids: (0..n as u32).collect(),
            text: "2\u{0}😀".to_owned(),
            logprobs,
            sampler_logprobs: Vec::new(),
            weights: vec![1.0; n],
            turns: vec![TurnRecord { role: "assistant".to_owned(), text: "2".to_owned(), n_tokens: n }],
            verdicts: vec![
                NamedVerdict { name: "math".to_owned(), verdict: Verdict::pass("2 is 2") },
                NamedVerdict { name: "format".to_owned(), verdict: Verdict::skip("no gold answer") },
            ],
            reward: Some(0.1 + 0.2),
            advantage: -1.234_567_8,
            tokens: TokenCredit::default(),
            finish_reason: "stop".to_owned(),
        }
    }

    #[test]
    fn records_come_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let mut draws = Stream::new(3, "bits").at(0);
        // Any finite number, and many of the size of log-probabilities.
        let any: Vec<f32> =
            (0..200_000).map(|_| f32::from_bits(draws.next_u32())).filter(|v| v.is_finite()).collect();
        let usual: Vec<f32> = (0..200_000).map(|_| -(draws.uniform() as f32) * 30.0).collect();
        for is_compressed in [true, false] {
            let folder =
                RolloutsFolder::open(dir.path().join(is_compressed.to_string()), is_compressed).unwrap();
            let records = [record(7, 0, any.clone()), record(7, 5, usual.clone()), record(7, 6, vec![])];
            folder.write(7, &records).unwrap();
            let found = folder.read(7).unwrap().unwrap();
            for (a, b) in found.iter().zip(&records) {
                let bits = |r: &RolloutRecord| r.logprobs.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
                assert!(bits(a) == bits(b), "log-probabilities");
                assert_eq!(a.reward.unwrap().to_bits(), b.reward.unwrap().to_bits());
            }
            assert!(found == records);
        }
    }

    #[test]
    fn a_step_has_one_file_and_later_ones_can_be_removed() {
        let dir = tempfile::tempdir().unwrap();
        let plain = RolloutsFolder::open(dir.path(), false).unwrap();
        let compressed = RolloutsFolder::open(dir.path(), true).unwrap();
        for step in [1, 2, 10] {
            plain.write(step, &[record(step, 0, vec![-1.0])]).unwrap();
        }
        compressed.write(2, &[record(2, 1, vec![-2.0])]).unwrap();
        assert_eq!(plain.steps().unwrap(), [1, 2, 10]);
        assert_eq!(plain.read(2).unwrap().unwrap()[0].sample, 1);
        assert!(plain.read(3).unwrap().is_none());
        let first = fs::read(compressed.write(2, &[record(2, 1, vec![-2.0])]).unwrap()).unwrap();
        let again = fs::read(compressed.write(2, &[record(2, 1, vec![-2.0])]).unwrap()).unwrap();
        assert_eq!(first, again, "the same bytes");
        fs::write(dir.path().join(".step-00000011.jsonl.99.partial"), b"{").unwrap();
        fs::write(dir.path().join("notes.txt"), b"mine").unwrap();
        plain.truncate_after(Some(2)).unwrap();
        assert_eq!(plain.steps().unwrap(), [1, 2]);
        plain.truncate_after(None).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.txt"]);
    }

    #[test]
    fn what_cannot_be_kept_exactly_is_refused_and_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RolloutsFolder::open(dir.path(), true).unwrap();
        folder.write(1, &[record(1, 0, vec![-1.0])]).unwrap();
        let check = |change: &dyn Fn(&mut RolloutRecord), expected: &str| {
            let mut bad = record(1, 0, vec![-1.0, -2.0]);
            change(&mut bad);
            let error = folder.write(1, &[record(1, 0, vec![]), bad]).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("line 2"), "{error}");
            assert_eq!(folder.read(1).unwrap().unwrap()[0].logprobs, [-1.0]);
        };
        check(&|r| r.logprobs[1] = f32::NEG_INFINITY, "is -inf");
        check(&|r| r.reward = Some(f64::NAN), "is NaN");
        check(&|r| r.logprobs.truncate(1), "2 tokens and 1 log-probabilities");
        check(&|r| r.weights.push(1.0), "2 tokens and 3 weights");
    }

    #[test]
    fn damaged_files_are_errors_with_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let plain = RolloutsFolder::open(dir.path(), false).unwrap();
        let path = plain.write(1, &[record(1, 0, vec![-1.0]), record(1, 1, vec![-1.0])]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 9]).unwrap();
        let error = plain.read(1).unwrap_err().to_string();
        assert!(error.contains("step-00000001.jsonl, line 2"), "{error}");
        let compressed = RolloutsFolder::open(dir.path(), true).unwrap();
        let path = compressed.write(2, &[record(2, 0, vec![-1.0])]).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(&path, bytes).unwrap();
        assert!(compressed.read(2).is_err());
    }
}
