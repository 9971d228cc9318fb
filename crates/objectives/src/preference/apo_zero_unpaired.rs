//! Anchored preference optimisation on replies labelled good or bad: the odds of good ones rise, of bad ones fall.
//!
//! ```text
//! h = log π(y|x) − log π_ref(y|x)
//! good: ℓ = λ_D (1 − σ(βh))        bad: ℓ = λ_U σ(βh)
//! ```
//!
//! Source: D'Oosterlinck et al. 2024, "Anchored preference optimization" (arXiv:2408.06266), equation 7, its two halves
//! taken apart, as TRL's `KTOTrainer` with `loss_type="apo_zero_unpaired"`. It is KTO with z₀ = 0, and needs no pre-pass.

use super::kto::KtoConfig;
use super::unpaired;
use crate::catalogue::{ObjectiveInfo, bad_option, parse};
use crate::{Needs, Normaliser, Objective, ObjectiveError, ObjectiveOutput, TokenBatch};

const NAME: &str = "apo_zero_unpaired";

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: NAME,
    summary: "anchored preference optimisation of replies labelled good or bad",
    source: "D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 7",
    equation: "1 - sigmoid(beta * log ratio) if good, sigmoid(beta * log ratio) if bad",
    options: super::kto::INFO.options,
    build: |options| Ok(Box::new(ApoZeroUnpaired::new(parse(NAME, options)?)?)),
};

/// Anchored preference optimisation without pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ApoZeroUnpaired(KtoConfig);

impl ApoZeroUnpaired {
    /// APO with these options.
    ///
    /// # Errors
    /// [`ObjectiveError::Catalogue`] for a value out of range.
    pub fn new(config: KtoConfig) -> Result<ApoZeroUnpaired, ObjectiveError> {
        config.check().map_err(|problem| bad_option(NAME, problem))?;
        Ok(ApoZeroUnpaired(config))
    }
}

impl Objective for ApoZeroUnpaired {
    fn name(&self) -> &'static str {
        NAME
    }

    fn needs(&self) -> Needs {
        Needs { reference_logp: true, ..Needs::default() }
    }

    fn weight(&self, batch: &TokenBatch<'_>) -> f64 {
        self.totals(batch).iter().sum()
    }

    fn totals(&self, batch: &TokenBatch<'_>) -> Vec<f64> {
        unpaired::weights(batch, |weight| weight).to_vec()
    }

    fn evaluate(&self, batch: &TokenBatch<'_>, step: &Normaliser) -> Result<ObjectiveOutput, ObjectiveError> {
        batch.check(NAME, self.needs())?;
        let replies = unpaired::replies(batch, NAME)?;
        self.0.evaluate(batch, step, &replies, 0.0)
    }
}
