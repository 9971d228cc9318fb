//! Time as something that is given, so that tests wait for nothing.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

/// Tells time and waits.
pub trait Clock: Send + Sync {
    /// Seconds since some fixed moment; never goes back.
    fn elapsed_s(&self) -> f64;
    /// Seconds since 1970-01-01 UTC.
    fn unix_s(&self) -> f64;
    /// Waits.
    fn sleep(&self, seconds: f64);
}

/// The machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn elapsed_s(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    fn unix_s(&self) -> f64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
    }

    fn sleep(&self, seconds: f64) {
        if seconds > 0.0 {
            std::thread::sleep(Duration::from_secs_f64(seconds));
        }
    }
}

/// A clock that moves only when somebody waits, and remembers each wait.
#[derive(Debug)]
pub struct ManualClock {
    unix_start_s: f64,
    sleeps: Mutex<Vec<f64>>,
}

impl ManualClock {
    /// A clock that stands at this moment.
    pub fn at_unix(unix_start_s: f64) -> ManualClock {
        ManualClock { unix_start_s, sleeps: Mutex::new(Vec::new()) }
    }

    /// All waits so far, in seconds.
    pub fn sleeps(&self) -> Vec<f64> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<f64>> {
        self.sleeps.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn elapsed_s(&self) -> f64 {
        self.lock().iter().sum()
    }

    fn unix_s(&self) -> f64 {
        self.unix_start_s + self.elapsed_s()
    }

    fn sleep(&self, seconds: f64) {
        self.lock().push(seconds);
    }
}

/// Unix seconds of an HTTP date (RFC 9110 section 5.6.7, the fixed form: `Sun, 06 Nov 1994 08:49:37 GMT`).
pub(crate) fn http_date_unix_s(text: &str) -> Option<f64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let (_, rest) = text.trim().split_once(", ")?;
    let parts: Vec<&str> = rest.split(' ').collect();
    let &[day, month, year, time, "GMT"] = parts.as_slice() else { return None };
    let day: i64 = day.parse().ok().filter(|d| (1..=31).contains(d))?;
    let month_at = (month.len() == 3).then(|| MONTHS.find(month)).flatten()?;
    let month = month_at as i64 / 3 + 1;
    let year: i64 = year.parse().ok().filter(|y| (1970..=9999).contains(y))?;
    let clock: Vec<i64> = time.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let &[hour, minute, second] = clock.as_slice() else { return None };
    // Days since 1970 (Howard Hinnant, "chrono-compatible low-level date algorithms", days_from_civil).
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted_year.div_euclid(400), shifted_year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some((days * 86_400 + hour * 3600 + minute * 60 + second) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_dates() {
        let cases = [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777.0)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0.0)),
            ("Thu, 29 Feb 2024 12:00:00 GMT", Some(1_709_208_000.0)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("Sun, 06 nJa 1994 08:49:37 GMT", None),
            ("soon", None),
        ];
        for (text, expected) in cases {
            assert_eq!(http_date_unix_s(text), expected, "{text}");
        }
    }
}
