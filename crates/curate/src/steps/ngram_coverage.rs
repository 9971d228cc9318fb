//! How much of the rows is new: distinct runs of words, and rows that only repeat what came before.
//!
//! Two measures. *Distinct-n* (Li et al. 2016, "A Diversity-Promoting Objective Function", section 5.2): different runs of
//! n words over all runs of n words, for n = 1 to 4, the different ones counted by HyperLogLog (0.8 % standard error).
//! *Novelty* of a row: the share of its runs of `n` words that no earlier row had, told by a Bloom filter of `bits` bits
//! with four hash functions; a false positive makes a row look less new, by `(1 - e^(-4 m / bits))^4` after `m` runs,
//! which is in the summary. With `min_new` above 0, rows below it are dropped.
//!
//! Memory: `2^bits / 8` bytes (16 MiB by default) and 64 KiB.

use pt_core::catalogue::OptionInfo;
use serde::Deserialize;

use super::part_option;
use crate::catalogue::{CuratorInfo, parse};
use crate::error::CurateError;
use crate::hyperloglog::HyperLogLog;
use crate::item::{Decision, Item};
use crate::report::Summary;
use crate::step::Step;
use crate::view::Part;
use crate::words::{ngrams, word_hashes};

const NAME: &str = "ngram_coverage";
const MOST: usize = 4;

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "diversity",
    summary: "measures how many runs of words are different, and drops rows that bring too few new ones",
    options: &[
        part_option("\"all\""),
        OptionInfo { name: "n", kind: "integer from 1", default: "3", doc: "words of a run" },
        OptionInfo {
            name: "min_new",
            kind: "number, 0 to 1",
            default: "0.0",
            doc: "least share of a row's runs that no earlier row had; 0 only measures",
        },
        OptionInfo {
            name: "bits",
            kind: "integer, 16 to 40",
            default: "27",
            doc: "the filter has 2 to this power bits",
        },
    ],
    build: |options, _| Ok(Box::new(Coverage::new(parse(NAME, options)?)?)),
};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    part: Part,
    n: usize,
    min_new: f64,
    bits: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options { part: Part::All, n: 3, min_new: 0.0, bits: 27 }
    }
}

struct Coverage {
    options: Options,
    filter: Vec<u64>,
    n_in_filter: u64,
    distinct: Vec<HyperLogLog>,
    n_runs: [u64; MOST],
    n_new: u64,
    n_all: u64,
}

impl Coverage {
    fn new(options: Options) -> Result<Self, CurateError> {
        if options.n == 0 || !(0.0..=1.0).contains(&options.min_new) || !(16..=40).contains(&options.bits) {
            let problem = format!(
                "n, min_new, bits are {}, {}, {}; expected 1 or more, 0 to 1, 16 to 40",
                options.n, options.min_new, options.bits
            );
            return Err(CurateError::option(NAME, problem));
        }
        Ok(Coverage {
            filter: vec![0; (1 << options.bits) / 64],
            options,
            n_in_filter: 0,
            distinct: vec![HyperLogLog::new(); MOST],
            n_runs: [0; MOST],
            n_new: 0,
            n_all: 0,
        })
    }

    fn places(&self, hash: u64) -> [(usize, u64); 4] {
        // Two halves of one hash make as many as are wanted (Kirsch and Mitzenmacher 2006).
        let (a, b) = (hash, (hash >> 32) | 1);
        std::array::from_fn(|i| {
            let bit = a.wrapping_add(b.wrapping_mul(i as u64)) & ((1 << self.options.bits) - 1);
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }

    fn has(&self, hash: u64) -> bool {
        self.places(hash).iter().all(|(at, bit)| self.filter[*at] & bit != 0)
    }

    fn put(&mut self, hash: u64) {
        for (at, bit) in self.places(hash) {
            self.filter[at] |= bit;
        }
        self.n_in_filter += 1;
    }
}

impl Step for Coverage {
    type Seen = Vec<u64>;

    fn see(&self, item: &Item) -> Result<Vec<u64>, CurateError> {
        Ok(word_hashes(&item.view.part(self.options.part)))
    }

    fn decide(&mut self, _item: &Item, words: Vec<u64>) -> Decision {
        let mut runs: Vec<u64> = ngrams(&words, self.options.n).collect();
        let n_all = runs.len();
        runs.retain(|run| !self.has(*run));
        let share = runs.len() as f64 / n_all.max(1) as f64;
        if n_all > 0 && share < self.options.min_new {
            let detail = format!("{} of {n_all} runs of {} words are new", runs.len(), self.options.n);
            return Decision::drop("too little is new", detail);
        }
        (self.n_new, self.n_all) = (self.n_new + runs.len() as u64, self.n_all + n_all as u64);
        runs.into_iter().for_each(|run| self.put(run));
        for n in 1..=MOST {
            for run in ngrams(&words, n) {
                self.distinct[n - 1].add(run);
                self.n_runs[n - 1] += 1;
            }
        }
        Decision::Keep
    }

    fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for n in 1..=MOST {
            let (distinct, all) = (self.distinct[n - 1].estimate(), self.n_runs[n - 1]);
            let share = (distinct / all.max(1) as f64).min(1.0);
            summary.facts.insert(format!("distinct_{n}"), share.into());
            summary.lines.push(format!(
                "distinct-{n}: about {distinct:.0} different of {all} runs ({:.1} %)",
                100.0 * share
            ));
        }
        let filled = 4.0 * self.n_in_filter as f64 / 2f64.powi(self.options.bits as i32);
        let false_positives = (1.0 - (-filled).exp()).powi(4);
        summary.facts.insert("false_positive_rate".to_owned(), false_positives.into());
        summary.lines.push(format!(
            "{} of {} runs of {} words were new in their row (the filter errs for {:.2} % of them at the end)",
            self.n_new, self.n_all, self.options.n, 100.0 * false_positives
        ));
        if false_positives > 0.01 && self.options.min_new > 0.0 {
            summary.warnings.push(format!(
                "the filter of 2^{} bits is too small for these rows: {:.0} % of new runs were taken for old; raise `bits`",
                self.options.bits,
                100.0 * false_positives
            ));
        }
        summary
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Harness, text};

    #[test]
    fn rows_that_repeat_are_dropped_and_shares_are_right() {
        let rows = [text("a b c d e"), text("a b c d e"), text("x y z u v"), text("a b c y z"), text("q")];
        let outcome = Harness::new("ngram_coverage", "min_new = 0.5").run(&rows);
        assert_eq!(outcome.kept, [0, 2, 3, 4]);
        assert_eq!(outcome.details(), ["0 of 3 runs of 3 words are new"]);
        let outcome = Harness::new("ngram_coverage", "").run(&rows);
        assert_eq!(outcome.kept.len(), 5);
        // 11 different words of 21.
        let distinct = outcome.summary.facts["distinct_1"].as_f64().unwrap();
        assert!((distinct - 11.0 / 21.0).abs() < 0.01, "{distinct}");
        assert!(Harness::refusal("ngram_coverage", "n = 0").contains("1 or more"));
    }
}
