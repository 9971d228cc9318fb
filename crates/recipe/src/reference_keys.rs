//! The keys of the reference policy, declared as those in `keys.rs` are.

use crate::schema::Fallback::{Derived, Value};
use crate::schema::Kind::{Float, Int, String as Text};
use crate::schema::section;

section! {
    /// The policy that divergence is measured from, in stages that read one: dpo, kto, bco, and those that sample with a divergence in loss or reward.
    ReferenceSection at "stage.reference" as "[stage.reference]"
    keys {
        model: Option<String>, Text, Derived { rule: "the model as the stage finds it", example: "\"models/reference\"" }, "\"models/other\"",
            "Another model as the reference: a Hugging Face model folder, a name on the hub, or `stage:NAME`, with the policy's tokenizer. Policy and reference may then differ before the first step. (TRL: ref_model.)";
        sync_steps: Option<u64>, Int { min: 1, max: 1_000_000_000 }, Derived { rule: "none: the reference stays as it is", example: "512" }, "64",
            "Steps between updates of the reference by the policy (TR-DPO); in stages that sample, at the first round after. (TRL: sync_ref_model with ref_model_sync_steps.)";
        mixup_alpha: f64, Float { min: 0.0, max: 1.0 }, Value("0.6"), "1.0",
            "With `sync_steps`: the policy's share in the reference after an update, in every weight that trains; 1 replaces it. (TRL: ref_model_mixup_alpha.)";
    }
    sections { }
}
