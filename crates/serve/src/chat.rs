//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use pt_text::Message;
use pt_text::tools::{self, Part, ToolParser};
use serde_json::{Map, Value, json};

use crate::assembly::{Detail, Generation, Piece, TokenOut};
use crate::backend::{Job, JobEvents};
use crate::error::{ApiError, json_response};
use crate::fields::{Fields, wrong};
use crate::http::{App, StreamOptions, usage};
use crate::sampling::Sampling;
use crate::sse::{self, Sink};

/// Alternatives of a token, at most.
const MAX_TOP_LOGPROBS: u64 = 64;

/// A request that was understood.
struct Request {
    messages: Vec<Message>,
    tools: Option<Value>,
    kwargs: Option<Map<String, Value>>,
    sampling: Sampling,
    detail: Detail,
    stream: Option<StreamOptions>,
}

/// Answers a request.
pub(crate) async fn answer(app: &Arc<App>, body: &[u8]) -> Result<Response<Body>, ApiError> {
    let request = parse(app, body)?;
    let ids = app.text.chat_ids(&request.messages, request.tools.as_ref(), request.kwargs.as_ref())?;
    let job = app.job(ids, &request.sampling, request.detail.logprobs.unwrap_or(0))?;
    let admitted = app.admit()?;
    let events = app.engine.submit(job.clone());
    let reply = Reply {
        id: app.name("chatcmpl"),
        created: app.now_s(),
        // A mark that is a special token must be kept in the text to be seen.
        skip_special: request.tools.is_none() || !is_special(app, tools::OPEN),
        with_tools: request.tools.is_some(),
        detail: request.detail,
        job,
    };
    match request.stream {
        None => {
            let outcome = whole(app, &reply, events).await;
            drop(admitted);
            outcome.map(|value| json_response(&value))
        }
        Some(options) => {
            let (sink, response) = sse::channel();
            let app = app.clone();
            tokio::spawn(async move {
                let outcome =
                    crate::http::until_closed(&sink, stream(&app, &reply, events, options, &sink)).await;
                drop(admitted);
                if let Some(outcome) = outcome {
                    sink.end(outcome).await;
                }
            });
            Ok(response)
        }
    }
}

fn is_special(app: &App, token: &str) -> bool {
    app.text.tokenizer.token_to_id(token).is_some_and(|id| app.text.tokenizer.is_special(id))
}

fn parse(app: &App, body: &[u8]) -> Result<Request, ApiError> {
    let mut fields = Fields::parse(body)?;
    app.check_model(&mut fields)?;
    let messages = messages_of(&mut fields)?;
    let newer = fields.whole("max_completion_tokens", 1, u64::MAX)?;
    let older = fields.whole("max_tokens", 1, u64::MAX)?;
    let sampling = Sampling::take(&mut fields, newer.or(older))?;
    let wanted = fields.flag("logprobs")?;
    let top = fields.whole("top_logprobs", 0, MAX_TOP_LOGPROBS)?;
    if top.is_some_and(|top| top > 0) && !wanted {
        return Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs: true`"));
    }
    let detail = Detail {
        logprobs: wanted.then(|| top.unwrap_or(0) as usize),
        token_ids: fields.flag("return_token_ids")?,
        as_ids: fields.flag("return_tokens_as_token_ids")?,
    };
    let tools = tools_of(&mut fields)?;
    let why = "this server cannot keep the model from calling several tools";
    fields.only("parallel_tool_calls", &[json!(true)], why)?;
    let kwargs = match fields.take("chat_template_kwargs") {
        None => None,
        Some(Value::Object(kwargs)) => Some(kwargs),
        Some(other) => return Err(wrong("chat_template_kwargs", &other, "an object")),
    };
    let why = "this server does not constrain what the model writes; ask for the format in the prompt";
    fields.only("response_format", &[json!({ "type": "text" })], why)?;
    fields.only("modalities", &[json!(["text"])], "this server writes text")?;
    let stream = StreamOptions::take(&mut fields)?;
    fields.finish()?;
    Ok(Request { messages, tools, kwargs, sampling, detail, stream })
}

/// Tools for the template; none where the request says that none is to be called.
fn tools_of(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    let tools = match fields.take("tools") {
        None => None,
        Some(Value::Array(tools)) if tools.is_empty() => None,
        Some(Value::Array(tools)) => Some(Value::Array(tools)),
        Some(other) => return Err(wrong("tools", &other, "a list of tools")),
    };
    match fields.take("tool_choice") {
        None => Ok(tools),
        Some(choice) if choice == "auto" => Ok(tools),
        Some(choice) if choice == "none" => Ok(None),
        Some(choice) => {
            let expected = "`auto` or `none`: this server cannot force a call";
            Err(wrong("tool_choice", &choice, expected))
        }
    }
}

fn messages_of(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let expected = "a list of at least one message, `{\"role\": ..., \"content\": ...}`";
    match fields.take("messages") {
        Some(Value::Array(messages)) if !messages.is_empty() => {
            messages.into_iter().enumerate().map(|(i, message)| message_of(i, message)).collect()
        }
        Some(other) => Err(wrong("messages", &other, expected)),
        None => Err(ApiError::field("messages", format!("`messages` is missing, expected {expected}"))),
    }
}

/// A message as templates know it: text content, arguments of calls as objects.
fn message_of(i: usize, message: Value) -> Result<Message, ApiError> {
    let Value::Object(mut message) = message else {
        return Err(wrong(&format!("messages[{i}]"), &message, "an object"));
    };
    match message.get("role") {
        // OpenAI's newer name of what templates know as the system's role.
        Some(role) if role == "developer" => drop(message.insert("role".to_owned(), json!("system"))),
        Some(Value::String(_)) => {}
        other => {
            return Err(wrong(&format!("messages[{i}].role"), other.unwrap_or(&Value::Null), "a role"));
        }
    }
    let content = message.get("content").cloned().unwrap_or(Value::Null);
    let content = match content {
        Value::String(text) => text,
        Value::Null => String::new(),
        Value::Array(parts) => joined(i, &parts)?,
        other => {
            return Err(wrong(&format!("messages[{i}].content"), &other, "text, or a list of text parts"));
        }
    };
    message.insert("content".to_owned(), Value::String(content));
    for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments") {
            let parsed = arguments.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
            if let Some(parsed) = parsed.filter(Value::is_object) {
                *arguments = parsed;
            }
        }
    }
    // What stands for "nothing" must not look like something to a template.
    message.retain(|_, value| !value.is_null());
    Ok(message)
}

fn joined(i: usize, parts: &[Value]) -> Result<String, ApiError> {
    let text = |part: &Value| {
        let text = part.get("text").and_then(Value::as_str).filter(|_| part["type"] == "text");
        let expected = "text parts only: this server does not read images, sound or files";
        text.map(str::to_owned).ok_or_else(|| wrong(&format!("messages[{i}].content"), part, expected))
    };
    parts.iter().map(text).collect()
}

/// What is needed to answer.
struct Reply {
    id: String,
    created: u64,
    skip_special: bool,
    with_tools: bool,
    detail: Detail,
    job: Job,
}

impl Reply {
    fn call(&self, sample: usize, index: usize, name: &str, arguments: &str) -> Value {
        let id = pt_core::hash::of_parts([self.id.as_bytes(), &[sample as u8, index as u8]]);
        json!({
            "id": format!("call_{}", &id[..24]), "type": "function",
            "function": { "name": name, "arguments": arguments },
        })
    }
}

/// A choice while it grows.
#[derive(Default)]
struct Choice {
    text: String,
    calls: Vec<Value>,
    tokens: Vec<Value>,
    token_ids: Vec<u32>,
    finish: Option<&'static str>,
    parser: ToolParser,
}

impl Choice {
    /// The parts that a piece of text brings.
    fn parts(&mut self, reply: &Reply, piece: &Piece) -> Vec<Part> {
        if !reply.with_tools {
            return if piece.text.is_empty() { Vec::new() } else { vec![Part::Text(piece.text.clone())] };
        }
        let mut parts = self.parser.push(&piece.text);
        if piece.finish.is_some() {
            parts.extend(self.parser.finish());
        }
        parts
    }

    fn finish_reason(&self, finish: &'static str) -> &'static str {
        if finish == "stop" && !self.calls.is_empty() { "tool_calls" } else { finish }
    }
}

async fn whole(app: &App, reply: &Reply, events: JobEvents) -> Result<Value, ApiError> {
    let mut generation = Generation::new(&app.text, &reply.job, events, reply.detail, reply.skip_special)?;
    let mut choices: Vec<Choice> = (0..reply.job.sampling.n).map(|_| Choice::default()).collect();
    while let Some(piece) = generation.next().await? {
        let sample = piece.sample;
        let choice = &mut choices[sample];
        for part in choice.parts(reply, &piece) {
            match part {
                Part::Text(text) => choice.text += &text,
                Part::Call { name, arguments } => {
                    let call = reply.call(sample, choice.calls.len(), &name, &arguments);
                    choice.calls.push(call);
                }
            }
        }
        choice.tokens.extend(piece.tokens.iter().map(token_json));
        choice.token_ids.extend(&piece.token_ids);
        choice.finish = choice.finish.or(piece.finish);
    }
    app.metrics.tokens(reply.job.prompt_ids.len(), generation.n_tokens);
    let choices = choices.iter().enumerate().map(|(index, choice)| choice_json(reply, index, choice));
    let mut answer = json!({
        "id": reply.id, "object": "chat.completion", "created": reply.created, "model": app.options.model_name,
        "choices": choices.collect::<Vec<_>>(), "usage": usage(reply.job.prompt_ids.len(), generation.n_tokens),
    });
    if reply.detail.token_ids {
        answer["prompt_token_ids"] = json!(reply.job.prompt_ids);
    }
    Ok(answer)
}

fn choice_json(reply: &Reply, index: usize, choice: &Choice) -> Value {
    let mut message = json!({ "role": "assistant", "content": choice.text, "refusal": null });
    if !choice.calls.is_empty() {
        if choice.text.is_empty() {
            message["content"] = Value::Null;
        }
        message["tool_calls"] = json!(choice.calls);
    }
    let finish = choice.finish_reason(choice.finish.unwrap_or("stop"));
    let logprobs = reply.detail.logprobs.map(|_| json!({ "content": choice.tokens, "refusal": null }));
    let mut value =
        json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": finish });
    if reply.detail.token_ids {
        value["token_ids"] = json!(choice.token_ids);
    }
    value
}

async fn stream(
    app: &App,
    reply: &Reply,
    events: JobEvents,
    options: StreamOptions,
    sink: &Sink,
) -> Result<(), ApiError> {
    let mut generation = Generation::new(&app.text, &reply.job, events, reply.detail, reply.skip_special)?;
    let mut choices: Vec<Choice> = (0..reply.job.sampling.n).map(|_| Choice::default()).collect();
    let chunk = |choices: Value| {
        json!({
            "id": reply.id, "object": "chat.completion.chunk", "created": reply.created,
            "model": app.options.model_name, "choices": choices,
        })
    };
    // A reader that has gone ends this task from outside.
    for index in 0..choices.len() {
        let delta = json!({ "role": "assistant", "content": "" });
        let _ = sink.send(&chunk(json!([{ "index": index, "delta": delta, "finish_reason": null }]))).await;
    }
    while let Some(piece) = generation.next().await? {
        let choice = &mut choices[piece.sample];
        for delta in deltas(reply, choice, &piece) {
            let _ = sink.send(&chunk(json!([delta]))).await;
        }
    }
    app.metrics.tokens(reply.job.prompt_ids.len(), generation.n_tokens);
    if options.include_usage {
        let mut last = chunk(json!([]));
        last["usage"] = usage(reply.job.prompt_ids.len(), generation.n_tokens);
        let _ = sink.send(&last).await;
    }
    Ok(())
}

/// The changes to a choice that a piece brings, at most one with log-probabilities and one with the reason of its end.
fn deltas(reply: &Reply, choice: &mut Choice, piece: &Piece) -> Vec<Value> {
    let mut changes = Vec::new();
    for part in choice.parts(reply, piece) {
        match part {
            Part::Text(text) => changes.push(json!({ "content": text })),
            Part::Call { name, arguments } => {
                let index = choice.calls.len();
                let mut call = reply.call(piece.sample, index, &name, &arguments);
                choice.calls.push(call.clone());
                call["index"] = json!(index);
                changes.push(json!({ "tool_calls": [call] }));
            }
        }
    }
    let has_tokens = !piece.tokens.is_empty() || !piece.token_ids.is_empty();
    if changes.is_empty() && (has_tokens || piece.finish.is_some()) {
        changes.push(json!({}));
    }
    let n = changes.len();
    let delta = |(at, change): (usize, Value)| {
        let mut value =
            json!({ "index": piece.sample, "delta": change, "logprobs": null, "finish_reason": null });
        if at == 0 && reply.detail.logprobs.is_some() {
            value["logprobs"] = json!({ "content": piece.tokens.iter().map(token_json).collect::<Vec<_>>() });
        }
        if at == 0 && reply.detail.token_ids {
            value["token_ids"] = json!(piece.token_ids);
        }
        if let Some(finish) = piece.finish.filter(|_| at + 1 == n) {
            value["finish_reason"] = json!(choice.finish_reason(finish));
        }
        value
    };
    changes.into_iter().enumerate().map(delta).collect()
}

fn token_json(token: &TokenOut) -> Value {
    let one = |text: &str, logprob: Option<f32>| {
        let bytes = (!text.contains('\u{FFFD}')).then(|| text.as_bytes().to_vec());
        json!({ "token": text, "logprob": logprob.map(f64::from), "bytes": bytes })
    };
    let mut value = one(&token.text, token.logprob);
    value["top_logprobs"] = token.top.iter().map(|(text, logprob)| one(text, Some(*logprob))).collect();
    value
}
