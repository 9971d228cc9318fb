//! Three colours for the points of a graph so that joined points differ. Any such colouring is accepted.

use pt_core::rng::Draws;
use serde::{Deserialize, Serialize};

use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;
use crate::puzzle::{Draft, Puzzle, clipped, level, need};

/// The levels.
pub const LEVELS: &[Level] =
    &[level("five points", 800), level("seven points", MANY), level("nine points", MANY)];

/// A graph; points are letters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Colouring {
    /// How many points there are, from `A` on.
    pub n_points: usize,
    /// Which are joined: two letters each.
    pub edges: Vec<String>,
}

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    let n = [5, 7, 9][level as usize - 1];
    let letter = |point: usize| char::from(b'A' + point as u8);
    let (colours, edges) = loop {
        let colours: Vec<usize> = (0..n).map(|_| 1 + draws.below(3)).collect();
        let mut edges = Vec::new();
        for a in 0..n {
            for b in a + 1..n {
                if colours[a] != colours[b] && draws.below(2) == 0 {
                    edges.push(format!("{}{}", letter(a), letter(b)));
                }
            }
        }
        // A graph of few edges is no puzzle, and one of many needs a long text.
        if (n - 1..=2 * n).contains(&edges.len()) {
            break (colours, edges);
        }
    };
    let text = |colours: &[usize]| -> String {
        colours.iter().enumerate().map(|(i, c)| format!("{}{c}", letter(i))).collect::<Vec<_>>().join(" ")
    };
    Draft {
        family: "colouring",
        level,
        key: format!("{n} {}", edges.join(" ")),
        prompt: format!(
            "Give each of A-{} a colour 1, 2 or 3. Joined ones differ: {}. Write A1 B2 and so on.",
            letter(n - 1),
            edges.join(" ")
        ),
        work: String::new(),
        answer: text(&colours),
        wrong: text(&vec![1; n]),
        check: Check::Puzzle { puzzle: Puzzle::Colouring(Colouring { n_points: n, edges }) },
    }
    .finish()
}

impl Colouring {
    /// Whether every point has one colour of three and joined points differ.
    pub(crate) fn check(&self, answer: &str) -> Result<(), String> {
        let mut colours = vec![None; self.n_points.min(26)];
        for word in answer.split([' ', ',']).filter(|word| !word.is_empty()) {
            let parts: Vec<char> = word.chars().filter(|c| !"=:-".contains(*c)).collect();
            let (point, colour) = match parts.as_slice() {
                [point, colour @ '1'..='3'] if point.is_ascii_alphabetic() => {
                    (point.to_ascii_uppercase(), *colour)
                }
                _ => return Err(format!("`{}` is no point with a colour 1 to 3", clipped(word))),
            };
            let place = colours.get_mut(usize::from(point as u8 - b'A'));
            let place = place.ok_or_else(|| format!("there is no point {point}"))?;
            need(place.is_none(), || format!("point {point} is coloured twice"))?;
            *place = Some(colour);
        }
        need(colours.iter().all(Option::is_some), || "a point has no colour".to_owned())?;
        let of = |point: u8| {
            point.checked_sub(b'A').and_then(|place| colours.get(usize::from(place))).copied().flatten()
        };
        let is_fine =
            |edge: &&String| matches!(edge.as_bytes(), [a, b] if of(*a).is_some() && of(*a) != of(*b));
        match self.edges.iter().find(|edge| !is_fine(edge)) {
            Some(edge) => Err(format!("{} are joined and have one colour", clipped(edge))),
            None => Ok(()),
        }
    }
}
