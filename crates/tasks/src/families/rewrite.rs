//! Rewriting a text by rules until none applies. The rules shorten, so it ends.

use pt_core::rng::Draws;

use crate::catalogue::{Level, MANY};
use crate::check::Check;
use crate::problem::Problem;
use crate::puzzle::{Draft, level};

/// The levels.
pub const LEVELS: &[Level] = &[
    level("one rule, two letters", 300),
    level("two rules, three letters", MANY),
    level("three rules", MANY),
];

/// A problem of a level.
pub fn generate(level: u32, draws: &mut Draws) -> Problem {
    let (n_letters, n_rules, n_chars) = [(2, 1, 6), (3, 2, 7), (3, 3, 9)][level as usize - 1];
    let text = |n: usize, draws: &mut Draws| -> String {
        (0..n).map(|_| char::from(b'a' + draws.below(n_letters) as u8)).collect()
    };
    loop {
        let rules: Vec<(String, String)> = (0..n_rules).map(|_| (text(2, draws), text(1, draws))).collect();
        let start = text(n_chars, draws);
        let steps = rewritten(&rules, &start);
        let is_repeated = (1..n_rules).any(|i| rules[..i].iter().any(|rule| rule.0 == rules[i].0));
        if steps.len() < 3 || is_repeated {
            continue;
        }
        let list: Vec<String> = rules.iter().map(|(from, to)| format!("{from} to {to}")).collect();
        let (answer, before) = (steps[steps.len() - 1].clone(), steps[steps.len() - 2].clone());
        let order = if n_rules == 1 { "" } else { ", the first rule that applies" };
        return Draft {
            family: "rewrite",
            level,
            key: format!("{} {start}", list.join(" ")),
            prompt: format!(
                "Change {}: leftmost first{order}, until none applies. Start: {start}",
                list.join(", ")
            ),
            work: steps.join(" > "),
            check: Check::Text { text: answer.clone() },
            answer,
            wrong: before,
        }
        .finish();
    }
}

/// The text after no step, one, two, ... until no rule applies.
fn rewritten(rules: &[(String, String)], start: &str) -> Vec<String> {
    let mut steps = vec![start.to_owned()];
    loop {
        let text = &steps[steps.len() - 1];
        let Some((from, to)) = rules.iter().find(|(from, _)| text.contains(from.as_str())) else {
            return steps;
        };
        let next = text.replacen(from.as_str(), to, 1);
        steps.push(next);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_rule_that_applies_is_used_at_its_leftmost_place() {
        let rules = [("ab".to_owned(), "c".to_owned()), ("ca".to_owned(), "b".to_owned())];
        assert_eq!(super::rewritten(&rules, "aabca"), ["aabca", "acca", "acb"]);
    }
}
