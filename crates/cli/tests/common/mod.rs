//! What the tests of the command line share: running it, and a tiny chat model made on the spot.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pt_engine::{Dtype, Weight};
use pt_models::{LoraConfig, LoraInit, Model, NewModel, SaveOptions, Targets};
use pt_text::{Tokenizer, train_byte_bpe};
use serde_json::Value;

/// What a run of the program gave.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// The outcome, which must be success.
    pub fn ok(self) -> Outcome {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON lines.
    pub fn rows(&self) -> Vec<Value> {
        json_lines(&self.stdout)
    }
}

pub fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// The program, with an environment of its own in `dir`.
pub fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posttrain"));
    command
        .args(args)
        .current_dir(dir)
        .env("HF_HOME", dir.join("hf"))
        .env("XDG_CACHE_HOME", dir.join("cache"))
        .env("HF_HUB_OFFLINE", "1");
    command.env_remove("NO_COLOR").env("COLUMNS", "100");
    command
}

/// Runs the program in `dir` with `input` on its standard input.
pub fn run_with(dir: &Path, args: &[&str], input: &str) -> Outcome {
    let mut child = command(dir, args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().unwrap();
    // A program that refuses its arguments does not read; that is no failure of the test.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("the program ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program writes UTF-8");
    Outcome {
        code: output.status.code().expect("the program was not killed"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Runs the program in `dir`.
pub fn run(dir: &Path, args: &[&str]) -> Outcome {
    run_with(dir, args, "")
}

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
                      '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

pub fn tokenizer() -> Tokenizer {
    let texts = ["Hello there, how are you today?", "user assistant system", "one two three four five"];
    let special = ["<|im_end|>", "<|im_start|>", "<|end_of_text|>"];
    let tokenizer = train_byte_bpe(texts, 300, &special).unwrap();
    let mut config = tokenizer.config().clone();
    config.eos = Some("<|end_of_text|>".to_owned());
    config.set_chat_template(CHATML);
    tokenizer.with_config(config).unwrap()
}

fn model(tokenizer: &Tokenizer, dtype: Dtype) -> Model {
    let new = NewModel {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        ffn_size: 64,
        max_positions: 256,
        tied: true,
        rope_theta: 10_000.0,
        norm_eps: 1e-5,
        // Large, so that the distributions are far from even.
        init_std: 0.4,
        bos_token_id: None,
        eos_token_id: tokenizer.eos_id(),
        pad_token_id: None,
    };
    new.build(dtype, 5).unwrap()
}

/// A folder of its own with a chat model in `model/`.
pub struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    pub fn new() -> Fixture {
        Fixture::of_type(Dtype::F32)
    }

    pub fn of_type(dtype: Dtype) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = tokenizer();
        let folder = dir.path().join("model");
        pt_models::save(&model(&tokenizer, dtype), &folder, &SaveOptions::default(), |_| Ok(())).unwrap();
        tokenizer.save(&folder).unwrap();
        Fixture { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn run(&self, args: &[&str]) -> Outcome {
        run(self.path(), args)
    }

    /// Writes an adapter that changes the model into `adapter/`.
    pub fn write_adapter(&self, dtype: Dtype) {
        let mut model = model(&tokenizer(), dtype);
        let config = LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            targets: Targets::default(),
            rslora: false,
            dora: false,
            init: LoraInit::Default,
        };
        model.attach_lora(&config, 3).unwrap();
        for (id, param) in model.params.iter_mut().filter(|(_, param)| param.name.contains("lora_B")) {
            let value = |i: usize| ((i * 37 + id.index() * 11) % 17) as f32 / 17.0 - 0.5;
            param.weight = Weight::from_f32(&(0..param.len()).map(value).collect::<Vec<f32>>());
        }
        let folder = self.path().join("adapter");
        std::fs::create_dir(&folder).unwrap();
        model.save_peft(&folder, None).unwrap();
    }
}

pub fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Log-probabilities, with the null of a first token as NaN.
pub fn logprobs(value: &Value) -> Vec<f32> {
    let list = value.as_array().expect("a list of log-probabilities");
    list.iter().map(|x| x.as_f64().map_or(f32::NAN, |x| x as f32)).collect()
}
