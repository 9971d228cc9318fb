//! What holds of the arguments, the outputs that several threads write, and which keys a query sees.

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::{AttentionShape, Rows, RowsMut, Span, TILE};
use crate::elem::narrow;

/// # Panics
/// If the geometry is impossible.
pub(super) fn shape(shape: &AttentionShape) {
    let AttentionShape { heads, kv_heads, head_dim, window, .. } = *shape;
    assert!(
        heads > 0 && kv_heads > 0 && head_dim > 0 && heads.is_multiple_of(kv_heads),
        "{heads} query heads of width {head_dim} cannot share {kv_heads} key heads"
    );
    assert!(window != Some(0), "a window of 0 positions hides even the query's own key");
}

/// # Panics
/// If a span has fewer positions than queries or rows outside the matrices, or two spans share a query.
pub(super) fn spans(spans: &[Span<'_>], q_rows: usize) {
    let mut ranges: Vec<Range<usize>> = Vec::with_capacity(spans.len());
    for (index, span) in spans.iter().enumerate() {
        let (q_len, positions) = (span.q_len, span.context.len());
        assert!(q_len <= positions, "span {index} has {q_len} queries but only {positions} positions");
        assert!(span.q_row + q_len <= q_rows, "span {index} ends at row {}, of {q_rows}", span.q_row + q_len);
        if q_len > 0 {
            ranges.push(span.q_row..span.q_row + q_len);
        }
    }
    ranges.sort_unstable_by_key(|range| range.start);
    for pair in ranges.windows(2) {
        assert!(pair[0].end <= pair[1].start, "two spans hold query row {}", pair[1].start);
    }
}

/// # Panics
/// If the three are not of one type, or have fewer than `rows` rows of `width` columns.
pub(super) fn rows(parts: &[(&str, Rows<'_>, usize)], rows: usize) {
    for (name, part, width) in parts {
        let (len, ld) = match part {
            Rows::F32(values, ld) => (values.len(), *ld),
            Rows::Bf16(values, ld) => (values.len(), *ld),
        };
        let fits = ld >= *width && (rows == 0 || len >= (rows - 1) * ld + width);
        assert!(fits, "{name}: {len} elements at leading dimension {ld} cannot hold [{rows}, {width}]");
        let same =
            matches!((part, parts[0].1), (Rows::F32(..), Rows::F32(..)) | (Rows::Bf16(..), Rows::Bf16(..)));
        assert!(same, "{name} and {} differ in type", parts[0].0);
    }
}

enum Pointer {
    F32(*mut f32),
    Bf16(*mut bf16),
}

/// A matrix whose disjoint elements several threads write.
pub(super) struct SharedRows<'a> {
    pointer: Pointer,
    ld: usize,
    rows: usize,
    width: usize,
    _owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: `write` makes its callers promise that no two threads write the same element.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    /// # Panics
    /// If the storage is smaller than `[rows, width]`.
    pub(super) fn new(name: &str, out: RowsMut<'a>, rows: usize, width: usize) -> Self {
        let (pointer, ld, len) = match out {
            RowsMut::F32(values, ld) => (Pointer::F32(values.as_mut_ptr()), ld, values.len()),
            RowsMut::Bf16(values, ld) => (Pointer::Bf16(values.as_mut_ptr()), ld, values.len()),
        };
        let fits = ld >= width && (rows == 0 || len >= (rows - 1) * ld + width);
        assert!(fits, "{name}: {len} elements at leading dimension {ld} cannot hold [{rows}, {width}]");
        SharedRows { pointer, ld, rows, width, _owner: PhantomData }
    }

    /// Writes `values` from (`row`, `col`) on, rounded.
    ///
    /// # Safety
    /// No other thread writes these elements.
    pub(super) unsafe fn write(&self, row: usize, col: usize, values: &[f32]) {
        assert!(row < self.rows && col + values.len() <= self.width);
        let at = row * self.ld + col;
        match self.pointer {
            Pointer::F32(out) => {
                // SAFETY: in bounds by the assertion and `new`; not shared, by the caller's promise.
                let out = unsafe { std::slice::from_raw_parts_mut(out.add(at), values.len()) };
                out.copy_from_slice(values);
            }
            Pointer::Bf16(out) => {
                // SAFETY: as above.
                narrow(values, unsafe { std::slice::from_raw_parts_mut(out.add(at), values.len()) });
            }
        }
    }
}

/// Query positions of one block: they share key tiles, and their rows fit the nearest caches.
const BLOCK_ROWS: usize = 256;

/// Positions that a block has at most: a power of two of at most [`TILE`].
fn block_len(shape: &AttentionShape) -> usize {
    let mut len = TILE;
    while len > 1 && len * shape.group() > BLOCK_ROWS {
        len /= 2;
    }
    len
}

/// Whether [`blocks`] of the span are one.
pub(super) fn is_one_block(shape: &AttentionShape, span: &Span<'_>) -> bool {
    let (len, Range { start, end }) = (block_len(shape), span.positions());
    start < end && start / len == (end - 1) / len
}

/// Cuts the positions of a span at multiples of [`block_len`].
pub(super) fn blocks(shape: &AttentionShape, span: &Span<'_>) -> Vec<Range<usize>> {
    let len = block_len(shape);
    let Range { start, end } = span.positions();
    let mut blocks = Vec::with_capacity((end - start) / len + 2);
    let mut from = start;
    while from < end {
        let to = ((from / len + 1) * len).min(end);
        blocks.push(from..to);
        from = to;
    }
    blocks
}

/// The tiles that hold a key visible to one of `positions`.
pub(super) fn tiles(shape: &AttentionShape, positions: &Range<usize>) -> Range<usize> {
    shape.visible(positions.start).start / TILE..(positions.end - 1) / TILE + 1
}

/// The keys of one tile that a panel of query rows sees, in panels of `nr` keys.
pub(super) struct Reach {
    /// First and one past the last panel of keys with a visible one.
    pub panels: Range<usize>,
    /// Keys from the first of `panels` to the last visible one.
    pub keys: usize,
    /// For each row, the visible keys as bits from the first of `panels` on; unless all are visible.
    pub masks: Option<[u64; 16]>,
}

impl Reach {
    /// For query rows `rows` of a block that starts at position `block_start`, rows ordered by position
    /// and then by head; `None` if they see nothing of the tile.
    pub(super) fn new(
        shape: &AttentionShape,
        block_start: usize,
        rows: Range<usize>,
        tile: usize,
        nr: usize,
    ) -> Option<Reach> {
        let (group, tile_start) = (shape.group(), tile * TILE);
        let (first, last) = (block_start + rows.start / group, block_start + (rows.end - 1) / group);
        let low = shape.visible(first).start.saturating_sub(tile_start);
        let high = (last + 1).saturating_sub(tile_start).min(TILE);
        if low >= high {
            return None;
        }
        let panels = low / nr..high.div_ceil(nr);
        let (from, to) = (tile_start + panels.start * nr, tile_start + panels.end * nr);
        let all = first + 1 >= to && shape.visible(last).start <= from;
        let masks = (!all).then(|| {
            let mut masks = [0; 16];
            for (mask, row) in masks.iter_mut().zip(rows) {
                let visible = shape.visible(block_start + row / group);
                *mask = bits(visible.start.saturating_sub(from), visible.end.saturating_sub(from));
            }
            masks
        });
        Some(Reach { keys: high - panels.start * nr, panels, masks })
    }
}

/// Bits `low .. high`.
fn bits(low: usize, high: usize) -> u64 {
    let below = |n: usize| if n >= 64 { u64::MAX } else { (1 << n) - 1 };
    below(high) & !below(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reach_agrees_with_visibility() {
        for window in [None, Some(1), Some(5), Some(64), Some(100)] {
            for kv_heads in [1, 2] {
                let shape =
                    AttentionShape { heads: 2, kv_heads, head_dim: 1, scale: 1.0, window, softcap: None };
                for (start, tile, nr) in [(0, 0, 32), (50, 0, 16), (128, 1, 32), (130, 2, 16), (300, 4, 32)] {
                    let rows = 4..16;
                    let sees = |row: usize, key: usize| {
                        shape.visible(start + row / shape.group()).contains(&(tile * TILE + key))
                    };
                    let reach = Reach::new(&shape, start, rows.clone(), tile, nr);
                    for key in 0..TILE {
                        for row in rows.clone() {
                            let ours = reach.as_ref().is_some_and(|r| {
                                r.panels.contains(&(key / nr))
                                    && key - r.panels.start * nr < r.keys
                                    && r.masks
                                        .is_none_or(|m| m[row - 4] >> (key - r.panels.start * nr) & 1 == 1)
                            });
                            assert_eq!(
                                ours,
                                sees(row, key),
                                "{window:?} start {start} tile {tile} row {row} key {key}"
                            );
                        }
                    }
                }
            }
        }
    }
}
