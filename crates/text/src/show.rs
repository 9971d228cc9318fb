//! Examples shown to people: which tokens there are, where each ends, and which train.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::mask::Example;
use crate::tokenizer::Tokenizer;

/// Bytes of text that an error shows at most.
const EXCERPT: usize = 400;
/// Tokens that an error shows on each side.
const AROUND: usize = 8;

/// How an example is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShowStyle {
    /// Terminal colours: trained tokens green, others dim, special tokens bold on their own colour;
    /// every second token is underlined so that borders show.
    Colour,
    /// Brackets: `[trained]`, `|other`.
    Plain,
}

/// The tokens of an example in reading order. Line ends are shown as `⏎` and also break the line.
pub fn show(example: &Example, tokenizer: &Tokenizer, style: ShowStyle) -> String {
    render(example, tokenizer, style, 0..example.len(), true)
}

/// A table, one token per line: position, id, weight, where it came from, text.
pub fn table(example: &Example, tokenizer: &Tokenizer) -> String {
    let mut out = String::new();
    for i in 0..example.len() {
        let piece = example.piece_of(i);
        let part = format!("{:?}", piece.part).to_lowercase();
        let part = piece.message.map_or_else(|| part.clone(), |m| format!("{part} of message {m}"));
        let id = example.token_ids[i];
        let text = token_text(example, tokenizer, i);
        let weight = example.weights[i];
        writeln!(out, "{i:6} {id:7} {weight:6.3}  {part:28} {text:?}").expect("writing to a string");
    }
    out
}

/// The tokens near `position`, in brackets, on one line.
pub(crate) fn around(example: &Example, tokenizer: &Tokenizer, position: usize) -> String {
    let range = position.saturating_sub(AROUND)..(position + AROUND + 1).min(example.len());
    let (before, after) = (range.start > 0, range.end < example.len());
    let shown = render(example, tokenizer, ShowStyle::Plain, range, false);
    format!("{}{shown}{}", if before { "… " } else { "" }, if after { " …" } else { "" })
}

/// Ids as their tokens, in quotes.
pub(crate) fn tokens(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let one = |id: &u32| format!("{:?}", tokenizer.decode(&[*id], false).unwrap_or_default());
    if ids.is_empty() { "nothing".to_owned() } else { ids.iter().map(one).collect::<Vec<_>>().join(" ") }
}

/// The end of a text that may be long.
pub(crate) fn excerpt(text: &str) -> String {
    if text.len() <= EXCERPT {
        return text.to_owned();
    }
    let start = (text.len() - EXCERPT..).find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    format!("… {}", &text[start..])
}

fn render(
    example: &Example,
    tokenizer: &Tokenizer,
    style: ShowStyle,
    range: std::ops::Range<usize>,
    break_lines: bool,
) -> String {
    let mut out = String::new();
    for i in range {
        let raw = token_text(example, tokenizer, i);
        let text = raw.replace('\r', "␍").replace('\n', "⏎").replace('\t', "⇥");
        let trains = i > 0 && example.weights[i] > 0.0;
        match style {
            ShowStyle::Plain if trains => write!(out, "[{text}]"),
            ShowStyle::Plain => write!(out, "|{text}"),
            ShowStyle::Colour => {
                let special = tokenizer.is_special(example.token_ids[i]);
                write!(out, "\u{1b}[{}m{text}\u{1b}[0m", colour(trains, special, i % 2 == 1))
            }
        }
        .expect("writing to a string");
        if break_lines && raw.contains('\n') {
            out.push('\n');
        }
    }
    out
}

/// The codes of ECMA-48 ("ANSI colours"): 32 green, 35 magenta, 1 bold, 2 dim, 4 underlined.
fn colour(trains: bool, special: bool, underlined: bool) -> String {
    let colour = match (trains, special) {
        (true, false) => "32",
        (true, true) => "1;32;7",
        (false, true) => "2;35;7",
        (false, false) => "2",
    };
    format!("{colour}{}", if underlined { ";4" } else { "" })
}

/// A token's own text; of several tokens that share a character, the last shows it.
fn token_text(example: &Example, tokenizer: &Tokenizer, i: usize) -> String {
    let range = &example.offsets[i];
    let shared =
        |other: Option<&std::ops::Range<usize>>| other.is_some_and(|o| o == range && !range.is_empty());
    if range.is_empty() {
        return tokenizer.id_to_token(example.token_ids[i]).unwrap_or_default();
    }
    if shared(example.offsets.get(i + 1)) {
        return "·".to_owned();
    }
    example.text[range.clone()].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::{MaskPolicy, Masker};
    use crate::{Origin, train_byte_bpe};

    fn check(style: ShowStyle, expected: &str) {
        let tokenizer = train_byte_bpe(["ab ab ab"], 259, &["<|end|>"]).unwrap();
        let masker = Masker::new(&tokenizer, None, MaskPolicy::default());
        let example = masker.prompt_completion_text(&Origin::default(), "ab\n", "abé").unwrap();
        assert_eq!(show(&example, &tokenizer, style), expected);
    }

    #[test]
    fn trained_and_untrained_tokens_can_be_told_apart() {
        check(ShowStyle::Plain, "|ab|⏎\n[ab][·][é][<|end|>]");
        check(
            ShowStyle::Colour,
            "\u{1b}[2mab\u{1b}[0m\u{1b}[2;4m⏎\u{1b}[0m\n\u{1b}[32mab\u{1b}[0m\u{1b}[32;4m·\u{1b}[0m\u{1b}[32mé\u{1b}[0m\
             \u{1b}[1;32;7;4m<|end|>\u{1b}[0m",
        );
    }

    #[test]
    fn the_table_has_a_line_per_token() {
        let tokenizer = train_byte_bpe(["ab"], 258, &["<|end|>"]).unwrap();
        let masker = Masker::new(&tokenizer, None, MaskPolicy::default());
        let example = masker.text(&Origin::default(), "ab").unwrap();
        let table = table(&example, &tokenizer);
        assert_eq!(table.lines().count(), 2);
        assert!(table.contains("added") && table.contains("\"<|end|>\""), "{table}");
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        let text = "é".repeat(EXCERPT);
        assert!(excerpt(&text).starts_with("… é") && excerpt(&text).len() < EXCERPT + 8);
    }
}
