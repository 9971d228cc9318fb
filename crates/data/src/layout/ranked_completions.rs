//! Ranked answers to one context (NeMo-RL preference data).
//!
//! Rank 0 is best. Every pair of answers of different rank becomes one preference, best first; answers of
//! equal rank make none. (NeMo-RL itself takes two answers only; with two the result is the same.)

use serde_json::Value;

use super::Layout;
use super::fields::{Fields, is_messages};
use crate::message::{Message, Problem, parse_messages};
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "ranked_completions",
    summary: "a context and answers with ranks, 0 the best (NeMo-RL preference)",
    columns: &["context", "completions"],
    optional: &[],
    example: r#"{"context": [{"role": "user", "content": "Name a colour."}], "completions": [{"rank": 0, "completion": [{"role": "assistant", "content": "Blue."}]}, {"rank": 1, "completion": [{"role": "assistant", "content": "Seven."}]}]}"#,
    fits: |row| {
        is_messages(row, "context")
            && row["completions"]
                .as_array()
                .is_some_and(|list| list.iter().all(|item| item.get("rank").is_some()))
    },
    convert,
};

fn convert(fields: &mut Fields) -> Result<Vec<Body>, Problem> {
    let context = fields.take_messages("context")?;
    let value = fields.take("completions")?;
    let mut ranked = ranked(&value)?;
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut pairs = Vec::new();
    for (idx, (rank, better)) in ranked.iter().enumerate() {
        for (_, worse) in ranked[idx + 1..].iter().filter(|(other, _)| other > rank) {
            pairs.push(Body::Preference {
                prompt: Some(Content::Messages(context.clone())),
                chosen: Content::Messages(better.clone()),
                rejected: Content::Messages(worse.clone()),
                margin: None,
                soft_label: None,
            });
        }
    }
    if pairs.is_empty() {
        let found = format!("{} completions of one rank", ranked.len());
        return Err(Problem::new("completions", "at least two answers of different rank", found));
    }
    Ok(pairs)
}

fn ranked(value: &Value) -> Result<Vec<(i64, Vec<Message>)>, Problem> {
    let expected = "a list of {rank: whole number, completion: messages}";
    let items = value.as_array().ok_or_else(|| Problem::new("completions", expected, value.to_string()))?;
    items
        .iter()
        .enumerate()
        .map(|(idx, item)| {
            let at = format!("completions[{idx}]");
            let rank = item.get("rank").and_then(Value::as_i64);
            let rank = rank.ok_or_else(|| Problem::new(at.clone(), expected, item.to_string()))?;
            let completion = item.get("completion").unwrap_or(&Value::Null);
            Ok((rank, parse_messages(completion, &format!("{at}.completion"))?))
        })
        .collect()
}
