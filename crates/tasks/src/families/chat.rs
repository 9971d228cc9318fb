//! Short chat: greetings, who are you, and questions about facts stated in the prompt.
//!
//! The closed world is things with a colour, a size and a place. A reply is right when its first
//! line names the answer and nothing that would be another answer.
//!
//! ```
//! use pt_tasks::{Split, problem};
//! let p = problem("chat", 1, 1, Split::Train, 0).unwrap();
//! assert_eq!(p.prompt, "Good morning! Zoe here.");
//! assert_eq!(p.solution, "Hello, Zoe! How can I help you?");
//! let p = problem("chat", 3, 1, Split::Train, 1).unwrap();
//! assert_eq!(p.prompt, "The cup is by the door. The nut is by the shelf. The coin is by the bed. Where is the nut?");
//! assert_eq!(p.solution, "The nut is by the shelf.");
//! ```

use pt_core::rng::Draws;

use super::words::{COLOURS, NAMES, PLACES, SIZES, THINGS, distinct};
use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;

/// The levels.
pub const LEVELS: &[Level] = &[
    Level { summary: "greetings with a name, and who are you", n_problems: 280 },
    Level { summary: "a question about one of two stated facts", n_problems: MANY },
    Level {
        summary: "a question about one of three stated facts, also what has a property",
        n_problems: MANY,
    },
    Level { summary: "left and right, above and below: the stated relation turned round", n_problems: 528 },
];

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    match (level, draws.below(4)) {
        (1, 0) => identity(level, draws),
        (1, _) => greeting(level, draws),
        (2, _) => facts(level, 2, draws),
        (3, _) => facts(level, 3, draws),
        _ => relation(level, draws),
    }
}

const GREETINGS: &[&str] = &["Hello", "Hi", "Hey", "Good day", "Good morning", "Good evening"];

fn greeting(level: u32, draws: &mut Draws) -> Problem {
    let (hello, name) = (*draws.pick(GREETINGS), *draws.pick(NAMES));
    let prompt = match draws.below(4) {
        0 => format!("{hello}, I am {name}."),
        1 => format!("{hello}! My name is {name}."),
        2 => format!("{hello}. You can call me {name}."),
        _ => format!("{hello}! {name} here."),
    };
    let solution = format!("Hello, {name}! How can I help you?");
    let wrong = "Hello! How can I help you?".to_string();
    let statement = format!("{name} says: {hello}! Nice to see you.");
    fact_problem(level, prompt.clone(), prompt, solution, name, &[], statement, wrong)
}

/// Who speaks, and what it is asked about itself.
fn identity(level: u32, draws: &mut Draws) -> Problem {
    let hello = *draws.pick(&["", "Hello. ", "Hi. ", "Hey. "]);
    let (question, solution, word) = *draws.pick(&[
        ("Who are you?", "I am a little helper.", "helper"),
        ("What are you?", "I am a little helper.", "helper"),
        ("Are you a person?", "No, I am a little helper.", "no"),
        ("Are you a program?", "Yes, I am a little program.", "yes"),
        ("What can you do?", "I can count, sort and spell.", "count"),
        ("Can you sing?", "No, I can count, sort and spell.", "no"),
        ("Can you count?", "Yes, I can count.", "yes"),
        ("Can you spell?", "Yes, I can spell.", "yes"),
        ("Can you cook?", "No, I can count, sort and spell.", "no"),
        ("Do you eat?", "No, I am a little program.", "no"),
    ]);
    let rivals: &[&str] = match word {
        "yes" => &["no", "not"],
        "no" => &["yes"],
        _ => &["not", "yes", "no"],
    };
    let prompt = format!("{hello}{question}");
    let wrong = if word == "no" { "Yes." } else { "No." };
    let statement = format!("{question} Nobody knows.");
    fact_problem(
        level,
        prompt.clone(),
        prompt,
        solution.to_string(),
        word,
        rivals,
        statement,
        wrong.to_string(),
    )
}

fn fact_problem(
    level: u32,
    key: String,
    prompt: String,
    solution: String,
    word: &str,
    rivals: &[&str],
    statement: String,
    wrong: String,
) -> Problem {
    Problem {
        family: "chat",
        level,
        key: format!("chat {key}"),
        prompt,
        solution,
        answer: word.to_string(),
        statement,
        wrong,
        check: Check::Mentions {
            word: word.to_string(),
            rivals: rivals.iter().map(|r| r.to_string()).collect(),
        },
    }
}

/// A property: its values, and the words around it.
struct Property {
    values: &'static [&'static str],
    /// Before the value in a statement: "The cup is {before}red."
    before: &'static str,
    /// The question about thing `@`.
    question: &'static str,
}

const PROPERTIES: &[Property] = &[
    Property { values: COLOURS, before: "", question: "What colour is the @?" },
    Property { values: SIZES, before: "", question: "What size is the @?" },
    Property { values: PLACES, before: "by the ", question: "Where is the @?" },
];

/// `n` things with one property each; asked is the value of one, or which thing has a value.
fn facts(level: u32, n: usize, draws: &mut Draws) -> Problem {
    let property = draws.pick(PROPERTIES);
    let things = distinct(THINGS, n, draws);
    let values = distinct(property.values, n, draws);
    let sentence = |i: usize| format!("The {} is {}{}.", things[i], property.before, values[i]);
    let sentences: Vec<String> = (0..n).map(sentence).collect();
    let asked = draws.below(n);
    let by_value = level >= 3 && draws.below(2) == 0;
    let (question, word, rivals): (String, &str, Vec<&str>) = if by_value {
        let rivals = things.iter().copied().filter(|thing| *thing != things[asked]).collect();
        (format!("What is {}{}?", property.before, values[asked]), things[asked], rivals)
    } else {
        let rivals = property.values.iter().copied().filter(|value| *value != values[asked]).collect();
        (property.question.replace('@', things[asked]), values[asked], rivals)
    };
    let rivals: Vec<&str> = rivals.into_iter().chain(["not"]).collect();
    let mut sorted = sentences.clone();
    sorted.sort_unstable();
    let other = (asked + 1) % n;
    let wrong = if by_value {
        sentences[other].clone()
    } else {
        format!("It is {}{}.", property.before, values[other])
    };
    let text = sentences.join(" ");
    fact_problem(
        level,
        format!("{} {question}", sorted.join(" ")),
        format!("{text} {question}"),
        sentences[asked].clone(),
        word,
        &rivals,
        format!("{text} {} has the {}.", draws.pick(NAMES), things[asked]),
        wrong,
    )
}

fn relation(level: u32, draws: &mut Draws) -> Problem {
    let pair = distinct(THINGS, 2, draws);
    let turns = [("left of", "right of"), ("right of", "left of"), ("above", "below"), ("below", "above")];
    let (stated, turned) = *draws.pick(&turns);
    let fact = format!("The {} is {stated} the {}.", pair[0], pair[1]);
    let question = format!("Where is the {}?", pair[1]);
    let solution = format!("The {} is {turned} the {}.", pair[1], pair[0]);
    let word = turned.split(' ').next().expect("a relation has a word");
    let rival = stated.split(' ').next().expect("a relation has a word");
    let wrong = format!("The {} is {stated} the {}.", pair[1], pair[0]);
    let prompt = format!("{fact} {question}");
    fact_problem(level, prompt.clone(), prompt, solution, word, &[rival, "not"], fact, wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeating_the_facts_is_no_answer() {
        for level in [2, 3] {
            for index in 0..200 {
                let p = generate(level, &mut pt_core::rng::Stream::new(5, "echo").at(index));
                assert!(!p.check(&p.prompt).passed(), "{}", p.prompt);
            }
        }
    }
}
