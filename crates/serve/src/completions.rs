//! `/v1/completions`: text or token ids, continued as they are.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use serde_json::{Map, Value, json};

use crate::assembly::{Detail, Generation, TokenOut, token_name};
use crate::backend::{BackendError, Job, JobEvents};
use crate::error::{ApiError, json_response};
use crate::fields::{Fields, token_ids, wrong};
use crate::http::{App, StreamOptions, usage};
use crate::sampling::Sampling;
use crate::sse::{self, Sink};

/// What OpenAI's API does where nothing is said.
const DEFAULT_MAX_TOKENS: u64 = 16;
/// Alternatives of a token, at most.
const MAX_LOGPROBS: u64 = 64;
/// Prompts of one request, at most.
const MAX_PROMPTS: usize = 4096;

/// A request that was understood.
struct Request {
    prompts: Vec<Prompt>,
    sampling: Sampling,
    /// Nothing is to be sampled: only the prompt is wanted back.
    only_echo: bool,
    echo: bool,
    detail: Detail,
    stream: Option<StreamOptions>,
}

/// A prompt with its ids.
#[derive(Clone)]
struct Prompt {
    ids: Vec<u32>,
    /// As it was given, or as the ids read.
    text: String,
}

/// What comes before the samples of a prompt when they echo it.
#[derive(Default)]
struct Echo {
    text: String,
    tokens: Vec<TokenOut>,
}

/// One prompt being continued.
struct Work {
    prompt: Prompt,
    echo: Echo,
    job: Option<(Job, JobEvents)>,
}

/// Answers a request.
pub(crate) async fn answer(app: &Arc<App>, body: &[u8]) -> Result<Response<Body>, ApiError> {
    let request = parse(app, body)?;
    let admitted = app.admit()?;
    let mut work = Vec::new();
    for prompt in &request.prompts {
        // All jobs run together; those before a prompt that is wrong end with this request.
        let job = if request.only_echo {
            None
        } else {
            let top = request.detail.logprobs.unwrap_or(0);
            let job = app.job(prompt.ids.clone(), &request.sampling, top)?;
            Some((job.clone(), app.engine.submit(job)))
        };
        work.push(Work { prompt: prompt.clone(), echo: Echo::default(), job });
    }
    if request.echo {
        for work in &mut work {
            work.echo = echo(app, &request, &work.prompt).await?;
        }
    }
    let reply =
        Reply { id: app.name("cmpl"), created: app.now_s(), n: request.sampling.n, detail: request.detail };
    match request.stream {
        None => {
            let outcome = whole(app, &reply, work).await;
            drop(admitted);
            outcome.map(|value| json_response(&value))
        }
        Some(options) => {
            let (sink, response) = sse::channel();
            let app = app.clone();
            tokio::spawn(async move {
                let outcome =
                    crate::http::until_closed(&sink, stream(&app, &reply, work, options, &sink)).await;
                drop(admitted);
                if let Some(outcome) = outcome {
                    sink.end(outcome).await;
                }
            });
            Ok(response)
        }
    }
}

fn parse(app: &App, body: &[u8]) -> Result<Request, ApiError> {
    let mut fields = Fields::parse(body)?;
    app.check_model(&mut fields)?;
    let prompts = prompts_of(app, &mut fields)?;
    let max_tokens = fields.whole("max_tokens", 0, u64::MAX)?.unwrap_or(DEFAULT_MAX_TOKENS);
    let sampling = Sampling::take(&mut fields, Some(max_tokens))?;
    let logprobs = fields.whole("logprobs", 0, MAX_LOGPROBS)?;
    let detail = Detail {
        logprobs: logprobs.map(|n| n as usize),
        token_ids: fields.flag("return_token_ids")?,
        as_ids: fields.flag("return_tokens_as_token_ids")?,
    };
    let echo = fields.flag("echo")?;
    if max_tokens == 0 && !echo {
        return Err(ApiError::field(
            "max_tokens",
            "`max_tokens` is 0, which is of use only with `echo: true`",
        ));
    }
    let best_of = "this server gives all samples it draws; ask for `n`";
    fields.only("best_of", &[json!(sampling.n)], best_of)?;
    fields.only("suffix", &[json!("")], "this server does not fill gaps")?;
    let stream = StreamOptions::take(&mut fields)?;
    fields.finish()?;
    Ok(Request { prompts, sampling, only_echo: max_tokens == 0, echo, detail, stream })
}

fn prompts_of(app: &App, fields: &mut Fields) -> Result<Vec<Prompt>, ApiError> {
    let expected = "text, a list of token ids, or a list of either";
    let value = fields
        .take("prompt")
        .ok_or_else(|| ApiError::field("prompt", format!("`prompt` is missing, expected {expected}")))?;
    let prompts = match &value {
        Value::Array(items) if !items.is_empty() && !items.iter().all(Value::is_number) => items.as_slice(),
        Value::String(_) | Value::Array(_) => std::slice::from_ref(&value),
        other => return Err(wrong("prompt", other, expected)),
    };
    if prompts.len() > MAX_PROMPTS {
        let message =
            format!("`prompt` has {} prompts, at most {MAX_PROMPTS} go into one request", prompts.len());
        return Err(ApiError::field("prompt", message));
    }
    let prompt = |prompt: &Value| match (prompt.as_str(), token_ids(prompt)) {
        (Some(text), _) => Ok(Prompt { ids: app.text.text_ids(text)?, text: text.to_owned() }),
        (None, Some(ids)) => {
            let ids = app.text.checked("prompt", ids)?;
            let text = app.text.tokenizer.decode(&ids, true);
            Ok(Prompt { text: text.map_err(|error| ApiError::internal(error.to_string()))?, ids })
        }
        (None, None) => Err(wrong("prompt", prompt, expected)),
    };
    prompts.iter().map(prompt).collect()
}

/// The prompt as the beginning of its samples, with the log-probability of each of its tokens if they are asked for.
async fn echo(app: &App, request: &Request, prompt: &Prompt) -> Result<Echo, ApiError> {
    let Some(top) = request.detail.logprobs else {
        return Ok(Echo { text: prompt.text.clone(), tokens: Vec::new() });
    };
    if prompt.ids.len() > app.text.context {
        return Err(ApiError::too_long(prompt.ids.len(), 0, app.text.context));
    }
    let scores = app.engine.score(prompt.ids.clone(), top).await.ok_or_else(ApiError::engine_gone)?;
    let scores = scores.map_err(|error| match error {
        BackendError::Job(message) => ApiError::invalid(message),
        BackendError::Engine(message) => ApiError::internal(message),
    })?;
    let mut tokens: Vec<TokenOut> = Vec::with_capacity(prompt.ids.len());
    let mut offset = 0;
    let mut decode = app.text.tokenizer.decode_stream(true);
    for (at, &id) in prompt.ids.iter().enumerate() {
        let before = &prompt.ids[..at];
        let name = |id| token_name(&app.text, request.detail, before, id);
        let score = at.checked_sub(1).map(|at| &scores[at]);
        let top = score.into_iter().flat_map(|score| &score.top);
        let top = top.map(|&(id, logprob)| Ok((name(id)?, logprob))).collect::<Result<_, ApiError>>()?;
        tokens.push(TokenOut { text: name(id)?, logprob: score.map(|score| score.logprob), top, offset });
        let read = decode.push(id).map_err(|error| ApiError::internal(error.to_string()))?;
        offset += read.chars().count();
    }
    Ok(Echo { text: prompt.text.clone(), tokens })
}

/// What all parts of an answer share.
struct Reply {
    id: String,
    created: u64,
    n: usize,
    detail: Detail,
}

/// A choice while it grows.
#[derive(Default)]
struct Choice {
    text: String,
    tokens: Vec<TokenOut>,
    token_ids: Vec<u32>,
    finish: Option<&'static str>,
}

async fn whole(app: &App, reply: &Reply, work: Vec<Work>) -> Result<Value, ApiError> {
    let (mut choices, mut n_prompt, mut n_new) = (Vec::new(), 0, 0);
    for (at, Work { prompt, echo, job }) in work.into_iter().enumerate() {
        n_prompt += prompt.ids.len();
        let samples: Vec<Choice> = match job {
            None => (0..reply.n).map(|_| Choice { finish: Some("length"), ..Choice::default() }).collect(),
            Some((job, events)) => {
                let mut samples: Vec<Choice> = (0..reply.n).map(|_| Choice::default()).collect();
                let mut generation = Generation::new(&app.text, &job, events, reply.detail, true)?;
                while let Some(piece) = generation.next().await? {
                    let choice = &mut samples[piece.sample];
                    choice.text += &piece.text;
                    choice.tokens.extend(piece.tokens);
                    choice.token_ids.extend(&piece.token_ids);
                    choice.finish = choice.finish.or(piece.finish);
                }
                n_new += generation.n_tokens;
                samples
            }
        };
        for (sample, choice) in samples.iter().enumerate() {
            let mut value = choice_json(reply, at * reply.n + sample, &echo, choice);
            if reply.detail.token_ids {
                value["prompt_token_ids"] = json!(prompt.ids);
            }
            choices.push(value);
        }
    }
    app.metrics.tokens(n_prompt, n_new);
    Ok(json!({
        "id": reply.id, "object": "text_completion", "created": reply.created, "model": app.options.model_name,
        "choices": choices, "usage": usage(n_prompt, n_new),
    }))
}

fn choice_json(reply: &Reply, index: usize, echo: &Echo, choice: &Choice) -> Value {
    let text = format!("{}{}", echo.text, choice.text);
    let logprobs =
        reply.detail.logprobs.map(|_| logprobs_json(&echo.tokens, &choice.tokens, echo.text.chars().count()));
    let mut value =
        json!({ "text": text, "index": index, "logprobs": logprobs, "finish_reason": choice.finish });
    if reply.detail.token_ids {
        value["token_ids"] = json!(choice.token_ids);
    }
    value
}

/// The four lists of the protocol. Alternatives are an object by text: of two tokens that read the same, the more probable
/// one counts.
fn logprobs_json(echoed: &[TokenOut], sampled: &[TokenOut], shift: usize) -> Value {
    let tokens = || echoed.iter().chain(sampled);
    let top = |token: &TokenOut| {
        token.logprob.map(|_| {
            let by_rank = token.top.iter().rev();
            by_rank.map(|(text, logprob)| (text.clone(), json!(f64::from(*logprob)))).collect::<Map<_, _>>()
        })
    };
    let offsets = echoed.iter().map(|token| token.offset).chain(sampled.iter().map(|t| t.offset + shift));
    json!({
        "tokens": tokens().map(|token| &token.text).collect::<Vec<_>>(),
        "token_logprobs": tokens().map(|token| token.logprob.map(f64::from)).collect::<Vec<_>>(),
        "top_logprobs": tokens().map(top).collect::<Vec<_>>(),
        "text_offset": offsets.collect::<Vec<_>>(),
    })
}

async fn stream(
    app: &App,
    reply: &Reply,
    work: Vec<Work>,
    options: StreamOptions,
    sink: &Sink,
) -> Result<(), ApiError> {
    let chunk = |choices: Value| {
        json!({
            "id": reply.id, "object": "text_completion", "created": reply.created,
            "model": app.options.model_name, "choices": choices,
        })
    };
    let (mut n_prompt, mut n_new) = (0, 0);
    // A reader that has gone ends this task from outside.
    for (at, Work { prompt, echo, job }) in work.into_iter().enumerate() {
        n_prompt += prompt.ids.len();
        let first = at * reply.n;
        if !echo.text.is_empty() || job.is_none() {
            let finish = job.is_none().then_some("length");
            for index in first..first + reply.n {
                let choice = Choice { finish, ..Choice::default() };
                let _ = sink.send(&chunk(json!([choice_json(reply, index, &echo, &choice)]))).await;
            }
        }
        let Some((job, events)) = job else { continue };
        let mut generation = Generation::new(&app.text, &job, events, reply.detail, true)?;
        // Offsets go on after the echo, which was sent.
        let shift = echo.text.chars().count();
        while let Some(piece) = generation.next().await? {
            let has_tokens = !piece.tokens.is_empty() || !piece.token_ids.is_empty();
            if piece.text.is_empty() && !has_tokens && piece.finish.is_none() {
                continue;
            }
            let mut tokens = piece.tokens;
            tokens.iter_mut().for_each(|token| token.offset += shift);
            let (text, token_ids, finish) = (piece.text, piece.token_ids, piece.finish);
            let choice = Choice { text, tokens, token_ids, finish };
            let value = choice_json(reply, first + piece.sample, &Echo::default(), &choice);
            let _ = sink.send(&chunk(json!([value]))).await;
        }
        n_new += generation.n_tokens;
    }
    app.metrics.tokens(n_prompt, n_new);
    if options.include_usage {
        let mut last = chunk(json!([]));
        last["usage"] = usage(n_prompt, n_new);
        let _ = sink.send(&last).await;
    }
    Ok(())
}
