//! Countdown: reach a number with given numbers, each used once, and + - * /.
//!
//! Any expression is accepted whose exact value is the target; it is computed with fractions, without rounding.

use pt_core::rng::Draws;
use serde::{Deserialize, Serialize};

use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;
use crate::puzzle::{Draft, Puzzle, clipped, level, need};

/// The levels.
pub const LEVELS: &[Level] = &[
    level("two numbers up to 30", 1_700),
    level("three numbers up to 20", MANY),
    level("four numbers up to 20", MANY),
    level("five numbers up to 30", MANY),
];
/// How deep parentheses may be nested.
const MAX_DEPTH: usize = 40;
/// The largest number on the way in a generated problem.
const MAX_VALUE: i64 = 999;

/// Numbers and what to make of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Countdown {
    /// What may be used, each once.
    pub numbers: Vec<i64>,
    /// What is to be reached.
    pub target: i64,
}

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    let (n, largest) = [(2, 30), (3, 20), (4, 20), (5, 30)][level as usize - 1];
    let numbers: Vec<i64> = (0..n).map(|_| draws.between(1, largest)).collect();
    let (mut value, mut text) = (numbers[0], numbers[0].to_string());
    for (index, next) in numbers[1..].iter().enumerate() {
        let (sign, result) = step(value, *next, draws);
        // Parentheses are needed only where a sum is multiplied or divided.
        let inner = if index > 0 && matches!(sign, '*' | '/') { format!("({text})") } else { text };
        (value, text) = (result, format!("{inner} {sign} {next}"));
    }
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    let mut shown = numbers.clone();
    draws.shuffle(&mut shown);
    let list = shown.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
    let wrong = numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(" + ");
    let wrong = if numbers.iter().sum::<i64>() == value { format!("{wrong} + 1") } else { wrong };
    Draft {
        family: "countdown",
        level,
        key: format!("{sorted:?} {value}"),
        prompt: format!("Make {value} from {list}. Use each once, with + - * / ( )."),
        work: String::new(),
        answer: text,
        wrong,
        check: Check::Puzzle { puzzle: Puzzle::Countdown(Countdown { numbers, target: value }) },
    }
    .finish()
}

/// One operation whose result is a whole number of a size that fits on paper.
fn step(value: i64, next: i64, draws: &mut Draws) -> (char, i64) {
    match draws.below(4) {
        0 if value >= next => ('-', value - next),
        1 if value * next <= MAX_VALUE => ('*', value * next),
        2 if value % next == 0 => ('/', value / next),
        _ => ('+', value + next),
    }
}

impl Countdown {
    /// Whether the expression uses every number once and is the target.
    pub(crate) fn check(&self, answer: &str) -> Result<(), String> {
        let text = answer.split('=').next().unwrap_or("");
        // What comes after `=` may only be the target.
        if let Some((_, right)) = answer.split_once('=') {
            need(right.trim() == self.target.to_string(), || {
                format!("`{}` is not the target", clipped(right))
            })?;
        }
        let mut reader = Reader { bytes: text.as_bytes(), at: 0, used: Vec::new() };
        let value = reader.sum(0).filter(|_| reader.peek().is_none());
        let (top, bottom) = value.ok_or_else(|| format!("`{}` is no expression", clipped(text)))?;
        let mut numbers = self.numbers.clone();
        numbers.sort_unstable();
        reader.used.sort_unstable();
        need(numbers == reader.used, || format!("uses {:?}, expected {numbers:?}", reader.used))?;
        need(bottom.checked_mul(i128::from(self.target)) == Some(top), || {
            format!("`{}` is not {}", clipped(text), self.target)
        })
    }
}

/// A fraction with a bottom that is not 0.
type Fraction = (i128, i128);

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    used: Vec<i64>,
}

impl Reader<'_> {
    fn peek(&mut self) -> Option<u8> {
        while self.bytes.get(self.at) == Some(&b' ') {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn sum(&mut self, depth: usize) -> Option<Fraction> {
        let mut total = self.product(depth)?;
        while let Some(sign @ (b'+' | b'-')) = self.peek() {
            self.at += 1;
            let (top, bottom) = self.product(depth)?;
            let top = if sign == b'-' { top.checked_neg()? } else { top };
            let sum = total.0.checked_mul(bottom)?.checked_add(top.checked_mul(total.1)?)?;
            total = reduced(sum, total.1.checked_mul(bottom)?)?;
        }
        Some(total)
    }

    fn product(&mut self, depth: usize) -> Option<Fraction> {
        let mut total = self.atom(depth)?;
        while let Some(sign @ (b'*' | b'/')) = self.peek() {
            self.at += 1;
            let (top, bottom) = self.atom(depth)?;
            let (top, bottom) = if sign == b'/' { (bottom, top) } else { (top, bottom) };
            total = reduced(total.0.checked_mul(top)?, total.1.checked_mul(bottom)?)?;
        }
        Some(total)
    }

    fn atom(&mut self, depth: usize) -> Option<Fraction> {
        if self.peek()? == b'(' {
            self.at += 1;
            let value = if depth < MAX_DEPTH { self.sum(depth + 1)? } else { return None };
            let is_closed = self.peek()? == b')';
            self.at += 1;
            return is_closed.then_some(value);
        }
        let start = self.at;
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        let number: i64 = std::str::from_utf8(&self.bytes[start..self.at]).ok()?.parse().ok()?;
        self.used.push(number);
        Some((i128::from(number), 1))
    }
}

fn reduced(top: i128, bottom: i128) -> Option<Fraction> {
    if bottom == 0 {
        return None;
    }
    let (mut a, mut b) = (top.unsigned_abs(), bottom.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    let shared = i128::try_from(a).ok()?;
    Some((top / shared, bottom / shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_exact_expression_is_accepted() {
        let puzzle = Countdown { numbers: vec![3, 3, 8, 8], target: 24 };
        for (answer, is_right) in [
            ("8 / (3 - 8 / 3)", true),
            ("8/(3-8/3) = 24", true),
            ("8 / (3 - 8 / 3) = 25", false),
            ("3 * 8", false),
            ("(3 * 8) * (8 / 3)", false),
            ("3 * 8 + 3 - 8 + 5", false),
            ("8 / (8 - 8)", false),
            ("24", false),
            ("", false),
            ("8 / (3 - 8 / 3", false),
        ] {
            assert_eq!(puzzle.check(answer).is_ok(), is_right, "{answer}: {:?}", puzzle.check(answer));
        }
    }
}
