//! Training a byte-level BPE tokenizer.
//!
//! Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016),
//! algorithm 1, on bytes with GPT-2's splitting of words. Ties go to the lexicographically greater
//! pair of byte strings, so the result depends on nothing but the text.

use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::convert::{added_token, bpe_model, byte_level};
use super::{Tokenizer, TokenizerConfig, library_error};
use crate::error::TextError;

const N_BYTES: usize = 256;

/// Trains a byte-level BPE tokenizer of `vocab_size` tokens: `special_tokens` first, then the 256
/// bytes, then merges in the order they were learned. Special tokens in the texts separate them. The
/// first special token becomes EOS (and BOS is left unset); give more in a [`TokenizerConfig`].
/// Fewer tokens result when the texts run out of pairs.
///
/// # Errors
/// [`TextError::Tokenizer`] when `vocab_size` has no room for the bytes and special tokens.
pub fn train_byte_bpe<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    vocab_size: usize,
    special_tokens: &[&str],
) -> Result<Tokenizer, TextError> {
    let n_fixed = N_BYTES + special_tokens.len();
    if vocab_size < n_fixed {
        let message =
            format!("vocab_size is {vocab_size}, and the bytes and special tokens alone need {n_fixed}");
        return Err(TextError::Tokenizer { action: "train", message });
    }
    let mut words: BTreeMap<String, u64> = BTreeMap::new();
    for text in texts {
        for part in split_on(text, special_tokens) {
            count_words(part, &mut words)?;
        }
    }
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_by_key(|c| byte_of(*c));
    let mut learner = Learner::new(&alphabet, &words);
    let merges = learner.learn(vocab_size - special_tokens.len());

    let mut vocab = Map::new();
    let names = special_tokens.iter().map(|t| (*t).to_owned()).chain(learner.names);
    for name in names {
        let id = vocab.len();
        vocab.insert(name, json!(id));
    }
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": special_tokens.iter().zip(0..).map(|(t, id)| added_token(id, t, true)).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": byte_level(false, true),
        "post_processor": null,
        "decoder": byte_level(true, true),
        "model": bpe_model(&Json::Object(vocab), &json!(merges), false),
    });
    let eos = special_tokens.first().map(|t| (*t).to_owned());
    Tokenizer::from_parts(json, TokenizerConfig { eos, ..TokenizerConfig::default() })
}

/// The stretches of `text` between special tokens, the earliest and longest match first.
fn split_on<'a>(text: &'a str, separators: &[&str]) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((at, len)) = separators
        .iter()
        .filter(|s| !s.is_empty())
        .filter_map(|s| rest.find(s).map(|at| (at, s.len())))
        .min_by_key(|&(at, len)| (at, std::cmp::Reverse(len)))
    {
        parts.push(&rest[..at]);
        rest = &rest[at + len..];
    }
    parts.push(rest);
    parts
}

fn count_words(text: &str, words: &mut BTreeMap<String, u64>) -> Result<(), TextError> {
    let mut split = PreTokenizedString::from(text);
    let splitter = ByteLevel::new(false, false, true);
    splitter.pre_tokenize(&mut split).map_err(|e| library_error("train", &e))?;
    for (word, _, _) in split.get_splits(OffsetReferential::Original, OffsetType::None) {
        *words.entry(word.to_owned()).or_default() += 1;
    }
    Ok(())
}

/// The byte that a character of the byte-level alphabet stands for: printable Latin-1 characters are
/// their own byte, the other bytes follow from U+0100 in order.
fn byte_of(c: char) -> u8 {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = c as u32;
    let byte = if code < 0x100 {
        code
    } else {
        (0..0x100)
            .filter(|b| !printable(*b))
            .nth(code as usize - 0x100)
            .expect("256 characters in the alphabet")
    };
    u8::try_from(byte).expect("a byte")
}

type Pair = (u32, u32);

struct Learner {
    names: Vec<String>,
    words: Vec<(Vec<u32>, u64)>,
    counts: HashMap<Pair, u64>,
    /// Words in which a pair occurs or once occurred.
    places: HashMap<Pair, HashSet<usize>>,
}

impl Learner {
    fn new(alphabet: &[char], words: &BTreeMap<String, u64>) -> Self {
        let id_of: HashMap<char, u32> = alphabet.iter().copied().zip(0..).collect();
        let names = alphabet.iter().map(char::to_string).collect();
        let words = words.iter().map(|(w, n)| (w.chars().map(|c| id_of[&c]).collect(), *n)).collect();
        let mut learner = Self { names, words, counts: HashMap::new(), places: HashMap::new() };
        for w in 0..learner.words.len() {
            learner.count_word(w);
        }
        learner
    }

    /// Learns merges until there are `n_tokens` tokens; returns them as lines of `merges.txt`.
    fn learn(&mut self, n_tokens: usize) -> Vec<String> {
        let mut bytes: Vec<Arc<[u8]>> = self.names.iter().map(|n| bytes_of(n)).collect();
        let mut heap: BinaryHeap<(u64, ByBytes, Pair)> = BinaryHeap::new();
        for (&pair, &count) in &self.counts {
            heap.push((count, ByBytes::of(&bytes, pair), pair));
        }
        let mut id_of: HashMap<String, u32> = self.names.iter().cloned().zip(0..).collect();
        let mut merges = Vec::new();
        while self.names.len() < n_tokens {
            let Some((count, _, pair)) = heap.pop() else { break };
            let now = self.counts.get(&pair).copied().unwrap_or(0);
            if now != count || count == 0 {
                continue;
            }
            let (left, right) = (&self.names[pair.0 as usize], &self.names[pair.1 as usize]);
            merges.push(format!("{left} {right}"));
            let merged = format!("{left}{right}");
            // Two pairs can spell the same token; the second merge then adds none.
            let new_id = *id_of.entry(merged).or_insert_with_key(|merged| {
                bytes.push(bytes_of(merged));
                self.names.push(merged.clone());
                u32::try_from(self.names.len() - 1).expect("a vocabulary fits u32")
            });
            for changed in self.apply(pair, new_id) {
                if let Some(&count) = self.counts.get(&changed).filter(|c| **c > 0) {
                    heap.push((count, ByBytes::of(&bytes, changed), changed));
                }
            }
        }
        merges
    }

    /// Merges `pair` into `new_id` everywhere; returns the pairs whose count changed.
    fn apply(&mut self, pair: Pair, new_id: u32) -> HashSet<Pair> {
        let mut changed = HashSet::new();
        for w in self.places.remove(&pair).unwrap_or_default() {
            let (word, n) = &mut self.words[w];
            for p in pairs(word) {
                *self.counts.get_mut(&p).expect("every pair of a word is counted") -= *n;
                changed.insert(p);
            }
            let mut merged = Vec::with_capacity(word.len());
            let mut i = 0;
            while i < word.len() {
                if i + 1 < word.len() && (word[i], word[i + 1]) == pair {
                    merged.push(new_id);
                    i += 2;
                } else {
                    merged.push(word[i]);
                    i += 1;
                }
            }
            *word = merged;
            changed.extend(pairs(&self.words[w].0));
            self.count_word(w);
        }
        changed
    }

    fn count_word(&mut self, w: usize) {
        let (word, n) = &self.words[w];
        for p in pairs(word) {
            *self.counts.entry(p).or_default() += n;
            self.places.entry(p).or_default().insert(w);
        }
    }
}

fn pairs(word: &[u32]) -> impl Iterator<Item = Pair> {
    word.windows(2).map(|w| (w[0], w[1]))
}

fn bytes_of(name: &str) -> Arc<[u8]> {
    name.chars().map(byte_of).collect()
}

/// The byte strings of a pair, for the tie rule.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct ByBytes(Arc<[u8]>, Arc<[u8]>);

impl ByBytes {
    fn of(bytes: &[Arc<[u8]>], pair: Pair) -> Self {
        Self(bytes[pair.0 as usize].clone(), bytes[pair.1 as usize].clone())
    }
}
