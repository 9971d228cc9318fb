//! Reports for people: one page, as text for a terminal or as Markdown.

use std::collections::BTreeMap;

use crate::answer::AnswerReport;
use crate::audit::Audit;
use crate::chat::Tally;
use crate::figures::{Figures, Share};
use crate::judge::JudgeReport;
use crate::revise::ReviseReport;

/// A table.
#[derive(Clone, Debug, PartialEq)]
struct Table {
    title: &'static str,
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// A title, lines of facts, tables.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    title: String,
    facts: Vec<(&'static str, String)>,
    tables: Vec<Table>,
}

impl Page {
    /// Facts by name.
    pub fn facts(&self) -> Vec<(String, String)> {
        self.facts.iter().map(|(name, text)| ((*name).to_owned(), text.clone())).collect()
    }

    /// Title, columns and rows of each table that has some.
    pub fn tables(&self) -> impl Iterator<Item = (&str, &[&'static str], &[Vec<String>])> {
        let full = self.tables.iter().filter(|table| !table.rows.is_empty());
        full.map(|table| (table.title, table.header.as_slice(), table.rows.as_slice()))
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut out = format!("# {}\n\n", self.title);
        for (name, text) in &self.facts {
            out += &format!("- {name}: {text}\n");
        }
        for table in self.tables.iter().filter(|table| !table.rows.is_empty()) {
            out += &format!("\n## {}\n\n", table.title);
            let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
            out += &line(table.header.iter().map(ToString::to_string).collect());
            out += &line(table.header.iter().map(|_| "---".to_owned()).collect());
            for row in &table.rows {
                out += &line(row.iter().map(|cell| cell.replace('|', "\\|")).collect());
            }
        }
        out
    }

    /// As aligned text.
    pub fn text(&self) -> String {
        let mut out = format!("{}\n", self.title);
        let widest = self.facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, text) in &self.facts {
            out += &format!("  {name:widest$}  {text}\n");
        }
        for table in self.tables.iter().filter(|table| !table.rows.is_empty()) {
            out += &format!("\n{}\n", table.title);
            let width = |column: usize| {
                let cells = table.rows.iter().map(|row| row[column].chars().count());
                cells.chain([table.header[column].len()]).max().unwrap_or(0)
            };
            let widths: Vec<usize> = (0..table.header.len()).map(width).collect();
            let line = |cells: Vec<&str>| {
                let cells = cells.iter().zip(&widths).enumerate();
                let padded = cells
                    .map(|(i, (cell, &w))| if i == 0 { format!("{cell:w$}") } else { format!("{cell:>w$}") });
                format!("  {}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
            };
            out += &line(table.header.clone());
            for row in &table.rows {
                out += &line(row.iter().map(String::as_str).collect());
            }
        }
        out
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

fn signed(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:+.3}"))
}

fn interval(share: Option<Share>) -> String {
    share.map_or_else(
        || "-".to_owned(),
        |share| format!("{:.3} [{:.3}, {:.3}] of {}", share.value, share.low, share.high, share.n),
    )
}

fn short(share: Option<Share>) -> String {
    number(share.map(|share| share.value))
}

fn reasons(excluded: &BTreeMap<String, usize>) -> String {
    if excluded.is_empty() {
        return "none".to_owned();
    }
    let reason = |(reason, n): (&String, &usize)| format!("{n} {reason}");
    excluded.iter().map(reason).collect::<Vec<_>>().join(", ")
}

fn calls(tally: &Tally, cost: f64) -> String {
    let cost = if cost > 0.0 { format!(", cost {cost:.4}") } else { String::new() };
    format!(
        "{}, of which {} failed; {} prompt and {} completion tokens{cost}",
        tally.n_calls, tally.n_failed, tally.prompt_tokens, tally.completion_tokens
    )
}

fn facts_of(figures: &Figures) -> Vec<(&'static str, String)> {
    vec![
        (
            "pairs judged",
            format!("{} of {}, {} with a label", figures.n_judged, figures.n_pairs, figures.n_labelled),
        ),
        (
            "votes",
            format!(
                "{}: {} ties, {} without a choice, {} failed, {} with probabilities",
                figures.n_votes, figures.n_tie_votes, figures.n_abstained, figures.n_failed, figures.n_soft
            ),
        ),
        ("accuracy", interval(figures.accuracy)),
        ("kappa", number(figures.kappa)),
        ("calibration error", number(figures.ece)),
        ("consistency", interval(figures.consistency)),
        ("vote agreement", number(figures.vote_agreement)),
        ("position bias", signed(figures.position_bias)),
        ("length bias", signed(figures.length_bias)),
        ("prefers longer", interval(figures.prefers_longer)),
        (
            "accuracy by length",
            format!(
                "{} where the longer is better, {} where the shorter is",
                short(figures.accuracy_longer_better),
                short(figures.accuracy_shorter_better)
            ),
        ),
    ]
}

impl AnswerReport {
    /// For people.
    pub fn page(&self) -> Page {
        Page {
            title: "Answers".to_owned(),
            facts: vec![
                ("model", self.model.clone()),
                (
                    "rows",
                    format!(
                        "{} kept, {} asked of each of {} prompts",
                        self.n_kept, self.options.n, self.n_rows
                    ),
                ),
                ("excluded", reasons(&self.excluded)),
                ("calls", calls(&self.calls, self.cost)),
            ],
            tables: Vec::new(),
        }
    }
}

impl ReviseReport {
    /// For people.
    pub fn page(&self) -> Page {
        let row = |by: &crate::RevisedBy| {
            vec![
                by.id.clone(),
                by.category.clone(),
                format!("{}", by.weight),
                by.n_drawn.to_string(),
                by.n_revised.to_string(),
                by.n_unchanged.to_string(),
                by.n_failed.to_string(),
                number(by.mean_length_ratio),
            ]
        };
        Page {
            title: "Critique and revision".to_owned(),
            facts: vec![
                ("constitution", self.constitution.clone()),
                ("model", self.model.clone()),
                (
                    "rows",
                    format!(
                        "{} kept of {}, {} with fewer rounds",
                        self.n_kept, self.n_rows, self.n_cut_short
                    ),
                ),
                ("excluded", reasons(&self.excluded)),
                ("calls", calls(&self.calls, self.cost)),
            ],
            tables: vec![Table {
                title: "By principle",
                header: vec![
                    "principle",
                    "category",
                    "weight",
                    "drawn",
                    "revised",
                    "unchanged",
                    "failed",
                    "length",
                ],
                rows: self.principles.iter().filter(|by| by.n_drawn > 0).map(row).collect(),
            }],
        }
    }
}

impl JudgeReport {
    /// For people.
    pub fn page(&self) -> Page {
        let row = |by: &crate::JudgedBy| {
            let figures = &by.figures;
            vec![
                by.id.clone(),
                by.category.clone(),
                figures.n_pairs.to_string(),
                figures.n_judged.to_string(),
                figures.n_abstained.to_string(),
                short(figures.accuracy),
                number(figures.kappa),
                number(figures.ece),
                short(figures.consistency),
                signed(figures.position_bias),
                signed(figures.length_bias),
            ]
        };
        let mut facts = vec![
            ("constitution", self.constitution.clone()),
            ("judge", self.model.clone()),
            ("rows", format!("{} preferences of {}", self.n_kept, self.n_rows)),
            ("excluded", reasons(&self.excluded)),
            ("calls", calls(&self.calls, self.cost)),
        ];
        facts.extend(facts_of(&self.overall));
        Page {
            title: "Judged pairs".to_owned(),
            facts,
            tables: vec![Table {
                title: "By principle",
                header: vec![
                    "principle",
                    "category",
                    "pairs",
                    "judged",
                    "abstained",
                    "accuracy",
                    "kappa",
                    "ece",
                    "consistency",
                    "position",
                    "length",
                ],
                rows: self.principles.iter().map(row).collect(),
            }],
        }
    }
}

impl Audit {
    /// For people.
    pub fn page(&self) -> Page {
        let row = |check: &crate::Check| {
            vec![
                check.name.clone(),
                number(check.value),
                format!("{} {}", check.relation, check.bound),
                if check.passed { "pass" } else { "FAIL" }.to_owned(),
            ]
        };
        let mut facts = vec![
            ("subject", format!("{} ({:?})", self.subject.model, self.subject.kind)),
            ("outcome", if self.passed { "passed" } else { "FAILED" }.to_owned()),
            ("calls", calls(&self.calls, self.cost)),
        ];
        facts.extend(facts_of(&self.figures));
        if self.subject.drawn.is_some_and(|drawn| drawn.temperature == 0.0) {
            for (_, text) in facts.iter_mut().filter(|(name, _)| *name == "consistency") {
                "not measured: at temperature 0 a second grade is the first again".clone_into(text);
            }
        }
        Page {
            title: "Audit".to_owned(),
            facts,
            tables: vec![Table {
                title: "Checks",
                header: vec!["figure", "value", "bound", "outcome"],
                rows: self.checks.iter().map(row).collect(),
            }],
        }
    }
}
