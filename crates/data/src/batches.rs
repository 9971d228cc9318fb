//! Optimiser steps and their micro-batches, by token or row budget, addressable by step.
//!
//! First the order of rows is cut into steps, then the rows of each step are packed into micro-batches.
//! So **packing never changes which rows make a step**: a step stays a random sample even with best-fit
//! packing, which for itself would put long rows together. Since losses are normalised over the whole
//! step, packing changes speed and memory and nothing else.
//!
//! There is no padding: a micro-batch is a flat list of tokens with segments, and its cost is the sum of
//! its rows' lengths.

use serde::Deserialize;

use crate::error::DataError;
use crate::pack;

/// How large an optimiser step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepSize {
    /// At most so many tokens (a single longer row makes a step of its own). With lengths far below it the
    /// step comes close to it.
    Tokens(usize),
    /// Exactly so many rows (the last step of an epoch may have fewer).
    Rows(usize),
}

/// Which rows of a step share a micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Neighbours in the order.
    Sequential,
    /// Best-fit decreasing over the rows of the step: fewer micro-batches.
    #[default]
    Bfd,
}

/// How rows become steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchOptions {
    /// Most tokens in a micro-batch: the memory bound.
    pub tokens_per_micro_batch: usize,
    /// The size of an optimiser step.
    pub step: StepSize,
    /// Which rows share a micro-batch.
    #[serde(default)]
    pub packing: Packing,
}

/// The steps over a list of rows.
#[derive(Clone, Debug)]
pub struct Batches {
    lengths: Vec<usize>,
    /// Position of each step's first row, and the number of rows at the end.
    starts: Vec<usize>,
    options: BatchOptions,
}

/// One optimiser step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Positions (in the list of lengths) of the rows of each micro-batch.
    pub micro_batches: Vec<Vec<usize>>,
    /// Tokens in the step.
    pub n_tokens: usize,
    /// Rows in the step.
    pub n_rows: usize,
}

impl Batches {
    /// Steps over rows of these lengths, in this order.
    ///
    /// # Errors
    /// When a row is empty or longer than a micro-batch, or a size is 0.
    pub fn new(lengths: Vec<usize>, options: BatchOptions) -> Result<Self, DataError> {
        let BatchOptions { tokens_per_micro_batch, step, .. } = options;
        if tokens_per_micro_batch == 0 || matches!(step, StepSize::Tokens(0) | StepSize::Rows(0)) {
            return Err(DataError::Batching(format!("sizes must be above 0: {options:?}")));
        }
        pack::check_lengths(&lengths, tokens_per_micro_batch)?;
        let mut starts = vec![0];
        let (mut n_tokens, mut n_rows) = (0, 0);
        for (position, &len) in lengths.iter().enumerate() {
            let is_full = match step {
                StepSize::Tokens(budget) => n_rows > 0 && n_tokens + len > budget,
                StepSize::Rows(budget) => n_rows == budget,
            };
            if is_full {
                starts.push(position);
                (n_tokens, n_rows) = (0, 0);
            }
            n_tokens += len;
            n_rows += 1;
        }
        if !lengths.is_empty() {
            starts.push(lengths.len());
        }
        Ok(Batches { lengths, starts, options })
    }

    /// How many steps there are.
    pub fn n_steps(&self) -> usize {
        self.starts.len() - 1
    }

    /// Position of the first row of step `step_idx`.
    pub fn start_of(&self, step_idx: usize) -> usize {
        self.starts[step_idx]
    }

    /// Step `step_idx`, computed from the rows of that step alone.
    ///
    /// # Panics
    /// If there is no such step.
    pub fn step(&self, step_idx: usize) -> Step {
        assert!(step_idx < self.n_steps(), "step {step_idx} of {}", self.n_steps());
        let (start, end) = (self.starts[step_idx], self.starts[step_idx + 1]);
        let lengths = &self.lengths[start..end];
        let capacity = self.options.tokens_per_micro_batch;
        let packs = match self.options.packing {
            Packing::Sequential => pack::sequential(lengths, capacity),
            Packing::Bfd => pack::best_fit_decreasing(lengths, capacity),
        };
        let mut micro_batches = packs.expect("lengths were checked when the steps were made");
        micro_batches.iter_mut().flatten().for_each(|idx| *idx += start);
        Step { micro_batches, n_tokens: lengths.iter().sum(), n_rows: end - start }
    }

    /// The steps from `step_idx` on.
    pub fn steps_from(&self, step_idx: usize) -> impl Iterator<Item = Step> + '_ {
        (step_idx..self.n_steps()).map(|idx| self.step(idx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batches(
        lengths: &[usize],
        tokens_per_micro_batch: usize,
        step: StepSize,
        packing: Packing,
    ) -> Batches {
        Batches::new(lengths.to_vec(), BatchOptions { tokens_per_micro_batch, step, packing }).unwrap()
    }

    #[test]
    fn known_steps() {
        let lengths = [3, 3, 2, 4, 1, 5];
        let all = |step, packing| -> Vec<Vec<Vec<usize>>> {
            batches(&lengths, 6, step, packing).steps_from(0).map(|s| s.micro_batches).collect()
        };
        assert_eq!(
            all(StepSize::Rows(4), Packing::Sequential),
            [vec![vec![0, 1], vec![2, 3]], vec![vec![4, 5]]]
        );
        assert_eq!(
            all(StepSize::Tokens(8), Packing::Bfd),
            [vec![vec![0, 1], vec![2]], vec![vec![3, 4]], vec![vec![5]]]
        );
        assert_eq!(batches(&[], 6, StepSize::Rows(4), Packing::Bfd).n_steps(), 0);
    }

    #[test]
    fn impossible_sizes_are_errors() {
        for (lengths, tokens, step) in [
            (vec![7], 6, StepSize::Rows(1)),
            (vec![1], 0, StepSize::Rows(1)),
            (vec![1], 6, StepSize::Tokens(0)),
        ] {
            let options = BatchOptions { tokens_per_micro_batch: tokens, step, packing: Packing::Bfd };
            assert!(Batches::new(lengths, options).is_err());
        }
    }

    proptest! {
        #[test]
        fn packing_changes_no_step(lengths in prop::collection::vec(1usize..50, 0..150), budget in 1usize..300, by_rows: bool) {
            let size = if by_rows { StepSize::Rows(budget) } else { StepSize::Tokens(budget) };
            let plain = batches(&lengths, 64, size, Packing::Sequential);
            let packed = batches(&lengths, 64, size, Packing::Bfd);
            prop_assert_eq!(plain.n_steps(), packed.n_steps());
            let mut next = 0;
            for (a, b) in plain.steps_from(0).zip(packed.steps_from(0)) {
                let (mut rows_a, mut rows_b) = (a.micro_batches.concat(), b.micro_batches.concat());
                rows_a.sort_unstable();
                rows_b.sort_unstable();
                prop_assert_eq!(&rows_a, &rows_b);
                prop_assert_eq!(rows_a, (next..next + a.n_rows).collect::<Vec<_>>());
                next += a.n_rows;
                prop_assert!(b.micro_batches.iter().all(|m| m.iter().map(|&i| lengths[i]).sum::<usize>() <= 64));
                if let StepSize::Tokens(budget) = size {
                    prop_assert!(a.n_tokens <= budget || a.n_rows == 1);
                }
            }
            prop_assert_eq!(next, lengths.len());
        }
    }
}
