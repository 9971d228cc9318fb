//! The page: one file of HTML with its style, charts and script inside, in the order in which people ask.
//!
//! Every text that comes from a run passes through [`esc`]; the page's security policy forbids it to load anything.

mod compare;
mod cost;
mod curves;
mod data;
mod evaluation;
mod events;
mod feedback;
mod front;
mod header;
mod recipe;
mod results;
mod samples;

use crate::read::{RunData, StageData, TaskGain};
use crate::text::esc;
use crate::{Gain, Paired};

pub use front::front_page;
pub(crate) use results::gains;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// The report of one run, or of several side by side, as one HTML page that needs nothing else.
///
/// It works without its script, which only shows values under the pointer. Charts of more than 240 values show the
/// mean and the range of what fell together.
///
/// # Panics
/// If `runs` is empty.
pub fn page(runs: &[RunData], paired: Paired) -> String {
    let (title, body) = match runs {
        [] => panic!("a report is about at least one run"),
        [run] => (run.name(), one(run, paired)),
        runs => (compare::title(runs), compare::several(runs, paired)),
    };
    document(&title, &body)
}

/// A whole page around its body.
fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"generator\" content=\"posttrain\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}\
         <div id=\"tip\" aria-hidden=\"true\"></div>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        esc(title)
    )
}

fn one(run: &RunData, paired: Paired) -> String {
    let sections = [
        ("results", "Results", results::section(run, paired)),
        ("evaluation", "Evaluation", evaluation::section(run)),
        ("feedback", "Feedback", feedback::section(run)),
        ("curves", "Learning curves", curves::section(run)),
        ("samples", "Samples", samples::section(run)),
        ("data", "Data", data::section(run)),
        ("cost", "Time, tokens, memory", cost::section(run)),
        ("events", "Events", events::section(run)),
        ("recipe", "Recipe and hashes", recipe::section(run)),
    ];
    let sections: Vec<_> = sections.into_iter().filter(|(.., html)| !html.is_empty()).collect();
    let mut body = header::header(run, paired);
    body.push_str(&contents(sections.iter().map(|(id, title, _)| (*id, *title))));
    body.push_str("<main>\n");
    for (id, title, html) in &sections {
        body.push_str(&section(id, title, html));
    }
    body.push_str("</main>\n");
    body.push_str(&footer(std::slice::from_ref(run)));
    body
}

fn contents<'a>(sections: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let links: String =
        sections.map(|(id, title)| format!("<li><a href=\"#{id}\">{title}</a></li>")).collect();
    format!("<nav class=\"toc\" aria-label=\"Contents\"><ul>{links}</ul></nav>\n")
}

fn section(id: &str, title: &str, html: &str) -> String {
    format!(
        "<section id=\"{id}\" aria-labelledby=\"{id}-title\">\n<h2 id=\"{id}-title\">{title}</h2>\n{html}</section>\n"
    )
}

fn footer(runs: &[RunData]) -> String {
    let folders: Vec<String> = runs
        .iter()
        .map(|run| format!("<span class=\"hash\">{}</span>", esc(&run.dir.display().to_string())))
        .collect();
    format!(
        "<footer>Written by <b>posttrain report</b> from {} alone. This page loads nothing.</footer>\n",
        folders.join(", ")
    )
}

/// A stage's heading: its number and name, and what it is.
fn stage_heading(stage: &StageData) -> String {
    format!("<h3>{}</h3>\n", stage_name(stage))
}

/// Its name, and what it is where the name does not say so.
fn stage_name(stage: &StageData) -> String {
    let title = stage.title();
    match title.starts_with(stage.name()) {
        true => esc(stage.name()),
        false => format!("{} <small class=\"soft\">{}</small>", esc(stage.name()), esc(title)),
    }
}

/// A table for every width: on a phone each row becomes a small list, labelled by the heads.
///
/// Cells are HTML. The first cell of a row is its head.
fn table(caption: &str, heads: &[&str], n_text: usize, rows: &[Vec<String>]) -> String {
    let class = |i: usize| if i < n_text { "" } else { " class=\"n\"" };
    let head: String = heads
        .iter()
        .enumerate()
        .map(|(i, head)| format!("<th scope=\"col\" role=\"columnheader\"{}>{head}</th>", class(i)))
        .collect();
    let cell = |(i, html): (usize, &String)| match i {
        0 => format!("<th scope=\"row\" role=\"rowheader\">{html}</th>"),
        _ => format!(
            "<td role=\"cell\" data-label=\"{}\"{}><span>{html}</span></td>",
            heads.get(i).unwrap_or(&""),
            class(i)
        ),
    };
    let row = |row: &Vec<String>| {
        format!("<tr role=\"row\">{}</tr>\n", row.iter().enumerate().map(cell).collect::<String>())
    };
    format!(
        "<table class=\"stack\" role=\"table\"><caption>{caption}</caption><thead role=\"rowgroup\"><tr role=\"row\">{head}</tr></thead>\
         <tbody role=\"rowgroup\">\n{}</tbody></table>\n",
        rows.iter().map(row).collect::<String>()
    )
}

/// `None` where the lists are not about the same problems.
fn compare(paired: Paired, before: &[bool], after: &[bool]) -> Option<Gain> {
    (before.len() == after.len() && !before.is_empty()).then(|| paired(before, after))
}

fn gain_of(gain: &TaskGain) -> Gain {
    Gain { difference: gain.difference, interval95: gain.interval95, p_value: gain.p_value }
}
