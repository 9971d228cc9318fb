//! A prompt text with two whole conversations (UltraFeedback binarised, and sets like it).
//!
//! `prompt` repeats the first user message, so the conversations alone are used, with the prompt made
//! explicit from them. `messages`, which repeats `chosen`, is dropped; scores stay as extra columns.

use super::Layout;
use super::fields::{Fields, is_messages, is_text};
use crate::message::{Message, Problem};
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "ultrafeedback",
    summary: "a prompt text and two conversations that contain it (UltraFeedback binarised)",
    columns: &["prompt", "chosen", "rejected"],
    optional: &["messages", "score_chosen", "score_rejected", "margin", "soft_label"],
    example: r#"{"prompt": "Hi", "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "What?"}], "score_chosen": 8.0, "score_rejected": 3.0}"#,
    fits: |row| is_text(row, "prompt") && is_messages(row, "chosen") && is_messages(row, "rejected"),
    convert,
};

fn convert(fields: &mut Fields) -> Result<Vec<Body>, Problem> {
    let prompt = fields.take_string("prompt")?;
    let chosen = fields.take_messages("chosen")?;
    let rejected = fields.take_messages("rejected")?;
    fields.take_optional("messages");
    let margin = fields.take_number("margin")?;
    let soft_label = fields.take_soft_label()?;
    let n = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
    let contains_prompt =
        chosen[..n].iter().any(|m| m.content.as_deref().is_some_and(|c| c.trim() == prompt.trim()));
    let (prompt, chosen, rejected) = match n {
        // Answers alone: the text is the prompt.
        0 if chosen[0].role == "assistant" => (vec![Message::new("user", prompt)], chosen, rejected),
        n if contains_prompt && n < chosen.len() && n < rejected.len() => {
            (chosen[..n].to_vec(), chosen[n..].to_vec(), rejected[n..].to_vec())
        }
        _ => {
            let expected = "two conversations that begin alike, contain the prompt and then differ";
            return Err(Problem::new("chosen", expected, format!("{n} messages in common")));
        }
    };
    let [prompt, chosen, rejected] = [prompt, chosen, rejected].map(Content::Messages);
    Ok(vec![Body::Preference { prompt: Some(prompt), chosen, rejected, margin, soft_label }])
}
