//! Secrets: keys of common services, private keys, passwords in addresses, tokens that are too random for anything else.
//!
//! Keys of services are known by the prefix and length that their makers gave them to be found by. A *token* is a run of 32 to
//! 200 letters, digits, `+/_-` with upper case, lower case and digits at three places or more, and a Shannon entropy of its characters of at
//! least 4.3 bits (a random base-64 string of 40 has 4.8, English words joined about 3.9); hashes in hexadecimal, UUIDs and
//! data in longer base-64 are not secrets by their looks. An *assignment* is a value of at least 12 characters and 3 bits
//! given to a name such as `api_key`, `secret`, `password` or `token`.

use std::sync::LazyLock;

use pt_core::catalogue::OptionInfo;
use regex::Regex;

use super::redaction::{Find, Kind, Redaction, matches, options, regex};
use crate::catalogue::{CuratorInfo, parse};

const NAME: &str = "secrets";
const OPTIONS: [OptionInfo; 3] = options(
    "list of \"private_key\", \"vendor_key\", \"jwt\", \"url_password\", \"assignment\", \"token\"",
    r#"["private_key", "vendor_key", "jwt", "url_password", "assignment", "token"]"#,
);

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "privacy",
    summary: "redacts or drops API keys, private keys, passwords in addresses and random tokens",
    options: &OPTIONS,
    build: |options, _| Ok(Box::new(Redaction::new(NAME, "secrets", KINDS, parse(NAME, options)?)?)),
};

/// What is looked for; of overlapping finds the first kind wins.
pub(crate) const KINDS: &[Kind] = &[
    Kind {
        name: "private_key",
        find: |text, finds| matches(&PRIVATE_KEY, "private_key", text, finds, |_| true),
    },
    Kind {
        name: "vendor_key",
        find: |text, finds| matches(&VENDOR_KEY, "vendor_key", text, finds, |_| true),
    },
    Kind { name: "jwt", find: |text, finds| matches(&JWT, "jwt", text, finds, |_| true) },
    Kind { name: "url_password", find: url_passwords },
    Kind { name: "assignment", find: assignments },
    Kind { name: "token", find: tokens },
];

static PRIVATE_KEY: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?s:.){0,10000}?(?:-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|\z)",
    )
});
/// AWS, GitHub, GitLab, Slack, Stripe, OpenAI, Anthropic, Google, Hugging Face, npm, PyPI, SendGrid, DigitalOcean, Shopify, Telegram.
static VENDOR_KEY: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"\b(?:(?:AKIA|ASIA)[A-Z2-7]{16}|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{60,255}|glpat-[A-Za-z0-9_-]{20,64}|xox[abeoprs]-[A-Za-z0-9-]{10,250}|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,247}|sk-ant-[A-Za-z0-9_-]{20,200}|sk-(?:proj-|svcacct-)?[A-Za-z0-9_-]*[A-Za-z0-9]{20}[A-Za-z0-9_-]{0,150}|AIza[A-Za-z0-9_-]{35}|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,250}|SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}|do[opr]_v1_[a-f0-9]{64}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|\d{8,10}:AA[A-Za-z0-9_-]{33})",
    )
});
static JWT: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"\beyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000}")
});
static URL_PASSWORD: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"\b[a-z][a-z0-9+]{1,15}://[^\s/:@'\x22<>]{1,64}:([^\s/@'\x22<>]{3,128})@[^\s/'\x22<>]+")
});
static ASSIGNMENT: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"(?i)\b(?:[a-z0-9]+[_-])*(?:api[_-]?key|secret(?:[_-]?key)?|access[_-]?token|auth[_-]?token|token|passwd|password|pwd)[\x22']?\s*(?:=|:|=>)\s*[\x22']([^\s\x22']{12,200})[\x22']",
    )
});
static TOKEN: LazyLock<Regex> = LazyLock::new(|| regex(r"[A-Za-z0-9+/_-]{32,}={0,2}"));

fn url_passwords(text: &str, finds: &mut Vec<Find>) {
    if text.contains("://") {
        // `user:password@host` in documentation is nobody's.
        let is_placeholder = |word: &str| {
            let plain =
                word.trim_matches(|c| matches!(c, '<' | '>' | '{' | '}' | '$' | '*')).to_ascii_lowercase();
            matches!(plain.as_str(), "password" | "pass" | "pwd" | "passwd" | "secret" | "")
        };
        let found = URL_PASSWORD.captures_iter(text).filter_map(|found| found.get(1));
        let real = found.filter(|password| !is_placeholder(password.as_str()));
        finds.extend(real.map(|found| Find { kind: "url_password", start: found.start(), end: found.end() }));
    }
}

fn assignments(text: &str, finds: &mut Vec<Find>) {
    let found = ASSIGNMENT.captures_iter(text).filter_map(|found| found.get(1));
    let is_secret = |value: &str| {
        entropy(value) >= 3.0
            && value.bytes().any(|byte| byte.is_ascii_digit())
            && value.bytes().any(|byte| byte.is_ascii_alphabetic())
    };
    let real = found.filter(|value| is_secret(value.as_str()));
    finds.extend(real.map(|found| Find { kind: "assignment", start: found.start(), end: found.end() }));
}

fn tokens(text: &str, finds: &mut Vec<Find>) {
    matches(&TOKEN, "token", text, finds, |found| {
        let count = |is: fn(&u8) -> bool| found.bytes().filter(is).count();
        // Paths and identifiers have separators between words; a secret has few.
        let n_separators = count(|byte| matches!(byte, b'/' | b'_' | b'-'));
        let n_digit_groups =
            found.split(|c: char| !c.is_ascii_digit()).filter(|group| !group.is_empty()).count();
        found.len() <= 200
            // An identifier has its digits at one place.
            && n_digit_groups >= 3
            && count(u8::is_ascii_uppercase) >= 3
            && count(u8::is_ascii_lowercase) >= 3
            && count(u8::is_ascii_digit) >= 3
            && n_separators * 10 <= found.len()
            && entropy(found) >= 4.3
    });
}

/// Shannon entropy of the characters, in bits.
fn entropy(text: &str) -> f64 {
    let mut counts = [0u32; 256];
    text.bytes().for_each(|byte| counts[usize::from(byte)] += 1);
    let n = text.len() as f64;
    counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count) / n).map(|p| -p * p.log2()).sum()
}

#[cfg(test)]
mod tests {
    use pt_core::rng::Stream;

    use super::*;
    use crate::testing::{Harness, text};

    /// A made-up secret, put together here so that nothing in this file looks like one.
    fn random(n: usize, alphabet: &[u8]) -> String {
        let mut draws = Stream::new(n as u64, "secret").at(0);
        (0..n).map(|_| char::from(*draws.pick(alphabet))).collect()
    }

    const BASE62: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

    #[test]
    fn secrets_are_found_by_kind() {
        let upper = random(16, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567");
        let begin = ["-----BEGIN RSA PRIVATE", " KEY-----"].concat();
        let end = ["-----END RSA PRIVATE", " KEY-----"].concat();
        let cases = [
            (format!("AK{}{upper}", "IA"), "vendor_key"),
            (format!("gh{}{}", "p_", random(36, BASE62)), "vendor_key"),
            (format!("sk{}{}", "-proj-", random(48, BASE62)), "vendor_key"),
            (format!("hf{}{}", "_", random(34, BASE62)), "vendor_key"),
            (format!("AI{}{}", "za", random(35, BASE62)), "vendor_key"),
            (format!("{begin}\n{}\n{end}", random(64, BASE62)), "private_key"),
            (format!("ey{0}{1}.ey{0}{1}.{1}", "J", random(30, BASE62)), "jwt"),
            (format!("postgres://app:{}@db.corp.io/x", random(12, BASE62)), "url_password"),
            (format!("API_KEY = \"{}\"", random(20, BASE62)), "assignment"),
            (format!("use {} now", random(44, BASE62)), "token"),
        ];
        for (secret, kind) in cases {
            let outcome = Harness::new(NAME, "").run(&[text(&format!("see {secret} here"))]);
            assert_eq!(outcome.details(), [format!("{kind} 1")], "{secret}");
            let changed = outcome.changed(0)["text"].as_str().unwrap().to_owned();
            assert!(
                changed.contains(&format!("[{}]", kind.to_uppercase())) && changed.ends_with("here"),
                "{changed}"
            );
        }
    }

    #[test]
    fn what_only_looks_long_is_left_alone() {
        let cases = [
            "commit 9fceb02d0ae598e95dc970b74767f19372d61af8",
            "550e8400-e29b-41d4-a716-446655440000",
            "https://github.com/rust-lang/rust/blob/master/compiler/Rustc12/src345/Lib678.rs",
            "thisIsAVeryLongIdentifierNameThatSomebodyWroteInJava123",
            "postgres://user:password@localhost/db",
            "password: \"correct horse\"",
            "token = \"<your token here>\"",
            "https://en.wikipedia.org/wiki/Raymond_III,_Count_of_Tripoli",
        ];
        for case in cases {
            assert_eq!(Harness::new(NAME, "").run(&[text(case)]).details(), Vec::<&str>::new(), "{case}");
        }
    }

    #[test]
    fn public_sets_have_none() {
        let Some(data) = pt_core::testdata::shared_data() else { return };
        for path in [
            "gsm8k/train.jsonl.gz",
            "mbpp/mbpp.jsonl",
            "ifeval/input_data.jsonl",
            "self-instruct/seed_tasks.jsonl",
        ] {
            let rows =
                pt_data::read::read_all(&data.join(path).display().to_string(), &Default::default()).unwrap();
            let rows: Vec<_> = rows.into_iter().map(|row| row.value.into()).collect();
            let outcome = Harness::new(NAME, "").run(&rows);
            assert_eq!(outcome.details(), Vec::<&str>::new(), "{path}");
        }
    }
}
