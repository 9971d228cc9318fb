//! The normal form: what every layout becomes, and what trainers take.
//!
//! The kinds are TRL's dataset types, each standard (plain text) or conversational (messages), and
//! tokenised rows.

use serde_json::{Value, json};

use crate::error::DataError;
use crate::message::Message;
use crate::row::{Columns, Origin};

/// Text or a conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Plain text, used as it is.
    Text(String),
    /// Messages, rendered by a chat template.
    Messages(Vec<Message>),
    /// Plain text in pieces that train or do not (Axolotl `input_output`). Only in [`Body::LanguageModel`].
    Segments(Vec<Segment>),
}

/// A piece of plain text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The text, concatenated to its neighbours without anything between.
    pub text: String,
    /// Whether it trains.
    pub train: bool,
}

/// What a record teaches.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// A text or a whole conversation.
    LanguageModel(Content),
    /// A prompt, for sampling.
    PromptOnly {
        /// The prompt.
        prompt: Content,
    },
    /// A prompt and its answer; only the answer trains.
    PromptCompletion {
        /// The prompt.
        prompt: Content,
        /// The answer.
        completion: Content,
    },
    /// A better and a worse answer. Without a prompt both contain it (see [`Record::extract_prompt`]).
    Preference {
        /// The prompt, when explicit.
        prompt: Option<Content>,
        /// The better answer.
        chosen: Content,
        /// The worse answer.
        rejected: Content,
        /// How much better, for reward models with a margin.
        margin: Option<f64>,
        /// How likely the better answer is the better one, from 0 to 1; certain if absent.
        soft_label: Option<f64>,
    },
    /// An answer that is good or bad.
    Unpaired {
        /// The prompt.
        prompt: Content,
        /// The answer.
        completion: Content,
        /// Whether it is good.
        label: bool,
    },
    /// A solution in steps, each right or wrong.
    Stepwise {
        /// The problem.
        prompt: String,
        /// The steps.
        completions: Vec<String>,
        /// How likely each step is right, from 0 to 1; as many as steps.
        labels: Vec<f64>,
    },
    /// Token ids. `train` says which train, one per id; `None` leaves it to the recipe.
    Tokenised {
        /// The ids.
        input_ids: Vec<u32>,
        /// Which ids are targets.
        train: Option<Vec<bool>>,
    },
}

/// One training example in normal form.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What it teaches.
    pub body: Body,
    /// Tool schemas for the template.
    pub tools: Option<Vec<Value>>,
    /// Variables for the template.
    pub chat_template_kwargs: Option<Columns>,
    /// All other columns, for reward functions and reports.
    pub extra: Columns,
    /// Where it came from.
    pub origin: Origin,
}

impl Content {
    /// The text or messages as canonical data.
    pub fn to_row(&self) -> Value {
        match self {
            Content::Text(text) => text.clone().into(),
            Content::Messages(messages) => messages.iter().map(Message::to_row).collect(),
            Content::Segments(segments) => {
                segments.iter().map(|s| json!({"label": s.train, "text": s.text})).collect()
            }
        }
    }

    /// The messages, if this is a conversation.
    pub fn messages(&self) -> Option<&[Message]> {
        match self {
            Content::Messages(messages) => Some(messages),
            _ => None,
        }
    }

    fn into_messages(self, role: &str) -> Content {
        match self {
            Content::Text(text) => Content::Messages(vec![Message::new(role, text)]),
            other => other,
        }
    }
}

impl Body {
    /// The kind's name.
    pub fn kind(&self) -> &'static str {
        match self {
            Body::LanguageModel(_) => "language modelling",
            Body::PromptOnly { .. } => "prompt-only",
            Body::PromptCompletion { .. } => "prompt-completion",
            Body::Preference { .. } => "preference",
            Body::Unpaired { .. } => "unpaired preference",
            Body::Stepwise { .. } => "stepwise",
            Body::Tokenised { .. } => "tokenised",
        }
    }
}

impl Record {
    /// The record as a canonical JSON row, in TRL's columns; reading it back gives the record again.
    pub fn to_row(&self) -> Columns {
        let mut row = Columns::new();
        let mut put = |key: &str, value: Value| {
            row.insert(key.to_owned(), value);
        };
        match &self.body {
            Body::LanguageModel(content) => {
                let key = match content {
                    Content::Text(_) => "text",
                    Content::Messages(_) => "messages",
                    Content::Segments(_) => "segments",
                };
                put(key, content.to_row());
            }
            Body::PromptOnly { prompt } => put("prompt", prompt.to_row()),
            Body::PromptCompletion { prompt, completion } => {
                put("prompt", prompt.to_row());
                put("completion", completion.to_row());
            }
            Body::Preference { prompt, chosen, rejected, margin, soft_label } => {
                if let Some(prompt) = prompt {
                    put("prompt", prompt.to_row());
                }
                put("chosen", chosen.to_row());
                put("rejected", rejected.to_row());
                if let Some(margin) = margin {
                    put("margin", json!(margin));
                }
                if let Some(soft_label) = soft_label {
                    put("soft_label", json!(soft_label));
                }
            }
            Body::Unpaired { prompt, completion, label } => {
                put("prompt", prompt.to_row());
                put("completion", completion.to_row());
                put("label", json!(label));
            }
            Body::Stepwise { prompt, completions, labels } => {
                put("prompt", json!(prompt));
                put("completions", json!(completions));
                let is_hard = labels.iter().all(|label| [0.0, 1.0].contains(label));
                put(
                    "labels",
                    if is_hard { labels.iter().map(|l| json!(*l == 1.0)).collect() } else { json!(labels) },
                );
            }
            Body::Tokenised { input_ids, train } => {
                put("input_ids", json!(input_ids));
                if let Some(train) = train {
                    put("completion_mask", train.iter().map(|&t| json!(u8::from(t))).collect());
                }
            }
        }
        if let Some(tools) = &self.tools {
            put("tools", json!(tools));
        }
        if let Some(kwargs) = &self.chat_template_kwargs {
            put("chat_template_kwargs", Value::Object(kwargs.clone()));
        }
        for (key, value) in &self.extra {
            // A named layout may leave an extra column with a canonical name: the record's own content wins.
            row.entry(key.as_str()).or_insert_with(|| value.clone());
        }
        row
    }

    /// A preference record with its prompt made explicit: the longest common beginning of both answers.
    ///
    /// Messages are compared whole. Text is cut at the last white space within the common beginning, the
    /// white space going to the answers. (TRL cuts text between any two characters, inside words too.)
    /// Other records, and preferences with a prompt, are returned as they are.
    ///
    /// # Errors
    /// When the answers are equal, have no common beginning, or one conversation is the beginning of the other.
    pub fn extract_prompt(mut self) -> Result<Record, DataError> {
        let origin = self.origin.clone();
        let fail = |detail: &str| DataError::Unconvertible {
            origin: origin.clone(),
            action: "find the prompt of",
            kind: "preference",
            detail: detail.to_owned(),
        };
        if let Body::Preference { prompt: prompt @ None, chosen, rejected, .. } = &mut self.body {
            if chosen == rejected {
                return Err(fail("`chosen` and `rejected` are equal"));
            }
            let common = match (chosen, rejected) {
                (Content::Messages(chosen), Content::Messages(rejected)) => {
                    let n = common_messages(chosen, rejected);
                    if n == 0 {
                        return Err(fail("the conversations differ from their first message on"));
                    }
                    if n == chosen.len() || n == rejected.len() {
                        return Err(fail("one conversation is the beginning of the other"));
                    }
                    rejected.drain(..n);
                    Content::Messages(chosen.drain(..n).collect())
                }
                (Content::Text(chosen), Content::Text(rejected)) => {
                    let n = common_text(chosen, rejected);
                    if n == 0 {
                        return Err(fail("the texts have no common beginning"));
                    }
                    rejected.drain(..n);
                    Content::Text(chosen.drain(..n).collect())
                }
                _ => return Err(fail("one answer is text and the other is messages")),
            };
            *prompt = Some(common);
        }
        Ok(self)
    }

    /// A preference record as a good and a bad unpaired one; other columns are kept in both.
    ///
    /// # Errors
    /// When the record is no preference, or its prompt cannot be found.
    pub fn unpair(self) -> Result<[Record; 2], DataError> {
        let Record { body, tools, chat_template_kwargs, extra, origin } = self.extract_prompt()?;
        let Body::Preference { prompt: Some(prompt), chosen, rejected, .. } = body else {
            let detail = "only a preference has a better and a worse answer".to_owned();
            return Err(DataError::Unconvertible { origin, action: "unpair", kind: body.kind(), detail });
        };
        let make = |prompt, completion, label| Record {
            body: Body::Unpaired { prompt, completion, label },
            tools: tools.clone(),
            chat_template_kwargs: chat_template_kwargs.clone(),
            extra: extra.clone(),
            origin: origin.clone(),
        };
        Ok([make(prompt.clone(), chosen, true), make(prompt, rejected, false)])
    }

    /// Plain prompts and answers as a user's and an assistant's message, for a chat template.
    ///
    /// Language-modelling text, stepwise and tokenised records, preferences without a prompt, and what is
    /// conversational already are returned as they are.
    #[must_use]
    pub fn into_conversational(mut self) -> Record {
        let (user, assistant) = ("user", "assistant");
        self.body = match self.body {
            Body::PromptOnly { prompt } => Body::PromptOnly { prompt: prompt.into_messages(user) },
            Body::PromptCompletion { prompt, completion } => Body::PromptCompletion {
                prompt: prompt.into_messages(user),
                completion: completion.into_messages(assistant),
            },
            Body::Preference { prompt: Some(prompt), chosen, rejected, margin, soft_label } => {
                Body::Preference {
                    prompt: Some(prompt.into_messages(user)),
                    chosen: chosen.into_messages(assistant),
                    rejected: rejected.into_messages(assistant),
                    margin,
                    soft_label,
                }
            }
            Body::Unpaired { prompt, completion, label } => Body::Unpaired {
                prompt: prompt.into_messages(user),
                completion: completion.into_messages(assistant),
                label,
            },
            other => other,
        };
        self
    }
}

fn common_messages(a: &[Message], b: &[Message]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Bytes in common, cut back to the last white space so that no word is split.
fn common_text(a: &str, b: &str) -> usize {
    let n: usize = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
    a[..n].rfind(char::is_whitespace).unwrap_or(0)
}
