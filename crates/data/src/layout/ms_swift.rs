//! ms-swift preferences: `messages` ends with the better answer, another column has the worse one.

use super::Layout;
use super::fields::{Fields, is_messages, is_text, split_last};
use crate::message::{Message, Problem};
use crate::record::{Body, Content};

/// The worse answer as text.
pub(crate) const REJECTED_RESPONSE: Layout = Layout {
    name: "rejected_response",
    summary: "a conversation and a worse last answer as text (ms-swift rejected_response)",
    columns: &["messages", "rejected_response"],
    optional: &["system", "tools"],
    example: r#"{"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}], "rejected_response": "Seven."}"#,
    fits: |row| is_messages(row, "messages") && is_text(row, "rejected_response"),
    convert: |fields| {
        let (prompt, chosen) = split_last(fields.take_conversation("messages")?, "messages")?;
        let rejected = vec![Message::new("assistant", fields.take_string("rejected_response")?)];
        preference(fields, prompt, chosen, rejected)
    },
};

/// The worse answer as a whole conversation.
pub(crate) const REJECTED_MESSAGES: Layout = Layout {
    name: "rejected_messages",
    summary: "a conversation and a worse one with the same beginning (ms-swift rejected_messages)",
    columns: &["messages", "rejected_messages"],
    optional: &["tools"],
    example: r#"{"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}], "rejected_messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Seven."}]}"#,
    fits: |row| is_messages(row, "messages") && is_messages(row, "rejected_messages"),
    convert: |fields| {
        let mut prompt = fields.take_messages("messages")?;
        let mut rejected = fields.take_messages("rejected_messages")?;
        let n = prompt.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
        if n == 0 || n == prompt.len() || n == rejected.len() {
            let expected = "a conversation that begins like `messages` and then differs";
            return Err(Problem::new("rejected_messages", expected, format!("{n} messages in common")));
        }
        let chosen = prompt.split_off(n);
        preference(fields, prompt, chosen, rejected.split_off(n))
    },
};

fn preference(
    fields: &mut Fields,
    prompt: Vec<Message>,
    chosen: Vec<Message>,
    rejected: Vec<Message>,
) -> Result<Vec<Body>, Problem> {
    let [prompt, chosen, rejected] = [prompt, chosen, rejected].map(Content::Messages);
    Ok(vec![Body::Preference {
        prompt: Some(prompt),
        chosen,
        rejected,
        margin: fields.take_number("margin")?,
        soft_label: fields.take_soft_label()?,
    }])
}
