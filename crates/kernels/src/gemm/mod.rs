//! Matrix products `C = sum over parts of A_p B_p`, the kernel everything else waits for.
//!
//! The shape is that of BLIS: `B` is packed in panels of `nr` columns, `A` in panels of `mr` rows,
//! and a micro-kernel keeps an `mr x nr` tile of `C` in registers while it walks the **whole**
//! reduction. The reduction is never split over threads or blocks, so every element of `C` is one
//! chain of fused multiply-adds in the order of `k`, whatever the other rows are: the result of a
//! row does not depend on the batch it came in, on the number of threads, or, when `C` is
//! accumulated into, on how the reduction was cut into calls (in bf16, at even places: `k` is taken in pairs).
//!
//! Several parts continue the same chain: that is how a LoRA update `(x A) B` joins `x W` without
//! a second pass over the output, and how gradients of grouped projections sum.
//!
//! What it leaves out: transposing `C`, and complex epilogues; a [`TileSink`] sees each finished tile
//! instead and does what it likes with it (the language-model head never stores one).

mod direct;
mod lanes;
pub mod micro;
pub mod operand;
mod sink;

use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::Buffer;
pub use micro::{Micro, Precision};
pub use operand::{KAxis, Operand, Packed, Values};
pub use sink::{Epilogue, Output, Residual, TileSink};

/// The largest tile of any kernel, in elements.
pub const TILE_MAX: usize = lanes::ROWS_MAX * 32;

/// Where the panels of `B` come from.
#[derive(Clone, Copy)]
pub enum Right<'a> {
    /// Packed while multiplying.
    Operand(Operand<'a>),
    /// Packed before, a micro-kernel's columns wide.
    Packed(&'a Packed),
}

/// One product `A B` of a sum.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// `[m, k]`, packed a micro-kernel's rows wide.
    pub a: &'a Packed,
    /// `[k, n]`.
    pub b: Right<'a>,
}

/// Packs the left operand `[m, k]` for use in [`Part`]s of the same precision.
pub fn pack_left(a: &Operand<'_>, m: usize, k: usize, precision: Precision) -> Packed {
    let micro = Micro::of(precision);
    let packed = Packed::new(a, m, k, micro.mr, precision);
    match direct::lanes_width(micro, m) {
        Some(width) => packed.with_lanes(Packed::new(a, m, k, width, precision)),
        None => packed,
    }
}

/// Packs the right operand `[k, n]` once, for repeated use.
pub fn pack_right(b: &Operand<'_>, n: usize, k: usize, precision: Precision) -> Packed {
    Packed::new(b, n, k, Micro::of(precision).nr, precision)
}

/// `out = epilogue(sum of parts)`, `[m, n]`.
///
/// # Panics
/// If a part's packed shape, precision or an operand's extent does not fit.
pub fn gemm(
    m: usize,
    n: usize,
    parts: &[Part<'_>],
    out: Output<'_>,
    epilogue: Epilogue<'_>,
    precision: Precision,
) {
    let sink = sink::Store::new(m, n, out, epilogue);
    for_each_tile(m, n, parts, precision, &sink);
}

/// `out = map(sum of parts)`: `map(row, first column, values)` changes each finished piece of a row before it is stored.
pub fn gemm_mapped(
    m: usize,
    n: usize,
    parts: &[Part<'_>],
    out: Output<'_>,
    precision: Precision,
    map: &(impl Fn(usize, usize, &mut [f32]) + Sync),
) {
    let sink = sink::MapStore { store: sink::Store::new(m, n, out, Epilogue::default()), map };
    for_each_tile(m, n, parts, precision, &sink);
}

/// Below this many multiply-adds a product runs on the calling thread.
const SERIAL_WORK: usize = 1 << 17;
/// Enough tasks that two threads of uneven speed finish together.
const TASKS_PER_THREAD: usize = 4;

/// Computes every tile of the product and hands it to `sink`, in parallel over panels.
pub fn for_each_tile(m: usize, n: usize, parts: &[Part<'_>], precision: Precision, sink: &impl TileSink) {
    let micro = Micro::of(precision);
    assert!(!parts.is_empty(), "a product has at least one part");
    for part in parts {
        part.a.check(m, micro.mr, precision);
        if let Right::Packed(b) = part.b {
            b.check(n, micro.nr, precision);
            assert_eq!(b.k(), part.a.k(), "both packed operands share the reduction");
        }
    }
    if m == 0 || n == 0 {
        return;
    }
    let is_direct = are_direct(parts, m, micro);
    let panels = n.div_ceil(micro.nr);
    let row_panels = if is_direct { 1 } else { m.div_ceil(micro.mr) };
    let k_total: usize = parts.iter().map(|part| part.a.k()).sum();
    let threads = rayon::current_num_threads();
    let group = if is_direct {
        // Long runs of neighbouring panels: each asks for the next one's memory.
        panels.div_ceil(threads * TASKS_PER_THREAD)
    } else {
        group_of(panels, threads, operand::panel_words(micro.nr, k_total, precision))
    };
    let groups = panels.div_ceil(group);
    let group_panels = |g: usize| g * group..((g + 1) * group).min(panels);
    let run = |panels: Range<usize>, rows: Range<usize>| {
        if is_direct {
            run_direct(panels, m, n, parts, micro, sink);
        } else {
            run_panels(panels, rows, m, n, parts, micro, sink);
        }
    };
    if threads == 1 || m * n * k_total <= SERIAL_WORK {
        (0..groups).for_each(|g| run(group_panels(g), 0..row_panels));
        return;
    }
    let row_chunks = (threads * TASKS_PER_THREAD).div_ceil(panels).clamp(1, row_panels);
    let chunk = row_panels.div_ceil(row_chunks);
    (0..groups * row_chunks).into_par_iter().with_max_len(1).for_each(|task| {
        let (g, first) = (task / row_chunks, (task % row_chunks) * chunk);
        if first < row_panels {
            run(group_panels(g), first..(first + chunk).min(row_panels));
        }
    });
}

/// Whether the right operand of a part is multiplied where it lies.
fn is_direct(part: &Part<'_>, m: usize, micro: Micro) -> bool {
    matches!(part.b, Right::Operand(operand) if direct::applies(micro, &operand, m, part.a.k()))
}

/// Whether the right operand of most of the sum is: what else there is, as an adapter in `f32`, is packed beside it.
fn are_direct(parts: &[Part<'_>], m: usize, micro: Micro) -> bool {
    let extent =
        |direct| parts.iter().filter(|p| is_direct(p, m, micro) == direct).map(|p| p.a.k()).sum::<usize>();
    extent(true) > extent(false)
}

/// Bytes of `B` that stay in a core's second-level cache while panels of `A` come by.
const GROUP_BYTES: usize = 384 << 10;
/// The most panels of `B` that share a visit of a panel of `A`.
const GROUP_MAX: usize = 4;

/// Panels of `B` a task holds at once: as many as fit the cache and still leave the threads equal shares.
fn group_of(panels: usize, threads: usize, panel_words: usize) -> usize {
    let fits = (GROUP_BYTES / (4 * panel_words).max(1)).clamp(1, GROUP_MAX);
    let even = |group: &usize| {
        let groups = panels.div_ceil(*group);
        groups >= 8 * threads || (groups >= 2 * threads && groups.is_multiple_of(threads))
    };
    (1..=fits).rev().find(even).unwrap_or(1)
}

/// All tiles of some panels of `nr` columns, right operands multiplied where they lie.
fn run_direct(
    panels: Range<usize>,
    m: usize,
    n: usize,
    parts: &[Part<'_>],
    micro: Micro,
    sink: &impl TileSink,
) {
    let mut tile = [0.0f32; TILE_MAX];
    let tile = &mut tile[..m * micro.nr];
    for panel in panels {
        let (col0, cols) = (panel * micro.nr, micro.nr.min(n - panel * micro.nr));
        let mut fresh = !sink.start(0, m, col0, cols, micro.nr, tile);
        for part in parts {
            match part.b {
                Right::Operand(b) if is_direct(part, m, micro) => {
                    direct::run(micro, m, part.a, &b, col0..col0 + cols, tile, fresh);
                }
                b => {
                    let (k, words) = (part.a.k(), Panel::of(&b, panel, cols, part.a.k(), micro));
                    for (index, tile) in tile.chunks_mut(micro.mr * micro.nr).enumerate() {
                        let n_rows = tile.len() / micro.nr;
                        micro.run_part(n_rows, cols, k, part.a.panel(index), words.get(), tile, fresh);
                    }
                }
            }
            fresh = false;
        }
        sink.finish(0, m, col0, cols, micro.nr, tile);
    }
}

/// One panel of a right operand.
enum Panel<'a> {
    Now(Buffer<u32>),
    Before(&'a [u32]),
}

impl<'a> Panel<'a> {
    fn of(b: &Right<'a>, panel: usize, cols: usize, k: usize, micro: Micro) -> Panel<'a> {
        match b {
            Right::Operand(operand) => {
                let mut words = Buffer::dirty(operand::panel_words(micro.nr, k, micro.precision));
                let first = panel * micro.nr;
                operand::pack_panel(operand, first, cols, k, micro.nr, micro.precision, &mut words);
                Panel::Now(words)
            }
            Right::Packed(packed) => Panel::Before(packed.panel(panel)),
        }
    }

    fn get(&self) -> &[u32] {
        match self {
            Panel::Now(words) => words,
            Panel::Before(words) => words,
        }
    }
}

/// All tiles of some panels of `nr` columns, for a range of row panels.
fn run_panels(
    panels: Range<usize>,
    rows: Range<usize>,
    m: usize,
    n: usize,
    parts: &[Part<'_>],
    micro: Micro,
    sink: &impl TileSink,
) {
    let cols = |panel: usize| micro.nr.min(n - panel * micro.nr);
    let scratch: Vec<Panel<'_>> = panels
        .clone()
        .flat_map(|panel| parts.iter().map(move |part| (panel, part)))
        .map(|(panel, part)| Panel::of(&part.b, panel, cols(panel), part.a.k(), micro))
        .collect();
    let words = |panel: usize, index: usize| scratch[(panel - panels.start) * parts.len() + index].get();
    let mut tile = [0.0f32; TILE_MAX];
    for row_panel in rows {
        let row0 = row_panel * micro.mr;
        let n_rows = micro.mr.min(m - row0);
        let tile = &mut tile[..n_rows * micro.nr];
        for panel in panels.clone() {
            let (col0, cols) = (panel * micro.nr, cols(panel));
            let mut fresh = !sink.start(row0, n_rows, col0, cols, micro.nr, tile);
            for (index, part) in parts.iter().enumerate() {
                let (k, a) = (part.a.k(), part.a.panel(row_panel));
                micro.run_part(n_rows, cols, k, a, words(panel, index), tile, fresh);
                fresh = false;
            }
            sink.finish(row0, n_rows, col0, cols, micro.nr, tile);
        }
    }
}
