//! Pairs of replies as numbers, and the way back from a pair's gradient to its tokens'.

use std::ops::Range;

use crate::{Completion, CompletionKind, Metric, Normaliser, ObjectiveError, ObjectiveOutput, TokenBatch};

const EXPECTED: &str = "one chosen reply and then one rejected reply in the same micro-batch";
const EXPECTED_GOLD: &str =
    "one gold, one chosen and one rejected reply, in this order, in the same micro-batch";

/// How replies become numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Form {
    /// The objective, for messages.
    pub(crate) name: &'static str,
    /// Factor of the tokens past the length of the shorter reply (length desensitisation); 1 for none.
    pub(crate) ld_alpha: f64,
    /// Whether a gold reply stands before each pair.
    pub(crate) has_gold: bool,
}

impl Form {
    /// Plain pairs.
    pub(crate) const fn plain(name: &'static str) -> Form {
        Form { name, ld_alpha: 1.0, has_gold: false }
    }
}

/// A reply.
#[derive(Clone, Debug)]
pub(crate) struct Side<'a> {
    pub(crate) completion: &'a Completion,
    /// Its loss weights added up: the number of its trained tokens.
    pub(crate) length: f64,
    /// `Σ c·log p` over its tokens.
    pub(crate) logp: f64,
    /// The same under the reference; 0 without one.
    pub(crate) reference: f64,
    /// How many trained tokens count in full; those after it count `ld_alpha`.
    n_full: usize,
    ld_alpha: f64,
}

impl Side<'_> {
    /// `log π − log π_ref`.
    pub(crate) fn log_ratio(&self) -> f64 {
        self.logp - self.reference
    }

    /// The mean log-probability of a token.
    pub(crate) fn mean_logp(&self) -> f64 {
        self.logp / self.length
    }

    /// Calls `visit` with every trained token and its factor in `logp`.
    fn tokens(&self, batch: &TokenBatch<'_>, mut visit: impl FnMut(usize, f64)) {
        for (n, i) in trained(batch, self.completion.tokens.clone()).enumerate() {
            let factor = if n < self.n_full { 1.0 } else { self.ld_alpha };
            visit(i, factor * f64::from(batch.weights[i]));
        }
    }
}

/// Two replies to one prompt.
#[derive(Clone, Debug)]
pub(crate) struct Pair<'a> {
    pub(crate) chosen: Side<'a>,
    pub(crate) rejected: Side<'a>,
    pub(crate) gold: Option<Side<'a>>,
    /// Tokens of the group before its first reply: the prompt, trained on only if its weights say so.
    pub(crate) lead: Range<usize>,
    /// How much the pair counts.
    pub(crate) weight: f64,
    /// How likely the chosen reply is the better one.
    pub(crate) label: f64,
}

impl Pair<'_> {
    /// The pair with its replies exchanged.
    pub(crate) fn swapped(&self) -> Self {
        let mut swapped = self.clone();
        std::mem::swap(&mut swapped.chosen, &mut swapped.rejected);
        swapped
    }
}

/// The indices of trained tokens.
fn trained(batch: &TokenBatch<'_>, tokens: Range<usize>) -> impl Iterator<Item = usize> {
    tokens.filter(|&i| batch.weights[i] > 0.0)
}

/// The weight of a micro-batch's pairs, for [`crate::Objective::weight`].
pub(crate) fn weight(batch: &TokenBatch<'_>) -> f64 {
    let chosen = batch.completions.iter().filter(|c| c.kind == CompletionKind::Chosen);
    chosen.map(|c| f64::from(c.weight)).sum()
}

/// A reply as numbers; an error if none of its tokens trains.
pub(crate) fn side<'a>(
    batch: &TokenBatch<'a>,
    completion: &'a Completion,
    form: Form,
    n_full: usize,
) -> Result<Side<'a>, ObjectiveError> {
    let length = trained(batch, completion.tokens.clone()).map(|i| f64::from(batch.weights[i])).sum();
    if length <= 0.0 {
        let found = format!("a group whose {} reply has no trained token", kind_name(completion.kind));
        let expected = "replies of at least one token: remove it, or check truncation and masks";
        return Err(ObjectiveError::Group { name: form.name, group: completion.group, found, expected });
    }
    let mut side = Side { completion, length, logp: 0.0, reference: 0.0, n_full, ld_alpha: form.ld_alpha };
    let (mut logp, mut reference) = (0.0, 0.0);
    side.tokens(batch, |i, factor| {
        logp += factor * f64::from(batch.logp[i]);
        reference += batch.reference_logp.map_or(0.0, |r| factor * f64::from(r[i]));
    });
    (side.logp, side.reference) = (logp, reference);
    Ok(side)
}

/// How messages call a kind of reply.
pub(crate) fn kind_name(kind: CompletionKind) -> &'static str {
    match kind {
        CompletionKind::Sample => "sampled",
        CompletionKind::Chosen => "chosen",
        CompletionKind::Rejected => "rejected",
        CompletionKind::Gold => "gold",
        CompletionKind::Desirable => "desirable",
        CompletionKind::Undesirable => "undesirable",
        CompletionKind::Mismatched => "mismatched",
    }
}

/// The completions of each group, in order.
pub(crate) fn groups(completions: &[Completion]) -> impl Iterator<Item = &[Completion]> {
    completions.chunk_by(|a, b| a.group == b.group)
}

/// The pairs of a micro-batch.
pub(crate) fn pairs<'a>(batch: &TokenBatch<'a>, form: Form) -> Result<Vec<Pair<'a>>, ObjectiveError> {
    let mut found = Vec::new();
    let mut lead_start = 0;
    for group in groups(batch.completions) {
        found.push(pair(batch, group, lead_start..group[0].tokens.start, form)?);
        lead_start = group[group.len() - 1].tokens.end;
    }
    Ok(found)
}

fn pair<'a>(
    batch: &TokenBatch<'a>,
    group: &'a [Completion],
    lead: Range<usize>,
    form: Form,
) -> Result<Pair<'a>, ObjectiveError> {
    let [gold, chosen, rejected] = replies(group, form)?;
    let count = |c: &Completion| trained(batch, c.tokens.clone()).count();
    let shared = count(chosen).min(count(rejected));
    Ok(Pair {
        chosen: side(batch, chosen, form, shared)?,
        rejected: side(batch, rejected, form, shared)?,
        gold: if form.has_gold { Some(side(batch, gold, form, usize::MAX)?) } else { None },
        lead,
        weight: f64::from(chosen.weight),
        label: f64::from(chosen.label),
    })
}

/// Gold, chosen and rejected reply of a group that has been checked; without a gold reply, the chosen one in its place.
pub(crate) fn replies(group: &[Completion], form: Form) -> Result<[&Completion; 3], ObjectiveError> {
    let refuse = |found: String| {
        let expected = if form.has_gold { EXPECTED_GOLD } else { EXPECTED };
        Err(ObjectiveError::Group { name: form.name, group: group[0].group, found, expected })
    };
    let (chosen, rejected) = match group {
        [chosen, rejected] if !form.has_gold => (chosen, rejected),
        [gold, chosen, rejected] if form.has_gold && gold.kind == CompletionKind::Gold => (chosen, rejected),
        _ => return refuse(format!("a group of {} ({})", group.len(), kinds(group))),
    };
    if (chosen.kind, rejected.kind) != (CompletionKind::Chosen, CompletionKind::Rejected) {
        return refuse(format!("a group of {} ({})", group.len(), kinds(group)));
    }
    let is_weight = chosen.weight >= 0.0 && chosen.weight.is_finite();
    if !is_weight || group.iter().any(|c| c.weight != chosen.weight) {
        let weights: Vec<f32> = group.iter().map(|c| c.weight).collect();
        return refuse(format!("of weights {weights:?} (they must be finite, at least 0 and equal)"));
    }
    if !(0.0..=1.0).contains(&chosen.label) || chosen.label != rejected.label {
        let labels = [chosen.label, rejected.label];
        return refuse(format!("of labels {labels:?} (a label is a probability, the same on both sides)"));
    }
    Ok([&group[0], chosen, rejected])
}

fn kinds(group: &[Completion]) -> String {
    group.iter().map(|c| kind_name(c.kind)).collect::<Vec<_>>().join(", ")
}

/// A pair's loss, and its derivatives with respect to the log-probabilities of both replies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct PairLoss {
    pub(crate) loss: f64,
    pub(crate) d_chosen: f64,
    pub(crate) d_rejected: f64,
}

impl PairLoss {
    /// `self + factor · other`.
    pub(crate) fn add(self, factor: f64, other: PairLoss) -> PairLoss {
        PairLoss {
            loss: self.loss + factor * other.loss,
            d_chosen: self.d_chosen + factor * other.d_chosen,
            d_rejected: self.d_rejected + factor * other.d_rejected,
        }
    }

    /// The same loss of the pair whose replies are exchanged.
    fn swapped(self) -> PairLoss {
        PairLoss { d_chosen: self.d_rejected, d_rejected: self.d_chosen, ..self }
    }
}

/// The loss of a pair in expectation over its label.
pub(crate) fn expected_loss(pair: &Pair<'_>, loss: impl Fn(&Pair<'_>) -> PairLoss) -> PairLoss {
    let plain = loss(pair);
    if pair.label == 1.0 {
        return plain;
    }
    let swapped = loss(&pair.swapped()).swapped();
    PairLoss::default().add(pair.label, plain).add(1.0 - pair.label, swapped)
}

/// A micro-batch's output as it is put together.
#[derive(Debug)]
pub(crate) struct Sum<'a> {
    batch: TokenBatch<'a>,
    loss: f64,
    d_logp: Vec<f64>,
}

impl<'a> Sum<'a> {
    pub(crate) fn new(batch: &TokenBatch<'a>) -> Sum<'a> {
        Sum { batch: *batch, loss: 0.0, d_logp: vec![0.0; batch.logp.len()] }
    }

    /// Adds to the loss.
    pub(crate) fn add_loss(&mut self, share: f64) {
        self.loss += share;
    }

    /// Adds the gradient `share` of a reply's log-probability to its tokens.
    pub(crate) fn add_side(&mut self, side: &Side<'_>, share: f64) {
        let d_logp = &mut self.d_logp;
        side.tokens(&self.batch, |i, factor| d_logp[i] += factor * share);
    }

    /// Adds a pair.
    pub(crate) fn add_pair(&mut self, pair: &Pair<'_>, loss: PairLoss, step: &Normaliser) {
        let share = pair.weight / step.total_weight();
        self.add_loss(share * loss.loss);
        self.add_side(&pair.chosen, share * loss.d_chosen);
        self.add_side(&pair.rejected, share * loss.d_rejected);
    }

    /// Adds `share` times the negative log-likelihood of trained tokens.
    pub(crate) fn add_nll(&mut self, tokens: Range<usize>, share: f64) {
        for i in trained(&self.batch, tokens) {
            let w = share * f64::from(self.batch.weights[i]);
            self.loss -= w * f64::from(self.batch.logp[i]);
            self.d_logp[i] -= w;
        }
    }

    /// Adds to the gradient of one token.
    pub(crate) fn add_token(&mut self, i: usize, share: f64) {
        self.d_logp[i] += share;
    }

    /// The output, if it can be trained on.
    pub(crate) fn finish(self, metrics: Vec<Metric>) -> Result<ObjectiveOutput, ObjectiveError> {
        let d_logp: Vec<f32> = self.d_logp.iter().map(|&d| d as f32).collect();
        if let Some(index) = d_logp.iter().position(|d| !d.is_finite()) {
            let (what, value) = ("the loss's gradient with respect to the log-probability", d_logp[index]);
            return Err(ObjectiveError::NonFinite { what, index, value });
        }
        Ok(ObjectiveOutput { loss: self.loss, d_logp, metrics, ..ObjectiveOutput::default() })
    }
}

/// The share of likelihood terms in a step: what each token's `weight · pair weight` is multiplied by.
///
/// `totals()[0]` is the weighted number of their tokens.
pub(crate) fn token_share(
    name: &'static str,
    batch: &TokenBatch<'_>,
    step: &Normaliser,
) -> Result<f64, ObjectiveError> {
    match step.totals() {
        [total, ..] if *total > 0.0 => Ok(1.0 / total),
        _ if batch.completions.is_empty() => Ok(0.0),
        totals => Err(ObjectiveError::NoTotals { name, found: totals.first().copied() }),
    }
}

/// The weighted number of trained tokens of completions of one kind, for [`crate::Objective::totals`]; with `lead`, of the
/// tokens before a group, too.
pub(crate) fn n_tokens(batch: &TokenBatch<'_>, kind: CompletionKind, with_lead: bool) -> f64 {
    let length = |tokens: Range<usize>| -> f64 {
        tokens.map(|i| batch.weights.get(i).map_or(0.0, |&w| f64::from(w))).sum()
    };
    let mut total = 0.0;
    for (i, completion) in batch.completions.iter().enumerate() {
        let before = i.checked_sub(1).map(|i| &batch.completions[i]);
        if completion.kind == kind {
            total += f64::from(completion.weight) * length(completion.tokens.clone());
        }
        if with_lead && before.is_none_or(|before| before.group != completion.group) {
            let start = before.map_or(0, |before| before.tokens.end);
            total += f64::from(completion.weight) * length(start..completion.tokens.start);
        }
    }
    total
}

/// TRL's metrics of pairs: rewards, their margin and how often it is above 0, and log-probabilities.
///
/// `rewards` gives a pair's implicit rewards, `logp` what is reported of a reply (sum or mean).
pub(crate) fn metrics(
    batch: &TokenBatch<'_>,
    pairs: &[Pair<'_>],
    rewards: impl Fn(&Pair<'_>) -> (f64, f64),
    logp: impl Fn(&Side<'_>) -> f64,
) -> Vec<Metric> {
    let mean = |name, value: &dyn Fn(&Pair<'_>) -> f64| {
        let mut metric = Metric::mean(name, 0.0, 0.0);
        for pair in pairs {
            metric.sum += pair.weight * value(pair);
            metric.weight += pair.weight;
        }
        metric
    };
    let mut metrics = vec![
        mean("rewards/chosen", &|pair| rewards(pair).0),
        mean("rewards/rejected", &|pair| rewards(pair).1),
        mean("rewards/accuracies", &|pair| f64::from(u8::from(rewards(pair).0 > rewards(pair).1))),
        mean("rewards/margins", &|pair| rewards(pair).0 - rewards(pair).1),
        mean("logps/chosen", &|pair| logp(&pair.chosen)),
        mean("logps/rejected", &|pair| logp(&pair.rejected)),
    ];
    metrics.extend(batch.entropy.map(|entropy| batch.metric("entropy", |i| f64::from(entropy[i]))));
    metrics.extend(batch.correct.map(|correct| accuracy(batch, pairs, correct)));
    metrics
}

/// `mean_token_accuracy` of the chosen replies.
fn accuracy(batch: &TokenBatch<'_>, pairs: &[Pair<'_>], correct: &[bool]) -> Metric {
    let mut metric = Metric::mean("mean_token_accuracy", 0.0, 0.0);
    for pair in pairs {
        for i in trained(batch, pair.chosen.completion.tokens.clone()) {
            let w = f64::from(batch.weights[i]);
            metric.sum += if correct[i] { w } else { 0.0 };
            metric.weight += w;
        }
    }
    metric
}

/// The mean negative log-likelihood of `tokens(pair)`, as a metric.
pub(crate) fn nll_metric<'p>(
    batch: &TokenBatch<'_>,
    pairs: &'p [Pair<'p>],
    tokens: impl Fn(&'p Pair<'p>) -> Vec<Range<usize>>,
) -> Metric {
    let mut metric = Metric::mean("nll_loss", 0.0, 0.0);
    for pair in pairs {
        for i in tokens(pair).into_iter().flat_map(|tokens| trained(batch, tokens)) {
            let w = pair.weight * f64::from(batch.weights[i]);
            metric.sum -= w * f64::from(batch.logp[i]);
            metric.weight += w;
        }
    }
    metric
}
