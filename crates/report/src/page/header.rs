//! Name, the result in a sentence, what is missing.

use std::fmt::Write as _;

use super::{compare, gain_of, results};
use crate::read::{RunData, TaskResult};
use crate::text::{
    NBSP, compact, count, duration, esc, number, p_value, percent, points, short_task, utc_seconds,
};
use crate::{Gain, Paired};

/// From the first measurement of a task to its last.
pub(super) struct Overall {
    pub(super) task: String,
    pub(super) n: usize,
    pub(super) before: f64,
    pub(super) after: f64,
    pub(super) gain: Gain,
}

/// What the whole run gained, for each task of the last stage that was measured.
pub(super) fn overall(run: &RunData, paired: Paired) -> Vec<Overall> {
    let of_stage = |stage: &crate::StageData| results::gains(stage, paired);
    let Some((last, gains)) =
        run.stages.iter().rev().map(|s| (s, of_stage(s))).find(|(_, gains)| !gains.is_empty())
    else {
        return Vec::new();
    };
    let find =
        |results: &[TaskResult], task: &str| results.iter().find(|result| result.task == task).cloned();
    let whole = |gain: &crate::TaskGain| {
        let first = run.stages.iter().find_map(|stage| find(&stage.before, &gain.task))?;
        let after = find(&last.after, &gain.task)?;
        let whole = compare(paired, &first.passed(), &after.passed())?;
        Some(Overall {
            task: gain.task.clone(),
            n: after.samples.len(),
            before: first.accuracy,
            after: after.accuracy,
            gain: whole,
        })
    };
    let of_last = |gain: &crate::TaskGain| Overall {
        task: gain.task.clone(),
        n: gain.n,
        before: gain.before,
        after: gain.after,
        gain: gain_of(gain),
    };
    gains.iter().map(|gain| whole(gain).unwrap_or_else(|| of_last(gain))).collect()
}

pub(super) fn header(run: &RunData, paired: Paired) -> String {
    let stages: Vec<&str> = run.stages.iter().map(|stage| stage.name()).collect();
    let mut html = format!(
        "<header class=\"top\">\n<p class=\"kicker\">posttrain report · {}</p>\n<h1>{}</h1>\n<p class=\"lead\">{}</p>\n",
        esc(&stages.join(" → ")),
        esc(&run.name()),
        sentence(run, paired)
    );
    html.push_str(&facts(run));
    html.push_str(&problems(run));
    html.push_str("</header>\n");
    html
}

/// The result in a sentence, as HTML.
pub(super) fn sentence(run: &RunData, paired: Paired) -> String {
    let all = overall(run, paired);
    let mut sentences: Vec<String> = all.iter().take(3).map(of_task).collect();
    if all.len() > 3 {
        sentences.push(format!("{} more tasks are below.", all.len() - 3));
    }
    if sentences.is_empty() {
        sentences.push(of_losses(run));
    }
    if !is_finished(run) {
        let n_done = run.stages.iter().filter(|stage| stage.outcome.is_some()).count();
        sentences.push(format!(
            "<strong>The run is not finished</strong>: {n_done} of {} stages are complete.",
            run.stages.len()
        ));
    }
    sentences.join(" ")
}

pub(super) fn is_finished(run: &RunData) -> bool {
    let all_done = !run.stages.is_empty() && run.stages.iter().all(|stage| stage.outcome.is_some());
    all_done || run.events.iter().any(|event| event["event"] == "finished")
}

fn of_task(overall: &Overall) -> String {
    let Overall { n, before, after, gain, .. } = overall;
    let start = format!(
        "The model solves <strong>{}</strong> of {} held-out problems ({}), after {} at the start: ",
        percent(*after),
        count(*n as u64),
        esc(&short_task(&overall.task)),
        percent(*before)
    );
    let interval = format!(
        "95{NBSP}% interval {}{NBSP}to{NBSP}{}, {}",
        points(gain.interval95.0),
        points(gain.interval95.1),
        esc(&p_value(gain.p_value))
    );
    let change = points(gain.difference);
    match (gain.is_significant(), gain.difference > 0.0) {
        (true, true) => format!("{start}a gain of <strong>{change} points</strong> ({interval})."),
        (true, false) => format!("{start}<strong>a loss</strong> of {change} points ({interval})."),
        _ => format!("{start}<strong>no significant change</strong>, {change} points ({interval})."),
    }
}

/// Without tasks a run is known by its losses.
fn of_losses(run: &RunData) -> String {
    for (key, name) in [("eval_loss", "held-out loss"), ("loss", "training loss")] {
        let ends = run.stages.iter().rev().find_map(|stage| Some((stage, stage.metrics.get(key)?.ends()?)));
        if let Some((stage, ((_, first), (_, last)))) = ends {
            return format!(
                "No task was measured. In its last stage, {}, the {name} went from {} to <strong>{}</strong>.",
                esc(stage.name()),
                number(first),
                number(last)
            );
        }
    }
    "Nothing has been measured yet.".to_owned()
}

fn facts(run: &RunData) -> String {
    let mut facts: Vec<(&str, String)> = Vec::new();
    let model = &run.plan["model"];
    let base = model["base"].as_str().map(str::to_owned);
    let architecture = || model["new"]["architecture"].as_str().map(|name| format!("new {name}"));
    facts.extend(base.or_else(architecture).map(|base| ("Base model", esc(&base))));
    facts.extend(model["parameters"].as_f64().map(|n| ("Parameters", compact(n))));
    let tokens: f64 = run.stages.iter().filter_map(|stage| stage.last("num_tokens")).sum();
    if tokens > 0.0 {
        facts.push(("Tokens trained on", compact(tokens)));
    }
    let times = || run.events.iter().filter_map(|event| event["time"].as_str());
    if let (Some(first), Some(last)) = (times().next(), times().next_back()) {
        facts.push((
            "Begun",
            esc(first.split_once('.').map_or(first, |(day, _)| day)).replace('T', " ") + " UTC",
        ));
        if let (Some(from), Some(to)) = (utc_seconds(first), utc_seconds(last)) {
            facts.push(("From start to end", duration(to - from)));
        }
    }
    facts.extend(run.plan["seed"].as_u64().map(|seed| ("Seed", seed.to_string())));
    facts.extend(run.plan_hash().map(|hash| {
        ("Plan", format!("<span class=\"hash\">{}</span>", esc(hash.get(..12).unwrap_or(hash))))
    }));
    facts.extend(run.version().map(|version| ("posttrain", esc(version))));
    let list: String =
        facts.iter().map(|(name, value)| format!("<div><dt>{name}</dt><dd>{value}</dd></div>")).collect();
    if list.is_empty() { list } else { format!("<dl class=\"facts\">{list}</dl>\n") }
}

fn problems(run: &RunData) -> String {
    if run.problems.is_empty() {
        return String::new();
    }
    let mut html = "<div class=\"note\" role=\"note\"><p><b>Missing or damaged in the run folder</b>; this page shows the rest.</p><ul>".to_owned();
    for problem in run.problems.iter().take(20) {
        let _ = write!(html, "<li>{}</li>", esc(problem));
    }
    if run.problems.len() > 20 {
        let _ = write!(html, "<li>and {} more</li>", run.problems.len() - 20);
    }
    html.push_str("</ul></div>\n");
    html
}
