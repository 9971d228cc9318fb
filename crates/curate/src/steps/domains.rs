//! What rows are about: maths, code, chat, instruction following, other.
//!
//! The first rule that holds decides:
//!
//! 1. **code**: a column `code`, `test_list`, `tests` or `test_cases`; a fenced block; or at least two lines that look like
//!    a program's (`def f(`, `import x`, `#include`, `function f(`, `class X`, `public static`, `SELECT ... FROM`, `return ...;`).
//! 2. **maths**: `####`, `\boxed`, a calculator mark `<<a=b>>`, LaTeX (`\frac`, `\sqrt`, `$x^2$`); or a question for a number
//!    (how many, how much, what is the value, calculate, solve, find ...) with a digit in it; or at least one
//!    equation of numbers in the reply to a prompt with digits.
//! 3. **instruction_following**: at least two kinds of constraints on form in the instruction.
//! 4. **chat**: there is a prompt.
//! 5. The names of the file and of a `dataset` or `source` column: `gsm`, `math`, `mawps`, `aqua` mean maths; `code`, `mbpp`,
//!    `humaneval`, `apps` code; `ifeval` instruction following.
//! 6. **other**: plain text.
//!
//! Where it matters, give `domain` with the input: it is believed. Kinds with fewer than `min_share` of the rows are
//! warned about.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use pt_core::catalogue::OptionInfo;
use pt_data::Columns;
use regex::Regex;
use serde::Deserialize;

use super::arithmetic::equations;
use super::constraints::constraints_of;
use crate::catalogue::{CuratorInfo, parse};
use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::Summary;
use crate::step::Step;

const NAME: &str = "domains";

/// The names of the domains.
pub const DOMAINS: &[&str] = &["maths", "code", "chat", "instruction_following", "other"];

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "diversity",
    summary: "counts maths, code, chat, instruction following and other, and warns of kinds that are rare",
    options: &[
        OptionInfo {
            name: "min_share",
            kind: "number, 0 to 1",
            default: "0.02",
            doc: "below this share a kind is warned about",
        },
        OptionInfo {
            name: "expected",
            kind: "list of domains",
            default: "[\"maths\", \"code\", \"chat\", \"instruction_following\"]",
            doc: "the kinds that should be there",
        },
        OptionInfo {
            name: "only",
            kind: "list of domains",
            default: "[]",
            doc: "if not empty, other kinds are dropped",
        },
    ],
    build: |options, _| Ok(Box::new(Domains::new(parse(NAME, options)?)?)),
};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    min_share: f64,
    expected: Vec<String>,
    only: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        let expected = DOMAINS[..4].iter().map(|name| (*name).to_owned()).collect();
        Options { min_share: 0.02, expected, only: Vec::new() }
    }
}

struct Domains {
    options: Options,
    counts: BTreeMap<&'static str, u64>,
}

impl Domains {
    fn new(options: Options) -> Result<Self, CurateError> {
        let named = options.expected.iter().chain(&options.only);
        if let Some(name) = named.into_iter().find(|name| !DOMAINS.contains(&name.as_str())) {
            let hint = pt_core::suggest::hint(name, DOMAINS);
            return Err(CurateError::option(NAME, format!("there is no domain `{name}`; {hint}")));
        }
        Ok(Domains { options, counts: BTreeMap::new() })
    }
}

fn regex(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is constant and right")
}

static CODE_LINE: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"(?m)^\s*(?:def \w+\(|(?:from [\w.]+ )?import [\w.{*]|#include\s*[<\x22]|(?:async )?function\s*\w*\(|class \w+\s*[:({]|public (?:static|class|void)|SELECT\s.+\sFROM\s|(?:let|const|var) \w+\s*=|fn \w+\(|return [^.\n]*;|(?:for|while|if)\s*\(.*\)\s*\{|print\(|console\.log\()",
    )
});
static MATHS: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"(?m)^#### |\\boxed|<<[^<>]+=[^<>]+>>|\\(?:d?frac|sqrt|sum|int|cdot|times|left\()\b|\$[^$\n]*[\^=+\\][^$\n]*\$",
    )
});
static ASKS_NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"(?i)\bhow (?:many|much|far|long|old|tall|fast)\b|\bwhat (?:is|was|will be|are) the (?:\w+ ){0,2}(?:value|sum|product|difference|total|number|probability|area|perimeter|volume|average|mean|percentage|remainder|ratio|cost|price|profit)\b|\b(?:calculate|compute|evaluate|solve for|simplify)\b|\bfind the (?:\w+ ){0,2}(?:value|sum|number|product|area)\b|\bwhat is -?\d",
    )
});

/// The domain of a row by what it holds.
pub(crate) fn domain_of(item: &Item) -> &'static str {
    let view = &item.view;
    let texts = [&view.prompt, &view.reply];
    let has_column = |name: &&str| item.row.value.get(*name).is_some_and(|value| !value.is_null());
    if ["code", "test_list", "tests", "test_cases"].iter().any(has_column)
        || texts.iter().any(|text| text.contains("```"))
        || texts.iter().any(|text| CODE_LINE.find_iter(text).nth(1).is_some())
    {
        return "code";
    }
    let has_digit = |text: &str| text.bytes().any(|byte| byte.is_ascii_digit());
    let is_maths = texts.iter().any(|text| MATHS.is_match(text))
        || (has_digit(&view.instruction) && ASKS_NUMBER.is_match(&view.instruction))
        || (has_digit(&view.instruction) && !equations(&view.reply).is_empty());
    if is_maths {
        return "maths";
    }
    if !view.prompt.is_empty() && constraints_of(&view.instruction).len() >= 2 {
        return "instruction_following";
    }
    match by_name(item) {
        Some(domain) => domain,
        None if view.prompt.is_empty() => "other",
        None => "chat",
    }
}

fn by_name(item: &Item) -> Option<&'static str> {
    let file =
        item.row.origin.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let column =
        |name: &str| item.row.value.get(name).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    let names = [file, column("dataset"), column("source")].join(" ").to_lowercase();
    let hints: [(&'static str, &[&str]); 3] = [
        ("maths", &["gsm", "math", "mawps", "aqua"]),
        ("code", &["code", "mbpp", "humaneval", "apps"]),
        ("instruction_following", &["ifeval"]),
    ];
    hints
        .into_iter()
        .find(|(_, parts)| parts.iter().any(|part| names.contains(part)))
        .map(|(domain, _)| domain)
}

impl Step for Domains {
    type Seen = &'static str;

    fn see(&self, item: &Item) -> Result<&'static str, CurateError> {
        Ok(domain_of(item))
    }

    fn decide(&mut self, _item: &Item, domain: &'static str) -> Decision {
        if !self.options.only.is_empty() && !self.options.only.iter().any(|only| only == domain) {
            return Decision::drop("another kind", format!("it is `{domain}`"));
        }
        *self.counts.entry(domain).or_default() += 1;
        Decision::Note(Columns::from_iter([("domain".to_owned(), domain.into())]))
    }

    fn summary(&self) -> Summary {
        let n: u64 = self.counts.values().sum();
        let mut summary = Summary::default();
        for domain in DOMAINS {
            let count = self.counts.get(domain).copied().unwrap_or(0);
            let share = count as f64 / n.max(1) as f64;
            summary.facts.insert((*domain).to_owned(), count.into());
            summary.lines.push(format!("{domain}: {count} ({:.1} %)", 100.0 * share));
            let expected = self.options.expected.iter().any(|expected| expected == domain);
            let wanted = self.options.only.is_empty() || self.options.only.iter().any(|only| only == domain);
            if expected && wanted && n > 0 && share < self.options.min_share {
                let least = 100.0 * self.options.min_share;
                summary.warnings.push(format!(
                    "`{domain}` is under-represented: {count} of {n} rows ({:.2} %), expected at least {least} %",
                    100.0 * share
                ));
            }
        }
        summary
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Harness, item, prompt, text};

    #[test]
    fn rows_have_their_domain() {
        let cases = [
            (prompt("Write a loop", "```python\nfor i in x: pass\n```"), "code"),
            (json!({"text": "Add two numbers", "code": "x", "test_list": []}), "code"),
            (prompt("Tom has 3 pens and buys 2. How many has he?", "5"), "maths"),
            (prompt("q", "so \\boxed{4}"), "maths"),
            (prompt("Write 3 paragraphs in all lowercase about cats", "cats"), "instruction_following"),
            (prompt("What is the capital of France?", "Paris"), "chat"),
            (prompt("Who won in 1998? I paid $5 and $6.", "France"), "chat"),
            (text("Once upon a time there was 1 dog."), "other"),
        ];
        for (row, expected) in cases {
            assert_eq!(domain_of(&item(0, &row)), expected, "{row}");
        }
    }

    #[test]
    fn rare_kinds_are_warned_about() {
        let rows = vec![prompt("hello", "hi"); 5];
        let outcome = Harness::new(NAME, "").run(&rows);
        assert_eq!(outcome.summary.warnings.len(), 3, "{:?}", outcome.summary.warnings);
        assert!(outcome.summary.warnings[0].contains("`maths` is under-represented: 0 of 5"));
        assert_eq!(Harness::new(NAME, "only = [\"maths\"]").run(&rows).kept, Vec::<usize>::new());
        assert!(Harness::refusal(NAME, "only = [\"math\"]").contains("did you mean `maths`"));
    }

    #[test]
    fn real_sets_are_mostly_what_they_are() {
        let Some(data) = pt_core::testdata::shared_data() else { return };
        let check = |path: &str, domain: &str, least: f64| {
            let source = data.join(path).display().to_string();
            let items = crate::source::read_small(&source, &Default::default()).unwrap();
            // The file's name is not to help.
            let anonymous = |mut item: Item| {
                item.row.origin = pt_data::Origin::new("x", 1);
                item
            };
            let n = items.len();
            let right =
                items.into_iter().filter(|item| domain_of(&anonymous(item.clone())) == domain).count();
            let share = right as f64 / n as f64;
            assert!(share >= least, "{path}: {share:.3} are {domain}");
        };
        check("gsm8k/train.jsonl.gz", "maths", 0.99);
        check("mawps/singleop.jsonl", "maths", 0.85);
        check("math500/math.jsonl", "maths", 0.9);
        check("mbpp/mbpp.jsonl", "code", 0.99);
        check("ifeval/input_data.jsonl", "instruction_following", 0.6);
        check("hh-rlhf/harmless-base-test-first2000.jsonl.gz", "chat", 0.95);
        check("fastchat/dummy_conversation.json", "chat", 0.9);
    }
}
