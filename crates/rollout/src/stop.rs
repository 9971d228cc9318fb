//! Finding stop strings in the text of a sample while it grows.

use std::sync::Arc;

/// Text of token ids, without special tokens. Bytes that are not yet a whole character come out as U+FFFD at the end, as
/// `tokenizers` has it.
pub type Detokenise<'m> = Arc<dyn Fn(&[u32]) -> String + Send + Sync + 'm>;

/// Tokens of the prompt that decoding starts from, so that the sample's text continues the prompt's (white space,
/// characters in several tokens).
const CONTEXT_TOKENS: usize = 16;
/// Tokens whose text may stay open: no character takes more, whatever the vocabulary.
const OPEN_TOKENS: usize = 8;
/// What decoders put for bytes that are no character.
const REPLACEMENT: char = '\u{FFFD}';

/// A stop string that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Index among the stop strings.
    pub(crate) which: usize,
    /// Bytes of the sample's text before it.
    pub(crate) n_bytes: usize,
}

/// The text of a sample as far as it is decoded.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    text: String,
    /// Tokens (prompt and sample) from which decoding starts.
    from: usize,
    /// Tokens whose text is in `text`.
    read: usize,
    /// Text of the tokens after `read`.
    open: String,
}

impl Text {
    /// The empty text after a prompt of `n_prompt` tokens.
    pub(crate) fn new(n_prompt: usize) -> Text {
        let from = n_prompt.saturating_sub(CONTEXT_TOKENS);
        Text { text: String::new(), from, read: n_prompt, open: String::new() }
    }

    /// Adds the text of what is new in `tokens` (prompt and sample), and looks for the first stop string that it completes.
    pub(crate) fn push(
        &mut self,
        tokens: &[u32],
        detokenise: &dyn Fn(&[u32]) -> String,
        stop: &[String],
    ) -> Option<Found> {
        let longest = stop.iter().map(String::len).max()?;
        // Whatever was searched before was in `text` or `open`; only their ends can be part of something new.
        let searched = self.text.len() + self.open.trim_end_matches(REPLACEMENT).len();
        let before = detokenise(&tokens[self.from..self.read]);
        let all = detokenise(&tokens[self.from..]);
        self.open = all[common_prefix(&before, &all)..].to_owned();
        let is_open = self.open.ends_with(REPLACEMENT) && tokens.len() - self.read < OPEN_TOKENS;
        let whole = self.text.len() + self.open.trim_end_matches(REPLACEMENT).len();
        let mut text = std::mem::take(&mut self.text);
        let n_text = text.len();
        text += &self.open;
        // Nothing that ends in what was searched is found again.
        let mut start = searched.min(n_text).saturating_sub(longest);
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let found = first_match(&text[start..whole.max(start)], stop, searched.saturating_sub(start))
            .map(|found| Found { n_bytes: found.n_bytes + start, ..found });
        if is_open || self.open.is_empty() {
            text.truncate(n_text);
        } else {
            (self.from, self.read) = (self.read, tokens.len());
            self.open.clear();
        }
        self.text = text;
        found
    }

    /// The text, or what comes before a stop string.
    pub(crate) fn finish(mut self, found: Option<Found>) -> String {
        self.text += &self.open;
        if let Some(found) = found {
            self.text.truncate(found.n_bytes);
        }
        self.text
    }
}

/// Bytes in which two texts begin alike: what was open before may have become another character.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

/// The match that begins first, of those that end after `searched` bytes; of those that begin together, the first in the
/// list.
fn first_match(text: &str, stop: &[String], searched: usize) -> Option<Found> {
    let first = |(which, stop): (usize, &String)| {
        // Matches that overlap others of the same string count, too.
        let starts = text.char_indices().map(|(at, _)| at);
        let mut ends = starts.filter(|at| at + stop.len() > searched && text[*at..].starts_with(&**stop));
        ends.next().map(|n_bytes| Found { which, n_bytes })
    };
    stop.iter().enumerate().filter_map(first).min_by_key(|found| (found.n_bytes, found.which))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every token is a byte.
    fn bytes(tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens.iter().map(|&token| token as u8).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Tokens are pieces of text; the first of a text loses its space, as with SentencePiece.
    fn pieces(tokens: &[u32]) -> String {
        const PIECES: [&str; 6] = [" ab", "c", " ", "STO", "P!", ""];
        let text: String = tokens.iter().map(|&token| PIECES[token as usize]).collect();
        text.strip_prefix(' ').unwrap_or(&text).to_owned()
    }

    /// After how many tokens of `sample` which stop string is found, and the text before it.
    fn check(
        decode: fn(&[u32]) -> String,
        prompt: &[u32],
        sample: &[u32],
        stop: &[&str],
        expected: Option<(usize, usize)>,
        text: &str,
    ) {
        let stop: Vec<String> = stop.iter().map(|&stop| stop.to_owned()).collect();
        let (mut tokens, mut state) = (prompt.to_vec(), Text::new(prompt.len()));
        let mut found = None;
        for (i, &token) in sample.iter().enumerate() {
            tokens.push(token);
            if let Some(hit) = state.push(&tokens, &decode, &stop) {
                found = Some((i + 1, hit));
                break;
            }
        }
        assert_eq!(found.map(|(n, found)| (n, found.which)), expected, "{text:?}");
        assert_eq!(state.finish(found.map(|(_, found)| found)), text);
    }

    #[test]
    fn stop_strings_are_found_within_and_across_tokens() {
        let ascii = |text: &str| text.bytes().map(u32::from).collect::<Vec<u32>>();
        let prompt = ascii("a prompt with STOP in it");
        check(bytes, &prompt, &ascii("one STOP two"), &["STOP"], Some((8, 0)), "one ");
        check(bytes, &prompt, &ascii("one two"), &["STOP"], None, "one two");
        // Nothing of the prompt counts.
        check(bytes, &ascii("ST"), &ascii("OP then"), &["STOP"], None, "OP then");
        check(bytes, &prompt, &ascii("xaab"), &["aab", "ab"], Some((4, 0)), "x");
        check(bytes, &prompt, &ascii("xab"), &["b", "ab"], Some((3, 1)), "x");
        check(pieces, &[0, 1], &[0, 3, 5, 4, 1], &["STOP"], Some((4, 0)), " ab");
        check(pieces, &[0], &[2, 5, 0, 1], &[" abc"], Some((4, 0)), " ");
        check(pieces, &[0], &[3, 3, 4], &["OS", "P"], Some((2, 0)), "ST");
    }

    #[test]
    fn characters_in_several_tokens_are_waited_for() {
        let utf8 = |text: &str| text.bytes().map(u32::from).collect::<Vec<u32>>();
        check(bytes, &utf8("x"), &utf8("aé🦀b"), &["🦀"], Some((7, 0)), "aé");
        check(bytes, &utf8("x"), &utf8("a🦀"), &["é"], None, "a🦀");
        // A prompt that ends within a character.
        check(bytes, &[0xf0, 0x9f], &[0xa6, 0x80, 0x41], &["A"], Some((3, 0)), "🦀");
        // Bytes that never become a character do not hide what follows.
        let broken: Vec<u32> = [[0xff; 20].as_slice(), &[0x41, 0x42]].concat();
        let text = "\u{FFFD}".repeat(20);
        check(bytes, &utf8("x"), &broken, &["AB"], Some((22, 0)), &text);
    }
}
