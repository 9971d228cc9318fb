//! One block of queries in the backward pass: its `dq`, and its part of each tile's `dk` and `dv`.

use std::ops::Range;

use super::Pass;
use crate::attention::check::Reach;
use crate::attention::softmax::{self, Extent};
use crate::attention::tile::{Layout, SLACK};
use crate::attention::{Span, TILE};
use crate::buffer::Buffer;

/// A left operand in two forms: rows as lanes, and columns as lanes.
struct Both {
    along: Buffer<u32>,
    across: Buffer<u32>,
}

/// The state of a block of queries: rows are ordered by position, then by head.
pub(super) struct Block<'a> {
    pass: &'a Pass<'a>,
    positions: Range<usize>,
    q_row: usize,
    rows: usize,
    queries: Both,
    d_out: Both,
    /// Per row: log-sum-exp in `log2` units, and `do o`.
    lse: Buffer<f32>,
    dot: Buffer<f32>,
    /// Per panel of rows and of columns, a tile.
    dq: Buffer<f32>,
    scores: Buffer<f32>,
    dp: Buffer<f32>,
    /// `ds` of one panel as a left operand over keys.
    ds_along: Buffer<u32>,
    /// `p` and `ds` of the block as right operands over rows, per panel of keys.
    p_across: Buffer<u32>,
    ds_across: Buffer<u32>,
}

impl<'a> Block<'a> {
    pub(super) fn new(pass: &'a Pass<'a>, span: &Span<'_>, kv_head: usize, positions: &Range<usize>) -> Self {
        let (layout, group) = (&pass.layout, pass.shape.group());
        let Layout { micro, d, stride } = *layout;
        let rows = positions.len() * group;
        let q_row = span.q_row + positions.start - span.positions().start;
        let place = |row: usize| (q_row + row / group, (kv_head * group + row % group) * d);
        let words = || Buffer::<u32>::dirty(rows * stride + SLACK);
        let (mut queries, mut d_out, mut out) = (words(), words(), words());
        for (from, to) in [(&pass.q, &mut queries), (&pass.d_out, &mut d_out), (&pass.out, &mut out)] {
            layout.gather(from, rows, place, to);
        }
        let mut dot = Buffer::dirty(rows);
        layout.dots(&d_out, &out, &mut dot);
        let mut lse = Buffer::dirty(rows);
        for (row, lse) in lse.iter_mut().enumerate() {
            let at = place(row);
            *lse = pass.lse[at.0 * pass.shape.heads + at.1 / d] * std::f32::consts::LOG2_E;
        }
        let row_panels = rows.div_ceil(micro.mr);
        Block {
            pass,
            positions: positions.clone(),
            q_row,
            rows,
            queries: pack_both(layout, &queries, rows),
            d_out: pack_both(layout, &d_out, rows),
            lse,
            dot,
            dq: Buffer::zeroed(row_panels * layout.head_panels() * micro.mr * micro.nr),
            scores: Buffer::dirty(TILE * micro.mr),
            dp: Buffer::dirty(TILE * micro.mr),
            ds_along: Buffer::dirty(TILE * micro.mr + SLACK),
            p_across: Buffer::dirty(TILE * layout.steps(rows)),
            ds_across: Buffer::dirty(TILE * layout.steps(rows)),
        }
    }

    /// The block against one tile: adds to `dq`, and to the tile's transposed `dk` and `dv`.
    pub(super) fn step(&mut self, tile: usize, words: &[u32], dk: &mut [f32], dv: &mut [f32]) {
        let Layout { micro, .. } = self.pass.layout;
        // Rows that see each panel of keys: of consecutive panels of rows, since both are in order.
        let mut seen = [const { 0..0 }; TILE / 16];
        for first in (0..self.rows).step_by(micro.mr) {
            let rows = first..(first + micro.mr).min(self.rows);
            let Some(reach) =
                Reach::new(&self.pass.shape, self.positions.start, rows.clone(), tile, micro.nr)
            else {
                continue;
            };
            for seen in &mut seen[reach.panels.clone()] {
                *seen = if Range::is_empty(seen) { rows.clone() } else { seen.start..rows.end };
            }
            self.panel(rows, &reach, words);
        }
        for (key_panel, rows) in seen.into_iter().enumerate().filter(|(_, rows)| !Range::is_empty(rows)) {
            self.keys(key_panel, rows.clone(), &self.d_out.across, &self.p_across, dv);
            self.keys(key_panel, rows, &self.queries.across, &self.ds_across, dk);
        }
    }

    /// Probabilities and their gradients for one panel of rows, and its `dq`.
    fn panel(&mut self, rows: Range<usize>, reach: &Reach, words: &[u32]) {
        let Pass { shape: _, layout, map, .. } = self.pass;
        let Layout { micro, d, .. } = *layout;
        let (n, nr, panels) = (rows.len(), micro.nr, reach.panels.len());
        let sizes = self.pass.tile_words();
        let products = |left: &[u32], right: &[u32], out: &mut [f32]| {
            out.fill(0.0);
            let left = &left[rows.start * layout.steps(d)..];
            for (out, key_panel) in out.chunks_exact_mut(n * nr).zip(reach.panels.clone()) {
                micro.run(n, d, left, &right[key_panel * nr * layout.steps(d)..], out);
            }
        };
        let scores = &mut self.scores[..panels * n * nr];
        let dp = &mut self.dp[..panels * n * nr];
        products(&self.queries.along, words, scores);
        products(&self.d_out.along, &words[sizes.along..], dp);
        let extent = Extent { rows: n, nr, panels, masks: reach.masks.as_ref().map(|m| &m[..]), map: *map };
        softmax::gradient(extent, scores, dp, &self.lse[rows.clone()], &self.dot[rows.clone()]);
        for (i, key_panel) in reach.panels.clone().enumerate() {
            let at = (key_panel * layout.steps(self.rows) + layout.steps(rows.start)) * nr;
            layout.pack_rows_across(&mut scores[i * n * nr..], n, &mut self.p_across[at..]);
            layout.pack_rows_across(&mut dp[i * n * nr..], n, &mut self.ds_across[at..]);
        }
        layout.pack_keys_along(dp, n, panels, &mut self.ds_along);
        let keys = &words[2 * sizes.along + layout.steps(reach.panels.start * nr) * nr..];
        let panel = rows.start / micro.mr;
        for head_panel in 0..layout.head_panels() {
            let out = &mut self.dq[(panel * layout.head_panels() + head_panel) * micro.mr * nr..][..n * nr];
            micro.run(n, reach.keys, &self.ds_along, &keys[head_panel * layout.steps(TILE) * nr..], out);
        }
    }

    /// `out[:, keys] += left^T right` over `rows`.
    fn keys(&self, key_panel: usize, rows: Range<usize>, left: &[u32], right: &[u32], out: &mut [f32]) {
        let layout = &self.pass.layout;
        let Layout { micro, d, .. } = *layout;
        let (all, first) = (layout.steps(self.rows), layout.steps(rows.start));
        let right = &right[(key_panel * all + first) * micro.nr..];
        for (panel, column) in (0..d).step_by(micro.mr).enumerate() {
            let width = micro.mr.min(d - column);
            let out = &mut out[(panel * TILE + key_panel * micro.nr) * micro.mr..][..width * micro.nr];
            micro.run(width, rows.len(), &left[column * all + first * width..], right, out);
        }
    }

    pub(super) fn finish(&self, kv_head: usize) {
        let Pass { shape, layout, dqkv, columns, .. } = self.pass;
        let Layout { micro, d, .. } = *layout;
        let (group, panels) = (shape.group(), layout.head_panels());
        let (width, stride) = (panels * micro.nr, micro.mr * micro.nr);
        let mut values = Buffer::<f32>::dirty(micro.mr * width);
        for (panel, first) in (0..self.rows).step_by(micro.mr).enumerate() {
            let rows = micro.mr.min(self.rows - first);
            let tiles = softmax::Tiles { rows, nr: micro.nr, panels, stride };
            softmax::join(
                tiles,
                &self.dq[panel * panels * stride..],
                &[shape.scale; softmax::ROWS_MAX],
                &mut values,
            );
            for (row, values) in (first..first + rows).zip(values.chunks_exact(width)) {
                let head = kv_head * group + row % group;
                // SAFETY: spans share no query row (checked), blocks of a span neither, and key heads have
                // distinct query heads: these elements are this block's alone.
                unsafe { dqkv.write(self.q_row + row / group, columns.q + head * d, &values[..d]) };
            }
        }
    }
}

/// Packs word rows for products along and across them.
fn pack_both(layout: &Layout, words: &[u32], rows: usize) -> Both {
    let Layout { micro, d, stride } = *layout;
    let mut along = Buffer::<u32>::dirty(rows * layout.steps(d) + SLACK);
    for first in (0..rows).step_by(micro.mr) {
        let n = micro.mr.min(rows - first);
        layout.pack_along(&words[first * stride..], n, d, n, &mut along[first * layout.steps(d)..]);
    }
    let mut across = Buffer::<u32>::dirty(d * layout.steps(rows) + SLACK);
    for first in (0..d).step_by(micro.mr) {
        let width = micro.mr.min(d - first);
        layout.pack_across(words, rows, first, width, &mut across[first * layout.steps(rows)..]);
    }
    Both { along, across }
}
