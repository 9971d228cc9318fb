//! Groups of rows about the same thing: hashed bags of words, k-means.
//!
//! A text is a vector of `dimensions` numbers: each word and each pair of neighbouring words adds `1 + ln(count)` with a sign, both
//! place and sign taken from its hash (feature hashing, Weinberger et al. 2009), and the vector is scaled to length 1. Words of
//! fewer than three letters and the commonest function words are left out. It is an embedding of vocabulary, not of
//! meaning: rows on one subject in other words are apart.
//!
//! The survey draws a sample of `sample` rows, the same for any order of reading chunks (the rows with the smallest random
//! keys). Centres begin by k-means++ (Arthur and Vassilvitskii 2007) and are moved by Lloyd's rule until nothing
//! changes, at most 30 times. Then every row goes to its nearest centre. With `max_rows`, rows of a cluster beyond so many
//! are dropped, the first are kept.
//!
//! Memory: `4 * dimensions` bytes for each row of the sample (5 MB by default).

use std::collections::{BTreeMap, BinaryHeap};

use pt_core::catalogue::OptionInfo;
use pt_core::rng::Stream;
use pt_data::Columns;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::json;

use super::part_option;
use crate::catalogue::{CuratorInfo, parse};
use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::Summary;
use crate::step::{Given, Step};
use crate::view::Part;
use crate::words::{excerpt, mix, words};

const NAME: &str = "clusters";
const MOST_ROUNDS: usize = 30;
/// Words shown for each cluster.
const TERMS: usize = 6;
/// Different words counted; beyond them new ones are passed over.
const MOST_WORDS: usize = 100_000;

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "diversity",
    summary: "groups rows by vocabulary (k-means), shows what each group is about, and can cap large groups",
    options: &[
        part_option("\"all\""),
        OptionInfo { name: "k", kind: "integer from 2", default: "16", doc: "clusters" },
        OptionInfo {
            name: "dimensions",
            kind: "integer from 8",
            default: "256",
            doc: "length of a row's vector",
        },
        OptionInfo {
            name: "sample",
            kind: "integer from 1",
            default: "5000",
            doc: "rows that the centres are found on",
        },
        OptionInfo {
            name: "max_rows",
            kind: "integer",
            default: "",
            doc: "the most rows of one cluster; none: all are kept",
        },
    ],
    build: |options, given| Ok(Box::new(Clusters::new(parse(NAME, options)?, given)?)),
};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    part: Part,
    k: usize,
    dimensions: usize,
    sample: usize,
    max_rows: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Options { part: Part::All, k: 16, dimensions: 256, sample: 5000, max_rows: None }
    }
}

struct Clusters {
    options: Options,
    stream: Stream,
    /// The rows with the smallest keys so far, the largest of them on top.
    sample: BinaryHeap<(u64, u64, Vector)>,
    centres: Vec<Vec<f32>>,
    counts: Vec<u64>,
    kept: Vec<u64>,
    examples: Vec<String>,
    terms: BTreeMap<String, BTreeMap<u32, u32>>,
}

/// A vector that takes no part in comparisons.
#[derive(Clone, Debug)]
struct Vector(Vec<f32>);

impl PartialEq for Vector {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Vector {}
impl PartialOrd for Vector {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Vector {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

const COMMON: &[&str] = &[
    "the", "and", "that", "this", "with", "for", "was", "are", "you", "your", "have", "has", "had", "not",
    "but", "from", "they", "his", "her", "she", "him", "its", "can", "will", "would", "what", "which", "how",
    "there", "their", "when", "were", "one", "all", "out", "who", "than", "then", "them", "been", "about",
    "into", "does", "some", "more",
];

/// The words of a text that say what it is about.
fn terms(text: &str) -> impl Iterator<Item = String> {
    words(text).filter(|word| word.chars().nth(2).is_some() && !COMMON.contains(&word.as_str()))
}

fn hash(word: &str) -> u64 {
    mix(word
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
}

/// The text as a vector of length 1, or of zeros where it has no words.
fn embed(text: &str, dimensions: usize) -> Vec<f32> {
    let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
    let mut before: Option<u64> = None;
    for word in terms(text) {
        let word = hash(&word);
        *counts.entry(word).or_default() += 1;
        if let Some(before) = before.replace(word) {
            *counts.entry(mix(before.rotate_left(1) ^ word)).or_default() += 1;
        }
    }
    let mut vector = vec![0f32; dimensions];
    for (hash, count) in counts {
        let weight = 1.0 + (count as f32).ln();
        vector[(hash >> 1) as usize % dimensions] += if hash & 1 == 0 { weight } else { -weight };
    }
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
    vector
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// The nearest centre, the first of equals, and how far it is.
fn nearest(centres: &[Vec<f32>], point: &[f32]) -> (usize, f32) {
    let far = (0, f32::INFINITY);
    centres.iter().enumerate().fold(far, |best, (i, centre)| {
        let far = distance(centre, point);
        if far < best.1 { (i, far) } else { best }
    })
}

/// k-means++ and Lloyd; fewer centres where there are fewer different points.
fn k_means(points: &[Vec<f32>], k: usize, stream: &Stream) -> Vec<Vec<f32>> {
    let Some(first) = (!points.is_empty()).then(|| stream.at(u64::MAX).below(points.len())) else {
        return Vec::new();
    };
    let mut centres = vec![points[first].clone()];
    let mut far: Vec<f32> = points.iter().map(|point| distance(point, &centres[0])).collect();
    while centres.len() < k {
        let total: f64 = far.iter().map(|d| f64::from(*d)).sum();
        if total <= 0.0 {
            break;
        }
        let mut left = stream.at(u64::MAX - centres.len() as u64).uniform() * total;
        let chosen = far.iter().position(|d| {
            left -= f64::from(*d);
            left < 0.0
        });
        let centre = points[chosen.unwrap_or(points.len() - 1)].clone();
        far.iter_mut().zip(points).for_each(|(far, point)| *far = far.min(distance(point, &centre)));
        centres.push(centre);
    }
    let mut assigned = vec![usize::MAX; points.len()];
    for _ in 0..MOST_ROUNDS {
        let now: Vec<usize> = points.par_iter().map(|point| nearest(&centres, point).0).collect();
        if now == assigned {
            break;
        }
        assigned = now;
        let mut sums = vec![(vec![0f64; points[0].len()], 0u64); centres.len()];
        for (point, cluster) in points.iter().zip(&assigned) {
            let (sum, n) = &mut sums[*cluster];
            sum.iter_mut().zip(point).for_each(|(sum, x)| *sum += f64::from(*x));
            *n += 1;
        }
        for (centre, (sum, n)) in centres.iter_mut().zip(sums).filter(|(_, (_, n))| *n > 0) {
            *centre = sum.iter().map(|sum| (sum / n as f64) as f32).collect();
        }
    }
    centres
}

impl Clusters {
    fn new(options: Options, given: &Given) -> Result<Self, CurateError> {
        if options.k < 2 || options.dimensions < 8 || options.sample == 0 {
            let problem = format!(
                "k, dimensions, sample are {}, {}, {}; expected at least 2, 8, 1",
                options.k, options.dimensions, options.sample
            );
            return Err(CurateError::option(NAME, problem));
        }
        Ok(Clusters {
            options,
            stream: Stream::new(given.seed, "curate/clusters"),
            sample: BinaryHeap::new(),
            centres: Vec::new(),
            counts: Vec::new(),
            kept: Vec::new(),
            examples: Vec::new(),
            terms: BTreeMap::new(),
        })
    }

    fn count_terms(&mut self, cluster: usize, text: &str) {
        // A few hundred rows of each cluster tell what it is about.
        if self.counts[cluster] > 300 {
            return;
        }
        let unique: std::collections::BTreeSet<String> = terms(&excerpt(text, 2000)).collect();
        for word in unique {
            if self.terms.len() < MOST_WORDS || self.terms.contains_key(&word) {
                *self.terms.entry(word).or_default().entry(cluster as u32).or_default() += 1;
            }
        }
    }

    /// The words that are commonest in a cluster beyond what is common in all: by count squared over the count in all.
    fn terms_of(&self, cluster: usize) -> Vec<&str> {
        let score = |(word, counts): (&'_ String, &BTreeMap<u32, u32>)| {
            let here = f64::from(*counts.get(&(cluster as u32))?);
            let all: u32 = counts.values().sum();
            Some((here * here / f64::from(all), word.len(), word.as_str().to_owned()))
        };
        let mut scored: Vec<(f64, usize, &str)> = self
            .terms
            .iter()
            .filter_map(|(word, counts)| score((word, counts)).map(|(s, n, _)| (s, n, word.as_str())))
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.2.cmp(b.2)));
        scored.into_iter().take(TERMS).map(|(_, _, word)| word).collect()
    }
}

impl Step for Clusters {
    type Seen = (Vec<f32>, Option<usize>);

    fn see(&self, item: &Item) -> Result<Self::Seen, CurateError> {
        let vector = embed(&item.view.part(self.options.part), self.options.dimensions);
        let cluster = (!self.centres.is_empty()).then(|| nearest(&self.centres, &vector).0);
        Ok((vector, cluster))
    }

    fn needs_survey(&self) -> bool {
        true
    }

    fn survey(&mut self, item: &Item, (vector, _): Self::Seen) {
        let key = self.stream.at(item.row_idx).next_u64();
        self.sample.push((key, item.row_idx, Vector(vector)));
        if self.sample.len() > self.options.sample {
            self.sample.pop();
        }
    }

    fn finish_survey(&mut self) {
        let mut sample = std::mem::take(&mut self.sample).into_vec();
        sample.sort_unstable_by_key(|(_, row_idx, _)| *row_idx);
        let points: Vec<Vec<f32>> = sample.into_iter().map(|(_, _, Vector(vector))| vector).collect();
        self.centres = k_means(&points, self.options.k, &self.stream);
        self.counts = vec![0; self.centres.len()];
        self.kept = vec![0; self.centres.len()];
        self.examples = vec![String::new(); self.centres.len()];
    }

    fn decide(&mut self, item: &Item, (_, cluster): Self::Seen) -> Decision {
        let Some(cluster) = cluster else { return Decision::Keep };
        self.counts[cluster] += 1;
        let text = item.view.part(self.options.part);
        self.count_terms(cluster, &text);
        if self.examples[cluster].is_empty() {
            self.examples[cluster] = excerpt(&text, 60).replace('\n', " ");
        }
        if let Some(most) = self.options.max_rows.filter(|most| self.kept[cluster] >= *most) {
            let detail = format!("cluster {cluster} ({}) has {most} rows", self.terms_of(cluster).join(", "));
            return Decision::drop("its cluster is full", detail);
        }
        self.kept[cluster] += 1;
        Decision::Note(Columns::from_iter([("cluster".to_owned(), cluster.into())]))
    }

    fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        let n: u64 = self.counts.iter().sum();
        let mut order: Vec<usize> = (0..self.counts.len()).collect();
        order.sort_by_key(|cluster| (std::cmp::Reverse(self.counts[*cluster]), *cluster));
        let share = |cluster: usize| self.counts[cluster] as f64 / n.max(1) as f64;
        let clusters: Vec<serde_json::Value> = order
            .iter()
            .map(|&cluster| json!({"cluster": cluster, "rows": self.counts[cluster], "terms": self.terms_of(cluster), "example": self.examples[cluster]}))
            .collect();
        for &cluster in &order {
            let terms = self.terms_of(cluster).join(", ");
            summary.lines.push(format!(
                "cluster {cluster}: {} rows ({:.1} %): {terms}",
                self.counts[cluster],
                100.0 * share(cluster)
            ));
        }
        let entropy: f64 = order.iter().map(|c| share(*c)).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
        summary.lines.push(format!("as diverse as {:.1} clusters of equal size", entropy.exp()));
        summary.facts.insert("clusters".to_owned(), clusters.into());
        summary.facts.insert("effective_clusters".to_owned(), entropy.exp().into());
        if let Some(&largest) = order.first().filter(|largest| order.len() > 2 && share(**largest) > 0.5) {
            let terms = self.terms_of(largest).join(", ");
            summary
                .warnings
                .push(format!("one cluster has {:.0} % of the rows ({terms})", 100.0 * share(largest)));
        }
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Harness, text};

    fn rows() -> Vec<serde_json::Value> {
        let subjects = [
            "cooking pasta tomato sauce garlic kitchen",
            "football goal referee stadium player match",
            "galaxy telescope star planet orbit comet",
        ];
        (0..90)
            .map(|i| {
                let words: Vec<&str> = subjects[i % 3].split(' ').collect();
                text(&format!(
                    "{} {} {} {} item{i}",
                    words[i % 6],
                    words[(i + 1) % 6],
                    words[(i / 3) % 6],
                    words[(i + 4) % 6]
                ))
            })
            .collect()
    }

    #[test]
    fn subjects_are_told_apart_whatever_the_threads() {
        let rows = rows();
        let outcome = Harness::new(NAME, "k = 3").run(&rows);
        let cluster = |i: usize| match &outcome.decisions[i] {
            Decision::Note(notes) => notes["cluster"].as_u64().unwrap(),
            other => panic!("{other:?}"),
        };
        assert!((0..90).all(|i| cluster(i) == cluster(i % 3)), "{:?}", outcome.summary.lines);
        assert_ne!(cluster(0), cluster(1));
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let again = one.install(|| Harness::new(NAME, "k = 3").run(&rows));
        assert_eq!(outcome.decisions, again.decisions);
        assert!(
            outcome.summary.lines.iter().any(|line| line.contains("telescope")),
            "{:?}",
            outcome.summary.lines
        );
    }

    #[test]
    fn full_clusters_take_no_more() {
        let outcome = Harness::new(NAME, "k = 3\nmax_rows = 10").run(&rows());
        assert_eq!(outcome.kept.len(), 30);
        assert_eq!(Harness::new(NAME, "").run(&[text("a"), text("")]).kept, [0, 1]);
        assert!(Harness::refusal(NAME, "k = 1").contains("expected at least 2"));
    }
}
