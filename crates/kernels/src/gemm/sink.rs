//! What happens to a finished tile.

use std::marker::PhantomData;

use half::bf16;

use crate::elem::Elem;
use crate::isa::{Isa, current, prefetch};

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
        for r in 0..n_rows {
            self.prefetch((row0 + r) * self.ld + col0, n_cols);
            match self.epilogue.residual {
                Some(Residual::F32(from, ld)) => prefetch(from, (row0 + r) * ld + col0, n_cols),
                Some(Residual::Bf16(from, ld)) => prefetch(from, (row0 + r) * ld + col0, n_cols),
                None => {}
            }
        }
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
        for r in 0..n_rows {
            let values = &mut tile[r * nr..r * nr + n_cols];
            #[cfg(target_arch = "x86_64")]
            if current() >= Isa::Avx512 {
                // SAFETY: AVX-512 is present, the extents of all arrays were checked in `new`, and tiles are disjoint.
                unsafe { self.finish_row_avx512(row0 + r, col0, values) };
                continue;
            }
            self.finish_row(row0 + r, col0, values);
        }
    }
}

impl Store<'_> {
    /// Asks for the cache lines of a piece of the output while the product is being computed.
    #[inline(always)]
    fn prefetch(&self, at: usize, n: usize) {
        // SAFETY: prefetches never fault, and the extent was checked in `new`.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            match self.out {
                Raw::F32(out) => {
                    for i in (0..n).step_by(16) {
                        _mm_prefetch::<_MM_HINT_ET0>(out.add(at + i).cast());
                    }
                    _mm_prefetch::<_MM_HINT_ET0>(out.add(at + n - 1).cast());
                }
                Raw::Bf16(out) => {
                    _mm_prefetch::<_MM_HINT_ET0>(out.add(at).cast());
                    _mm_prefetch::<_MM_HINT_ET0>(out.add(at + n - 1).cast());
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (at, n);
    }

    fn finish_row(&self, row: usize, col0: usize, values: &mut [f32]) {
        let n = values.len();
        if let Some(scale) = self.epilogue.scale {
            values.iter_mut().for_each(|v| *v *= scale);
        }
        if let Some(scale) = self.epilogue.col_scale {
            values.iter_mut().zip(&scale[col0..]).for_each(|(v, s)| *v *= s);
        }
        if let Some(bias) = self.epilogue.bias {
            values.iter_mut().zip(&bias[col0..]).for_each(|(v, b)| *v += b);
        }
        match self.epilogue.residual {
            Some(Residual::F32(from, ld)) => {
                values.iter_mut().zip(&from[row * ld + col0..]).for_each(|(v, x)| *v += x);
            }
            Some(Residual::Bf16(from, ld)) => {
                values.iter_mut().zip(&from[row * ld + col0..]).for_each(|(v, x)| *v += x.get());
            }
            None => {}
        }
        let at = row * self.ld + col0;
        match self.out {
            Raw::F32(out) => {
                // SAFETY: the extent was checked in `new`, and tiles are disjoint.
                let row = unsafe { std::slice::from_raw_parts_mut(out.add(at), n) };
                row.copy_from_slice(values);
            }
            Raw::Bf16(out) => {
                // SAFETY: as above.
                let row = unsafe { std::slice::from_raw_parts_mut(out.add(at), n) };
                row.iter_mut().zip(values.iter()).for_each(|(o, v)| *o = Elem::put(*v));
            }
        }
    }

    /// The same, sixteen columns at a time: a piece of 32 is too short for the compiler's own vector loops.
    ///
    /// # Safety
    /// AVX-512 present; every array of the epilogue and the output hold the piece.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn finish_row_avx512(&self, row: usize, col0: usize, values: &[f32]) {
        use std::arch::x86_64::*;
        let epilogue = &self.epilogue;
        for c in (0..values.len()).step_by(16) {
            let mask = u16::MAX >> (16 - (values.len() - c).min(16));
            let col = col0 + c;
            // SAFETY: masked accesses touch only columns `col .. col + 16` below the piece's end.
            unsafe {
                let mut v = _mm512_maskz_loadu_ps(mask, values.as_ptr().add(c));
                if let Some(scale) = epilogue.scale {
                    v = _mm512_mul_ps(v, _mm512_set1_ps(scale));
                }
                if let Some(scale) = epilogue.col_scale {
                    v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, scale.as_ptr().add(col)));
                }
                if let Some(bias) = epilogue.bias {
                    v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, bias.as_ptr().add(col)));
                }
                match epilogue.residual {
                    Some(Residual::F32(from, ld)) => {
                        v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, from.as_ptr().add(row * ld + col)));
                    }
                    Some(Residual::Bf16(from, ld)) => {
                        let half = _mm256_maskz_loadu_epi16(mask, from.as_ptr().add(row * ld + col).cast());
                        let bits = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half));
                        v = _mm512_add_ps(v, _mm512_castsi512_ps(bits));
                    }
                    None => {}
                }
                match self.out {
                    Raw::F32(out) => _mm512_mask_storeu_ps(out.add(row * self.ld + col), mask, v),
                    Raw::Bf16(out) => {
                        // The rounding of `Elem::put`, bit for bit.
                        let bits = _mm512_castps_si512(v);
                        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                        let sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                        let rounded = _mm512_srli_epi32::<16>(sum);
                        let nan = _mm512_or_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(0x40));
                        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
                        let half = _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(is_nan, rounded, nan));
                        _mm256_mask_storeu_epi16(out.add(row * self.ld + col).cast(), mask, half);
                    }
                }
            }
        }
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
