//! Packing of rows, probabilities and their gradients into the micro-kernels' panels.
//!
//! Everything is first *words*: a row of a matrix in the micro-kernel's format, two `bf16` or one
//! `f32` per `u32`, padded with zeros. A panel whose reduction runs along the row is a transpose of
//! words; one whose reduction runs across rows is an interleaving of word rows.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::bf16;

use super::Rows;
#[cfg(target_arch = "x86_64")]
use super::lanes::Zmm;
use super::lanes::{LaneKernel, Lanes, WIDTH, dispatch};
use crate::elem::Elem;
use crate::gemm::micro::Format;
use crate::gemm::{Micro, Precision};
#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, current};

/// Words that packing may write past the end of a panel, and read past the end of word rows.
pub(super) const SLACK: usize = 16;

/// A micro-kernel and the sizes that follow from it and the width of a head.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub micro: Micro,
    /// Width of a head.
    pub d: usize,
    /// Words of a word row.
    pub stride: usize,
}

impl Layout {
    pub(super) fn new(precision: Precision, d: usize) -> Self {
        let micro = Micro::of(precision);
        let padded = d.next_multiple_of(32);
        let stride = match micro.format {
            Format::Single => padded,
            Format::Pair => padded / 2,
        };
        Layout { micro, d, stride }
    }

    /// Packed words per lane for a reduction over `k`.
    pub(super) fn steps(&self, k: usize) -> usize {
        match self.micro.format {
            Format::Single => k,
            Format::Pair => k.div_ceil(2),
        }
    }

    /// Panels of `nr` that hold one head.
    pub(super) fn head_panels(&self) -> usize {
        self.d.div_ceil(self.micro.nr)
    }

    /// Writes the heads at (row, column) `place(0)`, `place(1)`, … `place(n - 1)` of `from` as word rows.
    pub(super) fn gather(
        &self,
        from: &Rows<'_>,
        n: usize,
        place: impl Fn(usize) -> (usize, usize),
        words: &mut [u32],
    ) {
        let (d, words) = (self.d, &mut words[..n * self.stride]);
        let start = |i: usize, ld: usize| {
            let (row, col) = place(i);
            row * ld + col
        };
        match (*from, self.micro.format) {
            (Rows::F32(values, ld), Format::Single) => {
                let rows = words.chunks_exact_mut(self.stride).enumerate();
                rows.for_each(|(i, to)| copy_row(&values[start(i, ld)..][..d], to));
            }
            (Rows::Bf16(values, ld), Format::Single) => {
                let rows = words.chunks_exact_mut(self.stride).enumerate();
                rows.for_each(|(i, to)| copy_row(&values[start(i, ld)..][..d], to));
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the Pair format is only chosen where AVX-512 is present; the slices checked both ends.
            (Rows::Bf16(values, ld), Format::Pair) => unsafe {
                copy_halves(n, d, |i| values[start(i, ld)..][..d].as_ptr(), words.as_mut_ptr(), self.stride);
            },
            #[cfg(not(target_arch = "x86_64"))]
            (Rows::Bf16(..), Format::Pair) => unreachable!("no micro-kernel has this format here"),
            (Rows::F32(..), Format::Pair) => unreachable!("f32 rows multiply in f32"),
        }
    }

    /// The inner product of each pair of word rows, in `f32`.
    pub(super) fn dots(&self, a: &[u32], b: &[u32], out: &mut [f32]) {
        let extent = out.len() * self.stride;
        let (a, b) = (&a[..extent], &b[..extent]);
        match self.micro.format {
            Format::Single => dispatch(Dots { a, b, stride: self.stride, out }),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the Pair format means AVX512-BF16; the slices checked the extents.
            Format::Pair => unsafe { dot_pairs(a.as_ptr(), b.as_ptr(), self.stride, out) },
            #[cfg(not(target_arch = "x86_64"))]
            Format::Pair => unreachable!("no micro-kernel has this format here"),
        }
    }

    /// A panel of `width` lanes whose reduction runs along `n` word rows of `k` values; other lanes are 0.
    ///
    /// `width < 16` needs [`SLACK`] words after the panel and `n == width`.
    pub(super) fn pack_along(&self, words: &[u32], n: usize, k: usize, width: usize, out: &mut [u32]) {
        transpose(words, self.stride, n, self.steps(k), out, width);
    }

    /// A panel of `width` lanes, values `first ..` of `k` word rows, whose reduction runs across them.
    ///
    /// Lanes past the head's width hold anything finite or not, but exist. `words` and the panel need
    /// [`SLACK`] words after them.
    pub(super) fn pack_across(&self, words: &[u32], k: usize, first: usize, width: usize, out: &mut [u32]) {
        assert!(k >= 1 && words.len() >= k * self.stride + SLACK && first < self.d);
        assert!(width <= 32 && out.len() >= self.steps(k) * width + SLACK);
        match self.micro.format {
            Format::Single => {
                for (row, lane) in words.chunks_exact(self.stride).zip(out.chunks_exact_mut(width)).take(k) {
                    let n = width.min(self.stride - first);
                    lane[..n].copy_from_slice(&row[first..first + n]);
                }
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the Pair format is only chosen where AVX-512 is present; the extents were checked.
            Format::Pair => unsafe {
                interleave(words.as_ptr(), self.stride, k, first, width, out.as_mut_ptr());
            },
            #[cfg(not(target_arch = "x86_64"))]
            Format::Pair => unreachable!("no micro-kernel has this format here"),
        }
    }

    /// Probabilities (`panels` blocks `[rows, nr]`) as the left operand of a product over their keys.
    ///
    /// Needs [`SLACK`] words after the panel. In `bf16` precision the values are rounded.
    pub(super) fn pack_keys_along(&self, p: &mut [f32], rows: usize, panels: usize, out: &mut [u32]) {
        let nr = self.micro.nr;
        assert!(rows <= 16 && p.len() >= panels * rows * nr);
        match self.micro.format {
            Format::Single => {
                self.round(&mut p[..panels * rows * nr]);
                for (panel, p) in p.chunks_exact(rows * nr).take(panels).enumerate() {
                    transpose(as_words(p), nr, rows, nr, &mut out[panel * nr * rows..], rows);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Format::Pair => {
                assert!(nr == 32 && out.len() >= panels * 16 * rows + SLACK);
                // SAFETY: the Pair format means AVX512-BF16; the extents were checked.
                unsafe { narrow_along(p.as_ptr(), rows, panels, out.as_mut_ptr()) };
            }
            #[cfg(not(target_arch = "x86_64"))]
            Format::Pair => unreachable!("no micro-kernel has this format here"),
        }
    }

    /// One block `[rows, nr]` of probabilities as part of a right operand of a product over rows.
    pub(super) fn pack_rows_across(&self, p: &mut [f32], rows: usize, out: &mut [u32]) {
        let nr = self.micro.nr;
        let p = &mut p[..rows * nr];
        match self.micro.format {
            Format::Single => {
                self.round(p);
                out[..rows * nr].copy_from_slice(as_words(p));
            }
            #[cfg(target_arch = "x86_64")]
            Format::Pair => {
                assert!(nr == 32 && out.len() >= rows.div_ceil(2) * 32);
                // SAFETY: the Pair format means AVX512-BF16; the extents were checked.
                unsafe { narrow_across(p.as_ptr(), rows, out.as_mut_ptr()) };
            }
            #[cfg(not(target_arch = "x86_64"))]
            Format::Pair => unreachable!("no micro-kernel has this format here"),
        }
    }

    /// Rounds to `bf16` when the products are in `bf16`. (Twice is once.)
    fn round(&self, values: &mut [f32]) {
        if self.micro.precision == Precision::Bf16 {
            round_to_bf16(values);
        }
    }
}

crate::kernel! {
    fn round_to_bf16(['a] values: &'a mut [f32]) {
        for value in values.iter_mut() {
            *value = <bf16 as Elem>::put(*value).get();
        }
    }
}

fn copy_row<E: Elem>(from: &[E], to: &mut [u32]) {
    let (head, tail) = to.split_at_mut(from.len());
    head.iter_mut().zip(from).for_each(|(to, from)| *to = from.get().to_bits());
    tail.fill(0);
}

/// Copies `n` rows of `d` halves, filling each up to `stride` words with zeros.
///
/// # Safety
/// AVX-512 present; each pointer readable for `d` halves; `to` writable for `n * stride` words, and `stride`
/// a multiple of 16 that holds `d` halves.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn copy_halves(n: usize, d: usize, row: impl Fn(usize) -> *const bf16, to: *mut u32, stride: usize) {
    /// Rows lie far apart, where the hardware does not look ahead.
    const AHEAD: usize = 8;
    for i in 0..n {
        let (from, next) = (row(i).cast::<u16>(), row((i + AHEAD).min(n - 1)).cast::<u16>());
        for chunk in 0..stride / 16 {
            let left = d.saturating_sub(chunk * 32).min(32);
            let mask = if left == 0 { 0 } else { u32::MAX >> (32 - left) };
            // SAFETY: masked loads touch only the row's `d` halves; the store is within the row's words.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(chunk * 32).cast());
                let halves = _mm512_maskz_loadu_epi16(mask, from.wrapping_add(chunk * 32).cast());
                _mm512_storeu_si512(to.add(i * stride + chunk * 16).cast(), halves);
            }
        }
    }
}

struct Dots<'a> {
    a: &'a [u32],
    b: &'a [u32],
    stride: usize,
    out: &'a mut [f32],
}

impl LaneKernel for Dots<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let rows = self.a.chunks_exact(self.stride).zip(self.b.chunks_exact(self.stride));
        for (out, (a, b)) in self.out.iter_mut().zip(rows) {
            // SAFETY: each chunk holds 16 words, which are `f32`; the caller promises `L`.
            unsafe {
                let mut sum = L::splat(0.0);
                for (a, b) in a.chunks_exact(WIDTH).zip(b.chunks_exact(WIDTH)) {
                    sum = L::load(a.as_ptr().cast()).fma(L::load(b.as_ptr().cast()), sum);
                }
                *out = sum.fold_add();
            }
        }
    }
}

/// # Safety
/// AVX512-BF16 present; `a` and `b` readable for `out.len() * stride` words, `stride` a multiple of 16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn dot_pairs(a: *const u32, b: *const u32, stride: usize, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        let mut sum = _mm512_setzero_ps();
        for at in (i * stride..(i + 1) * stride).step_by(16) {
            // SAFETY: within the extents the caller promises; any bits are `bf16`.
            unsafe {
                let a = std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(a.add(at).cast()));
                let b = std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.add(at).cast()));
                sum = _mm512_dpbf16_ps(sum, a, b);
            }
        }
        *out = Zmm::from(sum).fold_add();
    }
}

fn as_words(values: &[f32]) -> &[u32] {
    // SAFETY: same size and alignment, and any bits are a u32.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// `out[j * width + i] = words[i * stride + j]` for `i < n`, `j < count`; lanes `n ..` are 0.
///
/// `width < 16` needs `n == width` and [`SLACK`] words after the panel.
pub(super) fn transpose(words: &[u32], stride: usize, n: usize, count: usize, out: &mut [u32], width: usize) {
    assert!(n >= 1 && n <= width && count <= stride && words.len() >= (n - 1) * stride + count);
    #[cfg(target_arch = "x86_64")]
    if current() >= Isa::Avx512 {
        if width.is_multiple_of(16) {
            assert!(out.len() >= count * width);
        } else {
            assert!(width < 16 && n == width && out.len() >= count * width + SLACK);
        }
        // SAFETY: AVX-512 is present and the extents were checked; a narrow panel's stores reach at most
        // 16 words past its last lane, and each overwrites what the one before wrote too far.
        unsafe {
            let mut i0 = 0;
            while i0 < width {
                let lanes = n.saturating_sub(i0).min(16);
                transpose_16(
                    words.as_ptr().add(i0.min(n - 1) * stride),
                    stride,
                    lanes,
                    count,
                    out.as_mut_ptr().add(i0),
                    width,
                );
                i0 += 16;
            }
        }
        return;
    }
    for (j, lane) in out.chunks_exact_mut(width).take(count).enumerate() {
        for (i, to) in lane[..n].iter_mut().enumerate() {
            *to = words[i * stride + j];
        }
        lane[n..].fill(0);
    }
}

/// `out[j * out_stride + i] = values[i * stride + j]` for `i < n <= 16`, `j < count`.
///
/// May overwrite the 16 elements from each `j * out_stride` on.
pub(super) fn transpose_into(
    values: &[f32],
    stride: usize,
    n: usize,
    count: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    assert!(
        (1..=16).contains(&n) && (1..=stride).contains(&count) && values.len() >= (n - 1) * stride + count
    );
    assert!(out.len() >= (count - 1) * out_stride + 16);
    #[cfg(target_arch = "x86_64")]
    if current() >= Isa::Avx512 {
        // SAFETY: AVX-512 is present and the extents were checked.
        unsafe {
            transpose_16(values.as_ptr().cast(), stride, n, count, out.as_mut_ptr().cast(), out_stride)
        };
        return;
    }
    for (i, row) in values.chunks(stride).take(n).enumerate() {
        for (j, value) in row[..count].iter().enumerate() {
            out[j * out_stride + i] = *value;
        }
    }
}

/// # Safety
/// AVX-512 present; rows `i < lanes` readable for `count` words at `i * stride`; 16 words writable at each
/// `j * width`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn transpose_16(
    words: *const u32,
    stride: usize,
    lanes: usize,
    count: usize,
    out: *mut u32,
    width: usize,
) {
    let mut j = 0;
    while j < count {
        let block = (count - j).min(16);
        let mask = u16::MAX >> (16 - block);
        let mut r = [_mm512_setzero_si512(); 16];
        // SAFETY: masked loads touch words `j .. j + block` of existing rows; the stores are as promised.
        unsafe {
            for (i, r) in r.iter_mut().enumerate().take(lanes) {
                *r = _mm512_maskz_loadu_epi32(mask, words.add(i * stride + j).cast());
            }
            store_columns(&r, block, out.add(j * width), width);
        }
        j += 16;
    }
}

/// Stores word `j < block` of the 16 rows to `out[j * width ..][.. 16]`, in the order of `j`.
///
/// # Safety
/// AVX-512 present; 16 words writable at each `j * width`.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn store_columns(r: &[__m512i; 16], block: usize, out: *mut u32, width: usize) {
    // Interleave 32-bit words, then 64-bit pairs: u[4g + c] holds, in 128-bit lane l, column 4l + c of
    // rows 4g .. 4g + 4.
    let mut u = [_mm512_setzero_si512(); 16];
    for g in 0..4 {
        let (a, b, c, d) = (r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]);
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        u[4 * g] = _mm512_unpacklo_epi64(ab_low, cd_low);
        u[4 * g + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
        u[4 * g + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        u[4 * g + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    let mut columns = [_mm512_setzero_si512(); 16];
    for c in 0..4 {
        let even_01 = _mm512_shuffle_i32x4::<0x88>(u[c], u[4 + c]);
        let odd_01 = _mm512_shuffle_i32x4::<0xdd>(u[c], u[4 + c]);
        let even_23 = _mm512_shuffle_i32x4::<0x88>(u[8 + c], u[12 + c]);
        let odd_23 = _mm512_shuffle_i32x4::<0xdd>(u[8 + c], u[12 + c]);
        columns[c] = _mm512_shuffle_i32x4::<0x88>(even_01, even_23);
        columns[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd_01, odd_23);
        columns[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even_01, even_23);
        columns[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd_01, odd_23);
    }
    for (j, column) in columns.iter().enumerate() {
        if j < block {
            // SAFETY: the caller promises 16 writable words here.
            unsafe { _mm512_storeu_si512(out.add(j * width).cast(), *column) };
        }
    }
}

/// Word rows two by two into lanes `first .. first + width`, each store 16 lanes wide and overwritten
/// by the next where it reaches too far.
///
/// # Safety
/// AVX-512 present; `words` readable for `k * stride + 16` words, `out` writable for `ceil(k / 2) * width + 16`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn interleave(words: *const u32, stride: usize, k: usize, first: usize, width: usize, out: *mut u32) {
    for j in 0..k.div_ceil(2) {
        let mut lane = 0;
        while lane < width {
            // SAFETY: 16 values from `first + lane` on lie within the row, its successor or the slack.
            unsafe {
                let low = words.add(2 * j * stride).cast::<u16>().add(first + lane);
                let a = _mm512_cvtepu16_epi32(_mm256_loadu_si256(low.cast()));
                let b = if 2 * j + 1 < k {
                    _mm512_cvtepu16_epi32(_mm256_loadu_si256(low.add(2 * stride).cast()))
                } else {
                    _mm512_setzero_si512()
                };
                let pair = _mm512_or_si512(a, _mm512_slli_epi32::<16>(b));
                _mm512_storeu_si512(out.add(j * width + lane).cast(), pair);
            }
            lane += 16;
        }
    }
}

/// Rounds `panels` blocks `[rows, 32]` and transposes pairs of keys: the panel `[16 * panels][rows]`.
///
/// # Safety
/// AVX512-BF16 present; `p` readable for the blocks, `out` writable for the panel and 16 words more.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn narrow_along(p: *const f32, rows: usize, panels: usize, out: *mut u32) {
    for panel in 0..panels {
        let mut r = [_mm512_setzero_si512(); 16];
        // SAFETY: as promised; the stores are in ascending order, as `store_columns` needs.
        unsafe {
            for (i, r) in r.iter_mut().enumerate().take(rows) {
                let row = p.add((panel * rows + i) * 32);
                let pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(row.add(16)), _mm512_loadu_ps(row));
                *r = std::mem::transmute::<__m512bh, __m512i>(pairs);
            }
            store_columns(&r, 16, out.add(panel * 16 * rows), rows);
        }
    }
}

/// Rounds a block `[rows, 32]` and pairs its rows: the panel `[ceil(rows / 2)][32]`.
///
/// # Safety
/// AVX512-BF16 present; `p` readable for the block, `out` writable for the panel.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn narrow_across(p: *const f32, rows: usize, out: *mut u32) {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i as u16 % 2) * 16 + i as u16 / 2;
            i += 1;
        }
        order
    };
    // SAFETY: the constant is 64 bytes; the rest as promised.
    unsafe {
        let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
        for j in 0..rows.div_ceil(2) {
            for half in [0, 16] {
                let low = p.add(2 * j * 32 + half);
                let b = if 2 * j + 1 < rows { _mm512_loadu_ps(low.add(32)) } else { _mm512_setzero_ps() };
                let both =
                    std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, _mm512_loadu_ps(low)));
                _mm512_storeu_si512(out.add(j * 32 + half).cast(), _mm512_permutexvar_epi16(order, both));
            }
        }
    }
}
