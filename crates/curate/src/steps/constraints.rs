//! Constraints on form that an English instruction states: counted by patterns.
//!
//! The kinds are those of IFEval (Zhou et al. 2023, table 1): lengths, keywords, numbers of parts, case, beginning and end,
//! punctuation, language, format. A pattern that matches anywhere counts once.

use std::sync::LazyLock;

use regex::{Regex, RegexSet};

/// A number, in digits or as a word.
const N: &str = r"(?:\d+|one|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|fifty|hundred)";

/// A kind of constraint with its pattern; `#` stands for a number.
const PATTERNS: &[(&str, &str)] = &[
    (
        "bound",
        r"\b(?:at (?:least|most)|no (?:more|less|fewer) than|(?:less|more|fewer) than|exactly|up to|minimum of|maximum of|around|between) #\+?(?: and #)? (?:[a-z]+ ){0,2}(?:word|sentence|paragraph|line|character|letter|syllable|token|bullet|section|placeholder|highlight|time|part|example|response|keyword|item|step|stanza|reason|idea)s?\b",
    ),
    ("length", r"\b#\+? ?(?:-|to )?(?:word|sentence|paragraph|line|character|letter|syllable|token)s?\b"),
    (
        "parts",
        r"\b#(?:\+| or more)? (?:[a-z]+ )?(?:bullet|bullet point|section|step|example|reason|idea|placeholder|response|highlight)s?\b",
    ),
    (
        "no use",
        r"\b(?:do not|don't|without|avoid|refrain from|not allowed to|never) (?:use|using|include|including|contain|containing|mention|mentioning|any|say|saying|repeat|repeating|add|adding|have)\b",
    ),
    (
        "keywords",
        r"\b(?:keywords?|the words?|the phrase|the letter|the sentence)\b.{0,40}(?:'|\x22|\*|\[|appear|times)|\b(?:include|mention|use|contain)s? the (?:following )?(?:key)?(?:word|phrase|term|sentence)s?\b",
    ),
    ("case", r"\b(?:all )?(?:lower ?case|upper ?case|capital letters|all caps|all capital|capitali[sz]ed)\b"),
    (
        "begin or end",
        r"\b(?:start|begin|end|finish|conclude)s?(?:ing)? (?:your\b|(?:it|the (?:entire )?(?:response|answer|letter|essay|email|story|reply|post)) with\b|with (?:the |this |a )?(?:exact |following )?(?:phrase|word|sentence|letter|question|[\x22']))",
    ),
    (
        "format",
        r"\b(?:in |as |valid |using )?(?:json|xml|yaml|html|csv|markdown|latex|a table|bullet points?|numbered list|bulleted list)\b(?: format)?",
    ),
    (
        "wrap",
        r"\b(?:wrap(?:ped)?|enclosed?|surrounded|separated?) (?:[a-z]+ ){0,4}(?:in|with|by|within)\b|double (?:angular brackets|quotation|quotes)|\b(?:title|postscript|p\.s)\b.{0,30}(?:brackets|<<|p\.)",
    ),
    ("punctuation", r"\bcommas?\b|\bexclamation (?:mark|point)s?\b|\bquestion marks?\b"),
    (
        "language",
        r"\b(?:in|into|only|entirely in|other than) (?:the )?(?:english|french|german|spanish|italian|portuguese|russian|chinese|japanese|korean|hindi|arabic|kannada|marathi|bengali|telugu|urdu|swahili|thai|finnish|vietnamese|bulgarian|persian|punjabi|tamil|gujarati|nepali)\b(?: language)?",
    ),
    ("style", r"\bin the (?:style|voice|tone|form) of\b|\b(?:as if|written for|for an audience)\b"),
    (
        "repeat",
        r"\brepeat the (?:request|question|prompt|sentence)\b|\b(?:two|2) different responses\b|\bsix asterisk",
    ),
];

fn pattern(text: &str) -> String {
    format!("(?i){}", text.replace('#', N))
}

static SET: LazyLock<RegexSet> = LazyLock::new(|| {
    RegexSet::new(PATTERNS.iter().map(|(_, text)| pattern(text)))
        .expect("the patterns are constant and right")
});

/// The kinds of constraints that an instruction states, each once.
pub(crate) fn constraints_of(instruction: &str) -> Vec<&'static str> {
    SET.matches(instruction).into_iter().map(|i| PATTERNS[i].0).collect()
}

static NUMBERED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?m)^\s*(?:\d+[.):]|[-*•]|(?i:step) \d+)\s").expect("the pattern is constant and right")
});

/// Steps that a reply is in: items of its lists, or otherwise its lines.
pub(crate) fn steps_of(reply: &str) -> usize {
    let n_lines = reply.lines().filter(|line| !line.trim().is_empty()).count();
    match NUMBERED.find_iter(reply).count() {
        0 | 1 => n_lines,
        n => n,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_are_found_and_plain_questions_have_none() {
        let cases: &[(&str, &[&str])] = &[
            ("Write at least 300 words, in all lowercase letters.", &["bound", "length", "case"]),
            ("Do not use any commas in your response.", &["no use", "punctuation"]),
            ("Answer in French with exactly 3 bullet points.", &["bound", "parts", "format", "language"]),
            ("Wrap your entire response with double quotation marks.", &["wrap"]),
            ("What is the capital of Peru?", &[]),
            ("How many apples are left?", &[]),
        ];
        for (text, expected) in cases {
            assert_eq!(constraints_of(text), *expected, "{text}");
        }
    }

    #[test]
    fn nearly_every_prompt_of_ifeval_states_a_constraint() {
        let Some(data) = pt_core::testdata::shared_data() else { return };
        let check = |path: &str, column: &str| {
            let text = std::fs::read_to_string(data.join(path)).unwrap();
            let rows: Vec<serde_json::Value> =
                text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let found =
                rows.iter().filter(|row| !constraints_of(row[column].as_str().unwrap()).is_empty()).count();
            found as f64 / rows.len() as f64
        };
        let (ifeval, mawps) =
            (check("ifeval/input_data.jsonl", "prompt"), check("mawps/singleop.jsonl", "input"));
        assert!(ifeval > 0.9, "{ifeval}");
        assert!(mawps < 0.05, "{mawps}");
    }

    #[test]
    fn steps_are_list_items_or_lines() {
        assert_eq!(steps_of("1. a\n2. b\n   more\n3. c"), 3);
        assert_eq!(steps_of("a\n\nb"), 2);
        assert_eq!(steps_of("Step 1 x\nStep 2 y\nso"), 2);
        assert_eq!(steps_of(""), 0);
    }
}
