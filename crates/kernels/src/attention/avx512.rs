//! Packing with AVX-512: transposes, interleaving and rounding of whole vectors.
//!
//! Panels narrower than a vector are written with full stores in ascending order: each overwrites what
//! the one before wrote too far, and the last reaches into the panel's slack.

use std::arch::x86_64::*;

use half::bf16;

use super::lanes::{Lanes, Zmm};

/// Copies `n` rows of `d` halves, filling each up to `stride` words with zeros.
///
/// # Safety
/// AVX-512 present; each pointer readable for `d` halves; `to` writable for `n * stride` words, and `stride`
/// a multiple of 16 that holds `d` halves.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn copy_halves(
    n: usize,
    d: usize,
    row: impl Fn(usize) -> *const bf16,
    to: *mut u32,
    stride: usize,
) {
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

/// # Safety
/// AVX512-BF16 present; `a` and `b` readable for `out.len() * stride` words, `stride` a multiple of 16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn dot_pairs(a: *const u32, b: *const u32, stride: usize, out: &mut [f32]) {
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

/// # Safety
/// AVX-512 present; rows `i < lanes` readable for `count` words at `i * stride`; 16 words writable at each
/// `j * width`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn transpose_16(
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn interleave(
    words: *const u32,
    stride: usize,
    k: usize,
    first: usize,
    width: usize,
    out: *mut u32,
) {
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn narrow_along(p: *const f32, rows: usize, panels: usize, out: *mut u32) {
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn narrow_across(p: *const f32, rows: usize, out: *mut u32) {
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
