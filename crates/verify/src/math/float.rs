//! Real numbers to a chosen number of bits, and the elementary functions.
//!
//! A [`Float`] is `m * 2^e` with an integer `m` of any length. Functions take the precision in bits and are wrong by less
//! than `2^-precision`, relative for arithmetic and square roots, absolute (times the magnitude of the result where that
//! is above 1) for the others. Inside, the series run in fixed point with guard bits. Whoever calls bounds the arguments.

use num_bigint::{BigInt, Sign};
use num_traits::{One, Signed, ToPrimitive, Zero};

use super::number::Rational;

/// Bits beyond the precision asked for, so that the errors of some hundred operations do not reach it.
const GUARD: u64 = 32;

/// `m * 2^e`.
#[derive(Clone, Debug)]
pub(super) struct Float {
    m: BigInt,
    e: i64,
}

impl Float {
    pub(super) fn zero() -> Float {
        Float { m: BigInt::zero(), e: 0 }
    }

    pub(super) fn one() -> Float {
        Float { m: BigInt::one(), e: 0 }
    }

    pub(super) fn from_rational(value: &Rational, precision: u64) -> Float {
        let numerator = Float { m: value.num().clone(), e: 0 };
        if value.is_integer() {
            return numerator.round(precision);
        }
        numerator.div(&Float { m: value.den().clone(), e: 0 }, precision)
    }

    /// The least `k` with `|self| < 2^k`; `None` for zero.
    pub(super) fn magnitude(&self) -> Option<i64> {
        if self.m.is_zero() {
            None
        } else {
            Some(self.e + i64::try_from(self.m.bits()).unwrap_or(i64::MAX / 4))
        }
    }

    pub(super) fn is_zero(&self) -> bool {
        self.m.is_zero()
    }

    pub(super) fn is_negative(&self) -> bool {
        self.m.is_negative()
    }

    pub(super) fn neg(&self) -> Float {
        Float { m: -&self.m, e: self.e }
    }

    pub(super) fn abs(&self) -> Float {
        Float { m: self.m.abs(), e: self.e }
    }

    /// The same times `2^k`.
    pub(super) fn scaled(&self, k: i64) -> Float {
        Float { m: self.m.clone(), e: self.e + k }
    }

    fn round(self, precision: u64) -> Float {
        let excess = self.m.bits().saturating_sub(precision);
        if excess == 0 {
            return self;
        }
        Float { m: self.m >> excess, e: self.e + i64::try_from(excess).unwrap_or(0) }
    }

    pub(super) fn add(&self, other: &Float, precision: u64) -> Float {
        let (Some(a), Some(b)) = (self.magnitude(), other.magnitude()) else {
            return if self.is_zero() { other.clone() } else { self.clone() };
        };
        // A summand too small to be seen would only make a long shift.
        let reach = i64::try_from(precision).unwrap_or(0) + 4;
        if a - b > reach {
            return self.clone();
        }
        if b - a > reach {
            return other.clone();
        }
        let e = self.e.min(other.e);
        let shifted = |x: &Float| &x.m << u64::try_from(x.e - e).unwrap_or(0);
        Float { m: shifted(self) + shifted(other), e }.round(precision)
    }

    pub(super) fn sub(&self, other: &Float, precision: u64) -> Float {
        self.add(&other.neg(), precision)
    }

    pub(super) fn mul(&self, other: &Float, precision: u64) -> Float {
        Float { m: &self.m * &other.m, e: self.e + other.e }.round(precision)
    }

    /// The quotient; the divisor is not zero.
    pub(super) fn div(&self, other: &Float, precision: u64) -> Float {
        let shift = (precision + other.m.bits() + 2).saturating_sub(self.m.bits());
        let m = (&self.m << shift) / &other.m;
        Float { m, e: self.e - other.e - i64::try_from(shift).unwrap_or(0) }.round(precision)
    }

    /// The square root of a number that is not negative.
    pub(super) fn sqrt(&self, precision: u64) -> Float {
        let mut shift = (2 * precision + 4).saturating_sub(self.m.bits());
        if (self.e - i64::try_from(shift).unwrap_or(0)) % 2 != 0 {
            shift += 1;
        }
        let e = self.e - i64::try_from(shift).unwrap_or(0);
        Float { m: (&self.m << shift).sqrt(), e: e / 2 }.round(precision)
    }

    /// `self * 2^bits` as an integer, rounded down.
    fn fixed(&self, bits: u64) -> BigInt {
        let shift = self.e + i64::try_from(bits).unwrap_or(0);
        match u64::try_from(shift) {
            Ok(left) => &self.m << left,
            Err(_) => &self.m >> shift.unsigned_abs(),
        }
    }

    fn from_fixed(m: BigInt, bits: u64, precision: u64) -> Float {
        Float { m, e: -i64::try_from(bits).unwrap_or(0) }.round(precision)
    }

    pub(super) fn pi(precision: u64) -> Float {
        let bits = precision + GUARD;
        Float::from_fixed(pi(bits), bits, precision)
    }

    /// The exponential of a number below `2^40` in magnitude.
    pub(super) fn exp(&self, precision: u64) -> Float {
        let halvings = 8;
        let bits = precision + GUARD + 2 * halvings + self.magnitude().map_or(0, |k| k.max(0).unsigned_abs());
        let (x, ln2) = (self.fixed(bits), ln2(bits));
        let k = (&x + (&ln2 >> 1u32)) / &ln2 - i32::from(x.is_negative());
        let rest = x - &k * ln2;
        // e^r = (e^(r / 2^h))^(2^h) with the series for a small argument.
        let small = rest >> halvings;
        let mut sum = sum_series(&(BigInt::one() << bits), |term, n| ((term * &small) >> bits) / n);
        for _ in 0..halvings {
            sum = (&sum * &sum) >> bits;
        }
        Float::from_fixed(sum, bits, precision).scaled(k.to_i64().unwrap_or(0))
    }

    /// The natural logarithm of a positive number.
    pub(super) fn ln(&self, precision: u64) -> Float {
        let roots = 8;
        let k = self.magnitude().unwrap_or(0);
        let bits = precision + GUARD + roots + 64;
        let mut mantissa = self.scaled(-k).fixed(bits);
        for _ in 0..roots {
            mantissa = (mantissa << bits).sqrt();
        }
        // ln m = 2 atanh((m - 1) / (m + 1)) for the mantissa after eight square roots.
        let one = BigInt::one() << bits;
        let z = ((&mantissa - &one) << bits) / (&mantissa + &one);
        let square = (&z * &z) >> bits;
        let half = sum_odd_series(&z, |term| (term * &square) >> bits);
        let value = (half << (roots + 1)) + BigInt::from(k) * ln2(bits);
        Float::from_fixed(value, bits, precision)
    }

    /// Sine and cosine of a number below `2^64` in magnitude.
    pub(super) fn sin_cos(&self, precision: u64) -> (Float, Float) {
        let bits = precision + GUARD + self.magnitude().map_or(0, |k| k.max(0).unsigned_abs());
        let (x, quarter) = (self.fixed(bits), pi(bits) >> 1u32);
        let doubled: BigInt = (&x << 1u32) + &quarter;
        let turns = num_integer::Integer::div_floor(&doubled, &(&quarter << 1u32));
        let rest = x - &turns * quarter;
        let square = (&rest * &rest) >> bits;
        let alternate = |first: &BigInt, offset: u32| {
            sum_series(first, |term, n| {
                -((term * &square) >> bits) / ((2 * n + offset) * (2 * n + offset - 1))
            })
        };
        let cos = alternate(&(BigInt::one() << bits), 0);
        let sin = alternate(&rest, 1);
        let (sin, cos) = match num_integer::Integer::mod_floor(&turns, &BigInt::from(4)).to_u8() {
            Some(0) => (sin, cos),
            Some(1) => (cos, -sin),
            Some(2) => (-sin, -cos),
            _ => (-cos, sin),
        };
        (Float::from_fixed(sin, bits, precision), Float::from_fixed(cos, bits, precision))
    }

    /// The angle of the point `(x, self)`, above -pi and at most pi; not both are zero.
    pub(super) fn atan2(&self, x: &Float, precision: u64) -> Float {
        let bits = precision + GUARD;
        let (y_abs, x_abs) = (self.abs(), x.abs());
        let is_steep = y_abs.sub(&x_abs, bits).m.sign() == Sign::Plus;
        let tangent = if is_steep { x_abs.div(&y_abs, bits) } else { y_abs.div(&x_abs, bits) };
        let mut angle = atan_below_one(&tangent, bits);
        if is_steep {
            angle = (pi(bits) >> 1u32) - angle;
        }
        if x.is_negative() {
            angle = pi(bits) - angle;
        }
        if self.is_negative() {
            angle = -angle;
        }
        Float::from_fixed(angle, bits, precision)
    }
}

/// `first + next(first, 1) + next(.., 2) + ...` until a term vanishes.
fn sum_series(first: &BigInt, next: impl Fn(&BigInt, u32) -> BigInt) -> BigInt {
    let (mut sum, mut term) = (first.clone(), first.clone());
    for n in 1.. {
        term = next(&term, n);
        // A shift of a negative number rounds down, so its series ends at -1 and not at 0.
        if term.bits() <= 1 {
            break;
        }
        sum += &term;
    }
    sum
}

/// `t0 / 1 + t1 / 3 + t2 / 5 + ...` with `t(k+1) = next(t(k))` until a term vanishes.
fn sum_odd_series(first: &BigInt, next: impl Fn(&BigInt) -> BigInt) -> BigInt {
    let (mut sum, mut power) = (first.clone(), first.clone());
    for n in 1u32.. {
        power = next(&power);
        if power.bits() <= 1 {
            break;
        }
        sum += &power / (2 * n + 1);
    }
    sum
}

/// The arc tangent of a number from 0 to 1, in fixed point.
fn atan_below_one(tangent: &Float, bits: u64) -> BigInt {
    let halvings = 6;
    let bits_in = bits + 2 * halvings;
    let one = BigInt::one() << bits_in;
    let mut x = tangent.fixed(bits_in);
    for _ in 0..halvings {
        // atan x = 2 atan(x / (1 + sqrt(1 + x^2)))
        let hypotenuse = ((&one << bits_in) + &x * &x).sqrt();
        x = (x << bits_in) / (&one + hypotenuse);
    }
    let square = (&x * &x) >> bits_in;
    let series = sum_odd_series(&x, |term| -((term * &square) >> bits_in));
    series >> halvings
}

/// `atan(1 / n)` (or the hyperbolic one) in fixed point.
fn inverse_series(n: u32, bits: u64, is_hyperbolic: bool) -> BigInt {
    let first = (BigInt::one() << bits) / n;
    let square = n * n;
    sum_odd_series(&first, |term| if is_hyperbolic { term / square } else { -(term / square) })
}

/// Machin (1706): pi = 16 atan(1/5) - 4 atan(1/239).
fn pi(bits: u64) -> BigInt {
    let wide = bits + 16;
    (inverse_series(5, wide, false) * 16 - inverse_series(239, wide, false) * 4) >> 16u32
}

/// ln 2 = 18 atanh(1/26) - 2 atanh(1/4801) + 8 atanh(1/8749).
fn ln2(bits: u64) -> BigInt {
    let wide = bits + 16;
    let atanh = |n| inverse_series(n, wide, true);
    (atanh(26) * 18 - atanh(4801) * 2 + atanh(8749) * 8) >> 16u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn float(num: i64, den: i64, precision: u64) -> Float {
        Float::from_rational(&Rational::new(num.into(), den.into()).unwrap(), precision)
    }

    fn to_f64(x: &Float) -> f64 {
        let bits = x.fixed(80);
        bits.to_f64().unwrap() / 2f64.powi(80)
    }

    /// `a` and `b` agree to `bits` bits below the point.
    fn agree(a: &Float, b: &Float, bits: i64) -> bool {
        a.sub(b, 2000).magnitude().is_none_or(|k| k < -bits)
    }

    #[test]
    fn functions_agree_with_f64() {
        for (num, den) in [(1, 3), (-7, 5), (1, 1000), (29, 2), (-300, 7), (2, 1), (1, 1), (0, 1)] {
            let (x, value) = (float(num, den, 200), num as f64 / den as f64);
            let near = |ours: &Float, theirs: f64, name: &str| {
                let error = (to_f64(ours) - theirs).abs();
                assert!(error <= 1e-14 * theirs.abs().max(1.0), "{name}({value}) is off by {error}");
            };
            near(&x.exp(150), value.exp(), "exp");
            near(&x.sin_cos(150).0, value.sin(), "sin");
            near(&x.sin_cos(150).1, value.cos(), "cos");
            for other in [-1.5, 0.25, 40.0] {
                let y = float((other * 4.0) as i64, 4, 200);
                near(&x.atan2(&y, 150), value.atan2(other), "atan2");
            }
            if value > 0.0 {
                near(&x.ln(150), value.ln(), "ln");
                near(&x.sqrt(150), value.sqrt(), "sqrt");
            }
        }
    }

    #[test]
    fn identities_hold_to_every_precision() {
        for precision in [64, 128, 256, 1000] {
            let bits = i64::try_from(precision).unwrap() - 8;
            for (num, den) in [(1, 7), (22, 7), (355, 113)] {
                let x = float(num, den, precision + 20);
                assert!(
                    agree(&x.exp(precision).ln(precision), &x, bits - 5),
                    "ln exp {num}/{den} at {precision}"
                );
                let (sin, cos) = x.sin_cos(precision);
                let one = sin.mul(&sin, precision).add(&cos.mul(&cos, precision), precision);
                assert!(agree(&one, &Float::one(), bits), "sin^2 + cos^2 at {precision}");
                let root = x.sqrt(precision);
                assert!(agree(&root.mul(&root, precision + 8), &x, bits - 4), "sqrt at {precision}");
            }
            let quarter_turn = Float::one().atan2(&Float::one(), precision).scaled(2);
            assert!(agree(&quarter_turn, &Float::pi(precision), bits), "4 atan 1 at {precision}");
        }
    }
}
