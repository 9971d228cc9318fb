//! Odds-ratio preference optimisation: likelihood of the chosen reply, and its odds against the rejected one's.
//!
//! ```text
//! ℓ(y) = mean log p of y      o = [ℓ_w − log(1 − e^ℓ_w)] − [ℓ_l − log(1 − e^ℓ_l)]
//! loss = mean over tokens of −log p(y_w) + β · mean over pairs of −log σ(o)
//! ```
//!
//! Source: Hong et al. 2024, "ORPO" (arXiv:2403.07691), equations 4 to 7 (β is their λ). Differences from TRL's `ORPOTrainer`:
//! - TRL's likelihood is over prompt and chosen reply, the paper's (its equation 2 conditions on x) and ours over the chosen reply.
//!   Tokens before a pair's first reply take part if their loss weight is above 0, so with weight 1 on the prompt ours is TRL's.
//! - The likelihood is averaged over the step's tokens, TRL's over each micro-batch's.
//! - A mean log-probability above −1e-8, where the odds end at infinity, is held there.

use pt_core::catalogue::OptionInfo;
use serde::{Deserialize, Serialize};

use super::math::{log1mexp, logistic, softplus};
use super::pairs::{self, Form, Pair, PairLoss, Side, Sum, expected_loss};
use crate::catalogue::{ObjectiveInfo, bad_option, parse};
use crate::{
    CompletionKind, Metric, Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, TokenBatch,
};

const NAME: &str = "orpo";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "odds-ratio preference optimisation: likelihood and preference in one stage, without a reference",
    source: "Hong et al. 2024, arXiv:2403.07691, equations 4 to 7",
    equation: "-log p(chosen) per token + beta * -log sigmoid(log odds(chosen) - log odds(rejected)), odds of mean log p",
    options: &[OptionInfo {
        name: "beta",
        kind: "number above 0",
        default: "0.1",
        doc: "weight of the odds ratio (lambda in the paper)",
    }],
    build: |options| Ok(Box::new(Orpo::new(parse(NAME, options)?)?)),
};

/// Where the log-probability of a reply counts as certain.
const CERTAIN: f64 = -1e-8;

/// Options of [`Orpo`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrpoConfig {
    /// β.
    pub beta: f64,
}

impl Default for OrpoConfig {
    fn default() -> OrpoConfig {
        OrpoConfig { beta: 0.1 }
    }
}

/// Odds-ratio preference optimisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Orpo {
    beta: f64,
}

impl Orpo {
    /// ORPO with these options.
    ///
    /// # Errors
    /// [`ObjectiveError::Catalogue`] for a value out of range.
    pub fn new(config: OrpoConfig) -> Result<Orpo, ObjectiveError> {
        super::check_beta(config.beta).map_err(|problem| bad_option(NAME, problem))?;
        Ok(Orpo { beta: config.beta })
    }

    fn loss(&self, pair: &Pair<'_>) -> PairLoss {
        let (chosen, d_chosen) = log_odds(&pair.chosen);
        let (rejected, d_rejected) = log_odds(&pair.rejected);
        let (loss, d) = logistic(chosen - rejected, 0.0);
        let d = self.beta * d;
        PairLoss { loss: self.beta * loss, d_chosen: d * d_chosen, d_rejected: -d * d_rejected }
    }
}

/// The log-odds of a reply's mean probability, and their derivative with respect to its summed log-probability.
fn log_odds(side: &Side<'_>) -> (f64, f64) {
    let mean = side.mean_logp().min(CERTAIN);
    let slope = if mean < CERTAIN { -1.0 / mean.exp_m1() } else { 0.0 };
    (mean - log1mexp(mean), slope / side.length)
}

fn log_odds_ratio(pair: &Pair<'_>) -> f64 {
    log_odds(&pair.chosen).0 - log_odds(&pair.rejected).0
}

impl Objective for Orpo {
    fn name(&self) -> &'static str {
        NAME
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn weight(&self, batch: &TokenBatch<'_>) -> f64 {
        pairs::weight(batch)
    }

    fn totals(&self, batch: &TokenBatch<'_>) -> Vec<f64> {
        vec![pairs::n_tokens(batch, CompletionKind::Chosen, true)]
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        batch.check(NAME, self.needs())?;
        let pairs = pairs::pairs(batch, Form::plain(NAME))?;
        let share = pairs::token_share(NAME, batch, step)?;
        let mut sum = Sum::new(batch);
        for pair in &pairs {
            sum.add_pair(pair, expected_loss(pair, |pair| self.loss(pair)), step);
            sum.add_nll(pair.lead.clone(), share * pair.weight);
            sum.add_nll(pair.chosen.completion.tokens.clone(), share * pair.weight);
        }
        let rewards = |p: &Pair<'_>| (self.beta * p.chosen.mean_logp(), self.beta * p.rejected.mean_logp());
        let mut metrics = pairs::metrics(batch, &pairs, rewards, |side| side.mean_logp());
        metrics.push(pairs::nll_metric(batch, &pairs, |pair| {
            vec![pair.lead.clone(), pair.chosen.completion.tokens.clone()]
        }));
        for (name, value) in [
            ("log_odds_ratio", (|pair| -softplus(-log_odds_ratio(pair))) as fn(&Pair<'_>) -> f64),
            ("log_odds_chosen", log_odds_ratio),
        ] {
            let weighted = pairs.iter().map(|pair| pair.weight * value(pair)).sum();
            metrics.push(Metric::mean(name, weighted, pairs.iter().map(|pair| pair.weight).sum()));
        }
        sum.finish(metrics)
    }
}
