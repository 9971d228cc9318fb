//! Exactly what ran, the hashes that identify it, and how to run it again.

use std::fmt::Write as _;

use serde_json::Value;

use super::table;
use crate::read::RunData;
use crate::text::{bytes, compact, count, cut, esc, number};

/// Most characters of a plan on the page.
const MAX_PLAN: usize = 200_000;
/// Most files listed with their hashes.
const MAX_FILES: usize = 200;

/// Settings shown side by side: name, and where in a stage's plan.
const SETTINGS: &[(&str, &str)] = &[
    ("Method", "/train/method"),
    ("Objective", "/objective/type"),
    ("β", "/objective/params/beta"),
    ("Optimizer", "/optimizer/type"),
    ("Learning rate", "/schedule/learning_rate"),
    ("Schedule", "/schedule/type"),
    ("Warm-up steps", "/schedule/warmup_steps"),
    ("Weight decay", "/optimizer/params/weight_decay"),
    ("Step size", "/train/step_size"),
    ("Epochs", "/train/epochs"),
    ("Max grad norm", "/train/max_grad_norm"),
    ("Trainable", "/trainable_parameters"),
    ("LoRA rank", "/lora/rank"),
    ("LoRA alpha", "/lora/alpha"),
    ("Quantization", "/quantization/type"),
    ("Samples a prompt", "/rollout/n"),
    ("Temperature", "/rollout/temperature"),
];

pub(super) fn section(run: &RunData) -> String {
    let mut html = settings(run);
    html.push_str(&reproduce(run));
    html.push_str(&hashes(run));
    if !run.plan.is_null() {
        let text = serde_json::to_string_pretty(&run.plan).unwrap_or_default();
        let (start, rest) = cut(&text, MAX_PLAN);
        let rest =
            if rest > 0 { format!("\n… {rest} more characters are in plan.json") } else { String::new() };
        let _ = writeln!(
            html,
            "<details><summary>The whole plan <small>plan.json, no option left open</small></summary><pre>{}{rest}</pre></details>",
            esc(start)
        );
    }
    html
}

fn settings(run: &RunData) -> String {
    let value = |stage: &crate::StageData, at: &str| {
        stage.plan.pointer(at).filter(|value| !value.is_null()).map(show)
    };
    let rows: Vec<Vec<String>> = SETTINGS
        .iter()
        .map(|(name, at)| (name, run.stages.iter().map(|stage| value(stage, at)).collect::<Vec<_>>()))
        .filter(|(_, values)| values.iter().any(Option::is_some))
        .map(|(name, values)| {
            let cells = values
                .into_iter()
                .map(|value| value.map_or_else(|| "<span class=\"soft\">–</span>".into(), |v| esc(&v)));
            std::iter::once((*name).to_owned()).chain(cells).collect()
        })
        .collect();
    if rows.is_empty() {
        return "<p>plan.json is missing or damaged, so the settings are not known.</p>\n".to_owned();
    }
    let names: Vec<String> = run.stages.iter().map(|stage| esc(stage.name())).collect();
    let heads: Vec<&str> = std::iter::once("Setting").chain(names.iter().map(String::as_str)).collect();
    table("Principal settings of each stage", &heads, 1, &rows)
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(n) if n.as_f64().is_some_and(|x| x >= 1e6) => compact(n.as_f64().unwrap_or_default()),
        Value::Number(n) => n.as_u64().map_or_else(|| number(n.as_f64().unwrap_or(f64::NAN)), count),
        Value::Object(map) => {
            map.iter().map(|(key, value)| format!("{} {key}", show(value))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

fn hashes(run: &RunData) -> String {
    let mut lines: Vec<(String, String)> = Vec::new();
    lines.extend(run.plan_hash().map(|hash| ("plan".to_owned(), hash.to_owned())));
    files(&run.plan["model"]["files"], &mut lines);
    for stage in &run.stages {
        let data = &stage.plan["data"];
        if let Some(hash) = data["chat_template"]["blake3"].as_str() {
            let origin = data["chat_template"]["origin"].as_str().unwrap_or("?");
            lines.push((format!("{}: chat template ({origin})", stage.name()), hash.to_owned()));
        }
        for source in ["train", "eval"].iter().flat_map(|kind| data[*kind].as_array().into_iter().flatten()) {
            files(&source["files"], &mut lines);
        }
    }
    if lines.is_empty() {
        return String::new();
    }
    let mut html = format!(
        "<details><summary>{} hashes <small>BLAKE3 of plan, model, templates and data files</small></summary><pre>",
        lines.len()
    );
    for (name, hash) in lines.iter().take(MAX_FILES) {
        let _ = writeln!(html, "{}  {}", esc(hash), esc(name));
    }
    if lines.len() > MAX_FILES {
        let _ = writeln!(html, "and {} more in plan.json", lines.len() - MAX_FILES);
    }
    html + "</pre></details>\n"
}

fn files(list: &Value, lines: &mut Vec<(String, String)>) {
    for file in list.as_array().into_iter().flatten() {
        if let (Some(path), Some(hash)) = (file["path"].as_str(), file["blake3"].as_str()) {
            let size = file["bytes"].as_f64().map_or_else(String::new, |n| format!(", {}", bytes(n)));
            lines.push((format!("{path}{size}"), hash.to_owned()));
        }
    }
}

fn reproduce(run: &RunData) -> String {
    let (name, folder) = (esc(&run.name()), esc(&run.dir.display().to_string()));
    let version = run
        .version()
        .map_or_else(|| "the version that wrote this run".to_owned(), |v| format!("posttrain {}", esc(v)));
    let hash = run.plan_hash().map_or_else(String::new, |hash| {
        format!(" The plan's hash, in the first line of <code>events.jsonl</code>, must be <span class=\"hash\">{}</span>.", esc(hash))
    });
    format!(
        "<h3>How to reproduce</h3>\n<ol class=\"steps\">\n\
         <li>Take {version}, the recipe <code>{name}</code>, and the data and model files whose hashes are below.</li>\n\
         <li><code>posttrain run RECIPE.toml --out AGAIN</code>, with the same <code>--set</code> options if there were any.{hash}</li>\n\
         <li><code>posttrain why {folder} AGAIN</code> shows every difference of plan, data and results; on the same kind of machine there is none.</li>\n\
         </ol>\n"
    )
}
