//! What each stage learned from: sources, rows, tokens, how much of it trains.

use serde_json::Value;

use super::{stage_heading, table};
use crate::plots::{COLORS, parts_bar};
use crate::read::{RunData, StageData};
use crate::text::{bytes, compact, count, cut, esc, percent};

pub(super) fn section(run: &RunData) -> String {
    let stages: String = run.stages.iter().map(stage).collect();
    if stages.is_empty() { "<p>The plan names no data.</p>\n".to_owned() } else { stages }
}

fn stage(stage: &StageData) -> String {
    let data = &stage.plan["data"];
    let list = |kind: &str| data[kind].as_array().cloned().unwrap_or_default();
    let (train, eval) = (list("train"), list("eval"));
    if train.is_empty() && eval.is_empty() {
        return String::new();
    }
    let mut html = stage_heading(stage);
    if train.len() > 1 {
        let name = |i: usize, source: &Value| {
            cut(source["source"].as_str().unwrap_or("?"), 40).0.to_owned() + if i < 9 { "" } else { "…" }
        };
        let names: Vec<String> = train.iter().enumerate().map(|(i, source)| name(i, source)).collect();
        let tokens = |source: &Value| source["tokens"].as_f64().unwrap_or(0.0);
        let parts: Vec<(&str, f64, String)> = train
            .iter()
            .zip(&names)
            .map(|(source, name)| (name.as_str(), tokens(source), compact(tokens(source))))
            .collect();
        html.push_str(&parts_bar("tokens by source", &parts, COLORS));
    }
    let rows: Vec<Vec<String>> = train
        .iter()
        .map(|s| row(s, "training"))
        .chain(eval.iter().map(|s| row(s, "held\u{a0}out")))
        .collect();
    let heads = ["Source", "Use", "Layout", "Rows", "Tokens", "Trained", "Cut", "Left out"];
    html.push_str(&table(
        "Rows and tokens as planned; <i>trained</i> is the share of tokens that the loss counts",
        &heads,
        3,
        &rows,
    ));
    html.push_str(&format!("<p class=\"meta\">{}</p>\n", esc(&how(stage))));
    html
}

fn row(source: &Value, usage: &str) -> Vec<String> {
    let n = |key: &str| source[key].as_u64().map_or_else(|| "–".to_owned(), count);
    let share = match (source["trained_tokens"].as_f64(), source["tokens"].as_f64()) {
        (Some(0.0), _) => "<span class=\"soft\">prompts only</span>".to_owned(),
        (Some(trained), Some(tokens)) if tokens > 0.0 => percent(trained / tokens),
        _ => "–".to_owned(),
    };
    let size: f64 =
        source["files"].as_array().into_iter().flatten().filter_map(|file| file["bytes"].as_f64()).sum();
    let files = match source["files"].as_array().map_or(0, Vec::len) {
        0 => String::new(),
        n => format!("<small>{n} files, {}</small>", bytes(size)),
    };
    let name = source["source"].as_str().unwrap_or("?");
    vec![
        format!("<span class=\"hash\">{}</span>{files}", esc(cut(name, 160).0)),
        usage.to_owned(),
        esc(source["layout"].as_str().unwrap_or("–")),
        n("rows"),
        n("tokens"),
        share,
        n("rows_truncated"),
        n("rows_dropped"),
    ]
}

/// How rows become steps, in a line.
fn how(stage: &StageData) -> String {
    let (data, train) = (&stage.plan["data"], &stage.plan["train"]);
    let mut parts = Vec::new();
    if let Some(object) =
        data["mixture"].as_object().filter(|_| data["train"].as_array().is_some_and(|list| list.len() > 1))
    {
        parts.push(format!("mixture {}", Value::Object(object.clone())));
    }
    parts.extend(data["max_length"].as_u64().map(|n| format!("at most {} tokens a row", count(n))));
    parts.extend(data["packing"].as_str().map(|packing| format!("packing {packing}")));
    parts.extend(data["shuffle"].as_bool().map(|yes| if yes { "shuffled" } else { "in order" }.to_owned()));
    parts.extend(
        train["epochs"]
            .as_f64()
            .map(|n| format!("{} epoch{}", crate::text::number(n), if n == 1.0 { "" } else { "s" })),
    );
    parts.join(" · ")
}
