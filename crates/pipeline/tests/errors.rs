//! Everything wrong with data, model, tokenizer or options is an error before the first step, with file, line and, where
//! tokens are to blame, the tokens.

mod common;

use std::path::{Path, PathBuf};

use common::*;
use pt_pipeline::{PipelineError, check_fits, prepare};

/// A recipe over `rows.jsonl` in `dir`, whose lines are a good row and then `rows`.
fn recipe_over(dir: &Path, rows: &[&str]) -> String {
    let good = rows.first().map_or("", |row| good_row_like(row));
    let lines: Vec<&str> =
        [good].into_iter().filter(|row| !row.is_empty()).chain(rows.iter().copied()).collect();
    let path = dir.join("rows.jsonl");
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    format!("{}[[stage]]\ntype = \"sft\"\ndata.train = [{path:?}]\ntrain.steps = 2\n", on_base())
}

/// A row with the same columns, and nothing wrong with it.
fn good_row_like(row: &str) -> &'static str {
    let has = |key: &str| row.contains(&format!("{key:?}:"));
    match () {
        () if has("messages") => {
            r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}"#
        }
        () if has("completion") => r#"{"prompt": "Say", "completion": " hello"}"#,
        () if has("input_ids") => r#"{"input_ids": [40, 41, 42, 0], "labels": [-100, 41, 42, 0]}"#,
        () if has("text") => r#"{"text": "some text"}"#,
        () => "",
    }
}

/// A copy of the base model with its tokenizer's configuration changed.
fn base_with_config(dir: &Path, change: impl Fn(&mut serde_json::Value)) -> PathBuf {
    let base = dir.join("changed-base");
    std::fs::create_dir(&base).unwrap();
    for (path, bytes) in files(base_model()) {
        std::fs::write(base.join(path), bytes).unwrap();
    }
    let path = base.join("tokenizer_config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    base
}

struct Case {
    name: &'static str,
    rows: &'static [&'static str],
    sets: &'static [&'static str],
    /// A chat template of the stage's own.
    template: Option<&'static str>,
    /// Tokenizer configuration that is not the base's.
    config: &'static [(&'static str, &'static str)],
    expected: &'static [&'static str],
}

const PLAIN: Case = Case { name: "", rows: &[], sets: &[], template: None, config: &[], expected: &[] };

const CASES: &[Case] = &[
    Case {
        name: "prompt not a prefix",
        rows: &[r#"{"prompt": "What is ", "completion": "the sum?"}"#],
        expected: &["rows.jsonl:2", "not a token prefix", "Move white space"],
        ..PLAIN
    },
    Case {
        name: "nothing to train",
        rows: &[
            r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "train": false}]}"#,
        ],
        expected: &["rows.jsonl:2", "tokens trains", "<|im_end|>"],
        ..PLAIN
    },
    Case {
        name: "nothing to train after truncation",
        rows: &[r#"{"prompt": "Say one two three four five six seven eight", "completion": " nine"}"#],
        sets: &["stage.0.data.max_length=8"],
        expected: &["rows.jsonl:2", "after truncation removed", "Raise max_length"],
        ..PLAIN
    },
    Case {
        name: "a message that the template drops",
        rows: &[
            r#"{"messages": [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}"#,
        ],
        template: Some(
            "{% for m in messages %}{% if m.role != 'system' %}{{ m.role + ':' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}",
        ),
        expected: &["rows.jsonl:2", "does not render message 0 (system)", "assistant:Hello<|im_end|>"],
        ..PLAIN
    },
    Case {
        name: "a turn whose end is not trained",
        rows: &[
            r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}"#,
        ],
        template: Some("{% for m in messages %}{{ '<|im_start|>' + m.role + ':' + m.content }}{% endfor %}"),
        expected: &["rows.jsonl:1", "the end of message 1's turn does not train", "[H][e][l][l][o]"],
        ..PLAIN
    },
    Case {
        name: "doubled BOS",
        rows: &[r#"{"text": "<|im_start|>some text"}"#],
        config: &[("bos_token", "\"<|im_start|>\""), ("add_bos_token", "true")],
        expected: &["rows.jsonl:2", "starts with `<|im_start|>` twice", "[s][o][m][e]"],
        ..PLAIN
    },
    Case {
        name: "EOS masked as padding",
        rows: &[r#"{"input_ids": [40, 41, 42, 0], "labels": [-100, 41, 42, -100]}"#],
        config: &[("pad_token", "\"<|im_end|>\"")],
        expected: &["rows.jsonl:2", "`<|im_end|>` at token 3", "is the padding token and the EOS"],
        ..PLAIN
    },
    Case {
        name: "a special token in a message",
        rows: &[
            r#"{"messages": [{"role": "user", "content": "Hi<|im_end|>"}, {"role": "assistant", "content": "Hello"}]}"#,
        ],
        expected: &["rows.jsonl:2", "message 0 holds the special token `<|im_end|>`"],
        ..PLAIN
    },
    Case {
        name: "preferences",
        rows: &[r#"{"prompt": "Hi", "chosen": " Hello", "rejected": " No"}"#],
        expected: &[
            "rows.jsonl:1",
            "preference row cannot be used in a `sft` stage",
            "posttrain data convert",
        ],
        ..PLAIN
    },
    Case {
        name: "prompts alone",
        rows: &[r#"{"prompt": "Hi"}"#],
        expected: &["rows.jsonl:1", "has no answer to learn"],
        ..PLAIN
    },
    Case {
        name: "too long",
        rows: &[r#"{"text": "one two three four five six seven eight nine ten"}"#],
        sets: &["stage.0.data.max_length=8", "stage.0.data.truncation=error"],
        expected: &["rows.jsonl:1", "tokens, more than max_length = 8", "truncation to keep_start"],
        ..PLAIN
    },
    Case {
        name: "all dropped",
        rows: &[r#"{"text": "one two three four five six seven eight nine ten"}"#],
        sets: &["stage.0.data.max_length=2", "stage.0.data.truncation=drop"],
        expected: &["rows.jsonl", "2 rows", "longer than max_length = 2", "raise it"],
        ..PLAIN
    },
    Case {
        name: "an empty text",
        rows: &[r#"{"text": ""}"#],
        expected: &["rows.jsonl:2", "none of its 1 tokens trains", "<|im_end|>"],
        ..PLAIN
    },
    Case {
        name: "a first token alone",
        rows: &[r#"{"input_ids": [40, 41, 42], "labels": [40, -100, -100]}"#],
        expected: &["rows.jsonl:2", "none of its 3 tokens trains"],
        ..PLAIN
    },
    Case {
        name: "pieces of prompts alone",
        rows: &[
            r#"{"prompt": "one two three four five six seven eight nine ten eleven twelve thirteen fourteen", "completion": " a"}"#,
        ],
        sets: &[
            "stage.0.data.packing=wrapped",
            "stage.0.data.max_length=8",
            "stage.0.train.rows_per_step=1",
            "stage.0.data.shuffle=false",
        ],
        expected: &["step 2", "rows.jsonl:2", "packing = \"bfd\""],
        ..PLAIN
    },
    Case {
        name: "a tokenizer file of another name",
        rows: &[r#"{"text": "a b"}"#],
        sets: &["model.tokenizer=Cargo.toml"],
        expected: &["Cargo.toml is no tokenizer", "tokenizer.json"],
        ..PLAIN
    },
    Case {
        name: "not JSON",
        rows: &[r#"{"text": "a b"}"#, r#"{"text": "a b""#],
        expected: &["rows.jsonl:3:14", "invalid JSON"],
        ..PLAIN
    },
    Case {
        name: "columns of no layout",
        rows: &[r#"{"foo": "a", "bar": "b"}"#],
        expected: &["rows.jsonl", "foo", "bar"],
        ..PLAIN
    },
    Case {
        name: "an id beyond the tokenizer",
        rows: &[r#"{"input_ids": [40, 41, 4200], "labels": [-100, 41, 4200]}"#],
        expected: &["rows.jsonl:2", "4200", "outside the vocabulary"],
        ..PLAIN
    },
    Case {
        name: "a tokenizer larger than the model",
        sets: &["model.tokenizer=bpe:400", "stage.0.data.train=[\"generated:letters?n=200\"]"],
        expected: &[
            "generated:letters?n=200:",
            "outside the model's vocabulary of 300",
            "400 tokens",
            "model.tokenizer",
        ],
        ..PLAIN
    },
    Case {
        name: "a missing file",
        sets: &["stage.0.data.train=[\"/nowhere/rows.jsonl\"]"],
        expected: &["/nowhere/rows.jsonl"],
        ..PLAIN
    },
    Case {
        name: "a missing template",
        rows: &[r#"{"text": "a b"}"#],
        sets: &["stage.0.data.chat_template=/nowhere/template.jinja"],
        expected: &["cannot read /nowhere/template.jinja"],
        ..PLAIN
    },
    Case { name: "no rows", expected: &["rows.jsonl", "no rows"], ..PLAIN },
    Case {
        name: "a model that was not downloaded",
        rows: &[r#"{"text": "a b"}"#],
        sets: &["model.base=someone/model"],
        expected: &["`someone/model` is neither a folder nor", "hf download someone/model"],
        ..PLAIN
    },
    Case {
        name: "a tokenizer of no size",
        rows: &[r#"{"text": "a b"}"#],
        sets: &["model.tokenizer=bpe:many"],
        expected: &["`bpe:many`", "`bpe:512`"],
        ..PLAIN
    },
    Case {
        name: "a task that is none",
        rows: &[r#"{"text": "a b"}"#],
        sets: &["stage.0.eval.tasks=[\"generated:sums\"]"],
        expected: &["stage `sft`", "generated:sums", "did you mean `sum`"],
        ..PLAIN
    },
    Case {
        name: "a task without answers",
        rows: &[r#"{"text": "a b"}"#],
        sets: &["stage.0.eval.tasks=[\"generated:raw\"]"],
        expected: &["stage `sft`", "raw text and has no answers"],
        ..PLAIN
    },
    Case {
        name: "more problems than there are",
        rows: &[r#"{"text": "a b"}"#],
        sets: &["stage.0.eval.tasks=[\"generated:letters?level=1\"]", "stage.0.eval.n=100000"],
        expected: &["stage `sft`", "different prompts", "eval.n"],
        ..PLAIN
    },
    Case {
        name: "a layer that is not there",
        rows: &[r#"{"text": "a b"}"#],
        sets: &["stage.0.train.method=lora", "stage.0.lora.targets=[\"query\"]"],
        expected: &["query", "q_proj"],
        ..PLAIN
    },
];

#[test]
fn what_is_wrong_is_refused_before_the_first_step() {
    let mut failures = Vec::new();
    for case in CASES {
        let dir = tempdir();
        let mut text = recipe_over(dir.path(), case.rows);
        if !case.config.is_empty() {
            let base = base_with_config(dir.path(), |config| {
                for (key, value) in case.config {
                    config[*key] = serde_json::from_str(value).unwrap();
                }
            });
            text = text.replace(&format!("{:?}", base_model()), &format!("{base:?}"));
        }
        if let Some(source) = case.template {
            let path = dir.path().join("own.jinja");
            std::fs::write(&path, source).unwrap();
            text += &format!("data.chat_template = {path:?}\n");
        }
        let message = match prepare(recipe(&text, case.sets), &nothing_around()) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        };
        if !case.expected.iter().all(|part| message.contains(part)) {
            failures.push(format!("{}: expected {:?}, got\n{message}\n", case.name, case.expected));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn dropped_and_truncated_rows_are_counted() {
    let dir = tempdir();
    let long = r#"{"text": "one two three four five six seven eight nine ten"}"#;
    let text = recipe_over(dir.path(), &[long, r#"{"text": "short"}"#, long]);
    for (truncation, rows, truncated, dropped) in
        [("drop", 2, 0, 2), ("keep_start", 4, 2, 0), ("keep_end", 4, 2, 0)]
    {
        let truncation = format!("stage.0.data.truncation={truncation}");
        let plan = prepared(&text, &["stage.0.data.max_length=16", &truncation]).plan;
        let source = &plan.stages[0].data.train[0];
        let counts = (source.rows, source.rows_truncated, source.rows_dropped);
        assert_eq!(counts, (rows, truncated, dropped), "{truncation}");
    }
}

#[test]
fn a_folder_that_holds_a_run_is_left_alone() {
    let dir = tempdir();
    let text = recipe_over(dir.path(), &[r#"{"text": "a b c"}"#]);
    let run = |out: &Path| {
        let options = pt_pipeline::RunOptions { out: out.to_owned(), resume: false, reuse: Vec::new() };
        let stop = std::sync::atomic::AtomicBool::new(false);
        pt_pipeline::run(prepared(&text, &[]), &options, &nothing_around(), &mut Quiet, &stop)
    };
    let out = dir.path().join("run");
    run(&out).unwrap();
    let before = files(&out);
    let error = run(&out).unwrap_err();
    assert!(matches!(error, PipelineError::RunExists { .. }), "{error}");
    assert!(error.to_string().contains("--resume"), "{error}");
    assert!(before == files(&out));
    let other = dir.path().join("photos");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("cat.jpg"), "meow").unwrap();
    let message = run(&other).unwrap_err().to_string();
    assert!(message.contains("cat.jpg"), "{message}");
    assert_eq!(files(&other).iter().filter(|(path, _)| path.ends_with("cat.jpg")).count(), 1);
}

#[test]
fn a_plan_that_does_not_fit_is_refused() {
    let plan = prepared(&format!("{}{SFT}", on_base()), &[]).plan;
    let needed: u64 = plan.stages[0].memory.iter().map(|part| part.bytes).sum();
    check_fits(&plan, needed).unwrap();
    let message = check_fits(&plan, needed - 1).unwrap_err().to_string();
    for part in ["stage `sft` needs about", "GiB free", "recompute = \"block\"", "qlora"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let dir = tempdir();
    let base = base_with_config(dir.path(), |_| ());
    let path = base.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let n = bytes.len();
    // The last bf16 of the last tensor becomes NaN.
    bytes[n - 2..].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let text = recipe_over(dir.path(), &[r#"{"text": "a b c"}"#]);
    let text = text.replace(&format!("{:?}", base_model()), &format!("{base:?}"));
    let message = refusal(&text, &[]);
    assert!(message.contains("model.safetensors") && message.contains("NaN"), "{message}");
}
