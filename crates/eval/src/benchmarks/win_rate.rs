//! Win rate against another model: a judge compares two replies, twice, the second time in the other order.
//!
//! A model wins where it is preferred in both orders, and loses likewise; all else is a tie and counts one half (Zheng et al.
//! 2023, arXiv:2306.05685, section 3.4). Prompts are the first user's turn of the rows of a file, by default MT-bench's questions.

use pt_core::catalogue::OptionInfo;
use pt_data::read::{ReadOptions, read_all};
use serde_json::{Map, Value};

use crate::catalogue::{BenchmarkInfo, Loaded, MetricInfo, Scale};
use crate::error::Result;
use crate::item::{Ask, Item, Mark, Prompt, message};
use crate::judge::{Company, Judged, last_choice};
use crate::results::{Reply, Sample};
use crate::source::Source;
use crate::subject::Subject;

const NAME: &str = "win_rate";
const JUDGE: &str = "You compare two answers to a user's request. Look at whether each does what was asked, is right, \
useful and clear. Do not let the order, the length or the style of the answers decide. Explain your reasons in a few \
sentences, then end with your verdict: [[A]] if answer A is better, [[B]] if answer B is better, [[C]] if neither is.";

/// The catalogue's entry.
pub(crate) const INFO: BenchmarkInfo = BenchmarkInfo {
    name: NAME,
    summary: "replies preferred to another model's (--against) by a judge (--judge), in both orders",
    version: 1,
    source: "prompts of a file, or MT-bench's first turns; the judge's prompt is in its module",
    dataset: "(none)",
    few_shot: 0,
    max_new_tokens: 512,
    metrics: &[
        MetricInfo::share("win_rate", "wins, and half of the ties"),
        MetricInfo::share("consistent", "comparisons where both orders agree"),
        MetricInfo {
            name: "first_wins",
            doc: "how often the answer shown first is preferred; 0.5 is no bias",
            higher_is_better: true,
            scale: Scale::Share,
        },
    ],
    options: &[OptionInfo {
        name: "data",
        kind: "path",
        default: "",
        doc: "rows with `prompt` (text or messages), `messages`, `turns`, `question` or `instruction`; MT-bench's questions",
    }],
    load,
};

struct WinRate {
    items: Vec<Item>,
    max_new_tokens: usize,
}

/// The first thing a user says in a row.
fn first_turn(row: &Map<String, Value>) -> Option<String> {
    let of = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(all) => all.iter().find_map(|entry| match entry {
            Value::String(text) => Some(text.clone()),
            other => {
                (other.get("role")? == "user").then(|| other.get("content")?.as_str().map(str::to_owned))?
            }
        }),
        _ => None,
    };
    ["prompt", "messages", "turns", "question", "instruction"].iter().find_map(|name| of(row.get(*name)?))
}

fn load(source: &Source<'_>) -> Result<Loaded> {
    source.check_shots(source.few_shot(), 0)?;
    const FILES: [&str; 4] =
        ["prompts.jsonl", "question.jsonl", "mt_bench/question.jsonl", "mt-bench/mt_bench/question.jsonl"];
    let path = source.file(&FILES).ok_or_else(|| source.no_data(&FILES))?;
    let mut items = Vec::new();
    for (index, row) in read_all(&path.to_string_lossy(), &ReadOptions::default())?.into_iter().enumerate() {
        let Some(prompt) = first_turn(&row.value) else {
            return Err(source.bad_row(
                &row,
                &["prompt", "messages", "turns", "question", "instruction"],
                None,
            ));
        };
        let category = row.value.get("category").and_then(Value::as_str).unwrap_or(NAME).to_owned();
        items.push(Item {
            key: index.to_string(),
            category,
            prompt: Prompt::bare(prompt),
            ask: Ask::Reply { until: Vec::new(), max_new_tokens: source.max_new_tokens() },
            gold: Value::Null,
            row: row.value,
        });
    }
    Ok(Loaded::Judged(Box::new(WinRate { items, max_new_tokens: source.max_new_tokens() })))
}

fn comparison(question: &str, first: &str, second: &str) -> Vec<Map<String, Value>> {
    let text = format!("# Request\n\n{question}\n\n# Answer A\n\n{first}\n\n# Answer B\n\n{second}\n");
    vec![message("system", JUDGE), message("user", &text)]
}

impl Judged for WinRate {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn needs_opponent(&self) -> bool {
        true
    }

    fn measure(&self, items: &[&Item], subject: &Subject<'_>, company: &Company<'_>) -> Result<Vec<Sample>> {
        let (judge, opponent) = (company.judge(NAME)?, company.opponent(NAME)?);
        let asked: Vec<_> = items.iter().map(|item| vec![message("user", &item.prompt.question)]).collect();
        let ours = subject.converse(&asked, self.max_new_tokens, company.settings)?;
        let theirs = opponent.converse(&asked, self.max_new_tokens, company.settings)?;
        let pairs = items.iter().zip(ours.iter().zip(&theirs));
        let questions: Vec<_> = pairs
            .flat_map(|(item, (ours, theirs))| {
                let question = &item.prompt.question;
                [
                    comparison(question, &ours.text, &theirs.text),
                    comparison(question, &theirs.text, &ours.text),
                ]
            })
            .collect();
        let verdicts = judge.ask_all(&questions)?;
        let mut samples = Vec::new();
        for ((item, pair), verdicts) in items.iter().zip(ours.iter().zip(&theirs)).zip(verdicts.chunks(2)) {
            let chosen = [last_choice(&verdicts[0]), last_choice(&verdicts[1])];
            let marks = marks_of(chosen);
            let reply = |drawn: &crate::subject::Drawn, who: &str, reason: &str| Reply {
                text: drawn.text.clone(),
                is_truncated: drawn.is_truncated,
                answer: Some(who.to_owned()),
                scores: Default::default(),
                reason: reason.to_owned(),
            };
            let replies =
                vec![reply(pair.0, subject.name, &verdicts[0]), reply(pair.1, opponent.name, &verdicts[1])];
            samples.push(Sample::new(item, replies, Vec::new(), &marks));
        }
        Ok(samples)
    }
}

/// The marks of two verdicts: ours shown first, then ours shown second. A verdict that is none is a skip.
fn marks_of(chosen: [Option<char>; 2]) -> Vec<Mark> {
    let [Some(first), Some(second)] = chosen else { return Vec::new() };
    let score = match (first, second) {
        ('A', 'B') => 1.0,
        ('B', 'A') => 0.0,
        _ => 0.5,
    };
    let is_consistent = matches!((first, second), ('A', 'B') | ('B', 'A') | ('C', 'C'));
    let lead = |c: char| match c {
        'A' => 1.0,
        'B' => 0.0,
        _ => 0.5,
    };
    vec![
        Mark::new("win_rate", score),
        Mark::of("consistent", is_consistent),
        Mark::new("first_wins", (lead(first) + lead(second)) / 2.0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_both_orders_together_decide() {
        for (chosen, expected) in [
            ([Some('A'), Some('B')], vec![1.0, 1.0, 0.5]),
            ([Some('B'), Some('A')], vec![0.0, 1.0, 0.5]),
            ([Some('A'), Some('A')], vec![0.5, 0.0, 1.0]),
            ([Some('C'), Some('C')], vec![0.5, 1.0, 0.5]),
            ([Some('C'), Some('B')], vec![0.5, 0.0, 0.25]),
            ([None, Some('A')], vec![]),
        ] {
            let values: Vec<f64> = marks_of(chosen).iter().map(|mark| mark.value).collect();
            assert_eq!(values, expected, "{chosen:?}");
        }
    }
}
