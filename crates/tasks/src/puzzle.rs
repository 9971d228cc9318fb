//! Puzzles whose every valid solution is accepted: the data of one, and how an answer to it is judged.
//!
//! Each is one file under `families`, with its generator. An answer comes from a model and the puzzle perhaps from a file
//! somebody wrote, so nothing here trusts either: what does not fit is a reason, not a panic.

use serde::{Deserialize, Serialize};

use crate::catalogue::Level;
use crate::check::{ANSWER_MARK, Check};
use crate::families::{colouring, countdown, jugs, knights, magic, maze, order, queens, subset, sudoku};
use crate::problem::Problem;

/// The most characters of a puzzle's prompt; at level 1 the limits of the other families hold.
pub const MAX_PUZZLE_CHARS: usize = 320;

/// A puzzle with several possible solutions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "puzzle", rename_all = "snake_case")]
pub enum Puzzle {
    /// Numbers to a target.
    Countdown(countdown::Countdown),
    /// A grid of digits to be completed.
    Sudoku(sudoku::Sudoku),
    /// Queens that do not attack each other.
    Queens(queens::Queens),
    /// Who tells the truth.
    Knights(knights::Knights),
    /// An order under clues.
    Order(order::Order),
    /// A shortest way.
    Maze(maze::Maze),
    /// Colours for a graph.
    Colouring(colouring::Colouring),
    /// Measuring with jugs.
    Jugs(jugs::Jugs),
    /// A square of equal sums.
    Magic(magic::Magic),
    /// Numbers with a given sum.
    Subset(subset::Subset),
}

impl Puzzle {
    /// Whether `reply` solves it; otherwise why not.
    pub fn judge(&self, reply: &str) -> Result<(), String> {
        match self {
            Puzzle::Countdown(puzzle) => puzzle.check(line(reply)),
            Puzzle::Sudoku(puzzle) => puzzle.check(block(reply)),
            Puzzle::Queens(puzzle) => puzzle.check(line(reply)),
            Puzzle::Knights(puzzle) => puzzle.check(line(reply)),
            Puzzle::Order(puzzle) => puzzle.check(line(reply)),
            Puzzle::Maze(puzzle) => puzzle.check(line(reply)),
            Puzzle::Colouring(puzzle) => puzzle.check(line(reply)),
            Puzzle::Jugs(puzzle) => puzzle.check(line(reply)),
            Puzzle::Magic(puzzle) => puzzle.check(block(reply)),
            Puzzle::Subset(puzzle) => puzzle.check(line(reply)),
        }
    }
}

/// The answer on one line: after the first mark, else the last line.
fn line(reply: &str) -> &str {
    crate::check::final_answer(reply)
        .or_else(|| reply.lines().rev().map(str::trim).find(|line| !line.is_empty()))
        .unwrap_or("")
        .trim_end_matches('.')
}

/// The answer on several lines: all that comes after the first mark, else the whole reply.
fn block(reply: &str) -> &str {
    reply.split_once(ANSWER_MARK).map_or(reply, |(_, rest)| rest.trim_start_matches('#')).trim()
}

/// The numbers of an answer that holds nothing else but spaces and commas.
pub(crate) fn numbers(answer: &str) -> Result<Vec<i64>, String> {
    let words = answer.split([' ', ',', '\t']).filter(|word| !word.is_empty());
    words.map(|word| word.parse().map_err(|_| format!("`{}` is no number", clipped(word)))).collect()
}

/// The rows of a square of `n` by `n` numbers: the first `n` lines that are not blank.
pub(crate) fn square(answer: &str, n: usize) -> Result<Vec<Vec<i64>>, String> {
    let lines = answer.lines().map(str::trim).filter(|line| !line.is_empty()).take(n);
    let rows: Vec<Vec<i64>> = lines.map(numbers).collect::<Result<_, _>>()?;
    let is_square = rows.len() == n && rows.iter().all(|row| row.len() == n);
    if is_square { Ok(rows) } else { Err(format!("the answer has not {n} rows of {n}")) }
}

/// At most 40 characters, for reasons.
pub(crate) fn clipped(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Holds, or the reason.
pub(crate) fn need(holds: bool, reason: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(reason()) }
}

/// Texts of a problem; the rest follows from them.
pub(crate) struct Draft {
    pub(crate) family: &'static str,
    pub(crate) level: u32,
    pub(crate) key: String,
    pub(crate) prompt: String,
    /// What comes before the answer, or nothing.
    pub(crate) work: String,
    pub(crate) answer: String,
    pub(crate) wrong: String,
    pub(crate) check: Check,
}

impl Draft {
    pub(crate) fn finish(self) -> Problem {
        let Draft { family, level, key, prompt, work, answer, wrong, check } = self;
        // An answer of several lines starts on a line of its own.
        let marked = |answer: &str| match answer.contains('\n') {
            true => format!("{ANSWER_MARK}\n{answer}"),
            false => format!("{ANSWER_MARK} {answer}"),
        };
        Problem {
            family,
            level,
            key: format!("{family} {key}"),
            statement: format!("{prompt}\n{answer}"),
            solution: if work.is_empty() { marked(&answer) } else { format!("{work}\n{}", marked(&answer)) },
            wrong: marked(&wrong),
            prompt,
            answer,
            check,
        }
    }
}

/// A level's line of the catalogue.
pub(crate) const fn level(summary: &'static str, n_problems: usize) -> Level {
    Level { summary, n_problems }
}

#[cfg(test)]
mod tests {
    use crate::catalogue::{FAMILIES, N_QUICKSTART};
    use crate::problem::{Split, problem};

    #[test]
    fn there_are_ten_families_of_puzzles_and_nothing_makes_them_panic() {
        let puzzles = &FAMILIES[N_QUICKSTART..];
        assert!(puzzles.len() >= 10);
        const PIECES: &[&str] = &[
            "####",
            " ",
            "\n",
            "1",
            "9",
            "0",
            "-",
            "+",
            "*",
            "/",
            "(",
            ")",
            ",",
            "A",
            "B",
            "R",
            "D",
            "U",
            "fill A",
            "pour A B",
            "lie",
            "truth",
            "é",
            "=",
            ".",
            "99999999999999999999",
            "A1",
            "pour",
            "empty",
            "?",
        ];
        for family in puzzles {
            for level in family.level_numbers() {
                let p = problem(family.name, level, 3, Split::Train, 0).unwrap();
                for index in 0..200 {
                    let mut draws = pt_core::rng::Stream::new(1, "replies").at(index);
                    let reply: String = (0..draws.below(40)).map(|_| *draws.pick(PIECES)).collect();
                    p.check(&reply);
                }
                for unit in ["(", "1+", "-", "1/0", "fill A, ", "R"] {
                    p.check(&format!("#### {}", unit.repeat(20_000)));
                }
            }
        }
    }
}
