//! What happens to a finished tile.

use std::marker::PhantomData;

use half::bf16;

use crate::elem::Elem;
use crate::isa::{IsaKernel, dispatch};

/// Receives tiles `[n_rows, nr]` of a product; called from several threads, each tile once.
pub trait TileSink: Sync {
    /// Fills the tile with the values the sum starts from; `false` leaves it, and the sum starts from zero.
    fn start(
        &self,
        row0: usize,
        n_rows: usize,
        col0: usize,
        n_cols: usize,
        nr: usize,
        tile: &mut [f32],
    ) -> bool;
    /// Takes the finished tile; columns `n_cols ..` of it are padding.
    fn finish(&self, row0: usize, n_rows: usize, col0: usize, n_cols: usize, nr: usize, tile: &mut [f32]);
}

/// Where a product is written: row-major with leading dimension `ld`.
pub enum Output<'a> {
    /// `f32` values.
    F32(&'a mut [f32], usize),
    /// `bf16` values.
    Bf16(&'a mut [bf16], usize),
}

/// A residual matrix, in the activations' type.
#[derive(Clone, Copy)]
pub enum Residual<'a> {
    /// `f32` values and leading dimension.
    F32(&'a [f32], usize),
    /// `bf16` values and leading dimension.
    Bf16(&'a [bf16], usize),
}

/// What is added to the product before it is rounded and stored.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Start the sum from what the output holds (`f32` outputs only) instead of from zero.
    pub accumulate: bool,
    /// `[n]`, added to every row.
    pub bias: Option<&'a [f32]>,
    /// `[m, n]`, added elementwise.
    pub residual: Option<Residual<'a>>,
    /// Multiplies the sum before bias and residual are added; 1 when absent.
    pub scale: Option<f32>,
    /// `[n]`, multiplies each column likewise.
    pub col_scale: Option<&'a [f32]>,
}

enum Raw {
    F32(*mut f32),
    Bf16(*mut bf16),
}

/// Stores tiles through an epilogue.
pub(super) struct Store<'a> {
    out: Raw,
    ld: usize,
    epilogue: Epilogue<'a>,
    _owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: tiles are disjoint and each is stored once, so threads write disjoint elements.
unsafe impl Sync for Store<'_> {}

impl<'a> Store<'a> {
    pub(super) fn new(m: usize, n: usize, out: Output<'a>, epilogue: Epilogue<'a>) -> Self {
        let (raw, ld, len) = match out {
            Output::F32(values, ld) => (Raw::F32(values.as_mut_ptr()), ld, values.len()),
            Output::Bf16(values, ld) => (Raw::Bf16(values.as_mut_ptr()), ld, values.len()),
        };
        let extent = |ld: usize| if m == 0 { 0 } else { (m - 1) * ld + n };
        assert!(
            ld >= n && len >= extent(ld),
            "output of {len} elements is too small for [{m}, {n}] at ld {ld}"
        );
        if let Some(bias) = epilogue.bias {
            assert_eq!(bias.len(), n, "a bias has one value per column");
        }
        if let Some(scale) = epilogue.col_scale {
            assert_eq!(scale.len(), n, "a column scale has one value per column");
        }
        match epilogue.residual {
            Some(Residual::F32(values, ld)) => assert!(values.len() >= extent(ld)),
            Some(Residual::Bf16(values, ld)) => assert!(values.len() >= extent(ld)),
            None => {}
        }
        assert!(!epilogue.accumulate || matches!(raw, Raw::F32(_)), "only f32 outputs accumulate");
        Store { out: raw, ld, epilogue, _owner: PhantomData }
    }
}

impl TileSink for Store<'_> {
    fn start(
        &self,
        row0: usize,
        n_rows: usize,
        col0: usize,
        n_cols: usize,
        nr: usize,
        tile: &mut [f32],
    ) -> bool {
        let (true, Raw::F32(out)) = (self.epilogue.accumulate, &self.out) else { return false };
        for r in 0..n_rows {
            // SAFETY: the extent was checked in `new`, and this tile's elements are ours alone.
            let row = unsafe { std::slice::from_raw_parts(out.add((row0 + r) * self.ld + col0), n_cols) };
            tile[r * nr..r * nr + n_cols].copy_from_slice(row);
            tile[r * nr + n_cols..(r + 1) * nr].fill(0.0);
        }
        true
    }

    fn finish(&self, row0: usize, n_rows: usize, col0: usize, n_cols: usize, nr: usize, tile: &mut [f32]) {
        dispatch(Finish { store: self, row0, n_rows, col0, n_cols, nr, tile });
    }
}

/// The epilogue of one tile, compiled for every instruction set.
struct Finish<'s, 'a> {
    store: &'s Store<'a>,
    row0: usize,
    n_rows: usize,
    col0: usize,
    n_cols: usize,
    nr: usize,
    tile: &'s mut [f32],
}

impl IsaKernel for Finish<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Finish { store, row0, n_rows, col0, n_cols, nr, tile } = self;
        for r in 0..n_rows {
            let values = &mut tile[r * nr..r * nr + n_cols];
            store.apply(row0 + r, col0, values);
            let at = (row0 + r) * store.ld + col0;
            match store.out {
                // SAFETY: the extent was checked in `new`, and tiles are disjoint.
                Raw::F32(out) => {
                    unsafe { std::slice::from_raw_parts_mut(out.add(at), n_cols) }.copy_from_slice(values)
                }
                Raw::Bf16(out) => {
                    // SAFETY: as above.
                    let row = unsafe { std::slice::from_raw_parts_mut(out.add(at), n_cols) };
                    zip_each(row, values, |o, v| *o = Elem::put(*v));
                }
            }
        }
    }
}

impl Store<'_> {
    /// Scale, bias and residual of a piece of a row.
    #[inline(always)]
    fn apply(&self, row: usize, col0: usize, values: &mut [f32]) {
        let n = values.len();
        if let Some(scale) = self.epilogue.scale {
            values.iter_mut().for_each(|v| *v *= scale);
        }
        if let Some(scale) = self.epilogue.col_scale {
            zip_each(values, &scale[col0..col0 + n], |v, s| *v *= s);
        }
        if let Some(bias) = self.epilogue.bias {
            zip_each(values, &bias[col0..col0 + n], |v, b| *v += b);
        }
        match self.epilogue.residual {
            Some(Residual::F32(from, ld)) => zip_each(values, &from[row * ld + col0..][..n], |v, x| *v += x),
            Some(Residual::Bf16(from, ld)) => {
                zip_each(values, &from[row * ld + col0..][..n], |v, x| *v += x.get());
            }
            None => {}
        }
    }
}

/// Calls `f` on pairs; whole vectors first, so that the usual full tile has no remainder loop.
#[inline(always)]
fn zip_each<A, B>(a: &mut [A], b: &[B], f: impl Fn(&mut A, &B)) {
    let (a_vectors, a_rest) = a.as_chunks_mut::<16>();
    let (b_vectors, b_rest) = b.as_chunks::<16>();
    for (a, b) in a_vectors.iter_mut().zip(b_vectors) {
        for i in 0..16 {
            f(&mut a[i], &b[i]);
        }
    }
    for (a, b) in a_rest.iter_mut().zip(b_rest) {
        f(a, b);
    }
}

/// Stores tiles after a function has changed them, row by row.
pub(super) struct MapStore<'a, F> {
    pub(super) store: Store<'a>,
    pub(super) map: &'a F,
}

impl<F: Fn(usize, usize, &mut [f32]) + Sync> TileSink for MapStore<'_, F> {
    fn start(
        &self,
        row0: usize,
        n_rows: usize,
        col0: usize,
        n_cols: usize,
        nr: usize,
        tile: &mut [f32],
    ) -> bool {
        self.store.start(row0, n_rows, col0, n_cols, nr, tile)
    }

    fn finish(&self, row0: usize, n_rows: usize, col0: usize, n_cols: usize, nr: usize, tile: &mut [f32]) {
        for r in 0..n_rows {
            (self.map)(row0 + r, col0, &mut tile[r * nr..r * nr + n_cols]);
        }
        self.store.finish(row0, n_rows, col0, n_cols, nr, tile);
    }
}
