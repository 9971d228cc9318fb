//! What a row itself says about which of it trains.

use std::ops::Range;

use serde_json::Value as Json;

use super::Targets;
use crate::error::{Origin, TextError};
use crate::template::Message;

/// Message fields that direct training and are hidden from the template: `train` (bool), `weight`
/// (number, at least 0) and `train_spans` (`[[start, end], ...]` in code points of the content).
pub const CONTROL_FIELDS: [&str; 3] = ["train", "weight", "train_spans"];

/// How one message trains.
pub(super) struct MessagePlan {
    pub weight: f32,
    pub spans: Option<Vec<Range<usize>>>,
    pub overridden: bool,
}

/// Reads a message's control fields.
pub(super) fn plan(
    origin: &Origin,
    i: usize,
    message: &Message,
    by_default: bool,
) -> Result<MessagePlan, TextError> {
    let field = |name: &str| message.get(name).filter(|v| !v.is_null());
    let wrong = |name: &str, found: &Json, expected: &str| {
        bad_row(origin, &format!("messages[{i}].{name}"), &found.to_string(), expected)
    };
    let train = match field("train") {
        None => None,
        Some(value) => Some(value.as_bool().ok_or_else(|| wrong("train", value, "true or false"))?),
    };
    let weight = match field("weight") {
        None => None,
        Some(value) => {
            let weight = value.as_f64().filter(|w| w.is_finite() && *w >= 0.0);
            Some(weight.ok_or_else(|| wrong("weight", value, "a number, at least 0"))? as f32)
        }
    };
    let spans = match field("train_spans") {
        None => None,
        Some(value) => {
            let spans: Result<Vec<[usize; 2]>, _> = serde_json::from_value(value.clone());
            let spans =
                spans.map_err(|_| wrong("train_spans", value, "[[start, end], ...] in code points"))?;
            Some(spans.into_iter().map(|[s, e]| s..e).collect::<Vec<_>>())
        }
    };
    let overridden = train.is_some() || weight.is_some() || spans.is_some();
    let on = train.unwrap_or(by_default || spans.is_some());
    Ok(MessagePlan { weight: if on { weight.unwrap_or(1.0) } else { 0.0 }, spans, overridden })
}

pub(super) fn weights_of(
    origin: &Origin,
    token_ids: &[u32],
    targets: Targets,
) -> Result<Vec<f32>, TextError> {
    let (field, n) = match targets {
        Targets::All => return Ok(vec![1.0; token_ids.len()]),
        Targets::Mask(mask) => ("mask", mask.len()),
        Targets::Labels(labels) => ("labels", labels.len()),
        Targets::Weights(weights) => ("weights", weights.len()),
    };
    if n != token_ids.len() {
        return Err(bad_row(
            origin,
            field,
            &format!("{n} values"),
            &format!("{}, one per token id", token_ids.len()),
        ));
    }
    match targets {
        Targets::All => unreachable!("returned above"),
        Targets::Mask(mask) => Ok(mask.iter().map(|m| if *m { 1.0 } else { 0.0 }).collect()),
        Targets::Weights(weights) => match weights.iter().find(|w| !w.is_finite() || **w < 0.0) {
            Some(bad) => Err(bad_row(origin, field, &bad.to_string(), "finite weights, at least 0")),
            None => Ok(weights.to_vec()),
        },
        Targets::Labels(labels) => {
            let is_wrong = |(label, id): &(&i64, &u32)| **label != -100 && **label != i64::from(**id);
            if let Some((label, id)) = labels.iter().zip(token_ids).find(is_wrong) {
                return Err(bad_row(
                    origin,
                    field,
                    &format!("label {label} for token id {id}"),
                    "the id itself, or -100",
                ));
            }
            Ok(labels.iter().map(|l| if *l == -100 { 0.0 } else { 1.0 }).collect())
        }
    }
}

pub(super) fn role(message: &Message) -> &str {
    message.get("role").and_then(Json::as_str).unwrap_or_default()
}

pub(super) fn bad_row(origin: &Origin, field: &str, found: &str, expected: &str) -> TextError {
    TextError::BadRow {
        origin: origin.clone(),
        field: field.into(),
        found: found.into(),
        expected: expected.into(),
    }
}
