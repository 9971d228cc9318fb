//! A verifier that asks a model: grades by a rubric, as a reward.
//!
//! ```text
//! score = (mean grade - 1) / (scale - 1)
//! ```
//!
//! Training finds whatever a judge likes by mistake, so it serves only with an audit that passed, of this model with this
//! rubric and scale, its answers drawn alike (`posttrain feedback audit --rubric`), or where `unaudited = true` says that nobody looked. An answer
//! without a grade, and a call that fails, is a skip: no reply is worth less because its judge was away.

use std::path::{Path, PathBuf};

use pt_client::{Client, ClientOptions, Price};
use pt_core::catalogue::{CatalogueError, OptionInfo, check_options, parse};
use pt_verify::{Question, Verdict, Verifier};
use serde::Deserialize;

use crate::audit::{Audit, GradeOptions, Kind, Subject};
use crate::chat::{Ask, Chat, Turn};
use crate::error::FeedbackError;
use crate::server::ServerChat;
use crate::verdict;

/// Its name in recipes.
pub const LLM_JUDGE: &str = "llm_judge";
/// One line, for the manual.
pub const LLM_JUDGE_SUMMARY: &str =
    "a grade by a rubric from a model behind an OpenAI-compatible server, audited first";
/// What of a row it reads.
pub const LLM_JUDGE_READS: &str = "the last user turn of the prompt";

/// Most tokens of a grade and what is said before it, unless told otherwise; the same where a grader is audited.
pub const GRADE_TOKENS: u32 = 512;

/// Its options.
pub const LLM_JUDGE_OPTIONS: &[OptionInfo] = &[
    OptionInfo { name: "url", kind: "text", default: "", doc: "the server, as http://127.0.0.1:8000/v1" },
    OptionInfo { name: "model", kind: "text", default: "", doc: "the server's name of the model" },
    OptionInfo { name: "rubric", kind: "text", default: "", doc: "what a good reply is like" },
    OptionInfo { name: "scale", kind: "integer", default: "10", doc: "the best grade; the worst is 1" },
    OptionInfo { name: "votes", kind: "integer", default: "1", doc: "grades of each reply, averaged" },
    OptionInfo { name: "temperature", kind: "number", default: "0.0", doc: "divides the judge's logits" },
    OptionInfo { name: "max_tokens", kind: "integer", default: "512", doc: "most tokens of an answer" },
    OptionInfo { name: "audit", kind: "file", default: "", doc: "an audit of this judge that passed" },
    OptionInfo { name: "unaudited", kind: "bool", default: "false", doc: "whether to go without an audit" },
    OptionInfo { name: "cache_dir", kind: "folder", default: "", doc: "where answers are kept between runs" },
    OptionInfo { name: "api_key_file", kind: "file", default: "", doc: "a file with the server's key" },
    OptionInfo { name: "requests_per_minute", kind: "number", default: "", doc: "limit; none if absent" },
    OptionInfo { name: "max_parallel", kind: "integer", default: "8", doc: "requests at a time" },
    OptionInfo { name: "timeout_s", kind: "number", default: "120.0", doc: "seconds to wait for an answer" },
    OptionInfo { name: "max_retries", kind: "integer", default: "5", doc: "attempts after the first" },
];

/// As written in a recipe.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    url: String,
    model: String,
    rubric: String,
    scale: u32,
    votes: usize,
    temperature: f64,
    max_tokens: u32,
    audit: Option<PathBuf>,
    unaudited: bool,
    cache_dir: Option<PathBuf>,
    api_key_file: Option<PathBuf>,
    requests_per_minute: Option<f64>,
    max_parallel: usize,
    timeout_s: f64,
    max_retries: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            url: String::new(),
            model: String::new(),
            rubric: String::new(),
            scale: 10,
            votes: 1,
            temperature: 0.0,
            max_tokens: GRADE_TOKENS,
            audit: None,
            unaudited: false,
            cache_dir: None,
            api_key_file: None,
            requests_per_minute: None,
            max_parallel: 8,
            timeout_s: 120.0,
            max_retries: 5,
        }
    }
}

/// The verifier.
#[derive(Debug)]
struct LlmJudge {
    chat: ServerChat,
    grade: GradeOptions,
}

fn problem(problem: impl Into<String>) -> CatalogueError {
    CatalogueError::Option { kind: "verifier", name: LLM_JUDGE.to_owned(), problem: problem.into() }
}

/// Reads a key from a file; white space around it is no part of it.
///
/// # Errors
/// If it cannot be read.
pub fn read_key(path: &Path) -> Result<String, FeedbackError> {
    let text = std::fs::read_to_string(path).map_err(FeedbackError::io("read", path))?;
    Ok(text.trim().to_owned())
}

/// Builds the verifier from a recipe's options. Nothing is connected to yet.
///
/// # Errors
/// An option that is missing, unknown or out of range; no audit, or one that does not allow this judge.
pub fn build_llm_judge(options: &toml::Table) -> Result<Box<dyn Verifier>, CatalogueError> {
    check_options("verifier", LLM_JUDGE, LLM_JUDGE_OPTIONS, options)?;
    let options: Options = parse("verifier", LLM_JUDGE, options)?;
    for (key, value) in [("url", &options.url), ("model", &options.model), ("rubric", &options.rubric)] {
        if value.trim().is_empty() {
            return Err(problem(format!(
                "`{key}` is missing; name the judge with `url`, `model` and `rubric`"
            )));
        }
    }
    let grade = GradeOptions {
        rubric: options.rubric.clone(),
        scale: options.scale,
        votes: options.votes,
        seed: 0,
        max_tokens: options.max_tokens,
        temperature: options.temperature,
    };
    grade.check().map_err(|error| problem(error.to_string()))?;
    let subject = Subject {
        kind: Kind::Grader,
        model: options.model.clone(),
        instrument: grade.instrument(),
        drawn: Some(grade.drawn()),
    };
    allow(&options, &subject)?;
    let chat = chat(&options).map_err(|error| problem(error.to_string()))?;
    Ok(Box::new(LlmJudge { chat, grade }))
}

fn allow(options: &Options, subject: &Subject) -> Result<(), CatalogueError> {
    match (&options.audit, options.unaudited) {
        (Some(_), true) => Err(problem("`audit` and `unaudited` contradict each other; keep one")),
        (Some(path), false) => {
            Audit::check_file(path, subject).map(|_| ()).map_err(|error| problem(error.to_string()))
        }
        (None, true) => Ok(()),
        (None, false) => Err(problem(
            "a judge that nobody audited is no reward: make an audit with `posttrain feedback audit --rubric` and name it \
             with `audit = \"FILE\"`, or say `unaudited = true`",
        )),
    }
}

fn chat(options: &Options) -> Result<ServerChat, FeedbackError> {
    let mut client = ClientOptions::new(&*options.url);
    client.api_key = options.api_key_file.as_deref().map(read_key).transpose()?;
    client.http.timeout_s = options.timeout_s;
    client.retry.max_retries = options.max_retries;
    client.requests_per_minute = options.requests_per_minute;
    client.cache_dir = options.cache_dir.clone();
    ServerChat::new(Client::new(client)?, Some(&options.model), options.max_parallel, Price::default())
}

impl Verifier for LlmJudge {
    fn name(&self) -> &'static str {
        LLM_JUDGE
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        self.verify_all(std::slice::from_ref(question)).remove(0)
    }

    fn verify_all(&self, questions: &[Question<'_>]) -> Vec<Verdict> {
        // An empty reply needs no judge.
        let is_empty = |question: &Question<'_>| question.reply.trim().is_empty();
        let asks: Vec<Ask> = questions
            .iter()
            .filter(|question| !is_empty(question))
            .flat_map(|question| self.grade.asks(&[Turn::user(question.prompt)], question.reply))
            .collect();
        let answers = match self.chat.ask_all(&asks, &self.grade.ask_options()) {
            Ok(answers) => answers,
            Err(error) => return questions.iter().map(|_| Verdict::skip(error.to_string())).collect(),
        };
        let mut answers = answers.chunks(self.grade.votes);
        let verdict = |question: &Question<'_>| {
            if is_empty(question) {
                return Verdict::fail("the reply is empty");
            }
            self.verdict(answers.next().expect("there are answers to each reply"))
        };
        questions.iter().map(verdict).collect()
    }
}

impl LlmJudge {
    fn verdict(&self, answers: &[Result<crate::Answer, String>]) -> Verdict {
        let grade = |answer: &Result<crate::Answer, String>| {
            let text = &answer.as_ref().ok()?.text;
            verdict::grade(text, self.grade.scale)
        };
        let grades: Vec<f64> = answers.iter().filter_map(grade).collect();
        if grades.is_empty() {
            let reason = match answers.first() {
                Some(Err(reason)) => format!("the judge failed: {reason}"),
                Some(Ok(answer)) => {
                    format!(
                        "no grade in the judge's answer: {}",
                        answer.text.chars().take(80).collect::<String>()
                    )
                }
                None => "the judge was not asked".to_owned(),
            };
            return Verdict::skip(reason);
        }
        let mean = grades.iter().sum::<f64>() / grades.len() as f64;
        let score = (mean - 1.0) / f64::from(self.grade.scale - 1);
        Verdict::scored(score, format!("graded {mean} of {}", self.grade.scale))
    }
}
