//! Products of a few rows with a matrix that is read where it lies.
//!
//! In decoding every weight is used once per pass, and the time is that of reading it. Packing it first would write and
//! read it again. For up to four rows, sixteen rows of weights are transposed sixteen words at a time in registers, and
//! multiplied at once; for more, see [`lanes`]. Per element the chain of operations is that of the packed micro-kernels,
//! so the bits are the same.

use super::lanes;
use super::micro::{Format, Micro, Precision};
use super::operand::{KAxis, Operand, Packed, Values};
use crate::isa::Isa;

/// Rows of the left operand up to which weights are transposed in registers.
const TRANSPOSED_MAX: usize = 2;

/// How wide a left operand of `m` rows is packed for its rows to lie in lanes, where they may.
pub(super) fn lanes_width(micro: Micro, m: usize) -> Option<usize> {
    let is_many = (TRANSPOSED_MAX + 1..=lanes::ROWS_MAX).contains(&m);
    (is_many && micro.isa() >= Isa::Avx512 && micro.nr == 32).then(|| lanes::width_of(m))
}

/// Whether a product of `m` rows reads this right operand where it lies.
pub(super) fn applies(micro: Micro, operand: &Operand<'_>, m: usize, k: usize) -> bool {
    if m > lanes::ROWS_MAX || operand.k_axis != KAxis::Inner || k == 0 {
        return false;
    }
    match (micro.isa(), micro.precision, micro.format, operand.values) {
        (Isa::Avx512Bf16, Precision::Bf16, Format::Pair, Values::Bf16(_)) => k.is_multiple_of(2),
        (Isa::Avx512Bf16 | Isa::Avx512, Precision::F32, Format::Single, Values::F32(_)) => true,
        _ => false,
    }
}

/// `tile += a b`, or `tile = a b` where `fresh`, for `columns` of an operand to which this [`applies`]; `a` is the whole left
/// operand of `rows` rows, `tile` is `[rows, nr]`.
pub(super) fn run(
    micro: Micro,
    rows: usize,
    a: &Packed,
    operand: &Operand<'_>,
    columns: std::ops::Range<usize>,
    tile: &mut [f32],
    fresh: bool,
) {
    let k = a.k();
    assert!(applies(micro, operand, rows, k), "the caller asked");
    assert!(!columns.is_empty() && columns.len() <= micro.nr && micro.nr == 32 && tile.len() >= rows * 32);
    #[cfg(target_arch = "x86_64")]
    {
        let (start, len, per_word): (*const u8, usize, usize) = match operand.values {
            Values::F32(values) => (values.as_ptr().cast(), values.len(), 1),
            Values::Bf16(values) => (values.as_ptr().cast(), values.len(), 2),
            Values::Nf4(_) | Values::Int8(_) => unreachable!("quantised operands are decoded first"),
        };
        assert!(len >= (columns.end - 1) * operand.ld + k, "the operand holds its columns");
        let (words, ld_bytes) = (k / per_word, operand.ld * 4 / per_word);
        let start = start.wrapping_add(columns.start * ld_bytes);
        if rows > TRANSPOSED_MAX {
            // SAFETY: `applies` checked the instruction set; the extent of the columns was checked.
            unsafe { lanes::run(micro.format, a, rows, start, ld_bytes, words, columns.len(), tile, fresh) };
            return;
        }
        let a = a.panel(0);
        assert!(a.len() >= words * rows, "the panel holds its words");
        // A column that does not exist is read as the last one.
        let column = |i: usize| start.wrapping_add(i.min(columns.len() - 1) * ld_bytes).cast::<u32>();
        let pointers: [*const u32; 32] = std::array::from_fn(column);
        let ahead = 32 * operand.ld / per_word;
        let is_narrow = columns.len() <= 16;
        macro_rules! by_rows {
            ($kernel:ident) => {
                match (rows, is_narrow) {
                    (1, true) => $kernel::<1, 1>(words, a.as_ptr(), &pointers, ahead, tile, fresh),
                    (1, false) => $kernel::<1, 2>(words, a.as_ptr(), &pointers, ahead, tile, fresh),
                    (2, true) => $kernel::<2, 1>(words, a.as_ptr(), &pointers, ahead, tile, fresh),
                    (2, false) => $kernel::<2, 2>(words, a.as_ptr(), &pointers, ahead, tile, fresh),
                    (3, true) => $kernel::<3, 1>(words, a.as_ptr(), &pointers, ahead, tile, fresh),
                    (3, false) => $kernel::<3, 2>(words, a.as_ptr(), &pointers, ahead, tile, fresh),
                    (4, true) => $kernel::<4, 1>(words, a.as_ptr(), &pointers, ahead, tile, fresh),
                    (4, false) => $kernel::<4, 2>(words, a.as_ptr(), &pointers, ahead, tile, fresh),
                    _ => unreachable!("rows were checked"),
                }
            };
        }
        // SAFETY: `applies` checked the instruction set; every pointer has `words` words, `a` `words * rows`, `tile` `rows * 32`.
        unsafe {
            match micro.format {
                Format::Pair => by_rows!(pairs),
                Format::Single => by_rows!(singles),
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (a, tile, fresh);
}

/// A kernel of `R` rows and `16 V` columns. `ahead` words after each word lies what the next call reads.
///
/// # Safety
/// The features present; each of the first `16 V` pointers readable for `words` words, `a` for `words * R`.
#[cfg(target_arch = "x86_64")]
macro_rules! kernel {
    ($name:ident, $features:literal, $step:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize, const V: usize>(
            words: usize,
            a: *const u32,
            rows: &[*const u32; 32],
            ahead: usize,
            tile: &mut [f32],
            fresh: bool,
        ) {
            use std::arch::x86_64::*;
            assert!(tile.len() >= R * 32);
            // SAFETY: offsets are below `words` in every row and below `words * R` in `a`; the tile was checked.
            unsafe {
                let mut acc = [[_mm512_setzero_ps(); V]; R];
                if !fresh {
                    for r in 0..R {
                        for v in 0..V {
                            acc[r][v] = _mm512_loadu_ps(tile.as_ptr().add(r * 32 + 16 * v));
                        }
                    }
                }
                let mut j = 0;
                while j + 16 <= words {
                    for v in 0..V {
                        let loaded: [__m512i; 16] = std::array::from_fn(|i| {
                            let at = rows[16 * v + i].wrapping_add(j);
                            _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(ahead).cast());
                            _mm512_loadu_si512(at.cast())
                        });
                        let columns = transpose(loaded);
                        for s in 0..16 {
                            for r in 0..R {
                                let value = _mm512_set1_epi32(*a.add((j + s) * R + r).cast());
                                acc[r][v] = $step(acc[r][v], value, columns[s]);
                            }
                        }
                    }
                    j += 16;
                }
                if j < words {
                    let mask = u16::MAX >> (16 - (words - j));
                    for v in 0..V {
                        let loaded: [__m512i; 16] = std::array::from_fn(|i| {
                            _mm512_maskz_loadu_epi32(mask, rows[16 * v + i].add(j).cast())
                        });
                        let columns = transpose(loaded);
                        for (s, column) in columns.iter().enumerate().take(words - j) {
                            for r in 0..R {
                                let value = _mm512_set1_epi32(*a.add((j + s) * R + r).cast());
                                acc[r][v] = $step(acc[r][v], value, *column);
                            }
                        }
                    }
                }
                for r in 0..R {
                    for v in 0..V {
                        _mm512_storeu_ps(tile.as_mut_ptr().add(r * 32 + 16 * v), acc[r][v]);
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernel!(pairs, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16", |acc, value: __m512i, column: __m512i| {
    _mm512_dpbf16_ps(
        acc,
        std::mem::transmute::<__m512i, __m512bh>(value),
        std::mem::transmute::<__m512i, __m512bh>(column),
    )
});

#[cfg(target_arch = "x86_64")]
kernel!(singles, "avx512f,avx512bw,avx512dq,avx512vl", |acc, value: __m512i, column: __m512i| {
    _mm512_fmadd_ps(_mm512_castsi512_ps(value), _mm512_castsi512_ps(column), acc)
});

/// Rows become columns: word `j` of row `i` is word `i` of the result's vector `j`.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(r: [std::arch::x86_64::__m512i; 16]) -> [std::arch::x86_64::__m512i; 16] {
    use std::arch::x86_64::*;
    // Three rounds of interleaving: 32-bit, 64-bit, then 128-bit lanes twice.
    let t: [__m512i; 16] = std::array::from_fn(|i| {
        let (a, b) = (r[i & !1], r[i | 1]);
        if i & 1 == 0 { _mm512_unpacklo_epi32(a, b) } else { _mm512_unpackhi_epi32(a, b) }
    });
    let u: [__m512i; 16] = std::array::from_fn(|i| {
        let base = i & !3;
        let (a, b) = (t[base + ((i >> 1) & 1)], t[base + 2 + ((i >> 1) & 1)]);
        if i & 1 == 0 { _mm512_unpacklo_epi64(a, b) } else { _mm512_unpackhi_epi64(a, b) }
    });
    // u[4g + c] holds, in 128-bit lane l, column 4l + c of rows 4g .. 4g + 4.
    let halves = |c: usize| {
        (
            _mm512_shuffle_i32x4::<0x88>(u[c], u[4 + c]),
            _mm512_shuffle_i32x4::<0xdd>(u[c], u[4 + c]),
            _mm512_shuffle_i32x4::<0x88>(u[8 + c], u[12 + c]),
            _mm512_shuffle_i32x4::<0xdd>(u[8 + c], u[12 + c]),
        )
    };
    // low01 = lanes [0 and 2 of rows 0-3, 0 and 2 of rows 4-7]; high01 the odd lanes.
    let quads: [_; 4] = std::array::from_fn(halves);
    std::array::from_fn(|column| {
        let (low01, high01, low23, high23) = quads[column % 4];
        match column / 4 {
            0 => _mm512_shuffle_i32x4::<0x88>(low01, low23),
            1 => _mm512_shuffle_i32x4::<0x88>(high01, high23),
            2 => _mm512_shuffle_i32x4::<0xdd>(low01, low23),
            _ => _mm512_shuffle_i32x4::<0xdd>(high01, high23),
        }
    })
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::operand::{pack_panel, panel_words};
    use super::super::pack_left;
    use super::*;
    use crate::isa::current;

    /// Element `i` of a matrix with no pattern, among them signed zeros and tiny values.
    fn element(i: usize) -> f32 {
        let bits = (i as u32).wrapping_mul(2_654_435_761);
        match bits % 37 {
            0 => -0.0,
            1 => 1e-39,
            _ => (bits >> 8) as f32 / (1 << 23) as f32 - 1.0,
        }
    }

    /// Both kernels, half and whole vectors, one group of lanes and several, with and without a rest.
    const ROWS: [usize; 16] = [1, 2, 3, 4, 5, 7, 8, 9, 13, 14, 15, 16, 17, 24, 49, 64];

    /// The bits of the packed path, for every number of rows and columns, lengths with and without rests, and parts that
    /// continue a sum.
    #[test]
    fn bits_are_those_of_the_packed_kernels() {
        for precision in [Precision::F32, Precision::Bf16] {
            let micro = Micro::of(precision);
            for k in [2, 30, 32, 34, 64, 96, 130] {
                let ld = k + 6;
                let (wide, n): (Vec<f32>, usize) = ((0..70 * ld).map(element).collect(), 70);
                let narrow: Vec<bf16> = wide.iter().map(|&v| bf16::from_f32(v)).collect();
                let values = match precision {
                    Precision::F32 => Values::F32(&wide),
                    Precision::Bf16 => Values::Bf16(&narrow),
                };
                let operand = Operand::k_inner(values, ld);
                if !applies(micro, &operand, 1, k) {
                    assert!(current() < Isa::Avx512 || micro.format != Format::Pair);
                    continue;
                }
                for (rows, cols, fresh) in ROWS
                    .into_iter()
                    .flat_map(|r| [1, 15, 16, 17, 32].map(|c| (r, c)))
                    .flat_map(|(r, c)| [true, false].map(|fresh| (r, c, fresh)))
                {
                    let left = pack_left(&operand, rows, k, precision);
                    let first = n - cols;
                    let mut panel = vec![0; panel_words(micro.nr, k, precision)];
                    pack_panel(&operand, first, cols, k, micro.nr, precision, &mut panel);
                    let mut expected: Vec<f32> = (0..rows * 32).map(|i| element(i + 7)).collect();
                    let mut found = expected.clone();
                    for (index, row0) in (0..rows).step_by(micro.mr).enumerate() {
                        let (n_rows, tile) = (micro.mr.min(rows - row0), &mut expected[row0 * 32..]);
                        micro.run_part(n_rows, cols, k, left.panel(index), &panel, tile, fresh);
                    }
                    run(micro, rows, &left, &operand, first..n, &mut found, fresh);
                    for r in 0..rows {
                        let bits = |tile: &[f32]| {
                            tile[r * 32..r * 32 + cols].iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
                        };
                        assert_eq!(
                            bits(&found),
                            bits(&expected),
                            "{precision:?} {rows}x{cols} k {k} {fresh}"
                        );
                    }
                }
            }
        }
    }
}
