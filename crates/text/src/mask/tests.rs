use serde_json::{Map, Value as Json, json};

use super::*;
use crate::audit::AuditError;
use crate::template::{ChatTemplate, Message, Moment};
use crate::tokenizer::{Tokenizer, TokenizerConfig};
use crate::{TextError, train_byte_bpe};

/// ChatML, the simplest template with an end of turn.
const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

const SPECIALS: [&str; 12] = [
    "</s>",
    "<s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|return|>",
    "<|call|>",
    "<|end_of_text|>",
    "<|END_OF_TURN_TOKEN|>",
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

fn chatml(rows: &Json, policy: MaskPolicy) -> Result<Example, TextError> {
    render(CHATML, rows, None, policy)
}

fn render(source: &str, rows: &Json, tools: Option<&Json>, policy: MaskPolicy) -> Result<Example, TextError> {
    let tokenizer = tokenizer();
    let template = ChatTemplate::at(source, Moment(0)).unwrap();
    let masker = Masker::new(&tokenizer, Some(&template), policy);
    let messages = messages(rows);
    masker.conversation(
        &Origin::new("rows.jsonl", 7),
        &Conversation { messages: &messages, tools, ..Conversation::default() },
    )
}

fn policy(train_on: TrainOn) -> MaskPolicy {
    MaskPolicy { train_on, ..MaskPolicy::default() }
}

fn two_turns() -> Json {
    json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "More?"},
        {"role": "assistant", "content": "No"},
    ])
}

/// The example is consistent in itself.
fn check_example(example: &Example) {
    let n = example.len();
    assert!(
        [example.weights.len(), example.offsets.len(), example.token_pieces.len()].iter().all(|l| *l == n)
    );
    let mut end = 0;
    for piece in example.pieces.iter().filter(|p| p.part != Part::Added || !p.range.is_empty()) {
        assert_eq!(piece.range.start, end, "pieces leave no gap");
        end = piece.range.end;
    }
    assert_eq!(end, example.text.len());
    for i in 0..n {
        assert_eq!(example.piece_of(i).weight, example.weights[i], "token {i}");
    }
}

#[test]
fn policies_train_what_they_say() {
    let all = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nMore?<|im_end|>\n\
               <|im_start|>assistant\nNo<|im_end|>\n";
    let no_end = MaskPolicy { train_end_of_turn: false, ..MaskPolicy::default() };
    let cases = [
        (policy(TrainOn::Assistant), "Hello<|im_end|>No<|im_end|>"),
        (policy(TrainOn::Completion), "No<|im_end|>"),
        (policy(TrainOn::All), all),
        (no_end, "HelloNo"),
    ];
    for (policy, expected) in cases {
        let example = chatml(&two_turns(), policy).unwrap();
        assert_eq!(example.trained_text(), expected);
        check_example(&example);
    }
}

#[test]
fn messages_direct_their_own_training() {
    let case = |second: Json, third: Json| {
        let mut rows = two_turns();
        for (i, fields) in [(1, second), (2, third)] {
            rows[i].as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        }
        rows
    };
    let none = || json!({});
    let cases = [
        (case(json!({"train": false}), none()), TrainOn::Assistant, "No<|im_end|>"),
        (case(json!({"weight": 0}), none()), TrainOn::Assistant, "No<|im_end|>"),
        (case(none(), json!({"train": true})), TrainOn::Assistant, "Hello<|im_end|>More?No<|im_end|>"),
        (case(json!({"train": true}), none()), TrainOn::Completion, "Hello<|im_end|>No<|im_end|>"),
        (case(json!({"train_spans": [[1, 3]]}), none()), TrainOn::Assistant, "el<|im_end|>No<|im_end|>"),
        (
            case(none(), json!({"train_spans": [[0, 2], [4, 5]]})),
            TrainOn::Assistant,
            "Hello<|im_end|>Mo?No<|im_end|>",
        ),
    ];
    for (rows, train_on, expected) in cases {
        // Byte tokens, so that spans are visible to the character.
        let tokenizer = train_byte_bpe([], 256 + SPECIALS.len(), &SPECIALS).unwrap();
        let template = ChatTemplate::new(CHATML).unwrap();
        let masker = Masker::new(&tokenizer, Some(&template), policy(train_on));
        let messages = messages(&rows);
        let row = Conversation { messages: &messages, ..Conversation::default() };
        let example = masker.conversation(&Origin::default(), &row).unwrap();
        assert_eq!(example.trained_text(), expected, "{rows}");
        check_example(&example);
        assert!(!example.text.contains("train"), "control fields stay out of the text");
    }
    let weighted = chatml(&case(json!({"weight": 0.5}), none()), MaskPolicy::default()).unwrap();
    assert!(weighted.weights.contains(&0.5) && weighted.weights.contains(&1.0));
}

#[test]
fn wrong_control_fields_are_refused() {
    let cases = [
        ("train", json!("yes")),
        ("weight", json!(-1)),
        ("weight", json!("1")),
        ("train_spans", json!([1, 2])),
        ("train_spans", json!([[0, 99]])),
    ];
    for (field, value) in cases {
        let mut rows = two_turns();
        rows[1].as_object_mut().unwrap().insert(field.into(), value);
        let error = chatml(&rows, MaskPolicy::default()).unwrap_err();
        assert!(matches!(&error, TextError::BadRow { field: f, .. } if f.ends_with(field)), "{error}");
        assert!(error.to_string().starts_with("rows.jsonl:7: messages[1]."), "{error}");
    }
}

#[test]
fn every_token_knows_where_it_came_from() {
    let example = chatml(&two_turns(), MaskPolicy::default()).unwrap();
    let parts: Vec<(Part, Option<usize>)> = example.pieces.iter().map(|p| (p.part, p.message)).collect();
    let turn = |user, reply| {
        vec![
            (Part::Template, None),
            (Part::Content, Some(user)),
            (Part::Template, None),
            (Part::Content, Some(reply)),
            (Part::EndOfTurn, Some(reply)),
        ]
    };
    assert_eq!(parts, [turn(0, 1), turn(2, 3), vec![(Part::Template, None)]].concat());
    let end = example.turns[1].end_of_turn.clone().unwrap();
    assert_eq!(example.token_ids[end.start], 3, "<|im_end|>");
    assert!(example.turns.iter().all(|t| t.prompt_is_prefix));
}

#[test]
fn typed_parts_are_found_in_the_text() {
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}\
                  {% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}";
    let rows = json!([
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "c "}, {"type": "text", "text": "d"}]},
    ]);
    assert_eq!(
        render(source, &rows, None, MaskPolicy::default()).unwrap().trained_text(),
        "<|im_start|>assistant\nc d<|im_end|>"
    );
    let error = chatml(&rows, MaskPolicy::default()).unwrap_err();
    assert!(error.to_string().contains("Python list"), "{error}");
}

fn golden(template: &str, conversation: &str, tokenizer: &Tokenizer) -> Option<Result<Example, TextError>> {
    let dir = pt_core::testdata::shared_data()?.join("chat-templates");
    let source = golden_source(&std::fs::read_to_string(dir.join(template)).unwrap(), template);
    let all: Json = serde_json::from_slice(&std::fs::read(dir.join("conversations.json")).unwrap()).unwrap();
    let conversation = &all["conversations"][conversation];
    let template = ChatTemplate::at(&source, Moment(0)).unwrap();
    let messages = messages(&conversation["messages"]);
    let row =
        Conversation { messages: &messages, tools: conversation.get("tools"), ..Conversation::default() };
    Some(
        Masker::new(tokenizer, Some(&template), MaskPolicy::default())
            .conversation(&Origin::new("golden", 1), &row),
    )
}

fn golden_source(text: &str, name: &str) -> String {
    match name.ends_with(".json") {
        true => serde_json::from_str::<Json>(text).unwrap()["chat_template"].as_str().unwrap().to_owned(),
        false => text.to_owned(),
    }
}

/// Templates as published, without generation marks: trimmed contents, reasoning dropped from earlier
/// turns, tool calls, system prompts merged into the user's turn, tokens after the conversation.
#[test]
fn assistant_turns_are_found_in_published_templates() {
    let cases = [
        (
            "trl/qwen2_5.jinja",
            "multi",
            "Hello, how can I help?<|im_end|>Why did the chicken cross the road?<|im_end|>",
        ),
        (
            "trl/qwen2_5.jinja",
            "tool_call",
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"unit\": \"C\"}}\n</tool_call>\
             <|im_end|>It is 21 C.<|im_end|>",
        ),
        ("trl/qwen3.jinja", "reasoning", "51<|im_end|><think>\n51+1\n</think>\n\n52<|im_end|>"),
        (
            "trl/qwen3.jinja",
            "tool_call",
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"unit\": \"C\"}}\n</tool_call>\
             <|im_end|><think>\n\n</think>\n\nIt is 21 C.<|im_end|>",
        ),
        ("trl/qwen3_5_think.jinja", "reasoning", "51<|im_end|>51+1\n</think>\n\n52<|im_end|>"),
        (
            "trl/gptoss.jinja",
            "reasoning",
            "<|channel|>final<|message|>51<|end|><|channel|>analysis<|message|>51+1<|end|><|start|>assistant\
             <|channel|>final<|message|>52<|return|>",
        ),
        ("trl/llama3.jinja", "whitespace", "answer<|eot_id|>"),
        ("trl/gemma3.jinja", "unicode", "こんにちは！ \"quoted\" <b>&amp;</b><end_of_turn>"),
        ("trl/phi3.jinja", "whitespace", "\n\n answer  \n<|end|>"),
        ("trl/lfm2_2_5.jinja", "reasoning", "51<|im_end|><think>51+1</think>52<|im_end|>"),
        (
            "mistralrs/llama2.json",
            "multi",
            " Hello, how can I help? </s> Why did the chicken cross the road? </s>",
        ),
        ("mistralrs/vicuna.json", "whitespace", " answer</s>"),
        (
            "mistralrs/mistral_nemo_tool_call.jinja",
            "tool_call",
            "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"unit\": \"C\"}, \"id\": \
             \"call00001\"}]</s>It is 21 C.</s>",
        ),
    ];
    let tokenizer = tokenizer();
    for (template, conversation, expected) in cases {
        let Some(example) = golden(template, conversation, &tokenizer) else { return };
        let example = example.unwrap_or_else(|e| panic!("{template} {conversation}: {e}"));
        assert_eq!(example.trained_text(), expected, "{template} {conversation}");
        check_example(&example);
    }
}

/// Over all published templates: an example trains every reply, its end, and nobody else's content.
#[test]
fn no_published_template_trains_a_user_or_forgets_a_reply() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let tokenizer = tokenizer();
    let mut n_examples = 0;
    for family in ["chujiezheng", "trl", "mistralrs"] {
        for entry in std::fs::read_dir(data.join("chat-templates").join(family)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            for conversation in ["multi", "whitespace", "unicode", "tool_call", "reasoning"] {
                if name == "LICENSE" {
                    continue;
                }
                let template = format!("{family}/{name}");
                let Some(Ok(example)) = golden(&template, conversation, &tokenizer) else { continue };
                n_examples += 1;
                check_example(&example);
                for piece in example.pieces.iter().filter(|p| p.part == Part::Content) {
                    let replies: &[usize] = match conversation {
                        "whitespace" => &[1],
                        "unicode" => &[2],
                        _ => &[1, 3],
                    };
                    let is_reply = piece.message.is_some_and(|m| replies.contains(&m));
                    assert_eq!(piece.weight > 0.0, is_reply, "{template} {conversation}: {piece:?}");
                }
                assert!(example.turns.iter().all(|t| t.end_of_turn.is_some()), "{template} {conversation}");
            }
        }
    }
    assert!(n_examples >= 120, "only {n_examples} examples");
}

/// A template's own generation marks and what is found without them agree.
#[test]
fn generation_marks_agree_with_what_is_found_without_them() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let dir = data.join("chat-templates");
    let marked = std::fs::read_to_string(dir.join("trl/lfm2_2_5.jinja")).unwrap();
    let plain = marked
        .replace("{%- generation -%}", "{%- if true -%}")
        .replace("{%- endgeneration -%}", "{%- endif -%}");
    assert_ne!(marked, plain);
    let all: Json = serde_json::from_slice(&std::fs::read(dir.join("conversations.json")).unwrap()).unwrap();
    for name in ["multi", "multi_system_gen", "whitespace", "unicode", "tool_call", "reasoning"] {
        let conversation = &all["conversations"][name];
        let tools = conversation.get("tools");
        let both =
            [&marked, &plain].map(|s| render(s, &conversation["messages"], tools, MaskPolicy::default()));
        let [marked, plain] = both.map(Result::unwrap);
        assert_eq!(marked.trained_text(), plain.trained_text(), "{name}");
        assert_eq!(marked.weights, plain.weights, "{name}");
        assert_eq!(marked.turns, plain.turns, "{name}");
    }
}

#[test]
fn generation_marks_around_a_user_are_refused() {
    let source =
        "{% for m in messages %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}";
    let error = render(source, &two_turns(), None, MaskPolicy::default()).unwrap_err();
    assert!(matches!(&error, TextError::CannotLocate { message: 0, .. }), "{error}");
}

#[test]
fn a_prompt_and_its_completion() {
    let tokenizer = tokenizer();
    let template = ChatTemplate::new(CHATML).unwrap();
    let origin = Origin::default();
    let rows = messages(&two_turns());
    let prompt = Conversation { messages: &rows[..3], ..Conversation::default() };
    for (train_on, n_trained) in [(TrainOn::Completion, 3), (TrainOn::Assistant, 3)] {
        let masker = Masker::new(&tokenizer, Some(&template), policy(train_on));
        let example = masker.prompt_completion(&origin, &prompt, &rows[3..]).unwrap();
        assert_eq!(example.trained_text(), "No<|im_end|>");
        assert_eq!(example.n_trained(), n_trained);
        let sampled = masker.prompt(&origin, &prompt).unwrap();
        assert_eq!(example.token_ids[..example.n_prompt], sampled.token_ids);
        assert_eq!(example.turns[0].tokens.start, example.n_prompt);
    }
    let open = Conversation { messages: &rows, ..Conversation::default() };
    let masker = Masker::new(&tokenizer, Some(&template), MaskPolicy::default());
    assert!(masker.prompt(&origin, &open).unwrap().text.ends_with("<|im_start|>assistant\nNo"));
}

#[test]
fn plain_text_ends_in_eos() {
    let tokenizer = tokenizer();
    let masker = Masker::new(&tokenizer, None, policy(TrainOn::Completion));
    let origin = Origin::default();
    let cases = [
        (masker.text(&origin, "hello"), "hello</s>", "hello</s>"),
        (masker.text(&origin, "hello</s>"), "hello</s>", "hello</s>"),
        (masker.prompt_completion_text(&origin, "Q:", " hello"), "Q: hello</s>", " hello</s>"),
    ];
    for (example, text, trained) in cases {
        let example = example.unwrap();
        assert_eq!(example.text, text);
        assert!(
            trained.ends_with(&example.trained_text()) && example.trained_text().len() + 1 >= trained.len()
        );
        assert_eq!(example.token_ids.last(), Some(&0));
        check_example(&example);
    }
    let all = Masker::new(&tokenizer, None, policy(TrainOn::All));
    let example = all.prompt_completion_text(&origin, "Q:", " hello").unwrap();
    assert_eq!((example.n_trained(), example.n_prompt), (example.len() - 1, 2));
    assert_eq!(all.prompt_text(&origin, "Q:").unwrap().token_ids, example.token_ids[..2]);
}

#[test]
fn a_tokenizer_that_adds_bos_and_eos_adds_them_once() {
    let tokenizer = tokenizer();
    let config = TokenizerConfig { add_bos: Some(true), add_eos: Some(true), ..tokenizer.config().clone() };
    let tokenizer = tokenizer.with_config(config).unwrap();
    let masker = Masker::new(&tokenizer, None, policy(TrainOn::Completion));
    let example = masker.prompt_completion_text(&Origin::default(), "a", "b").unwrap();
    let token = |t: &str| tokenizer.token_to_id(t).unwrap();
    assert_eq!(example.token_ids, [token("<s>"), token("a"), token("b"), token("</s>")]);
    assert_eq!(example.train_mask(), [false, false, true, true]);
    assert_eq!(example.n_prompt, 2);
    assert_eq!(masker.prompt_text(&Origin::default(), "a").unwrap().token_ids, example.token_ids[..2]);
    check_example(&example);
}

#[test]
fn rows_of_ids_keep_their_masks() {
    let tokenizer = tokenizer();
    let masker = Masker::new(&tokenizer, None, MaskPolicy::default());
    let ids = tokenizer.encode("hello there é</s>", false).unwrap().ids;
    let n = ids.len();
    let mask: Vec<bool> = (0..n).map(|i| i + 2 >= n).collect();
    let labels: Vec<i64> =
        ids.iter().zip(&mask).map(|(id, m)| if *m { i64::from(*id) } else { -100 }).collect();
    let weights: Vec<f32> = mask.iter().map(|m| if *m { 0.5 } else { 0.0 }).collect();
    let origin = Origin::new("ids.jsonl", 1);
    let cases = [
        (Targets::All, n - 1),
        (Targets::Mask(&mask), 2),
        (Targets::Labels(&labels), 2),
        (Targets::Weights(&weights), 2),
    ];
    for (targets, n_trained) in cases {
        let example = masker.pretokenised(&origin, &ids, targets).unwrap();
        assert_eq!((example.n_trained(), example.text.as_str()), (n_trained, "hello there é</s>"));
    }
    let mut shifted = labels.clone();
    shifted[n - 1] = 1;
    let wrong = [Targets::Mask(&mask[1..]), Targets::Labels(&shifted), Targets::Weights(&[f32::NAN])];
    for targets in wrong {
        let error = masker.pretokenised(&origin, &ids, targets).unwrap_err();
        assert!(matches!(error, TextError::BadRow { .. }), "{error}");
    }
    let error = masker.pretokenised(&origin, &[1, 9_999], Targets::All).unwrap_err();
    assert!(matches!(error, TextError::BadTokenId { id: 9_999, position: 1, .. }), "{error}");
}

#[test]
fn truncation_keeps_the_end_it_is_told_to() {
    let whole = chatml(&two_turns(), MaskPolicy::default()).unwrap();
    let n = whole.len();
    for (truncation_mode, kept) in [(TruncationMode::KeepStart, 0..n - 4), (TruncationMode::KeepEnd, 4..n)] {
        let policy = MaskPolicy { max_length: Some(n - 4), truncation_mode, ..MaskPolicy::default() };
        let cut = chatml(&two_turns(), policy).unwrap();
        assert_eq!(cut.token_ids, whole.token_ids[kept.clone()]);
        assert_eq!(cut.weights, whole.weights[kept]);
        assert_eq!(cut.n_truncated, 4);
        for (turn, original) in cut.turns.iter().zip(&whole.turns) {
            assert!(turn.tokens.end <= cut.len() && turn.message == original.message);
        }
    }
}

#[test]
fn real_conversations_in_a_real_model_format() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let tokenizer = Tokenizer::from_dir(&data.join("tokenizers/qwen2.5")).unwrap();
    let template = tokenizer.chat_template(None).unwrap();
    let masker = Masker::new(&tokenizer, Some(&template), MaskPolicy::default());
    let lines = std::fs::read_to_string(data.join("conversations/conversations.jsonl")).unwrap();
    let mut examples = Vec::new();
    for (line, n) in lines.lines().zip(1..) {
        let row: Json = serde_json::from_str(line).unwrap();
        let messages = messages(&row["messages"]);
        let row = Conversation { messages: &messages, ..Conversation::default() };
        let example = masker.conversation(&Origin::new("conversations.jsonl", n), &row).unwrap();
        let replies = messages.iter().filter(|m| m["role"] == "assistant");
        let expected: String =
            replies.map(|m| format!("{}<|im_end|>", m["content"].as_str().unwrap())).collect();
        assert_eq!(example.trained_text(), expected);
        check_example(&example);
        examples.push(example);
    }
    let report = crate::audit_dataset(&examples, &tokenizer, &masker.policy, &masker.audit).unwrap();
    assert_eq!(report.n_examples, 128);
    assert_eq!(report.end_of_turn_ids.keys().copied().collect::<Vec<_>>(), [151_645]);
    assert!(report.doubts.is_empty(), "{:?}", report.doubts);
}

#[test]
fn kwargs_and_reasoning_names_reach_the_template() {
    let source = "{% for m in messages %}{% if m.role == 'assistant' and style %}{{ style }}{% endif %}\
                  {% if m.thinking %}({{ m.thinking }}){% endif %}{{ m.content }}<|im_end|>{% endfor %}";
    let tokenizer = tokenizer();
    let template = ChatTemplate::new(source).unwrap();
    let masker = Masker::new(&tokenizer, Some(&template), MaskPolicy::default());
    let rows = messages(&json!([
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": "because"},
    ]));
    let kwargs: Map<String, Json> = [("style".to_owned(), json!("!"))].into_iter().collect();
    let row = Conversation { messages: &rows, kwargs: Some(&kwargs), ..Conversation::default() };
    let example = masker.conversation(&Origin::default(), &row).unwrap();
    assert_eq!(example.trained_text(), "!(because)a<|im_end|>");
    assert!(example.pieces.iter().any(|p| p.part == Part::Reasoning && p.message == Some(1)));
}

#[test]
fn a_conversation_needs_a_template() {
    let tokenizer = tokenizer();
    let masker = Masker::new(&tokenizer, None, MaskPolicy::default());
    let rows = messages(&two_turns());
    let row = Conversation { messages: &rows, ..Conversation::default() };
    let error = masker.conversation(&Origin::new("a.jsonl", 3), &row).unwrap_err().to_string();
    assert!(error.starts_with("a.jsonl:3: no chat template"), "{error}");
    let raising =
        render("{{ raise_exception('no system') }}", &two_turns(), None, MaskPolicy::default()).unwrap_err();
    assert_eq!(raising.to_string(), "rows.jsonl:7: the chat template refuses this conversation: no system");
    assert!(!matches!(raising, TextError::Audit(AuditError::NothingToTrain { .. })));
}
