//! A model in one of the forms other programs read, read again and held against its source.

use std::path::Path;

use pt_core::atomic_file;
use pt_models::{LoadOptions, Model, ModelError, Quantise, SaveOptions};
use pt_text::Tokenizer;

use crate::error::{ExportError, Result};
use crate::export::{GgufOptions, Proof, prove_gguf, prove_model, write_gguf};
use crate::layout::context_length;
use crate::mixture::Quant;
use crate::modelfile::modelfile;

/// What models are compared on where no text is named.
pub const PROOF_TEXT: &str = "\
Once upon a time there was a small town by the sea, and everyone in it knew the old clockmaker.
What is 17 + 25? Let me think: 17 + 25 = 42. So the answer is 42.
fn main() { println!(\"{}\", [1, 2, 3].iter().sum::<i32>()); }
\u{dc}ber den Wolken; caf\u{e9}, na\u{ef}ve, \u{65e5}\u{672c}\u{8a9e}, 12345.678 and  two  spaces.
The quick brown fox didn't jump over the lazy dog, because it wasn't there yesterday.
";
/// Mean divergence per token let pass where nothing is rounded.
pub const EXACT: f64 = 1e-9;
/// The same for 4-bit NF4, which has a scale for 64 values where `q4_0` has one for 32.
const NF4_LIMIT: f64 = 0.35;
/// The same for int8, one scale for a row.
const INT8_LIMIT: f64 = 2e-2;
/// The GGUF file in a folder for Ollama.
const GGUF_FILE: &str = "model.gguf";

/// What a model is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A Hugging Face folder.
    Safetensors,
    /// One GGUF file.
    Gguf,
    /// A GGUF file and a Modelfile.
    Ollama,
    /// A Hugging Face folder with linear layers in NF4.
    Nf4,
    /// A Hugging Face folder with linear layers in 8 bits.
    Int8,
}

impl Format {
    /// Whether it is, or has, a GGUF file.
    pub fn is_gguf(self) -> bool {
        matches!(self, Format::Gguf | Format::Ollama)
    }

    /// How the linear layers of a folder are stored, and the divergence that costs.
    fn quantises(self) -> Option<(Quantise, f64)> {
        match self {
            Format::Nf4 => Some((Quantise::Nf4 { double: true }, NF4_LIMIT)),
            Format::Int8 => Some((Quantise::Int8, INT8_LIMIT)),
            Format::Safetensors | Format::Gguf | Format::Ollama => None,
        }
    }
}

/// How a model is written.
#[derive(Clone, Debug)]
pub struct PublishOptions<'a> {
    /// As what.
    pub format: Format,
    /// How a GGUF file is stored.
    pub quant: Quant,
    /// The model's name in a GGUF file.
    pub name: String,
    /// Largest size of one file of a folder.
    pub max_shard_bytes: u64,
    /// What source and export are compared on.
    pub text: &'a str,
    /// Mean divergence per token to let pass, in nats; `None` is the format's own.
    pub max_divergence: Option<f64>,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Published {
    /// What reading it again found; [`Proof::problems`] is to be looked at.
    pub proof: Proof,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Writes a model, its adapter merged, to `out` and proves it. `again` reads the model once more, for a format that rounds it;
/// `text_files` puts the tokenizer's files into a folder.
///
/// # Errors
/// What has no place in the format, and the file system's refusals. Differences are no errors: they are in the proof.
pub fn publish(
    model: &Model,
    tokenizer: &Tokenizer,
    out: &Path,
    options: &PublishOptions<'_>,
    again: &dyn Fn() -> Result<Model>,
    text_files: &dyn Fn(&Path) -> Result<()>,
) -> Result<Published> {
    match options.format {
        Format::Gguf => publish_gguf(model, tokenizer, out, options),
        Format::Ollama => publish_ollama(model, tokenizer, out, options),
        Format::Safetensors | Format::Nf4 | Format::Int8 => {
            publish_folder(model, tokenizer, out, options, again, text_files)
        }
    }
}

fn publish_gguf(
    model: &Model,
    tokenizer: &Tokenizer,
    path: &Path,
    options: &PublishOptions<'_>,
) -> Result<Published> {
    let gguf = GgufOptions { quant: options.quant, name: options.name.clone() };
    write_gguf(model, Some(tokenizer), path, &gguf)?;
    let (context, own) = (context_length(&model.config), model.config.max_positions);
    let mut notes = Vec::new();
    if context < own {
        notes.push(format!(
            "llama.cpp has no sliding window for this architecture, so the file's context is {context} tokens, where the \
             model's own is {own}; up to there they are the same"
        ));
    }
    let limit = options.max_divergence.unwrap_or(options.quant.max_mean_kl());
    let proof = prove_gguf(model, Some(tokenizer), path, options.text, limit)?;
    Ok(Published { proof, notes })
}

fn publish_ollama(
    model: &Model,
    tokenizer: &Tokenizer,
    out: &Path,
    options: &PublishOptions<'_>,
) -> Result<Published> {
    std::fs::create_dir_all(out).map_err(ExportError::io(out, "making"))?;
    let mut published = publish_gguf(model, tokenizer, &out.join(GGUF_FILE), options)?;
    let modelfile = modelfile(&format!("./{GGUF_FILE}"), tokenizer, context_length(&model.config))?;
    if let Some(problem) = &modelfile.template_problem {
        published.notes.push(format!("no TEMPLATE in the Modelfile: {problem}"));
    }
    let path = out.join("Modelfile");
    atomic_file::write(&path, modelfile.text.as_bytes()).map_err(ExportError::io(&path, "writing"))?;
    Ok(published)
}

fn publish_folder(
    model: &Model,
    tokenizer: &Tokenizer,
    out: &Path,
    options: &PublishOptions<'_>,
    again: &dyn Fn() -> Result<Model>,
    text_files: &dyn Fn(&Path) -> Result<()>,
) -> Result<Published> {
    let save = SaveOptions { dtype: None, max_shard_bytes: options.max_shard_bytes };
    let also =
        |folder: &Path| text_files(folder).map_err(|error| ModelError::State { problem: error.to_string() });
    let quantises = options.format.quantises();
    match quantises {
        // The source stays as it is, for the comparison.
        Some((how, _)) => {
            let mut rounded = again()?;
            rounded.quantise(how)?;
            pt_models::save(&rounded, out, &save, also)?;
        }
        None => pt_models::save(model, out, &save, also)?,
    }
    let limit = options.max_divergence.unwrap_or(quantises.map_or(EXACT, |(_, limit)| limit));
    let proof = prove_folder(model, Some(tokenizer), out, options.text, limit)?;
    Ok(Published { proof, notes: Vec::new() })
}

/// Reads a Hugging Face folder again, with nothing but what is in it, and compares it with the model it was written from; with its
/// tokenizer, too, where the source has one.
///
/// # Errors
/// A folder that cannot be read. Differences are no errors: they are in the proof.
pub fn prove_folder(
    source: &Model,
    tokenizer: Option<&Tokenizer>,
    folder: &Path,
    text: &str,
    max_mean_kl: f64,
) -> Result<Proof> {
    let written = pt_models::load(folder, &LoadOptions::default())?;
    let again = tokenizer.map(|_| Tokenizer::from_dir(folder)).transpose()?;
    prove_model(source, &written, tokenizer.zip(again.as_ref()), text, max_mean_kl)
}

impl Proof {
    /// What was found, in a sentence.
    pub fn summary(&self) -> String {
        let found = &self.divergence;
        format!(
            "read again, it diverges from its source by {:.2e} nats per token over {} tokens (at most {:.2e}; allowed on \
             average: {:.1e}), and expects the same next token after {:.1} %; {} texts and renderings are the same tokens; answers \
             end with {:?}",
            found.mean_kl,
            found.n_tokens,
            found.max_kl,
            self.max_mean_kl,
            found.same_top * 100.0,
            self.n_texts,
            self.stop_ids
        )
    }
}
