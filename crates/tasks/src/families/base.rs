//! Numbers in another base.

use pt_core::rng::Draws;

use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;
use crate::puzzle::{Draft, level};

/// The levels.
pub const LEVELS: &[Level] = &[
    level("between base 2 and 10, up to 255", 496),
    level("between base 3 to 9 and 10, up to 500", 6_800),
    level("from any base to another, up to 4095", MANY),
];

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    let (other, largest) = match level {
        1 => (2, 255),
        2 => (draws.between(3, 9) as u32, 500),
        _ => (*draws.pick(&[2, 3, 4, 5, 6, 7, 8, 9, 10, 16]), 4095),
    };
    let second = if level < 3 { 10 } else { *draws.pick(&[2, 3, 4, 5, 6, 7, 8, 9, 10, 16]) };
    let (from, to) = if draws.below(2) == 0 { (other, second) } else { (second, other) };
    let to = if from == to { from % 9 + 2 } else { to };
    let number = draws.between(8, largest) as u32;
    let answer = written(number, to);
    Draft {
        family: "base",
        level,
        key: format!("{number} {from} {to}"),
        prompt: format!("Write {}, a number in base {from}, in base {to}.", written(number, from)),
        work: String::new(),
        wrong: written(number + 1, to),
        check: Check::Text { text: answer.clone() },
        answer,
    }
    .finish()
}

fn written(mut number: u32, base: u32) -> String {
    let mut digits = Vec::new();
    while number > 0 || digits.is_empty() {
        digits.push(char::from_digit(number % base, base).expect("a digit of the base").to_ascii_uppercase());
        number /= base;
    }
    digits.into_iter().rev().collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_written_in_bases() {
        for (number, base, text) in
            [(0, 2, "0"), (10, 2, "1010"), (255, 16, "FF"), (80, 9, "88"), (7, 10, "7")]
        {
            assert_eq!(super::written(number, base), text);
        }
    }
}
