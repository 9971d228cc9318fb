//! A limit on requests per minute.

use std::sync::{Mutex, PoisonError};

use crate::clock::Clock;

/// Hands out moments that are evenly apart.
pub(crate) struct RateLimit {
    interval_s: f64,
    next_s: Mutex<f64>,
}

impl RateLimit {
    pub(crate) fn per_minute(n: f64) -> RateLimit {
        RateLimit { interval_s: 60.0 / n, next_s: Mutex::new(f64::NEG_INFINITY) }
    }

    /// Waits for this caller's turn.
    pub(crate) fn wait(&self, clock: &dyn Clock) {
        let now = clock.elapsed_s();
        let turn = {
            let mut next = self.next_s.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = next.max(now);
            *next = turn + self.interval_s;
            turn
        };
        if turn > now {
            clock.sleep(turn - now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn requests_are_spread_over_the_minute() {
        let clock = ManualClock::at_unix(0.0);
        let limit = RateLimit::per_minute(30.0);
        for _ in 0..4 {
            limit.wait(&clock);
        }
        assert_eq!(clock.sleeps(), [2.0, 2.0, 2.0]);
        clock.sleep(100.0);
        limit.wait(&clock);
        assert_eq!(clock.sleeps().len(), 4, "unused time is no debt, and no credit");
    }
}
