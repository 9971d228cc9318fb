//! Several benchmarks of several models: asked one after the other, written as they are done, compared question by question.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::error::{EvalError, Result};
use crate::judge::Company;
use crate::results::{self, BenchmarkResult, Metric, Results, Sample};
use crate::run::Prepared;
use crate::stats::{Comparison, compare};
use crate::subject::Subject;

/// The file that says how models differ.
pub const COMPARISON: &str = "comparison.json";

/// One model's results and questions.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The summary.
    pub results: Results,
    /// For each benchmark, every question.
    pub samples: Vec<Vec<Sample>>,
}

/// Sees how far an evaluation is.
pub trait SuiteWatch {
    /// A model is about to be asked the questions of a benchmark.
    fn begins(&mut self, _model: &str, _benchmark: &str, _n_questions: usize) {}
    /// So many questions are done.
    fn progress(&mut self, _done: usize, _of: usize) {}
    /// A benchmark is done; the model was made for `max_length` tokens.
    fn ended(&mut self, _result: &BenchmarkResult, _max_length: usize) {}
}

/// Sees nothing.
pub struct Unwatched;

impl SuiteWatch for Unwatched {}

/// Where a model's results go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Target<'a> {
    /// The folder; written after each benchmark, so that an error in a later one, or a machine that stops, takes none of them away.
    pub folder: Option<&'a Path>,
    /// Whether benchmarks that the folder has, asked in the same way, are taken from it.
    pub goes_on: bool,
}

/// Asks a model the questions of every benchmark; `None` if it was asked to stop, which is looked at between benchmarks.
///
/// # Errors
/// If the model cannot be asked, or results cannot be written.
pub fn measure(
    subject: &Subject<'_>,
    benchmarks: &[Prepared],
    company: &Company<'_>,
    target: Target<'_>,
    stop: &AtomicBool,
    watch: &mut dyn SuiteWatch,
) -> Result<Option<Measured>> {
    let kept = target.folder.filter(|_| target.goes_on).and_then(|folder| read(folder).ok());
    let mut measured = Measured {
        results: Results {
            format: results::FORMAT,
            posttrain: env!("CARGO_PKG_VERSION").to_owned(),
            model: subject.name.to_owned(),
            dtype: format!("{:?}", subject.dtype).to_lowercase(),
            benchmarks: Vec::new(),
        },
        samples: Vec::new(),
    };
    for benchmark in benchmarks {
        if let Some((result, samples)) = kept.as_ref().and_then(|kept| kept.of(benchmark, company)) {
            measured.results.benchmarks.push(result);
            measured.samples.push(samples);
            continue;
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        watch.begins(subject.name, benchmark.name(), benchmark.items().len());
        let n = benchmark.items().len();
        let (result, samples) =
            benchmark.measure(subject, company, &mut |done, _| watch.progress(done, n))?;
        watch.ended(&result, subject.max_length());
        measured.results.benchmarks.push(result);
        measured.samples.push(samples);
        if let Some(folder) = target.folder {
            results::write(folder, &measured.results, &measured.samples)?;
        }
    }
    Ok(Some(measured))
}

/// Reads what [`measure`] left.
///
/// # Errors
/// [`EvalError::Io`], [`EvalError::Results`].
pub fn read(folder: &Path) -> Result<Measured> {
    let (folder, results) = results::read(folder)?;
    let samples = results.benchmarks.iter().map(|result| results::read_samples(&folder, result));
    let samples = samples.collect::<Result<_>>()?;
    Ok(Measured { results, samples })
}

impl Measured {
    /// What is there of a benchmark, if it was asked as it would be now.
    fn of(&self, benchmark: &Prepared, company: &Company<'_>) -> Option<(BenchmarkResult, Vec<Sample>)> {
        let at = self.results.benchmarks.iter().position(|result| result.benchmark == benchmark.name())?;
        let result = &self.results.benchmarks[at];
        (result.asked == benchmark.asked(company)).then(|| (result.clone(), self.samples[at].clone()))
    }
}

/// Two models on one benchmark, by its first metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// The benchmark with its options.
    pub benchmark: String,
    /// The metric.
    pub metric: String,
    /// The model that is compared with.
    pub base: String,
    /// The model that is compared.
    pub model: String,
    /// What was gained: negative is worse, whichever way the metric goes; relative where the metric is exponential.
    pub gain: f64,
    /// Its 95 % interval.
    pub gain95: (f64, f64),
    /// The metric of the model that is compared with.
    #[serde(skip)]
    pub of: Metric,
    /// Of the questions' means, before they are scaled.
    #[serde(flatten)]
    pub comparison: Comparison,
}

/// Compares two models on all benchmarks of the first; `seed` keys the bootstrap.
pub fn compare_two(base: &Measured, model: &Measured, seed: u64) -> Vec<Compared> {
    let mut all = Vec::new();
    let benchmarks = base.results.benchmarks.iter().zip(&base.samples).zip(&model.samples);
    for ((result, before), after) in benchmarks {
        let Some(metric) = result.main() else { continue };
        let pairs = before.iter().zip(after).filter_map(|(before, after)| {
            let ((before, _), (after, weight)) = (before.score(&metric.name)?, after.score(&metric.name)?);
            Some((before, after, weight))
        });
        let comparison = compare(&pairs.collect::<Vec<_>>(), seed);
        let (low, high) = metric.loss_interval(comparison.interval95);
        all.push(Compared {
            benchmark: result.benchmark.clone(),
            metric: metric.name.clone(),
            base: base.results.model.clone(),
            model: model.results.model.clone(),
            // Not -0 where there is no difference.
            gain: 0.0 - metric.loss(comparison.difference),
            gain95: (0.0 - high, 0.0 - low),
            of: metric.clone(),
            comparison,
        });
    }
    all
}

/// Every model compared with each before it, the pairs with the first model first.
pub fn compare_pairwise(measured: &[Measured], seed: u64) -> Vec<Compared> {
    let pairs = (0..measured.len()).flat_map(|i| (i + 1..measured.len()).map(move |j| (i, j)));
    pairs.flat_map(|(i, j)| compare_two(&measured[i], &measured[j], seed)).collect()
}

/// Writes comparisons beside the models' folders.
///
/// # Errors
/// [`EvalError::Io`].
pub fn write_comparison(folder: &Path, compared: &[Compared]) -> Result<()> {
    let text = serde_json::to_string_pretty(compared).expect("comparisons are JSON") + "\n";
    let path = folder.join(COMPARISON);
    pt_core::atomic_file::write(&path, text.as_bytes()).map_err(EvalError::io("write", &path))
}

/// The folder, in `out`, of one of `n_models` models: `out` itself where there is one.
pub fn folder_of(out: &Path, name: &str, n_models: usize) -> std::path::PathBuf {
    if n_models == 1 {
        return out.to_owned();
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '_' };
    out.join(name.trim_matches('/').chars().map(plain).collect::<String>())
}
