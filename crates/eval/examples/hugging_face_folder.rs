//! Writes a llama2.c model and its tokenizer as a Hugging Face folder, for `golden/eval/eval.py`:
//! `cargo run -p pt-eval --example hugging_face_folder -- MODEL.bin TOKENIZER.bin FOLDER`.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, tokenizer, folder] = args.as_slice() else { return Err("MODEL TOKENIZER FOLDER".into()) };
    let model = pt_models::llama2c::import(Path::new(model), pt_engine::Dtype::F32)?;
    let tokenizer = pt_text::Tokenizer::from_llama2c(Path::new(tokenizer))?;
    pt_models::save(&model, Path::new(folder), &pt_models::SaveOptions::default(), |_| Ok(()))?;
    tokenizer.save(Path::new(folder))?;
    Ok(())
}
