//! Words, and hashes of words and n-grams.
//!
//! A word is a longest run of letters and digits (Unicode), lower-cased; everything else only separates. So two texts
//! that differ in case, punctuation or white space have the same words. Hashes are ours and fixed, so that results are
//! the same on every machine.

/// A word's place in its text, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// The words of `text` as hashes, and where each stands.
pub(crate) fn hashed_words(text: &str) -> (Vec<u64>, Vec<Span>) {
    let (mut hashes, mut spans) = (Vec::new(), Vec::new());
    each_word(text, |hash, span| {
        hashes.push(hash);
        spans.push(span);
    });
    (hashes, spans)
}

/// The words of `text` as hashes.
pub(crate) fn word_hashes(text: &str) -> Vec<u64> {
    let mut hashes = Vec::with_capacity(text.len() / 6);
    each_word(text, |hash, _| hashes.push(hash));
    hashes
}

/// The words of `text`, lower-cased.
pub(crate) fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

/// How many words `text` has.
pub(crate) fn count_words(text: &str) -> usize {
    let mut n = 0;
    each_word(text, |_, _| n += 1);
    n
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

fn each_word(text: &str, mut f: impl FnMut(u64, Span)) {
    let mut start = None;
    let mut hash = FNV_OFFSET;
    let push = |byte: u8, hash: &mut u64| *hash = (*hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
    for (at, c) in text.char_indices() {
        let is_word = if c.is_ascii() { c.is_ascii_alphanumeric() } else { c.is_alphanumeric() };
        if is_word {
            start.get_or_insert(at);
            if c.is_ascii() {
                push(c.to_ascii_lowercase() as u8, &mut hash);
            } else {
                let mut buffer = [0; 4];
                for lower in c.to_lowercase() {
                    lower.encode_utf8(&mut buffer).bytes().for_each(|byte| push(byte, &mut hash));
                }
            }
        } else if let Some(start) = start.take() {
            f(mix(hash), Span { start, end: at });
            hash = FNV_OFFSET;
        }
    }
    if let Some(start) = start {
        f(mix(hash), Span { start, end: text.len() });
    }
}

/// The finaliser of SplitMix64 (Steele et al. 2014): every input bit changes every output bit.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A hash of each run of `n` words, in order; none where there are fewer words.
pub(crate) fn ngrams(words: &[u64], n: usize) -> impl Iterator<Item = u64> + '_ {
    words.windows(n).map(ngram)
}

/// A hash of a run of words.
pub(crate) fn ngram(words: &[u64]) -> u64 {
    mix(words.iter().fold(words.len() as u64, |hash, word| {
        hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ word
    }))
}

/// At most `limit` characters of `text`, with a mark where it was cut.
pub(crate) fn excerpt(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

/// At most `limit` characters of `text` around a span.
pub(crate) fn around(text: &str, span: Span, limit: usize) -> String {
    let margin = limit.saturating_sub(span.end - span.start) / 2;
    let start =
        (0..=span.start.saturating_sub(margin)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let end = (span.end + margin).min(text.len());
    let end = (end..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    let (before, after) = (if start > 0 { "..." } else { "" }, if end < text.len() { "..." } else { "" });
    format!("{before}{}{after}", &text[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_ignore_case_punctuation_and_space() {
        let same =
            [("Hello,  World!", "hello world"), ("ÉTÉ\n2024", "été 2024"), ("a-b", "A b"), ("", " .,")];
        for (a, b) in same {
            assert_eq!(word_hashes(a), word_hashes(b), "{a} / {b}");
        }
        assert_ne!(word_hashes("ab c"), word_hashes("a bc"));
        assert_eq!(words("Don't STOP").collect::<Vec<_>>(), ["don", "t", "stop"]);
        let (hashes, spans) = hashed_words("one, two");
        assert_eq!((hashes.len(), spans[1]), (2, Span { start: 5, end: 8 }));
        assert_eq!(count_words("one, two"), 2);
    }

    #[test]
    fn ngrams_depend_on_order_and_length() {
        let words = word_hashes("a b a b");
        let grams: Vec<u64> = ngrams(&words, 2).collect();
        assert_eq!((grams.len(), grams[0] == grams[2], grams[0] == grams[1]), (3, true, false));
        assert_eq!(ngrams(&words, 5).count(), 0);
    }

    #[test]
    fn excerpts_are_cut_between_characters() {
        assert_eq!(excerpt("äöü", 2), "äö...");
        assert_eq!(excerpt("äöü", 3), "äöü");
        assert_eq!(around("ääää x öööö", Span { start: 9, end: 10 }, 3), "... x ...");
    }
}
