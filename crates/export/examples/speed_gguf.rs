//! Writes a random model of SmolLM2-135M's shape as a GGUF file without a tokenizer, for `bench/peer_llama.py`:
//! `cargo run --release -p pt-export --example speed_gguf -- f32|f16|bf16|q8_0 FILE`.

use std::path::PathBuf;

use pt_engine::Dtype;
use pt_export::{GgufOptions, Quant, write_gguf};
use pt_models::NewModel;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(format), Some(file)) = (args.next(), args.next()) else {
        return Err("name a format and a file".into());
    };
    let (quant, dtype) = match &*format {
        "f32" => (Quant::F32, Dtype::F32),
        "f16" => (Quant::F16, Dtype::Bf16),
        "bf16" => (Quant::Bf16, Dtype::Bf16),
        "q8_0" => (Quant::Q8_0, Dtype::Bf16),
        other => return Err(format!("format {other}, expected f32, f16, bf16 or q8_0").into()),
    };
    let model = NewModel::smollm2_135m().build(dtype, 1)?;
    let options = GgufOptions { quant, name: "speed".to_owned() };
    write_gguf(&model, None, &PathBuf::from(file), &options)?;
    Ok(())
}
