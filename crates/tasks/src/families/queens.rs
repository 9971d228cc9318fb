//! Queens: complete a placement in which no queen attacks another. Any completion is accepted.

use pt_core::rng::Draws;
use serde::{Deserialize, Serialize};

use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;
use crate::puzzle::{Draft, Puzzle, level, need, numbers};

/// The levels.
pub const LEVELS: &[Level] = &[
    level("8 queens, two to be placed", 2_500),
    level("8 queens, four to be placed", 5_600),
    level("10 queens, seven to be placed", MANY),
];

/// One queen a row; which column, counted from 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Queens {
    /// The columns of the rows, 0 where it is to be found.
    pub columns: Vec<i64>,
}

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    let (n, n_open) = [(8, 2), (8, 4), (10, 7)][level as usize - 1];
    let full = loop {
        let mut columns: Vec<i64> = Vec::new();
        let mut order: Vec<Vec<i64>> = (0..n).map(|_| (1..=n as i64).collect()).collect();
        order.iter_mut().for_each(|row| draws.shuffle(row));
        if place(&order, &mut columns) {
            break columns;
        }
    };
    let mut rows: Vec<usize> = (0..n).collect();
    draws.shuffle(&mut rows);
    let mut columns = full.clone();
    rows[..n_open].iter().for_each(|row| columns[*row] = 0);
    let text = |columns: &[i64]| columns.iter().map(i64::to_string).collect::<Vec<_>>().join(" ");
    let shown =
        text(&columns).split(' ').map(|c| if c == "0" { "?" } else { c }).collect::<Vec<_>>().join(" ");
    let mut spoiled = full.clone();
    spoiled[rows[0]] = full[rows[0]] % n as i64 + 1;
    Draft {
        family: "queens",
        level,
        key: shown.clone(),
        prompt: format!(
            "{n} queens, one in each row, none attacks another. Their columns: {shown}. Fill in the ?."
        ),
        work: String::new(),
        answer: text(&full),
        wrong: text(&spoiled),
        check: Check::Puzzle { puzzle: Puzzle::Queens(Queens { columns }) },
    }
    .finish()
}

/// Places the queens of the rows that are left, trying columns in the order given.
fn place(order: &[Vec<i64>], columns: &mut Vec<i64>) -> bool {
    let Some(options) = order.get(columns.len()) else { return true };
    for column in options {
        columns.push(*column);
        if attack(columns).is_none() && place(order, columns) {
            return true;
        }
        columns.pop();
    }
    false
}

/// The last queen that attacks an earlier one, with that one.
fn attack(columns: &[i64]) -> Option<(usize, usize)> {
    let last = columns.len().checked_sub(1)?;
    let attacks = |row: &usize| {
        let apart = columns[last].abs_diff(columns[*row]);
        apart == 0 || apart == (last - row) as u64
    };
    (0..last).find(attacks).map(|row| (row, last))
}

impl Queens {
    /// Whether the queens keep the given places and do not attack each other.
    pub(crate) fn check(&self, answer: &str) -> Result<(), String> {
        let (columns, n) = (numbers(answer)?, self.columns.len());
        need(columns.len() == n, || format!("{} columns, expected {n}", columns.len()))?;
        need(columns.iter().all(|c| (1..=n as i64).contains(c)), || format!("a column is not 1 to {n}"))?;
        let kept = self.columns.iter().zip(&columns).all(|(given, column)| *given == 0 || given == column);
        need(kept, || "a given queen was moved".to_owned())?;
        match (1..=n).find_map(|n_placed| attack(&columns[..n_placed])) {
            Some((a, b)) => Err(format!("the queens of rows {} and {} attack each other", a + 1, b + 1)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_completion_is_accepted() {
        let puzzle = Queens { columns: vec![0; 4] };
        for (answer, is_right) in [
            ("2 4 1 3", true),
            ("3, 1, 4, 2", true),
            ("1 2 3 4", false),
            ("2 4 1", false),
            ("2 4 1 x", false),
            ("0 0 0 0", false),
        ] {
            assert_eq!(puzzle.check(answer).is_ok(), is_right, "{answer}");
        }
        assert!(Queens { columns: vec![3, 0, 0, 0] }.check("2 4 1 3").is_err());
    }
}
