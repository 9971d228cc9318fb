//! A solution in steps, each marked right or wrong (TRL stepwise supervision), or with how likely it is right (Math-Shepherd's soft
//! labels, as `posttrain data step-labels` writes them).

use serde_json::Value;

use super::Layout;
use super::fields::{Fields, as_bool, is_text, strings};
use crate::message::Problem;
use crate::record::Body;
use crate::row::Columns;

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "stepwise",
    summary: "a problem, solution steps, and whether (or how likely) each step is right (TRL stepwise supervision)",
    columns: &["prompt", "completions", "labels"],
    optional: &[],
    example: r#"{"prompt": "Which is larger, 9.8 or 9.11?", "completions": ["0.8 is more than 0.11.", "So 9.11 is larger."], "labels": [true, false]}"#,
    fits,
    convert,
};

fn fits(row: &Columns) -> bool {
    is_text(row, "prompt") && strings(&row["completions"]).is_some() && row["labels"].is_array()
}

fn convert(fields: &mut Fields) -> Result<Vec<Body>, Problem> {
    let prompt = fields.take_string("prompt")?;
    let completions = fields.take_strings("completions")?;
    let labels = probabilities(&fields.take("labels")?)?;
    check_lengths(&completions, &labels)?;
    Ok(vec![Body::Stepwise { prompt, completions, labels }])
}

fn probabilities(value: &Value) -> Result<Vec<f64>, Problem> {
    let expected = "a list of true/false, or of probabilities from 0 to 1";
    let items = value.as_array().ok_or_else(|| Problem::new("labels", expected, value.to_string()))?;
    let one = |item: &Value| match as_bool(item) {
        Some(flag) => Some(f64::from(u8::from(flag))),
        None => item.as_f64().filter(|p| (0.0..=1.0).contains(p)),
    };
    items
        .iter()
        .map(|item| one(item).ok_or_else(|| Problem::new("labels", expected, item.to_string())))
        .collect()
}

/// There is at least one step, and a label for each.
pub(super) fn check_lengths(completions: &[String], labels: &[f64]) -> Result<(), Problem> {
    if completions.is_empty() || completions.len() != labels.len() {
        let found = format!("{} steps and {} labels", completions.len(), labels.len());
        return Err(Problem::new("labels", "at least one step, and one label per step", found));
    }
    Ok(())
}
