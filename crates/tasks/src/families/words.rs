//! The small vocabulary that all families share.

use pt_core::rng::Draws;

pub(crate) const NAMES: &[&str] = &["Tom", "Ann", "Ben", "Mia", "Sam", "Eva", "Max", "Lea", "Jim", "Zoe"];
/// Every thing takes "a" and a plural in "s".
pub(crate) const THINGS: &[&str] =
    &["ball", "cup", "book", "coin", "pen", "hat", "key", "toy", "cake", "nut", "card", "ring"];
pub(crate) const COLOURS: &[&str] = &["red", "blue", "green", "black", "white", "pink", "brown", "gray"];
pub(crate) const SIZES: &[&str] = &["big", "small", "tiny", "huge"];
pub(crate) const PLACES: &[&str] = &["bed", "box", "desk", "door", "chair", "shelf"];
pub(crate) const ANIMALS: &[&str] = &["cat", "dog", "hen", "pig", "cow", "duck", "fox", "bird"];
pub(crate) const VERBS: &[&str] = &["sees", "finds", "likes", "takes", "hides", "wants"];

const CONSONANTS: &[u8] = b"bdjlmnprvz";
const VOWELS: &[u8] = b"aeiou";

/// A made-up word of consonants and vowels in turn, starting with a consonant.
pub(crate) fn made_up_word(n_letters: usize, draws: &mut Draws) -> String {
    (0..n_letters).map(|i| char::from(*draws.pick(if i % 2 == 0 { CONSONANTS } else { VOWELS }))).collect()
}

/// `n` different items, in random order.
///
/// # Panics
/// If there are fewer than `n`.
pub(crate) fn distinct<'a>(items: &[&'a str], n: usize, draws: &mut Draws) -> Vec<&'a str> {
    assert!(n <= items.len(), "{n} different items of only {}", items.len());
    let mut order: Vec<&str> = items.to_vec();
    draws.shuffle(&mut order);
    order.truncate(n);
    order
}

/// Worked steps that end in `right`, ending in `wrong` instead, and `wrong` as the final answer.
///
/// # Panics
/// If the steps do not end in `right`.
pub(crate) fn misworked(steps: &str, right: &str, wrong: &str) -> String {
    let (steps, stop) = steps.strip_suffix('.').map_or((steps, ""), |steps| (steps, "."));
    let head = steps.strip_suffix(right).unwrap_or_else(|| panic!("`{steps}` does not end in `{right}`"));
    format!("{head}{wrong}{stop}\n#### {wrong}")
}

/// `3 cups`, `1 cup`.
pub(crate) fn counted(n: i64, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}

/// A number near `right` that is not it and not negative, as a careless mistake would give.
pub(crate) fn near_miss(right: i64, draws: &mut Draws) -> i64 {
    let off = *draws.pick(&[1, 2, 10]);
    if draws.below(2) == 0 && right >= off { right - off } else { right + off }
}
