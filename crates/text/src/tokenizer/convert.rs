//! Other formats turned into a `tokenizer.json`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::{Tokenizer, TokenizerConfig};
use crate::error::TextError;

/// How Qwen2 splits text before BPE, from its published `tokenizer.json`; written as data.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// SentencePiece's visible space.
const SPACE: &str = "\u{2581}";
/// llama2.c: ids of the unknown token, BOS, EOS, then 256 bytes.
const LLAMA2C_FIRST_BYTE: usize = 3;
const LLAMA2C_FIRST_PIECE: usize = LLAMA2C_FIRST_BYTE + 256;

/// The files of a tokenizer without `tokenizer.json`.
pub(super) struct VocabAndMerges {
    pub vocab: Json,
    pub merges: String,
    pub added: Json,
    pub special_tokens_map: Json,
    pub model_type: Option<String>,
}

/// GPT-2's and Qwen2's format. Without any sign of the family, GPT-2's rules hold: it is their format.
pub(super) fn from_vocab_and_merges(
    dir: &Path,
    files: &VocabAndMerges,
    mut config: TokenizerConfig,
) -> Result<Tokenizer, TextError> {
    let class = config.other.get("tokenizer_class").and_then(Json::as_str).or(files.model_type.as_deref());
    let prefix_space = config.other.get("add_prefix_space").and_then(Json::as_bool).unwrap_or(false);
    let bytes = |use_regex| byte_level(prefix_space, use_regex);
    let (normalizer, pre_tokenizer) = match class.map(str::to_lowercase).as_deref() {
        Some(c) if c.starts_with("qwen2") => {
            let split = json!({"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": false});
            (json!({"type": "NFC"}), json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]}))
        }
        None => (Json::Null, bytes(true)),
        Some(c) if c.starts_with("gpt2") => (Json::Null, bytes(true)),
        Some(other) => {
            return Err(TextError::Malformed {
                path: dir.join("tokenizer_config.json"),
                found: format!("vocab.json and merges.txt of tokenizer class {other}"),
                expected:
                    "GPT2Tokenizer or Qwen2Tokenizer, or a tokenizer.json, which holds the rules itself"
                        .into(),
            });
        }
    };
    if config.eos.is_none() && class.is_none() && files.vocab.get("<|endoftext|>").is_some() {
        config.eos = Some("<|endoftext|>".into());
        config.bos = config.bos.or_else(|| config.eos.clone());
    }
    let merges =
        files.merges.lines().filter(|l| !l.is_empty() && !l.starts_with("#version")).collect::<Vec<_>>();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added_tokens(files, &config),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": byte_level(true, true),
        "decoder": byte_level(true, true),
        "model": bpe_model(&files.vocab, &json!(merges), false),
    });
    Tokenizer::from_parts(json, config)
}

/// Entries of `added_tokens`, in order of id, from `added_tokens.json`, `added_tokens_decoder` and the
/// special tokens that have a role.
fn added_tokens(files: &VocabAndMerges, config: &TokenizerConfig) -> Vec<Json> {
    let mut by_id: HashMap<u64, Json> = HashMap::new();
    let special = |content: &str| {
        let listed = files.special_tokens_map["additional_special_tokens"].as_array();
        let listed = listed.is_some_and(|l| l.iter().any(|t| t == content || t["content"] == content));
        listed || config.named_tokens().any(|(_, t)| t == content)
    };
    for (_, token) in config.named_tokens() {
        if let Some(id) = files.vocab.get(token).and_then(Json::as_u64) {
            by_id.insert(id, added_token(id, token, true));
        }
    }
    for (content, id) in files.added.as_object().into_iter().flatten() {
        if let Some(id) = id.as_u64() {
            by_id.insert(id, added_token(id, content, special(content)));
        }
    }
    for (id, token) in
        config.other.get("added_tokens_decoder").and_then(Json::as_object).into_iter().flatten()
    {
        if let (Ok(id), Some(fields)) = (id.parse(), token.as_object()) {
            let mut fields = fields.clone();
            fields.insert("id".into(), json!(id));
            by_id.insert(id, Json::Object(fields));
        }
    }
    let mut tokens: Vec<(u64, Json)> = by_id.into_iter().collect();
    tokens.sort_by_key(|(id, _)| *id);
    tokens.into_iter().map(|(_, token)| token).collect()
}

/// One entry of `added_tokens`.
pub(super) fn added_token(id: u64, content: &str, special: bool) -> Json {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special,
    })
}

/// A byte-level pre-tokenizer, post-processor or decoder.
pub(super) fn byte_level(add_prefix_space: bool, use_regex: bool) -> Json {
    json!({
        "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": false, "use_regex": use_regex,
    })
}

/// A BPE model.
pub(super) fn bpe_model(vocab: &Json, merges: &Json, byte_fallback: bool) -> Json {
    json!({
        "type": "BPE", "dropout": null,
        "unk_token": if byte_fallback { json!("<unk>") } else { Json::Null },
        "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": byte_fallback, "byte_fallback": byte_fallback, "ignore_merges": false,
        "vocab": vocab, "merges": merges,
    })
}

impl Tokenizer {
    /// A tokenizer whose tokens are single characters, numbered in the order of `chars`. A character
    /// that is not among them is an error, never dropped.
    ///
    /// # Errors
    /// Those of [`Tokenizer::from_parts`].
    pub fn from_chars(chars: &str, config: TokenizerConfig) -> Result<Self, TextError> {
        let vocab: Map<String, Json> =
            chars.chars().zip(0u32..).map(|(c, id)| (c.to_string(), json!(id))).collect();
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Fuse"},
            "model": bpe_model(&Json::Object(vocab), &json!([]), false),
        });
        Self::from_parts(json, config)
    }
}

/// llama2.c's file: the longest piece's length, then per piece its score, length and bytes.
pub(super) fn from_llama2c(path: &Path, bytes: &[u8]) -> Result<Tokenizer, TextError> {
    let pieces = llama2c_pieces(path, bytes)?;
    let mut vocab = Map::new();
    for (id, (piece, _)) in pieces.iter().enumerate() {
        vocab.insert(piece.clone(), json!(id));
    }
    if vocab.len() != pieces.len() {
        return Err(malformed(path, "pieces that occur twice".into(), "distinct pieces"));
    }
    let replace = |pattern: &str, content: &str| json!({"type": "Replace", "pattern": {"String": pattern}, "content": content});
    let special_tokens =
        [(0, "<unk>"), (1, "<s>"), (2, "</s>")].map(|(id, token)| added_token(id, token, true));
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": special_tokens,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace(" ", SPACE)]},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            replace(SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": bpe_model(&Json::Object(vocab.clone()), &json!(merges_by_score(&pieces, &vocab)), true),
    });
    let config = TokenizerConfig {
        bos: Some("<s>".into()),
        eos: Some("</s>".into()),
        unk: Some("<unk>".into()),
        add_bos: Some(true),
        add_eos: Some(false),
        ..TokenizerConfig::default()
    };
    Tokenizer::from_parts(json, config)
}

fn llama2c_pieces(path: &Path, bytes: &[u8]) -> Result<Vec<(String, f32)>, TextError> {
    let cut = || malformed(path, format!("{} bytes that end inside a piece", bytes.len()), "whole pieces");
    let mut rest = bytes.get(4..).ok_or_else(cut)?;
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let (header, tail) = rest.split_at_checked(8).ok_or_else(cut)?;
        let score = f32::from_le_bytes(header[..4].try_into().expect("four bytes"));
        let len = i32::from_le_bytes(header[4..].try_into().expect("four bytes"));
        let (piece, tail) =
            usize::try_from(len).ok().and_then(|n| tail.split_at_checked(n)).ok_or_else(cut)?;
        rest = tail;
        let piece = match pieces.len() {
            // The file shows these as they are printed, with newlines around them.
            0 => "<unk>".to_owned(),
            1 => "<s>".to_owned(),
            2 => "</s>".to_owned(),
            id if id < LLAMA2C_FIRST_PIECE => format!("<0x{:02X}>", id - LLAMA2C_FIRST_BYTE),
            _ => {
                let text = std::str::from_utf8(piece);
                let text = text.map_err(|e| malformed(path, format!("a piece with {e}"), "UTF-8"))?;
                text.replace(' ', SPACE)
            }
        };
        pieces.push((piece, score));
    }
    if pieces.len() <= LLAMA2C_FIRST_PIECE {
        return Err(malformed(
            path,
            format!("{} pieces", pieces.len()),
            "more than 259: three special ones, 256 bytes, text",
        ));
    }
    Ok(pieces)
}

/// Merge rules that rebuild "merge the adjacent pair whose union has the best score": every way to cut
/// a piece into two pieces, best score first; cuts of one piece from the left, as the leftmost pair wins.
fn merges_by_score(pieces: &[(String, f32)], vocab: &Map<String, Json>) -> Vec<String> {
    let is_text = |piece: &str| {
        vocab.get(piece).and_then(Json::as_u64).is_some_and(|id| id >= LLAMA2C_FIRST_PIECE as u64)
    };
    let mut merges = Vec::new();
    for (piece, score) in &pieces[LLAMA2C_FIRST_PIECE..] {
        for (cut, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(cut);
            if is_text(left) && is_text(right) {
                merges.push((*score, format!("{left} {right}")));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    merges.into_iter().map(|(_, rule)| rule).collect()
}

fn malformed(path: &Path, found: String, expected: &str) -> TextError {
    TextError::Malformed { path: path.to_owned(), found, expected: expected.to_owned() }
}
