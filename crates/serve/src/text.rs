//! From what a request holds to token ids, and from ids to what they read as.

use std::sync::Arc;

use pt_text::{ChatTemplate, Conversation, MaskPolicy, Masker, Message, Origin, Tokenizer};
use serde_json::{Map, Value};

use crate::error::ApiError;

/// Tokens before one whose text is wanted that its text may depend on.
const CONTEXT_TOKENS: usize = 8;

/// The tokenizer with all that belongs to it.
pub struct TextSide {
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template, if there is one.
    pub template: Option<ChatTemplate>,
    /// Tokens that end a reply.
    pub stop_token_ids: Vec<u32>,
    /// Tokens the model was made for: prompt and reply together.
    pub context: usize,
    /// Token ids the model has embeddings for.
    pub vocabulary: usize,
}

impl TextSide {
    fn masker(&self) -> Masker<'_> {
        Masker::new(&self.tokenizer, self.template.as_ref(), MaskPolicy::default())
    }

    /// The ids of a conversation with the start of a reply.
    pub(crate) fn chat_ids(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        kwargs: Option<&Map<String, Value>>,
    ) -> Result<Vec<u32>, ApiError> {
        if self.template.is_none() {
            let message =
                "the model has no chat template; use /v1/completions, or start the server with --template";
            return Err(ApiError::field("messages", message));
        }
        let row = Conversation { messages, tools, documents: None, kwargs };
        let prompt = self.masker().prompt(&Origin::new("the request", 0), &row);
        let prompt = prompt.map_err(|error| ApiError::field("messages", error.to_string()))?;
        self.checked("messages", prompt.token_ids)
    }

    /// The ids of plain text.
    pub(crate) fn text_ids(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        let prompt = self.masker().prompt_text(&Origin::new("the prompt", 0), text);
        let prompt = prompt.map_err(|error| ApiError::field("prompt", error.to_string()))?;
        self.checked("prompt", prompt.token_ids)
    }

    /// Refuses ids that the model cannot continue.
    pub(crate) fn checked(&self, param: &str, ids: Vec<u32>) -> Result<Vec<u32>, ApiError> {
        if ids.is_empty() {
            let message =
                "the prompt is empty, and the tokenizer puts nothing before it; give at least one token";
            return Err(ApiError::field(param, message));
        }
        self.known(param, ids)
    }

    /// Refuses ids that the model has no embeddings for.
    pub(crate) fn known(&self, param: &str, ids: Vec<u32>) -> Result<Vec<u32>, ApiError> {
        match ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            None => Ok(ids),
            Some(id) => {
                let n = self.vocabulary;
                let message = format!("token id {id} is outside the model's vocabulary of {n}");
                Err(ApiError::field(param, message))
            }
        }
    }

    /// Room for a reply after a prompt: what was asked for, or all there is.
    pub(crate) fn room(&self, n_prompt: usize, asked: Option<usize>) -> Result<usize, ApiError> {
        let left = self.context.saturating_sub(n_prompt);
        match asked {
            Some(n) if n <= left => Ok(n),
            None if left > 0 => Ok(left),
            _ => Err(ApiError::too_long(n_prompt, asked.unwrap_or(1), self.context)),
        }
    }

    /// The text of a token as it continues those before it; half a character is U+FFFD.
    pub(crate) fn token_text(&self, before: &[u32], id: u32) -> Result<String, ApiError> {
        let before = &before[before.len().saturating_sub(CONTEXT_TOKENS)..];
        let decode = |ids: &[u32]| {
            self.tokenizer.decode(ids, false).map_err(|error| ApiError::internal(error.to_string()))
        };
        let (shorter, longer) = (decode(before)?, decode(&[before, &[id]].concat())?);
        // A token that completes a character changes what came before it.
        let common = shorter.char_indices().zip(longer.chars()).take_while(|((_, a), b)| a == b).last();
        Ok(longer[common.map_or(0, |((at, c), _)| at + c.len_utf8())..].to_owned())
    }
}
