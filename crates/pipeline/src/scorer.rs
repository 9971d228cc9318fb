//! Scores of replies by a reward model.

use std::path::{Path, PathBuf};

use pt_data::{Body, Content, Message, Record};
use pt_engine::{Dtype, Tape};
use pt_models::{LoadOptions, Model, PeftConfig, ScoreHeadKind};
use pt_recipe::{Mask, Truncation};
use pt_text::{ChatTemplate, Tokenizer};
use pt_train::{Example, MicroBatch, Reply, ScoredToken};
use serde_json::Map;

use crate::error::{PipelineError, Result};
use crate::model::{chat_template, tokenizer_at};
use crate::tokenise::{TokeniseOptions, example, masker};

/// Most tokens scored at once; a longer reply is scored alone.
const TOKENS_PER_BATCH: usize = 4096;

/// A reward model with its tokenizer.
#[derive(Debug)]
pub struct Scorer {
    model: Model,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    dtype: Dtype,
}

/// Whether a folder holds a reward model, by its config.json or its adapter_config.json; a folder that cannot be read does not.
pub fn is_scorer(path: &Path) -> bool {
    score_head_at(path).is_ok_and(|kind| kind.is_some())
}

/// What a folder's model, or adapter, scores, by its configuration alone: whole texts, tokens, or nothing.
///
/// # Errors
/// A configuration that cannot be read.
pub fn score_head_at(path: &Path) -> Result<Option<ScoreHeadKind>> {
    if path.join("adapter_config.json").is_file() {
        return Ok(PeftConfig::read(path)?.score_head);
    }
    Ok(pt_models::load_any_config(path, &[])?.score_head.map(|head| head.kind))
}

/// The reward model of a folder: transformers' sequence or token classification, or an adapter of one, whose base model is where
/// the adapter says.
///
/// # Errors
/// [`PipelineError::Unsupported`] if it has no score head; if it cannot be read.
pub fn load_scorer(path: &Path, dtype: Option<Dtype>) -> Result<Model> {
    let options = LoadOptions { dtype, score_head: true, ..LoadOptions::default() };
    let base = base_of(path)?;
    // Before any weight is read: an adapter brings its head along, or its base has one.
    let of_base = base.as_deref().map(score_head_at).transpose()?.flatten();
    if score_head_at(path)?.or(of_base).is_none() {
        return Err(PipelineError::Unsupported {
            what: format!("{} is a language model without a score head", path.display()),
            advice: "give a reward model: what a `reward` stage wrote, or a ...ForSequenceClassification"
                .to_owned(),
        });
    }
    let mut model = pt_models::load(base.as_deref().unwrap_or(path), &options)?;
    if base.is_some() {
        model.attach_peft(path)?;
    }
    model.freeze();
    Ok(model)
}

/// The folder of the model that an adapter stands on; `None` where `path` is no adapter.
///
/// # Errors
/// [`PipelineError::Unsupported`] if the adapter names none; if its configuration cannot be read.
pub(crate) fn base_of(path: &Path) -> Result<Option<PathBuf>> {
    if !path.join("adapter_config.json").is_file() {
        return Ok(None);
    }
    let base = PeftConfig::read(path)?.base_model.ok_or_else(|| PipelineError::Unsupported {
        what: format!("the adapter in {} names no base model", path.display()),
        advice: "merge it into its base with `posttrain merge`, and give the merged folder".to_owned(),
    })?;
    let beside = path.join(&base);
    Ok(Some(if beside.is_dir() { beside } else { PathBuf::from(base) }))
}

impl Scorer {
    /// Reads the reward model of a folder, with its tokenizer and chat template.
    ///
    /// # Errors
    /// As [`load_scorer`]; if it scores tokens and not texts.
    pub fn open(path: &Path, dtype: Option<Dtype>) -> Result<Scorer> {
        let model = load_scorer(path, dtype)?;
        let tokenizer = tokenizer_at(path)?;
        let template = chat_template(None, &tokenizer)?;
        Scorer::new(model, tokenizer, template)
    }

    /// A reward model that is read already.
    ///
    /// # Errors
    /// [`PipelineError::Unsupported`] unless its score head is for whole texts.
    pub fn new(model: Model, tokenizer: Tokenizer, template: Option<ChatTemplate>) -> Result<Scorer> {
        if model.score_head_kind() != Some(ScoreHeadKind::Sequence) {
            return Err(PipelineError::Unsupported {
                what: format!("the model's score head is {:?}", model.score_head_kind()),
                advice: "rewards of replies come from a sequence classifier, as `reward` stages write it"
                    .to_owned(),
            });
        }
        let dtype = match model.params.get(model.arch.head()).weight.storage() {
            pt_engine::Storage::Bf16 => Dtype::Bf16,
            _ => Dtype::F32,
        };
        Ok(Scorer { model, tokenizer, template, dtype })
    }

    /// Outputs of a score: more than one in an ensemble or for several objectives.
    pub fn n_outputs(&self) -> usize {
        self.model.classifier().map_or(1, |head| head.n_outputs)
    }

    /// A prompt and a reply as tokens, a chat template's if the tokenizer has one.
    ///
    /// # Errors
    /// If the template cannot render them.
    pub fn texts(&self, prompt: &str, reply: &str) -> Result<Example> {
        let message = |role, text: &str| Content::Messages(vec![Message::new(role, text)]);
        let (prompt, completion) = match self.template {
            Some(_) => (message("user", prompt), message("assistant", reply)),
            None => (Content::Text(prompt.to_owned()), Content::Text(reply.to_owned())),
        };
        self.record(&Record {
            body: Body::PromptCompletion { prompt, completion },
            origin: pt_data::Origin::new("reply", 1),
            tools: None,
            chat_template_kwargs: None,
            extra: Map::new(),
        })
    }

    /// A row with a prompt and a completion, or a whole conversation, as tokens whose last one is scored.
    ///
    /// # Errors
    /// If the row is of another kind, or a token is outside the model's vocabulary.
    pub fn record(&self, record: &Record) -> Result<Example> {
        let is_plain = matches!(record.body, Body::LanguageModel(_));
        let options = TokeniseOptions {
            tokenizer: &self.tokenizer,
            template: self.template.as_ref(),
            mask: if is_plain { Mask::All } else { Mask::CompletionOnly },
            train_end_of_turn: true,
            max_length: None,
            truncation: Truncation::Error,
            stage: "score",
        };
        let side = example(&masker(&options), record, &options)?;
        let vocabulary = self.model.config.vocab_size;
        if let Some(&id) = side.token_ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(PipelineError::Vocabulary {
                origin: record.origin.to_string(),
                id,
                token: self.tokenizer.id_to_token(id).unwrap_or_default(),
                vocabulary,
                tokenizer_size: self.tokenizer.vocab_size(),
            });
        }
        // At least one token is the reply's, whose last one is scored.
        let n_prompt = side.n_prompt.min(side.token_ids.len() - 1);
        let (prompt, reply) = side.token_ids.split_at(n_prompt.max(1).min(side.token_ids.len() - 1));
        Ok(Example::prompt(prompt.to_vec(), vec![ended(reply.to_vec())], 0, record.origin.to_string().into()))
    }

    /// The score of each example's replies, in order: `n_outputs` values for each. Examples that follow one another and have the
    /// same prompt share it.
    pub fn scores(&self, examples: Vec<Example>) -> Vec<f32> {
        scores(&self.model, self.dtype, &with_shared_prompts(examples))
    }
}

/// A reply scored at its last token.
fn ended(token_ids: Vec<u32>) -> Reply {
    let position = Some(token_ids.len() - 1);
    Reply {
        weights: vec![0.0; token_ids.len()],
        token_ids,
        scored: vec![ScoredToken { position, target: 0.0, weight: 1.0, old_value: None }],
        ..Reply::default()
    }
}

/// The same replies, those that follow one another and have one prompt as one tree.
pub(crate) fn with_shared_prompts(examples: Vec<Example>) -> Vec<Example> {
    let mut shared: Vec<Example> = Vec::new();
    for example in examples {
        match shared.last_mut() {
            Some(last) if last.token_ids == example.token_ids => last.replies.extend(example.replies),
            _ => shared.push(example),
        }
    }
    shared
}

/// What a model's score head says at every scored token of these examples' replies, in order. Each value is the same whatever else
/// is scored with it.
///
/// # Panics
/// If the model has no score head, or an example or a reply no tokens.
pub fn scores(model: &Model, dtype: Dtype, examples: &[Example]) -> Vec<f32> {
    let head = model.score_head().expect("a model with a score head");
    let (mut all, mut from, mut n_tokens) = (Vec::new(), 0, 0);
    let mut score = |examples: &[Example]| {
        let micro_batch = MicroBatch::new(examples.to_vec());
        let batch = micro_batch.batch().expect("examples and replies have tokens");
        let mut tape = Tape::inference(&model.params, &batch, dtype);
        let hidden = model.arch.hidden(&mut tape, false);
        all.extend(tape.score_head(&hidden, head, &micro_batch.predictions().score_rows).value().to_f32());
    };
    for (i, example) in examples.iter().enumerate() {
        if i > from && n_tokens + example.n_tokens() > TOKENS_PER_BATCH {
            score(&examples[from..i]);
            (from, n_tokens) = (i, 0);
        }
        n_tokens += example.n_tokens();
    }
    if from < examples.len() {
        score(&examples[from..]);
    }
    all
}
