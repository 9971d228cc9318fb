//! What stands between a sampled reply and the next one.
//!
//! A conversation that is sampled turn by turn must stay one sequence of tokens: what was sampled is never written again, so that
//! the tokens a policy is trained on are the ones it chose. Only what the template writes after the reply is tokenised, together
//! with the token that ended the reply, so that its ids are those it has in the whole text.

use super::conversation::for_template;
use super::{Conversation, Masker};
use crate::error::{Origin, TextError};
use crate::template::Message;

/// What follows a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// The ids after the token that ended the reply, to the beginning of the next reply.
    pub token_ids: Vec<u32>,
    /// Whether the template, asked for the whole conversation, writes what was said before in another way: without its reasoning,
    /// most often. The tokens so far are then not what the template would give for the same conversation.
    pub is_rewritten: bool,
}

impl Masker<'_> {
    /// What follows the last message of `row`, a reply of the assistant that was sampled and ended with the token `end`, when
    /// `added` is said next.
    ///
    /// # Errors
    /// [`TextError::NoContinuation`] where the template does not end replies with that token, and whatever rendering gives.
    pub fn continuation(
        &self,
        origin: &Origin,
        row: &Conversation,
        added: &[Message],
        end: u32,
    ) -> Result<Continuation, TextError> {
        let template = self.template(origin)?;
        let inputs = self.inputs(row);
        let said = for_template(row.messages);
        let all = [said.as_slice(), &for_template(added)].concat();
        let render = |messages: &[Message], opens: bool| {
            template.render(messages, opens, &inputs).map_err(|e| e.in_row(origin))
        };
        let (before, after) = (render(&said, false)?, render(&all, true)?);
        let prompt = render(&said[..said.len().saturating_sub(1)], true)?;
        let fails = |reason: &str| TextError::NoContinuation {
            origin: origin.clone(),
            reason: reason.to_owned(),
            shown: crate::show::excerpt(&after),
        };
        let end_text = self.tokenizer.id_to_token(end).filter(|_| self.tokenizer.is_special(end));
        let end_text = end_text.ok_or_else(|| fails("the token that ended it is no special token"))?;
        if !before.trim_end().ends_with(&end_text) {
            return Err(fails(&format!(
                "the template does not end a reply with `{end_text}`, as the model did"
            )));
        }
        // However it writes what was said before, it ends as many turns.
        let n_ends = before.matches(&end_text).count();
        let at = after.match_indices(&end_text).nth(n_ends - 1).map(|(at, _)| at);
        let at = at.ok_or_else(|| fails("the template leaves out the end of a turn when more follows"))?;
        let encoding = self.tokenizer.encode_whole(&after[at..], false).map_err(|e| e.in_row(origin))?;
        if encoding.ids.first() != Some(&end) || encoding.ids.len() < 2 {
            return Err(fails(&format!("`{end_text}` does not come back as one token before what follows")));
        }
        let reply = after.get(prompt.len()..at).filter(|_| after.starts_with(&prompt));
        let content = said.last().and_then(|message| message.get("content")?.as_str()).unwrap_or_default();
        let is_kept = reply.is_some_and(|reply| lines(content).all(|line| reply.contains(line)));
        Ok(Continuation { token_ids: encoding.ids[1..].to_vec(), is_rewritten: !is_kept })
    }
}

/// What of a content every template keeps that keeps it at all: its lines, whatever space is around them.
fn lines(content: &str) -> impl Iterator<Item = &str> {
    content.lines().map(str::trim).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mask::MaskPolicy;
    use crate::{ChatTemplate, train_byte_bpe};

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
        {% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    /// As Qwen3: the reasoning of turns before the last question is left out.
    const FORGETFUL: &str = "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}\
        {% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n\
        {% if m.role == 'assistant' and loop.index0 < ns.last %}{{ m.content.split('</think>')[-1] }}\
        {% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    /// Ends no reply.
    const OPEN: &str = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}\n{% endfor %}";

    fn messages(value: serde_json::Value) -> Vec<Message> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_follows_a_reply_is_what_the_whole_conversation_has_there() {
        let text = "some words to learn: Higher. Lower. What is 2 + 2? It is 4. user assistant tool";
        let tokenizer =
            train_byte_bpe([text], 300, &["<|im_start|>", "<|im_end|>", "<think>", "</think>"]).unwrap();
        let end = tokenizer.token_to_id("<|im_end|>").unwrap();
        let start = tokenizer.token_to_id("<|im_start|>").unwrap();
        let check =
            |source: &str, reply: serde_json::Value, role: &str, end: u32, expected: Result<bool, &str>| {
                let template = ChatTemplate::new(source).unwrap();
                let masker = Masker::new(&tokenizer, Some(&template), MaskPolicy::default());
                let said = messages(json!([{"role": "user", "content": "What is 2 + 2?"}, reply]));
                let added = messages(json!([{"role": role, "content": "Higher."}]));
                let row = Conversation { messages: &said, ..Conversation::default() };
                let found = masker.continuation(&Origin::default(), &row, &added, end);
                match (found, expected) {
                    (Ok(found), Ok(is_rewritten)) => {
                        assert_eq!(found.is_rewritten, is_rewritten, "{reply}");
                        let shown = tokenizer.decode(&found.token_ids, false).unwrap();
                        assert_eq!(
                            shown,
                            format!("\n<|im_start|>{role}\nHigher.<|im_end|>\n<|im_start|>assistant\n")
                        );
                        // The ids are those of the whole text.
                        let all = [said.as_slice(), &added].concat();
                        let whole = masker
                            .prompt(&Origin::default(), &Conversation { messages: &all, ..row })
                            .unwrap();
                        assert!(whole.token_ids.ends_with(&found.token_ids), "{reply}");
                    }
                    (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                    (found, _) => panic!("{reply}: {found:?}"),
                }
            };
        let plain = || json!({"role": "assistant", "content": "It is 5."});
        let call = json!({"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]});
        let thought = || json!({"role": "assistant", "content": "<think>\nhm\n</think>\nIt is 5."});
        check(CHATML, plain(), "user", end, Ok(false));
        check(CHATML, call, "tool", end, Ok(false));
        check(CHATML, thought(), "user", end, Ok(false));
        check(FORGETFUL, plain(), "user", end, Ok(false));
        check(FORGETFUL, thought(), "tool", end, Ok(false));
        check(FORGETFUL, thought(), "user", end, Ok(true));
        check(CHATML, plain(), "user", start, Err("does not end a reply with `<|im_start|>`"));
        check(OPEN, plain(), "user", end, Err("does not end a reply with `<|im_end|>`"));
        let letter = tokenizer.token_to_id("a").unwrap();
        check(CHATML, plain(), "user", letter, Err("no special token"));
    }
}
