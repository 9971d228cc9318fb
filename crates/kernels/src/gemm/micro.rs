//! Micro-kernels: one tile of `C` in registers, one walk over the packed panels.
//!
//! All kernels of a precision on an instruction set take 1 to `mr` rows with the same order of
//! operations per element, so a decode step of one row equals the same row in a batch bit for bit.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use crate::isa::{Isa, current};

/// What operands are rounded to before they are multiplied. Sums are always `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Multiply in `f32`.
    F32,
    /// Multiply `bf16` values (exact products), as `vdpbf16ps` does two at a time.
    Bf16,
}

/// How packed words are laid out and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// One `f32` per word, panel layout `[k][width]`.
    Single,
    /// Two `bf16` of neighbouring `k` per word, panel layout `[k / 2][width]`.
    Pair,
}

/// A micro-kernel: its tile, its packed format, and the code. Only [`Micro::of`] makes one, so that the sizes its code
/// relies on are those it is called with.
#[derive(Clone, Copy, Debug)]
pub struct Micro {
    /// Rows of a tile.
    pub(crate) mr: usize,
    /// Columns of a tile.
    pub(crate) nr: usize,
    /// Packed layout of both operands.
    pub(crate) format: Format,
    /// The precision this was chosen for.
    pub(crate) precision: Precision,
    isa: Isa,
}

impl Micro {
    /// The micro-kernel for `precision` on the instruction set in use.
    pub fn of(precision: Precision) -> Micro {
        let isa = current();
        let (mr, nr, format) = match (isa, precision) {
            (Isa::Avx512Bf16, Precision::Bf16) => (14, 32, Format::Pair),
            (Isa::Avx512Bf16 | Isa::Avx512, _) => (14, 32, Format::Single),
            (Isa::Avx2, _) => (6, 16, Format::Single),
            (Isa::Portable, _) => (4, 16, Format::Single),
        };
        Micro { mr, nr, format, precision, isa }
    }

    /// The instruction set it was chosen for.
    pub(super) fn isa(&self) -> Isa {
        self.isa
    }

    /// `tile += a b` for `rows <= mr` rows over `k` elements.
    ///
    /// `a` is a packed panel of width `rows`, `b` one of width `nr`, `tile` is `[rows, nr]`.
    ///
    /// # Panics
    /// If a slice is too short for the shape.
    #[inline]
    pub fn run(&self, rows: usize, k: usize, a: &[u32], b: &[u32], tile: &mut [f32]) {
        self.run_part(rows, self.nr, k, a, b, tile, false);
    }

    /// As [`Micro::run`], but only the first `cols` columns of the tile must come out right, and a `fresh` tile starts
    /// at zero whatever it holds.
    ///
    /// # Panics
    /// If a slice is too short for the shape.
    #[inline]
    pub fn run_part(
        &self,
        rows: usize,
        cols: usize,
        k: usize,
        a: &[u32],
        b: &[u32],
        tile: &mut [f32],
        fresh: bool,
    ) {
        let steps = match self.format {
            Format::Single => k,
            Format::Pair => k.div_ceil(2),
        };
        assert!(rows >= 1 && rows <= self.mr && tile.len() >= rows * self.nr);
        assert!(cols <= self.nr && a.len() >= steps * rows && b.len() >= steps * self.nr);
        macro_rules! by_rows {
            ($kernel:ident, $vectors:literal, $($n:literal)*) => {
                match rows {
                    $($n => {
                        // SAFETY: the lengths were checked above, and `of` chose this kernel for an instruction set present.
                        unsafe { $kernel::<$n, $vectors>(steps, a.as_ptr(), b.as_ptr(), tile.as_mut_ptr(), fresh) }
                    })*
                    _ => unreachable!("rows <= mr was checked"),
                }
            };
        }
        match (self.isa, self.format) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Format::Pair) if cols <= 16 => {
                by_rows!(pair_avx512, 1, 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Format::Pair) => by_rows!(pair_avx512, 2, 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, Format::Single) if cols <= 16 => {
                by_rows!(single_avx512, 1, 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, Format::Single) => {
                by_rows!(single_avx512, 2, 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, _) if cols <= 8 => by_rows!(single_avx2, 1, 1 2 3 4 5 6),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, _) => by_rows!(single_avx2, 2, 1 2 3 4 5 6),
            _ if fresh => {
                tile[..rows * self.nr].fill(0.0);
                self.run_part(rows, cols, k, a, b, tile, false);
            }
            _ => match rows {
                1 => single_portable::<1>(steps, a, b, tile),
                2 => single_portable::<2>(steps, a, b, tile),
                3 => single_portable::<3>(steps, a, b, tile),
                4 => single_portable::<4>(steps, a, b, tile),
                _ => unreachable!("rows <= mr was checked"),
            },
        }
    }
}

/// `R` rows of `V` vectors of a tile of 32 columns, two `bf16` per step and lane.
///
/// # Safety
/// AVX512-BF16 present; `a` has `steps * R` words, `b` `steps * 32`, `tile` `R * 32`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn pair_avx512<const R: usize, const V: usize>(
    steps: usize,
    a: *const u32,
    b: *const u32,
    tile: *mut f32,
    fresh: bool,
) {
    // SAFETY: every offset below is within the extents the caller promises.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); V]; R];
        if !fresh {
            for r in 0..R {
                for v in 0..V {
                    acc[r][v] = _mm512_loadu_ps(tile.add(r * 32 + 16 * v));
                }
            }
        }
        let (mut a, mut b) = (a, b);
        for _ in 0..steps {
            let mut columns = [std::mem::transmute::<__m512i, __m512bh>(_mm512_setzero_si512()); V];
            for v in 0..V {
                columns[v] =
                    std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.add(16 * v).cast()));
                _mm_prefetch::<_MM_HINT_T0>(b.add(32 * 8 + 16 * v).cast());
            }
            for r in 0..R {
                let pair: __m512bh = std::mem::transmute(_mm512_set1_epi32(*a.add(r) as i32));
                for v in 0..V {
                    acc[r][v] = _mm512_dpbf16_ps(acc[r][v], pair, columns[v]);
                }
            }
            a = a.add(R);
            b = b.add(32);
        }
        for r in 0..R {
            for v in 0..V {
                _mm512_storeu_ps(tile.add(r * 32 + 16 * v), acc[r][v]);
            }
        }
    }
}

/// `R` rows of `V` vectors of a tile of 32 columns, in `f32`.
///
/// # Safety
/// AVX-512F present; `a` has `steps * R` words holding `f32`, `b` `steps * 32`, `tile` `R * 32`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn single_avx512<const R: usize, const V: usize>(
    steps: usize,
    a: *const u32,
    b: *const u32,
    tile: *mut f32,
    fresh: bool,
) {
    // SAFETY: every offset below is within the extents the caller promises.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); V]; R];
        if !fresh {
            for r in 0..R {
                for v in 0..V {
                    acc[r][v] = _mm512_loadu_ps(tile.add(r * 32 + 16 * v));
                }
            }
        }
        let (mut a, mut b): (*const f32, *const f32) = (a.cast(), b.cast());
        for _ in 0..steps {
            let mut columns = [_mm512_setzero_ps(); V];
            for v in 0..V {
                columns[v] = _mm512_loadu_ps(b.add(16 * v));
                _mm_prefetch::<_MM_HINT_T0>(b.add(32 * 8 + 16 * v).cast());
            }
            for r in 0..R {
                let value = _mm512_set1_ps(*a.add(r));
                for v in 0..V {
                    acc[r][v] = _mm512_fmadd_ps(value, columns[v], acc[r][v]);
                }
            }
            a = a.add(R);
            b = b.add(32);
        }
        for r in 0..R {
            for v in 0..V {
                _mm512_storeu_ps(tile.add(r * 32 + 16 * v), acc[r][v]);
            }
        }
    }
}

/// `R` rows of `V` vectors of a tile of 16 columns, in `f32`.
///
/// # Safety
/// AVX2 and FMA present; `a` has `steps * R` words holding `f32`, `b` `steps * 16`, `tile` `R * 16`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn single_avx2<const R: usize, const V: usize>(
    steps: usize,
    a: *const u32,
    b: *const u32,
    tile: *mut f32,
    fresh: bool,
) {
    // SAFETY: every offset below is within the extents the caller promises.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); V]; R];
        if !fresh {
            for r in 0..R {
                for v in 0..V {
                    acc[r][v] = _mm256_loadu_ps(tile.add(r * 16 + 8 * v));
                }
            }
        }
        let (mut a, mut b): (*const f32, *const f32) = (a.cast(), b.cast());
        for _ in 0..steps {
            let mut columns = [_mm256_setzero_ps(); V];
            for v in 0..V {
                columns[v] = _mm256_loadu_ps(b.add(8 * v));
            }
            for r in 0..R {
                let value = _mm256_set1_ps(*a.add(r));
                for v in 0..V {
                    acc[r][v] = _mm256_fmadd_ps(value, columns[v], acc[r][v]);
                }
            }
            a = a.add(R);
            b = b.add(16);
        }
        for r in 0..R {
            for v in 0..V {
                _mm256_storeu_ps(tile.add(r * 16 + 8 * v), acc[r][v]);
            }
        }
    }
}

/// `R x 16` tile for any machine: multiplication and addition round separately, in the same order.
fn single_portable<const R: usize>(steps: usize, a: &[u32], b: &[u32], tile: &mut [f32]) {
    let mut acc = [[0.0f32; 16]; R];
    for (acc, tile) in acc.iter_mut().zip(tile.chunks_exact(16)) {
        acc.copy_from_slice(tile);
    }
    for (a, b) in a.chunks_exact(R).zip(b.chunks_exact(16)).take(steps) {
        for r in 0..R {
            let value = f32::from_bits(a[r]);
            for c in 0..16 {
                acc[r][c] += value * f32::from_bits(b[c]);
            }
        }
    }
    for (acc, tile) in acc.iter().zip(tile.chunks_exact_mut(16)) {
        tile.copy_from_slice(acc);
    }
}
