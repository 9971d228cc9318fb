//! Tests over the catalogue and on real files.

use std::collections::{BTreeMap, HashSet};

use serde_json::json;

use super::*;
use crate::message::{Message, Train, TrainSpan};
use crate::read::{ReadOptions, read_all};
use crate::record::{Content, Segment};
use proptest::prelude::*;

fn row(text: &str) -> Row {
    Row { origin: Origin::new("t.jsonl", 1), value: serde_json::from_str(text).unwrap() }
}

/// Recognises and converts one row.
fn convert(text: &str) -> Result<Vec<Record>, DataError> {
    let row = row(text);
    recognise(&row)?.convert(row)
}

fn one(text: &str) -> Record {
    let mut records = convert(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(records.len(), 1, "{text}");
    records.remove(0)
}

fn error(text: &str) -> String {
    convert(text).map(|records| format!("{records:?}")).unwrap_err().to_string()
}

fn again(record: &Record) -> Record {
    let row = Row { origin: record.origin.clone(), value: record.to_row() };
    let layout = recognise(&row).unwrap_or_else(|error| panic!("{error}"));
    let mut records = layout.convert(row).unwrap();
    assert_eq!(records.len(), 1);
    records.remove(0)
}

#[test]
fn names_are_unique_and_findable() {
    let names: HashSet<&str> = LAYOUTS.iter().map(|layout| layout.name).collect();
    assert_eq!(names.len(), LAYOUTS.len());
    assert_eq!(by_name("alpaca").unwrap().name, "alpaca");
    let error = by_name("alpacca").err().unwrap().to_string();
    assert!(error.contains("did you mean `alpaca`?"), "{error}");
}

#[test]
fn every_example_is_its_own_layout_and_survives_the_canonical_form() {
    for layout in LAYOUTS {
        let row = row(layout.example);
        let found = recognise(&row).unwrap_or_else(|error| panic!("{}: {error}", layout.name));
        assert_eq!(found.name, layout.name);
        assert!(
            layout.columns.iter().all(|c| row.value.contains_key(*c)),
            "{}: example lacks a column",
            layout.name
        );
        let records = layout.convert(row).unwrap();
        assert!(!records.is_empty());
        for record in records {
            assert_eq!(again(&record), record, "{}", layout.name);
        }
    }
}

#[test]
fn a_row_without_a_needed_column_is_another_layout_or_an_error() {
    for layout in LAYOUTS {
        for column in layout.columns {
            for null in [false, true] {
                let mut row = row(layout.example);
                match null {
                    true => row.value.insert((*column).to_owned(), Value::Null),
                    false => row.value.remove(*column),
                };
                assert!(
                    recognise(&row).map_or(true, |found| found.name != layout.name),
                    "{} {column}",
                    layout.name
                );
            }
        }
    }
}

#[test]
fn damaged_examples_never_panic() {
    let values = [
        json!(null),
        json!(1),
        json!(-1.5),
        json!("x"),
        json!([]),
        json!([1]),
        json!({}),
        json!([{}]),
        json!(true),
    ];
    for layout in LAYOUTS {
        for (column, original) in &row(layout.example).value {
            let inner = original.as_array().map_or(0, Vec::len);
            for value in &values {
                let mut whole = row(layout.example);
                whole.value.insert(column.clone(), value.clone());
                let _ = recognise(&whole);
                let _ = layout.convert(whole);
                for idx in 0..inner {
                    let mut part = row(layout.example);
                    part.value[column][idx] = value.clone();
                    let _ = recognise(&part);
                    let _ = layout.convert(part);
                }
            }
        }
    }
}

#[test]
fn bodies_are_what_the_layouts_say() {
    let chat =
        |turns: &[(&str, &str)]| Content::Messages(turns.iter().map(|(r, c)| Message::new(r, *c)).collect());
    let text = |t: &str| Content::Text(t.to_owned());
    let example = |name: &str| one(by_name(name).unwrap().example);
    let pair = |prompt: &[(&str, &str)], chosen: &str, rejected: &str| Body::Preference {
        prompt: Some(chat(prompt)),
        chosen: chat(&[("assistant", chosen)]),
        rejected: chat(&[("assistant", rejected)]),
        margin: None,
        soft_label: None,
    };
    let answer = |prompt: Content, completion: Content| Body::PromptCompletion { prompt, completion };
    let steps = |prompt: &str, completions: &[&str], labels: &[f64]| Body::Stepwise {
        prompt: prompt.to_owned(),
        completions: completions.iter().map(|s| (*s).to_owned()).collect(),
        labels: labels.to_vec(),
    };
    let colour = [("user", "Name a colour.")];
    let cases = [
        ("text", Body::LanguageModel(text("The sky is blue."))),
        ("prompt_only", Body::PromptOnly { prompt: text("Is the sky blue?") }),
        (
            "sharegpt",
            Body::LanguageModel(chat(&[("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!")])),
        ),
        (
            "alpaca",
            answer(
                chat(&[
                    ("system", "Be brief."),
                    ("user", "Hi"),
                    ("assistant", "Hello!"),
                    ("user", "Translate to French.\ncheese"),
                ]),
                chat(&[("assistant", "fromage")]),
            ),
        ),
        ("alpaca_preference", pair(&colour, "Blue.", "Seven.")),
        ("sharegpt_preference", pair(&colour, "Blue.", "Seven.")),
        ("rejected_response", pair(&colour, "Blue.", "Seven.")),
        ("rejected_messages", pair(&colour, "Blue.", "Seven.")),
        ("ranked_completions", pair(&colour, "Blue.", "Seven.")),
        ("orca_preference", pair(&[("system", "Be brief."), ("user", "Name a colour.")], "Blue.", "Seven.")),
        ("ultrafeedback", pair(&[("user", "Hi")], "Hello!", "What?")),
        (
            "alpaca_kto",
            Body::Unpaired {
                prompt: chat(&colour),
                completion: chat(&[("assistant", "Seven.")]),
                label: false,
            },
        ),
        (
            "tokenised",
            Body::Tokenised { input_ids: vec![1, 15, 27, 2], train: Some(vec![false, false, true, true]) },
        ),
        (
            "input_output",
            Body::LanguageModel(Content::Segments(vec![
                Segment { text: "<s>Hello ".to_owned(), train: false },
                Segment { text: "there!</s>".to_owned(), train: true },
            ])),
        ),
        (
            "hh_rlhf",
            Body::Preference {
                prompt: None,
                chosen: chat(&[("user", "Hi"), ("assistant", "Hello!")]),
                rejected: chat(&[("user", "Hi"), ("assistant", "What?")]),
                margin: None,
                soft_label: None,
            },
        ),
        ("input_target", answer(text("Ann has 40 shells and finds 3. How many has she?"), text("43"))),
        ("math_shepherd", steps("What is 1+2+3?", &["Step 1: 1+2=3.", "Step 2: 3+3=7."], &[1.0, 0.0])),
        ("prm800k", steps("What is 1+2+3?", &["1+2=3.", "3+3=7."], &[1.0, 0.0])),
        ("verl", Body::PromptOnly { prompt: chat(&[("user", "What is 1 + 2?")]) }),
    ];
    for (name, expected) in cases {
        assert_eq!(example(name).body, expected, "{name}");
    }
    assert_eq!(example("verl").extra["ground_truth"], "3");
    assert_eq!(example("question_answer").extra["ground_truth"], "1002");
    assert_eq!(example("input_target").extra["ground_truth"], "43");
    assert_eq!(example("prompt_only").extra["solution"], "yes");
    assert!(matches!(example("preference").body, Body::Preference { margin: Some(m), .. } if m == 0.5));
    let soft = one(r#"{"prompt": "a", "chosen": "b", "rejected": "c", "soft_label": 0.85}"#);
    assert!(matches!(soft.body, Body::Preference { soft_label: Some(p), .. } if p == 0.85));
    let soft = one(r#"{"prompt": "a", "completions": ["x", "y", "z"], "labels": [0.75, 1, false]}"#);
    assert_eq!(soft.body, steps("a", &["x", "y", "z"], &[0.75, 1.0, 0.0]));
    assert_eq!(soft.to_row()["labels"], json!([0.75, 1.0, 0.0]));
    assert_eq!(example("stepwise").to_row()["labels"], json!([true, false]));
    assert_eq!(convert(by_name("self_instruct").unwrap().example).unwrap().len(), 2);
}

#[test]
fn more_columns_win_and_popular_extras_do_not_confuse() {
    let cases = [
        (r#"{"prompt": "a", "completion": "b", "label": 1}"#, "unpaired"),
        (r#"{"prompt": "a", "completion": "b", "label": "True"}"#, "unpaired"),
        (r#"{"prompt": "a", "completion": "b", "label": "geography"}"#, "prompt_completion"),
        (r#"{"prompt": "a", "completion": "b", "label": null}"#, "prompt_completion"),
        (r#"{"instruction": "a", "input": "", "output": "b", "text": "rendered"}"#, "alpaca"),
        (
            r#"{"prompt": "Hi", "prompt_id": "1", "messages": [{"role": "user", "content": "Hi"}]}"#,
            "messages",
        ),
        (r#"{"messages": [{"role": "user", "content": "Hi"}], "label": "chat"}"#, "messages"),
        (r#"{"chosen": "Human: a", "rejected": "Human: b"}"#, "preference_implicit"),
        (r#"{"instruction": "a", "response": "b", "category": "c"}"#, "dolly"),
        (r#"{"text": "a", "meta": {"x": 1}}"#, "text"),
    ];
    for (text, expected) in cases {
        assert_eq!(recognise(&row(text)).map(|l| l.name).map_err(|e| e.to_string()), Ok(expected), "{text}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    let cases = [
        (
            r#"{"query": "a", "reply": "b"}"#,
            "t.jsonl:1: no known layout has these columns: `query` (a string), `reply` (a string)",
        ),
        (r#"{"completion": "b", "question": "a"}"#, "`prompt_completion` also needs `prompt`"),
        (
            r#"{"prompt": 3}"#,
            "`prompt_only` has these columns, but `prompt` must be text or a list of messages, not a number",
        ),
        (
            r#"{"text": "a", "messages": [{"role": "user", "content": "b"}]}"#,
            "fit several layouts: `text`, `messages`",
        ),
        (r#"{}"#, "(none)"),
        (
            r#"{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}"#,
            "`prompt_completion` has these columns, but not with these types",
        ),
        (
            r#"{"prompt": [{"role": "user", "content": "b"}], "chosen": "a", "rejected": "b"}"#,
            "`preference` has these columns, but not with these types",
        ),
        (r#"{"messages": [{"role": "usr", "content": "b"}]}"#, "column `messages[0].role`: expected a role"),
        (r#"{"messages": [{"role": "user"}]}"#, "column `messages[0].content`: expected text"),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}"#,
            "this program reads text only",
        ),
        (r#"{"prompt": "a", "image": "x.png"}"#, "column `image`"),
        (r#"{"prompt": "a", "tools": "[{"}"#, "column `tools`: expected JSON text"),
        (r#"{"prompt": "a", "completions": ["x", "y"], "labels": [true]}"#, "found 2 steps and 1 labels"),
        (
            r#"{"prompt": "a", "completions": ["x", "y"], "labels": [0.5, 1.5]}"#,
            "column `labels`: expected a list of true/false, or of probabilities from 0 to 1, found 1.5",
        ),
        (
            r#"{"prompt": "a", "chosen": "b", "rejected": "c", "soft_label": 85}"#,
            "column `soft_label`: expected a probability from 0 to 1, found 85",
        ),
        (r#"{"input_ids": [1, 2], "labels": [-100, 3]}"#, "column `labels[1]`: expected -100 or the id 2"),
        (r#"{"input_ids": [1, 2], "labels": [-100]}"#, "2 values, one per token"),
        (r#"{"input_ids": [1, 0], "attention_mask": [1, 0]}"#, "rows without padding"),
        (r#"{"input_ids": [1, -3]}"#, "column `input_ids`"),
        (
            r#"{"messages": [{"role": "user", "content": "ab", "train_detail": [{"begin_offset": 0, "end_offset": 2, "train": true}]}]}"#,
            "within the 2 characters",
        ),
        (
            r#"{"conversations": [{"from": "function_call", "value": "not json"}]}"#,
            "column `conversations[0].value`",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a"}], "label": true}"#,
            "a prompt and an assistant message at the end",
        ),
    ];
    for (text, expected) in cases {
        let message = error(text);
        assert!(message.contains(expected), "{text}\n  {message}");
    }
    let rows = [row(r#"{"text": "a"}"#), row(r#"{"prompt": "a"}"#)];
    let mixed = recognise_all(&rows).map(|l| l.name).unwrap_err().to_string();
    assert!(mixed.contains("this row is `prompt_only`, but t.jsonl:1 is `text`"), "{mixed}");
}

#[test]
fn messages_of_every_spelling_become_one() {
    let cases = [
        (r#"{"role": "user", "content": "a", "name": null}"#, Message::new("user", "a")),
        (r#"{"from": "human", "value": "a"}"#, Message::new("user", "a")),
        (
            r#"{"role": "model", "content": [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}]}"#,
            Message::new("assistant", "ab"),
        ),
        (r#"{"from": "observation", "value": "{}"}"#, Message::new("tool", "{}")),
        (
            r#"{"role": "assistant", "content": "a", "weight": 0}"#,
            Message { train: Some(Train::Whole(false)), ..Message::new("assistant", "a") },
        ),
        (
            r#"{"role": "assistant", "content": "añb", "train_detail": [{"begin_offset": 1, "end_offset": 2, "train": true}]}"#,
            Message {
                train: Some(Train::Spans(vec![TrainSpan { start: 1, end: 3, train: true }])),
                ..Message::new("assistant", "añb")
            },
        ),
    ];
    for (text, expected) in cases {
        let value: Value = serde_json::from_str(text).unwrap();
        let message = crate::message::parse_message(&value, "m").unwrap();
        assert_eq!(message, expected, "{text}");
        assert_eq!(crate::message::parse_message(&message.to_row(), "m").unwrap(), expected, "{text}");
    }
    let call = |text: &str| {
        let value: Value = serde_json::from_str(text).unwrap();
        crate::message::parse_message(&value, "m").unwrap().to_template()
    };
    let expected = json!({"role": "assistant", "content": null, "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]});
    for text in [
        r#"{"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"}"#,
        r#"{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]}"#,
        r#"{"role": "assistant", "content": [{"type": "tool_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"}]}"#,
    ] {
        assert_eq!(call(text), expected, "{text}");
    }
}

#[test]
fn an_extra_column_never_replaces_the_content() {
    let row = row(r#"{"instruction": "a", "output": "b", "prompt": "template"}"#);
    assert!(recognise(&row).is_err());
    let record = by_name("alpaca").unwrap().convert(row).unwrap().remove(0);
    assert_eq!(record.extra["prompt"], "template");
    assert_eq!(record.to_row()["prompt"], json!([{"role": "user", "content": "a"}]));
}

#[test]
fn tools_and_template_variables_are_taken_out() {
    let record = one(
        r#"{"prompt": "a", "tools": "[{\"name\": \"f\", \"parameters\": {}}]", "chat_template_kwargs": {"thinking": true, "x": null}}"#,
    );
    assert_eq!(
        record.tools,
        Some(vec![json!({"type": "function", "function": {"name": "f", "parameters": {}}})])
    );
    assert_eq!(Value::Object(record.chat_template_kwargs.clone().unwrap()), json!({"thinking": true}));
    assert!(record.extra.is_empty());
    assert_eq!(again(&record), record);
    assert_eq!(one(r#"{"prompt": "a", "tools": ""}"#).tools, None);
}

#[test]
fn columns_are_renamed() {
    let check = |text: &str, map: &[(&str, &str)], expected: Result<&str, &str>| {
        let map: ColumnMap = map.iter().map(|(to, from)| ((*to).to_owned(), (*from).to_owned())).collect();
        let mut row = row(text);
        let result =
            rename(&mut row, &map).map(|()| Value::Object(row.value).to_string()).map_err(|e| e.to_string());
        match (&result, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
            _ => panic!("{text}: {result:?}"),
        }
    };
    let qa = r#"{"question":"q","answer":"a"}"#;
    check(qa, &[("prompt", "question"), ("completion", "answer")], Ok(r#"{"completion":"a","prompt":"q"}"#));
    check(qa, &[("question", "answer"), ("answer", "question")], Ok(r#"{"answer":"q","question":"a"}"#));
    check(qa, &[], Ok(qa));
    check(r#"{"a":{"b":1}}"#, &[("c", "a.b")], Ok(r#"{"a":{"b":1},"c":1}"#));
    check(qa, &[("prompt", "qestion")], Err("did you mean `question`?"));
    check(qa, &[("answer", "question")], Err("already has a column `answer`"));
}

#[test]
fn prompts_are_extracted() {
    let text = |s: &str| Content::Text(s.to_owned());
    let check = |chosen: &str, rejected: &str, expected: Result<[&str; 3], &str>| {
        let row = json!({"chosen": chosen, "rejected": rejected}).to_string();
        match (one(&row).extract_prompt(), expected) {
            (Ok(record), Ok([prompt, chosen, rejected])) => {
                let [chosen, rejected] = [chosen, rejected].map(text);
                assert_eq!(
                    record.body,
                    Body::Preference {
                        prompt: Some(text(prompt)),
                        chosen,
                        rejected,
                        margin: None,
                        soft_label: None
                    }
                );
            }
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (found, _) => panic!("{row}: {found:?}"),
        }
    };
    check("The sky is blue.", "The sky is black.", Ok(["The sky is", " blue.", " black."]));
    check("é ü a", "é ü b", Ok(["é ü", " a", " b"]));
    check("a b", "a b c", Ok(["a", " b", " b c"]));
    check("same", "same", Err("equal"));
    check("apple", "apricot", Err("no common beginning"));

    let chat = r#"{"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]}"#;
    let [good, bad] = one(chat).unpair().unwrap();
    let prompt = Content::Messages(vec![Message::new("user", "q")]);
    for (record, answer, good) in [(good, "a", true), (bad, "b", false)] {
        let completion = Content::Messages(vec![Message::new("assistant", answer)]);
        assert_eq!(record.body, Body::Unpaired { prompt: prompt.clone(), completion, label: good });
    }
    assert!(one(r#"{"text": "a"}"#).unpair().unwrap_err().to_string().contains("language modelling"));
}

#[test]
fn plain_records_become_conversations() {
    let record = one(r#"{"prompt": "q", "completion": "a"}"#).into_conversational();
    let prompt = Content::Messages(vec![Message::new("user", "q")]);
    let completion = Content::Messages(vec![Message::new("assistant", "a")]);
    assert_eq!(record.body, Body::PromptCompletion { prompt, completion });
    assert_eq!(record.clone().into_conversational(), record);
}

/// Real files: layout, rows, records, and how many records of which kind.
#[test]
fn real_files_convert_whole() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let cases: &[(&str, &str, usize, &str)] = &[
        ("llama-factory-demo/dpo_en_demo.json.gz", "sharegpt_preference", 300, "preference"),
        ("llama-factory-demo/kto_en_demo.json.gz", "messages_kto", 300, "unpaired preference"),
        ("llama-factory-demo/glaive_toolcall_en_demo.json.gz", "sharegpt", 300, "language modelling"),
        ("llama-factory-demo/identity.json", "alpaca", 91, "prompt-completion"),
        ("llama-factory-demo/reason_tool_use_demo_50.jsonl", "messages", 50, "language modelling"),
        ("fastchat/dummy_conversation.json", "sharegpt", 500, "language modelling"),
        ("conversations/conversations.jsonl", "messages", 128, "language modelling"),
        ("hh-rlhf/harmless-base-test-first2000.jsonl.gz", "hh_rlhf", 2000, "preference"),
        ("gsm8k/train.jsonl.gz", "question_answer", 7473, "prompt-completion"),
        ("gsm8k/test.jsonl.gz", "question_answer", 1319, "prompt-completion"),
        ("math500/math.jsonl", "problem_solution", 300, "prompt-completion"),
        ("mawps/*.jsonl", "input_target", 395 + 508 + 562, "prompt-completion"),
        ("bbh/word_sorting.json", "input_target", 250, "prompt-completion"),
        ("open-instruct/rlvr_test.jsonl", "rlvr", 100, "prompt-only"),
        ("mbpp/mbpp.jsonl", "code_tests", 474, "prompt-completion"),
        ("ifeval/input_data.jsonl", "prompt_only", 406, "prompt-only"),
        ("self-instruct/seed_tasks.jsonl", "self_instruct", 175, "prompt-completion"),
        ("self-instruct/user_oriented_instructions.jsonl", "self_instruct", 252, "prompt-completion"),
        ("humaneval-example/example_problem.jsonl", "prompt_only", 1, "prompt-only"),
        ("xstest/xstest_prompts.csv", "prompt_only", 450, "prompt-only"),
        ("xstest/xstest_v2_completions_gpt4.csv.gz", "prompt_completion", 450, "prompt-completion"),
        ("tinystories/tinystories_sample.txt.gz", "text", 0, "language modelling"),
    ];
    for (path, layout, n, kind) in cases {
        let rows = read_all(&data.join(path).display().to_string(), &ReadOptions::default()).unwrap();
        let found = recognise_all(&rows).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(found.name, *layout, "{path}");
        let n_rows = rows.len();
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for row in rows {
            for record in found.convert(row).unwrap_or_else(|error| panic!("{error}")) {
                *kinds.entry(record.body.kind()).or_default() += 1;
                assert_eq!(again(&record), record, "{path}");
            }
        }
        let expected = if *n == 0 { n_rows } else { *n };
        assert_eq!((n_rows, kinds), (expected, BTreeMap::from([(*kind, expected)])), "{path}");
    }
}

#[test]
fn real_preferences_have_prompts_and_real_tool_calls_are_objects() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let records = |path: &str| -> Vec<Record> {
        let rows = read_all(&data.join(path).display().to_string(), &ReadOptions::default()).unwrap();
        let layout = recognise_all(&rows).unwrap();
        rows.into_iter().flat_map(|row| layout.convert(row).unwrap()).collect()
    };
    let hh = records("hh-rlhf/harmless-base-test-first2000.jsonl.gz");
    let explicit: Vec<Record> = hh.into_iter().map(|record| record.extract_prompt().unwrap()).collect();
    let single = explicit.iter().filter(|r| matches!(&r.body, Body::Preference { chosen, rejected, .. } if chosen.messages().unwrap().len() == 1 && rejected.messages().unwrap().len() == 1));
    // Four pairs differ before the last answer.
    assert_eq!(single.count(), 1996);

    let glaive = records("llama-factory-demo/glaive_toolcall_en_demo.json.gz");
    let calls: Vec<&Value> = glaive
        .iter()
        .filter_map(|r| match &r.body {
            Body::LanguageModel(content) => content.messages(),
            _ => None,
        })
        .flatten()
        .filter_map(|message| message.fields.get("tool_calls"))
        .collect();
    assert_eq!(calls.len(), 211);
    assert!(calls.iter().all(|call| call[0]["function"]["arguments"].is_object()));
    assert!(
        glaive
            .iter()
            .filter_map(|r| r.tools.as_ref())
            .flatten()
            .all(|tool| tool["function"]["name"].is_string())
    );
    let reason = records("llama-factory-demo/reason_tool_use_demo_50.jsonl");
    let thoughts = reason.iter().filter_map(|r| match &r.body {
        Body::LanguageModel(content) => content.messages(),
        _ => None,
    });
    assert_eq!(
        thoughts.flatten().filter(|m| m.fields.contains_key("reasoning_content")).count(),
        59 + 41 + 9 + 3
    );
}

#[test]
fn files_of_no_layout_are_refused() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    for (path, expected) in [
        (
            "anthropic-evals/advanced-ai-risk/human_generated_evals/corrigible-less-HHH.jsonl.gz",
            "`question_answer` also needs `answer`",
        ),
        ("self-instruct/predictions/davinci_predictions.jsonl.gz", "fit several layouts"),
        ("mt-bench/mt_bench/question.jsonl", "No column has a name that a layout knows"),
    ] {
        let rows = read_all(&data.join(path).display().to_string(), &ReadOptions::default()).unwrap();
        let message = recognise_all(&rows).map(|l| l.name).unwrap_err().to_string();
        assert!(message.contains(expected), "{path}: {message}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z ]{0,6}".prop_map(Value::from),
        Just(json!("user")),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let key = prop::sample::select(vec![
            "role",
            "content",
            "from",
            "value",
            "train",
            "text",
            "label",
            "rank",
            "completion",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_row_is_converted_or_refused(values in prop::collection::vec(any_json(), 6), pick in 0usize..1000) {
        let layout = &LAYOUTS[pick % LAYOUTS.len()];
        let names = layout.columns.iter().chain(layout.optional).chain(&["tools", "extra"]);
        let value: Columns = names.zip(values).map(|(name, value)| ((*name).to_owned(), value)).collect();
        let row = Row { origin: Origin::new("p", 1), value };
        let _ = recognise(&row);
        if let Ok(records) = layout.convert(row) {
            prop_assert!(!records.is_empty());
        }
    }
}
