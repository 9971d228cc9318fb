//! Every architecture written as GGUF, read from the file alone, and compared.

use std::path::PathBuf;

use pt_core::testdata::{shared_data, workspace_root};
use pt_engine::Dtype;
use pt_export::gguf::{GgufFile, Value};
use pt_export::{GgufOptions, Quant, prove_gguf, write_gguf};
use pt_models::{LoadOptions, Model};
use pt_text::Tokenizer;

const TEXT: &str = "Once upon a time, there was a little girl named Lily.\nShe loved to play outside in the park; it's 12345 steps!";
/// Divergence of what is the same but for the order of rows; storage is `f32`.
const EXACT: f64 = 1e-9;

fn golden(name: &str) -> Model {
    pt_models::load(&workspace_root().join("golden/models").join(name), &LoadOptions::default()).unwrap()
}

fn file(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}

/// A golden model with other options, so that it has what published models of its architecture have.
fn changed(name: &str, changes: &[(&str, Option<serde_json::Value>)]) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let from = workspace_root().join("golden/models").join(name);
    std::fs::copy(from.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let text = std::fs::read_to_string(from.join("config.json")).unwrap();
    let mut config: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    for (key, value) in changes {
        match value {
            Some(value) => drop(config.insert((*key).to_owned(), value.clone())),
            None => drop(config.remove(*key)),
        }
    }
    std::fs::write(folder.path().join("config.json"), serde_json::to_string(&config).unwrap()).unwrap();
    pt_models::load(folder.path(), &LoadOptions::default()).unwrap()
}

#[test]
fn every_architecture_predicts_the_same_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let gemma3 = [
        ("layer_types", None),
        ("sliding_window_pattern", None),
        ("query_pre_attn_scalar", Some(serde_json::json!(16))),
    ];
    let mut models: Vec<(&str, Model)> = [
        "llama",
        "llama_bf16",
        "llama_bias",
        "llama_f16",
        "llama_rope_linear",
        "llama_rope_llama3",
        "llama_rope_yarn",
        "llama_sharded",
        "llama_tied",
        "mistral",
        "phi3",
        "phi3_longrope",
        "phi3_longrope_partial",
        "qwen2",
        "qwen3",
    ]
    .map(|name| (name, golden(name)))
    .into();
    models.push(("gemma2", changed("gemma2", &gemma3[2..])));
    models.push(("gemma3", changed("gemma3", &gemma3)));
    models.push(("gemma3_v5", changed("gemma3_v5", &gemma3)));
    for (name, model) in models {
        let path = file(&folder, &format!("{name}.gguf"));
        let options = GgufOptions { quant: Quant::F32, name: name.to_owned() };
        write_gguf(&model, None, &path, &options).unwrap();
        let proof = prove_gguf(&model, None, &path, TEXT, EXACT).unwrap();
        assert!(proof.problems.is_empty(), "{name}: {:?}", proof.problems);
        assert!(proof.divergence.n_tokens >= 20 && proof.divergence.same_top == 1.0, "{name}: {proof:?}");
    }
}

#[test]
fn what_has_no_place_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let check = |model: Model, part: &str| {
        let options = GgufOptions { quant: Quant::F16, name: "m".to_owned() };
        let path = file(&folder, "m.gguf");
        let message = write_gguf(&model, None, &path, &options).unwrap_err().to_string();
        assert!(message.contains(part), "{message} should mention {part}");
        assert!(!path.exists());
    };
    check(golden("gemma2"), "query_pre_attn_scalar is 24");
    check(golden("gemma3"), "one layer in 6");
    check(golden("llama_rope_dynamic"), "`dynamic`");
}

#[test]
fn a_file_that_is_another_model_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "m.gguf");
    let options = GgufOptions { quant: Quant::F32, name: "m".to_owned() };
    write_gguf(&golden("llama"), None, &path, &options).unwrap();
    // The same shapes, another theta: rotary settings read wrongly would look like this.
    let other = changed("llama", &[("rope_theta", Some(serde_json::json!(50_000.0)))]);
    let proof = prove_gguf(&other, None, &path, TEXT, Quant::F16.max_mean_kl()).unwrap();
    assert!(proof.problems.iter().any(|p| p.contains("diverge")), "{proof:?}");
}

/// The model with its tokenizer, whose vocabulary has fallback bytes and scores.
fn stories() -> Option<(Model, Tokenizer)> {
    let data = shared_data()?.join("stories260K");
    let model = pt_models::llama2c::import(&data.join("stories260K.bin"), Dtype::F32).unwrap();
    Some((model, Tokenizer::from_llama2c(&data.join("tok512.bin")).unwrap()))
}

#[test]
fn a_real_model_survives_every_quantisation() {
    let Some((model, tokenizer)) = stories() else { return };
    let folder = tempfile::tempdir().unwrap();
    for quant in Quant::ALL {
        let path = file(&folder, quant.name());
        write_gguf(&model, Some(&tokenizer), &path, &GgufOptions { quant, name: "stories".into() }).unwrap();
        let proof = prove_gguf(&model, Some(&tokenizer), &path, TEXT, quant.max_mean_kl()).unwrap();
        assert!(proof.problems.is_empty(), "{}: {:?}", quant.name(), proof.problems);
        assert!(proof.n_texts == 3 && proof.stop_ids == [2]);
        let read = GgufFile::open(&path).unwrap();
        assert_eq!(
            read.metadata().get("general.file_type").and_then(Value::as_u64),
            Some(quant.file_type().into())
        );
    }
}

#[test]
fn byte_level_tokenizers_are_known_by_their_rules() {
    let Some(data) = shared_data() else { return };
    let texts = "Hello  world, it's 2024!\n\n  I'LL pay 12345.67\tfor na\u{ef}ve caf\u{e9}s \u{4f60}\u{597d}\r\n!!! <|im_start|>x";
    let check = |name: &str, expected: &str| {
        let tokenizer = Tokenizer::from_dir(&data.join("tokenizers").join(name)).unwrap();
        let n = tokenizer.vocab_size() + 3;
        let mut metadata = pt_export::gguf::Metadata::default();
        pt_export::vocab::put_vocab(&tokenizer, n, &mut metadata).unwrap();
        assert_eq!(metadata.get("tokenizer.ggml.pre").and_then(Value::as_text), Some(expected), "{name}");
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, "vocab.gguf");
        pt_export::gguf::write(&path, &metadata, &[]).unwrap();
        let read = pt_export::vocab::tokenizer_of(&GgufFile::open(&path).unwrap()).unwrap();
        let (a, b) = (tokenizer.encode(texts, true).unwrap(), read.encode(texts, true).unwrap());
        assert_eq!(a.ids, b.ids, "{name}");
        assert_eq!(tokenizer.eos_ids(), read.eos_ids(), "{name}");
        if let Ok(template) = tokenizer.chat_template(None) {
            assert_eq!(template.source(), read.chat_template(None).unwrap().source(), "{name}");
        }
    };
    check("qwen2.5", "qwen2");
}
