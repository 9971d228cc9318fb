//! Magic squares of three by three, some numbers missing. Any completion with equal sums is accepted.

use pt_core::rng::Draws;
use serde::{Deserialize, Serialize};

use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;
use crate::puzzle::{Draft, Puzzle, level, need, square};

/// The levels.
pub const LEVELS: &[Level] = &[
    level("two numbers missing", MANY),
    level("four numbers missing", MANY),
    level("six numbers missing", MANY),
];
const N: usize = 3;

/// A square with missing numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Magic {
    /// What each row, column and diagonal sums to.
    pub sum: i64,
    /// Rows; nothing where a number is missing.
    pub rows: Vec<Vec<Option<i64>>>,
}

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    let n_missing = 2 * level as usize;
    // Every magic square of three by three: centre c, and corners and sides c +- a, c +- b, c +- (a + b), c +- (a - b).
    let a = draws.between(1, 9);
    let b = a + draws.between(1, 9);
    let c = a + b + draws.between(1, 12);
    let mut full =
        vec![vec![c - a, c + a + b, c - b], vec![c + a - b, c, c - a + b], vec![c + b, c - a - b, c + a]];
    for _ in 0..draws.below(4) {
        full = (0..N).map(|i| (0..N).map(|j| full[N - 1 - j][i]).collect()).collect();
    }
    if draws.below(2) == 0 {
        full.reverse();
    }
    let mut places: Vec<usize> = (0..N * N).collect();
    draws.shuffle(&mut places);
    let missing = &places[..n_missing];
    let shown = |i: usize, j: usize| (!missing.contains(&(i * N + j))).then_some(full[i][j]);
    let rows: Vec<Vec<Option<i64>>> = (0..N).map(|i| (0..N).map(|j| shown(i, j)).collect()).collect();
    let text = |cell: &Option<i64>| cell.map_or("?".to_owned(), |number| number.to_string());
    let lines: Vec<String> =
        rows.iter().map(|row| row.iter().map(text).collect::<Vec<_>>().join(" ")).collect();
    let answer = |rows: &[Vec<i64>]| -> String {
        rows.iter()
            .map(|row| row.iter().map(i64::to_string).collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
            .join("\n")
    };
    let mut spoiled = full.clone();
    spoiled[missing[0] / N][missing[0] % N] += 1;
    Draft {
        family: "magic",
        level,
        key: format!("{} {}", 3 * c, lines.join(" / ")),
        prompt: format!(
            "Each row, column and diagonal sums to {}. Fill in the ?.\n{}",
            3 * c,
            lines.join("\n")
        ),
        work: String::new(),
        answer: answer(&full),
        wrong: answer(&spoiled),
        check: Check::Puzzle { puzzle: Puzzle::Magic(Magic { sum: 3 * c, rows }) },
    }
    .finish()
}

impl Magic {
    /// Whether the square keeps the given numbers and all sums are right.
    pub(crate) fn check(&self, answer: &str) -> Result<(), String> {
        let found = square(answer, N)?;
        let is_square = self.rows.len() == N && self.rows.iter().all(|row| row.len() == N);
        need(is_square, || "the puzzle is no square of three by three".to_owned())?;
        let kept = self
            .rows
            .iter()
            .flatten()
            .zip(found.iter().flatten())
            .all(|(given, cell)| given.is_none_or(|g| g == *cell));
        need(kept, || "a given number was changed".to_owned())?;
        let total = |cells: [i64; N]| cells.into_iter().map(i128::from).sum::<i128>() == i128::from(self.sum);
        for i in 0..N {
            need(total([found[i][0], found[i][1], found[i][2]]), || {
                format!("row {} has another sum", i + 1)
            })?;
            need(total([found[0][i], found[1][i], found[2][i]]), || {
                format!("column {} has another sum", i + 1)
            })?;
        }
        let diagonals = [[found[0][0], found[1][1], found[2][2]], [found[0][2], found[1][1], found[2][0]]];
        need(diagonals.into_iter().all(total), || "a diagonal has another sum".to_owned())
    }
}
