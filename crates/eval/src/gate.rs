//! Regression gate: has a model lost more than is allowed, and where?

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::error::{EvalError, Result};
use crate::results::{BenchmarkResult, Sample, read, read_samples};
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
    /// Questions that were right before and are not after, and the other way round, where they are right or wrong.
    pub forgotten_gained: Option<(usize, usize)>,
    /// The exact McNemar test.
    pub mcnemar_p: Option<f64>,
    /// Whether the loss fails the gate.
    pub fails: bool,
}

/// What the gate found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gate {
    /// Benchmarks and their categories, in the order of the results.
    pub changes: Vec<Change>,
    /// Benchmarks that only one of the two has.
    pub unpaired: Vec<String>,
}

impl Gate {
    /// Whether nothing failed.
    pub fn passes(&self) -> bool {
        !self.changes.iter().any(|change| change.fails)
    }
}

/// Compares two models' results.
///
/// # Errors
/// If results cannot be read, have no benchmark in common, or asked it differently.
pub fn gate(base: &Path, new: &Path, options: &GateOptions) -> Result<Gate> {
    let ((base_folder, base), (new_folder, new)) = (read(base)?, read(new)?);
    let (mut changes, mut unpaired) = (Vec::new(), Vec::new());
    for after in &new.benchmarks {
        let Some(before) = base.benchmarks.iter().find(|result| result.benchmark == after.benchmark) else {
            unpaired.push(after.benchmark.clone());
            continue;
        };
        check_alike(&base_folder, before, after)?;
        let samples = (read_samples(&base_folder, before)?, read_samples(&new_folder, after)?);
        changes.extend(changes_of(after, &samples.0, &samples.1, options));
    }
    // What the new results lack may be what was lost.
    let is_missing =
        |before: &&BenchmarkResult| !new.benchmarks.iter().any(|a| a.benchmark == before.benchmark);
    unpaired.extend(base.benchmarks.iter().filter(is_missing).map(|result| result.benchmark.clone()));
    if changes.is_empty() {
        let problem = "the two results have no benchmark in common: evaluate both with the same --benchmarks";
        return Err(EvalError::Results { path: new_folder, problem: problem.to_owned() });
    }
    Ok(Gate { changes, unpaired })
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

fn changes_of(
    result: &BenchmarkResult,
    before: &[Sample],
    after: &[Sample],
    options: &GateOptions,
) -> Vec<Change> {
    let Some(metric) = result.main() else { return Vec::new() };
    let by_key: BTreeMap<&str, &Sample> = before.iter().map(|sample| (sample.key.as_str(), sample)).collect();
    let mut all: Vec<(f64, f64, f64)> = Vec::new();
    let mut by_category: BTreeMap<&str, Vec<(f64, f64, f64)>> = BTreeMap::new();
    for sample in after {
        let earlier = by_key.get(sample.key.as_str()).and_then(|earlier| earlier.score(&metric.name));
        if let (Some((before, _)), Some((after, weight))) = (earlier, sample.score(&metric.name)) {
            all.push((before, after, weight));
            by_category.entry(&sample.category).or_default().push((before, after, weight));
        }
    }
    let change = |category: Option<&str>, pairs: &[(f64, f64, f64)], counts: bool| {
        let found = compare(pairs, SEED);
        let sign = if metric.higher_is_better { -1.0 } else { 1.0 };
        let scale = |x: f64| if metric.is_exponential { x.exp_m1() } else { x };
        let ends = [scale(sign * found.interval95.0), scale(sign * found.interval95.1)];
        let interval95 = (ends[0].min(ends[1]), ends[0].max(ends[1]));
        let loss = scale(sign * found.difference);
        let fails = counts && fails(loss, interval95, options);
        let value = |x: f64| if metric.is_exponential { x.exp() } else { x };
        Change {
            benchmark: result.benchmark.clone(),
            category: category.map(str::to_owned),
            metric: metric.name.clone(),
            before: value(found.before),
            after: value(found.after),
            loss,
            interval95,
            n: found.n,
            forgotten_gained: forgotten(&found, pairs),
            mcnemar_p: found.mcnemar_p,
            fails,
        }
    };
    let mut changes = vec![change(None, &all, true)];
    if by_category.len() > 1 {
        let categories = by_category.iter();
        changes.extend(categories.map(|(name, pairs)| change(Some(name), pairs, options.per_category)));
    }
    changes
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
