//! Reading a tokenizer from a model directory.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use serde_json::Value as Json;

use super::config::{chat_templates, eos_ids};
use super::{Tokenizer, TokenizerConfig, convert};
use crate::error::TextError;

impl Tokenizer {
    /// Loads the tokenizer of a model directory: `tokenizer.json`, or `vocab.json` with `merges.txt`
    /// (and `added_tokens.json`), or one llama2.c `tok*.bin`, or a `config.json` with `chars`; and
    /// whatever stands beside it (`tokenizer_config.json`, `special_tokens_map.json`,
    /// `chat_template.jinja`, `chat_template.json`, `generation_config.json`). Each may be gzipped (`.gz`).
    ///
    /// # Errors
    /// [`TextError::NoTokenizer`], [`TextError::Io`], [`TextError::Malformed`], and those of
    /// [`Tokenizer::from_parts`].
    pub fn from_dir(dir: &Path) -> Result<Self, TextError> {
        let files = Dir(dir);
        let config_json = files.json("tokenizer_config.json")?.unwrap_or(Json::Null);
        let special_tokens_map = files.json("special_tokens_map.json")?.unwrap_or(Json::Null);
        let model_config = files.json("config.json")?.unwrap_or(Json::Null);
        let mut config = TokenizerConfig::from_json(&config_json, &special_tokens_map);
        if let Some(source) = files.text("chat_template.jinja")? {
            config.set_chat_template(source);
        } else if let Some(json) = files.json("chat_template.json")? {
            config.chat_templates = chat_templates(&json["chat_template"]);
        }
        let generation = files.json("generation_config.json")?.unwrap_or(Json::Null);
        config.generation_eos_ids = eos_ids(&generation["eos_token_id"]);

        if let Some(mut json) = files.json("tokenizer.json")? {
            add_missing_tokens(&mut json, &config);
            return Self::from_parts(json, config);
        }
        if let (Some(vocab), Some(merges)) = (files.json("vocab.json")?, files.text("merges.txt")?) {
            let sources = convert::VocabAndMerges {
                vocab,
                merges,
                added: files.json("added_tokens.json")?.unwrap_or(Json::Null),
                special_tokens_map,
                model_type: model_config["model_type"].as_str().map(str::to_owned),
            };
            return convert::from_vocab_and_merges(dir, &sources, config);
        }
        if let Some(path) = files.llama2c()? {
            return Self::from_llama2c(&path);
        }
        match model_config["chars"].as_str() {
            Some(chars) => Self::from_chars(chars, config),
            None => Err(TextError::NoTokenizer { dir: dir.to_owned() }),
        }
    }

    /// Loads llama2.c's tokenizer file (`tok512.bin`): SentencePiece BPE by score, byte fallback, a
    /// space before the text, `<s>` 1, `</s>` 2, bytes from 3.
    ///
    /// # Errors
    /// [`TextError::Io`], [`TextError::Malformed`].
    pub fn from_llama2c(path: &Path) -> Result<Self, TextError> {
        let bytes = std::fs::read(path).map_err(|source| TextError::Io { path: path.to_owned(), source })?;
        convert::from_llama2c(path, &bytes)
    }
}

/// As transformers, adds the tokens that only `added_tokens_decoder` of `tokenizer_config.json` knows.
fn add_missing_tokens(json: &mut Json, config: &TokenizerConfig) {
    let Some(listed) = config.other.get("added_tokens_decoder").and_then(Json::as_object) else { return };
    let mut missing: Vec<(u64, Json)> = Vec::new();
    for (id, fields) in listed {
        let (Ok(id), Some(content)) = (id.parse::<u64>(), fields["content"].as_str()) else { continue };
        let added =
            json["added_tokens"].as_array().is_some_and(|a| a.iter().any(|t| t["content"] == content));
        if !added && json["model"]["vocab"].get(content).is_none() {
            let special = fields["special"].as_bool().unwrap_or(false);
            missing.push((id, convert::added_token(id, content, special)));
        }
    }
    missing.sort_by_key(|(id, _)| *id);
    if let Some(added) = json["added_tokens"].as_array_mut() {
        added.extend(missing.into_iter().map(|(_, token)| token));
    }
}

struct Dir<'a>(&'a Path);

impl Dir<'_> {
    /// The text of a file or of its gzipped twin, or `None` when neither is there.
    fn text(&self, name: &str) -> Result<Option<String>, TextError> {
        for (path, gzipped) in [(self.0.join(name), false), (self.0.join(format!("{name}.gz")), true)] {
            let mut text = String::new();
            let read = File::open(&path).and_then(|mut file| match gzipped {
                true => GzDecoder::new(file).read_to_string(&mut text),
                false => file.read_to_string(&mut text),
            });
            match read {
                Ok(_) => return Ok(Some(text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(TextError::Io { path, source }),
            }
        }
        Ok(None)
    }

    fn json(&self, name: &str) -> Result<Option<Json>, TextError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|error| TextError::Malformed {
            path: self.0.join(name),
            found: format!("text that is not JSON ({error})"),
            expected: "JSON".to_owned(),
        })
    }

    /// The only `tok*.bin` of the directory.
    fn llama2c(&self) -> Result<Option<PathBuf>, TextError> {
        let entries = match std::fs::read_dir(self.0) {
            Ok(entries) => entries,
            Err(source) => return Err(TextError::Io { path: self.0.to_owned(), source }),
        };
        let is_ours = |name: &str| name.starts_with("tok") && name.ends_with(".bin");
        let mut found: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| is_ours(&entry.file_name().to_string_lossy()))
            .map(|entry| entry.path())
            .collect();
        match found.len() {
            0 | 1 => Ok(found.pop()),
            n => Err(TextError::Malformed {
                path: self.0.to_owned(),
                found: format!("{n} files named tok*.bin"),
                expected: "one".to_owned(),
            }),
        }
    }
}
