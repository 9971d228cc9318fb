//! Decoding one token at a time.

use super::Tokenizer;
use crate::error::TextError;

/// What invalid or unfinished UTF-8 decodes to.
const UNFINISHED: char = '\u{FFFD}';

/// Gives out the text of a growing list of tokens in pieces that are whole characters. The pieces, and
/// then [`DecodeStream::finish`], joined are what decoding all tokens at once gives.
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Tokens from the last piece given out (as context: a decoder may treat a first token specially).
    ids: Vec<u32>,
    /// How many of `ids` have been given out.
    n_given: usize,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), n_given: 0 }
    }

    /// Takes one more token and returns the text it completes, which may be empty.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`].
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        self.ids.push(id);
        let text = self.pending()?;
        if text.is_empty() || text.ends_with(UNFINISHED) {
            return Ok(String::new());
        }
        self.ids.drain(..self.n_given);
        self.n_given = self.ids.len();
        Ok(text)
    }

    /// What is left: unfinished characters, as U+FFFD.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`].
    pub fn finish(&mut self) -> Result<String, TextError> {
        let text = self.pending()?;
        self.ids.clear();
        self.n_given = 0;
        Ok(text)
    }

    fn pending(&self) -> Result<String, TextError> {
        let given = self.tokenizer.decode(&self.ids[..self.n_given], self.skip_special)?;
        let all = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(all.get(given.len()..).unwrap_or_default().to_owned())
    }
}
