//! Raw text for pre-training the quickstart's small base model.
//!
//! A document is a few loosely related lines: statements, questions answered in many shapes or not
//! at all, worked steps, number sequences, little stories, lists of words. A model trained on it
//! knows the characters, words and numbers and some of the tasks, as a real base model does, but
//! has never seen a chat turn or `####`, and is as likely to go on with another question as to
//! answer one.
//!
//! All problems come from the training split. A worked step may still state a small sum that is
//! held out as a problem of `sum` level 1 or 2; nothing held out is ever posed.
//!
//! ```
//! assert_eq!(pt_tasks::raw_text(1, 3), "Which is more: 79 or 65?\n79 > 65\nWhat is 79 + 6?\n79 + 6 = 85");
//! ```

use pt_core::rng::{Draws, Stream};

use crate::catalogue::{FAMILIES, N_QUICKSTART};
use crate::families::words::{ANIMALS, COLOURS, NAMES, PLACES, SIZES, THINGS, VERBS, distinct};
use crate::problem::{Problem, Split, draw};

/// The most characters of a document.
pub const MAX_DOCUMENT_CHARS: usize = 1_200;

/// Document number `index`, a pure function of its arguments.
pub fn raw_text(seed: u64, index: u64) -> String {
    let mut draws = Stream::new(seed, "tasks/raw").at(index);
    let n_pieces = 1 + draws.below(4);
    let pieces: Vec<String> = (0..n_pieces).map(|_| piece(seed, &mut draws)).collect();
    pieces.join("\n")
}

/// Documents 0, 1, 2, ... until they hold at least `n_chars` characters together.
pub fn raw_documents(seed: u64, n_chars: usize) -> impl Iterator<Item = String> {
    (0..).scan(0usize, move |so_far, index| {
        if *so_far >= n_chars {
            return None;
        }
        let document = raw_text(seed, index);
        *so_far += document.chars().count();
        Some(document)
    })
}

fn piece(seed: u64, draws: &mut Draws) -> String {
    match draws.below(10) {
        0 => number_sequence(draws),
        1 => story(draws),
        2 => word_list(draws),
        3 => quiz(seed, draws),
        _ => loose(&some_problem(seed, draws), draws),
    }
}

fn some_problem(seed: u64, draws: &mut Draws) -> Problem {
    let family = draws.pick(&FAMILIES[..N_QUICKSTART]);
    let level = 1 + draws.below(family.levels.len()) as u32;
    draw(family, level, seed, Split::Train, draws.next_u64())
}

/// One problem in one of the shapes found in the wild.
fn loose(problem: &Problem, draws: &mut Draws) -> String {
    let Problem { prompt, answer, statement, .. } = problem;
    let worked = problem.solution.split("####").next().unwrap_or("").trim();
    match draws.below(9) {
        0..=2 => statement.clone(),
        3 if !worked.is_empty() => worked.to_string(),
        4 => format!("Q: {prompt}\nA: {answer}"),
        5 => format!("{prompt} {answer}"),
        6 => format!("Question: {prompt}\nAnswer: {answer}."),
        7 => format!("{prompt}\n{}", if worked.is_empty() { answer } else { worked }),
        _ => format!("{prompt}\nThe answer is {answer}."),
    }
}

/// Questions without answers, as in an exercise book.
fn quiz(seed: u64, draws: &mut Draws) -> String {
    let n = 2 + draws.below(2);
    let family = draws.pick(&FAMILIES[..N_QUICKSTART]);
    let level = 1 + draws.below(family.levels.len()) as u32;
    let questions: Vec<String> = (1..=n)
        .map(|i| format!("{i}. {}", draw(family, level, seed, Split::Train, draws.next_u64()).prompt))
        .collect();
    questions.join("\n")
}

fn number_sequence(draws: &mut Draws) -> String {
    let (start, step, n) = (draws.between(0, 60), draws.between(1, 10), 4 + draws.below(6));
    let numbers = (0..n as i64).map(|i| (start + i * step).to_string());
    let mut numbers: Vec<String> = numbers.collect();
    if draws.below(4) == 0 {
        numbers.reverse();
    }
    numbers.join(*draws.pick(&[" ", ", "]))
}

fn word_list(draws: &mut Draws) -> String {
    let (name, list) =
        *draws.pick(&[("Colours", COLOURS), ("Animals", ANIMALS), ("Things", THINGS), ("Names", NAMES)]);
    let n = 3 + draws.below(4);
    format!("{name}: {}.", distinct(list, n, draws).join(", "))
}

fn story(draws: &mut Draws) -> String {
    let names = distinct(NAMES, 2, draws);
    let (thing, animal, place) = (*draws.pick(THINGS), *draws.pick(ANIMALS), *draws.pick(PLACES));
    let (size, colour) = (*draws.pick(SIZES), *draws.pick(COLOURS));
    let first = match draws.below(3) {
        0 => format!("{} has a {size} {colour} {thing}.", names[0]),
        1 => format!("One day {} finds a {colour} {thing} by the {place}.", names[0]),
        _ => format!("A {size} {animal} lives by the {place}."),
    };
    let second = match draws.below(3) {
        0 => format!("{} {} the {thing} too.", names[1], draws.pick(VERBS)),
        1 => format!("The {animal} {} the {thing}.", draws.pick(VERBS)),
        _ => format!("{} and {} play with the {animal}.", names[0], names[1]),
    };
    let last = *draws.pick(&["They are happy.", "Then they go home.", "It is a good day.", "The end."]);
    format!("{first} {second} {last}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Family;
    use crate::problem::all_levels;

    /// Whether the text asks this, in any of the shapes of [`loose`] and [`quiz`].
    fn poses(text: &str, problem: &Problem) -> bool {
        let Problem { prompt, answer, .. } = problem;
        ["\n", "Q: ", "Question: ", "1. ", "2. ", "3. "]
            .iter()
            .any(|before| text.contains(&format!("{before}{prompt}\n")))
            || text.contains(&format!("\n{prompt} {answer}\n"))
    }

    #[test]
    fn raw_text_never_poses_a_held_out_problem() {
        let text: String = (0..3_000).map(|index| raw_text(5, index) + "\n").collect();
        let sums = Family::named("sum").unwrap();
        let n_found = (0..50).filter(|i| poses(&text, &draw(sums, 1, 5, Split::Train, *i))).count();
        assert!(n_found > 5, "the search finds only {n_found} of 50 training problems, so it proves nothing");
        for (family, level) in all_levels() {
            for index in 0..20 {
                let held_out = draw(family, level, 5, Split::HeldOut, index);
                assert!(!poses(&text, &held_out), "{} is in the raw text", held_out.prompt);
            }
        }
    }

    #[test]
    fn documents_are_short_fixed_and_free_of_the_chat_format() {
        for index in 0..2_000 {
            let document = raw_text(1, index);
            assert_eq!(document, raw_text(1, index));
            assert!(!document.is_empty() && document.chars().count() <= MAX_DOCUMENT_CHARS, "{document}");
            assert!(!document.contains("####") && !document.contains("assistant"), "{document}");
        }
        assert_ne!(raw_text(1, 0), raw_text(2, 0));
    }

    #[test]
    fn documents_stop_at_the_wanted_size() {
        for n_chars in [1, 1_000, 20_000] {
            let total: usize = raw_documents(1, n_chars).map(|d| d.chars().count()).sum();
            assert!((n_chars..n_chars + MAX_DOCUMENT_CHARS).contains(&total), "{n_chars}: {total}");
        }
        assert_eq!(raw_documents(1, 0).count(), 0);
    }
}
