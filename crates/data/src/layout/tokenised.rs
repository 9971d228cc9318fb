//! Token ids (TRL's pre-tokenised form).
//!
//! Which ids train comes from `completion_mask` or `assistant_masks` (0/1; both given means both must be
//! 1, as in TRL) or from `labels` (-100 is no target; any other value must be the id itself, because
//! labels are not shifted). Ids alone are prompts (PPO) or leave the choice to the recipe. An
//! `attention_mask` of ones is dropped; one with zeros is padding and an error: nothing here pads.

use serde_json::Value;

use super::Layout;
use super::fields::Fields;
use crate::message::Problem;
use crate::record::Body;

/// The label that means "no target".
const NO_TARGET: i64 = -100;

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "tokenised",
    summary: "token ids, with labels or 0/1 masks for what trains (TRL pre-tokenised, PPO prompts)",
    columns: &["input_ids"],
    optional: &["labels", "completion_mask", "assistant_masks", "attention_mask"],
    example: r#"{"input_ids": [1, 15, 27, 2], "completion_mask": [0, 0, 1, 1]}"#,
    fits: |row| row["input_ids"].is_array(),
    convert,
};

fn convert(fields: &mut Fields) -> Result<Vec<Body>, Problem> {
    let ids = numbers(fields.take("input_ids")?, "input_ids")?;
    let expected = "token ids from 0 to 4294967295, at least one";
    let input_ids: Result<Vec<u32>, _> = ids.iter().map(|id| u32::try_from(*id)).collect();
    let input_ids = input_ids.map_err(|error| Problem::new("input_ids", expected, error.to_string()))?;
    if input_ids.is_empty() {
        return Err(Problem::new("input_ids", expected, "an empty list"));
    }
    if let Some(attention) = take_mask(fields, "attention_mask", ids.len())?
        && attention.contains(&false)
    {
        return Err(Problem::new("attention_mask", "ones (rows without padding)", "zeros"));
    }
    let mut train = take_mask(fields, "completion_mask", ids.len())?;
    if let Some(mask) = take_mask(fields, "assistant_masks", ids.len())? {
        train = Some(match train {
            None => mask,
            Some(train) => train.iter().zip(&mask).map(|(a, b)| *a && *b).collect(),
        });
    }
    if let Some(labels) = fields.take_optional("labels") {
        let labels = targets(&numbers(labels, "labels")?, &ids)?;
        if train.as_ref().is_some_and(|train| *train != labels) {
            return Err(Problem::new("labels", "the same targets as the mask beside it", "other targets"));
        }
        train = Some(labels);
    }
    Ok(vec![Body::Tokenised { input_ids, train }])
}

fn targets(labels: &[i64], ids: &[i64]) -> Result<Vec<bool>, Problem> {
    check_len("labels", labels.len(), ids.len())?;
    labels
        .iter()
        .zip(ids)
        .enumerate()
        .map(|(idx, (label, id))| match label {
            label if *label == NO_TARGET => Ok(false),
            label if label == id => Ok(true),
            _ => {
                let expected = format!("-100 or the id {id} (labels are not shifted)");
                Err(Problem::new(format!("labels[{idx}]"), expected, label.to_string()))
            }
        })
        .collect()
}

fn take_mask(fields: &mut Fields, name: &str, n: usize) -> Result<Option<Vec<bool>>, Problem> {
    let Some(value) = fields.take_optional(name) else { return Ok(None) };
    let mask = numbers(value, name)?;
    check_len(name, mask.len(), n)?;
    match mask.iter().find(|flag| !(0..=1).contains(*flag)) {
        Some(flag) => Err(Problem::new(name, "zeros and ones", flag.to_string())),
        None => Ok(Some(mask.iter().map(|flag| *flag == 1).collect())),
    }
}

fn check_len(name: &str, found: usize, expected: usize) -> Result<(), Problem> {
    if found == expected {
        return Ok(());
    }
    Err(Problem::new(name, format!("{expected} values, one per token"), found.to_string()))
}

fn numbers(value: Value, name: &str) -> Result<Vec<i64>, Problem> {
    let expected = "a list of whole numbers";
    let Value::Array(items) = value else {
        return Err(Problem::new(name, expected, crate::read::kind(&value)));
    };
    let number = |item: &Value| item.as_i64().or_else(|| item.as_bool().map(i64::from));
    items
        .iter()
        .map(|item| number(item).ok_or_else(|| Problem::new(name, expected, item.to_string())))
        .collect()
}
