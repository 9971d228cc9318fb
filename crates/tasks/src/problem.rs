//! A problem, and how one is addressed: by family, level, seed, split and index.

use pt_core::rng::{Draws, Stream};
use serde::Serialize;

use crate::catalogue::{FAMILIES, Family};
use crate::check::{ANSWER_MARK, Check, Verdict};
use crate::error::TaskError;

/// One generated problem with everything needed to pose, teach and check it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    /// The family's name.
    pub family: &'static str,
    /// The level, from 1.
    pub level: u32,
    /// What makes it this problem, whatever its wording: the split is decided by this text.
    pub key: String,
    /// What the user asks.
    pub prompt: String,
    /// A worked reply that passes the check.
    pub solution: String,
    /// The final answer alone.
    pub answer: String,
    /// The same content as a plain statement, as it would stand in running text.
    pub statement: String,
    /// A plausible reply that fails the check.
    pub wrong: String,
    /// How a reply is judged.
    pub check: Check,
}

impl Problem {
    /// Judges `reply`.
    pub fn check(&self, reply: &str) -> Verdict {
        self.check.judge(reply)
    }

    /// Whether `reply` shows how its answer was found, where there is something to show: text before [`ANSWER_MARK`], in a
    /// problem whose solution has some. What is shown is not judged.
    pub fn shows_working(&self, reply: &str) -> bool {
        let has_working =
            |text: &str| text.split_once(ANSWER_MARK).is_some_and(|(before, _)| !before.trim().is_empty());
        has_working(&self.solution) && has_working(reply)
    }
}

/// Judges `reply` to `problem`.
pub fn check(problem: &Problem, reply: &str) -> Verdict {
    problem.check(reply)
}

/// Which side of the fixed train/held-out division a problem lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// For pre-training text, fine-tuning and reinforcement learning.
    Train,
    /// For evaluation only.
    HeldOut,
}

impl Split {
    /// The names accepted in a source, in the order of the variants.
    pub const NAMES: &'static [&'static str] = &["train", "heldout"];

    /// The split of that name.
    pub fn from_name(name: &str) -> Option<Split> {
        match name {
            "train" => Some(Split::Train),
            "heldout" => Some(Split::HeldOut),
            _ => None,
        }
    }

    /// The name of this split.
    pub fn name(self) -> &'static str {
        Split::NAMES[self as usize]
    }
}

/// One in this many keys is held out.
pub const HELD_OUT_ONE_IN: u32 = 10;

/// The split of a key: held out where the first 32 bits of its BLAKE3 hash are 0 modulo
/// [`HELD_OUT_ONE_IN`].
///
/// It depends on nothing else, so no seed, level or wording moves a problem to the other side.
pub fn split_of_key(key: &str) -> Split {
    let hex = pt_core::hash::of_bytes(key.as_bytes());
    let word = u32::from_str_radix(&hex[..8], 16).expect("a BLAKE3 hash is 64 hexadecimal digits");
    if word.is_multiple_of(HELD_OUT_ONE_IN) { Split::HeldOut } else { Split::Train }
}

/// How often a draw may land on the wrong split before the level counts as broken.
const MAX_TRIES: usize = 5_000;

/// Problem number `index` of a split, a pure function of its arguments.
///
/// Problems are drawn independently, so two indices may hold the same problem where the level is
/// small (see [`crate::catalogue::Level::n_problems`]).
///
/// # Errors
/// If the family or the level does not exist.
pub fn problem(family: &str, level: u32, seed: u64, split: Split, index: u64) -> Result<Problem, TaskError> {
    let family = Family::named(family)?;
    family.check_level(level)?;
    Ok(draw(family, level, seed, split, index))
}

/// [`problem`] of a family and level known to exist.
pub(crate) fn draw(family: &Family, level: u32, seed: u64, split: Split, index: u64) -> Problem {
    let name = format!("tasks/{}/{level}/{}", family.name, split.name());
    let mut draws = Stream::new(seed, &name).at(index);
    for _ in 0..MAX_TRIES {
        let problem = (family.generate)(level, &mut draws);
        if split_of_key(&problem.key) == split {
            return problem;
        }
    }
    panic!("{} level {level} has no {} problem in {MAX_TRIES} draws", family.name, split.name());
}

/// A problem of any split, for statistics over the whole space of a level.
pub(crate) fn draw_any(family: &Family, level: u32, seed: u64, index: u64) -> Problem {
    let mut draws: Draws = Stream::new(seed, &format!("tasks/{}/{level}", family.name)).at(index);
    (family.generate)(level, &mut draws)
}

/// How many different problems a sample of a level held.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Census {
    /// Problems drawn, of both splits.
    pub n_drawn: usize,
    /// Different keys among them.
    pub n_keys: usize,
    /// Different prompts among them: one key in two wordings counts twice.
    pub n_prompts: usize,
    /// Keys of them that are held out.
    pub n_keys_held_out: usize,
    /// Estimated number of keys there are: Chao's lower bound `d + f1 (f1 - 1) / (2 (f2 + 1))` with
    /// `f1`, `f2` the keys seen once and twice (Chao 1984, bias-corrected form).
    pub n_keys_estimated: f64,
}

/// Draws `n_drawn` problems of a level and counts the different ones.
///
/// # Errors
/// If the family or the level does not exist.
pub fn census(family: &str, level: u32, n_drawn: usize) -> Result<Census, TaskError> {
    let family = Family::named(family)?;
    family.check_level(level)?;
    let mut keys = std::collections::HashMap::<String, usize>::new();
    let mut prompts = std::collections::HashSet::new();
    for index in 0..n_drawn {
        let problem = draw_any(family, level, 0, index as u64);
        *keys.entry(problem.key).or_default() += 1;
        prompts.insert(problem.prompt);
    }
    let seen = |times: usize| keys.values().filter(|&&count| count == times).count() as f64;
    let (f1, f2) = (seen(1), seen(2));
    Ok(Census {
        n_drawn,
        n_keys: keys.len(),
        n_prompts: prompts.len(),
        n_keys_held_out: keys.keys().filter(|key| split_of_key(key) == Split::HeldOut).count(),
        n_keys_estimated: keys.len() as f64 + f1 * (f1 - 1.0) / (2.0 * (f2 + 1.0)),
    })
}

/// Every family and level there is.
pub fn all_levels() -> impl Iterator<Item = (&'static Family, u32)> {
    FAMILIES.iter().flat_map(|family| family.level_numbers().map(move |level| (family, level)))
}
