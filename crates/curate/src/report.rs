//! What a curation found, counted; the card is made of it. Nothing in it depends on time, machine or threads.

use std::collections::BTreeMap;

use pt_data::{Columns, Origin};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::blueprint::Mixture;
use crate::item::{Decision, Item};
use crate::words::{Span, around, excerpt};

/// Most characters of a text in an example.
const EXAMPLE_CHARS: usize = 240;

/// The whole of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// What was read.
    pub inputs: Vec<InputReport>,
    /// The steps, in order.
    pub steps: Vec<StepReport>,
    /// Rows read, without those that were unreadable.
    pub n_read: u64,
    /// Rows written.
    pub n_kept: u64,
    /// Rows as they were read, by domain and input.
    pub before: Composition,
    /// Rows as they were written.
    pub after: Composition,
    /// Lengths of the rows written.
    pub lengths: Histogram,
    /// The files written, with their rows.
    pub outputs: Vec<(String, u64)>,
    /// The mixture that meets the blueprint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixture: Option<Mixture>,
    /// What keyed random choices.
    pub seed: u64,
}

/// One input.
#[derive(Clone, Debug, Default, Serialize)]
pub struct InputReport {
    /// As it was named.
    pub source: String,
    /// The layout of its rows.
    pub layout: &'static str,
    /// Its licence, where it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Rows read.
    pub n_read: u64,
    /// Rows that could not be read, dropped where that was asked for.
    pub n_unreadable: u64,
    /// Rows written.
    pub n_kept: u64,
}

/// One step.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StepReport {
    /// Its type.
    pub name: String,
    /// Its options as given.
    pub options: toml::Table,
    /// Rows that reached it.
    pub n_seen: u64,
    /// Rows that left it.
    pub n_kept: u64,
    /// Rows dropped, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Rows changed or replaced, by reason.
    pub changed: BTreeMap<&'static str, u64>,
    /// Rows flagged and kept, by reason.
    pub flagged: BTreeMap<&'static str, u64>,
    /// The first rows of each reason.
    pub examples: Vec<Example>,
    /// What it found beside that.
    pub summary: Summary,
}

/// A row before and after a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// The reason.
    pub reason: &'static str,
    /// Where the row is from.
    pub origin: String,
    /// The evidence.
    pub detail: String,
    /// The row, or the part of it that changed, cut to a few hundred characters.
    pub before: String,
    /// What became of it; `None` where it was dropped.
    pub after: Option<String>,
}

/// What a step found beside dropping and changing rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Numbers and lists, for machines.
    pub facts: Map<String, Value>,
    /// The same for people, one line each.
    pub lines: Vec<String>,
    /// What a person should look at.
    pub warnings: Vec<String>,
}

/// Rows by domain and by input.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Composition {
    /// Rows and words of each domain.
    pub domains: BTreeMap<&'static str, Amount>,
    /// Rows and words of each input, by its name.
    pub inputs: BTreeMap<String, Amount>,
}

/// How much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Rows.
    pub rows: u64,
    /// Words.
    pub words: u64,
}

/// Lengths in bins that double: 0, 1, 2-3, 4-7, 8-15, ...
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Histogram {
    /// `tokens` where a tokenizer was given, otherwise `words`.
    pub unit: &'static str,
    /// Rows in each bin; bin 0 is length 0, bin k is 2^(k-1) to 2^k - 1.
    pub bins: Vec<u64>,
    /// All lengths together.
    pub total: u64,
    /// The longest.
    pub max: u64,
}

impl Composition {
    pub(crate) fn add(&mut self, domain: &'static str, input: &str, n_words: usize) {
        let by_domain = self.domains.entry(domain).or_default();
        by_domain.rows += 1;
        by_domain.words += n_words as u64;
        if !self.inputs.contains_key(input) {
            self.inputs.insert(input.to_owned(), Amount::default());
        }
        let by_input = self.inputs.get_mut(input).expect("it was put there");
        by_input.rows += 1;
        by_input.words += n_words as u64;
    }

    /// All rows.
    pub fn n_rows(&self) -> u64 {
        self.domains.values().map(|amount| amount.rows).sum()
    }
}

impl Histogram {
    pub(crate) fn add(&mut self, length: usize) {
        let bin = (usize::BITS - length.leading_zeros()) as usize;
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, 0);
        }
        self.bins[bin] += 1;
        self.total += length as u64;
        self.max = self.max.max(length as u64);
    }

    /// The lengths of a bin, as text.
    pub fn label(bin: usize) -> String {
        match bin {
            0 => "0".to_owned(),
            1 => "1".to_owned(),
            bin => format!("{}-{}", 1u64 << (bin - 1), (1u64 << bin) - 1),
        }
    }
}

impl StepReport {
    /// Counts a decision, and keeps it as an example where there are fewer than `n_examples` of its reason.
    pub(crate) fn count(&mut self, item: &Item, decision: &Decision, n_examples: usize) {
        self.n_seen += 1;
        let (counts, reason, detail, after) = match decision {
            Decision::Keep | Decision::Note(_) => {
                self.n_kept += 1;
                return;
            }
            Decision::Drop { reason, detail } => (&mut self.dropped, *reason, detail, None),
            Decision::Flag { reason, detail } => {
                self.n_kept += 1;
                (&mut self.flagged, *reason, detail, Some("(kept)".to_owned()))
            }
            Decision::Change { value, reason, detail } => {
                self.n_kept += 1;
                (&mut self.changed, *reason, detail, Some(json(value)))
            }
            Decision::Replace { values, reason, detail } => {
                self.n_kept += values.len() as u64;
                let after = values.iter().map(json).collect::<Vec<_>>().join("\n");
                (&mut self.changed, *reason, detail, Some(after))
            }
        };
        let n = counts.entry(reason).or_default();
        *n += 1;
        if *n <= n_examples as u64 {
            let before = json(&item.row.value);
            let (before, after) = match (decision, after) {
                (Decision::Change { .. }, Some(after)) => {
                    let (before, after) = where_they_differ(&before, &after);
                    (before, Some(after))
                }
                (_, after) => {
                    (excerpt(&before, EXAMPLE_CHARS), after.map(|text| excerpt(&text, EXAMPLE_CHARS)))
                }
            };
            let detail = excerpt(detail, EXAMPLE_CHARS);
            self.examples.push(Example {
                reason,
                origin: item.row.origin.to_string(),
                detail,
                before,
                after,
            });
        }
    }
}

fn json(columns: &Columns) -> String {
    serde_json::to_string(columns).expect("JSON values are writable")
}

/// Excerpts of two texts around where they begin to differ.
fn where_they_differ(a: &str, b: &str) -> (String, String) {
    let at: usize = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
    let place = Span { start: at, end: at };
    (around(a, place, EXAMPLE_CHARS), around(b, place, EXAMPLE_CHARS))
}

/// The line of a dropped row in the file of dropped rows.
#[derive(Serialize)]
pub(crate) struct DroppedRow<'a> {
    pub(crate) step: &'a str,
    pub(crate) position: usize,
    pub(crate) reason: &'a str,
    pub(crate) detail: &'a str,
    pub(crate) origin: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) row: Option<&'a Columns>,
}

/// Where kept rows are from, at eight bytes a row.
#[derive(Debug, Default)]
pub(crate) struct Places {
    files: Vec<std::sync::Arc<std::path::PathBuf>>,
    rows: Vec<(u32, u32)>,
}

impl Places {
    /// Adds a row; its number.
    pub(crate) fn push(&mut self, origin: &Origin) -> u32 {
        let file = match self.files.iter().rposition(|file| *file == origin.file) {
            Some(file) => file,
            None => {
                self.files.push(origin.file.clone());
                self.files.len() - 1
            }
        };
        self.rows.push((file as u32, u32::try_from(origin.line).unwrap_or(u32::MAX)));
        u32::try_from(self.rows.len() - 1).expect("fewer than 2^32 rows")
    }

    pub(crate) fn get(&self, row: u32) -> Origin {
        let (file, line) = self.rows[row as usize];
        Origin { file: self.files[file as usize].clone(), line: line as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_double() {
        let mut histogram = Histogram::default();
        for length in [0, 1, 2, 3, 4, 7, 8] {
            histogram.add(length);
        }
        assert_eq!(histogram.bins, [1, 1, 2, 2, 1]);
        assert_eq!((histogram.total, histogram.max), (25, 8));
        assert_eq!([0, 1, 2, 4].map(Histogram::label), ["0", "1", "2-3", "8-15"]);
    }

    #[test]
    fn places_come_back() {
        let mut places = Places::default();
        let origins = [Origin::new("a", 1), Origin::new("b", 7), Origin::new("a", 2)];
        let rows: Vec<u32> = origins.iter().map(|origin| places.push(origin)).collect();
        assert_eq!(rows.iter().map(|row| places.get(*row)).collect::<Vec<_>>(), origins);
    }
}
