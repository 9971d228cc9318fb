//! Causal attention over spans of queries with explicit key positions: forward and backward.
//!
//! A *span* is a run of query rows that are consecutive in position; its context lists, for every
//! position from 0 to that of its last query, the row where that position's key and value lie. Plain
//! packing, trees of segments that share a prompt, and decoding from a cache are all such lists.
//!
//! With `s = cap(scale q k)`, `p = softmax(s)` over the visible positions and `o = p v`, the forward
//! pass is FlashAttention's online softmax (Dao et al. 2022, algorithm 1; Dao 2023) over key tiles of
//! [`TILE`] positions, and the backward pass its recomputation from the saved log-sum-exp.
//!
//! **Order.** Key tiles lie at positions 0, 64, 128, … and are visited in that order, so the result of
//! a query is a function of its own row, its position and the values of its context: the same bits
//! whether it was decoded alone or prefilled in a long span, in any batch, on any number of threads.
//! Hidden positions have probability exactly 0. (An infinite or NaN *value* at a hidden position of the
//! query's own tile does reach it, as 0 times infinity.)
//!
//! **Rounding.** With `bf16` rows the products multiply `bf16` values, and `p` and `ds` are rounded to
//! `bf16` for their products, as FlashAttention does; everything else is `f32`. With `f32` rows
//! nothing is rounded.
//!
//! What it leaves out: attention sinks, biases, and masks that are not causal.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod backward;
mod check;
mod forward;
mod lanes;
pub mod reference;
mod softmax;
mod tile;

use std::ops::Range;

use half::bf16;

use crate::gemm::Precision;

/// Key positions per tile.
pub const TILE: usize = 64;

/// Geometry and variants of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`, query head `h` uses key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Multiplies the scores, before the soft cap.
    pub scale: f32,
    /// A query at position `p` sees keys at positions `> p - window` only.
    pub window: Option<usize>,
    /// `cap * tanh(score / cap)` (Gemma 2).
    pub softcap: Option<f32>,
}

impl AttentionShape {
    /// Columns of a matrix that holds all queries, then all keys, then all values.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Query heads per key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The positions that a query at `position` sees.
    pub fn visible(&self, position: usize) -> Range<usize> {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1
    }
}

/// Query rows `q_row .. q_row + q_len`, at positions `context.len() - q_len ..`.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// First query row.
    pub q_row: usize,
    /// Number of query rows.
    pub q_len: usize,
    /// Row of the key and value of each position; the last `q_len` are those of the queries.
    pub context: &'a [u32],
}

impl Span<'_> {
    /// The positions of the queries.
    pub fn positions(&self) -> Range<usize> {
        self.context.len() - self.q_len..self.context.len()
    }
}

/// A row-major matrix of activations, read.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// `f32` values and leading dimension.
    F32(&'a [f32], usize),
    /// `bf16` values and leading dimension.
    Bf16(&'a [bf16], usize),
}

/// A row-major matrix of activations, written.
pub enum RowsMut<'a> {
    /// `f32` values and leading dimension.
    F32(&'a mut [f32], usize),
    /// `bf16` values and leading dimension.
    Bf16(&'a mut [bf16], usize),
}

/// First columns of the three gradients within one matrix of gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// First of the `heads * head_dim` columns of the queries' gradient.
    pub q: usize,
    /// First of the `kv_heads * head_dim` columns of the keys' gradient.
    pub k: usize,
    /// First of the `kv_heads * head_dim` columns of the values' gradient.
    pub v: usize,
}

/// The precision the products run in.
pub fn precision_of(rows: &Rows<'_>) -> Precision {
    match rows {
        Rows::F32(..) => Precision::F32,
        Rows::Bf16(..) => Precision::Bf16,
    }
}

/// `out = softmax(cap(scale q k^T)) v`, and the natural log-sum-exp of the scores for [`backward()`].
///
/// - `q`: `[q_rows, heads * head_dim]`; `k`, `v`: `[kv_rows, kv_heads * head_dim]`; each slice starts at
///   the first column of its part, so that all three may be views of one matrix. All of one type.
/// - `out`: `[q_rows, heads * head_dim]`; `lse`: `[q_rows, heads]`.
///
/// Rows of `out` and `lse` that are in no span are left as they were. Parallel over spans, key heads
/// and blocks of queries.
///
/// # Panics
/// If `kv_heads` does not divide `heads`, a window is 0, the three types differ, two spans share a query
/// row, a span has more queries than positions, or a row lies outside its matrix.
pub fn forward(
    shape: &AttentionShape,
    q: Rows<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    spans: &[Span<'_>],
    out: RowsMut<'_>,
    lse: &mut [f32],
) {
    forward::run(shape, q, k, v, spans, out, lse);
}

/// The gradients of `q`, `k` and `v` from that of `out`.
///
/// `dqkv` has a row for each row of `q`, `k` and `v` (they are the same rows in training); the gradients
/// are written to the three column ranges that start at `columns`. Gradients of keys and values are
/// sums over the spans whose context holds the row, in the order of `spans`, rounded once at the end;
/// rows in no context, and queries in no span, get 0.
///
/// `groups` are consecutive ranges of spans, together all of them; spans of different groups share no
/// key row (trees). Parallel over groups and key heads: a group's result does not depend on the others.
///
/// # Panics
/// As [`forward()`], or if the groups are not as described, or the column ranges overlap.
pub fn backward(
    shape: &AttentionShape,
    q: Rows<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    out: Rows<'_>,
    lse: &[f32],
    d_out: Rows<'_>,
    spans: &[Span<'_>],
    groups: &[Range<usize>],
    dqkv: RowsMut<'_>,
    columns: Columns,
) {
    backward::run(shape, q, k, v, out, lse, d_out, spans, groups, dqkv, columns);
}
