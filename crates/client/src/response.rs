//! What a server answers.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Trouble, excerpt};

/// The server's count of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Of the prompt.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Of all choices.
    #[serde(default)]
    pub completion_tokens: u64,
}

/// A tool that the model wants to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// The server's identity of the call.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its arguments: JSON as the model wrote it, which may be wrong.
    pub arguments: String,
}

/// A token and its log-probability.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Its text; a token of half a character has none that is right.
    pub token: String,
    /// Nats; `None` for the first token of an echoed prompt, which has none.
    pub logprob: Option<f64>,
    /// Alternatives, the most probable first.
    pub top: Vec<(String, f64)>,
}

/// One continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its text; empty where there are only tool calls.
    pub text: String,
    /// Thoughts, where the server keeps them apart (`reasoning_content` or `reasoning`).
    pub reasoning: Option<String>,
    /// Tools to be called.
    pub tool_calls: Vec<ToolCall>,
    /// `stop`, `length`, `tool_calls`, ...
    pub finish_reason: Option<String>,
    /// Per token, if asked for and given.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Token ids, where the server gives them (`return_token_ids`).
    pub token_ids: Option<Vec<u32>>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The server's name of the model that answered.
    pub model: String,
    /// In order of their index.
    pub choices: Vec<Choice>,
    /// Counts of tokens, if given.
    pub usage: Option<Usage>,
    /// The ids of the prompt, where the server gives them (`return_token_ids`).
    pub prompt_token_ids: Option<Vec<u32>>,
    /// Whether it comes from the cache on disk.
    pub from_cache: bool,
}

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    model: Option<String>,
    choices: Vec<WireChoice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct WireChoice {
    #[serde(default)]
    index: u64,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    message: Option<WireMessage>,
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default)]
    logprobs: Option<WireLogprobs>,
    #[serde(default)]
    token_ids: Option<Vec<u32>>,
    #[serde(default)]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct WireMessage {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    reasoning: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<WireToolCall>>,
}

#[derive(Deserialize)]
struct WireToolCall {
    #[serde(default)]
    id: Option<String>,
    function: WireFunction,
}

#[derive(Deserialize)]
struct WireFunction {
    name: String,
    #[serde(default)]
    arguments: String,
}

/// Both forms: `content` is that of chat, the rest that of text completions.
#[derive(Deserialize)]
struct WireLogprobs {
    #[serde(default)]
    content: Option<Vec<WireToken>>,
    #[serde(default)]
    tokens: Option<Vec<String>>,
    #[serde(default)]
    token_logprobs: Option<Vec<Option<f64>>>,
    #[serde(default)]
    top_logprobs: Option<Vec<Option<Map<String, Value>>>>,
}

#[derive(Deserialize)]
struct WireToken {
    token: String,
    logprob: f64,
    #[serde(default)]
    top_logprobs: Vec<WireToken>,
}

/// Understands an answer to a request for `n` choices.
pub(crate) fn parse(json: &Value, n: u32) -> Result<Completion, Trouble> {
    let shape = |reason: String| Trouble::Shape { reason, excerpt: excerpt(json.to_string().as_bytes()) };
    if let Some(error) = json.get("error").filter(|error| !error.is_null()) {
        return Err(shape(format!("is an error with a status of success: {error}")));
    }
    let mut wire = Wire::deserialize(json).map_err(|error| shape(format!("is no completion: {error}")))?;
    if wire.choices.is_empty() {
        return Err(Trouble::NoChoices { expected: n });
    }
    if wire.choices.len() != n as usize {
        return Err(Trouble::ChoiceCount { found: wire.choices.len(), expected: n });
    }
    wire.choices.sort_by_key(|choice| choice.index);
    let prompt_token_ids = wire.prompt_token_ids.take().or_else(|| wire.choices[0].prompt_token_ids.take());
    let choices = wire.choices.into_iter().map(|choice| choice_of(choice).map_err(&shape));
    Ok(Completion {
        model: wire.model.unwrap_or_default(),
        choices: choices.collect::<Result<_, _>>()?,
        usage: wire.usage,
        prompt_token_ids,
        from_cache: false,
    })
}

fn choice_of(wire: WireChoice) -> Result<Choice, String> {
    let logprobs = wire.logprobs.map(logprobs_of).transpose()?.flatten();
    let (finish_reason, token_ids) = (wire.finish_reason, wire.token_ids);
    let (text, reasoning, tool_calls) = match (wire.text, wire.message) {
        (Some(text), None) => (text, None, Vec::new()),
        (None, Some(message)) => {
            let calls = message.tool_calls.unwrap_or_default().into_iter().map(|call| ToolCall {
                id: call.id.unwrap_or_default(),
                name: call.function.name,
                arguments: call.function.arguments,
            });
            let reasoning = message.reasoning_content.or(message.reasoning);
            (message.content.unwrap_or_default(), reasoning, calls.collect())
        }
        _ => return Err(format!("choice {} has neither `text` nor `message`, or both", wire.index)),
    };
    Ok(Choice { text, reasoning, tool_calls, finish_reason, logprobs, token_ids })
}

fn logprobs_of(wire: WireLogprobs) -> Result<Option<Vec<TokenLogprob>>, String> {
    if let Some(content) = wire.content {
        let tokens = content.into_iter().map(|token| TokenLogprob {
            token: token.token,
            logprob: Some(token.logprob),
            top: token.top_logprobs.into_iter().map(|top| (top.token, top.logprob)).collect(),
        });
        return Ok(Some(tokens.collect()));
    }
    let (Some(tokens), Some(logprobs)) = (wire.tokens, wire.token_logprobs) else { return Ok(None) };
    let top = wire.top_logprobs.unwrap_or_else(|| vec![None; tokens.len()]);
    if tokens.len() != logprobs.len() || tokens.len() != top.len() {
        return Err(format!(
            "`logprobs` has {} tokens, {} log-probabilities and {} alternatives",
            tokens.len(),
            logprobs.len(),
            top.len()
        ));
    }
    let pairs = tokens.into_iter().zip(logprobs).zip(top);
    let tokens = pairs.map(|((token, logprob), top)| TokenLogprob {
        token,
        logprob,
        top: most_probable_first(top.unwrap_or_default()),
    });
    Ok(Some(tokens.collect()))
}

fn most_probable_first(alternatives: Map<String, Value>) -> Vec<(String, f64)> {
    let numbers = alternatives.into_iter().filter_map(|(token, logprob)| Some((token, logprob.as_f64()?)));
    let mut top: Vec<(String, f64)> = numbers.collect();
    top.sort_by(|a, b| b.1.total_cmp(&a.1));
    top
}
