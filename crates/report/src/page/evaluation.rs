//! What eval stages measured: every model side by side, with intervals, and how every two of them differ.

use super::{stage_heading, table};
use crate::evaluation::Table;
use crate::read::{Contrast, Measure, RunData};
use crate::text::{count, esc, number, p_value, short_task};

/// Empty where nothing was evaluated.
pub(super) fn section(run: &RunData) -> String {
    let mut html = String::new();
    for stage in &run.stages {
        let Some(outcome) = stage.outcome.as_ref().filter(|outcome| !outcome.measures.is_empty()) else {
            continue;
        };
        html.push_str(&stage_heading(stage));
        html.push_str(&side_by_side(&outcome.measures));
        html.push_str(&differences(&outcome.contrasts));
        outcome.lines.iter().for_each(|line| html.push_str(&format!("<p>{}</p>\n", esc(line))));
    }
    html
}

fn side_by_side(measures: &[Measure]) -> String {
    let found = Table::of(measures);
    let models: Vec<String> = found.models.iter().map(|model| esc(model)).collect();
    let mut heads = vec!["benchmark"];
    heads.extend(models.iter().map(String::as_str));
    let rows: Vec<Vec<String>> = found
        .rows
        .iter()
        .map(|row| {
            let n = row.cells.iter().flatten().map(|measure| measure.n).max().unwrap_or(0);
            let head = format!(
                "<span title=\"{}\">{}</span>, {}, {} questions",
                esc(&row.benchmark),
                esc(&short_task(&row.benchmark)),
                esc(&row.metric),
                count(n as u64)
            );
            std::iter::once(head).chain(row.cells.iter().map(|cell| cell_of(*cell))).collect()
        })
        .collect();
    table("Benchmarks, with 95 % intervals", &heads, 1, &rows)
}

fn cell_of(measure: Option<&Measure>) -> String {
    let Some(measure) = measure else { return "<span class=\"soft\">–</span>".to_owned() };
    let interval = measure.interval95.map_or_else(String::new, |(low, high)| {
        format!(" <span class=\"soft\">{} to {}</span>", number(low), number(high))
    });
    format!("{}{interval}", number(measure.value))
}

fn differences(contrasts: &[Contrast]) -> String {
    if contrasts.is_empty() {
        return String::new();
    }
    let row = |contrast: &Contrast| {
        let (low, high) = contrast.gain95;
        let verdict = match (low > 0.0, high < 0.0) {
            (true, _) => "<strong>better</strong>",
            (_, true) => "<strong>worse</strong>",
            _ => "<span class=\"soft\">no difference shown</span>",
        };
        vec![
            format!("{} → {}", esc(&contrast.base), esc(&contrast.model)),
            format!(
                "<span title=\"{0}\">{1}</span>",
                esc(&contrast.benchmark),
                esc(&short_task(&contrast.benchmark))
            ),
            verdict.to_owned(),
            number(contrast.gain),
            format!("{} to {}", number(low), number(high)),
            contrast.mcnemar_p.map_or_else(|| "–".to_owned(), |p| esc(&p_value(p))),
        ]
    };
    let heads = ["models", "benchmark", "result", "gained", "95 % interval", "McNemar"];
    table(
        "How every two differ, question by question",
        &heads,
        3,
        &contrasts.iter().map(row).collect::<Vec<_>>(),
    )
}
