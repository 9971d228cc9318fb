//! The arrays objectives read, and what they give back.

use std::ops::Range;

use crate::{Objective, ObjectiveError};

/// What a completion is to its objective.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CompletionKind {
    /// One of a group of samples, or a sequence of its own.
    #[default]
    Sample,
    /// The preferred reply of a pair.
    Chosen,
    /// The other reply of a pair.
    Rejected,
    /// The gold reply of a triple (TPO).
    Gold,
    /// A reply labelled good (KTO, BCO).
    Desirable,
    /// A reply labelled bad (KTO, BCO).
    Undesirable,
    /// A reply to another prompt: it estimates a KL divergence and never trains (KTO).
    Mismatched,
}

/// A reply: a range of the predicted tokens, and what is known of it as a whole.
///
/// Completions of a group (a pair, or the samples of a prompt) are always in one micro-batch, one after the other; a pair is
/// chosen, then rejected (after the gold reply, if there is one).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completion {
    /// Its trained tokens, as a range of the batch's arrays; empty if none trains.
    pub tokens: Range<usize>,
    /// Its scored rows, as a range of [`Scores`]; empty without a score head.
    pub scores: Range<usize>,
    /// Which group it belongs to; unique within the step.
    pub group: usize,
    /// Its index among the completions of the step.
    pub index: usize,
    /// What it is.
    pub kind: CompletionKind,
    /// By how much the chosen reply should win (reward models); the same on both sides of a pair.
    pub margin: f32,
    /// Soft label: how likely the chosen reply is the better one, 1 for a plain pair; of a lone sample, how likely it beats
    /// its opponent (Nash-MD).
    pub label: f32,
    /// How much the group, pair or reply counts; 1 by default.
    pub weight: f32,
    /// Whether it was cut at the token limit.
    pub is_truncated: bool,
    /// Whether the reference policy wrote it (XPO).
    pub is_reference_sample: bool,
}

/// Outputs of a score head (reward, value, step labels) over S scored rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scores<'a> {
    /// Outputs per row: 1 for rewards and values, the number of classes or objectives otherwise.
    pub n_outputs: usize,
    /// `[S, n_outputs]`: what the head says.
    pub values: &'a [f32],
    /// `[S]`: what it should say: a step's label, a return; of a pair's rows, which output they are about, where a head has one
    /// for each objective.
    pub targets: &'a [f32],
    /// `[S]`: loss weights; at least 0.
    pub weights: &'a [f32],
    /// `[S]`: what the head said when the step's samples were drawn (value clipping).
    pub old_values: Option<&'a [f32]>,
}

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
    /// `[T]`: log Σ_v p_v², the log-probability that two draws agree (WPO).
    pub log_collision: Option<&'a [f32]>,
    /// `[T]`: log-probability under the reference policy.
    pub reference_logp: Option<&'a [f32]>,
    /// `[T]`: log-probability under the policy that began the passes over these samples.
    pub old_logp: Option<&'a [f32]>,
    /// `[T]`: log-probability under whatever sampled the token.
    pub sampler_logp: Option<&'a [f32]>,
    /// `[T]`: advantage of the token.
    pub advantages: Option<&'a [f32]>,
    /// `[T]`: divergence of the predicted distribution from the teacher's, as [`Needs::divergence`] says.
    pub divergence: Option<&'a [f32]>,
    /// The replies, in order; none where rows are plain sequences.
    pub completions: &'a [Completion],
    /// Outputs of the score head.
    pub scores: Option<Scores<'a>>,
}

/// Which divergence between the predicted distribution and a teacher's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// 0: forward KL, 1: reverse KL, between: generalised Jensen-Shannon.
    pub beta: f64,
    /// Divides the logits of both.
    pub temperature: f32,
}

/// Which optional arrays of a [`TokenBatch`] an objective reads. What is not needed may still be given.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Needs {
    /// [`TokenBatch::entropy`].
    pub entropy: bool,
    /// [`TokenBatch::mean_logp`].
    pub mean_logp: bool,
    /// [`TokenBatch::log_collision`].
    pub log_collision: bool,
    /// [`TokenBatch::reference_logp`].
    pub reference_logp: bool,
    /// [`TokenBatch::old_logp`].
    pub old_logp: bool,
    /// [`TokenBatch::sampler_logp`].
    pub sampler_logp: bool,
    /// [`TokenBatch::advantages`].
    pub advantages: bool,
    /// [`TokenBatch::divergence`], for which there must be a teacher.
    pub divergence: Option<Divergence>,
    /// [`TokenBatch::scores`]: the number of the score head's outputs; 0 for no head.
    pub score_outputs: usize,
    /// `true` where only scores are read, so that no head over the vocabulary is computed; `logp` may then be empty.
    pub no_logp: bool,
}

/// Which micro-batches are computed, without gradients, before a step begins, for what depends on the whole step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrePass {
    /// None.
    #[default]
    None,
    /// The completions of kind [`CompletionKind::Mismatched`], which the step itself then leaves out.
    Mismatched,
    /// All.
    All,
}

/// What a micro-batch must know of its whole optimiser step: the total weight, which every micro-batch's sum is divided by,
/// and what the objective found in its pre-pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Normaliser {
    total_weight: f64,
    totals: Vec<f64>,
    shared: Vec<f64>,
}

impl Normaliser {
    /// From the sum of [`Objective::weight`] over the step's micro-batches (of all workers).
    ///
    /// # Errors
    /// [`ObjectiveError::NothingTrained`] unless it is above zero and finite.
    pub fn new(total_weight: f64) -> Result<Normaliser, ObjectiveError> {
        if total_weight > 0.0 && total_weight.is_finite() {
            return Ok(Normaliser { total_weight, totals: Vec::new(), shared: Vec::new() });
        }
        Err(ObjectiveError::NothingTrained { total: total_weight })
    }

    /// For a step of these micro-batches, of which only weights and completions are read.
    ///
    /// # Errors
    /// As [`Normaliser::new`].
    pub fn of_step<'a>(
        objective: &dyn Objective,
        step: impl Iterator<Item = TokenBatch<'a>>,
    ) -> Result<Normaliser, ObjectiveError> {
        let (mut weight, mut totals) = (0.0, Vec::new());
        for batch in step {
            weight += objective.weight(&batch);
            let more = objective.totals(&batch);
            totals.resize(totals.len().max(more.len()), 0.0);
            totals.iter_mut().zip(more).for_each(|(total, more)| *total += more);
        }
        Ok(Normaliser::new(weight)?.with_totals(totals))
    }

    /// The total weight.
    pub fn total_weight(&self) -> f64 {
        self.total_weight
    }

    /// The same with the sums of [`Objective::totals`].
    #[must_use]
    pub fn with_totals(mut self, totals: Vec<f64>) -> Normaliser {
        self.totals = totals;
        self
    }

    /// The sums of [`Objective::totals`] over the step; empty if the objective has none.
    pub fn totals(&self) -> &[f64] {
        &self.totals
    }

    /// The same with what [`Objective::prepare`] found.
    #[must_use]
    pub fn with_shared(mut self, shared: Vec<f64>) -> Normaliser {
        self.shared = shared;
        self
    }

    /// What [`Objective::prepare`] found; empty without a pre-pass.
    pub fn shared(&self) -> &[f64] {
        &self.shared
    }
}

/// How a metric of several micro-batches comes from those of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduce {
    /// The weighted mean.
    #[default]
    Mean,
    /// The least; `sum` holds it and `weight` is above 0 if there is one.
    Min,
    /// The greatest; as `Min`.
    Max,
}

/// A figure that can be put together over micro-batches; usually the mean `sum / weight`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// Its key in `metrics.jsonl`, as TRL names it.
    pub name: &'static str,
    /// Weighted sum.
    pub sum: f64,
    /// Weight of the sum; 0 if this micro-batch says nothing about it.
    pub weight: f64,
    /// How it is put together.
    pub reduce: Reduce,
}

impl Metric {
    /// A mean.
    pub fn mean(name: &'static str, sum: f64, weight: f64) -> Metric {
        Metric { name, sum, weight, reduce: Reduce::Mean }
    }

    /// The least of `values`; says nothing if there are none.
    pub fn min(name: &'static str, values: impl Iterator<Item = f64>) -> Metric {
        let least = values.reduce(f64::min);
        Metric { name, sum: least.unwrap_or(0.0), weight: least.map_or(0.0, |_| 1.0), reduce: Reduce::Min }
    }

    /// The greatest of `values`; says nothing if there are none.
    pub fn max(name: &'static str, values: impl Iterator<Item = f64>) -> Metric {
        let greatest = values.reduce(f64::max);
        Metric {
            name,
            sum: greatest.unwrap_or(0.0),
            weight: greatest.map_or(0.0, |_| 1.0),
            reduce: Reduce::Max,
        }
    }

    /// The mean, least or greatest, if there is any weight.
    pub fn value(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| match self.reduce {
            Reduce::Mean => self.sum / self.weight,
            Reduce::Min | Reduce::Max => self.sum,
        })
    }

    fn merge(&mut self, more: &Metric) {
        match (self.reduce, self.weight > 0.0, more.weight > 0.0) {
            (Reduce::Mean, ..) => {
                self.sum += more.sum;
                self.weight += more.weight;
            }
            (_, _, false) => {}
            (_, false, true) => *self = *more,
            (Reduce::Min, true, true) => self.sum = self.sum.min(more.sum),
            (Reduce::Max, true, true) => self.sum = self.sum.max(more.sum),
        }
    }

    /// Adds the metrics of another micro-batch to `totals`, by name.
    pub fn accumulate(totals: &mut Vec<Metric>, more: &[Metric]) {
        for metric in more {
            match totals.iter_mut().find(|total| total.name == metric.name) {
                Some(total) => total.merge(metric),
                None => totals.push(*metric),
            }
        }
    }
}

/// A micro-batch's share of the step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectiveOutput {
    /// Its share of the loss; the shares of a step add up to the step's loss.
    pub loss: f64,
    /// `[T]`: gradient of the step's loss with respect to `logp`.
    pub d_logp: Vec<f32>,
    /// `[T]`: with respect to `entropy`, if the objective depends on it.
    pub d_entropy: Option<Vec<f32>>,
    /// `[T]`: with respect to `mean_logp`, if the objective depends on it.
    pub d_mean_logp: Option<Vec<f32>>,
    /// `[T]`: with respect to `divergence`, if the objective depends on it.
    pub d_divergence: Option<Vec<f32>>,
    /// `[S, n_outputs]`: with respect to the score head's outputs, if the objective depends on them.
    pub d_scores: Option<Vec<f32>>,
    /// What to report, weighted by the loss weights.
    pub metrics: Vec<Metric>,
}

impl<'a> TokenBatch<'a> {
    /// The same for an objective that reads scores only: no tokens, and completions without any.
    #[must_use]
    pub fn without_tokens(self) -> TokenBatch<'a> {
        TokenBatch { completions: self.completions, scores: self.scores, ..TokenBatch::default() }
    }

    /// Checks lengths, weights and the values of trained tokens.
    pub(crate) fn check(&self, name: &'static str, needs: Needs) -> Result<(), ObjectiveError> {
        let expected = if needs.no_logp { self.weights.len() } else { self.logp.len() };
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
            ("the log collision probability", self.log_collision, needs.log_collision),
            ("the reference log-probability", self.reference_logp, needs.reference_logp),
            ("the old log-probability", self.old_logp, needs.old_logp),
            ("the sampler's log-probability", self.sampler_logp, needs.sampler_logp),
            ("the advantage", self.advantages, needs.advantages),
            ("the divergence from the teacher", self.divergence, needs.divergence.is_some()),
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
        self.correct.map_or(Ok(()), |correct| fits("correctness", correct.len()))?;
        // Without tokens, their ranges mean nothing.
        if !needs.no_logp {
            self.check_completions()?;
        }
        self.check_scores(name, needs.score_outputs)
    }

    fn check_completions(&self) -> Result<(), ObjectiveError> {
        let mut end = 0;
        for (index, completion) in self.completions.iter().enumerate() {
            let Range { start, end: own_end } = completion.tokens;
            if start < end || own_end < start || own_end > self.logp.len() {
                let (found, expected) = (completion.tokens.clone(), end..self.logp.len());
                return Err(ObjectiveError::Completion { index, found, expected });
            }
            end = own_end;
        }
        Ok(())
    }

    fn check_scores(&self, name: &'static str, needed: usize) -> Result<(), ObjectiveError> {
        let Some(scores) = self.scores else {
            let missing = Err(ObjectiveError::Missing { name, what: "the score head's outputs" });
            return if needed > 0 { missing } else { Ok(()) };
        };
        let rows = scores.targets.len();
        for (what, found, expected) in [
            ("the score head's outputs", scores.values.len(), rows * scores.n_outputs.max(1)),
            ("the scores' weights", scores.weights.len(), rows),
            ("the old values", scores.old_values.map_or(rows, <[f32]>::len), rows),
        ] {
            if found != expected {
                return Err(ObjectiveError::Length { what, found, expected });
            }
        }
        let bad = scores.values.iter().position(|value| !value.is_finite());
        bad.map_or(Ok(()), |index| {
            Err(ObjectiveError::NonFinite { what: "the score", index, value: scores.values[index] })
        })
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
        let mut metric = Metric::mean(name, 0.0, 0.0);
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
