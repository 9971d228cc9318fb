//! Score heads `[n_outputs, hidden]`: rewards and step labels as transformers' classifiers store them, and values.
//!
//! A reward model is a `...ForSequenceClassification`: `score.weight` in place of `lm_head.weight`, the number of outputs in
//! config.json's `id2label`, and the score of a text is that of its last token. A process reward model is a
//! `...ForTokenClassification`, whose `score` has a bias, too. New heads here have none, and zeros are written for it; one that is
//! read and is not zero is kept, used, trained and written. (transformers' sequence classifiers have none: a file that has one all the
//! same is read here, and there its scores are without it.) A value head is part of training only; models are written without it.
//!
//! Loading a classifier as a language model is refused, as it has no head over the vocabulary; see
//! [`crate::LoadOptions::score_head`].

use pt_engine::{Param, ParamId, ScoreWeights, Weight};
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

/// The values of a score head.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreValues {
    /// `[n_outputs, hidden]`.
    pub weight: Vec<f32>,
    /// `[n_outputs]`, if it has one.
    pub bias: Option<Vec<f32>>,
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
    /// The score head's parameters, for rewards, values and step labels.
    pub fn score_head(&self) -> Option<ScoreWeights> {
        self.score_head.map(|(head, _)| head)
    }

    /// What the score head is for.
    pub fn score_head_kind(&self) -> Option<ScoreHeadKind> {
        self.score_head.map(|(_, kind)| kind)
    }

    /// The score head as it would be written: none for values.
    pub fn classifier(&self) -> Option<ScoreHead> {
        let (head, kind) = self.score_head.filter(|(_, kind)| *kind != ScoreHeadKind::Value)?;
        Some(ScoreHead { kind, n_outputs: self.params.get(head.weight).shape[0] })
    }

    /// Adds a score head of these values, `[n_outputs, hidden]`, that trains; one that is there already is replaced by it if
    /// kind and shape are the same, and its bias, if it has one, by zeros.
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
        let head = match self.score_head {
            Some((head, found)) => {
                let param = self.params.get_mut(head.weight);
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
                head
            }
            None => {
                let param = Param { name: SCORE_HEAD.to_owned(), shape, weight, trainable: true };
                ScoreWeights { weight: self.params.add(param), bias: None }
            }
        };
        self.score_head = Some((head, kind));
        if head.bias.is_some() {
            self.set_score_bias(&vec![0.0; values.len() / width]);
        }
        Ok(head.weight)
    }

    /// The score head's weight and bias as they are, where there is one.
    pub fn score_values(&self) -> Option<ScoreValues> {
        let (head, _) = self.score_head?;
        let values = |id: ParamId| self.params.get(id).weight.to_f32();
        Some(ScoreValues { weight: values(head.weight), bias: head.bias.map(values) })
    }

    /// Makes the score head one for values that begins with `values`, of one output, and trains.
    ///
    /// # Errors
    /// [`ModelError::State`] if there are several outputs.
    pub fn use_score_head_for_values(&mut self, values: &ScoreValues) -> Result<()> {
        let n_outputs = values.weight.len() / self.config.hidden_size;
        if n_outputs != 1 {
            let problem = format!(
                "the score head has {n_outputs} outputs, and a value is one; give a reward model with one output"
            );
            return Err(ModelError::State { problem });
        }
        if let Some((_, kind)) = &mut self.score_head {
            *kind = ScoreHeadKind::Value;
        }
        self.add_score_head(ScoreHeadKind::Value, &values.weight)?;
        if let Some(bias) = &values.bias {
            self.set_score_bias(bias);
        }
        Ok(())
    }

    /// Gives the score head a bias, `[n_outputs]`, in place of the one it may have; it trains as the head does.
    ///
    /// # Panics
    /// If there is no score head, or not one value for each output.
    pub fn set_score_bias(&mut self, values: &[f32]) {
        let (head, kind) = self.score_head.expect("a score head");
        let Param { shape, trainable, .. } = self.params.get(head.weight);
        let trainable = *trainable;
        assert_eq!(values.len(), shape[0], "a value for each output");
        let weight = Weight::from_f32(values);
        if let Some(bias) = head.bias {
            let param = self.params.get_mut(bias);
            param.set_weight(weight);
            param.trainable = trainable;
            return;
        }
        let (name, shape) = (SCORE_BIAS.to_owned(), vec![values.len()]);
        let bias = Some(self.params.add(Param { name, shape, weight, trainable }));
        self.score_head = Some((ScoreWeights { bias, ..head }, kind));
    }
}
