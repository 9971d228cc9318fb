//! An instruction with several input/output instances (self-instruct seed tasks): one example each.

use serde_json::Value;

use super::Layout;
use super::alpaca::joined;
use super::fields::{Fields, is_text};
use crate::message::{Message, Problem};
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "self_instruct",
    summary: "an instruction with a list of input/output instances (self-instruct)",
    columns: &["instruction", "instances"],
    optional: &[],
    example: r#"{"instruction": "Translate to French.", "instances": [{"input": "cheese", "output": "fromage"}, {"input": "bread", "output": "pain"}]}"#,
    fits: |row| is_text(row, "instruction") && row["instances"].is_array(),
    convert,
};

fn convert(fields: &mut Fields) -> Result<Vec<Body>, Problem> {
    let expected = "a list, not empty, of {input: text, output: text}";
    let instruction = fields.take_string("instruction")?;
    let value = fields.take("instances")?;
    let items = value.as_array().filter(|items| !items.is_empty());
    let items = items.ok_or_else(|| Problem::new("instances", expected, value.to_string()))?;
    items
        .iter()
        .map(|item| {
            let text = |key: &str| item.get(key).and_then(Value::as_str);
            let (Some(input), Some(output)) = (text("input"), text("output")) else {
                return Err(Problem::new("instances", expected, item.to_string()));
            };
            let input = (!input.is_empty()).then(|| input.to_owned());
            let prompt = Content::Messages(vec![Message::new("user", joined(instruction.clone(), input))]);
            let completion = Content::Messages(vec![Message::new("assistant", output)]);
            Ok(Body::PromptCompletion { prompt, completion })
        })
        .collect()
}
