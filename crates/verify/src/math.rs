//! Mathematics: the final answer of a reply equals the gold answer.
//!
//! The answer is *found* (`math/extract.rs`), *read* into a tree (`lex.rs`, `parse.rs`, `expr.rs`) and *compared*
//! (`compare.rs`). Rational numbers are exact; everything else is evaluated with a running error bound to 256 bits and
//! 8 more for each digit written (`eval.rs`, `complex.rs`, `float.rs`), so that a decimal never equals an irrational
//! number, however many digits it has. Expressions with variables are compared at twelve fixed pseudo-random rational
//! points, wherever the gold answer is real.
//!
//! The rules, each with its cases in `math.md`:
//!
//! - Where the gold answer is a plain number, so must the reply's be: `3 + 4` is no answer where 7 is asked for, or a
//!   model learns to repeat the question. The same holds for an expression copied from the prompt.
//! - Decimals are exact: 0.33 is not 1/3. `tolerance` loosens that, relative to the gold answer.
//! - Units may be left out, and may not contradict. A percent sign may be left out.
//! - Several answers are a set, tuples are ordered, and "5 or 6" is not 5.
//! - A base is part of a number: where `101_2` is asked for, `101` will do, and 5 will not.
//! - A box or phrase that names an answer is final: a later method is not tried because the answer is wrong.
//!
//! What it leaves out: simplification (`2/4` equals `1/2`), proofs, conversion of units, logarithms without a base other
//! than ten, and sets given by a condition.

mod compare;
mod complex;
mod eval;
mod expr;
mod extract;
mod float;
mod lex;
mod number;
mod parse;

use pt_core::catalogue::{CatalogueError, OptionInfo, parse as parse_options};
use serde::Deserialize;
use serde_json::Value;

use self::compare::Comparer;
pub use self::compare::Percent;
use self::expr::Expr;
pub use self::extract::{Method, boxed};
use self::number::Rational;
use crate::catalogue::{KIND, VerifierInfo};
use crate::{Question, Verdict, Verifier};

const NAME: &str = "math";

/// Answers longer than this are compared as texts only, in bytes.
const MAX_ANSWER: usize = 4096;

/// The catalogue's entry.
pub(crate) const INFO: VerifierInfo = VerifierInfo {
    name: NAME,
    summary: "the final answer equals the gold answer, as mathematics",
    reads: "the gold answer: LaTeX, plain text, a number, a solution ending in `\\boxed{}` or `####`, or a list of such",
    options: &[
        OptionInfo {
            name: "extract",
            kind: "list of \"boxed\", \"hashes\", \"phrase\", \"whole\", \"math\", \"last_number\"",
            default: "[\"boxed\", \"hashes\", \"phrase\", \"whole\", \"math\", \"last_number\"]",
            doc: "where the final answer is looked for; the first that finds one decides",
        },
        OptionInfo {
            name: "tolerance",
            kind: "number, at least 0 and below 1",
            default: "0.0",
            doc: "how far a value may be off, relative to the gold answer; 0 is exact",
        },
        OptionInfo {
            name: "percent",
            kind: "\"either\", \"number\" or \"fraction\"",
            default: "\"either\"",
            doc: "whether 25% is 25 and 0.25, only 25, or only 0.25, where the other side has no percent sign",
        },
        OptionInfo {
            name: "allow_unevaluated",
            kind: "bool",
            default: "false",
            doc: "whether 3 + 4 is right where 7 is asked for, and an expression may be copied from the prompt",
        },
    ],
    examples: include_str!("math.md"),
    build: |options| Ok(Box::new(Math::new(parse_options::<MathConfig>(KIND, NAME, options)?)?)),
};

/// The options of the verifier.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MathConfig {
    extract: Vec<Method>,
    tolerance: f64,
    percent: Percent,
    allow_unevaluated: bool,
}

impl Default for MathConfig {
    fn default() -> MathConfig {
        let extract = vec![
            Method::Boxed,
            Method::Hashes,
            Method::Phrase,
            Method::Whole,
            Method::Math,
            Method::LastNumber,
        ];
        MathConfig { extract, tolerance: 0.0, percent: Percent::Either, allow_unevaluated: false }
    }
}

/// Equality of final answers.
#[derive(Clone, Debug)]
struct Math {
    config: MathConfig,
    tolerance: Option<Rational>,
}

/// An answer, read as far as it can be.
struct Answer {
    /// Without what only changes how it looks.
    text: String,
    expr: Result<Expr, String>,
}

impl Math {
    fn new(config: MathConfig) -> Result<Math, CatalogueError> {
        let refuse = |problem: String| CatalogueError::Option { kind: KIND, name: NAME.to_owned(), problem };
        if config.extract.is_empty() {
            return Err(refuse(
                "`extract` is empty; name at least one of the ways to find an answer".to_owned(),
            ));
        }
        let tolerance = config.tolerance;
        if !(0.0..1.0).contains(&tolerance) {
            return Err(refuse(format!("`tolerance` is {tolerance}; expected a number from 0 to below 1")));
        }
        // In units of 2^-60, which holds any tolerance that is of use exactly enough.
        let scaled = (tolerance * (1u64 << 60) as f64) as u64;
        let tolerance = Rational::new(scaled.into(), (1u64 << 60).into()).filter(|t| !t.is_zero());
        Ok(Math { config, tolerance })
    }

    fn judge(&self, golds: &[String], question: &Question<'_>) -> Verdict {
        let golds: Vec<Answer> = golds.iter().map(|gold| Answer::read(gold)).collect();
        let wants_text = golds.iter().all(|gold| !gold.is_mathematics());
        let methods: Vec<Method> =
            self.config.extract.iter().copied().filter(|method| usable(*method, question)).collect();
        let is_answer = |text: &str| {
            is_mathematics(text) || (wants_text && golds.iter().any(|gold| gold.text == canonical(text)))
        };
        let reply = answer_part(question.reply);
        let unread = golds.iter().all(|gold| gold.expr.is_err() && !gold.is_words());
        let Some(found) = reply.and_then(|reply| extract::extract(reply, &methods, &is_answer)) else {
            let names: Vec<&str> = methods.iter().map(|method| method.name()).collect();
            return match unread {
                true => unreadable(&golds),
                false => Verdict::fail(format!("no final answer was found; looked for {}", names.join(", "))),
            };
        };
        let answer = Answer::read(&found.answer);
        let said = format!("`{}` ({})", short(&found.answer), found.method.name());
        let comparer =
            Comparer::new(self.config.percent, self.tolerance.as_ref(), self.config.allow_unevaluated);
        for gold in &golds {
            match self.same(gold, &answer, question, &comparer) {
                Same::Yes => {
                    return Verdict::pass(format!("{said} equals the gold answer `{}`", short(&gold.text)));
                }
                Same::Copied => {
                    return Verdict::fail(format!(
                        "{said} has the right value, but is copied from the prompt"
                    ));
                }
                Same::No => {}
            }
        }
        if unread {
            return unreadable(&golds);
        }
        if comparer.saw_unevaluated.get() {
            return Verdict::fail(format!("{said} has the right value, but leaves arithmetic undone"));
        }
        let gold = golds.first().map_or(String::new(), |gold| short(&gold.text));
        let problem = match (&answer.expr, comparer.problem.get()) {
            (Err(problem), _) if !wants_text => format!("; it could not be read: {problem}"),
            (Ok(_), Some(problem)) => format!("; {problem}"),
            _ => String::new(),
        };
        Verdict::fail(format!("{said} is not the gold answer `{gold}`{problem}"))
    }

    fn same(&self, gold: &Answer, answer: &Answer, question: &Question<'_>, comparer: &Comparer<'_>) -> Same {
        if gold.text == answer.text || gold.is_choice(answer) {
            return if answer.text.is_empty() { Same::No } else { Same::Yes };
        }
        let (Ok(expected), Ok(expr)) = (&gold.expr, &answer.expr) else { return Same::No };
        if expected == expr {
            return Same::Yes;
        }
        if !comparer.same(expected, expr) && !self.same_as_asked(expected, answer, question, comparer) {
            return Same::No;
        }
        let is_expression = expr.n_operations() > 0 && !expr.is_plain_number() && answer.text.len() >= 4;
        if is_expression
            && !self.config.allow_unevaluated
            && canonical(question.prompt).contains(&answer.text)
        {
            return Same::Copied;
        }
        Same::Yes
    }
}

impl Math {
    /// Whether the answer is `what was asked = gold`, where the prompt names what was asked but does not give it.
    fn same_as_asked(
        &self,
        gold: &Expr,
        answer: &Answer,
        question: &Question<'_>,
        comparer: &Comparer<'_>,
    ) -> bool {
        let Some((asked, value)) = answer.text.split_once('=') else { return false };
        if asked.is_empty() || value.contains('=') {
            return false;
        }
        let prompt = canonical(question.prompt);
        prompt.contains(asked)
            && !prompt.contains(&format!("{asked}="))
            && parse::parse(value).is_ok_and(|value| comparer.same(gold, &value))
    }
}

enum Same {
    Yes,
    No,
    Copied,
}

impl Verifier for Math {
    fn name(&self) -> &'static str {
        NAME
    }

    fn verify(&self, question: &Question<'_>) -> Verdict {
        match gold_texts(question.gold) {
            Some(golds) => self.judge(&golds, question),
            None => {
                let found = question.gold.map_or("absent".to_owned(), ToString::to_string);
                Verdict::skip(format!(
                    "the gold answer is {}, expected a text, a number or a list of them",
                    short(&found)
                ))
            }
        }
    }
}

impl Answer {
    fn read(raw: &str) -> Answer {
        let raw = stripped(raw);
        let text = canonical(raw);
        let expr = match raw.len() > MAX_ANSWER {
            true => Err(format!("it is {} bytes long; the longest that is read is {MAX_ANSWER}", raw.len())),
            false => parse::parse(raw),
        };
        Answer { text, expr }
    }

    fn is_mathematics(&self) -> bool {
        self.expr.as_ref().is_ok_and(|expr| !expr.any(&|e| matches!(e, Expr::Text(_))))
    }

    /// Whether it is words, which are compared as such and need not be read.
    fn is_words(&self) -> bool {
        !self.text.is_empty()
            && self.text.chars().all(|c| c.is_alphanumeric() || matches!(c, '\'' | '-' | '.'))
    }

    /// Whether it is a letter of a choice and `answer` is that letter with or without the choice's text.
    fn is_choice(&self, answer: &Answer) -> bool {
        let mut letters = self.text.chars();
        let (Some(letter @ 'A'..='Z'), None) = (letters.next(), letters.next()) else { return false };
        let Some(rest) = answer.text.trim_start_matches('(').strip_prefix(letter) else { return false };
        let Some(text) = rest.strip_prefix([')', '.', ':']) else { return rest.is_empty() };
        // Another choice beside it makes it none.
        let is_marked = |part: &[char]| matches!(part, ['(', 'A'..='Z', ')']);
        let chars: Vec<char> = text.chars().collect();
        !chars.windows(3).any(is_marked) && !["or", "and", ",", ";"].iter().any(|word| text.starts_with(word))
    }
}

/// Whether the method can be trusted for the reply: one cut off has no last line and no last number.
fn usable(method: Method, question: &Question<'_>) -> bool {
    !question.is_truncated || matches!(method, Method::Boxed | Method::Hashes)
}

/// Whether a text is an answer that is all mathematics.
fn is_mathematics(text: &str) -> bool {
    text.len() <= MAX_ANSWER && !has_prose(text) && Answer::read(text).is_mathematics()
}

/// Whether two words follow one another, as in "it is", which letter by letter would be a product.
fn has_prose(text: &str) -> bool {
    let is_word = |part: &&str| part.len() > 1 && part.bytes().all(|b| b.is_ascii_alphabetic());
    let parts: Vec<&str> = text.split_whitespace().collect();
    parts.windows(2).any(|pair| pair.iter().all(is_word))
}

/// What follows the thinking; `None` where the thinking does not end.
fn answer_part(reply: &str) -> Option<&str> {
    match reply.rfind("</think>") {
        Some(at) => Some(&reply[at + "</think>".len()..]),
        None if reply.contains("<think>") => None,
        None => Some(reply),
    }
}

/// The gold answers: one, or a list of which any will do. A whole solution stands for its final answer.
fn gold_texts(gold: Option<&Value>) -> Option<Vec<String>> {
    let one = |value: &Value| match value {
        Value::String(text) => {
            let found = extract::boxed(text).or_else(|| extract::hashes(text));
            Some(found.unwrap_or_else(|| text.clone())).filter(|text| !text.trim().is_empty())
        }
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    match gold? {
        Value::Array(items) if !items.is_empty() => items.iter().map(one).collect(),
        value => one(value).map(|text| vec![text]),
    }
}

fn unreadable(golds: &[Answer]) -> Verdict {
    let gold = golds.first();
    let problem = gold.and_then(|gold| gold.expr.as_ref().err()).map_or("", String::as_str);
    let text = gold.map_or(String::new(), |gold| short(&gold.text));
    Verdict::skip(format!("the gold answer `{text}` could not be read: {problem}"))
}

/// Without space, marks of formulas and a full stop around it.
fn stripped(raw: &str) -> &str {
    let mut text = raw.trim();
    loop {
        let before = text.len();
        for (open, close) in [("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**")] {
            let inside = text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
            if let Some(inside) = inside.filter(|inside| !inside.contains(open)) {
                text = inside;
            }
        }
        text = text.trim().trim_end_matches(['.', ',', ';', ':']).trim_start_matches([':', ',']).trim();
        if text.len() == before {
            return text;
        }
    }
}

/// LaTeX that only changes how things look, and what is left of it.
#[rustfmt::skip]
const LOOKS: &[(&str, &str)] = &[
    ("\\left", ""), ("\\right", ""), ("\\!", ""), ("\\,", ""), ("\\;", ""), ("\\:", ""), ("\\ ", ""), ("\\quad", ""),
    ("\\displaystyle", ""), ("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("$", ""), ("\\(", ""), ("\\)", ""),
    ("\\text", ""), ("\\mathrm", ""), ("\\textbf", ""), ("\\mbox", ""), ("**", ""),
];

/// The text two answers are compared by: without looks, space and the braces of words.
fn canonical(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // Braces that belonged to a command taken away go with it.
    let mut open_looks: Vec<bool> = Vec::new();
    let mut was_words = false;
    while let Some(c) = rest.chars().next() {
        let followed_by_letter = |from: &str| {
            from.ends_with(|c: char| c.is_ascii_alphabetic())
                && rest[from.len()..].starts_with(|c: char| c.is_ascii_lowercase())
        };
        let look = LOOKS.iter().find(|(from, _)| rest.starts_with(from) && !followed_by_letter(from));
        if let Some((from, to)) = look {
            out.push_str(to);
            rest = &rest[from.len()..];
            was_words = matches!(*from, "\\text" | "\\mathrm" | "\\textbf" | "\\mbox");
            continue;
        }
        rest = &rest[c.len_utf8()..];
        match c {
            '{' => {
                open_looks.push(was_words);
                if !was_words {
                    out.push(c);
                }
            }
            '}' => {
                if !open_looks.pop().unwrap_or(false) {
                    out.push(c);
                }
            }
            c if c.is_whitespace() => continue,
            c => out.push(c),
        }
        was_words = false;
    }
    while out.ends_with('.') {
        out.pop();
    }
    let inner = out.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    if let Some(inner) =
        inner.filter(|inner| inner.len() == 1 && inner.starts_with(|c: char| c.is_ascii_uppercase()))
    {
        return inner.to_owned();
    }
    let is_word = out.len() > 1 && out.chars().all(|c| c.is_alphabetic() || matches!(c, '\'' | '-' | '.'));
    if is_word { out.to_lowercase() } else { out }
}

/// The beginning of a text, for messages.
fn short(text: &str) -> String {
    let mut out: String = text.chars().take(80).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use pt_core::rng::{Draws, Stream};
    use serde_json::Map;

    use super::*;

    fn judge(options: &str, prompt: &str, gold: &str, reply: &str, is_truncated: bool) -> Verdict {
        let math = crate::build(NAME, &options.parse().unwrap()).unwrap();
        let (gold, row) = (Value::from(gold), Map::new());
        math.verify(&Question { prompt, reply, gold: Some(&gold), row: &row, is_truncated })
    }

    #[test]
    fn options_that_cannot_be_are_refused() {
        for (options, expected) in [
            ("extract = []", "`extract` is empty"),
            ("extract = [\"box\"]", "unknown variant `box`"),
            ("tolerance = -0.1", "`tolerance` is -0.1"),
            ("tolerance = nan", "`tolerance` is NaN"),
            ("percent = \"no\"", "unknown variant `no`"),
        ] {
            let error = crate::build(NAME, &options.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(expected), "{options}: {error}");
        }
    }

    #[test]
    fn a_reply_cut_off_has_only_marked_answers() {
        for (reply, score) in
            [("so it is \\boxed{18}", 1.0), ("#### 18", 1.0), ("16 and 18", 0.0), ("answer is 18", 0.0)]
        {
            assert_eq!(judge("", "", "18", reply, true).score, Some(score), "{reply}");
        }
    }

    #[test]
    fn reasons_say_what_was_found_and_where() {
        for (gold, reply, reason) in [
            ("18", "\\boxed{17}", "`17` (boxed) is not the gold answer `18`"),
            ("18", "#### 18", "`18` (hashes) equals the gold answer `18`"),
            ("7", "\\boxed{3+4}", "`3+4` (boxed) has the right value, but leaves arithmetic undone"),
            ("7", "\\boxed{1/0}", "`1/0` (boxed) is not the gold answer `7`; it is undefined"),
            (
                "7",
                "\\boxed{9^{9^{9^9}}}",
                "`9^{9^{9^9}}` (boxed) is not the gold answer `7`; it is too large to compute",
            ),
            (
                "7",
                "\\boxed{\\foo}",
                "`\\foo` (boxed) is not the gold answer `7`; it could not be read: the command `\\foo` is not known",
            ),
            (
                "7",
                "well",
                "no final answer was found; looked for boxed, hashes, phrase, whole, math, last_number",
            ),
            (
                "\\foo{1}",
                "\\boxed{1}",
                "the gold answer `\\foo{1}` could not be read: the command `\\foo` is not known",
            ),
        ] {
            assert_eq!(judge("", "", gold, reply, false).reason, reason, "{gold} | {reply}");
        }
    }

    /// Pieces of which bad answers are made.
    #[rustfmt::skip]
    const PIECES: &[&str] = &[
        "\\frac", "{", "}", "(", ")", "[", "]", "1", "2", "10", "999999", "^", "_", "\\sqrt", "\\sqrt[", "x", "y", "\\pi", "e",
        "i", "+", "-", "\\pm", "*", "/", "!", "\\%", ",", "\\text{", "\\boxed{", "=", "<", "\\le", "\\cup", "\\infty", "|",
        "\\left", "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "&", " ", "$", "####", "answer is ", "\\log", "\\sin", "\\ln",
        "\\binom", "0.", "\\overline{", "^\\circ", ":", "and", "or", "cm", "p.m.", "\\{", "\\}", "½", "é", "²", "\\lfloor",
        "\\rfloor", ".", "e9", "\\exp", "\\arctan", "\u{1F600}", "\\", "<think>", "</think>", "\\in", "\\approx", "'", "A:",
        "1,000", "3 1/2", "\0", "\n", "~", "−", "\\mathbb{R}",
    ];

    fn pieces(draws: &mut Draws, n_most: i64) -> String {
        let n = draws.between(1, n_most);
        (0..n).map(|_| *draws.pick(PIECES)).collect()
    }

    #[test]
    fn nothing_panics_and_no_noise_is_right() {
        let stream = Stream::new(0, "math fuzz");
        for index in 0..6000 {
            let mut draws = stream.at(index);
            let gold = pieces(&mut draws, 12);
            let noise = pieces(&mut draws, 40);
            let reply = if draws.below(2) == 0 { format!("\\boxed{{{noise}}}") } else { noise };
            judge("", "", &gold, &reply, false);
            judge("tolerance = 0.1", &reply, &reply, &gold, false);
            let verdict = judge("extract = [\"boxed\"]", "", "739.25", &reply, false);
            assert!(!verdict.is_pass(), "{reply:?}: {verdict:?}");
        }
    }

    #[test]
    fn random_bytes_do_not_panic() {
        let stream = Stream::new(0, "math bytes");
        for index in 0..2000 {
            let mut draws = stream.at(index);
            let n = draws.between(0, 80);
            let bytes: Vec<u8> = (0..n).map(|_| (draws.next_u32() & 0xff) as u8).collect();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            judge("", &text, &text, &format!("\\boxed{{{text}}}"), index % 2 == 0);
            judge("", "", "5", &text, false);
        }
    }

    #[test]
    fn long_and_deep_replies_get_a_verdict() {
        let many = |piece: &str, n: usize| piece.repeat(n);
        let boxed = |inside: String| format!("\\boxed{{{inside}}}");
        for reply in [
            many("9", 1_000_000),
            many("\\boxed{", 200_000),
            many("\\boxed{1} or ", 100_000),
            many("$1$, ", 200_000),
            many("answer is ", 100_000),
            many("{", 1_000_000),
            many("é", 500_000),
            many("1 or ", 200_000),
            boxed(many("1+", 700) + "1"),
            boxed(many("(", 1300) + &many(")", 1300)),
            boxed(many("-", 1400) + "1"),
            boxed("1".to_owned() + &many("!", 1400)),
            boxed(many("(x+1)^{999}", 100)),
            boxed(many("\\sin ", 600) + "x"),
            boxed(many("\\sqrt{", 45) + "x" + &many("}", 45)),
            boxed(many("\\frac{1}{", 45) + "2" + &many("}", 45)),
            boxed(many("\\binom{1000}{500}", 200)),
            boxed(many("\\arctan(x)", 300)),
            boxed(many("e^{", 40) + "x" + &many("}", 40)),
            boxed(many("\\{1,", 40) + "2" + &many("\\}", 40)),
            boxed("9^{9^{9^{9^{9}}}}".to_owned()),
            boxed("10^{-10^{10^{10}}}".to_owned()),
            boxed("1e999999999999".to_owned()),
            boxed("\\sin(9^{9^{9}})".to_owned()),
            boxed("\\sqrt[999999999]{2}".to_owned()),
            boxed("2^{0.000000000000000001}".to_owned()),
        ] {
            for gold in ["7", "x^2", "\\sqrt{2}", "1, 2, 3", "(0, 1]"] {
                let verdict = judge("", "", gold, &reply, false);
                assert_eq!(verdict.score, Some(0.0), "{gold} | {:.60}: {verdict:?}", reply);
            }
        }
    }

    /// A random expression of `x`, numbers and functions.
    fn expression(draws: &mut Draws, depth: usize) -> String {
        let part = |draws: &mut Draws| expression(draws, depth - 1);
        match draws.below(if depth == 0 { 4 } else { 11 }) {
            0 => draws.between(1, 20).to_string(),
            1 => "x".to_owned(),
            2 => "\\pi".to_owned(),
            3 => format!("\\frac{{{}}}{{{}}}", draws.between(1, 9), draws.between(2, 9)),
            4 => format!("({} + {})", part(draws), part(draws)),
            5 => format!("({} - {})", part(draws), part(draws)),
            6 => format!("{} \\cdot {}", part(draws), part(draws)),
            7 => format!("\\frac{{{}}}{{{}}}", part(draws), part(draws)),
            8 => format!("\\sqrt{{{}}}", part(draws)),
            9 => format!("\\sin({})", part(draws)),
            _ => format!("({})^{}", part(draws), draws.between(2, 3)),
        }
    }

    #[test]
    fn equal_expressions_are_equal_and_near_ones_are_not() {
        let stream = Stream::new(0, "math expressions");
        let (options, mut n_equal) = ("allow_unevaluated = true", 0);
        const N: usize = 400;
        for index in 0..N {
            let e = expression(&mut stream.at(index as u64), 3);
            let same = [
                format!("0 + {e}"),
                format!("2 \\cdot ({e}) - ({e})"),
                format!("\\frac{{3 ({e}) + 6}}{{3}} - 2"),
            ];
            let n = same.iter().filter(|r| judge(options, "", &e, &boxed(r), false).is_pass()).count();
            n_equal += usize::from(n == same.len());
            for other in
                [format!("{e} + 10^{{-60}}"), format!("({e}) \\cdot (1 + 10^{{-60}})"), format!("{e} + x")]
            {
                let verdict = judge(options, "", &e, &boxed(&other), false);
                // Zero times anything is the same.
                assert!(!verdict.is_pass() || is_zero(&e), "{e} | {other}: {verdict:?}");
            }
        }
        // The rest have no value: a division by zero, or no point where the root is real.
        assert!(n_equal * 100 >= 98 * N, "{n_equal} of {N}");
    }

    fn boxed(inside: &str) -> String {
        format!("\\boxed{{{inside}}}")
    }

    fn is_zero(e: &str) -> bool {
        judge("allow_unevaluated = true", "", "0", &boxed(e), false).is_pass()
    }
}
