//! Sudoku, 4 by 4 and 9 by 9. Each has one solution, which follows cell by cell from what is known ("singles").

use pt_core::rng::Draws;
use serde::{Deserialize, Serialize};

use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;
use crate::puzzle::{Draft, Puzzle, level, need};

/// The levels.
pub const LEVELS: &[Level] = &[
    level("4 by 4, four cells empty", MANY),
    level("4 by 4, nine cells empty", MANY),
    level("9 by 9, twenty cells empty", MANY),
    level("9 by 9, up to forty-five cells empty", MANY),
];

/// A grid with empty cells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sudoku {
    /// Rows of digits; `0` is empty.
    pub rows: Vec<String>,
}

/// A grid of cells in reading order.
type Cells = Vec<u8>;

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    let (size, n_empty) = [(2, 4), (2, 9), (3, 20), (3, 45)][level as usize - 1];
    let n = size * size;
    let full = full_grid(size, draws);
    let mut cells = full.clone();
    let mut order: Vec<usize> = (0..n * n).collect();
    draws.shuffle(&mut order);
    let mut left = n_empty;
    for place in order {
        if left == 0 {
            break;
        }
        cells[place] = 0;
        match follows(cells.clone(), size) {
            true => left -= 1,
            false => cells[place] = full[place],
        }
    }
    let rows = |cells: &Cells| -> Vec<String> {
        cells.chunks(n).map(|row| row.iter().map(|digit| char::from(b'0' + digit)).collect()).collect()
    };
    let (shown, answer) = (rows(&cells), rows(&full).join("\n"));
    let mut spoiled = full.clone();
    let hole = cells.iter().position(|cell| *cell == 0).expect("some cell is empty");
    spoiled[hole] = spoiled[hole] % n as u8 + 1;
    let what = if size == 2 {
        "1-4 once in each row, column and 2x2 box"
    } else {
        "1-9 once in each row, column, box"
    };
    Draft {
        family: "sudoku",
        level,
        key: shown.join(""),
        prompt: format!("Fill in the 0s: {what}.\n{}", shown.join("\n")),
        work: String::new(),
        answer,
        wrong: rows(&spoiled).join("\n"),
        check: Check::Puzzle { puzzle: Puzzle::Sudoku(Sudoku { rows: shown }) },
    }
    .finish()
}

/// A full grid: a regular one with digits, rows and columns exchanged.
fn full_grid(size: usize, draws: &mut Draws) -> Cells {
    let n = size * size;
    let mut digits: Vec<u8> = (1..=n as u8).collect();
    draws.shuffle(&mut digits);
    let mut lines = || -> Vec<usize> {
        let mut bands: Vec<usize> = (0..size).collect();
        draws.shuffle(&mut bands);
        let inside = |band: usize, draws: &mut Draws| {
            let mut order: Vec<usize> = (0..size).map(|i| band * size + i).collect();
            draws.shuffle(&mut order);
            order
        };
        bands.into_iter().flat_map(|band| inside(band, draws)).collect()
    };
    let (rows, columns) = (lines(), lines());
    let digit = |r: usize, c: usize| digits[(size * (r % size) + r / size + c) % n];
    rows.iter().flat_map(|r| columns.iter().map(|c| digit(*r, *c))).collect()
}

/// Bits of the digits that may stand in a cell.
fn possible(cells: &[u8], size: usize, place: usize) -> u16 {
    let n = size * size;
    let (row, column) = (place / n, place % n);
    let (top, left) = (row / size * size, column / size * size);
    let mut taken = 0u16;
    for i in 0..n {
        for other in [row * n + i, i * n + column, (top + i / size) * n + left + i % size] {
            taken |= 1 << cells[other];
        }
    }
    !taken & ((1 << (n + 1)) - 2)
}

/// Whether every empty cell can be filled in turn because only one digit is left for it, or a digit has only this place
/// in a row, column or box. Then the solution is the only one.
fn follows(mut cells: Cells, size: usize) -> bool {
    loop {
        let empty: Vec<(usize, u16)> = (0..cells.len())
            .filter(|place| cells[*place] == 0)
            .map(|place| (place, possible(&cells, size, place)))
            .collect();
        if empty.is_empty() {
            return true;
        }
        let single = empty.iter().find_map(|(place, options)| {
            let digit = match options.count_ones() {
                1 => *options,
                _ => only_here(&empty, size, *place, *options),
            };
            (digit != 0).then_some((*place, digit))
        });
        let Some((place, digit)) = single else { return false };
        cells[place] = digit.trailing_zeros() as u8;
    }
}

/// Bits of the digits that have no other place in a row, column or box of the cell.
fn only_here(empty: &[(usize, u16)], size: usize, place: usize, options: u16) -> u16 {
    let n = size * size;
    let box_of = |place: usize| (place / n / size, place % n / size);
    let shares: [&dyn Fn(usize) -> bool; 3] =
        [&|other| other / n == place / n, &|other| other % n == place % n, &|other| {
            box_of(other) == box_of(place)
        }];
    for shared in shares {
        let others = empty.iter().filter(|(other, _)| *other != place && shared(*other));
        let left = options & !others.fold(0, |all, (_, bits)| all | bits);
        if left.count_ones() == 1 {
            return left;
        }
    }
    0
}

impl Sudoku {
    /// Whether the grid keeps the given digits and every row, column and box has each digit once.
    pub(crate) fn check(&self, answer: &str) -> Result<(), String> {
        let n = self.rows.len();
        let size = n.isqrt();
        need(size * size == n && (1..=9).contains(&n), || "the puzzle is no sudoku".to_owned())?;
        let given: Vec<u8> =
            self.rows.iter().flat_map(|row| row.bytes()).map(|b| b.wrapping_sub(b'0')).collect();
        need(given.len() == n * n, || "the puzzle is no square".to_owned())?;
        let lines = answer.lines().map(str::trim).filter(|line| !line.is_empty()).take(n);
        let digit = |c: char| c.to_digit(10).and_then(|d| u8::try_from(d).ok());
        let row = |line: &str| -> Option<Vec<u8>> {
            line.chars().filter(|c| !" ,|".contains(*c)).map(digit).collect()
        };
        let rows: Vec<Vec<u8>> =
            lines.map(row).collect::<Option<_>>().ok_or("the answer has other than digits")?;
        need(rows.len() == n && rows.iter().all(|row| row.len() == n), || {
            format!("the answer has not {n} rows of {n} digits")
        })?;
        let cells = rows.concat();
        let kept = given.iter().zip(&cells).all(|(given, cell)| *given == 0 || given == cell);
        need(kept, || "a given digit was changed".to_owned())?;
        for i in 0..n {
            let groups = [
                ("row", (0..n).map(|j| cells[i * n + j]).collect::<Vec<u8>>()),
                ("column", (0..n).map(|j| cells[j * n + i]).collect()),
                (
                    "box",
                    (0..n)
                        .map(|j| cells[(i / size * size + j / size) * n + i % size * size + j % size])
                        .collect(),
                ),
            ];
            for (name, mut digits) in groups {
                digits.sort_unstable();
                let is_whole = digits.iter().enumerate().all(|(at, digit)| usize::from(*digit) == at + 1);
                need(is_whole, || format!("{name} {} does not have each digit once", i + 1))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_valid_grid_is_accepted() {
        let puzzle = Sudoku { rows: ["1200", "3400", "0000", "0000"].map(str::to_owned).to_vec() };
        for (answer, is_right) in [
            ("1234\n3412\n2143\n4321", true),
            ("1 2 4 3\n3 4 2 1\n2 1 3 4\n4 3 1 2", true),
            ("1234\n3412\n2143\n4312", false),
            ("2134\n3412\n1243\n4321", false),
            ("1234\n3412\n2143", false),
            ("1234 3412 2143 4321", false),
        ] {
            assert_eq!(puzzle.check(answer).is_ok(), is_right, "{answer}: {:?}", puzzle.check(answer));
        }
        assert!(Sudoku { rows: vec!["12".to_owned()] }.check("1").is_err());
    }
}
