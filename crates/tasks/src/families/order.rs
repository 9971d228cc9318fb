//! An order of people that follows from clues, as in zebra puzzles. Each has one solution.

use pt_core::rng::Draws;
use serde::{Deserialize, Serialize};

use super::words::{NAMES, distinct};
use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;
use crate::puzzle::{Draft, Puzzle, clipped, level, need};

/// The levels.
pub const LEVELS: &[Level] =
    &[level("three people", MANY), level("four people", MANY), level("five people", MANY)];

/// What is known of an order; places count from 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clue {
    /// Someone comes before another, not only right before.
    Before(String, String),
    /// Someone comes right before another.
    RightBefore(String, String),
    /// Someone has this place.
    At(String, usize),
    /// Someone does not have this place.
    NotAt(String, usize),
}

impl Clue {
    fn holds(&self, order: &[&str]) -> bool {
        let place = |name: &str| order.iter().position(|other| *other == name);
        match self {
            Clue::Before(a, b) => place(a).zip(place(b)).is_some_and(|(a, b)| a < b),
            Clue::RightBefore(a, b) => place(a).zip(place(b)).is_some_and(|(a, b)| a + 1 == b),
            Clue::At(a, at) => place(a).is_some_and(|place| place + 1 == *at),
            Clue::NotAt(a, at) => place(a).is_some_and(|place| place + 1 != *at),
        }
    }

    fn text(&self) -> String {
        match self {
            Clue::Before(a, b) => format!("{a} is before {b}."),
            Clue::RightBefore(a, b) => format!("{a} is right before {b}."),
            Clue::At(a, at) => format!("{a} is number {at}."),
            Clue::NotAt(a, at) => format!("{a} is not number {at}."),
        }
    }
}

/// People and clues.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Who is to be ordered.
    pub names: Vec<String>,
    /// What is known.
    pub clues: Vec<Clue>,
}

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    let n = level as usize + 2;
    let order = distinct(NAMES, n, draws);
    let orders = permutations(&order);
    let mut clues: Vec<Clue> = Vec::new();
    let n_left = |clues: &[Clue]| orders.iter().filter(|o| clues.iter().all(|clue| clue.holds(o))).count();
    while n_left(&clues) > 1 {
        let clue = something(&order, draws);
        if !clues.contains(&clue) {
            clues.push(clue);
        }
    }
    // What the others already say is dropped.
    for index in (0..clues.len()).rev() {
        let mut fewer = clues.clone();
        fewer.remove(index);
        if n_left(&fewer) == 1 {
            clues = fewer;
        }
    }
    let mut names = order.clone();
    names.sort_unstable();
    let texts: Vec<String> = clues.iter().map(Clue::text).collect();
    let mut spoiled = order.clone();
    spoiled.swap(0, 1);
    let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    Draft {
        family: "order",
        level,
        key: texts.join(" "),
        prompt: format!("Put in order: {}. {}", names.join(", "), texts.join(" ")),
        work: String::new(),
        answer: order.join(", "),
        wrong: spoiled.join(", "),
        check: Check::Puzzle { puzzle: Puzzle::Order(Order { names, clues }) },
    }
    .finish()
}

/// Something true of the order.
fn something(order: &[&str], draws: &mut Draws) -> Clue {
    let n = order.len();
    let (a, b) = (draws.below(n - 1), draws.below(n));
    let name = |place: usize| order[place].to_owned();
    match draws.below(5) {
        0 | 1 => {
            let later = a + 1 + draws.below(n - 1 - a);
            Clue::Before(name(a), name(later))
        }
        2 => Clue::RightBefore(name(a), name(a + 1)),
        3 => Clue::At(name(b), b + 1),
        _ => {
            let other = (b + 1 + draws.below(n - 1)) % n;
            Clue::NotAt(name(b), other + 1)
        }
    }
}

fn permutations<'a>(items: &[&'a str]) -> Vec<Vec<&'a str>> {
    let Some((first, rest)) = items.split_first() else { return vec![Vec::new()] };
    let insert = |order: Vec<&'a str>| {
        (0..=order.len()).map(move |place| {
            let mut longer = order.clone();
            longer.insert(place, first);
            longer
        })
    };
    permutations(rest).into_iter().flat_map(insert).collect()
}

impl Order {
    /// Whether the answer is an order of all people that fits every clue.
    pub(crate) fn check(&self, answer: &str) -> Result<(), String> {
        let order: Vec<&str> = answer.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        let find = |word: &str| self.names.iter().find(|name| name.eq_ignore_ascii_case(word));
        if let Some(stranger) = order.iter().find(|word| find(word).is_none()) {
            return Err(format!("`{}` is none of the names", clipped(stranger)));
        }
        let order: Vec<&str> = order.iter().filter_map(|word| find(word)).map(String::as_str).collect();
        let is_whole =
            order.len() == self.names.len() && self.names.iter().all(|name| order.contains(&name.as_str()));
        need(is_whole, || "not every name stands there once".to_owned())?;
        match self.clues.iter().find(|clue| !clue.holds(&order)) {
            Some(clue) => Err(format!("does not fit: {}", clue.text())),
            None => Ok(()),
        }
    }
}
