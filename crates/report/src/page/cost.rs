//! Time, tokens and memory as planned and as they were.

use serde_json::Value;

use super::{stage_heading, table};
use crate::chart::{Chart, Line};
use crate::plots::memory_bar;
use crate::read::{RunData, StageData};
use crate::series::Series;
use crate::text::{bytes, compact, count, duration, esc, number, utc_seconds};

pub(super) fn section(run: &RunData) -> String {
    let rows: Vec<Vec<String>> = run.stages.iter().map(|stage| row(run, stage)).collect();
    if rows.is_empty() {
        return "<p>The run has no stage.</p>\n".to_owned();
    }
    let heads = ["Stage", "Steps", "Training time", "With evaluation", "Tokens", "Memory", "Tokens a second"];
    let mut html = table("Actual, and in grey what the plan said", &heads, 1, &rows);
    html.push_str(
        "<p class=\"meta\">Training time is that of the logged steps, carried over to the steps between them. Memory is the peak of \
         weights, gradients and activations in buffers plus the optimiser's planned state.</p>\n",
    );
    let mut figures = String::new();
    for stage in &run.stages {
        let parts = memory_parts(stage);
        let speed = speed(stage);
        if !parts.is_empty() || !speed.is_empty() {
            figures.push_str(&format!(
                "<div class=\"pair\">{}{}{speed}</div>\n",
                stage_heading(stage),
                memory_bar(&parts)
            ));
        }
    }
    html + &format!("<div class=\"grid\">\n{figures}</div>\n")
}

fn row(run: &RunData, stage: &StageData) -> Vec<String> {
    let plan = &stage.plan;
    let steps = stage.metrics.get("loss").and_then(|series| series.values.last()).map(|(step, _)| *step);
    let steps = stage.outcome.as_ref().map(|outcome| outcome.steps).or(steps);
    let planned_memory: f64 = memory_parts(stage).iter().map(|part| part.1).sum();
    let memory = stage.timing.get("peak_buffer_bytes").and_then(Series::extremes).map(|(_, high)| high.1);
    let speed = stage.timing.get("tokens_per_second").map(mean);
    vec![
        esc(stage.name()),
        pair(steps.map(|n| n as f64), plan["steps"].as_f64(), |n| count(n as u64)),
        pair(training_seconds(stage), plan["expected_seconds"].as_f64(), duration),
        pair(stage_seconds(run, &stage.label), None, duration),
        pair(stage.last("num_tokens"), plan["tokens"].as_f64(), compact),
        pair(memory, (planned_memory > 0.0).then_some(planned_memory), bytes),
        pair(speed, None, number),
    ]
}

/// What was, beneath it what was planned and how the two compare.
fn pair(actual: Option<f64>, planned: Option<f64>, show: impl Fn(f64) -> String) -> String {
    let shown = actual.map_or_else(|| "–".to_owned(), &show);
    let Some(planned) = planned else { return shown };
    let ratio = match actual {
        Some(actual) if planned > 0.0 && (actual / planned - 1.0).abs() >= 0.005 => {
            let percent = (actual / planned - 1.0) * 100.0;
            format!(", {}{:.0}{}%", if percent < 0.0 { '−' } else { '+' }, percent.abs(), crate::text::NBSP)
        }
        _ => String::new(),
    };
    format!("{shown}<small>planned {}{ratio}</small>", show(planned))
}

fn mean(series: &Series) -> f64 {
    let (sum, n) = series.finite().fold((0.0, 0), |(sum, n), (_, value)| (sum + value, n + 1));
    sum / f64::from(n.max(1))
}

fn memory_parts(stage: &StageData) -> Vec<(String, f64)> {
    let part = |part: &Value| Some((part["part"].as_str()?.to_owned(), part["bytes"].as_f64()?));
    stage.plan["memory"].as_array().into_iter().flatten().filter_map(part).collect()
}

/// Every logged step's time, for itself and the unlogged steps before it.
fn training_seconds(stage: &StageData) -> Option<f64> {
    let series = stage.timing.get("step_time")?;
    let (mut before, mut total) = (0, 0.0);
    for (step, seconds) in series.finite() {
        total += seconds * step.saturating_sub(before) as f64;
        before = step;
    }
    Some(total)
}

/// From the stage's beginning to its end, without the pauses between an interruption and its resumption.
fn stage_seconds(run: &RunData, label: &str) -> Option<f64> {
    let (mut total, mut open, mut latest) = (0.0, None::<f64>, None::<f64>);
    for event in &run.events {
        let Some(at) = event["time"].as_str().and_then(utc_seconds) else { continue };
        let (kind, is_ours) = (event["event"].as_str().unwrap_or_default(), event["stage"] == label);
        match kind {
            // A resumption without an interruption before it: the run was killed after its latest event.
            "stage_begun" | "resumed" if is_ours => {
                total += open.map_or(0.0, |from| latest.unwrap_or(at) - from);
                let is_fresh = kind == "resumed" && event["step"] == 0 && open.is_some();
                open = Some(if is_fresh { latest.unwrap_or(at) } else { at });
            }
            "stage_ended" | "interrupted" if is_ours => total += open.take().map_or(0.0, |from| at - from),
            _ => {}
        }
        latest = Some(at);
    }
    let total = total + open.zip(latest).map_or(0.0, |(from, to)| to - from);
    (total > 0.0).then_some(total)
}

/// Speed over the stage: a slow machine or a stop shows here.
fn speed(stage: &StageData) -> String {
    let Some(series) = stage.timing.get("tokens_per_second").filter(|series| !series.is_constant()) else {
        return String::new();
    };
    let line = Line { label: "speed".into(), series, band: None, has_dots: false, color: 3 };
    Chart {
        title: "Speed".into(),
        note: "tokens a second".into(),
        lines: vec![line],
        mark: None,
        may_be_log: false,
    }
    .to_html()
}
