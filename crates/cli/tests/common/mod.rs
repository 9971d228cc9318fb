//! What the tests of the command line share: running it, and a tiny chat model made on the spot.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part of this module")]

pub mod judge;
mod program;

use std::path::{Path, PathBuf};

use pt_engine::{Dtype, Weight};
use pt_models::{LoraConfig, LoraInit, Model, NewModel, SaveOptions, Targets};
use pt_text::{Tokenizer, train_byte_bpe};
use serde_json::Value;

pub use program::{Outcome, command, json_lines, run, run_with};

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
