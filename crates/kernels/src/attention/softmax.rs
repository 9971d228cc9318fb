//! The elementwise half of attention: scores to probabilities, and their gradients.
//!
//! Scores come as the micro-kernel leaves them: panels of `nr` keys, each `[rows, nr]`.

use std::f32::consts::LOG2_E;

use super::AttentionShape;
use super::lanes::{LaneKernel, Lanes, WIDTH, dispatch};

/// Rows per panel of queries, padded to a vector.
pub(super) const ROWS_MAX: usize = WIDTH;

/// From raw products to scores in units of `log2`: `t = scale s log2 e`, or its soft cap.
#[derive(Clone, Copy)]
pub(super) struct ScoreMap {
    /// `scale * log2 e`, or `scale / cap`.
    inner: f32,
    /// `cap * log2 e`.
    cap: Option<f32>,
}

impl ScoreMap {
    pub(super) fn new(shape: &AttentionShape) -> Self {
        match shape.softcap {
            None => ScoreMap { inner: shape.scale * LOG2_E, cap: None },
            Some(cap) => ScoreMap { inner: shape.scale / cap, cap: Some(cap * LOG2_E) },
        }
    }
}

/// One panel of scores: `panels` blocks of `[rows, nr]`.
#[derive(Clone, Copy)]
pub(super) struct Extent<'a> {
    pub rows: usize,
    pub nr: usize,
    pub panels: usize,
    /// For each row the visible keys as bits, lowest key first; `None` when all are visible.
    pub masks: Option<&'a [u64]>,
    pub map: ScoreMap,
}

impl Extent<'_> {
    fn check(&self, scores: &[f32]) {
        assert!(self.rows <= ROWS_MAX && matches!(self.nr, 16 | 32) && self.nr * self.panels <= 64);
        assert!(scores.len() >= self.panels * self.rows * self.nr);
        assert!(self.masks.is_none_or(|masks| masks.len() >= self.rows));
    }

    /// Vectors per row.
    #[inline(always)]
    fn chunks(&self) -> usize {
        self.nr / WIDTH * self.panels
    }

    /// Where vector `chunk` of row `row` lies.
    #[inline(always)]
    fn at(&self, row: usize, chunk: usize) -> usize {
        // `nr` is 16 or 32: a shift, since a division here would cost as much as the exponential.
        let shift = usize::from(self.nr > WIDTH);
        ((chunk >> shift) * self.rows + row) * self.nr + (chunk & shift) * WIDTH
    }
}

/// The running maximum (in `log2` units) and sum of each row of a panel.
pub(super) struct Running<'a> {
    pub max: &'a mut [f32; ROWS_MAX],
    pub sum: &'a mut [f32; ROWS_MAX],
}

/// One step of the online softmax: turns `scores` into `2^(t - max)` with the new maximum, updates
/// `running`, and returns the factor by which each row's earlier sums shrink.
pub(super) fn online(extent: Extent<'_>, scores: &mut [f32], running: Running<'_>) -> [f32; ROWS_MAX] {
    extent.check(scores);
    dispatch(Online { extent, scores, running })
}

struct Online<'a> {
    extent: Extent<'a>,
    scores: &'a mut [f32],
    running: Running<'a>,
}

impl LaneKernel for Online<'_> {
    type Output = [f32; ROWS_MAX];

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> [f32; ROWS_MAX] {
        let Online { extent, scores, running: Running { max, sum } } = self;
        let scores = scores.as_mut_ptr();
        let mut base = *max;
        let mut shrink = [0.0; ROWS_MAX];
        // SAFETY: `Extent::check` showed that every vector of every row lies within `scores`, the small
        // arrays hold one vector, and the caller promises the instruction set of `L`.
        unsafe {
            for row in 0..extent.rows {
                let mut top = L::splat(f32::NEG_INFINITY);
                for chunk in 0..extent.chunks() {
                    let at = scores.add(extent.at(row, chunk));
                    let t = score(&extent, row, chunk, L::load(at)).0;
                    t.store(at);
                    top = t.max(top);
                }
                base[row] = top.fold_max().max(max[row]);
            }
            let old = L::load(max.as_ptr());
            L::load(base.as_ptr()).store(max.as_mut_ptr());
            // A row with nothing visible yet keeps -inf as its maximum; its differences are taken from 0.
            for value in &mut base {
                *value = if *value == f32::NEG_INFINITY { 0.0 } else { *value };
            }
            let factor = old.sub(L::load(base.as_ptr())).exp2();
            factor.store(shrink.as_mut_ptr());
            L::load(sum.as_ptr()).mul(factor).store(sum.as_mut_ptr());
            for row in 0..extent.rows {
                let from = L::splat(base[row]);
                let mut total = L::splat(0.0);
                for chunk in 0..extent.chunks() {
                    let at = scores.add(extent.at(row, chunk));
                    let p = L::load(at).sub(from).exp2();
                    p.store(at);
                    total = total.add(p);
                }
                sum[row] += total.fold_add();
            }
        }
        shrink
    }
}

/// The masked score of one vector, and the soft cap's derivative.
///
/// # Safety
/// The instruction set of `L` is present.
#[inline(always)]
unsafe fn score<L: Lanes>(extent: &Extent<'_>, row: usize, chunk: usize, raw: L) -> (L, Option<L>) {
    // SAFETY: the caller promises the instruction set; `Extent::check` that there is a mask per row.
    unsafe {
        let inner = raw.mul(L::splat(extent.map.inner));
        let (t, slope) = match extent.map.cap {
            None => (inner, None),
            Some(cap) => {
                let tanh = inner.tanh();
                (tanh.mul(L::splat(cap)), Some(L::splat(1.0).sub(tanh.mul(tanh))))
            }
        };
        match extent.masks {
            None => (t, slope),
            Some(masks) => {
                let mask = (masks.get_unchecked(row) >> (chunk * WIDTH)) as u16;
                (t.select(mask, L::splat(f32::NEG_INFINITY)), slope)
            }
        }
    }
}

/// Turns `scores` into `p = 2^(t - lse)` and `dp` into `ds = p (dp - dot) cap'(s)`, per unit of scaled score.
///
/// `lse` is in `log2` units, `dot` is `do o`; both per row.
pub(super) fn gradient(extent: Extent<'_>, scores: &mut [f32], dp: &mut [f32], lse: &[f32], dot: &[f32]) {
    extent.check(scores);
    extent.check(dp);
    assert!(lse.len() >= extent.rows && dot.len() >= extent.rows);
    dispatch(Gradient { extent, scores, dp, lse, dot });
}

struct Gradient<'a> {
    extent: Extent<'a>,
    scores: &'a mut [f32],
    dp: &'a mut [f32],
    lse: &'a [f32],
    dot: &'a [f32],
}

impl LaneKernel for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Gradient { extent, scores, dp, lse, dot } = self;
        let (scores, dp) = (scores.as_mut_ptr(), dp.as_mut_ptr());
        // SAFETY: `Extent::check` showed that every vector of every row lies within both buffers, and the
        // caller promises the instruction set of `L`.
        unsafe {
            for row in 0..extent.rows {
                let (lse, dot) = (L::splat(lse[row]), L::splat(dot[row]));
                for chunk in 0..extent.chunks() {
                    let at = extent.at(row, chunk);
                    let (t, slope) = score(&extent, row, chunk, L::load(scores.add(at)));
                    let p = t.sub(lse).exp2();
                    p.store(scores.add(at));
                    let ds = p.mul(L::load(dp.add(at)).sub(dot));
                    slope.map_or(ds, |slope| ds.mul(slope)).store(dp.add(at));
                }
            }
        }
    }
}

/// Tiles `[rows, nr]` of one panel of rows, one for each panel of columns, `stride` values apart.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub rows: usize,
    pub nr: usize,
    pub panels: usize,
    pub stride: usize,
}

impl Tiles {
    fn check(&self, values: &[f32]) {
        assert!(self.rows >= 1 && self.rows <= ROWS_MAX && matches!(self.nr, 16 | 32) && self.panels >= 1);
        assert!(self.rows * self.nr <= self.stride && values.len() >= self.panels * self.stride);
    }
}

/// Multiplies each row by its factor; rows with factor 1 are not touched.
pub(super) fn shrink(tiles: Tiles, values: &mut [f32], factors: &[f32; ROWS_MAX]) {
    if factors[..tiles.rows].iter().any(|factor| *factor != 1.0) {
        tiles.check(values);
        dispatch(Shrink { tiles, values, factors });
    }
}

struct Shrink<'a> {
    tiles: Tiles,
    values: &'a mut [f32],
    factors: &'a [f32; ROWS_MAX],
}

impl LaneKernel for Shrink<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Shrink { tiles, values, factors } = self;
        let values = values.as_mut_ptr();
        // SAFETY: `Tiles::check` showed that every vector lies within `values`; the caller promises `L`.
        unsafe {
            for row in (0..tiles.rows).filter(|row| factors[*row] != 1.0) {
                let factor = L::splat(factors[row]);
                for at in tiles.vectors(row) {
                    let at = values.add(at);
                    L::load(at).mul(factor).store(at);
                }
            }
        }
    }
}

impl Tiles {
    /// Where the vectors of a row lie.
    #[inline(always)]
    fn vectors(self, row: usize) -> impl Iterator<Item = usize> {
        (0..self.panels).flat_map(move |panel| {
            (0..self.nr).step_by(WIDTH).map(move |lane| panel * self.stride + row * self.nr + lane)
        })
    }
}

/// Joins the tiles of each row: `out[row] = factor * row + 0`, `panels * nr` values per row.
///
/// Adding 0 turns -0 into 0: the one bit that hidden keys can change.
pub(super) fn join(tiles: Tiles, values: &[f32], factors: &[f32; ROWS_MAX], out: &mut [f32]) {
    tiles.check(values);
    assert!(out.len() >= tiles.rows * tiles.panels * tiles.nr);
    dispatch(Join { tiles, values, factors, out });
}

struct Join<'a> {
    tiles: Tiles,
    values: &'a [f32],
    factors: &'a [f32; ROWS_MAX],
    out: &'a mut [f32],
}

impl LaneKernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Join { tiles, values, factors, out } = self;
        let (values, mut out) = (values.as_ptr(), out.as_mut_ptr());
        // SAFETY: `Tiles::check` showed that every vector lies within `values`, `join` that `out` holds as
        // many; the caller promises `L`.
        unsafe {
            for row in 0..tiles.rows {
                let (factor, zero) = (L::splat(factors[row]), L::splat(0.0));
                for at in tiles.vectors(row) {
                    L::load(values.add(at)).mul(factor).add(zero).store(out);
                    out = out.add(WIDTH);
                }
            }
        }
    }
}
