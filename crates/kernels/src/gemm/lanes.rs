//! Products of up to sixteen rows with a matrix that is read where it lies, the rows in the lanes of vectors.
//!
//! When a group of samples decodes, every weight meets five to sixteen rows. Transposing weights into columns costs more than
//! multiplying them. Here the left operand is what lies in vectors, one row a lane, and every word of a weight is broadcast
//! from where it lies: nothing is packed and nothing shuffled. Per element the chain of operations is that of the packed
//! micro-kernels, so the bits are the same.

use super::micro::Format;
use super::operand::Packed;

/// Rows of the left operand up to which this pays.
pub(super) const ROWS_MAX: usize = 16;
/// Columns whose sums are in registers at once: enough chains to hide an addition's latency.
const COLUMNS: usize = 16;

/// `tile += a b`, or `tile = a b` where `fresh`, for `cols` columns that begin at `start` and lie `ld_bytes` apart;
/// `tile` is `[rows, 32]`. In the tile's other columns anything may come to stand.
///
/// # Safety
/// The instruction set of the format present (AVX512-BF16 for pairs, AVX-512 for singles); each column readable for `words`
/// words.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn run(
    format: Format,
    a: &Packed,
    rows: usize,
    start: *const u8,
    ld_bytes: usize,
    words: usize,
    cols: usize,
    tile: &mut [f32],
    fresh: bool,
) {
    assert!((1..=ROWS_MAX).contains(&rows) && tile.len() >= rows * 32 && (1..=32).contains(&cols));
    let left = Left::new(a, rows, words);
    for first in (0..cols).step_by(COLUMNS) {
        // A column that does not exist is read as the last one.
        let columns: [*const u8; COLUMNS] =
            std::array::from_fn(|c| start.wrapping_add((first + c).min(cols - 1) * ld_bytes));
        let tile = &mut tile[first..];
        let ahead = COLUMNS * ld_bytes;
        // SAFETY: the caller answers for the instruction set and the columns, `Left` and the assertion for the rest.
        unsafe {
            match (format, rows <= 8) {
                (Format::Pair, true) => pairs_of_8(&left, &columns, ahead, words, tile, fresh),
                (Format::Pair, false) => pairs_of_16(&left, &columns, ahead, words, tile, fresh),
                (Format::Single, true) => singles_of_8(&left, &columns, ahead, words, tile, fresh),
                (Format::Single, false) => singles_of_16(&left, &columns, ahead, words, tile, fresh),
            }
        }
    }
}

/// The left operand: rows of one panel, or of two where there are more than a panel holds.
#[cfg(target_arch = "x86_64")]
struct Left<'a> {
    low: &'a [u32],
    n_low: usize,
    high: &'a [u32],
    n_high: usize,
}

#[cfg(target_arch = "x86_64")]
impl<'a> Left<'a> {
    fn new(a: &'a Packed, rows: usize, words: usize) -> Self {
        let n_low = rows.min(a.width());
        let n_high = rows - n_low;
        // Masked loads of nothing are slow where there is no memory.
        let high = a.panel(usize::from(n_high > 0));
        let left = Left { low: a.panel(0), n_low, high, n_high };
        assert!(n_high <= a.width() && left.low.len() >= words * n_low && left.high.len() >= words * n_high);
        left
    }

    fn mask(&self) -> (u16, u16) {
        let low = ((1u32 << self.n_low) - 1) as u16;
        (low, ((1u32 << (self.n_low + self.n_high)) - 1) as u16 & !low)
    }
}

/// A kernel whose vectors have 8 or 16 lanes. `ahead` bytes after each column lies what the next call reads.
///
/// # Safety
/// The features present; columns readable for `words` words; the tile holds `[rows, 32]` from its first element, less the
/// columns after the sixteenth of the last row.
#[cfg(target_arch = "x86_64")]
macro_rules! kernel {
    ($name:ident, $features:literal, $zero:ident, $load:expr, $step:expr, $widen:expr, $narrow:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn $name(
            left: &Left<'_>,
            columns: &[*const u8; COLUMNS],
            ahead: usize,
            words: usize,
            tile: &mut [f32],
            fresh: bool,
        ) {
            use std::arch::x86_64::*;
            let rows = left.n_low + left.n_high;
            let (mask_low, mask_high) = left.mask();
            // SAFETY: masked accesses touch lanes of existing rows only; columns have `words` words; tile rows were checked.
            unsafe {
                let mut acc = [$zero(); COLUMNS];
                if !fresh {
                    let tile_rows = std::array::from_fn(|r| {
                        if r < rows {
                            _mm512_loadu_si512(tile.as_ptr().add(r * 32).cast())
                        } else {
                            _mm512_setzero_si512()
                        }
                    });
                    let sums = super::direct::transpose(tile_rows);
                    acc = std::array::from_fn(|c| $narrow(sums[c]));
                }
                let at = |j: usize| {
                    let low = left.low.as_ptr().add(j * left.n_low);
                    let high = left.high.as_ptr().add(j * left.n_high).wrapping_sub(left.n_low);
                    $load(mask_low, low.cast(), mask_high, high.cast())
                };
                let mut j = 0;
                while j + UNROLLED <= words {
                    let x: [_; UNROLLED] = std::array::from_fn(|s| at(j + s));
                    for c in 0..COLUMNS {
                        let column = columns[c].add(4 * j);
                        if j % 16 == 0 {
                            _mm_prefetch::<_MM_HINT_T1>(column.wrapping_add(ahead).cast());
                        }
                        for s in 0..UNROLLED {
                            acc[c] = $step(acc[c], x[s], column.add(4 * s).cast::<i32>().read_unaligned());
                        }
                    }
                    j += UNROLLED;
                }
                while j < words {
                    let x = at(j);
                    for c in 0..COLUMNS {
                        acc[c] = $step(acc[c], x, columns[c].add(4 * j).cast::<i32>().read_unaligned());
                    }
                    j += 1;
                }
                let rows_of = super::direct::transpose(std::array::from_fn(|c| $widen(acc[c])));
                for (r, row) in rows_of.into_iter().enumerate().take(rows) {
                    _mm512_storeu_si512(tile.as_mut_ptr().add(r * 32).cast(), row);
                }
            }
        }
    };
}

/// Words of a column between two looks at its pointer.
#[cfg(target_arch = "x86_64")]
const UNROLLED: usize = 8;

#[cfg(target_arch = "x86_64")]
kernel!(
    pairs_of_8,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16",
    _mm256_setzero_ps,
    |low, at, _, _: *const i32| _mm256_maskz_loadu_epi32(low as u8, at),
    |acc, x, word| _mm256_dpbf16_ps(
        acc,
        std::mem::transmute::<__m256i, __m256bh>(x),
        std::mem::transmute::<__m256i, __m256bh>(_mm256_set1_epi32(word))
    ),
    |acc| _mm512_castsi256_si512(_mm256_castps_si256(acc)),
    |sum| _mm256_castsi256_ps(_mm512_castsi512_si256(sum))
);

#[cfg(target_arch = "x86_64")]
kernel!(
    pairs_of_16,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16",
    _mm512_setzero_ps,
    |low, at, high, at_high| _mm512_mask_loadu_epi32(_mm512_maskz_loadu_epi32(low, at), high, at_high),
    |acc, x, word| _mm512_dpbf16_ps(
        acc,
        std::mem::transmute::<__m512i, __m512bh>(x),
        std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(word))
    ),
    |acc| _mm512_castps_si512(acc),
    |sum| _mm512_castsi512_ps(sum)
);

#[cfg(target_arch = "x86_64")]
kernel!(
    singles_of_8,
    "avx512f,avx512bw,avx512dq,avx512vl",
    _mm256_setzero_ps,
    |low, at, _, _: *const f32| _mm256_maskz_loadu_ps(low as u8, at),
    |acc, x, word| _mm256_fmadd_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(word)), acc),
    |acc| _mm512_castsi256_si512(_mm256_castps_si256(acc)),
    |sum| _mm256_castsi256_ps(_mm512_castsi512_si256(sum))
);

#[cfg(target_arch = "x86_64")]
kernel!(
    singles_of_16,
    "avx512f,avx512bw,avx512dq,avx512vl",
    _mm512_setzero_ps,
    |low, at, high, at_high| _mm512_mask_loadu_ps(_mm512_maskz_loadu_ps(low, at), high, at_high),
    |acc, x, word| _mm512_fmadd_ps(x, _mm512_castsi512_ps(_mm512_set1_epi32(word)), acc),
    |acc| _mm512_castps_si512(acc),
    |sum| _mm512_castsi512_ps(sum)
);
