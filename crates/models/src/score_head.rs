//! Score heads `[n_outputs, hidden]`: rewards and step labels as transformers' classifiers store them, and values.
//!
//! A reward model is a `...ForSequenceClassification`: `score.weight` in place of `lm_head.weight`, the number of outputs in
//! config.json's `id2label`, and the score of a text is that of its last token. A process reward model is a
//! `...ForTokenClassification`, whose `score` has a bias, too. Heads here have none: zeros are written for it, and one that is
//! not zero is refused. A value head is part of training only; models are written without it.
//!
//! Loading a classifier as a language model is refused, as it has no head over the vocabulary; see
//! [`crate::LoadOptions::score_head`].

use pt_engine::{Param, ParamId, Weight};
use serde_json::{Map, Value, json};

use crate::arch::Architecture;
use crate::error::{ModelError, Result};
use crate::model::Model;

/// The score head's name, as in transformers' classifiers.
pub(crate) const SCORE_HEAD: &str = "score.weight";
/// The bias that token classifiers have.
pub(crate) const SCORE_BIAS: &str = "score.bias";

/// What a score head is for, which decides how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreHeadKind {
    /// Rewards, read at the last token: sequence classification.
    Sequence,
    /// Labels of steps, read where each ends: token classification.
    Token,
    /// Values beside a policy; not written.
    Value,
}

/// A score head: what it is for, and its outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoreHead {
    /// What it is for.
    pub kind: ScoreHeadKind,
    /// Its outputs.
    pub n_outputs: usize,
}

impl ScoreHead {
    /// The parameter's name.
    pub const NAME: &'static str = SCORE_HEAD;
}

impl Architecture {
    /// The class of transformers that has a score head of this kind, if there is one.
    pub fn classifier(&self, kind: ScoreHeadKind) -> Option<String> {
        let suffix = match kind {
            ScoreHeadKind::Sequence => "ForSequenceClassification",
            ScoreHeadKind::Token => "ForTokenClassification",
            ScoreHeadKind::Value => return None,
        };
        let stem = self.class_name.strip_suffix("ForCausalLM")?;
        match (self.model_type, kind) {
            ("gemma3_text", ScoreHeadKind::Token) => None,
            ("gemma3_text", _) => Some(format!("{stem}Text{suffix}")),
            _ => Some(format!("{stem}{suffix}")),
        }
    }

    /// The kind of score head that a class has.
    pub(crate) fn classifier_kind(&self, class: &str) -> Option<ScoreHeadKind> {
        let kinds = [ScoreHeadKind::Sequence, ScoreHeadKind::Token];
        kinds.into_iter().find(|kind| self.classifier(*kind).as_deref() == Some(class))
    }
}

/// The number of labels of a classifier's config.json; transformers' default is 2.
pub(crate) fn n_labels(raw: &Map<String, Value>) -> usize {
    let named = raw.get("id2label").and_then(Value::as_object).map(Map::len);
    let counted = raw.get("num_labels").and_then(Value::as_u64).map(|n| n as usize);
    named.or(counted).filter(|n| *n > 0).unwrap_or(2)
}

impl ScoreHead {
    /// Makes a language model's config.json that of a classifier.
    pub(crate) fn describe(self, architecture: &Architecture, config: &mut Map<String, Value>) {
        let Some(class) = architecture.classifier(self.kind) else { return };
        config.insert("architectures".to_owned(), json!([class]));
        config.remove("num_labels");
        if n_labels(config) == self.n_outputs && config.contains_key("id2label") {
            return;
        }
        let names = (0..self.n_outputs).map(|i| (i, format!("LABEL_{i}")));
        let id2label: Map<String, Value> =
            names.clone().map(|(i, name)| (i.to_string(), json!(name))).collect();
        let label2id: Map<String, Value> = names.map(|(i, name)| (name, json!(i))).collect();
        config.insert("id2label".to_owned(), Value::Object(id2label));
        config.insert("label2id".to_owned(), Value::Object(label2id));
    }
}

impl Model {
    /// The score head's weight `[n_outputs, hidden]`, for rewards, values and step labels.
    pub fn score_head(&self) -> Option<ParamId> {
        self.score_head.map(|(id, _)| id)
    }

    /// What the score head is for.
    pub fn score_head_kind(&self) -> Option<ScoreHeadKind> {
        self.score_head.map(|(_, kind)| kind)
    }

    /// The score head as it would be written: none for values.
    pub fn classifier(&self) -> Option<ScoreHead> {
        let (id, kind) = self.score_head.filter(|(_, kind)| *kind != ScoreHeadKind::Value)?;
        Some(ScoreHead { kind, n_outputs: self.params.get(id).shape[0] })
    }

    /// Adds a score head of these values, `[n_outputs, hidden]`, that trains; one that is there already is replaced by it if
    /// kind and shape are the same.
    ///
    /// # Errors
    /// [`ModelError::State`] if transformers has no such classifier of this architecture, so that it could not be written; if
    /// another head is there.
    ///
    /// # Panics
    /// If the values are not whole rows of the hidden size.
    pub fn add_score_head(&mut self, kind: ScoreHeadKind, values: &[f32]) -> Result<ParamId> {
        let width = self.config.hidden_size;
        assert!(!values.is_empty() && values.len().is_multiple_of(width), "a score head has whole rows");
        let shape = vec![values.len() / width, width];
        let architecture = self.config.architecture();
        if kind != ScoreHeadKind::Value && architecture.classifier(kind).is_none() {
            let problem = format!(
                "transformers has no {kind:?} classifier of a {}, so a model with such a head could not be written; \
                 start from another architecture",
                architecture.class_name
            );
            return Err(ModelError::State { problem });
        }
        let weight = Weight::from_f32(values);
        let id = match self.score_head {
            Some((id, found)) => {
                let param = self.params.get_mut(id);
                if found != kind || param.shape != shape {
                    let problem = format!(
                        "the model has a {found:?} score head of {} outputs, which cannot become a {kind:?} one of {}; \
                         start from a language model, or ask for the same head",
                        param.shape[0], shape[0]
                    );
                    return Err(ModelError::State { problem });
                }
                param.set_weight(weight);
                param.trainable = true;
                id
            }
            None => self.params.add(Param { name: SCORE_HEAD.to_owned(), shape, weight, trainable: true }),
        };
        self.score_head = Some((id, kind));
        Ok(id)
    }
}
