//! `posttrain export`: a model for other programs, read again and held against its source.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use pt_core::atomic_file;
use pt_engine::Dtype;
use pt_export::layout::context_length;
use pt_export::{GgufOptions, Proof, Quant, modelfile, prove_gguf, prove_model, write_gguf};
use pt_models::{LoadOptions, Model, Quantise, SaveOptions};
use pt_text::Tokenizer;

use super::merge::{check_empty, publish, write_tokenizer};
use crate::Context;
use crate::loading::{ModelArgs, TextArgs, own_dtype};
use crate::ui;

/// What models are compared on where no text is named.
pub(super) const TEXT: &str = "\
Once upon a time there was a small town by the sea, and everyone in it knew the old clockmaker.
What is 17 + 25? Let me think: 17 + 25 = 42. So the answer is 42.
fn main() { println!(\"{}\", [1, 2, 3].iter().sum::<i32>()); }
\u{dc}ber den Wolken; caf\u{e9}, na\u{ef}ve, \u{65e5}\u{672c}\u{8a9e}, 12345.678 and  two  spaces.
The quick brown fox didn't jump over the lazy dog, because it wasn't there yesterday.
";
/// Mean divergence per token let pass where nothing is rounded.
pub(super) const EXACT: f64 = 1e-9;
/// The same for 4-bit NF4, which has a scale for 64 values where `q4_0` has one for 32.
const NF4_LIMIT: f64 = 0.35;
/// The same for int8, one scale for a row.
const INT8_LIMIT: f64 = 2e-2;
const MB: u64 = 1_000_000;
/// Transformers' `max_shard_size`, in MB.
const SHARD_MB: u64 = 5000;

const HELP: &str = "\
Formats:
  safetensors  a Hugging Face folder, in shards; with --keep-adapter the adapter alone
  gguf         one file for llama.cpp and what is built on it; --quant says how it is stored
  ollama       the same in a folder with a Modelfile
  nf4, int8    a Hugging Face folder whose linear layers are stored as bitsandbytes stores them

An adapter is merged first. What was written is read again, by its own files only, and held against the source: \
predictions on a text, tokens, rendered conversations, the tokens that end an answer. If something differs by more than is \
allowed the command fails and says what; the files stay for you to look at.

Examples:
  posttrain export --model runs/sft/stages/01-sft/model --format gguf --quant q4_k_m --out model.gguf
  posttrain export --model models/base --adapter runs/sft/stages/01-sft/adapter --format ollama --quant q8_0 --out exported
  posttrain export --model runs/sft/stages/01-sft/model --format safetensors --dtype bf16 --shard-mb 2000 --out exported
  posttrain export --model runs/sft/stages/01-sft/model --format nf4 --out exported";

/// Where a model goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A Hugging Face folder.
    Safetensors,
    /// One GGUF file.
    Gguf,
    /// A Hugging Face folder with linear layers in NF4.
    Nf4,
    /// A Hugging Face folder with linear layers in 8 bits.
    Int8,
    /// A GGUF file and a Modelfile.
    Ollama,
}

/// Options of `export`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    text: TextArgs,
    /// What to write
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Format,
    /// How a GGUF file is stored [default: f16]
    #[arg(long, value_name = "NAME", value_parser = Quant::ALL.map(Quant::name).to_vec())]
    quant: Option<String>,
    /// The file (gguf) or folder to write; it must not be there yet
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Write the adapter as it is, in place of the merged model (safetensors)
    #[arg(long, requires = "adapter")]
    keep_adapter: bool,
    /// Largest size of one file of a Hugging Face folder, in MB [default: 5000]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    shard_mb: Option<u64>,
    /// A text file to compare on [default: a short text]
    #[arg(long, value_name = "FILE")]
    prove_on: Option<PathBuf>,
    /// Mean divergence per token to let pass, in nats [default: by format]
    #[arg(long, value_name = "NATS")]
    max_divergence: Option<f64>,
    /// The model's name in a GGUF file [default: its folder's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// The model to export, adapter merged, and its tokenizer with the chat template asked for.
struct Source {
    model: Model,
    tokenizer: Tokenizer,
    folder: PathBuf,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    args.check()?;
    let text = match &args.prove_on {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read --prove-on {}", path.display()))?,
        None => TEXT.to_owned(),
    };
    let source = Source::load(args, context, !args.keep_adapter)?;
    let proof = match args.format {
        Format::Gguf => args.gguf(&source, &args.out, &text)?,
        Format::Ollama => args.ollama(&source, &text)?,
        Format::Safetensors if args.keep_adapter => args.adapter(&source, &text)?,
        Format::Safetensors | Format::Nf4 | Format::Int8 => args.folder(&source, context, &text)?,
    };
    report(&args.out, &proof)
}

impl Args {
    fn check(&self) -> anyhow::Result<()> {
        let is_gguf = matches!(self.format, Format::Gguf | Format::Ollama);
        if self.quant.is_some() && !is_gguf {
            bail!(
                "--quant is for --format gguf and ollama; for other formats use --dtype, or --format nf4 or int8"
            );
        }
        if self.name.is_some() && !is_gguf {
            bail!("--name is for --format gguf and ollama; the other formats hold no name");
        }
        if self.shard_mb.is_some() && (is_gguf || self.keep_adapter) {
            bail!("--shard-mb is for Hugging Face folders of models; this writes one file");
        }
        if self.keep_adapter && self.format != Format::Safetensors {
            bail!("--keep-adapter is for --format safetensors; the other formats hold merged models");
        }
        if self.format == Format::Gguf && self.out.exists() {
            bail!("--out {} is there already; choose another name", self.out.display());
        }
        check_empty(&self.out)
    }

    fn quant(&self) -> anyhow::Result<Quant> {
        Ok(self.quant.as_deref().unwrap_or(Quant::F16.name()).parse()?)
    }

    fn limit(&self, default: f64) -> f64 {
        self.max_divergence.unwrap_or(default)
    }

    fn gguf(&self, source: &Source, path: &Path, text: &str) -> anyhow::Result<Proof> {
        let quant = self.quant()?;
        let folder_name = source.folder.file_stem().map(|name| name.to_string_lossy().into_owned());
        let name = self.name.clone().or(folder_name).unwrap_or_else(|| "model".to_owned());
        write_gguf(&source.model, Some(&source.tokenizer), path, &GgufOptions { quant, name })?;
        let context = context_length(&source.model.config);
        if context < source.model.config.max_positions {
            ui::note(&format!(
                "note: llama.cpp has no sliding window for this architecture, so the file's context is {context} tokens, \
                 where the model's own is {}; up to there they are the same",
                source.model.config.max_positions
            ));
        }
        let limit = self.limit(quant.max_mean_kl());
        Ok(prove_gguf(&source.model, Some(&source.tokenizer), path, text, limit)?)
    }

    fn ollama(&self, source: &Source, text: &str) -> anyhow::Result<Proof> {
        const MODEL: &str = "model.gguf";
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot make {}", self.out.display()))?;
        let proof = self.gguf(source, &self.out.join(MODEL), text)?;
        let context = context_length(&source.model.config);
        let modelfile = modelfile(&format!("./{MODEL}"), &source.tokenizer, context)?;
        if let Some(problem) = &modelfile.template_problem {
            ui::note(&format!("note: no TEMPLATE in the Modelfile: {problem}"));
        }
        let path = self.out.join("Modelfile");
        atomic_file::write(&path, modelfile.text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(proof)
    }

    fn folder(&self, source: &Source, context: &Context, text: &str) -> anyhow::Result<Proof> {
        let quantise = match self.format {
            Format::Nf4 => Some((Quantise::Nf4 { double: true }, NF4_LIMIT)),
            Format::Int8 => Some((Quantise::Int8, INT8_LIMIT)),
            _ => None,
        };
        let options = SaveOptions { dtype: None, max_shard_bytes: self.shard_mb.unwrap_or(SHARD_MB) * MB };
        let also = |folder: &Path| {
            let no_files = Path::new("");
            let adapter = self.model.adapter.as_deref().unwrap_or(no_files);
            match self.text.template.is_some() || self.text.tokenizer.is_some() {
                true => Ok(source.tokenizer.save(folder)?),
                false => write_tokenizer(&source.folder, adapter, folder),
            }
        };
        match quantise {
            Some((how, _)) => {
                // The source stays as it is, for the comparison.
                let mut model = Source::load(self, context, true)?.model;
                model.quantise(how)?;
                publish(&model, &self.out, &options, also)?;
            }
            None => publish(&source.model, &self.out, &options, also)?,
        }
        let written = pt_models::load(&self.out, &LoadOptions::default())?;
        let limit = self.limit(quantise.map_or(EXACT, |(_, limit)| limit));
        let tokenizer = Tokenizer::from_dir(&self.out)?;
        Ok(prove_model(&source.model, &written, Some((&source.tokenizer, &tokenizer)), text, limit)?)
    }

    fn adapter(&self, source: &Source, text: &str) -> anyhow::Result<Proof> {
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot make {}", self.out.display()))?;
        source.model.save_peft(&self.out, Some(&self.model.model))?;
        let mut written = pt_pipeline::model::load_model(&source.folder, self.model.dtype.map(Dtype::from))?;
        written.attach_peft(&self.out)?;
        // An adapter's folder has no tokenizer; its model's is used with it.
        let both = (&source.tokenizer, &source.tokenizer);
        Ok(prove_model(&source.model, &written, Some(both), text, self.limit(EXACT))?)
    }
}

impl Source {
    fn load(args: &Args, context: &Context, merged: bool) -> anyhow::Result<Source> {
        let folder = args.model.locate(&context.environment)?;
        let mut loaded = args.model.load(&args.text, &context.environment)?;
        let dtype = own_dtype(&loaded.model);
        if merged && loaded.model.adapter().is_some() {
            loaded.model.merge_adapter(dtype)?;
        }
        let mut tokenizer = loaded.tokenizer;
        if let (Some(_), Some(template)) = (&args.text.template, &loaded.template) {
            let mut config = tokenizer.config().clone();
            config.set_chat_template(template.source());
            tokenizer = tokenizer.with_config(config)?;
        }
        Ok(Source { model: loaded.model, tokenizer, folder })
    }
}

/// Says what was found, and fails if something is not right.
pub(super) fn report(out: &Path, proof: &Proof) -> anyhow::Result<()> {
    let found = &proof.divergence;
    if !proof.problems.is_empty() {
        bail!("{} was written and is not what it should be: {}", out.display(), proof.problems.join("; "));
    }
    ui::note(&format!(
        "wrote {}: read again, it diverges from its source by {:.2e} nats per token over {} tokens (at most {:.2e}; allowed on \
         average: {:.1e}), and expects the same next token after {:.1} %; {} texts and renderings are the same tokens; answers \
         end with {:?}",
        out.display(),
        found.mean_kl,
        found.n_tokens,
        found.max_kl,
        proof.max_mean_kl,
        found.same_top * 100.0,
        proof.n_texts,
        proof.stop_ids
    ));
    Ok(())
}
