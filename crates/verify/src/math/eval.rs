//! The value of a tree at a point: exact where it is rational, else complex to a chosen number of bits.

use std::cell::Cell;

use num_bigint::BigInt;
use num_traits::ToPrimitive;

use super::complex::{Complex, EvalError};
use super::expr::{Constant, Expr, Function, Sign};
use super::number::Rational;

/// Rational numbers longer than this become floating point.
const MAX_EXACT_BITS: u64 = 4096;

/// Factorials and binomials of larger numbers are not computed.
const MAX_FACTORIAL: i64 = 1000;

/// A number.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Exactly this.
    Exact(Rational),
    /// This, to within its error.
    Approximate(Complex),
}

type Evaluated = Result<Value, EvalError>;

/// Evaluates trees at one point.
pub(super) struct Evaluator<'a> {
    /// The bits of what is not rational.
    pub(super) precision: u64,
    /// The variables, sorted, and their values.
    pub(super) names: &'a [String],
    /// See `names`.
    pub(super) values: &'a [Rational],
    /// Whether 25% is 1/4; else it is 25.
    pub(super) percent_is_fraction: bool,
    /// Work that may still be done, in units of about a tenth of a microsecond; shared by all evaluations of a verdict.
    pub(super) fuel: &'a Cell<u64>,
}

impl Evaluator<'_> {
    fn burn(&self, cost: u64) -> Result<(), EvalError> {
        let left = self.fuel.get().checked_sub(cost);
        self.fuel.set(left.unwrap_or(0));
        left.map(drop).ok_or(EvalError::TooLarge)
    }

    /// The cost of an operation on numbers of `bits` bits.
    fn burn_bits(&self, bits: u64) -> Result<(), EvalError> {
        let words = bits / 64 + 1;
        self.burn(1 + words * words / 2)
    }

    fn complex(&self, value: &Value) -> Complex {
        match value {
            Value::Exact(exact) => Complex::from_rational(exact, self.precision),
            Value::Approximate(complex) => complex.clone(),
        }
    }

    /// The value of `expr`.
    pub(super) fn value(&self, expr: &Expr) -> Evaluated {
        self.burn(1)?;
        match expr {
            Expr::Number { value, .. } | Expr::Based { value, .. } => Ok(Value::Exact(value.clone())),
            Expr::Constant(constant) => self.constant(*constant),
            Expr::Variable(name) => {
                let at = self.names.binary_search(name).map_err(|_| EvalError::NotScalar)?;
                Ok(Value::Exact(self.values[at].clone()))
            }
            Expr::Group(e) | Expr::Unit(e, _) => self.value(e),
            Expr::Percent(e) if self.percent_is_fraction => {
                self.mul(&self.value(e)?, &Value::Exact(hundredth()))
            }
            Expr::Percent(e) => self.value(e),
            // Degrees outside of functions are a unit; `angle` turns them into radians inside.
            Expr::Degree(e) => self.value(e),
            Expr::Sum(terms) => {
                let mut sum = Value::Exact(Rational::integer(0));
                for (sign, term) in terms {
                    let term = self.value(term)?;
                    sum = self.add(&sum, &if *sign == Sign::Minus { negated(&term) } else { term })?;
                }
                Ok(sum)
            }
            Expr::Product(factors) => {
                let mut product = Value::Exact(Rational::integer(1));
                for (divides, factor) in factors {
                    let factor = self.value(factor)?;
                    let factor = if *divides { self.inverse(&factor)? } else { factor };
                    product = self.mul(&product, &factor)?;
                }
                Ok(product)
            }
            Expr::Power(base, exponent) => self.power(&self.value(base)?, &self.value(exponent)?),
            Expr::Call(function, arguments) => self.call(*function, arguments),
            _ => Err(EvalError::NotScalar),
        }
    }

    fn constant(&self, constant: Constant) -> Evaluated {
        match constant {
            Constant::Pi => {
                self.burn_bits(4 * self.precision)?;
                Ok(Value::Approximate(Complex::pi(self.precision)))
            }
            Constant::Euler => self.exp(&Value::Exact(Rational::integer(1))),
            Constant::Imaginary => Ok(Value::Approximate(Complex::i())),
            Constant::Infinity => Err(EvalError::NotScalar),
        }
    }

    /// An exact value short enough to go on with, else its approximation.
    fn bounded(&self, exact: Rational) -> Value {
        match exact.bits() <= MAX_EXACT_BITS {
            true => Value::Exact(exact),
            false => Value::Approximate(Complex::from_rational(&exact, self.precision)),
        }
    }

    fn binary(
        &self,
        a: &Value,
        b: &Value,
        exact: impl Fn(&Rational, &Rational) -> Rational,
        approximate: impl Fn(&Complex, &Complex, u64) -> Result<Complex, EvalError>,
    ) -> Evaluated {
        if let (Value::Exact(a), Value::Exact(b)) = (a, b) {
            self.burn_bits(a.bits() + b.bits())?;
            return Ok(self.bounded(exact(a, b)));
        }
        self.burn_bits(self.precision)?;
        Ok(Value::Approximate(approximate(&self.complex(a), &self.complex(b), self.precision)?))
    }

    fn add(&self, a: &Value, b: &Value) -> Evaluated {
        self.binary(a, b, Rational::add, Complex::add)
    }

    fn mul(&self, a: &Value, b: &Value) -> Evaluated {
        // Zero times anything is zero, exactly.
        if let (Value::Exact(zero), _) | (_, Value::Exact(zero)) = (a, b)
            && zero.is_zero()
        {
            return Ok(Value::Exact(zero.clone()));
        }
        self.binary(a, b, Rational::mul, Complex::mul)
    }

    fn inverse(&self, a: &Value) -> Evaluated {
        match a {
            Value::Exact(a) => {
                let one = Rational::integer(1);
                one.div(a).map(Value::Exact).ok_or(EvalError::Undefined)
            }
            Value::Approximate(a) => Ok(Value::Approximate(a.inverse(self.precision)?)),
        }
    }

    fn transcendental(
        &self,
        a: &Value,
        function: impl Fn(&Complex, u64) -> Result<Complex, EvalError>,
    ) -> Evaluated {
        self.burn_bits(12 * self.precision)?;
        Ok(Value::Approximate(function(&self.complex(a), self.precision)?))
    }

    fn exp(&self, a: &Value) -> Evaluated {
        if matches!(a, Value::Exact(zero) if zero.is_zero()) {
            return Ok(Value::Exact(Rational::integer(1)));
        }
        self.transcendental(a, Complex::exp)
    }

    fn ln(&self, a: &Value) -> Evaluated {
        match a {
            Value::Exact(one) if *one == Rational::integer(1) => Ok(Value::Exact(Rational::integer(0))),
            Value::Exact(zero) if zero.is_zero() => Err(EvalError::Undefined),
            _ => self.transcendental(a, Complex::ln),
        }
    }

    fn power(&self, base: &Value, exponent: &Value) -> Evaluated {
        if let Value::Exact(n) = exponent {
            if let Some(n) = n.to_i64() {
                return self.integer_power(base, n);
            }
            if let (Value::Exact(b), Some(degree)) = (base, n.den().to_u32())
                && let Some(root) = self.exact_root(b, degree)?
            {
                let n = n.num().to_i64().ok_or(EvalError::TooLarge)?;
                // The principal value, which for a negative base is not the real root.
                if !b.is_negative() {
                    return self.integer_power(&Value::Exact(root), n);
                }
            }
            if n.den().to_u32() == Some(2) {
                let root = self.root(base, 2)?;
                return self.integer_power(&root, n.num().to_i64().ok_or(EvalError::TooLarge)?);
            }
        }
        if matches!(base, Value::Exact(zero) if zero.is_zero()) {
            // 0^x is 0 for a positive x; what lies elsewhere is not defined.
            let is_positive = matches!(exponent, Value::Exact(n) if !n.is_negative());
            return if is_positive { Ok(base.clone()) } else { Err(EvalError::Undefined) };
        }
        self.exp(&self.mul(exponent, &self.ln(base)?)?)
    }

    fn integer_power(&self, base: &Value, n: i64) -> Evaluated {
        if let (Value::Exact(b), Ok(small)) = (base, i32::try_from(n)) {
            if b.is_zero() {
                let zero = b.pow(small).filter(|_| n != 0);
                return zero.map(Value::Exact).ok_or(EvalError::Undefined);
            }
            if b.bits().saturating_mul(n.unsigned_abs()) <= MAX_EXACT_BITS || b.abs() == Rational::integer(1)
            {
                self.burn_bits(b.bits().saturating_mul(n.unsigned_abs()).min(MAX_EXACT_BITS))?;
                return b.pow(small).map(Value::Exact).ok_or(EvalError::Undefined);
            }
        }
        let mut square = self.complex(base);
        if n.unsigned_abs() > 1 << 20 {
            // Each squaring doubles the error, so a long power is taken through the logarithm.
            return self.exp(&self.mul(&Value::Exact(Rational::integer(n)), &self.ln(base)?)?);
        }
        let (mut power, mut left) =
            (Complex::from_rational(&Rational::integer(1), self.precision), n.unsigned_abs());
        while left > 0 {
            self.burn_bits(2 * self.precision)?;
            if left % 2 == 1 {
                power = power.mul(&square, self.precision)?;
            }
            left /= 2;
            if left > 0 {
                square = square.mul(&square, self.precision)?;
            }
        }
        let power = Value::Approximate(power);
        if n < 0 { self.inverse(&power) } else { Ok(power) }
    }

    fn exact_root(&self, value: &Rational, degree: u32) -> Result<Option<Rational>, EvalError> {
        self.burn_bits(2 * value.bits())?;
        Ok(if u64::from(degree) <= value.bits().max(1) || value.bits() <= 1 {
            value.root(degree)
        } else {
            None
        })
    }

    /// The real root where there is one, else the principal one.
    fn root(&self, value: &Value, degree: u32) -> Evaluated {
        if degree == 0 {
            return Err(EvalError::Undefined);
        }
        if let Value::Exact(exact) = value {
            if let Some(root) = self.exact_root(exact, degree)? {
                return Ok(Value::Exact(root));
            }
            if exact.is_zero() {
                return Ok(value.clone());
            }
        }
        if degree == 2 {
            self.burn_bits(2 * self.precision)?;
            return Ok(Value::Approximate(self.complex(value).sqrt(self.precision)?));
        }
        let is_negative = self.complex(value).is_negative();
        if is_negative && degree % 2 == 1 {
            return Ok(negated(&self.root(&negated(value), degree)?));
        }
        let share = Rational::new(BigInt::from(1), BigInt::from(degree)).ok_or(EvalError::Undefined)?;
        self.exp(&self.mul(&Value::Exact(share), &self.ln(value)?)?)
    }

    /// The argument of a trigonometric function: degrees become radians.
    fn angle(&self, expr: &Expr) -> Evaluated {
        let value = self.value(expr)?;
        if !expr.any(&|e| matches!(e, Expr::Degree(_))) {
            return Ok(value);
        }
        let share = Rational::new(BigInt::from(1), BigInt::from(180)).ok_or(EvalError::Undefined)?;
        self.mul(&value, &self.mul(&Value::Exact(share), &self.constant(Constant::Pi)?)?)
    }

    fn call(&self, function: Function, arguments: &[Expr]) -> Evaluated {
        let first = arguments.first().ok_or(EvalError::NotScalar)?;
        let (one, i) = (Value::Exact(Rational::integer(1)), Value::Approximate(Complex::i()));
        match function {
            Function::Sin | Function::Cos | Function::Tan | Function::Cot | Function::Sec | Function::Csc => {
                let angle = self.angle(first)?;
                self.burn_bits(12 * self.precision)?;
                let (sin, cos) = self.complex(&angle).sin_cos(self.precision)?;
                let (sin, cos) = (Value::Approximate(sin), Value::Approximate(cos));
                match function {
                    Function::Sin => Ok(sin),
                    Function::Cos => Ok(cos),
                    Function::Tan => self.mul(&sin, &self.inverse(&cos)?),
                    Function::Cot => self.mul(&cos, &self.inverse(&sin)?),
                    Function::Sec => self.inverse(&cos),
                    _ => self.inverse(&sin),
                }
            }
            Function::Arcsin | Function::Arccos => {
                // arcsin z = -i ln(i z + sqrt(1 - z^2)); arccos z = pi / 2 - arcsin z.
                let z = self.value(first)?;
                let rest = self.add(&one, &negated(&self.mul(&z, &z)?))?;
                let sum = self.add(&self.mul(&i, &z)?, &self.root(&rest, 2)?)?;
                let arcsin = self.mul(&negated(&i), &self.ln(&sum)?)?;
                if function == Function::Arcsin {
                    return Ok(arcsin);
                }
                let quarter = self.mul(&self.constant(Constant::Pi)?, &self.half())?;
                self.add(&quarter, &negated(&arcsin))
            }
            Function::Arctan => {
                // arctan z = i / 2 (ln(1 - i z) - ln(1 + i z))
                let iz = self.mul(&i, &self.value(first)?)?;
                let (below, above) = (self.add(&one, &negated(&iz))?, self.add(&one, &iz)?);
                let difference = self.add(&self.ln(&below)?, &negated(&self.ln(&above)?))?;
                self.mul(&self.mul(&i, &self.half())?, &difference)
            }
            Function::Sinh | Function::Cosh | Function::Tanh => {
                let forth = self.exp(&self.value(first)?)?;
                let back = self.inverse(&forth)?;
                let (sum, difference) = (self.add(&forth, &back)?, self.add(&forth, &negated(&back))?);
                match function {
                    Function::Sinh => self.mul(&difference, &self.half()),
                    Function::Cosh => self.mul(&sum, &self.half()),
                    _ => self.mul(&difference, &self.inverse(&sum)?),
                }
            }
            Function::Exp => self.exp(&self.value(first)?),
            Function::Ln => self.ln(&self.value(first)?),
            Function::Log => {
                let base = self.value(arguments.get(1).ok_or(EvalError::NotScalar)?)?;
                self.mul(&self.ln(&self.value(first)?)?, &self.inverse(&self.ln(&base)?)?)
            }
            Function::Root => {
                let degree = self.value(arguments.get(1).ok_or(EvalError::NotScalar)?)?;
                let radicand = self.value(first)?;
                match &degree {
                    Value::Exact(n) if n.to_i64().is_some_and(|n| (1..=1000).contains(&n)) => {
                        let degree = n.to_i64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
                        self.root(&radicand, degree)
                    }
                    _ => self.power(&radicand, &self.inverse(&degree)?),
                }
            }
            Function::Abs => match self.value(first)? {
                Value::Exact(value) => Ok(Value::Exact(value.abs())),
                Value::Approximate(value) => Ok(Value::Approximate(value.abs(self.precision)?)),
            },
            Function::Floor => self.floor(first).map(Value::Exact),
            Function::Ceil => {
                let negative = Expr::Sum(vec![(Sign::Minus, first.clone())]);
                Ok(Value::Exact(self.floor(&negative)?.neg()))
            }
            Function::Factorial => {
                let n = self.small_integer(first)?;
                self.burn_bits(MAX_EXACT_BITS.min(u64::try_from(n).unwrap_or(0) * 8))?;
                let product = (2..=n).fold(BigInt::from(1), |product, k| product * k);
                Ok(self.bounded(Rational::integer(product)))
            }
            Function::Binomial => {
                let (n, k) = (
                    self.small_integer(first)?,
                    self.small_integer(arguments.get(1).ok_or(EvalError::NotScalar)?)?,
                );
                self.burn_bits(MAX_EXACT_BITS.min(u64::try_from(n).unwrap_or(0)))?;
                let k = if k > n { return Ok(Value::Exact(Rational::integer(0))) } else { k.min(n - k) };
                // After each step the product is a binomial itself, so every division is exact.
                let value = (0..k).fold(BigInt::from(1), |value, j| value * (n - j) / (j + 1));
                Ok(self.bounded(Rational::integer(value)))
            }
        }
    }

    fn half(&self) -> Value {
        Value::Exact(Rational::decimal("", "5", "").unwrap_or_else(|| Rational::integer(0)))
    }

    fn floor(&self, expr: &Expr) -> Result<Rational, EvalError> {
        match self.value(expr)? {
            Value::Exact(value) => Ok(value.floor()),
            // The floor of something irrational would need a proof that it is no integer.
            Value::Approximate(_) => Err(EvalError::Undefined),
        }
    }

    fn small_integer(&self, expr: &Expr) -> Result<i64, EvalError> {
        match self.value(expr)? {
            Value::Exact(n) => match n.to_i64() {
                Some(n) if (0..=MAX_FACTORIAL).contains(&n) => Ok(n),
                Some(n) if n > MAX_FACTORIAL => Err(EvalError::TooLarge),
                _ => Err(EvalError::Undefined),
            },
            Value::Approximate(_) => Err(EvalError::Undefined),
        }
    }

    /// Whether it may be real.
    pub(super) fn is_real(&self, value: &Value) -> bool {
        match value {
            Value::Exact(_) => true,
            Value::Approximate(value) => value.is_real(),
        }
    }

    /// Whether the two are the same; `None` where it cannot be told.
    pub(super) fn same(&self, a: &Value, b: &Value) -> Option<bool> {
        match (a, b) {
            (Value::Exact(a), Value::Exact(b)) => Some(a == b),
            _ => self.complex(a).same(&self.complex(b), self.precision),
        }
    }

    /// Whether `a` is within the relative `tolerance` of `gold`; absolute where `gold` is zero.
    pub(super) fn is_near(&self, a: &Value, gold: &Value, tolerance: &Rational) -> bool {
        match (a, gold) {
            (Value::Exact(a), Value::Exact(gold)) => {
                let scale = if gold.is_zero() { Rational::integer(1) } else { gold.abs() };
                a.sub(gold).abs() <= scale.mul(tolerance)
            }
            _ => self.complex(a).is_near(&self.complex(gold), tolerance, self.precision),
        }
    }

    /// `a / b`, for equations up to a factor.
    pub(super) fn ratio(&self, a: &Value, b: &Value) -> Evaluated {
        self.mul(a, &self.inverse(b)?)
    }
}

fn hundredth() -> Rational {
    Rational::decimal("", "01", "").unwrap_or_else(|| Rational::integer(0))
}

fn negated(value: &Value) -> Value {
    match value {
        Value::Exact(value) => Value::Exact(value.neg()),
        Value::Approximate(value) => Value::Approximate(value.neg()),
    }
}
