//! verl: prompts with a reward model's settings.
//!
//! All columns but `prompt` stay as extras; `reward_model.ground_truth` is also put into `ground_truth`.

use super::Layout;
use super::fields::is_messages;
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "verl",
    summary: "prompt messages, data_source, reward_model {style, ground_truth} (verl)",
    columns: &["prompt", "data_source", "reward_model"],
    optional: &["ability", "extra_info"],
    example: r#"{"data_source": "openai/gsm8k", "prompt": [{"role": "user", "content": "What is 1 + 2?"}], "ability": "math", "reward_model": {"style": "rule", "ground_truth": "3"}, "extra_info": {"index": 0}}"#,
    fits: |row| is_messages(row, "prompt") && row["reward_model"].is_object(),
    convert: |fields| {
        let prompt = Content::Messages(fields.take_messages("prompt")?);
        if let Some(truth) = fields.peek("reward_model").and_then(|model| model.get("ground_truth")).cloned()
        {
            fields.keep("ground_truth", truth);
        }
        Ok(vec![Body::PromptOnly { prompt }])
    },
};
