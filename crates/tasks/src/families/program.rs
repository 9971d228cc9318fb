//! Small programs: say what one prints, or write a function that passes tests.
//!
//! Programs are valid Python and are run by the [mini-language](crate::mini) evaluator, which is
//! also what a reply's function is tested with; nothing is executed anywhere else. In the writing
//! level the prompt shows three of the tests; the check has more, so that a table of the shown
//! ones does not pass.
//!
//! ```
//! use pt_tasks::{Split, problem};
//! let p = problem("program", 2, 1, Split::Train, 0).unwrap();
//! assert_eq!(p.prompt, "What does this print?\ndef f(x): return (x + 6) * 6\nprint(f(10))");
//! assert_eq!(p.solution, "f(10) = 96\n#### 96");
//! let p = problem("program", 4, 1, Split::Train, 1).unwrap();
//! assert_eq!(p.prompt, "Write f(x) so that f(1) == 21, f(2) == 24, f(5) == 33.");
//! assert_eq!(p.solution, "def f(x): return x * 3 + 18");
//! ```

use pt_core::rng::Draws;

use super::words::near_miss;
use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::mini;
use crate::problem::Problem;

/// The levels.
pub const LEVELS: &[Level] = &[
    Level { summary: "what two assignments and a print give", n_problems: MANY },
    Level { summary: "what a one-line function gives", n_problems: 6_912 },
    Level { summary: "what a short loop or condition gives", n_problems: 9_640 },
    Level { summary: "write a one-line function that passes the tests", n_problems: 494 },
];

/// Inputs a written function is tested on; the first three are shown.
const TEST_INPUTS: &[i64] = &[1, 2, 5, 0, 3, 7, 10];
const N_SHOWN: usize = 3;

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    match level {
        1 => output(level, straight(draws), draws),
        2 => output(level, function(draws), draws),
        3 => output(level, control(draws), draws),
        _ => write_function(level, draws),
    }
}

/// `v = a`, `w = v op b`, `print(w op c)`.
fn straight(draws: &mut Draws) -> String {
    let (v, w) = *draws.pick(&[("x", "y"), ("a", "b")]);
    let (a, b, c) = (draws.between(2, 20), draws.between(1, 9), draws.between(1, 9));
    let last = *draws.pick(&["+", "-"]);
    format!("{v} = {a}\n{w} = {v} {} {b}\nprint({w} {last} {c})", draws.pick(&["+", "-", "*"]))
}

fn function(draws: &mut Draws) -> String {
    let (a, b, x) = (draws.between(2, 9), draws.between(1, 9), draws.between(1, 12));
    let body = match draws.below(4) {
        0 => format!("x * {a} + {b}"),
        1 => format!("x * {a} - {b}"),
        2 => format!("(x + {b}) * {a}"),
        _ => format!("x // {a} + {b}"),
    };
    let call = if draws.below(3) == 0 { format!("f({x}) + f({})", x + 1) } else { format!("f({x})") };
    format!("def f(x): return {body}\nprint({call})")
}

fn control(draws: &mut Draws) -> String {
    let (a, b, c) = (draws.between(1, 20), draws.between(1, 9), draws.between(1, 9));
    match draws.below(4) {
        0 => format!("x = {a}\nfor i in range({}): x = x + {b}\nprint(x)", draws.between(2, 4)),
        1 => format!("x = {a}\nfor i in range({}): x = x + i\nprint(x)", draws.between(3, 5)),
        2 => format!("x = {a}\nif x > {}: x = x - {b}\nprint(x)", draws.between(8, 12)),
        _ => format!("x = {a}\nprint(x + {b} if x < {} else x * {c})", draws.between(8, 12)),
    }
}

fn output(level: u32, source: String, draws: &mut Draws) -> Problem {
    let run = mini::run(&source).unwrap_or_else(|error| panic!("generated program `{source}`: {error}"));
    let [answer] = run.printed[..] else { panic!("generated program `{source}` prints {:?}", run.printed) };
    let wrong = near_miss(answer, draws);
    let prompt = match draws.below(2) {
        0 => format!("What does this print?\n{source}"),
        _ => format!("{source}\nWhat is printed?"),
    };
    Problem {
        family: "program",
        level,
        key: format!("program {source}"),
        prompt,
        solution: format!("{}\n#### {answer}", run.trace.join(", ")),
        answer: answer.to_string(),
        statement: format!("{source}\n# prints {answer}"),
        wrong: format!("{}\n#### {wrong}", run.trace.join(", ")),
        check: Check::Number { value: answer },
    }
}

fn write_function(level: u32, draws: &mut Draws) -> Problem {
    let (a, b) = (draws.between(2, 9), draws.between(1, 20));
    let body = match draws.below(6) {
        0 => format!("x + {b}"),
        1 => format!("x * {a}"),
        2 => format!("x * {a} + {b}"),
        3 => format!("x * {a} - {b}"),
        4 => format!("x * x + {b}"),
        _ => format!("(x + {b}) * {a}"),
    };
    let function = mini::Function::parse(&body).expect("a generated body parses");
    let value = |x: i64| function.at(x).expect("a generated body has a value");
    let tests: Vec<(i64, i64)> = TEST_INPUTS.iter().map(|&x| (x, value(x))).collect();
    let shown: Vec<String> = tests[..N_SHOWN].iter().map(|(x, y)| format!("f({x}) == {y}")).collect();
    // The values, not the spelling, are the problem: `x * 4 + 8` is `(x + 2) * 4`.
    let key = format!("program write {tests:?}");
    let prompt = match draws.below(2) {
        0 => format!("Write f(x) so that {}.", shown.join(", ")),
        _ => format!("Write a Python function f with {}.", shown.join(" and ")),
    };
    Problem {
        family: "program",
        level,
        key,
        prompt,
        solution: format!("def f(x): return {body}"),
        answer: body.clone(),
        statement: format!("def f(x): return {body}\nassert {}", shown.join("\nassert ")),
        wrong: format!("def f(x): return {}", tests[0].1),
        check: Check::Function { tests },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_functions_need_more_than_the_shown_tests() {
        let p = generate(4, &mut pt_core::rng::Stream::new(1, "program").at(0));
        let Check::Function { tests } = &p.check else { panic!("{:?}", p.check) };
        let table = format!(
            "def f(x): return {} if x == 1 else {} if x == 2 else {}",
            tests[0].1, tests[1].1, tests[2].1
        );
        let verdict = p.check(&table);
        assert!(!verdict.passed() && verdict.score > 0.0, "{table}: {verdict:?}");
    }
}
