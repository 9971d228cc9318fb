//! Puzzles on the letters of made-up words: copy, first or last letter, reverse, count.
//!
//! Words are consonants and vowels in turn, so they read like words and are too many to memorise
//! at the upper levels.
//!
//! ```
//! use pt_tasks::{Split, problem};
//! let p = problem("letters", 4, 1, Split::Train, 0).unwrap();
//! assert_eq!(p.prompt, "Reverse: jeza");
//! assert_eq!(p.solution, "j e z a -> a z e j\n#### azej");
//! ```

use pt_core::rng::Draws;

use super::words::{counted, made_up_word};
use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;

/// The levels.
pub const LEVELS: &[Level] = &[
    Level { summary: "copy a word of three letters", n_problems: 500 },
    Level { summary: "the first or last letter of a word", n_problems: 6_000 },
    Level { summary: "reverse a word of three letters", n_problems: 500 },
    Level { summary: "reverse a word of four or five letters", n_problems: MANY },
    Level { summary: "count a letter in a word of five letters", n_problems: MANY },
];

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    match level {
        1 => copy(level, draws),
        2 => end_letter(level, draws),
        3 => reverse(level, 3, draws),
        4 => {
            let n_letters = 4 + draws.below(2);
            reverse(level, n_letters, draws)
        }
        _ => count(level, draws),
    }
}

fn copy(level: u32, draws: &mut Draws) -> Problem {
    let word = made_up_word(3, draws);
    let wrong = changed(&word, draws);
    let prompt = match draws.below(3) {
        0 => format!("Copy the word {word}."),
        1 => format!("Repeat: {word}"),
        _ => format!("Say {word}."),
    };
    Problem {
        family: "letters",
        level,
        key: format!("letters copy {word}"),
        prompt,
        solution: format!("#### {word}"),
        answer: word.clone(),
        statement: format!("The word {word} is spelled {}.", spelled(&word)),
        wrong: format!("#### {wrong}"),
        check: Check::Text { text: word },
    }
}

fn end_letter(level: u32, draws: &mut Draws) -> Problem {
    let n_letters = 3 + draws.below(2);
    let word = made_up_word(n_letters, draws);
    let (end, answer) = match draws.below(2) {
        0 => ("first", &word[..1]),
        _ => ("last", &word[n_letters - 1..]),
    };
    // Vowels and consonants alternate, so the second letter is never the first one nor, in a word of
    // four, is the third the last.
    let wrong = if end == "first" { &word[1..2] } else { &word[n_letters - 2..n_letters - 1] };
    let prompt = match draws.below(2) {
        0 => format!("What is the {end} letter of {word}?"),
        _ => format!("Give the {end} letter of the word {word}."),
    };
    Problem {
        family: "letters",
        level,
        key: format!("letters {end} {word}"),
        prompt,
        solution: format!("{}\n#### {answer}", spelled(&word)),
        answer: answer.to_string(),
        statement: format!("The {end} letter of {word} is {answer}."),
        wrong: format!("#### {wrong}"),
        check: Check::Text { text: answer.to_string() },
    }
}

fn reverse(level: u32, n_letters: usize, draws: &mut Draws) -> Problem {
    let word = made_up_word(n_letters, draws);
    let answer: String = word.chars().rev().collect();
    let wrong = changed(&answer, draws);
    let prompt = match draws.below(3) {
        0 => format!("Reverse the word {word}."),
        1 => format!("Write {word} backwards."),
        _ => format!("Reverse: {word}"),
    };
    Problem {
        family: "letters",
        level,
        key: format!("letters reverse {word}"),
        prompt,
        solution: format!("{} -> {}\n#### {answer}", spelled(&word), spelled(&answer)),
        answer: answer.clone(),
        statement: format!("The word {word} backwards is {answer}."),
        wrong: format!("{} -> {}\n#### {wrong}", spelled(&word), spelled(&wrong)),
        check: Check::Text { text: answer },
    }
}

fn count(level: u32, draws: &mut Draws) -> Problem {
    let word = made_up_word(5, draws);
    let letter = match draws.below(4) {
        0 => *draws.pick(&["a", "e", "i", "o", "u"]),
        _ => {
            let at = draws.below(5);
            &word[at..=at]
        }
    };
    let n = word.matches(letter).count();
    let prompt = match draws.below(2) {
        0 => format!("How many times is {letter} in {word}?"),
        _ => format!("Count the letter {letter} in {word}."),
    };
    Problem {
        family: "letters",
        level,
        key: format!("letters count {letter} {word}"),
        prompt,
        solution: format!("{}\n#### {n}", spelled(&word)),
        answer: n.to_string(),
        statement: format!("The word {word} has the letter {letter} {}.", counted(n as i64, "time")),
        wrong: format!("{}\n#### {}", spelled(&word), n + 1),
        check: Check::Number { value: n as i64 },
    }
}

fn spelled(word: &str) -> String {
    word.chars().map(String::from).collect::<Vec<_>>().join(" ")
}

/// The word with one letter replaced by the next in the alphabet.
fn changed(word: &str, draws: &mut Draws) -> String {
    let at = draws.below(word.len());
    let next = |c: char| if c == 'z' { 'a' } else { char::from(c as u8 + 1) };
    word.chars().enumerate().map(|(i, c)| if i == at { next(c) } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_word_differs_in_one_letter() {
        let mut draws = pt_core::rng::Stream::new(1, "changed").at(0);
        for word in ["zaz", "bob"] {
            let wrong = changed(word, &mut draws);
            assert_eq!(word.chars().zip(wrong.chars()).filter(|(a, b)| a != b).count(), 1);
        }
    }
}
