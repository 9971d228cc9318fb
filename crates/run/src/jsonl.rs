//! JSON-lines files that survive `kill -9` and can be cut back to a step.

use crate::error::{Result, RunError};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where a line belongs: stages in order, steps in order within a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StepKey {
    /// One-based number of the stage: the `01` of `01-sft`.
    pub stage: u32,
    /// Step within the stage.
    pub step: u64,
}

/// An append-only file of one JSON object per line.
///
/// Every line is handed to the operating system in one write, so a killed process loses nothing
/// that was appended, and at most the last line is torn (by a power cut); opening repairs that.
#[derive(Debug)]
pub struct JsonlFile {
    path: PathBuf,
    file: File,
    len: u64,
}

impl JsonlFile {
    /// Opens or creates the file for appending and removes a torn last line.
    ///
    /// # Errors
    /// [`RunError::Io`]; [`RunError::BadLine`] when a line before the last is not JSON.
    pub fn open(path: &Path) -> Result<JsonlFile> {
        let file =
            OpenOptions::new().append(true).create(true).open(path).map_err(RunError::io("open", path))?;
        let bytes = fs::read(path).map_err(RunError::io("read", path))?;
        let mut this = JsonlFile { path: path.to_owned(), file, len: bytes.len() as u64 };
        let sound = sound_len(path, &bytes)?;
        if sound < bytes.len() {
            this.cut(sound as u64)?;
        }
        Ok(this)
    }

    /// Appends `value` as one line.
    ///
    /// # Errors
    /// [`RunError::Io`], also when `value` cannot be written as JSON. The file then has the lines it had.
    pub fn append(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line =
            serde_json::to_vec(value).map_err(|e| RunError::io("encode a line of", &self.path)(e.into()))?;
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            // On a full disk half a line may be there; the next line must not be glued to it.
            let _ = self.file.set_len(self.len);
            return Err(RunError::io("append to", &self.path)(error));
        }
        self.len += line.len() as u64;
        Ok(())
    }

    /// Waits until the disk holds what was appended.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(RunError::io("sync", &self.path))
    }

    /// Removes every line that belongs after `last`.
    ///
    /// Lines carry `stage` (`"01-sft"`) and `step`.
    ///
    /// # Errors
    /// [`RunError::Io`]; [`RunError::BadLine`] for a line without stage and step.
    pub fn truncate_after(&mut self, last: StepKey) -> Result<()> {
        let bytes = fs::read(&self.path).map_err(RunError::io("read", &self.path))?;
        let mut offset = 0;
        for (index, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
            if line_key(line).map_err(|problem| self.bad_line(index, problem))? > last {
                return self.cut(offset as u64);
            }
            offset += line.len();
        }
        Ok(())
    }

    fn cut(&mut self, len: u64) -> Result<()> {
        self.len = len;
        self.file
            .set_len(len)
            .and_then(|()| self.file.sync_all())
            .map_err(RunError::io("truncate", &self.path))
    }

    fn bad_line(&self, index: usize, problem: String) -> RunError {
        RunError::BadLine { path: self.path.clone(), line: index + 1, problem }
    }
}

/// How many leading bytes are whole lines of JSON; only the last line may be anything else.
fn sound_len(path: &Path, bytes: &[u8]) -> Result<usize> {
    let mut sound = 0;
    for (index, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
        let parsed = serde_json::from_slice::<serde::de::IgnoredAny>(line);
        let is_last = sound + line.len() == bytes.len();
        match parsed {
            Ok(_) if line.ends_with(b"\n") => sound += line.len(),
            _ if is_last => return Ok(sound),
            Ok(_) => unreachable!("a line without newline is the last one"),
            Err(error) => {
                return Err(RunError::BadLine {
                    path: path.to_owned(),
                    line: index + 1,
                    problem: error.to_string(),
                });
            }
        }
    }
    Ok(sound)
}

fn line_key(line: &[u8]) -> std::result::Result<StepKey, String> {
    #[derive(Deserialize)]
    struct Line {
        stage: String,
        step: u64,
    }
    let line: Line = serde_json::from_slice(line).map_err(|e| e.to_string())?;
    let stage = stage_number(&line.stage)
        .ok_or_else(|| format!("stage `{}` does not begin with its number, as in `01-sft`", line.stage))?;
    Ok(StepKey { stage, step: line.step })
}

/// The `1` of `01-sft`.
fn stage_number(label: &str) -> Option<u32> {
    label.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stage: &str, step: u64) -> String {
        format!("{{\"stage\":\"{stage}\",\"step\":{step},\"loss\":0.5}}\n")
    }

    fn check_repair(content: &str, expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        fs::write(&path, content).unwrap();
        JsonlFile::open(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    }

    #[test]
    fn a_torn_last_line_is_removed_at_every_possible_length() {
        let whole = line("01-sft", 1);
        let torn = line("01-sft", 2);
        for len in 0..torn.len() {
            check_repair(&format!("{whole}{}", &torn[..len]), &whole);
        }
        check_repair(&format!("{whole}{torn}"), &format!("{whole}{torn}"));
        check_repair(&format!("{whole}\0\0\0\0"), &whole);
        check_repair(&format!("{whole}\0\0\0\n"), &whole);
        check_repair("", "");
    }

    #[test]
    fn damage_before_the_last_line_is_an_error_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        fs::write(&path, format!("{}oops\n{}", line("01-sft", 1), line("01-sft", 2))).unwrap();
        let message = JsonlFile::open(&path).unwrap_err().to_string();
        assert!(message.contains("metrics.jsonl line 2"), "{message}");
    }

    const CHILD: &str = "PT_RUN_TEST_FULL_DISK_JSONL";

    /// The shell limits the file size of a copy of this test, so that a line is written in part only.
    #[cfg(unix)]
    #[test]
    fn a_line_that_does_not_fit_the_disk_leaves_the_lines_before_it() {
        if let Ok(path) = std::env::var(CHILD) {
            let mut file = JsonlFile::open(Path::new(&path)).unwrap();
            let failed =
                (0..9999).find(|i| file.append(&serde_json::json!({"stage": "01-sft", "step": i})).is_err());
            fs::write(format!("{path}.failed"), failed.unwrap().to_string()).unwrap();
            file.append(&1).unwrap(); // short enough for what is left
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let name = "jsonl::tests::a_line_that_does_not_fit_the_disk_leaves_the_lines_before_it";
        let output = std::process::Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact \"$1\""])
            .arg(std::env::current_exe().unwrap())
            .arg(name)
            .env(CHILD, &path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let failed: usize = fs::read_to_string(dir.path().join("m.failed")).unwrap().parse().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), failed + 1);
        assert!(text.ends_with("}\n1\n"), "{text}");
    }

    #[test]
    fn lines_after_the_resumed_step_are_cut_and_appending_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let lines =
            [line("01-sft", 9), line("02-dpo", 1), line("02-dpo", 2), line("02-dpo", 2), line("02-dpo", 3)];
        for (stage, step, kept) in [(2, 2, 4), (2, 0, 1), (1, 9, 1), (1, 8, 0), (2, 3, 5), (3, 0, 5)] {
            fs::write(&path, lines.concat()).unwrap();
            let mut file = JsonlFile::open(&path).unwrap();
            file.truncate_after(StepKey { stage, step }).unwrap();
            assert_eq!(
                fs::read_to_string(&path).unwrap(),
                lines[..kept].concat(),
                "stage {stage} step {step}"
            );
            file.append(&serde_json::json!({"stage": "09-x", "step": 1})).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text, format!("{}{{\"stage\":\"09-x\",\"step\":1}}\n", lines[..kept].concat()));
        }
    }
}
