//! How demanding a row is: scores by simple counts, and bounds on them.
//!
//! | score | what is counted |
//! | --- | --- |
//! | `words` | words of prompt and reply |
//! | `reply_words` | words of the reply |
//! | `turns` | messages of the user |
//! | `steps` | items of the reply's lists, or its lines |
//! | `constraints` | kinds of constraints on form in the instruction (as IFEval's) |
//! | `depth` | longest chain of equations each using the result of one before; where there are none, words of inference (so, therefore, because, hence, thus, since) in the reply |
//!
//! The scores are for English and rough: good for the shape of a data set and for cutting off ends, not for ranking two
//! rows. Each is noted on the row (`annotate = true` writes them).

use std::collections::BTreeMap;

use pt_core::catalogue::OptionInfo;
use pt_data::Columns;
use serde::Deserialize;

use super::arithmetic::{depth, equations};
use super::constraints::{constraints_of, steps_of};
use crate::catalogue::{CuratorInfo, parse};
use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::{Histogram, Summary};
use crate::step::Step;
use crate::words::{count_words, words};

const NAME: &str = "complexity";
const SCORES: [&str; 6] = ["words", "reply_words", "turns", "steps", "constraints", "depth"];
const INFERENCES: &[&str] = &["so", "therefore", "because", "hence", "thus", "since"];

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "complexity",
    summary: "scores length, turns, steps, constraints and depth of reasoning, and drops rows out of bounds",
    options: &[
        OptionInfo {
            name: "min",
            kind: "table of scores (words, reply_words, turns, steps, constraints, depth)",
            default: "{}",
            doc: "the least of each score that is kept, as in `min = { reply_words = 5 }`",
        },
        OptionInfo {
            name: "max",
            kind: "table of scores",
            default: "{}",
            doc: "the most of each score that is kept",
        },
    ],
    build: |options, _| Ok(Box::new(Complexity::new(parse(NAME, options)?)?)),
};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    min: BTreeMap<String, usize>,
    max: BTreeMap<String, usize>,
}

struct Complexity {
    options: Options,
    histograms: [Histogram; SCORES.len()],
    n: u64,
}

impl Complexity {
    fn new(options: Options) -> Result<Self, CurateError> {
        let unknown =
            options.min.keys().chain(options.max.keys()).find(|name| !SCORES.contains(&name.as_str()));
        if let Some(name) = unknown {
            let hint = pt_core::suggest::hint(name, &SCORES);
            return Err(CurateError::option(NAME, format!("there is no score `{name}`; {hint}")));
        }
        Ok(Complexity { options, histograms: Default::default(), n: 0 })
    }
}

fn scores(item: &Item) -> [usize; SCORES.len()] {
    let view = &item.view;
    let reply_words = count_words(&view.reply);
    let equations = equations(&view.reply);
    let inferences = || words(&view.reply).filter(|word| INFERENCES.contains(&word.as_str())).count();
    let depth = if equations.is_empty() { inferences() } else { depth(&equations) };
    let constraints = constraints_of(&view.instruction).len();
    [
        reply_words + count_words(&view.prompt),
        reply_words,
        view.n_turns,
        steps_of(&view.reply),
        constraints,
        depth,
    ]
}

impl Step for Complexity {
    type Seen = [usize; SCORES.len()];

    fn see(&self, item: &Item) -> Result<Self::Seen, CurateError> {
        Ok(scores(item))
    }

    fn decide(&mut self, _item: &Item, scores: Self::Seen) -> Decision {
        for (name, score) in SCORES.iter().zip(scores) {
            match (self.options.min.get(*name), self.options.max.get(*name)) {
                (Some(min), _) if score < *min => {
                    return Decision::drop("too simple", format!("{name}: {score} is below {min}"));
                }
                (_, Some(max)) if score > *max => {
                    return Decision::drop("too complex", format!("{name}: {score} is above {max}"));
                }
                _ => {}
            }
        }
        self.n += 1;
        let mut notes = Columns::new();
        for ((name, score), histogram) in SCORES.iter().zip(scores).zip(&mut self.histograms) {
            histogram.add(score);
            notes.insert((*name).to_owned(), score.into());
        }
        Decision::Note(notes)
    }

    fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for (name, histogram) in SCORES.iter().zip(&self.histograms) {
            let mean = histogram.total as f64 / self.n.max(1) as f64;
            let bins: Vec<String> = histogram
                .bins
                .iter()
                .enumerate()
                .map(|(bin, n)| format!("{}: {n}", Histogram::label(bin)))
                .collect();
            summary.lines.push(format!(
                "{name}: mean {mean:.1}, most {} ({})",
                histogram.max,
                bins.join(", ")
            ));
            summary
                .facts
                .insert((*name).to_owned(), serde_json::json!({"mean": mean, "bins": histogram.bins}));
        }
        summary
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Harness, item, prompt, text};

    #[test]
    fn scores_are_counts() {
        let chat = json!({"messages": [
            {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Give exactly 3 reasons in French."},
            {"role": "assistant", "content": "1. un\n2. deux\n3. trois"}]});
        let cases = [
            (chat, [14, 6, 2, 3, 3, 0]),
            (prompt("q", "<<1+1=2>>2\n<<2+3=5>>5"), [9, 8, 1, 2, 0, 2]),
            (text("It rained, so we stayed. Therefore nothing."), [7, 7, 0, 1, 0, 2]),
        ];
        for (row, expected) in cases {
            assert_eq!(scores(&item(0, &row)), expected, "{row}");
        }
    }

    #[test]
    fn rows_out_of_bounds_are_dropped() {
        let rows = [prompt("q", "a"), prompt("q", "a b c"), prompt("q", "a b c d e f")];
        let outcome = Harness::new(NAME, "min = { reply_words = 2 }\nmax = { words = 5 }").run(&rows);
        assert_eq!(outcome.kept, [1]);
        assert_eq!(outcome.details(), ["reply_words: 1 is below 2", "words: 7 is above 5"]);
        assert!(Harness::refusal(NAME, "min = { dept = 1 }").contains("did you mean `depth`"));
    }
}
