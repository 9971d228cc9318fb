//! Rows by tag, in memory.

use super::sorted_run::Pair;
use crate::words::mix;

/// Rows by 32-bit tag: open addressing, 8 bytes an entry, several rows of a tag side by side. Zero is no tag.
pub(super) struct Table {
    slots: Vec<Pair>,
    n_used: usize,
}

impl Table {
    pub(super) fn new() -> Self {
        Table { slots: vec![(0, 0); 1 << 10], n_used: 0 }
    }

    /// The rows of a tag, in the order they were inserted in.
    pub(super) fn rows(&self, tag: u32) -> impl Iterator<Item = u32> + '_ {
        let mask = self.slots.len() - 1;
        let from_home = (0..).map(move |i| self.slots[(self.home(tag) + i) & mask]);
        from_home.take_while(|(t, _)| *t != 0).filter(move |(t, _)| *t == tag).map(|(_, row)| row)
    }

    pub(super) fn insert(&mut self, tag: u32, row: u32) {
        if (self.n_used + 1) * 5 > self.slots.len() * 4 {
            let old = std::mem::take(&mut self.slots);
            self.slots = vec![(0, 0); old.len() * 2];
            old.into_iter().filter(|(tag, _)| *tag != 0).for_each(|(tag, row)| self.put(tag, row));
        }
        self.put(tag, row);
        self.n_used += 1;
    }

    /// All pairs, sorted.
    pub(super) fn into_sorted(self) -> Vec<Pair> {
        let mut pairs = self.slots;
        pairs.retain(|(tag, _)| *tag != 0);
        pairs.sort_unstable();
        pairs
    }

    fn home(&self, tag: u32) -> usize {
        mix(u64::from(tag)) as usize & (self.slots.len() - 1)
    }

    fn put(&mut self, tag: u32, row: u32) {
        let mask = self.slots.len() - 1;
        let mut at = self.home(tag);
        while self.slots[at].0 != 0 {
            at = (at + 1) & mask;
        }
        self.slots[at] = (tag, row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_finds_what_was_put_in() {
        let mut table = Table::new();
        for row in 0..20_000u32 {
            table.insert(row / 2 + 1, row);
        }
        for tag in [1, 500, 10_000] {
            let mut rows: Vec<u32> = table.rows(tag).collect();
            rows.sort_unstable();
            assert_eq!(rows, [2 * (tag - 1), 2 * (tag - 1) + 1]);
        }
        assert_eq!(table.rows(10_001).count(), 0);
        assert_eq!(table.into_sorted(), (0..20_000).map(|row| (row / 2 + 1, row)).collect::<Vec<_>>());
    }
}
