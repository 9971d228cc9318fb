//! Answers of a model as rows for SFT: sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947) from a teacher that can only
//! be asked, such as one behind a server.
//!
//! A row's own reply, where it has one, is not used. What a student learns so is the teacher's text; of its probabilities nothing is
//! known. (An OpenAI-compatible server names at most the 20 likeliest tokens of each place, as text, of what it wrote itself: too
//! little for a divergence on a student's samples, and in other tokens where the tokenizers differ.)

use std::collections::BTreeMap;

use pt_data::{Columns, Record};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::chat::{Answer, Ask, AskOptions, Chat, Counted, Tally, Turn};
use crate::error::Result;
use crate::revise::{Keys, call_seed, prompt_of};

/// How prompts are answered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnswerOptions {
    /// Answers to each prompt; equal ones are kept once.
    pub n: usize,
    /// Keys the model's draws.
    pub seed: u64,
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f64,
    /// Whether answers that were cut at the token limit are kept.
    pub keep_truncated: bool,
}

/// Figures of answered rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnswerReport {
    /// Who answered.
    pub model: String,
    /// As asked.
    pub options: AnswerOptions,
    /// Prompts read.
    pub n_rows: usize,
    /// Answers kept.
    pub n_kept: usize,
    /// Answers that were not, by reason: `failed`, `empty`, `truncated`, `repeated`.
    pub excluded: BTreeMap<String, usize>,
    /// Calls and tokens.
    pub calls: Tally,
    /// By the price given; 0 without one.
    pub cost: f64,
}

/// Answered rows with their figures.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// Rows with `messages`, in the order of the prompts.
    pub rows: Vec<Columns>,
    /// Prompts with `excluded`, the reason, for each answer that was not kept.
    pub excluded: Vec<Columns>,
    /// The figures.
    pub report: AnswerReport,
}

/// Asks `chat` for `n` answers to each row's prompt. `watch` is told of the calls as they are done.
///
/// # Errors
/// A row that is no prompt; [`crate::FeedbackError::AllFailed`]; a cache that cannot be used.
pub fn answer(
    records: &[Record],
    chat: &dyn Chat,
    options: &AnswerOptions,
    watch: &mut dyn FnMut(&Tally),
) -> Result<Answered> {
    let mut keys = Keys::new();
    let mut asks = Vec::with_capacity(records.len() * options.n);
    for record in records {
        let (messages, _) = prompt_of(record)?;
        let key = keys.next(messages.iter().flat_map(|turn| [turn.role.as_str(), turn.content.as_str()]));
        asks.extend(
            (0..options.n as u64)
                .map(|call| Ask { messages: messages.clone(), seed: call_seed(options.seed, key, call) }),
        );
    }
    let ask_options =
        AskOptions { max_tokens: options.max_tokens, temperature: options.temperature, top_logprobs: 0 };
    let mut calls = Counted::new(chat, watch);
    let answers = calls.ask_all(&asks, &ask_options)?;
    let calls = calls.tally();
    let report = AnswerReport {
        model: chat.name().to_owned(),
        options: *options,
        n_rows: records.len(),
        n_kept: 0,
        excluded: BTreeMap::new(),
        cost: chat.cost(&calls),
        calls,
    };
    let mut answered = Answered { rows: Vec::new(), excluded: Vec::new(), report };
    let groups = records.iter().zip(asks.chunks(options.n.max(1)).zip(answers.chunks(options.n.max(1))));
    for (record, (asks, answers)) in groups {
        answered.add(record, &asks[0].messages, answers, options.keep_truncated);
    }
    answered.report.n_kept = answered.rows.len();
    Ok(answered)
}

impl Answered {
    /// The answers to one prompt.
    fn add(
        &mut self,
        record: &Record,
        prompt: &[Turn],
        answers: &[std::result::Result<Answer, String>],
        keep_truncated: bool,
    ) {
        let mut seen: Vec<&str> = Vec::new();
        for answer in answers {
            let reason = match answer {
                Err(_) => Some("failed"),
                Ok(answer) if answer.text.trim().is_empty() => Some("empty"),
                Ok(answer) if answer.is_truncated && !keep_truncated => Some("truncated"),
                Ok(answer) if seen.contains(&answer.text.trim()) => Some("repeated"),
                Ok(_) => None,
            };
            let mut row = Columns::new();
            match (reason, answer) {
                (None, Ok(answer)) => {
                    let text = answer.text.trim();
                    seen.push(text);
                    let reply = Turn::assistant(text);
                    let messages: Vec<&Turn> = prompt.iter().chain([&reply]).collect();
                    row.insert("messages".to_owned(), json!(messages));
                }
                (reason, _) => {
                    let reason = reason.unwrap_or("failed");
                    *self.report.excluded.entry(reason.to_owned()).or_default() += 1;
                    row.insert("prompt".to_owned(), json!(prompt));
                    row.insert("excluded".to_owned(), json!(reason));
                }
            }
            for (key, value) in &record.extra {
                row.entry(key.as_str()).or_insert_with(|| value.clone());
            }
            match reason {
                None => self.rows.push(row),
                Some(_) => self.excluded.push(row),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pt_data::{Body, Content, Origin};
    use serde_json::Map;

    use super::*;
    use crate::chat::Answers;

    /// Says the last message twice; nothing to `silence`, and too much to `long`.
    struct Echo;

    impl Chat for Echo {
        fn name(&self) -> &str {
            "echo"
        }

        fn ask_all(&self, asks: &[Ask], options: &AskOptions) -> Result<Answers> {
            let one = |ask: &Ask| {
                let text = ask.messages.last().expect("a message").content.clone();
                match text.as_str() {
                    "fails" => Err("no answer".to_owned()),
                    "silence" => Ok(Answer { text: " ".to_owned(), ..Answer::default() }),
                    _ => Ok(Answer {
                        is_truncated: text == "long",
                        text: match options.temperature > 0.0 && ask.seed.is_multiple_of(2) {
                            true => format!("{text} {text}"),
                            false => text,
                        },
                        ..Answer::default()
                    }),
                }
            };
            Ok(asks.iter().map(one).collect())
        }
    }

    fn prompt(text: &str) -> Record {
        Record {
            body: Body::PromptOnly { prompt: Content::Text(text.to_owned()) },
            origin: Origin::new("t", 1),
            tools: None,
            chat_template_kwargs: None,
            extra: Map::from_iter([("id".to_owned(), json!(text))]),
        }
    }

    #[test]
    fn prompts_become_rows_and_what_is_left_out_is_counted() {
        let records: Vec<Record> = ["one", "silence", "two", "fails", "long"].map(prompt).to_vec();
        let options = AnswerOptions { n: 3, seed: 1, max_tokens: 9, temperature: 0.0, keep_truncated: false };
        let answered = answer(&records, &Echo, &options, &mut |_| ()).unwrap();
        assert_eq!(answered.rows.len(), 2, "{:?}", answered.rows);
        assert_eq!(answered.rows[0]["messages"], json!([Turn::user("one"), Turn::assistant("one")]));
        assert_eq!(answered.rows[1]["id"], "two");
        let report = &answered.report;
        let counted: Vec<(&str, usize)> = report.excluded.iter().map(|(k, n)| (k.as_str(), *n)).collect();
        assert_eq!(counted, [("empty", 3), ("failed", 3), ("repeated", 4), ("truncated", 3)]);
        assert_eq!(report.calls.n_calls, 15);
        assert_eq!(answered.excluded.len() + answered.rows.len(), 15);
        let kept = AnswerOptions { keep_truncated: true, ..options };
        assert_eq!(answer(&records, &Echo, &kept, &mut |_| ()).unwrap().rows.len(), 3);
    }

    /// What a prompt is answered with depends on its content and the seed alone, not on its place.
    #[test]
    fn the_order_of_rows_changes_nothing() {
        let options = AnswerOptions { n: 4, seed: 5, max_tokens: 9, temperature: 1.0, keep_truncated: false };
        let records: Vec<Record> = ["a", "b", "c"].map(prompt).to_vec();
        let mut reversed = records.clone();
        reversed.reverse();
        let of = |records: &[Record]| {
            let mut rows = answer(records, &Echo, &options, &mut |_| ()).unwrap().rows;
            rows.sort_by_key(|row| serde_json::to_string(row).unwrap());
            rows
        };
        assert_eq!(of(&records), of(&reversed));
    }
}
