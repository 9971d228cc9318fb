//! Connections: paths, keys, limits, and how the server begins and ends.

use std::future::Future;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, header};
use axum::serve::ListenerExt;
use futures_util::future::{Either, select};
use pt_core::rng::Stream;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::backend::{Commands, EngineHandle, Job, engine_channel};
use crate::error::{ApiError, ServeError, json_response};
use crate::fields::{Fields, wrong};
use crate::metrics::Metrics;
use crate::sampling::Sampling;
use crate::sse::Sink;
use crate::text::TextSide;
use crate::{chat, completions};

/// How the server runs.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// What the model is called.
    pub model_name: String,
    /// What clients must give; `None` lets everyone in.
    pub api_key: Option<String>,
    /// Requests running or waiting, at most; further ones are told to come later.
    pub max_waiting: usize,
    /// Bytes of a request, at most.
    pub max_body_bytes: usize,
    /// How long running requests may go on when the server is told to end.
    pub grace_s: f64,
    /// Keys the draws of requests that give no seed, and the names of replies.
    pub seed: u64,
}

impl ServerOptions {
    /// No key, 1024 requests, 64 MiB each, ten seconds to finish.
    pub fn new(model_name: impl Into<String>) -> ServerOptions {
        ServerOptions {
            model_name: model_name.into(),
            api_key: None,
            max_waiting: 1024,
            max_body_bytes: 64 << 20,
            grace_s: 10.0,
            seed: 0,
        }
    }
}

/// What every connection knows.
pub(crate) struct App {
    pub(crate) options: ServerOptions,
    pub(crate) text: TextSide,
    pub(crate) engine: EngineHandle,
    pub(crate) metrics: Metrics,
    created_s: u64,
    /// Requests that are running or waiting.
    n_requests: Arc<AtomicUsize>,
    n_names: AtomicU64,
    n_seeds: AtomicU64,
}

/// A request counts as running while this lives.
pub(crate) struct Admitted(Arc<AtomicUsize>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What is streamed, where a request asks for a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamOptions {
    /// A last event with the counts of tokens.
    pub(crate) include_usage: bool,
}

impl StreamOptions {
    pub(crate) fn take(fields: &mut Fields) -> Result<Option<StreamOptions>, ApiError> {
        let stream = fields.flag("stream")?;
        match fields.take("stream_options") {
            None => Ok(stream.then_some(StreamOptions { include_usage: false })),
            Some(Value::Object(options)) if stream => {
                let mut options = Fields::inside("stream_options", options);
                let include_usage = options.flag("include_usage")?;
                options.finish()?;
                Ok(Some(StreamOptions { include_usage }))
            }
            Some(other) => Err(wrong("stream_options", &other, "an object, together with `stream: true`")),
        }
    }
}

/// The counts of tokens in an answer.
pub(crate) fn usage(n_prompt: usize, n_new: usize) -> Value {
    json!({ "prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new })
}

/// Does the work unless the reader goes away before it is done.
pub(crate) async fn until_closed<T>(sink: &Sink, work: impl Future<Output = T>) -> Option<T> {
    match select(pin!(work), pin!(sink.closed())).await {
        Either::Left((outcome, _)) => Some(outcome),
        Either::Right(_) => None,
    }
}

impl App {
    /// A request's model must be the one that is here; absent is fine.
    pub(crate) fn check_model(&self, fields: &mut Fields) -> Result<(), ApiError> {
        match fields.text("model")? {
            Some(asked) if asked != self.options.model_name => {
                Err(ApiError::no_model(&asked, &self.options.model_name))
            }
            _ => Ok(()),
        }
    }

    /// A place for a request among those that run or wait, until it is dropped.
    pub(crate) fn admit(&self) -> Result<Admitted, ApiError> {
        if self.engine.is_gone() {
            return Err(ApiError::engine_gone());
        }
        let n_before = self.n_requests.fetch_add(1, Ordering::SeqCst);
        let admitted = Admitted(self.n_requests.clone());
        if n_before < self.options.max_waiting { Ok(admitted) } else { Err(ApiError::overloaded(n_before)) }
    }

    /// The job that a prompt and a request's parameters make.
    pub(crate) fn job(
        &self,
        prompt_ids: Vec<u32>,
        sampling: &Sampling,
        top_logprobs: usize,
    ) -> Result<Job, ApiError> {
        let max_new_tokens = self.text.room(prompt_ids.len(), sampling.max_tokens)?;
        if sampling.min_tokens > max_new_tokens {
            let message = format!(
                "`min_tokens` is {}, more than the {max_new_tokens} tokens that may follow",
                sampling.min_tokens
            );
            return Err(ApiError::field("min_tokens", message));
        }
        let mut stop_token_ids = self.text.known("stop_token_ids", sampling.stop_token_ids.clone())?;
        if !sampling.ignore_eos {
            stop_token_ids.extend(&self.text.stop_token_ids);
        }
        let seed = sampling.seed.unwrap_or_else(|| {
            let at = self.n_seeds.fetch_add(1, Ordering::Relaxed);
            Stream::new(self.options.seed, "serve-seed").at(at).next_u64()
        });
        Ok(Job { prompt_ids, sampling: sampling.clone(), max_new_tokens, stop_token_ids, seed, top_logprobs })
    }

    /// A name for a reply, another one each time.
    pub(crate) fn name(&self, kind: &str) -> String {
        let at = self.n_names.fetch_add(1, Ordering::Relaxed);
        let mut draws = Stream::new(self.options.seed, "serve-name").at(at);
        format!("{kind}-{:016x}{:08x}", draws.next_u64(), draws.next_u32())
    }

    /// Seconds since 1970.
    pub(crate) fn now_s(&self) -> u64 {
        unix_s()
    }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A running server.
pub struct Server {
    address: SocketAddr,
    app: Arc<App>,
    stop: StopHandle,
    runtime: Runtime,
    connections: tokio::task::JoinHandle<std::io::Result<()>>,
    engine: JoinHandle<()>,
}

/// Tells a server to end.
#[derive(Clone)]
pub struct StopHandle {
    /// How often it was told.
    n_told: Arc<watch::Sender<u32>>,
}

impl StopHandle {
    /// The first time, no new requests are taken and running ones may finish within the grace period; the second time,
    /// they are cut.
    pub fn stop(&self) {
        self.n_told.send_modify(|n| *n += 1);
    }

    async fn told(&self, n: u32) {
        // The sender is ours, so it cannot be gone.
        let _ = self.n_told.subscribe().wait_for(|told| *told >= n).await;
    }
}

impl Server {
    /// Listens, and starts the engine's thread: `engine` runs there and ends by [`crate::backend::run`].
    ///
    /// # Errors
    /// [`ServeError::Listen`] if the address is taken or not ours, [`ServeError::Io`] if there are no threads.
    pub fn start(
        host: &str,
        port: u16,
        options: ServerOptions,
        text: TextSide,
        engine: impl FnOnce(Commands) + Send + 'static,
    ) -> Result<Server, ServeError> {
        let listener = listen(host, port)?;
        let address = listener.local_addr()?;
        let (handle, commands) = engine_channel();
        let app = Arc::new(App {
            options,
            text,
            engine: handle,
            metrics: Metrics::default(),
            created_s: unix_s(),
            n_requests: Arc::default(),
            n_names: AtomicU64::new(0),
            n_seeds: AtomicU64::new(0),
        });
        // Connections are light work; the engine wants the cores.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let stop = StopHandle { n_told: Arc::new(watch::channel(0).0) };
        let (router, told) = (Router::new().fallback(handle_request).with_state(app.clone()), stop.clone());
        let connections = {
            let _inside = runtime.enter();
            // Pieces of a stream must not wait to be sent together.
            let listener =
                tokio::net::TcpListener::from_std(listener)?.tap_io(|io| drop(io.set_nodelay(true)));
            let serving =
                axum::serve(listener, router).with_graceful_shutdown(async move { told.told(1).await });
            runtime.spawn(serving.into_future())
        };
        let engine = std::thread::Builder::new().name("engine".to_owned()).spawn(move || engine(commands))?;
        Ok(Server { address, app, stop, runtime, connections, engine })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle to end it, for a signal handler.
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Serves until it is told to end and all requests are over or cut.
    ///
    /// # Errors
    /// [`ServeError`], if the listener or the engine failed.
    pub fn wait(self) -> Result<(), ServeError> {
        let Server { app, stop, runtime, mut connections, engine, .. } = self;
        let outcome = runtime.block_on(async {
            let ended = match select(&mut connections, pin!(stop.told(1))).await {
                Either::Left((outcome, _)) => Some(outcome),
                Either::Right(_) => None,
            };
            if let Some(outcome) = ended {
                return Some(outcome);
            }
            let grace = Duration::try_from_secs_f64(app.options.grace_s).unwrap_or(Duration::MAX);
            let (mut too_long, mut told_again) = (pin!(tokio::time::sleep(grace)), pin!(stop.told(2)));
            let enough = select(&mut too_long, &mut told_again);
            if let Either::Left((outcome, _)) = select(&mut connections, enough).await {
                return Some(outcome);
            }
            app.engine.cut_all();
            // What was cut still has to be told to its client.
            tokio::time::timeout(LAST_WORDS, &mut connections).await.ok()
        });
        app.engine.end();
        runtime.shutdown_timeout(LAST_WORDS);
        let engine = engine.join();
        if let Some(Ok(outcome)) = outcome {
            outcome?;
        }
        engine.map_err(|panic| ServeError::Engine { reason: panic_text(&*panic) })
    }
}

/// How long connections may take to say that their request was cut.
const LAST_WORDS: Duration = Duration::from_secs(2);

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

fn listen(host: &str, port: u16) -> Result<TcpListener, ServeError> {
    let error = |source| ServeError::Listen { address: format!("{host}:{port}"), source };
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(error)?.collect();
    let listener = TcpListener::bind(addresses.as_slice()).map_err(error)?;
    listener.set_nonblocking(true).map_err(error)?;
    Ok(listener)
}

async fn handle_request(State(app): State<Arc<App>>, request: Request) -> Response<Body> {
    let path = request.uri().path().trim_end_matches('/').to_owned();
    let outcome = route(&app, &path, request).await;
    let response = outcome.unwrap_or_else(|error| error.response());
    let known =
        matches!(path.as_str(), "/v1/chat/completions" | "/v1/completions" | "/v1/models" | "/health");
    app.metrics.request(if known { &path } else { "other" }, response.status().as_u16());
    response
}

async fn route(app: &Arc<App>, path: &str, request: Request) -> Result<Response<Body>, ApiError> {
    if path.starts_with("/v1") {
        check_key(app, request.headers())?;
    }
    let one_model = path.strip_prefix("/v1/models/").map(str::to_owned);
    match path {
        "/v1/chat/completions" => {
            let body = posted(app, request).await?;
            chat::answer(app, &body).await
        }
        "/v1/completions" => {
            let body = posted(app, request).await?;
            completions::answer(app, &body).await
        }
        "/health" => {
            got(&request)?;
            if app.engine.is_gone() {
                Err(ApiError::engine_gone())
            } else {
                Ok(json_response(&json!({ "status": "ok" })))
            }
        }
        "/metrics" => {
            got(&request)?;
            let mut response =
                Response::new(Body::from(app.metrics.text(app.n_requests.load(Ordering::SeqCst))));
            let kind = HeaderValue::from_static("text/plain; version=0.0.4");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            Ok(response)
        }
        "/v1/models" => {
            got(&request)?;
            Ok(json_response(&json!({ "object": "list", "data": [model_json(app)] })))
        }
        _ => match one_model {
            Some(name) if name == app.options.model_name => {
                got(&request).map(|()| json_response(&model_json(app)))
            }
            Some(name) => Err(ApiError::no_model(&name, &app.options.model_name)),
            None => {
                let message = format!(
                    "there is nothing at `{path}`; this server has /v1/models, /v1/chat/completions, /v1/completions, \
                     /health and /metrics"
                );
                Err(ApiError::with_status(404, message))
            }
        },
    }
}

fn model_json(app: &App) -> Value {
    json!({
        "id": app.options.model_name, "object": "model", "created": app.created_s, "owned_by": "posttrain",
        "max_model_len": app.text.context,
    })
}

fn check_key(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(key) = &app.options.api_key else { return Ok(()) };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer "));
    // Hashes are compared, so that the time it takes tells nothing of the key.
    let hash = |text: &str| pt_core::hash::of_bytes(text.as_bytes());
    match given {
        Some(given) if hash(given) == hash(key) => Ok(()),
        _ => Err(ApiError::unauthorised()),
    }
}

fn got(request: &Request) -> Result<(), ApiError> {
    if request.method() == Method::GET { Ok(()) } else { Err(wrong_method(request, "GET")) }
}

fn wrong_method(request: &Request, wanted: &str) -> ApiError {
    let message = format!("{} is asked with {wanted}, not {}", request.uri().path(), request.method());
    ApiError::with_status(405, message)
}

/// The body of a request that is JSON by its own account. A web page cannot send such a one to this machine unasked.
async fn posted(app: &App, request: Request) -> Result<Vec<u8>, ApiError> {
    if request.method() != Method::POST {
        return Err(wrong_method(&request, "POST"));
    }
    let kind =
        request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = kind.split(';').next().unwrap_or("").trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let message = format!("the content type is `{kind}`, expected `application/json`");
        return Err(ApiError::with_status(415, message));
    }
    let limit = app.options.max_body_bytes;
    match to_bytes(request.into_body(), limit).await {
        Ok(bytes) => Ok(bytes.to_vec()),
        Err(error) if error.to_string().contains("limit") => {
            Err(ApiError::with_status(413, format!("the request is longer than {limit} bytes")))
        }
        Err(error) => Err(ApiError::invalid(format!("the request broke off: {error}"))),
    }
}
