//! The forward pass: online softmax over key tiles, one block of queries at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::check::{self, Reach, SharedRows, blocks, tiles};
use super::softmax::{self, Extent, ROWS_MAX, Running, ScoreMap};
use super::tile::{Layout, SLACK};
use super::{AttentionShape, Rows, RowsMut, Span, TILE, precision_of};
use crate::buffer::Buffer;

/// Below this many multiply-adds a call stays on its thread.
const SERIAL_WORK: usize = 1 << 18;

pub(super) fn run(
    shape: &AttentionShape,
    q: Rows<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    spans: &[Span<'_>],
    out: RowsMut<'_>,
    lse: &mut [f32],
) {
    check::shape(shape);
    let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let q_rows = lse.len() / shape.heads;
    assert_eq!(lse.len(), q_rows * shape.heads, "lse holds one value per query row and head");
    check::rows(&[("q", q, width), ("k", k, kv_width), ("v", v, kv_width)], 0);
    check::rows(&[("q", q, width)], q_rows);
    check::spans(spans, q_rows);
    let pass = Pass {
        shape: *shape,
        layout: Layout::new(precision_of(&q), shape.head_dim),
        map: ScoreMap::new(shape),
        q,
        k,
        v,
        out: SharedRows::new("out", out, q_rows, width),
        lse: SharedRows::new("lse", RowsMut::F32(lse, shape.heads), q_rows, shape.heads),
    };
    let work: usize = spans.iter().map(|span| span.q_len * span.context.len() * width).sum();
    let units =
        (0..spans.len() * shape.kv_heads).map(|unit| (&spans[unit / shape.kv_heads], unit % shape.kv_heads));
    if rayon::current_num_threads() == 1 || work <= SERIAL_WORK {
        units.for_each(|(span, kv_head)| pass.unit(span, kv_head, false));
    } else {
        let units: Vec<_> = units.collect();
        units.into_par_iter().with_max_len(1).for_each(|(span, kv_head)| pass.unit(span, kv_head, true));
    }
}

struct Pass<'a> {
    shape: AttentionShape,
    layout: Layout,
    map: ScoreMap,
    q: Rows<'a>,
    k: Rows<'a>,
    v: Rows<'a>,
    out: SharedRows<'a>,
    lse: SharedRows<'a>,
}

/// Where the packed tiles of a span and key head come from.
enum Tiles<'a> {
    /// All packed before, from tile `.1` on.
    Packed(&'a [u32], usize),
    /// Packed when needed, for a single block of queries: panels, and scratch for word rows.
    Streamed(Buffer<u32>, Buffer<u32>),
}

impl Pass<'_> {
    fn key_words(&self) -> usize {
        TILE * self.layout.steps(self.layout.d)
    }

    fn tile_words(&self) -> usize {
        let Layout { micro, .. } = self.layout;
        self.key_words() + self.layout.head_panels() * micro.nr * self.layout.steps(TILE) + SLACK
    }

    fn row_words(&self, rows: usize) -> usize {
        rows * self.layout.stride + SLACK
    }

    /// All queries of a span that use one key head.
    fn unit(&self, span: &Span<'_>, kv_head: usize, parallel: bool) {
        let blocks = blocks(&self.shape, span);
        if let [block] = &blocks[..] {
            let tiles =
                Tiles::Streamed(Buffer::dirty(self.tile_words()), Buffer::dirty(self.row_words(TILE)));
            return self.block(span, kv_head, block, tiles);
        }
        if blocks.is_empty() {
            return;
        }
        let tiles = tiles(&self.shape, &span.positions());
        let mut words = Buffer::<u32>::dirty(tiles.len() * self.tile_words());
        let pack = |(i, words): (usize, &mut [u32])| {
            let mut rows = Buffer::dirty(self.row_words(TILE));
            self.pack_tile(span, kv_head, tiles.start + i, &mut rows, words);
        };
        let run = |words: &[u32], block: &Range<usize>| {
            self.block(span, kv_head, block, Tiles::Packed(words, tiles.start));
        };
        if parallel {
            words.par_chunks_mut(self.tile_words()).enumerate().for_each(pack);
            // Later blocks see more keys: started first, they leave the short ones to fill the gaps.
            blocks.par_iter().rev().with_max_len(1).for_each(|block| run(&words, block));
        } else {
            words.chunks_mut(self.tile_words()).enumerate().for_each(pack);
            blocks.iter().for_each(|block| run(&words, block));
        }
    }

    /// Keys as panels of `nr` positions, then values as panels of `nr` columns.
    fn pack_tile(&self, span: &Span<'_>, kv_head: usize, tile: usize, rows: &mut [u32], out: &mut [u32]) {
        let Layout { micro, d, stride, .. } = self.layout;
        let context = &span.context[tile * TILE..span.context.len().min((tile + 1) * TILE)];
        let place = |i: usize| (context[i] as usize, kv_head * d);
        let (keys, values) = out.split_at_mut(self.key_words());
        self.layout.gather(&self.k, context.len(), place, rows);
        for (first, out) in
            (0..context.len()).step_by(micro.nr).zip(keys.chunks_mut(micro.nr * self.layout.steps(d)))
        {
            let n = micro.nr.min(context.len() - first);
            self.layout.pack_along(&rows[first * stride..], n, d, micro.nr, out);
        }
        self.layout.gather(&self.v, context.len(), place, rows);
        for panel in 0..self.layout.head_panels() {
            let out = &mut values[panel * micro.nr * self.layout.steps(TILE)..];
            self.layout.pack_across(rows, context.len(), panel * micro.nr, micro.nr, out);
        }
    }

    /// One block of queries against all of its tiles, in order.
    fn block(&self, span: &Span<'_>, kv_head: usize, positions: &Range<usize>, mut source: Tiles<'_>) {
        let mut block = Block::new(self, span, kv_head, positions);
        for tile in tiles(&self.shape, positions) {
            let words: &[u32] = match &mut source {
                Tiles::Packed(words, first) => &words[(tile - *first) * self.tile_words()..],
                Tiles::Streamed(words, rows) => {
                    self.pack_tile(span, kv_head, tile, rows, words);
                    words
                }
            };
            let (keys, values) = words.split_at(self.key_words());
            for panel in 0..block.rows.div_ceil(self.layout.micro.mr) {
                block.step(panel, tile, keys, values);
            }
        }
        block.finish(span, kv_head);
    }
}

/// The state of a block of queries: rows are ordered by position, then by head.
struct Block<'a> {
    pass: &'a Pass<'a>,
    positions: Range<usize>,
    rows: usize,
    /// Packed queries.
    queries: Buffer<u32>,
    /// Running maximum and sum per row, [`ROWS_MAX`] per panel.
    max: Buffer<f32>,
    sum: Buffer<f32>,
    /// Unnormalised outputs: per panel of rows and of columns, a tile.
    out: Buffer<f32>,
    scores: Buffer<f32>,
    weights: Buffer<u32>,
}

impl<'a> Block<'a> {
    fn new(pass: &'a Pass<'a>, span: &Span<'_>, kv_head: usize, positions: &Range<usize>) -> Self {
        let (layout, group) = (&pass.layout, pass.shape.group());
        let Layout { micro, d, stride, .. } = *layout;
        let rows = positions.len() * group;
        let panels = rows.div_ceil(micro.mr);
        let mut words = Buffer::<u32>::dirty(pass.row_words(rows));
        let q_row = span.q_row + positions.start - span.positions().start;
        let place = |row: usize| (q_row + row / group, (kv_head * group + row % group) * d);
        layout.gather(&pass.q, rows, place, &mut words);
        let mut queries = Buffer::<u32>::dirty(rows * layout.steps(d) + SLACK);
        for first in (0..rows).step_by(micro.mr) {
            let n = micro.mr.min(rows - first);
            layout.pack_along(&words[first * stride..], n, d, n, &mut queries[first * layout.steps(d)..]);
        }
        let mut max = Buffer::dirty(panels * ROWS_MAX);
        max.fill(f32::NEG_INFINITY);
        Block {
            pass,
            positions: positions.clone(),
            rows,
            queries,
            max,
            sum: Buffer::zeroed(panels * ROWS_MAX),
            out: Buffer::zeroed(panels * layout.head_panels() * micro.mr * micro.nr),
            scores: Buffer::dirty(TILE * micro.mr),
            weights: Buffer::dirty(TILE * micro.mr + SLACK),
        }
    }

    /// A panel of rows against one tile of keys and values.
    fn step(&mut self, panel: usize, tile: usize, keys: &[u32], values: &[u32]) {
        let Pass { shape, layout, map, .. } = self.pass;
        let Layout { micro, d, .. } = *layout;
        let first = panel * micro.mr;
        let rows = micro.mr.min(self.rows - first);
        let Some(reach) = Reach::new(shape, self.positions.start, first..first + rows, tile, micro.nr) else {
            return;
        };
        let panels = reach.panels.len();
        let scores = &mut self.scores[..panels * rows * micro.nr];
        scores.fill(0.0);
        let queries = &self.queries[first * layout.steps(d)..];
        for (tile, key_panel) in scores.chunks_exact_mut(rows * micro.nr).zip(reach.panels.clone()) {
            micro.run(rows, d, queries, &keys[key_panel * micro.nr * layout.steps(d)..], tile);
        }
        let extent =
            Extent { rows, nr: micro.nr, panels, masks: reach.masks.as_ref().map(|m| &m[..]), map: *map };
        let state = panel * ROWS_MAX..(panel + 1) * ROWS_MAX;
        let running = Running {
            max: (&mut self.max[state.clone()]).try_into().expect("ROWS_MAX values"),
            sum: (&mut self.sum[state]).try_into().expect("ROWS_MAX values"),
        };
        let factors = softmax::online(extent, scores, running);
        layout.pack_keys_along(scores, rows, panels, &mut self.weights);
        let (tiles, at) = self.tiles(panel);
        let out = &mut self.out[at..];
        softmax::shrink(tiles, out, &factors);
        let first_step = layout.steps(reach.panels.start * micro.nr);
        for (head_panel, out) in out.chunks_exact_mut(tiles.stride).take(tiles.panels).enumerate() {
            let values = &values[(head_panel * layout.steps(TILE) + first_step) * micro.nr..];
            micro.run(rows, reach.keys, &self.weights, values, out);
        }
    }

    /// The output tiles of a panel of rows, and where they start.
    fn tiles(&self, panel: usize) -> (softmax::Tiles, usize) {
        let layout = &self.pass.layout;
        let (mr, nr, panels) = (layout.micro.mr, layout.micro.nr, layout.head_panels());
        let rows = mr.min(self.rows - panel * mr);
        (softmax::Tiles { rows, nr, panels, stride: mr * nr }, panel * panels * mr * nr)
    }

    /// Divides by the sums and writes outputs and log-sum-exps.
    fn finish(&self, span: &Span<'_>, kv_head: usize) {
        let Pass { shape, layout, out, lse, .. } = self.pass;
        let Layout { micro, d, .. } = *layout;
        let (group, width) = (shape.group(), layout.head_panels() * micro.nr);
        let q_row = span.q_row + self.positions.start - span.positions().start;
        let mut values = Buffer::<f32>::dirty(micro.mr * width);
        for (panel, first) in (0..self.rows).step_by(micro.mr).enumerate() {
            let (tiles, at) = self.tiles(panel);
            let state = panel * ROWS_MAX..(panel + 1) * ROWS_MAX;
            let (max, sum) = (&self.max[state.clone()], &self.sum[state]);
            softmax::join(tiles, &self.out[at..], &std::array::from_fn(|lane| 1.0 / sum[lane]), &mut values);
            for (lane, values) in values.chunks_exact(width).take(tiles.rows).enumerate() {
                let row = first + lane;
                let (to_row, head) = (q_row + row / group, kv_head * group + row % group);
                let log_sum = max[lane] * std::f32::consts::LN_2 + sum[lane].ln();
                // SAFETY: spans share no query row (checked), blocks of a span neither, and key heads have
                // distinct query heads: these elements are this block's alone.
                unsafe {
                    out.write(to_row, head * d, &values[..d]);
                    lse.write(to_row, head, &[log_sum]);
                }
            }
        }
    }
}
