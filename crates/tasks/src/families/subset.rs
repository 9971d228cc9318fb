//! Pick numbers with a given sum. Any choice with that sum is accepted.

use pt_core::rng::Draws;
use serde::{Deserialize, Serialize};

use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;
use crate::puzzle::{Draft, Puzzle, level, need, numbers};

/// The levels.
pub const LEVELS: &[Level] = &[
    level("two of four numbers", MANY),
    level("three of six numbers", MANY),
    level("four or five of nine", MANY),
];

/// Numbers and a sum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subset {
    /// What may be picked, each once.
    pub numbers: Vec<i64>,
    /// What is to be reached.
    pub target: i64,
}

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    let (n, n_picked, largest) = match level {
        1 => (4, 2, 30),
        2 => (6, 3, 50),
        _ => (9, 4 + draws.below(2), 99),
    };
    let list: Vec<i64> = (0..n).map(|_| draws.between(1, largest)).collect();
    let mut places: Vec<usize> = (0..n).collect();
    draws.shuffle(&mut places);
    places.truncate(n_picked);
    places.sort_unstable();
    let picked: Vec<i64> = places.iter().map(|place| list[*place]).collect();
    let target = picked.iter().sum();
    let text = |numbers: &[i64]| numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(" ");
    let mut sorted = list.clone();
    sorted.sort_unstable();
    Draft {
        family: "subset",
        level,
        key: format!("{sorted:?} {target}"),
        prompt: format!("Pick numbers that sum to {target}: {}", text(&list)),
        work: format!("{} = {target}", picked.iter().map(i64::to_string).collect::<Vec<_>>().join(" + ")),
        answer: text(&picked),
        // Numbers are positive, so one fewer is too little.
        wrong: text(&picked[1..]),
        check: Check::Puzzle { puzzle: Puzzle::Subset(Subset { numbers: list, target }) },
    }
    .finish()
}

impl Subset {
    /// Whether the numbers are among those given, each as often at most, and have the sum.
    pub(crate) fn check(&self, answer: &str) -> Result<(), String> {
        let picked = numbers(&answer.replace('+', " "))?;
        need(!picked.is_empty(), || "no number is picked".to_owned())?;
        let mut left = self.numbers.clone();
        for number in &picked {
            let place = left.iter().position(|other| other == number);
            left.swap_remove(place.ok_or_else(|| format!("{number} is not there, or not so often"))?);
        }
        let sum: i128 = picked.iter().copied().map(i128::from).sum();
        need(sum == i128::from(self.target), || format!("the sum is {sum}, expected {}", self.target))
    }
}
