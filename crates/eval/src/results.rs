//! What an evaluation leaves: `results.json`, and for each benchmark a file with every question.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{EvalError, Result};
use crate::item::{Item, Mark};
use crate::stats::Estimate;

/// The version of the files' form.
pub const FORMAT: u32 = 1;
/// The summary's name.
pub const SUMMARY: &str = "results.json";
/// The folder of the files with every question.
pub const SAMPLES: &str = "samples";

/// A choice and how probable it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// The natural logarithm of its probability.
    pub logprob: f64,
    /// Whether every token of it is the most probable one.
    pub is_greedy: bool,
}

/// A reply and what it is worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// Its text.
    pub text: String,
    /// Whether it was cut at the token limit.
    pub is_truncated: bool,
    /// The answer that was found in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// By metric.
    pub scores: BTreeMap<String, f64>,
    /// Why.
    pub reason: String,
}

/// One question, what the model said, and what that is worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The question's name.
    pub key: String,
    /// What it is about.
    pub category: String,
    /// What the model was shown.
    pub prompt: String,
    /// What is right.
    pub gold: Value,
    /// What it said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replies: Vec<Reply>,
    /// How probable the choices were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Choice>,
    /// By metric; of several replies the mean. Empty if it could not be judged.
    pub scores: BTreeMap<String, f64>,
    /// How much the scores count, where that is not 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, f64>,
    /// Why, where there is no reply to say it of.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Whether the beginning of the prompt was left away, for want of room.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_prompt_cut: bool,
}

impl Sample {
    /// A judged question.
    pub fn new(item: &Item, replies: Vec<Reply>, choices: Vec<Choice>, marks: &[Mark]) -> Sample {
        let weights = marks.iter().filter(|mark| mark.weight != 1.0);
        Sample {
            key: item.key.clone(),
            category: item.category.clone(),
            prompt: item.prompt.text(),
            gold: item.gold.clone(),
            replies,
            choices,
            scores: marks.iter().map(|mark| (mark.metric.to_owned(), mark.value)).collect(),
            weights: weights.map(|mark| (mark.metric.to_owned(), mark.weight)).collect(),
            reason: String::new(),
            is_prompt_cut: false,
        }
    }

    /// A metric's value and weight.
    pub fn score(&self, metric: &str) -> Option<(f64, f64)> {
        let value = *self.scores.get(metric)?;
        Some((value, self.weights.get(metric).copied().unwrap_or(1.0)))
    }
}

/// A metric over all questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: f64,
    /// Its 95 % interval; `null` where one question says nothing of it.
    pub interval95: Option<(f64, f64)>,
    /// The standard error of the mean, before it is scaled.
    pub stderr: Option<f64>,
    /// Questions it was measured on.
    pub n: usize,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// Whether the value is the exponential of the questions' weighted mean.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_exponential: bool,
    /// The smallest true difference that another model's score on other questions would reveal four times out of five,
    /// before scaling.
    pub detectable: Option<f64>,
}

impl Metric {
    /// What is lost by a difference of two weighted means, `after - before`: positive is worse, whichever way the metric goes.
    /// Of an exponential metric the loss is relative, `exp(difference) - 1` where less is better.
    pub fn loss(&self, difference: f64) -> f64 {
        let worse = if self.higher_is_better { -difference } else { difference };
        if self.is_exponential { worse.exp_m1() } else { worse }
    }

    /// The interval of the loss from that of the difference.
    pub fn loss_interval(&self, (low, high): (f64, f64)) -> (f64, f64) {
        let ends = [self.loss(low), self.loss(high)];
        (ends[0].min(ends[1]), ends[0].max(ends[1]))
    }
}

/// A category's share of a benchmark, by the first metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Category {
    /// Questions.
    pub n: usize,
    /// The metric.
    pub value: f64,
    /// Its 95 % interval.
    pub interval95: Option<(f64, f64)>,
}

/// How a benchmark was asked. Results are compared only where this is the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// The version of task and prompt.
    pub version: u32,
    /// Examples shown.
    pub few_shot: usize,
    /// Whether questions went through the chat template.
    pub chat: bool,
    /// Replies to each question.
    pub samples: usize,
    /// Divides the logits.
    pub temperature: f64,
    /// Only the most probable tokens that together reach this probability.
    pub top_p: f64,
    /// Most tokens of a reply.
    pub max_new_tokens: usize,
    /// Keys all draws.
    pub seed: u64,
    /// Most questions.
    pub limit: Option<usize>,
    /// The hash of all prompts and gold answers: other questions, or another prompt, give another.
    pub questions: String,
    /// Who judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<String>,
    /// Who was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
}

/// A benchmark's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchmarkResult {
    /// The benchmark with its options.
    pub benchmark: String,
    /// Where questions and prompt come from.
    pub source: String,
    /// How it was asked.
    pub asked: Asked,
    /// Questions that were judged.
    pub n: usize,
    /// Questions that could not be.
    pub n_skipped: usize,
    /// Replies that were cut at the token limit.
    pub n_truncated: usize,
    /// Prompts whose beginning was left away, for want of room.
    pub n_prompts_cut: usize,
    /// The metrics; the first is the one that is compared.
    pub metrics: Vec<Metric>,
    /// By category, where there are several.
    pub categories: BTreeMap<String, Category>,
    /// The file with every question, in the folder of this one.
    pub samples_file: String,
}

impl BenchmarkResult {
    /// The metric that is compared.
    pub fn main(&self) -> Option<&Metric> {
        self.metrics.first()
    }
}

/// A model's results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// The program's version.
    pub posttrain: String,
    /// What the model is called.
    pub model: String,
    /// What computed with: the storage type.
    pub dtype: String,
    /// In the order they were asked for.
    pub benchmarks: Vec<BenchmarkResult>,
}

/// The interval and error of an estimate, if they are numbers.
pub(crate) fn finite(found: &Estimate, scaled: impl Fn(f64) -> f64) -> (Option<(f64, f64)>, Option<f64>) {
    let (low, high) = found.interval95;
    let interval = (low.is_finite() && high.is_finite()).then(|| (scaled(low), scaled(high)));
    (interval, found.stderr.is_finite().then_some(found.stderr))
}

/// A file name for a benchmark: its name where that is plain, with a hash of it where that has options.
pub(crate) fn samples_file(benchmark: &str) -> String {
    let plain: String =
        benchmark.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(60).collect();
    if plain == benchmark {
        return format!("{SAMPLES}/{plain}.jsonl");
    }
    format!("{SAMPLES}/{plain}-{}.jsonl", &pt_core::hash::of_bytes(benchmark.as_bytes())[..8])
}

/// Writes a model's results and questions into a folder. Each file appears whole or not at all, the summary last.
///
/// # Errors
/// [`EvalError::Io`].
pub fn write(folder: &Path, results: &Results, samples: &[Vec<Sample>]) -> Result<()> {
    let write = EvalError::io("write", folder);
    fs::create_dir_all(folder.join(SAMPLES)).map_err(write)?;
    for (result, samples) in results.benchmarks.iter().zip(samples) {
        let path = folder.join(&result.samples_file);
        pt_core::atomic_file::write_with(&path, |out| {
            for sample in samples {
                serde_json::to_writer(&mut *out, sample)?;
                out.write_all(b"\n")?;
            }
            Ok(())
        })
        .map_err(EvalError::io("write", &path))?;
    }
    let path = folder.join(SUMMARY);
    let text = serde_json::to_string_pretty(results).expect("results are JSON") + "\n";
    pt_core::atomic_file::write(&path, text.as_bytes()).map_err(EvalError::io("write", &path))
}

fn bad(path: &Path, problem: impl ToString) -> EvalError {
    EvalError::Results { path: path.to_owned(), problem: problem.to_string() }
}

/// Reads a model's results: a folder that [`write`] left, or its `results.json`.
///
/// # Errors
/// [`EvalError::Io`], [`EvalError::Results`].
pub fn read(location: &Path) -> Result<(PathBuf, Results)> {
    let path = if location.is_dir() { location.join(SUMMARY) } else { location.to_owned() };
    let text = fs::read_to_string(&path).map_err(EvalError::io("read", &path))?;
    let results: Results = serde_json::from_str(&text)
        .map_err(|e| bad(&path, format!("is no results file of `posttrain eval`: {e}")))?;
    if results.format != FORMAT {
        let found = results.format;
        return Err(bad(&path, format!("has format {found}, expected {FORMAT}: evaluate the model again")));
    }
    Ok((path.parent().unwrap_or(Path::new(".")).to_owned(), results))
}

/// Reads a benchmark's questions.
///
/// # Errors
/// [`EvalError::Io`], [`EvalError::Results`].
pub fn read_samples(folder: &Path, result: &BenchmarkResult) -> Result<Vec<Sample>> {
    let path = folder.join(&result.samples_file);
    let text = fs::read_to_string(&path).map_err(EvalError::io("read", &path))?;
    let line = |(i, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| bad(&path, format!("line {}: {e}", i + 1)))
    };
    text.lines().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_worse_whichever_way_the_metric_goes() {
        let metric = |higher_is_better, is_exponential| Metric {
            name: "m".to_owned(),
            value: 0.0,
            interval95: None,
            stderr: None,
            n: 1,
            higher_is_better,
            is_exponential,
            detectable: None,
        };
        let check = |metric: Metric, difference: f64, interval, loss: f64, (low, high): (f64, f64)| {
            let found = (metric.loss(difference), metric.loss_interval(interval));
            for (found, expected) in [(found.0, loss), (found.1.0, low), (found.1.1, high)] {
                assert!((found - expected).abs() < 1e-12, "{metric:?}: {found}, expected {expected}");
            }
        };
        check(metric(true, false), -0.1, (-0.2, 0.05), 0.1, (-0.05, 0.2));
        check(metric(false, false), 0.1, (-0.05, 0.2), 0.1, (-0.05, 0.2));
        // A perplexity of 11 after 10 is a tenth worse, one of 8 after 10 a fifth better.
        let (worse, better) = ((11.0_f64 / 10.0).ln(), (8.0_f64 / 10.0).ln());
        check(metric(false, true), worse, (better, worse), 0.1, (-0.2, 0.1));
    }
}
