//! Where the time of a step goes, by operation.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Seconds and calls per operation and direction.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    entries: BTreeMap<(&'static str, &'static str), (Duration, u64)>,
}

impl Profile {
    /// Counts the time since `since` under `op`.
    pub fn record(&mut self, op: &'static str, direction: &'static str, since: Instant) {
        self.add(op, direction, since);
    }

    pub(crate) fn add(&mut self, op: &'static str, direction: &'static str, since: Instant) {
        let entry = self.entries.entry((op, direction)).or_default();
        entry.0 += since.elapsed();
        entry.1 += 1;
    }

    /// `(operation, direction, time, calls)`, longest first.
    pub fn rows(&self) -> Vec<(&'static str, &'static str, Duration, u64)> {
        let mut rows: Vec<_> =
            self.entries.iter().map(|(&(op, dir), &(time, calls))| (op, dir, time, calls)).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.2));
        rows
    }

    /// Adds another profile's figures.
    pub fn merge(&mut self, other: &Profile) {
        for (key, (time, calls)) in &other.entries {
            let entry = self.entries.entry(*key).or_default();
            entry.0 += *time;
            entry.1 += calls;
        }
    }
}
