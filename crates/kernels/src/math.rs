//! Elementary functions that the compiler can vectorise.

use crate::isa::fma;

/// `e^x` for `x <= 88`, with a relative error below 2e-7; 0 below -87.3, so that masked scores vanish exactly.
///
/// Range reduction by `ln 2` in two parts (Cody and Waite) and a degree-6 polynomial on
/// `[-ln 2 / 2, ln 2 / 2]`.
#[inline(always)]
#[allow(clippy::excessive_precision, reason = "constants as they are published")]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let clamped = x.clamp(-87.3, 88.7);
    let shifted = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, clamped));
    let mut p = 1.388_888_9e-3;
    p = fma::<FMA>(p, r, 8.333_333_6e-3);
    p = fma::<FMA>(p, r, 4.166_666_6e-2);
    p = fma::<FMA>(p, r, 1.666_666_7e-1);
    p = fma::<FMA>(p, r, 0.5);
    p = fma::<FMA>(p, r, 1.0);
    p = fma::<FMA>(p, r, 1.0);
    let scale =
        f32::from_bits(((shifted.to_bits() as i32).wrapping_sub(0x4b40_0000).wrapping_add(127) as u32) << 23);
    let value = p * scale;
    if x < -87.3 {
        0.0
    } else if x.is_nan() {
        x
    } else {
        value
    }
}

/// The logistic function `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// The hyperbolic tangent, absolute error below 1e-6.
#[inline(always)]
pub fn tanh<const FMA: bool>(x: f32) -> f32 {
    let e = exp::<FMA>(-2.0 * x.abs());
    let t = (1.0 - e) / (1.0 + e);
    if x < 0.0 { -t } else { t }
}

/// Sixteen running sums or maxima folded into one value in a fixed order.
pub const LANES: usize = 16;

/// Folds lanes pairwise, halves first: the one order used for every horizontal reduction.
#[inline(always)]
pub fn fold_lanes(mut lanes: [f32; LANES], op: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = op(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative; a degree-6 polynomial in f32 is good to about two units in the last place.
    const EXP_TOLERANCE: f64 = 2.5e-7;

    #[test]
    fn exp_is_accurate_and_vanishes() {
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let truth = f64::from(x).exp();
            let ours = f64::from(exp::<true>(x));
            assert!((ours - truth).abs() <= EXP_TOLERANCE * truth, "exp({x}) = {ours}, expected {truth}");
        }
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<true>(-200.0), 0.0);
        assert_eq!(exp::<true>(0.0), 1.0);
        assert!(exp::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_and_sigmoid_are_close() {
        for i in -20_000..=20_000 {
            let x = i as f32 * 1e-3;
            assert!((f64::from(tanh::<true>(x)) - f64::from(x).tanh()).abs() < 1e-6);
            let truth = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(sigmoid::<true>(x)) - truth).abs() < 1e-6);
        }
    }
}
