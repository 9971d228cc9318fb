//! Knights and knaves: who tells the truth, when each says something of the others.

use pt_core::rng::Draws;
use serde::{Deserialize, Serialize};

use super::words::{NAMES, distinct};
use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;
use crate::puzzle::{Draft, Puzzle, level, need};

/// The levels.
pub const LEVELS: &[Level] =
    &[level("two people", 1_080), level("three people", MANY), level("four people", MANY)];

/// What is said; people by their places.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// Someone lies.
    Lies(usize),
    /// Someone tells the truth.
    TellsTruth(usize),
    /// Two both lie or both tell the truth.
    Alike(usize, usize),
    /// One of two lies and the other does not.
    Differ(usize, usize),
}

impl Said {
    /// Whether it is true; nothing if it speaks of nobody.
    fn holds(&self, truthful: &[bool]) -> Option<bool> {
        let of = |person: &usize| truthful.get(*person).copied();
        Some(match self {
            Said::Lies(a) => !of(a)?,
            Said::TellsTruth(a) => of(a)?,
            Said::Alike(a, b) => of(a)? == of(b)?,
            Said::Differ(a, b) => of(a)? != of(b)?,
        })
    }

    fn text(&self, names: &[&str]) -> String {
        match self {
            Said::Lies(a) => format!("{} lies", names[*a]),
            Said::TellsTruth(a) => format!("{} tells the truth", names[*a]),
            Said::Alike(a, b) => format!("{} and {} are alike", names[*a], names[*b]),
            Said::Differ(a, b) => format!("{} and {} differ", names[*a], names[*b]),
        }
    }
}

/// What each person says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Knights {
    /// In the order of the people.
    pub said: Vec<Said>,
}

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    let n = level as usize + 1;
    let names = distinct(NAMES, n, draws);
    let (said, truthful) = loop {
        let said: Vec<Said> = (0..n).map(|speaker| something(speaker, n, draws)).collect();
        let solutions = solutions(&said);
        if let [only] = solutions.as_slice() {
            break (said, only.clone());
        }
    };
    let lines: Vec<String> =
        said.iter().enumerate().map(|(i, said)| format!("{}: {}.", names[i], said.text(&names))).collect();
    let words = |truthful: &[bool]| -> String {
        truthful.iter().map(|t| if *t { "truth" } else { "lie" }).collect::<Vec<_>>().join(" ")
    };
    let mut spoiled = truthful.clone();
    spoiled[0] = !spoiled[0];
    Draft {
        family: "knights",
        level,
        key: lines.join(" "),
        prompt: format!("Each always lies or never does. {} Say lie or truth for each.", lines.join(" ")),
        work: String::new(),
        answer: words(&truthful),
        wrong: words(&spoiled),
        check: Check::Puzzle { puzzle: Puzzle::Knights(Knights { said }) },
    }
    .finish()
}

/// What a speaker may say of others, or of itself and another.
fn something(speaker: usize, n: usize, draws: &mut Draws) -> Said {
    let mut others: Vec<usize> = (0..n).filter(|person| *person != speaker).collect();
    draws.shuffle(&mut others);
    let pair = (others[0], others.get(1).copied().unwrap_or(speaker));
    match draws.below(4) {
        0 => Said::Lies(pair.0),
        1 => Said::TellsTruth(pair.0),
        2 => Said::Alike(pair.0, pair.1),
        _ => Said::Differ(pair.0, pair.1),
    }
}

/// Who may be telling the truth.
fn solutions(said: &[Said]) -> Vec<Vec<bool>> {
    let all =
        (0..1u32 << said.len()).map(|bits| (0..said.len()).map(|i| bits >> i & 1 == 1).collect::<Vec<_>>());
    all.filter(|truthful| said.iter().zip(truthful).all(|(said, t)| said.holds(truthful) == Some(*t)))
        .collect()
}

impl Knights {
    /// Whether everybody who tells the truth does, and everybody who lies does.
    pub(crate) fn check(&self, answer: &str) -> Result<(), String> {
        let lower = answer.to_lowercase();
        let words = lower.split([' ', ',']).filter(|word| !word.is_empty());
        let truthful: Option<Vec<bool>> = words
            .map(|word| match word {
                "truth" => Some(true),
                "lie" => Some(false),
                _ => None,
            })
            .collect();
        let truthful = truthful.ok_or("the answer has other words than lie and truth")?;
        let n = self.said.len();
        need(truthful.len() == n, || format!("{} words, expected {n}", truthful.len()))?;
        let at_odds = self.said.iter().zip(&truthful).position(|(said, t)| said.holds(&truthful) != Some(*t));
        need(at_odds.is_none(), || format!("what person {} says does not fit", at_odds.unwrap_or(0) + 1))
    }
}
