//! Adapters against what PEFT computes and writes, and against themselves merged.

mod common;

use std::path::Path;

use common::*;
use pt_engine::{Dtype, Storage};
use pt_models::{LoadOptions, LoraConfig, Model, Quantise, load};
use serde_json::{Value, json};

/// Runs of `golden/train` with an adapter.
const RUNS: &[&str] = &["lora", "rslora", "dora"];

fn with_adapter(run: &str, which: &str) -> Model {
    let mut model = load_golden("models/llama", Dtype::F32);
    model
        .attach_peft(&golden("train").join(run).join(which))
        .unwrap_or_else(|error| panic!("{run}: {error}"));
    model
}

fn json_file(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn golden_batch() -> Vec<Vec<u32>> {
    sequences(&tensors(&golden("models/llama/golden.safetensors")))
}

#[test]
fn logits_and_gradients_are_those_of_peft() {
    let batches = json_file(&golden("train/batches.json"));
    let lists = |key: &str| -> Vec<Vec<u32>> { serde_json::from_value(batches[0][key].clone()).unwrap() };
    let (tokens, mask) = (lists("tokens"), lists("mask"));
    for run in RUNS {
        let expected = tensors(&golden("train").join(run).join("golden.safetensors"));
        let model = with_adapter(run, "initial");
        let found = logits(&model, &packed(&golden_batch()), Dtype::F32);
        assert_close(&format!("{run} logits"), &found, &expected["initial_logits"]);

        let (rows, targets) = predictions(&tokens);
        let is_target: Vec<bool> = mask.iter().flat_map(|m| m[1..].iter().map(|x| *x == 1)).collect();
        let n = is_target.iter().filter(|x| **x).count() as f32;
        let weights: Vec<f32> = is_target.iter().map(|x| if *x { 1.0 / n } else { 0.0 }).collect();
        let (_, grads) = gradients(&model, &packed(&tokens), &rows, &targets, &weights, false);
        // The golden gradients were clipped: they are the true ones divided by their norm, which the log has.
        let norm = |grads: &mut dyn Iterator<Item = f64>| grads.map(|x| x * x).sum::<f64>().sqrt();
        let ours = norm(&mut grads.values().flatten().map(|x| f64::from(*x)));
        let log = json_file(&golden("train").join(run).join("log.json"));
        let theirs = log["grad_norm"][0].as_f64().unwrap();
        assert!((ours / theirs - 1.0).abs() < F32_TOLERANCE, "{run}: norm {ours}, expected {theirs}");
        let keys: Vec<&String> = expected.keys().filter(|key| key.starts_with("grad.")).collect();
        assert_eq!(keys.len(), grads.len(), "{run}: the adapter trains and nothing else");
        let length = norm(&mut keys.iter().flat_map(|key| expected[*key].iter().copied()));
        for key in keys {
            let expected: Vec<f64> = expected[key].iter().map(|x| x / length * theirs).collect();
            assert_close(&format!("{run} {key}"), &grads[&key["grad.".len()..]], &expected);
        }
    }
}

#[test]
fn a_merged_model_gives_the_logits_of_its_adapter() {
    for run in RUNS {
        let mut model = with_adapter(run, "final");
        let batch = packed(&golden_batch());
        let expected: Vec<f64> = logits(&model, &batch, Dtype::F32).iter().map(|x| f64::from(*x)).collect();
        let base = logits(&load_golden("models/llama", Dtype::F32), &batch, Dtype::F32);
        assert!(error(&base, &expected) > 0.1, "{run}: the adapter changes the logits");
        model.merge_adapter(Dtype::F32).unwrap();
        assert_close(run, &logits(&model, &batch, Dtype::F32), &expected);
    }
}

/// Merging into the decoded values, not into the original ones.
#[test]
fn an_adapter_on_quantised_weights_merges_on_the_values_it_saw() {
    for quantise in [Quantise::Nf4 { double: true }, Quantise::Int8] {
        for run in ["lora", "dora"] {
            let options =
                LoadOptions { dtype: Some(Dtype::F32), quantise: Some(quantise), ..LoadOptions::default() };
            let mut model = load(&golden("models/llama"), &options).unwrap();
            model.attach_peft(&golden("train").join(run).join("final")).unwrap();
            let batch = packed(&golden_batch());
            let expected: Vec<f64> =
                logits(&model, &batch, Dtype::F32).iter().map(|x| f64::from(*x)).collect();
            model.merge_adapter(Dtype::F32).unwrap();
            assert!(model.params.iter().all(|(_, param)| param.weight.storage() == Storage::F32));
            assert_close(&format!("{quantise:?} {run}"), &logits(&model, &batch, Dtype::F32), &expected);
        }
    }
}

#[test]
fn a_new_adapter_changes_nothing_until_it_trains() {
    for dora in [false, true] {
        let mut model = load_golden("models/qwen2", Dtype::F32);
        let batch = packed(&golden_batch());
        let expected: Vec<f64> = logits(&model, &batch, Dtype::F32).iter().map(|x| f64::from(*x)).collect();
        let config: LoraConfig =
            serde_json::from_value(json!({"rank": 8, "alpha": 16, "dora": dora})).unwrap();
        model.attach_lora(&config, 7).unwrap();
        assert_close("a new adapter", &logits(&model, &batch, Dtype::F32), &expected);
    }
}

#[test]
fn an_adapter_is_written_as_peft_writes_it() {
    for run in RUNS {
        let dir = tempfile::tempdir().unwrap();
        let source = golden("train").join(run).join("final");
        with_adapter(run, "final").save_peft(dir.path(), Some("golden/models/llama")).unwrap();
        let read = |dir: &Path| std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
        assert_eq!(read(dir.path()), read(&source), "{run}");
        let json = |dir: &Path| -> Value {
            serde_json::from_str(&std::fs::read_to_string(dir.join("adapter_config.json")).unwrap()).unwrap()
        };
        let (ours, theirs) = (json(dir.path()), json(&source));
        for (key, value) in ours.as_object().unwrap() {
            assert!(
                *value == theirs[key] || value.as_f64().is_some_and(|x| theirs[key].as_f64() == Some(x)),
                "{run} {key}"
            );
        }
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let source = golden("train/lora/initial");
    let check = |changes: Value, expected: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let mut config: Value =
            serde_json::from_str(&std::fs::read_to_string(source.join("adapter_config.json")).unwrap())
                .unwrap();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
        std::fs::copy(source.join("adapter_model.safetensors"), dir.path().join("adapter_model.safetensors"))
            .unwrap();
        let result = load_golden("models/llama", Dtype::F32).attach_peft(dir.path());
        let message = result.expect_err(&changes.to_string()).to_string();
        for part in expected {
            assert!(message.contains(part), "{changes}: {message} should mention {part}");
        }
    };
    check(json!({"peft_type": "IA3"}), &["peft_type", "IA3"]);
    check(json!({"modules_to_save": ["lm_head"]}), &["modules_to_save", "lm_head"]);
    check(json!({"bias": "all"}), &["`bias` = \"all\""]);
    check(json!({"init_lora_weights": "pissa"}), &["init_lora_weights", "pissa"]);
    check(json!({"use_qalora": true}), &["`use_qalora` = true"]);
    check(json!({"trainable_token_indices": [3]}), &["trainable_token_indices"]);
    check(json!({"lora_bias": true}), &["lora_bias"]);
    check(json!({"r": 5}), &["lora_A", "[4, 32]", "expected [5, 32]"]);
    check(json!({"use_dora": true}), &["lora_magnitude_vector", "incomplete"]);
    check(json!({"alpha_pattern": {"^model.*": 3}}), &["alpha_pattern", "regular expressions"]);

    let error = load_golden("models/phi3", Dtype::F32).attach_peft(&source).unwrap_err().to_string();
    assert!(error.contains("Phi3ForCausalLM") && error.contains("qkv_proj"), "{error}");
    let error =
        load_golden("models/llama", Dtype::F32).attach_peft(&golden("models/llama")).unwrap_err().to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
}

#[test]
fn patterns_of_rank_and_alpha_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let mut config: Value = serde_json::from_str(
        &std::fs::read_to_string(golden("train/lora/initial/adapter_config.json")).unwrap(),
    )
    .unwrap();
    config["r"] = json!(16);
    config["alpha_pattern"] = json!({"q_proj": 20, "model.layers.0.mlp.up_proj": 2});
    let layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    config["rank_pattern"] = layers.iter().map(|name| ((*name).to_owned(), json!(4))).collect();
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    let weights = "adapter_model.safetensors";
    std::fs::copy(golden("train/lora/initial").join(weights), dir.path().join(weights)).unwrap();
    let scales = |model: &Model| -> Vec<(String, f32)> {
        model.arch.linears().iter().map(|l| (l.name.clone(), l.lora.as_ref().unwrap().scale)).collect()
    };
    let mut model = load_golden("models/llama", Dtype::F32);
    model.attach_peft(dir.path()).unwrap();
    for (name, scale) in scales(&model) {
        let alpha = if name.ends_with("q_proj") {
            20.0
        } else if name == "model.layers.0.mlp.up_proj" {
            2.0
        } else {
            8.0
        };
        assert_eq!(scale, alpha / 4.0, "{name}");
    }
    let again_dir = tempfile::tempdir().unwrap();
    model.save_peft(again_dir.path(), None).unwrap();
    let mut again = load_golden("models/llama", Dtype::F32);
    again.attach_peft(again_dir.path()).unwrap();
    assert_eq!(scales(&model), scales(&again));
}

/// A file that adapts one layer of two must not be written as if it adapted both.
#[test]
fn targets_written_again_mean_the_same_layers() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = load_golden("models/llama", Dtype::F32);
    let targets = json!(["layers.1.self_attn.q_proj", "v_proj"]);
    let config: LoraConfig =
        serde_json::from_value(json!({"rank": 2, "alpha": 4, "targets": targets})).unwrap();
    model.attach_lora(&config, 1).unwrap();
    model.save_peft(dir.path(), None).unwrap();
    let path = dir.path().join("adapter_config.json");
    let mut written = json_file(&path);
    assert_eq!(written["target_modules"], targets);
    // PEFT also allows a regular expression, which is not kept.
    written["target_modules"] = json!(".*(1.self_attn.q|v)_proj");
    std::fs::write(&path, written.to_string()).unwrap();
    let mut again = load_golden("models/llama", Dtype::F32);
    again.attach_peft(dir.path()).unwrap();
    again.save_peft(dir.path(), None).unwrap();
    let layers = |n: u32, name: &str| format!("model.layers.{n}.self_attn.{name}");
    let expected = json!([layers(0, "v_proj"), layers(1, "q_proj"), layers(1, "v_proj")]);
    assert_eq!(json_file(&path)["target_modules"], expected);
}

/// A QLoRA model with DoRA: in any company, with any storage.
#[test]
fn adapted_sequences_give_the_same_bits_packed_and_alone() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for quantise in [None, Some(Quantise::Nf4 { double: true }), Some(Quantise::Int8)] {
            let options = LoadOptions { dtype: Some(dtype), quantise, ..LoadOptions::default() };
            let mut model = load(&golden("models/llama"), &options).unwrap();
            model.attach_peft(&golden("train/dora/final")).unwrap();
            let sequences = golden_batch();
            let together = logits(&model, &packed(&sequences), dtype);
            let alone: Vec<f32> = sequences
                .iter()
                .flat_map(|s| logits(&model, &packed(std::slice::from_ref(s)), dtype))
                .collect();
            assert_eq!(bits(&together), bits(&alone), "{dtype:?} {quantise:?}");
        }
    }
}

/// Dropout is a function of step, layer and row, so running a block again drops the same inputs.
#[test]
fn recomputing_an_adapter_with_dropout_gives_the_same_bits() {
    let mut model = load_golden("models/gemma2", Dtype::F32);
    let config: LoraConfig =
        serde_json::from_value(json!({"rank": 4, "alpha": 8, "dropout": 0.3, "init": "pissa"})).unwrap();
    model.attach_lora(&config, 5).unwrap();
    let sequences = golden_batch();
    let (batch, (rows, targets)) = (packed(&sequences), predictions(&sequences));
    let weights = vec![1.0; rows.len()];
    let run = |recompute, seed| {
        gradients_with_dropout(&model, &batch, &rows, &targets, &weights, recompute, Some(seed))
    };
    let ((logp, grads), (logp_again, grads_again)) = (run(false, 1), run(true, 1));
    assert_eq!(bits(&logp), bits(&logp_again));
    assert!(!grads.is_empty() && grads.keys().eq(grads_again.keys()));
    for (key, grad) in &grads {
        assert_eq!(bits(grad), bits(&grads_again[key]), "{key}");
    }
    assert_ne!(bits(&logp), bits(&run(false, 2).0), "another step drops other inputs");
}

/// Any result will do where an adapter's files are damaged; a panic will not.
#[test]
fn damaged_adapters_never_panic() {
    let stream = pt_core::rng::Stream::new(3, "damage");
    let (mut n_trials, mut n_refused) = (0, 0);
    for folder in ["train/lora/final", "train/dora/final", "preference_train/peft_reward"] {
        let dir = tempfile::tempdir().unwrap();
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(golden(folder).join(name), dir.path().join(name)).unwrap();
        }
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            let (path, original) = (dir.path().join(name), std::fs::read(golden(folder).join(name)).unwrap());
            for _ in 0..100 {
                n_trials += 1;
                std::fs::write(&path, damaged(&original, &mut stream.at(n_trials))).unwrap();
                let mut model = load_golden("models/llama", Dtype::F32);
                n_refused += u64::from(model.attach_peft(dir.path()).is_err());
            }
            std::fs::write(&path, original).unwrap();
        }
    }
    assert!(n_refused > n_trials / 3, "{n_refused} of {n_trials} were refused");
}

/// A few bytes changed, to any or to such as JSON is made of, or the end cut off.
fn damaged(original: &[u8], draws: &mut pt_core::rng::Draws) -> Vec<u8> {
    const OF_JSON: &[u8] = b"{}[]\",:-0123456789truefalsn\\ ";
    let mut bytes = original.to_vec();
    // Headers and JSON are at the front.
    let reach = bytes.len().min(1500);
    for _ in 0..=draws.below(3) {
        let at = draws.below(reach);
        bytes[at] =
            if draws.below(2) == 0 { draws.next_u32() as u8 } else { OF_JSON[draws.below(OF_JSON.len())] };
    }
    if draws.below(5) == 0 {
        bytes.truncate(draws.below(original.len()));
    }
    bytes
}
