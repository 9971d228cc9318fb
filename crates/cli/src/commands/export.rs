//! `posttrain export`: a model for other programs, read again and held against its source.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use pt_engine::Dtype;
pub(super) use pt_export::{EXACT, PROOF_TEXT};
use pt_export::{ExportError, Proof, PublishOptions, Quant, prove_model};
use pt_models::{Model, ModelError};
use pt_text::Tokenizer;

use super::merge::{check_empty, write_tokenizer};
use crate::Context;
use crate::loading::{ModelArgs, TextArgs};
use crate::ui;

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

impl From<Format> for pt_export::Format {
    fn from(format: Format) -> pt_export::Format {
        match format {
            Format::Safetensors => pt_export::Format::Safetensors,
            Format::Gguf => pt_export::Format::Gguf,
            Format::Nf4 => pt_export::Format::Nf4,
            Format::Int8 => pt_export::Format::Int8,
            Format::Ollama => pt_export::Format::Ollama,
        }
    }
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
        None => PROOF_TEXT.to_owned(),
    };
    let source = Source::load(args, context, !args.keep_adapter)?;
    let proof = match args.keep_adapter {
        true => args.adapter(&source, &text)?,
        false => args.publish(&source, context, &text)?,
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

    /// How the model is written, and the text it is compared on.
    fn options<'a>(&self, source: &Source, text: &'a str) -> anyhow::Result<PublishOptions<'a>> {
        let folder_name = source.folder.file_stem().map(|name| name.to_string_lossy().into_owned());
        Ok(PublishOptions {
            format: self.format.into(),
            quant: self.quant()?,
            name: self.name.clone().or(folder_name).unwrap_or_else(|| "model".to_owned()),
            max_shard_bytes: self.shard_mb.unwrap_or(SHARD_MB) * MB,
            text,
            max_divergence: self.max_divergence,
        })
    }

    #[expect(clippy::result_large_err, reason = "the error of a loader is pt-export's own, and made once")]
    fn publish(&self, source: &Source, context: &Context, text: &str) -> anyhow::Result<Proof> {
        let state =
            |error: anyhow::Error| ExportError::from(ModelError::State { problem: format!("{error:#}") });
        let again = || Ok(Source::load(self, context, true).map_err(state)?.model);
        let text_files = |folder: &Path| {
            let no_files = Path::new("");
            let adapter = self.model.adapter.as_deref().unwrap_or(no_files);
            match self.text.template.is_some() || self.text.tokenizer.is_some() {
                true => Ok(source.tokenizer.save(folder)?),
                false => write_tokenizer(&source.folder, adapter, folder).map_err(state),
            }
        };
        let options = self.options(source, text)?;
        let published =
            pt_export::publish(&source.model, &source.tokenizer, &self.out, &options, &again, &text_files)?;
        published.notes.iter().for_each(|note| ui::note(&format!("note: {note}")));
        Ok(published.proof)
    }

    fn adapter(&self, source: &Source, text: &str) -> anyhow::Result<Proof> {
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot make {}", self.out.display()))?;
        source.model.save_peft(&self.out, Some(&self.model.model))?;
        let mut written = pt_pipeline::model::load_model(&source.folder, self.model.dtype.map(Dtype::from))?;
        written.attach_peft(&self.out)?;
        // An adapter's folder has no tokenizer; its model's is used with it.
        let both = (&source.tokenizer, &source.tokenizer);
        Ok(prove_model(&source.model, &written, Some(both), text, self.max_divergence.unwrap_or(EXACT))?)
    }
}

impl Source {
    fn load(args: &Args, context: &Context, merged: bool) -> anyhow::Result<Source> {
        let folder = args.model.locate(&context.environment)?;
        let mut loaded = args.model.load(&args.text, &context.environment)?;
        let dtype = pt_pipeline::own_dtype(&loaded.model);
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
    if !proof.problems.is_empty() {
        bail!("{} was written and is not what it should be: {}", out.display(), proof.problems.join("; "));
    }
    ui::note(&format!("wrote {}: {}", out.display(), proof.summary()));
    Ok(())
}
