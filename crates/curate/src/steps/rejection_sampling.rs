//! Rejection sampling: of several samples of a prompt, those that pass become rows to train on.
//!
//! Rows are those that `posttrain generate` writes: the columns of the prompt, and `samples`, a list of objects with `text`. Each
//! sample is judged, by a verifier, or by a score that it carries (`score`, of a reward model). Of those at or above
//! `min_score` the `k` best are kept (Touvron et al. 2023, "Llama 2", section 3.2.3, with k = 1 and a reward model; Yuan et
//! al. 2023, "Scaling Relationship ...", section 3.3, with all different right ones). Ties
//! go to the shorter sample where `prefer = "short"`, or to the first. Each becomes a row with `prompt` and `completion` and
//! the row's other columns. A prompt none of whose samples passes is dropped; samples cut at the token limit never pass.

use std::collections::HashSet;

use pt_core::catalogue::OptionInfo;
use pt_data::Columns;
use pt_verify::{Question, Verifier};
use serde::Deserialize;
use serde_json::Value;

use crate::catalogue::{CuratorInfo, parse};
use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::Summary;
use crate::step::Step;
use crate::view::column;
use crate::words::{count_words, words};

const NAME: &str = "rejection_sampling";

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "sampling",
    summary: "of the samples of a prompt (`posttrain generate`), the best that pass a verifier or a score become rows",
    options: &[
        OptionInfo {
            name: "verifier",
            kind: "a name of `posttrain list verifiers`",
            default: "",
            doc: "who judges; none: the samples' own `score`",
        },
        OptionInfo { name: "options", kind: "table", default: "{}", doc: "the verifier's options" },
        OptionInfo {
            name: "gold",
            kind: "text",
            default: "\"ground_truth\"",
            doc: "the column with the right answer",
        },
        OptionInfo {
            name: "score",
            kind: "text",
            default: "\"score\"",
            doc: "the samples' key with a score, where there is no verifier",
        },
        OptionInfo { name: "min_score", kind: "number", default: "1.0", doc: "the least score that passes" },
        OptionInfo {
            name: "k",
            kind: "integer from 1",
            default: "1",
            doc: "the most samples kept of a prompt",
        },
        OptionInfo {
            name: "prefer",
            kind: r#""first", "short""#,
            default: "\"first\"",
            doc: "which of equal scores",
        },
    ],
    build: |options, _| {
        let options: Options = parse(NAME, options)?;
        if options.k == 0 {
            return Err(CurateError::option(NAME, "k is 0, expected 1 or more"));
        }
        let build = |name: &String| pt_verify::build(name, &options.options);
        let verifier = options.verifier.as_ref().map(build).transpose()?;
        Ok(Box::new(Sampling { options, verifier, n_prompts: 0, n_samples: 0, n_passed: 0 }))
    },
};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    verifier: Option<String>,
    options: toml::Table,
    gold: String,
    score: String,
    min_score: f64,
    k: usize,
    prefer: Prefer,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            verifier: None,
            options: toml::Table::new(),
            gold: "ground_truth".to_owned(),
            score: "score".to_owned(),
            min_score: 1.0,
            k: 1,
            prefer: Prefer::First,
        }
    }
}

/// Which of samples with equal scores is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefer {
    /// The one that was drawn first.
    First,
    /// The one with fewer words.
    Short,
}

/// A sample with what was said of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged<'a> {
    /// The reply.
    pub text: &'a str,
    /// Its score; `None` where it could not be judged.
    pub score: Option<f64>,
    /// Whether it was cut at the token limit.
    pub is_truncated: bool,
}

/// The samples that are kept, by index, best first: at most `k`, each at least `min_score`, no text (by its words) twice.
pub fn select(samples: &[Judged<'_>], min_score: f64, k: usize, prefer: Prefer) -> Vec<usize> {
    let passes =
        |i: &usize| !samples[*i].is_truncated && samples[*i].score.is_some_and(|score| score >= min_score);
    let mut passing: Vec<usize> = (0..samples.len()).filter(passes).collect();
    let length = |i: usize| if prefer == Prefer::Short { count_words(samples[i].text) } else { 0 };
    passing.sort_by(|a, b| {
        let score = |i: usize| samples[i].score.unwrap_or(f64::NEG_INFINITY);
        score(*b).total_cmp(&score(*a)).then(length(*a).cmp(&length(*b))).then(a.cmp(b))
    });
    let mut seen = HashSet::new();
    passing.retain(|i| seen.insert(words(samples[*i].text).collect::<Vec<_>>()));
    passing.truncate(k);
    passing
}

struct Sampling {
    options: Options,
    verifier: Option<Box<dyn Verifier>>,
    n_prompts: u64,
    n_samples: u64,
    n_passed: u64,
}

/// What was found of a prompt's samples.
struct Found {
    n_samples: usize,
    n_passed: usize,
    kept: Vec<Columns>,
    best: String,
}

impl Step for Sampling {
    type Seen = Found;

    fn see(&self, item: &Item) -> Result<Found, CurateError> {
        let row = &item.row.value;
        let Some(samples) = row.get("samples").and_then(Value::as_array) else {
            let names: Vec<&str> = row.keys().map(String::as_str).collect();
            return Err(CurateError::NoColumn {
                origin: item.row.origin.clone(),
                step: NAME,
                column: "samples".to_owned(),
                hint: pt_core::suggest::hint("samples", &names),
            });
        };
        let gold = column(row, &self.options.gold).or_else(|| column(&item.view.extra, &self.options.gold));
        let mut best: Option<(f64, String)> = None;
        let judge = |sample: &'_ Value| {
            let text = sample["text"].as_str().unwrap_or_default();
            let is_truncated = sample["finish_reason"] == "length";
            let (score, reason) = match &self.verifier {
                Some(verifier) => {
                    let question =
                        Question { prompt: &item.view.instruction, reply: text, gold, row, is_truncated };
                    let verdict = verifier.verify(&question);
                    (verdict.score, verdict.reason)
                }
                None => (sample[self.options.score.as_str()].as_f64(), String::new()),
            };
            (score, reason, is_truncated)
        };
        let judged: Vec<Judged<'_>> = samples
            .iter()
            .map(|sample| {
                let (score, reason, is_truncated) = judge(sample);
                if best.as_ref().is_none_or(|(best, _)| score.unwrap_or(f64::MIN) > *best) {
                    best = Some((score.unwrap_or(f64::MIN), reason));
                }
                Judged { text: sample["text"].as_str().unwrap_or_default(), score, is_truncated }
            })
            .collect();
        let min = self.options.min_score;
        let n_passed =
            judged.iter().filter(|s| !s.is_truncated && s.score.is_some_and(|score| score >= min)).count();
        let kept = select(&judged, min, self.options.k, self.options.prefer);
        let kept = kept.into_iter().map(|i| completed(item, judged[i].text)).collect();
        let best = best.map_or("there are no samples".to_owned(), |(score, reason)| match score {
            f64::MIN => format!("none could be judged: {reason}"),
            score => format!("the best has {score}: {reason}"),
        });
        Ok(Found { n_samples: samples.len(), n_passed, kept, best })
    }

    fn decide(&mut self, _item: &Item, found: Found) -> Decision {
        self.n_prompts += 1;
        self.n_samples += found.n_samples as u64;
        self.n_passed += found.n_passed as u64;
        match found.kept.is_empty() {
            true => {
                Decision::drop("no sample passes", format!("{} samples; {}", found.n_samples, found.best))
            }
            false => Decision::Replace {
                detail: format!(
                    "{} of {} samples pass, {} kept",
                    found.n_passed,
                    found.n_samples,
                    found.kept.len()
                ),
                values: found.kept,
                reason: "samples that pass",
            },
        }
    }

    fn summary(&self) -> Summary {
        let share = self.n_passed as f64 / self.n_samples.max(1) as f64;
        let line = format!(
            "{} samples of {} prompts, {} pass ({:.1} %)",
            self.n_samples,
            self.n_prompts,
            self.n_passed,
            100.0 * share
        );
        let mut summary = Summary { lines: vec![line], ..Summary::default() };
        summary.facts.insert("pass_rate".to_owned(), share.into());
        summary
    }
}

/// The row with its samples replaced by one completion; of a conversation both parts are messages.
fn completed(item: &Item, text: &str) -> Columns {
    let mut row = item.row.value.clone();
    ["samples", "prompt_token_ids", "completion"].iter().for_each(|column| drop(row.remove(*column)));
    match row.remove("messages") {
        Some(Value::Array(mut messages)) => {
            messages.push(serde_json::json!({"role": "assistant", "content": text}));
            row.insert("messages".to_owned(), messages.into());
        }
        _ => {
            let prompt = row.remove("prompt").unwrap_or_else(|| item.view.prompt.clone().into());
            let completion = match prompt.is_array() {
                true => serde_json::json!([{"role": "assistant", "content": text}]),
                false => text.into(),
            };
            row.insert("prompt".to_owned(), prompt);
            row.insert("completion".to_owned(), completion);
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::Harness;

    #[test]
    fn the_best_different_samples_are_selected() {
        let judged = |text, score| Judged { text, score, is_truncated: false };
        let samples = [
            judged("four of them", Some(1.0)),
            judged("Four, of them!", Some(1.0)),
            judged("4", Some(1.0)),
            judged("5", Some(0.0)),
            judged("six", None),
            judged("best", Some(2.0)),
            Judged { text: "cut", score: Some(3.0), is_truncated: true },
        ];
        let check = |min: f64, k: usize, prefer: Prefer, expected: &[usize]| {
            assert_eq!(select(&samples, min, k, prefer), expected, "{min} {k} {prefer:?}");
        };
        check(1.0, 1, Prefer::First, &[5]);
        check(1.0, 9, Prefer::First, &[5, 0, 2]);
        check(1.0, 9, Prefer::Short, &[5, 2, 0]);
        check(0.0, 9, Prefer::First, &[5, 0, 2, 3]);
        check(9.0, 9, Prefer::First, &[]);
        assert_eq!(select(&[], 0.0, 1, Prefer::First), Vec::<usize>::new());
    }

    #[test]
    fn samples_become_rows() {
        let row = |samples: &[(&str, &str)]| {
            let samples: Vec<Value> =
                samples.iter().map(|(text, end)| json!({"text": text, "finish_reason": end})).collect();
            json!({"prompt": "2+2?", "ground_truth": "4", "samples": samples, "prompt_token_ids": [1]})
        };
        let rows =
            [row(&[("5", "stop"), ("4", "stop"), ("4", "stop")]), row(&[("5", "stop"), ("4", "length")])];
        let outcome = Harness::new(NAME, "verifier = \"exact\"\nk = 2").run(&rows);
        assert_eq!(outcome.kept, [0]);
        let Decision::Replace { values, .. } = &outcome.decisions[0] else {
            panic!("{:?}", outcome.decisions)
        };
        let expected = json!([{"ground_truth": "4", "prompt": "2+2?", "completion": "4"}]);
        assert_eq!(json!(values), expected);
        let scored = json!({"messages": [{"role": "user", "content": "hi"}], "samples": [{"text": "a", "score": 0.2}, {"text": "b", "score": 0.9}]});
        let outcome = Harness::new(NAME, "min_score = 0.5").run(&[scored]);
        let Decision::Replace { values, .. } = &outcome.decisions[0] else {
            panic!("{:?}", outcome.decisions)
        };
        assert_eq!(values[0]["messages"][1]["content"], "b");
        assert!(Harness::new(NAME, "").error(&[json!({"prompt": "x"})]).contains("needs a column `samples`"));
    }
}
