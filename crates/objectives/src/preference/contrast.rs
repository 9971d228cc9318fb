//! What the reference-free objectives of pairs share: a loss of two log-probabilities, and a likelihood term.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::math::{MAX_EXPONENT, hinge, logistic, square};
use super::pairs::{self, Form, Pair, PairLoss, Side, Sum, expected_loss};
use crate::{CompletionKind, Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, TokenBatch};

/// How the difference of two rewards becomes a loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContrastLoss {
    /// `−(1 − ε) log σ(βΔ − γ) − ε log σ(−(βΔ − γ))`.
    #[default]
    Sigmoid,
    /// `max(0, 1 − βΔ)`.
    Hinge,
    /// `(Δ − 1/(2β))²`, of mean log-probabilities.
    Ipo,
}

/// A reference-free loss of a pair: a function of Δ = r(y_w) − r(y_l).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Contrast {
    pub(crate) form: Form,
    pub(crate) loss: ContrastLoss,
    pub(crate) beta: f64,
    /// γ, the margin by which the chosen reply should win.
    pub(crate) gamma: f64,
    pub(crate) smoothing: f64,
    /// Whether a reply is measured by its mean log-probability, not the sum.
    pub(crate) is_per_token: bool,
    /// α of AlphaPO; 0 for the log-probability itself.
    pub(crate) alpha: f64,
    /// The weight of the negative log-likelihood, a mean over the step's tokens of replies of that kind; `None`: there is none.
    pub(crate) nll: Option<(f64, CompletionKind)>,
}

impl Contrast {
    /// A reply's log-probability: the sum or the mean over its tokens.
    pub(crate) fn logp(&self, side: &Side<'_>) -> f64 {
        if self.is_per_token { side.mean_logp() } else { side.logp }
    }

    /// A reply's reward without β, and its derivative with respect to the sum of log-probabilities.
    fn reward(&self, side: &Side<'_>) -> (f64, f64) {
        let per = if self.is_per_token { 1.0 / side.length } else { 1.0 };
        let logp = self.logp(side);
        if self.alpha == 0.0 {
            return (logp, per);
        }
        let exponent = (-self.alpha * logp).min(MAX_EXPONENT);
        let slope = if exponent < MAX_EXPONENT { exponent.exp() } else { 0.0 };
        (-exponent.exp_m1() / self.alpha, slope * per)
    }

    /// The loss of a pair as it is ordered.
    fn loss(&self, pair: &Pair<'_>) -> PairLoss {
        let (chosen, d_chosen) = self.reward(&pair.chosen);
        let (rejected, d_rejected) = self.reward(&pair.rejected);
        let (difference, beta) = (chosen - rejected, self.beta);
        let (loss, d) = match self.loss {
            ContrastLoss::Sigmoid => {
                let (loss, d) = logistic(beta * difference - self.gamma, self.smoothing);
                (loss, beta * d)
            }
            ContrastLoss::Hinge => {
                let (loss, d) = hinge(beta * difference);
                (loss, beta * d)
            }
            ContrastLoss::Ipo => square(difference - 0.5 / beta),
        };
        PairLoss { loss, d_chosen: d * d_chosen, d_rejected: -d * d_rejected }
    }
}

impl Objective for Contrast {
    fn name(&self) -> &'static str {
        self.form.name
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn weight(&self, batch: &TokenBatch<'_>) -> f64 {
        pairs::weight(batch)
    }

    fn totals(&self, batch: &TokenBatch<'_>) -> Vec<f64> {
        self.nll.iter().map(|(_, kind)| pairs::n_tokens(batch, *kind, false)).collect()
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        batch.check(self.form.name, self.needs())?;
        let pairs = pairs::pairs(batch, self.form)?;
        let mut sum = Sum::new(batch);
        let nll = match self.nll {
            Some((weight, kind)) => Some((weight * pairs::token_share(self.form.name, batch, step)?, kind)),
            None => None,
        };
        for pair in &pairs {
            sum.add_pair(pair, expected_loss(pair, |pair| self.loss(pair)), step);
            if let Some((share, kind)) = nll {
                sum.add_nll(tokens(pair, kind), share * pair.weight);
            }
        }
        let rewards =
            |p: &Pair<'_>| (self.beta * self.reward(&p.chosen).0, self.beta * self.reward(&p.rejected).0);
        let mut metrics = pairs::metrics(batch, &pairs, rewards, |side| self.logp(side));
        if let Some((_, kind)) = nll {
            metrics.push(pairs::nll_metric(batch, &pairs, |pair| vec![tokens(pair, kind)]));
        }
        sum.finish(metrics)
    }
}

/// The tokens of a pair's reply of a kind; none without one.
fn tokens(pair: &Pair<'_>, kind: CompletionKind) -> Range<usize> {
    let side = [Some(&pair.chosen), Some(&pair.rejected), pair.gold.as_ref()].into_iter().flatten();
    let mut of_kind = side.filter(|side| side.completion.kind == kind);
    of_kind.next().map_or(0..0, |side| side.completion.tokens.clone())
}
