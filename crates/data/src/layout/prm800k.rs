//! PRM800K: steps of a solution rated by people, −1 (wrong), 0 (neutral) or 1 (right).
//!
//! The path that the labeller followed is taken: at each step the chosen completion, or the human's own.
//! When none was chosen, the first wrong completion ends the path. Neutral counts as right, as in
//! the main results of Lightman et al. 2023 (arXiv:2305.20050).

use serde_json::Value;

use super::Layout;
use super::fields::Fields;
use super::stepwise::check_lengths;
use crate::message::Problem;
use crate::record::Body;

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "prm800k",
    summary: "question.problem and label.steps with ratings -1/0/1 (PRM800K)",
    columns: &["question", "label"],
    optional: &[],
    example: r#"{"question": {"problem": "What is 1+2+3?"}, "label": {"steps": [{"completions": [{"text": "1+2=3.", "rating": 1}], "human_completion": null, "chosen_completion": 0}, {"completions": [{"text": "3+3=7.", "rating": -1}], "human_completion": null, "chosen_completion": null}], "finish_reason": "found_error"}}"#,
    fits: |row| {
        row["question"].get("problem").is_some() && row["label"].get("steps").is_some_and(Value::is_array)
    },
    convert,
};

fn convert(fields: &mut Fields) -> Result<Vec<Body>, Problem> {
    let question = fields.take("question")?;
    let prompt = question.get("problem").and_then(Value::as_str);
    let prompt =
        prompt.ok_or_else(|| Problem::new("question.problem", "text", question.to_string()))?.to_owned();
    let label = fields.take("label")?;
    let steps = label.get("steps").and_then(Value::as_array);
    let steps = steps.ok_or_else(|| Problem::new("label.steps", "a list of steps", label.to_string()))?;
    let (mut completions, mut labels) = (Vec::new(), Vec::new());
    for (idx, step) in steps.iter().enumerate() {
        let Some((completion, goes_on)) = followed(step) else { break };
        let rating = completion.get("rating").and_then(Value::as_i64);
        let (Some(text), true) =
            (completion.get("text").and_then(Value::as_str), rating.is_none_or(|r| (-1..=1).contains(&r)))
        else {
            let at = format!("label.steps[{idx}]");
            return Err(Problem::new(
                at,
                "a completion with text and a rating of -1, 0 or 1",
                completion.to_string(),
            ));
        };
        completions.push(text.to_owned());
        // The human's own completion carries no rating: it was written to be right.
        labels.push(f64::from(u8::from(rating.unwrap_or(1) >= 0)));
        if !goes_on {
            break;
        }
    }
    check_lengths(&completions, &labels)?;
    Ok(vec![Body::Stepwise { prompt, completions, labels }])
}

/// The completion the path goes through, and whether it goes on after it.
fn followed(step: &Value) -> Option<(&Value, bool)> {
    let list = step.get("completions").and_then(Value::as_array);
    let chosen = step.get("chosen_completion").and_then(Value::as_u64);
    if let Some(completion) = chosen.and_then(|idx| list?.get(idx as usize)) {
        return Some((completion, true));
    }
    if let Some(human) = step.get("human_completion").filter(|human| human.is_object()) {
        return Some((human, true));
    }
    let wrong = |completion: &&Value| completion.get("rating").and_then(Value::as_i64) == Some(-1);
    list?.iter().find(wrong).map(|completion| (completion, false))
}
