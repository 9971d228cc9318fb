//! Models named on the command line, with their tokenizer, chat template and adapter.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use pt_engine::Dtype;
use pt_models::{Model, PeftConfig};
use pt_pipeline::model::{chat_template, load_model, locate_model, tokenizer_at};
use pt_pipeline::own_dtype;
use pt_pipeline::scorer::{Scorer, is_scorer, load_scorer};
use pt_text::{ChatTemplate, Tokenizer};

use crate::environment::Environment;
use crate::hub::{ensure_model, ensure_tokenizer};
use crate::ui;

/// Storage types by the names of recipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeName {
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats, accumulated in 32 bits.
    Bf16,
}

impl From<DtypeName> for Dtype {
    fn from(name: DtypeName) -> Dtype {
        match name {
            DtypeName::F32 => Dtype::F32,
            DtypeName::Bf16 => Dtype::Bf16,
        }
    }
}

/// Which tokenizer and chat template.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Text")]
pub(crate) struct TextArgs {
    /// A folder with a tokenizer, or a tokenizer file [default: the model's]
    #[arg(long, value_name = "PATH")]
    pub(crate) tokenizer: Option<String>,
    /// A chat template file (Jinja) [default: the tokenizer's]
    #[arg(long, value_name = "FILE")]
    pub(crate) template: Option<String>,
}

/// Which model.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// A Hugging Face model folder, a model on the hub (`owner/name`), or a llama2.c file
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: String,
    /// Branch, tag or commit of a model on the hub
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub(crate) revision: String,
    /// A folder with a PEFT adapter for the model
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Storage type of weights and activations [default: that of the files]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) dtype: Option<DtypeName>,
}

/// A model ready to compute with.
pub(crate) struct Loaded {
    /// The weights, with the adapter if one was named.
    pub(crate) model: Model,
    /// Storage of activations.
    pub(crate) dtype: Dtype,
    /// The tokenizer.
    pub(crate) tokenizer: Tokenizer,
    /// The chat template, if there is one.
    pub(crate) template: Option<ChatTemplate>,
}

impl Loaded {
    /// Token ids the model has embeddings for.
    pub(crate) fn vocabulary(&self) -> usize {
        vocabulary(&self.model)
    }
}

/// Token ids a model has embeddings for.
pub(crate) fn vocabulary(model: &Model) -> usize {
    model.params.get(model.arch.head()).shape[0]
}

impl TextArgs {
    /// The tokenizer named, or that beside the model; and its chat template.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub(crate) fn load(
        &self,
        model: Option<&Path>,
        environment: &Environment,
    ) -> anyhow::Result<(Tokenizer, Option<ChatTemplate>)> {
        let tokenizer = match (&self.tokenizer, model) {
            (Some(name), _) => {
                ensure_tokenizer(name, "main", environment)?;
                tokenizer_at(&locate_model(name, "main", &environment.surroundings())?)?
            }
            (None, Some(model)) => {
                // Beside a llama2.c file lies its tokenizer; the file itself is none.
                let folder = if model.is_dir() { model } else { model.parent().unwrap_or(Path::new(".")) };
                let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
                let advice = || {
                    format!("no tokenizer beside the model {}; name one with --tokenizer", model.display())
                };
                Tokenizer::from_dir(folder).with_context(advice)?
            }
            (None, None) => bail!("name a tokenizer with --tokenizer, or a model with --model"),
        };
        let template = chat_template(self.template.as_deref(), &tokenizer)?;
        Ok((tokenizer, template))
    }
}

impl ModelArgs {
    /// Where the model is; one that is only on the hub is downloaded.
    ///
    /// # Errors
    /// If it is neither there nor in the hub cache.
    pub(crate) fn locate(&self, environment: &Environment) -> anyhow::Result<PathBuf> {
        ensure_model(&self.model, &self.revision, environment)?;
        Ok(locate_model(&self.model, &self.revision, &environment.surroundings())?)
    }

    /// Reads the reward model that the arguments name; `None` if they name a language model.
    ///
    /// # Errors
    /// If one of its files is not right.
    pub(crate) fn load_scorer(
        &self,
        text: &TextArgs,
        environment: &Environment,
    ) -> anyhow::Result<Option<Scorer>> {
        let path = self.locate(environment)?;
        let dtype = self.dtype.map(Dtype::from);
        let is_scorer = path.is_dir() && is_scorer(&path);
        let model = match &self.adapter {
            Some(adapter) if PeftConfig::read(adapter)?.score_head.is_some() => {
                let mut model = load_model(&path, dtype)?;
                model.attach_peft(adapter)?;
                model
            }
            _ if is_scorer => load_scorer(&path, dtype)?,
            _ => return Ok(None),
        };
        let (tokenizer, template) = text.load(Some(self.adapter.as_deref().unwrap_or(&path)), environment)?;
        Ok(Some(Scorer::new(model, tokenizer, template)?))
    }

    /// Reads model, adapter, tokenizer and template.
    ///
    /// # Errors
    /// If one of them is not there or not right.
    pub(crate) fn load(&self, text: &TextArgs, environment: &Environment) -> anyhow::Result<Loaded> {
        let path = self.locate(environment)?;
        let (tokenizer, template) = text.load(Some(&path), environment)?;
        let mut model = load_model(&path, self.dtype.map(Dtype::from))?;
        if let Some(adapter) = &self.adapter {
            model.attach_peft(adapter)?;
        }
        let dtype = self.dtype.map_or_else(|| own_dtype(&model), Dtype::from);
        let loaded = Loaded { model, dtype, tokenizer, template };
        if loaded.tokenizer.vocab_size() > loaded.vocabulary() {
            ui::note(&format!(
                "note: the tokenizer has {} tokens and the model {}; rows that use the others are refused",
                loaded.tokenizer.vocab_size(),
                loaded.vocabulary()
            ));
        }
        Ok(loaded)
    }
}
