//! A guessing game: the number is to be found by guesses that are answered with `Higher.` or `Lower.`
//!
//! Its prompts do not tell the answer: they are for the environment `guess` (`pt-environments`), which answers between turns. A game's
//! number is a function of the game alone, so that held-out games are games nobody has seen, and knowing them is of no use.
//!
//! ```
//! use pt_tasks::{Split, problem};
//! let p = problem("guess", 1, 1, Split::Train, 0).unwrap();
//! assert!(p.prompt.ends_with("Guess my number from 1 to 4."), "{}", p.prompt);
//! ```

use pt_core::rng::{Draws, Stream};

use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;

/// The levels.
pub const LEVELS: &[Level] = &[
    Level { summary: "a number from 1 to 4", n_problems: MANY },
    Level { summary: "a number from 1 to 8", n_problems: MANY },
    Level { summary: "a number from 1 to 16", n_problems: MANY },
    Level { summary: "a number from 1 to 100", n_problems: MANY },
];

/// Greatest number of each level.
const GREATEST: [i64; 4] = [4, 8, 16, 100];
/// Games of each level.
const N_GAMES: i64 = 100_000;

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    let greatest = GREATEST[level as usize - 1];
    let game = draws.between(0, N_GAMES - 1);
    let answer = Stream::new(greatest as u64, "guess").at(game as u64).between(1, greatest);
    let wrong = answer % greatest + 1;
    Problem {
        family: "guess",
        level,
        key: format!("guess {greatest} {game}"),
        prompt: format!("Game {game}. Guess my number from 1 to {greatest}."),
        solution: format!("#### {answer}"),
        answer: answer.to_string(),
        statement: format!("The number of game {game} from 1 to {greatest} is {answer}."),
        wrong: format!("#### {wrong}"),
        check: Check::Number { value: answer },
    }
}
