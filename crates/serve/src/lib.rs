//! An OpenAI-compatible server on the project's own engine.
//!
//! ```text
//! connection --http--> request --protocol--> Job (token ids, Sampling) --commands--> engine thread: Backend
//!            <-- JSON or events -- assembly (text, stops, tool calls) <--events-- tokens, one at a time
//! ```
//!
//! One thread owns the model and steps all requests together ([`backend::run`]); connections are tasks that turn text
//! into ids and ids into text. A client that goes away drops its end of the events, and the engine cancels its job. What
//! a request asks for and this server cannot do is an error that names the field, never silently left out.
//!
//! Answered: `/v1/models`, `/v1/chat/completions`, `/v1/completions`, `/health`, `/metrics`.
//! Left out: embeddings, images, constrained decoding (`response_format`, `tool_choice: required`), TLS (put a proxy
//! before it).

mod assembly;
pub mod backend;
mod chat;
mod completions;
mod engine;
mod error;
mod fields;
mod http;
mod metrics;
mod sampling;
mod sse;
mod text;

pub use backend::{Backend, BackendError, Event, Job, Sampled, Scored};
pub use engine::EngineBackend;
pub use error::{ApiError, ServeError};
pub use http::{Server, ServerOptions, StopHandle};
pub use sampling::Sampling;
pub use text::TextSide;
