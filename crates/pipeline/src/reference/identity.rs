//! What a model says, identified by what it computes with.

use pt_core::hash;
use pt_engine::{Host, Param};
use pt_models::Model;

use super::Scoring;

/// Bumped when the same weights and tokens would get other values.
const VERSION: &str = concat!("reference log-probabilities 2, ", env!("CARGO_PKG_VERSION"));

/// Identifies a model by its configuration, its weights and its adapter, with the types and instructions that it computes in. An
/// adapter that has no effect yet is left out, so that all adapters of one base find the same values.
pub(crate) fn of(scoring: Scoring<'_>) -> String {
    let Scoring { model, dtype, temperature } = scoring;
    let has_effect = adapter_has_effect(model);
    let adapter = model.adapter().filter(|_| has_effect).map(|adapter| format!("{:?}", adapter.config));
    let head = format!(
        "{VERSION} {dtype:?} {} {} {adapter:?} {}",
        temperature.to_bits(),
        pt_kernels::isa::current().name(),
        serde_json::to_string(model.config.raw()).expect("a configuration is JSON")
    );
    let counts = |param: &Param| (has_effect || !param.name.contains(ADAPTER)) && !is_beside(param);
    let weights: Vec<String> =
        model.params.iter().filter(|(_, param)| counts(param)).map(|(_, param)| of_param(param)).collect();
    hash::of_parts(std::iter::once(head.as_bytes()).chain(weights.iter().map(String::as_bytes)))
}

/// Part of the name of every parameter of an adapter.
const ADAPTER: &str = "lora_";

/// Score heads say nothing of tokens.
fn is_beside(param: &Param) -> bool {
    param.name == pt_models::ScoreHead::NAME
}

/// Whether an adapter changes what the model says: not while every B is zero, unless it scales rows as well.
fn adapter_has_effect(model: &Model) -> bool {
    let Some(adapter) = model.adapter() else { return true };
    let mut second = model.params.iter().filter(|(_, param)| param.name.contains("lora_B"));
    adapter.config.dora || second.any(|(_, param)| param.weight.to_f32().iter().any(|value| *value != 0.0))
}

fn of_param(param: &Param) -> String {
    let head = format!("{} {:?} {}", param.name, param.shape, param.weight.dtype_name());
    let bytes: Vec<u8> = match &*param.weight.to_host() {
        Host::Bf16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Host::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        quantised => quantised.to_f32().iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    hash::of_parts([head.as_bytes(), &bytes])
}
