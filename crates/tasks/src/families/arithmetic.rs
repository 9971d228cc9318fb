//! Arithmetic word problems with worked solutions; the final answer follows `####` as in GSM8K.
//!
//! The key is the numbers and operations in order, not the names, things or story: a held-out
//! problem is one whose numbers were never worked with those operations, however it was told.
//!
//! ```
//! use pt_tasks::{Split, problem};
//! let p = problem("arithmetic", 2, 1, Split::Train, 0).unwrap();
//! assert_eq!(p.prompt, "Max has 2 nuts. Max finds 13 more. Max sells 9. How many nuts are left?");
//! assert_eq!(p.solution, "2 + 13 = 15. 15 - 9 = 6.\n#### 6");
//! ```

use pt_core::rng::Draws;

use super::words::{COLOURS, NAMES, THINGS, counted, distinct, misworked, near_miss};
use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;

/// The levels.
pub const LEVELS: &[Level] = &[
    Level { summary: "one addition or subtraction, numbers up to 20", n_problems: 400 },
    Level { summary: "two additions or subtractions", n_problems: MANY },
    Level {
        summary: "groups of equal size: one multiplication, then one addition or subtraction",
        n_problems: 1_640,
    },
    Level { summary: "three operations, one of them may be a multiplication", n_problems: MANY },
];

/// One step of a story: what happens to the count.
#[derive(Clone, Copy)]
struct Op {
    symbol: char,
    operand: i64,
}

/// A story as it is told: sentences, question, and the sentence that closes it as a statement.
struct Story {
    sentences: Vec<String>,
    question: String,
    /// `@` stands for the count of `unit`.
    closing: String,
    unit: &'static str,
    start: i64,
    ops: Vec<Op>,
}

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    let story = match (level, draws.below(4)) {
        (1, 0) => together(draws),
        (1, 1) => more_than(draws),
        (1, _) => changes(1, false, draws),
        (2, _) => changes(2, false, draws),
        (3, 0) => price(draws),
        (3, _) => changes(1, true, draws),
        (_, 0 | 1) => changes(2, true, draws),
        _ => changes(3, false, draws),
    };
    pose(level, story, draws)
}

fn pose(level: u32, story: Story, draws: &mut Draws) -> Problem {
    let mut total = story.start;
    let mut steps = Vec::new();
    for op in &story.ops {
        let next = apply(total, *op);
        steps.push(format!("{total} {} {} = {next}", op.symbol, op.operand));
        total = next;
    }
    let steps = format!("{}.", steps.join(". "));
    let wrong = near_miss(total, draws).to_string();
    let text = story.sentences.join(" ");
    Problem {
        family: "arithmetic",
        level,
        key: key(story.start, &story.ops),
        prompt: format!("{text} {}", story.question),
        solution: format!("{steps}\n#### {total}"),
        answer: total.to_string(),
        statement: format!("{text} {}", story.closing.replace('@', &counted(total, story.unit))),
        wrong: misworked(&steps, &total.to_string(), &wrong),
        check: Check::Number { value: total },
    }
}

fn apply(total: i64, op: Op) -> i64 {
    match op.symbol {
        '+' => total + op.operand,
        '-' => total - op.operand,
        '*' => total * op.operand,
        other => unreachable!("no story has the operation `{other}`"),
    }
}

/// The start and operations; the operands of a first `+` or `*` in order of size.
fn key(start: i64, ops: &[Op]) -> String {
    let (mut first, mut rest) = (start, ops.to_vec());
    if rest[0].symbol != '-' && rest[0].operand < first {
        std::mem::swap(&mut first, &mut rest[0].operand);
    }
    let rest: String = rest.iter().map(|op| format!("{}{}", op.symbol, op.operand)).collect();
    format!("arithmetic {first}{rest}")
}

/// Somebody has things, then gets and loses some; with `groups`, they come in bags first.
fn changes(n_changes: usize, groups: bool, draws: &mut Draws) -> Story {
    let names = distinct(NAMES, 2, draws);
    let (name, other, thing) = (names[0], names[1], *draws.pick(THINGS));
    let mut ops = Vec::new();
    let (start, opening) = if groups {
        let (bags, each) = (draws.between(2, 9), draws.between(2, 10));
        ops.push(Op { symbol: '*', operand: each });
        let holder = *draws.pick(&["bags", "boxes"]);
        (bags, format!("{name} has {bags} {holder} with {each} {thing}s each."))
    } else {
        let start = draws.between(2, 20);
        (start, format!("{name} has {}.", counted(start, thing)))
    };
    let mut total = ops.iter().fold(start, |total, op| apply(total, *op));
    let mut sentences = vec![opening];
    let mut last_loses = false;
    for _ in 0..n_changes {
        // Something is always left, so that a loss can follow a loss.
        let loses = total > 2 && draws.below(2) == 0;
        let operand = draws.between(1, if loses { (total - 1).min(20) } else { 20 });
        let op = Op { symbol: if loses { '-' } else { '+' }, operand };
        sentences.push(change_sentence(name, other, op, draws));
        total = apply(total, op);
        ops.push(op);
        last_loses = loses;
    }
    let question = match (last_loses, draws.below(2)) {
        (true, 0) => format!("How many {thing}s are left?"),
        (_, 0) => format!("How many {thing}s are there now?"),
        _ => format!("How many {thing}s does {name} have now?"),
    };
    Story { sentences, question, closing: format!("Now {name} has @."), unit: thing, start, ops }
}

fn change_sentence(name: &str, other: &str, op: Op, draws: &mut Draws) -> String {
    let n = op.operand;
    match (op.symbol, draws.below(4)) {
        ('+', 0) => format!("{other} gives {name} {n} more."),
        ('+', 1) => format!("{name} buys {n} more."),
        ('+', 2) => format!("{name} finds {n} more."),
        ('+', _) => format!("{name} gets {n} more."),
        (_, 0) => format!("{name} gives {n} to {other}."),
        (_, 1) => format!("{name} sells {n}."),
        (_, 2) => format!("{name} loses {n}."),
        _ => format!("{other} takes {n}."),
    }
}

/// Two colours, or two people, in all.
fn together(draws: &mut Draws) -> Story {
    let (a, b, thing) = (draws.between(1, 20), draws.between(1, 20), *draws.pick(THINGS));
    let names = distinct(NAMES, 2, draws);
    let (sentence, closing) = if draws.below(2) == 0 {
        let colours = distinct(COLOURS, 2, draws);
        (
            format!("{} has {a} {} and {b} {} {thing}s.", names[0], colours[0], colours[1]),
            format!("{} has @ in all.", names[0]),
        )
    } else {
        (
            format!("{} has {} and {} has {b}.", names[0], counted(a, thing), names[1]),
            "They have @ in all.".to_string(),
        )
    };
    let question = format!("How many {thing}s in all?");
    Story {
        sentences: vec![sentence],
        question,
        closing,
        unit: thing,
        start: a,
        ops: vec![Op { symbol: '+', operand: b }],
    }
}

/// One person's count from another's.
fn more_than(draws: &mut Draws) -> Story {
    let names = distinct(NAMES, 2, draws);
    let (a, thing) = (draws.between(2, 20), *draws.pick(THINGS));
    let fewer = draws.below(2) == 0;
    let operand = draws.between(1, if fewer { a - 1 } else { 20 });
    let (symbol, word) = if fewer { ('-', "fewer") } else { ('+', "more") };
    Story {
        sentences: vec![
            format!("{} has {a} {thing}s.", names[0]),
            format!("{} has {operand} {word} than {}.", names[1], names[0]),
        ],
        question: format!("How many {thing}s does {} have?", names[1]),
        closing: format!("{} has @.", names[1]),
        unit: thing,
        start: a,
        ops: vec![Op { symbol, operand }],
    }
}

/// Several things at one price, and one more expense.
fn price(draws: &mut Draws) -> Story {
    let things = distinct(THINGS, 2, draws);
    let (each, n, more) = (draws.between(2, 10), draws.between(2, 9), draws.between(1, 20));
    let name = *draws.pick(NAMES);
    Story {
        sentences: vec![
            format!("A {} costs {each} dollars.", things[0]),
            format!("{name} buys {n} of them and a {} for {more} dollars.", things[1]),
        ],
        question: format!("How much does {name} pay?"),
        closing: format!("{name} pays @."),
        unit: "dollar",
        start: n,
        ops: vec![Op { symbol: '*', operand: each }, Op { symbol: '+', operand: more }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_ignore_the_order_of_a_first_sum_or_product_only() {
        let op = |symbol, operand| Op { symbol, operand };
        assert_eq!(key(5, &[op('+', 3)]), key(3, &[op('+', 5)]));
        assert_eq!(key(5, &[op('*', 3), op('-', 2)]), "arithmetic 3*5-2");
        assert_ne!(key(5, &[op('-', 3)]), key(3, &[op('-', 5)]));
    }

    #[test]
    fn worked_steps_end_in_the_answer() {
        for index in 0..500 {
            for level in 1..=LEVELS.len() as u32 {
                let p = generate(level, &mut pt_core::rng::Stream::new(3, "steps").at(index));
                let (steps, last) = p.solution.split_once("\n#### ").unwrap();
                assert!(steps.trim_end_matches('.').ends_with(&format!("= {last}")), "{}", p.solution);
                let n_steps = steps.matches('=').count() as u32;
                assert_eq!(n_steps, [1, 2, 2, 3][level as usize - 1], "{}", p.solution);
                assert!(p.answer.parse::<i64>().unwrap() > 0, "{}", p.prompt);
            }
        }
    }
}
