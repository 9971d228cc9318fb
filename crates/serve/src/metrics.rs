//! Counts for `/metrics`, in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What was served.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// By path and status.
    requests: Mutex<BTreeMap<(String, u16), u64>>,
    prompt_tokens: AtomicU64,
    generation_tokens: AtomicU64,
}

impl Metrics {
    pub(crate) fn request(&self, path: &str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((path.to_owned(), status)).or_default() += 1;
    }

    pub(crate) fn tokens(&self, prompt: usize, generated: usize) {
        self.prompt_tokens.fetch_add(prompt as u64, Ordering::Relaxed);
        self.generation_tokens.fetch_add(generated as u64, Ordering::Relaxed);
    }

    pub(crate) fn text(&self, n_requests: usize) -> String {
        let mut text = String::from("# TYPE posttrain_requests_total counter\n");
        for ((path, status), n) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(text, "posttrain_requests_total{{path=\"{path}\",status=\"{status}\"}} {n}");
        }
        let counters = [
            ("posttrain_prompt_tokens_total", "counter", self.prompt_tokens.load(Ordering::Relaxed)),
            ("posttrain_generation_tokens_total", "counter", self.generation_tokens.load(Ordering::Relaxed)),
            ("posttrain_running_requests", "gauge", n_requests as u64),
        ];
        for (name, kind, value) in counters {
            let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
        }
        text
    }
}
