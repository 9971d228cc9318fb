//! Packing of rows, probabilities and their gradients into the micro-kernels' panels.
//!
//! Everything is first *words*: a row of a matrix in the micro-kernel's format, two `bf16` or one
//! `f32` per `u32`, padded with zeros. A panel whose reduction runs along the row is a transpose of
//! words; one whose reduction runs across rows is an interleaving of word rows.

use half::bf16;

use super::Rows;
#[cfg(target_arch = "x86_64")]
use super::avx512::{copy_halves, dot_pairs, interleave, narrow_across, narrow_along, transpose_16};
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
