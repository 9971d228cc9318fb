//! The value loss of PPO: that of a value head beside a policy, and by itself that of a critic with weights of its own.
//!
//! ```text
//! v = ½ max((V − R)², (clip(V, V_old ± c) − R)²)                 mean over the scored rows of the step
//! ```
//!
//! Source: Schulman et al. 2017 (arXiv:1707.06347), equation 9, with the clipping of OpenAI's `baselines`, as in Ziegler et al. 2019 and
//! TRL's `PPOTrainer`. V is the score head's output, R [`crate::Scores::targets`], V_old [`crate::Scores::old_values`] (without them
//! nothing is clipped). Where the clipped error is the greater one, the gradient is 0.

use crate::{Metric, Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, Scores, TokenBatch};

/// A micro-batch's part of the value loss.
pub(super) struct ValuePart {
    /// Weighted sum of losses.
    pub(super) sum: f64,
    /// Derivative of the sum by each value.
    pub(super) slopes: Vec<f64>,
    pub(super) metrics: [Metric; 2],
}

/// The value loss of a micro-batch's scored rows, values clipped to `range` from the old ones.
pub(super) fn value_part(scores: Scores<'_>, range: f64) -> ValuePart {
    let mut slopes = vec![0.0; scores.values.len()];
    let (mut sum, mut weight, mut n_clipped) = (0.0, 0.0, 0.0);
    for (row, &w) in scores.weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
        let old = scores.old_values.map(|old| f64::from(old[row]));
        let (loss, slope, is_clipped) =
            value_loss(f64::from(scores.values[row]), f64::from(scores.targets[row]), old, range);
        let w = f64::from(w);
        sum += w * loss;
        weight += w;
        n_clipped += if is_clipped { w } else { 0.0 };
        slopes[row] = w * slope;
    }
    let metrics =
        [Metric::mean("loss/value_avg", sum, weight), Metric::mean("val/clipfrac_avg", n_clipped, weight)];
    ValuePart { sum, slopes, metrics }
}

/// Half the greater square, its derivative, and whether that is the clipped one.
fn value_loss(value: f64, target: f64, old: Option<f64>, range: f64) -> (f64, f64, bool) {
    let clipped = old.map_or(value, |old| value.clamp(old - range, old + range));
    let (plain, other) = (value - target, clipped - target);
    match other * other > plain * plain {
        // Within the range the two are one; beyond it the clipped value does not move.
        true => (other * other / 2.0, 0.0, true),
        false => (plain * plain / 2.0, plain, false),
    }
}

const NAME: &str = "value";

/// What a critic of its own minimises. No recipe names it: it is there where a stage has a critic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValueLoss {
    cliprange_value: f64,
}

impl ValueLoss {
    /// The loss, values clipped to `cliprange_value` from their old ones.
    pub fn new(cliprange_value: f64) -> ValueLoss {
        ValueLoss { cliprange_value }
    }
}

impl Objective for ValueLoss {
    fn name(&self) -> &'static str {
        NAME
    }

    fn needs(&self) -> Needs {
        Needs { score_outputs: 1, no_logp: true, ..Needs::default() }
    }

    fn weight(&self, batch: &TokenBatch<'_>) -> f64 {
        batch.scores.map_or(0.0, |scores| scores.weights.iter().map(|&w| f64::from(w)).sum())
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        batch.check(NAME, self.needs())?;
        let missing = ObjectiveError::Missing { name: NAME, what: "the score head's outputs" };
        let scores = batch.scores.ok_or(missing)?;
        let part = value_part(scores, self.cliprange_value);
        let total = step.total_weight();
        Ok(ObjectiveOutput {
            loss: part.sum / total,
            d_scores: Some(part.slopes.iter().map(|slope| (slope / total) as f32).collect()),
            metrics: part.metrics.to_vec(),
            ..ObjectiveOutput::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: [f32; 5] = [0.5, -1.0, 2.0, 0.0, 9.0];
    const OLD: [f32; 5] = [0.4, -0.5, 0.5, 0.3, 1.0];
    const WEIGHTS: [f32; 5] = [1.0, 0.5, 1.0, 1.0, 0.0];

    fn evaluate(values: &[f32; 5]) -> ObjectiveOutput {
        let scores =
            Scores { n_outputs: 1, values, targets: &TARGETS, weights: &WEIGHTS, old_values: Some(&OLD) };
        let batch = TokenBatch { scores: Some(scores), ..TokenBatch::default() };
        let loss = ValueLoss::new(0.2);
        loss.evaluate(&batch, &Normaliser::new(loss.weight(&batch)).unwrap()).unwrap()
    }

    /// The definition in f64, and its finite differences away from the kinks.
    #[test]
    fn loss_and_gradient_are_those_of_the_definition() {
        let values = [0.45, -0.9, 1.5, -0.4, 3.0];
        let definition = |values: &[f64]| {
            let term = |i: usize| {
                let (v, r, old) = (values[i], f64::from(TARGETS[i]), f64::from(OLD[i]));
                let clipped = v.max(old - 0.2).min(old + 0.2);
                f64::from(WEIGHTS[i]) * 0.5 * (v - r).powi(2).max((clipped - r).powi(2))
            };
            (0..5).map(term).sum::<f64>() / 3.5
        };
        let output = evaluate(&values);
        let wide: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
        assert!((output.loss - definition(&wide)).abs() < 1e-12);
        for i in 0..5 {
            let moved = |by: f64| {
                let mut moved = wide.clone();
                moved[i] += by;
                definition(&moved)
            };
            let difference = (moved(1e-4) - moved(-1e-4)) / 2e-4;
            let found = f64::from(output.d_scores.as_ref().unwrap()[i]);
            assert!((found - difference).abs() < 1e-6, "{i}: {found} and {difference}");
        }
        let clipped = output.metrics.iter().find(|m| m.name == "val/clipfrac_avg").unwrap();
        // Rows 1 and 2 moved towards their targets by more than the range; row 1 counts half.
        assert!((clipped.value().unwrap() - 1.5 / 3.5).abs() < 1e-12, "{clipped:?}");
    }

    #[test]
    fn values_that_are_no_numbers_are_refused() {
        let scores =
            Scores { n_outputs: 1, values: &[f32::NAN], targets: &[0.0], weights: &[1.0], old_values: None };
        let batch = TokenBatch { scores: Some(scores), ..TokenBatch::default() };
        let problem = ValueLoss::new(0.2).evaluate(&batch, &Normaliser::new(1.0).unwrap()).unwrap_err();
        assert!(matches!(problem, ObjectiveError::NonFinite { .. }), "{problem}");
    }

    /// TRL's own statements on recorded batches (`golden/rl/ppo.json`). Returns are rounded to f32 here.
    const GOLDEN_TOLERANCE: f64 = 1e-6;

    #[test]
    fn losses_and_gradients_are_trls() {
        let path = pt_core::testdata::workspace_root().join("golden/rl/ppo.json");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let rows =
            |value: &serde_json::Value| -> Vec<Vec<f64>> { serde_json::from_value(value.clone()).unwrap() };
        for case in golden["cases"].as_array().unwrap() {
            let batch = &golden["batches"][case["batch"].as_str().unwrap()];
            let last: Vec<usize> = serde_json::from_value(batch["sequence_lengths"].clone()).unwrap();
            let [old, change] = ["values", "vpred_change"].map(|name| rows(&batch[name]));
            let [returns, slopes] = ["returns", "d_vpred"].map(|name| rows(&case[name]));
            // TRL counts one position of padding, where its score stands.
            let places =
                (0..last.len()).flat_map(|i| (0..=(last[i] + 1).min(old[i].len() - 1)).map(move |t| (i, t)));
            let places: Vec<(usize, usize)> = places.collect();
            let pick = |from: &dyn Fn(usize, usize) -> f64| -> Vec<f32> {
                places.iter().map(|&(i, t)| from(i, t) as f32).collect()
            };
            let values = pick(&|i, t| old[i][t] + change[i][t]);
            let (targets, old) = (pick(&|i, t| returns[i][t]), pick(&|i, t| old[i][t]));
            let weights = vec![1.0; places.len()];
            let scores = Scores {
                n_outputs: 1,
                values: &values,
                targets: &targets,
                weights: &weights,
                old_values: Some(&old),
            };
            let batch = TokenBatch { scores: Some(scores), ..TokenBatch::default() };
            let number = |name: &str| case["options"][name].as_f64().unwrap();
            let loss = ValueLoss::new(number("cliprange_value"));
            let output = loss.evaluate(&batch, &Normaliser::new(loss.weight(&batch)).unwrap()).unwrap();
            let what = case["options"].to_string();
            let expected = case["vf_loss"].as_f64().unwrap();
            assert!(
                (output.loss / expected - 1.0).abs() < GOLDEN_TOLERANCE,
                "{what}: {} and {expected}",
                output.loss
            );
            for (&(i, t), d) in places.iter().zip(output.d_scores.unwrap()) {
                let (found, expected) = (number("vf_coef") * f64::from(d), slopes[i][t]);
                assert!(
                    (found - expected).abs() < GOLDEN_TOLERANCE,
                    "{what} [{i}, {t}]: {found} and {expected}"
                );
            }
            let clipped =
                output.metrics.iter().find(|m| m.name == "val/clipfrac_avg").unwrap().value().unwrap();
            assert!((clipped - case["vf_clipfrac"].as_f64().unwrap()).abs() < GOLDEN_TOLERANCE, "{what}");
        }
    }
}
