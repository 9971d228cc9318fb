//! What a stage did: also its `outcome.json`, which says that the stage is complete.

use std::path::PathBuf;

use pt_tasks::paired_gain;
use serde::{Deserialize, Serialize};

use crate::tasks::TaskScore;

/// What a stage did; also its `outcome.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// Identifies everything that decided the result: another run with a stage of this key may take it over.
    #[serde(default)]
    pub key: String,
    /// Steps taken.
    pub steps: u64,
    /// Held-out loss at the end, where there are held-out rows.
    pub eval_loss: Option<f64>,
    /// The step whose weights were written, where it is not the last.
    pub best_step: Option<u64>,
    /// Gains on tasks.
    pub gains: Vec<TaskGain>,
    /// What it made, relative to the run: the folder of a model or adapter, a file of rows, a folder of results.
    pub output: PathBuf,
    /// What a person should know of a stage that trained nothing, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
    /// What a feedback stage found: a name and a text each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<(String, String)>,
    /// The same by principle.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<StageTable>,
    /// What an eval stage measured, model by model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measures: Vec<Measure>,
    /// How every two of its models differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contrasts: Vec<Contrast>,
}

/// Figures side by side, for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageTable {
    /// What it shows.
    pub title: String,
    /// The columns.
    pub heads: Vec<String>,
    /// A text for each column.
    pub rows: Vec<Vec<String>>,
}

/// A model on a benchmark, by the benchmark's first metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// The model: a stage's name, or `base`.
    pub model: String,
    /// The benchmark with its options.
    pub benchmark: String,
    /// The metric.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// Its 95 % interval.
    pub interval95: Option<(f64, f64)>,
    /// Questions that were judged.
    pub n: usize,
    /// Whether more is better.
    pub higher_is_better: bool,
}

/// Two models on a benchmark, question by question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contrast {
    /// The benchmark with its options.
    pub benchmark: String,
    /// The model that is compared with.
    pub base: String,
    /// The model that is compared.
    pub model: String,
    /// What was gained: negative is worse, whichever way the metric goes.
    pub gain: f64,
    /// Its 95 % interval, paired.
    pub gain95: (f64, f64),
    /// The exact McNemar test, where answers are right or wrong.
    pub mcnemar_p: Option<f64>,
}

/// A task before and after a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskGain {
    /// The task.
    pub task: String,
    /// Number of problems.
    pub n: usize,
    /// Share solved before.
    pub before: f64,
    /// Share solved after.
    pub after: f64,
    /// After minus before.
    pub difference: f64,
    /// Its 95 % interval, paired (Newcombe 1998, method 10).
    pub interval95: (f64, f64),
    /// Exact McNemar test.
    pub p_value: f64,
    /// How often the reply after is better than the one before, half of the ties with it: right beats wrong, and of two replies as
    /// right the one that shows its working beats one that does not.
    #[serde(default)]
    pub win_rate: f64,
    /// Its 95 % interval (Agresti and Min 2005).
    #[serde(default)]
    pub win_rate_interval95: (f64, f64),
}

impl TaskGain {
    /// One for each task that was measured before and after.
    pub(crate) fn of_all(before: &[TaskScore], after: &[TaskScore]) -> Vec<TaskGain> {
        before.iter().zip(after).map(|(before, after)| TaskGain::of(before, after)).collect()
    }

    fn of(before: &TaskScore, after: &TaskScore) -> TaskGain {
        let gain = paired_gain(&before.passed(), &after.passed());
        let won = after.win_rate_over(before);
        TaskGain {
            task: after.task.clone(),
            n: gain.n,
            before: gain.before_mean,
            after: gain.after_mean,
            difference: gain.difference,
            interval95: gain.interval95,
            p_value: gain.p_value,
            win_rate: won.rate,
            win_rate_interval95: won.interval95,
        }
    }
}
