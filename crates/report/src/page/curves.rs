//! Learning curves: the charts that each kind of stage is read by, and every other metric in a table.

use std::collections::BTreeSet;

use super::{stage_heading, table};
use crate::chart::{Chart, Line};
use crate::read::{RunData, StageData};
use crate::text::{count, esc, number};

/// A chart that is drawn wherever one of its metrics is.
struct Spec {
    title: &'static str,
    note: &'static str,
    /// Metric and its name in the chart.
    keys: &'static [(&'static str, &'static str)],
    may_be_log: bool,
}

const fn spec(
    title: &'static str,
    note: &'static str,
    keys: &'static [(&'static str, &'static str)],
) -> Spec {
    Spec { title, note, keys, may_be_log: false }
}

const fn log(title: &'static str, note: &'static str, keys: &'static [(&'static str, &'static str)]) -> Spec {
    Spec { title, note, keys, may_be_log: true }
}

/// In reading order.
const CHARTS: &[Spec] = &[
    spec("Reward", "mean of the samples", &[("reward", "reward"), ("eval_reward", "held-out")]),
    spec("Loss", "", &[("loss", "training"), ("eval_loss", "held-out")]),
    spec(
        "Preference accuracy",
        "share of pairs where the chosen reply earns more",
        &[("rewards/accuracies", "training"), ("eval_rewards/accuracies", "held-out")],
    ),
    spec(
        "Reward margin",
        "chosen minus rejected",
        &[("rewards/margins", "training"), ("eval_rewards/margins", "held-out")],
    ),
    spec(
        "Implicit rewards",
        "a falling chosen reward is a warning",
        &[("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")],
    ),
    spec(
        "Log-probabilities of replies",
        "sum over the reply",
        &[("logps/chosen", "chosen"), ("logps/rejected", "rejected")],
    ),
    log("KL divergence", "from the reference, per token", &[("kl", "KL"), ("objective/kl", "KL")]),
    spec(
        "Entropy",
        "of the predictions, nats per token",
        &[("entropy", "training"), ("eval_entropy", "held-out")],
    ),
    spec(
        "Completion length",
        "tokens",
        &[("completions/mean_length", "mean"), ("completions/mean_terminated_length", "ended by itself")],
    ),
    spec("Completions cut off", "share that reached the limit", &[("completions/clipped_ratio", "cut off")]),
    spec(
        "Groups without signal",
        "share whose samples all earn the same",
        &[("frac_reward_zero_std", "share")],
    ),
    spec("Spread of rewards", "standard deviation", &[("reward_std", "reward")]),
    spec(
        "Clipped ratios",
        "share of tokens outside the trust region",
        &[
            ("clip_ratio/low_mean", "below"),
            ("clip_ratio/high_mean", "above"),
            ("clip_ratio/region_mean", "either"),
        ],
    ),
    log(
        "Sampler against trainer",
        "difference of log-probabilities",
        &[
            ("sampling/sampling_logp_difference/mean", "mean"),
            ("sampling/sampling_logp_difference/max", "most"),
        ],
    ),
    spec(
        "Token accuracy",
        "share of targets that were likeliest",
        &[("mean_token_accuracy", "training"), ("eval_mean_token_accuracy", "held-out")],
    ),
    log("Gradient norm", "before clipping", &[("grad_norm", "norm")]),
    spec("Learning rate", "", &[("learning_rate", "rate")]),
];

/// Metrics that only count, and such as say the same as another.
const NOT_DRAWN: &[&str] = &[
    "epoch",
    "num_tokens",
    "nll",
    "eval_nll",
    "policy_loss",
    "completions/min_length",
    "completions/max_length",
];

pub(super) fn section(run: &RunData) -> String {
    let mut html = String::new();
    for stage in &run.stages {
        html.push_str(&stage_heading(stage));
        if stage.metrics.is_empty() {
            html.push_str("<p>No step was logged.</p>\n");
            continue;
        }
        html.push_str(&charts(stage));
        html.push_str(&all_metrics(stage));
    }
    html
}

fn charts(stage: &StageData) -> String {
    let (mut html, mut still, mut drawn) = (String::new(), Vec::new(), BTreeSet::new());
    for spec in CHARTS {
        let keys = spec.keys.iter().filter(|(key, _)| stage.metrics.contains_key(*key));
        let keys: Vec<(&str, String)> = keys.map(|(key, label)| (*key, (*label).to_owned())).collect();
        drawn.extend(keys.iter().map(|(key, _)| (*key).to_owned()));
        if spec.title == "Reward" {
            html.push_str(&chart_of(stage, spec, &keys, &mut still));
            html.push_str(&rewards_by_verifier(stage, &mut drawn));
        } else {
            html.push_str(&chart_of(stage, spec, &keys, &mut still));
        }
    }
    let mut more = String::new();
    for (key, series) in &stage.metrics {
        if !drawn.contains(key) && !NOT_DRAWN.contains(&key.as_str()) && !series.is_constant() {
            let line =
                Line { label: key.clone(), series, band: None, has_dots: key.starts_with("eval_"), color: 1 };
            more.push_str(
                &Chart {
                    title: key.clone(),
                    note: String::new(),
                    lines: vec![line],
                    mark: None,
                    may_be_log: true,
                }
                .to_html(),
            );
        }
    }
    let mut all = format!("<div class=\"grid\">\n{html}</div>\n");
    if !still.is_empty() {
        all.push_str(&format!("<p class=\"meta\">Did not change: {}.</p>\n", still.join("; ")));
    }
    if !more.is_empty() {
        all.push_str(&format!(
            "<details><summary>More metrics</summary><div class=\"grid\">\n{more}</div></details>\n"
        ));
    }
    all
}

fn chart_of(stage: &StageData, spec: &Spec, keys: &[(&str, String)], still: &mut Vec<String>) -> String {
    if keys.is_empty() {
        return String::new();
    }
    if keys.iter().all(|(key, _)| stage.metrics[*key].is_constant() && stage.metrics[*key].values.len() > 1) {
        let value = stage.last(keys[0].0).map_or_else(|| "never finite".to_owned(), number);
        still.push(format!("{} ({value})", spec.title.to_lowercase()));
        return String::new();
    }
    let line = |(i, (key, label)): (usize, &(&str, String))| Line {
        label: label.clone(),
        series: &stage.metrics[*key],
        band: (*key == "completions/mean_length")
            .then(|| {
                Some((
                    stage.metrics.get("completions/min_length")?,
                    stage.metrics.get("completions/max_length")?,
                ))
            })
            .flatten(),
        has_dots: key.starts_with("eval_"),
        color: i + 1,
    };
    // A second line that lies on the first says nothing.
    let mut shown: Vec<&(&str, String)> = Vec::new();
    for key in keys {
        if !shown.iter().any(|s| stage.metrics[s.0] == stage.metrics[key.0]) {
            shown.push(key);
        }
    }
    let mark = stage.outcome.as_ref().and_then(|outcome| outcome.best_step).filter(|_| spec.title == "Loss");
    let mut note = spec.note.to_owned();
    if keys.iter().any(|(key, _)| *key == "completions/mean_length")
        && stage.metrics.contains_key("completions/min_length")
    {
        note.push_str("; band: shortest to longest");
    }
    let lines = shown.into_iter().enumerate().map(line).collect();
    let chart = Chart {
        title: spec.title.to_owned(),
        note,
        lines,
        mark: mark.map(|step| (step, "kept")),
        may_be_log: spec.may_be_log,
    };
    chart.to_html()
}

/// One line for each `rewards/NAME/mean`, where there is more than one.
fn rewards_by_verifier(stage: &StageData, drawn: &mut BTreeSet<String>) -> String {
    let name = |key: &str| key.strip_prefix("rewards/")?.strip_suffix("/mean").map(str::to_owned);
    let found: Vec<(String, &String)> =
        stage.metrics.keys().filter_map(|key| Some((name(key)?, key))).collect();
    let related = |key: &&String| {
        key.starts_with("rewards/")
            && (key.ends_with("/mean") || key.ends_with("/std") || key.ends_with("/skipped"))
    };
    drawn.extend(stage.metrics.keys().filter(related).cloned());
    let lines: Vec<Line<'_>> = found
        .iter()
        .enumerate()
        .map(|(i, (name, key))| Line {
            label: name.clone(),
            series: &stage.metrics[*key],
            band: None,
            has_dots: false,
            color: i % 6 + 1,
        })
        .collect();
    let only_copy =
        lines.len() == 1 && stage.metrics.get("reward").is_some_and(|reward| reward == lines[0].series);
    if lines.is_empty() || only_copy {
        return String::new();
    }
    Chart {
        title: "Reward by verifier".into(),
        note: "mean of the samples".into(),
        lines,
        mark: None,
        may_be_log: false,
    }
    .to_html()
}

/// Every metric in numbers: what the charts show, for those who cannot see them, and the rest.
fn all_metrics(stage: &StageData) -> String {
    let row = |(key, series): (&String, &crate::Series)| {
        let ((_, first), (_, last)) = series.ends()?;
        let (low, high) = series.extremes()?;
        let at =
            |(step, value): (u64, f64)| format!("{} <span class=\"soft\">at {step}</span>", number(value));
        Some(vec![
            format!("<code>{}</code>", esc(key)),
            count(series.values.len() as u64),
            number(first),
            number(last),
            at(low),
            at(high),
        ])
    };
    let rows: Vec<Vec<String>> = stage.metrics.iter().filter_map(row).collect();
    let heads = ["Metric", "Values", "First", "Last", "Least", "Greatest"];
    format!(
        "<details><summary>All {} metrics in numbers</summary>{}</details>\n",
        rows.len(),
        table(&format!("Metrics of {}", esc(stage.name())), &heads, 1, &rows)
    )
}
