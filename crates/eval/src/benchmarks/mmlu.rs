//! MMLU (Hendrycks et al. 2021, arXiv:2009.03300): 57 subjects, four choices.
//!
//! Asked as lm-evaluation-harness 0.4.13 asks: `mmlu` (version 1, the probability of ` A` to ` D` after `Answer:`), or
//! `mmlu_generative` (version 3, the reply is the letter). Examples are the first rows of the subject's `dev` split; the
//! harness shows none unless told, the paper shows five, and so does this.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::catalogue::{Benchmark, BenchmarkInfo, DATA, Loaded, MetricInfo};
use crate::error::Result;
use crate::item::{Answer, Ask, Item, Mark, Marks, Prompt};
use crate::source::{Source, text_of};
use pt_core::catalogue::OptionInfo;
use pt_data::Row;

const NAME: &str = "mmlu";
const LETTERS: [&str; 4] = ["A", "B", "C", "D"];
const MODES: [&str; 2] = ["choice", "generative"];
const UNTIL: [&str; 2] = ["</s>", "\n"];

/// The catalogue's entry.
pub(crate) const INFO: BenchmarkInfo = BenchmarkInfo {
    name: NAME,
    summary: "knowledge in 57 subjects, four choices",
    version: 1,
    source: "hendrycks/test; prompt and judgement of lm-evaluation-harness 0.4.13 `mmlu` (version 1) and `mmlu_generative` (3)",
    dataset: "cais/mmlu",
    few_shot: 5,
    max_new_tokens: 256,
    metrics: &[MetricInfo::share("acc", "the most probable letter, or the reply, is the right one")],
    options: &[
        DATA,
        OptionInfo {
            name: "mode",
            kind: "\"choice\" or \"generative\"",
            default: "\"choice\"",
            doc: "whether letters are compared by probability, or a reply is drawn",
        },
        OptionInfo {
            name: "subjects",
            kind: "names with commas between",
            default: "",
            doc: "which subjects, as `anatomy,astronomy`; all",
        },
    ],
    load,
};

struct Mmlu {
    items: Vec<Item>,
}

/// A row's subject, question with choices, and the place of the right one.
fn read(source: &Source<'_>, row: &Row) -> Result<(String, String, usize)> {
    let subject = source.text(row, &["subject"])?;
    let choices = match row.value.contains_key("choices") {
        true => source.list(row, &["choices"])?,
        false => LETTERS.iter().map(|letter| source.text(row, &[letter])).collect::<Result<_>>()?,
    };
    let answer = source.text(row, &["answer"])?;
    let gold = LETTERS.iter().position(|letter| *letter == answer).or_else(|| answer.parse().ok());
    let is_known = gold.is_some_and(|gold| gold < LETTERS.len()) && choices.len() == LETTERS.len();
    let Some(gold) = gold.filter(|_| is_known) else {
        return Err(source.bad_row(row, &["answer"], row.value.get("answer")));
    };
    let mut question = source.text(row, &["question"])?.trim().to_owned();
    for (letter, choice) in LETTERS.iter().zip(&choices) {
        question += &format!("\n{letter}. {choice}");
    }
    Ok((subject, question + "\nAnswer:", gold))
}

fn load(source: &Source<'_>) -> Result<Loaded> {
    let is_generative = source.one_of("mode", &MODES)? == 1;
    let rows = source.rows(&["test.csv", "test.jsonl", "test.parquet"], "test", Some("all"))?;
    let n_shots = source.few_shot();
    let mut shots: Vec<(String, (String, String))> = Vec::new();
    if n_shots > 0 {
        for row in source.rows(&["dev.csv", "dev.jsonl", "dev.parquet"], "dev", Some("all"))? {
            let (subject, question, gold) = read(source, &row)?;
            shots.push((subject, (question, LETTERS[gold].to_owned())));
        }
    }
    let known: BTreeSet<&str> = rows.iter().map(|row| text_of(&row.value, "subject")).collect();
    source.check_names("subjects", &known.into_iter().collect::<Vec<_>>())?;
    let (mut items, mut index_in_subject) = (Vec::new(), std::collections::HashMap::new());
    for row in rows {
        let (subject, question, gold) = read(source, &row)?;
        if !source.wants("subjects", &subject) {
            continue;
        }
        let own = shots.iter().filter(|(of, _)| *of == subject).map(|(_, shot)| shot.clone());
        let own: Vec<_> = own.take(n_shots).collect();
        source.check_shots(n_shots, own.len())?;
        let index = index_in_subject.entry(subject.clone()).and_modify(|n| *n += 1).or_insert(0);
        let system = format!(
            "The following are multiple choice questions (with answers) about {}.\n\n",
            subject.replace('_', " ")
        );
        let reply = || Ask::Reply {
            until: UNTIL.map(str::to_owned).to_vec(),
            max_new_tokens: source.max_new_tokens(),
        };
        let choose = || Ask::Choose(LETTERS.map(str::to_owned).to_vec());
        items.push(Item {
            key: format!("{subject}/{index}"),
            category: subject,
            prompt: Prompt { system, shots: own, question, delimiter: " " },
            ask: if is_generative { reply() } else { choose() },
            gold: Value::String(LETTERS[gold].to_owned()),
            row: row.value,
        });
    }
    Ok(Loaded::Ruled(Box::new(Mmlu { items })))
}

/// The place of the greatest, the first of equals.
pub(super) fn argmax(values: impl IntoIterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (place, value) in values.into_iter().enumerate() {
        if value > best.1 {
            best = (place, value);
        }
    }
    best.0
}

/// The harness' filters: the first line, trimmed, compared without case and punctuation.
fn letter_of(reply: &str) -> String {
    let line = reply.split('\n').next().unwrap_or_default().trim();
    line.chars().filter(|c| !c.is_ascii_punctuation()).flat_map(char::to_lowercase).collect()
}

impl Benchmark for Mmlu {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn mark(&self, item: &Item, answer: &Answer<'_>) -> Marks {
        let gold = item.gold.as_str().unwrap_or_default();
        let said = match answer {
            Answer::Choice(scores) => LETTERS[argmax(scores.iter().map(|score| score.logprob))].to_owned(),
            other => letter_of(super::reply(other).0),
        };
        let is_right = said.eq_ignore_ascii_case(gold);
        let reason = format!("says {said}, expected {gold}");
        Marks { marks: vec![Mark::of("acc", is_right)], answer: Some(said.to_uppercase()), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_read_as_the_harness_reads_them() {
        for (reply, expected) in
            [(" B", "b"), ("(C).\nBecause", "c"), ("The answer is A", "the answer is a"), ("", "")]
        {
            assert_eq!(letter_of(reply), expected, "{reply}");
        }
        assert_eq!(argmax([-2.0, -1.0, -1.0]), 1);
        assert_eq!(argmax([]), 0);
    }
}
