//! Replies labelled good or bad, one by one.

use super::pairs::{self, Form, Side, Sum};
use crate::{Completion, CompletionKind, Metric, Normaliser, ObjectiveError, ObjectiveOutput, TokenBatch};

/// A labelled reply.
#[derive(Clone, Debug)]
pub(crate) struct Reply<'a> {
    pub(crate) side: Side<'a>,
    pub(crate) is_desirable: bool,
    /// How much it counts.
    pub(crate) weight: f64,
}

/// The labelled replies of a micro-batch; those that only estimate a divergence are left out.
pub(crate) fn replies<'a>(
    batch: &TokenBatch<'a>,
    name: &'static str,
) -> Result<Vec<Reply<'a>>, ObjectiveError> {
    let trains = batch.completions.iter().filter(|c| c.kind != CompletionKind::Mismatched);
    trains.map(|completion| reply(batch, completion, name)).collect()
}

/// A completion of any kind that is not a pair's, as a reply; bad if it is not desirable.
pub(crate) fn reply<'a>(
    batch: &TokenBatch<'a>,
    completion: &'a Completion,
    name: &'static str,
) -> Result<Reply<'a>, ObjectiveError> {
    let is_labelled = matches!(
        completion.kind,
        CompletionKind::Desirable | CompletionKind::Undesirable | CompletionKind::Mismatched
    );
    let weight = f64::from(completion.weight);
    if !(is_labelled && weight >= 0.0 && weight.is_finite()) {
        let found = format!("a {} reply of weight {weight}", pairs::kind_name(completion.kind));
        let expected = "a desirable or undesirable reply of a finite weight of at least 0";
        return Err(ObjectiveError::Group { name, group: completion.group, found, expected });
    }
    let side = pairs::side(batch, completion, Form::plain(name), usize::MAX)?;
    Ok(Reply { side, is_desirable: completion.kind == CompletionKind::Desirable, weight })
}

/// How much good and bad replies count, added up; `count` is that of a reply of some weight.
pub(crate) fn weights(batch: &TokenBatch<'_>, count: impl Fn(f64) -> f64) -> [f64; 2] {
    [CompletionKind::Desirable, CompletionKind::Undesirable].map(|kind| {
        let of_kind = batch.completions.iter().filter(|c| c.kind == kind);
        of_kind.map(|c| count(f64::from(c.weight))).sum()
    })
}

/// The whole objective: the mean of `loss(reply)`, which gives a loss and its derivative with respect to the log-ratio.
pub(crate) fn evaluate(
    batch: &TokenBatch<'_>,
    step: &Normaliser,
    replies: &[Reply<'_>],
    beta: f64,
    loss: impl Fn(&Reply<'_>) -> (f64, f64),
) -> Result<ObjectiveOutput, ObjectiveError> {
    let mut sum = Sum::new(batch);
    for reply in replies {
        let share = reply.weight / step.total_weight();
        let (loss, d) = loss(reply);
        sum.add_loss(share * loss);
        sum.add_side(&reply.side, share * d);
    }
    sum.finish(metrics(batch, step, replies, beta))
}

/// TRL's metrics. The margin is the difference of two means over the step, so it needs the step's weights
/// ([`weights`] as [`crate::Objective::totals`]); each micro-batch gives its share of it.
fn metrics(batch: &TokenBatch<'_>, step: &Normaliser, replies: &[Reply<'_>], beta: f64) -> Vec<Metric> {
    let mean = |name, is_desirable: bool, value: &dyn Fn(&Side<'_>) -> f64| {
        let mut metric = Metric::mean(name, 0.0, 0.0);
        for reply in replies.iter().filter(|reply| reply.is_desirable == is_desirable) {
            metric.sum += reply.weight * value(&reply.side);
            metric.weight += reply.weight;
        }
        metric
    };
    let reward = |side: &Side<'_>| beta * side.log_ratio();
    let (good, bad) = (mean("rewards/chosen", true, &reward), mean("rewards/rejected", false, &reward));
    let margin = match step.totals() {
        [n_good, n_bad] if *n_good > 0.0 && *n_bad > 0.0 => {
            let share = (good.weight + bad.weight) / (n_good + n_bad);
            Metric::mean("rewards/margins", good.sum / n_good - bad.sum / n_bad, share)
        }
        _ => Metric::mean("rewards/margins", 0.0, 0.0),
    };
    let mut metrics = vec![
        good,
        bad,
        margin,
        mean("logps/chosen", true, &|side| side.logp),
        mean("logps/rejected", false, &|side| side.logp),
    ];
    metrics.extend(batch.entropy.map(|entropy| batch.metric("entropy", |i| f64::from(entropy[i]))));
    metrics
}
