//! One writer per run folder.

use crate::error::{Result, RunError};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

/// The name of the lock file inside a run folder.
pub(crate) const LOCK_FILE: &str = "run.lock";

/// The right to write a run folder, held until dropped or until the process dies.
///
/// The lock is the operating system's on the open file, so the lock of a dead process is free at
/// once and cannot be confused with a newer process of the same number. The file also names the
/// holder, for the message others get. Where the file system has no locks, the named process is
/// looked up in `/proc` instead.
#[derive(Debug)]
pub struct RunLock {
    file: File,
}

impl RunLock {
    /// Takes the lock of the run folder `root`.
    ///
    /// # Errors
    /// [`RunError::Locked`] while another process holds it; [`RunError::Io`].
    pub fn acquire(root: &Path) -> Result<RunLock> {
        let path = root.join(LOCK_FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(RunError::io("open", &path))?;
        let mut holder = String::new();
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                // Best effort: the message is useful even when the holder has not written itself yet.
                let _ = file.read_to_string(&mut holder);
                return Err(locked(root, &holder));
            }
            Err(TryLockError::Error(_)) => {
                let _ = file.read_to_string(&mut holder);
                if names_a_living_stranger(&holder) {
                    return Err(locked(root, &holder));
                }
            }
        }
        write_holder(&mut file).map_err(RunError::io("write", &path))?;
        Ok(RunLock { file })
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // An empty file says "nobody"; a failure here only makes a later message less exact.
        let _ = self.file.set_len(0);
    }
}

fn write_holder(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "{} since {}", std::process::id(), crate::utc_now())?;
    file.flush()
}

fn locked(root: &Path, holder: &str) -> RunError {
    let holder = if holder.is_empty() { "(unknown)".to_owned() } else { holder.to_owned() };
    RunError::Locked { path: root.to_owned(), holder }
}

fn names_a_living_stranger(holder: &str) -> bool {
    let Some(pid) = holder.split(' ').next().and_then(|pid| pid.parse::<u32>().ok()) else { return false };
    pid != std::process::id() && fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunLock::acquire(dir.path()).unwrap();
        let message = RunLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(message.contains(&format!("process {} since 2", std::process::id())), "{message}");
        drop(first);
        RunLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn the_lock_of_a_dead_process_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LOCK_FILE), "4294967294 since 2020-01-01T00:00:00.000Z").unwrap();
        let _lock = RunLock::acquire(dir.path()).unwrap();
        let written = fs::read_to_string(dir.path().join(LOCK_FILE)).unwrap();
        assert!(written.starts_with(&format!("{} since", std::process::id())), "{written}");
        assert!(!names_a_living_stranger("4294967294 since"));
        assert!(names_a_living_stranger("1 since"));
    }
}
