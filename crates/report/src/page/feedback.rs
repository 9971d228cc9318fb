//! What feedback stages found: how the judge did, and each principle.

use super::{stage_heading, table};
use crate::read::{RunData, StageTable};
use crate::text::esc;

/// Empty where nobody gave feedback.
pub(super) fn section(run: &RunData) -> String {
    let mut html = String::new();
    for stage in &run.stages {
        let Some(outcome) = stage.outcome.as_ref().filter(|outcome| !outcome.facts.is_empty()) else {
            continue;
        };
        html.push_str(&stage_heading(stage));
        let facts = outcome.facts.iter().map(|(name, text)| vec![esc(name), esc(text)]).collect::<Vec<_>>();
        html.push_str(&table("Over all rows", &["figure", "value"], 2, &facts));
        outcome.tables.iter().for_each(|found| html.push_str(&figures(found)));
    }
    html
}

fn figures(found: &StageTable) -> String {
    let heads: Vec<String> = found.heads.iter().map(|head| esc(head)).collect();
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    let rows: Vec<Vec<String>> =
        found.rows.iter().map(|row| row.iter().map(|cell| esc(cell)).collect()).collect();
    table(&esc(&found.title), &heads, 2, &rows)
}
