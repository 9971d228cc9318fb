//! Group relative policy optimisation.
//!
//! ```text
//! ℓ = −min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A) + β KL        L = mean over completions of the mean over their tokens
//! ```
//!
//! Source: Shao et al. 2024, "DeepSeekMath" (arXiv:2402.03300), equation 3. TRL: `loss_type="grpo"`. Two-sided clipping (`delta`):
//! INTELLECT-2 (arXiv:2505.07291). Short completions weigh as much as long ones, so a token of a long one weighs less: that is
//! what `dapo` and `dr_grpo` change. The core it stands on says where it differs from TRL.

use pt_core::catalogue::OptionInfo;

use super::{Aggregation, Form, Surrogate};
use crate::catalogue::ObjectiveInfo;
use crate::policy_gradient::options;

const FORM: Form =
    Form { name: "grpo", surrogate: Surrogate::Clip, aggregation: Aggregation::SequenceMean, level: None };

const OPTIONS: [OptionInfo; options::GRPO.len()] = options::GRPO;

/// The catalogue's entry.
pub(crate) const INFO: ObjectiveInfo = ObjectiveInfo {
    name: FORM.name,
    summary: "group relative policy optimisation: clipped surrogate, mean over each completion, then over completions",
    source: "Shao et al. 2024, arXiv:2402.03300, equation 3; without the divergence (beta 0), as TRL",
    equation: "-min(r A, clip(r, 1 - e, 1 + e_high) A) + beta KL; mean over tokens, then over completions",
    options: &OPTIONS,
    build: |given| Ok(Box::new(options::build(FORM, &OPTIONS, given)?)),
};
