//! A shortest way through a grid with walls. Any way of the least length is accepted.

use std::collections::VecDeque;

use pt_core::rng::Draws;
use serde::{Deserialize, Serialize};

use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;
use crate::puzzle::{Draft, Puzzle, clipped, level, need};

/// The levels.
pub const LEVELS: &[Level] = &[level("4 by 4", 3_200), level("6 by 6", MANY), level("9 by 9", MANY)];
/// The most cells that are searched.
const MAX_CELLS: usize = 10_000;
/// Letters of the moves, with rows down and columns to the right.
const MOVES: [(char, i32, i32); 4] = [('R', 0, 1), ('D', 1, 0), ('L', 0, -1), ('U', -1, 0)];

/// A grid; the way goes from its first cell to its last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Maze {
    /// Rows; `x` is a wall.
    pub rows: Vec<String>,
}

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    let n = [4, 6, 9][level as usize - 1];
    let (maze, way) = loop {
        let mut cells: Vec<bool> = (0..n * n).map(|_| draws.below(3) == 0).collect();
        (cells[0], cells[n * n - 1]) = (false, false);
        let row = |row: &[bool]| row.iter().map(|wall| if *wall { 'x' } else { '.' }).collect();
        let maze = Maze { rows: cells.chunks(n).map(row).collect() };
        if let Some(way) = maze.shortest() {
            break (maze, way);
        }
    };
    let wrong = format!("{}R", &way[..way.len() - 1]);
    let wrong = if wrong == way { format!("{}D", &way[..way.len() - 1]) } else { wrong };
    Draft {
        family: "maze",
        level,
        key: maze.rows.join("/"),
        prompt: format!(
            "Shortest way from top left to bottom right? Moves R D L U, x is a wall.\n{}",
            maze.rows.join("\n")
        ),
        work: String::new(),
        answer: way,
        wrong,
        check: Check::Puzzle { puzzle: Puzzle::Maze(maze) },
    }
    .finish()
}

impl Maze {
    /// The free cell one move further.
    fn after(&self, at: (usize, usize), step: (char, i32, i32)) -> Option<(usize, usize)> {
        let row = at.0.checked_add_signed(step.1 as isize)?;
        let column = at.1.checked_add_signed(step.2 as isize)?;
        let cell = self.rows.get(row)?.as_bytes().get(column)?;
        (*cell != b'x').then_some((row, column))
    }

    fn end(&self) -> Option<(usize, usize)> {
        let row = self.rows.len().checked_sub(1)?;
        Some((row, self.rows[row].len().checked_sub(1)?))
    }

    /// A shortest way, by breadth-first search.
    fn shortest(&self) -> Option<String> {
        let end = self.end()?;
        let width = self.rows.iter().map(String::len).max()?;
        if width * self.rows.len() > MAX_CELLS {
            return None;
        }
        let mut came: Vec<Option<(usize, usize, char)>> = vec![None; width * self.rows.len()];
        let mut queue = VecDeque::from([(0, 0)]);
        while let Some(at) = queue.pop_front().filter(|at| *at != end) {
            for step in MOVES {
                if let Some(next) = self.after(at, step).filter(|next| *next != (0, 0)) {
                    let place = &mut came[next.0 * width + next.1];
                    if place.is_none() {
                        *place = Some((at.0, at.1, step.0));
                        queue.push_back(next);
                    }
                }
            }
        }
        let (mut at, mut way) = (end, Vec::new());
        while at != (0, 0) {
            let (row, column, letter) = came[at.0 * width + at.1]?;
            way.push(letter);
            at = (row, column);
        }
        Some(way.into_iter().rev().collect())
    }

    /// Whether the moves lead to the end, through no wall, in the least number.
    pub(crate) fn check(&self, answer: &str) -> Result<(), String> {
        let shortest = self.shortest().ok_or("the puzzle has no way")?;
        let (mut at, mut n_moves) = ((0, 0), 0);
        for letter in answer.chars().filter(|c| !" ,".contains(*c)) {
            let step = MOVES.into_iter().find(|step| step.0 == letter.to_ascii_uppercase());
            let step = step.ok_or_else(|| format!("`{}` has other letters than R D L U", clipped(answer)))?;
            at = self.after(at, step).ok_or_else(|| format!("move {} runs into a wall", n_moves + 1))?;
            n_moves += 1;
        }
        need(Some(at) == self.end(), || "it does not lead to the end".to_owned())?;
        need(n_moves == shortest.len(), || {
            format!("{n_moves} moves, the shortest way has {}", shortest.len())
        })
    }
}
