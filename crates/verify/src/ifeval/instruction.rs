//! One instruction with its arguments, and its check.

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use super::words::{is_lower, is_space, is_upper, trim};
use super::{json, language, sentences, words};

/// A checkable instruction.
#[derive(Clone, Debug)]
pub(super) enum Instruction {
    Keywords(Vec<Regex>),
    KeywordFrequency(Regex, Amount),
    ForbiddenWords(Vec<Regex>),
    LetterFrequency(char, Amount),
    Language(&'static str),
    Sentences(Amount),
    Paragraphs(usize),
    Words(Amount),
    FirstWord { n_paragraphs: usize, nth: usize, word: String },
    Placeholders(usize),
    Postscript(Regex),
    Bullets(usize),
    ConstrainedResponse,
    Highlights(usize),
    Sections(Regex, usize),
    Json,
    Title,
    TwoResponses,
    RepeatPrompt(String),
    EndsWith(String),
    CapitalWords(Amount),
    AllCapitals,
    AllLowercase,
    NoComma,
    Quotation,
}

/// A bound on a number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Amount {
    is_lower_bound: bool,
    bound: usize,
}

impl Amount {
    fn check(self, found: usize, what: &str) -> Result<(), String> {
        let relation = if self.is_lower_bound { "at least" } else { "less than" };
        need((found >= self.bound) == self.is_lower_bound, || {
            format!("{found} {what}, expected {relation} {}", self.bound)
        })
    }
}

fn need(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

/// Arguments by name; an empty or zero one is absent, as in the official code.
struct Arguments<'a>(&'a Map<String, Value>);

impl Arguments<'_> {
    fn text(&self, name: &str) -> Result<&str, String> {
        let text = self.0.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        text.ok_or_else(|| format!("`kwargs` has no text `{name}`"))
    }

    fn number(&self, name: &str) -> Result<usize, String> {
        let value = self.0.get(name);
        // Columns with missing values come out of some readers as floating-point numbers.
        let number =
            value.and_then(|v| v.as_u64().or_else(|| v.as_f64().filter(|f| *f >= 1.0).map(|f| f as u64)));
        let number = number.filter(|number| *number > 0).and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| format!("`kwargs` has no positive number `{name}`"))
    }

    fn amount(&self, number: &str, relation: &str) -> Result<Amount, String> {
        let is_lower_bound = match self.text(relation)? {
            "at least" => true,
            "less than" => false,
            other => return Err(format!("`{relation}` is `{other}`, expected `at least` or `less than`")),
        };
        Ok(Amount { is_lower_bound, bound: self.number(number)? })
    }

    fn patterns(&self, name: &str, around: &str) -> Result<Vec<Regex>, String> {
        let words = self.0.get(name).and_then(Value::as_array).filter(|words| !words.is_empty());
        let words = words.ok_or_else(|| format!("`kwargs` has no list `{name}`"))?;
        let each = words.iter().map(|word| {
            let word = word.as_str().ok_or_else(|| format!("`{name}` holds {word}, expected texts"))?;
            pattern(&format!("{around}{word}{around}"), true)
        });
        each.collect()
    }
}

fn pattern(text: &str, ignore_case: bool) -> Result<Regex, String> {
    RegexBuilder::new(text)
        .case_insensitive(ignore_case)
        .multi_line(true)
        .size_limit(1 << 22)
        .build()
        .map_err(|e| format!("`{text}` is no pattern of the linear-time kind: {e}"))
}

fn fixed(text: &str) -> Regex {
    pattern(text, false).expect("a valid pattern")
}

impl Instruction {
    /// The instruction of an id such as `punctuation:no_comma`, or what is wrong with it or its arguments.
    pub(super) fn new(id: &str, kwargs: &Map<String, Value>) -> Result<Instruction, String> {
        let given = Arguments(kwargs);
        Ok(match id {
            "keywords:existence" => Self::Keywords(given.patterns("keywords", "")?),
            "keywords:frequency" => Self::KeywordFrequency(
                pattern(trim(given.text("keyword")?), true)?,
                given.amount("frequency", "relation")?,
            ),
            "keywords:forbidden_words" => Self::ForbiddenWords(given.patterns("forbidden_words", r"\b")?),
            "keywords:letter_frequency" => {
                let letter = given.text("letter")?;
                let is_letter = letter.len() == 1 && letter.chars().all(|c| c.is_ascii_alphabetic());
                need(is_letter, || format!("`letter` is {letter:?}, expected one letter a to z"))?;
                let letter = letter.to_lowercase().chars().next().expect("one letter");
                Self::LetterFrequency(letter, given.amount("let_frequency", "let_relation")?)
            }
            "language:response_language" => {
                let code = given.text("language")?;
                Self::Language(
                    language::known(code).ok_or_else(|| format!("the language `{code}` is unknown here"))?,
                )
            }
            "length_constraints:number_sentences" => {
                Self::Sentences(given.amount("num_sentences", "relation")?)
            }
            "length_constraints:number_paragraphs" => Self::Paragraphs(given.number("num_paragraphs")?),
            "length_constraints:number_words" => Self::Words(given.amount("num_words", "relation")?),
            "length_constraints:nth_paragraph_first_word" => {
                let (n_paragraphs, nth) = (given.number("num_paragraphs")?, given.number("nth_paragraph")?);
                need(nth <= n_paragraphs, || {
                    format!("`nth_paragraph` is {nth}, more than `num_paragraphs`, {n_paragraphs}")
                })?;
                Self::FirstWord { n_paragraphs, nth, word: given.text("first_word")?.to_lowercase() }
            }
            "detectable_content:number_placeholders" => Self::Placeholders(given.number("num_placeholders")?),
            "detectable_content:postscript" => {
                Self::Postscript(match trim(given.text("postscript_marker")?) {
                    "P.P.S" => fixed(r"\s*p\.\s?p\.\s?s.*$"),
                    "P.S." => fixed(r"\s*p\.\s?s\..*$"),
                    other => pattern(&format!(r"\s*{}.*$", other.to_lowercase()), false)?,
                })
            }
            "detectable_format:number_bullet_lists" => Self::Bullets(given.number("num_bullets")?),
            "detectable_format:constrained_response" => Self::ConstrainedResponse,
            "detectable_format:number_highlighted_sections" => {
                Self::Highlights(given.number("num_highlights")?)
            }
            "detectable_format:multiple_sections" => {
                let marker = trim(given.text("section_spliter")?);
                Self::Sections(
                    pattern(&format!(r"\s?{marker}\s?\d+\s?"), false)?,
                    given.number("num_sections")?,
                )
            }
            "detectable_format:json_format" => Self::Json,
            "detectable_format:title" => Self::Title,
            "combination:two_responses" => Self::TwoResponses,
            "combination:repeat_prompt" => {
                Self::RepeatPrompt(trim(given.text("prompt_to_repeat")?).to_lowercase())
            }
            "startend:end_checker" => Self::EndsWith(trim(given.text("end_phrase")?).to_lowercase()),
            "change_case:capital_word_frequency" => {
                Self::CapitalWords(given.amount("capital_frequency", "capital_relation")?)
            }
            "change_case:english_capital" => Self::AllCapitals,
            "change_case:english_lowercase" => Self::AllLowercase,
            "punctuation:no_comma" => Self::NoComma,
            "startend:quotation" => Self::Quotation,
            _ => return Err("no such instruction among the 25 of IFEval".to_owned()),
        })
    }

    /// Whether `text` follows it; otherwise what was found and what was expected.
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        match self {
            Self::Keywords(patterns) => match patterns.iter().find(|pattern| !pattern.is_match(text)) {
                Some(pattern) => Err(format!("`{pattern}` does not occur")),
                None => Ok(()),
            },
            Self::KeywordFrequency(pattern, amount) => {
                amount.check(pattern.find_iter(text).count(), &format!("times `{pattern}`"))
            }
            Self::ForbiddenWords(patterns) => match patterns.iter().find_map(|pattern| pattern.find(text)) {
                Some(found) => Err(format!("`{}` occurs", found.as_str())),
                None => Ok(()),
            },
            Self::LetterFrequency(letter, amount) => {
                let n = text.to_lowercase().chars().filter(|c| c == letter).count();
                amount.check(n, &format!("times the letter {letter}"))
            }
            Self::Language(code) => language::check(text, code),
            Self::Sentences(amount) => amount.check(sentences::count(text), "sentences"),
            Self::Paragraphs(n) => paragraphs(text, *n),
            Self::Words(amount) => amount.check(words::count(text), "words"),
            Self::FirstWord { n_paragraphs, nth, word } => first_word(text, *n_paragraphs, *nth, word),
            Self::Placeholders(n) => Amount { is_lower_bound: true, bound: *n }
                .check(fixed(r"\[.*?\]").find_iter(text).count(), "placeholders"),
            Self::Postscript(pattern) => {
                need(pattern.is_match(&text.to_lowercase()), || "there is no such postscript".to_owned())
            }
            Self::Bullets(n) => {
                let count = |pattern: &str| fixed(pattern).find_iter(text).count();
                let found = count(r"^\s*\*[^\*].*$") + count(r"^\s*-.*$");
                need(found == *n, || format!("{found} bullet points, expected {n}"))
            }
            Self::ConstrainedResponse => {
                let answers = ["My answer is yes.", "My answer is no.", "My answer is maybe."];
                need(answers.iter().any(|answer| text.contains(answer)), || {
                    "none of the three allowed answers occurs".to_owned()
                })
            }
            Self::Highlights(n) => {
                Amount { is_lower_bound: true, bound: *n }.check(highlights(text), "highlighted sections")
            }
            Self::Sections(marker, n) => {
                Amount { is_lower_bound: true, bound: *n }.check(marker.find_iter(text).count(), "sections")
            }
            Self::Json => need(json::is_json(trim(unfenced(text))), || "it is not JSON".to_owned()),
            Self::Title => {
                let is_filled =
                    |title: &str| !trim(title.trim_start_matches('<').trim_end_matches('>')).is_empty();
                need(fixed(r"<<[^\n]+>>").find_iter(text).any(|found| is_filled(found.as_str())), || {
                    "there is no <<title>>".to_owned()
                })
            }
            Self::TwoResponses => two_responses(text),
            Self::RepeatPrompt(prompt) => {
                need(trim(text).to_lowercase().starts_with(prompt.as_str()), || {
                    "it does not start with the request".to_owned()
                })
            }
            Self::EndsWith(phrase) => {
                let text = trim(text).trim_matches('"').to_lowercase();
                need(text.ends_with(phrase.as_str()), || format!("it does not end with `{phrase}`"))
            }
            Self::CapitalWords(amount) => amount.check(words::count_capitals(text), "words in capitals"),
            Self::AllCapitals => {
                need(is_upper(text), || "it is not all in capitals".to_owned())?;
                // The guess is made of letters as they stand in running text.
                language::check(&text.to_lowercase(), "eng")
            }
            Self::AllLowercase => {
                need(is_lower(text), || "it is not all in lower case".to_owned())?;
                language::check(text, "eng")
            }
            Self::NoComma => need(!text.contains(','), || "there is a comma".to_owned()),
            Self::Quotation => {
                let text = trim(text);
                let is_wrapped = text.len() > 1 && text.starts_with('"') && text.ends_with('"');
                need(is_wrapped, || "it is not wrapped in double quotation marks".to_owned())
            }
        }
    }
}

fn paragraphs(text: &str, n: usize) -> Result<(), String> {
    let pieces: Vec<bool> = fixed(r"\s?\*\*\*\s?").split(text).map(|piece| trim(piece).is_empty()).collect();
    let last = pieces.len() - 1;
    if pieces.iter().enumerate().any(|(i, is_empty)| *is_empty && i != 0 && i != last) {
        return Err("there is an empty paragraph between dividers".to_owned());
    }
    let found = pieces.iter().filter(|is_empty| !**is_empty).count();
    need(found == n, || format!("{found} paragraphs between dividers ***, expected {n}"))
}

fn first_word(text: &str, n_paragraphs: usize, nth: usize, expected: &str) -> Result<(), String> {
    let pieces: Vec<&str> = text.split("\n\n").map(trim).collect();
    let found = pieces.iter().filter(|piece| !piece.is_empty()).count();
    need(found == n_paragraphs, || format!("{found} paragraphs, expected {n_paragraphs}"))?;
    let word = pieces[nth - 1].split(is_space).next().unwrap_or("");
    let word = word.trim_start_matches('\'').trim_start_matches('"');
    let word = word.split(['.', ',', '?', '!', '\'', '"']).next().unwrap_or("").to_lowercase();
    need(word == expected, || format!("paragraph {nth} starts with `{word}`, expected `{expected}`"))
}

fn highlights(text: &str) -> usize {
    let single = fixed(r"\*[^\n\*]*\*");
    let double = fixed(r"\*\*[^\n\*]*\*\*");
    let is_filled = |found: &str| !trim(found.trim_matches('*')).is_empty();
    single.find_iter(text).filter(|found| is_filled(found.as_str())).count()
        + double.find_iter(text).filter(|found| is_filled(found.as_str())).count()
}

/// Without a code fence around it.
fn unfenced(text: &str) -> &str {
    let mut text = trim(text);
    for mark in ["```json", "```Json", "```JSON", "```"] {
        text = text.strip_prefix(mark).unwrap_or(text);
    }
    text.strip_suffix("```").unwrap_or(text)
}

fn two_responses(text: &str) -> Result<(), String> {
    let pieces: Vec<&str> = text.split("******").map(trim).collect();
    let last = pieces.len() - 1;
    if pieces.iter().enumerate().any(|(i, piece)| piece.is_empty() && i != 0 && i != last) {
        return Err("there is an empty response between two dividers".to_owned());
    }
    let filled: Vec<&&str> = pieces.iter().filter(|piece| !piece.is_empty()).collect();
    need(filled.len() == 2, || format!("{} responses between dividers ******, expected 2", filled.len()))?;
    need(filled[0] != filled[1], || "the two responses are the same".to_owned())
}
