//! The data card: what a data set is made of, and what was done to it, as Markdown and as JSON.

use std::fmt::Write as _;

use crate::report::{Amount, Composition, Example, Histogram, Report, StepReport};

/// Characters of the longest bar of a histogram.
const BAR: u64 = 40;

/// The card for machines.
pub fn card_json(report: &Report) -> String {
    serde_json::to_string_pretty(report).expect("a report is JSON") + "\n"
}

/// The card for people.
pub fn card_markdown(report: &Report) -> String {
    let mut text = String::from("# Data card\n\n");
    let share = percent(report.n_kept, report.n_read);
    let _ = writeln!(text, "{} rows read, {} written ({share}).\n", report.n_read, report.n_kept);
    write_warnings(&mut text, report);
    write_sources(&mut text, report);
    text.push_str("## Steps\n\n| step | rows in | dropped | changed | flagged | rows out |\n| --- | --- | --- | --- | --- | --- |\n");
    for (i, step) in report.steps.iter().enumerate() {
        let sum = |counts: &std::collections::BTreeMap<&str, u64>| counts.values().sum::<u64>();
        let _ = writeln!(
            text,
            "| {}. {} | {} | {} | {} | {} | {} |",
            i + 1,
            step.name,
            step.n_seen,
            sum(&step.dropped),
            sum(&step.changed),
            sum(&step.flagged),
            step.n_kept
        );
    }
    for (i, step) in report.steps.iter().enumerate() {
        write_step(&mut text, i + 1, step);
    }
    write_composition(&mut text, &report.before, &report.after);
    write_lengths(&mut text, &report.lengths);
    if let Some(mixture) = &report.mixture {
        let _ = write!(text, "\n## Mixture\n\n```text\n{}```\n", mixture.to_toml());
    }
    text
}

fn write_warnings(text: &mut String, report: &Report) {
    let of_steps =
        report.steps.iter().flat_map(|step| step.summary.warnings.iter().map(|w| (step.name.as_str(), w)));
    let of_mixture = report
        .mixture
        .iter()
        .flat_map(|mixture| mixture.shortfalls.iter().map(|s| ("blueprint", &s.problem)));
    let warnings: Vec<String> =
        of_steps.chain(of_mixture).map(|(name, w)| format!("- **{name}**: {w}")).collect();
    if !warnings.is_empty() {
        let _ = writeln!(text, "## To look at\n\n{}\n", warnings.join("\n"));
    }
}

fn write_sources(text: &mut String, report: &Report) {
    text.push_str("## Sources\n\n| source | layout | licence | rows read | unreadable | rows kept |\n| --- | --- | --- | --- | --- | --- |\n");
    for input in &report.inputs {
        let licence = input.licence.as_deref().unwrap_or("not given");
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            cell(&input.source),
            input.layout,
            cell(licence),
            input.n_read,
            input.n_unreadable,
            input.n_kept
        );
    }
    text.push('\n');
}

fn write_step(text: &mut String, position: usize, step: &StepReport) {
    let _ = write!(text, "\n### {position}. {}\n\n", step.name);
    if !step.options.is_empty() {
        let options: Vec<String> =
            step.options.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        let _ = writeln!(text, "Options: `{}`\n", options.join(", ").replace('`', "'"));
    }
    for (what, counts) in [("dropped", &step.dropped), ("changed", &step.changed), ("flagged", &step.flagged)]
    {
        for (reason, n) in counts {
            let _ = writeln!(text, "- {what}, {reason}: {n} ({})", percent(*n, step.n_seen));
        }
    }
    for line in &step.summary.lines {
        let _ = writeln!(text, "- {line}");
    }
    for example in &step.examples {
        write_example(text, example);
    }
}

fn write_example(text: &mut String, example: &Example) {
    let Example { reason, origin, detail, before, after } = example;
    let after = after.as_deref().unwrap_or("(dropped)");
    let _ = write!(
        text,
        "\n{origin}: {reason}: {}\n\n```text\nbefore: {}\nafter:  {}\n```\n",
        detail.replace('\n', " "),
        fenced(before),
        fenced(after)
    );
}

fn write_composition(text: &mut String, before: &Composition, after: &Composition) {
    text.push_str("\n## Composition\n\n| domain | rows read | share | rows written | share | words written | share |\n| --- | --- | --- | --- | --- | --- | --- |\n");
    let (all_before, all_after) = (before.n_rows(), after.n_rows());
    let all_words: u64 = after.domains.values().map(|amount| amount.words).sum();
    let amount = |composition: &Composition, domain: &str| -> Amount {
        composition.domains.get(domain).copied().unwrap_or_default()
    };
    for domain in crate::steps::domains::DOMAINS {
        let (b, a) = (amount(before, domain), amount(after, domain));
        let _ = writeln!(
            text,
            "| {domain} | {} | {} | {} | {} | {} | {} |",
            b.rows,
            percent(b.rows, all_before),
            a.rows,
            percent(a.rows, all_after),
            a.words,
            percent(a.words, all_words)
        );
    }
}

fn write_lengths(text: &mut String, lengths: &Histogram) {
    let n_rows: u64 = lengths.bins.iter().sum();
    let _ = write!(
        text,
        "\n## Lengths\n\n{} {} in all, {:.1} a row, {} at most.\n\n```text\n",
        lengths.total,
        lengths.unit,
        lengths.total as f64 / n_rows.max(1) as f64,
        lengths.max
    );
    let most = lengths.bins.iter().max().copied().unwrap_or(0).max(1);
    for (bin, n) in lengths.bins.iter().enumerate() {
        let bar = "#".repeat((n * BAR).div_ceil(most) as usize);
        let _ = writeln!(text, "{:>15}  {n:>9}  {bar}", Histogram::label(bin));
    }
    text.push_str("```\n");
}

fn percent(n: u64, of: u64) -> String {
    match of {
        0 => "-".to_owned(),
        of => format!("{:.1} %", 100.0 * n as f64 / of as f64),
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// Within a fence nothing must end the fence.
fn fenced(text: &str) -> String {
    text.replace("```", "'''")
}
