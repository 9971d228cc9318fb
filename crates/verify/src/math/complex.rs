//! Complex numbers to a chosen number of bits that know how wrong they may be.
//!
//! Every operation carries an upper bound of the absolute error along (running error analysis; Higham, *Accuracy and
//! Stability of Numerical Algorithms*, 2nd ed., section 3.3). Two values are the same only where the difference is within
//! a bound that is itself tiny, so a loss of digits ends in "cannot tell" and never in "equal".

use super::float::Float;
use super::number::Rational;

/// Why an expression has no value here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum EvalError {
    /// Division by zero, the logarithm of zero and the like, or too few digits left to tell.
    #[error("it is undefined")]
    Undefined,
    /// A number, or the work, beyond the bounds.
    #[error("it is too large to compute")]
    TooLarge,
    /// A set, a text, infinity: no number.
    #[error("it is not a number")]
    NotScalar,
}

/// The logarithm of the bound of an exact value.
const EXACT: i64 = i64::MIN / 4;

/// No magnitude beyond `2^±this`, so that exponents never overflow.
const MAX_MAGNITUDE: i64 = 1 << 44;

/// Arguments of exponentials lie below `2^this`.
const MAX_EXP: i64 = 40;

/// Arguments of sine and cosine lie below `2^this`.
const MAX_ANGLE: i64 = 64;

/// A complex number and the logarithm (base 2) of a bound of its error.
#[derive(Clone, Debug)]
pub(super) struct Complex {
    pub(super) re: Float,
    pub(super) im: Float,
    err: i64,
}

fn as_i64(precision: u64) -> i64 {
    i64::try_from(precision).unwrap_or(i64::MAX / 8)
}

impl Complex {
    pub(super) fn from_rational(value: &Rational, precision: u64) -> Complex {
        let re = Float::from_rational(value, precision);
        let is_exact = value.is_integer() && value.bits() <= precision;
        let err = if is_exact { EXACT } else { re.magnitude().map_or(EXACT, |k| k - as_i64(precision) + 1) };
        Complex { re, im: Float::zero(), err }
    }

    pub(super) fn i() -> Complex {
        Complex { re: Float::zero(), im: Float::one(), err: EXACT }
    }

    pub(super) fn pi(precision: u64) -> Complex {
        Complex { re: Float::pi(precision), im: Float::zero(), err: 3 - as_i64(precision) }
    }

    /// Above the logarithm of the absolute value; that of an exact zero is far below everything.
    fn high(&self) -> i64 {
        let parts = [self.re.magnitude(), self.im.magnitude()];
        parts.into_iter().flatten().max().map_or(EXACT, |k| k + 1)
    }

    /// Below the logarithm of the absolute value; an error where it may be zero.
    fn low(&self) -> Result<i64, EvalError> {
        let low = self.high() - 3;
        if low > self.err { Ok(low) } else { Err(EvalError::Undefined) }
    }

    fn checked(re: Float, im: Float, err: i64, precision: u64) -> Result<Complex, EvalError> {
        let mut value = Complex { re, im, err: EXACT };
        let high = value.high();
        if high > MAX_MAGNITUDE || (high < -MAX_MAGNITUDE && high > EXACT) {
            return Err(EvalError::TooLarge);
        }
        value.err = err.max(high - as_i64(precision)).max(EXACT) + 1;
        Ok(value)
    }

    pub(super) fn neg(&self) -> Complex {
        Complex { re: self.re.neg(), im: self.im.neg(), err: self.err }
    }

    pub(super) fn add(&self, other: &Complex, precision: u64) -> Result<Complex, EvalError> {
        let (re, im) = (self.re.add(&other.re, precision), self.im.add(&other.im, precision));
        // The parts are rounded at their own size, which cancellation may leave far below that of the summands; each part
        // that was dropped or rounded is below the summands' last bit.
        let rounding = self.high().max(other.high()) - as_i64(precision);
        Complex::checked(re, im, self.err.max(other.err).max(rounding) + 1, precision)
    }

    pub(super) fn mul(&self, other: &Complex, precision: u64) -> Result<Complex, EvalError> {
        let p = precision + 4;
        let re = self.re.mul(&other.re, p).sub(&self.im.mul(&other.im, p), p);
        let im = self.re.mul(&other.im, p).add(&self.im.mul(&other.re, p), p);
        let (a, b) = (self.high(), other.high());
        let err = (a + other.err).max(b + self.err).max(self.err + other.err).max(a + b - as_i64(precision));
        Complex::checked(re, im, err + 2, precision)
    }

    pub(super) fn inverse(&self, precision: u64) -> Result<Complex, EvalError> {
        let low = self.low()?;
        let p = precision + 8;
        let norm = self.re.mul(&self.re, p).add(&self.im.mul(&self.im, p), p);
        let (re, im) = (self.re.div(&norm, p), self.im.neg().div(&norm, p));
        Complex::checked(re, im, (self.err - 2 * low).max(-low - as_i64(precision)) + 2, precision)
    }

    fn abs_float(&self, precision: u64) -> Float {
        if self.im.is_zero() {
            return self.re.abs();
        }
        let p = precision + 8;
        self.re.mul(&self.re, p).add(&self.im.mul(&self.im, p), p).sqrt(p)
    }

    pub(super) fn abs(&self, precision: u64) -> Result<Complex, EvalError> {
        Complex::checked(self.abs_float(precision), Float::zero(), self.err + 1, precision)
    }

    /// The imaginary part, or zero where it is within the error: the branch cuts lie on the real axis.
    fn snapped_im(&self) -> Float {
        if self.im.magnitude().is_some_and(|k| k > self.err) { self.im.clone() } else { Float::zero() }
    }

    /// Whether it may be real.
    pub(super) fn is_real(&self) -> bool {
        self.snapped_im().is_zero()
    }

    /// Whether it is real and certainly below zero.
    pub(super) fn is_negative(&self) -> bool {
        self.is_real() && self.re.is_negative() && self.re.magnitude().is_some_and(|k| k - 1 > self.err)
    }

    /// The root with the real part at least zero.
    pub(super) fn sqrt(&self, precision: u64) -> Result<Complex, EvalError> {
        let Ok(low) = self.low() else {
            return Complex::checked(Float::zero(), Float::zero(), self.err / 2 + 1, precision);
        };
        let (p, im) = (precision + 8, self.snapped_im());
        let half = self.abs_float(p).add(&self.re.abs(), p).scaled(-1).sqrt(p);
        let other = im.div(&half, p).scaled(-1);
        let (re, im) = match (self.re.is_negative(), im.is_negative()) {
            (false, _) => (half, other),
            (true, false) => (other, half),
            (true, true) => (other.neg(), half.neg()),
        };
        Complex::checked(re, im, self.err - low / 2 + 1, precision)
    }

    pub(super) fn exp(&self, precision: u64) -> Result<Complex, EvalError> {
        if self.high() > MAX_EXP {
            return Err(EvalError::TooLarge);
        }
        if self.err > -2 {
            return Err(EvalError::Undefined);
        }
        let p = precision + 8;
        let size = self.re.exp(p);
        let (re, im) = match self.im.is_zero() {
            true => (size.clone(), Float::zero()),
            false => {
                let (sin, cos) = self.im.sin_cos(p);
                (size.mul(&cos, p), size.mul(&sin, p))
            }
        };
        let high = size.magnitude().unwrap_or(0) + 1;
        Complex::checked(re, im, (high + self.err).max(high - as_i64(precision)) + 2, precision)
    }

    pub(super) fn ln(&self, precision: u64) -> Result<Complex, EvalError> {
        let low = self.low()?;
        let (p, im) = (precision + 8, self.snapped_im());
        let re = self.abs_float(p + 8).ln(p);
        let angle =
            if im.is_zero() && !self.re.is_negative() { Float::zero() } else { im.atan2(&self.re, p) };
        Complex::checked(re, angle, (self.err - low).max(-as_i64(precision)) + 2, precision)
    }

    /// Sine and cosine, by real functions on the real axis and by exponentials elsewhere.
    pub(super) fn sin_cos(&self, precision: u64) -> Result<(Complex, Complex), EvalError> {
        if self.err > -2 {
            return Err(EvalError::Undefined);
        }
        if self.im.is_zero() {
            if self.high() > MAX_ANGLE {
                return Err(EvalError::TooLarge);
            }
            let (sin, cos) = self.re.sin_cos(precision + 8);
            let err = self.err.max(-as_i64(precision)) + 1;
            let real = |x| Complex::checked(x, Float::zero(), err, precision);
            return Ok((real(sin)?, real(cos)?));
        }
        let forth = self.mul(&Complex::i(), precision)?.exp(precision)?;
        let back = forth.inverse(precision)?;
        let half = |z: Complex| Complex { re: z.re.scaled(-1), im: z.im.scaled(-1), err: z.err };
        let sin = half(forth.add(&back.neg(), precision)?.mul(&Complex::i().neg(), precision)?);
        Ok((sin, half(forth.add(&back, precision)?)))
    }

    /// Whether the two are the same number: `None` where too few digits are left to tell.
    pub(super) fn same(&self, other: &Complex, precision: u64) -> Option<bool> {
        let Ok(difference) = self.add(&other.neg(), precision) else { return None };
        if difference.low().is_ok() {
            return Some(false);
        }
        let is_nonzero = self.low().is_ok() || other.low().is_ok();
        let scale = if is_nonzero { self.high().max(other.high()) } else { 0 };
        (difference.err < scale - as_i64(precision) / 2).then_some(true)
    }

    /// Whether `|self - other| <= tolerance * |other|`, or `<= tolerance` where `other` is zero.
    pub(super) fn is_near(&self, other: &Complex, tolerance: &Rational, precision: u64) -> bool {
        let Ok(difference) = self.add(&other.neg(), precision) else { return false };
        let bound = match other.low() {
            Ok(_) => other.abs_float(precision),
            Err(_) => Float::one(),
        };
        let limit = bound.mul(&Float::from_rational(tolerance, precision), precision);
        !limit.sub(&difference.abs_float(precision), precision).is_negative()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = 192;

    fn int(value: i64) -> Complex {
        Complex::from_rational(&Rational::integer(value), P)
    }

    #[test]
    fn values_are_told_apart_and_lost_digits_are_not_equality() {
        let root = |n| int(n).sqrt(P).unwrap();
        let product = root(2).mul(&root(3), P).unwrap();
        assert_eq!(product.same(&root(6), P), Some(true));
        assert_eq!(product.same(&root(7), P), Some(false));
        let near = Rational::decimal("2", "449489742783178098197284074705891391965947480", "").unwrap();
        let near = Complex::from_rational(&near, P);
        assert_eq!(root(6).same(&near, P), Some(false), "45 digits are not all digits");
        assert!(root(6).is_near(&near, &Rational::decimal("", "001", "").unwrap(), P));
        let huge = int(1).add(&int(10).mul(&int(10), P).unwrap(), P).unwrap();
        assert_eq!(huge.same(&int(101), P), Some(true));
    }

    #[test]
    fn functions_hold_on_the_complex_plane() {
        let i = Complex::i();
        let euler = i.mul(&Complex::pi(P), P).unwrap().exp(P).unwrap();
        assert_eq!(euler.same(&int(-1), P), Some(true), "e^(i pi) = -1");
        assert_eq!(int(-4).sqrt(P).unwrap().same(&int(2).mul(&i, P).unwrap(), P), Some(true));
        let (sin, cos) = int(3).add(&i, P).unwrap().sin_cos(P).unwrap();
        let one = sin.mul(&sin, P).unwrap().add(&cos.mul(&cos, P).unwrap(), P).unwrap();
        assert_eq!(one.same(&int(1), P), Some(true));
        let ln = int(-1).ln(P).unwrap();
        assert_eq!(ln.same(&i.mul(&Complex::pi(P), P).unwrap(), P), Some(true), "ln(-1) = i pi");
        assert_eq!(int(0).inverse(P).unwrap_err(), EvalError::Undefined);
        assert_eq!(int(1 << 50).exp(P).unwrap_err(), EvalError::TooLarge);
    }
}
