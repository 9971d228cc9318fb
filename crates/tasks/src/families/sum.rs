//! Plain addition and subtraction of one- and two-digit numbers.
//!
//! The second number is worked in as tens, then ones, so that no step needs more than one carry.
//! A sum and its operands swapped are the same problem.
//!
//! ```
//! use pt_tasks::{Split, problem};
//! let p = problem("sum", 4, 1, Split::Train, 0).unwrap();
//! assert_eq!(p.prompt, "Compute 68 + 68.");
//! assert_eq!(p.solution, "68 + 60 = 128, 128 + 8 = 136\n#### 136");
//! ```

use pt_core::rng::Draws;

use super::words::{misworked, near_miss};
use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;

/// The levels.
pub const LEVELS: &[Level] = &[
    Level { summary: "one digit plus one digit", n_problems: 55 },
    Level { summary: "one digit plus one digit, and the subtraction that undoes it", n_problems: 145 },
    Level { summary: "two digits plus or minus one digit", n_problems: 1_620 },
    Level { summary: "two digits plus or minus two digits", n_problems: 8_190 },
    Level { summary: "three numbers of two digits, plus and minus", n_problems: MANY },
];

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    let terms = match level {
        1 => vec![draws.between(0, 9), draws.between(0, 9)],
        2 => {
            let (a, b) = (draws.between(0, 9), draws.between(0, 9));
            if draws.below(2) == 0 { vec![a, b] } else { vec![a + b, -b] }
        }
        3 => vec![draws.between(10, 99), signed(draws.between(1, 9), draws)],
        4 => {
            let (a, b) = (draws.between(10, 99), draws.between(10, 99));
            if draws.below(2) == 0 { vec![a, b] } else { vec![a.max(b), -a.min(b)] }
        }
        _ => {
            let (a, b) = (draws.between(10, 99), draws.between(10, 99));
            vec![a, b, -draws.between(10, 99.min(a + b))]
        }
    };
    pose(level, &terms, draws)
}

fn signed(size: i64, draws: &mut Draws) -> i64 {
    if draws.below(2) == 0 { size } else { -size }
}

fn pose(level: u32, terms: &[i64], draws: &mut Draws) -> Problem {
    let answer: i64 = terms.iter().sum();
    let expression = written(terms);
    let steps = steps(terms).join(", ");
    let wrong = near_miss(answer, draws);
    Problem {
        family: "sum",
        level,
        key: key(terms),
        prompt: wording(terms, &expression, draws),
        solution: format!("{steps}\n#### {answer}"),
        answer: answer.to_string(),
        statement: format!("{expression} = {answer}"),
        wrong: misworked(&steps, &answer.to_string(), &wrong.to_string()),
        check: Check::Number { value: answer },
    }
}

/// `a + b - c`. A zero taken away is written as added: the sign of 0 is lost, the value is not.
fn written(terms: &[i64]) -> String {
    let rest: String =
        terms[1..].iter().map(|t| format!(" {} {}", if *t < 0 { '-' } else { '+' }, t.abs())).collect();
    format!("{}{rest}", terms[0])
}

/// Added numbers in order of size, then those taken away.
fn key(terms: &[i64]) -> String {
    let mut sorted = terms.to_vec();
    sorted.sort_unstable_by_key(|term| (*term < 0, term.abs()));
    format!("sum {sorted:?}")
}

fn steps(terms: &[i64]) -> Vec<String> {
    let mut total = terms[0];
    let mut steps = Vec::new();
    for &term in &terms[1..] {
        let (tens, ones) = (term / 10 * 10, term % 10);
        let parts: Vec<i64> = match terms.len() {
            // Three numbers would make six steps; they are added whole.
            2 => [tens, ones].into_iter().filter(|part| *part != 0).collect(),
            _ => vec![term],
        };
        for part in if parts.is_empty() { vec![0] } else { parts } {
            steps.push(format!("{} = {}", written(&[total, part]), total + part));
            total += part;
        }
    }
    steps
}

fn wording(terms: &[i64], expression: &str, draws: &mut Draws) -> String {
    match (draws.below(4), terms) {
        (0, _) => format!("What is {expression}?"),
        (1, _) => format!("Compute {expression}."),
        (2, _) => format!("{expression} = ?"),
        (_, [a, b]) if *b < 0 => format!("Take {} from {a}.", -b),
        (_, [a, b]) => format!("Add {a} and {b}."),
        _ => format!("How much is {expression}?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_work_tens_then_ones() {
        for (terms, expected) in [
            (vec![27, 35], vec!["27 + 30 = 57", "57 + 5 = 62"]),
            (vec![62, -35], vec!["62 - 30 = 32", "32 - 5 = 27"]),
            (vec![3, 4], vec!["3 + 4 = 7"]),
            (vec![3, 0], vec!["3 + 0 = 3"]),
            (vec![40, -20], vec!["40 - 20 = 20"]),
            (vec![10, 20, -5], vec!["10 + 20 = 30", "30 - 5 = 25"]),
        ] {
            assert_eq!(steps(&terms), expected);
        }
    }

    #[test]
    fn swapped_operands_are_one_problem() {
        assert_eq!(key(&[3, 12]), key(&[12, 3]));
        assert_ne!(key(&[12, -3]), key(&[12, 3]));
    }
}
