//! Python's notion of spaces, letters and words, and NLTK's word tokenizer, as far as IFEval needs them.

use std::sync::LazyLock;

use regex::Regex;

/// Whether Python's `str.isspace` holds.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's `str.strip`.
pub(super) fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Python's `str.isupper`: some cased letter, and none that is not upper case.
pub(super) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(|c| c.is_lowercase() || is_title(c))
}

/// Python's `str.islower`.
pub(super) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(|c| c.is_uppercase() || is_title(c))
}

/// A digraph such as `ǅ`, which is neither upper nor lower case.
fn is_title(c: char) -> bool {
    !c.is_uppercase() && !c.is_lowercase() && !c.to_lowercase().eq([c]) && !c.to_uppercase().eq([c])
}

/// Python's `\w`: a letter, a number or an underscore; no combining marks.
pub(super) fn is_word(c: char) -> bool {
    static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^[\p{L}\p{N}_]$").expect("a valid pattern"));
    match c.is_ascii() {
        true => c.is_ascii_alphanumeric() || c == '_',
        false => WORD.is_match(c.encode_utf8(&mut [0; 4])),
    }
}

/// How many runs of word characters there are.
pub(super) fn count(text: &str) -> usize {
    let mut n_words = 0;
    let mut inside = false;
    for c in text.chars() {
        let is_word = is_word(c);
        n_words += usize::from(is_word && !inside);
        inside = is_word;
    }
    n_words
}

/// Substitutions of NLTK's word tokenizer (Treebank's rules), in order. The rule for opening single quotes is left
/// out: it splits a quote from the word that follows, which changes no word's case.
static RULES: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    let rules = [
        ("([«“‘„]|`+)", " $1 "),
        ("^\"", "``"),
        ("(``)", " $1 "),
        (r#"([ (\[{<])("|'{2})"#, "$1 `` "),
        (r#"([^.])(\.)([\])}>"'»”’ ]*)\s*$"#, "$1 $2 $3 "),
        (r"([:,])([^\d])", " $1 $2"),
        (r"([:,])$", " $1 "),
        (r"\.{2,}", " $0 "),
        ("[;@#$%&]", " $0 "),
        (r"[\u{2012}-\u{2015}]", " $0 "),
        (r#"([^.])(\.)([\])}>"']*)\s*$"#, "$1 $2$3 "),
        ("[?!]", " $0 "),
        ("([^'])' ", "$1 ' "),
        ("[*]", " $0 "),
        (r"[\]\[(){}<>]", " $0 "),
        ("--", " -- "),
        ("$", " "),
        ("^", " "),
        ("([»”’])", " $1 "),
        ("''", " '' "),
        ("\"", " '' "),
        (r"\s+", " "),
        ("([^' ])('[sS]|'[mM]|'[dD]|') ", "$1 $2 "),
        ("([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", "$1 $2 "),
        (r"(?i)\b(can)(not)\b", " $1 $2 "),
        (r"(?i)\b(d)('ye)\b", " $1 $2 "),
        (r"(?i)\b(gim)(me)\b", " $1 $2 "),
        (r"(?i)\b(gon)(na)\b", " $1 $2 "),
        (r"(?i)\b(got)(ta)\b", " $1 $2 "),
        (r"(?i)\b(lem)(me)\b", " $1 $2 "),
        (r"(?i)\b(more)('n)\b", " $1 $2 "),
        (r"(?i)\b(wan)(na)\s", " $1 $2 "),
        (r"(?i) ('t)(is)\b", " $1 $2 "),
        (r"(?i) ('t)(was)\b", " $1 $2 "),
    ];
    let compile =
        |(pattern, into): (&str, &'static str)| (Regex::new(pattern).expect("a valid pattern"), into);
    rules.into_iter().map(compile).collect()
});

/// How many of NLTK's word tokens are in capitals. The tokens are those of the whole text: where sentences end
/// decides only whether a full stop is a token of its own.
pub(super) fn count_capitals(text: &str) -> usize {
    let mut text = text.to_owned();
    for (pattern, into) in RULES.iter() {
        text = pattern.replace_all(&text, *into).into_owned();
    }
    text.split(is_space).filter(|token| is_upper(token)).count()
}
