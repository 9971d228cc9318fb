//! Regression gate: has a model lost more than is allowed, and where?

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use crate::error::{EvalError, Result};
use crate::results::{BenchmarkResult, Metric, Sample, read, read_samples};
use crate::stats::{Comparison, compare};

/// Keys the bootstrap.
const SEED: u64 = 0;

/// When a loss fails the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailOn {
    /// The measured loss is above the bound.
    Point,
    /// The measured loss is above the bound, and its 95 % interval excludes that there is none.
    Significant,
    /// The 95 % interval does not exclude a loss above the bound. With few questions nothing passes.
    Possible,
}

/// What is allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GateOptions {
    /// Most that may be lost: of a share, in its points (0.02 is two percent of the questions); of a perplexity, relative.
    pub max_loss: f64,
    /// When a loss fails.
    pub fail_on: FailOn,
    /// Whether every category is held to it, or only each benchmark as a whole.
    pub per_category: bool,
}

/// A benchmark, or a category of one, before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The benchmark with its options.
    pub benchmark: String,
    /// The category; none for the benchmark as a whole.
    pub category: Option<String>,
    /// The metric.
    pub metric: String,
    /// Before and after, as in the results.
    pub before: f64,
    /// After.
    pub after: f64,
    /// What was lost: positive is worse, whichever way the metric goes.
    pub loss: f64,
    /// Its 95 % interval.
    pub interval95: (f64, f64),
    /// Questions.
    pub n: usize,
    /// Questions that were judged before and are not after; they are in no other number.
    pub n_lost: usize,
    /// Questions that were right before and are not after, and the other way round, where they are right or wrong.
    pub forgotten_gained: Option<(usize, usize)>,
    /// The exact McNemar test.
    pub mcnemar_p: Option<f64>,
    /// Whether the loss fails the gate.
    pub fails: bool,
}

impl Change {
    /// `BENCHMARK`, or `BENCHMARK/CATEGORY`.
    pub fn name(&self) -> String {
        match &self.category {
            Some(category) => format!("{}/{category}", self.benchmark),
            None => self.benchmark.clone(),
        }
    }
}

/// What the gate found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gate {
    /// Benchmarks and their categories, in the order of the results.
    pub changes: Vec<Change>,
    /// Benchmarks that only the new results have.
    pub unpaired: Vec<String>,
    /// Benchmarks of the base that the new results lack. They may be what was lost: with one of them nothing passes.
    pub missing: Vec<String>,
    /// Benchmarks, and with `per_category` categories as `BENCHMARK/CATEGORY`, of which no question that was judged before is
    /// judged after. With one of them nothing passes.
    pub unjudged: Vec<String>,
}

impl Gate {
    /// Whether everything of the base was measured again, and nothing failed.
    pub fn passes(&self) -> bool {
        let failed = self.changes.iter().any(|change| change.fails);
        !failed && self.missing.is_empty() && self.unjudged.is_empty()
    }

    /// Why it does not pass, in words: what lost more than `max_loss`, what the results called `new` lack, and what is not judged.
    pub fn reasons(&self, max_loss: f64, new: &str) -> String {
        let failed: Vec<String> =
            self.changes.iter().filter(|change| change.fails).map(Change::name).collect();
        let reasons = [
            (&failed, format!("lost more than {max_loss}")),
            (&self.missing, format!("not in {new}")),
            (&self.unjudged, "no question that was judged before is judged now".to_owned()),
        ];
        let reasons = reasons.iter().filter(|(names, _)| !names.is_empty());
        reasons.map(|(names, why)| format!("{}: {why}", names.join(", "))).collect::<Vec<_>>().join("; ")
    }
}

/// Compares two models' results.
///
/// # Errors
/// If results cannot be read, have no benchmark in common, or asked it differently; if the base has no scores of one.
pub fn gate(base: &Path, new: &Path, options: &GateOptions) -> Result<Gate> {
    let ((base_folder, base), (new_folder, new)) = (read(base)?, read(new)?);
    let (mut changes, mut unpaired, mut unjudged) = (Vec::new(), Vec::new(), Vec::new());
    for after in &new.benchmarks {
        let Some(before) = base.benchmarks.iter().find(|result| result.benchmark == after.benchmark) else {
            unpaired.push(after.benchmark.clone());
            continue;
        };
        check_alike(&base_folder, before, after)?;
        let samples = (read_samples(&base_folder, before)?, read_samples(&new_folder, after)?);
        let Some(metric) = before.main() else {
            let problem = format!(
                "benchmark `{}` has no scores, so nothing can be lost from it: evaluate this model again",
                before.benchmark
            );
            return Err(EvalError::Results { path: base_folder, problem });
        };
        let found = changes_of(&after.benchmark, metric, &samples.0, &samples.1, options);
        changes.extend(found.0);
        unjudged.extend(found.1);
    }
    // What the new results lack may be what was lost.
    let is_missing =
        |before: &&BenchmarkResult| !new.benchmarks.iter().any(|a| a.benchmark == before.benchmark);
    let missing: Vec<String> =
        base.benchmarks.iter().filter(is_missing).map(|result| result.benchmark.clone()).collect();
    if changes.is_empty() && unjudged.is_empty() {
        let problem = "the two results have no benchmark in common: evaluate both with the same --benchmarks";
        return Err(EvalError::Results { path: new_folder, problem: problem.to_owned() });
    }
    Ok(Gate { changes, unpaired, missing, unjudged })
}

/// Refuses to compare what was asked differently.
fn check_alike(folder: &Path, before: &BenchmarkResult, after: &BenchmarkResult) -> Result<()> {
    if before.asked == after.asked {
        return Ok(());
    }
    let [a, b] = [&before.asked, &after.asked].map(|asked| serde_json::to_value(asked).expect("JSON"));
    let empty = serde_json::Map::new();
    let (a, b) = (a.as_object().unwrap_or(&empty), b.as_object().unwrap_or(&empty));
    let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
    let show = |value: Option<&serde_json::Value>| value.map_or("absent".to_owned(), ToString::to_string);
    let different: Vec<String> = keys
        .filter(|key| a.get(*key) != b.get(*key))
        .map(|key| format!("{key} {} and {}", show(a.get(key)), show(b.get(key))))
        .collect();
    let problem = format!(
        "benchmark `{}` was asked differently in the two results ({}): evaluate both alike",
        after.benchmark,
        different.join(", ")
    );
    Err(EvalError::Results { path: folder.to_owned(), problem })
}

/// The changes of a benchmark and its categories, and the names of those of which no question is left.
fn changes_of(
    benchmark: &str,
    metric: &Metric,
    before: &[Sample],
    after: &[Sample],
    options: &GateOptions,
) -> (Vec<Change>, Vec<String>) {
    let judged_before = || before.iter().filter(|sample| sample.score(&metric.name).is_some());
    let by_key: BTreeMap<&str, &Sample> =
        judged_before().map(|sample| (sample.key.as_str(), sample)).collect();
    let mut all: Vec<(f64, f64, f64)> = Vec::new();
    let mut by_category: BTreeMap<&str, Vec<(f64, f64, f64)>> = BTreeMap::new();
    for sample in after {
        let earlier = by_key.get(sample.key.as_str()).and_then(|earlier| earlier.score(&metric.name));
        if let (Some((before, _)), Some((after, weight))) = (earlier, sample.score(&metric.name)) {
            all.push((before, after, weight));
            by_category.entry(&sample.category).or_default().push((before, after, weight));
        }
    }
    let n_before = |category: Option<&str>| {
        judged_before().filter(|sample| category.is_none_or(|name| sample.category == name)).count()
    };
    let change = |category: Option<&str>, pairs: &[(f64, f64, f64)], counts: bool| {
        let found = compare(pairs, SEED);
        let (loss, interval95) = (metric.loss(found.difference), metric.loss_interval(found.interval95));
        let fails = counts && fails(loss, interval95, options);
        let value = |x: f64| if metric.is_exponential { x.exp() } else { x };
        Change {
            benchmark: benchmark.to_owned(),
            category: category.map(str::to_owned),
            metric: metric.name.clone(),
            before: value(found.before),
            after: value(found.after),
            loss,
            interval95,
            n: found.n,
            n_lost: n_before(category) - found.n,
            forgotten_gained: forgotten(&found, pairs),
            mcnemar_p: found.mcnemar_p,
            fails,
        }
    };
    if all.is_empty() {
        return (Vec::new(), vec![benchmark.to_owned()]);
    }
    let mut changes = vec![change(None, &all, true)];
    let earlier: BTreeSet<&str> = judged_before().map(|sample| sample.category.as_str()).collect();
    if earlier.len() > 1 {
        let categories = by_category.iter();
        changes.extend(categories.map(|(name, pairs)| change(Some(name), pairs, options.per_category)));
    }
    let gone = earlier.into_iter().filter(|name| options.per_category && !by_category.contains_key(name));
    (changes, gone.map(|name| format!("{benchmark}/{name}")).collect())
}

fn forgotten(found: &Comparison, pairs: &[(f64, f64, f64)]) -> Option<(usize, usize)> {
    let count = |before: f64, after: f64| pairs.iter().filter(|p| p.0 == before && p.1 == after).count();
    found.mcnemar_p.map(|_| (count(1.0, 0.0), count(0.0, 1.0)))
}

fn fails(loss: f64, interval95: (f64, f64), options: &GateOptions) -> bool {
    // A loss that equals the bound is allowed, also where rounding makes it a hair larger.
    let bound = options.max_loss + 1e-9;
    match options.fail_on {
        FailOn::Point => loss > bound,
        FailOn::Significant => loss > bound && interval95.0 > 0.0,
        FailOn::Possible => interval95.1 > bound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_looks_at_its_end_of_the_interval() {
        let check = |loss, interval95, expected: [bool; 3]| {
            for (fail_on, expected) in
                [FailOn::Point, FailOn::Significant, FailOn::Possible].into_iter().zip(expected)
            {
                let options = GateOptions { max_loss: 0.02, fail_on, per_category: false };
                assert_eq!(fails(loss, interval95, &options), expected, "{loss} {interval95:?} {fail_on:?}");
            }
        };
        check(0.05, (0.01, 0.09), [true, true, true]);
        check(0.05, (-0.01, 0.11), [true, false, true]);
        check(0.01, (-0.05, 0.07), [false, false, true]);
        check(0.01, (0.001, 0.019), [false, false, false]);
        check(0.02, (0.01, 0.02), [false, false, false]);
        check(-0.1, (-0.2, -0.05), [false, false, false]);
    }
}
