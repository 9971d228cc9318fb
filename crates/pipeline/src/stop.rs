//! Which tokens end an answer.

use pt_text::{ChatTemplate, Conversation, MaskPolicy, Masker, Origin, Tokenizer};
use serde_json::{Map, Value};

/// The tokens that end an answer: the tokenizer's end tokens, and the one with which the chat template ends an
/// assistant's turn.
pub fn stop_token_ids(tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Vec<u32> {
    let mut ids = tokenizer.eos_ids().to_vec();
    ids.extend(template.and_then(|template| end_of_turn(tokenizer, template)));
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The first special token after an assistant's message, seen on a conversation of two words.
fn end_of_turn(tokenizer: &Tokenizer, template: &ChatTemplate) -> Option<u32> {
    let message = |role: &str, content: &str| -> Map<String, Value> {
        Map::from_iter([("role".to_owned(), role.into()), ("content".to_owned(), content.into())])
    };
    let messages = [message("user", "Hello"), message("assistant", "Hello")];
    let masker = Masker::new(tokenizer, Some(template), MaskPolicy::default());
    let conversation = Conversation { messages: &messages, ..Conversation::default() };
    let example = masker.conversation(&Origin::default(), &conversation).ok()?;
    let end = example.turns.last()?.end_of_turn.clone()?;
    example.token_ids[end].iter().copied().find(|&id| tokenizer.is_special(id))
}
