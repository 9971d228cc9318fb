//! Tokenizers in GGUF files, both ways.
//!
//! Two of llama.cpp's kinds are written:
//!
//! | kind | from | how it splits |
//! | --- | --- | --- |
//! | `gpt2` | byte-level BPE | by the pre-tokenizer the file names (`tokenizer.ggml.pre`), then by the merges |
//! | `llama` | BPE with byte fallback (SentencePiece) | joins the pair whose union has the best score |
//!
//! A pre-tokenizer is found by its rules, never guessed: one that has no name there is refused. Scores are the negative
//! rank of the first merge that makes a piece, which is the order SentencePiece gave them. Left out: Unigram and WordPiece.

use std::collections::HashMap;
use std::path::Path;

use pt_text::{Tokenizer, TokenizerConfig};
use serde_json::{Map, Value as Json, json};

use crate::error::{ExportError, Result};
use crate::gguf::{GgufFile, Metadata, Value};

/// SentencePiece's visible space.
const SPACE: &str = "\u{2581}";
/// Kinds of tokens by their numbers in files.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;
/// Text with which it is seen whether a tokenizer adds tokens around a text.
const PROBE: &str = "a";
/// Names of files for tokens that end an answer, beside `eos_token_id`.
const MORE_ENDS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A pre-tokenizer that llama.cpp knows by name.
struct PreTokenizer {
    name: &'static str,
    /// A pattern to split by; `None` is GPT-2's own.
    pattern: Option<&'static str>,
    /// Every digit alone, before that.
    digits: bool,
    /// A word that is a token is not split, whatever the merges.
    ignore_merges: bool,
}

const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer { name: "gpt-2", pattern: None, digits: false, ignore_merges: false },
    PreTokenizer { name: "smollm", pattern: None, digits: true, ignore_merges: false },
    PreTokenizer { name: "llama-bpe", pattern: Some(LLAMA3), digits: false, ignore_merges: true },
    PreTokenizer { name: "dbrx", pattern: Some(LLAMA3), digits: false, ignore_merges: false },
    PreTokenizer { name: "qwen2", pattern: Some(QWEN2), digits: false, ignore_merges: false },
    PreTokenizer { name: "tekken", pattern: Some(TEKKEN), digits: false, ignore_merges: true },
];

/// Writes the tokenizer, its chat templates and special tokens; ids above the tokenizer's, up to `n_tokens`, are fillers.
///
/// # Errors
/// [`ExportError::Unsupported`] for a tokenizer that has no place in the file.
pub fn put_vocab(tokenizer: &Tokenizer, n_tokens: usize, out: &mut Metadata) -> Result<()> {
    if tokenizer.vocab_size() > n_tokens {
        let problem =
            format!("the tokenizer has {} tokens, the model's embedding {n_tokens}", tokenizer.vocab_size());
        return Err(ExportError::gguf(problem));
    }
    let json = json_of(tokenizer)?;
    let model = &json["model"];
    if model["type"] != "BPE" {
        let problem =
            format!("a tokenizer of type {}; BPE has a place, with or without byte fallback", model["type"]);
        return Err(ExportError::gguf(problem));
    }
    let tokens = Tokens::of(tokenizer, &json, n_tokens);
    let merges = merges_of(model);
    match model["byte_fallback"].as_bool().unwrap_or(false) {
        true => put_sentencepiece(&json, &tokens, &merges, out)?,
        false => put_byte_level(&json, &tokens, &merges, out)?,
    }
    put_special(tokenizer, out)?;
    put_templates(tokenizer.config(), out);
    Ok(())
}

/// `tokenizer.json`, by way of a folder, since that is how a tokenizer shows it.
fn json_of(tokenizer: &Tokenizer) -> Result<Json> {
    let folder =
        tempfile::tempdir().map_err(ExportError::io(Path::new("for temporary files"), "making a folder"))?;
    tokenizer.save(folder.path())?;
    let path = folder.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).map_err(ExportError::io(&path, "reading"))?;
    Ok(serde_json::from_str(&text).expect("a saved tokenizer is JSON"))
}

/// All tokens with their kinds.
struct Tokens {
    texts: Vec<String>,
    kinds: Vec<i32>,
}

impl Tokens {
    fn of(tokenizer: &Tokenizer, json: &Json, n_tokens: usize) -> Tokens {
        let mut texts: Vec<String> = Vec::with_capacity(n_tokens);
        let mut kinds = vec![NORMAL; n_tokens];
        for id in 0..n_tokens {
            match tokenizer.id_to_token(id as u32) {
                Some(text) => texts.push(text),
                None => {
                    texts.push(format!("[PAD{id}]"));
                    kinds[id] = UNUSED;
                }
            }
        }
        let fallback = json["model"]["byte_fallback"].as_bool().unwrap_or(false);
        if fallback {
            let bytes = texts.iter().zip(&mut kinds).filter(|(text, _)| byte_of(text).is_some());
            bytes.for_each(|(_, kind)| *kind = BYTE);
        }
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let Some(kind) = token["id"].as_u64().and_then(|id| kinds.get_mut(id as usize)) else { continue };
            *kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
        }
        if let Some(id) = tokenizer.unk_id().filter(|_| fallback) {
            kinds[id as usize] = UNKNOWN;
        }
        Tokens { texts, kinds }
    }

    fn put(&self, out: &mut Metadata) {
        out.set("tokenizer.ggml.tokens", texts(&self.texts));
        out.set(
            "tokenizer.ggml.token_type",
            Value::List(self.kinds.iter().map(|k| Value::I32(*k)).collect()),
        );
    }
}

/// The byte a token like `<0x0A>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

fn texts<T: AsRef<str>>(list: &[T]) -> Value {
    Value::List(list.iter().map(|text| text.as_ref().into()).collect())
}

/// Pairs, whichever way the file writes them.
fn merges_of(model: &Json) -> Vec<(String, String)> {
    let pair = |merge: &Json| match merge {
        Json::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        Json::Array(two) => Some((two.first()?.as_str()?.to_owned(), two.get(1)?.as_str()?.to_owned())),
        _ => None,
    };
    model["merges"].as_array().into_iter().flatten().filter_map(pair).collect()
}

fn put_byte_level(
    json: &Json,
    tokens: &Tokens,
    merges: &[(String, String)],
    out: &mut Metadata,
) -> Result<()> {
    let name = pre_tokenizer_name(json).map_err(ExportError::gguf)?;
    out.set("tokenizer.ggml.model", "gpt2");
    out.set("tokenizer.ggml.pre", name);
    tokens.put(out);
    let merges: Vec<String> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
    out.set("tokenizer.ggml.merges", texts(&merges));
    Ok(())
}

/// llama.cpp's name of the rules by which text is split before BPE.
fn pre_tokenizer_name(json: &Json) -> std::result::Result<&'static str, String> {
    let normalizer = &json["normalizer"];
    // Composed text is what everybody writes; llama.cpp composes nothing.
    if !(normalizer.is_null() || normalizer["type"] == "NFC") {
        return Err(format!("a byte-level tokenizer with the normalizer {}", normalizer["type"]));
    }
    let pre = &json["pre_tokenizer"];
    let steps: Vec<&Json> = match pre["type"].as_str() {
        Some("Sequence") => pre["pretokenizers"].as_array().into_iter().flatten().collect(),
        _ => vec![pre],
    };
    let refused = || {
        let known: Vec<&str> = PRE_TOKENIZERS.iter().map(|p| p.name).collect();
        format!("no name is known for the pre-tokenizer {pre}; those known are {}", known.join(", "))
    };
    let (bytes, before) = steps.split_last().ok_or_else(refused)?;
    if bytes["type"] != "ByteLevel" || bytes["add_prefix_space"] == true {
        return Err(refused());
    }
    let (mut pattern, mut digits) = (None, false);
    for step in before {
        match step["type"].as_str() {
            Some("Digits") if step["individual_digits"] == true => digits = true,
            Some("Split") if step["behavior"] == "Isolated" && pattern.is_none() => {
                pattern = step["pattern"]["Regex"].as_str();
            }
            _ => return Err(refused()),
        }
    }
    // Without its own pattern ByteLevel does not split at all, which no name stands for.
    if pattern.is_none() != bytes["use_regex"].as_bool().unwrap_or(true) {
        return Err(refused());
    }
    let ignore_merges = json["model"]["ignore_merges"].as_bool().unwrap_or(false);
    let same =
        |p: &&PreTokenizer| p.pattern == pattern && p.digits == digits && p.ignore_merges == ignore_merges;
    PRE_TOKENIZERS.iter().find(same).map(|p| p.name).ok_or_else(refused)
}

fn put_sentencepiece(
    json: &Json,
    tokens: &Tokens,
    merges: &[(String, String)],
    out: &mut Metadata,
) -> Result<()> {
    out.set("tokenizer.ggml.model", "llama");
    out.set("tokenizer.ggml.pre", "default");
    tokens.put(out);
    let mut rank: HashMap<String, usize> = HashMap::new();
    for (i, (a, b)) in merges.iter().enumerate() {
        rank.entry(format!("{a}{b}")).or_insert(i);
    }
    let score = |(text, kind): (&String, &i32)| match kind {
        &NORMAL | &USER_DEFINED => -(rank.get(text).copied().unwrap_or(merges.len()) as f32),
        _ => 0.0,
    };
    let scores = tokens.texts.iter().zip(&tokens.kinds).map(score).map(Value::F32).collect();
    out.set("tokenizer.ggml.scores", Value::List(scores));
    out.set("tokenizer.ggml.add_space_prefix", prepends_space(json)?);
    Ok(())
}

/// Whether a space is put before the text: by the normalizer, or by a `Metaspace` pre-tokenizer.
fn prepends_space(json: &Json) -> Result<bool> {
    let normalizer = &json["normalizer"];
    let steps: Vec<&Json> = match normalizer["type"].as_str() {
        Some("Sequence") => normalizer["normalizers"].as_array().into_iter().flatten().collect(),
        None => Vec::new(),
        _ => vec![normalizer],
    };
    let mut prepends = false;
    for step in steps {
        match step["type"].as_str() {
            Some("Prepend") if step["prepend"] == SPACE => prepends = true,
            Some("Replace") if step["content"] == SPACE => {}
            _ => return Err(ExportError::gguf(format!("a tokenizer that normalises by {step}"))),
        }
    }
    let pre = &json["pre_tokenizer"];
    Ok(prepends || (pre["type"] == "Metaspace" && pre["prepend_scheme"] != "never"))
}

fn put_special(tokenizer: &Tokenizer, out: &mut Metadata) -> Result<()> {
    let roles = [
        ("bos", tokenizer.bos_id()),
        ("eos", tokenizer.eos_id()),
        ("unknown", tokenizer.unk_id()),
        ("padding", tokenizer.pad_id()),
    ];
    for (role, id) in roles {
        if let Some(id) = id {
            out.set(format!("tokenizer.ggml.{role}_token_id"), id);
        }
    }
    let others = tokenizer.eos_ids().iter().filter(|id| Some(**id) != tokenizer.eos_id());
    for (key, id) in MORE_ENDS.iter().zip(others) {
        out.set(*key, *id);
    }
    let ids = tokenizer.encode(PROBE, true)?.ids;
    out.set("tokenizer.ggml.add_bos_token", ids.len() > 1 && ids.first().copied() == tokenizer.bos_id());
    out.set("tokenizer.ggml.add_eos_token", ids.len() > 1 && ids.last().copied() == tokenizer.eos_id());
    Ok(())
}

fn put_templates(config: &TokenizerConfig, out: &mut Metadata) {
    let Ok(main) = config.chat_template(None) else { return };
    out.set("tokenizer.chat_template", main);
    let others: Vec<&(String, String)> = config.chat_templates.iter().filter(|(_, t)| t != main).collect();
    if !others.is_empty() {
        let names: Vec<&str> = others.iter().map(|(name, _)| name.as_str()).collect();
        out.set("tokenizer.chat_templates", texts(&names));
        others.iter().for_each(|(name, t)| out.set(format!("tokenizer.chat_template.{name}"), t.as_str()));
    }
}

/// The tokenizer a file holds, splitting as llama.cpp would.
///
/// # Errors
/// [`ExportError::BadFile`] for what is missing or unknown; [`ExportError::Text`].
pub fn tokenizer_of(file: &GgufFile) -> Result<Tokenizer> {
    let metadata = file.metadata();
    let get = |key: &str| metadata.get(&format!("tokenizer.ggml.{key}"));
    let list = |key: &str| {
        get(key)
            .and_then(Value::as_list)
            .ok_or_else(|| file.bad(format!("it has no list tokenizer.ggml.{key}")))
    };
    let text = |v: &Value| v.as_text().map(str::to_owned);
    let tokens: Vec<String> = list("tokens")?.iter().filter_map(text).collect();
    let kinds: Vec<i32> =
        list("token_type")?.iter().map(|v| if let Value::I32(kind) = v { *kind } else { NORMAL }).collect();
    if tokens.len() != kinds.len() {
        return Err(file.bad(format!("{} tokens have {} types", tokens.len(), kinds.len())));
    }
    let added: Vec<Json> = tokens
        .iter()
        .zip(&kinds)
        .enumerate()
        .filter(|(_, (_, kind))| matches!(**kind, CONTROL | USER_DEFINED | UNKNOWN))
        .map(|(id, (text, kind))| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind != USER_DEFINED})
        })
        .collect();
    let used = tokens.iter().zip(&kinds).enumerate().filter(|(_, (_, kind))| **kind != UNUSED);
    let vocab: Map<String, Json> = used.map(|(id, (text, _))| (text.clone(), json!(id))).collect();
    let json = match get("model").and_then(Value::as_text) {
        Some("gpt2") => byte_level_json(file, vocab, added, list("merges")?)?,
        Some("llama") => {
            let prefix = get("add_space_prefix").and_then(Value::as_bool).unwrap_or(true);
            sentencepiece_json(vocab, &tokens, &kinds, list("scores")?, added, prefix)
        }
        other => return Err(file.bad(format!("a tokenizer of kind {other:?}"))),
    };
    let id = |key: &str| get(key).and_then(Value::as_u64).and_then(|id| tokens.get(id as usize).cloned());
    let ends = MORE_ENDS.iter().filter_map(|key| metadata.get(key)?.as_u64()).map(|id| id as u32);
    let mut config = TokenizerConfig {
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        unk: id("unknown_token_id"),
        pad: id("padding_token_id"),
        add_bos: get("add_bos_token").and_then(Value::as_bool),
        add_eos: get("add_eos_token").and_then(Value::as_bool),
        generation_eos_ids: ends.collect(),
        ..TokenizerConfig::default()
    };
    if let Some(template) = metadata.get("tokenizer.chat_template").and_then(Value::as_text) {
        config.set_chat_template(template);
    }
    Ok(Tokenizer::from_parts(json, config)?)
}

fn bpe(vocab: Map<String, Json>, merges: Vec<Json>, unknown: Option<&str>, ignore_merges: bool) -> Json {
    let byte_fallback = unknown.is_some();
    json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": byte_fallback, "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges,
    })
}

fn byte_level_json(
    file: &GgufFile,
    vocab: Map<String, Json>,
    added: Vec<Json>,
    merges: &[Value],
) -> Result<Json> {
    let name = file.metadata().get("tokenizer.ggml.pre").and_then(Value::as_text).unwrap_or("default");
    let Some(pre) = PRE_TOKENIZERS.iter().find(|p| p.name == name) else {
        return Err(file.bad(format!("the pre-tokenizer `{name}` is unknown here")));
    };
    let merges = merges.iter().filter_map(Value::as_text).filter_map(|m| m.split_once(' '));
    let merges = merges.map(|(a, b)| json!([a, b])).collect();
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex});
    let mut steps = Vec::new();
    if pre.digits {
        steps.push(json!({"type": "Digits", "individual_digits": true}));
    }
    if let Some(pattern) = pre.pattern {
        steps.push(
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}),
        );
    }
    steps.push(bytes(pre.pattern.is_none()));
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "post_processor": null,
        "decoder": bytes(true), "model": bpe(vocab, merges, None, pre.ignore_merges),
    }))
}

fn sentencepiece_json(
    vocab: Map<String, Json>,
    tokens: &[String],
    kinds: &[i32],
    scores: &[Value],
    added: Vec<Json>,
    prefix: bool,
) -> Json {
    // Every way to cut a piece in two pieces, best score first, as "join the pair of the best union" says.
    let is_piece =
        |text: &str| vocab.get(text).and_then(Json::as_u64).is_some_and(|id| kinds[id as usize] == NORMAL);
    let mut cuts: Vec<(f64, Json)> = Vec::new();
    for ((text, kind), score) in tokens.iter().zip(kinds).zip(scores) {
        for (cut, _) in text.char_indices().skip(1).filter(|_| *kind == NORMAL) {
            let (left, right) = text.split_at(cut);
            if is_piece(left) && is_piece(right) {
                cuts.push((score.as_f64().unwrap_or(0.0), json!([left, right])));
            }
        }
    }
    cuts.sort_by(|a, b| b.0.total_cmp(&a.0));
    let merges = cuts.into_iter().map(|(_, pair)| pair).collect();
    let unknown = kinds.iter().position(|kind| *kind == UNKNOWN).map_or("<unk>", |id| tokens[id].as_str());
    let replace =
        |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", SPACE)];
    let mut decoders = vec![replace(SPACE, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": null,
        "post_processor": null, "decoder": {"type": "Sequence", "decoders": decoders},
        "model": bpe(vocab, merges, Some(unknown), false),
    })
}
