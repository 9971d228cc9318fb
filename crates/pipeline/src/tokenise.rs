//! Sources as tokens with their training weights, kept between runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pt_data::cache::{Cache, CacheKey, TokenisedRow};
use pt_data::parallel;
use pt_recipe::{Mask, Truncation};
use pt_text::{ChatTemplate, Tokenizer};
use pt_train::Example;
use serde::{Deserialize, Serialize};

use crate::error::{PipelineError, Result};
use crate::example::policy;
pub use crate::example::{example, masker, template_messages};
use crate::source::{SourceRows, Surroundings};

/// Bumped when the same rows would be tokenised or masked differently.
const TOKENISE_VERSION: &str = "3";

/// What decides how records become tokens.
#[derive(Clone, Copy)]
pub struct TokeniseOptions<'a> {
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The chat template, if there is one.
    pub template: Option<&'a ChatTemplate>,
    /// Which tokens train.
    pub mask: Mask,
    /// Whether the token that ends a trained turn trains too.
    pub train_end_of_turn: bool,
    /// Most tokens of a row; `None` where rows are joined and cut later.
    pub max_length: Option<usize>,
    /// What happens to longer rows.
    pub truncation: Truncation,
    /// The stage's type, for messages.
    pub stage: &'a str,
}

/// What was found while tokenising.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Tokens of the rows kept, after truncation.
    pub tokens: u64,
    /// Of these, tokens that train.
    pub trained_tokens: u64,
    /// Rows that were cut.
    pub rows_truncated: u64,
    /// Rows left out for their length.
    pub rows_dropped: u64,
    /// The largest token id of the rows kept.
    pub largest_id: u32,
}

/// The rows of a source, ready to train on.
#[derive(Debug)]
pub struct TokenisedSource {
    rows: Store,
    lengths: Vec<usize>,
    /// Which record each row came from, where that is not the row's own number.
    records: Option<Vec<usize>>,
    /// What was found.
    pub counts: Counts,
    /// Why a cache had to be made anew, or could not be made.
    pub cache_problem: Option<String>,
}

#[derive(Debug)]
enum Store {
    Memory(Vec<TokenisedRow>),
    /// Prompts with replies.
    Examples(Vec<Example>),
    Cached(Cache),
}

impl TokenisedSource {
    fn in_memory(rows: Vec<TokenisedRow>, counts: Counts, cache_problem: Option<String>) -> TokenisedSource {
        let lengths = rows.iter().map(|row| row.token_ids.len()).collect();
        TokenisedSource { rows: Store::Memory(rows), lengths, records: None, counts, cache_problem }
    }

    /// Prompts with replies, each with the record it came from.
    pub(crate) fn of_examples(
        examples: Vec<Example>,
        records: Vec<usize>,
        counts: Counts,
    ) -> TokenisedSource {
        let lengths = examples.iter().map(Example::n_tokens).collect();
        let rows = Store::Examples(examples);
        TokenisedSource { rows, lengths, records: Some(records), counts, cache_problem: None }
    }

    /// The prompts with replies; none for plain sequences.
    pub(crate) fn examples(&self) -> &[Example] {
        match &self.rows {
            Store::Examples(examples) => examples,
            Store::Memory(_) | Store::Cached(_) => &[],
        }
    }

    /// The prompts with replies, to add what is known of their tokens; none for plain sequences.
    pub(crate) fn examples_mut(&mut self) -> &mut [Example] {
        match &mut self.rows {
            Store::Examples(examples) => examples,
            Store::Memory(_) | Store::Cached(_) => &mut [],
        }
    }

    /// The record that row `index` came from.
    pub fn record_of(&self, index: usize) -> usize {
        self.records.as_ref().map_or(index, |records| records[index])
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens of each row.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Row `index` as a plain sequence.
    ///
    /// # Errors
    /// If the cache file can no longer be read.
    ///
    /// # Panics
    /// If rows have replies; they are never joined and cut.
    pub fn row(&self, index: usize) -> Result<TokenisedRow> {
        match &self.rows {
            Store::Memory(rows) => Ok(rows[index].clone()),
            Store::Cached(cache) => Ok(cache.row(index)?),
            Store::Examples(_) => panic!("row {index} has replies and is no plain sequence"),
        }
    }

    /// Row `index` as an example, whose identity is `key`.
    ///
    /// # Errors
    /// If the cache file can no longer be read.
    pub fn example(&self, index: usize, key: u64) -> Result<Example> {
        if let Store::Examples(examples) = &self.rows {
            return Ok(Example { key, ..examples[index].clone() });
        }
        let row = self.row(index)?;
        let origin = Arc::from(row.origin.to_string());
        Ok(Example::sequence(row.token_ids, row.train_weights, key, origin))
    }
}

/// Sources with fewer records are tokenised anew each time: that is quicker than proving a cache right.
const CACHE_FROM_RECORDS: usize = 2_000;

/// Tokenises a source, or opens what an earlier run kept of it.
///
/// # Errors
/// The first row, by order, that would train the wrong thing.
pub fn tokenise(
    source: &SourceRows,
    options: &TokeniseOptions<'_>,
    surroundings: &Surroundings,
) -> Result<TokenisedSource> {
    let Some(dir) = surroundings.cache_dir.as_ref().filter(|_| source.records.len() >= CACHE_FROM_RECORDS)
    else {
        let (rows, counts) = tokenise_all(source, options)?;
        return Ok(TokenisedSource::in_memory(rows, counts, None));
    };
    let key = cache_key(source, options);
    let known = std::fs::read(counts_path(dir, &key)).ok();
    let known = known.and_then(|text| serde_json::from_slice::<Counts>(&text).ok());
    let mut cache_problem = None;
    if let Some(counts) = known {
        match Cache::open(&dir.join(key.file_name()), &key) {
            Ok(cache) => {
                let lengths = cache.lengths();
                let rows = Store::Cached(cache);
                return Ok(TokenisedSource { rows, lengths, records: None, counts, cache_problem });
            }
            Err(problem) => cache_problem = Some(problem.to_string()),
        }
    }
    let (rows, counts) = tokenise_all(source, options)?;
    let cache_problem = cache_problem.map(|problem| format!("{problem}; it was tokenised anew"));
    match keep(dir, &key, &rows, counts) {
        Ok(cache) => Ok(TokenisedSource {
            lengths: cache.lengths(),
            rows: Store::Cached(cache),
            records: None,
            counts,
            cache_problem,
        }),
        Err(problem) => {
            let problem = format!("what was tokenised could not be kept for the next run: {problem}");
            Ok(TokenisedSource::in_memory(rows, counts, Some(problem)))
        }
    }
}

/// Keeps rows for the next run; rows that are not kept are no worse, only slower.
fn keep(dir: &Path, key: &CacheKey, rows: &[TokenisedRow], counts: Counts) -> Result<Cache> {
    let _ = std::fs::remove_file(dir.join(key.file_name()));
    let (cache, _) = Cache::open_or_build(dir, key, || Ok(rows.iter().cloned().map(Ok)))?;
    let text = serde_json::to_vec(&counts).expect("counts are JSON");
    let path = counts_path(dir, key);
    pt_core::atomic_file::write(&path, &text).map_err(PipelineError::io("write", &path))?;
    Ok(cache)
}

fn counts_path(dir: &Path, key: &CacheKey) -> PathBuf {
    dir.join(format!("{}.json", key.file_name()))
}

fn cache_key(source: &SourceRows, options: &TokeniseOptions<'_>) -> CacheKey {
    let policy = serde_json::to_string(&policy(options)).expect("a policy is JSON");
    // The policy has a length only where rows are cut; where longer rows are dropped or refused it counts as well.
    let truncation = format!("{:?} at {:?}", options.truncation, options.max_length);
    let template = options.template.map_or("", ChatTemplate::source);
    let tokenizer = options.tokenizer.content_hash();
    CacheKey::new([TOKENISE_VERSION, &source.identity, tokenizer, template, &policy, &truncation])
}

fn tokenise_all(source: &SourceRows, options: &TokeniseOptions<'_>) -> Result<(Vec<TokenisedRow>, Counts)> {
    let masker = masker(options);
    let examples = parallel::try_map_ordered(&source.records, |record| example(&masker, record, options))?;
    let mut counts = Counts::default();
    let mut rows = Vec::with_capacity(examples.len());
    for (example, record) in examples.into_iter().zip(&source.records) {
        let is_too_long = options.max_length.is_some_and(|max_length| example.len() > max_length);
        if is_too_long && options.truncation == Truncation::Drop {
            counts.rows_dropped += 1;
            continue;
        }
        counts.tokens += example.len() as u64;
        counts.trained_tokens += example.n_trained() as u64;
        counts.largest_id = example.token_ids.iter().copied().fold(counts.largest_id, u32::max);
        counts.rows_truncated += u64::from(example.n_truncated > 0);
        rows.push(TokenisedRow {
            token_ids: example.token_ids,
            train_weights: example.weights,
            origin: record.origin.clone(),
        });
    }
    Ok((rows, counts))
}
