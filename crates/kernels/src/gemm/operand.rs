//! Operands of a matrix product, and their packing into panels.
//!
//! An operand is a matrix seen as *outer index x reduction index*: the rows of `A` or the columns of
//! `B` are its outer index. Weights of `y = x W^T` are stored `[out, in]`, so for the forward product
//! their reduction axis is contiguous ([`KAxis::Inner`]) and for the input's gradient it is not
//! ([`KAxis::Outer`]). Quantised weights are decoded here, while packing, and nowhere else.

use half::bf16;
use rayon::prelude::*;

use super::micro::{Format, Micro, Precision};
use crate::buffer::Buffer;
use crate::elem::Elem;
use crate::isa::{IsaKernel, dispatch, prefetch};
use crate::quant::int8::Int8Matrix;
use crate::quant::nf4::Nf4Matrix;

/// Storage an operand is read from.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    /// `f32` values.
    F32(&'a [f32]),
    /// `bf16` values.
    Bf16(&'a [bf16]),
    /// 4-bit weights `[rows, cols]`.
    Nf4(&'a Nf4Matrix),
    /// 8-bit weights `[rows, cols]`.
    Int8(&'a Int8Matrix),
}

/// Which index of the stored matrix is the reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KAxis {
    /// Element (outer, k) lies at `outer * ld + k`.
    Inner,
    /// Element (outer, k) lies at `k * ld + outer`.
    Outer,
}

/// A matrix in memory with a leading dimension.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// The storage.
    pub values: Values<'a>,
    /// Elements between consecutive rows of the storage.
    pub ld: usize,
    /// Which index is reduced over.
    pub k_axis: KAxis,
}

impl<'a> Operand<'a> {
    /// `values` with the reduction along the contiguous axis.
    pub fn k_inner(values: Values<'a>, ld: usize) -> Self {
        Operand { values, ld, k_axis: KAxis::Inner }
    }

    /// `values` with the reduction across rows.
    pub fn k_outer(values: Values<'a>, ld: usize) -> Self {
        Operand { values, ld, k_axis: KAxis::Outer }
    }
}

/// An operand packed in panels of `width` outer indices, each panel in the micro-kernel's layout.
///
/// The last panel is narrower when `width` does not divide the outer extent and the operand is a left one
/// (its rows then use a kernel of fewer rows); for a right operand it is filled up with zeros.
pub struct Packed {
    words: Buffer<u32>,
    outer: usize,
    k: usize,
    width: usize,
    precision: Precision,
    panel_words: usize,
    /// The same packed once more, in panels as wide as vectors, where rows are to lie in lanes.
    lanes: Option<Box<Packed>>,
}

/// Words of one full panel.
pub fn panel_words(width: usize, k: usize, precision: Precision) -> usize {
    width
        * match Micro::of(precision).format {
            Format::Single => k,
            Format::Pair => k.div_ceil(2),
        }
}

impl Packed {
    /// Packs `[outer, k]` in panels of `width`.
    pub fn new(operand: &Operand<'_>, outer: usize, k: usize, width: usize, precision: Precision) -> Packed {
        let per_panel = panel_words(width, k, precision);
        let panels = outer.div_ceil(width);
        let mut words = Buffer::dirty(per_panel * panels);
        let narrow_last = width == Micro::of(precision).mr;
        let pack = |(panel, words): (usize, &mut [u32])| {
            let first = panel * width;
            let n = width.min(outer - first);
            pack_panel(operand, first, n, k, if narrow_last { n } else { width }, precision, words);
        };
        if per_panel == 0 {
            return Packed { words, outer, k, width, precision, panel_words: per_panel, lanes: None };
        }
        if panels * per_panel < 1 << 14 {
            words.chunks_mut(per_panel).enumerate().for_each(pack);
        } else {
            words.par_chunks_mut(per_panel).enumerate().for_each(pack);
        }
        Packed { words, outer, k, width, precision, panel_words: per_panel, lanes: None }
    }

    /// The reduction's extent.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Adds what [`Packed::lanes`] gives.
    pub(super) fn with_lanes(self, lanes: Packed) -> Packed {
        Packed { lanes: Some(Box::new(lanes)), ..self }
    }

    /// The words of all panels as wide as vectors and that width, if there are any.
    pub(super) fn lanes(&self) -> Option<(&[u32], usize)> {
        self.lanes.as_ref().map(|lanes| (&lanes.words[..], lanes.width))
    }

    /// The words of panel `index`.
    pub fn panel(&self, index: usize) -> &[u32] {
        &self.words[index * self.panel_words..(index + 1) * self.panel_words]
    }

    pub(super) fn check(&self, outer: usize, width: usize, precision: Precision) {
        assert_eq!(
            (self.outer, self.width, self.precision),
            (outer, width, precision),
            "packed for another product"
        );
    }
}

/// Packs outer indices `first .. first + n` into one panel of `width >= n` lanes; missing lanes are zero.
pub fn pack_panel(
    operand: &Operand<'_>,
    first: usize,
    n: usize,
    k: usize,
    width: usize,
    precision: Precision,
    out: &mut [u32],
) {
    let format = Micro::of(precision).format;
    match (operand.k_axis, operand.values) {
        (KAxis::Inner, Values::F32(v)) => {
            inner(|i| &v[(first + i) * operand.ld..][..k], width * operand.ld, n, k, width, format, out)
        }
        (KAxis::Inner, Values::Bf16(v)) => {
            inner(|i| &v[(first + i) * operand.ld..][..k], width * operand.ld, n, k, width, format, out)
        }
        (KAxis::Outer, Values::F32(v)) => {
            dispatch(Outer {
                values: v.get(first..).unwrap_or(&[]),
                ld: operand.ld,
                n,
                k,
                width,
                format,
                out,
            });
        }
        (KAxis::Outer, Values::Bf16(v)) => {
            dispatch(Outer {
                values: v.get(first..).unwrap_or(&[]),
                ld: operand.ld,
                n,
                k,
                width,
                format,
                out,
            });
        }
        (KAxis::Inner, quantised) => {
            let mut rows = Buffer::<bf16>::dirty(n * k);
            for (i, row) in rows.chunks_exact_mut(k).enumerate() {
                decode(quantised, first + i, 0, row);
            }
            inner(|i| &rows[i * k..][..k], 0, n, k, width, format, out);
        }
        (KAxis::Outer, quantised) => {
            let mut rows = Buffer::<bf16>::dirty(n * k);
            for (j, row) in rows.chunks_exact_mut(n).enumerate() {
                decode(quantised, j, first, row);
            }
            dispatch(Outer { values: &rows[..], ld: n, n, k, width, format, out });
        }
    }
}

/// Columns `col0 ..` of a quantised row, rounded to `bf16` as the dequantised weight would be.
fn decode(values: Values<'_>, row: usize, col0: usize, out: &mut [bf16]) {
    match values {
        Values::Nf4(matrix) => matrix.decode_row_bf16(row, col0, out),
        Values::Int8(matrix) => matrix.decode_row_bf16(row, col0, out),
        Values::F32(_) | Values::Bf16(_) => unreachable!("only quantised storage is decoded"),
    }
}

/// Reduction contiguous: a transpose of `n` rows. What lies `ahead` elements after each is asked for meanwhile.
fn inner<'v, E: Elem + Bits>(
    row: impl Fn(usize) -> &'v [E],
    ahead: usize,
    n: usize,
    k: usize,
    width: usize,
    format: Format,
    out: &mut [u32],
) {
    if n < width {
        out.fill(0);
    }
    let words = match (format, E::IS_BF16) {
        (Format::Single, false) => k,
        (Format::Pair, _) => k / 2,
        _ => 0,
    };
    let is_rounded = format == Format::Pair && !E::IS_BF16;
    if words > 0 && transpose_words(&row, ahead, n, words, is_rounded, width, out) {
        if words * 2 + 1 == k && format == Format::Pair {
            for i in 0..n {
                out[words * width + i] = pair(row(i)[k - 1].to_bf16_bits(), 0);
            }
        }
        return;
    }
    match format {
        Format::Single => {
            let mut i0 = 0;
            while i0 < n {
                let lanes = (n - i0).min(16);
                if lanes == 16 {
                    let rows: [&[E]; 16] = std::array::from_fn(|i| row(i0 + i));
                    transpose16(k, width, &mut out[i0..], |i, j| rows[i][j].get().to_bits());
                } else {
                    for i in i0..n {
                        for (j, value) in row(i).iter().enumerate() {
                            out[j * width + i] = value.get().to_bits();
                        }
                    }
                }
                i0 += lanes;
            }
        }
        Format::Pair => {
            for i in 0..n {
                let (pairs, rest) = row(i).as_chunks::<2>();
                for (j, [low, high]) in pairs.iter().enumerate() {
                    out[j * width + i] = pair(low.to_bf16_bits(), high.to_bf16_bits());
                }
                if let [last] = rest {
                    out[pairs.len() * width + i] = pair(last.to_bf16_bits(), 0);
                }
            }
        }
    }
}

/// Transposes the first `words` 32-bit words of `n` rows with vector instructions; `false` if there are none. Where rows
/// are to be rounded, a word is a pair of `f32` rounded to `bf16`.
fn transpose_words<'v, E: Elem>(
    row: &impl Fn(usize) -> &'v [E],
    ahead: usize,
    n: usize,
    words: usize,
    is_rounded: bool,
    width: usize,
    out: &mut [u32],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if crate::isa::current() >= crate::isa::Isa::Avx512 {
        for i0 in (0..n).step_by(16) {
            let lanes = (n - i0).min(16);
            let rows: [*const u32; 16] = std::array::from_fn(|i| {
                let row = row(i0 + i.min(lanes - 1));
                assert!(
                    size_of_val(row) >= 4 * words * (1 + usize::from(is_rounded)),
                    "a row holds its words"
                );
                row.as_ptr().cast()
            });
            assert!(out.len() >= (words - 1) * width + i0 + lanes, "the panel holds its words");
            let (ahead, out) = (ahead * size_of::<E>(), out[i0..].as_mut_ptr());
            // SAFETY: each row holds `words` words and `out` the last store, as was checked; AVX-512 is present.
            unsafe {
                if is_rounded {
                    transpose16_words::<true>(&rows, ahead, words, out, width, lanes);
                } else {
                    transpose16_words::<false>(&rows, ahead, words, out, width, lanes);
                }
            }
        }
        return true;
    }
    let _ = (row, ahead, n, words, is_rounded, width, out);
    false
}

#[inline(always)]
fn transpose16(k: usize, width: usize, out: &mut [u32], at: impl Fn(usize, usize) -> u32) {
    for j in 0..k {
        let lane = &mut out[j * width..j * width + 16];
        for i in 0..16 {
            lane[i] = at(i, j);
        }
    }
}

/// Transposes `lanes` of 16 rows of `count` words: word `j` of row `i` goes to `out[j * width + i]`.
///
/// What lies `ahead` bytes after each word is asked for: sixteen streams are more than the hardware foresees.
///
/// # Safety
/// AVX-512 present; each row pointer is readable for `count` words (any alignment), or for `count` pairs of `f32` where it is
/// `ROUNDED`; `out` is writable at
/// `j * width .. j * width + lanes` for every `j < count`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn transpose16_words<const ROUNDED: bool>(
    rows: &[*const u32; 16],
    ahead: usize,
    count: usize,
    out: *mut u32,
    width: usize,
    lanes: usize,
) {
    use std::arch::x86_64::*;
    let stored: u16 = if lanes == 16 { u16::MAX } else { (1 << lanes) - 1 };
    let mut j = 0;
    while j < count {
        let block = (count - j).min(16);
        let mask: u16 = if block == 16 { u16::MAX } else { (1 << block) - 1 };
        // SAFETY: masked loads read only words `j .. j + block` of each row; lines that do not exist are not asked for.
        let r: [__m512i; 16] = std::array::from_fn(|i| unsafe {
            if ahead > 0 {
                let at = 4 * j * (1 + usize::from(ROUNDED));
                _mm_prefetch::<_MM_HINT_T1>(rows[i].cast::<i8>().wrapping_add(at + ahead));
            }
            if ROUNDED {
                rounded_pairs(rows[i].add(2 * j).cast(), block)
            } else {
                _mm512_maskz_loadu_epi32(mask, rows[i].add(j).cast())
            }
        });
        let columns = super::direct::transpose(r);
        if lanes == 16 && block == 16 {
            for (column, words) in columns.into_iter().enumerate() {
                // SAFETY: `j + column < count`, where the caller promises sixteen writable words.
                unsafe { _mm512_storeu_si512(out.add((j + column) * width).cast(), words) };
            }
        } else {
            for (column, words) in columns.into_iter().enumerate().take(block) {
                // SAFETY: `j + column < count`, where the caller promises `lanes` writable words.
                unsafe { _mm512_mask_storeu_epi32(out.add((j + column) * width).cast(), stored, words) };
            }
        }
        j += 16;
    }
}

/// Up to sixteen pairs of `f32`, rounded as [`Elem::put`] does; other words are zero.
///
/// # Safety
/// AVX-512 present; `from` readable for `pairs` pairs.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn rounded_pairs(from: *const i32, pairs: usize) -> std::arch::x86_64::__m512i {
    use std::arch::x86_64::*;
    let mask = if pairs == 16 { u32::MAX } else { (1 << (2 * pairs)) - 1 };
    // SAFETY: masked loads read only the pairs there are.
    let halves = [(mask as u16, 0), ((mask >> 16) as u16, 16)].map(|(mask, at)| unsafe {
        let bits = _mm512_maskz_loadu_epi32(mask, from.wrapping_add(at));
        let high = _mm512_srli_epi32::<16>(bits);
        let up = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(high, _mm512_set1_epi32(1)));
        let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, up));
        let value = _mm512_castsi512_ps(bits);
        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
        let nan = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
        _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_nan, nan))
    });
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(halves[0]), halves[1])
}

/// Reduction across rows: interleave rows two by two, or copy them.
struct Outer<'v, 'o, E> {
    /// Element (outer, k) at `k * ld + outer`.
    values: &'v [E],
    ld: usize,
    n: usize,
    k: usize,
    width: usize,
    format: Format,
    out: &'o mut [u32],
}

impl<E: Elem + Bits> IsaKernel for Outer<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        // The usual widths are constants, so that a row is one or two vectors.
        #[cfg(target_arch = "x86_64")]
        if FMA && E::IS_BF16 && self.format == Format::Pair {
            // SAFETY: the Pair format and its FMA form are only chosen where AVX-512 is present.
            unsafe { self.pairs_avx512() };
            return;
        }
        match (self.n, self.width) {
            (32, 32) => self.rows(32, 32),
            (14, 14) => self.rows(14, 14),
            (16, 16) => self.rows(16, 16),
            (n, width) => self.rows(n, width),
        }
    }
}

/// Rows ahead of the one being packed that are asked for: rows are far apart, beyond what the hardware foresees.
const AHEAD: usize = 16;

impl<E: Elem + Bits> Outer<'_, '_, E> {
    /// Interleaves rows of `bf16`, sixteen lanes at a time.
    ///
    /// # Safety
    /// AVX-512 present, `E` stored as `bf16`.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn pairs_avx512(self) {
        use std::arch::x86_64::*;
        let Outer { values, ld, n, k, width, out, .. } = self;
        assert!(k == 0 || n == 0 || values.len() >= (k - 1) * ld + n, "the operand holds its rows");
        assert!(n <= width && out.len() >= k.div_ceil(2) * width, "the panel holds its words");
        for j in 0..k.div_ceil(2) {
            for ahead in 0..2 {
                // Lines that do not exist are not asked for by the processor.
                let at = values.as_ptr().wrapping_add((2 * j + ahead + AHEAD) * ld);
                _mm_prefetch::<_MM_HINT_T0>(at.cast());
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(n).cast());
            }
            for c in (0..width).step_by(16) {
                let mask = |to: usize| (u32::from(u16::MAX) >> (16 - to.saturating_sub(c).min(16))) as u16;
                let (read, written) = (mask(n), mask(width));
                let odd = if 2 * j + 1 < k { read } else { 0 };
                // SAFETY: masked accesses touch only lanes below `n` of existing rows, and below `width` of the panel.
                unsafe {
                    let low = values.as_ptr().wrapping_add(2 * j * ld + c);
                    let high = low.wrapping_add(ld);
                    let low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(read, low.cast()));
                    let high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(odd, high.cast()));
                    let words = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                    _mm512_mask_storeu_epi32(out.as_mut_ptr().add(j * width + c).cast(), written, words);
                }
            }
        }
    }

    #[inline(always)]
    fn rows(self, n: usize, width: usize) {
        let Outer { values, ld, k, format, out, .. } = self;
        let row = |j: usize| &values[j * ld..][..n];
        match format {
            Format::Single => {
                for (j, lane) in out.chunks_exact_mut(width).enumerate().take(k) {
                    prefetch(values, (j + AHEAD) * ld, n);
                    for (out, value) in lane.iter_mut().zip(row(j)) {
                        *out = value.get().to_bits();
                    }
                    lane[n..].fill(0);
                }
            }
            Format::Pair => {
                for (j, lane) in out.chunks_exact_mut(width).enumerate().take(k / 2) {
                    prefetch(values, (2 * j + AHEAD) * ld, n);
                    prefetch(values, (2 * j + 1 + AHEAD) * ld, n);
                    let (low, high) = (row(2 * j), row(2 * j + 1));
                    for i in 0..n {
                        lane[i] = pair(low[i].to_bf16_bits(), high[i].to_bf16_bits());
                    }
                    lane[n..].fill(0);
                }
                if k % 2 == 1 {
                    let lane = &mut out[k / 2 * width..][..width];
                    for (out, value) in lane.iter_mut().zip(row(k - 1)) {
                        *out = pair(value.to_bf16_bits(), 0);
                    }
                    lane[n..].fill(0);
                }
            }
        }
    }
}

#[inline(always)]
fn pair(low: u16, high: u16) -> u32 {
    u32::from(low) | (u32::from(high) << 16)
}

/// The bf16 bits of an element.
trait Bits: Copy + Send + Sync {
    /// Whether the element is stored as bf16 already.
    const IS_BF16: bool;
    fn to_bf16_bits(self) -> u16;
}

impl Bits for f32 {
    const IS_BF16: bool = false;
    #[inline(always)]
    fn to_bf16_bits(self) -> u16 {
        <bf16 as Elem>::put(self).to_bits()
    }
}

impl Bits for bf16 {
    const IS_BF16: bool = true;
    #[inline(always)]
    fn to_bf16_bits(self) -> u16 {
        self.to_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounding by vectors is that of [`Elem::put`], also of what is no number, tiny, or between two values.
    #[test]
    fn rows_of_f32_are_rounded_as_elements_are() {
        let odd = [
            f32::NAN,
            -f32::NAN,
            f32::from_bits(0x7f80_0001),
            f32::INFINITY,
            -0.0,
            1e-40,
            f32::MAX,
            -1.003_906_2,
        ];
        let value = |i: usize| odd.get(i % 13).copied().unwrap_or((i as f32).sin());
        for (n, k, width) in [(32, 70, 32), (5, 33, 14), (14, 1, 14), (16, 32, 16)] {
            let values: Vec<f32> = (0..n * k).map(value).collect();
            let rounded: Vec<bf16> = values.iter().map(|&value| <bf16 as Elem>::put(value)).collect();
            let packed = |values| {
                let mut words = vec![7; panel_words(width, k, Precision::Bf16)];
                pack_panel(&Operand::k_inner(values, k), 0, n, k, width, Precision::Bf16, &mut words);
                words
            };
            if Micro::of(Precision::Bf16).format == Format::Pair {
                assert_eq!(packed(Values::F32(&values)), packed(Values::Bf16(&rounded)), "{n} x {k}");
            }
        }
    }
}
