//! The catalogue of families: name, summary, levels, generator.

use pt_core::rng::Draws;

use crate::error::TaskError;
use crate::families::{
    arithmetic, base, chat, colouring, countdown, digits, guess, instruction, jugs, knights, letters, magic,
};
use crate::families::{maze, order, program, queens, rewrite, subset, sudoku, sum};
use crate::problem::Problem;

/// One level of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// What is asked at this level.
    pub summary: &'static str,
    /// About how many different problems (keys) it has, both splits together; [`MANY`] means at
    /// least that. The tests hold it against a [`crate::census`].
    pub n_problems: usize,
}

/// The number of problems of a level from which nobody counts: it is not exhausted in practice.
pub const MANY: usize = 10_000;

/// A family of problems.
pub struct Family {
    /// Its name in sources and rows.
    pub name: &'static str,
    /// One line for lists and the manual.
    pub summary: &'static str,
    /// Its levels, easiest first; level numbers start at 1.
    pub levels: &'static [Level],
    /// Makes one problem of a level that exists.
    pub generate: fn(u32, &mut Draws) -> Problem,
}

/// The first so many of [`FAMILIES`] are the quickstart's: raw text and `generated:mix` draw from them alone. The others
/// are puzzles, where any valid solution is accepted.
pub const N_QUICKSTART: usize = 7;

/// Every family: the quickstart's, easiest first, then the puzzles.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "sum",
        summary: "plain addition and subtraction, with the digits worked out",
        levels: sum::LEVELS,
        generate: sum::generate,
    },
    Family {
        name: "digits",
        summary: "larger, largest, compare, sort: puzzles on short lists of numbers",
        levels: digits::LEVELS,
        generate: digits::generate,
    },
    Family {
        name: "letters",
        summary: "copy, pick, count and reverse the letters of made-up words",
        levels: letters::LEVELS,
        generate: letters::generate,
    },
    Family {
        name: "arithmetic",
        summary: "word problems with worked solutions and the answer after ####",
        levels: arithmetic::LEVELS,
        generate: arithmetic::generate,
    },
    Family {
        name: "program",
        summary: "what a small program prints, and functions written to pass tests",
        levels: program::LEVELS,
        generate: program::generate,
    },
    Family {
        name: "chat",
        summary: "greetings, identity, and questions about a few stated facts",
        levels: chat::LEVELS,
        generate: chat::generate,
    },
    Family {
        name: "instruction",
        summary: "write something under constraints that can be checked",
        levels: instruction::LEVELS,
        generate: instruction::generate,
    },
    Family {
        name: "subset",
        summary: "pick numbers with a given sum",
        levels: subset::LEVELS,
        generate: subset::generate,
    },
    Family {
        name: "base",
        summary: "numbers in another base",
        levels: base::LEVELS,
        generate: base::generate,
    },
    Family {
        name: "rewrite",
        summary: "rewrite a text by rules until none applies",
        levels: rewrite::LEVELS,
        generate: rewrite::generate,
    },
    Family {
        name: "countdown",
        summary: "reach a number with given numbers, each once, and + - * /",
        levels: countdown::LEVELS,
        generate: countdown::generate,
    },
    Family {
        name: "magic",
        summary: "complete a magic square of three by three",
        levels: magic::LEVELS,
        generate: magic::generate,
    },
    Family {
        name: "order",
        summary: "an order of people that follows from clues",
        levels: order::LEVELS,
        generate: order::generate,
    },
    Family {
        name: "knights",
        summary: "who tells the truth and who lies",
        levels: knights::LEVELS,
        generate: knights::generate,
    },
    Family {
        name: "colouring",
        summary: "three colours for a graph, joined points differ",
        levels: colouring::LEVELS,
        generate: colouring::generate,
    },
    Family {
        name: "maze",
        summary: "a shortest way through a grid with walls",
        levels: maze::LEVELS,
        generate: maze::generate,
    },
    Family {
        name: "sudoku",
        summary: "complete a sudoku, 4 by 4 or 9 by 9",
        levels: sudoku::LEVELS,
        generate: sudoku::generate,
    },
    Family {
        name: "queens",
        summary: "complete a placement of queens that do not attack each other",
        levels: queens::LEVELS,
        generate: queens::generate,
    },
    Family {
        name: "jugs",
        summary: "measure an amount with two or three jugs",
        levels: jugs::LEVELS,
        generate: jugs::generate,
    },
    Family {
        name: "guess",
        summary: "a guessing game of several turns, for the environment `guess`",
        levels: guess::LEVELS,
        generate: guess::generate,
    },
];

impl Family {
    /// The family called `name`.
    ///
    /// # Errors
    /// If there is none; the error names the nearest.
    pub fn named(name: &str) -> Result<&'static Family, TaskError> {
        FAMILIES.iter().find(|family| family.name == name).ok_or_else(|| {
            let names: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
            TaskError::UnknownFamily { name: name.to_string(), hint: pt_core::suggest::hint(name, &names) }
        })
    }

    /// `1..=` the number of levels.
    pub fn level_numbers(&self) -> std::ops::RangeInclusive<u32> {
        1..=self.levels.len() as u32
    }

    /// Whether the level exists.
    ///
    /// # Errors
    /// If it does not.
    pub fn check_level(&self, level: u32) -> Result<(), TaskError> {
        if self.level_numbers().contains(&level) {
            return Ok(());
        }
        let (family, n_levels) = (self.name, self.levels.len() as u32);
        Err(TaskError::UnknownLevel { family, level, n_levels })
    }
}
