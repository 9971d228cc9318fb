//! Errors as the protocol has them, and those of the server itself.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

/// Why there is no server, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened at.
    #[error(
        "cannot listen at {address}: {source}; is another server running there? choose another with --port"
    )]
    Listen {
        /// Host and port.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The system gave no threads, or took the listener away.
    #[error("the server cannot run: {0}")]
    Io(#[from] std::io::Error),
    /// The engine's thread ended while it was needed.
    #[error("the engine stopped: {reason}")]
    Engine {
        /// Why.
        reason: String,
    },
}

/// An error for the client: a status and OpenAI's error object.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// `invalid_request_error`, `authentication_error`, `rate_limit_error` or `server_error`.
    pub kind: &'static str,
    /// What was found, expected, and what to do.
    pub message: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// A name for programs.
    pub code: Option<&'static str>,
}

impl ApiError {
    fn new(status: u16, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, kind, message: message.into(), param: None, code: None }
    }

    /// 400: the request is wrong.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(400, "invalid_request_error", message)
    }

    /// 400: a field of the request is wrong.
    pub fn field(param: &str, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.to_owned()), ..ApiError::invalid(message) }
    }

    /// Another status for a wrong request.
    pub(crate) fn with_status(status: u16, message: impl Into<String>) -> ApiError {
        ApiError::new(status, "invalid_request_error", message)
    }

    pub(crate) fn unauthorised() -> ApiError {
        let message = "this server wants its API key, as the header `Authorization: Bearer KEY`";
        ApiError { code: Some("invalid_api_key"), ..ApiError::new(401, "authentication_error", message) }
    }

    pub(crate) fn no_model(asked: &str, served: &str) -> ApiError {
        let message = format!("there is no model `{asked}` here; this server has `{served}`");
        let error = ApiError::with_status(404, message);
        ApiError { param: Some("model".to_owned()), code: Some("model_not_found"), ..error }
    }

    pub(crate) fn too_long(n_prompt: usize, n_new: usize, context: usize) -> ApiError {
        let message = format!(
            "the prompt has {n_prompt} tokens and {n_new} are to follow, but the model's context is {context} tokens; \
             shorten the prompt or lower max_tokens"
        );
        ApiError { code: Some("context_length_exceeded"), ..ApiError::field("max_tokens", message) }
    }

    pub(crate) fn overloaded(n_waiting: usize) -> ApiError {
        let message =
            format!("{n_waiting} requests are running or waiting, which is all this server takes; try later");
        ApiError { code: Some("overloaded"), ..ApiError::new(429, "rate_limit_error", message) }
    }

    /// 500: our fault.
    pub(crate) fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(500, "server_error", message)
    }

    pub(crate) fn engine_gone() -> ApiError {
        ApiError::new(
            503,
            "server_error",
            "the engine has stopped; see the server's own output, and restart it",
        )
    }

    pub(crate) fn shutting_down() -> ApiError {
        ApiError::new(503, "server_error", "the server is shutting down")
    }

    /// OpenAI's error object.
    pub fn json(&self) -> Value {
        json!({ "error": { "message": self.message, "type": self.kind, "param": self.param, "code": self.code } })
    }

    pub(crate) fn response(&self) -> Response<Body> {
        let mut response = json_response(&self.json());
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if self.status == 429 {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A JSON body with status 200.
pub(crate) fn json_response(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
