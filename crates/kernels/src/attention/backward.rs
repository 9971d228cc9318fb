//! The backward pass: probabilities again from the saved log-sum-exp, then four products per tile.
//!
//! A task owns a group of spans and a key head. For each span it walks blocks of queries and, for each,
//! the tiles they see; `dk` and `dv` are kept transposed (`[head_dim, keys]`), because then the right
//! operands of both products are the probabilities as they lie, row by row.

mod block;

use std::ops::Range;

use rayon::prelude::*;

use self::block::Block;
use super::check::{self, SharedRows, blocks, tiles};
use super::softmax::ScoreMap;
use super::tile::{Layout, SLACK, transpose_into};
use super::{AttentionShape, Columns, Rows, RowsMut, Span, TILE, precision_of};
use crate::buffer::Buffer;

/// Below this many multiply-adds a call stays on its thread.
const SERIAL_WORK: usize = 1 << 18;

pub(super) fn run(
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
    check::shape(shape);
    let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let rows = lse.len() / shape.heads;
    assert_eq!(lse.len(), rows * shape.heads, "lse holds one value per query row and head");
    let parts = [
        ("q", q, width),
        ("k", k, kv_width),
        ("v", v, kv_width),
        ("out", out, width),
        ("d_out", d_out, width),
    ];
    check::rows(&parts, rows);
    check::spans(spans, rows);
    let mut parts = [(columns.q, width), (columns.k, kv_width), (columns.v, kv_width)];
    parts.sort_unstable();
    assert!(
        parts.windows(2).all(|p| p[0].0 + p[0].1 <= p[1].0),
        "the gradients' columns overlap: {columns:?}"
    );
    let owners = Owners::new(spans, groups, rows);
    let pass = Pass {
        shape: *shape,
        layout: Layout::new(precision_of(&q), shape.head_dim),
        map: ScoreMap::new(shape),
        q,
        k,
        v,
        out,
        d_out,
        lse,
        dqkv: SharedRows::new("dqkv", dqkv, rows, parts[2].0 + parts[2].1),
        columns,
        owners,
    };
    pass.write_zeros(spans);
    let work: usize = spans.iter().map(|span| span.q_len * span.context.len() * width).sum();
    let units = (0..groups.len() * shape.kv_heads).map(|unit| (unit / shape.kv_heads, unit % shape.kv_heads));
    if rayon::current_num_threads() == 1 || work <= SERIAL_WORK {
        units.for_each(|(group, kv_head)| pass.unit(&spans[groups[group].clone()], group, kv_head));
    } else {
        let units: Vec<_> = units.collect();
        units
            .into_par_iter()
            .with_max_len(1)
            .for_each(|(group, kv_head)| pass.unit(&spans[groups[group].clone()], group, kv_head));
    }
}

/// Which group holds each key row, and where among its rows.
struct Owners {
    /// Index within its group's rows; [`NOBODY`] for rows in no context.
    place: Vec<u32>,
    /// The rows of each group, in order of first appearance.
    rows: Vec<Vec<u32>>,
}

const NOBODY: u32 = u32::MAX;

impl Owners {
    /// # Panics
    /// If the groups are not consecutive ranges of all spans, share a key row, or a row does not exist.
    fn new(spans: &[Span<'_>], groups: &[Range<usize>], n_rows: usize) -> Owners {
        let mut place = vec![NOBODY; n_rows];
        let mut owner = vec![NOBODY; n_rows];
        let mut next = 0;
        let mut rows = Vec::with_capacity(groups.len());
        for (index, group) in groups.iter().enumerate() {
            assert_eq!(group.start, next, "group {index} does not start where the one before ended");
            next = group.end;
            let mut list = Vec::new();
            for row in spans[group.clone()].iter().flat_map(|span| span.context) {
                let at = *row as usize;
                assert!(at < n_rows, "key row {row} of group {index} lies outside {n_rows} rows");
                if owner[at] == NOBODY {
                    (owner[at], place[at]) = (index as u32, list.len() as u32);
                    list.push(*row);
                }
                assert_eq!(owner[at], index as u32, "groups {} and {index} share key row {row}", owner[at]);
            }
            rows.push(list);
        }
        assert_eq!(next, spans.len(), "the groups hold {next} of {} spans", spans.len());
        Owners { place, rows }
    }
}

struct Pass<'a> {
    shape: AttentionShape,
    layout: Layout,
    map: ScoreMap,
    q: Rows<'a>,
    k: Rows<'a>,
    v: Rows<'a>,
    out: Rows<'a>,
    d_out: Rows<'a>,
    lse: &'a [f32],
    dqkv: SharedRows<'a>,
    columns: Columns,
    owners: Owners,
}

/// The panels of one tile, and where each kind starts.
#[derive(Clone, Copy)]
struct TileWords {
    /// Keys and values as right operands with lanes of positions: words of each.
    along: usize,
    /// Keys as a right operand with lanes of columns.
    across: usize,
}

impl TileWords {
    fn total(self) -> usize {
        2 * self.along + self.across
    }
}

impl Pass<'_> {
    /// Gradients of rows that no task writes.
    fn write_zeros(&self, spans: &[Span<'_>]) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let zeros = vec![0.0; heads * head_dim];
        let mut is_query = vec![false; self.owners.place.len()];
        for span in spans {
            is_query[span.q_row..span.q_row + span.q_len].fill(true);
        }
        for (row, is_query) in is_query.into_iter().enumerate() {
            // SAFETY: no task runs yet.
            unsafe {
                if !is_query {
                    self.dqkv.write(row, self.columns.q, &zeros);
                }
                if self.owners.place[row] == NOBODY {
                    self.dqkv.write(row, self.columns.k, &zeros[..kv_heads * head_dim]);
                    self.dqkv.write(row, self.columns.v, &zeros[..kv_heads * head_dim]);
                }
            }
        }
    }

    fn tile_words(&self) -> TileWords {
        let Layout { micro, d, .. } = self.layout;
        let across = self.layout.head_panels() * micro.nr * self.layout.steps(TILE) + SLACK;
        TileWords { along: TILE * self.layout.steps(d), across }
    }

    /// `f32` of one transposed gradient of a tile: per panel of columns and of keys, a micro-tile.
    fn tile_floats(&self) -> usize {
        let micro = self.layout.micro;
        self.layout.d.div_ceil(micro.mr) * micro.mr * TILE
    }

    /// All gradients of a group for one key head.
    fn unit(&self, spans: &[Span<'_>], group: usize, kv_head: usize) {
        let d = self.shape.head_dim;
        let rows = &self.owners.rows[group];
        let mut sums = Buffer::<f32>::zeroed(2 * rows.len() * d);
        let (dk, dv) = sums.split_at_mut(rows.len() * d);
        for span in spans.iter().filter(|span| span.q_len > 0) {
            self.span(span, kv_head, dk, dv);
        }
        for (row, (dk, dv)) in rows.iter().zip(dk.chunks_exact(d).zip(dv.chunks_exact(d))) {
            // SAFETY: a key row belongs to one group (checked), and this task alone has this group and head.
            unsafe {
                self.dqkv.write(*row as usize, self.columns.k + kv_head * d, dk);
                self.dqkv.write(*row as usize, self.columns.v + kv_head * d, dv);
            }
        }
    }

    /// Writes `dq` of a span's queries and adds its part of `dk` and `dv` to the group's rows.
    fn span(&self, span: &Span<'_>, kv_head: usize, dk: &mut [f32], dv: &mut [f32]) {
        let tiles_seen = tiles(&self.shape, &span.positions());
        let words = self.pack_tiles(span, kv_head, tiles_seen.clone());
        let tile_floats = self.tile_floats();
        let mut grads = Buffer::<f32>::zeroed(2 * tile_floats * tiles_seen.len());
        for positions in blocks(&self.shape, span) {
            let mut block = Block::new(self, span, kv_head, &positions);
            for tile in tiles(&self.shape, &positions) {
                let index = tile - tiles_seen.start;
                let words = &words[index * self.tile_words().total()..];
                let grads = &mut grads[2 * tile_floats * index..][..2 * tile_floats];
                let (dk, dv) = grads.split_at_mut(tile_floats);
                block.step(tile, words, dk, dv);
            }
            block.finish(kv_head);
        }
        for (grads, tile) in grads.chunks_exact(2 * tile_floats).zip(tiles_seen) {
            let context = &span.context[tile * TILE..span.context.len().min((tile + 1) * TILE)];
            self.add_transposed(&grads[..tile_floats], self.shape.scale, context, dk);
            self.add_transposed(&grads[tile_floats..], 1.0, context, dv);
        }
    }

    fn pack_tiles(&self, span: &Span<'_>, kv_head: usize, tiles: Range<usize>) -> Buffer<u32> {
        let Layout { micro, d, stride, .. } = self.layout;
        let sizes = self.tile_words();
        let mut words = Buffer::<u32>::dirty(tiles.len() * sizes.total());
        let mut rows = Buffer::<u32>::dirty(TILE * stride + SLACK);
        for (tile, out) in tiles.zip(words.chunks_exact_mut(sizes.total())) {
            let context = &span.context[tile * TILE..span.context.len().min((tile + 1) * TILE)];
            let (along, across) = out.split_at_mut(2 * sizes.along);
            // Values first: the rows gathered last are the keys, which are needed in both forms.
            for (from, out) in [(&self.v, 1), (&self.k, 0)] {
                let place = |i: usize| (context[i] as usize, kv_head * d);
                self.layout.gather(from, context.len(), place, &mut rows);
                let panels =
                    along[out * sizes.along..][..sizes.along].chunks_mut(micro.nr * self.layout.steps(d));
                for (first, out) in (0..context.len()).step_by(micro.nr).zip(panels) {
                    let n = micro.nr.min(context.len() - first);
                    self.layout.pack_along(&rows[first * stride..], n, d, micro.nr, out);
                }
            }
            for panel in 0..self.layout.head_panels() {
                let out = &mut across[panel * micro.nr * self.layout.steps(TILE)..];
                self.layout.pack_across(&rows, context.len(), panel * micro.nr, micro.nr, out);
            }
        }
        words
    }

    /// `to[place of key] += scale * grads^T[key]`.
    fn add_transposed(&self, grads: &[f32], scale: f32, context: &[u32], to: &mut [f32]) {
        let Layout { micro, d, .. } = self.layout;
        let stride = d + 16;
        let mut turned = Buffer::<f32>::dirty(TILE * stride);
        for (panel, first) in (0..d).step_by(micro.mr).enumerate() {
            let width = micro.mr.min(d - first);
            for key_panel in 0..TILE / micro.nr {
                let tile = &grads[(panel * TILE + key_panel * micro.nr) * micro.mr..][..width * micro.nr];
                let out = &mut turned[key_panel * micro.nr * stride + first..];
                transpose_into(tile, micro.nr, width, micro.nr, out, stride);
            }
        }
        for (row, values) in context.iter().zip(turned.chunks_exact(stride)) {
            let at = self.owners.place[*row as usize] as usize * d;
            to[at..at + d].iter_mut().zip(values).for_each(|(to, value)| *to += scale * value);
        }
    }
}
