//! The final answer in a reply.

use std::sync::LazyLock;

use regex::Regex;
use serde::Deserialize;

/// A box longer than this is not an answer.
const MAX_ANSWER: usize = 4096;

/// How far from the end boxes are looked for, in bytes.
const BOX_TAIL: usize = 64 * 1024;

/// How far from the end phrases are looked for, in bytes.
const TAIL: usize = 16 * 1024;

/// How far from the end formulas and numbers are looked for, in bytes.
const SHORT_TAIL: usize = 4 * 1024;

/// A reply of one line up to this length may be an answer as a whole, in bytes.
const MAX_WHOLE: usize = 300;

/// A way to find the final answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The last `\boxed{}` or `\fbox{}`; those with only "and", "or" or a comma between them are one answer.
    Boxed,
    /// What follows the last `####` on its line.
    Hashes,
    /// What follows the last "answer is", "Answer:", "A:".
    Phrase,
    /// The reply, where it is one short line that is all mathematics.
    Whole,
    /// The last `$...$` in the last line.
    Math,
    /// The last number.
    LastNumber,
}

impl Method {
    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Method::Boxed => "boxed",
            Method::Hashes => "hashes",
            Method::Phrase => "phrase",
            Method::Whole => "whole",
            Method::Math => "math",
            Method::LastNumber => "last_number",
        }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) answer: String,
    pub(super) method: Method,
}

/// The final answer by the first of `methods` that finds one. `is_math` says whether a text is all mathematics.
pub(super) fn extract(reply: &str, methods: &[Method], is_math: &impl Fn(&str) -> bool) -> Option<Found> {
    methods.iter().find_map(|&method| {
        let answer = match method {
            Method::Boxed => boxed(tail(reply, BOX_TAIL)),
            Method::Hashes => hashes(reply),
            Method::Phrase => phrase(tail(reply, TAIL), is_math),
            Method::Whole => {
                let line = reply.trim();
                let is_line = line.len() <= MAX_WHOLE && !line.is_empty() && !line.contains('\n');
                (is_line && is_math(line)).then(|| line.to_owned())
            }
            Method::Math => math(tail(reply.trim_end(), SHORT_TAIL)),
            Method::LastNumber => last_number(tail(reply, SHORT_TAIL)),
        };
        answer.map(|answer| Found { answer, method })
    })
}

/// The last part of a reply, so that a long one costs no more than a short one.
fn tail(reply: &str, n_bytes: usize) -> &str {
    let mut start = reply.len().saturating_sub(n_bytes);
    while !reply.is_char_boundary(start) {
        start += 1;
    }
    &reply[start..]
}

/// What follows the last `####`, to the end of its line.
pub(super) fn hashes(text: &str) -> Option<String> {
    let rest = &text[text.rfind("####")? + 4..];
    let line = rest.lines().next().unwrap_or("").trim();
    Some(line.to_owned())
}

/// The content of the last box, joined with those before it that belong to it.
pub fn boxed(text: &str) -> Option<String> {
    let mut boxes: Vec<(usize, usize, &str)> = Vec::new();
    let mut end = text.len();
    let mut n_tries = 0;
    while let Some(start) = ["\\boxed", "\\fbox"].iter().filter_map(|name| text[..end].rfind(name)).max() {
        n_tries += 1;
        if n_tries > 16 {
            break;
        }
        let box_end = boxes.last().map_or(text.len(), |(next_start, ..)| *next_start);
        if let Some((close, inside)) = box_content(text, start) {
            // A box inside the next box is part of it; one too far before it is another matter.
            if close > box_end || (!boxes.is_empty() && !is_connector(&text[close..box_end])) {
                break;
            }
            boxes.push((start, close, inside));
        } else if !boxes.is_empty() {
            break;
        }
        end = start;
    }
    let answers: Vec<&str> = boxes.iter().rev().map(|(.., inside)| *inside).collect();
    (!answers.is_empty()).then(|| answers.join(" , "))
}

/// The content of the box at `start`, and where it ends.
fn box_content(text: &str, start: usize) -> Option<(usize, &str)> {
    let name_len = if text[start..].starts_with("\\boxed") { 6 } else { 5 };
    let rest = &text[start + name_len..];
    let trimmed = rest.trim_start();
    let open = start + name_len + (rest.len() - trimmed.len());
    if !trimmed.starts_with('{') {
        // \boxed 5
        let len = trimmed.find(|c: char| c.is_whitespace() || c == '$').unwrap_or(trimmed.len());
        return (len > 0 && len < 64).then(|| (open + len, &text[open..open + len]));
    }
    let (mut depth, mut is_escaped) = (0usize, false);
    for (at, byte) in trimmed.bytes().enumerate().take(MAX_ANSWER) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some((open + at + 1, &text[open + 1..open + at]));
                }
            }
            _ => {}
        }
    }
    None
}

static CONNECTOR: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"^(?:[\s$.]|\\[()\[\]]|\\text\{|\})*(?:,|;|and|or|\s)+(?:[\s$.]|\\[()\[\]]|\\text\{|\}|and|or)*$",
    )
    .expect("the pattern is right")
});

/// Whether nothing but "and", "or" or a comma stands between two answers.
fn is_connector(between: &str) -> bool {
    let words = ["and", "or", ",", ";"];
    between.len() <= 40 && words.iter().any(|word| between.contains(word)) && CONNECTOR.is_match(between)
}

static PHRASE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?im)(?:\banswers?\b(?:\*\*)?\s*(?:is|are|=|:)|^\s*(?:\*\*)?A:)")
        .expect("the pattern is right")
});

fn phrase(text: &str, is_math: &impl Fn(&str) -> bool) -> Option<String> {
    let found = PHRASE.find_iter(text).last()?;
    let rest =
        text[found.end()..].trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ':' | '*' | '"'));
    let line = rest.lines().next().unwrap_or("");
    let sentence = sentence(line);
    let sentence = sentence.trim().trim_end_matches(['*', '.', '"', ' ']);
    if sentence.is_empty() {
        return None;
    }
    // One formula in a sentence without other numbers is the answer; "5 dollars because ..." has one number.
    let plain = undelimited(sentence);
    if is_math(&plain) {
        return Some(plain);
    }
    let segments = segments(sentence);
    if let [(start, end, inside)] = segments.as_slice() {
        let outside = format!("{}{}", &sentence[..*start], &sentence[*end..]);
        if !outside.contains(|c: char| c.is_ascii_digit()) {
            return Some((*inside).to_owned());
        }
    }
    let numbers: Vec<&str> = NUMBER.find_iter(sentence).map(|number| number.as_str()).collect();
    Some(if let [number] = numbers.as_slice() { (*number).to_owned() } else { plain })
}

/// A line up to its first full stop, which is one before a space or the end.
fn sentence(line: &str) -> &str {
    // "p.m." and its kin go on.
    let mut from = 0;
    while let Some(at) = line[from..].find(". ").map(|at| from + at) {
        if !line[..at].ends_with(".m") && !line[..at].ends_with(['a', 'p']) {
            return &line[..at];
        }
        from = at + 2;
    }
    line
}

/// The text without the marks of formulas and bold type.
fn undelimited(text: &str) -> String {
    ["$$", "$", "\\(", "\\)", "\\[", "\\]", "**"]
        .iter()
        .fold(text.to_owned(), |text, mark| text.replace(mark, " "))
}

/// Formulas: where they start and end with their marks, and what is inside.
fn segments(text: &str) -> Vec<(usize, usize, &str)> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let open = [("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")]
            .iter()
            .filter_map(|(open, close)| rest.find(open).map(|start| (start, *open, *close)))
            .min_by_key(|(start, open, _)| (*start, usize::MAX - open.len()));
        let Some((start, open, close)) = open else { break };
        let inside = at + start + open.len();
        let Some(len) = text[inside..].find(close) else { break };
        out.push((at + start, inside + len + close.len(), &text[inside..inside + len]));
        at = inside + len + close.len();
    }
    out
}

/// The last formula of the last line, with those before it that belong to it.
fn math(text: &str) -> Option<String> {
    let line = text.trim_end().lines().last()?;
    joined(line, &segments(line))
}

static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"-?\\[dt]?frac\{-?\d+\}\{\d+\}|-?\d+ \d+/\d+|[-−]?\$?(?:\d{1,3}(?:,\d{3})+\b|\d+)?(?:\.\d+|\d)(?:[eE][-+]?\d+\b)?(?:\s?/\s?\d+)?(?:\s?\\?%)?",
    )
    .expect("the pattern is right")
});

fn last_number(text: &str) -> Option<String> {
    let numbers: Vec<(usize, usize, &str)> = NUMBER
        .find_iter(text)
        .map(|number| unsigned_after_operand(text, number.start(), number.end()))
        .collect();
    joined(text, &numbers)
}

/// A minus right behind a digit, a letter or a bracket subtracts; it is no sign.
fn unsigned_after_operand(text: &str, start: usize, end: usize) -> (usize, usize, &str) {
    let number = &text[start..end];
    let is_operand = text[..start].ends_with(|c: char| c.is_alphanumeric() || c == ')');
    let unsigned = number.trim_start_matches(['-', '−']);
    let start = if is_operand { end - unsigned.len() } else { start };
    (start, end, &text[start..end])
}

/// The last of several spans, with those before it that only "and", "or" or a comma parts from it.
fn joined(text: &str, spans: &[(usize, usize, &str)]) -> Option<String> {
    let (last, before) = spans.split_last()?;
    let (mut answers, mut start) = (vec![last.2], last.0);
    for (from, to, inside) in before.iter().rev() {
        if *to > start || !is_connector(&text[*to..start]) {
            break;
        }
        answers.push(inside);
        start = *from;
    }
    answers.reverse();
    Some(answers.join(" , "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[Method] =
        &[Method::Boxed, Method::Hashes, Method::Phrase, Method::Whole, Method::Math, Method::LastNumber];

    #[test]
    fn the_final_answer_is_found() {
        for (reply, answer, method) in [
            ("so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}", Method::Boxed),
            ("\\boxed{1} no, \\boxed{2}", "2", Method::Boxed),
            ("\\boxed{1} or \\boxed{2}", "1 , 2", Method::Boxed),
            ("$\\boxed{1}$ and $\\boxed{2}$", "1 , 2", Method::Boxed),
            ("\\boxed{5}, then \\boxed{unclosed", "5", Method::Boxed),
            ("\\fbox{7}", "7", Method::Boxed),
            ("\\boxed 7 is it", "7", Method::Boxed),
            ("\\boxed{\\boxed{7}}", "7", Method::Boxed),
            ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}", Method::Boxed),
            ("3 + 4\n#### 7\n", "7", Method::Hashes),
            ("3 + 4\nA: 1,234", "1,234", Method::Phrase),
            ("The final answer is 42. I hope it is correct.", "42", Method::Phrase),
            ("The answer is $x^2$.", "x^2", Method::Phrase),
            ("**Final Answer**: 12", "12", Method::Phrase),
            ("The answer is 5 dollars because he is poor.", "5", Method::Phrase),
            ("2x + 1", "2x + 1", Method::Whole),
            ("We see.\nThus $x = 5$.", "x = 5", Method::Math),
            ("We see.\nThus $5$ or $6$.", "5 , 6", Method::Math),
            ("She has 16-3 apples", "3", Method::LastNumber),
            ("It is -3 degrees", "-3", Method::LastNumber),
            ("He paid $1,234.50 for it", "$1,234.50", Method::LastNumber),
            ("Perhaps 5 or 6 apples", "5 , 6", Method::LastNumber),
        ] {
            let is_math = |text: &str| crate::math::is_mathematics(text);
            let found = extract(reply, ALL, &is_math).unwrap_or_else(|| panic!("nothing in {reply:?}"));
            assert_eq!((found.answer.trim(), found.method), (answer, method), "{reply:?}");
        }
    }
}
