//! Weighted mixtures of sources: a deterministic order of rows, addressable by epoch and position.
//!
//! **Rows of a source.** Each source is an endless stream of passes; pass `p` is a shuffle of all its
//! rows keyed by (seed, source, p). Epoch `e` takes the next `n` rows of the stream, `n` being the
//! source's rows per epoch. So every row comes once before any comes twice, whatever the weights; with
//! weight "once" an epoch is one pass, freshly shuffled.
//!
//! **Order between sources.** The k-th of a source's n rows gets the key (k + u) / n, u uniform in [0, 1),
//! and rows are sorted by key. The order is random, and each stretch of an epoch holds the sources in
//! about the proportions of the whole.
//!
//! Everything follows from (seed, epoch): nothing depends on workers, nothing is replayed on resume. The
//! cost of an epoch's order is its number of rows times a logarithm.

use pt_core::rng::Stream;
use serde::Deserialize;

use crate::error::DataError;

/// How much of each source goes into an epoch.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blend {
    /// A factor per source: 1 is all rows once, 0.1 a tenth of them (another tenth each epoch), 3 each row
    /// three times.
    Repeats(Vec<f64>),
    /// A weight per source (relative to their sum), and when the epoch ends.
    Shares(Vec<f64>, Stop),
}

/// When an epoch of a mixture by shares ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// With the first source used up: no row comes twice; larger sources are used in part.
    FirstExhausted,
    /// With the last source used up: every row comes at least once; smaller sources repeat.
    AllExhausted,
    /// After so many rows.
    Rows(usize),
}

/// A row of a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowAt {
    /// Which source.
    pub source_idx: usize,
    /// Which row of it.
    pub row_idx: usize,
}

/// A mixture of sources of known sizes.
#[derive(Clone, Debug)]
pub struct Mixture {
    n_rows: Vec<usize>,
    n_per_epoch: Vec<usize>,
    seed: u64,
}

impl Mixture {
    /// A mixture of sources with `n_rows` rows each.
    ///
    /// # Errors
    /// When numbers of sources differ, a source is empty, a weight is not a finite number above 0, or an
    /// epoch would be empty.
    pub fn new(n_rows: &[usize], blend: &Blend, seed: u64) -> Result<Self, DataError> {
        let weights = match blend {
            Blend::Repeats(weights) | Blend::Shares(weights, _) => weights,
        };
        check(n_rows, weights)?;
        let n_per_epoch = match blend {
            Blend::Repeats(repeats) => {
                n_rows.iter().zip(repeats).map(|(n, repeat)| (*n as f64 * repeat).round() as usize).collect()
            }
            Blend::Shares(weights, stop) => by_shares(n_rows, weights, *stop),
        };
        if n_per_epoch.iter().sum::<usize>() == 0 {
            return Err(DataError::Mixture(
                "an epoch has no rows; raise the weights or the number of rows".to_owned(),
            ));
        }
        Ok(Mixture { n_rows: n_rows.to_vec(), n_per_epoch, seed })
    }

    /// One source, each row once per epoch.
    ///
    /// # Errors
    /// When it is empty.
    pub fn single(n_rows: usize, seed: u64) -> Result<Self, DataError> {
        Mixture::new(&[n_rows], &Blend::Repeats(vec![1.0]), seed)
    }

    /// Rows in an epoch; the same in every epoch.
    pub fn epoch_len(&self) -> usize {
        self.n_per_epoch.iter().sum()
    }

    /// Rows of each source in an epoch.
    pub fn rows_per_epoch(&self) -> &[usize] {
        &self.n_per_epoch
    }

    /// The order of epoch `epoch`: index it by position, or iterate. A resumed run asks for the same
    /// epoch and goes on from its position.
    pub fn order(&self, epoch: u64) -> Vec<RowAt> {
        let mut keyed = Vec::with_capacity(self.epoch_len());
        for source_idx in 0..self.n_rows.len() {
            let n = self.n_per_epoch[source_idx];
            let place = Stream::new(self.seed, &format!("mix/place/{source_idx}"));
            let mut draws = place.at(epoch);
            for (k, row_idx) in self.rows_of(source_idx, epoch).into_iter().enumerate() {
                let key = (k as f64 + draws.uniform()) / n as f64;
                keyed.push((key, RowAt { source_idx, row_idx }));
            }
        }
        // Ties are as good as impossible, but the order must not depend on the sort: sources break them.
        keyed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.source_idx.cmp(&b.1.source_idx)));
        keyed.into_iter().map(|(_, at)| at).collect()
    }

    /// The order from position `position` of `epoch` on, through later epochs, without end.
    pub fn order_from(&self, epoch: u64, position: usize) -> impl Iterator<Item = RowAt> + '_ {
        let first = self.order(epoch).into_iter().skip(position);
        first.chain((epoch + 1..).flat_map(|epoch| self.order(epoch)))
    }

    /// The stretch of the source's endless stream that belongs to `epoch`.
    fn rows_of(&self, source_idx: usize, epoch: u64) -> Vec<usize> {
        let (len, n) = (self.n_rows[source_idx], self.n_per_epoch[source_idx]);
        let shuffles = Stream::new(self.seed, &format!("mix/shuffle/{source_idx}"));
        let start = epoch as u128 * n as u128;
        let mut pass = (start / len as u128) as u64;
        let mut skipped = (start % len as u128) as usize;
        let mut rows = Vec::with_capacity(n);
        while rows.len() < n {
            let mut shuffled: Vec<usize> = (0..len).collect();
            shuffles.at(pass).shuffle(&mut shuffled);
            rows.extend(shuffled[skipped..].iter().take(n - rows.len()));
            (pass, skipped) = (pass + 1, 0);
        }
        rows
    }
}

fn check(n_rows: &[usize], weights: &[f64]) -> Result<(), DataError> {
    let fail = |message: String| Err(DataError::Mixture(message));
    if n_rows.is_empty() || n_rows.len() != weights.len() {
        return fail(format!("{} sources and {} weights; give each source one", n_rows.len(), weights.len()));
    }
    if let Some(idx) = n_rows.iter().position(|&n| n == 0) {
        return fail(format!("source {idx} has no rows"));
    }
    match weights.iter().position(|w| !w.is_finite() || *w <= 0.0) {
        Some(idx) => {
            fail(format!("source {idx} has weight {}; a weight is a finite number above 0", weights[idx]))
        }
        None => Ok(()),
    }
}

fn by_shares(n_rows: &[usize], weights: &[f64], stop: Stop) -> Vec<usize> {
    let total: f64 = weights.iter().sum();
    let shares: Vec<f64> = weights.iter().map(|w| w / total).collect();
    let lasting = n_rows.iter().zip(&shares).map(|(n, share)| *n as f64 / share);
    match stop {
        Stop::Rows(n) => apportion(&shares, n),
        Stop::FirstExhausted => {
            let n = lasting.fold(f64::INFINITY, f64::min);
            n_rows.iter().zip(&shares).map(|(len, share)| ((share * n).round() as usize).min(*len)).collect()
        }
        Stop::AllExhausted => {
            let n = lasting.fold(0.0, f64::max);
            n_rows.iter().zip(&shares).map(|(len, share)| ((share * n).round() as usize).max(*len)).collect()
        }
    }
}

/// `n` divided by `shares`, to whole numbers that sum to `n` (largest remainders, first source first).
fn apportion(shares: &[f64], n: usize) -> Vec<usize> {
    let mut counts: Vec<usize> = shares.iter().map(|share| (share * n as f64).floor() as usize).collect();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    let remainder = |idx: usize| (shares[idx] * n as f64).fract();
    order.sort_by(|a, b| remainder(*b).total_cmp(&remainder(*a)).then(a.cmp(b)));
    let mut left = n.saturating_sub(counts.iter().sum());
    for idx in order.into_iter().cycle() {
        if left == 0 {
            break;
        }
        counts[idx] += 1;
        left -= 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn mixture(n_rows: &[usize], blend: Blend) -> Mixture {
        Mixture::new(n_rows, &blend, 7).unwrap()
    }

    fn counts(order: &[RowAt]) -> HashMap<RowAt, usize> {
        let mut counts = HashMap::new();
        for at in order {
            *counts.entry(*at).or_default() += 1;
        }
        counts
    }

    #[test]
    fn rows_per_epoch_follow_the_blend() {
        let cases: &[(&[usize], Blend, &[usize])] = &[
            (&[10, 100], Blend::Repeats(vec![1.0, 1.0]), &[10, 100]),
            (&[10, 100], Blend::Repeats(vec![3.0, 0.1]), &[30, 10]),
            (&[10, 100], Blend::Shares(vec![1.0, 1.0], Stop::FirstExhausted), &[10, 10]),
            (&[10, 100], Blend::Shares(vec![1.0, 1.0], Stop::AllExhausted), &[100, 100]),
            (&[10, 100], Blend::Shares(vec![1.0, 3.0], Stop::FirstExhausted), &[10, 30]),
            (&[10, 100], Blend::Shares(vec![1.0, 2.0], Stop::Rows(100)), &[33, 67]),
            (&[5, 5, 5], Blend::Shares(vec![1.0, 1.0, 1.0], Stop::Rows(10)), &[4, 3, 3]),
        ];
        for (n_rows, blend, expected) in cases {
            let mixture = mixture(n_rows, blend.clone());
            assert_eq!(mixture.rows_per_epoch(), *expected, "{blend:?}");
            assert_eq!(mixture.order(3).len(), mixture.epoch_len());
        }
    }

    #[test]
    fn an_epoch_once_through_is_a_permutation_and_epochs_differ() {
        let mixture = mixture(&[50, 7], Blend::Repeats(vec![1.0, 1.0]));
        let (first, second) = (mixture.order(0), mixture.order(1));
        assert_ne!(first, second);
        for order in [&first, &second] {
            assert_eq!(counts(order).len(), 57);
        }
        assert_eq!(first, Mixture::new(&[50, 7], &Blend::Repeats(vec![1.0, 1.0]), 7).unwrap().order(0));
        assert_ne!(first, Mixture::new(&[50, 7], &Blend::Repeats(vec![1.0, 1.0]), 8).unwrap().order(0));
    }

    #[test]
    fn fractions_cover_everything_before_repeating() {
        let mixture = mixture(&[10], Blend::Repeats(vec![0.3]));
        let ten_epochs: Vec<RowAt> = (0..10).flat_map(|epoch| mixture.order(epoch)).collect();
        assert_eq!(ten_epochs.len(), 30);
        assert!(counts(&ten_epochs).values().all(|&n| n == 3), "{:?}", counts(&ten_epochs));
    }

    #[test]
    fn proportions_hold_in_every_stretch() {
        let order = mixture(&[1000, 1000], Blend::Shares(vec![1.0, 4.0], Stop::Rows(1000))).order(0);
        for stretch in order.chunks(100) {
            let n = stretch.iter().filter(|at| at.source_idx == 0).count();
            // 20 expected; stratified keys keep it within a few of that.
            assert!((14..=26).contains(&n), "{n} of 100");
        }
    }

    #[test]
    fn a_position_is_reached_without_replay() {
        let mixture = mixture(&[20, 9], Blend::Repeats(vec![1.0, 2.0]));
        let whole: Vec<RowAt> = mixture.order_from(0, 0).take(100).collect();
        let resumed: Vec<RowAt> = mixture.order_from(1, 5).take(57).collect();
        assert_eq!(whole[mixture.epoch_len() + 5..], resumed[..]);
    }

    #[test]
    fn impossible_mixtures_say_why() {
        let cases: &[(&[usize], Vec<f64>, &str)] = &[
            (&[1, 2], vec![1.0], "2 sources and 1 weights"),
            (&[1, 0], vec![1.0, 1.0], "source 1 has no rows"),
            (&[1, 1], vec![1.0, f64::NAN], "source 1 has weight NaN"),
            (&[1, 1], vec![-1.0, 1.0], "source 0 has weight -1"),
            (&[1], vec![0.1], "an epoch has no rows"),
        ];
        for (n_rows, weights, expected) in cases {
            let error = Mixture::new(n_rows, &Blend::Repeats(weights.clone()), 0).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
