//! What happened on the way: alarms, warnings, interruptions, damaged checkpoints.

use std::fmt::Write as _;

use serde_json::Value;

use crate::read::RunData;
use crate::text::{count, esc};

/// Most events shown; the rest are counted.
const MAX_EVENTS: usize = 200;

pub(super) fn section(run: &RunData) -> String {
    if run.events.is_empty() {
        return "<p>The run's folder holds no events.</p>\n".to_owned();
    }
    let n = |kind: &str| run.events.iter().filter(|event| event["event"] == kind).count() as u64;
    let notable: Vec<&Value> = run.events.iter().filter(|event| is_notable(event)).collect();
    let mut html = String::new();
    let (warnings, stops) = (n("warning"), n("interrupted"));
    let summary = match (warnings, stops) {
        (0, 0) => "No warning, no alarm, no interruption.".to_owned(),
        _ => format!("{} warnings and alarms, {} interruptions.", count(warnings), count(stops)),
    };
    let _ = writeln!(html, "<p>{summary} {} checkpoints were saved.</p>", count(n("checkpoint_saved")));
    html.push_str("<ul class=\"events\">\n");
    for event in notable.iter().take(MAX_EVENTS) {
        let time = event["time"].as_str().unwrap_or("no time");
        let shown = time.split_once('.').map_or(time, |(seconds, _)| seconds).replace('T', " ");
        let _ = writeln!(
            html,
            "<li><time datetime=\"{}\">{} UTC</time><span>{}</span></li>",
            esc(time),
            esc(&shown),
            describe(event)
        );
    }
    html.push_str("</ul>\n");
    if notable.len() > MAX_EVENTS {
        let _ = writeln!(
            html,
            "<p>And {} more, in events.jsonl.</p>",
            count((notable.len() - MAX_EVENTS) as u64)
        );
    }
    html
}

/// Checkpoints are counted only. Every stage begins with a resumption at step 0, which is none.
fn is_notable(event: &Value) -> bool {
    match event["event"].as_str() {
        Some("checkpoint_saved") => false,
        Some("resumed") => event["step"] != 0,
        _ => true,
    }
}

fn describe(event: &Value) -> String {
    let text = |key: &str| esc(event[key].as_str().unwrap_or("?"));
    let step = || event["step"].as_u64().map_or_else(|| "?".to_owned(), count);
    let tag = |class: &str, word: &str| format!("<span class=\"tag {class}\">{word}</span> ");
    match event["event"].as_str().unwrap_or_default() {
        "started" => format!(
            "Started with posttrain {}, plan <span class=\"hash\">{}</span>",
            text("version"),
            text("plan_hash")
        ),
        "stage_begun" => format!("{} began", text("stage")),
        "stage_ended" => format!("{} ended", text("stage")),
        "resumed" => tag("soft", "resumed") + &format!("{} went on after step {}", text("stage"), step()),
        "interrupted" => {
            tag("bad", "interrupted")
                + &format!("{} after step {}: {}", text("stage"), step(), text("reason"))
        }
        "checkpoint_skipped" => {
            tag("bad", "checkpoint skipped") + &format!("{}: {}", text("stage"), text("problem"))
        }
        "warning" => tag("bad", "warning") + &text("message"),
        "finished" => "Finished".to_owned(),
        _ => format!("<code>{}</code>", esc(&event.to_string())),
    }
}
