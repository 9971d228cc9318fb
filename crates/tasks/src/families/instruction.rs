//! Instructions whose constraints can be checked: capitals, number of words, first or last word,
//! words to use or avoid, lists, repetition.
//!
//! Any text that meets the constraints passes; whether it is a good sentence is not judged. The
//! score is the fraction of constraints met.
//!
//! ```
//! use pt_tasks::{Split, problem};
//! let p = problem("instruction", 1, 1, Split::Train, 0).unwrap();
//! assert_eq!(p.prompt, "Say cat 6 times and nothing else.");
//! assert_eq!(p.solution, "cat cat cat cat cat cat");
//! let p = problem("instruction", 3, 1, Split::Train, 1).unwrap();
//! assert_eq!(p.prompt, "Write a sentence. Do not say duck. Use the word sees. End with cup.");
//! assert_eq!(p.solution, "Ben sees the big green cup.");
//! ```

use pt_core::rng::Draws;

use super::words::{ANIMALS, COLOURS, NAMES, PLACES, SIZES, THINGS, VERBS, distinct};
use crate::catalogue::Level;
use crate::check::Check;
use crate::constraint::Constraint;
use crate::problem::Problem;

/// The levels.
pub const LEVELS: &[Level] = &[
    Level { summary: "one constraint: repeat, capitals, a list, a last or first word", n_problems: 384 },
    Level { summary: "a sentence under two constraints", n_problems: 704 },
    Level { summary: "a sentence under three constraints", n_problems: 5_660 },
];

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    match (level, draws.below(4)) {
        (1, 0) => repeat(level, draws),
        (1, 1) => list(level, draws),
        (1, 2) => capitals(level, draws),
        (_, _) => sentence(level, draws),
    }
}

fn finish(
    level: u32,
    prompt: String,
    solution: String,
    plain: String,
    wrong: String,
    constraints: Vec<Constraint>,
) -> Problem {
    // The order of the constraints is fixed below, so their text is canonical whatever the wording.
    let described: Vec<String> = constraints.iter().map(Constraint::describe).collect();
    Problem {
        family: "instruction",
        level,
        key: format!("instruction {}", described.join("; ")),
        prompt,
        answer: solution.clone(),
        statement: format!("{plain}."),
        solution,
        wrong,
        check: Check::Constraints { constraints },
    }
}

fn repeat(level: u32, draws: &mut Draws) -> Problem {
    let (word, n) = (any_noun(draws), 2 + draws.below(5));
    let prompt = match draws.below(2) {
        0 => format!("Write the word {word} {n} times."),
        _ => format!("Say {word} {n} times and nothing else."),
    };
    let solution = vec![word; n].join(" ");
    let wrong = format!("{solution} {word}");
    let plain = solution.clone();
    finish(level, prompt, solution, plain, wrong, vec![Constraint::Repeats { word: word.to_string(), n }])
}

/// What a list may be of.
const TOPICS: &[(&str, &[&str])] = &[("colours", COLOURS), ("animals", ANIMALS), ("things", THINGS)];

fn list(level: u32, draws: &mut Draws) -> Problem {
    let ((topic, items), n) = (*draws.pick(TOPICS), 2 + draws.below(4));
    let chosen = distinct(items, n, draws);
    // A list of n things alone is a tiny space: half of them must also hold a given item.
    let with = chosen[draws.below(n)];
    let mut constraints = vec![Constraint::Items { n }];
    let mut prompt = format!("List {n} {topic}, one per line, each after a dash.");
    if draws.below(4) > 0 {
        prompt = format!("List {n} {topic}, one of them {with}, each on a line after a dash.");
        constraints.push(Constraint::Includes { word: with.to_string() });
    }
    let lines: Vec<String> = chosen.iter().map(|item| format!("- {item}")).collect();
    finish(level, prompt, lines.join("\n"), chosen.join(", "), chosen.join(" "), constraints)
}

fn capitals(level: u32, draws: &mut Draws) -> Problem {
    let (size, noun) = (*draws.pick(SIZES), any_noun(draws));
    let prompt = match draws.below(2) {
        0 => format!("Write {size} {noun} in capitals."),
        _ => format!("In capitals, please: {size} {noun}"),
    };
    let text = format!("{size} {noun}");
    let constraints = vec![
        Constraint::Capitals,
        Constraint::Words { n: 2 },
        Constraint::StartsWith { word: size.to_string() },
        Constraint::EndsWith { word: noun.to_string() },
    ];
    finish(level, prompt, text.to_uppercase(), text.clone(), text, constraints)
}

fn any_noun(draws: &mut Draws) -> &'static str {
    let lists = [THINGS, ANIMALS, PLACES];
    let list = lists[draws.below(lists.len())];
    list[draws.below(list.len())]
}

/// A sentence of `n` words, 3 to 7, that starts with a name and ends with a thing.
fn words(n: usize, draws: &mut Draws) -> Vec<String> {
    let names = distinct(NAMES, 2, draws);
    let (verb, thing) = (*draws.pick(VERBS), *draws.pick(THINGS));
    let (size, colour) = (*draws.pick(SIZES), *draws.pick(COLOURS));
    let list: Vec<&str> = match n {
        3 => vec![names[0], verb, "cake"],
        4 => vec![names[0], verb, "the", thing],
        5 => vec![names[0], verb, "the", colour, thing],
        6 => vec![names[0], verb, "the", size, colour, thing],
        _ => vec![names[0], "and", names[1], "see", "the", colour, thing],
    };
    list.into_iter().map(String::from).collect()
}

/// A sentence under `level` constraints besides those it happens to meet.
fn sentence(level: u32, draws: &mut Draws) -> Problem {
    let n = 3 + draws.below(5);
    let text = words(n, draws);
    let (first, last) = (text[0].to_lowercase(), text[n - 1].clone());
    let verb_or_and = text[1].clone();
    let capitals = level > 1 && draws.below(3) == 0;
    let absent = *draws.pick(ANIMALS);
    let mut asked: Vec<(String, Constraint)> = vec![
        (format!("Use exactly {n} words."), Constraint::Words { n }),
        (format!("End with {last}."), Constraint::EndsWith { word: last }),
        (format!("Start with {}.", text[0]), Constraint::StartsWith { word: first }),
        (format!("Use the word {verb_or_and}."), Constraint::Includes { word: verb_or_and }),
    ];
    if level > 1 {
        asked.push((format!("Do not say {absent}."), Constraint::Excludes { word: absent.to_string() }));
    }
    let n_asked = level as usize - usize::from(capitals);
    let mut order: Vec<usize> = (0..asked.len()).collect();
    draws.shuffle(&mut order);
    order.truncate(n_asked);
    // A lone "do not" is met by silence about everything; it always comes with something to do.
    if order == [4] {
        order = vec![0];
    }
    let mut prompt = vec!["Write a sentence.".to_string()];
    prompt.extend(order.iter().map(|i| asked[*i].0.clone()));
    order.sort_unstable();
    let mut constraints: Vec<Constraint> = order.iter().map(|i| asked[*i].1.clone()).collect();
    let plain = text.join(" ");
    let mut solution = format!("{plain}.");
    if capitals {
        prompt.push("Use only capitals.".to_string());
        constraints.push(Constraint::Capitals);
        solution = solution.to_uppercase();
    }
    let wrong = spoiled(&plain, &constraints[0]);
    finish(level, prompt.join(" "), solution, plain, wrong, constraints)
}

/// The sentence changed so that this constraint does not hold.
fn spoiled(sentence: &str, constraint: &Constraint) -> String {
    match constraint {
        Constraint::StartsWith { .. } => format!("now {sentence}"),
        Constraint::Includes { word } => sentence.replacen(word.as_str(), "so", 1),
        _ => format!("{sentence} now"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constraint::words_of;

    #[test]
    fn sentences_have_the_words_they_claim() {
        let mut draws = pt_core::rng::Stream::new(2, "words").at(0);
        for n in 3..=7 {
            let sentence = words(n, &mut draws);
            assert_eq!(sentence.len(), n);
            assert!(sentence.iter().all(|word| words_of(word).len() == 1));
        }
    }

    #[test]
    fn silence_and_the_prompt_itself_do_not_pass() {
        for level in 1..=3 {
            for index in 0..200 {
                let p = generate(level, &mut pt_core::rng::Stream::new(4, "silence").at(index));
                assert!(!p.check("").passed() && !p.check("- - -").passed(), "{}", p.prompt);
            }
        }
    }
}
