//! Recipes made small: the same stages, methods and options on few rows, for a few steps, by a tiny model.
//!
//! Nothing here knows a recipe. Keys that say *how much* are capped, whatever section or kind of stage they stand in;
//! sources give fewer rows; everything else stays as it is written.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

use std::path::Path;

use toml::{Table, Value};

/// How long a reduced stage trains.
#[derive(Clone, Copy)]
pub struct Size {
    pub steps: i64,
    /// Rows of a generated source or a file.
    pub rows: i64,
}

/// For running everything once.
pub const SMALL: Size = Size { steps: 3, rows: 32 };

/// The most that keys may say, wherever they stand; `steps` and `limit` follow [`Size`].
const CAPS: &[(&str, i64)] = &[
    ("rows_per_step", 4),
    ("tokens_per_step", 512),
    ("warmup_steps", 1),
    ("log_every", 1),
    ("eval_every", 2),
    ("save_every", 2),
    ("n", 4),
    ("samples", 2),
    ("max_new_tokens", 12),
    ("respond_max_new_tokens", 12),
    ("hidden_size", 32),
    ("intermediate_size", 64),
    ("num_hidden_layers", 2),
    ("num_attention_heads", 2),
    ("num_key_value_heads", 2),
];
/// Characters of generated text.
const MAX_CHARS: i64 = 12_000;
/// Entries of a tokenizer that is trained.
const MAX_VOCABULARY: i64 = 300;
/// So that a few rows are held out, of a few.
const MIN_EVAL_FRACTION: f64 = 0.25;
/// Keys of a stage whose strings are sources of rows.
const SOURCES: &[&str] = &["train", "eval", "ptx"];

/// The model of this disk that stands for one of the hub.
pub const STAND_IN: &str = "models/chat";
/// Keys whose value may be a name on the hub.
const MODELS: &[&str] = &["base", "tokenizer", "teacher"];

/// The recipe in `text`, made small; files that it names as seen from `root` are named in full, and models of the hub become
/// [`STAND_IN`].
pub fn reduce(text: &str, root: &Path, size: Size) -> String {
    let mut table: Table = toml::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    reduce_table(&mut table, root, size);
    toml::to_string(&table).expect("a recipe that was read can be written")
}

fn reduce_table(table: &mut Table, root: &Path, size: Size) {
    for (key, value) in table.iter_mut() {
        let is_list_of_sources = SOURCES.contains(&key.as_str()) && !value.is_table();
        reduce_value(key, value, root, size);
        if is_list_of_sources {
            limit_sources(value, size);
        }
    }
}

fn reduce_value(key: &str, value: &mut Value, root: &Path, size: Size) {
    match value {
        Value::Table(table) => reduce_table(table, root, size),
        Value::Array(values) => values.iter_mut().for_each(|value| reduce_value(key, value, root, size)),
        Value::Integer(number) => {
            let cap = match key {
                "steps" => Some(size.steps),
                "limit" => Some(size.rows),
                "epochs" => Some(1),
                _ => CAPS.iter().find(|(name, _)| *name == key).map(|(_, cap)| *cap),
            };
            *number = cap.map_or(*number, |cap| cap.min(*number));
        }
        Value::Float(number) if key == "epochs" => *number = number.min(1.0),
        Value::Float(number) if key == "eval_fraction" => *number = number.max(MIN_EVAL_FRACTION),
        Value::String(text) if MODELS.contains(&key) && is_on_the_hub(text, root) => {
            *text = STAND_IN.to_owned()
        }
        Value::String(text) => *text = reduce_string(text, root, size),
        _ => {}
    }
}

/// `owner/name`, and no folder seen from `root`.
fn is_on_the_hub(name: &str, root: &Path) -> bool {
    let is_a_pair = name.split('/').filter(|part| !part.is_empty() && *part != "..").count() == 2;
    is_a_pair && name.matches('/').count() == 1 && name != STAND_IN && !root.join(name).exists()
}

fn reduce_string(text: &str, root: &Path, size: Size) -> String {
    if let Some(entries) = text.strip_prefix("bpe:").and_then(|entries| entries.parse::<i64>().ok()) {
        return format!("bpe:{}", entries.min(MAX_VOCABULARY));
    }
    if text.starts_with("../") && root.join(text).exists() {
        return root.join(text).display().to_string();
    }
    reduce_generated(text, size)
}

/// Every `generated:...` in `text`, with fewer rows or characters. A source is a whole string, a word of a shell's line,
/// or stands in quotes there.
pub fn reduce_generated(text: &str, size: Size) -> String {
    let mut pieces = text.split("generated:");
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| c.is_whitespace() || "'\"`".contains(c)).unwrap_or(piece.len());
        let (source, rest) = piece.split_at(end);
        let options = source.split('&').map(|option| reduce_option(option, size)).collect::<Vec<_>>();
        out = out + "generated:" + &options.join("&") + rest;
    }
    out
}

/// `sum?n=20` or `chars=100`, capped; what follows the number stays.
fn reduce_option(option: &str, size: Size) -> String {
    let Some((before, rest)) = option.split_once('=') else { return option.to_owned() };
    let cap = match before.rsplit('?').next() {
        Some("n") => size.rows,
        Some("chars") => MAX_CHARS,
        _ => return option.to_owned(),
    };
    let (number, rest) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
    match number.parse::<i64>() {
        Ok(number) => format!("{before}={}{rest}", number.min(cap)),
        Err(_) => option.to_owned(),
    }
}

/// Sources that are files become tables with a `limit`.
fn limit_sources(value: &mut Value, size: Size) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(|value| limit_sources(value, size)),
        Value::Table(table) if table.contains_key("source") => {
            table.entry("limit").or_insert(Value::Integer(size.rows));
        }
        Value::String(source) if !source.starts_with("generated:") => {
            let mut table = Table::new();
            table.insert("source".to_owned(), Value::String(source.clone()));
            table.insert("limit".to_owned(), Value::Integer(size.rows));
            *value = Value::Table(table);
        }
        _ => {}
    }
}

/// Every string of a recipe.
pub fn strings(recipe: &str) -> Vec<String> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::String(text) => found.push(text.clone()),
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            Value::Table(table) => table.values().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let table: Table = toml::from_str(recipe).unwrap_or_else(|error| panic!("{error}\n{recipe}"));
    let mut found = Vec::new();
    collect(&Value::Table(table), &mut found);
    found
}
