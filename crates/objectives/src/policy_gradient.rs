//! What the policy-gradient objectives share: ratio, surrogate, divergence, corrections, aggregation.
//!
//! For token t of completion i, with advantage A, all sums over trained tokens (weight w above 0):
//!
//! ```text
//! d_t   = log π − log π_old                      (absent log π_old: the stopped log π, so that ρ is exactly 1)
//! ρ     = exp(d_t)                               token
//!       = exp(Σ w d / Σ w)                       sequence (GSPO)
//!       = exp(stopgrad(Σ w d / Σ w) + d_t − stopgrad(d_t))      sequence_token (GSPO-token)
//!       = exp(Σ d)                               the whole sequence's ratio (RLOO)
//! ℓ_t   = surrogate(ρ, A) · keep_offpolicy · keep_entropy · correction + β · KL_t [· ρ]
//! L     = Σ_i Σ_t a_it ℓ_t − entropy_coef · H
//! ```
//!
//! | aggregation | a_it | total weight W, over the whole step |
//! | --- | --- | --- |
//! | [`Aggregation::SequenceMean`] | c_i w_t / (Σ_t w_t) / W | Σ c_i |
//! | [`Aggregation::TokenMean`] | c_i w_t / W | Σ_i c_i Σ_t w_t |
//! | [`Aggregation::FixedLength`] | c_i w_t / W | Σ c_i · `max_completion_length` |
//! | [`Aggregation::SequenceSum`] | c_i w_t / W | Σ c_i |
//!
//! where c_i is the completion's own weight. A completion without trained tokens (empty, or masked since it was cut) adds
//! nothing to the sum and counts among the completions, as in TRL.
//!
//! **Differences from TRL 1.16** (`GRPOTrainer._compute_loss`), which this follows otherwise:
//! - Everything is normalised over the whole optimiser step. TRL's `grpo`, `bnpo`, `dr_grpo`, `sapo`, `luspo` and its entropy
//!   bonus average each micro-batch by itself and then the micro-batches, so that there the cut into micro-batches weighs
//!   tokens; with one micro-batch a step the two are the same.
//! - The entropy threshold of `top_entropy_quantile` is that of the whole step, TRL's that of a micro-batch. It needs the
//!   pre-pass.
//! - Log ratios beyond ±[`LOG_RATIO_LIMIT`] are held there and have no gradient; where log π_ref − log π is above it, k3
//!   goes on as a straight line. TRL overflows.
//! - `entropy_coef` is reported as it was applied, TRL reports what comes next.
//! - `kl` is reported whenever the reference is given.
//!
//! The correction for another sampler is off by default: our own sampler's log-probabilities are the trainer's, bit for bit.

use serde::{Deserialize, Serialize};

use crate::{
    Completion, Metric, Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, PrePass, TokenBatch,
};

pub(crate) mod bnpo;
pub(crate) mod cispo;
pub(crate) mod dapo;
pub(crate) mod dr_grpo;
pub(crate) mod grpo;
pub(crate) mod gspo;
pub(crate) mod luspo;
mod metrics;
mod options;
pub(crate) mod ppo;
pub(crate) mod reinforce_pp;
pub(crate) mod rloo;
pub(crate) mod sapo;
mod sequence;
mod terms;
#[cfg(test)]
pub(crate) mod tests;
mod value;
pub(crate) mod vespo;

pub use options::PolicyGradientConfig;
pub use value::ValueLoss;

use metrics::Tally;
use sequence::Sequence;

/// Log ratios are held within this on both sides, as verl does; e^20 is 4.9e8.
pub const LOG_RATIO_LIMIT: f64 = 20.0;

/// What a ratio of probabilities is taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RatioLevel {
    /// Each token by itself.
    #[default]
    Token,
    /// The geometric mean over a sequence's tokens.
    Sequence,
    /// The value of `Sequence`, the gradient of `Token`.
    SequenceToken,
    /// The product over a sequence's tokens.
    #[serde(skip)]
    SequenceSum,
}

/// The estimate of KL(π ‖ π_ref) from one token, with r = log π_ref − log π.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// −r. As a loss its expected gradient is zero: it belongs into rewards.
    K1,
    /// r² / 2. Its gradient is that of the divergence, on samples of π.
    K2,
    /// e^r − r − 1 (Schulman).
    #[default]
    K3,
}

/// What becomes of samples whose sampler had other probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerCorrection {
    /// Nothing.
    #[default]
    Off,
    /// Tokens are weighted by π_old / π_sampler, held within the limits.
    TokenTruncate,
    /// The same; tokens outside of the limits are left out.
    TokenMask,
    /// The sequence's ratio, held within the limits.
    SequenceTruncate,
    /// The same; sequences outside of the limits are left out.
    SequenceMask,
}

/// What of a token's ratio and advantage is optimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Surrogate {
    /// −min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A)
    Clip,
    /// −stopgrad(min(ρ, 1 + ε_high)) A log π
    Cispo,
    /// −(4 / τ) σ(τ (ρ − 1)) A
    Sapo,
    /// −φ(w) A log π
    Vespo,
}

/// How tokens' losses make one loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aggregation {
    /// Mean over a sequence's tokens, then over sequences.
    SequenceMean,
    /// Mean over all tokens.
    TokenMean,
    /// Sum over tokens, by sequences times a fixed length.
    FixedLength,
    /// Sum over a sequence's tokens, then mean over sequences.
    SequenceSum,
}

/// What sets one of these objectives apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub name: &'static str,
    pub surrogate: Surrogate,
    pub aggregation: Aggregation,
    /// Instead of the option `importance_sampling_level`.
    pub level: Option<RatioLevel>,
}

/// A policy-gradient objective.
#[derive(Clone, Debug)]
pub(crate) struct PolicyGradient {
    form: Form,
    config: PolicyGradientConfig,
    /// The entropy bonus's coefficient; moves if it is adaptive.
    entropy_coef: f64,
    /// Of the last step; infinite before the first, so that no bonus applies until something was measured.
    last_entropy: f64,
}

/// Where a step's further totals stand in [`Normaliser::totals`].
pub(crate) const TOKEN_TOTAL: usize = 0;
pub(crate) const SCORE_TOTAL: usize = 1;

impl PolicyGradient {
    /// An objective of this form, its options read and checked.
    pub(crate) fn new(form: Form, config: PolicyGradientConfig) -> Result<PolicyGradient, ObjectiveError> {
        config.check(form.name)?;
        Ok(PolicyGradient { form, entropy_coef: config.entropy_coef, config, last_entropy: f64::INFINITY })
    }

    pub(crate) fn config(&self) -> &PolicyGradientConfig {
        &self.config
    }

    fn level(&self) -> RatioLevel {
        self.form.level.unwrap_or(self.config.importance_sampling_level)
    }

    fn has_bonus(&self) -> bool {
        self.config.entropy_coef != 0.0 || self.config.use_adaptive_entropy
    }

    fn masks_entropy(&self) -> bool {
        self.config.top_entropy_quantile < 1.0
    }

    /// The coefficient that applies in this step.
    fn applied_coef(&self) -> f64 {
        let is_waiting = self.config.use_adaptive_entropy && self.last_entropy > self.config.entropy_target;
        if is_waiting { 0.0 } else { self.entropy_coef }
    }

    /// The weight of a completion with `n_tokens` tokens' weight.
    fn completion_weight(&self, n_tokens: f64) -> f64 {
        match self.form.aggregation {
            Aggregation::SequenceMean | Aggregation::SequenceSum => 1.0,
            Aggregation::TokenMean => n_tokens,
            Aggregation::FixedLength => f64::from(self.config.max_completion_length),
        }
    }

    /// The least entropy that trains, and the tokens' weight at and above it.
    fn entropy_cut(&self, step: &Normaliser) -> Result<Option<(f64, f64)>, ObjectiveError> {
        match (self.masks_entropy(), step.shared()) {
            (false, _) => Ok(None),
            (true, &[threshold, weight]) => Ok(Some((threshold, weight))),
            (true, _) => Err(self.missing("the step's entropy threshold, which a pre-pass finds,")),
        }
    }

    fn missing(&self, what: &'static str) -> ObjectiveError {
        ObjectiveError::Missing { name: self.form.name, what }
    }

    fn check(&self, batch: &TokenBatch<'_>) -> Result<(), ObjectiveError> {
        batch.check(self.form.name, self.needs())?;
        let mut left = 0;
        for completion in batch.completions {
            check_weight(completion)?;
            self.check_untrained(batch, left..completion.tokens.start)?;
            left = completion.tokens.end;
        }
        self.check_untrained(batch, left..batch.logp.len())
    }

    fn check_untrained(
        &self,
        batch: &TokenBatch<'_>,
        range: std::ops::Range<usize>,
    ) -> Result<(), ObjectiveError> {
        let found = range.clone().find(|&t| batch.weights[t] > 0.0);
        found.map_or(Ok(()), |index| Err(ObjectiveError::Outside { name: self.form.name, index }))
    }
}

fn check_weight(completion: &Completion) -> Result<(), ObjectiveError> {
    let (index, value) = (completion.index, completion.weight);
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(ObjectiveError::CompletionWeight { index, value })
}

/// The weight of a completion's tokens, without its own.
fn n_tokens(batch: &TokenBatch<'_>, completion: &Completion) -> f64 {
    batch.weights[completion.tokens.clone()].iter().map(|&w| f64::from(w)).sum()
}

/// Quantile `q` of sorted values, between neighbours by straight lines (as `torch.quantile`).
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

impl Objective for PolicyGradient {
    fn name(&self) -> &'static str {
        self.form.name
    }

    fn needs(&self) -> Needs {
        Needs {
            entropy: self.has_bonus() || self.masks_entropy(),
            reference_logp: self.config.beta != 0.0,
            sampler_logp: self.config.importance_sampling_correction != SamplerCorrection::Off,
            advantages: true,
            ..Needs::default()
        }
    }

    fn weight(&self, batch: &TokenBatch<'_>) -> f64 {
        let weight = |c: &Completion| f64::from(c.weight) * self.completion_weight(n_tokens(batch, c));
        batch.completions.iter().map(weight).sum()
    }

    fn totals(&self, batch: &TokenBatch<'_>) -> Vec<f64> {
        let tokens = |c: &Completion| f64::from(c.weight) * n_tokens(batch, c);
        let scores = batch.scores.map_or(0.0, |s| s.weights.iter().map(|&w| f64::from(w)).sum());
        let mut totals = vec![0.0; 2];
        totals[TOKEN_TOTAL] = batch.completions.iter().map(tokens).sum();
        totals[SCORE_TOTAL] = scores;
        totals
    }

    fn pre_pass(&self) -> PrePass {
        if self.masks_entropy() { PrePass::All } else { PrePass::None }
    }

    fn prepare(&self, whole: &TokenBatch<'_>) -> Result<Vec<f64>, ObjectiveError> {
        if !self.masks_entropy() {
            return Ok(Vec::new());
        }
        self.check(whole)?;
        let entropy = whole.entropy.expect("checked");
        let mut sorted: Vec<f64> = whole.trained().map(|(t, _)| f64::from(entropy[t])).collect();
        if sorted.is_empty() {
            return Ok(vec![f64::INFINITY, 0.0]);
        }
        sorted.sort_by(f64::total_cmp);
        let threshold = quantile(&sorted, 1.0 - self.config.top_entropy_quantile);
        let above = |c: &Completion| {
            let kept = c.tokens.clone().filter(|&t| f64::from(entropy[t]) >= threshold);
            f64::from(c.weight) * kept.map(|t| f64::from(whole.weights[t])).sum::<f64>()
        };
        Ok(vec![threshold, whole.completions.iter().map(above).sum()])
    }

    fn state(&self) -> Vec<f64> {
        // A checkpoint's JSON has no infinity.
        vec![self.entropy_coef, self.last_entropy.min(f64::MAX)]
    }

    fn set_state(&mut self, state: &[f64]) {
        assert!(state.len() == 2, "`{}` carries two numbers, not {}", self.form.name, state.len());
        (self.entropy_coef, self.last_entropy) = (state[0], state[1]);
    }

    fn end_step(&mut self, metrics: &[Metric]) {
        if !self.config.use_adaptive_entropy {
            return;
        }
        let name = if self.masks_entropy() { metrics::TOP_ENTROPY } else { metrics::ENTROPY };
        let Some(entropy) = metrics.iter().find(|m| m.name == name).and_then(Metric::value) else {
            return;
        };
        let is_low = entropy <= self.config.entropy_target;
        let delta = if is_low { self.config.entropy_coef_delta } else { -self.config.entropy_coef_delta };
        let (min, max) = (self.config.entropy_coef_min, self.config.entropy_coef_max);
        self.entropy_coef = (self.entropy_coef + delta).clamp(min, max);
        self.last_entropy = entropy;
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        self.check(batch)?;
        let cut = self.entropy_cut(step)?;
        let mut d_logp = vec![0.0; batch.logp.len()];
        let mut tally = Tally::new(batch, self.weight(batch));
        for completion in batch.completions {
            let sequence = Sequence::new(batch, completion, cut.map(|(threshold, _)| threshold));
            if !sequence.tokens.is_empty() {
                self.add_sequence(&sequence, step, &mut d_logp, &mut tally);
            }
        }
        let mut loss = tally.policy_loss / step.total_weight();
        let d_entropy = match self.has_bonus() {
            true => Some(self.entropy_bonus(batch, step, cut, &mut loss)?),
            false => None,
        };
        let metrics = self.metrics(&tally, batch);
        Ok(ObjectiveOutput { loss, d_logp, d_entropy, metrics, ..ObjectiveOutput::default() })
    }
}

impl PolicyGradient {
    /// Takes coefficient times mean entropy from the loss; gives its gradient.
    fn entropy_bonus(
        &self,
        batch: &TokenBatch<'_>,
        step: &Normaliser,
        cut: Option<(f64, f64)>,
        loss: &mut f64,
    ) -> Result<Vec<f32>, ObjectiveError> {
        let total = match (cut, step.totals().get(TOKEN_TOTAL)) {
            (Some((_, weight)), _) => weight,
            (None, Some(&weight)) => weight,
            (None, None) => return Err(self.missing("the step's number of tokens (`totals`)")),
        };
        let mut gradient = vec![0.0; batch.logp.len()];
        if total <= 0.0 {
            return Ok(gradient);
        }
        for completion in batch.completions {
            for token in Sequence::new(batch, completion, cut.map(|(threshold, _)| threshold)).tokens {
                if token.is_uncertain {
                    let d = -self.applied_coef() * f64::from(completion.weight) * token.weight / total;
                    *loss += d * token.entropy;
                    gradient[token.at] = d as f32;
                }
            }
        }
        Ok(gradient)
    }

    /// One completion's part of loss, gradient and metrics.
    fn add_sequence(&self, sequence: &Sequence, step: &Normaliser, d_logp: &mut [f32], tally: &mut Tally) {
        let ratios = sequence.ratios(self.level());
        let corrections = sequence.corrections(&self.config);
        let is_kept = sequence
            .off_policy_kl
            .is_none_or(|kl| self.config.off_policy_mask_threshold.is_none_or(|threshold| kl <= threshold));
        let log_weight = sequence.vespo_log_weight(&corrections, &self.config);
        let scale = match self.form.aggregation {
            Aggregation::SequenceMean => sequence.weight / sequence.n_tokens,
            _ => sequence.weight,
        };
        let mut d_ratio = vec![0.0; sequence.tokens.len()];
        let mut d_direct = vec![0.0; sequence.tokens.len()];
        let mut parts = metrics::Parts::default();
        for (t, token) in sequence.tokens.iter().enumerate() {
            let ratio = ratios[t];
            let mut term =
                terms::surrogate(self.form.surrogate, &self.config, token, ratio.value, log_weight);
            let is_corrected = self.form.surrogate != Surrogate::Vespo;
            let mut factor = if is_corrected { corrections[t] } else { 1.0 };
            if !token.is_uncertain || !(is_kept || token.advantage >= 0.0) {
                factor = 0.0;
            }
            term.scale(factor);
            if let Some(reference) = token.reference {
                let kl = terms::kl(&self.config, token.logp, reference, ratio.value);
                term.add(&kl, self.config.beta);
                parts.kl += token.weight * kl.value;
            }
            parts.add(
                self.clipped(token, ratio.value),
                token.weight,
                terms::phi(&self.config, token, log_weight),
            );
            let a = scale * token.weight;
            tally.policy_loss += a * term.value;
            d_direct[t] = a * term.d_logp;
            d_ratio[t] = if ratio.is_held { 0.0 } else { a * term.d_ratio * ratio.value };
        }
        let total: f64 = d_ratio.iter().sum();
        for (t, token) in sequence.tokens.iter().enumerate() {
            let through_ratio = match self.level() {
                RatioLevel::Token | RatioLevel::SequenceToken => d_ratio[t],
                RatioLevel::Sequence => total * token.weight / sequence.n_tokens,
                RatioLevel::SequenceSum => total,
            };
            d_logp[token.at] = ((d_direct[t] + through_ratio) / step.total_weight()) as f32;
        }
        tally.add(sequence, &parts, &corrections, self);
    }

    /// Whether the ratio is clipped: below with a negative advantage, above with a positive one.
    fn clipped(&self, token: &sequence::Token, ratio: f64) -> [bool; 2] {
        let high = 1.0 + self.config.epsilon_high();
        [ratio < 1.0 - self.config.epsilon && token.advantage < 0.0, ratio > high && token.advantage > 0.0]
    }
}
