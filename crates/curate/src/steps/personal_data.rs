//! Personal data: e-mail addresses, telephone numbers, IBANs, payment cards, public IP addresses.
//!
//! Numbers must prove themselves: IBANs by their country's length and the checksum modulo 97 (ISO 13616), cards by issuer,
//! length and the Luhn checksum (ISO/IEC 7812-1), IP addresses by being public ones. Telephone numbers have a form only: `+` and
//! country code, or the North American three groups with separators; numbers without either are left alone, since
//! most of them are no telephone numbers. Addresses at the domains reserved for examples (RFC 2606) are nobody's. Names
//! and postal addresses are not found: that needs a model.
//!
//! All texts of all columns are searched. Examples in the card are shown without what was found.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use pt_core::catalogue::OptionInfo;
use regex::Regex;

use super::redaction::{Find, Kind, Redaction, matches, options, regex};
use crate::catalogue::{CuratorInfo, parse};

const NAME: &str = "personal_data";
const OPTIONS: [OptionInfo; 3] = options(
    "list of \"email\", \"iban\", \"card\", \"ip\", \"phone\"",
    r#"["email", "iban", "card", "ip", "phone"]"#,
);

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "privacy",
    summary: "redacts or drops e-mail addresses, telephone numbers, IBANs, payment cards and IP addresses",
    options: &OPTIONS,
    build: |options, _| Ok(Box::new(Redaction::new(NAME, "personal data", KINDS, parse(NAME, options)?)?)),
};

/// What is looked for; of overlapping finds the first kind wins.
pub(crate) const KINDS: &[Kind] = &[
    Kind { name: "email", find: emails },
    Kind { name: "iban", find: ibans },
    Kind { name: "card", find: cards },
    Kind { name: "ip", find: ips },
    Kind { name: "phone", find: phones },
];

static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"(?i)\b[a-z0-9][a-z0-9._%+-]{0,63}@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,8}[a-z]{2,24}\b")
});
static IBAN: LazyLock<Regex> =
    LazyLock::new(|| regex(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"));
static CARD: LazyLock<Regex> = LazyLock::new(|| regex(r"\b[2-6]\d{3}(?:[ -]?\d){9,15}\b"));
static IP4: LazyLock<Regex> = LazyLock::new(|| regex(r"\b\d{1,3}(?:\.\d{1,3}){3}\b"));
static IP6: LazyLock<Regex> = LazyLock::new(|| regex(r"(?i)\b[0-9a-f]{1,4}(?::{1,2}[0-9a-f]{1,4}){3,7}\b"));
static PHONE: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,11}\b|\(\d{3}\) ?\d{3}[ .-]\d{4}\b|\b\d{3}[.-]\d{3}[.-]\d{4}\b",
    )
});

fn emails(text: &str, finds: &mut Vec<Find>) {
    if text.contains('@') {
        let is_example = |found: &str| {
            let domain = found.rsplit_once('@').map_or("", |(_, domain)| domain).to_ascii_lowercase();
            ["example.com", "example.org", "example.net"]
                .iter()
                .any(|e| domain == *e || domain.ends_with(&format!(".{e}")))
                || domain.ends_with(".example")
                || domain.ends_with(".test")
                || domain.ends_with(".invalid")
        };
        matches(&EMAIL, "email", text, finds, |found| !is_example(found));
    }
}

/// Country and length of its IBANs (ISO 13616 registry).
const IBAN_LENGTHS: &[(&str, usize)] = &[
    ("AD", 24),
    ("AE", 23),
    ("AL", 28),
    ("AT", 20),
    ("AZ", 28),
    ("BA", 20),
    ("BE", 16),
    ("BG", 22),
    ("BH", 22),
    ("BR", 29),
    ("CH", 21),
    ("CR", 22),
    ("CY", 28),
    ("CZ", 24),
    ("DE", 22),
    ("DK", 18),
    ("DO", 28),
    ("EE", 20),
    ("EG", 29),
    ("ES", 24),
    ("FI", 18),
    ("FO", 18),
    ("FR", 27),
    ("GB", 22),
    ("GE", 22),
    ("GI", 23),
    ("GL", 18),
    ("GR", 27),
    ("GT", 28),
    ("HR", 21),
    ("HU", 28),
    ("IE", 22),
    ("IL", 23),
    ("IS", 26),
    ("IT", 27),
    ("JO", 30),
    ("KW", 30),
    ("KZ", 20),
    ("LB", 28),
    ("LI", 21),
    ("LT", 20),
    ("LU", 20),
    ("LV", 21),
    ("MC", 27),
    ("MD", 24),
    ("ME", 22),
    ("MK", 19),
    ("MT", 31),
    ("MU", 30),
    ("NL", 18),
    ("NO", 15),
    ("PK", 24),
    ("PL", 28),
    ("PS", 29),
    ("PT", 25),
    ("QA", 29),
    ("RO", 24),
    ("RS", 22),
    ("SA", 24),
    ("SE", 24),
    ("SI", 19),
    ("SK", 24),
    ("SM", 27),
    ("TN", 24),
    ("TR", 26),
    ("UA", 29),
    ("VG", 24),
    ("XK", 20),
];

fn ibans(text: &str, finds: &mut Vec<Find>) {
    for found in IBAN.find_iter(text) {
        // The pattern may have taken words after the number; the country says where it ends.
        let Some((_, length)) = IBAN_LENGTHS.iter().find(|(country, _)| found.as_str().starts_with(country))
        else {
            continue;
        };
        let mut characters = found.as_str().char_indices().filter(|(_, c)| *c != ' ');
        let Some((last, _)) = characters.nth(length - 1) else { continue };
        let end = last + 1;
        let is_whole = !found.as_str()[end..].starts_with(|c: char| c.is_ascii_alphanumeric());
        if is_whole && has_iban_checksum(&found.as_str()[..end]) {
            finds.push(Find { kind: "iban", start: found.start(), end: found.start() + end });
        }
    }
}

/// The number read with its first four characters moved to the end and letters as 10 to 35 is 1 modulo 97.
fn has_iban_checksum(text: &str) -> bool {
    let plain: Vec<char> = text.chars().filter(|c| *c != ' ').collect();
    let rotated = plain[4..].iter().chain(&plain[..4]);
    let remainder = rotated.fold(0u32, |remainder, c| match c.to_digit(36).unwrap_or(0) {
        digit @ 0..=9 => (remainder * 10 + digit) % 97,
        letter => (remainder * 100 + letter) % 97,
    });
    remainder == 1
}

fn cards(text: &str, finds: &mut Vec<Find>) {
    matches(&CARD, "card", text, finds, |found| {
        let digits: Vec<u32> = found.chars().filter_map(|c| c.to_digit(10)).collect();
        has_issuer(&digits) && has_luhn_checksum(&digits)
    });
}

fn has_issuer(digits: &[u32]) -> bool {
    let prefix = |n: usize| digits[..n].iter().fold(0, |value, digit| value * 10 + digit);
    match digits.len() {
        13 | 19 if prefix(1) == 4 => true,
        15 => matches!(prefix(2), 34 | 37),
        14 => matches!(prefix(2), 36 | 38 | 39),
        16 => {
            prefix(1) == 4
                || (51..=55).contains(&prefix(2))
                || (2221..=2720).contains(&prefix(4))
                || prefix(4) == 6011
                || prefix(2) == 65
                || (3528..=3589).contains(&prefix(4))
        }
        _ => false,
    }
}

fn has_luhn_checksum(digits: &[u32]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, digit)| match i % 2 {
            0 => *digit,
            _ if *digit > 4 => 2 * digit - 9,
            _ => 2 * digit,
        })
        .sum();
    sum.is_multiple_of(10)
}

fn ips(text: &str, finds: &mut Vec<Find>) {
    for found in IP4.find_iter(text) {
        let before = &text[..found.start()];
        let is_version =
            before.ends_with(['v', 'V', '.']) || before.trim_end().to_ascii_lowercase().ends_with("version");
        let is_longer = text[found.end()..].starts_with('.')
            && text[found.end() + 1..].starts_with(|c: char| c.is_ascii_digit());
        if !is_version && !is_longer && found.as_str().parse().is_ok_and(is_public4) {
            finds.push(Find { kind: "ip", start: found.start(), end: found.end() });
        }
    }
    matches(&IP6, "ip", text, finds, |found| found.parse().is_ok_and(is_public6));
}

fn is_public4(ip: Ipv4Addr) -> bool {
    // 0.x and 1.x.y.z are versions and section numbers more often than addresses.
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_broadcast()
        || ip.is_documentation()
        || ip.is_multicast()
        || ip.octets()[0] < 2
        || ip.octets()[0] >= 240)
}

fn is_public6(ip: Ipv6Addr) -> bool {
    // 2000::/3 is what is given out; 2001:db8::/32 is for documentation.
    (ip.segments()[0] & 0xe000) == 0x2000 && ip.segments()[..2] != [0x2001, 0xdb8]
}

fn phones(text: &str, finds: &mut Vec<Find>) {
    // A number that goes on to the left or right, as in 2.555-123-4567, is something else.
    for found in PHONE.find_iter(text) {
        let before = text[..found.start()].chars().next_back();
        let after = text[found.end()..].chars().next();
        let joins =
            |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || matches!(c, '-' | '/' | '=' | '+'));
        let sum = found.as_str().starts_with('+') && before.is_some_and(|c| c.is_ascii_digit() || c == ')');
        if !joins(before) && !joins(after) && !sum {
            finds.push(Find { kind: "phone", start: found.start(), end: found.end() });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Harness, text};

    #[test]
    fn what_proves_itself_is_found_and_what_looks_like_it_is_not() {
        let cases: &[(&str, &[&str])] = &[
            ("write to jane.doe+x@mail.co.uk.", &["jane.doe+x@mail.co.uk"]),
            ("write to user@example.com or a@b", &[]),
            ("DE89 3704 0044 0532 0130 00 please", &["DE89 3704 0044 0532 0130 00"]),
            ("GB82WEST12345698765432", &["GB82WEST12345698765432"]),
            ("DE88 3704 0044 0532 0130 00 is wrong", &[]),
            ("card 4111 1111 1111 1111 exp", &["4111 1111 1111 1111"]),
            ("card 5555-5555-5555-4444", &["5555-5555-5555-4444"]),
            ("3782 822463 10005", &["3782 822463 10005"]),
            ("4111 1111 1111 1112 and 1234567812345670", &[]),
            ("from 8.8.8.8 and 192.168.1.1, 127.0.0.1", &["8.8.8.8"]),
            ("version 10.2.3.4, v8.8.8.8, 300.1.1.1, 8.8.8.8.8", &[]),
            ("2606:4700:4700:0:0:0:0:1111 at 12:30:45", &["2606:4700:4700:0:0:0:0:1111"]),
            ("call +44 20 7946 0958 or (555) 123-4567", &["+44 20 7946 0958", "(555) 123-4567"]),
            ("555-867-5309", &["555-867-5309"]),
            ("5 + 12345678901 = x, 3+14159265358, 2024-01-02, 1,234,567,890", &[]),
        ];
        for (sample, expected) in cases {
            let mut finds = Vec::new();
            KINDS.iter().for_each(|kind| (kind.find)(sample, &mut finds));
            let found: Vec<&str> = finds.iter().map(|find| &sample[find.start..find.end]).collect();
            assert_eq!(found, *expected, "{sample}");
        }
    }

    #[test]
    fn finds_are_redacted_dropped_or_flagged_in_every_column() {
        let rows = [
            text("nothing"),
            json!({"messages": [{"role": "user", "content": "I am bob@corp.io"}, {"role": "assistant", "content": "Hi, bob@corp.io, call +44 20 7946 0958"}]}),
        ];
        let outcome = Harness::new(NAME, "").run(&rows);
        assert_eq!(outcome.details(), ["email 2, phone 1"]);
        assert_eq!(outcome.changed(1)["messages"][1]["content"], "Hi, [EMAIL], call [PHONE]");
        assert_eq!(Harness::new(NAME, "action = \"drop\"").run(&rows).kept, [0]);
        assert_eq!(Harness::new(NAME, "action = \"flag\"").run(&rows).reason(1), Some("personal data"));
        assert_eq!(Harness::new(NAME, "kinds = [\"phone\"]").run(&rows).details(), ["phone 1"]);
        assert_eq!(Harness::new(NAME, "allow = [\"@corp.io\"]").run(&rows).details(), ["phone 1"]);
        assert!(Harness::refusal(NAME, "kinds = [\"mail\"]").contains("did you mean `email`"));
    }

    #[test]
    fn mathematics_and_stories_have_none() {
        let Some(data) = pt_core::testdata::shared_data() else { return };
        for (path, most) in [
            ("gsm8k/train.jsonl.gz", 2),
            ("tinystories/tinystories_sample.txt.gz", 0),
            ("mbpp/mbpp.jsonl", 25),
        ] {
            let rows =
                pt_data::read::read_all(&data.join(path).display().to_string(), &Default::default()).unwrap();
            let rows: Vec<_> = rows.into_iter().map(|row| row.value.into()).collect();
            let outcome = Harness::new(NAME, "").run(&rows);
            assert!(outcome.details().len() <= most, "{path}: {:?}", outcome.details());
        }
    }
}
