//! Writes the golden models as GGUF files without tokenizers, and beside each the Hugging Face folder it was made from, for
//! `golden/export/compare_architectures.py`: `cargo run -p pt-export --example golden_gguf -- FOLDER`.

use std::path::{Path, PathBuf};

use pt_export::{GgufOptions, Quant, write_gguf};
use pt_models::LoadOptions;
use serde_json::{Map, Value, json};

/// A key of config.json, and its value if it has one.
type Change = (&'static str, Option<u64>);

/// Models, and options that must change because llama.cpp has those of the published models only.
const MODELS: &[(&str, &[Change])] = &[
    ("llama_bias", &[]),
    ("llama_rope_linear", &[]),
    ("llama_rope_llama3", &[]),
    ("llama_rope_yarn", &[]),
    ("llama_tied", &[]),
    ("mistral", &[]),
    ("phi3", &[]),
    ("phi3_longrope", &[]),
    ("qwen2", &[]),
    ("qwen3", &[]),
    ("gemma2", &[("query_pre_attn_scalar", Some(16))]),
    (
        "gemma3",
        &[("query_pre_attn_scalar", Some(16)), ("layer_types", None), ("sliding_window_pattern", Some(6))],
    ),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::args_os().nth(1).ok_or("name a folder to write to")?);
    for (name, changes) in MODELS {
        let from = pt_core::testdata::workspace_root().join("golden/models").join(name);
        let folder = out.join(name);
        std::fs::create_dir_all(&folder)?;
        std::fs::copy(from.join("model.safetensors"), folder.join("model.safetensors"))?;
        write_config(&from, &folder, changes)?;
        let model = pt_models::load(&folder, &LoadOptions::default())?;
        let options = GgufOptions { quant: Quant::F32, name: (*name).to_owned() };
        write_gguf(&model, None, &folder.join("model.gguf"), &options)?;
    }
    Ok(())
}

fn write_config(
    from: &Path,
    folder: &Path,
    changes: &[(&str, Option<u64>)],
) -> Result<(), Box<dyn std::error::Error>> {
    let mut config: Map<String, Value> =
        serde_json::from_str(&std::fs::read_to_string(from.join("config.json"))?)?;
    for (key, value) in changes {
        match value {
            Some(value) => drop(config.insert((*key).to_owned(), json!(value))),
            None => drop(config.shift_remove(*key)),
        }
    }
    Ok(std::fs::write(folder.join("config.json"), serde_json::to_string(&config)?)?)
}
