//! What instructions ask for: the leading verb and its object.
//!
//! As the verb-noun profile of Self-Instruct (Wang et al. 2023, figure 2), by simple rules for English in place of a
//! parser. The verb is the first word of the first sentence that is on a list of about 150 verbs people begin instructions
//! with, skipping courtesies (please, can you, I want you to, could you help me ...); questions count under their question word
//! (what, how, why ...). The object is the first word after the verb that is neither a function word nor an adjective of
//! a short list; of "a list of" and its kin it is what follows (list -> what of), lower-cased, without a plural s.
//! Instructions that begin otherwise count as `(other)`.

use std::collections::BTreeMap;

use pt_core::catalogue::OptionInfo;
use serde::Deserialize;
use serde_json::json;

use crate::catalogue::{CuratorInfo, parse};
use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::Summary;
use crate::step::Step;
use crate::words::{excerpt, words};

const NAME: &str = "instruction_profile";
/// Pairs kept; beyond them new pairs count under `(rest)`, so that memory is bounded.
const MOST_PAIRS: usize = 50_000;
const SHOWN: usize = 15;

/// The catalogue's entry.
pub(crate) const INFO: CuratorInfo = CuratorInfo {
    name: NAME,
    group: "diversity",
    summary: "counts what instructions ask for (verb and object), and warns where one thing dominates",
    options: &[OptionInfo {
        name: "max_share",
        kind: "number, 0 to 1",
        default: "0.2",
        doc: "a verb and object with more than this share of the instructions is warned about",
    }],
    build: |options, _| {
        Ok(Box::new(Profile { options: parse(NAME, options)?, pairs: BTreeMap::new(), n: 0, n_without: 0 }))
    },
};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    max_share: f64,
}

impl Default for Options {
    fn default() -> Self {
        Options { max_share: 0.2 }
    }
}

struct Profile {
    options: Options,
    pairs: BTreeMap<(String, String), u64>,
    n: u64,
    n_without: u64,
}

const VERBS: &[&str] = &[
    "add",
    "analyze",
    "analyse",
    "answer",
    "arrange",
    "ask",
    "assign",
    "brainstorm",
    "build",
    "calculate",
    "categorize",
    "change",
    "check",
    "choose",
    "cite",
    "classify",
    "code",
    "come",
    "compare",
    "compile",
    "complete",
    "compose",
    "compute",
    "conclude",
    "construct",
    "continue",
    "contrast",
    "convert",
    "copy",
    "correct",
    "count",
    "craft",
    "create",
    "critique",
    "decide",
    "define",
    "delete",
    "demonstrate",
    "derive",
    "describe",
    "design",
    "detect",
    "determine",
    "develop",
    "devise",
    "differentiate",
    "discuss",
    "divide",
    "draft",
    "draw",
    "edit",
    "elaborate",
    "estimate",
    "evaluate",
    "examine",
    "expand",
    "explain",
    "explore",
    "express",
    "extract",
    "fill",
    "find",
    "fix",
    "follow",
    "form",
    "format",
    "formulate",
    "generate",
    "get",
    "give",
    "group",
    "guess",
    "help",
    "highlight",
    "identify",
    "illustrate",
    "imagine",
    "implement",
    "improve",
    "include",
    "infer",
    "insert",
    "interpret",
    "invent",
    "join",
    "judge",
    "justify",
    "label",
    "let",
    "list",
    "look",
    "make",
    "match",
    "measure",
    "mention",
    "modify",
    "name",
    "narrate",
    "organize",
    "outline",
    "output",
    "paraphrase",
    "pick",
    "plan",
    "play",
    "point",
    "predict",
    "prepare",
    "present",
    "print",
    "produce",
    "prove",
    "propose",
    "provide",
    "pull",
    "punctuate",
    "put",
    "rank",
    "rate",
    "read",
    "rearrange",
    "recommend",
    "reduce",
    "reformat",
    "remove",
    "rename",
    "reorder",
    "rephrase",
    "replace",
    "report",
    "respond",
    "restate",
    "return",
    "reverse",
    "review",
    "revise",
    "rewrite",
    "search",
    "select",
    "sequence",
    "set",
    "share",
    "shorten",
    "show",
    "simplify",
    "sing",
    "solve",
    "sort",
    "spell",
    "split",
    "start",
    "state",
    "structure",
    "suggest",
    "summarize",
    "summarise",
    "take",
    "talk",
    "teach",
    "tell",
    "think",
    "transcribe",
    "transform",
    "translate",
    "turn",
    "use",
    "verify",
    "write",
];
const QUESTIONS: &[&str] = &[
    "what", "how", "why", "who", "whom", "whose", "where", "when", "which", "is", "are", "do", "does", "did",
    "can", "could", "should", "would", "will", "was", "were", "has", "have",
];
const COURTESIES: &[&str] = &[
    "please", "kindly", "hi", "hello", "hey", "ok", "okay", "now", "then", "next", "you", "i", "to", "me",
    "want", "need", "d", "like", "would", "could", "can", "will", "help", "task", "your", "is", "given",
    "step", "by", "are", "asked", "must", "should", "just", "also", "so", "and", "let", "s", "us",
];
const FUNCTION_WORDS: &[&str] = &[
    "a",
    "an",
    "the",
    "this",
    "that",
    "these",
    "those",
    "my",
    "your",
    "his",
    "her",
    "its",
    "our",
    "their",
    "me",
    "us",
    "them",
    "it",
    "you",
    "him",
    "some",
    "any",
    "all",
    "each",
    "every",
    "of",
    "to",
    "for",
    "from",
    "in",
    "on",
    "at",
    "with",
    "about",
    "up",
    "out",
    "into",
    "and",
    "or",
    "as",
    "by",
    "if",
    "whether",
    "how",
    "what",
    "why",
    "which",
    "who",
    "where",
    "when",
    "is",
    "are",
    "one",
    "two",
    "three",
    "four",
    "five",
    "ten",
    "between",
    "both",
    "more",
    "most",
    "least",
    "than",
    "following",
    "given",
    "s",
];
const ADJECTIVES: &[&str] = &[
    "short",
    "long",
    "brief",
    "simple",
    "good",
    "new",
    "creative",
    "detailed",
    "possible",
    "best",
    "different",
    "original",
    "main",
    "small",
    "nice",
    "great",
    "fun",
    "concise",
    "single",
    "random",
    "common",
    "correct",
    "similar",
    "specific",
    "python",
    "english",
];
/// Words for a number of things: what counts is what follows "of".
const CONTAINERS: &[&str] = &[
    "list", "set", "series", "number", "couple", "pair", "kind", "type", "piece", "lot", "bunch", "example",
];

/// Verb (or question word) and object of an instruction.
fn profile(instruction: &str) -> (String, String) {
    // The first sentence is enough, and bounds the work.
    let head = excerpt(instruction.trim_start(), 400);
    let sentence =
        head.split(['\n', '.', '?', '!', ':']).find(|part| words(part).next().is_some()).unwrap_or("");
    let all: Vec<String> = words(sentence).collect();
    let is = |list: &[&str], word: &String| list.contains(&word.as_str());
    let is_question = all.first().is_some_and(|first| is(QUESTIONS, first)) && !is_request(&all);
    let at = match is_question {
        true => Some(0),
        false => {
            let first = all.iter().position(|word| {
                !is(COURTESIES, word) || (is(VERBS, word) && word != "help" && word != "let")
            });
            first
                .filter(|at| is(VERBS, &all[*at]))
                .or_else(|| all.first().filter(|word| is(VERBS, word)).map(|_| 0))
        }
    };
    let Some(at) = at else { return ("(other)".to_owned(), String::new()) };
    let mut objects = all[at + 1..].iter().filter(|word| !is(FUNCTION_WORDS, word) && !is(ADJECTIVES, word));
    let object = match objects.next() {
        Some(word) if is(CONTAINERS, &singular(word)) => objects.next().or(Some(word)),
        other => other,
    };
    (all[at].clone(), object.map_or(String::new(), |word| singular(word)))
}

/// "Can you write", "Could you please explain": a request in the form of a question.
fn is_request(all: &[String]) -> bool {
    matches!(all.first().map(String::as_str), Some("can" | "could" | "would" | "will"))
        && all.get(1).is_some_and(|word| word == "you")
}

fn singular(word: &str) -> String {
    match word.strip_suffix('s') {
        Some(stem) if stem.len() > 2 && !stem.ends_with(['s', 'u', 'i']) => stem.to_owned(),
        _ => word.to_owned(),
    }
}

impl Step for Profile {
    type Seen = Option<(String, String)>;

    fn see(&self, item: &Item) -> Result<Self::Seen, CurateError> {
        Ok((!item.view.instruction.trim().is_empty()).then(|| profile(&item.view.instruction)))
    }

    fn decide(&mut self, _item: &Item, seen: Self::Seen) -> Decision {
        let Some(pair) = seen else {
            self.n_without += 1;
            return Decision::Keep;
        };
        self.n += 1;
        let known = self.pairs.len() < MOST_PAIRS || self.pairs.contains_key(&pair);
        let key = if known { pair } else { ("(rest)".to_owned(), String::new()) };
        *self.pairs.entry(key).or_default() += 1;
        Decision::Keep
    }

    fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        let n = self.n.max(1) as f64;
        let mut verbs: BTreeMap<&str, u64> = BTreeMap::new();
        for ((verb, _), count) in &self.pairs {
            *verbs.entry(verb).or_default() += count;
        }
        let top = |counts: Vec<(String, u64)>| {
            let mut counts = counts;
            counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
            counts.truncate(SHOWN);
            counts
        };
        let verbs = top(verbs.into_iter().map(|(verb, n)| (verb.to_owned(), n)).collect());
        let of_pair = |((verb, object), n): (&(String, String), &u64)| {
            (format!("{verb} {object}").trim_end().to_owned(), *n)
        };
        let pairs = top(self.pairs.iter().map(of_pair).collect());
        let listed = |counts: &[(String, u64)]| {
            counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        // The exponential of the entropy: as many pairs, all equally frequent, would be as diverse.
        let entropy: f64 = self.pairs.values().map(|count| *count as f64 / n).map(|p| -p * p.ln()).sum();
        summary.lines.push(format!("{} instructions, {} rows without", self.n, self.n_without));
        summary.lines.push(format!("verbs: {}", listed(&verbs)));
        summary.lines.push(format!("verb and object: {}", listed(&pairs)));
        summary.lines.push(format!(
            "{} different pairs, as diverse as {:.1} equally frequent ones",
            self.pairs.len(),
            entropy.exp()
        ));
        summary.facts.insert("verbs".to_owned(), json!(verbs));
        summary.facts.insert("pairs".to_owned(), json!(pairs));
        summary.facts.insert("effective_pairs".to_owned(), entropy.exp().into());
        for (pair, count) in pairs
            .iter()
            .filter(|(pair, count)| *count as f64 / n > self.options.max_share && pair != "(other)")
        {
            summary
                .warnings
                .push(format!("{:.0} % of the instructions are `{pair}`", 100.0 * *count as f64 / n));
        }
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Harness, prompt, text};

    #[test]
    fn verbs_and_objects_are_found() {
        let cases = [
            ("Write a short story about a fox.", "write", "story"),
            ("Please give me a list of ideas for dinner", "give", "idea"),
            ("Can you explain the theory of relativity?", "explain", "theory"),
            ("Translate the following sentence into French: Hello", "translate", "sentence"),
            ("What is the capital of Peru?", "what", "capital"),
            ("How many apples are left?", "how", "many"),
            ("Could you please help me write an email?", "write", "email"),
            ("I want you to classify these sentences.", "classify", "sentence"),
            ("Bananas are yellow.", "(other)", ""),
            ("", "(other)", ""),
        ];
        for (text, verb, object) in cases {
            assert_eq!(profile(text), (verb.to_owned(), object.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_dominates_is_warned_about() {
        let rows = [
            prompt("Write a poem.", "x"),
            prompt("Write poems!", "y"),
            prompt("Sort the list", "z"),
            text("no prompt"),
        ];
        let outcome = Harness::new(NAME, "max_share = 0.5").run(&rows);
        assert_eq!(outcome.summary.warnings, ["67 % of the instructions are `write poem`"]);
        assert!(outcome.summary.lines[0].contains("3 instructions, 1 rows without"));
    }

    #[test]
    fn most_seed_instructions_have_a_verb() {
        let Some(data) = pt_core::testdata::shared_data() else { return };
        let source = data.join("self-instruct/seed_tasks.jsonl").display().to_string();
        let items = crate::source::read_small(&source, &Default::default()).unwrap();
        let found = items.iter().filter(|item| profile(&item.view.instruction).0 != "(other)").count();
        // The rest begin with a condition or a statement ("Given ...", "I have ...", "In this task ...").
        assert!(found * 100 > items.len() * 75, "{found} of {}", items.len());
    }
}
