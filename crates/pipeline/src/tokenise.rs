//! Records to tokens with their training weights, audited, and kept between runs.

use pt_data::cache::{Cache, CacheKey, TokenisedRow};
use pt_data::{Body, Content, Message, Record, Train, parallel};
use pt_recipe::{Mask, Truncation};
use pt_text::template::Message as TemplateMessage;
use pt_text::{
    ChatTemplate, Conversation, Example, MaskPolicy, Masker, Targets, Tokenizer, TrainOn, TruncationMode,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{PipelineError, Result};
use crate::source::{SourceRows, Surroundings};

/// Bumped when the same rows would be tokenised or masked differently.
const TOKENISE_VERSION: &str = "2";

/// What decides how records become tokens.
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
    /// What was found.
    pub counts: Counts,
    /// Why a cache had to be made anew, if one was damaged.
    pub cache_problem: Option<String>,
}

#[derive(Debug)]
enum Store {
    Memory(Vec<TokenisedRow>),
    Cached(Cache),
}

impl TokenisedSource {
    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens of each row.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Row `index`.
    ///
    /// # Errors
    /// If the cache file can no longer be read.
    pub fn row(&self, index: usize) -> Result<TokenisedRow> {
        match &self.rows {
            Store::Memory(rows) => Ok(rows[index].clone()),
            Store::Cached(cache) => Ok(cache.row(index)?),
        }
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
        let lengths = rows.iter().map(|row| row.token_ids.len()).collect();
        return Ok(TokenisedSource { rows: Store::Memory(rows), lengths, counts, cache_problem: None });
    };
    let key = cache_key(source, options);
    let counts_path = dir.join(format!("{}.json", key.file_name()));
    let known =
        std::fs::read(&counts_path).ok().and_then(|text| serde_json::from_slice::<Counts>(&text).ok());
    let mut cache_problem = None;
    if let Some(counts) = known {
        match Cache::open(&dir.join(key.file_name()), &key) {
            Ok(cache) => {
                let lengths = cache.lengths();
                return Ok(TokenisedSource { rows: Store::Cached(cache), lengths, counts, cache_problem });
            }
            Err(problem) => cache_problem = Some(problem.to_string()),
        }
    }
    let (rows, counts) = tokenise_all(source, options)?;
    let _ = std::fs::remove_file(dir.join(key.file_name()));
    let (cache, _) = Cache::open_or_build(dir, &key, || Ok(rows.into_iter().map(Ok)))?;
    let text = serde_json::to_vec(&counts).expect("counts are JSON");
    pt_core::atomic_file::write(&counts_path, &text).map_err(PipelineError::io("write", &counts_path))?;
    Ok(TokenisedSource { lengths: cache.lengths(), rows: Store::Cached(cache), counts, cache_problem })
}

fn cache_key(source: &SourceRows, options: &TokeniseOptions<'_>) -> CacheKey {
    let policy = serde_json::to_string(&policy(options)).expect("a policy is JSON");
    let truncation = format!("{:?}", options.truncation);
    let template = options.template.map_or("", ChatTemplate::source);
    let tokenizer = options.tokenizer.content_hash();
    CacheKey::new([TOKENISE_VERSION, &source.identity, tokenizer, template, &policy, &truncation])
}

fn tokenise_all(source: &SourceRows, options: &TokeniseOptions<'_>) -> Result<(Vec<TokenisedRow>, Counts)> {
    let masker = Masker::new(options.tokenizer, options.template, policy(options));
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

fn policy(options: &TokeniseOptions<'_>) -> MaskPolicy {
    let train_on = match options.mask {
        Mask::All => TrainOn::All,
        Mask::CompletionOnly => TrainOn::Completion,
        Mask::AssistantOnly => TrainOn::Assistant,
    };
    let (max_length, truncation_mode) = match options.truncation {
        Truncation::KeepStart => (options.max_length, TruncationMode::KeepStart),
        Truncation::KeepEnd => (options.max_length, TruncationMode::KeepEnd),
        Truncation::Drop | Truncation::Error => (None, TruncationMode::KeepStart),
    };
    MaskPolicy { train_on, train_end_of_turn: options.train_end_of_turn, max_length, truncation_mode }
}

/// The masker that a stage with these options uses; also for showing rows to people.
pub fn masker<'a>(options: &TokeniseOptions<'a>) -> Masker<'a> {
    Masker::new(options.tokenizer, options.template, policy(options))
}

/// One record as an audited example.
///
/// # Errors
/// If the row is of a kind the stage cannot train on, or would train the wrong thing.
pub fn example(masker: &Masker<'_>, record: &Record, options: &TokeniseOptions<'_>) -> Result<Example> {
    let origin = text_origin(record);
    let example = match &record.body {
        Body::LanguageModel(Content::Text(text)) => masker.text(&origin, text)?,
        Body::LanguageModel(Content::Messages(messages)) => {
            let tools = tools_of(record);
            let messages = template_messages(messages);
            masker.conversation(&origin, &conversation(record, &messages, tools.as_ref()))?
        }
        Body::LanguageModel(Content::Segments(segments)) => {
            let (token_ids, train) = joined(masker, segments)?;
            masker.pretokenised(&origin, &token_ids, Targets::Mask(&train))?
        }
        Body::PromptCompletion { prompt: Content::Text(prompt), completion: Content::Text(completion) } => {
            masker.prompt_completion_text(&origin, prompt, completion)?
        }
        Body::PromptCompletion { .. } => prompt_and_completion(masker, &origin, record, options)?,
        Body::Tokenised { input_ids, train } => {
            let targets = train.as_ref().map_or(Targets::All, |train| Targets::Mask(train));
            masker.pretokenised(&origin, input_ids, targets)?
        }
        Body::PromptOnly { .. } => {
            let advice = "it has no answer to learn; add a `completion` or an assistant turn";
            return Err(wrong_kind(record, options, advice));
        }
        Body::Preference { .. } | Body::Unpaired { .. } | Body::Stepwise { .. } => {
            let advice = "supervised stages learn from answers; `posttrain data convert --to prompt_completion` keeps the \
                          good ones";
            return Err(wrong_kind(record, options, advice));
        }
    };
    check_length(&example, options)?;
    Ok(example)
}

fn check_length(example: &Example, options: &TokeniseOptions<'_>) -> Result<()> {
    match options.max_length {
        Some(max_length) if options.truncation == Truncation::Error && example.len() > max_length => {
            let origin = example.origin.to_string();
            Err(PipelineError::TooLong { origin, tokens: example.len(), max_length })
        }
        _ => Ok(()),
    }
}

fn tools_of(record: &Record) -> Option<Value> {
    record.tools.as_ref().map(|tools| Value::Array(tools.clone()))
}

fn conversation<'a>(
    record: &'a Record,
    messages: &'a [TemplateMessage],
    tools: Option<&'a Value>,
) -> Conversation<'a> {
    Conversation { messages, tools, documents: None, kwargs: record.chat_template_kwargs.as_ref() }
}

/// A prompt and a completion of which at least one is a conversation, both as conversations.
fn prompt_and_completion(
    masker: &Masker<'_>,
    origin: &pt_text::Origin,
    record: &Record,
    options: &TokeniseOptions<'_>,
) -> Result<Example> {
    let as_messages = record.clone().into_conversational();
    let Body::PromptCompletion {
        prompt: Content::Messages(prompt),
        completion: Content::Messages(completion),
    } = &as_messages.body
    else {
        return Err(wrong_kind(record, options, "give the prompt and the completion in one form"));
    };
    let (prompt, tools) = (template_messages(prompt), tools_of(record));
    let prompt = conversation(record, &prompt, tools.as_ref());
    Ok(masker.prompt_completion(origin, &prompt, &template_messages(completion))?)
}

/// Texts tokenised one by one, each with whether it trains.
fn joined(masker: &Masker<'_>, segments: &[pt_data::Segment]) -> Result<(Vec<u32>, Vec<bool>)> {
    let (mut token_ids, mut train) = (Vec::new(), Vec::new());
    for (i, segment) in segments.iter().enumerate() {
        let ids = masker.tokenizer.encode(&segment.text, i == 0)?.ids;
        train.extend(std::iter::repeat_n(segment.train, ids.len()));
        token_ids.extend(ids);
    }
    Ok((token_ids, train))
}

fn wrong_kind(record: &Record, options: &TokeniseOptions<'_>, advice: &'static str) -> PipelineError {
    PipelineError::RowKind {
        origin: record.origin.to_string(),
        kind: record.body.kind(),
        stage: options.stage.to_owned(),
        advice,
    }
}

fn text_origin(record: &Record) -> pt_text::Origin {
    pt_text::Origin::new(record.origin.file.display().to_string(), record.origin.line as u64)
}

/// Messages as the masker takes them: what the template sees, and the control fields.
pub fn template_messages(messages: &[Message]) -> Vec<TemplateMessage> {
    let one = |message: &Message| {
        let Value::Object(mut map) = message.to_template() else {
            unreachable!("a message is rendered as an object")
        };
        match &message.train {
            None => {}
            Some(Train::Whole(train)) => {
                map.insert("train".to_owned(), json!(train));
            }
            Some(Train::Spans(spans)) => {
                let spans: Vec<Value> = spans
                    .iter()
                    .filter(|span| span.train)
                    .map(|span| json!([span.start, span.end]))
                    .collect();
                map.insert("train_spans".to_owned(), Value::Array(spans));
            }
        }
        map
    };
    messages.iter().map(one).collect()
}
