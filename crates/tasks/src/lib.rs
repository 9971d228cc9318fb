//! Generated, verifiable problems: the text on which the quickstart's own small base model is
//! pre-trained and fine-tuned, and the checks that say whether it got better.
//!
//! - [`puzzle`]: puzzles with many solutions, all of which are accepted.
//! - [`catalogue`]: the families and their levels. Each family is one file under `families`.
//! - [`problem()`]: one problem by (family, level, seed, split, index). What is held out is decided
//!   by a hash of the problem itself ([`split_of_key`]), so no seed mixes the splits.
//! - [`check`](mod@check): judging a reply; [`check_row`] does it from a dataset row alone.
//! - [`rows`]: problems as `messages`, `prompt`/`completion`, `prompt` or preference rows, games as whole conversations.
//! - [`raw`]: pre-training text that knows the words and numbers but not the chat format.
//! - [`source`]: `generated:arithmetic?level=1-2&n=4000&seed=1&split=train` as rows.
//! - [`stats`]: intervals for a success rate and for a paired gain.
//!
//! Texts are short ([`MAX_PROMPT_CHARS`], [`MAX_SOLUTION_CHARS`]) and use few characters
//! ([`ALPHABET`]), so that a model of a few million parameters can learn them on a CPU in minutes.
//! Left out: other languages, anything that needs knowledge of the world.

pub mod catalogue;
pub mod check;
mod constraint;
mod error;
mod families;
pub mod mini;
mod problem;
pub mod puzzle;
pub mod raw;
pub mod rows;
pub mod source;
pub mod stats;

pub use catalogue::{FAMILIES, Family, Level};
pub use check::{Check, Verdict, final_answer};
pub use constraint::Constraint;
pub use error::TaskError;
pub use families::guess;
pub use problem::{
    Census, HELD_OUT_ONE_IN, Problem, Split, all_levels, census, check, problem, split_of_key,
};
pub use puzzle::Puzzle;
pub use raw::{raw_documents, raw_text};
pub use rows::{Form, Replies, Reply, Row, check_row, row, row_with, sft_row};
pub use source::GeneratedSource;
pub use stats::{Gain, paired_gain, wilson_interval};

/// The most characters of a prompt.
pub const MAX_PROMPT_CHARS: usize = 130;
/// The most characters of a solution.
pub const MAX_SOLUTION_CHARS: usize = 110;
/// Every character that any text of this crate uses.
pub const ALPHABET: &str =
    "\n !#%()*+,-./0123456789:<=>?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::catalogue::MANY;

    fn each(n: u64, split: Split, mut check: impl FnMut(&Problem)) {
        for (family, level) in all_levels() {
            for index in 0..n {
                check(&problem(family.name, level, 11, split, index).unwrap());
            }
        }
    }

    #[test]
    fn the_catalogue_is_named_once_and_described() {
        let names: HashSet<&str> = FAMILIES.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), FAMILIES.len());
        for family in FAMILIES {
            assert!(!family.summary.is_empty() && !family.levels.is_empty(), "{}", family.name);
            assert!(family.levels.iter().all(|level| !level.summary.is_empty()), "{}", family.name);
        }
    }

    #[test]
    fn solutions_pass_and_wrong_replies_fail() {
        each(200, Split::Train, |p| {
            assert!(
                p.check(&p.solution).passed(),
                "{}\n{}\n{:?}",
                p.prompt,
                p.solution,
                p.check(&p.solution)
            );
            assert!(!p.check(&p.wrong).passed(), "{}\n{}", p.prompt, p.wrong);
            assert!(!p.check("").passed(), "{}", p.prompt);
            assert!(p.check(&format!("\n {} \n", p.solution)).passed(), "{}", p.solution);
        });
    }

    #[test]
    fn mutated_solutions_fail() {
        // Numbers off by one, words changed, the answer dropped: for each family what must not pass.
        each(100, Split::HeldOut, |p| match &p.check {
            Check::Number { value } => {
                assert!(!p.check(&format!("#### {}", value + 1)).passed(), "{}", p.prompt);
                assert!(!p.check(&format!("#### -{value}0")).passed() || *value == 0, "{}", p.prompt);
                assert!(!p.check(&format!("#### {value} or {}", value + 1)).passed(), "{}", p.prompt);
            }
            Check::Text { text } => {
                assert!(!p.check(&format!("#### {text}x")).passed(), "{}", p.prompt);
                assert!(!p.check(&format!("#### {text} {text}")).passed(), "{}", p.prompt);
            }
            Check::Mentions { word, rivals } => {
                assert!(
                    !p.check(&p.solution.to_lowercase().replace(word.to_lowercase().as_str(), "it")).passed()
                );
                for rival in rivals {
                    assert!(!p.check(&format!("{} {rival}", p.solution)).passed(), "{rival}: {}", p.prompt);
                }
            }
            Check::Function { .. } => {
                assert!(!p.check(&format!("{} + 1", p.solution)).passed(), "{}", p.prompt);
                assert!(!p.check("def f(x): return x").passed(), "{}", p.prompt);
            }
            Check::Puzzle { .. } => {
                for reply in [format!("#### {0} {0}", p.answer), "####".to_owned(), p.prompt.clone()] {
                    assert!(!p.check(&reply).passed(), "{}\n{reply}", p.prompt);
                }
            }
            Check::Constraints { .. } => {
                let words = constraint::words_of(&p.solution);
                let backwards: Vec<&str> = words.iter().rev().map(String::as_str).collect();
                let mixed =
                    format!("Oh {} no", backwards.join(" ").replace(|c: char| "aeiou".contains(c), "y"));
                assert!(!p.check(&mixed).passed(), "{}\n{mixed}", p.prompt);
            }
        });
    }

    #[test]
    fn the_same_address_is_the_same_problem() {
        for (family, level) in all_levels() {
            for index in [0, 1, 1 << 40] {
                let make = |seed| problem(family.name, level, seed, Split::Train, index).unwrap();
                assert_eq!(make(3), make(3));
            }
        }
        // Written down once, so that a change of the generators is noticed.
        let p = problem("sum", 4, 0, Split::HeldOut, 7).unwrap();
        assert_eq!(p.key, "sum [87, -17]");
    }

    #[test]
    fn no_held_out_problem_is_in_training() {
        let (mut train, mut held_out) = (HashSet::new(), HashSet::new());
        let (mut train_prompts, mut held_out_prompts) = (HashSet::new(), HashSet::new());
        each(400, Split::Train, |p| {
            train.insert(p.key.clone());
            train_prompts.insert(p.prompt.clone());
        });
        each(200, Split::HeldOut, |p| {
            held_out.insert(p.key.clone());
            held_out_prompts.insert(p.prompt.clone());
        });
        assert!(train.len() > 6_000 && held_out.len() > 2_000, "{} {}", train.len(), held_out.len());
        assert_eq!(train.intersection(&held_out).count(), 0);
        // A prompt has one key, so the prompts are disjoint too.
        let shared: Vec<_> = train_prompts.intersection(&held_out_prompts).collect();
        assert!(shared.is_empty(), "{shared:?}");
    }

    #[test]
    fn texts_are_short_and_within_the_alphabet() {
        each(200, Split::Train, |p| {
            let counts = (p.prompt.chars().count(), p.solution.chars().count());
            let is_puzzle = FAMILIES[catalogue::N_QUICKSTART..].iter().any(|family| family.name == p.family);
            let (most, most_solution) = match is_puzzle && p.level > 1 {
                true => (puzzle::MAX_PUZZLE_CHARS, puzzle::MAX_PUZZLE_CHARS),
                false => (MAX_PROMPT_CHARS, MAX_SOLUTION_CHARS),
            };
            assert!(counts.0 <= most && counts.1 <= most_solution, "{counts:?} {p:?}");
            for text in [&p.prompt, &p.solution, &p.statement, &p.wrong] {
                assert!(text.chars().all(|c| ALPHABET.contains(c)), "{text}");
                assert_eq!(text.trim(), text);
            }
        });
        for index in 0..500 {
            assert!(raw_text(1, index).chars().all(|c| ALPHABET.contains(c)), "{}", raw_text(1, index));
        }
    }

    #[test]
    fn levels_have_about_as_many_problems_as_they_say() {
        let mut wrong = Vec::new();
        for (family, level) in all_levels() {
            let said = family.levels[level as usize - 1].n_problems;
            // Fewer draws are enough where a level is not near exhaustion, and puzzles take longer to make.
            let census = census(family.name, level, if said >= MANY { 1_500 } else { 6_000 }).unwrap();
            let place = format!("{} level {level}: says {said}, {census:?}", family.name);
            let is_right = match said >= MANY {
                true => census.n_keys_estimated > 0.6 * MANY as f64,
                // Chao's estimate is a lower bound where problems are not equally likely.
                false => (0.5 * said as f64..1.15 * said as f64).contains(&census.n_keys_estimated),
            };
            let share = census.n_keys_held_out as f64 / census.n_keys as f64;
            // The share of keys whose hash is 0 modulo 10: five standard deviations around 1/10.
            let spread = 5.0 * (0.09 / census.n_keys as f64).sqrt();
            if !is_right || (share - 0.1).abs() >= spread || census.n_keys_held_out == 0 {
                wrong.push(place);
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn large_levels_hardly_repeat() {
        for (family, level) in all_levels() {
            if family.levels[level as usize - 1].n_problems >= MANY {
                let n = 500;
                let keys: HashSet<String> =
                    (0..n).map(|i| problem(family.name, level, 1, Split::Train, i).unwrap().key).collect();
                // Of MANY equally likely problems 500 draws repeat about 500^2 / (2 MANY) = 12 times;
                // small numbers are likelier than large ones in some families.
                assert!(keys.len() >= 460, "{} level {level}: {} of {n}", family.name, keys.len());
            }
        }
    }

    #[test]
    fn unknown_families_and_levels_are_errors() {
        for (family, level, message) in [
            ("sums", 1, "there is no family `sums` of generated problems; did you mean `sum`?"),
            ("sum", 0, "family `sum` has no level 0; its levels are 1 to 5"),
            ("sum", 6, "family `sum` has no level 6; its levels are 1 to 5"),
        ] {
            let error = problem(family, level, 0, Split::Train, 0).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
