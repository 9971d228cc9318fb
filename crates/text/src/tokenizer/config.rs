//! `tokenizer_config.json` and the files beside it: special tokens and chat templates.

use serde_json::{Map, Value as Json};

use crate::error::TextError;

/// The name of the template that is used when none is asked for.
const DEFAULT_TEMPLATE: &str = "default";

/// Fields of `tokenizer_config.json`, as JSON, that are written unless others were read.
const DEFAULTS: [(&str, &str); 2] =
    [("tokenizer_class", "\"PreTrainedTokenizerFast\""), ("clean_up_tokenization_spaces", "false")];

/// What a model directory says about its tokenizer besides the vocabulary.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenizerConfig {
    /// Beginning of sequence.
    pub bos: Option<String>,
    /// End of sequence.
    pub eos: Option<String>,
    /// Padding.
    pub pad: Option<String>,
    /// Unknown text.
    pub unk: Option<String>,
    /// `add_bos_token`, when the configuration says so explicitly.
    pub add_bos: Option<bool>,
    /// `add_eos_token`, when the configuration says so explicitly.
    pub add_eos: Option<bool>,
    /// `eos_token_id` of `generation_config.json`: more tokens that end a generation.
    pub generation_eos_ids: Vec<u32>,
    /// Chat templates by name; the usual one is called `default`.
    pub chat_templates: Vec<(String, String)>,
    /// The other fields of `tokenizer_config.json`, kept for writing it again.
    pub other: Map<String, Json>,
}

impl TokenizerConfig {
    /// The special tokens that have a role, as transformers names the roles.
    pub fn named_tokens(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("bos_token", &self.bos),
            ("eos_token", &self.eos),
            ("unk_token", &self.unk),
            ("pad_token", &self.pad),
        ]
        .into_iter()
        .filter_map(|(role, token)| Some((role, token.as_deref()?)))
    }

    /// The source of the chat template called `name`, or of the default one (the only one, if there is one).
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`].
    pub fn chat_template(&self, name: Option<&str>) -> Result<&str, TextError> {
        let wanted = name.unwrap_or(DEFAULT_TEMPLATE);
        let found = self.chat_templates.iter().find(|(n, _)| n == wanted);
        let found = found.or(match (name, self.chat_templates.as_slice()) {
            (None, [only]) => Some(only),
            _ => None,
        });
        let names: Vec<&str> = self.chat_templates.iter().map(|(n, _)| n.as_str()).collect();
        found.map(|(_, source)| source.as_str()).ok_or_else(|| TextError::NoChatTemplate {
            name: wanted.to_owned(),
            hint: match names.is_empty() {
                true => "the model directory has none".to_owned(),
                false => pt_core::suggest::hint(wanted, &names),
            },
        })
    }

    /// Replaces the default chat template.
    pub fn set_chat_template(&mut self, source: impl Into<String>) {
        self.chat_templates.retain(|(n, _)| n != DEFAULT_TEMPLATE);
        self.chat_templates.insert(0, (DEFAULT_TEMPLATE.to_owned(), source.into()));
    }

    /// Reads `tokenizer_config.json`, with `special_tokens_map.json` for what it leaves out.
    pub(super) fn from_json(config: &Json, special_tokens_map: &Json) -> Self {
        let token = |role: &str| token_text(&config[role]).or_else(|| token_text(&special_tokens_map[role]));
        let mut result = Self {
            bos: token("bos_token"),
            eos: token("eos_token"),
            pad: token("pad_token"),
            unk: token("unk_token"),
            add_bos: config["add_bos_token"].as_bool(),
            add_eos: config["add_eos_token"].as_bool(),
            ..Self::default()
        };
        result.chat_templates = chat_templates(&config["chat_template"]);
        let known = ["bos_token", "eos_token", "pad_token", "unk_token", "add_bos_token", "add_eos_token"];
        for (key, value) in config.as_object().into_iter().flatten() {
            let written = value.to_string();
            let is_default = DEFAULTS.contains(&(key.as_str(), written.as_str()));
            if key != "chat_template" && !known.contains(&key.as_str()) && !is_default {
                result.other.insert(key.clone(), value.clone());
            }
        }
        result
    }

    /// `tokenizer_config.json`, chat templates included.
    pub(super) fn to_json(&self) -> Json {
        let mut map = self.other.clone();
        // What transformers needs to load a bare tokenizer.json as it is.
        for (key, value) in DEFAULTS {
            map.entry(key).or_insert_with(|| serde_json::from_str(value).expect("the defaults are JSON"));
        }
        for (role, token) in self.named_tokens() {
            map.insert(role.to_owned(), token.into());
        }
        for (key, flag) in [("add_bos_token", self.add_bos), ("add_eos_token", self.add_eos)] {
            if let Some(flag) = flag {
                map.insert(key.to_owned(), flag.into());
            }
        }
        match self.chat_templates.as_slice() {
            [] => {}
            [(name, source)] if name == DEFAULT_TEMPLATE => {
                map.insert("chat_template".into(), source.as_str().into());
            }
            many => {
                let named = many.iter().map(|(n, t)| serde_json::json!({"name": n, "template": t})).collect();
                map.insert("chat_template".into(), Json::Array(named));
            }
        }
        Json::Object(map)
    }
}

/// A token written as a string or as `{"content": ...}`.
fn token_text(value: &Json) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// `chat_template` as one string or as a list of named ones.
pub(super) fn chat_templates(value: &Json) -> Vec<(String, String)> {
    match value {
        Json::String(source) => vec![(DEFAULT_TEMPLATE.to_owned(), source.clone())],
        Json::Array(named) => named
            .iter()
            .filter_map(|t| Some((t["name"].as_str()?.to_owned(), t["template"].as_str()?.to_owned())))
            .collect(),
        _ => Vec::new(),
    }
}

/// `eos_token_id` as a number, a list, or nothing; negative ids mean "none".
pub(super) fn eos_ids(value: &Json) -> Vec<u32> {
    let one = |v: &Json| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Json::Array(ids) => ids.iter().filter_map(one).collect(),
        other => one(other).into_iter().collect(),
    }
}
