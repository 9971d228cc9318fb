//! Best-fit-decreasing packing: rows into packs of bounded length, no row split.
//!
//! Rows are taken longest first (ties in the order given) and each goes to the fullest pack that still
//! has room (ties to the oldest pack); if there is none a new pack is opened. O(n log n). The number of
//! packs is at most 11/9 of the optimum plus 4 (Johnson, Demers, Ullman, Garey and Graham 1974,
//! "Worst-case performance bounds for simple one-dimensional packing algorithms").

use std::collections::BTreeSet;

use crate::error::DataError;

/// Packs of indices into `lengths`, each of total length at most `capacity`.
///
/// Packs are in the order of their first row in the input, and so are the rows within a pack.
///
/// # Errors
/// When a length is 0 or above `capacity`: cutting is done before, where it is known what is cut.
pub fn best_fit_decreasing(lengths: &[usize], capacity: usize) -> Result<Vec<Vec<usize>>, DataError> {
    check_lengths(lengths, capacity)?;
    let mut by_length: Vec<usize> = (0..lengths.len()).collect();
    by_length.sort_by_key(|&idx| (std::cmp::Reverse(lengths[idx]), idx));
    let mut packs: Vec<Vec<usize>> = Vec::new();
    // (room left, pack): the first entry at or above a length is the tightest fit.
    let mut open: BTreeSet<(usize, usize)> = BTreeSet::new();
    for idx in by_length {
        let best = open.range((lengths[idx], 0)..).next().copied();
        let (room, pack_idx) = match best {
            Some(found) => {
                open.remove(&found);
                found
            }
            None => {
                packs.push(Vec::new());
                (capacity, packs.len() - 1)
            }
        };
        packs[pack_idx].push(idx);
        let left = room - lengths[idx];
        if left > 0 {
            open.insert((left, pack_idx));
        }
    }
    packs.iter_mut().for_each(|pack| pack.sort_unstable());
    packs.sort_unstable_by_key(|pack| pack[0]);
    Ok(packs)
}

/// Packs of neighbouring indices: a row that does not fit opens the next pack.
///
/// # Errors
/// As [`best_fit_decreasing`].
pub fn sequential(lengths: &[usize], capacity: usize) -> Result<Vec<Vec<usize>>, DataError> {
    check_lengths(lengths, capacity)?;
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for (idx, &len) in lengths.iter().enumerate() {
        if len > room {
            packs.push(Vec::new());
            room = capacity;
        }
        packs.last_mut().expect("a pack was opened above").push(idx);
        room -= len;
    }
    Ok(packs)
}

/// Every length is from 1 to `capacity`.
pub(crate) fn check_lengths(lengths: &[usize], capacity: usize) -> Result<(), DataError> {
    match lengths.iter().position(|&len| len == 0 || len > capacity) {
        None => Ok(()),
        Some(idx) if lengths[idx] == 0 => Err(DataError::Batching(format!("row {idx} has no tokens"))),
        Some(idx) => Err(DataError::Batching(format!(
            "row {idx} has {} tokens, above the {capacity} a micro-batch may hold; cut rows first (`max_length`) or raise `tokens_per_micro_batch`",
            lengths[idx]
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_packings() {
        type Case = (&'static [usize], usize, &'static [&'static [usize]]);
        let cases: &[Case] = &[
            (&[], 5, &[]),
            (&[5, 5], 5, &[&[0], &[1]]),
            (&[2, 3, 2, 3], 5, &[&[0, 1], &[2, 3]]),
            // 4 and 3 open packs; the 2 goes to the 4, where it fits best.
            (&[2, 3, 4], 6, &[&[0, 2], &[1]]),
            (&[1, 1, 1, 6], 6, &[&[0, 1, 2], &[3]]),
        ];
        for (lengths, capacity, expected) in cases {
            assert_eq!(best_fit_decreasing(lengths, *capacity).unwrap(), *expected, "{lengths:?}");
        }
        assert_eq!(sequential(&[2, 3, 4, 1], 6).unwrap(), [vec![0, 1], vec![2, 3]]);
    }

    #[test]
    fn rows_that_cannot_be_packed_are_named() {
        for pack in [best_fit_decreasing, sequential] {
            assert!(pack(&[1, 9], 8).unwrap_err().to_string().contains("row 1 has 9 tokens"));
            assert!(pack(&[0], 8).unwrap_err().to_string().contains("row 0 has no tokens"));
        }
    }

    proptest! {
        #[test]
        fn every_row_is_packed_once_within_capacity(lengths in prop::collection::vec(1usize..100, 0..200)) {
            for pack in [best_fit_decreasing, sequential] {
                let packs = pack(&lengths, 100).unwrap();
                let mut seen: Vec<usize> = packs.concat();
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
                prop_assert!(packs.iter().all(|p| p.iter().map(|&i| lengths[i]).sum::<usize>() <= 100));
            }
            let n_least = lengths.iter().sum::<usize>().div_ceil(100);
            let n_packs = best_fit_decreasing(&lengths, 100).unwrap().len();
            // No two packs can be half empty, which bounds the count by twice the optimum.
            prop_assert!(n_packs <= 2 * n_least.max(1), "{} packs for {}", n_packs, n_least);
        }
    }
}
