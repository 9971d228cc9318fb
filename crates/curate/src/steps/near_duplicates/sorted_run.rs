//! Pairs of a tag and a row, sorted, in a file of their own that goes away with its holder.
//!
//! In memory stay a filter, [`FILTER_BITS`] bits a pair, that knows most tags which are not in the file, and the first tag
//! of every page, a 32nd of a byte a pair.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::words::mix;

/// A tag and a row.
pub(super) type Pair = (u32, u32);

/// Bits of the filter for each pair. With three of 64 bits set for a tag, about one in twenty strange tags passes.
const FILTER_BITS: usize = 8;
const PAIR_BYTES: usize = 8;
/// Pairs of a page, 1 KiB: what one look reads.
const PAGE: usize = 128;

/// A file of pairs, sorted by tag and row.
pub(super) struct SortedRun {
    file: File,
    n_pairs: usize,
    /// The first tag of every page.
    first_tags: Vec<u32>,
    filter: Filter,
}

impl SortedRun {
    /// Writes `n_pairs` sorted pairs to a file in `folder`.
    pub(super) fn write(
        pairs: impl Iterator<Item = io::Result<Pair>>,
        n_pairs: usize,
        folder: &Path,
    ) -> io::Result<SortedRun> {
        let file = tempfile::tempfile_in(folder)?;
        let mut writer = BufWriter::with_capacity(1 << 16, &file);
        let (mut filter, mut first_tags) = (Filter::new(n_pairs), Vec::with_capacity(n_pairs.div_ceil(PAGE)));
        for (i, pair) in pairs.enumerate() {
            let (tag, row) = pair?;
            if i % PAGE == 0 {
                first_tags.push(tag);
            }
            filter.add(tag);
            writer.write_all(&tag.to_le_bytes())?;
            writer.write_all(&row.to_le_bytes())?;
        }
        writer.flush()?;
        drop(writer);
        Ok(SortedRun { file, n_pairs, first_tags, filter })
    }

    /// The pairs of several runs in one.
    pub(super) fn merge(runs: &[SortedRun], folder: &Path) -> io::Result<SortedRun> {
        let mut readers: Vec<Reader<'_>> = runs.iter().map(Reader::new).collect();
        let mut heads = readers.iter_mut().map(Reader::next).collect::<io::Result<Vec<_>>>()?;
        let next = || {
            let least = (0..heads.len()).filter(|i| heads[*i].is_some()).min_by_key(|i| heads[*i])?;
            match readers[least].next() {
                Ok(following) => std::mem::replace(&mut heads[least], following).map(Ok),
                Err(error) => Some(Err(error)),
            }
        };
        let n_pairs = runs.iter().map(|run| run.n_pairs).sum();
        SortedRun::write(std::iter::from_fn(next), n_pairs, folder)
    }

    pub(super) fn n_pairs(&self) -> usize {
        self.n_pairs
    }

    /// Appends the rows of a tag, ascending, until `rows` has `most`.
    pub(super) fn rows(&self, tag: u32, most: usize, rows: &mut Vec<u32>) -> io::Result<()> {
        if !self.filter.may_have(tag) {
            return Ok(());
        }
        // A tag that begins a page may already end the page before.
        let first = self.first_tags.partition_point(|first| *first < tag).saturating_sub(1);
        for page in first..self.first_tags.len() {
            if self.first_tags[page] > tag {
                break;
            }
            for (found, row) in self.page(page)? {
                if found == tag && rows.len() < most {
                    rows.push(row);
                }
                if found > tag || rows.len() == most {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn page(&self, page: usize) -> io::Result<impl Iterator<Item = Pair>> {
        let n = PAGE.min(self.n_pairs - page * PAGE);
        let mut bytes = [0; PAGE * PAIR_BYTES];
        self.file.read_exact_at(&mut bytes[..n * PAIR_BYTES], (page * PAGE * PAIR_BYTES) as u64)?;
        let number =
            move |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Ok((0..n).map(move |i| (number(i * PAIR_BYTES), number(i * PAIR_BYTES + 4))))
    }
}

/// All pairs of a run, one after the other.
struct Reader<'a> {
    run: &'a SortedRun,
    n_pages_read: usize,
    ready: std::vec::IntoIter<Pair>,
}

impl<'a> Reader<'a> {
    fn new(run: &'a SortedRun) -> Self {
        Reader { run, n_pages_read: 0, ready: Vec::new().into_iter() }
    }

    fn next(&mut self) -> io::Result<Option<Pair>> {
        if self.ready.len() == 0 && self.n_pages_read < self.run.first_tags.len() {
            self.ready = self.run.page(self.n_pages_read)?.collect::<Vec<_>>().into_iter();
            self.n_pages_read += 1;
        }
        Ok(self.ready.next())
    }
}

/// Says of a tag that it is not there, or that it may be (Bloom 1970, within one word of 64 bits for each tag).
struct Filter {
    words: Vec<u64>,
}

impl Filter {
    fn new(n: usize) -> Self {
        Filter { words: vec![0; (n * FILTER_BITS).div_ceil(64).max(1)] }
    }

    /// The word of a tag, and its bits in it.
    fn place(&self, tag: u32) -> (usize, u64) {
        let hash = mix(u64::from(tag) ^ 0x5bd1_e995);
        let word = ((hash >> 32) * self.words.len() as u64) >> 32;
        let bit = |shift: u32| 1u64 << ((hash >> shift) & 63);
        (word as usize, bit(0) | bit(6) | bit(12))
    }

    fn add(&mut self, tag: u32) {
        let (word, bits) = self.place(tag);
        self.words[word] |= bits;
    }

    fn may_have(&self, tag: u32) -> bool {
        let (word, bits) = self.place(tag);
        self.words[word] & bits == bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(mut pairs: Vec<Pair>, folder: &Path) -> SortedRun {
        pairs.sort_unstable();
        let n = pairs.len();
        SortedRun::write(pairs.into_iter().map(Ok), n, folder).unwrap()
    }

    fn rows(run: &SortedRun, tag: u32, most: usize) -> Vec<u32> {
        let mut rows = Vec::new();
        run.rows(tag, most, &mut rows).unwrap();
        rows
    }

    #[test]
    fn runs_and_their_merge_find_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let pairs = |from: u32| (from..from + 3000).map(|row| (row % 700 * 5 + 1, row)).collect::<Vec<_>>();
        let runs = [0, 3000, 6000].map(|from| run(pairs(from), folder.path()));
        let merged = SortedRun::merge(&runs, folder.path()).unwrap();
        assert_eq!(merged.n_pairs(), 9000);
        for tag in 0..3600 {
            let expected = |from: u32| pairs(from).into_iter().filter(|(t, _)| *t == tag).map(|(_, row)| row);
            let all: Vec<u32> = [0, 3000, 6000].into_iter().flat_map(expected).collect();
            assert_eq!(rows(&runs[1], tag, 99), expected(3000).collect::<Vec<_>>(), "{tag}");
            assert_eq!(rows(&merged, tag, 99), all, "{tag}");
            assert_eq!(rows(&merged, tag, 2), all[..all.len().min(2)], "{tag}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "files have no names");
    }

    #[test]
    fn a_tag_of_more_than_a_page_is_found_whole() {
        let folder = tempfile::tempdir().unwrap();
        let pairs = (0..2000).map(|row| (if row < 500 { 1 } else { 2 }, row)).collect();
        let run = run(pairs, folder.path());
        assert_eq!(rows(&run, 2, 9999), (500..2000).collect::<Vec<_>>());
        assert!(rows(&run, 3, 9999).is_empty());
    }

    #[test]
    fn the_filter_passes_few_strange_tags() {
        let mut filter = Filter::new(10_000);
        (0..10_000).for_each(|tag| filter.add(tag * 7));
        assert!((0..10_000).all(|tag| filter.may_have(tag * 7)));
        let n_passed = (100_000..200_000).filter(|tag| filter.may_have(*tag)).count();
        assert!(n_passed < 8_000, "{n_passed} of 100000");
    }
}
