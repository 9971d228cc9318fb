//! Puzzles on short lists of numbers: the larger, the largest, comparison, sorting.
//!
//! The same numbers in another order are the same problem.
//!
//! ```
//! use pt_tasks::{Split, problem};
//! let p = problem("digits", 4, 1, Split::Train, 0).unwrap();
//! assert_eq!(p.prompt, "Sort 7 7 5, smallest first.");
//! assert_eq!(p.solution, "#### 5 7 7");
//! ```

use pt_core::rng::Draws;

use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;

/// The levels.
pub const LEVELS: &[Level] = &[
    Level { summary: "the larger of two numbers up to 99", n_problems: 4_950 },
    Level { summary: "compare two numbers up to 99 with <, > or =", n_problems: 5_050 },
    Level { summary: "the largest of three numbers up to 99", n_problems: MANY },
    Level { summary: "sort three digits, up or down", n_problems: 440 },
    Level { summary: "sort five digits, up or down", n_problems: 4_004 },
];

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    match level {
        1 => largest(level, 2, draws),
        2 => compare(level, draws),
        3 => largest(level, 3, draws),
        4 => sort(level, 3, draws),
        _ => sort(level, 5, draws),
    }
}

/// `n` different numbers up to 99.
fn different(n: usize, draws: &mut Draws) -> Vec<i64> {
    // The k-th number skips over those already taken, which needs no retries.
    let mut taken: Vec<i64> = Vec::new();
    for k in 0..n as i64 {
        let mut number = draws.between(0, 99 - k);
        let mut sorted = taken.clone();
        sorted.sort_unstable();
        for used in sorted {
            number += i64::from(number >= used);
        }
        taken.push(number);
    }
    taken
}

fn largest(level: u32, n: usize, draws: &mut Draws) -> Problem {
    let numbers = different(n, draws);
    let answer = *numbers.iter().max().expect("at least two numbers");
    let wrong = *numbers.iter().min().expect("at least two numbers");
    let others: Vec<i64> = numbers.iter().copied().filter(|x| *x != answer).collect();
    let prompt = match (n, draws.below(3)) {
        (2, 0) => format!("Which is larger, {} or {}?", numbers[0], numbers[1]),
        (2, 1) => format!("Which is more: {} or {}?", numbers[0], numbers[1]),
        (2, _) => format!("Give the larger of {} and {}.", numbers[0], numbers[1]),
        (_, 0) => format!("What is the largest of {}?", joined(&numbers, ", ")),
        (_, 1) => format!("Give the largest number: {}", joined(&numbers, " ")),
        _ => format!("Which is the largest: {}?", joined(&numbers, ", ")),
    };
    let reasons: Vec<String> = others.iter().map(|other| format!("{answer} > {other}")).collect();
    let mistaken: Vec<String> =
        numbers.iter().filter(|x| **x != wrong).map(|other| format!("{wrong} > {other}")).collect();
    Problem {
        family: "digits",
        level,
        key: key("largest", &numbers),
        prompt,
        solution: format!("{}\n#### {answer}", reasons.join(", ")),
        answer: answer.to_string(),
        statement: format!("{answer} is larger than {}.", joined(&others, " and ")),
        wrong: format!("{}\n#### {wrong}", mistaken.join(", ")),
        check: Check::Number { value: answer },
    }
}

fn compare(level: u32, draws: &mut Draws) -> Problem {
    let pair = different(2, draws);
    // One in five is equal; among all pairs it would be one in a hundred.
    let (a, b) = if draws.below(5) == 0 { (pair[0], pair[0]) } else { (pair[0], pair[1]) };
    let sign = match a.cmp(&b) {
        std::cmp::Ordering::Less => "<",
        std::cmp::Ordering::Equal => "=",
        std::cmp::Ordering::Greater => ">",
    };
    let wrong = if sign == "<" { ">" } else { "<" };
    let prompt = match draws.below(2) {
        0 => format!("Compare {a} and {b}: <, > or =?"),
        _ => format!("Put <, > or = between {a} and {b}."),
    };
    Problem {
        family: "digits",
        level,
        key: key("compare", &[a, b]),
        prompt,
        solution: format!("{a} {sign} {b}\n#### {sign}"),
        answer: sign.to_string(),
        statement: format!("{a} {sign} {b}"),
        wrong: format!("{a} {wrong} {b}\n#### {wrong}"),
        check: Check::Text { text: sign.to_string() },
    }
}

fn sort(level: u32, n: usize, draws: &mut Draws) -> Problem {
    let digits: Vec<i64> = (0..n).map(|_| draws.between(0, 9)).collect();
    let up = draws.below(2) == 0;
    let mut sorted = digits.clone();
    sorted.sort_unstable();
    if !up {
        sorted.reverse();
    }
    let mut swapped = sorted.clone();
    swapped[0] = (sorted[0] + 1) % 10;
    let order = if up { "smallest first" } else { "largest first" };
    let prompt = match draws.below(3) {
        0 => format!("Sort {}, {order}.", joined(&digits, " ")),
        1 => format!("Put in order, {order}: {}", joined(&digits, " ")),
        _ => format!("Sort these digits, {order}: {}", joined(&digits, " ")),
    };
    let answer = joined(&sorted, " ");
    let chain = joined(&sorted, if up { " <= " } else { " >= " });
    Problem {
        family: "digits",
        level,
        key: key(if up { "sort up" } else { "sort down" }, &digits),
        prompt,
        solution: format!("#### {answer}"),
        answer: answer.clone(),
        statement: format!("{chain}."),
        wrong: format!("#### {}", joined(&swapped, " ")),
        check: Check::Text { text: answer },
    }
}

fn joined(numbers: &[i64], between: &str) -> String {
    numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(between)
}

fn key(kind: &str, numbers: &[i64]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    format!("digits {kind} {sorted:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_numbers_are_different_and_uniform_at_the_ends() {
        let mut seen = [0usize; 100];
        for i in 0..4_000 {
            let numbers = different(3, &mut pt_core::rng::Stream::new(1, "different").at(i));
            assert!(numbers[0] != numbers[1] && numbers[1] != numbers[2] && numbers[0] != numbers[2]);
            for number in numbers {
                seen[number as usize] += 1;
            }
        }
        // Expected 120 each; five standard deviations are 55.
        assert!(seen.iter().all(|count| (65..=175).contains(count)), "{seen:?}");
    }
}
