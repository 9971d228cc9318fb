//! Direct preference optimisation, with every loss TRL has.
//!
//! ```text
//! a = log π(y_w|x) − log π_ref(y_w|x)      b = log π(y_l|x) − log π_ref(y_l|x)
//! loss = Σ_i loss_weights_i · mean over the step's pairs of ℓ_i(a, b)
//! ```
//!
//! The losses ℓ and their sources are in [`DpoLoss`], divergences in [`Divergence`]. Further options:
//! - `ld_alpha` (Liu et al. 2024, "Length desensitization in DPO", arXiv:2409.06411): tokens past the length of the shorter
//!   reply count `ld_alpha` in policy and reference. TRL's `None` is 1.
//! - `use_weighting` (Zhou et al. 2024, WPO, arXiv:2406.11827, equation 2): pairs are weighted by
//!   `w(y_w) w(y_l)`, `w(y) = exp(mean over tokens of log p_t − log Σ_v p_v²)`, which carries no gradient.
//!
//! As TRL's `DPOTrainer._compute_loss`, except, each shown in `golden.rs`:
//! - `aot`, `aot_unpaired` sort over the whole step, TRL over each micro-batch: equal when the step is one micro-batch. With
//!   WPO, the k-th difference is weighted by the pair whose chosen reply it is; TRL multiplies the sorted losses with the
//!   unsorted weights.
//! - `sft` is the mean over the step's chosen tokens, TRL's over each micro-batch's. With WPO each token has its pair's weight;
//!   in TRL the two together are an error of PyTorch's.
//! - `cdpo` and soft labels are ours; `sft` does not read the label. `label_smoothing` with losses that do not read it, such as
//!   `sigmoid`, is refused, where TRL goes on without it.
//! - Online DPO's `ipo` is `ipo` with `length_normalization = "never"`.

pub use super::dpo_losses::{Divergence, DpoLoss, LengthNormalization};
use super::dpo_losses::{Parameters, Reply};
pub use super::dpo_options::DpoConfig;
use super::math::logistic;
use super::pairs::{self, Form, Pair, PairLoss, Side, Sum, expected_loss};
use crate::catalogue::{ObjectiveInfo, bad_option, parse};
use crate::{
    CompletionKind, Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, PrePass, TokenBatch,
};

const NAME: &str = "dpo";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "direct preference optimisation on pairs, against a reference policy",
    source: "Rafailov et al. 2023, arXiv:2305.18290, equation 7; every loss its own",
    equation: "-log sigmoid(beta * (log ratio of chosen - log ratio of rejected)), log ratio = log p - log p_ref",
    options: super::dpo_options::OPTIONS,
    build: |options| Ok(Box::new(Dpo::new(parse(NAME, options)?)?)),
};

/// Direct preference optimisation.
#[derive(Clone, Debug, PartialEq)]
pub struct Dpo {
    /// Losses and their weights.
    losses: Vec<(DpoLoss, f64)>,
    parameters: Parameters,
    form: Form,
    use_weighting: bool,
}

/// What [`Dpo::prepare`] finds for each completion of the step, by its index.
///
/// Of a chosen reply: the reference difference of equal rank, the rejected log-ratio of equal rank, and nothing. Of a rejected
/// one: the chosen log-ratio of equal rank, and the weight and smoothing of that reply's pair.
const N_SHARED: usize = 3;

impl Dpo {
    /// DPO with these options.
    ///
    /// # Errors
    /// [`ObjectiveError::Catalogue`] for values out of range or that do not go together.
    pub fn new(config: DpoConfig) -> Result<Dpo, ObjectiveError> {
        config.check().map_err(|problem| bad_option(NAME, problem))?;
        let weight = |i: usize| config.loss_weights.get(i).copied().unwrap_or(1.0);
        let losses = config.loss_type.iter().enumerate().map(|(i, &loss)| (loss, weight(i))).collect();
        let parameters = Parameters {
            beta: config.beta,
            smoothing: config.label_smoothing,
            tau: config.discopop_tau,
            divergence: config.f_divergence_type,
            alpha: config.f_alpha_divergence_coef,
            length_normalization: config.length_normalization,
        };
        let form = Form { name: NAME, ld_alpha: config.ld_alpha, has_gold: false };
        Ok(Dpo { losses, parameters, form, use_weighting: config.use_weighting })
    }

    fn weight_of(&self, loss: DpoLoss) -> f64 {
        self.losses.iter().filter(|(other, _)| *other == loss).map(|(_, weight)| weight).sum()
    }

    /// The weight WPO gives a pair.
    fn policy_weight(&self, batch: &TokenBatch<'_>, pair: &Pair<'_>) -> f64 {
        let Some(log_collision) = batch.log_collision.filter(|_| self.use_weighting) else { return 1.0 };
        let mean = |side: &Side<'_>| {
            let tokens = side.completion.tokens.clone().filter(|&i| batch.weights[i] > 0.0);
            let aligned = |i: usize| f64::from(batch.logp[i]) - f64::from(log_collision[i]);
            tokens.map(|i| f64::from(batch.weights[i]) * aligned(i)).sum::<f64>() / side.length
        };
        (mean(&pair.chosen) + mean(&pair.rejected)).exp()
    }

    /// The losses of one pair alone.
    fn own_loss(&self, pair: &Pair<'_>) -> PairLoss {
        let reply = |side: &Side<'_>| Reply { log_ratio: side.log_ratio(), length: side.length };
        let mut sum = PairLoss::default();
        for &(loss, weight) in &self.losses {
            let (loss, d_chosen, d_rejected) =
                loss.evaluate(reply(&pair.chosen), reply(&pair.rejected), self.parameters);
            sum = sum.add(weight, PairLoss { loss, d_chosen, d_rejected });
        }
        sum
    }

    /// How likely a pair's order is wrong, by smoothing and label together.
    fn smoothing(&self, pair: &Pair<'_>) -> f64 {
        let smoothing = self.parameters.smoothing;
        pair.label * smoothing + (1.0 - pair.label) * (1.0 - smoothing)
    }

    /// The sorted losses of a pair, and their share of what its replies' partners elsewhere in the step lose.
    fn sorted_loss(
        &self,
        pair: &Pair<'_>,
        policy_weight: f64,
        step: &Normaliser,
    ) -> Result<PairLoss, ObjectiveError> {
        let at = |side: &Side<'_>| {
            let start = N_SHARED * side.completion.index;
            let missing = ObjectiveError::NoPrePass {
                name: NAME,
                found: step.shared().len(),
                expected: start + N_SHARED,
                what: "all micro-batches of the step",
            };
            step.shared().get(start..start + N_SHARED).ok_or(missing)
        };
        let (chosen, rejected) = (at(&pair.chosen)?, at(&pair.rejected)?);
        let (beta, smoothing) = (self.parameters.beta, self.smoothing(pair));
        let paired = self.weight_of(DpoLoss::Aot) * policy_weight;
        let (loss, d) = logistic(beta * (pair.chosen.logp - pair.rejected.logp - chosen[0]), smoothing);
        let mut sum = PairLoss { loss, d_chosen: beta * d, d_rejected: -beta * d };
        sum = PairLoss::default().add(paired, sum);
        let unpaired = self.weight_of(DpoLoss::AotUnpaired);
        let (loss, d) = logistic(beta * (pair.chosen.log_ratio() - chosen[1]), smoothing);
        let (_, partner_d) = logistic(beta * (rejected[0] - pair.rejected.log_ratio()), rejected[2]);
        // The caller multiplies by this pair's weight, and the partner's stands in `rejected[1]`.
        let by_partner = if pair.weight > 0.0 { rejected[1] / pair.weight } else { 0.0 };
        let own = PairLoss { loss, d_chosen: beta * d, d_rejected: 0.0 };
        sum = sum.add(unpaired * policy_weight, own);
        sum.d_rejected -= unpaired * by_partner * beta * partner_d;
        Ok(sum)
    }
}

/// The ranks of `values`: which value stands where in ascending order; equal values by their order here.
fn ascending(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    order
}

impl Objective for Dpo {
    fn name(&self) -> &'static str {
        NAME
    }

    fn needs(&self) -> Needs {
        Needs { reference_logp: true, log_collision: self.use_weighting, ..Needs::default() }
    }

    fn weight(&self, batch: &TokenBatch<'_>) -> f64 {
        pairs::weight(batch)
    }

    fn totals(&self, batch: &TokenBatch<'_>) -> Vec<f64> {
        vec![pairs::n_tokens(batch, CompletionKind::Chosen, false)]
    }

    fn pre_pass(&self) -> PrePass {
        let is_sorted = self.losses.iter().any(|(loss, _)| loss.is_sorted());
        if is_sorted { PrePass::All } else { PrePass::None }
    }

    fn prepare(&self, whole: &TokenBatch<'_>) -> Result<Vec<f64>, ObjectiveError> {
        whole.check(NAME, self.needs())?;
        let mut pairs = pairs::pairs(whole, self.form)?;
        pairs.retain(|pair| pair.weight > 0.0);
        let values = |value: fn(&Pair<'_>) -> f64| pairs.iter().map(value).collect::<Vec<f64>>();
        let policy = values(|p| p.chosen.logp - p.rejected.logp);
        let reference = values(|p| p.chosen.reference - p.rejected.reference);
        let (chosen, rejected) = (values(|p| p.chosen.log_ratio()), values(|p| p.rejected.log_ratio()));
        let n = whole.completions.iter().map(|c| c.index + 1).max().unwrap_or(0);
        let mut shared = vec![0.0; n * N_SHARED];
        for (i, j) in ascending(&policy).into_iter().zip(ascending(&reference)) {
            shared[N_SHARED * pairs[i].chosen.completion.index] = reference[j];
        }
        for (i, j) in ascending(&chosen).into_iter().zip(ascending(&rejected)) {
            shared[N_SHARED * pairs[i].chosen.completion.index + 1] = rejected[j];
            let weight = pairs[i].weight * self.policy_weight(whole, &pairs[i]);
            let start = N_SHARED * pairs[j].rejected.completion.index;
            shared[start..start + N_SHARED].copy_from_slice(&[chosen[i], weight, self.smoothing(&pairs[i])]);
        }
        Ok(shared)
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        batch.check(NAME, self.needs())?;
        let pairs = pairs::pairs(batch, self.form)?;
        let sft = self.weight_of(DpoLoss::Sft);
        let sft_share = if sft == 0.0 { 0.0 } else { sft * pairs::token_share(NAME, batch, step)? };
        let mut sum = Sum::new(batch);
        for pair in &pairs {
            let policy_weight = self.policy_weight(batch, pair);
            let own = expected_loss(pair, |pair| self.own_loss(pair));
            let mut loss = PairLoss::default().add(policy_weight, own);
            if self.pre_pass() == PrePass::All {
                loss = loss.add(1.0, self.sorted_loss(pair, policy_weight, step)?);
            }
            sum.add_pair(pair, loss, step);
            let tokens = pair.chosen.completion.tokens.clone();
            sum.add_nll(tokens, sft_share * pair.weight * policy_weight);
        }
        let beta = self.parameters.beta;
        let rewards = |p: &Pair<'_>| (beta * p.chosen.log_ratio(), beta * p.rejected.log_ratio());
        sum.finish(pairs::metrics(batch, &pairs, rewards, |side| side.logp))
    }
}
