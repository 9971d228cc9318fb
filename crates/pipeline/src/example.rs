//! One record as tokens with their training weights, audited.

use pt_data::{Body, Content, Message, Record, Train};
use pt_recipe::{Mask, Truncation};
use pt_text::template::Message as TemplateMessage;
use pt_text::{Conversation, Example, MaskPolicy, Masker, Targets, TrainOn, TruncationMode};
use serde_json::{Value, json};

use crate::error::{PipelineError, Result};
use crate::tokenise::TokeniseOptions;

pub(crate) fn policy(options: &TokeniseOptions<'_>) -> MaskPolicy {
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

/// The prompt of a record, for sampling.
///
/// # Errors
/// If the row has no prompt, or it cannot be rendered.
pub fn prompt(masker: &Masker<'_>, record: &Record, options: &TokeniseOptions<'_>) -> Result<Vec<u32>> {
    let prompt = match &record.body {
        Body::PromptOnly { prompt }
        | Body::PromptCompletion { prompt, .. }
        | Body::Unpaired { prompt, .. } => prompt,
        Body::Preference { prompt: Some(prompt), .. } => prompt,
        _ => return Err(wrong_kind(record, options, "give a `prompt` that replies are sampled to")),
    };
    let origin = text_origin(record);
    Ok(match (prompt, masker.template) {
        (Content::Text(prompt), None) => masker.prompt_text(&origin, prompt)?.token_ids,
        (Content::Text(prompt), Some(_)) => {
            let messages = template_messages(&[Message::new("user", prompt.clone())]);
            masker.prompt(&origin, &conversation(record, &messages, tools_of(record).as_ref()))?.token_ids
        }
        (Content::Messages(messages), _) => {
            let messages = template_messages(messages);
            masker.prompt(&origin, &conversation(record, &messages, tools_of(record).as_ref()))?.token_ids
        }
        (Content::Segments(_), _) => {
            return Err(wrong_kind(record, options, "give the prompt as a text or as messages"));
        }
    })
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

pub(crate) fn wrong_kind(
    record: &Record,
    options: &TokeniseOptions<'_>,
    advice: &'static str,
) -> PipelineError {
    PipelineError::RowKind {
        origin: record.origin.to_string(),
        kind: record.body.kind(),
        stage: options.stage.to_owned(),
        advice,
    }
}

pub(crate) fn text_origin(record: &Record) -> pt_text::Origin {
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
