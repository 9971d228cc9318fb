//! Whether two runs produced the same bytes, and if not, the first place where each file differs.
//!
//! Compared: `metrics.jsonl` and everything under `stages/`. Not compared: what says when and how
//! fast (`events.jsonl`, `timing.jsonl`, `tensorboard/`, `run.lock`) and `plan.json`, whose time
//! estimate differs between machines; compare plan hashes instead.

use crate::checkpoint::STATE_FILE;
use crate::error::{Result, RunError};
use crate::folder::{CHECKPOINTS_DIR, METRICS_FILE, STAGES_DIR};
use crate::tensors::{OwnedTensor, read_tensors};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// One of the two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first argument.
    A,
    /// The second argument.
    B,
}

/// The first difference found in one file. Paths are relative to the run folder.
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    /// A file only one run has.
    FileOnlyIn {
        /// Who has it.
        side: Side,
        /// The file.
        file: PathBuf,
    },
    /// A checkpoint only one run kept. An interrupted run saves one more, and so may keep others: what
    /// both kept, and what they produced, is compared all the same.
    CheckpointOnlyIn {
        /// Who has it.
        side: Side,
        /// Its folder.
        folder: PathBuf,
    },
    /// A line of a JSON-lines file.
    Line {
        /// The file.
        file: PathBuf,
        /// One-based number.
        line: usize,
        /// Where in the line, as a JSON pointer; empty when one run has no such line.
        pointer: String,
        /// The value in run A; `None` when absent.
        a: Option<Value>,
        /// The value in run B; `None` when absent.
        b: Option<Value>,
    },
    /// A value of a JSON file.
    Json {
        /// The file.
        file: PathBuf,
        /// Where, as a JSON pointer.
        pointer: String,
        /// The value in run A; `None` when absent.
        a: Option<Value>,
        /// The value in run B; `None` when absent.
        b: Option<Value>,
    },
    /// A tensor only one run has.
    TensorOnlyIn {
        /// Who has it.
        side: Side,
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of another type or shape.
    TensorLayout {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Type and shape in run A.
        a: String,
        /// Type and shape in run B.
        b: String,
    },
    /// An element of a tensor.
    TensorElement {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Flat index of the first element that differs.
        index: usize,
        /// How many elements differ.
        n_differing: usize,
        /// The value in run A, with its bits.
        a: String,
        /// The value in run B, with its bits.
        b: String,
    },
    /// A byte of any other file.
    Byte {
        /// The file.
        file: PathBuf,
        /// Offset of the first byte that differs.
        offset: u64,
        /// The byte in run A; `None` past its end.
        a: Option<u8>,
        /// The byte in run B; `None` past its end.
        b: Option<u8>,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn value(v: &Option<Value>) -> String {
            v.as_ref().map_or_else(|| "(absent)".to_owned(), Value::to_string)
        }
        fn byte(v: &Option<u8>) -> String {
            v.map_or_else(|| "(end)".to_owned(), |b| format!("0x{b:02x}"))
        }
        match self {
            Difference::FileOnlyIn { side, file } => write!(f, "{}: only in run {side:?}", file.display()),
            Difference::CheckpointOnlyIn { side, folder } => {
                write!(f, "{}: checkpoint only in run {side:?}", folder.display())
            }
            Difference::Line { file, line, pointer, a, b } => {
                write!(f, "{} line {line} {pointer}: {} in A, {} in B", file.display(), value(a), value(b))
            }
            Difference::Json { file, pointer, a, b } => {
                write!(f, "{} {pointer}: {} in A, {} in B", file.display(), value(a), value(b))
            }
            Difference::TensorOnlyIn { side, file, tensor } => {
                write!(f, "{}: tensor {tensor} only in run {side:?}", file.display())
            }
            Difference::TensorLayout { file, tensor, a, b } => {
                write!(f, "{}: tensor {tensor} is {a} in A, {b} in B", file.display())
            }
            Difference::TensorElement { file, tensor, index, n_differing, a, b } => write!(
                f,
                "{}: tensor {tensor}[{index}] is {a} in A, {b} in B ({n_differing} elements differ)",
                file.display()
            ),
            Difference::Byte { file, offset, a, b } => {
                write!(f, "{} byte {offset}: {} in A, {} in B", file.display(), byte(a), byte(b))
            }
        }
    }
}

/// The first difference of each file of two run folders; empty when both produced the same.
///
/// # Errors
/// [`RunError::Io`], [`RunError::NotARun`]; [`RunError::Corrupt`], [`RunError::BadJson`] or
/// [`RunError::BadLine`] for a file that cannot be read as what it is.
pub fn compare_runs(a: &Path, b: &Path) -> Result<Vec<Difference>> {
    let (files_a, files_b) = (compared_files(a)?, compared_files(b)?);
    let mut differences = Vec::new();
    for file in files_a.union(&files_b) {
        let side = match (files_a.contains(file), files_b.contains(file)) {
            (true, true) => {
                differences.extend(compare_file(a, b, file)?);
                continue;
            }
            (true, false) => Side::A,
            _ => Side::B,
        };
        let only =
            match checkpoint_of(file).filter(|folder| !a.join(folder).is_dir() || !b.join(folder).is_dir()) {
                Some(folder) => Difference::CheckpointOnlyIn { side, folder: folder.to_owned() },
                None => Difference::FileOnlyIn { side, file: file.clone() },
            };
        if differences.last() != Some(&only) {
            differences.push(only);
        }
    }
    Ok(differences)
}

/// The checkpoint folder that holds `file`.
fn checkpoint_of(file: &Path) -> Option<&Path> {
    let folder = file.parent()?;
    folder.parent()?.ends_with(CHECKPOINTS_DIR).then_some(folder)
}

fn compared_files(root: &Path) -> Result<BTreeSet<PathBuf>> {
    if !root.is_dir() {
        return Err(RunError::NotARun { path: root.to_owned() });
    }
    let mut files = BTreeSet::new();
    if root.join(METRICS_FILE).is_file() {
        files.insert(PathBuf::from(METRICS_FILE));
    }
    if root.join(STAGES_DIR).is_dir() {
        walk(root, Path::new(STAGES_DIR), &mut files)?;
    }
    Ok(files)
}

fn walk(root: &Path, dir: &Path, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    let full = root.join(dir);
    for entry in fs::read_dir(&full).map_err(RunError::io("read", &full))? {
        let entry = entry.map_err(RunError::io("read", &full))?;
        let relative = dir.join(entry.file_name());
        if entry.path().is_dir() {
            walk(root, &relative, files)?;
        } else {
            files.insert(relative);
        }
    }
    Ok(())
}

/// Equal bytes need no understanding; different ones are explained as far as the format allows.
fn compare_file(a: &Path, b: &Path, file: &Path) -> Result<Option<Difference>> {
    let (path_a, path_b) = (a.join(file), b.join(file));
    let Some(byte) = first_differing_byte(&path_a, &path_b, file)? else { return Ok(None) };
    let explained = match file.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => compare_tensors(file, &read_tensors(&path_a)?, &read_tensors(&path_b)?),
        Some("jsonl") => compare_lines(&path_a, &path_b, file)?,
        Some("json") => compare_json(&path_a, &path_b, file)?,
        _ => None,
    };
    // A checkpoint's state holds the hash of its tensors: where only that differs, the tensors'
    // own difference says more, and is reported for their file.
    let only_hashes = explained.is_none() && file.file_name().is_some_and(|n| n == STATE_FILE);
    Ok(explained.or((!only_hashes).then_some(byte)))
}

fn first_differing_byte(path_a: &Path, path_b: &Path, file: &Path) -> Result<Option<Difference>> {
    let open = |path: &Path| {
        File::open(path).map(|f| BufReader::with_capacity(1 << 20, f)).map_err(RunError::io("open", path))
    };
    let (mut reader_a, mut reader_b) = (open(path_a)?, open(path_b)?);
    let mut offset = 0;
    loop {
        let a = reader_a.fill_buf().map_err(RunError::io("read", path_a))?;
        let b = reader_b.fill_buf().map_err(RunError::io("read", path_b))?;
        let n = a.len().min(b.len());
        if n == 0 && a.len() == b.len() {
            return Ok(None);
        }
        let differing = if a[..n] == b[..n] { None } else { (0..n).find(|&i| a[i] != b[i]) };
        if let Some(at) = differing.or((n == 0).then_some(0)) {
            let (a, b) = (a.get(at).copied(), b.get(at).copied());
            return Ok(Some(Difference::Byte { file: file.to_owned(), offset: offset + at as u64, a, b }));
        }
        reader_a.consume(n);
        reader_b.consume(n);
        offset += n as u64;
    }
}

fn compare_tensors(
    file: &Path,
    a: &BTreeMap<String, OwnedTensor>,
    b: &BTreeMap<String, OwnedTensor>,
) -> Option<Difference> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    names.into_iter().find_map(|name| match (a.get(name), b.get(name)) {
        (Some(x), Some(y)) => compare_tensor(file, name, x, y),
        (x, _) => Some(Difference::TensorOnlyIn {
            side: if x.is_some() { Side::A } else { Side::B },
            file: file.to_owned(),
            tensor: name.clone(),
        }),
    })
}

fn compare_tensor(file: &Path, name: &str, a: &OwnedTensor, b: &OwnedTensor) -> Option<Difference> {
    if (a.dtype, &a.shape) != (b.dtype, &b.shape) {
        let layout = |t: &OwnedTensor| format!("{:?} {:?}", t.dtype, t.shape);
        return Some(Difference::TensorLayout {
            file: file.to_owned(),
            tensor: name.to_owned(),
            a: layout(a),
            b: layout(b),
        });
    }
    let n = a.dtype.bytes();
    let elements = a.bytes.chunks_exact(n).zip(b.bytes.chunks_exact(n));
    let mut differing = elements.enumerate().filter(|(_, (x, y))| x != y).map(|(index, _)| index);
    let index = differing.next()?;
    Some(Difference::TensorElement {
        file: file.to_owned(),
        tensor: name.to_owned(),
        index,
        n_differing: 1 + differing.count(),
        a: a.display(index),
        b: b.display(index),
    })
}

fn compare_lines(path_a: &Path, path_b: &Path, file: &Path) -> Result<Option<Difference>> {
    let (text_a, text_b) = (read_text(path_a)?, read_text(path_b)?);
    let (mut lines_a, mut lines_b) = (text_a.lines(), text_b.lines());
    for line in 1.. {
        let (a, b) = match (lines_a.next(), lines_b.next()) {
            (None, None) => break,
            pair if pair.0 == pair.1 => continue,
            (a, b) => (parse(path_a, line, a)?, parse(path_b, line, b)?),
        };
        let (pointer, a, b) = match (a, b) {
            (Some(a), Some(b)) => match first_differing_value(&a, &b) {
                Some(found) => found,
                None => continue, // the same values, spelt differently: the byte difference is reported
            },
            (a, b) => (String::new(), a, b),
        };
        return Ok(Some(Difference::Line { file: file.to_owned(), line, pointer, a, b }));
    }
    Ok(None)
}

fn compare_json(path_a: &Path, path_b: &Path, file: &Path) -> Result<Option<Difference>> {
    let mut values = [crate::folder::read_json(path_a)?, crate::folder::read_json(path_b)?];
    if file.file_name().is_some_and(|name| name == STATE_FILE) {
        values = values.map(|v| v.pointer("/body/state").cloned().unwrap_or(v));
    }
    let found = first_differing_value(&values[0], &values[1]);
    Ok(found.map(|(pointer, a, b)| Difference::Json { file: file.to_owned(), pointer, a, b }))
}

/// A JSON pointer and the value under it on each side.
type DifferingValue = (String, Option<Value>, Option<Value>);

fn first_differing_value(a: &Value, b: &Value) -> Option<DifferingValue> {
    fn at(key: &str, a: Option<&Value>, b: Option<&Value>) -> Option<DifferingValue> {
        let key = key.replace('~', "~0").replace('/', "~1");
        match (a, b) {
            (Some(a), Some(b)) => first_differing_value(a, b).map(|(p, a, b)| (format!("/{key}{p}"), a, b)),
            (a, b) => Some((format!("/{key}"), a.cloned(), b.cloned())),
        }
    }
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let only_y = y.keys().filter(|key| !x.contains_key(*key));
            x.keys().chain(only_y).find_map(|key| at(key, x.get(key), y.get(key)))
        }
        (Value::Array(x), Value::Array(y)) => {
            (0..x.len().max(y.len())).find_map(|i| at(&i.to_string(), x.get(i), y.get(i)))
        }
        _ if a == b => None,
        _ => Some((String::new(), Some(a.clone()), Some(b.clone()))),
    }
}

fn parse(path: &Path, line: usize, text: Option<&str>) -> Result<Option<Value>> {
    let bad =
        |e: serde_json::Error| RunError::BadLine { path: path.to_owned(), line, problem: e.to_string() };
    text.map(serde_json::from_str).transpose().map_err(bad)
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(RunError::io("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CheckpointState, Retention, RunFolder, TensorEntry};

    /// A small run: two metric lines, a checkpoint, a model.
    fn run(loss: f64, weight: f32, tokens: u64, config: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut run = RunFolder::create(dir.path(), &serde_json::json!({})).unwrap();
        let stage = run.stage(1, "sft").unwrap();
        run.log_metrics(&stage, 1, [("loss", 2.0)]).unwrap();
        run.log_metrics(&stage, 2, [("loss", loss), ("entropy", 0.5)]).unwrap();
        run.log_timing(&stage, 2, [("seconds", f64::from(std::process::id()))]).unwrap();
        let store = stage.checkpoints(Retention { keep_last: 1, best: None }).unwrap();
        let state = CheckpointState {
            step: 2,
            counters: BTreeMap::from([("num_tokens".into(), tokens)]),
            ..Default::default()
        };
        store.save(&state, [TensorEntry::f32("w", &[2, 2], &[0.0, 1.0, weight, weight])]).unwrap();
        fs::create_dir_all(stage.model_dir()).unwrap();
        fs::write(stage.model_dir().join("vocab.txt"), config).unwrap();
        dir
    }

    fn check(b: &tempfile::TempDir, expected: &[&str]) {
        let a = run(1.5, 3.0, 100, "abc");
        let found: Vec<String> =
            compare_runs(a.path(), b.path()).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn equal_runs_have_no_difference() {
        check(&run(1.5, 3.0, 100, "abc"), &[]);
    }

    #[test]
    fn the_first_difference_is_named_with_both_values() {
        check(&run(1.75, 3.0, 100, "abc"), &["metrics.jsonl line 2 /loss: 1.5 in A, 1.75 in B"]);
        check(
            &run(1.5, 3.5, 100, "abc"),
            &[
                "stages/01-sft/checkpoints/step-000002/tensors.safetensors: tensor w[2] is 3e0 (0x40400000) in A, \
               3.5e0 (0x40600000) in B (2 elements differ)",
            ],
        );
        check(
            &run(1.5, 3.0, 101, "abc"),
            &["stages/01-sft/checkpoints/step-000002/state.json /counters/num_tokens: 100 in A, 101 in B"],
        );
        check(&run(1.5, 3.0, 100, "abd"), &["stages/01-sft/model/vocab.txt byte 2: 0x63 in A, 0x64 in B"]);
        check(&run(1.5, 3.0, 100, "ab"), &["stages/01-sft/model/vocab.txt byte 2: 0x63 in A, (end) in B"]);
    }

    #[test]
    fn a_checkpoint_only_one_run_kept_is_one_difference() {
        let b = run(1.5, 3.0, 100, "abc");
        let checkpoints = b.path().join("stages/01-sft/checkpoints");
        fs::rename(checkpoints.join("step-000002"), checkpoints.join("step-000003")).unwrap();
        check(
            &b,
            &[
                "stages/01-sft/checkpoints/step-000002: checkpoint only in run A",
                "stages/01-sft/checkpoints/step-000003: checkpoint only in run B",
            ],
        );
    }

    #[test]
    fn missing_files_and_lines_are_differences() {
        let b = run(1.5, 3.0, 100, "abc");
        fs::remove_file(b.path().join("stages/01-sft/model/vocab.txt")).unwrap();
        fs::write(b.path().join("stages/01-sft/extra"), "").unwrap();
        check(&b, &["stages/01-sft/extra: only in run B", "stages/01-sft/model/vocab.txt: only in run A"]);
        let b = run(1.5, 3.0, 100, "abc");
        let metrics = b.path().join(METRICS_FILE);
        let text = fs::read_to_string(&metrics).unwrap();
        fs::write(&metrics, text.lines().next().unwrap().to_owned() + "\n").unwrap();
        let line = r#"{"stage":"01-sft","step":2,"loss":1.5,"entropy":0.5}"#;
        check(&b, &[&format!("metrics.jsonl line 2 : {line} in A, (absent) in B")]);
    }
}
