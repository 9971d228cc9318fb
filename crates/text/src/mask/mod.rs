//! Loss masks from the provenance of tokens.
//!
//! A row is rendered once, tokenised once, and every token learns from its place in the text where it
//! came from: the template, a message's content, the end of a turn, a prompt, a completion. Which
//! tokens train follows from that and from the [`MaskPolicy`].
//!
//! A token's weight is the weight of *predicting that token* from what precedes it. A token that lies
//! across the border between trained and untrained text **trains** (with the larger weight): its
//! trained bytes can be produced in no other way. Where such a border is the end of a prompt the row
//! is refused, because sampling from that prompt could never produce the token
//! ([`crate::audit::AuditError::PromptNotPrefix`]).

mod assemble;
mod checks;
mod continuation;
mod conversation;
mod locate;
mod masker;
mod plan;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use continuation::Continuation;
pub use masker::{Conversation, Masker, Prompt, Targets};
pub use plan::CONTROL_FIELDS;

use crate::error::Origin;

/// Which text trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainOn {
    /// Every token.
    All,
    /// The completion of a prompt; of a conversation, its last assistant message.
    Completion,
    /// Every assistant message.
    #[default]
    Assistant,
}

/// Which end of a row that is too long is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TruncationMode {
    /// The start, as TRL's default.
    #[default]
    KeepStart,
    /// The end.
    KeepEnd,
}

/// What decides which tokens of a row train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaskPolicy {
    /// Which text trains, where a message does not say otherwise.
    pub train_on: TrainOn,
    /// Whether the token(s) that end a trained turn train too; without them the model never stops.
    pub train_end_of_turn: bool,
    /// Longer rows are cut to this many tokens.
    pub max_length: Option<usize>,
    /// Which end is kept then.
    pub truncation_mode: TruncationMode,
}

impl Default for MaskPolicy {
    fn default() -> Self {
        Self {
            train_on: TrainOn::default(),
            train_end_of_turn: true,
            max_length: None,
            truncation_mode: TruncationMode::default(),
        }
    }
}

/// What a stretch of text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Text the chat template wrote.
    Template,
    /// A message's content.
    Content,
    /// A message's reasoning.
    Reasoning,
    /// What ends a message's turn.
    EndOfTurn,
    /// A prompt that is plain text.
    Prompt,
    /// A completion that is plain text.
    Completion,
    /// A row that is one plain text.
    Text,
    /// A token that came as an id.
    Tokens,
    /// A token that was added around the text: BOS or EOS.
    Added,
}

/// A stretch of an example's text and where it came from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Piece {
    /// Bytes of the text.
    pub range: Range<usize>,
    /// What it is.
    pub part: Part,
    /// The message it belongs to, if any.
    pub message: Option<usize>,
    /// Its weight in the loss.
    pub weight: f32,
}

/// A message that trains, seen in tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Turn {
    /// Index of the message in the row.
    pub message: usize,
    /// Its tokens, from the first that sampling would produce to the end of the turn.
    pub tokens: Range<usize>,
    /// The tokens that end the turn, if the template writes any. Empty when truncation cut them.
    pub end_of_turn: Option<Range<usize>>,
    /// Whether the text before it is what the template gives as the prompt for it. For earlier turns of
    /// a reasoning model it is not: their reasoning is dropped from later prompts.
    pub prompt_is_prefix: bool,
}

/// One row, tokenised, with what trains and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// Where the row came from.
    pub origin: Origin,
    /// The text that was tokenised, with the text of added tokens.
    pub text: String,
    /// The ids.
    pub token_ids: Vec<u32>,
    /// Per token the weight of predicting it; 0 does not train.
    pub weights: Vec<f32>,
    /// Per token its bytes in `text`.
    pub offsets: Vec<Range<usize>>,
    /// Per token the index of its piece.
    pub token_pieces: Vec<usize>,
    /// The pieces of the text, in order.
    pub pieces: Vec<Piece>,
    /// The turns that train.
    pub turns: Vec<Turn>,
    /// Tokens that lie across a border between trained and untrained text.
    pub straddling: Vec<usize>,
    /// Leading tokens that are the prompt of a row with a prompt and a completion; 0 for other rows.
    pub n_prompt: usize,
    /// Tokens that truncation removed.
    pub n_truncated: usize,
}

impl Example {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.token_ids.len()
    }

    /// Whether it has no tokens.
    pub fn is_empty(&self) -> bool {
        self.token_ids.is_empty()
    }

    /// Number of tokens that train. The first token has no context, so it never does.
    pub fn n_trained(&self) -> usize {
        self.weights.iter().skip(1).filter(|w| **w > 0.0).count()
    }

    /// Per token, whether it trains.
    pub fn train_mask(&self) -> Vec<bool> {
        self.weights.iter().enumerate().map(|(i, w)| i > 0 && *w > 0.0).collect()
    }

    /// Where a token came from.
    pub fn piece_of(&self, token: usize) -> &Piece {
        &self.pieces[self.token_pieces[token]]
    }

    /// The text of the tokens that train.
    pub fn trained_text(&self) -> String {
        let mut text = String::new();
        let mut end = 0;
        for (range, weight) in self.offsets.iter().zip(&self.weights) {
            if *weight > 0.0 {
                text.push_str(&self.text[range.start.max(end).min(range.end)..range.end]);
            }
            end = end.max(range.end);
        }
        text
    }
}

#[cfg(test)]
mod tests;
