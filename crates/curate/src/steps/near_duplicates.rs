//! Rows whose texts are nearly the same: MinHash with locality-sensitive hashing.
//!
//! A text is the set of its runs of `ngram` words; two texts are as alike as the Jaccard similarity of their sets, the
//! share of all their runs that they have in common. `bands * rows` hash functions `h_i(x) = (a_i x + b_i) mod 2^64 >> 32`
//! (multiply-add-shift, Dietzfelbinger 1996) have their least value over a set; two sets agree in each with a probability
//! equal to their similarity J (Broder 1997). Texts become candidates where all minima of a band agree, which happens with
//! probability `1 - (1 - J^rows)^bands`: with 16 x 8, 0.06 at J = 0.5, 0.62 at 0.7, 0.96 at 0.8 and 0.9999 at 0.9. A
//! candidate is a duplicate where the similarity estimated from the lowest byte of every minimum (Li and König 2010: the
//! share that agrees, less the 1/256 that agree by chance) reaches `threshold`; with 128 functions its standard error is
//! below 0.045.
//!
//! With `keep = "first"` a row is compared with the rows kept before it, in one pass. With `keep = "best"` all rows are
//! compared first, rows alike are joined into groups (also through others), and of each group the row with the highest
//! `by` is kept, the first of equals; that takes a second pass.
//!
//! Memory: about 100 MB for the newest rows, and of older rows, which go to files without a name beside the output, a byte
//! for each band and 8 for the place: 24 bytes a row with 16 bands. Rows are those kept (`first`), or all that were read
//! (`best`, with 24 bytes more for groups and scores). On disk a byte for each function and 8 for each band, twice the
//! latter for a moment: 256 to 384 bytes a row with 16 x 8.

mod index;
mod sorted_run;
mod table;

use std::path::Path;

use pt_core::catalogue::OptionInfo;
use pt_core::rng::Stream;
use serde::Deserialize;
use serde_json::Value;

use self::index::{Index, Older, Signature};
use super::part_option;
use crate::catalogue::{CuratorInfo, parse};
use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::{Places, Summary};
use crate::step::{Given, Step};
use crate::view::{Part, column};
use crate::words::{count_words, mix, ngram, ngrams, word_hashes};

const NAME: &str = "near_duplicates";

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "duplicates",
    summary: "drops rows whose text is nearly that of another (MinHash)",
    options: &[
        part_option("\"all\""),
        OptionInfo {
            name: "threshold",
            kind: "number, 0 to 1",
            default: "0.7",
            doc: "similarity from which rows are duplicates",
        },
        OptionInfo { name: "ngram", kind: "integer from 1", default: "3", doc: "words of a run" },
        OptionInfo { name: "bands", kind: "integer from 1", default: "16", doc: "bands of the signature" },
        OptionInfo { name: "rows", kind: "integer from 1", default: "8", doc: "minima of a band" },
        OptionInfo {
            name: "keep",
            kind: r#""first", "best""#,
            default: "\"first\"",
            doc: "which of rows alike is kept: the first, or the one with the highest `by`",
        },
        OptionInfo {
            name: "by",
            kind: "\"words\" or a column with numbers",
            default: "\"words\"",
            doc: "what makes a row the best: its length in words, or a column",
        },
    ],
    build: |options, given| Ok(Box::new(NearDuplicates::new(parse(NAME, options)?, given)?)),
};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    part: Part,
    threshold: f64,
    ngram: usize,
    bands: usize,
    rows: usize,
    keep: Keep,
    by: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Keep {
    First,
    Best,
}

impl Default for Options {
    fn default() -> Self {
        let by = "words".to_owned();
        Options { part: Part::All, threshold: 0.7, ngram: 3, bands: 16, rows: 8, keep: Keep::First, by }
    }
}

struct NearDuplicates {
    options: Options,
    hashes: Vec<(u64, u64)>,
    places: Places,
    index: Index,
    best: Best,
}

/// What the survey keeps to choose the best of each group.
#[derive(Default)]
struct Best {
    parents: Vec<u32>,
    scores: Vec<f64>,
    winners: Vec<u32>,
    next: u32,
}

/// A row alone, and the older rows it is like.
#[derive(Default)]
struct Seen {
    signature: Signature,
    older: Older,
    score: f64,
}

impl NearDuplicates {
    fn new(options: Options, given: &Given) -> Result<Self, CurateError> {
        let Options { threshold, ngram, bands, rows, .. } = options;
        if !(threshold > 0.0 && threshold <= 1.0) {
            return Err(CurateError::option(
                NAME,
                format!("threshold is {threshold}, expected above 0 and up to 1"),
            ));
        }
        if ngram == 0 || bands == 0 || rows == 0 {
            return Err(CurateError::option(
                NAME,
                format!("ngram, bands, rows are {ngram}, {bands}, {rows}, expected 1 or more"),
            ));
        }
        let stream = Stream::new(given.seed, "curate/minhash");
        let hashes = (0..bands * rows).map(|i| {
            let mut draws = stream.at(i as u64);
            (draws.next_u64() | 1, draws.next_u64())
        });
        Ok(NearDuplicates {
            hashes: hashes.collect(),
            index: Index::new(bands * rows, bands, threshold, &given.scratch),
            options,
            places: Places::default(),
            best: Best::default(),
        })
    }

    fn minima(&self, text: &str) -> Vec<u32> {
        let words = word_hashes(text);
        let mut minima = vec![u32::MAX; self.hashes.len()];
        if words.is_empty() {
            return Vec::new();
        }
        let mut add = |shingle: u64| {
            for (least, (a, b)) in minima.iter_mut().zip(&self.hashes) {
                *least = (*least).min((a.wrapping_mul(shingle).wrapping_add(*b) >> 32) as u32);
            }
        };
        match words.len() < self.options.ngram {
            true => add(ngram(&words)),
            false => ngrams(&words, self.options.ngram).for_each(add),
        }
        minima
    }

    fn signature(&self, text: &str) -> Signature {
        let minima = self.minima(text);
        let tag = |(i, minima): (usize, &[u32])| {
            let hash =
                minima.iter().fold(i as u64 + 1, |hash, least| mix(hash.rotate_left(32) ^ u64::from(*least)));
            // Zero is no tag.
            ((hash >> 32) as u32).max(1)
        };
        Signature {
            tags: minima.chunks_exact(self.options.rows).enumerate().map(tag).collect(),
            bytes: minima.iter().map(|least| *least as u8).collect(),
        }
    }

    fn insert(&mut self, item: &Item, seen: &Seen) -> u32 {
        let row = self.places.push(&item.row.origin);
        assert_eq!(self.index.insert(&seen.signature, &seen.older), row, "one place for each signature");
        row
    }

    fn score(&self, item: &Item, text: &str) -> Result<f64, CurateError> {
        if self.options.keep == Keep::First {
            return Ok(0.0);
        }
        if self.options.by == "words" {
            return Ok(count_words(text) as f64);
        }
        let found = column(&item.row.value, &self.options.by).and_then(Value::as_f64);
        found.ok_or_else(|| no_column(item, &self.options.by))
    }
}

pub(crate) fn no_column(item: &Item, column: &str) -> CurateError {
    let names: Vec<&str> = item.row.value.keys().map(String::as_str).collect();
    CurateError::NoColumn {
        origin: item.row.origin.clone(),
        step: NAME,
        column: column.to_owned(),
        hint: pt_core::suggest::hint(column, &names),
    }
}

impl Step for NearDuplicates {
    type Seen = Seen;

    fn begin_chunk(&mut self) -> Result<(), CurateError> {
        let folder = self.index.folder().to_owned();
        self.index.make_room().map_err(CurateError::io(&folder, "keep signatures of rows in this folder"))
    }

    fn see(&self, item: &Item) -> Result<Seen, CurateError> {
        if self.best.is_chosen() {
            // The second pass only looks up who was chosen.
            return Ok(Seen::default());
        }
        let text = item.view.part(self.options.part);
        let signature = self.signature(&text);
        let older = self.index.older(&signature);
        let older = older.map_err(CurateError::io(self.index.folder(), "read back signatures of rows"))?;
        Ok(Seen { signature, older, score: self.score(item, &text)? })
    }

    fn needs_survey(&self) -> bool {
        self.options.keep == Keep::Best
    }

    fn survey(&mut self, item: &Item, seen: Seen) {
        let alike = self.index.alike(&seen.signature, &seen.older);
        let row = self.insert(item, &seen);
        self.best.parents.push(row);
        self.best.scores.push(seen.score);
        alike.into_iter().for_each(|(other, _)| self.best.join(row, other));
    }

    fn finish_survey(&mut self) {
        self.best.choose();
        // What is left to do needs no signature.
        self.index = Index::new(1, 1, 1.0, Path::new(""));
    }

    fn decide(&mut self, item: &Item, seen: Seen) -> Decision {
        if self.options.keep == Keep::Best {
            let winner = self.best.winner_of_next();
            return match winner {
                None => Decision::Keep,
                Some(winner) => {
                    let detail = format!("{} is better by `{}`", self.places.get(winner), self.options.by);
                    Decision::drop("nearly the same as a better row", detail)
                }
            };
        }
        let alike = self.index.alike(&seen.signature, &seen.older);
        // The first of those most alike.
        match alike.into_iter().reduce(|best, other| if other.1 > best.1 { other } else { best }) {
            Some((row, alike)) => Decision::drop(
                "nearly the same as an earlier row",
                format!("{:.0} % like {}", 100.0 * alike, self.places.get(row)),
            ),
            None => {
                self.insert(item, &seen);
                Decision::Keep
            }
        }
    }

    fn summary(&self) -> Summary {
        let Options { bands, rows, ngram, threshold, .. } = self.options;
        let at = |j: f64| 1.0 - (1.0 - j.powi(rows as i32)).powi(bands as i32);
        let found = format!(
            "{bands} x {rows} minima of runs of {ngram} words: pairs {:.2} alike are found with probability {:.2}, 0.80 with {:.2}, 0.90 with {:.4}",
            threshold,
            at(threshold),
            at(0.8),
            at(0.9)
        );
        Summary { lines: vec![found], ..Summary::default() }
    }
}

impl Best {
    fn root(&self, mut row: u32) -> u32 {
        while self.parents[row as usize] != row {
            row = self.parents[row as usize];
        }
        row
    }

    /// Joins two groups; the root is the lowest row, whatever the order of joining.
    fn join(&mut self, a: u32, b: u32) {
        let (a_root, b_root) = (self.root(a), self.root(b));
        let least = a_root.min(b_root);
        self.parents[a_root.max(b_root) as usize] = least;
        (self.parents[a as usize], self.parents[b as usize]) = (least, least);
    }

    fn choose(&mut self) {
        let roots: Vec<u32> = (0..self.parents.len() as u32).map(|row| self.root(row)).collect();
        let mut best: Vec<u32> = (0..roots.len() as u32).collect();
        for (row, root) in roots.iter().enumerate() {
            let holder = &mut best[*root as usize];
            if self.scores[row] > self.scores[*holder as usize] {
                *holder = row as u32;
            }
        }
        self.winners = roots.iter().map(|root| best[*root as usize]).collect();
    }

    fn is_chosen(&self) -> bool {
        !self.winners.is_empty()
    }

    /// The row that is better than the next one, if any is.
    fn winner_of_next(&mut self) -> Option<u32> {
        let row = self.next;
        self.next += 1;
        let winner = self.winners[row as usize];
        (winner != row).then_some(winner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use pt_core::rng::Stream;

    use super::*;
    use crate::testing::{Harness, text, text_with};

    fn story(seed: u64, n: usize) -> Vec<String> {
        let mut draws = Stream::new(seed, "words").at(0);
        (0..n).map(|_| format!("w{}", draws.below(5000))).collect()
    }

    fn jaccard(a: &[String], b: &[String]) -> f64 {
        let set = |words: &[String]| words.windows(3).map(<[String]>::to_vec).collect::<HashSet<_>>();
        let (a, b) = (set(a), set(b));
        a.intersection(&b).count() as f64 / a.union(&b).count() as f64
    }

    #[test]
    fn estimates_are_near_the_true_similarity() {
        let step = NearDuplicates::new(Options::default(), &Given::default()).unwrap();
        let signature = |words: &[String]| {
            step.minima(&words.join(" ")).iter().map(|least| *least as u8).collect::<Vec<u8>>()
        };
        for (seed, n_changed) in [(1, 0), (2, 1), (3, 5), (4, 15), (5, 40), (6, 200)] {
            let a = story(seed, 200);
            let mut b = a.clone();
            for i in 0..n_changed {
                b[i * 200 / n_changed.max(1)] = format!("changed{i}");
            }
            let (sa, sb) = (signature(&a), signature(&b));
            let equal = sa.iter().zip(&sb).filter(|(a, b)| a == b).count() as f64 / 128.0;
            let estimate = (equal - 1.0 / 256.0) / (255.0 / 256.0);
            // Four standard errors.
            assert!(
                (estimate - jaccard(&a, &b)).abs() < 0.18,
                "{n_changed}: {estimate} / {}",
                jaccard(&a, &b)
            );
        }
    }

    #[test]
    fn rows_nearly_alike_are_dropped_and_others_kept() {
        let a = story(1, 120);
        let changed = |i: usize| {
            let mut words = a.clone();
            words[i] = "changed".to_owned();
            words.join(" ")
        };
        let rows = [
            text(&a.join(" ")),
            text(&story(2, 120).join(" ")),
            text(&changed(60)),
            text(&changed(5).to_uppercase()),
            text("short text"),
            text("Short: text"),
            text(""),
            text(" "),
        ];
        let outcome = Harness::new(NAME, "").run(&rows);
        assert_eq!(outcome.kept, [0, 1, 4, 6, 7]);
        assert!(outcome.details()[0].contains("like test.jsonl:1"), "{:?}", outcome.details());
        let outcome = Harness::new(NAME, "threshold = 1.0").run(&rows);
        assert_eq!(outcome.kept, [0, 1, 2, 3, 4, 6, 7]);
    }

    #[test]
    fn the_best_of_a_group_is_kept_wherever_it_stands() {
        let a = story(7, 100).join(" ");
        let rows = [
            text_with(&a, "quality", 1.0),
            text_with(&story(8, 100).join(" "), "quality", 0.0),
            text_with(&format!("{a} more"), "quality", 3.0),
            text_with(&a, "quality", 3.0),
            text_with(&a, "quality", 2.0),
        ];
        let outcome = Harness::new(NAME, "keep = \"best\"\nby = \"quality\"").run(&rows);
        assert_eq!(outcome.kept, [1, 2]);
        assert!(outcome.details()[0].contains("test.jsonl:3 is better by `quality`"));
        assert_eq!(Harness::new(NAME, "keep = \"best\"").run(&rows).kept, [1, 2]);
        let error = Harness::new(NAME, "keep = \"best\"\nby = \"qualty\"").error(&rows);
        assert!(error.contains("did you mean `quality`"), "{error}");
    }

    #[test]
    fn the_second_pass_computes_no_signature() {
        let options = Options { keep: Keep::Best, ..Options::default() };
        let mut step = NearDuplicates::new(options, &Given::default()).unwrap();
        let origin = pt_data::Origin::new("test.jsonl", 1);
        let row = pt_data::Row { origin, value: text("some words to compare").as_object().unwrap().clone() };
        let (layout, view) = crate::source::view_of_new(&row);
        let item = Item { row, view, layout, input_idx: 0, row_idx: 0, notes: Default::default() };
        let seen = step.see(&item).unwrap();
        assert_eq!(seen.signature.bytes.len(), 128);
        step.survey(&item, seen);
        step.finish_survey();
        let seen = step.see(&item).unwrap();
        assert!(seen.signature.bytes.is_empty() && seen.signature.tags.is_empty());
        assert!(matches!(step.decide(&item, seen), Decision::Keep));
    }

    #[test]
    fn options_out_of_range_are_refused() {
        for (options, expected) in
            [("threshold = 0.0", "threshold is 0"), ("bands = 0", "expected 1 or more")]
        {
            assert!(Harness::refusal(NAME, options).contains(expected));
        }
    }
}
