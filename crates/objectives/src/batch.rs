//! The arrays objectives read, and what they give back.

use crate::ObjectiveError;

/// One micro-batch: arrays over its T predicted tokens, in one order.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenBatch<'a> {
    /// `[T]`: log-probability of each token that was to be predicted.
    pub logp: &'a [f32],
    /// `[T]`: loss weights, at least 0; a token of weight 0 is not trained on and its values are not read.
    pub weights: &'a [f32],
    /// `[T]`: entropy of the predicted distribution, in nats.
    pub entropy: Option<&'a [f32]>,
    /// `[T]`: mean over the vocabulary of log p, that is, the log-probability of a uniform target.
    pub mean_logp: Option<&'a [f32]>,
    /// `[T]`: whether the most likely token was the right one.
    pub correct: Option<&'a [bool]>,
}

/// Which optional arrays of a [`TokenBatch`] an objective reads. What is not needed may still be given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// [`TokenBatch::entropy`].
    pub entropy: bool,
    /// [`TokenBatch::mean_logp`].
    pub mean_logp: bool,
}

/// The total weight of a whole optimiser step: what every micro-batch's sum is divided by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normaliser {
    total_weight: f64,
}

impl Normaliser {
    /// From the sum of [`crate::Objective::weight`] over the step's micro-batches (of all workers).
    ///
    /// # Errors
    /// [`ObjectiveError::NothingTrained`] unless it is above zero and finite.
    pub fn new(total_weight: f64) -> Result<Normaliser, ObjectiveError> {
        if total_weight > 0.0 && total_weight.is_finite() {
            return Ok(Normaliser { total_weight });
        }
        Err(ObjectiveError::NothingTrained { total: total_weight })
    }

    /// The total weight.
    pub fn total_weight(self) -> f64 {
        self.total_weight
    }
}

/// A mean that can be added up over micro-batches: `sum / weight`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// Its key in `metrics.jsonl`, as TRL names it.
    pub name: &'static str,
    /// Weighted sum.
    pub sum: f64,
    /// Weight of the sum; 0 if this micro-batch says nothing about it.
    pub weight: f64,
}

impl Metric {
    /// The mean, if there is any weight.
    pub fn value(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }

    /// Adds the metrics of another micro-batch to `totals`, by name.
    pub fn accumulate(totals: &mut Vec<Metric>, more: &[Metric]) {
        for metric in more {
            match totals.iter_mut().find(|total| total.name == metric.name) {
                Some(total) => {
                    total.sum += metric.sum;
                    total.weight += metric.weight;
                }
                None => totals.push(*metric),
            }
        }
    }
}

/// A micro-batch's share of the step.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectiveOutput {
    /// Its share of the loss; the shares of a step add up to the step's loss.
    pub loss: f64,
    /// `[T]`: gradient of the step's loss with respect to `logp`.
    pub d_logp: Vec<f32>,
    /// `[T]`: with respect to `entropy`, if the objective depends on it.
    pub d_entropy: Option<Vec<f32>>,
    /// `[T]`: with respect to `mean_logp`, if the objective depends on it.
    pub d_mean_logp: Option<Vec<f32>>,
    /// What to report, weighted by the loss weights.
    pub metrics: Vec<Metric>,
}

impl<'a> TokenBatch<'a> {
    /// Checks lengths, weights and the values of trained tokens.
    pub(crate) fn check(&self, name: &'static str, needs: Needs) -> Result<(), ObjectiveError> {
        let expected = self.logp.len();
        let fits = |what, found| {
            if found == expected { Ok(()) } else { Err(ObjectiveError::Length { what, found, expected }) }
        };
        fits("weights", self.weights.len())?;
        if let Some((index, &value)) =
            self.weights.iter().enumerate().find(|(_, w)| !(w.is_finite() && **w >= 0.0))
        {
            return Err(ObjectiveError::Weight { index, value });
        }
        self.check_values("the log-probability", self.logp)?;
        for (what, array, needed) in [
            ("the entropy", self.entropy, needs.entropy),
            ("the mean log-probability", self.mean_logp, needs.mean_logp),
        ] {
            match array {
                Some(values) => {
                    fits(what, values.len())?;
                    self.check_values(what, values)?;
                }
                None if needed => return Err(ObjectiveError::Missing { name, what }),
                None => {}
            }
        }
        self.correct.map_or(Ok(()), |correct| fits("correctness", correct.len()))
    }

    fn check_values(&self, what: &'static str, values: &[f32]) -> Result<(), ObjectiveError> {
        let bad = values.iter().zip(self.weights).position(|(v, &w)| w > 0.0 && !v.is_finite());
        bad.map_or(Ok(()), |index| Err(ObjectiveError::NonFinite { what, index, value: values[index] }))
    }

    /// The trained tokens: index and weight.
    pub(crate) fn trained(&self) -> impl Iterator<Item = (usize, f64)> + 'a {
        self.weights.iter().enumerate().filter(|(_, w)| **w > 0.0).map(|(i, &w)| (i, f64::from(w)))
    }

    /// The weighted mean of `value` over trained tokens, as a metric.
    pub(crate) fn metric(&self, name: &'static str, value: impl Fn(usize) -> f64) -> Metric {
        let mut metric = Metric { name, sum: 0.0, weight: 0.0 };
        for (i, w) in self.trained() {
            metric.sum += w * value(i);
            metric.weight += w;
        }
        metric
    }

    /// `nll`, and `entropy` and `mean_token_accuracy` where their arrays are given.
    pub(crate) fn language_metrics(&self) -> Vec<Metric> {
        let mut metrics = vec![self.metric("nll", |i| -f64::from(self.logp[i]))];
        metrics.extend(self.entropy.map(|entropy| self.metric("entropy", |i| f64::from(entropy[i]))));
        metrics
            .extend(self.correct.map(|c| self.metric("mean_token_accuracy", |i| f64::from(u8::from(c[i])))));
        metrics
    }
}
