//! Tokenised rows on disk, keyed by what they were made from.
//!
//! The key is a hash of the data's content and of everything that shapes the tokens (tokenizer, template,
//! masking options, program version): the caller lists them in [`CacheKey::new`]. A cache is written whole
//! or not at all, and its checksum is verified each time it is opened: a damaged file is reported and
//! rebuilt, never used. Rows are read one at a time from the file, so memory is the index only.
//!
//! File, all numbers little-endian:
//!
//! ```text
//! magic "PTTOKENS" | version u32 | header length u32 | header JSON {"key": hex}
//! rows:   token ids u32 * n | train weights f32 * n | file u32 | line u64        (n from the index)
//! index:  per row: offset u64, n u64
//! files:  JSON list of paths
//! footer: offset of index u64, offset of files u64, rows u64, tokens u64
//!         | BLAKE3 of all bytes before (32) | magic
//! ```
//!
//! Left out: memory mapping (it needs `unsafe`, and rows are read far faster than they are trained on).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pt_core::{atomic_file, hash};
use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::row::Origin;

const MAGIC: &[u8; 8] = b"PTTOKENS";
const VERSION: u32 = 1;
const CHECKSUM_LEN: usize = 32;
const FOOTER_LEN: usize = 4 * 8 + CHECKSUM_LEN + MAGIC.len();
const INDEX_ENTRY_LEN: usize = 16;
/// Bytes of a row beside its tokens: file u32, line u64.
const ROW_TAIL_LEN: usize = 12;

/// A row ready to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenisedRow {
    /// The token ids, at least one.
    pub token_ids: Vec<u32>,
    /// The weight of each token as a target, 0 for those that do not train; as many as ids.
    pub train_weights: Vec<f32>,
    /// Where the row came from.
    pub origin: Origin,
}

/// The identity of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheKey(String);

impl CacheKey {
    /// The key of rows made from `parts`: content hashes of the files, hashes of the tokenizer and the
    /// template, the options as JSON, the program's version. Order matters.
    pub fn new<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        CacheKey(hash::of_parts(parts.into_iter().map(str::as_bytes)))
    }

    /// The file name of the cache: 32 hexadecimal digits of the key.
    pub fn file_name(&self) -> String {
        format!("{}.tokens", &self.0[..32])
    }
}

/// What [`Cache::open_or_build`] did.
#[derive(Debug)]
pub enum Outcome {
    /// The cache was there and sound.
    Opened,
    /// There was none.
    Built,
    /// There was one that could not be trusted; the reason is to be shown to the user.
    Rebuilt(DataError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    key: String,
}

/// An open, verified cache.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    file: File,
    /// Offset and number of tokens of each row.
    index: Vec<(u64, usize)>,
    files: Vec<Arc<PathBuf>>,
}

impl Cache {
    /// Opens the cache of `key` in `dir`, or builds it from `build`'s rows.
    ///
    /// # Errors
    /// The first error among the rows, a row that breaks the contract, or the file system's; nothing is
    /// left behind then. A damaged cache is no error: it is rebuilt and reported in the [`Outcome`].
    pub fn open_or_build<I>(
        dir: &Path,
        key: &CacheKey,
        build: impl FnOnce() -> Result<I, DataError>,
    ) -> Result<(Cache, Outcome), DataError>
    where
        I: IntoIterator<Item = Result<TokenisedRow, DataError>>,
    {
        let path = dir.join(key.file_name());
        let outcome = match path.exists() {
            false => Outcome::Built,
            true => match Cache::open(&path, key) {
                Ok(cache) => return Ok((cache, Outcome::Opened)),
                Err(reason @ DataError::DamagedCache { .. }) => Outcome::Rebuilt(reason),
                Err(error) => return Err(error),
            },
        };
        fs::create_dir_all(dir).map_err(DataError::io(dir, "create"))?;
        write(&path, key, build()?)?;
        Ok((Cache::open(&path, key)?, outcome))
    }

    /// Opens and verifies the file `path`, which must be the cache of `key`.
    ///
    /// # Errors
    /// [`DataError::DamagedCache`] when anything does not match, else the file system's.
    pub fn open(path: &Path, key: &CacheKey) -> Result<Cache, DataError> {
        let damaged = |detail: String| DataError::DamagedCache { path: path.to_owned(), detail };
        let read_error = DataError::io;
        let file = File::open(path).map_err(read_error(path, "open"))?;
        let len = file.metadata().map_err(read_error(path, "inspect"))?.len();
        let body_len =
            len.checked_sub(FOOTER_LEN as u64).ok_or_else(|| damaged(format!("only {len} bytes")))?;
        let mut footer = [0u8; FOOTER_LEN];
        file.read_exact_at(&mut footer, body_len).map_err(read_error(path, "read"))?;
        if &footer[FOOTER_LEN - MAGIC.len()..] != MAGIC {
            return Err(damaged("the end mark is missing: the file was cut off".to_owned()));
        }
        let stored = &footer[4 * 8..4 * 8 + CHECKSUM_LEN];
        let found = checksum(&file, body_len + 4 * 8).map_err(read_error(path, "read"))?;
        if found.as_bytes() != stored {
            return Err(damaged("the checksum does not match the content".to_owned()));
        }
        // From here on the bytes are those that were written: what does not fit is another version's.
        let [index_at, files_at, n_rows, _n_tokens] = [0, 8, 16, 24].map(|at| u64_at(&footer, at));
        check_header(&file, key, index_at).map_err(damaged)?;
        let fits = index_at <= files_at
            && files_at <= body_len
            && Some(files_at - index_at) == n_rows.checked_mul(INDEX_ENTRY_LEN as u64);
        if !fits {
            return Err(damaged("the sections do not add up".to_owned()));
        }
        let index = section(&file, index_at, files_at).map_err(read_error(path, "read"))?;
        let index =
            index.chunks_exact(INDEX_ENTRY_LEN).map(|e| (u64_at(e, 0), u64_at(e, 8) as usize)).collect();
        let files = section(&file, files_at, body_len).map_err(read_error(path, "read"))?;
        let files: Vec<PathBuf> =
            serde_json::from_slice(&files).map_err(|error| damaged(format!("file list: {error}")))?;
        Ok(Cache { path: path.to_owned(), file, index, files: files.into_iter().map(Arc::new).collect() })
    }

    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.index.len()
    }

    /// The number of tokens of all rows.
    pub fn n_tokens(&self) -> usize {
        self.index.iter().map(|(_, n)| n).sum()
    }

    /// The number of tokens of each row: what batching needs, without reading a row.
    pub fn lengths(&self) -> Vec<usize> {
        self.index.iter().map(|(_, n)| *n).collect()
    }

    /// Row `row_idx`.
    ///
    /// # Errors
    /// The file system's, also when the file was changed under the open cache.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row_idx: usize) -> Result<TokenisedRow, DataError> {
        assert!(row_idx < self.n_rows(), "row {row_idx} of {}", self.n_rows());
        let (offset, n) = self.index[row_idx];
        let mut bytes = vec![0u8; 8 * n + ROW_TAIL_LEN];
        self.file.read_exact_at(&mut bytes, offset).map_err(DataError::io(&self.path, "read"))?;
        let (ids, rest) = bytes.split_at(4 * n);
        let (weights, tail) = rest.split_at(4 * n);
        let file_idx = u32_at(tail, 0) as usize;
        let file = self.files.get(file_idx).ok_or_else(|| DataError::DamagedCache {
            path: self.path.clone(),
            detail: format!("row {row_idx} names file {file_idx} of {}", self.files.len()),
        })?;
        Ok(TokenisedRow {
            token_ids: ids.chunks_exact(4).map(|b| u32_at(b, 0)).collect(),
            train_weights: weights.chunks_exact(4).map(|b| f32::from_bits(u32_at(b, 0))).collect(),
            origin: Origin { file: Arc::clone(file), line: u64_at(tail, 4) as usize },
        })
    }

    /// All rows in order.
    pub fn rows(&self) -> impl Iterator<Item = Result<TokenisedRow, DataError>> + '_ {
        (0..self.n_rows()).map(|row_idx| self.row(row_idx))
    }
}

fn write<I>(path: &Path, key: &CacheKey, rows: I) -> Result<(), DataError>
where
    I: IntoIterator<Item = Result<TokenisedRow, DataError>>,
{
    // `write_with` speaks io::Error; an error of the rows travels beside it.
    let mut row_error = None;
    let written = atomic_file::write_with(path, |file| {
        let mut writer = Writer { file, hasher: blake3::Hasher::new(), offset: 0 };
        writer.cache(key, rows.into_iter()).map_err(|error| match error {
            WriteError::Io(error) => error,
            WriteError::Row(error) => {
                row_error = Some(error);
                io::Error::other("a row failed")
            }
        })
    });
    match row_error {
        Some(error) => Err(error),
        None => written.map_err(DataError::io(path, "write")),
    }
}

enum WriteError {
    Io(io::Error),
    Row(DataError),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        WriteError::Io(error)
    }
}

/// Writes bytes, hashing and counting them.
struct Writer<'a, W> {
    file: &'a mut W,
    hasher: blake3::Hasher,
    offset: u64,
}

impl<W: Write> Writer<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn cache(
        &mut self,
        key: &CacheKey,
        rows: impl Iterator<Item = Result<TokenisedRow, DataError>>,
    ) -> Result<(), WriteError> {
        let header = serde_json::to_vec(&Header { key: key.0.clone() }).map_err(io::Error::other)?;
        self.put(MAGIC)?;
        self.put(&VERSION.to_le_bytes())?;
        self.put(&(header.len() as u32).to_le_bytes())?;
        self.put(&header)?;
        let mut index: Vec<(u64, u64)> = Vec::new();
        let mut files: Vec<Arc<PathBuf>> = Vec::new();
        let mut file_numbers: HashMap<Arc<PathBuf>, u32> = HashMap::new();
        let mut block = Vec::new();
        for row in rows {
            let row = row.and_then(checked).map_err(WriteError::Row)?;
            let file_idx = *file_numbers.entry(Arc::clone(&row.origin.file)).or_insert_with(|| {
                files.push(Arc::clone(&row.origin.file));
                files.len() as u32 - 1
            });
            index.push((self.offset, row.token_ids.len() as u64));
            block.clear();
            block.extend(row.token_ids.iter().flat_map(|id| id.to_le_bytes()));
            block.extend(row.train_weights.iter().flat_map(|weight| weight.to_le_bytes()));
            block.extend(file_idx.to_le_bytes());
            block.extend((row.origin.line as u64).to_le_bytes());
            self.put(&block)?;
        }
        let index_at = self.offset;
        for (offset, n) in &index {
            self.put(&offset.to_le_bytes())?;
            self.put(&n.to_le_bytes())?;
        }
        let files_at = self.offset;
        let names: Vec<&Path> = files.iter().map(|file| file.as_path()).collect();
        self.put(&serde_json::to_vec(&names).map_err(io::Error::other)?)?;
        let n_tokens: u64 = index.iter().map(|(_, n)| n).sum();
        for number in [index_at, files_at, index.len() as u64, n_tokens] {
            self.put(&number.to_le_bytes())?;
        }
        let checksum = self.hasher.finalize();
        self.file.write_all(checksum.as_bytes())?;
        self.file.write_all(MAGIC)?;
        Ok(())
    }
}

fn checked(row: TokenisedRow) -> Result<TokenisedRow, DataError> {
    let fail = |detail: String| Err(DataError::BadTokens { origin: row.origin.clone(), detail });
    let (n_ids, n_weights) = (row.token_ids.len(), row.train_weights.len());
    if n_ids == 0 {
        return fail("no tokens".to_owned());
    }
    if n_ids != n_weights {
        return fail(format!("{n_ids} ids and {n_weights} weights; there must be one weight per id"));
    }
    if let Some(at) = row.train_weights.iter().position(|weight| !weight.is_finite()) {
        return fail(format!("weight {} at token {at} is not finite", row.train_weights[at]));
    }
    Ok(row)
}

fn check_header(file: &File, key: &CacheKey, body_len: u64) -> Result<(), String> {
    const FIXED_LEN: usize = 16;
    let mut fixed = [0u8; FIXED_LEN];
    file.read_exact_at(&mut fixed, 0).map_err(|error| error.to_string())?;
    let version = u32_at(&fixed, 8);
    if &fixed[..8] != MAGIC || version != VERSION {
        return Err(format!("not a token cache of version {VERSION} (found version {version})"));
    }
    let end = FIXED_LEN as u64 + u64::from(u32_at(&fixed, 12));
    if end > body_len {
        return Err("the header is longer than the file".to_owned());
    }
    let header = section(file, FIXED_LEN as u64, end).map_err(|error| error.to_string())?;
    let header: Header = serde_json::from_slice(&header).map_err(|error| format!("header: {error}"))?;
    if header.key != key.0 {
        return Err(format!(
            "it holds other data or other options (key {:.12} instead of {:.12})",
            header.key, key.0
        ));
    }
    Ok(())
}

fn checksum(file: &File, len: u64) -> io::Result<blake3::Hash> {
    let mut reader = BufReader::with_capacity(1 << 20, file).take(len);
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut reader, &mut hasher)?;
    Ok(hasher.finalize())
}

fn section(file: &File, start: u64, end: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; (end - start) as usize];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pt_core::rng::Stream;

    fn rows(n: usize) -> Vec<TokenisedRow> {
        (0..n)
            .map(|i| TokenisedRow {
                token_ids: (0..=i as u32 % 7).map(|t| t * 1000 + i as u32).collect(),
                train_weights: (0..=i % 7).map(|t| (t % 2) as f32 * 0.5).collect(),
                origin: Origin::new(if i % 3 == 0 { "a.jsonl" } else { "b.jsonl" }, i + 1),
            })
            .collect()
    }

    fn open_or_build(dir: &Path, key: &CacheKey, rows: Vec<TokenisedRow>) -> (Cache, Outcome) {
        Cache::open_or_build(dir, key, || Ok(rows.into_iter().map(Ok))).unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_built_once() {
        let dir = tempfile::tempdir().unwrap();
        let key = CacheKey::new(["content", "options"]);
        let (cache, outcome) = open_or_build(dir.path(), &key, rows(100));
        assert!(matches!(outcome, Outcome::Built));
        assert_eq!(cache.rows().collect::<Result<Vec<_>, _>>().unwrap(), rows(100));
        assert_eq!(cache.lengths(), rows(100).iter().map(|r| r.token_ids.len()).collect::<Vec<_>>());
        assert_eq!(cache.n_tokens(), cache.lengths().iter().sum::<usize>());
        let (again, outcome) = open_or_build(dir.path(), &key, Vec::new());
        assert!(matches!(outcome, Outcome::Opened));
        assert_eq!(again.row(99).unwrap(), rows(100)[99]);
        let (other, outcome) =
            open_or_build(dir.path(), &CacheKey::new(["content", "other options"]), rows(3));
        assert!(matches!(outcome, Outcome::Built));
        assert_eq!(other.n_rows(), 3);
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_detected_and_rebuilt() {
        let dir = tempfile::tempdir().unwrap();
        let key = CacheKey::new(["k"]);
        let (cache, _) = open_or_build(dir.path(), &key, rows(5));
        let path = cache.path.clone();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            for bytes in [&bad, &good[..at]] {
                fs::write(&path, bytes).unwrap();
                let error = Cache::open(&path, &key).unwrap_err();
                assert!(matches!(error, DataError::DamagedCache { .. }), "byte {at}: {error}");
            }
        }
        let (rebuilt, outcome) = open_or_build(dir.path(), &key, rows(5));
        assert!(matches!(outcome, Outcome::Rebuilt(DataError::DamagedCache { .. })));
        assert_eq!(rebuilt.n_rows(), 5);
        assert_eq!(fs::read(&path).unwrap(), good, "the same rows give the same bytes");
    }

    #[test]
    fn random_files_never_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for seed in 0..200 {
            let mut draws = Stream::new(seed, "cache/fuzz").at(0);
            let n = draws.below(300);
            let mut bytes: Vec<u8> = (0..n).map(|_| draws.next_u32() as u8).collect();
            bytes.extend_from_slice(MAGIC);
            fs::write(&path, &bytes).unwrap();
            assert!(Cache::open(&path, &CacheKey::new(["k"])).is_err());
        }
    }

    #[test]
    fn a_failing_build_leaves_nothing_and_says_where() {
        let bad: &[(TokenisedRow, &str)] = &[
            (
                TokenisedRow { train_weights: vec![1.0], ..rows(9)[8].clone() },
                "b.jsonl:9: tokenised row: 2 ids and 1 weights",
            ),
            (TokenisedRow { token_ids: vec![], ..rows(9)[8].clone() }, "no tokens"),
            (
                TokenisedRow { train_weights: vec![1.0, f32::NAN], ..rows(9)[8].clone() },
                "weight NaN at token 1",
            ),
        ];
        for (row, expected) in bad {
            let dir = tempfile::tempdir().unwrap();
            let items = vec![Ok(rows(1)[0].clone()), Ok(row.clone())];
            let error = Cache::open_or_build(dir.path(), &CacheKey::new(["k"]), || Ok(items)).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}
