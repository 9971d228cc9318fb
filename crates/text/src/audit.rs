//! Rows that would train the wrong thing are errors, with their origin and the tokens shown.
//!
//! [`audit_example`] runs on every example that [`crate::mask::Masker`] makes, before and after
//! truncation. [`audit_dataset`] runs over all of them, stops at the first error, and counts what is
//! doubtful without being wrong, each with the first row where it was seen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Origin;
use crate::mask::{Example, MaskPolicy};
use crate::show;
use crate::tokenizer::Tokenizer;

/// What is refused. Everything is on by default; each switch is for data that is meant that way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditPolicy {
    /// The tokens of a prompt must start the tokens of the whole row.
    pub prompt_prefix: bool,
    /// Some token must train, also after truncation.
    pub nothing_to_train: bool,
    /// Every message, tool call and tool must be in the rendered text.
    pub dropped_content: bool,
    /// The end of every trained turn must train (unless the mask policy says otherwise).
    pub end_of_turn: bool,
    /// BOS must not stand twice.
    pub doubled_bos: bool,
    /// EOS must not be masked because it is also the padding token.
    pub masked_eos: bool,
    /// No message may hold a special token written out as text.
    pub special_in_content: bool,
}

impl Default for AuditPolicy {
    fn default() -> Self {
        Self {
            prompt_prefix: true,
            nothing_to_train: true,
            dropped_content: true,
            end_of_turn: true,
            doubled_bos: true,
            masked_eos: true,
            special_in_content: true,
        }
    }
}

/// A row that would train the wrong thing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AuditError {
    /// Sampling from the prompt could never produce the completion's tokens.
    #[error(
        "{origin}: the prompt is not a token prefix of the row (token {position}): the prompt has {prompt}, the row \
         has {row}. Move white space from the end of the prompt to the start of the completion, or use a chat \
         template (or chat_template_kwargs) whose generation prompt is how its replies begin"
    )]
    PromptNotPrefix {
        /// The row.
        origin: Origin,
        /// The first token that differs.
        position: usize,
        /// The prompt's tokens there.
        prompt: String,
        /// The row's tokens there.
        row: String,
    },
    /// Every token is masked.
    #[error(
        "{origin}: none of its {n_tokens} tokens trains{}. {}\n{shown}",
        if *.n_truncated > 0 { format!(" after truncation removed {n_truncated}") } else { String::new() },
        if *.n_truncated > 0 { "Raise max_length, keep the other end, or drop the row." }
        else { "Check the roles, `train` flags and masks of the row." }
    )]
    NothingToTrain {
        /// The row.
        origin: Origin,
        /// Its tokens.
        n_tokens: usize,
        /// Tokens that truncation removed.
        n_truncated: usize,
        /// The row's end.
        shown: String,
    },
    /// The template leaves out something that the row holds.
    #[error(
        "{origin}: the chat template does not render {}{what}; use a template that does, or remove it from the row.\n{shown}",
        .message.map_or_else(String::new, |i| format!("message {i} ({role})'s "))
    )]
    MessageDropped {
        /// The row.
        origin: Origin,
        /// Index of the message, if it is one.
        message: Option<usize>,
        /// Its role.
        role: String,
        /// What is missing.
        what: String,
        /// The rendered text.
        shown: String,
    },
    /// The model would never learn to stop.
    #[error(
        "{origin}: the end of message {message}'s turn does not train, so the model would not learn to stop: {reason}.\n{shown}"
    )]
    EndOfTurnNotTrained {
        /// The row.
        origin: Origin,
        /// Index of the message.
        message: usize,
        /// What is wrong.
        reason: &'static str,
        /// The tokens there.
        shown: String,
    },
    /// BOS stands twice.
    #[error(
        "{origin}: the row starts with `{token}` twice: it is written in the text and added by the tokenizer; remove \
         it from one of them.\n{shown}"
    )]
    DoubledBos {
        /// The row.
        origin: Origin,
        /// The token.
        token: String,
        /// The row's start.
        shown: String,
    },
    /// EOS is masked as if it were padding.
    #[error(
        "{origin}: `{token}` at token {position} ends trained text and is masked; it is the padding token and the EOS \
         token at once, and masking padding masked it. Give the padding another token or unmask it.\n{shown}"
    )]
    PadIsEosMasked {
        /// The row.
        origin: Origin,
        /// The token.
        token: String,
        /// Its position.
        position: usize,
        /// The tokens there.
        shown: String,
    },
    /// A message holds a special token as text.
    #[error(
        "{origin}: message {message} holds the special token `{token}` (token {position}), which could end its turn and \
         speak as another role. Remove it from the row, or break it up with a space.\n{shown}"
    )]
    SpecialInContent {
        /// The row.
        origin: Origin,
        /// Index of the message.
        message: usize,
        /// The token.
        token: String,
        /// Its position.
        position: usize,
        /// The tokens there.
        shown: String,
    },
}

/// Something that is not wrong and yet worth a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doubt {
    /// Truncation removed tokens.
    Truncated,
    /// Truncation removed the end of every trained turn.
    EndOfTurnCut,
    /// The end of a turn holds none of the ids that end a generation: sampling must stop on it too.
    EndOfTurnIsNotEos,
    /// A token lies across the border between trained and untrained text.
    StraddlingToken,
    /// An earlier turn follows a text that the template would not give as its prompt.
    TurnWithoutItsPrompt,
    /// The vocabulary's unknown token occurs.
    UnknownToken,
    /// Fewer than one token in a hundred trains.
    HardlyTrains,
}

/// How often a doubt was seen, and where first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DoubtSeen {
    /// How many rows.
    pub n_rows: usize,
    /// The first of them.
    pub first: Origin,
    /// Its tokens, as [`crate::show`] shows them without colour.
    pub shown: String,
}

/// What a data set holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AuditReport {
    /// Rows.
    pub n_examples: usize,
    /// Tokens.
    pub n_tokens: usize,
    /// Tokens that train.
    pub n_trained: usize,
    /// Tokens that truncation removed.
    pub n_truncated: usize,
    /// The shortest row, in tokens.
    pub min_len: usize,
    /// The longest row, in tokens.
    pub max_len: usize,
    /// Ids that end trained turns, with their counts: sampling must stop on them.
    pub end_of_turn_ids: BTreeMap<u32, usize>,
    /// What is doubtful.
    pub doubts: BTreeMap<Doubt, DoubtSeen>,
}

impl AuditReport {
    /// The doubtful row that comes first in the data set, if any.
    pub fn first_doubtful(&self) -> Option<(Doubt, &DoubtSeen)> {
        let by_place = |(_, seen): &(&Doubt, &DoubtSeen)| (seen.first.file.clone(), seen.first.line);
        self.doubts.iter().min_by_key(by_place).map(|(d, seen)| (*d, seen))
    }
}

/// Checks one example.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn audit_example(
    example: &Example,
    tokenizer: &Tokenizer,
    mask: &MaskPolicy,
    policy: &AuditPolicy,
) -> Result<(), AuditError> {
    let origin = || example.origin.clone();
    if let (true, Some(bos), [first, second, ..]) =
        (policy.doubled_bos, tokenizer.bos_id(), &*example.token_ids)
        && [first, second] == [&bos, &bos]
        && example.n_truncated == 0
    {
        let token = tokenizer.id_to_token(bos).unwrap_or_default();
        return Err(AuditError::DoubledBos {
            origin: origin(),
            token,
            shown: show::around(example, tokenizer, 0),
        });
    }
    if policy.nothing_to_train && example.n_trained() == 0 {
        return Err(AuditError::NothingToTrain {
            origin: origin(),
            n_tokens: example.len(),
            n_truncated: example.n_truncated,
            shown: show::around(example, tokenizer, example.len().saturating_sub(1)),
        });
    }
    if policy.masked_eos && mask.train_end_of_turn {
        check_masked_eos(example, tokenizer)?;
    }
    if policy.end_of_turn && mask.train_end_of_turn {
        check_end_of_turn(example, tokenizer)?;
    }
    Ok(())
}

/// EOS that follows trained text and is masked, where padding is EOS too.
fn check_masked_eos(example: &Example, tokenizer: &Tokenizer) -> Result<(), AuditError> {
    let Some(eos) = tokenizer.eos_id().filter(|eos| Some(*eos) == tokenizer.pad_id()) else { return Ok(()) };
    let masked = |i: &usize| {
        example.token_ids[*i] == eos && example.weights[*i] == 0.0 && example.weights[*i - 1] > 0.0 && *i > 1
    };
    match (1..example.len()).find(masked) {
        None => Ok(()),
        Some(position) => Err(AuditError::PadIsEosMasked {
            origin: example.origin.clone(),
            token: tokenizer.id_to_token(eos).unwrap_or_default(),
            position,
            shown: show::around(example, tokenizer, position),
        }),
    }
}

fn check_end_of_turn(example: &Example, tokenizer: &Tokenizer) -> Result<(), AuditError> {
    for turn in &example.turns {
        let trains = |i: usize| example.weights[i] > 0.0;
        let reason = match &turn.end_of_turn {
            None => "the chat template writes nothing after it",
            Some(end) if end.clone().all(trains) => continue,
            Some(_) => "its tokens are masked",
        };
        return Err(AuditError::EndOfTurnNotTrained {
            origin: example.origin.clone(),
            message: turn.message,
            reason,
            shown: show::around(example, tokenizer, turn.tokens.end.saturating_sub(1)),
        });
    }
    Ok(())
}

/// Checks a whole data set: the first wrong row is the error; doubts are counted.
///
/// # Errors
/// Those of [`audit_example`].
pub fn audit_dataset<'a>(
    examples: impl IntoIterator<Item = &'a Example>,
    tokenizer: &Tokenizer,
    mask: &MaskPolicy,
    policy: &AuditPolicy,
) -> Result<AuditReport, AuditError> {
    let mut report = AuditReport::default();
    for example in examples {
        audit_example(example, tokenizer, mask, policy)?;
        report.min_len =
            if report.n_examples == 0 { example.len() } else { report.min_len.min(example.len()) };
        report.max_len = report.max_len.max(example.len());
        report.n_examples += 1;
        report.n_tokens += example.len();
        report.n_trained += example.n_trained();
        report.n_truncated += example.n_truncated;
        for end in example.turns.iter().filter_map(|t| t.end_of_turn.as_ref()) {
            if let Some(last) = end.clone().last() {
                *report.end_of_turn_ids.entry(example.token_ids[last]).or_default() += 1;
            }
        }
        for (doubt, position) in doubts(example, tokenizer) {
            let seen = report.doubts.entry(doubt).or_insert_with(|| DoubtSeen {
                n_rows: 0,
                first: example.origin.clone(),
                shown: show::around(example, tokenizer, position),
            });
            seen.n_rows += 1;
        }
    }
    Ok(report)
}

/// What is doubtful about an example, each with a token to look at.
pub fn doubts(example: &Example, tokenizer: &Tokenizer) -> Vec<(Doubt, usize)> {
    let last = example.len().saturating_sub(1);
    let mut doubts = Vec::new();
    if example.n_truncated > 0 {
        doubts.push((Doubt::Truncated, last));
        let ends = |t: &crate::mask::Turn| t.end_of_turn.as_ref().is_some_and(|r| !r.is_empty());
        if !example.turns.is_empty() && !example.turns.iter().any(ends) {
            doubts.push((Doubt::EndOfTurnCut, last));
        }
    }
    let is_eos = |i: usize| tokenizer.eos_ids().contains(&example.token_ids[i]);
    let ends = example.turns.iter().filter_map(|t| t.end_of_turn.clone()).filter(|r| !r.is_empty());
    if let Some(end) = ends.into_iter().find(|r| !r.clone().any(is_eos)) {
        doubts.push((Doubt::EndOfTurnIsNotEos, end.start));
    }
    if let Some(position) = example.straddling.first() {
        doubts.push((Doubt::StraddlingToken, *position));
    }
    if let Some(turn) = example.turns.iter().find(|t| !t.prompt_is_prefix) {
        doubts.push((Doubt::TurnWithoutItsPrompt, turn.tokens.start));
    }
    let unknown = tokenizer.unk_id().filter(|id| !tokenizer.eos_ids().contains(id));
    if let Some(position) = unknown.and_then(|id| example.token_ids.iter().position(|t| *t == id)) {
        doubts.push((Doubt::UnknownToken, position));
    }
    if example.n_trained() * 100 < example.len() {
        doubts.push((Doubt::HardlyTrains, last));
    }
    doubts
}

#[cfg(test)]
mod tests;
