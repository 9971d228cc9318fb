//! What a stage did: also its `outcome.json`, which says that the stage is complete.

use std::path::PathBuf;

use pt_tasks::paired_gain;
use serde::{Deserialize, Serialize};

use crate::tasks::TaskScore;

/// What a stage did; also its `outcome.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Folder of the model or adapter, relative to the run.
    pub output: PathBuf,
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
