//! Log-probabilities kept by content: the model that says them, and the row they are of.
//!
//! ```text
//! DIR/<identity of the model and how it scores>/<hash of the file's content>.bin
//! file:  (key of the row: 32 bytes, number of values: u32, values: f32 ...)*, BLAKE3 of all before: 64 bytes
//! ```
//!
//! All numbers are little-endian. A file is written whole or not at all and never changed, so that several runs may read and add at a
//! time; one that is damaged is as if it were not there. A row that two runs scored at once stands in two files, with the same values.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pt_core::{atomic_file, hash};
use pt_train::Example;

/// Identifies a row: its tokens, where its replies begin, and which of them have a value.
pub(crate) type Key = [u8; 32];

/// What is kept of one model.
pub(crate) struct Cache {
    dir: PathBuf,
}

/// The key of an example.
pub(crate) fn key_of(example: &Example) -> Key {
    let mut parts: Vec<Vec<u8>> = vec![bytes_of(&example.token_ids)];
    for reply in &example.replies {
        parts.push(bytes_of(&reply.token_ids));
        parts.push(reply.weights.iter().map(|weight| u8::from(*weight != 0.0)).collect());
    }
    let hex = hash::of_parts(parts.iter().map(Vec::as_slice));
    hex.as_bytes()[..32].try_into().expect("a hash has 64 digits")
}

fn bytes_of(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

impl Cache {
    /// What is kept in `dir` of the model with this identity.
    pub(crate) fn open(dir: &Path, identity: &str) -> Cache {
        Cache { dir: dir.join(identity) }
    }

    /// The values of those of `wanted` that are there.
    pub(crate) fn read(&self, wanted: &[Key]) -> BTreeMap<Key, Vec<f32>> {
        let wanted: BTreeSet<&Key> = wanted.iter().collect();
        let mut found = BTreeMap::new();
        for path in self.files() {
            let Some(bytes) = std::fs::read(path).ok() else { continue };
            for (key, values) in entries(&bytes).unwrap_or_default() {
                if wanted.contains(&key) {
                    found.entry(key).or_insert_with(|| floats(values));
                }
            }
        }
        found
    }

    /// Keeps the values of rows.
    ///
    /// # Errors
    /// A folder or file that cannot be written.
    pub(crate) fn add(&self, rows: &[(Key, Vec<f32>)]) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        for (key, values) in rows {
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(&(values.len() as u32).to_le_bytes());
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        let checksum = hash::of_bytes(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        std::fs::create_dir_all(&self.dir)?;
        atomic_file::write(&self.dir.join(format!("{}.{ENDING}", &checksum[..32])), &bytes)
    }

    /// Removes everything: it was of no use.
    pub(crate) fn forget(&self) {
        for path in self.files() {
            // What stays is found again, and forgotten again.
            let _ = std::fs::remove_file(path);
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().filter_map(Result::ok);
        let mut files: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ending| ending == ENDING))
            .collect();
        files.sort();
        files
    }
}

const ENDING: &str = "bin";
/// Hexadecimal digits of a hash.
const CHECKSUM: usize = 64;

/// The entries of a file that is whole.
fn entries(bytes: &[u8]) -> Option<Vec<(Key, &[u8])>> {
    let (mut body, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM)?)?;
    if hash::of_bytes(body).as_bytes() != checksum {
        return None;
    }
    let mut entries = Vec::new();
    while !body.is_empty() {
        let (key, rest) = body.split_first_chunk::<32>()?;
        let (n, rest) = rest.split_first_chunk::<4>()?;
        let (values, rest) = rest.split_at_checked(u32::from_le_bytes(*n) as usize * 4)?;
        entries.push((*key, values));
        body = rest;
    }
    Some(entries)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use pt_train::Reply;

    use super::*;

    fn example(prompt: &[u32], replies: &[(&[u32], f32)]) -> Example {
        let reply = |(ids, weight): &(&[u32], f32)| Reply {
            token_ids: ids.to_vec(),
            weights: vec![*weight; ids.len()],
            ..Reply::default()
        };
        Example::prompt(prompt.to_vec(), replies.iter().map(reply).collect(), 0, "t".into())
    }

    #[test]
    fn rows_differ_by_tokens_borders_and_what_trains_and_by_nothing_else() {
        let base = example(&[1, 2], &[(&[3, 4], 1.0)]);
        let others = [
            example(&[1], &[(&[2, 3, 4], 1.0)]),
            example(&[1, 2], &[(&[3, 5], 1.0)]),
            example(&[1, 2], &[(&[3], 1.0), (&[4], 1.0)]),
            example(&[1, 2], &[(&[3, 4], 0.0)]),
        ];
        for other in others {
            assert_ne!(key_of(&base), key_of(&other), "{other:?}");
        }
        let same = Example { key: 9, origin: "elsewhere".into(), ..example(&[1, 2], &[(&[3, 4], 0.5)]) };
        assert_eq!(key_of(&base), key_of(&same));
    }

    #[test]
    fn what_was_kept_is_found_by_another_run_and_damage_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, c) = ([1; 32], [2; 32], [3; 32]);
        let cache = Cache::open(dir.path(), "model");
        cache.add(&[(a, vec![1.0, -2.5]), (b, vec![])]).unwrap();
        Cache::open(dir.path(), "model").add(&[(c, vec![4.0])]).unwrap();
        let found = Cache::open(dir.path(), "model").read(&[a, b, c]);
        assert_eq!((&found[&a], &found[&b], &found[&c]), (&vec![1.0, -2.5], &vec![], &vec![4.0]));
        assert_eq!(cache.read(&[c]).len(), 1, "only what is wanted");
        assert!(Cache::open(dir.path(), "other").read(&[a]).is_empty());
        for path in cache.files() {
            let bytes = std::fs::read(&path).unwrap();
            for n in 0..bytes.len() {
                assert!(entries(&bytes[..n]).is_none_or(|entries| entries.is_empty()), "{n}");
            }
            let mut damaged = bytes.clone();
            damaged[33] ^= 1;
            std::fs::write(&path, damaged).unwrap();
        }
        assert!(cache.read(&[a, b, c]).is_empty());
        cache.forget();
        assert!(cache.files().is_empty());
    }
}
