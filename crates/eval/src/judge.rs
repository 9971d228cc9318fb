//! Benchmarks that another model judges.

use std::sync::LazyLock;

use pt_client::{Client, Prompt, Request};
use regex::Regex;
use serde_json::{Map, Value};

use crate::error::{EvalError, Result};
use crate::item::Item;
use crate::results::Sample;
use crate::source::Settings;
use crate::subject::Subject;

/// Requests a judge works on at once.
const PARALLEL: usize = 8;
/// Most tokens of a verdict.
const VERDICT_TOKENS: u32 = 2048;

/// Answers conversations.
pub trait Judge: Sync {
    /// Its name, for the results.
    fn name(&self) -> &str;

    /// Its answers, in order.
    ///
    /// # Errors
    /// If one does not come.
    fn ask_all(&self, conversations: &[Vec<Map<String, Value>>]) -> Result<Vec<String>>;
}

/// A judge behind the OpenAI protocol, asked at temperature 0.
pub struct ServedJudge {
    client: Client,
    model: String,
}

impl ServedJudge {
    /// The model of this name; the first that the server lists, if none is named.
    ///
    /// # Errors
    /// If the server lists none.
    pub fn new(client: Client, model: Option<String>) -> Result<ServedJudge> {
        let model = match model {
            Some(model) => model,
            None => client.models()?.into_iter().next().ok_or(EvalError::Missing {
                benchmark: "judge",
                what: "a model",
                advice: "the server lists none; name one with --judge-model",
            })?,
        };
        Ok(ServedJudge { client, model })
    }
}

impl Judge for ServedJudge {
    fn name(&self) -> &str {
        &self.model
    }

    fn ask_all(&self, conversations: &[Vec<Map<String, Value>>]) -> Result<Vec<String>> {
        let request = |messages: &Vec<Map<String, Value>>| Request {
            temperature: Some(0.0),
            max_tokens: Some(VERDICT_TOKENS),
            ..Request::new(self.model.clone(), Prompt::Chat(messages.clone()))
        };
        let requests: Vec<Request> = conversations.iter().map(request).collect();
        let completions = self.client.complete_all(&requests, PARALLEL);
        let text = |completion: pt_client::Completion| {
            completion.choices.into_iter().next().map(|choice| choice.text).unwrap_or_default()
        };
        completions.into_iter().map(|completion| Ok(text(completion?))).collect()
    }
}

/// What a judged benchmark may use beside the model.
pub struct Company<'a> {
    /// How models are asked.
    pub settings: &'a Settings,
    /// Who judges.
    pub judge: Option<&'a dyn Judge>,
    /// Who is compared with.
    pub opponent: Option<&'a Subject<'a>>,
}

impl<'a> Company<'a> {
    /// The judge.
    ///
    /// # Errors
    /// [`EvalError::Missing`].
    pub fn judge(&self, benchmark: &'static str) -> Result<&'a dyn Judge> {
        self.judge.ok_or_else(|| no_judge(benchmark))
    }

    /// The other model.
    ///
    /// # Errors
    /// [`EvalError::Missing`].
    pub fn opponent(&self, benchmark: &'static str) -> Result<&'a Subject<'a>> {
        self.opponent.ok_or_else(|| no_opponent(benchmark))
    }
}

pub(crate) fn no_judge(benchmark: &'static str) -> EvalError {
    let advice = "give the address of an OpenAI-compatible server: --judge http://127.0.0.1:8000/v1";
    EvalError::Missing { benchmark, what: "a judge", advice }
}

pub(crate) fn no_opponent(benchmark: &'static str) -> EvalError {
    let advice = "name it with --against MODEL";
    EvalError::Missing { benchmark, what: "a model to compare with", advice }
}

/// A benchmark whose answers another model judges.
pub trait Judged: Sync {
    /// The questions, in order.
    fn items(&self) -> &[Item];

    /// Whether it compares the model with another.
    fn needs_opponent(&self) -> bool {
        false
    }

    /// Draws and judges the answers to some of them, in order.
    ///
    /// # Errors
    /// If the model cannot be asked, or the judge does not answer.
    fn measure(&self, items: &[&Item], subject: &Subject<'_>, company: &Company<'_>) -> Result<Vec<Sample>>;
}

/// The last `[[7]]` or `[[7.5]]` of a verdict, if it is from 1 to 10.
pub(crate) fn last_rating(verdict: &str) -> Option<f64> {
    static RATING: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\[\[(\d+(?:\.\d+)?)\]\]").expect("a constant pattern"));
    let last = RATING.captures_iter(verdict).last()?;
    last[1].parse().ok().filter(|rating| (1.0..=10.0).contains(rating))
}

/// The last `[[A]]`, `[[B]]` or `[[C]]` of a verdict.
pub(crate) fn last_choice(verdict: &str) -> Option<char> {
    let at = |choice: char| verdict.rfind(&format!("[[{choice}]]")).map(|at| (at, choice));
    ['A', 'B', 'C'].into_iter().filter_map(at).max().map(|(_, choice)| choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read_at_their_end() {
        for (verdict, rating, choice) in [
            ("Not [[3]] but Rating: [[7.5]]", Some(7.5), None),
            ("[[11]]", None, None),
            ("first [[A]], no: [[C]]", None, Some('C')),
            ("nothing", None, None),
        ] {
            assert_eq!((last_rating(verdict), last_choice(verdict)), (rating, choice), "{verdict}");
        }
    }
}
