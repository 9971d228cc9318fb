//! What was asked and what it cost.

use crate::response::Usage;

/// Price of a model's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Of a million prompt tokens.
    pub prompt_per_million: f64,
    /// Of a million completion tokens.
    pub completion_per_million: f64,
}

impl Price {
    /// Of one answer.
    pub fn of(&self, usage: &Usage) -> f64 {
        (self.prompt_per_million * usage.prompt_tokens as f64
            + self.completion_per_million * usage.completion_tokens as f64)
            / 1e6
    }
}

/// Sums over all requests of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Counts {
    /// Requests that were answered or failed, cache hits included.
    pub n_requests: u64,
    /// Answered from the cache.
    pub n_cache_hits: u64,
    /// Times something was sent to the server.
    pub n_calls: u64,
    /// Of these, because an earlier attempt had failed.
    pub n_retries: u64,
    /// Requests that failed for good.
    pub n_failures: u64,
    /// Prompt tokens by the server's count, not those from the cache.
    pub prompt_tokens: u64,
    /// Completion tokens by the server's count, not those from the cache.
    pub completion_tokens: u64,
    /// Answers in which the server gave no counts of tokens.
    pub n_without_usage: u64,
    /// By the price table; models that are not in it cost nothing here.
    pub cost: f64,
}
