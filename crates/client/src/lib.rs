//! Talking to others: OpenAI-compatible servers, and the Hugging Face hub.
//!
//! [`Client`] asks any server that speaks the OpenAI protocol (vLLM, SGLang, llama.cpp, `posttrain serve`, ...) for chat
//! and text completions: with retries, a rate limit, many requests at once, and a cache on disk that makes a run of many
//! requests resumable. [`hub::Hub`] downloads models and datasets into the cache the Hugging Face tools use, and
//! [`download::download`] any file. All calls block; every failure is a [`ClientError`] that says what came instead.
//!
//! Nothing here reads the environment: addresses, keys, tokens and proxies are given. Time is a [`Clock`], so that
//! waiting can be tested without waiting.
//!
//! Left out: streaming (a caller here wants the whole answer), uploads, and the hub's Xet protocol (its plain HTTP bridge
//! serves the same bytes).

pub mod cache;
mod client;
pub mod clock;
mod counts;
pub mod download;
mod error;
mod http;
pub mod hub;
mod limit;
mod request;
mod response;
mod retry;

pub use client::{Client, ClientOptions};
pub use clock::{Clock, ManualClock, SystemClock};
pub use counts::{Counts, Price};
pub use error::{ClientError, Result, Trouble};
pub use http::HttpOptions;
pub use request::{Prompt, Request};
pub use response::{Choice, Completion, TokenLogprob, ToolCall, Usage};
pub use retry::RetryPolicy;
