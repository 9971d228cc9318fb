//! The list of benchmarks, from which names, options and manual pages come.

use pt_core::catalogue::{OptionInfo, check_options, find};
use pt_tasks::GeneratedSource;

use crate::benchmarks;
use crate::error::{EvalError, Result};
use crate::item::{Answer, Item, Marks};
use crate::judge::Judged;
use crate::source::Source;

/// What the catalogue lists, for messages.
pub(crate) const KIND: &str = "benchmark";
/// The option every benchmark with files has.
pub(crate) const DATA: OptionInfo = OptionInfo {
    name: "data",
    kind: "path",
    default: "",
    doc: "the benchmark's file or folder, where --data-dir does not have it",
};

/// A number that a benchmark gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricInfo {
    /// Its name in results.
    pub name: &'static str,
    /// What it is.
    pub doc: &'static str,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// What is made of the weighted mean of the marks.
    pub scale: Scale,
}

/// What is made of a mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Nothing: it is a share.
    Share,
    /// Nothing: it is a number of another kind.
    Number,
    /// Its exponential: the mean is in nats.
    Exponential,
}

impl MetricInfo {
    /// A share of which more is better.
    pub(crate) const fn share(name: &'static str, doc: &'static str) -> MetricInfo {
        MetricInfo { name, doc, higher_is_better: true, scale: Scale::Share }
    }

    /// The scaled mean.
    pub fn scaled(&self, mean: f64) -> f64 {
        match self.scale {
            Scale::Share | Scale::Number => mean,
            Scale::Exponential => mean.exp(),
        }
    }
}

/// An entry of [`BENCHMARKS`].
pub struct BenchmarkInfo {
    /// Its name.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Raised whenever the questions, the prompt or the judgement change: results of two versions are not compared.
    pub version: u32,
    /// Where the questions and the prompt come from, and how it differs from others' versions.
    pub source: &'static str,
    /// The dataset on the hub.
    pub dataset: &'static str,
    /// Examples shown unless told otherwise.
    pub few_shot: usize,
    /// Tokens of a reply unless told otherwise; 0 where none is drawn.
    pub max_new_tokens: usize,
    /// What it measures; the first is the one that is compared.
    pub metrics: &'static [MetricInfo],
    /// Its options.
    pub options: &'static [OptionInfo],
    /// Makes its questions.
    pub load: fn(&Source<'_>) -> Result<Loaded>,
}

/// A benchmark with its questions.
pub enum Loaded {
    /// Questions with answers that rules can judge.
    Ruled(Box<dyn Benchmark>),
    /// Questions whose answers another model judges.
    Judged(Box<dyn Judged>),
}

/// Questions, and the judgement of answers.
pub trait Benchmark: Sync {
    /// The questions, in order.
    fn items(&self) -> &[Item];

    /// What an answer is worth. It never panics, whatever the answer.
    fn mark(&self, item: &Item, answer: &Answer<'_>) -> Marks;

    /// What many answers are worth, in order.
    fn mark_all(&self, answers: &[(&Item, Answer<'_>)]) -> Vec<Marks> {
        answers.iter().map(|(item, answer)| self.mark(item, answer)).collect()
    }
}

/// Every benchmark, in the order the manual lists them.
pub const BENCHMARKS: &[BenchmarkInfo] = &[
    benchmarks::gsm8k::INFO,
    benchmarks::math500::INFO,
    benchmarks::mbpp::INFO,
    benchmarks::humaneval::INFO,
    benchmarks::ifeval::INFO,
    benchmarks::mmlu::INFO,
    benchmarks::bbh::INFO,
    benchmarks::truthfulqa::INFO,
    benchmarks::xstest::INFO,
    benchmarks::mt_bench::INFO,
    benchmarks::win_rate::INFO,
    benchmarks::perplexity::INFO,
    benchmarks::generated::INFO,
];

/// A benchmark as it was asked for: `name?option=value&option=value`, or `generated:...`.
pub struct Chosen {
    /// The entry.
    pub info: &'static BenchmarkInfo,
    /// Its options.
    pub options: toml::Table,
    /// The name, its options sorted.
    pub name: String,
}

impl Chosen {
    /// Reads a name.
    ///
    /// # Errors
    /// For anything that is not understood, with the nearest name.
    pub fn parse(written: &str) -> Result<Chosen> {
        if GeneratedSource::is_generated(written) {
            let name = benchmarks::generated::canonical(written)?;
            let options = toml::Table::from_iter([("task".to_owned(), name.clone().into())]);
            return Ok(Chosen { info: &benchmarks::generated::INFO, options, name });
        }
        let (name, query) = written.split_once('?').unwrap_or((written, ""));
        let info = find(KIND, BENCHMARKS, |info| info.name, name)?;
        let mut options = toml::Table::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| EvalError::Name {
                name: written.to_owned(),
                problem: format!("`{pair}` is no `option=value`"),
            })?;
            if options.insert(key.to_owned(), value.into()).is_some() {
                let problem = format!("`{key}` is given twice");
                return Err(EvalError::Name { name: written.to_owned(), problem });
            }
        }
        check_options(KIND, info.name, info.options, &options)?;
        let shown =
            options.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
        let shown = shown.collect::<Vec<_>>().join("&");
        let name = if shown.is_empty() { name.to_owned() } else { format!("{name}?{shown}") };
        Ok(Chosen { info, options, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_their_options() {
        let chosen = Chosen::parse("mmlu?subjects=anatomy,astronomy&mode=generative").ok().unwrap();
        assert_eq!(chosen.name, "mmlu?mode=generative&subjects=anatomy,astronomy");
        let task = Chosen::parse("generated:sum?level=1").ok().unwrap();
        assert!(task.name.contains("split=heldout"), "{}", task.name);
        for (name, says) in [
            ("gms8k", "gsm8k"),
            ("mmlu?mod=x", "mode"),
            ("mmlu?mode", "no `option=value`"),
            ("mmlu?mode=a&mode=b", "twice"),
            ("generated:raw", "raw text"),
        ] {
            let error = Chosen::parse(name).err().unwrap().to_string();
            assert!(error.contains(says), "{name}: {error}");
        }
    }

    #[test]
    fn every_entry_is_whole() {
        for info in BENCHMARKS {
            assert!(
                info.version > 0 && !info.metrics.is_empty() && !info.summary.is_empty(),
                "{}",
                info.name
            );
            let mut names: Vec<_> = info.metrics.iter().map(|metric| metric.name).collect();
            names.dedup();
            assert_eq!(names.len(), info.metrics.len(), "{}", info.name);
        }
    }
}
