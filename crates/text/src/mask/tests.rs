use serde_json::{Value as Json, json};

use super::*;
use crate::audit::AuditError;
use crate::template::{ChatTemplate, Message, Moment};
use crate::tokenizer::{Tokenizer, TokenizerConfig};
use crate::{TextError, train_byte_bpe};

const SPECIALS: [&str; 13] = [
    "</s>", "<s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",
    "<|return|>", "<|call|>", "<|end_of_text|>", "<|END_OF_TURN_TOKEN|>",
];

fn tokenizer() -> Tokenizer {
    let text = "hello there Hello, how can I help? user assistant system\n the the answer";
    let tokenizer = train_byte_bpe([text], 300, &SPECIALS).unwrap();
    let config = TokenizerConfig { bos: Some("<s>".into()), ..tokenizer.config().clone() };
    tokenizer.with_config(config).unwrap()
}

fn messages(value: &Json) -> Vec<Message> {
    value.as_array().unwrap().iter().map(|m| m.as_object().unwrap().clone()).collect()
}

#[test]
fn explore() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let dir = data.join("chat-templates");
    let all: Json = serde_json::from_slice(&std::fs::read(dir.join("conversations.json")).unwrap()).unwrap();
    let tokenizer = tokenizer();
    for family in ["chujiezheng", "trl", "mistralrs"] {
        let mut names: Vec<_> = std::fs::read_dir(dir.join(family)).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        for path in names.iter().filter(|p| p.extension().is_some()) {
            let text = std::fs::read_to_string(path).unwrap();
            let source = match path.extension().unwrap() == "json" {
                true => serde_json::from_str::<Json>(&text).unwrap()["chat_template"].as_str().unwrap().to_owned(),
                false => text,
            };
            let template = ChatTemplate::at(&source, Moment(0)).unwrap();
            for name in ["multi", "whitespace", "unicode", "tool_call", "reasoning"] {
                let conversation = &all["conversations"][name];
                let messages = messages(&conversation["messages"]);
                let row = Conversation { messages: &messages, tools: conversation.get("tools"), ..Default::default() };
                let masker = Masker::new(&tokenizer, Some(&template), MaskPolicy::default());
                let result = masker.conversation(&Origin::new(name, 1), &row);
                let p = path.strip_prefix(&dir).unwrap().display();
                match result {
                    Ok(e) => println!("OK {p} {name}: {:?} {:?}", e.trained_text(), e.turns.iter().map(|t| t.prompt_is_prefix).collect::<Vec<_>>()),
                    Err(e) => println!("ERR {p} {name}: {}", e.to_string().replace('\n', "⏎")),
                }
            }
        }
    }
}
