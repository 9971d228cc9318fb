//! `strftime_now`: the date that some chat templates write into the system prompt.
//!
//! The moment is a value, not the clock, so that a run resumed tomorrow renders the same bytes.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const SECONDS_PER_DAY: i64 = 86_400;

/// A moment in UTC, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment(pub i64);

impl Moment {
    /// The machine's clock, now.
    pub fn now() -> Self {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX))
    }

    /// The moment of a date and time of the proleptic Gregorian calendar, in UTC.
    pub fn from_civil(year: i64, month: u32, day: u32, hour: u32, minute: u32, second: u32) -> Self {
        let time = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
        Self(days_from_civil(year, month, day) * SECONDS_PER_DAY + time)
    }

    /// Python's `strftime` in the C locale; directives it does not know are written unchanged.
    pub fn strftime(self, format: &str) -> String {
        let civil = Civil::of(self);
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match chars.next() {
                // glibc's "no padding" flag.
                Some('-') => match chars.next() {
                    Some(directive) => out.push_str(unpadded(&civil.directive(directive))),
                    None => out.push_str("%-"),
                },
                Some(directive) => out.push_str(&civil.directive(directive)),
                None => out.push('%'),
            }
        }
        out
    }
}

struct Civil {
    year: i64,
    month: u32,
    day: u32,
    hour: i64,
    minute: i64,
    second: i64,
    weekday: usize,
    day_of_year: i64,
}

impl Civil {
    fn of(moment: Moment) -> Self {
        let days = moment.0.div_euclid(SECONDS_PER_DAY);
        let time = moment.0.rem_euclid(SECONDS_PER_DAY);
        let (year, month, day) = civil_from_days(days);
        Self {
            year,
            month,
            day,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
            // 1970-01-01 was a Thursday.
            weekday: usize::try_from((days + 3).rem_euclid(7)).expect("a remainder of 7 fits"),
            day_of_year: days - days_from_civil(year, 1, 1) + 1,
        }
    }

    fn directive(&self, directive: char) -> String {
        let month = MONTHS[self.month as usize - 1];
        let weekday = DAYS[self.weekday];
        let hour_12 = (self.hour + 11) % 12 + 1;
        match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'u' => (self.weekday + 1).to_string(),
            'w' => ((self.weekday + 1) % 7).to_string(),
            'j' => format!("{:03}", self.day_of_year),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{hour_12:02}"),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'f' => "000000".to_owned(),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' | 'X' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'R' => format!("{:02}:{:02}", self.hour, self.minute),
            'D' | 'x' => format!("{:02}/{:02}/{:02}", self.month, self.day, self.year.rem_euclid(100)),
            // A naive datetime has no zone, as in Python.
            'z' | 'Z' => String::new(),
            '%' => "%".to_owned(),
            other => format!("%{other}"),
        }
    }
}

fn unpadded(text: &str) -> &str {
    let trimmed = text.trim_start_matches(['0', ' ']);
    if trimmed.is_empty() && !text.is_empty() { &text[text.len() - 1..] } else { trimmed }
}

/// Days since 1970-01-01 of a civil date (the well-known era algorithm: 400 years are 146,097 days,
/// and a year that starts in March puts the leap day last).
fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = i64::from((month + 9) % 12);
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, u32::try_from(month).expect("a month fits"), u32::try_from(day).expect("a day fits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_python_writes_them() {
        let friday = Moment::from_civil(2024, 7, 26, 12, 0, 0);
        let leap_day = Moment::from_civil(2000, 2, 29, 0, 5, 9);
        let before_1970 = Moment::from_civil(1969, 12, 31, 23, 59, 59);
        let cases = [
            (friday, "%d %B %Y", "26 July 2024"),
            (friday, "%A, %b %-d, %H:%M:%S %p %I", "Friday, Jul 26, 12:00:00 PM 12"),
            (leap_day, "%Y-%m-%d %j %e %-H %-M", "2000-02-29 060 29 0 5"),
            (before_1970, "%F %T %a %%", "1969-12-31 23:59:59 Wed %"),
        ];
        for (moment, format, expected) in cases {
            assert_eq!(moment.strftime(format), expected);
        }
        assert_eq!(before_1970.0, -1);
    }
}
