//! The texts of a row, whatever its layout.

use pt_data::layout::Layout;
use pt_data::{Body, Columns, Content, DataError, Message, Record, Row};
use serde_json::Value;

/// What steps read of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The kind of record: `preference`, `prompt-completion`, ..., or `columns` where no layout was asked for.
    pub kind: &'static str,
    /// The last thing the user said: the last user message, or the whole prompt.
    pub instruction: String,
    /// Everything before the reply.
    pub prompt: String,
    /// What would be learnt: the last assistant message, the completion, the better answer, or a plain text.
    pub reply: String,
    /// The worse answer of a preference.
    pub rejected: String,
    /// Messages of the user; 1 for a plain prompt, 0 for a plain text.
    pub n_turns: usize,
    /// Columns the layout does not use, and those it adds (GSM8K's number as `ground_truth`).
    pub extra: Columns,
}

/// Which part of a row a step reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Part {
    /// Prompt and answers.
    All,
    /// Everything before the reply.
    Prompt,
    /// The reply.
    Reply,
    /// The last thing the user said.
    Instruction,
}

/// The accepted values of [`Part`], for the manual.
pub(crate) const PART_KIND: &str = r#""all", "prompt", "reply", "instruction""#;

impl View {
    /// The view of a row in a layout.
    ///
    /// # Errors
    /// When a column does not hold what the layout wants.
    pub fn of(row: &Row, layout: &Layout) -> Result<View, DataError> {
        let mut records = layout.convert(row.clone())?.into_iter();
        let mut view = records.next().map(View::of_record).unwrap_or_default();
        for record in records {
            // A row that gives several examples (ranked answers, instances) is kept or dropped as one.
            let more = View::of_record(record);
            push_line(&mut view.reply, &more.reply);
            push_line(&mut view.rejected, &more.rejected);
            if more.prompt != view.prompt {
                push_line(&mut view.prompt, &more.prompt);
            }
        }
        Ok(view)
    }

    /// All texts of all columns as one reply: for rows whose layout does not matter.
    pub fn of_columns(columns: &Columns) -> View {
        let mut reply = String::new();
        for value in columns.values() {
            each_text(value, &mut |text| push_line(&mut reply, text));
        }
        View { kind: "columns", reply, ..View::default() }
    }

    fn of_record(record: Record) -> View {
        let kind = record.body.kind();
        let extra = record.extra.clone();
        let implicit = matches!(record.body, Body::Preference { prompt: None, .. });
        let record = match implicit {
            // Equal answers, or answers without a common beginning, have no prompt to be found.
            true => record.clone().extract_prompt().unwrap_or(record),
            false => record,
        };
        let mut view = match record.body {
            Body::LanguageModel(Content::Messages(messages)) => of_conversation(&messages),
            Body::LanguageModel(content) => View { reply: text_of(&content), ..View::default() },
            Body::PromptOnly { prompt } => of_prompt(&prompt),
            Body::PromptCompletion { prompt, completion } | Body::Unpaired { prompt, completion, .. } => {
                View { reply: text_of(&completion), ..of_prompt(&prompt) }
            }
            Body::Preference { prompt, chosen, rejected, .. } => {
                let view = prompt.as_ref().map(of_prompt).unwrap_or_default();
                View { reply: text_of(&chosen), rejected: text_of(&rejected), ..view }
            }
            Body::Stepwise { prompt, completions, .. } => {
                View { reply: completions.join("\n"), ..of_prompt(&Content::Text(prompt)) }
            }
            Body::Tokenised { .. } => View::default(),
        };
        view.kind = kind;
        view.extra = extra;
        view
    }

    /// The part that a step reads.
    pub(crate) fn part(&self, part: Part) -> std::borrow::Cow<'_, str> {
        match part {
            Part::Prompt => self.prompt.as_str().into(),
            Part::Reply => self.reply.as_str().into(),
            Part::Instruction => self.instruction.as_str().into(),
            Part::All if self.prompt.is_empty() && self.rejected.is_empty() => self.reply.as_str().into(),
            Part::All => {
                let mut text = self.prompt.clone();
                push_line(&mut text, &self.reply);
                push_line(&mut text, &self.rejected);
                text.into()
            }
        }
    }
}

/// Calls `f` with every text within a value, in order.
pub(crate) fn each_text(value: &Value, f: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => f(text),
        Value::Array(items) => items.iter().for_each(|item| each_text(item, f)),
        Value::Object(map) => map.values().for_each(|value| each_text(value, f)),
        _ => {}
    }
}

/// Replaces every text within a value for which `f` gives another.
pub(crate) fn map_texts(value: &mut Value, f: &mut impl FnMut(&str) -> Option<String>) {
    match value {
        Value::String(text) => {
            if let Some(new) = f(text) {
                *text = new;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| map_texts(item, f)),
        Value::Object(map) => map.values_mut().for_each(|value| map_texts(value, f)),
        _ => {}
    }
}

/// A column, or a value within one: `a.b` is `b` of the object `a` where no column is called `a.b`.
pub(crate) fn column<'a>(columns: &'a Columns, path: &str) -> Option<&'a Value> {
    columns.get(path).or_else(|| {
        let (first, rest) = path.split_once('.')?;
        rest.split('.').try_fold(columns.get(first)?, |value, key| value.get(key))
    })
}

fn of_conversation(messages: &[Message]) -> View {
    let cut = match messages.last() {
        Some(last) if last.role == "assistant" => messages.len() - 1,
        _ => messages.len(),
    };
    let (prompt, reply) = messages.split_at(cut);
    View { reply: join(reply), ..of_messages(prompt) }
}

fn of_prompt(prompt: &Content) -> View {
    match prompt {
        Content::Messages(messages) => of_messages(messages),
        content => {
            let prompt = text_of(content);
            View { instruction: prompt.clone(), prompt, n_turns: 1, ..View::default() }
        }
    }
}

fn of_messages(messages: &[Message]) -> View {
    let of_user = |message: &&Message| message.role == "user";
    let last = messages.iter().rev().find(of_user).and_then(|m| m.content.clone());
    View {
        instruction: last.unwrap_or_default(),
        prompt: join(messages),
        n_turns: messages.iter().filter(of_user).count(),
        ..View::default()
    }
}

fn text_of(content: &Content) -> String {
    match content {
        Content::Text(text) => text.clone(),
        Content::Messages(messages) => join(messages),
        Content::Segments(segments) => segments.iter().map(|segment| segment.text.as_str()).collect(),
    }
}

fn join(messages: &[Message]) -> String {
    let mut text = String::new();
    for message in messages {
        for part in
            [message.fields.get("reasoning_content").and_then(Value::as_str), message.content.as_deref()]
        {
            push_line(&mut text, part.unwrap_or_default());
        }
    }
    text
}

fn push_line(text: &mut String, more: &str) {
    if !more.is_empty() {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(more);
    }
}

#[cfg(test)]
mod tests {
    use pt_data::{Origin, layout};

    use super::*;

    fn view(json: &str) -> View {
        let row = Row { origin: Origin::new("x.jsonl", 1), value: serde_json::from_str(json).unwrap() };
        View::of(&row, layout::recognise(&row).unwrap()).unwrap()
    }

    #[test]
    fn every_layout_has_its_texts() {
        let check =
            |json: &str, instruction: &str, prompt: &str, reply: &str, rejected: &str, n_turns: usize| {
                let found = view(json);
                let texts = (found.instruction.as_str(), found.prompt.as_str(), found.reply.as_str());
                assert_eq!(texts, (instruction, prompt, reply), "{json}");
                assert_eq!((found.rejected.as_str(), found.n_turns), (rejected, n_turns), "{json}");
            };
        check(r#"{"text": "Once"}"#, "", "", "Once", "", 0);
        check(r#"{"prompt": "Hi", "completion": "Ho"}"#, "Hi", "Hi", "Ho", "", 1);
        check(
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}"#,
            "c",
            "a\nb\nc",
            "d",
            "",
            2,
        );
        check(
            r#"{"chosen": "\n\nHuman: a\n\nAssistant: good", "rejected": "\n\nHuman: a\n\nAssistant: bad"}"#,
            "a",
            "a",
            "good",
            "bad",
            1,
        );
        check(r#"{"question": "1+1?", "answer": "2"}"#, "1+1?", "1+1?", "2", "", 1);
    }

    #[test]
    fn columns_are_found_by_path_and_texts_by_depth() {
        let columns: Columns =
            serde_json::from_str(r#"{"a.b": 1, "a": {"b": 2, "c": ["x", {"d": "y"}]}}"#).unwrap();
        assert_eq!(column(&columns, "a.b"), Some(&Value::from(1)));
        assert_eq!(column(&columns, "a.c").map(Value::is_array), Some(true));
        assert_eq!(column(&columns, "b"), None);
        assert_eq!(View::of_columns(&columns).reply, "x\ny");
    }
}
