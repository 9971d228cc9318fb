//! What personal data and secrets have in common: finding stretches of text, dropping rows or writing a name in their place.

use std::collections::BTreeMap;

use pt_core::catalogue::OptionInfo;
use pt_data::Columns;
use serde::Deserialize;

use crate::error::CurateError;
use crate::item::{Decision, Item};
use crate::report::Summary;
use crate::step::Step;
use crate::view::{each_text, map_texts};

/// A stretch of text and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Find {
    pub(crate) kind: &'static str,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Something to look for.
pub(crate) struct Kind {
    /// Its name in options.
    pub(crate) name: &'static str,
    /// Adds all of it that a text has.
    pub(crate) find: fn(&str, &mut Vec<Find>),
}

/// The options of both steps.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    #[serde(default)]
    action: Action,
    kinds: Option<Vec<String>>,
    #[serde(default)]
    allow: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    #[default]
    Redact,
    Drop,
    Flag,
}

pub(crate) const fn options(kinds: &'static str, all: &'static str) -> [OptionInfo; 3] {
    [
        OptionInfo {
            name: "action",
            kind: r#""redact", "drop", "flag""#,
            default: "\"redact\"",
            doc: "whether the kind's name is written in its place (`[EMAIL]`), the row is dropped, or it is counted and shown",
        },
        OptionInfo { name: "kinds", kind: kinds, default: all, doc: "what is looked for" },
        OptionInfo {
            name: "allow",
            kind: "list of texts",
            default: "[]",
            doc: "finds that contain one of these are let be",
        },
    ]
}

/// A step that looks for some kinds.
pub(crate) struct Redaction {
    action: Action,
    kinds: Vec<&'static Kind>,
    allow: Vec<String>,
    reason: &'static str,
    counts: BTreeMap<&'static str, u64>,
}

impl Redaction {
    pub(crate) fn new(
        step: &'static str,
        reason: &'static str,
        all: &'static [Kind],
        options: Options,
    ) -> Result<Self, CurateError> {
        let names: Vec<&str> = all.iter().map(|kind| kind.name).collect();
        let find = |name: &String| {
            all.iter().find(|kind| kind.name == name).ok_or_else(|| {
                CurateError::option(
                    step,
                    format!("there is no kind `{name}`; {}", pt_core::suggest::hint(name, &names)),
                )
            })
        };
        let kinds = match &options.kinds {
            None => all.iter().collect(),
            Some(kinds) => kinds.iter().map(find).collect::<Result<_, _>>()?,
        };
        Ok(Redaction { action: options.action, kinds, allow: options.allow, reason, counts: BTreeMap::new() })
    }

    /// What is found in a text, in order, none overlapping; the kind listed first wins.
    fn finds(&self, text: &str) -> Vec<Find> {
        let mut finds: Vec<Find> = Vec::new();
        let mut of_kind = Vec::new();
        for kind in &self.kinds {
            (kind.find)(text, &mut of_kind);
            for find in of_kind.drain(..) {
                let is_free = !finds.iter().any(|other| find.start < other.end && other.start < find.end);
                let is_allowed =
                    self.allow.iter().any(|allowed| text[find.start..find.end].contains(allowed.as_str()));
                if is_free && !is_allowed {
                    finds.push(find);
                }
            }
        }
        finds.sort_unstable_by_key(|find| find.start);
        finds
    }

    /// The text with names in place of finds; `None` where there are none.
    fn redacted(&self, text: &str) -> Option<String> {
        let finds = self.finds(text);
        let mut out = String::with_capacity(text.len());
        let mut at = 0;
        for find in &finds {
            out.push_str(&text[at..find.start]);
            out.push('[');
            out.push_str(&find.kind.to_uppercase());
            out.push(']');
            at = find.end;
        }
        out.push_str(&text[at..]);
        (!finds.is_empty()).then_some(out)
    }
}

impl Step for Redaction {
    type Seen = BTreeMap<&'static str, u64>;

    fn see(&self, item: &Item) -> Result<Self::Seen, CurateError> {
        let mut counts = BTreeMap::new();
        for value in item.row.value.values() {
            each_text(value, &mut |text| {
                self.finds(text).iter().for_each(|find| *counts.entry(find.kind).or_default() += 1);
            });
        }
        Ok(counts)
    }

    fn decide(&mut self, item: &Item, found: Self::Seen) -> Decision {
        if found.is_empty() {
            return Decision::Keep;
        }
        let detail = found.iter().map(|(kind, n)| format!("{kind} {n}")).collect::<Vec<_>>().join(", ");
        for (kind, n) in found {
            *self.counts.entry(kind).or_default() += n;
        }
        let reason = self.reason;
        match self.action {
            Action::Drop => Decision::Drop { reason, detail },
            Action::Flag => Decision::Flag { reason, detail },
            Action::Redact => {
                let mut value: Columns = item.row.value.clone();
                value.values_mut().for_each(|value| map_texts(value, &mut |text| self.redacted(text)));
                Decision::Change { value, reason, detail }
            }
        }
    }

    fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for (kind, n) in &self.counts {
            summary.lines.push(format!("{kind}: {n} found"));
            summary.facts.insert((*kind).to_owned(), (*n).into());
        }
        summary
    }

    fn conceal(&self, text: &str) -> String {
        self.redacted(text).unwrap_or_else(|| text.to_owned())
    }
}

/// All matches of a pattern that a check accepts.
pub(crate) fn matches(
    pattern: &regex::Regex,
    kind: &'static str,
    text: &str,
    finds: &mut Vec<Find>,
    accept: impl Fn(&str) -> bool,
) {
    let found = pattern.find_iter(text).filter(|found| accept(found.as_str()));
    finds.extend(found.map(|found| Find { kind, start: found.start(), end: found.end() }));
}

pub(crate) fn regex(text: &str) -> regex::Regex {
    regex::Regex::new(text).expect("the pattern is constant and right")
}
