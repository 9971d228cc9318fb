//! Multiple choice: which letter the reply settles on.
//!
//! In this order, after any `</think>`: the last `Answer: B`, `the answer is (B)`, `\boxed{B}` or `<answer>B</answer>`;
//! a first or last line that is `B`, `(B)` or starts with `B.`; the only letter in parentheses; the only choice whose
//! text occurs. A reply that names several letters at the place that counts is hedging and fails.

use std::sync::LazyLock;

use pt_core::catalogue::{OptionInfo, parse};
use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use crate::catalogue::{KIND, VerifierInfo};
use crate::text::{after_thinking, shortened};
use crate::{Question, Verdict, Verifier};

const NAME: &str = "multiple_choice";
/// Choices where the row does not say how many there are.
const DEFAULT_CHOICES: usize = 10;

/// The catalogue's entry.
pub(crate) const INFO: VerifierInfo = VerifierInfo {
    name: NAME,
    summary: "the reply settles on the right choice",
    reads: "the gold answer: a letter, a place counted from `first_place` (a number or its digits), or the text of a choice; the \
            choices' column",
    options: &[
        OptionInfo {
            name: "choices",
            kind: "text",
            default: "\"choices\"",
            doc: "the column with the texts of the choices: a list, or an object with a list `text`; may be absent",
        },
        OptionInfo {
            name: "first_place",
            kind: "integer",
            default: "0",
            doc: "the place of the first choice where the gold answer is a place: 0, or 1 as in ARC's `answerKey`",
        },
    ],
    examples: include_str!("multiple_choice.md"),
    build: |options| Ok(Box::new(parse::<MultipleChoice>(KIND, NAME, options)?)),
};

/// Choices by letter.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultipleChoice {
    /// The column with the texts of the choices.
    pub choices: String,
    /// The place of the first choice.
    pub first_place: usize,
}

impl Default for MultipleChoice {
    fn default() -> Self {
        MultipleChoice { choices: "choices".to_owned(), first_place: 0 }
    }
}

impl Verifier for MultipleChoice {
    fn name(&self) -> &'static str {
        NAME
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        let texts = self.texts(question);
        let n_choices = if texts.is_empty() { DEFAULT_CHOICES } else { texts.len().min(26) };
        let gold = match gold_choice(question.gold, &texts, n_choices, self.first_place) {
            Ok(gold) => gold,
            Err(reason) => return Verdict::skip(reason),
        };
        match choice(after_thinking(question.reply).trim(), &texts, n_choices) {
            Ok(found) if found == gold => Verdict::pass(format!("chooses {}", letter(found))),
            Ok(found) => Verdict::fail(format!("chooses {}, expected {}", letter(found), letter(gold))),
            Err(reason) => Verdict::fail(format!("{reason}, expected {}", letter(gold))),
        }
    }
}

impl MultipleChoice {
    fn texts(&self, question: &Question<'_>) -> Vec<String> {
        let column = question.row.get(&self.choices);
        let list = column.and_then(|c| c.get("text").unwrap_or(c).as_array());
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        list.map_or(Vec::new(), |list| list.iter().map(plain).collect())
    }
}

fn letter(place: usize) -> char {
    char::from(b'A' + place as u8)
}

/// The place of a letter, if there are so many choices.
fn place_of(text: &str, n_choices: usize) -> Option<usize> {
    let byte = text.bytes().next()?.to_ascii_uppercase();
    let place = byte.checked_sub(b'A').map(usize::from)?;
    (text.len() == 1 && place < n_choices).then_some(place)
}

fn gold_choice(
    gold: Option<&Value>,
    texts: &[String],
    n_choices: usize,
    first_place: usize,
) -> Result<usize, String> {
    let counted = |place: u64| {
        let place = usize::try_from(place).ok()?.checked_sub(first_place)?;
        (place < n_choices).then_some(place)
    };
    let found = match gold {
        Some(Value::Number(number)) => number.as_u64().and_then(counted),
        Some(Value::String(text)) => {
            let bare = text.trim().trim_matches(['(', ')', '.', ':']);
            place_of(bare, n_choices)
                .or_else(|| texts.iter().position(|choice| plain(choice) == plain(text)))
                .or_else(|| bare.parse().ok().and_then(counted))
        }
        _ => None,
    };
    found.ok_or_else(|| {
        let gold = gold.map_or("absent".to_owned(), |gold| shortened(&gold.to_string(), 80));
        format!(
            "the gold answer is {gold}, expected one of {n_choices} choices by letter, place from {first_place}, or text"
        )
    })
}

static MARKED: LazyLock<Regex> = LazyLock::new(|| {
    let marks = r"(?:(?i:\b(?:answer|choice|option))\W{0,6}?(?i:\b(?:is|would be|must be)\b)?[\s:=*_]*(?i:option|choice)?\s*|\\boxed\s*\{\s*(?:\\text\s*\{)?|(?i:<answer>)\s*)";
    Regex::new(&format!(
        r"{marks}(?:[(\[*_{{]+\s*([A-Za-z])\s*[)\]*_}}]|([A-Z])(?:[^\w'’]|$)|([a-z])(?:\s*[.,;:)\]}}<*\n]|\s*$))"
    ))
    .expect("a valid pattern")
});
static BARE_LINE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^[*_\s]*(?:\(([A-Za-z])\)|([A-Za-z])[*_]*(?:[.):][*_]*(?:\s|$)|[*_\s]*$))")
        .expect("a valid pattern")
});
static IN_PARENTHESES: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\(([A-Z])\)").expect("a valid pattern"));
/// What after a letter names another one.
static ANOTHER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^[)\]*_}.:\s]*(?:,|/|&|(?i:\bor\b)|(?i:\band\b))[\s(\[*_{]*(?i:or\s+|and\s+)?[\s(\[*_{]*([A-Z])(?:[^\w'’]|$)").expect("a valid pattern")
});

/// The place of the choice a reply settles on.
fn choice(reply: &str, texts: &[String], n_choices: usize) -> Result<usize, String> {
    if let Some(found) = MARKED.captures_iter(reply).filter_map(|c| settled(&c, reply, n_choices)).last() {
        return found;
    }
    let lines: Vec<&str> = reply.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    for line in lines.first().into_iter().chain(lines.last()) {
        if let Some(found) = BARE_LINE.captures(line).and_then(|c| settled(&c, line, n_choices)) {
            // A list of the choices is no answer.
            let n_listed = lines.iter().filter(|line| BARE_LINE.is_match(line)).count();
            return if n_listed > 2 { Err("the reply lists several choices".to_owned()) } else { found };
        }
    }
    let mut named: Vec<usize> =
        IN_PARENTHESES.captures_iter(reply).filter_map(|c| place_of(&c[1], n_choices)).collect();
    named.sort_unstable();
    named.dedup();
    match named.as_slice() {
        [] => by_text(reply, texts),
        [only] => Ok(*only),
        several => Err(hedging(several)),
    }
}

/// The letter of a match, or that another follows it; nothing if there is no such choice.
fn settled(captures: &regex::Captures<'_>, text: &str, n_choices: usize) -> Option<Result<usize, String>> {
    let found = captures.iter().skip(1).flatten().next()?;
    let place = place_of(found.as_str(), n_choices)?;
    let another = ANOTHER.captures(&text[found.end()..]).and_then(|c| place_of(&c[1], n_choices));
    match another {
        Some(other) if other != place => Some(Err(hedging(&[place, other]))),
        _ => Some(Ok(place)),
    }
}

fn hedging(places: &[usize]) -> String {
    let letters: Vec<String> = places.iter().map(|place| letter(*place).to_string()).collect();
    format!("the reply names several choices: {}", letters.join(", "))
}

fn by_text(reply: &str, texts: &[String]) -> Result<usize, String> {
    let reply = plain(reply);
    let spaced = format!(" {reply} ");
    let texts: Vec<String> = texts.iter().map(|text| plain(text)).collect();
    let occurs = |text: &String| !text.is_empty() && spaced.contains(&format!(" {text} "));
    let found: Vec<usize> = (0..texts.len().min(26)).filter(|place| occurs(&texts[*place])).collect();
    // `red` is not named by `dark red`, if that is a choice too.
    let is_inside = |place: usize| {
        found
            .iter()
            .any(|other| texts[*other] != texts[place] && texts[*other].contains(texts[place].as_str()))
    };
    let named: Vec<usize> = found.iter().copied().filter(|place| !is_inside(*place)).collect();
    match named.as_slice() {
        [only] => Ok(*only),
        [] => Err(format!("no choice was found in `{}`", shortened(&reply, 60))),
        several => Err(hedging(several)),
    }
}

/// Lower-case words with single spaces, without punctuation at their ends.
fn plain(text: &str) -> String {
    let words = text.split_whitespace().map(|word| word.trim_matches(|c: char| ".,;:!?\"'`*_()".contains(c)));
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ").to_lowercase()
}
