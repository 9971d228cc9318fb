//! Exact rational numbers of any size.

use std::cmp::Ordering;

use num_bigint::BigInt;
use num_integer::Integer;
use num_traits::{One, Signed, ToPrimitive, Zero};

/// A reduced fraction with a positive denominator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rational {
    num: BigInt,
    den: BigInt,
}

impl Rational {
    /// `num / den`, reduced; `None` for a zero denominator.
    pub(super) fn new(num: BigInt, den: BigInt) -> Option<Rational> {
        if den.is_zero() {
            return None;
        }
        if den.is_one() {
            return Some(Rational { num, den });
        }
        let gcd = num.gcd(&den);
        let (mut num, mut den) = if gcd.is_one() { (num, den) } else { (num / &gcd, den / &gcd) };
        if den.is_negative() {
            num = -num;
            den = -den;
        }
        Some(Rational { num, den })
    }

    pub(super) fn integer(value: impl Into<BigInt>) -> Rational {
        Rational { num: value.into(), den: BigInt::one() }
    }

    /// The number whose decimal digits are `whole.fraction`, then `repeating` for ever. All three are digits or empty.
    pub(super) fn decimal(whole: &str, fraction: &str, repeating: &str) -> Option<Rational> {
        let digits = |text: &str| if text.is_empty() { Some(BigInt::zero()) } else { text.parse().ok() };
        let ten = |n: usize| BigInt::from(10).pow(u32::try_from(n).unwrap_or(u32::MAX));
        let finite = digits(&format!("{whole}{fraction}"))?;
        let scale = ten(fraction.len());
        if repeating.is_empty() {
            return Rational::new(finite, scale);
        }
        // a.b(c): (abc - ab) / (10^|b| (10^|c| - 1)).
        let nines = ten(repeating.len()) - 1;
        Rational::new(finite * &nines + digits(repeating)?, scale * nines)
    }

    pub(super) fn num(&self) -> &BigInt {
        &self.num
    }

    pub(super) fn den(&self) -> &BigInt {
        &self.den
    }

    /// The larger of the lengths of numerator and denominator, in bits.
    pub(super) fn bits(&self) -> u64 {
        self.num.bits().max(self.den.bits())
    }

    pub(super) fn is_zero(&self) -> bool {
        self.num.is_zero()
    }

    pub(super) fn is_negative(&self) -> bool {
        self.num.is_negative()
    }

    pub(super) fn is_integer(&self) -> bool {
        self.den.is_one()
    }

    /// The value as `i64`, if it is an integer of that size.
    pub(super) fn to_i64(&self) -> Option<i64> {
        if self.is_integer() { self.num.to_i64() } else { None }
    }

    pub(super) fn neg(&self) -> Rational {
        Rational { num: -&self.num, den: self.den.clone() }
    }

    pub(super) fn abs(&self) -> Rational {
        Rational { num: self.num.abs(), den: self.den.clone() }
    }

    pub(super) fn add(&self, other: &Rational) -> Rational {
        let num = match self.den == other.den {
            true => &self.num + &other.num,
            false => &self.num * &other.den + &other.num * &self.den,
        };
        let den = if self.den == other.den { self.den.clone() } else { &self.den * &other.den };
        Rational::new(num, den).expect("denominators are not zero")
    }

    pub(super) fn sub(&self, other: &Rational) -> Rational {
        self.add(&other.neg())
    }

    pub(super) fn mul(&self, other: &Rational) -> Rational {
        Rational::new(&self.num * &other.num, &self.den * &other.den).expect("denominators are not zero")
    }

    /// The quotient; `None` for division by zero.
    pub(super) fn div(&self, other: &Rational) -> Option<Rational> {
        Rational::new(&self.num * &other.den, &self.den * &other.num)
    }

    /// The power; `None` for a negative power of zero. The caller bounds the size.
    pub(super) fn pow(&self, exponent: i32) -> Option<Rational> {
        let n = exponent.unsigned_abs();
        let (num, den) = (self.num.pow(n), self.den.pow(n));
        // A power of a reduced fraction is reduced.
        match exponent >= 0 {
            true => Some(Rational { num, den }),
            false if num.is_zero() => None,
            false if num.is_negative() => Some(Rational { num: -den, den: -num }),
            false => Some(Rational { num: den, den: num }),
        }
    }

    /// The real `n`-th root where it is rational.
    pub(super) fn root(&self, n: u32) -> Option<Rational> {
        if n == 0 || (n.is_multiple_of(2) && self.is_negative()) {
            return None;
        }
        let exact = |x: &BigInt| {
            let root = x.nth_root(n);
            (root.pow(n) == *x).then_some(root)
        };
        Some(Rational { num: exact(&self.num)?, den: exact(&self.den)? })
    }

    pub(super) fn floor(&self) -> Rational {
        Rational::integer(self.num.div_floor(&self.den))
    }
}

impl Ord for Rational {
    fn cmp(&self, other: &Rational) -> Ordering {
        (&self.num * &other.den).cmp(&(&other.num * &self.den))
    }
}

impl PartialOrd for Rational {
    fn partial_cmp(&self, other: &Rational) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(num: i64, den: i64) -> Rational {
        Rational::new(num.into(), den.into()).unwrap()
    }

    #[test]
    fn decimals_are_exact() {
        for (whole, fraction, repeating, num, den) in [
            ("0", "5", "", 1, 2),
            ("", "125", "", 1, 8),
            ("0", "", "3", 1, 3),
            ("0", "1", "6", 1, 6),
            ("0", "", "9", 1, 1),
            ("12", "", "27", 135, 11),
        ] {
            assert_eq!(
                Rational::decimal(whole, fraction, repeating),
                Some(ratio(num, den)),
                "{whole}.{fraction}({repeating})"
            );
        }
    }

    #[test]
    fn roots_and_powers_are_exact_or_absent() {
        assert_eq!(ratio(4, 9).root(2), Some(ratio(2, 3)));
        assert_eq!(ratio(-8, 27).root(3), Some(ratio(-2, 3)));
        assert_eq!(ratio(-4, 9).root(2), None);
        assert_eq!(ratio(2, 1).root(2), None);
        assert_eq!(ratio(-2, 3).pow(-3), Some(ratio(-27, 8)));
        assert_eq!(ratio(0, 1).pow(-1), None);
    }
}
