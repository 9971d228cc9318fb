//! One HTTP exchange: sent, received whole, and every failure named.

use std::io;
use std::time::Duration;

use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use crate::clock::{Clock, http_date_unix_s};
use crate::error::{ClientError, Result, Trouble, excerpt};

/// Bytes of an answer that is kept in memory, at most.
const MAX_ANSWER_BYTES: u64 = 1 << 30;

/// How connections are made.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// For a whole exchange; for downloads: for each read.
    pub timeout_s: f64,
    /// `http://host:port`, or `None` to connect directly.
    pub proxy: Option<String>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        HttpOptions { timeout_s: 600.0, proxy: None }
    }
}

/// A pool of connections.
pub(crate) struct Http {
    agent: Agent,
    timeout_s: f64,
}

/// An answer with any status.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Http {
    /// For exchanges that are limited as a whole.
    pub(crate) fn new(options: &HttpOptions) -> Result<Http> {
        Http::build(options, false)
    }

    /// For long downloads, where only silence is limited.
    pub(crate) fn for_downloads(options: &HttpOptions) -> Result<Http> {
        Http::build(options, true)
    }

    fn build(options: &HttpOptions, per_read: bool) -> Result<Http> {
        let valid = options.timeout_s > 0.0 && options.timeout_s.is_finite();
        let timeout =
            Duration::try_from_secs_f64(options.timeout_s).ok().filter(|_| valid).ok_or_else(|| {
                ClientError::Option {
                    name: "timeout_s",
                    value: options.timeout_s.to_string(),
                    expected: "a number of seconds above 0",
                }
            })?;
        let proxy = options.proxy.as_deref().map(|proxy| {
            ureq::Proxy::new(proxy).map_err(|_| ClientError::Option {
                name: "proxy",
                value: proxy.to_owned(),
                expected: "an address as http://host:port",
            })
        });
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(proxy.transpose()?)
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .user_agent(concat!("posttrain/", env!("CARGO_PKG_VERSION")));
        let config = if per_read {
            let some = Some(timeout);
            config.timeout_connect(some).timeout_recv_response(some).timeout_per_read(some)
        } else {
            config.timeout_global(Some(timeout))
        };
        Ok(Http { agent: config.build().new_agent(), timeout_s: options.timeout_s })
    }

    pub(crate) fn post(
        &self,
        url: &str,
        token: Option<&str>,
        body: &[u8],
    ) -> std::result::Result<Answer, Trouble> {
        let mut request = self.agent.post(url).header("Content-Type", "application/json");
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        self.receive(request.send(body).map_err(|e| self.trouble(e))?)
    }

    pub(crate) fn get(&self, url: &str, token: Option<&str>) -> std::result::Result<Answer, Trouble> {
        self.receive(self.open(url, token, &[])?)
    }

    /// The head of an answer, whose body is yet to be read.
    pub(crate) fn open(
        &self,
        url: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
    ) -> std::result::Result<Response<Body>, Trouble> {
        let mut request = self.agent.get(url);
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.call().map_err(|e| self.trouble(e))
    }

    pub(crate) fn receive(&self, response: Response<Body>) -> std::result::Result<Answer, Trouble> {
        let (head, body) = response.into_parts();
        let body = body.into_with_config().limit(MAX_ANSWER_BYTES).read_to_vec().map_err(|error| {
            match self.trouble(error) {
                // The answer had begun.
                Trouble::Unreachable { reason } => Trouble::Dropped { reason },
                other => other,
            }
        })?;
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }

    pub(crate) fn trouble(&self, error: ureq::Error) -> Trouble {
        let reason = error.to_string();
        match error {
            ureq::Error::Timeout(_) => Trouble::Timeout { after_s: self.timeout_s },
            ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::ConnectProxyFailed(_) => Trouble::Unreachable { reason },
            ureq::Error::Io(error) => self.io_trouble(&error),
            ureq::Error::Protocol(_) | ureq::Error::BodyExceedsLimit(_) => Trouble::Dropped { reason },
            _ => Trouble::Unsendable { reason },
        }
    }

    pub(crate) fn io_trouble(&self, error: &io::Error) -> Trouble {
        let reason = error.to_string();
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                Trouble::Timeout { after_s: self.timeout_s }
            }
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::NotFound => Trouble::Unreachable { reason },
            _ => Trouble::Dropped { reason },
        }
    }
}

impl Answer {
    /// The body as JSON, if the status is success and it is what it says.
    pub(crate) fn json(&self, clock: &dyn Clock) -> std::result::Result<serde_json::Value, Trouble> {
        if !(200..300).contains(&self.status) {
            return Err(self.status_trouble(clock));
        }
        let content_type = header(&self.headers, "content-type").unwrap_or("");
        if !is_json(content_type) {
            let found = if content_type.is_empty() { "(no content type)" } else { content_type };
            return Err(Trouble::ContentType { found: found.to_owned(), excerpt: excerpt(&self.body) });
        }
        serde_json::from_slice(&self.body).map_err(|error| Trouble::BadJson {
            reason: error.to_string(),
            n_bytes: self.body.len(),
            excerpt: excerpt(&self.body),
        })
    }

    pub(crate) fn status_trouble(&self, clock: &dyn Clock) -> Trouble {
        status_trouble(self.status, &self.headers, &self.body, clock)
    }
}

pub(crate) fn status_trouble(status: u16, headers: &HeaderMap, body: &[u8], clock: &dyn Clock) -> Trouble {
    Trouble::Status {
        status,
        message: error_message(body).unwrap_or_else(|| excerpt(body)),
        retry_after_s: header(headers, "retry-after").and_then(|value| retry_after_s(value, clock)),
    }
}

pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn is_json(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    kind == "application/json" || kind.ends_with("+json")
}

/// The message of `{"error": {"message": ...}}`, `{"error": ...}`, `{"message": ...}` or `{"detail": ...}`.
fn error_message(body: &[u8]) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = json.get("error");
    let found = error
        .and_then(|error| error.get("message"))
        .or(error)
        .or_else(|| json.get("message"))
        .or_else(|| json.get("detail"))?;
    Some(found.as_str().map_or_else(|| found.to_string(), str::to_owned))
}

fn retry_after_s(value: &str, clock: &dyn Clock) -> Option<f64> {
    match value.trim().parse::<f64>() {
        Ok(seconds) => (seconds.is_finite() && seconds >= 0.0).then_some(seconds),
        Err(_) => http_date_unix_s(value).map(|at| (at - clock.unix_s()).max(0.0)),
    }
}
