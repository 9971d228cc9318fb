//! The operations of the tape, one file each: formula, forward, backward, tests.

pub mod add;
pub mod attention;
pub mod embedding;
pub mod gated;
pub mod head_norm;
pub mod linear;
pub mod linear_divergence;
pub mod linear_logprob;
pub mod rms_norm;
pub mod rope;
pub mod score_head;

use pt_kernels::elem::Elem;
use rayon::prelude::*;

/// Rows one task handles; results do not depend on it.
const ROWS_PER_TASK: usize = 16;

/// Calls `f(row index, row)` for every row of a `[rows, cols]` matrix, in parallel.
pub(crate) fn for_rows<E: Elem>(values: &mut [E], cols: usize, f: impl Fn(usize, &mut [E]) + Sync) {
    values.par_chunks_mut(cols * ROWS_PER_TASK).enumerate().for_each(|(task, rows)| {
        for (i, row) in rows.chunks_exact_mut(cols).enumerate() {
            f(task * ROWS_PER_TASK + i, row);
        }
    });
}

/// Columns one task sums; results do not depend on it.
const COLS_PER_TASK: usize = 64;

/// Calls `f(first column, columns)` for blocks of a vector of column sums, in parallel. Each column is summed by one
/// thread, over rows in order, so that sums continue from micro-batch to micro-batch as one chain.
pub(crate) fn for_columns(sums: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    sums.par_chunks_mut(COLS_PER_TASK).enumerate().for_each(|(task, cols)| f(task * COLS_PER_TASK, cols));
}

#[cfg(test)]
pub(crate) mod testing;
