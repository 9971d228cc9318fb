//! Signatures of rows, found by their bands: the newest in memory, older ones in files that have no name.
//!
//! ```text
//! insert -> recent rows: table of tags, signatures     (RECENT_BYTES at most)
//!              | full: sorted, written
//!              v
//!           runs of pairs (tag, row), merged FAN at a time; signatures in row order
//! ```
//!
//! What is found does not depend on how much is in memory. In memory a row in the files takes a byte for each band (the
//! runs' filters); on disk 8 bytes a band and a byte a function, and twice the former while runs are merged.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::sorted_run::SortedRun;
use super::table::Table;

/// Most rows of one tag; beyond it the tag is a phrase common to everything.
const MOST_OF_A_TAG: usize = 32;
/// Memory of the rows that are in no file yet, in bytes: a signature, and for each band a slot of a table half full.
const RECENT_BYTES: usize = 96 << 20;
/// Runs of about one length that are merged.
const FAN: usize = 4;

/// A row's signature, and the tag of each band; both empty for a text without words.
#[derive(Default)]
pub(super) struct Signature {
    pub(super) bytes: Vec<u8>,
    pub(super) tags: Vec<u32>,
}

/// What the files have of a signature.
#[derive(Default)]
pub(super) struct Older {
    /// Rows alike, and how much.
    alike: Vec<(u32, f64)>,
    /// How many rows have the tag of each band; empty where there are no files.
    n_of_tags: Vec<usize>,
}

pub(super) struct Index {
    /// Bytes of a signature.
    n_bytes: usize,
    threshold: f64,
    most_recent: usize,
    folder: PathBuf,
    n_older: u32,
    older_signatures: Option<File>,
    runs: Vec<SortedRun>,
    recent_signatures: Vec<u8>,
    recent: Table,
}

impl Index {
    /// An index of signatures of `n_bytes` with `n_bands`, whose files go to `folder`.
    pub(super) fn new(n_bytes: usize, n_bands: usize, threshold: f64, folder: &Path) -> Self {
        // A relative name without a folder is in this one.
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        Index {
            n_bytes,
            threshold,
            most_recent: (RECENT_BYTES / (n_bytes + 16 * n_bands)).max(1),
            folder: folder.to_owned(),
            n_older: 0,
            older_signatures: None,
            runs: Vec::new(),
            recent_signatures: Vec::new(),
            recent: Table::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn with_most_recent(self, most_recent: usize) -> Self {
        Index { most_recent, ..self }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Rows alike that are in files. Reads only, so that many rows can look at once.
    pub(super) fn older(&self, signature: &Signature) -> io::Result<Older> {
        let Some(signatures) = &self.older_signatures else { return Ok(Older::default()) };
        let (mut candidates, mut n_of_tags) = (Vec::new(), Vec::with_capacity(signature.tags.len()));
        let mut rows = Vec::new();
        for tag in &signature.tags {
            rows.clear();
            for run in &self.runs {
                run.rows(*tag, MOST_OF_A_TAG, &mut rows)?;
            }
            n_of_tags.push(rows.len());
            candidates.extend_from_slice(&rows);
        }
        candidates.sort_unstable();
        candidates.dedup();
        let (mut alike, mut bytes) = (Vec::new(), vec![0; self.n_bytes]);
        for row in candidates {
            signatures.read_exact_at(&mut bytes, u64::from(row) * self.n_bytes as u64)?;
            alike.push((row, similarity(&bytes, &signature.bytes)));
        }
        alike.retain(|(_, alike)| *alike >= self.threshold);
        Ok(Older { alike, n_of_tags })
    }

    /// All rows alike with how much, by row; `older` is what [`Index::older`] found in the same state of the files.
    pub(super) fn alike(&self, signature: &Signature, older: &Older) -> Vec<(u32, f64)> {
        let mut rows: Vec<u32> = signature.tags.iter().flat_map(|tag| self.recent.rows(*tag)).collect();
        rows.sort_unstable();
        rows.dedup();
        let recent = rows.into_iter().map(|row| {
            let at = (row - self.n_older) as usize * self.n_bytes;
            (row, similarity(&self.recent_signatures[at..at + self.n_bytes], &signature.bytes))
        });
        older.alike.iter().copied().chain(recent.filter(|(_, alike)| *alike >= self.threshold)).collect()
    }

    /// Adds a row; its number.
    pub(super) fn insert(&mut self, signature: &Signature, older: &Older) -> u32 {
        let row = self.n_older + (self.recent_signatures.len() / self.n_bytes) as u32;
        self.recent_signatures.extend_from_slice(&signature.bytes);
        if signature.bytes.is_empty() {
            self.recent_signatures.resize(self.recent_signatures.len() + self.n_bytes, 0);
        }
        for (i, tag) in signature.tags.iter().enumerate() {
            let n_older = older.n_of_tags.get(i).copied().unwrap_or(0);
            if n_older + self.recent.rows(*tag).take(MOST_OF_A_TAG).count() < MOST_OF_A_TAG {
                self.recent.insert(*tag, row);
            }
        }
        row
    }

    /// Moves the rows in memory to files where there are too many. What [`Index::older`] found before is then too little.
    pub(super) fn make_room(&mut self) -> io::Result<()> {
        let n_recent = self.recent_signatures.len() / self.n_bytes;
        if n_recent < self.most_recent {
            return Ok(());
        }
        let signatures = match self.older_signatures.take() {
            Some(file) => file,
            None => tempfile::tempfile_in(&self.folder)?,
        };
        signatures.write_all_at(&self.recent_signatures, u64::from(self.n_older) * self.n_bytes as u64)?;
        self.older_signatures = Some(signatures);
        self.recent_signatures.clear();
        let pairs = std::mem::replace(&mut self.recent, Table::new()).into_sorted();
        let n_pairs = pairs.len();
        self.runs.push(SortedRun::write(pairs.into_iter().map(Ok), n_pairs, &self.folder)?);
        self.n_older += n_recent as u32;
        self.merge_runs()
    }

    /// Merges the last runs where there are [`FAN`] of about one length: at most a few for each power of [`FAN`].
    fn merge_runs(&mut self) -> io::Result<()> {
        while let Some(from) = self.runs.len().checked_sub(FAN) {
            let (oldest, newest) = (self.runs[from].n_pairs(), self.runs[self.runs.len() - 1].n_pairs());
            if oldest > 2 * newest {
                break;
            }
            let merged = SortedRun::merge(&self.runs[from..], &self.folder)?;
            self.runs.truncate(from);
            self.runs.push(merged);
        }
        Ok(())
    }
}

/// The similarity that two signatures estimate: the share of equal bytes, less those that are equal by chance.
fn similarity(a: &[u8], b: &[u8]) -> f64 {
    let equal = a.iter().zip(b).filter(|(a, b)| a == b).count();
    let chance = 1.0 / 256.0;
    ((equal as f64 / a.len() as f64 - chance) / (1.0 - chance)).max(0.0)
}

#[cfg(test)]
mod tests {
    use pt_core::rng::Stream;

    use super::*;

    /// Signatures of 8 bytes with 4 bands, many of them alike, and one band that most share.
    fn signature(i: u64) -> Signature {
        let mut draws = Stream::new(3, "signatures").at(i);
        let kind = draws.below(40);
        let mut of_kind = Stream::new(4, "kinds").at(kind as u64);
        let mut bytes: Vec<u8> = (0..8).map(|_| of_kind.below(256) as u8).collect();
        bytes[draws.below(8)] = draws.below(256) as u8;
        let mut tags: Vec<u32> =
            bytes.chunks(2).map(|b| 1 + u32::from(b[0]) * 256 + u32::from(b[1])).collect();
        tags[3] = if draws.below(4) == 0 { 99 } else { 7 };
        Signature { bytes, tags }
    }

    #[test]
    fn what_is_found_does_not_depend_on_what_is_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let found = |most_recent: usize| {
            let mut index = Index::new(8, 4, 0.7, folder.path()).with_most_recent(most_recent);
            let mut found = Vec::new();
            for chunk in (0..600).collect::<Vec<u64>>().chunks(7) {
                index.make_room().unwrap();
                let older: Vec<Older> = chunk.iter().map(|i| index.older(&signature(*i)).unwrap()).collect();
                for (i, older) in chunk.iter().zip(&older) {
                    found.push(index.alike(&signature(*i), older));
                    assert_eq!(u64::from(index.insert(&signature(*i), older)), *i);
                }
            }
            (found, index.runs.len())
        };
        let (expected, n_runs) = found(usize::MAX);
        assert_eq!(n_runs, 0);
        assert!(expected.iter().filter(|alike| !alike.is_empty()).count() > 400);
        for most_recent in [1, 20, 100] {
            let (alike, n_runs) = found(most_recent);
            assert!(alike == expected, "{most_recent}");
            assert!((1..=12).contains(&n_runs), "{most_recent}: {n_runs} runs");
        }
    }
}
