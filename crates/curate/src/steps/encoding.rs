//! Texts that were damaged on the way: wrong encodings, invisible characters, endless repetition.
//!
//! | kind | what it is | repair |
//! | --- | --- | --- |
//! | `mojibake` | UTF-8 that was read as Windows-1252: `Ã©` for `é`, `â€™` for `’` | read again as UTF-8 |
//! | `control` | control characters but tab and line breaks | removed |
//! | `zero_width` | zero-width spaces and joiners of words, byte-order marks, direction overrides | removed |
//! | `replacement` | U+FFFD, a character that was lost | none |
//! | `escapes` | `\ud83d\ude00` written out: an escape that was escaped again | none |
//! | `mixed_scripts` | a word of Latin and Cyrillic letters, which look alike | none |
//! | `repetition` | one character 100 times, one word 20 times in a row, or 100 words of which under 5 % are different | none |
//!
//! Kinds in `repair` are repaired and the row goes on; those in `drop` drop it; others are not looked for. The zero-width
//! joiner and non-joiner (U+200C, U+200D) are left alone, emoji and several scripts need them. A sequence counts as mojibake where its
//! characters, as bytes of Windows-1252, are UTF-8 of a letter or sign of Latin-1 or of general punctuation, or of
//! two characters in a row of any living script; so `É”` after a word in capitals is not.
//!
//! Lone surrogates cannot be read from JSON at all: such rows are `unreadable`.

use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;

use pt_core::catalogue::OptionInfo;
use pt_data::Columns;
use regex::Regex;
use serde::Deserialize;

use super::redaction::regex;
use crate::catalogue::{CuratorInfo, parse};
use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::Summary;
use crate::step::Step;
use crate::view::{each_text, map_texts};
use crate::words::{excerpt, word_hashes};

const NAME: &str = "encoding";

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "text",
    summary: "repairs mojibake and invisible characters, and drops damaged or endlessly repeating texts",
    options: &[
        OptionInfo {
            name: "repair",
            kind: r#"list of "mojibake", "control", "zero_width""#,
            default: r#"["mojibake", "control", "zero_width"]"#,
            doc: "what is repaired",
        },
        OptionInfo {
            name: "drop",
            kind: r#"list of all kinds: also "replacement", "escapes", "mixed_scripts", "repetition""#,
            default: r#"["replacement", "escapes", "mixed_scripts", "repetition"]"#,
            doc: "what a row is dropped for",
        },
    ],
    build: |options, _| Ok(Box::new(Encoding::new(parse(NAME, options)?)?)),
};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    repair: Vec<String>,
    drop: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Options {
            repair: owned(&["mojibake", "control", "zero_width"]),
            drop: owned(&["replacement", "escapes", "mixed_scripts", "repetition"]),
        }
    }
}

/// Names of kinds; the first three can be repaired.
const KINDS: [&str; 7] =
    ["mojibake", "control", "zero_width", "replacement", "escapes", "mixed_scripts", "repetition"];
const N_REPAIRABLE: usize = 3;

struct Encoding {
    repair: Vec<&'static str>,
    drop: Vec<&'static str>,
    counts: BTreeMap<&'static str, u64>,
}

impl Encoding {
    fn new(options: Options) -> Result<Self, CurateError> {
        let named = |names: &[String],
                     all: &[&'static str],
                     what: &str|
         -> Result<Vec<&'static str>, CurateError> {
            let find = |name: &String| {
                all.iter().find(|kind| *kind == name).copied().ok_or_else(|| {
                    CurateError::option(
                        NAME,
                        format!("{what}: there is no kind `{name}`; {}", pt_core::suggest::hint(name, all)),
                    )
                })
            };
            names.iter().map(find).collect()
        };
        let repair = named(&options.repair, &KINDS[..N_REPAIRABLE], "repair")?;
        let drop = named(&options.drop, &KINDS, "drop")?;
        if let Some(both) = repair.iter().find(|kind| drop.contains(kind)) {
            return Err(CurateError::option(NAME, format!("`{both}` is in both `repair` and `drop`")));
        }
        Ok(Encoding { repair, drop, counts: BTreeMap::new() })
    }

    fn repaired(&self, text: &str) -> Option<String> {
        let mut out = text.to_owned();
        for kind in &self.repair {
            out = match *kind {
                "mojibake" => unmojibake(&out).0.unwrap_or(out),
                "control" => out.chars().filter(|c| !is_control(*c)).collect(),
                _ => out.chars().filter(|c| !is_zero_width(*c)).collect(),
            };
        }
        (out != text).then_some(out)
    }
}

fn is_control(c: char) -> bool {
    c.is_control() && !matches!(c, '\t' | '\n' | '\r')
}

fn is_zero_width(c: char) -> bool {
    matches!(c, '\u{200b}' | '\u{2060}' | '\u{feff}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

static ESCAPES: LazyLock<Regex> = LazyLock::new(|| regex(r"(?i)\\ud[89a-f][0-9a-f]{2}"));

/// What is wrong with a text: kinds, each with a piece of the text that shows it.
fn problems(text: &str) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut add = |kind: &'static str, evidence: String| found.push((kind, evidence));
    if !text.is_ascii() {
        if let (Some(_), evidence) = unmojibake(text) {
            add("mojibake", evidence);
        }
        if let Some(c) = text.chars().find(|c| is_zero_width(*c)) {
            add("zero_width", format!("U+{:04X}", u32::from(c)));
        }
        if let Some(at) = text.find('\u{fffd}') {
            add("replacement", excerpt(&text[at..], 30));
        }
        if let Some(word) = text.split(|c: char| !c.is_alphabetic()).find(|word| is_mixed(word)) {
            add("mixed_scripts", excerpt(word, 30));
        }
    }
    if let Some(c) = text.chars().find(|c| is_control(*c)) {
        add("control", format!("U+{:04X}", u32::from(c)));
    }
    if let Some(escape) = ESCAPES.find(text) {
        add("escapes", escape.as_str().to_owned());
    }
    if let Some(evidence) = repetition(text) {
        add("repetition", evidence);
    }
    found
}

fn is_mixed(word: &str) -> bool {
    if word.is_ascii() {
        return false;
    }
    let latin = word.chars().any(|c| c.is_ascii_alphabetic());
    latin && word.chars().any(|c| matches!(c, '\u{400}'..='\u{52f}'))
}

fn repetition(text: &str) -> Option<String> {
    let mut run: (char, usize) = (' ', 0);
    for c in text.chars() {
        run = if c == run.0 { (c, run.1 + 1) } else { (c, 1) };
        // Rules drawn in characters, and indentation, are long too.
        if run.1 >= 100
            && !c.is_whitespace()
            && !matches!(c, '-' | '=' | '_' | '*' | '#' | '.' | '~' | '─' | '═')
        {
            return Some(format!("`{c}` 100 times"));
        }
    }
    let words = word_hashes(text);
    let mut same = 1;
    for pair in words.windows(2) {
        same = if pair[0] == pair[1] { same + 1 } else { 1 };
        if same >= 20 {
            return Some("one word 20 times in a row".to_owned());
        }
    }
    let n_different = words.iter().collect::<HashSet<_>>().len();
    let few = words.len() >= 100 && n_different * 20 < words.len();
    few.then(|| format!("{} words, {n_different} different", words.len()))
}

/// The byte that Windows-1252 has for a character above ASCII; C1 controls stand for the five bytes it leaves out.
fn byte_1252(c: char) -> Option<u8> {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}',
        '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    match c {
        '\u{a0}'..='\u{ff}' => Some(c as u32 as u8),
        c if c.is_ascii() => None,
        c => HIGH.iter().position(|high| *high == c).map(|at| 0x80 + at as u8),
    }
}

/// The text with mojibake read again, and the first piece that was; `None` where there is none.
fn unmojibake(text: &str) -> (Option<String>, String) {
    let mut out = String::with_capacity(text.len());
    let (mut run, mut written, mut evidence) = (Vec::<(char, u8)>::new(), String::new(), String::new());
    let mut flush = |run: &mut Vec<(char, u8)>, out: &mut String| {
        decode_run(run, out, &mut written, &mut evidence);
        run.clear();
    };
    for c in text.chars() {
        match byte_1252(c) {
            Some(byte) => run.push((c, byte)),
            None => {
                flush(&mut run, &mut out);
                out.push(c);
            }
        }
    }
    flush(&mut run, &mut out);
    (!evidence.is_empty()).then_some(()).map_or((None, String::new()), |()| (Some(out), evidence.clone()))
}

/// Writes a run of characters that could be bytes, those that are UTF-8 decoded.
fn decode_run(run: &[(char, u8)], out: &mut String, decoded: &mut String, evidence: &mut String) {
    let mut at = 0;
    while at < run.len() {
        decoded.clear();
        let mut end = at;
        while let Some((c, n)) = decode_one(&run[end..]) {
            decoded.push(c);
            end += n;
        }
        // Latin-1 and punctuation are the signs of it; anything else only where it is more than chance.
        let is_common = |c: char| matches!(c, '\u{a0}'..='\u{ff}' | '\u{2010}'..='\u{2044}' | '€' | '™');
        if decoded.chars().any(is_common)
            || decoded.chars().nth(1).is_some()
            || decoded.chars().any(|c| c >= '\u{1f000}')
        {
            if evidence.is_empty() {
                evidence.extend(run[at..end].iter().take(12).map(|(c, _)| *c));
                evidence.push_str(" for ");
                evidence.extend(decoded.chars().take(12));
            }
            out.push_str(decoded);
            at = end;
        } else {
            out.push(run[at].0);
            at += 1;
        }
    }
}

/// The character that the first bytes of a run are in UTF-8, if it is one that people write, and how many bytes it has.
fn decode_one(run: &[(char, u8)]) -> Option<(char, usize)> {
    let n = match run.first()?.1 {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    let bytes: Vec<u8> = run.get(..n)?.iter().map(|(_, byte)| *byte).collect();
    let c = std::str::from_utf8(&bytes).ok()?.chars().next()?;
    let is_written = matches!(c,
        '\u{a0}'..='\u{6ff}' | '\u{900}'..='\u{e7f}' | '\u{2000}'..='\u{2bff}' | '\u{3000}'..='\u{9fff}'
        | '\u{ac00}'..='\u{d7a3}' | '\u{fe0f}' | '\u{ff00}'..='\u{ffef}' | '\u{1f000}'..);
    is_written.then_some((c, n))
}

impl Step for Encoding {
    type Seen = Vec<(&'static str, String)>;

    fn see(&self, item: &Item) -> Result<Self::Seen, CurateError> {
        let mut found = Vec::new();
        for value in item.row.value.values() {
            each_text(value, &mut |text| found.extend(problems(text)));
        }
        found.retain(|(kind, _)| self.repair.contains(kind) || self.drop.contains(kind));
        Ok(found)
    }

    fn decide(&mut self, item: &Item, found: Self::Seen) -> Decision {
        let kinds: std::collections::BTreeSet<&'static str> = found.iter().map(|(kind, _)| *kind).collect();
        kinds.iter().for_each(|kind| *self.counts.entry(kind).or_default() += 1);
        if let Some((kind, evidence)) = found.iter().find(|(kind, _)| self.drop.contains(kind)) {
            return Decision::drop(kind, evidence.as_str());
        }
        let Some((reason, _)) = found.first() else { return Decision::Keep };
        let mut value: Columns = item.row.value.clone();
        value.values_mut().for_each(|value| map_texts(value, &mut |text| self.repaired(text)));
        let detail =
            found.iter().map(|(kind, evidence)| format!("{kind}: {evidence}")).collect::<Vec<_>>().join("; ");
        Decision::Change { value, reason, detail }
    }

    fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for (kind, n) in &self.counts {
            summary.lines.push(format!("{kind}: {n} rows"));
            summary.facts.insert((*kind).to_owned(), (*n).into());
        }
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Harness, text};

    /// What a text becomes when its UTF-8 is read as Windows-1252.
    fn damage(text: &str) -> String {
        let all = (0x80..=0xffu32).filter_map(char::from_u32).chain("€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ".chars());
        let table: BTreeMap<u8, char> = all.filter_map(|c| Some((byte_1252(c)?, c))).collect();
        text.bytes().map(|byte| if byte < 0x80 { char::from(byte) } else { table[&byte] }).collect()
    }

    #[test]
    fn mojibake_is_read_again_and_right_text_is_left_alone() {
        for good in [
            "Café crème, naïve — “quoted” … it’s 5 €",
            "Привет, мир",
            "日本語のテキスト",
            "smile 😀 ok",
            "Zoë’s résumé",
        ] {
            let (again, _) = unmojibake(&damage(good));
            assert_eq!(again.as_deref(), Some(good), "{}", damage(good));
            assert_eq!(unmojibake(good).0, None, "{good}");
        }
        for good in
            ["CAFÉ” he said", "„Ä“ und „Ü“", "à «", "fermé»…", "Ångström, Übermaß, ¿Qué?", "x² ≤ ½", "ÀÉÎ"]
        {
            assert_eq!(unmojibake(good).0, None, "{good}");
        }
    }

    #[test]
    fn every_kind_is_found_and_repaired_or_dropped() {
        let cases = [
            ("plain text, naïve – fine 👩‍👩‍👧", None, None),
            ("CafÃ© time", Some("mojibake"), Some("Café time")),
            ("a\u{0}b\u{1b}[0m", Some("control"), Some("ab[0m")),
            ("zero\u{200b}width\u{feff}", Some("zero_width"), Some("zerowidth")),
            ("lost \u{fffd} character", Some("replacement"), None),
            ("twice \\ud83d\\ude00", Some("escapes"), None),
            ("p\u{430}ypal", Some("mixed_scripts"), None),
            ("Привет and hello, μm, Δx", None, None),
        ];
        for (sample, reason, repaired) in cases {
            let outcome = Harness::new(NAME, "").run(&[text(sample)]);
            assert_eq!(outcome.reason(0), reason, "{sample}");
            if let Some(repaired) = repaired {
                assert_eq!(outcome.changed(0)["text"], repaired);
            }
        }
        let long = ["ha ".repeat(30), "x".repeat(120), "a b c ".repeat(40)];
        for sample in long {
            assert_eq!(
                Harness::new(NAME, "").run(&[text(&sample)]).reason(0),
                Some("repetition"),
                "{sample}"
            );
        }
        for fine in ["-".repeat(200), " ".repeat(300), "no no no no".to_owned()] {
            assert_eq!(Harness::new(NAME, "").run(&[text(&fine)]).reason(0), None, "{fine}");
        }
    }

    #[test]
    fn kinds_go_where_they_are_put() {
        let rows = [text("CafÃ©"), text("a\u{0}")];
        assert_eq!(Harness::new(NAME, "repair = []\ndrop = [\"mojibake\"]").run(&rows).kept, [1]);
        assert!(Harness::refusal(NAME, "drop = [\"control\"]").contains("in both"));
        assert!(Harness::refusal(NAME, "repair = [\"replacement\"]").contains("there is no kind"));
    }

    #[test]
    fn real_sets_are_nearly_clean() {
        let Some(data) = pt_core::testdata::shared_data() else { return };
        for (path, most) in [
            ("gsm8k/train.jsonl.gz", 40),
            ("ifeval/input_data.jsonl", 5),
            ("self-instruct/seed_tasks.jsonl", 2),
        ] {
            let rows =
                pt_data::read::read_all(&data.join(path).display().to_string(), &Default::default()).unwrap();
            let rows: Vec<_> = rows.into_iter().map(|row| row.value.into()).collect();
            let outcome = Harness::new(NAME, "").run(&rows);
            assert!(outcome.details().len() <= most, "{path}: {:?}", outcome.details());
        }
    }
}
