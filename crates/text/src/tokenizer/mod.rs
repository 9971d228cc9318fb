//! Tokenizers: text to token ids with offsets, and back.
//!
//! Whatever the source (a Hugging Face directory, llama2.c's `tok512.bin`, a list of characters, or
//! training), it becomes a `tokenizer.json` and a configuration, and from there one type. So every
//! tokenizer can be written as a directory that transformers loads.
//!
//! Left out: SentencePiece `.model` and tiktoken files; padding and truncation settings in
//! `tokenizer.json` are ignored, because both are decided elsewhere and would act in silence.

mod config;
mod convert;
mod load;
mod save;
mod stream;
mod train;

use std::collections::HashSet;
use std::ops::Range;

use serde_json::{Map, Value as Json};

pub use config::TokenizerConfig;
pub use stream::DecodeStream;
pub use train::train_byte_bpe;

use crate::error::TextError;
use crate::template::{ChatTemplate, Moment};

/// A tokenizer with its special tokens and chat templates.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// `tokenizer.json` as it was read or built; what is saved.
    json: Json,
    config: TokenizerConfig,
    special_ids: HashSet<u32>,
    special_texts: Vec<String>,
    eos_ids: Vec<u32>,
    vocab_size: usize,
    drops: Drops,
    content_hash: String,
}

/// Token ids and where in the text each came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// The ids.
    pub ids: Vec<u32>,
    /// Per id, the bytes of the text it stands for; empty for a token that was added. Tokens that
    /// are part of one character share that character's range.
    pub offsets: Vec<Range<usize>>,
}

impl Encoding {
    /// The offsets in Unicode code points of `text`, as Python counts.
    pub fn char_offsets(&self, text: &str) -> Vec<Range<usize>> {
        let mut char_of_byte = vec![0; text.len() + 1];
        let mut n_chars = 0;
        for (i, c) in text.char_indices() {
            char_of_byte[i..i + c.len_utf8()].fill(n_chars);
            n_chars += 1;
        }
        char_of_byte[text.len()] = n_chars;
        self.offsets.iter().map(|r| char_of_byte[r.start]..char_of_byte[r.end]).collect()
    }
}

impl Tokenizer {
    /// Builds a tokenizer from the content of a `tokenizer.json` and its configuration.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`] when the library refuses the JSON, [`TextError::UnknownToken`] when the
    /// configuration names a token that is not in the vocabulary.
    pub fn from_parts(json: Json, config: TokenizerConfig) -> Result<Self, TextError> {
        let mut inner = library_tokenizer(&json)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| library_error("disable truncation", &e))?;
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let mut special_ids: HashSet<u32> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, t)| t.special)
            .map(|(id, _)| id)
            .collect();
        let mut eos_ids = Vec::new();
        for (role, token) in config.named_tokens() {
            let unknown = || TextError::UnknownToken { role, token: token.to_owned(), n_tokens: vocab_size };
            let id = match inner.token_to_id(token) {
                Some(id) => id,
                // transformers adds a missing unk or pad token to the vocabulary; nothing trains on it.
                None if role == "unk_token" || role == "pad_token" => continue,
                None => return Err(unknown()),
            };
            special_ids.insert(id);
            if role == "eos_token" {
                eos_ids.push(id);
            }
        }
        for id in &config.generation_eos_ids {
            if !eos_ids.contains(id) && (*id as usize) < vocab_size {
                eos_ids.push(*id);
            }
        }
        let mut special_texts: Vec<String> =
            special_ids.iter().filter_map(|id| inner.id_to_token(*id)).collect();
        special_texts.retain(|t| !t.is_empty());
        special_texts.sort();
        let config_json = config.to_json().to_string();
        let content_hash = pt_core::hash::of_parts([json.to_string().as_bytes(), config_json.as_bytes()]);
        let drops = Drops::of(&json);
        Ok(Self { inner, json, config, special_ids, special_texts, eos_ids, vocab_size, drops, content_hash })
    }

    /// Encodes `text`. Special tokens written out in the text are recognised. With `add_special`, BOS
    /// and EOS are added as the tokenizer's configuration says (as transformers: explicit
    /// `add_bos_token` / `add_eos_token` win over the post-processor).
    ///
    /// A character that the vocabulary cannot spell is dropped if the tokenizer has no unknown token, as
    /// the library does; [`Tokenizer::encode_whole`] refuses that.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`] when the library fails.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Encoding, TextError> {
        let explicit = self.config.add_bos.is_some() || self.config.add_eos.is_some();
        let encoding =
            self.inner.encode(text, add_special && !explicit).map_err(|e| library_error("encode", &e))?;
        let mut ids = encoding.get_ids().to_vec();
        let mut offsets: Vec<Range<usize>> = encoding.get_offsets().iter().map(|&(s, e)| s..e).collect();
        if add_special && explicit {
            if let (Some(true), Some(bos)) = (self.config.add_bos, self.bos_id()) {
                ids.insert(0, bos);
                offsets.insert(0, 0..0);
            }
            if let (Some(true), Some(eos)) = (self.config.add_eos, self.eos_id()) {
                ids.push(eos);
                offsets.push(text.len()..text.len());
            }
        }
        Ok(Encoding { ids, offsets })
    }

    /// As [`Tokenizer::encode`], for text whose every character must reach the model.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`] when the library fails, or when it dropped a character of the text.
    pub fn encode_whole(&self, text: &str, add_special: bool) -> Result<Encoding, TextError> {
        let encoding = self.encode(text, add_special)?;
        match self.first_dropped(text, &encoding.offsets) {
            None => Ok(encoding),
            Some((at, c)) => Err(TextError::Tokenizer {
                action: "encode",
                message: format!(
                    "the vocabulary of {} tokens has none for {c:?} at byte {at}, and no unknown token",
                    self.vocab_size
                ),
            }),
        }
    }

    /// The text of `ids`; invalid UTF-8 becomes U+FFFD.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        self.inner.decode(ids, skip_special).map_err(|e| library_error("decode", &e))
    }

    /// A decoder that is fed one token at a time and gives out only complete characters.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_special)
    }

    /// The text of `ids` and, per id, the bytes of it that the id completes.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`].
    pub fn decode_with_offsets(&self, ids: &[u32]) -> Result<(String, Vec<Range<usize>>), TextError> {
        let mut stream = self.decode_stream(false);
        let mut text = String::new();
        let mut offsets = Vec::with_capacity(ids.len());
        for (i, &id) in ids.iter().enumerate() {
            let start = text.len();
            text.push_str(&stream.push(id)?);
            if i + 1 == ids.len() {
                text.push_str(&stream.finish()?);
            }
            offsets.push(start..text.len());
        }
        Ok((text, offsets))
    }

    /// The id of a token, by its name in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The name in the vocabulary of an id.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// One more than the largest id: the rows an embedding needs at least.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of the beginning-of-sequence token.
    pub fn bos_id(&self) -> Option<u32> {
        self.config.bos.as_deref().and_then(|t| self.token_to_id(t))
    }

    /// The id of the end-of-sequence token.
    pub fn eos_id(&self) -> Option<u32> {
        self.config.eos.as_deref().and_then(|t| self.token_to_id(t))
    }

    /// The id of the padding token. Nothing here pads; it is known for the audit and for export.
    pub fn pad_id(&self) -> Option<u32> {
        self.config.pad.as_deref().and_then(|t| self.token_to_id(t))
    }

    /// The id of the unknown token.
    pub fn unk_id(&self) -> Option<u32> {
        self.config.unk.as_deref().and_then(|t| self.token_to_id(t))
    }

    /// Every id that ends a generation: the EOS token, then those of `generation_config.json`.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Whether `id` is a special token (marked so in the vocabulary, or named by the configuration).
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// The texts of the special tokens, sorted.
    pub fn special_texts(&self) -> &[String] {
        &self.special_texts
    }

    /// Whether encoding with special tokens starts with BOS.
    pub fn adds_bos(&self) -> bool {
        let first = self.encode("a", true).ok().and_then(|e| e.ids.first().copied());
        first.is_some() && first == self.bos_id()
    }

    /// The configuration.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    /// The same tokenizer with another configuration (a chat template, an EOS token, ...).
    ///
    /// # Errors
    /// As [`Tokenizer::from_parts`].
    pub fn with_config(self, config: TokenizerConfig) -> Result<Self, TextError> {
        Self::from_parts(self.json, config)
    }

    /// The chat template called `name`, or the default one.
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`], [`TextError::TemplateSyntax`].
    pub fn chat_template(&self, name: Option<&str>) -> Result<ChatTemplate, TextError> {
        ChatTemplate::new(self.config.chat_template(name)?)
    }

    /// As [`Tokenizer::chat_template`], with `strftime_now` fixed, so that a template that writes the date
    /// writes the same one when the run is resumed.
    ///
    /// # Errors
    /// As [`Tokenizer::chat_template`].
    pub fn chat_template_at(&self, name: Option<&str>, now: Moment) -> Result<ChatTemplate, TextError> {
        ChatTemplate::at(self.config.chat_template(name)?, now)
    }

    /// The template variables transformers passes: `bos_token`, `eos_token`, `pad_token`, ...
    pub fn template_variables(&self) -> Map<String, Json> {
        self.config.named_tokens().map(|(role, token)| (role.to_owned(), Json::from(token))).collect()
    }

    /// BLAKE3 over the vocabulary, rules, special tokens and templates: the same hash, the same tokens.
    pub fn content_hash(&self) -> &str {
        &self.content_hash
    }

    fn first_dropped(&self, text: &str, offsets: &[Range<usize>]) -> Option<(usize, char)> {
        let mut covered = 0;
        for range in offsets.iter().cloned().chain(std::iter::once(text.len()..text.len())) {
            let gap = text.get(covered..range.start).unwrap_or_default().char_indices();
            let dropped = gap.map(|(i, c)| (covered + i, c)).find(|(_, c)| match self.drops {
                Drops::Nothing => false,
                Drops::Unknown => !c.is_whitespace(),
                Drops::UnknownOrSpace => true,
            });
            if dropped.is_some() {
                return dropped;
            }
            covered = covered.max(range.end);
        }
        None
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("eos_ids", &self.eos_ids)
            .field("content_hash", &self.content_hash)
            .finish_non_exhaustive()
    }
}

/// The library's tokenizer, with offsets that cover every byte: `trim_offsets` would leave the space
/// before a word to nobody, and changes nothing but offsets.
fn library_tokenizer(json: &Json) -> Result<tokenizers::Tokenizer, TextError> {
    let mut json = std::borrow::Cow::Borrowed(json);
    if json["post_processor"].to_string().contains("\"trim_offsets\":true") {
        untrim_offsets(&mut json.to_mut()["post_processor"]);
    }
    tokenizers::Tokenizer::from_bytes(json.to_string().as_bytes()).map_err(|e| library_error("load", &e))
}

fn untrim_offsets(value: &mut Json) {
    match value {
        Json::Object(map) => {
            for (key, child) in map.iter_mut() {
                match key.as_str() {
                    "trim_offsets" => *child = Json::Bool(false),
                    _ => untrim_offsets(child),
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(untrim_offsets),
        _ => {}
    }
}

/// Which characters the tokenizer can lose because the vocabulary does not have them.
#[derive(Clone, Copy)]
enum Drops {
    /// None: there is an unknown token or a fallback to bytes.
    Nothing,
    /// Text; white space may also be missing by design.
    Unknown,
    /// Anything; white space has tokens of its own.
    UnknownOrSpace,
}

impl Drops {
    fn of(json: &Json) -> Self {
        let model = &json["model"];
        if model["type"] != "BPE" || !model["unk_token"].is_null() || model["byte_fallback"] == true {
            return Self::Nothing;
        }
        let splitter = &json["pre_tokenizer"];
        match splitter.is_null() || splitter.to_string().contains("ByteLevel") {
            true => Self::UnknownOrSpace,
            false => Self::Unknown,
        }
    }
}

fn library_error(action: &'static str, error: &tokenizers::Error) -> TextError {
    TextError::Tokenizer { action, message: error.to_string() }
}

#[cfg(test)]
mod tests;
