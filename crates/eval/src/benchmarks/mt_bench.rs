//! MT-bench (Zheng et al. 2023, arXiv:2306.05685): eighty conversations of two turns, each turn rated 1 to 10 by a judge.
//!
//! Questions, judge prompts and reference answers are the authors' files (FastChat, `llm_judge/data`): `question.jsonl` with
//! `reference_answer/gpt-4.jsonl` beside it, and `judge_prompts.jsonl` there or one folder up. Differences: replies are drawn
//! at the temperature asked for, where FastChat's depends on the category; the judge is the one given.

use std::collections::HashMap;

use pt_data::read::{ReadOptions, read_all};
use serde_json::{Map, Value};

use crate::catalogue::{BenchmarkInfo, DATA, Loaded, MetricInfo, Scale};
use crate::error::{EvalError, Result};
use crate::item::{Ask, Item, Mark, Marks, Prompt, message};
use crate::judge::{Company, Judged, last_rating};
use crate::results::{Reply, Sample};
use crate::source::{Source, text_of};
use crate::subject::Subject;

const NAME: &str = "mt_bench";
/// Categories judged beside a reference answer.
const WITH_REFERENCE: [&str; 4] = ["math", "reasoning", "coding", "arena-hard-200"];

/// The catalogue's entry.
pub(crate) const INFO: BenchmarkInfo = BenchmarkInfo {
    name: NAME,
    summary: "conversations of two turns, rated by a judge (--judge)",
    version: 1,
    source: "lm-sys/FastChat llm_judge: questions, judge prompts and reference answers",
    dataset: "(none: FastChat's `llm_judge/data`)",
    few_shot: 0,
    max_new_tokens: 1024,
    metrics: &[
        number("score", "mean rating of both turns, 1 to 10"),
        number("turn_1", "of the first"),
        number("turn_2", "of the second"),
    ],
    options: &[DATA],
    load,
};

const fn number(name: &'static str, doc: &'static str) -> MetricInfo {
    MetricInfo { name, doc, higher_is_better: true, scale: Scale::Number }
}

/// A judge's prompt: what it is told, and the template of what it sees.
#[derive(Clone, Debug)]
struct JudgePrompt {
    system: String,
    template: String,
}

struct MtBench {
    items: Vec<Item>,
    prompts: HashMap<String, JudgePrompt>,
    references: HashMap<String, Vec<String>>,
    max_new_tokens: usize,
}

fn turns(row: &Map<String, Value>) -> Vec<String> {
    let turns = row.get("turns").and_then(Value::as_array);
    turns.into_iter().flatten().filter_map(|turn| turn.as_str().map(str::to_owned)).collect()
}

fn load(source: &Source<'_>) -> Result<Loaded> {
    source.check_shots(source.few_shot(), 0)?;
    const FILES: [&str; 3] =
        ["question.jsonl", "mt_bench/question.jsonl", "mt-bench/mt_bench/question.jsonl"];
    let path = source.file(&FILES).ok_or_else(|| source.no_data(&FILES))?;
    let read = |path: &std::path::Path| read_all(&path.to_string_lossy(), &ReadOptions::default());
    let judge_file = source.beside(&path, &["judge_prompts.jsonl", "../judge_prompts.jsonl"]);
    let judge_file = judge_file.ok_or_else(|| source.no_data(&["judge_prompts.jsonl"]))?;
    let prompts = read(&judge_file)?.into_iter().map(|row| {
        let text = |name: &str| text_of(&row.value, name).to_owned();
        (text("name"), JudgePrompt { system: text("system_prompt"), template: text("prompt_template") })
    });
    let prompts = prompts.collect();
    let mut references = HashMap::new();
    if let Some(file) = source.beside(&path, &["reference_answer/gpt-4.jsonl"]) {
        for row in read(&file)? {
            let first = row.value.get("choices").and_then(|choices| choices.get(0)?.as_object());
            references.insert(source.text(&row, &["question_id"])?, first.map(turns).unwrap_or_default());
        }
    }
    let mut items = Vec::new();
    for row in read(&path)? {
        let first = turns(&row.value).into_iter().next();
        let first = first.ok_or_else(|| source.bad_row(&row, &["turns"], row.value.get("turns")))?;
        items.push(Item {
            key: source.text(&row, &["question_id"])?,
            category: source.text(&row, &["category"])?,
            prompt: Prompt::bare(first),
            ask: Ask::Reply { until: Vec::new(), max_new_tokens: source.max_new_tokens() },
            gold: Value::Null,
            row: row.value,
        });
    }
    let max_new_tokens = source.max_new_tokens();
    Ok(Loaded::Judged(Box::new(MtBench { items, prompts, references, max_new_tokens })))
}

/// A template with its `{names}` filled in. Texts that are put in are not looked at again.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let (mut out, mut rest) = (String::new(), template);
    while let Some(at) = rest.find('{') {
        out += &rest[..at];
        rest = &rest[at..];
        let known = values
            .iter()
            .find(|(name, _)| rest[1..].strip_prefix(*name).is_some_and(|after| after.starts_with('}')));
        match known {
            Some((name, value)) => {
                out += value;
                rest = &rest[name.len() + 2..];
            }
            None => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

impl MtBench {
    /// What the judge sees of a turn (0 or 1).
    fn judged_turn(&self, item: &Item, replies: &[String], turn: usize) -> Result<Vec<Map<String, Value>>> {
        let questions = turns(&item.row);
        let reference = self.references.get(&item.key).filter(|_| WITH_REFERENCE.contains(&&*item.category));
        let name = match (reference.is_some(), turn) {
            (false, 0) => "single-v1",
            (true, 0) => "single-math-v1",
            (false, _) => "single-v1-multi-turn",
            (true, _) => "single-math-v1-multi-turn",
        };
        let prompt = self.prompts.get(name).ok_or_else(|| EvalError::Question {
            benchmark: NAME.to_owned(),
            key: item.key.clone(),
            problem: format!("the judge's prompts have none called `{name}`"),
        })?;
        let none = String::new();
        let at = |list: &[String], i: usize| list.get(i).cloned().unwrap_or_else(|| none.clone());
        let refs = reference.cloned().unwrap_or_default();
        let values = [
            ("question", at(&questions, 0)),
            ("answer", at(replies, 0)),
            ("question_1", at(&questions, 0)),
            ("question_2", at(&questions, 1)),
            ("answer_1", at(replies, 0)),
            ("answer_2", at(replies, 1)),
            ("ref_answer_1", at(&refs, 0)),
            ("ref_answer_2", at(&refs, 1)),
        ];
        let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let user = message("user", &fill(&prompt.template, &values));
        let system = (!prompt.system.is_empty()).then(|| message("system", &prompt.system));
        Ok(system.into_iter().chain([user]).collect())
    }
}

impl Judged for MtBench {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn measure(&self, items: &[&Item], subject: &Subject<'_>, company: &Company<'_>) -> Result<Vec<Sample>> {
        let judge = company.judge(NAME)?;
        let first: Vec<_> = items.iter().map(|item| vec![message("user", &item.prompt.question)]).collect();
        let replies = subject.converse(&first, self.max_new_tokens, company.settings)?;
        let second: Vec<_> = items
            .iter()
            .zip(&first)
            .zip(&replies)
            .map(|((item, messages), reply)| {
                let next = turns(&item.row).get(1).cloned();
                let more = next.map(|next| [message("assistant", &reply.text), message("user", &next)]);
                messages.iter().cloned().chain(more.into_iter().flatten()).collect::<Vec<_>>()
            })
            .collect();
        // A question of one turn has its first reply again, and is judged once.
        let later = subject.converse(&second, self.max_new_tokens, company.settings)?;
        let mut asked = Vec::new();
        for ((item, first), second) in items.iter().zip(&replies).zip(&later) {
            let texts = [first.text.clone(), second.text.clone()];
            for turn in 0..turns(&item.row).len().min(2) {
                asked.push(self.judged_turn(item, &texts, turn)?);
            }
        }
        let mut verdicts = judge.ask_all(&asked)?.into_iter();
        let mut samples = Vec::new();
        for ((item, first), second) in items.iter().zip(&replies).zip(&later) {
            let n_turns = turns(&item.row).len().min(2);
            let verdicts: Vec<String> = verdicts.by_ref().take(n_turns).collect();
            let ratings: Vec<Option<f64>> = verdicts.iter().map(|verdict| last_rating(verdict)).collect();
            let names = ["turn_1", "turn_2"];
            let mut marks: Vec<Mark> = ratings
                .iter()
                .zip(names)
                .filter_map(|(rating, name)| Some(Mark::new(name, (*rating)?)))
                .collect();
            // An item counts only whole: a judge that forgot its rating would else move the mean.
            if marks.len() < n_turns || n_turns == 0 {
                marks.clear();
            } else {
                let mean = marks.iter().map(|mark| mark.value).sum::<f64>() / marks.len() as f64;
                marks.insert(0, Mark::new("score", mean));
            }
            let texts = [&first.text, &second.text];
            let replies = (0..n_turns).map(|turn| Reply {
                text: texts[turn].clone(),
                is_truncated: [first.is_truncated, second.is_truncated][turn],
                answer: None,
                scores: Default::default(),
                reason: verdicts[turn].clone(),
            });
            let replies = replies.collect();
            let marks = Marks { marks, ..Marks::default() };
            samples.push(Sample::new(item, replies, Vec::new(), &marks.marks));
        }
        Ok(samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled_once() {
        let filled = fill("{question} | {answer} | {other} {", &[("question", "{answer}"), ("answer", "A")]);
        assert_eq!(filled, "{answer} | A | {other} {");
    }
}
