//! A guessing game: the number is to be found by guesses that are answered with `Higher.` or `Lower.`
//!
//! Its prompts do not tell the answer: they are for the environment `guess` (`pt-environments`), which answers between turns as
//! [`answer`] does. A game's number is a function of the game alone, so that held-out games are games nobody has seen, and knowing
//! them is of no use. [`transcript`] is a whole game, played in one of the ways of [`Play`].
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

/// The family's name.
pub const NAME: &str = "guess";

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
        family: NAME,
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

/// What is said to a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The number was found: the game is over.
    Found,
    /// The game goes on after these words.
    Say(&'static str),
}

/// The answer to a turn where `secret` is to be guessed; what counts is the last number of the turn.
pub fn answer(secret: i64, turn: &str) -> Answer {
    match last_number(turn) {
        None => Answer::Say("Say a number."),
        Some(guess) if guess < secret => Answer::Say("Higher."),
        Some(guess) if guess > secret => Answer::Say("Lower."),
        Some(_) => Answer::Found,
    }
}

/// The last whole number of a text.
fn last_number(text: &str) -> Option<i64> {
    text.split(|c: char| !c.is_ascii_digit()).rfind(|part| !part.is_empty())?.parse().ok()
}

/// A way to play.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Play {
    /// The middle of what the answers leave: nothing finds the number sooner.
    Halving,
    /// Any number of what the answers leave.
    Narrowing,
    /// 1, 2, 3, and so on.
    Counting,
    /// Any number at all, whatever the answers were.
    Blind,
}

impl Play {
    /// The names accepted in a source, in the order of the variants.
    pub const NAMES: &'static [&'static str] = &["halving", "narrowing", "counting", "blind"];

    /// The play of that name.
    pub fn from_name(name: &str) -> Option<Play> {
        [Play::Halving, Play::Narrowing, Play::Counting, Play::Blind]
            .into_iter()
            .find(|play| play.name() == name)
    }

    /// The name of this play.
    pub fn name(self) -> &'static str {
        Play::NAMES[self as usize]
    }

    /// Guess number `turn`, from 0, where the number is from `low` to `high`, of a game from 1 to `greatest`.
    fn guess(self, turn: usize, (low, high): (i64, i64), greatest: i64, draws: &mut Draws) -> i64 {
        match self {
            Play::Halving => (low + high) / 2,
            Play::Narrowing => draws.between(low, high),
            Play::Counting => (turn as i64).min(greatest - 1) + 1,
            Play::Blind => draws.between(1, greatest),
        }
    }
}

/// The turns after the prompt, the player's first and last, until the number is found or `n_turns` guesses are made. What is drawn
/// at random is drawn by the game and the play alone.
///
/// # Panics
/// If `problem` is no guessing game.
pub fn transcript(problem: &Problem, play: Play, n_turns: usize) -> Vec<String> {
    let Check::Number { value: secret } = problem.check else { panic!("no guessing game: {problem:?}") };
    let greatest = GREATEST[problem.level as usize - 1];
    let name = format!("tasks/{}/{}", problem.key, play.name());
    let mut draws = Stream::new(0, &name).at(0);
    let (mut left, mut turns) = ((1, greatest), Vec::new());
    for turn in 0..n_turns {
        let guess = play.guess(turn, left, greatest, &mut draws);
        turns.push(guess.to_string());
        let Answer::Say(said) = answer(secret, &turns[turns.len() - 1]) else { break };
        if turn + 1 < n_turns {
            turns.push(said.to_owned());
        }
        left = if guess < secret { (left.0.max(guess + 1), left.1) } else { (left.0, left.1.min(guess - 1)) };
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Split, problem};

    #[test]
    fn games_are_played_as_their_play_says() {
        let p = problem(NAME, 3, 1, Split::Train, 0).unwrap();
        assert_eq!((p.key.as_str(), p.answer.as_str()), ("guess 16 25647", "11"));
        for (play, n_turns, expected) in [
            (Play::Halving, 8, "8 Higher. 12 Lower. 10 Higher. 11"),
            (Play::Halving, 2, "8 Higher. 12"),
            (Play::Counting, 3, "1 Higher. 2 Higher. 3"),
        ] {
            assert_eq!(transcript(&p, play, n_turns).join(" "), expected, "{play:?}");
            assert_eq!(transcript(&p, play, n_turns), transcript(&p, play, n_turns));
        }
    }

    #[test]
    fn plays_find_the_number_as_often_as_they_should() {
        let games: Vec<Problem> = (0..2_000).map(|i| problem(NAME, 3, 5, Split::Train, i).unwrap()).collect();
        // By count: halving misses 1 number of 16 in four guesses, counting 12, and blind guesses 1 - (15/16)^4; `narrowing` was
        // simulated apart. Five standard deviations of 2,000 games are 0.056.
        for (play, n_turns, expected) in [
            (Play::Halving, 4, 15.0 / 16.0),
            (Play::Halving, 5, 1.0),
            (Play::Narrowing, 4, 0.579),
            (Play::Counting, 4, 0.25),
            (Play::Counting, 40, 1.0),
            (Play::Blind, 4, 0.2275),
        ] {
            let found = |p: &&Problem| transcript(p, play, n_turns).last() == Some(&p.answer);
            let share = games.iter().filter(found).count() as f64 / games.len() as f64;
            assert!((share - expected).abs() < 0.056, "{play:?} in {n_turns}: {share}, expected {expected}");
            assert_eq!(Play::from_name(play.name()), Some(play));
        }
    }

    #[test]
    fn answers_follow_the_last_number() {
        for (turn, expected) in [
            ("2", Answer::Say("Higher.")),
            ("not 5 but 7", Answer::Say("Lower.")),
            ("hm", Answer::Say("Say a number.")),
            ("99999999999999999999", Answer::Say("Say a number.")),
            ("#### 5", Answer::Found),
        ] {
            assert_eq!(answer(5, turn), expected, "{turn}");
        }
    }
}
