//! Measuring with jugs: fill, empty and pour until one holds the wanted amount. Any such moves are accepted.

use std::collections::{HashMap, VecDeque};

use pt_core::rng::Draws;
use serde::{Deserialize, Serialize};

use crate::catalogue::Level;
use crate::check::Check;
use crate::problem::Problem;
use crate::puzzle::{Draft, Puzzle, clipped, level, need};

/// The levels.
pub const LEVELS: &[Level] = &[
    level("two jugs, two to four moves", 620),
    level("two jugs, five to eight moves", 500),
    level("three jugs, four to eight moves", 5_000),
];
/// The most moves of an answer that are read.
const MAX_MOVES: usize = 1_000;

/// Jugs and an amount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Jugs {
    /// What each holds at most.
    pub sizes: Vec<u32>,
    /// What one is to hold.
    pub target: u32,
}

/// One move; jugs by their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Fill(usize),
    Empty(usize),
    Pour(usize, usize),
}

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    let (n, largest, range) = [(2, 25, 2..=4), (2, 25, 5..=8), (3, 18, 4..=8)][level as usize - 1].clone();
    loop {
        let mut sizes: Vec<u32> = (0..n).map(|_| draws.between(2, largest) as u32).collect();
        sizes.sort_unstable();
        let target = draws.between(1, i64::from(sizes[n - 1])) as u32;
        if sizes.windows(2).any(|pair| pair[0] == pair[1]) || sizes.contains(&target) {
            continue;
        }
        let jugs = Jugs { sizes, target };
        if let Some(moves) = jugs.solve(*range.end()).filter(|moves| range.contains(&moves.len())) {
            return finish(level, jugs, &moves);
        }
    }
}

fn finish(level: u32, jugs: Jugs, moves: &[Move]) -> Problem {
    let texts: Vec<String> = moves.iter().map(|m| m.text()).collect();
    let holds: Vec<String> =
        jugs.sizes.iter().enumerate().map(|(i, size)| format!("{} holds {size}", letter(i))).collect();
    Draft {
        family: "jugs",
        level,
        key: format!("{:?} {}", jugs.sizes, jugs.target),
        prompt: format!(
            "Jugs: {}. Get {} in one of them. Moves like: fill A, empty A, pour A B.",
            holds.join(", "),
            jugs.target
        ),
        work: String::new(),
        answer: texts.join(", "),
        wrong: texts[..texts.len() - 1].join(", "),
        check: Check::Puzzle { puzzle: Puzzle::Jugs(jugs) },
    }
    .finish()
}

fn letter(place: usize) -> char {
    char::from(b'A' + place as u8)
}

impl Move {
    fn text(self) -> String {
        match self {
            Move::Fill(a) => format!("fill {}", letter(a)),
            Move::Empty(a) => format!("empty {}", letter(a)),
            Move::Pour(a, b) => format!("pour {} {}", letter(a), letter(b)),
        }
    }

    fn read(text: &str, n: usize) -> Option<Move> {
        let lower = text.to_lowercase();
        let words: Vec<&str> =
            lower.split_whitespace().filter(|word| !matches!(*word, "to" | "into" | "jug")).collect();
        let jug = |word: &str| {
            let place = word.bytes().next()?.checked_sub(b'a').map(usize::from)?;
            (word.len() == 1 && place < n).then_some(place)
        };
        match words.as_slice() {
            ["fill", a] => Some(Move::Fill(jug(a)?)),
            ["empty", a] => Some(Move::Empty(jug(a)?)),
            ["pour", a, b] if a != b => Some(Move::Pour(jug(a)?, jug(b)?)),
            _ => None,
        }
    }

    fn apply(self, sizes: &[u32], state: &mut [u32]) {
        match self {
            Move::Fill(a) => state[a] = sizes[a],
            Move::Empty(a) => state[a] = 0,
            Move::Pour(a, b) => {
                let amount = state[a].min(sizes[b].saturating_sub(state[b]));
                state[a] -= amount;
                state[b] += amount;
            }
        }
    }
}

impl Jugs {
    /// The fewest moves, if no more than `most` are needed.
    fn solve(&self, most: usize) -> Option<Vec<Move>> {
        let n = self.sizes.len();
        let pours = (0..n).flat_map(|a| (0..n).filter(move |b| *b != a).map(move |b| Move::Pour(a, b)));
        let all: Vec<Move> = (0..n).flat_map(|a| [Move::Fill(a), Move::Empty(a)]).chain(pours).collect();
        let start = vec![0; n];
        let mut came: HashMap<Vec<u32>, Option<(Vec<u32>, Move)>> = HashMap::from([(start.clone(), None)]);
        let mut queue = VecDeque::from([(start, 0)]);
        while let Some((state, n_moves)) = queue.pop_front() {
            if state.contains(&self.target) {
                let (mut moves, mut at) = (Vec::new(), state);
                while let Some((before, step)) = came[&at].clone() {
                    moves.push(step);
                    at = before;
                }
                moves.reverse();
                return Some(moves);
            }
            for step in all.iter().filter(|_| n_moves < most) {
                let mut next = state.clone();
                step.apply(&self.sizes, &mut next);
                if !came.contains_key(&next) {
                    came.insert(next.clone(), Some((state.clone(), *step)));
                    queue.push_back((next, n_moves + 1));
                }
            }
        }
        None
    }

    /// Whether one jug holds the amount after the moves.
    pub(crate) fn check(&self, answer: &str) -> Result<(), String> {
        let mut state = vec![0; self.sizes.len()];
        for (index, text) in answer.split(',').map(str::trim).filter(|text| !text.is_empty()).enumerate() {
            need(index < MAX_MOVES, || format!("more than {MAX_MOVES} moves"))?;
            let step =
                Move::read(text, state.len()).ok_or_else(|| format!("`{}` is no move", clipped(text)))?;
            step.apply(&self.sizes, &mut state);
        }
        need(state.contains(&self.target), || format!("ends with {state:?}, expected {} in one", self.target))
    }
}
