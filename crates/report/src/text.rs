//! Numbers and words as people read them, and HTML that holds any text.

/// A space that does not break a line.
pub(crate) const NBSP: char = '\u{a0}';
/// A thin space between groups of digits, which does not break either.
const THIN: char = '\u{202f}';

/// Text for an element or a quoted attribute. Characters that HTML cannot hold become U+FFFD.
pub(crate) fn esc(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            // Control characters and the marks that reorder text: a sample must not rearrange the page.
            c if c.is_control()
                || ('\u{202a}'..='\u{202e}').contains(&c)
                || ('\u{2066}'..='\u{2069}').contains(&c) =>
            {
                out.push('\u{fffd}')
            }
            c => out.push(c),
        }
    }
    out
}

/// The first `n` characters, and how many were left away.
pub(crate) fn cut(text: &str, n: usize) -> (&str, usize) {
    match text.char_indices().nth(n) {
        Some((at, _)) => (&text[..at], text[at..].chars().count()),
        None => (text, 0),
    }
}

/// Three or four significant digits, without useless ones.
pub(crate) fn number(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "NaN".into()
        } else if x > 0.0 {
            "∞".into()
        } else {
            "−∞".into()
        };
    }
    let size = x.abs();
    let text = match size {
        0.0 => "0".to_owned(),
        _ if size >= 100_000.0 => return sign(x, &compact(size)),
        _ if size >= 1000.0 => return sign(x, &count(size.round() as u64)),
        _ if size >= 100.0 => format!("{size:.0}"),
        _ if size >= 10.0 => trim(format!("{size:.1}")),
        _ if size >= 1.0 => trim(format!("{size:.2}")),
        _ if size >= 0.001 => trim(format!("{:.*}", decimals(size), size)),
        _ => power(size),
    };
    sign(x, &text)
}

/// Decimals that show three significant digits of a number below one.
fn decimals(size: f64) -> usize {
    (2 - size.log10().floor() as i32).clamp(3, 6) as usize
}

fn power(size: f64) -> String {
    let text = format!("{size:.1e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let digits: String = exponent.chars().map(superscript).collect();
    format!("{}·10{digits}", mantissa.trim_end_matches(".0"))
}

fn superscript(c: char) -> char {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    c.to_digit(10).map_or('⁻', |digit| DIGITS[digit as usize])
}

fn trim(text: String) -> String {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn sign(x: f64, text: &str) -> String {
    if x < 0.0 && text != "0" { format!("−{text}") } else { text.to_owned() }
}

/// `2.11 M`.
pub(crate) fn compact(x: f64) -> String {
    for (size, unit) in [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")] {
        if x >= size {
            let x = x / size;
            let digits = if x >= 100.0 {
                0
            } else if x >= 10.0 {
                1
            } else {
                2
            };
            return format!("{}{NBSP}{unit}", trim(format!("{x:.digits$}")));
        }
    }
    trim(format!("{x:.0}"))
}

/// All digits, in groups.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) && digits.len() > 4 {
            out.push(THIN);
        }
        out.push(c);
    }
    out
}

/// A share as `17.2 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1}{NBSP}%", share * 100.0)
}

/// A difference of shares in points of a hundred, with its sign: `+16.8`.
pub(crate) fn points(difference: f64) -> String {
    let text = format!("{:.1}", (difference * 100.0).abs());
    match text == "0.0" {
        true => "0.0".to_owned(),
        false if difference < 0.0 => format!("−{text}"),
        false => format!("+{text}"),
    }
}

/// `p < 0.001`, `p = 0.02`.
pub(crate) fn p_value(p: f64) -> String {
    match p {
        p if p.is_nan() => "p unknown".to_owned(),
        p if p < 0.001 => format!("p{NBSP}<{NBSP}0.001"),
        p if p < 0.0995 => format!("p{NBSP}={NBSP}{}", trim(format!("{p:.3}"))),
        p => format!("p{NBSP}={NBSP}{p:.2}"),
    }
}

/// `190 MiB`.
pub(crate) fn bytes(n: f64) -> String {
    for (size, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        let x = n / (1u64 << size) as f64;
        if x >= 1.0 {
            let digits = if x >= 100.0 { 0 } else { 1 };
            return format!("{x:.digits$}{NBSP}{unit}");
        }
    }
    format!("{n:.0}{NBSP}B")
}

/// `3 min 46 s`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "unknown".to_owned();
    }
    if seconds < 10.0 {
        return format!("{seconds:.1}{NBSP}s");
    }
    let s = seconds.round() as u64;
    match (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, s) => format!("{s}{NBSP}s"),
        (0, 0, m, s) => format!("{m}{NBSP}min {s}{NBSP}s"),
        (0, h, m, _) => format!("{h}{NBSP}h {m}{NBSP}min"),
        (d, h, _, _) => format!("{d}{NBSP}d {h}{NBSP}h"),
    }
}

/// Seconds since 1970 of `2026-11-24T11:30:01.877Z`.
pub(crate) fn utc_seconds(time: &str) -> Option<f64> {
    let (date, clock) = time.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (y, m, d) = (date.next()??, date.next()??, date.next()??);
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<f64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if !(1..=12).contains(&m) || !(1..=31).contains(&d) || !(0..=9999).contains(&y) {
        return None;
    }
    // Howard Hinnant's days_from_civil: years begin in March, so that the leap day is the last.
    let y = if m <= 2 { y - 1 } else { y };
    let era = y.div_euclid(400);
    let year_of_era = y - era * 400;
    let day_of_year = (153 * ((m + 9) % 12) + 2) / 5 + d - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some(days as f64 * 86_400.0 + hour * 3600.0 + minute * 60.0 + second)
}

/// What a task is called in running text; its whole name stands in the table of details.
///
/// `generated:mix?families=sum@3-4:2,digits@1-3:1&n=400` is `sum, digits`.
pub(crate) fn short_task(task: &str) -> String {
    let Some(rest) = task.strip_prefix("generated:") else { return cut(task, 40).0.to_owned() };
    let (name, query) = rest.split_once('?').unwrap_or((rest, ""));
    let Some(families) = query.split('&').find_map(|pair| pair.strip_prefix("families=")) else {
        return name.to_owned();
    };
    let mut names: Vec<&str> = Vec::new();
    for family in families.split(',').filter_map(|family| family.split(['@', ':']).next()) {
        if !names.contains(&family) {
            names.push(family);
        }
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_sensible_digits() {
        let cases = [
            (0.0, "0"),
            (0.5084649, "0.508"),
            (0.05, "0.05"),
            (4.78136, "4.78"),
            (12.0, "12"),
            (-53.86, "−53.9"),
            (173.4, "173"),
            (2109460.0, "2.11\u{a0}M"),
            (1234.0, "1234"),
            (12345.0, "12\u{202f}345"),
            (2.9e-6, "2.9·10⁻⁶"),
            (1e-9, "1·10⁻⁹"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "−∞"),
        ];
        for (x, expected) in cases {
            assert_eq!(number(x), expected, "{x}");
        }
        assert_eq!(percent(0.1725), "17.2\u{a0}%");
        assert_eq!([points(0.1675), points(-0.015), points(0.0001)], ["+16.8", "−1.5", "0.0"]);
        assert_eq!(
            [p_value(2e-19), p_value(0.0123), p_value(0.453)],
            ["p\u{a0}<\u{a0}0.001", "p\u{a0}=\u{a0}0.012", "p\u{a0}=\u{a0}0.45"]
        );
        assert_eq!(
            [bytes(190_971_904.0), bytes(476_416.0), bytes(12.0)],
            ["182\u{a0}MiB", "465\u{a0}KiB", "12\u{a0}B"]
        );
        assert_eq!(
            [duration(2.17), duration(226.0), duration(7322.0)],
            ["2.2\u{a0}s", "3\u{a0}min 46\u{a0}s", "2\u{a0}h 2\u{a0}min"]
        );
    }

    #[test]
    fn html_is_escaped() {
        assert_eq!(
            esc("<b a='1' c=\"2\">&\u{0}\u{202e}é\n"),
            "&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;\u{fffd}\u{fffd}é\n"
        );
        assert_eq!(cut("äöü", 2), ("äö", 1));
        assert_eq!(cut("ab", 2), ("ab", 0));
    }

    #[test]
    fn times_are_seconds() {
        let cases = [
            ("1970-01-01T00:00:00Z", Some(0.0)),
            ("2000-03-01T00:00:00.5Z", Some(951_868_800.5)),
            ("2024-02-29T12:00:00Z", Some(1_709_208_000.0)),
            ("yesterday", None),
            ("2024-13-01T00:00:00Z", None),
            ("2024-1Z", None),
        ];
        for (text, expected) in cases {
            assert_eq!(utc_seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn tasks_have_short_names() {
        let cases = [
            (
                "generated:mix?families=sum@3-4:2,digits@1-3:1,letters@2-2:1,letters@4-4:1&n=400",
                "sum, digits, letters",
            ),
            ("generated:arithmetic?n=3", "arithmetic"),
            ("gsm8k", "gsm8k"),
        ];
        for (task, expected) in cases {
            assert_eq!(short_task(task), expected);
        }
    }
}
