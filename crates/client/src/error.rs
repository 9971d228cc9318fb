//! What goes wrong when one talks to others.

use std::path::PathBuf;

/// Results of this crate.
pub type Result<T> = std::result::Result<T, ClientError>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A request that got no usable answer, after all its attempts.
    #[error("{url}: {trouble}{}", tried(*n_attempts))]
    Request {
        /// Where it went.
        url: String,
        /// How often it was sent.
        n_attempts: u32,
        /// What happened the last time.
        trouble: Trouble,
    },
    /// An option out of range.
    #[error("option `{name}` is `{value}`, expected {expected}")]
    Option {
        /// Which.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// A file that could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A download whose content is not what was announced. It was deleted.
    #[error("{url}: downloaded {what} {found}, expected {expected}; what came was deleted, try again")]
    Content {
        /// Where it came from.
        url: String,
        /// `sha256`, `git blob sha1` or `length`.
        what: &'static str,
        /// Of what came.
        found: String,
        /// What was announced.
        expected: String,
    },
    /// A name that cannot be on the hub.
    #[error("`{name}` is no name on the hub, which are `owner/name` (letters, digits, `-`, `_`, `.`)")]
    HubName {
        /// The name.
        name: String,
    },
    /// A repository, or a revision of it, that the hub does not have or does not show.
    #[error(
        "the hub at {endpoint} has no {kind} `{name}` at revision `{revision}`, or does not show it ({reason}); check \
         the name, or give a token that may read it (HF_TOKEN)"
    )]
    HubAbsent {
        /// The hub.
        endpoint: String,
        /// `model` or `dataset`.
        kind: &'static str,
        /// `owner/name`.
        name: String,
        /// Branch, tag or commit.
        revision: String,
        /// What the hub said.
        reason: String,
    },
    /// A repository without the files that are needed.
    #[error("{kind} `{name}` on the hub has no {needed}; it has {found}")]
    HubFiles {
        /// `model` or `dataset`.
        kind: &'static str,
        /// `owner/name`.
        name: String,
        /// What was looked for.
        needed: &'static str,
        /// Its files, the first few.
        found: String,
    },
}

impl ClientError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> ClientError {
        let path = path.into();
        move |source| ClientError::Io { action, path, source }
    }

    /// What happened to the request, if it is about one.
    pub fn trouble(&self) -> Option<&Trouble> {
        match self {
            ClientError::Request { trouble, .. } => Some(trouble),
            _ => None,
        }
    }
}

fn tried(n_attempts: u32) -> String {
    if n_attempts > 1 { format!(" (tried {n_attempts} times)") } else { String::new() }
}

/// What happened to a request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Trouble {
    /// No connection.
    #[error("cannot connect: {reason}; is the server running, and the address right?")]
    Unreachable {
        /// Why.
        reason: String,
    },
    /// A request that cannot even be sent, or a server whose certificate is not accepted.
    #[error("cannot send the request: {reason}")]
    Unsendable {
        /// Why.
        reason: String,
    },
    /// No answer in time.
    #[error("no answer within {after_s} s; raise the timeout if the server is only slow")]
    Timeout {
        /// The limit.
        after_s: f64,
    },
    /// The connection ended before the answer did.
    #[error("the connection broke before the answer was complete: {reason}")]
    Dropped {
        /// Why.
        reason: String,
    },
    /// A status that is not success.
    #[error("the server answered {status}: {message}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// What the server's error object, or else the body, says.
        message: String,
        /// How long it asks to wait.
        retry_after_s: Option<f64>,
    },
    /// Something that is not JSON by its own account.
    #[error("the answer is `{found}`, expected application/json; it begins: {excerpt}")]
    ContentType {
        /// The type given.
        found: String,
        /// The first characters.
        excerpt: String,
    },
    /// JSON that cannot be parsed.
    #[error("the answer is not whole JSON ({reason}; {n_bytes} bytes); it begins: {excerpt}")]
    BadJson {
        /// Why.
        reason: String,
        /// The length.
        n_bytes: usize,
        /// The first characters.
        excerpt: String,
    },
    /// JSON of another shape than the protocol's.
    #[error("the answer is JSON, but {reason}; it begins: {excerpt}")]
    Shape {
        /// What is missing or wrong.
        reason: String,
        /// The first characters.
        excerpt: String,
    },
    /// No choices at all.
    #[error("the answer has no choices, expected {expected}")]
    NoChoices {
        /// How many were asked for.
        expected: u32,
    },
    /// Fewer or more choices than asked for.
    #[error(
        "the answer has {found} choices, expected {expected}; a server that ignores `n` must be asked for one at a time"
    )]
    ChoiceCount {
        /// How many came.
        found: usize,
        /// How many were asked for.
        expected: u32,
    },
}

impl Trouble {
    /// Whether another attempt may fare better.
    pub fn is_transient(&self) -> bool {
        match self {
            Trouble::Unreachable { .. }
            | Trouble::Timeout { .. }
            | Trouble::Dropped { .. }
            | Trouble::ContentType { .. }
            | Trouble::BadJson { .. }
            | Trouble::NoChoices { .. } => true,
            // 501 and 505 say that the server never will.
            Trouble::Status { status, .. } => {
                matches!(status, 408 | 425 | 429 | 500 | 502..=504 | 506..=599)
            }
            Trouble::Unsendable { .. } | Trouble::Shape { .. } | Trouble::ChoiceCount { .. } => false,
        }
    }
}

/// The first characters of a body, on one line.
pub(crate) fn excerpt(body: &[u8]) -> String {
    const CHARS: usize = 200;
    let text = String::from_utf8_lossy(&body[..body.len().min(4 * CHARS)]);
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(CHARS).collect();
    let line = line.trim();
    if line.is_empty() { "(nothing)".to_owned() } else { line.to_owned() }
}
