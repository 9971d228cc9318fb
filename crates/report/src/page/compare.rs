//! Several runs side by side: results in columns, curves over each other, what their plans do not share.

use std::collections::BTreeSet;

use super::{contents, footer, header, results, section, table};
use crate::Paired;
use crate::chart::{Chart, Line};
use crate::read::{RunData, StageData};
use crate::text::{esc, number, percent, short_task};
use crate::why::plan_differences;

/// Curves that runs are compared by.
const CURVES: &[(&str, &str)] = &[
    ("eval_loss", "Held-out loss"),
    ("loss", "Training loss"),
    ("reward", "Reward"),
    ("rewards/accuracies", "Preference accuracy"),
    ("rewards/margins", "Reward margin"),
    ("entropy", "Entropy"),
    ("completions/mean_length", "Completion length"),
    ("grad_norm", "Gradient norm"),
];

pub(super) fn title(runs: &[RunData]) -> String {
    names(runs).join(" against ")
}

/// Names of runs, with their folders where names return.
fn names(runs: &[RunData]) -> Vec<String> {
    let all: Vec<String> = runs.iter().map(RunData::name).collect();
    let is_unique = all.iter().collect::<BTreeSet<_>>().len() == all.len();
    let folder = |run: &RunData| {
        run.dir
            .file_name()
            .map_or_else(|| run.dir.display().to_string(), |f| f.to_string_lossy().into_owned())
    };
    let folders: Vec<String> = runs.iter().map(folder).collect();
    if is_unique {
        all
    } else if folders.iter().collect::<BTreeSet<_>>().len() == folders.len() {
        folders
    } else {
        runs.iter().map(|run| run.dir.display().to_string()).collect()
    }
}

pub(super) fn several(runs: &[RunData], paired: Paired) -> String {
    let names = names(runs);
    let mut html = format!(
        "<header class=\"top\">\n<p class=\"kicker\">posttrain report · {} runs side by side</p>\n<h1>{}</h1>\n",
        runs.len(),
        esc(&title(runs))
    );
    for (run, name) in runs.iter().zip(&names) {
        html.push_str(&format!("<p><b>{}.</b> {}</p>\n", esc(name), header::sentence(run, paired)));
    }
    html.push_str("</header>\n");
    let sections = [
        ("results", "Results", accuracies(runs, &names, paired)),
        ("curves", "Learning curves", curves(runs, &names)),
        ("differences", "Different settings", differences(runs, &names)),
        ("runs", "Each run", runs.iter().zip(&names).map(|(run, name)| whole(run, name, paired)).collect()),
    ];
    html.push_str(&contents(sections.iter().map(|(id, title, _)| (*id, *title))));
    html.push_str("<main>\n");
    html.extend(sections.iter().map(|(id, title, body)| section(id, title, body)));
    html + "</main>\n" + &footer(runs)
}

/// The results after the last stage that measured a task, each against the first run's where both answered the same problems.
fn accuracies(runs: &[RunData], names: &[String], paired: Paired) -> String {
    let last = |run: &RunData, task: &str| {
        run.stages.iter().rev().find_map(|s| s.after.iter().find(|r| r.task == task).cloned())
    };
    let mut tasks: Vec<String> = Vec::new();
    for result in runs.iter().flat_map(|run| &run.stages).flat_map(|stage| &stage.after) {
        if !tasks.contains(&result.task) {
            tasks.push(result.task.clone());
        }
    }
    let cell = |run: &RunData, task: &str, is_first: bool| {
        let Some(result) = last(run, task) else { return "<span class=\"soft\">–</span>".to_owned() };
        let (low, high) = result.interval95;
        let mut html = format!(
            "<b>{}</b> <span class=\"soft\">[{}, {}]</span>",
            percent(result.accuracy),
            percent(low),
            percent(high)
        );
        let against = last(&runs[0], task).filter(|_| !is_first);
        if let Some(gain) =
            against.and_then(|first| super::compare(paired, &first.passed(), &result.passed()))
        {
            html.push_str(&format!(
                "<small>{} points, {}</small>",
                results::change(&gain),
                results::verdict(&gain)
            ));
        }
        html
    };
    let mut rows: Vec<Vec<String>> = tasks
        .iter()
        .map(|task| {
            let head = format!("<span title=\"{}\">{}</span>", esc(task), esc(&short_task(task)));
            std::iter::once(head)
                .chain(runs.iter().enumerate().map(|(i, run)| cell(run, task, i == 0)))
                .collect()
        })
        .collect();
    for (key, name) in [("eval_loss", "Held-out loss, last stage"), ("loss", "Training loss, last stage")] {
        let value = |run: &RunData| {
            run.stages.iter().rev().find_map(|s| s.last(key)).map_or_else(|| "–".to_owned(), number)
        };
        rows.push(std::iter::once(name.to_owned()).chain(runs.iter().map(value)).collect());
    }
    let escaped: Vec<String> = names.iter().map(|name| esc(name)).collect();
    let heads: Vec<&str> =
        std::iter::once("After the last stage").chain(escaped.iter().map(String::as_str)).collect();
    table(
        "Accuracy with 95&nbsp;% interval; beneath it the difference from the first run, on the same problems",
        &heads,
        1,
        &rows,
    )
}

/// Curves of stages that have the same name.
fn curves(runs: &[RunData], names: &[String]) -> String {
    let mut stages: Vec<&str> = Vec::new();
    for stage in runs.iter().flat_map(|run| &run.stages) {
        if !stages.contains(&stage.name()) {
            stages.push(stage.name());
        }
    }
    let mut html = String::new();
    for name in stages {
        let found: Vec<(usize, &StageData)> = runs
            .iter()
            .enumerate()
            .filter_map(|(i, run)| Some((i, run.stages.iter().find(|s| s.name() == name)?)))
            .collect();
        let mut charts = String::new();
        for (key, title) in CURVES {
            let lines: Vec<Line<'_>> = found
                .iter()
                .filter(|(_, stage)| stage.metrics.contains_key(*key))
                .map(|(i, stage)| Line {
                    label: crate::text::cut(&names[*i], 12).0.to_owned(),
                    series: &stage.metrics[*key],
                    band: None,
                    has_dots: key.starts_with("eval_"),
                    color: i % 6 + 1,
                })
                .collect();
            let chart = Chart {
                title: (*title).into(),
                note: String::new(),
                lines,
                mark: None,
                may_be_log: *key == "grad_norm",
            };
            charts.push_str(&chart.to_html());
        }
        if !charts.is_empty() {
            html.push_str(&format!("<h3>{}</h3>\n<div class=\"grid\">\n{charts}</div>\n", esc(name)));
        }
    }
    if html.is_empty() { "<p>No step was logged.</p>\n".to_owned() } else { html }
}

/// Keys of the plans whose values are not all the same, each run against the first.
fn differences(runs: &[RunData], names: &[String]) -> String {
    let mut keys: Vec<String> = Vec::new();
    let lists: Vec<_> = runs.iter().skip(1).map(|run| plan_differences(&runs[0].plan, &run.plan)).collect();
    for difference in lists.iter().flatten().filter(|difference| difference.group.has_effect()) {
        if !keys.contains(&difference.key) {
            keys.push(difference.key.clone());
        }
    }
    if keys.is_empty() {
        return "<p>Nothing that could change a result: the runs have the same settings, data and model.</p>\n".to_owned();
    }
    let cell = |run: &RunData, key: &str| {
        let value = crate::why::flat(&run.plan).remove(key);
        value.map_or_else(
            || "<span class=\"soft\">–</span>".to_owned(),
            |value| esc(crate::text::cut(&value, 120).0),
        )
    };
    let rows: Vec<Vec<String>> = keys
        .iter()
        .take(200)
        .map(|key| {
            std::iter::once(format!("<code>{}</code>", esc(key)))
                .chain(runs.iter().map(|run| cell(run, key)))
                .collect()
        })
        .collect();
    let escaped: Vec<String> = names.iter().map(|name| esc(name)).collect();
    let heads: Vec<&str> = std::iter::once("Key").chain(escaped.iter().map(String::as_str)).collect();
    table("Keys of plan.json that differ and have an effect on results", &heads, 1, &rows)
}

/// A run's own findings, closed at first.
fn whole(run: &RunData, name: &str, paired: Paired) -> String {
    let problems = run
        .problems
        .iter()
        .map(|problem| format!("<p class=\"note\">{}</p>", esc(problem)))
        .collect::<String>();
    format!(
        "<details><summary>{} <small>{}</small></summary>{problems}{}{}{}</details>\n",
        esc(name),
        esc(&run.dir.display().to_string()),
        results::section(run, paired),
        super::samples::section(run),
        super::cost::section(run),
    )
}
