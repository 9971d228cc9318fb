//! GSM8K (Cobbe et al. 2021, arXiv:2110.14168): school mathematics, answered with a number.
//!
//! Asked as lm-evaluation-harness 0.4.13 asks (`gsm8k`, version 3): `Question: ...\nAnswer:` after five worked examples, which
//! it draws for each question from the training rows with Python's generator seeded with 1234. The metrics are its two
//! filters.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use crate::catalogue::{Benchmark, BenchmarkInfo, DATA, Loaded, MetricInfo};
use crate::error::{EvalError, Result};
use crate::item::{Answer, Ask, Item, Mark, Marks, Prompt};
use crate::python_random::PythonRandom;
use crate::source::Source;

const NAME: &str = "gsm8k";
/// The harness' `fewshot_random_seed`.
const SHOT_SEED: u32 = 1234;
const STRICT: &str = "exact_match_strict";
const FLEXIBLE: &str = "exact_match_flexible";
const UNTIL: [&str; 3] = ["Question:", "</s>", "<|im_end|>"];

/// The catalogue's entry.
pub(crate) const INFO: BenchmarkInfo = BenchmarkInfo {
    name: NAME,
    summary: "school mathematics with numbers for answers",
    version: 1,
    source: "openai/grade-school-math; prompt and judgement of lm-evaluation-harness 0.4.13 `gsm8k` (version 3)",
    dataset: "openai/gsm8k",
    few_shot: 5,
    max_new_tokens: 256,
    metrics: &[
        MetricInfo::share(FLEXIBLE, "the last number of the reply is right"),
        MetricInfo::share(STRICT, "the number after `####` is right"),
    ],
    options: &[DATA],
    load,
};

struct Gsm8k {
    items: Vec<Item>,
}

fn load(source: &Source<'_>) -> Result<Loaded> {
    let rows = source.rows(&["test.jsonl"], "test", Some("main"))?;
    let n_shots = source.few_shot();
    let shots = match n_shots {
        0 => Vec::new(),
        _ => source.rows(&["train.jsonl"], "train", Some("main"))?,
    };
    if source.option("data").is_some_and(|data| std::path::Path::new(data).is_file()) && n_shots > 0 {
        return Err(EvalError::Option {
            benchmark: NAME,
            option: "data",
            found: "a file".to_owned(),
            expected: "a folder with test.jsonl and train.jsonl (or --few-shot 0): examples come from the training rows"
                .to_owned(),
        });
    }
    source.check_shots(n_shots, shots.len())?;
    let turn = |row: &pt_data::Row| -> Result<(String, String)> {
        let question = format!("Question: {}\nAnswer:", source.text(row, &["question"])?);
        Ok((question, source.text(row, &["answer"])?))
    };
    let mut random = PythonRandom::new(SHOT_SEED);
    let mut items = Vec::with_capacity(rows.len());
    for (index, row) in rows.into_iter().enumerate() {
        let (question, answer) = turn(&row)?;
        let chosen = random.sample(shots.len(), n_shots);
        let shots = chosen.into_iter().map(|at| turn(&shots[at])).collect::<Result<_>>()?;
        items.push(Item {
            key: index.to_string(),
            category: NAME.to_owned(),
            prompt: Prompt { system: String::new(), shots, question, delimiter: " " },
            ask: Ask::Reply {
                until: UNTIL.map(str::to_owned).to_vec(),
                max_new_tokens: source.max_new_tokens(),
            },
            gold: Value::String(answer),
            row: row.value,
        });
    }
    Ok(Loaded::Ruled(Box::new(Gsm8k { items })))
}

/// The harness' `strict-match` and `flexible-extract` filters.
fn extract(reply: &str) -> [Option<String>; 2] {
    static STRICT: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"#### (\-?[0-9\.\,]+)").expect("a constant pattern"));
    static FLEXIBLE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(-?[$0-9.,]{2,})|(-?[0-9]+)").expect("a constant pattern"));
    let strict = STRICT.captures(reply).map(|found| found[1].to_owned());
    let flexible = FLEXIBLE.find_iter(reply).last().map(|found| found.as_str().trim().to_owned());
    [strict, flexible]
}

/// Without what the harness ignores: commas, dollar signs, all up to `#### `, a full stop at the end, upper case.
fn normal(answer: &str) -> String {
    let answer = answer.replace([',', '$'], "");
    let answer = answer.rfind("#### ").map_or(answer.as_str(), |at| &answer[at + 5..]);
    answer.strip_suffix('.').unwrap_or(answer).to_lowercase()
}

impl Benchmark for Gsm8k {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn mark(&self, item: &Item, answer: &Answer<'_>) -> Marks {
        let gold = normal(item.gold.as_str().unwrap_or_default());
        let found = extract(super::reply(answer).0).map(|found| found.map(|found| normal(&found)));
        let is_right = |found: &Option<String>| found.as_ref() == Some(&gold);
        let reason = match &found[1] {
            Some(found) => format!("the last number is {found}, expected {gold}"),
            None => format!("no number, expected {gold}"),
        };
        Marks {
            marks: vec![Mark::of(FLEXIBLE, is_right(&found[1])), Mark::of(STRICT, is_right(&found[0]))],
            answer: found[1].clone(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_as_the_harness_finds_them() {
        for (reply, strict, flexible) in [
            ("so 3+4=7\n#### 7", Some("7"), Some("7")),
            ("#### 1,234.", Some("1234"), Some("1234")),
            ("It costs $18.", None, Some("18")),
            ("-5 and then -3", None, Some("-3")),
            ("none", None, None),
            ("ends with a dot . and 4 apples", None, Some("4")),
        ] {
            let found = extract(reply).map(|found| found.map(|found| normal(&found)));
            assert_eq!(found, [strict, flexible].map(|x| x.map(str::to_owned)), "{reply}");
        }
        assert_eq!(normal("2/2=<<2/2=1>>1\n#### 3"), "3");
    }
}
