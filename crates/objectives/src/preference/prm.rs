//! Process reward models: is each step of a solution right.
//!
//! ```text
//! one output s:  ℓ = −t log σ(s) − (1 − t) log σ(−s)
//! two outputs:   ℓ = −t log p_1 − (1 − t) log p_0,  p = softmax(s)
//! ```
//!
//! where t in [0, 1] is the step's label ([`Scores::targets`]), 0 or 1, or soft as from Monte-Carlo rollouts. The loss is the mean
//! over the step's scored rows, weighted by [`Scores::weights`]. Sources: Lightman et al. 2023, "Let's verify step by step"
//! (arXiv:2305.20050); soft labels: Wang et al. 2023, Math-Shepherd (arXiv:2312.08935), section 3.3. Two outputs and hard labels
//! are TRL's `PRMTrainer` (token classification), whose mean is over each micro-batch's steps.
//!
//! Metrics: `accuracy` over steps, and over those that are `wrong` and `right`; `brier`, the mean of (p − t)²;
//! `first_error_accuracy` over completions: whether the first step judged wrong is the first one that is (or neither has one), and
//! over those with an error (`wrong`) and without (`right`), whose harmonic mean is the F1 of ProcessBench (Zheng et al. 2024,
//! arXiv:2412.06559). A soft label above one half counts as right.

use pt_core::catalogue::OptionInfo;
use serde::{Deserialize, Serialize};

use super::math::logistic;
use crate::catalogue::{ObjectiveInfo, bad_option, parse};
use crate::{
    Completion, Metric, Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, Scores, TokenBatch,
};

const NAME: &str = "prm";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "process reward model: is each step of a solution right",
    source: "Lightman et al. 2023, arXiv:2305.20050; soft labels: arXiv:2312.08935",
    equation: "-t * log p(right) - (1 - t) * log p(wrong) at the end of each step",
    options: &[OptionInfo {
        name: "n_outputs",
        kind: "1 or 2",
        default: "2",
        doc: "outputs of the score head: 2 classes (softmax, as TRL), or 1 (sigmoid)",
    }],
    build: |options| Ok(Box::new(Prm::new(parse(NAME, options)?)?)),
};

/// Options of [`Prm`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrmConfig {
    /// Outputs of the score head.
    pub n_outputs: usize,
}

impl Default for PrmConfig {
    fn default() -> PrmConfig {
        PrmConfig { n_outputs: 2 }
    }
}

/// The loss of a process reward model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prm {
    n_outputs: usize,
}

impl Prm {
    /// The objective with these options.
    ///
    /// # Errors
    /// [`ObjectiveError::Catalogue`] for a value out of range.
    pub fn new(config: PrmConfig) -> Result<Prm, ObjectiveError> {
        let n_outputs = config.n_outputs;
        match n_outputs {
            1 | 2 => Ok(Prm { n_outputs }),
            _ => Err(bad_option(NAME, format!("n_outputs is {n_outputs}, expected 1 or 2"))),
        }
    }

    /// The log-odds that a step is right.
    fn log_odds(&self, scores: Scores<'_>, row: usize) -> f64 {
        let outputs = &scores.values[row * self.n_outputs..];
        match self.n_outputs {
            1 => f64::from(outputs[0]),
            _ => f64::from(outputs[1]) - f64::from(outputs[0]),
        }
    }

    fn is_judged_right(&self, scores: Scores<'_>, row: usize) -> bool {
        self.log_odds(scores, row) > 0.0
    }

    /// Of a completion with scored rows: whether the first error is found, and whether there is none.
    fn finds_first_error(&self, scores: Scores<'_>, completion: &Completion) -> Option<(bool, bool)> {
        let rows = || completion.scores.clone().filter(|&row| scores.weights[row] > 0.0);
        rows().next()?;
        let judged = rows().find(|&row| !self.is_judged_right(scores, row));
        let labelled = rows().find(|&row| !is_right(scores, row));
        Some((judged == labelled, labelled.is_none()))
    }

    fn metrics(&self, batch: &TokenBatch<'_>, scores: Scores<'_>) -> Vec<Metric> {
        let mean = |name| Metric::mean(name, 0.0, 0.0);
        let (mut all, mut brier) = (mean("accuracy"), mean("brier"));
        let mut of_label = [mean("accuracy/wrong"), mean("accuracy/right")];
        for (row, weight) in weighted(scores) {
            let agrees = self.is_judged_right(scores, row) == is_right(scores, row);
            add(&mut all, f64::from(u8::from(agrees)), weight);
            add(&mut of_label[usize::from(is_right(scores, row))], f64::from(u8::from(agrees)), weight);
            let probability = 1.0 / (1.0 + (-self.log_odds(scores, row)).exp());
            add(&mut brier, (probability - f64::from(scores.targets[row])).powi(2), weight);
        }
        let mut first_error = mean("first_error_accuracy");
        let mut by_kind = [mean("first_error_accuracy/wrong"), mean("first_error_accuracy/right")];
        for (found, has_none) in batch.completions.iter().filter_map(|c| self.finds_first_error(scores, c)) {
            add(&mut first_error, f64::from(u8::from(found)), 1.0);
            add(&mut by_kind[usize::from(has_none)], f64::from(u8::from(found)), 1.0);
        }
        [vec![all], of_label.to_vec(), vec![brier, first_error], by_kind.to_vec()].concat()
    }
}

fn add(metric: &mut Metric, value: f64, weight: f64) {
    metric.sum += weight * value;
    metric.weight += weight;
}

/// Whether a step is right, or more likely so than not.
fn is_right(scores: Scores<'_>, row: usize) -> bool {
    scores.targets[row] > 0.5
}

/// The rows that count, and their weights.
fn weighted(scores: Scores<'_>) -> impl Iterator<Item = (usize, f64)> {
    scores.weights.iter().enumerate().filter(|(_, w)| **w > 0.0).map(|(row, &w)| (row, f64::from(w)))
}

impl Objective for Prm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn needs(&self) -> Needs {
        Needs { score_outputs: self.n_outputs, no_logp: true, ..Needs::default() }
    }

    fn weight(&self, batch: &TokenBatch<'_>) -> f64 {
        batch.scores.map_or(0.0, |scores| scores.weights.iter().map(|&w| f64::from(w)).sum())
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        batch.check(NAME, self.needs())?;
        let scores = super::scores(NAME, batch, self.n_outputs)?;
        if let Some((row, _)) = weighted(scores).find(|(row, _)| !(0.0..=1.0).contains(&scores.targets[*row]))
        {
            let value = scores.targets[row];
            return Err(ObjectiveError::Target { name: NAME, row, value });
        }
        let mut d_scores = vec![0.0; scores.values.len()];
        let mut loss = 0.0;
        for (row, weight) in weighted(scores) {
            let share = weight / step.total_weight();
            let (row_loss, d) = logistic(self.log_odds(scores, row), 1.0 - f64::from(scores.targets[row]));
            loss += share * row_loss;
            let last = (row + 1) * self.n_outputs - 1;
            d_scores[last] = (share * d) as f32;
            if self.n_outputs == 2 {
                d_scores[last - 1] = (-share * d) as f32;
            }
        }
        Ok(ObjectiveOutput {
            loss,
            d_logp: vec![0.0; batch.logp.len()],
            d_scores: Some(d_scores),
            metrics: self.metrics(batch, scores),
            ..ObjectiveOutput::default()
        })
    }
}
