//! Stages side by side: accuracies, intervals, significance, and where each change comes from.

use super::{compare, gain_of, stage_name, table};
use crate::plots::{Measured, Pair, Track, accuracy_over_stages, before_and_after};
use crate::read::{RunData, Sample, StageData, TaskGain, TaskResult};
use crate::text::{count, esc, number, p_value, percent, points, short_task};
use crate::{Gain, Paired};

/// Most tasks with a figure of their own; the table has all.
const MAX_TASKS: usize = 12;
/// Most kinds of problems in a figure.
const MAX_KINDS: usize = 16;

/// A stage's gains: as its outcome says, or computed from the answers where it has none yet.
pub(crate) fn gains(stage: &StageData, paired: Paired) -> Vec<TaskGain> {
    if let Some(outcome) = &stage.outcome {
        return outcome.gains.clone();
    }
    let one = |before: &TaskResult| {
        let after = stage.after.iter().find(|after| after.task == before.task)?;
        let gain = compare(paired, &before.passed(), &after.passed())?;
        Some(TaskGain {
            task: before.task.clone(),
            n: before.samples.len(),
            before: before.accuracy,
            after: after.accuracy,
            difference: gain.difference,
            interval95: gain.interval95,
            p_value: gain.p_value,
        })
    };
    stage.before.iter().filter_map(one).collect()
}

pub(super) fn section(run: &RunData, paired: Paired) -> String {
    let tracks = tracks(run);
    let mut html = String::new();
    if tracks.is_empty() {
        html.push_str("<p>No task was measured before or after a stage. Give a stage <code>eval.tasks</code> to see what it gains.</p>\n");
    } else {
        let moments = moments(run);
        let tasks: String =
            tracks.iter().take(MAX_TASKS).map(|track| accuracy_over_stages(&moments, track)).collect();
        let figures = tasks + &kinds(run, paired);
        html.push_str(&format!("<div class=\"grid\">\n{figures}</div>\n"));
    }
    html.push_str(&stages_table(run, paired));
    html
}

fn moments(run: &RunData) -> Vec<String> {
    let start = if run.plan["model"]["base"].is_string() { "base" } else { "start" };
    std::iter::once(start.to_owned()).chain(run.stages.iter().map(|stage| stage.name().to_owned())).collect()
}

/// Every task's measurements. What a stage found before it is what the one before it found after, so it is shown once.
fn tracks(run: &RunData) -> Vec<Track> {
    let mut tracks: Vec<(String, Track)> = Vec::new();
    for (i, stage) in run.stages.iter().enumerate() {
        let before = stage.before.iter().map(|result| (i, result));
        for (moment, result) in before.chain(stage.after.iter().map(|result| (i + 1, result))) {
            let at = tracks.iter().position(|(task, _)| *task == result.task).unwrap_or_else(|| {
                let name = format!("{}, n = {}", short_task(&result.task), result.samples.len());
                tracks.push((result.task.clone(), Track { name, measured: Vec::new() }));
                tracks.len() - 1
            });
            let measured = &mut tracks[at].1.measured;
            if measured.last().is_none_or(|last| last.moment < moment) {
                measured.push(Measured { moment, share: result.accuracy, interval95: result.interval95 });
            }
        }
    }
    tracks.into_iter().map(|(_, track)| track).collect()
}

fn stages_table(run: &RunData, paired: Paired) -> String {
    let mut rows = Vec::new();
    // What stages that evaluate found has a part of its own: they change nothing.
    let changing: Vec<&StageData> = run.stages.iter().filter(|stage| stage.plan["type"] != "eval").collect();
    if changing.is_empty() && !run.stages.is_empty() {
        return String::new();
    }
    for stage in changing {
        let head = stage_name(stage);
        let loss = held_out_loss(stage);
        let gains = gains(stage, paired);
        if gains.is_empty() {
            let dash = "<span class=\"soft\">–</span>".to_owned();
            rows.push(vec![
                head,
                "<span class=\"soft\">not measured</span>".into(),
                dash.clone(),
                dash.clone(),
                dash.clone(),
                dash,
                loss,
            ]);
            continue;
        }
        rows.extend(gains.iter().map(|gain| {
            vec![
                head.clone(),
                format!(
                    "<span title=\"{}\">{}</span>, {} problems",
                    esc(&gain.task),
                    esc(&short_task(&gain.task)),
                    count(gain.n as u64)
                ),
                percent(gain.before),
                percent(gain.after),
                change(&gain_of(gain)),
                verdict(&gain_of(gain)),
                loss.clone(),
            ]
        }));
    }
    if rows.is_empty() {
        return "<p>The run has no stage.</p>\n".to_owned();
    }
    let caption = "What each stage changed, on the same problems before and after it (paired 95&nbsp;% interval, exact McNemar test)";
    table(
        caption,
        &["Stage", "Task", "Before", "After", "Change, points", "Verdict", "Held-out loss"],
        2,
        &rows,
    )
}

/// `+16.8 [+13.1, +20.8]`.
pub(super) fn change(gain: &Gain) -> String {
    format!(
        "<b>{}</b> <span class=\"soft\">[{}, {}]</span>",
        points(gain.difference),
        points(gain.interval95.0),
        points(gain.interval95.1)
    )
}

/// In a word, and how likely it is by chance.
pub(super) fn verdict(gain: &Gain) -> String {
    let word = match (gain.is_significant(), gain.difference > 0.0) {
        (true, true) => "<span class=\"good\">▲ gain</span>",
        (true, false) => "<span class=\"bad\">▼ loss</span>",
        _ => "<span class=\"soft\">no significant change</span>",
    };
    format!("{word} <span class=\"soft\">{}</span>", esc(&p_value(gain.p_value)))
}

fn held_out_loss(stage: &StageData) -> String {
    let ends = stage.metrics.get("eval_loss").and_then(|series| series.ends());
    match ends {
        Some(((a, first), (b, last))) if a != b => format!("{} → {}", number(first), number(last)),
        Some((_, (_, last))) => number(last),
        None => "<span class=\"soft\">–</span>".to_owned(),
    }
}

/// Kinds of problems before and after each stage: where the change comes from, and what was forgotten.
fn kinds(run: &RunData, paired: Paired) -> String {
    let mut figures = String::new();
    for stage in &run.stages {
        for before in &stage.before {
            let after = stage.after.iter().find(|after| after.task == before.task);
            let Some(after) = after.filter(|after| after.samples.len() == before.samples.len()) else {
                continue;
            };
            let pairs = by_kind(&before.samples, &after.samples, paired);
            if pairs.len() > 1 {
                let note = "percent solved; ring before, dot after; grey where it may be chance";
                figures.push_str(&before_and_after(
                    &format!("{} by kind of problem", stage.name()),
                    note,
                    &pairs,
                ));
            }
        }
    }
    figures
}

fn by_kind(before: &[Sample], after: &[Sample], paired: Paired) -> Vec<Pair> {
    let mut kinds: Vec<(&str, Vec<bool>, Vec<bool>)> = Vec::new();
    for (b, a) in before.iter().zip(after) {
        let at = kinds.iter().position(|kind| kind.0 == b.family).unwrap_or_else(|| {
            kinds.push((&b.family, Vec::new(), Vec::new()));
            kinds.len() - 1
        });
        kinds[at].1.push(b.passed);
        kinds[at].2.push(a.passed);
    }
    let share = |passed: &[bool]| passed.iter().filter(|p| **p).count() as f64 / passed.len() as f64;
    let pair = |(name, before, after): &(&str, Vec<bool>, Vec<bool>)| Pair {
        name: (*name).to_owned(),
        n: before.len(),
        before: share(before),
        after: share(after),
        is_significant: compare(paired, before, after).is_some_and(|gain| gain.is_significant()),
    };
    let mut pairs: Vec<Pair> = kinds.iter().map(pair).collect();
    pairs.sort_by(|a, b| (b.after - b.before).total_cmp(&(a.after - a.before)));
    // Of many kinds, those that changed most in either direction.
    if pairs.len() > MAX_KINDS {
        pairs.drain(MAX_KINDS / 2..pairs.len() - MAX_KINDS / 2);
    }
    pairs
}
