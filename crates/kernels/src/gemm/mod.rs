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

pub mod micro;
pub mod operand;
mod sink;

use rayon::prelude::*;

use crate::buffer::Buffer;
pub use micro::{Micro, Precision};
pub use operand::{KAxis, Operand, Packed, Values};
pub use sink::{Epilogue, Output, Residual, TileSink};

/// The largest tile of any micro-kernel, in elements.
pub const TILE_MAX: usize = 14 * 32;

/// Where the panels of `B` come from.
#[derive(Clone, Copy)]
pub enum Right<'a> {
    /// Packed while multiplying.
    Operand(Operand<'a>),
    /// Packed before, with width [`Micro::nr`].
    Packed(&'a Packed),
}

/// One product `A B` of a sum.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// `[m, k]`, packed with width [`Micro::mr`].
    pub a: &'a Packed,
    /// `[k, n]`.
    pub b: Right<'a>,
}

/// Packs the left operand `[m, k]` for use in [`Part`]s of the same precision.
pub fn pack_left(a: &Operand<'_>, m: usize, k: usize, precision: Precision) -> Packed {
    Packed::new(a, m, k, Micro::of(precision).mr, precision)
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
    let panels = n.div_ceil(micro.nr);
    let row_panels = m.div_ceil(micro.mr);
    let k_total: usize = parts.iter().map(|part| part.a.k()).sum();
    let threads = rayon::current_num_threads();
    if threads == 1 || m * n * k_total <= SERIAL_WORK {
        (0..panels).for_each(|panel| run_panel(panel, 0..row_panels, m, n, parts, micro, sink));
        return;
    }
    let row_chunks = (threads * TASKS_PER_THREAD).div_ceil(panels).clamp(1, row_panels);
    let chunk = row_panels.div_ceil(row_chunks);
    (0..panels * row_chunks).into_par_iter().with_max_len(1).for_each(|task| {
        let (panel, first) = (task / row_chunks, (task % row_chunks) * chunk);
        if first < row_panels {
            run_panel(panel, first..(first + chunk).min(row_panels), m, n, parts, micro, sink);
        }
    });
}

/// All tiles of one panel of `nr` columns, for a range of row panels.
fn run_panel(
    panel: usize,
    rows: std::ops::Range<usize>,
    m: usize,
    n: usize,
    parts: &[Part<'_>],
    micro: Micro,
    sink: &impl TileSink,
) {
    let col0 = panel * micro.nr;
    let cols = micro.nr.min(n - col0);
    let scratch: Vec<Option<Buffer<u32>>> = parts
        .iter()
        .map(|part| match part.b {
            Right::Operand(operand) => {
                let mut words = Buffer::dirty(operand::panel_words(micro.nr, part.a.k(), micro.precision));
                operand::pack_panel(&operand, col0, cols, part.a.k(), micro.nr, micro.precision, &mut words);
                Some(words)
            }
            Right::Packed(_) => None,
        })
        .collect();
    let b_panels: Vec<&[u32]> = parts
        .iter()
        .zip(&scratch)
        .map(|(part, words)| match (part.b, words) {
            (Right::Packed(packed), _) => packed.panel(panel),
            (_, Some(words)) => words,
            (Right::Operand(_), None) => unreachable!("operands were packed above"),
        })
        .collect();
    let mut tile = [0.0f32; TILE_MAX];
    for row_panel in rows {
        let row0 = row_panel * micro.mr;
        let n_rows = micro.mr.min(m - row0);
        let tile = &mut tile[..n_rows * micro.nr];
        let mut fresh = !sink.start(row0, n_rows, col0, cols, micro.nr, tile);
        for (part, b) in parts.iter().zip(&b_panels) {
            micro.run_part(n_rows, cols, part.a.k(), part.a.panel(row_panel), b, tile, fresh);
            fresh = false;
        }
        sink.finish(row0, n_rows, col0, cols, micro.nr, tile);
    }
}
