//! The tool `calculator`: exact arithmetic on decimal numbers.
//!
//! ```text
//! sum     = product { ("+" | "-") product }
//! product = power   { ("*" | "/") power }
//! power   = ["-"] atom ["^" power]                 whole exponents from -64 to 64
//! atom    = number | "(" sum ")"
//! ```
//!
//! Values are fractions of 128-bit integers, so no digit is lost; what does not fit is an error, never an approximation. A result
//! that is no finite decimal of at most [`MAX_DECIMALS`] places is rounded to so many and marked with `≈`.

use serde_json::{Map, Value, json};

use crate::catalogue::ToolInfo;
use crate::tools::{Limits, Tool, ToolError};

const NAME: &str = "calculator";
/// Places after the point of a result.
const MAX_DECIMALS: u32 = 12;
/// The greatest exponent.
const MAX_EXPONENT: u128 = 64;
/// The deepest nesting of parentheses and signs.
const MAX_DEPTH: usize = 64;

/// The catalogue's entry.
pub(crate) const INFO: ToolInfo = ToolInfo {
    name: NAME,
    summary: "exact arithmetic: + - * / ^ and parentheses",
    build: |_: &Limits| Ok(Box::new(Calculator)),
};

#[derive(Debug)]
struct Calculator;

impl Tool for Calculator {
    fn schema(&self) -> Value {
        json!({
            "type": "function",
            "function": {
                "name": NAME,
                "description": "Computes an arithmetic expression with + - * / ^ and parentheses.",
                "parameters": {
                    "type": "object",
                    "properties": { "expression": { "type": "string", "description": "As in 2 * (3 + 4)." } },
                    "required": ["expression"],
                },
            },
        })
    }

    fn call(&self, arguments: &Map<String, Value>) -> Result<String, ToolError> {
        let Some(expression) = arguments.get("expression").and_then(Value::as_str) else {
            return Err(ToolError::Caller(
                "the argument `expression` is missing, expected a text".to_owned(),
            ));
        };
        compute(expression).map_err(|problem| ToolError::Caller(format!("{problem} in `{expression}`")))
    }
}

/// A fraction in lowest terms, its denominator above 0.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Fraction {
    numerator: i128,
    denominator: i128,
}

const TOO_LARGE: &str = "a number is too large";

impl Fraction {
    fn new(numerator: i128, denominator: i128) -> Result<Fraction, String> {
        if denominator == 0 {
            return Err("division by zero".to_owned());
        }
        let (numerator, denominator) = match denominator < 0 {
            true => (numerator.checked_neg().ok_or(TOO_LARGE)?, denominator.checked_neg().ok_or(TOO_LARGE)?),
            false => (numerator, denominator),
        };
        let divisor = divisor(numerator.unsigned_abs(), denominator.unsigned_abs()).max(1);
        let divisor = i128::try_from(divisor).map_err(|_| TOO_LARGE)?;
        Ok(Fraction { numerator: numerator / divisor, denominator: denominator / divisor })
    }

    fn of(a: Option<i128>, b: Option<i128>) -> Result<Fraction, String> {
        Fraction::new(a.ok_or(TOO_LARGE)?, b.ok_or(TOO_LARGE)?)
    }

    fn plus(self, other: Fraction) -> Result<Fraction, String> {
        let (a, b) =
            (self.numerator.checked_mul(other.denominator), other.numerator.checked_mul(self.denominator));
        let sum = a.zip(b).and_then(|(a, b)| a.checked_add(b));
        Fraction::of(sum, self.denominator.checked_mul(other.denominator))
    }

    fn negated(self) -> Result<Fraction, String> {
        Fraction::of(self.numerator.checked_neg(), Some(self.denominator))
    }

    fn times(self, other: Fraction) -> Result<Fraction, String> {
        // Reduced crosswise first, so that what fits is not refused for what is between.
        let a = Fraction::new(self.numerator, other.denominator)?;
        let b = Fraction::new(other.numerator, self.denominator)?;
        Fraction::of(a.numerator.checked_mul(b.numerator), a.denominator.checked_mul(b.denominator))
    }

    fn inverse(self) -> Result<Fraction, String> {
        Fraction::new(self.denominator, self.numerator)
    }

    fn power(self, exponent: Fraction) -> Result<Fraction, String> {
        if exponent.denominator != 1 || exponent.numerator.unsigned_abs() > MAX_EXPONENT {
            return Err(format!("an exponent is no whole number from -{MAX_EXPONENT} to {MAX_EXPONENT}"));
        }
        let base = if exponent.numerator < 0 { self.inverse()? } else { self };
        (0..exponent.numerator.unsigned_abs())
            .try_fold(Fraction { numerator: 1, denominator: 1 }, |p, _| p.times(base))
    }
}

fn divisor(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { divisor(b, a % b) }
}

impl std::fmt::Display for Fraction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (sign, size) = (if self.numerator < 0 { "-" } else { "" }, self.numerator.unsigned_abs());
        let denominator = self.denominator.unsigned_abs();
        let (mut whole, mut rest) = (size / denominator, size % denominator);
        let mut digits = String::new();
        while rest != 0 && digits.len() < MAX_DECIMALS as usize {
            // Digit by digit, as on paper; the remainder is below the denominator.
            let Some(ten) = rest.checked_mul(10) else { break };
            digits.push(char::from(b'0' + (ten / denominator) as u8));
            rest = ten % denominator;
        }
        if rest == 0 {
            return match digits.is_empty() {
                true => write!(f, "{sign}{whole}"),
                false => write!(f, "{sign}{whole}.{digits}"),
            };
        }
        if rest >= denominator - rest {
            round_up(&mut whole, &mut digits);
        }
        let digits = digits.trim_end_matches('0');
        let point = if digits.is_empty() { "" } else { "." };
        write!(f, "≈{sign}{whole}{point}{digits}")
    }
}

/// Adds one to the last digit.
fn round_up(whole: &mut u128, digits: &mut String) {
    let mut bytes = std::mem::take(digits).into_bytes();
    let carries = bytes.iter().rev().take_while(|digit| **digit == b'9').count();
    let at = bytes.len() - carries;
    bytes[at..].fill(b'0');
    match at.checked_sub(1) {
        Some(last) => bytes[last] += 1,
        None => *whole += 1,
    }
    *digits = String::from_utf8(bytes).expect("digits are ASCII");
}

/// The value of an expression, as text.
fn compute(expression: &str) -> Result<String, String> {
    let text = expression.replace(['×', '·'], "*").replace('÷', "/").replace('−', "-").replace("**", "^");
    let mut parser = Parser { rest: text.trim_start(), depth: 0 };
    let value = parser.sum()?;
    match parser.rest.chars().next() {
        None => Ok(value.to_string()),
        Some(other) => Err(format!("unexpected `{other}`")),
    }
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl Parser<'_> {
    /// Whether `sign` comes next; takes it and the space after it.
    fn takes(&mut self, sign: char) -> bool {
        let Some(rest) = self.rest.strip_prefix(sign) else { return false };
        self.rest = rest.trim_start();
        true
    }

    fn sum(&mut self) -> Result<Fraction, String> {
        let mut value = self.product()?;
        loop {
            value = match () {
                () if self.takes('+') => value.plus(self.product()?)?,
                () if self.takes('-') => value.plus(self.product()?.negated()?)?,
                () => return Ok(value),
            };
        }
    }

    fn product(&mut self) -> Result<Fraction, String> {
        let mut value = self.power()?;
        loop {
            value = match () {
                () if self.takes('*') => value.times(self.power()?)?,
                () if self.takes('/') => value.times(self.power()?.inverse()?)?,
                () => return Ok(value),
            };
        }
    }

    fn power(&mut self) -> Result<Fraction, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} levels of parentheses and signs"));
        }
        let value = match self.takes('-') {
            true => self.power()?.negated()?,
            false => {
                let base = self.atom()?;
                if self.takes('^') { base.power(self.power()?)? } else { base }
            }
        };
        self.depth -= 1;
        Ok(value)
    }

    fn atom(&mut self) -> Result<Fraction, String> {
        if self.takes('(') {
            let value = self.sum()?;
            return if self.takes(')') { Ok(value) } else { Err("a parenthesis is not closed".to_owned()) };
        }
        let end = self.rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(end);
        let value = decimal(number).ok_or_else(|| match self.rest.chars().next() {
            None => "an operand is missing at the end".to_owned(),
            Some(other) => format!("`{other}` is no number"),
        })?;
        self.rest = rest.trim_start();
        value
    }
}

/// `12`, `1.5` or `.5`; `None` if it is none of these.
fn decimal(text: &str) -> Option<Result<Fraction, String>> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.contains('.') || (whole.is_empty() && part.is_empty()) {
        return None;
    }
    let numerator = format!("{whole}{part}").parse::<i128>().ok();
    let places = u32::try_from(part.len()).ok();
    Some(Fraction::of(numerator, places.and_then(|places| 10i128.checked_pow(places))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_computed_exactly_or_refused() {
        let check = |expression: &str, expected: Result<&str, &str>| {
            let found = compute(expression);
            match (&found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{expression}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{expression}: {found}"),
                _ => panic!("{expression}: {found:?}, expected {expected:?}"),
            }
        };
        check("1 + 2 * 3", Ok("7"));
        check(" (1 + 2)*3 - -4 ", Ok("13"));
        check("0.1 + 0.2", Ok("0.3"));
        check("2^3^2", Ok("512"));
        check("-2^2", Ok("-4"));
        check("2 ** -2", Ok("0.25"));
        check("10 / 4", Ok("2.5"));
        check("6 ÷ 2 × 3", Ok("9"));
        check("1 / 3", Ok("≈0.333333333333"));
        check("2 / 3", Ok("≈0.666666666667"));
        check("1 - 1 / 10^20", Ok("≈1"));
        check("-1 / 3 * 3", Ok("-1"));
        check("123456789123456789 * 1000", Ok("123456789123456789000"));
        check("1 / (2 - 2)", Err("division by zero"));
        check("0 ^ -1", Err("division by zero"));
        check("2 ^ 0.5", Err("no whole number"));
        check("10 ^ 64", Err("too large"));
        check("2 ^ (-170141183460469231731687303715884105727 - 1)", Err("no whole number"));
        check("1 +", Err("an operand is missing"));
        check("", Err("an operand is missing"));
        check("(1", Err("not closed"));
        check("1 2", Err("unexpected `2`"));
        check("1.2.3", Err("no number"));
        check("two", Err("`t` is no number"));
        check(&"(".repeat(1_000), Err("levels"));
        check(&"-".repeat(1_000), Err("levels"));
    }
}
