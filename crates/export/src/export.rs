//! A model as a GGUF file, and the proof that the file holds it.

use std::path::Path;

use pt_models::{Model, ModelConfig, ModelError};
use pt_text::{Message, TemplateInputs, Tokenizer};
use serde_json::{Value as Json, json};

use crate::divergence::{Divergence, divergence};
use crate::error::{ExportError, Result};
use crate::gguf::{self, GgufFile, TensorSource};
use crate::layout::{Transform, context_length, extra_tensors, metadata_of, model_of, place};
use crate::mixture::{Quant, TensorRole};
use crate::quant::TensorType;
use crate::vocab::{put_vocab, tokenizer_of};

/// The version of the block formats.
const QUANTISATION_VERSION: u32 = 2;
/// Tokens compared at most, and in one sequence.
const MAX_TOKENS: usize = 256;
/// Tokens compared where there is no tokenizer.
const N_BARE_TOKENS: usize = 24;

/// What a file is called and how it is stored.
#[derive(Clone, Debug)]
pub struct GgufOptions {
    /// How weights are stored.
    pub quant: Quant,
    /// `general.name`.
    pub name: String,
}

/// Writes a model and its tokenizer as one GGUF file.
///
/// # Errors
/// [`ExportError::Unsupported`] for what has no place in the file, [`ExportError::Io`]; [`ExportError::Model`] if an
/// adapter is attached.
pub fn write_gguf(
    model: &Model,
    tokenizer: Option<&Tokenizer>,
    path: &Path,
    options: &GgufOptions,
) -> Result<()> {
    if model.adapter().is_some() {
        let problem = "an adapter is attached; merge it before the export".to_owned();
        return Err(ModelError::State { problem }.into());
    }
    let mut metadata = metadata_of(&model.config)?;
    metadata.set("general.type", "model");
    metadata.set("general.name", options.name.as_str());
    metadata.set("general.size_label", size_label(&model.config).as_str());
    metadata.set("general.file_type", options.quant.file_type());
    metadata.set("general.quantization_version", QUANTISATION_VERSION);
    match tokenizer {
        Some(tokenizer) => put_vocab(tokenizer, model.config.vocab_size, &mut metadata)?,
        None => metadata.set("tokenizer.ggml.model", "none"),
    }
    gguf::write(path, &metadata, &tensors(model, options.quant)?)
}

fn tensors(model: &Model, quant: Quant) -> Result<Vec<TensorSource<'_>>> {
    let mut out = Vec::new();
    for extra in extra_tensors(&model.config) {
        let shape = vec![extra.values.len()];
        let values = Box::new(move || extra.values.clone());
        out.push(TensorSource { name: extra.name.to_owned(), shape, kind: TensorType::F32, values });
    }
    let specs = model.config.param_specs();
    for spec in specs {
        let place = place(&model.config, &spec)?;
        let id = model.params.find(&spec.name).expect("a model has what its configuration declares");
        let role = TensorRole {
            name: &place.name,
            shape: &spec.shape,
            n_layers: model.config.n_layers,
            tied: model.config.tied,
        };
        let kind = quant.tensor_type(&role);
        let width = if spec.shape.len() == 2 { spec.shape[1] } else { 1 };
        let transform: Transform = place.transform;
        let values = Box::new(move || transform.apply(model.params.get(id).weight.to_f32(), width));
        out.push(TensorSource { name: place.name, shape: spec.shape, kind, values });
    }
    Ok(out)
}

/// Parameters as people say them: 135M, 1.2B.
fn size_label(config: &ModelConfig) -> String {
    let n = config.n_params() as f64;
    match n {
        _ if n >= 1e9 => format!("{:.1}B", n / 1e9),
        _ if n >= 1e6 => format!("{:.0}M", n / 1e6),
        _ => format!("{:.0}K", n / 1e3),
    }
}

/// What was found when an export was read again.
#[derive(Clone, Debug)]
pub struct Proof {
    /// Predictions of source and export.
    pub divergence: Divergence,
    /// The mean divergence let pass.
    pub max_mean_kl: f64,
    /// Texts that were compared as tokens, renderings of the chat template among them.
    pub n_texts: usize,
    /// Tokens that end an answer, of the source.
    pub stop_ids: Vec<u32>,
    /// What is not as it should be; nothing where the export is right.
    pub problems: Vec<String>,
}

/// Reads a file again and compares it with its source: predictions on `text`, tokens of `text` and of rendered conversations,
/// the renderings themselves, and the tokens that end an answer.
///
/// # Errors
/// Those of reading the file. Differences are no errors: they are [`Proof::problems`].
pub fn prove_gguf(
    source: &Model,
    tokenizer: Option<&Tokenizer>,
    path: &Path,
    text: &str,
    max_mean_kl: f64,
) -> Result<Proof> {
    let file = GgufFile::open(path)?;
    let export = model_of(&file)?;
    let mut proof = Proof {
        divergence: Divergence::default(),
        max_mean_kl,
        n_texts: 0,
        stop_ids: Vec::new(),
        problems: Vec::new(),
    };
    if let Some(tokenizer) = tokenizer {
        proof.stop_ids = tokenizer.eos_ids().to_vec();
        let export = tokenizer_of(&file)?;
        compare_tokenizers(tokenizer, &export, text, &mut proof)?;
    }
    let sequences = sequences(source, tokenizer, text, context_length(&source.config))?;
    proof.compare(source, &export, &sequences);
    Ok(proof)
}

/// Compares a model that was written and read again with its source; `tokenizers` are the source's and that read again.
///
/// # Errors
/// Those of the tokenizers.
pub fn prove_model(
    source: &Model,
    export: &Model,
    tokenizers: Option<(&Tokenizer, &Tokenizer)>,
    text: &str,
    max_mean_kl: f64,
) -> Result<Proof> {
    let tokenizer = tokenizers.map(|(source, _)| source);
    let mut proof = Proof {
        divergence: Divergence::default(),
        max_mean_kl,
        n_texts: 0,
        stop_ids: tokenizer.map_or(Vec::new(), |t| t.eos_ids().to_vec()),
        problems: Vec::new(),
    };
    if let Some((source, export)) = tokenizers {
        compare_tokenizers(source, export, text, &mut proof)?;
    }
    let sequences = sequences(source, tokenizer, text, source.config.max_positions)?;
    proof.compare(source, export, &sequences);
    Ok(proof)
}

impl Proof {
    fn compare(&mut self, source: &Model, export: &Model, sequences: &[Vec<u32>]) {
        self.divergence = divergence(source, export, sequences);
        if !self.divergence.is_within(self.max_mean_kl) {
            self.problems.push(format!(
                "its predictions diverge from the source's by {:.3e} nats per token (at most {:.3e}), where {:.1e} is allowed",
                self.divergence.mean_kl, self.divergence.max_kl, self.max_mean_kl
            ));
        }
    }
}

/// The tokens models are compared on: those of `text` up to a number that is enough, in pieces of at most `context`; any
/// tokens where there is no tokenizer.
///
/// # Errors
/// Those of the tokenizer; [`ExportError::Option`] for a text without a token of the model.
pub fn sequences(
    model: &Model,
    tokenizer: Option<&Tokenizer>,
    text: &str,
    context: usize,
) -> Result<Vec<Vec<u32>>> {
    let vocabulary = model.config.vocab_size;
    let longest = context.clamp(1, MAX_TOKENS);
    let mut ids = match tokenizer {
        Some(tokenizer) => tokenizer.encode(text, true)?.ids,
        None => (0..N_BARE_TOKENS).map(|i| (i * 7919 % vocabulary) as u32).collect(),
    };
    ids.retain(|id| (*id as usize) < vocabulary);
    ids.truncate(MAX_TOKENS);
    if ids.is_empty() {
        let expected = "a text of at least one token of the model".to_owned();
        return Err(ExportError::Option { option: "text", found: format!("{text:?}"), expected });
    }
    Ok(ids.chunks(longest).map(<[u32]>::to_vec).collect())
}

fn compare_tokenizers(source: &Tokenizer, export: &Tokenizer, text: &str, proof: &mut Proof) -> Result<()> {
    let (ours, theirs) = (source.eos_ids(), export.eos_ids());
    let missing: Vec<&u32> = ours.iter().filter(|id| !theirs.contains(id)).collect();
    if !missing.is_empty() || ours.len() != theirs.len() {
        proof
            .problems
            .push(format!("the tokens that end an answer are {theirs:?} in it, {ours:?} in the source"));
    }
    let mut texts: Vec<String> = text.lines().map(str::to_owned).collect();
    texts.push(text.to_owned());
    compare_templates(source, export, &mut texts, proof)?;
    for text in &texts {
        let (a, b) = (source.encode(text, true)?.ids, export.encode(text, true)?.ids);
        if a != b {
            let at = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
            let shown: String = text.chars().take(40).collect();
            proof.problems.push(format!("its tokenizer reads {shown:?}... otherwise from token {at} on"));
            break;
        }
        if source.decode(&a, false)? != export.decode(&b, false)? {
            proof.problems.push(format!("its tokenizer writes the tokens of {text:?} as another text"));
            break;
        }
    }
    proof.n_texts = texts.len();
    Ok(())
}

fn compare_templates(
    source: &Tokenizer,
    export: &Tokenizer,
    texts: &mut Vec<String>,
    proof: &mut Proof,
) -> Result<()> {
    let (a, b) = match (source.chat_template(None), export.chat_template(None)) {
        (Ok(a), Ok(b)) => (a, b),
        (Err(_), Err(_)) => return Ok(()),
        (a, _) => {
            let who = if a.is_ok() { "the source" } else { "the export" };
            proof.problems.push(format!("only {who} has a chat template"));
            return Ok(());
        }
    };
    for (conversation, ends_open) in conversations() {
        let inputs = |tokenizer: &Tokenizer| TemplateInputs {
            variables: tokenizer.template_variables(),
            ..TemplateInputs::default()
        };
        let ours = a.render(&conversation, ends_open, &inputs(source));
        let theirs = b.render(&conversation, ends_open, &inputs(export));
        match (ours, theirs) {
            (Ok(ours), Ok(theirs)) if ours == theirs => texts.push(ours),
            // A template that refuses a system message refuses it in both.
            (Err(_), Err(_)) => {}
            _ => proof.problems.push(format!(
                "its chat template renders a conversation of {} messages otherwise",
                conversation.len()
            )),
        }
    }
    Ok(())
}

/// Conversations that templates are compared on, and whether an answer follows.
pub(crate) fn conversations() -> Vec<(Vec<Message>, bool)> {
    let message = |role: &str, content: &str| -> Message {
        let Json::Object(map) = json!({"role": role, "content": content}) else { unreachable!("an object") };
        map
    };
    let (system, user) =
        (message("system", "Answer briefly."), message("user", "What is 17 + 25?\nShow it."));
    let (assistant, more) = (message("assistant", "17 + 25 = 42"), message("user", "Thank you!"));
    vec![
        (vec![user.clone()], true),
        (vec![user.clone(), assistant.clone()], false),
        (vec![system.clone(), user.clone()], true),
        (vec![system, user.clone(), assistant.clone(), more.clone()], true),
        (vec![user, assistant, more], true),
    ]
}
