//! Products of a few dozen rows with a matrix that is read where it lies, the rows in the lanes of vectors.
//!
//! When a group of samples decodes, every weight meets five to sixty-four rows. Transposing weights into columns costs more than
//! multiplying them. Here the left operand is what lies in vectors, one row a lane, and every word of a weight is broadcast
//! from where it lies: nothing is packed and nothing shuffled. Per element the chain of operations is that of the packed
//! micro-kernels, so the bits are the same.

use super::micro::Format;
use super::operand::Packed;

/// Rows of the left operand up to which this pays.
pub(super) const ROWS_MAX: usize = 64;
/// Columns whose sums are in registers at once: enough chains to hide an addition's latency.
const COLUMNS: usize = 16;

/// Lanes of the vectors for `rows` rows: how wide the left operand is packed.
pub(super) fn width_of(rows: usize) -> usize {
    if rows <= 8 { 8 } else { 16 }
}

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
    let (a, stride) = a.lanes().expect("a left operand of so few rows is packed for vectors too");
    assert!(
        stride == width_of(rows) && a.len() == rows.div_ceil(stride) * words * stride,
        "the left operand has these rows"
    );
    for first in (0..cols).step_by(COLUMNS) {
        // A column that does not exist is read as the last one.
        let columns: [*const u8; COLUMNS] =
            std::array::from_fn(|c| start.wrapping_add((first + c).min(cols - 1) * ld_bytes));
        for (group, row0) in (0..rows).step_by(stride).enumerate() {
            let left = &a[group * words * stride..][..words * stride];
            let n_rows = stride.min(rows - row0);
            // The first rows bring the columns into the cache.
            let ahead = if group == 0 { COLUMNS * ld_bytes } else { 0 };
            let tile = &mut tile[row0 * 32 + first..];
            // SAFETY: the caller answers for the instruction set and the columns, the assertions for the rest.
            unsafe {
                match (format, n_rows <= 8) {
                    (Format::Pair, true) => pairs_of_8(left, stride, &columns, ahead, tile, n_rows, fresh),
                    (Format::Pair, false) => pairs_of_16(left, stride, &columns, ahead, tile, n_rows, fresh),
                    (Format::Single, true) => {
                        singles_of_8(left, stride, &columns, ahead, tile, n_rows, fresh)
                    }
                    (Format::Single, false) => {
                        singles_of_16(left, stride, &columns, ahead, tile, n_rows, fresh)
                    }
                }
            }
        }
    }
}

/// Words of a cache line.
#[cfg(target_arch = "x86_64")]
const LINE_WORDS: usize = 16;

/// A kernel whose vectors have 8 or 16 lanes. `ahead` bytes after each column lies what the next call reads.
///
/// # Safety
/// The features present; `left` is `[words, stride]`, its stride at least the lanes; columns readable for `words` words; the
/// tile holds `[rows, 32]` from its first element, less the columns after the sixteenth of the last row, and rows at most
/// the lanes.
#[cfg(target_arch = "x86_64")]
macro_rules! kernel {
    ($name:ident, $features:literal, $zero:ident, $load:ident, $step:ident, $widen:expr, $narrow:expr) => {
        kernel!(
            $name, $features, $zero, $load, $step, $widen, $narrow;
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
        );
    };
    ($name:ident, $features:literal, $zero:ident, $load:ident, $step:ident, $widen:expr, $narrow:expr; $($c:literal)*) => {
        #[target_feature(enable = $features)]
        unsafe fn $name(
            left: &[u32],
            stride: usize,
            columns: &[*const u8; COLUMNS],
            ahead: usize,
            tile: &mut [f32],
            rows: usize,
            fresh: bool,
        ) {
            use std::arch::x86_64::*;
            let words = left.len() / stride;
            // SAFETY: a step of `left` has `stride` words, at least a vector's; columns have `words` words; the tile has these rows.
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
                for from in (0..words).step_by(LINE_WORDS) {
                    if ahead > 0 {
                        $( _mm_prefetch::<_MM_HINT_T1>(columns[$c].wrapping_add(4 * from + ahead).cast()); )*
                    }
                    // Sums are named one by one: in a loop over them the compiler may keep them in memory.
                    for j in from..words.min(from + LINE_WORDS) {
                        let x = $load(left.as_ptr().add(j * stride).cast());
                        $( acc[$c] = $step!(acc[$c], x, columns[$c].add(4 * j).cast::<i32>().read_unaligned()); )*
                    }
                }
                let rows_of = super::direct::transpose(std::array::from_fn(|c| $widen(acc[c])));
                for (r, row) in rows_of.into_iter().enumerate().take(rows) {
                    _mm512_storeu_si512(tile.as_mut_ptr().add(r * 32).cast(), row);
                }
            }
        }
    };
}

// `acc + x * word`, the word in all lanes. Macros, since a closure called often need not be inlined.
#[cfg(target_arch = "x86_64")]
macro_rules! pairs_step_8 {
    ($acc:expr, $x:expr, $word:expr) => {
        _mm256_dpbf16_ps(
            $acc,
            std::mem::transmute::<__m256i, __m256bh>($x),
            std::mem::transmute::<__m256i, __m256bh>(_mm256_set1_epi32($word)),
        )
    };
}
#[cfg(target_arch = "x86_64")]
macro_rules! pairs_step_16 {
    ($acc:expr, $x:expr, $word:expr) => {
        _mm512_dpbf16_ps(
            $acc,
            std::mem::transmute::<__m512i, __m512bh>($x),
            std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32($word)),
        )
    };
}
#[cfg(target_arch = "x86_64")]
macro_rules! singles_step_8 {
    ($acc:expr, $x:expr, $word:expr) => {
        _mm256_fmadd_ps($x, _mm256_castsi256_ps(_mm256_set1_epi32($word)), $acc)
    };
}
#[cfg(target_arch = "x86_64")]
macro_rules! singles_step_16 {
    ($acc:expr, $x:expr, $word:expr) => {
        _mm512_fmadd_ps($x, _mm512_castsi512_ps(_mm512_set1_epi32($word)), $acc)
    };
}

#[cfg(target_arch = "x86_64")]
kernel!(
    pairs_of_8,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16",
    _mm256_setzero_ps,
    _mm256_loadu_si256,
    pairs_step_8,
    |acc| _mm512_castsi256_si512(_mm256_castps_si256(acc)),
    |sum| _mm256_castsi256_ps(_mm512_castsi512_si256(sum))
);

#[cfg(target_arch = "x86_64")]
kernel!(
    pairs_of_16,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16",
    _mm512_setzero_ps,
    _mm512_loadu_si512,
    pairs_step_16,
    |acc| _mm512_castps_si512(acc),
    |sum| _mm512_castsi512_ps(sum)
);

#[cfg(target_arch = "x86_64")]
kernel!(
    singles_of_8,
    "avx512f,avx512bw,avx512dq,avx512vl",
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    singles_step_8,
    |acc| _mm512_castsi256_si512(_mm256_castps_si256(acc)),
    |sum| _mm256_castsi256_ps(_mm512_castsi512_si256(sum))
);

#[cfg(target_arch = "x86_64")]
kernel!(
    singles_of_16,
    "avx512f,avx512bw,avx512dq,avx512vl",
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    singles_step_16,
    |acc| _mm512_castps_si512(acc),
    |sum| _mm512_castsi512_ps(sum)
);
