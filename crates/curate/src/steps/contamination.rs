//! Rows that contain text of evaluation sets.
//!
//! Evaluation texts are indexed by their runs of `n` words (13 as for GPT-3, Brown et al. 2020, appendix C; 8 is stricter). A
//! row that has such a run is compared word by word there, to both sides, which gives the *longest common run* and the
//! *coverage*, the share of the evaluation text's words that stand in common runs. A row is contaminated where the run has at
//! least `min_run` words and the coverage is at least `min_coverage`. Evaluation texts shorter than `n` words but of at least
//! `min_words` are searched for as a whole; shorter ones are not searched for ("What is 2 + 2?" is nobody's), and are counted.
//!
//! Runs that more than `common_above` evaluation texts have are templates ("Answer the following question by choosing ...") and
//! do not begin a match. The matched words of the row are shown with the place of the evaluation text, so that a person
//! can judge: finds by n-grams alone are often false.
//!
//! Memory: the index, about 60 bytes for each word of the evaluation sets; the rows stream.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use pt_core::catalogue::OptionInfo;
use pt_data::Origin;
use pt_data::read::ReadOptions;
use serde::Deserialize;

use super::part_option;
use crate::catalogue::{CuratorInfo, parse};
use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::Summary;
use crate::source::read_small;
use crate::step::Step;
use crate::view::Part;
use crate::words::{excerpt, hashed_words, ngram, word_hashes};

const NAME: &str = "contamination";
/// Most characters of the matched text that are shown.
const SHOWN_CHARS: usize = 400;

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "contamination",
    summary: "drops rows that contain text of evaluation sets, and shows the text",
    options: &[
        OptionInfo { name: "against", kind: "list of sources", default: "", doc: "the evaluation sets" },
        part_option("\"all\""),
        OptionInfo {
            name: "n",
            kind: "integer from 3",
            default: "13",
            doc: "words of a run that begins a match; 8 is stricter",
        },
        OptionInfo {
            name: "min_run",
            kind: "integer",
            default: "0",
            doc: "the least longest common run; 0 is n",
        },
        OptionInfo {
            name: "min_coverage",
            kind: "number, 0 to 1",
            default: "0.0",
            doc: "the least share of the evaluation text in common runs",
        },
        OptionInfo {
            name: "min_words",
            kind: "integer from 3",
            default: "8",
            doc: "shorter evaluation texts are not searched for",
        },
        OptionInfo {
            name: "common_above",
            kind: "integer from 1",
            default: "10",
            doc: "runs in more evaluation texts than this are templates",
        },
        OptionInfo {
            name: "questions_only",
            kind: "bool",
            default: "false",
            doc: "whether only prompts of the evaluation sets count, not their answers",
        },
        OptionInfo {
            name: "action",
            kind: r#""drop", "flag""#,
            default: "\"drop\"",
            doc: "whether rows are dropped, or counted and shown",
        },
    ],
    build: |options, given| {
        let options: Options = parse(NAME, options)?;
        if options.against.is_empty() {
            return Err(CurateError::option(
                NAME,
                "`against` is required, as in against = [\"gsm8k/test.jsonl\"]",
            ));
        }
        if options.index.n < 3 || options.index.min_words < 3 || options.index.common_above == 0 {
            let IndexOptions { n, min_words, common_above, .. } = options.index;
            let problem = format!(
                "n, min_words, common_above are {n}, {min_words}, {common_above}; expected at least 3, 3, 1"
            );
            return Err(CurateError::option(NAME, problem));
        }
        if !(0.0..=1.0).contains(&options.min_coverage) {
            let problem = format!("min_coverage is {}, expected 0 to 1", options.min_coverage);
            return Err(CurateError::option(NAME, problem));
        }
        let index = Arc::new(Index::build(&options.against, &options.index, &given.read)?);
        Ok(Box::new(Contamination { options, index, by_set: BTreeMap::new(), longest: 0 }))
    },
};

#[derive(Deserialize)]
#[serde(default)]
struct Options {
    against: Vec<String>,
    part: Part,
    min_run: usize,
    min_coverage: f64,
    action: Action,
    #[serde(flatten)]
    index: IndexOptions,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Drop,
    Flag,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            against: Vec::new(),
            part: Part::All,
            min_run: 0,
            min_coverage: 0.0,
            action: Action::Drop,
            index: IndexOptions::default(),
        }
    }
}

/// How evaluation texts are searched for; see the module.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct IndexOptions {
    /// Words of a run that begins a match.
    pub n: usize,
    /// Shorter texts are not searched for.
    pub min_words: usize,
    /// Runs in more texts than this are templates.
    pub common_above: usize,
    /// Whether only prompts count.
    pub questions_only: bool,
}

impl Default for IndexOptions {
    fn default() -> Self {
        IndexOptions { n: 13, min_words: 8, common_above: 10, questions_only: false }
    }
}

/// A text of an evaluation set.
#[derive(Debug)]
struct EvalText {
    origin: Origin,
    set_idx: usize,
    words: Vec<u64>,
}

/// Evaluation texts by their runs of words.
#[derive(Debug)]
pub struct Index {
    n: usize,
    sets: Vec<String>,
    texts: Vec<EvalText>,
    /// For each run, where its postings are.
    runs: HashMap<u64, (u32, u32)>,
    /// Text and position of each run, those of one run together.
    postings: Vec<(u32, u32)>,
    /// Texts shorter than n words, by their length.
    short: BTreeMap<usize, HashMap<u64, u32>>,
    n_too_short: usize,
    n_templates: usize,
}

/// A text common to a row and an evaluation text.
#[derive(Clone, Debug, PartialEq)]
pub struct Contact {
    /// The evaluation set, as it was named.
    pub set: String,
    /// Where in it the text is.
    pub origin: Origin,
    /// The longest common run, in words.
    pub n_words: usize,
    /// The share of the evaluation text's words in common runs.
    pub coverage: f64,
    /// The longest common run, as it stands in the row.
    pub matched: String,
}

impl Index {
    /// Reads and indexes evaluation sets.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn build(sets: &[String], options: &IndexOptions, read: &ReadOptions) -> Result<Index, CurateError> {
        let mut texts = Vec::new();
        let mut n_too_short = 0;
        for (set_idx, set) in sets.iter().enumerate() {
            for item in read_small(set, read)? {
                let answers = [&item.view.reply, &item.view.rejected];
                let with_answers = !options.questions_only || item.view.prompt.is_empty();
                let parts =
                    std::iter::once(&item.view.prompt).chain(answers.into_iter().filter(|_| with_answers));
                for text in parts.filter(|text| !text.is_empty()) {
                    let words = word_hashes(text);
                    match words.len() < options.min_words {
                        true => n_too_short += 1,
                        false => texts.push(EvalText { origin: item.row.origin.clone(), set_idx, words }),
                    }
                }
            }
        }
        let mut index = Index {
            n: options.n,
            sets: sets.to_vec(),
            texts,
            runs: HashMap::new(),
            postings: Vec::new(),
            short: BTreeMap::new(),
            n_too_short,
            n_templates: 0,
        };
        index.fill(options.common_above);
        Ok(index)
    }

    fn fill(&mut self, common_above: usize) {
        let mut all: Vec<(u64, u32, u32)> = Vec::new();
        for (i, text) in self.texts.iter().enumerate() {
            if text.words.len() < self.n {
                // The first of equal texts is the one that is named.
                self.short.entry(text.words.len()).or_default().entry(ngram(&text.words)).or_insert(i as u32);
            }
            let runs = text.words.windows(self.n).enumerate();
            all.extend(runs.map(|(at, run)| (ngram(run), i as u32, at as u32)));
        }
        all.sort_unstable();
        for same in all.chunk_by(|a, b| a.0 == b.0) {
            let n_texts = same.chunk_by(|a, b| a.1 == b.1).count();
            if n_texts > common_above {
                self.n_templates += 1;
                continue;
            }
            self.runs.insert(same[0].0, (self.postings.len() as u32, same.len() as u32));
            self.postings.extend(same.iter().map(|(_, text, at)| (*text, *at)));
        }
    }

    /// The evaluation text that has the longest run in common with `row_text`; of equals the one that is covered most.
    pub fn contact(&self, row_text: &str) -> Option<Contact> {
        self.contact_where(row_text, |_, _| true)
    }

    /// As [`Index::contact`], of the texts whose longest common run, in words, and coverage are enough.
    pub fn contact_where(&self, row_text: &str, is_enough: impl Fn(usize, f64) -> bool) -> Option<Contact> {
        let (words, spans) = hashed_words(row_text);
        let mut found: BTreeMap<u32, Vec<(usize, usize, usize)>> = BTreeMap::new();
        for at in 0..(words.len() + 1).saturating_sub(self.n) {
            let Some((start, n)) = self.runs.get(&ngram(&words[at..at + self.n])) else { continue };
            for (text, eval_at) in &self.postings[*start as usize..(*start + *n) as usize] {
                self.extend(&words, at, *text, *eval_at as usize, found.entry(*text).or_default());
            }
        }
        for (n, texts) in &self.short {
            for at in 0..(words.len() + 1).saturating_sub(*n) {
                if let Some(text) = texts.get(&ngram(&words[at..at + n])) {
                    found.entry(*text).or_default().push((at, 0, *n));
                }
            }
        }
        let scored = found.into_iter().map(|(text, runs)| {
            let longest =
                runs.iter().copied().max_by_key(|(at, _, n)| (*n, usize::MAX - at)).unwrap_or_default();
            (longest, covered(&runs) as f64 / self.texts[text as usize].words.len() as f64, text)
        });
        let enough = scored.filter(|(longest, coverage, _)| is_enough(longest.2, *coverage));
        let (longest, coverage, text) =
            enough.max_by(|a, b| a.0.2.cmp(&b.0.2).then(a.1.total_cmp(&b.1)).then(b.2.cmp(&a.2)))?;
        let (at, _, n_words) = longest;
        let eval = &self.texts[text as usize];
        Some(Contact {
            set: self.sets[eval.set_idx].clone(),
            origin: eval.origin.clone(),
            n_words,
            coverage,
            matched: row_text[spans[at].start..spans[at + n_words - 1].end].to_owned(),
        })
    }

    /// Adds the common run around a position of the row and one of an evaluation text, unless it is known.
    fn extend(
        &self,
        words: &[u64],
        at: usize,
        text: u32,
        eval_at: usize,
        runs: &mut Vec<(usize, usize, usize)>,
    ) {
        let within = |run: &(usize, usize, usize)| {
            let (start, eval_start, n) = *run;
            at >= start && at < start + n && at - start == eval_at.wrapping_sub(eval_start)
        };
        // Runs come in order of the row, so the one that holds this place is among the last.
        if runs.iter().rev().take(8).any(within) {
            return;
        }
        let eval = &self.texts[text as usize].words;
        let before =
            words[..at].iter().rev().zip(eval[..eval_at].iter().rev()).take_while(|(a, b)| a == b).count();
        let after = words[at..].iter().zip(&eval[eval_at..]).take_while(|(a, b)| a == b).count();
        runs.push((at - before, eval_at - before, before + after));
    }
}

/// Words of the evaluation text that stand in any of the runs.
fn covered(runs: &[(usize, usize, usize)]) -> usize {
    let mut stretches: Vec<(usize, usize)> = runs.iter().map(|(_, start, n)| (*start, start + n)).collect();
    stretches.sort_unstable();
    let mut end = 0;
    let mut n = 0;
    for (start, stop) in stretches {
        n += stop.saturating_sub(start.max(end));
        end = end.max(stop);
    }
    n
}

struct Contamination {
    options: Options,
    index: Arc<Index>,
    by_set: BTreeMap<String, u64>,
    longest: usize,
}

impl Step for Contamination {
    type Seen = Option<Contact>;

    fn see(&self, item: &Item) -> Result<Self::Seen, CurateError> {
        // A row may touch several texts, and the one with the longest run need not be the one that is covered enough.
        let is_enough = |n_words: usize, coverage: f64| {
            // A short evaluation text that is there as a whole counts, however few its words.
            let long =
                n_words >= self.options.min_run || (coverage >= 1.0 && self.options.min_run <= self.index.n);
            long && coverage >= self.options.min_coverage
        };
        Ok(self.index.contact_where(&item.view.part(self.options.part), is_enough))
    }

    fn decide(&mut self, _item: &Item, seen: Self::Seen) -> Decision {
        let Some(contact) = seen else { return Decision::Keep };
        *self.by_set.entry(contact.set.clone()).or_default() += 1;
        self.longest = self.longest.max(contact.n_words);
        let detail = format!(
            "{} words in common with {} ({:.0} % of that text): {}",
            contact.n_words,
            contact.origin,
            100.0 * contact.coverage,
            excerpt(&contact.matched, SHOWN_CHARS)
        );
        let reason = "text of an evaluation set";
        match self.options.action {
            Action::Drop => Decision::Drop { reason, detail },
            Action::Flag => Decision::Flag { reason, detail },
        }
    }

    fn summary(&self) -> Summary {
        let Index { n, texts, runs, n_too_short, n_templates, .. } = &*self.index;
        let mut summary = Summary::default();
        summary.lines.push(format!(
            "{} evaluation texts, {} different runs of {n} words; {n_templates} runs are templates, {n_too_short} texts are too short to be searched for",
            texts.len(),
            runs.len()
        ));
        for (set, n) in &self.by_set {
            summary.lines.push(format!("{set}: {n} rows"));
        }
        summary.facts.insert("rows_by_set".to_owned(), serde_json::json!(self.by_set));
        summary.facts.insert("longest_run".to_owned(), self.longest.into());
        summary
    }
}

#[cfg(test)]
mod tests {
    use pt_core::rng::Stream;

    use super::*;
    use crate::testing::{Harness, prompt, text};

    fn eval_file(rows: &[serde_json::Value]) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("eval.jsonl");
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        std::fs::write(&path, lines).unwrap();
        let path = path.display().to_string();
        (dir, path)
    }

    const QUESTION: &str = "A farmer has seven red hens, and each of them lays two eggs every day but Sunday. How many eggs are there in March?";

    #[test]
    fn planted_text_is_found_and_shown_whatever_its_case() {
        let (_dir, path) = eval_file(&[
            prompt(QUESTION, "yes"),
            prompt("What is two plus two times three plus four?", "12"),
        ]);
        let inside = QUESTION.to_uppercase().replace(',', " ;");
        let rows = [
            text(
                "Nothing of the sort is in here, whatever one looks for, and however long one looks for it at all.",
            ),
            text(&format!("So they asked me. {inside} Then I left.")),
            text("Each of them lays two eggs every day but Sunday, he said."),
            text("what is TWO plus two, times three, plus four: I do not know"),
        ];
        let check = |options: &str, kept: &[usize]| {
            let outcome = Harness::new(NAME, &format!("against = [{path:?}]\n{options}")).run(&rows);
            assert_eq!(outcome.kept, kept, "{options}: {:?}", outcome.details());
            outcome
        };
        let outcome = check("", &[0, 2]);
        let shown = outcome.details()[0];
        assert!(
            shown.starts_with("24 words in common with") && shown.contains("eval.jsonl:1 (100 %"),
            "{shown}"
        );
        assert!(shown.ends_with("HOW MANY EGGS ARE THERE IN MARCH"), "{shown}");
        assert!(outcome.details()[1].contains("9 words in common"), "{:?}", outcome.details());
        check("n = 8", &[0]);
        check("n = 8\nmin_coverage = 0.9", &[0, 2]);
        check("n = 8\nmin_run = 20", &[0, 2, 3]);
        assert_eq!(check("action = \"flag\"", &[0, 1, 2, 3]).reason(1), Some("text of an evaluation set"));
        assert!(Harness::refusal(NAME, "").contains("`against` is required"));
        for share in ["1.5", "-0.1", "nan"] {
            let refusal = Harness::refusal(NAME, &format!("against = [{path:?}]\nmin_coverage = {share}"));
            assert!(refusal.contains("expected 0 to 1"), "{refusal}");
        }
    }

    #[test]
    fn a_longer_run_of_another_text_hides_no_text_that_is_covered() {
        let words = |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>();
        let (long, short) = (words("long", 100), words("short", 15));
        let (_dir, path) = eval_file(&[text(&long.join(" ")), text(&short.join(" "))]);
        let row = format!("{} and {}", long[..20].join(" "), short.join(" "));
        let check = |options: &str, shown: Option<&str>| {
            let options = format!("against = [{path:?}]\n{options}");
            let outcome = Harness::new(NAME, &options).run(&[text(&row)]);
            let found = outcome.details().first().map(|detail| (*detail).to_owned());
            let is_right = match (&found, shown) {
                (Some(found), Some(shown)) => found.contains(shown),
                (found, shown) => found.is_none() && shown.is_none(),
            };
            assert!(is_right, "{options}: {found:?}");
        };
        check("", Some("20 words in common with"));
        check("min_coverage = 0.5", Some("eval.jsonl:2 (100 %"));
        check("min_coverage = 0.5\nmin_run = 16", None);
    }

    #[test]
    fn templates_begin_no_match() {
        let template = "Answer the following multiple choice question by giving only the letter of the right answer please";
        let rows: Vec<_> =
            (0..12).map(|i| prompt(&format!("{template}: item{i} alpha{i} beta{i}"), "a")).collect();
        let (_dir, path) = eval_file(&rows);
        let train =
            [text(&format!("{template}: something else")), text(&format!("{template}: item3 alpha3 beta3"))];
        let outcome = Harness::new(NAME, &format!("against = [{path:?}]")).run(&train);
        assert_eq!(outcome.kept, [0], "{:?}", outcome.details());
        assert!(outcome.details()[0].contains("eval.jsonl:4"), "{:?}", outcome.details());
    }

    /// The longest common run against the obvious search for it.
    #[test]
    fn runs_are_as_long_as_an_exhaustive_search_finds() {
        let mut draws = Stream::new(3, "runs").at(0);
        for _ in 0..40 {
            let mut sentence = |n: usize| (0..n).map(|_| ["a", "b", "c"][draws.below(3)]).collect::<Vec<_>>();
            let (eval, row) = (sentence(60), sentence(80));
            let (_dir, path) = eval_file(&[text(&eval.join(" "))]);
            let options = IndexOptions { n: 4, min_words: 3, ..IndexOptions::default() };
            let index = Index::build(&[path], &options, &ReadOptions::default()).unwrap();
            let longest = (0..60)
                .flat_map(|i| (0..80).map(move |j| (i, j)))
                .map(|(i, j)| eval[i..].iter().zip(&row[j..]).take_while(|(a, b)| a == b).count())
                .max();
            let contact = index.contact(&row.join(" "));
            assert_eq!(contact.map(|contact| contact.n_words), longest.filter(|n| *n >= 4));
        }
    }

    #[test]
    fn real_sets_touch_where_they_should() {
        let Some(data) = pt_core::testdata::shared_data() else { return };
        let path = |name: &str| data.join(name).display().to_string();
        let options = IndexOptions::default();
        let index = Index::build(&[path("gsm8k/test.jsonl.gz")], &options, &ReadOptions::default()).unwrap();
        let contacts = |name: &str| {
            let items = read_small(&path(name), &ReadOptions::default()).unwrap();
            let found =
                items.iter().filter(|item| index.contact(&item.view.part(Part::All)).is_some()).count();
            (found, items.len())
        };
        assert_eq!(contacts("gsm8k/test.jsonl.gz").0, 1319, "every row is in itself");
        let (n, all) = contacts("gsm8k/train.jsonl.gz");
        assert!(n * 50 < all, "{n} of {all} training rows of the same set");
        let (n, all) = contacts("hh-rlhf/harmless-base-test-first2000.jsonl.gz");
        assert_eq!((n, all), (0, 2000), "conversations have nothing of it");
    }
}
