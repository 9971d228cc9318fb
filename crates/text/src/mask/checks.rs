//! What is checked while a row is at hand: what the template dropped, whether prompts are token
//! prefixes, and special tokens in messages. The rest of the audit needs only the example.

use std::ops::Range;

use serde_json::Value as Json;

use super::assemble::TurnSpan;
use super::locate::Located;
use super::plan::role;
use super::{Example, Masker, Part};
use crate::audit::AuditError;
use crate::error::{Origin, TextError};
use crate::show;
use crate::template::Message;

/// Tokens that a prompt mismatch shows before and after where it starts.
const SHOWN_BEFORE: usize = 4;
const SHOWN_AFTER: usize = 6;

impl Masker<'_> {
    pub(super) fn check_present(
        &self,
        origin: &Origin,
        located: &Located,
        messages: &[Message],
        tools: Option<&Json>,
    ) -> Result<(), TextError> {
        if !self.audit.dropped_content {
            return Ok(());
        }
        let dropped = |message: Option<usize>, what: String| {
            let shown = show::excerpt(located.text());
            let role = message.map_or_else(String::new, |i| role(&messages[i]).to_owned());
            Err(AuditError::MessageDropped { origin: origin.clone(), message, role, what, shown }.into())
        };
        let text = located.text();
        for &slot in &located.missing {
            let slot = &located.slots[slot];
            let is_last = slot.message + 1 == messages.len();
            let reasoned = located.regions_of(slot.message).any(|r| !located.slots[r.slot].is_content());
            if slot.is_content() || (is_last && !reasoned) {
                return dropped(Some(slot.message), slot.field.clone());
            }
        }
        if text.contains("[{'type': 'text', 'text': ") && messages.iter().any(|m| m["content"].is_array()) {
            return dropped(
                None,
                "a content of typed parts, which it prints as a Python list; flatten it to text".into(),
            );
        }
        for (i, message) in messages.iter().enumerate() {
            let calls = message.get("tool_calls").and_then(Json::as_array).is_some_and(|c| !c.is_empty());
            if calls && located.ignores(|messages, _| drop(messages[i].remove("tool_calls"))) {
                return dropped(Some(i), "tool_calls".into());
            }
        }
        let has_tools = tools.and_then(Json::as_array).is_some_and(|t| !t.is_empty());
        if has_tools && located.ignores(|_, inputs| inputs.tools = None) {
            return dropped(None, "tools".into());
        }
        Ok(())
    }

    /// Checks that what precedes trained turns is tokenised as a prompt would be; returns the number of
    /// prompt tokens.
    pub(super) fn check_prompts(
        &self,
        example: &Example,
        located: &Located,
        turns: &[TurnSpan],
        n_prompt_messages: usize,
    ) -> Result<usize, TextError> {
        let last = turns.iter().map(|t| t.message).max();
        let mut n_prompt = 0;
        for span in turns {
            let is_first_reply = n_prompt_messages > 0 && span.message == n_prompt_messages;
            if is_first_reply || Some(span.message) == last {
                let prompt = located.prompt_text(span.message).unwrap_or_default();
                let n = match span.prompt_is_prefix || self.audit.prompt_prefix {
                    true => self.check_prefix(example, &prompt, false)?,
                    false => span_tokens(example, span.range.start),
                };
                n_prompt = if is_first_reply { n } else { n_prompt };
            } else if self.audit.prompt_prefix {
                let crosses = |r: &Range<usize>| r.start < span.range.start && span.range.start < r.end;
                if example.offsets.iter().any(crosses) {
                    self.check_prefix(example, &example.text[..span.range.start], false)?;
                }
            }
        }
        Ok(n_prompt)
    }

    /// Checks that the tokens of `prompt` start the example; returns how many they are.
    pub(super) fn check_prefix(
        &self,
        example: &Example,
        prompt: &str,
        add_special: bool,
    ) -> Result<usize, TextError> {
        let ids = match add_special {
            true => self.encode_open(&example.origin, prompt)?.ids,
            false => self.tokenizer.encode(prompt, false).map_err(|e| e.in_row(&example.origin))?.ids,
        };
        if self.audit.prompt_prefix && !example.token_ids.starts_with(&ids) {
            return Err(self.not_prefix(example, &ids));
        }
        Ok(ids.len())
    }

    fn not_prefix(&self, example: &Example, prompt_ids: &[u32]) -> TextError {
        let differs = prompt_ids.iter().zip(&example.token_ids).take_while(|(a, b)| a == b).count();
        let near = |ids: &[u32]| {
            let from = differs.saturating_sub(SHOWN_BEFORE).min(ids.len());
            show::tokens(self.tokenizer, &ids[from..(differs + SHOWN_AFTER).min(ids.len())])
        };
        AuditError::PromptNotPrefix {
            origin: example.origin.clone(),
            position: differs,
            prompt: near(prompt_ids),
            row: near(&example.token_ids),
        }
        .into()
    }

    /// A special token written out in somebody's message can end the turn and speak as another role.
    pub(super) fn check_special_in_content(
        &self,
        example: &Example,
        messages: &[Message],
    ) -> Result<(), TextError> {
        if !self.audit.special_in_content || messages.is_empty() {
            return Ok(());
        }
        let in_content = |i: &usize| {
            matches!(example.piece_of(*i).part, Part::Content | Part::Reasoning)
                && self.tokenizer.is_special(example.token_ids[*i])
        };
        match (0..example.len()).find(in_content) {
            None => Ok(()),
            Some(position) => Err(AuditError::SpecialInContent {
                origin: example.origin.clone(),
                message: example.piece_of(position).message.unwrap_or(0),
                token: self.tokenizer.id_to_token(example.token_ids[position]).unwrap_or_default(),
                position,
                shown: show::around(example, self.tokenizer, position),
            }
            .into()),
        }
    }
}

/// Number of tokens that start before a byte.
fn span_tokens(example: &Example, byte: usize) -> usize {
    example.offsets.partition_point(|r| r.start < byte)
}
