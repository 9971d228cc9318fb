//! When to try again, and how long to wait before.

use pt_core::rng::Stream;

use crate::clock::Clock;
use crate::error::{ClientError, Result, Trouble};

/// Exponential backoff with jitter.
///
/// Before attempt `k + 1` it waits `min(max_delay, base_delay 2^(k-1)) (1 + u) / 2` seconds, `u` uniform in `[0, 1)` and
/// keyed by (seed, request, k), so that many clients that failed together do not come back together. A server's
/// `Retry-After` counts instead where it is longer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub max_retries: u32,
    /// Before the first retry, in seconds.
    pub base_delay_s: f64,
    /// At most, in seconds.
    pub max_delay_s: f64,
    /// A server that asks for a longer pause than this is given up on.
    pub max_retry_after_s: f64,
    /// Keys the jitter.
    pub seed: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            max_retries: 5,
            base_delay_s: 0.5,
            max_delay_s: 30.0,
            max_retry_after_s: 300.0,
            seed: 0,
        }
    }
}

impl RetryPolicy {
    pub(crate) fn check(&self) -> Result<()> {
        let delays = [
            ("base_delay_s", self.base_delay_s),
            ("max_delay_s", self.max_delay_s),
            ("max_retry_after_s", self.max_retry_after_s),
        ];
        match delays.into_iter().find(|(_, delay)| !(delay.is_finite() && *delay >= 0.0)) {
            Some((name, delay)) => Err(ClientError::Option {
                name,
                value: delay.to_string(),
                expected: "a finite number of seconds, 0 or more",
            }),
            None => Ok(()),
        }
    }

    /// Seconds to wait after attempt `n_attempts` (from 1) ended in `trouble`; `None` to give up.
    pub fn delay_s(&self, trouble: &Trouble, n_attempts: u32, request: u64) -> Option<f64> {
        if n_attempts > self.max_retries || !trouble.is_transient() {
            return None;
        }
        let doubled = self.base_delay_s * 2f64.powi((n_attempts - 1).min(60) as i32);
        let words = Stream::new(self.seed, "client-retry").words(request, u64::from(n_attempts));
        let jitter = 0.5 + 0.5 * f64::from(words[0]) / (1u64 << 32) as f64;
        let backoff = doubled.min(self.max_delay_s) * jitter;
        match trouble {
            Trouble::Status { retry_after_s: Some(asked), .. } if *asked > self.max_retry_after_s => None,
            Trouble::Status { retry_after_s: Some(asked), .. } => Some(backoff.max(*asked)),
            _ => Some(backoff),
        }
    }

    /// Calls until it works, waiting in between. `on_retry` is told of each failure that is tried again.
    pub(crate) fn run<T>(
        &self,
        clock: &dyn Clock,
        url: &str,
        request: u64,
        on_retry: &mut dyn FnMut(&Trouble),
        attempt: &mut dyn FnMut() -> std::result::Result<T, Trouble>,
    ) -> Result<T> {
        let mut n_attempts = 0;
        loop {
            n_attempts += 1;
            let trouble = match attempt() {
                Ok(value) => return Ok(value),
                Err(trouble) => trouble,
            };
            let Some(delay_s) = self.delay_s(&trouble, n_attempts, request) else {
                return Err(ClientError::Request { url: url.to_owned(), n_attempts, trouble });
            };
            on_retry(&trouble);
            clock.sleep(delay_s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_within_their_jitter_and_honour_the_server() {
        let policy =
            RetryPolicy { max_retries: 4, base_delay_s: 1.0, max_delay_s: 3.0, ..RetryPolicy::default() };
        let dropped = Trouble::Dropped { reason: "test".to_owned() };
        for (n_attempts, most) in [(1, 1.0), (2, 2.0), (3, 3.0), (4, 3.0)] {
            for request in 0..50 {
                let delay = policy.delay_s(&dropped, n_attempts, request).unwrap();
                assert!(delay >= most / 2.0 && delay < most, "attempt {n_attempts}: {delay}");
            }
        }
        assert_ne!(policy.delay_s(&dropped, 1, 0), policy.delay_s(&dropped, 1, 1), "requests spread out");
        assert_eq!(policy.delay_s(&dropped, 1, 7), policy.delay_s(&dropped, 1, 7), "and are repeatable");
        assert_eq!(policy.delay_s(&dropped, 5, 0), None);
        let status =
            |status, retry_after_s| Trouble::Status { status, message: String::new(), retry_after_s };
        assert_eq!(policy.delay_s(&status(429, Some(20.0)), 1, 0), Some(20.0));
        assert_eq!(policy.delay_s(&status(429, Some(301.0)), 1, 0), None);
        for (code, again) in
            [(400, false), (401, false), (404, false), (429, true), (500, true), (501, false), (503, true)]
        {
            assert_eq!(policy.delay_s(&status(code, None), 1, 0).is_some(), again, "{code}");
        }
    }
}
