//! From what a judge wrote to what it means: a letter, a grade, or nothing.
//!
//! Strict on purpose. A judge that was told to answer with one letter and writes an essay has not answered, and "A good
//! reply would..." is no vote for A. What is not understood is an abstention, never a guess.

use crate::chat::Token;

/// What a comparison says of the places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Letter {
    A,
    B,
    /// Equally good.
    C,
}

const LETTERS: [(char, Letter); 3] = [('A', Letter::A), ('B', Letter::B), ('C', Letter::C)];

/// Phrases after which a letter is an answer.
const LEADS: &[&str] = &[
    "answer",
    "the answer is",
    "final answer",
    "verdict",
    "my verdict is",
    "choice",
    "i choose",
    "option",
    "reply",
    "response",
    "better reply",
    "better response",
    "the better reply is",
    "the better response is",
];

/// The letter a judge chose, if it clearly chose one.
pub(crate) fn letter(text: &str) -> Option<Letter> {
    let text = after_thoughts(text);
    if let Some(found) = bracketed(text) {
        return found;
    }
    // A short answer has one line; a longer one ends with it.
    of_line(text.lines().map(str::trim).rfind(|line| !line.is_empty())?)
}

/// What follows a thinking block.
fn after_thoughts(text: &str) -> &str {
    text.rsplit_once("</think>").map_or(text, |(_, rest)| rest)
}

/// `[[A]]`, the last of which counts only if all agree. `None` if there is none, `Some(None)` if they differ.
fn bracketed(text: &str) -> Option<Option<Letter>> {
    let inside = |part: &str| part.split_once("]]").and_then(|(inside, _)| exact(inside.trim()));
    let found: Vec<Letter> = text.split("[[").skip(1).filter_map(inside).collect();
    let first = *found.first()?;
    Some(found.iter().all(|letter| *letter == first).then_some(first))
}

fn exact(text: &str) -> Option<Letter> {
    let named = |(c, letter): &(char, Letter)| text.eq_ignore_ascii_case(&c.to_string()).then_some(*letter);
    LETTERS.iter().find_map(named).or_else(|| {
        let is_tie = ["tie", "equal", "equally good"].iter().any(|word| text.eq_ignore_ascii_case(word));
        is_tie.then_some(Letter::C)
    })
}

/// A line that is a letter, or a lead and a letter, markup and punctuation aside.
fn of_line(line: &str) -> Option<Letter> {
    let plain: String =
        line.chars().map(|c| if c.is_alphanumeric() || c == '\'' { c } else { ' ' }).collect();
    let words: Vec<&str> = plain.split_whitespace().collect();
    let (last, lead) = words.split_last()?;
    let whole = words.join(" ");
    if let Some(letter) = exact(&whole) {
        return Some(letter);
    }
    let lead = lead.join(" ").to_lowercase();
    let is_lead = LEADS.iter().any(|known| lead == *known || lead == format!("{known} is"));
    // A lower-case letter after a lead is a word of a sentence more often than an answer.
    let letter = LETTERS.iter().find(|(c, _)| *last == c.to_string()).map(|(_, letter)| *letter);
    letter.filter(|_| is_lead)
}

/// Probability that A is better, from the alternatives of the token that chose: `(p_A + p_C / 2) / (p_A + p_B + p_C)`.
///
/// `None` where no probabilities came, or the letter is not a token of its own.
pub(crate) fn soft(tokens: &[Token], chosen: Letter) -> Option<f64> {
    let of = |text: &str| exact(text.trim_matches(|c: char| !c.is_alphanumeric()));
    let token = tokens.iter().rev().find(|token| of(&token.text) == Some(chosen))?;
    let mut mass = [0.0; 3];
    for (text, logprob) in &token.top {
        if let Some(letter) = of(text) {
            mass[letter as usize] += logprob.exp();
        }
    }
    // A token drawn from further down than the alternatives reach.
    if !token.top.iter().any(|(text, _)| *text == token.text) {
        mass[chosen as usize] += token.logprob.exp();
    }
    let total: f64 = mass.iter().sum();
    (token.top.len() > 1 && total > 0.0).then(|| (mass[0] + mass[2] / 2.0) / total)
}

/// A grade of 1 to `scale`, if the judge clearly gave one.
pub(crate) fn grade(text: &str, scale: u32) -> Option<f64> {
    let text = after_thoughts(text);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let plain = line.to_lowercase();
    let plain = plain.trim_matches(|c: char| !c.is_alphanumeric());
    let plain = ["score", "grade", "rating", "answer"]
        .iter()
        .find_map(|lead| plain.strip_prefix(lead))
        .unwrap_or(plain);
    let plain = plain.trim_start_matches(|c: char| !c.is_alphanumeric());
    let plain = plain.strip_prefix("is ").unwrap_or(plain);
    let plain = plain.strip_suffix(&format!("/{scale}")).unwrap_or(plain);
    let plain = plain.strip_suffix(&format!(" out of {scale}")).unwrap_or(plain);
    let number: f64 = plain.trim().parse().ok()?;
    (number.is_finite() && number >= 1.0 && number <= f64::from(scale)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_that_are_answers_and_those_that_are_not() {
        use Letter::{A, B, C};
        let cases: &[(&str, Option<Letter>)] = &[
            ("A", Some(A)),
            (" b ", Some(B)),
            ("(A)", Some(A)),
            ("**B**", Some(B)),
            ("C.", Some(C)),
            ("tie", Some(C)),
            ("Answer: A", Some(A)),
            ("The answer is (B).", Some(B)),
            ("[[A]]", Some(A)),
            ("I think so. [[B]]", Some(B)),
            ("Reply A", Some(A)),
            ("reply-B", Some(B)),
            ("They differ in tone.\n\nVerdict: B", Some(B)),
            ("They differ.\nB", Some(B)),
            ("<think>A seems good. A</think>\nB", Some(B)),
            ("Equally good.", Some(C)),
            // Nonsense, essays, contradictions.
            ("", None),
            ("A good reply would be kinder.", None),
            ("[[A]] or [[B]]", None),
            ("banana", None),
            ("A or B", None),
            ("D", None),
            ("AB", None),
            ("I am a", None),
            ("A\nis better than B in all ways", None),
            ("The answer depends on B", None),
            ("[[A", Some(A)),
            ("🍌", None),
            ("<think>A", None),
        ];
        for (text, expected) in cases {
            assert_eq!(letter(text), *expected, "{text:?}");
        }
    }

    #[test]
    fn probabilities_come_from_the_token_that_chose() {
        let token = |text: &str, top: &[(&str, f64)]| Token {
            text: text.to_owned(),
            logprob: -0.5,
            top: top.iter().map(|(t, p)| ((*t).to_owned(), p.ln())).collect(),
        };
        let close = |found: Option<f64>, expected: f64| {
            let found = found.expect("there is a probability");
            assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
        };
        close(soft(&[token("A", &[("A", 0.6), ("B", 0.2), ("x", 0.2)])], Letter::A), 0.75);
        close(soft(&[token(" B", &[(" B", 0.5), ("B", 0.1), (" A", 0.2), ("C", 0.2)])], Letter::B), 0.3);
        let essay =
            [token("Answer", &[("Answer", 1.0)]), token("A", &[("A", 0.9), ("B", 0.1)]), token(".", &[])];
        close(soft(&essay, Letter::A), 0.9);
        assert_eq!(soft(&[], Letter::A), None);
        assert_eq!(soft(&[token("A", &[("A", 1.0)])], Letter::A), None, "one alternative is no distribution");
        let drawn = soft(&[token("B", &[("A", 0.5), ("C", 0.1)])], Letter::B).unwrap();
        let b = (-0.5f64).exp();
        assert!((drawn - 0.55 / (0.6 + b)).abs() < 1e-12);
    }

    #[test]
    fn grades() {
        let cases: &[(&str, Option<f64>)] = &[
            ("7", Some(7.0)),
            ("Score: 7", Some(7.0)),
            ("**8/10**", Some(8.0)),
            ("9 out of 10", Some(9.0)),
            ("It is fine.\nGrade: 3.5", Some(3.5)),
            ("the reply is a 7", None),
            ("11", None),
            ("0", None),
            ("", None),
            ("seven", None),
            ("NaN", None),
            ("7 or 8", None),
            ("<think>3</think>4", Some(4.0)),
        ];
        for (text, expected) in cases {
            assert_eq!(grade(text, 10), *expected, "{text:?}");
        }
    }
}
