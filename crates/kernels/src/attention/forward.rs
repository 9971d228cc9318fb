//! The forward pass: online softmax over key tiles, one block of queries at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::check::{self, Reach, SharedRows, blocks, is_one_block, tiles};
use super::softmax::{self, Extent, ROWS_MAX, Running, ScoreMap};
use super::tile::{Layout, SLACK};
use super::{AttentionShape, Rows, RowsMut, Span, TILE, precision_of};
use crate::buffer::Buffer;

/// Below this many multiply-adds a call stays on its thread.
const SERIAL_WORK: usize = 1 << 18;
/// Enough units that threads of uneven speed finish together.
const UNITS_PER_THREAD: usize = 4;

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
    let threads = rayon::current_num_threads();
    let most = (spans.len() * shape.kv_heads / (threads * UNITS_PER_THREAD)).max(1);
    let runs = pass.runs(spans, most);
    let units: Vec<_> =
        runs.iter().flat_map(|run| (0..shape.kv_heads).map(move |head| (*run, head))).collect();
    if threads == 1 || work <= SERIAL_WORK {
        units.into_iter().for_each(|(spans, kv_head)| pass.unit(spans, kv_head, false));
    } else {
        units.into_par_iter().with_max_len(1).for_each(|(spans, kv_head)| pass.unit(spans, kv_head, true));
    }
}

/// The rows of a span's keys in a tile.
fn rows_of<'s>(span: &Span<'s>, tile: usize) -> &'s [u32] {
    &span.context[tile * TILE..span.context.len().min((tile + 1) * TILE)]
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

    /// Cuts `spans` into runs of at most `most` that are computed together: spans of one block whose first tiles are the same
    /// rows, as those of samples that share a prompt. Others come alone.
    fn runs<'s>(&self, spans: &'s [Span<'s>], most: usize) -> Vec<&'s [Span<'s>]> {
        let first_tile = |span: &Span<'s>| {
            is_one_block(&self.shape, span).then(|| {
                let first = tiles(&self.shape, &span.positions()).start;
                (first, rows_of(span, first))
            })
        };
        let mut runs = Vec::with_capacity(spans.len());
        let mut rest = spans;
        while let [first, others @ ..] = rest {
            let shared = first_tile(first);
            let alike = |span: &&Span<'s>| shared.is_some() && first_tile(span) == shared;
            let n = 1 + others.iter().take(most - 1).take_while(alike).count();
            let (run, after) = rest.split_at(n);
            runs.push(run);
            rest = after;
        }
        runs
    }

    /// All queries of a run of spans that use one key head.
    fn unit(&self, run: &[Span<'_>], kv_head: usize, parallel: bool) {
        let span = match run {
            [span] if !is_one_block(&self.shape, span) => span,
            run => return self.together(run, kv_head),
        };
        let blocks = blocks(&self.shape, span);
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
            self.block(span, kv_head, block, words, tiles.start);
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
        let context = rows_of(span, tile);
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

    /// One block of queries against all of its tiles, in order; `words` are the packed tiles from `first` on.
    fn block(&self, span: &Span<'_>, kv_head: usize, positions: &Range<usize>, words: &[u32], first: usize) {
        let mut block = Block::new(self, span, kv_head, positions);
        for tile in tiles(&self.shape, positions) {
            block.tile(tile, &words[(tile - first) * self.tile_words()..]);
        }
        block.finish(span, kv_head);
    }

    /// Spans of one block each, tile by tile: rows that several of them see are packed once.
    fn together(&self, run: &[Span<'_>], kv_head: usize) {
        let new = |span| Block::new(self, span, kv_head, &Span::positions(span));
        let mut blocks: Vec<_> = run.iter().map(new).collect();
        let reach = |span: &Span<'_>| tiles(&self.shape, &span.positions());
        let all = run.iter().map(reach).reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
        let mut words = Buffer::dirty(self.tile_words());
        let mut scratch = Buffer::dirty(self.row_words(TILE));
        for tile in all.unwrap_or(0..0) {
            let mut packed: &[u32] = &[];
            for (span, block) in run.iter().zip(&mut blocks).filter(|(span, _)| reach(span).contains(&tile)) {
                let rows = rows_of(span, tile);
                if rows != packed {
                    self.pack_tile(span, kv_head, tile, &mut scratch, &mut words);
                    packed = rows;
                }
                block.tile(tile, &words);
            }
        }
        run.iter().zip(&blocks).for_each(|(span, block)| block.finish(span, kv_head));
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

    /// All rows against one packed tile.
    fn tile(&mut self, tile: usize, words: &[u32]) {
        let (keys, values) = words.split_at(self.pass.key_words());
        for panel in 0..self.rows.div_ceil(self.pass.layout.micro.mr) {
            self.step(panel, tile, keys, values);
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
