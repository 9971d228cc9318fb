//! `config.json` of a Hugging Face model.
//!
//! What every architecture shares is read here into [`ModelConfig`]; what one architecture has of its own it reads
//! from the same [`Options`] while it builds. Both formats on the Hub are understood: that of transformers 4
//! (`rope_theta`, `rope_scaling`, `torch_dtype`) and that of transformers 5 (`rope_parameters`, `dtype`). The text is
//! kept as it was, so that it can be written back.
//!
//! Where a key is absent the default is that of transformers' configuration class.

use serde_json::{Map, Value, json};

use crate::arch::{self, Architecture};
use crate::builder::{Builder, Inventory, ParamSpec};
use crate::error::{ModelError, Result};
use crate::model::CausalLm;
use crate::options::{Options, parse_object};
use crate::score_head::{ScoreHead, ScoreHeadKind, n_labels};

/// Largest vocabulary believed; every published one is below a tenth of it.
const MAX_VOCABULARY: usize = 1 << 23;
/// Largest width, also of the feed-forward layer.
const MAX_WIDTH: usize = 1 << 20;
/// Largest number of layers or heads.
const MAX_COUNT: usize = 1 << 12;
/// Longest context.
const MAX_POSITIONS: usize = 1 << 31;

/// How a checkpoint's linear layers are stored, if not in floating point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredQuantisation {
    /// bitsandbytes NF4.
    Nf4,
    /// bitsandbytes LLM.int8().
    Int8,
}

/// What all decoder architectures have in common, and the file it was read from.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// `model_type`, for example `llama`.
    pub model_type: String,
    /// Class name, for example `LlamaForCausalLM`.
    pub class_name: String,
    /// Number of tokens the embedding and the head know.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub ffn_size: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The longest sequence the model is meant for.
    pub max_positions: usize,
    /// Added to mean squares in normalisations.
    pub norm_eps: f32,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// How linear layers are stored, if quantised.
    pub quantisation: Option<StoredQuantisation>,
    /// The score head, if it is a classifier's configuration.
    pub score_head: Option<ScoreHead>,
    file: String,
    raw: Map<String, Value>,
    ignored: Vec<String>,
    architecture: &'static Architecture,
}

impl ModelConfig {
    /// Reads the text of a `config.json`. `file` is its name for errors; options in `ignored` may have any value.
    ///
    /// # Errors
    /// The option variants of [`ModelError`]: unknown, missing, absurd or unsupported options.
    pub fn parse(file: &str, text: &str, ignored: &[String]) -> Result<ModelConfig> {
        ModelConfig::from_map(file, parse_object(file, text)?, ignored)
    }

    /// The same from a parsed object.
    ///
    /// # Errors
    /// As [`ModelConfig::parse`].
    pub fn from_map(file: &str, raw: Map<String, Value>, ignored: &[String]) -> Result<ModelConfig> {
        let config = ModelConfig::of_any(file, raw, ignored)?;
        match config.score_head {
            None => Ok(config),
            Some(_) => Err(Options::new(file, &config.raw).unsupported(
                "architectures",
                &format!("{} (a classifier has no head over the vocabulary)", config.class_name),
            )),
        }
    }

    /// The same, also of a classifier: a reward model.
    ///
    /// # Errors
    /// As [`ModelConfig::parse`].
    pub(crate) fn of_any(file: &str, raw: Map<String, Value>, ignored: &[String]) -> Result<ModelConfig> {
        let (architecture, kind) = find_architecture(&Options::new(file, &raw))?;
        let score_head = kind.map(|kind| ScoreHead { kind, n_outputs: n_labels(&raw) });
        let mut config = ModelConfig {
            model_type: architecture.model_type.to_owned(),
            class_name: architecture.class_name.to_owned(),
            vocab_size: 0,
            hidden_size: 0,
            ffn_size: 0,
            n_layers: 0,
            n_heads: 0,
            n_kv_heads: 0,
            head_dim: 0,
            max_positions: 0,
            norm_eps: 0.0,
            tied: false,
            quantisation: None,
            score_head,
            file: file.to_owned(),
            raw,
            ignored: ignored.to_owned(),
            architecture,
        };
        let raw = config.raw.clone();
        config.read_shared(&Options::new(file, &raw))?;
        // Building without values reads and checks what the architecture has of its own.
        config.build(&mut Builder::new(&mut Inventory::default()))?;
        Ok(config)
    }

    /// Every tensor of the model, in declaration order; nothing is loaded.
    pub fn param_specs(&self) -> Vec<ParamSpec> {
        let mut inventory = Inventory::default();
        self.build(&mut Builder::new(&mut inventory))
            .expect("a configuration that was built once builds again");
        inventory.specs
    }

    /// Number of parameters, a tied head counted once.
    pub fn n_params(&self) -> usize {
        self.param_specs().iter().map(ParamSpec::n_elements).sum()
    }

    /// The object as it was read.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// The catalogue's entry.
    pub fn architecture(&self) -> &'static Architecture {
        self.architecture
    }

    /// Names the token that fills up batches, if the file names none: transformers' classifiers do not score batches without.
    pub fn default_pad_token(&mut self, id: u32) {
        if token_ids(self.raw.get("pad_token_id")).is_empty() {
            self.raw.insert("pad_token_id".to_owned(), json!(id));
        }
    }

    /// Says that no token fills up batches, if the file names one of `ids`: transformers then scores texts one by one, and refuses
    /// a batch, where it would otherwise take their ends for filling and read the scores before them.
    pub fn refuse_pad_tokens(&mut self, ids: &[u32]) {
        if token_ids(self.raw.get("pad_token_id")).iter().any(|id| ids.contains(id)) {
            self.raw.insert("pad_token_id".to_owned(), Value::Null);
        }
    }

    /// The tokens that end a sequence, by `eos_token_id` (a number or a list).
    pub fn eos_token_ids(&self) -> Vec<u32> {
        token_ids(self.raw.get("eos_token_id"))
    }

    /// The token that starts a sequence.
    pub fn bos_token_id(&self) -> Option<u32> {
        token_ids(self.raw.get("bos_token_id")).first().copied()
    }

    /// The `config.json` to write beside weights of type `dtype` ("float32" or "bfloat16"): the text as it was read,
    /// but for the storage type and `quantization_config`.
    pub fn to_json(&self, dtype: &str, quantisation: Option<StoredQuantisation>) -> Map<String, Value> {
        let mut map = self.raw.clone();
        let keys: Vec<&str> =
            ["torch_dtype", "dtype"].into_iter().filter(|key| map.contains_key(*key)).collect();
        for key in if keys.is_empty() { vec!["torch_dtype"] } else { keys } {
            map.insert(key.to_owned(), json!(dtype));
        }
        match quantisation {
            None => drop(map.shift_remove("quantization_config")),
            Some(kind) if self.quantisation == Some(kind) => {}
            Some(kind) => drop(map.insert("quantization_config".to_owned(), bitsandbytes(kind, dtype))),
        }
        map
    }

    pub(crate) fn build(&self, builder: &mut Builder<'_>) -> Result<Box<dyn CausalLm>> {
        let options = Options::new(&self.file, &self.raw);
        for key in SHARED {
            options.value(key);
        }
        let model = (self.architecture.build)(self, &options, builder)?;
        let what = format!("a {}", self.class_name);
        options
            .finish(&what, |key| is_ignorable(key) || self.ignored.iter().any(|ignored| ignored == key))?;
        Ok(model)
    }

    fn read_shared(&mut self, options: &Options<'_>) -> Result<()> {
        let defaults = &self.architecture.defaults;
        self.vocab_size = options.required_size("vocab_size", 1..=MAX_VOCABULARY)?;
        self.hidden_size = options.required_size("hidden_size", 1..=MAX_WIDTH)?;
        self.ffn_size = options.required_size("intermediate_size", 1..=MAX_WIDTH)?;
        self.n_layers = options.required_size("num_hidden_layers", 1..=MAX_COUNT)?;
        self.n_heads = options.required_size("num_attention_heads", 1..=MAX_COUNT)?;
        self.n_kv_heads =
            options.size("num_key_value_heads", 1..=MAX_COUNT)?.unwrap_or(match defaults.n_kv_heads {
                Some(n) if !options.has("num_key_value_heads") => n,
                _ => self.n_heads,
            });
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(options
                .bad("num_key_value_heads", &format!("a divisor of num_attention_heads, {}", self.n_heads)));
        }
        self.head_dim = self.read_head_dim(options)?;
        self.max_positions =
            options.size("max_position_embeddings", 1..=MAX_POSITIONS)?.unwrap_or(defaults.max_positions);
        self.norm_eps = options.positive("rms_norm_eps")?.unwrap_or(defaults.norm_eps) as f32;
        // A classifier has no head over the vocabulary: none is read, and none is asked.
        self.tied =
            options.flag("tie_word_embeddings")?.unwrap_or(defaults.tied) || self.score_head.is_some();
        self.quantisation = read_quantisation(options)?;
        options.only("attention_dropout", "0: dropout exists in adapters only", |v| v.as_f64() == Some(0.0))
    }

    fn read_head_dim(&self, options: &Options<'_>) -> Result<usize> {
        if let Some(head_dim) = options.size("head_dim", 1..=MAX_WIDTH)? {
            return Ok(head_dim);
        }
        if let Some(head_dim) = self.architecture.defaults.head_dim {
            return Ok(head_dim);
        }
        if self.hidden_size.is_multiple_of(self.n_heads) {
            return Ok(self.hidden_size / self.n_heads);
        }
        let expected =
            format!("a multiple of num_attention_heads, {}, where head_dim is not given", self.n_heads);
        Err(options.bad("hidden_size", &expected))
    }
}

/// Keys that [`ModelConfig::read_shared`] reads.
const SHARED: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "quantization_config",
    "attention_dropout",
    "architectures",
    "model_type",
];

/// Keys that change nothing a forward or backward pass computes.
const IGNORABLE: &[&str] = &[
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "classifier_dropout",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "finetuning_task",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "max_sequence_length",
    "min_length",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "repetition_penalty",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "use_cache",
];

/// Underscored keys are transformers' own notes; Unsloth marks the models it repacked.
fn is_ignorable(key: &str) -> bool {
    IGNORABLE.contains(&key) || key.starts_with('_') || key.starts_with("unsloth_")
}

fn find_architecture(options: &Options<'_>) -> Result<(&'static Architecture, Option<ScoreHeadKind>)> {
    let names: Vec<&str> = arch::ARCHITECTURES.iter().map(|a| a.model_type).collect();
    let expected = format!("one of {}", names.join(", "));
    let found = options.text("model_type")?.ok_or_else(|| options.missing("model_type", &expected))?;
    let Some(architecture) = arch::ARCHITECTURES.iter().find(|a| a.model_type == found) else {
        let reason = arch::UNSUPPORTED.iter().find(|(name, _)| *name == found);
        return Err(ModelError::UnknownArchitecture {
            file: options.file().to_owned(),
            found: found.to_owned(),
            reason: reason.map_or(String::new(), |(_, reason)| format!(": {reason}")),
            hint: pt_core::suggest::hint(found, &names),
        });
    };
    let class = options.texts("architectures")?.and_then(|classes| classes.first().copied());
    let Some(class) = class.filter(|class| *class != architecture.class_name) else {
        return Ok((architecture, None));
    };
    match architecture.classifier_kind(class) {
        Some(kind) => Ok((architecture, Some(kind))),
        None => Err(options.unsupported("architectures", architecture.class_name)),
    }
}

/// Only how weights are stored matters: products are always taken with decoded weights, so the outlier columns of
/// LLM.int8() (`llm_int8_threshold`), which treat activations, do not arise.
fn read_quantisation(options: &Options<'_>) -> Result<Option<StoredQuantisation>> {
    let Some(q) = options.object("quantization_config")? else { return Ok(None) };
    q.only("quant_method", "bitsandbytes (NF4 or int8)", |v| v == "bitsandbytes")?;
    if !q.has("quant_method") {
        return Err(q.missing("quant_method", "bitsandbytes"));
    }
    if q.flag("load_in_8bit")?.unwrap_or(false) {
        return Ok(Some(StoredQuantisation::Int8));
    }
    if !q.flag("load_in_4bit")?.unwrap_or(false) {
        return Err(q.bad("load_in_4bit", "true, or load_in_8bit true"));
    }
    q.only("bnb_4bit_quant_type", "nf4", |v| v == "nf4")?;
    if !q.has("bnb_4bit_quant_type") {
        return Err(q.missing("bnb_4bit_quant_type", "nf4"));
    }
    q.only("bnb_4bit_quant_storage", "uint8", |v| v == "uint8")?;
    Ok(Some(StoredQuantisation::Nf4))
}

/// The `quantization_config` with which transformers reads what we write.
fn bitsandbytes(kind: StoredQuantisation, dtype: &str) -> Value {
    let is_nf4 = kind == StoredQuantisation::Nf4;
    json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": is_nf4,
        "load_in_8bit": !is_nf4,
        "_load_in_4bit": is_nf4,
        "_load_in_8bit": !is_nf4,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": if is_nf4 { "nf4" } else { "fp4" },
        "bnb_4bit_use_double_quant": is_nf4,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
    })
}

fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Map<String, Value> {
        let text = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}"#;
        parse_object("config.json", text).unwrap()
    }

    fn with(changes: Value) -> Result<ModelConfig> {
        let mut map = llama();
        map.extend(changes.as_object().unwrap().clone());
        ModelConfig::from_map("config.json", map, &[])
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let config = with(json!({})).unwrap();
        assert_eq!(
            (config.head_dim, config.max_positions, config.norm_eps, config.tied),
            (8, 2048, 1e-6, false)
        );
        assert_eq!(config.param_specs().len(), 2 * 9 + 3);
        let q = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48 + 2 * 32;
        assert_eq!(config.n_params(), 2 * q + 2 * 64 * 32 + 32);
    }

    #[test]
    fn wrong_options_are_named() {
        let check = |changes: Value, expected: &[&str]| {
            let message = with(changes.clone()).expect_err(&changes.to_string()).to_string();
            for part in expected {
                assert!(message.contains(part), "{changes}: {message} should mention {part}");
            }
        };
        check(json!({"model_type": "lama"}), &["`lama`", "did you mean `llama`", "qwen3"]);
        check(json!({"model_type": "mixtral"}), &["`mixtral`", "mixture of experts"]);
        check(json!({"model_type": "gemma3"}), &["gemma3_text"]);
        check(json!({"model_type": null}), &["`model_type` is missing"]);
        check(
            json!({"architectures": ["LlamaForSequenceClassification"]}),
            &["architectures", "LlamaForCausalLM"],
        );
        check(json!({"num_attention_heads": 0}), &["`num_attention_heads` is 0", "from 1"]);
        check(
            json!({"num_attention_heads": 5}),
            &["num_key_value_heads", "divisor of num_attention_heads, 5"],
        );
        check(json!({"hidden_size": 30}), &["`hidden_size` is 30", "multiple"]);
        check(json!({"vocab_size": 1_000_000_000}), &["`vocab_size` is 1000000000"]);
        check(json!({"vocab_size": "many"}), &["`vocab_size` is \"many\""]);
        check(json!({"vocab_size": null}), &["`vocab_size` is missing"]);
        check(json!({"rms_norm_eps": -1.0}), &["`rms_norm_eps` is -1.0"]);
        check(json!({"head_dim": 7}), &["head_dim", "even"]);
        check(json!({"hidden_act": "gelu"}), &["`hidden_act` = \"gelu\"", "silu"]);
        check(json!({"attention_dropout": 0.1}), &["attention_dropout"]);
        check(json!({"num_local_experts": 8}), &["`num_local_experts` = 8", "LlamaForCausalLM"]);
        check(json!({"mlp_bais": true}), &["`mlp_bais` = true", "the nearest is `mlp_bias`"]);
        check(
            json!({"rope_scaling": {"rope_type": "foo", "factor": 2.0}}),
            &["rope_scaling.rope_type", "foo", "yarn"],
        );
        check(
            json!({"rope_scaling": {"rope_type": "linear", "factr": 2.0}}),
            &["rope_scaling.factor", "missing"],
        );
        check(
            json!({"rope_scaling": {"type": "linear", "factor": 2.0, "magic": 3}}),
            &["rope_scaling.magic"],
        );
        check(
            json!({"rope_scaling": {"type": "linear", "factor": 2.0, "rope_type": "yarn"}}),
            &["rope_type", "type"],
        );
        check(
            json!({"quantization_config": {"quant_method": "gptq"}}),
            &["quantization_config.quant_method", "gptq"],
        );
        let fp4 = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "fp4"});
        check(json!({"quantization_config": fp4}), &["bnb_4bit_quant_type", "fp4", "nf4"]);
    }

    #[test]
    fn unknown_options_that_are_off_or_listed_pass() {
        assert!(with(json!({"new_thing": false, "other": null, "list": [], "_note": "x"})).is_ok());
        let mut map = llama();
        map.insert("new_thing".into(), json!(3));
        assert!(ModelConfig::from_map("c", map.clone(), &[]).is_err());
        assert!(ModelConfig::from_map("c", map, &["new_thing".to_owned()]).is_ok());
    }

    #[test]
    fn the_text_is_written_back_with_its_new_type() {
        let config = with(json!({"torch_dtype": "float16", "x_note": null, "eos_token_id": [2, 7]})).unwrap();
        let written = config.to_json("bfloat16", None);
        assert_eq!(written["torch_dtype"], "bfloat16");
        assert_eq!(written.keys().collect::<Vec<_>>(), config.raw().keys().collect::<Vec<_>>());
        assert_eq!(config.eos_token_ids(), [2, 7]);
        let nf4 = config.to_json("bfloat16", Some(StoredQuantisation::Nf4));
        let again = ModelConfig::from_map("c", nf4, &[]).unwrap();
        assert_eq!(again.quantisation, Some(StoredQuantisation::Nf4));
    }
}
