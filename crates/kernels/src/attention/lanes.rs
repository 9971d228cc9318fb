//! Sixteen `f32` at a time, in the order of [`crate::math::fold_lanes`] for horizontal reductions.
//!
//! The softmax needs `exp` fast and masks exact; relying on the vectoriser for both is a gamble, so the
//! loops of [`super::softmax`] are written once against [`Lanes`] and instantiated for AVX-512
//! intrinsics and for plain arrays.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use crate::isa::{Isa, current, fma};
use crate::math::fold_lanes;

/// Lanes per vector.
pub(super) const WIDTH: usize = 16;

/// Minimax coefficients of `(2^r - 1) / r` on `[-1/2, 1/2]`: relative error of `2^r` below 1.6e-7.
const EXP2: [f32; 5] = [0.693_146_94, 0.240_221_2, 0.055_507_13, 0.009_675_541, 0.001_327_647_2];
/// Below this `2^x` is taken for 0: smaller results are not normal numbers.
const EXP2_LOWEST: f32 = -126.0;

/// A vector of [`WIDTH`] `f32`.
pub(super) trait Lanes: Copy {
    /// # Safety
    /// The instruction set of `Self` is present.
    unsafe fn splat(value: f32) -> Self;
    /// # Safety
    /// As [`Lanes::splat`], and `from` is readable for 16 values.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `to` is writable for 16 values.
    unsafe fn store(self, to: *mut f32);
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn div(self, b: Self) -> Self;
    /// `self * b + c`.
    fn fma(self, b: Self, c: Self) -> Self;
    /// The larger; `b` where `self` is not a number.
    fn max(self, b: Self) -> Self;
    fn abs(self) -> Self;
    /// The magnitude of `self` with the sign of `sign`.
    fn with_sign(self, sign: Self) -> Self;
    /// The nearest integer.
    fn round(self) -> Self;
    /// `self * 2^n` for integral `n`, but 0 where `n` is below [`EXP2_LOWEST`].
    fn ldexp(self, n: Self) -> Self;
    /// `self` in the lanes whose bit is set, `other` elsewhere.
    fn select(self, mask: u16, other: Self) -> Self;
    fn fold_max(self) -> f32;
    fn fold_add(self) -> f32;

    /// `(n, q)` with `2^self = (1 + q) 2^n`.
    #[inline(always)]
    fn exp2_parts(self) -> (Self, Self) {
        // SAFETY: `self` exists, so its instruction set is present.
        let c = |i: usize| unsafe { Self::splat(EXP2[i]) };
        let n = self.round();
        let r = self.sub(n);
        (n, c(4).fma(r, c(3)).fma(r, c(2)).fma(r, c(1)).fma(r, c(0)).mul(r))
    }

    /// `2^self` for `self <= 127`; exactly 0 below -126.5 and exactly 1 at 0.
    #[inline(always)]
    fn exp2(self) -> Self {
        // SAFETY: `self` exists, so its instruction set is present.
        let c = |i: usize| unsafe { Self::splat(EXP2[i]) };
        let n = self.round();
        let r = self.sub(n);
        // SAFETY: as above.
        let one = unsafe { Self::splat(1.0) };
        c(4).fma(r, c(3)).fma(r, c(2)).fma(r, c(1)).fma(r, c(0)).fma(r, one).ldexp(n)
    }

    /// `tanh`, relative error below 1e-6: through `e^(-2|x|) - 1`, which loses nothing near 0.
    #[inline(always)]
    fn tanh(self) -> Self {
        // SAFETY: `self` exists, so its instruction set is present.
        let c = |value: f32| unsafe { Self::splat(value) };
        // Beyond 20 the result is 1 and the exponent would leave its range. (In this order NaN survives.)
        let x = c(-20.0).max(c(0.0).sub(self.abs()));
        let (n, q) = x.mul(c(2.0 * std::f32::consts::LOG2_E)).exp2_parts();
        let s = c(1.0).ldexp(n);
        let expm1 = s.fma(q, s.sub(c(1.0)));
        c(0.0).sub(expm1).div(c(2.0).add(expm1)).with_sign(self)
    }
}

/// Plain arrays; `FMA` as in [`fma`].
#[derive(Clone, Copy)]
pub(super) struct Array<const FMA: bool>([f32; WIDTH]);

impl<const FMA: bool> Array<FMA> {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Array(std::array::from_fn(|i| f(self.0[i])))
    }

    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Array(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

impl<const FMA: bool> Lanes for Array<FMA> {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Array([value; WIDTH])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises 16 readable values.
        Array(unsafe { from.cast::<[f32; WIDTH]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller promises 16 writable values.
        unsafe { to.cast::<[f32; WIDTH]>().write(self.0) };
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.zip(b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        self.zip(b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Array(std::array::from_fn(|i| fma::<FMA>(self.0[i], b.0[i], c.0[i])))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.zip(b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        self.map(f32::abs)
    }
    #[inline(always)]
    fn with_sign(self, sign: Self) -> Self {
        self.zip(sign, f32::copysign)
    }
    #[inline(always)]
    fn round(self) -> Self {
        /// 1.5 * 2^23: adding it rounds to an integer.
        const ROUND: f32 = 12_582_912.0;
        // The clamp keeps -inf and large magnitudes finite; `ldexp` makes them 0.
        self.map(|x| (if x < EXP2_LOWEST - 1.0 { EXP2_LOWEST - 1.0 } else { x } + ROUND) - ROUND)
    }
    #[inline(always)]
    fn ldexp(self, n: Self) -> Self {
        self.zip(n, |x, n| {
            let power = f32::from_bits((((n as i32) + 127) as u32) << 23);
            if n < EXP2_LOWEST { 0.0 } else { x * power }
        })
    }
    #[inline(always)]
    fn select(self, mask: u16, other: Self) -> Self {
        Array(std::array::from_fn(|i| if mask >> i & 1 == 1 { self.0[i] } else { other.0[i] }))
    }
    #[inline(always)]
    fn fold_max(self) -> f32 {
        fold_lanes(self.0, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn fold_add(self) -> f32 {
        fold_lanes(self.0, |a, b| a + b)
    }
}

/// An AVX-512 register. Only `splat` and `load`, which are unsafe, and a register make one: a value proves
/// that the instructions are present.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Zmm(__m512);

#[cfg(target_arch = "x86_64")]
impl From<__m512> for Zmm {
    #[inline(always)]
    fn from(register: __m512) -> Self {
        Zmm(register)
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for Zmm {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller promises AVX-512.
        Zmm(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises AVX-512 and 16 readable values.
        Zmm(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: a Zmm exists, and the caller promises 16 writable values.
        unsafe { _mm512_storeu_ps(to, self.0) };
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        // SAFETY: a Zmm exists.
        Zmm(unsafe { _mm512_add_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        // SAFETY: a Zmm exists.
        Zmm(unsafe { _mm512_sub_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        // SAFETY: a Zmm exists.
        Zmm(unsafe { _mm512_mul_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        // SAFETY: a Zmm exists.
        Zmm(unsafe { _mm512_div_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: a Zmm exists.
        Zmm(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        // SAFETY: a Zmm exists.
        Zmm(unsafe { _mm512_max_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: a Zmm exists.
        Zmm(unsafe { _mm512_abs_ps(self.0) })
    }
    #[inline(always)]
    fn with_sign(self, sign: Self) -> Self {
        // SAFETY: a Zmm exists (AVX-512DQ is part of every AVX-512 set we use).
        unsafe {
            let bit = _mm512_set1_ps(-0.0);
            Zmm(_mm512_or_ps(_mm512_andnot_ps(bit, self.0), _mm512_and_ps(bit, sign.0)))
        }
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: a Zmm exists.
        Zmm(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn ldexp(self, n: Self) -> Self {
        // SAFETY: a Zmm exists. Not "less than" rather than "at least", so that NaN stays NaN.
        unsafe {
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(n.0, _mm512_set1_ps(EXP2_LOWEST));
            Zmm(_mm512_maskz_scalef_ps(keep, self.0, n.0))
        }
    }
    #[inline(always)]
    fn select(self, mask: u16, other: Self) -> Self {
        // SAFETY: a Zmm exists.
        Zmm(unsafe { _mm512_mask_blend_ps(mask, other.0, self.0) })
    }
    #[inline(always)]
    fn fold_max(self) -> f32 {
        // SAFETY: a Zmm exists.
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            let x = _mm256_max_ps(_mm512_castps512_ps256(self.0), high);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }
    #[inline(always)]
    fn fold_add(self) -> f32 {
        // SAFETY: a Zmm exists.
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            let x = _mm256_add_ps(_mm512_castps512_ps256(self.0), high);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }
}

/// A loop over vectors, compiled for every instruction set.
pub(super) trait LaneKernel {
    /// What it computes.
    type Output;
    /// # Safety
    /// The instruction set of `L` is present.
    unsafe fn run<L: Lanes>(self) -> Self::Output;
}

/// Runs `kernel` compiled for the instruction set in use.
#[inline]
pub(super) fn dispatch<K: LaneKernel>(kernel: K) -> K::Output {
    match current() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `current` never exceeds what the machine has.
        Isa::Avx512Bf16 | Isa::Avx512 => unsafe { run_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { run_avx2(kernel) },
        // SAFETY: arrays need nothing.
        _ => unsafe { kernel.run::<Array<false>>() },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn run_avx512<K: LaneKernel>(kernel: K) -> K::Output {
    // SAFETY: the caller promises AVX-512.
    unsafe { kernel.run::<Zmm>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: LaneKernel>(kernel: K) -> K::Output {
    // SAFETY: arrays need nothing.
    unsafe { kernel.run::<Array<true>>() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two units in the last place of `f32`, plus that of the argument's rounding near 126.
    const EXP2_TOLERANCE: f64 = 3e-7;
    const TANH_TOLERANCE: f64 = 1e-6;

    struct Map<'a>(&'a [f32; WIDTH], bool);
    impl LaneKernel for Map<'_> {
        type Output = [f32; WIDTH];
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) -> [f32; WIDTH] {
            let mut out = [0.0; WIDTH];
            // SAFETY: both arrays hold 16 values.
            unsafe {
                let x = L::load(self.0.as_ptr());
                if self.1 { x.exp2() } else { x.tanh() }.store(out.as_mut_ptr());
            }
            out
        }
    }

    fn check(name: &str, map: impl Fn(&[f32; WIDTH], bool) -> [f32; WIDTH]) {
        let exp2 = |x: f32| map(&[x; WIDTH], true)[3];
        let tanh = |x: f32| map(&[x; WIDTH], false)[3];
        for i in -126_000..=10_000 {
            let x = i as f32 * 1e-3;
            let truth = f64::from(x).exp2();
            assert!(
                (f64::from(exp2(x)) - truth).abs() <= EXP2_TOLERANCE * truth,
                "{name}: 2^{x} = {}",
                exp2(x)
            );
        }
        for (x, y) in [(0.0, 1.0), (f32::NEG_INFINITY, 0.0), (-127.0, 0.0), (-1e30, 0.0)] {
            assert_eq!(exp2(x).to_bits(), f32::to_bits(y), "{name}: 2^{x}");
        }
        assert!(exp2(f32::NAN).is_nan());
        for i in -30_000..=30_000 {
            let x = i as f32 * 1e-3;
            let truth = f64::from(x).tanh();
            let error = (f64::from(tanh(x)) - truth).abs();
            assert!(
                error <= TANH_TOLERANCE * truth.abs(),
                "{name}: tanh {x} = {}, expected {truth}",
                tanh(x)
            );
        }
    }

    #[test]
    fn exp2_and_tanh_are_accurate_and_masks_vanish() {
        check("best", |x, exp| dispatch(Map(x, exp)));
        // SAFETY: arrays need nothing.
        check("portable", |x, exp| unsafe { Map(x, exp).run::<Array<false>>() });
    }
}
