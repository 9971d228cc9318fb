//! Rows whose text is the same, but for case, punctuation and white space; the first is kept.
//!
//! Texts are compared by a 64-bit hash (of BLAKE3) of their words, or of their bytes: among ten million rows the chance
//! that any two different ones have the same hash is n^2 / 2^65 = 3 in a million. Memory: 16 bytes a row kept, times the
//! table's slack, about 30.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use pt_core::catalogue::OptionInfo;
use serde::Deserialize;

use super::part_option;
use crate::catalogue::{CuratorInfo, parse};
use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::Places;
use crate::step::Step;
use crate::view::Part;
use crate::words::words;

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: "exact_duplicates",
    group: "duplicates",
    summary: "drops rows whose words are those of an earlier row",
    options: &[
        part_option("\"all\""),
        OptionInfo {
            name: "normalise",
            kind: "bool",
            default: "true",
            doc: "whether case, punctuation and white space are ignored; otherwise every byte counts",
        },
    ],
    build: |options, _| {
        Ok(Box::new(ExactDuplicates { options: parse("exact_duplicates", options)?, ..Default::default() }))
    },
};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    part: Part,
    normalise: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { part: Part::All, normalise: true }
    }
}

#[derive(Default)]
struct ExactDuplicates {
    options: Options,
    seen: HashMap<u64, u32>,
    places: Places,
}

impl Step for ExactDuplicates {
    /// `None` for an empty text, which is no duplicate of another.
    type Seen = Option<u64>;

    fn see(&self, item: &Item) -> Result<Self::Seen, CurateError> {
        let text = item.view.part(self.options.part);
        let mut hasher = blake3::Hasher::new();
        let mut is_empty = true;
        if self.options.normalise {
            for word in words(&text) {
                is_empty = false;
                hasher.update(word.as_bytes());
                hasher.update(b" ");
            }
        }
        if is_empty && !text.trim().is_empty() {
            // A text without words (symbols, emoji) is compared as it is.
            is_empty = false;
            hasher.update(b"\0");
            hasher.update(text.as_bytes());
        }
        let bytes = hasher.finalize();
        let first: [u8; 8] = bytes.as_bytes()[..8].try_into().expect("eight bytes");
        Ok((!is_empty).then(|| u64::from_le_bytes(first)))
    }

    fn decide(&mut self, item: &Item, seen: Self::Seen) -> Decision {
        let Some(hash) = seen else { return Decision::Keep };
        match self.seen.entry(hash) {
            Entry::Occupied(first) => Decision::drop(
                "the same as an earlier row",
                format!("first at {}", self.places.get(*first.get())),
            ),
            Entry::Vacant(entry) => {
                entry.insert(self.places.push(&item.row.origin));
                Decision::Keep
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Harness, prompt};

    #[test]
    fn only_repeated_words_are_dropped() {
        let rows = [
            prompt("Say hi", "Hi!"),
            prompt("say HI.", "hi"),
            prompt("Say hi", "Ho"),
            prompt("", "😀"),
            prompt("", "😁"),
        ];
        let check = |options: &str, kept: &[usize]| {
            let outcome = Harness::new("exact_duplicates", options).run(&rows);
            assert_eq!(outcome.kept, kept, "{options}");
        };
        check("", &[0, 2, 3, 4]);
        check("part = \"prompt\"", &[0, 3, 4]);
        check("normalise = false", &[0, 1, 2, 3, 4]);
        let outcome = Harness::new("exact_duplicates", "").run(&rows);
        assert_eq!(outcome.details(), ["first at test.jsonl:1"]);
    }
}
