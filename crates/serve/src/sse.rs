//! Server-sent events: an answer in pieces.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::error::ApiError;

/// Pieces that wait for a slow reader before the writer does.
const BUFFERED: usize = 64;

/// Where pieces are put.
pub(crate) struct Sink(mpsc::Sender<String>);

/// The reader has gone.
#[derive(Debug)]
pub(crate) struct Gone;

/// A sink and the response that its pieces go into.
pub(crate) fn channel() -> (Sink, Response<Body>) {
    let (sender, receiver) = mpsc::channel(BUFFERED);
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|piece: String| (Ok::<_, Infallible>(piece), receiver))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies must not collect the pieces.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    (Sink(sender), response)
}

impl Sink {
    pub(crate) async fn send(&self, value: &Value) -> Result<(), Gone> {
        self.0.send(format!("data: {value}\n\n")).await.map_err(|_| Gone)
    }

    /// The end of a stream, well or not.
    pub(crate) async fn end(&self, outcome: Result<(), ApiError>) {
        if let Err(error) = outcome
            && self.send(&error.json()).await.is_err()
        {
            return;
        }
        let _ = self.0.send("data: [DONE]\n\n".to_owned()).await;
    }

    /// Waits until the reader has gone.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}
