//! Model folders: what is written is what is read, and broken ones say what is broken.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::*;
use pt_engine::Dtype;
use pt_models::{LoadOptions, Model, Quantise, SaveOptions, StoredQuantisation, load, save, save_into};
use serde_json::Value;

fn read(dir: &Path) -> Model {
    load(dir, &LoadOptions::default()).unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn what_is_saved_is_what_was_read() {
    let folders = [
        "models/llama",
        "models/llama_bf16",
        "models/gemma3_v5",
        "models/phi3_longrope",
        "quant/llama_nf4",
        "quant/llama_int8",
    ];
    for path in folders {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        save(&read(&golden(path)), &first, &SaveOptions::default(), |_| Ok(())).unwrap();
        save(&read(&first), &second, &SaveOptions::default(), |_| Ok(())).unwrap();
        assert_eq!(contents(&first), contents(&second), "{path}");
        // The same tensors as the original, in the same type and shape.
        let source = std::fs::read(golden(path).join("model.safetensors")).unwrap();
        let (source, saved) = (source, std::fs::read(first.join("model.safetensors")).unwrap());
        let tensors = |bytes: &[u8]| -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
            let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
            file.tensors().into_iter().map(|(n, v)| (n, (v.shape().to_vec(), v.data().to_vec()))).collect()
        };
        let (mut source, mut saved) = (tensors(&source), tensors(&saved));
        // The state of a quantised tensor is JSON, whose spacing is free.
        let state = |map: &mut BTreeMap<String, (Vec<usize>, Vec<u8>)>| -> Vec<(String, Value)> {
            let names: Vec<String> =
                map.keys().filter(|name| name.contains("quant_state")).cloned().collect();
            names
                .into_iter()
                .map(|n| (n.clone(), serde_json::from_slice(&map.remove(&n).unwrap().1).unwrap()))
                .collect()
        };
        assert_eq!(state(&mut source), state(&mut saved), "{path}");
        assert_eq!(source, saved, "{path}");
        let json = |dir: &Path| -> Value {
            serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()
        };
        assert_eq!(json(&golden(path)), json(&first), "{path}");
    }
}

#[test]
fn shards_hold_no_more_than_they_may_and_read_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let model = read(&golden("models/llama_sharded"));
    let options = SaveOptions { max_shard_bytes: 20_000, ..SaveOptions::default() };
    std::fs::write(dir.path().join("model.safetensors"), "an older model").unwrap();
    save_into(&model, dir.path(), &options).unwrap();
    let files = contents(dir.path());
    let shards: Vec<&String> = files.keys().filter(|name| name.contains("-of-")).collect();
    assert!(shards.len() > 2 && !files.contains_key("model.safetensors"), "{shards:?}");
    assert!(shards.iter().all(|name| files[*name].len() < 20_000 + 2_000), "headers are below 2 kB here");
    let again = read(dir.path());
    for ((_, a), (_, b)) in model.params.iter().zip(again.params.iter()) {
        assert_eq!((&a.name, a.weight.to_f32()), (&b.name, b.weight.to_f32()));
    }
}

#[test]
fn types_change_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    let options = SaveOptions { dtype: Some(Dtype::Bf16), ..SaveOptions::default() };
    save(&read(&golden("models/llama")), &path, &options, |folder| {
        std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
        Ok(())
    })
    .unwrap();
    assert!(path.join("tokenizer.json").exists());
    let model = read(&path);
    assert!(model.params.iter().all(|(_, p)| p.weight.dtype_name() == "bf16"));
    assert_eq!(model.config.raw()["torch_dtype"], "bfloat16");
    assert_eq!(model.generation_config.as_ref().unwrap()["eos_token_id"], 2);
    let as_f16 = read(&golden("models/llama_f16"));
    assert!(as_f16.params.iter().all(|(_, p)| p.weight.dtype_name() == "f32"), "f32 holds f16 exactly");
}

#[test]
fn only_linear_layers_of_the_decoder_are_quantised() {
    for (quantise, name) in [
        (Quantise::Nf4 { double: false }, "nf4"),
        (Quantise::Nf4 { double: true }, "nf4"),
        (Quantise::Int8, "int8"),
    ] {
        let options =
            LoadOptions { dtype: Some(Dtype::Bf16), quantise: Some(quantise), ..LoadOptions::default() };
        let mut model = load(&golden("models/llama"), &options).unwrap();
        for (_, param) in model.params.iter() {
            let expected = if param.name.ends_with("_proj.weight") { name } else { "bf16" };
            assert_eq!(param.weight.dtype_name(), expected, "{}", param.name);
        }
        assert!(model.train_all().unwrap_err().to_string().contains("cannot train"));
        let dir = tempfile::tempdir().unwrap();
        save_into(&model, dir.path(), &SaveOptions::default()).unwrap();
        let again = read(dir.path());
        assert!(matches!(
            again.config.quantisation,
            Some(StoredQuantisation::Nf4 | StoredQuantisation::Int8)
        ));
        for ((_, a), (_, b)) in model.params.iter().zip(again.params.iter()) {
            assert_eq!(a.weight.to_f32(), b.weight.to_f32(), "{}", a.name);
        }
        let twice = load(dir.path(), &options).unwrap_err().to_string();
        assert!(twice.contains("already"), "{twice}");
    }
}

#[test]
fn an_adapter_must_be_merged_before_the_model_is_saved() {
    let mut model = read(&golden("models/llama"));
    let config = serde_json::from_value(serde_json::json!({"rank": 2, "alpha": 4})).unwrap();
    model.attach_lora(&config, 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = save_into(&model, dir.path(), &SaveOptions::default()).unwrap_err().to_string();
    assert!(error.contains("merge") && contents(dir.path()).is_empty(), "{error}");
}

/// Shapes and bytes by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

/// A folder with a model to break.
struct Broken {
    dir: tempfile::TempDir,
}

impl Broken {
    fn of(name: &str) -> Broken {
        let dir = tempfile::tempdir().unwrap();
        for (file, bytes) in contents(&golden("models").join(name)) {
            std::fs::write(dir.path().join(file), bytes).unwrap();
        }
        Broken { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn edit_config(&self, key: &str, value: Value) {
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(self.path("config.json")).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(self.path("config.json"), config.to_string()).unwrap();
    }

    /// Rewrites the tensors: f32 values by name and shape.
    fn edit_tensors(&self, edit: impl FnOnce(&mut Tensors)) {
        self.edit_file("model.safetensors", edit);
    }

    fn edit_file(&self, name: &str, edit: impl FnOnce(&mut Tensors)) {
        let bytes = std::fs::read(self.path(name)).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut map =
            file.tensors().into_iter().map(|(n, v)| (n, (v.shape().to_vec(), v.data().to_vec()))).collect();
        edit(&mut map);
        let views = map.iter().map(|(name, (shape, data))| {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data);
            (name.as_str(), view.unwrap())
        });
        std::fs::write(self.path(name), safetensors::serialize(views, None).unwrap()).unwrap();
    }

    #[track_caller]
    fn fails_with(&self, expected: &[&str]) {
        let options = LoadOptions { dtype: Some(Dtype::F32), ..LoadOptions::default() };
        let message = load(self.dir.path(), &options).expect_err("a broken model").to_string();
        for part in expected {
            assert!(message.contains(part), "{message} should mention {part}");
        }
    }
}

#[test]
fn broken_files_say_what_is_broken() {
    let check = |breakage: &dyn Fn(&Broken), expected: &[&str]| {
        let broken = Broken::of("llama");
        breakage(&broken);
        broken.fails_with(expected);
    };
    let bytes = |b: &Broken| std::fs::read(b.path("model.safetensors")).unwrap();
    let write = |b: &Broken, bytes: &[u8]| std::fs::write(b.path("model.safetensors"), bytes).unwrap();
    check(&|b| write(b, &bytes(b)[..20_000]), &["has 20000 bytes", "truncated"]);
    check(&|b| write(b, &bytes(b)[..100]), &["has 100 bytes", "truncated"]);
    check(&|b| write(b, &[]), &["has 0 bytes"]);
    check(&|b| write(b, &[bytes(b), vec![0; 5]].concat()), &["damaged"]);
    check(
        &|b| write(b, b"version https://git-lfs.github.com/spec/v1"),
        &["Git LFS", "not a safetensors file"],
    );
    check(
        &|b| {
            let mut all = bytes(b);
            all[9] = b'{';
            write(b, &all)
        },
        &["header is damaged"],
    );
    check(&|b| std::fs::remove_file(b.path("model.safetensors")).unwrap(), &["no model.safetensors"]);
    check(&|b| std::fs::remove_file(b.path("config.json")).unwrap(), &["config.json", "reading"]);
    check(&|b| std::fs::write(b.path("config.json"), "{").unwrap(), &["config.json", "not valid JSON"]);
    check(
        &|b| std::fs::rename(b.path("model.safetensors"), b.path("pytorch_model.bin")).unwrap(),
        &["pickles", "convert"],
    );
    check(
        &|b| std::fs::rename(b.path("model.safetensors"), b.path("adapter_model.safetensors")).unwrap(),
        &["adapter", "base model"],
    );
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let check = |edit: &dyn Fn(&mut Tensors), expected: &[&str]| {
        let broken = Broken::of("llama");
        broken.edit_tensors(|map| edit(map));
        broken.fails_with(expected);
    };
    let k = "model.layers.1.self_attn.k_proj.weight";
    check(&|map| drop(map.remove(k)), &[k, "1 tensors are missing"]);
    check(&|map| drop(map.remove("lm_head.weight")), &["lm_head.weight", "tie_word_embeddings"]);
    check(
        &|map| drop(map.insert("visual.patch".into(), (vec![1], vec![0; 4]))),
        &["visual.patch", "LlamaForCausalLM"],
    );
    check(&|map| map.get_mut(k).unwrap().0.reverse(), &[k, "[32, 16]", "expected [16, 32]"]);
    let nan = |map: &mut Tensors| map.get_mut(k).unwrap().1[20..24].copy_from_slice(&f32::NAN.to_le_bytes());
    check(&nan, &[k, "NaN", "element 5"]);
    check(
        &|map| {
            *map = std::mem::take(map).into_iter().map(|(n, t)| (n.replacen("model.", "", 1), t)).collect()
        },
        &["prefix", "ForCausalLM"],
    );

    // Values a type cannot hold are an error, too, not an infinity.
    let broken = Broken::of("llama");
    broken.edit_tensors(|map| map.get_mut(k).unwrap().1[0..4].copy_from_slice(&f32::MAX.to_le_bytes()));
    assert!(load(broken.dir.path(), &LoadOptions::default()).is_ok());
    let bf16 = LoadOptions { dtype: Some(Dtype::Bf16), ..LoadOptions::default() };
    let message = load(broken.dir.path(), &bf16).unwrap_err().to_string();
    assert!(message.contains("inf") && message.contains(k), "{message}");

    let broken = Broken::of("llama");
    broken.edit_config("attention_bias", true.into());
    broken.fails_with(&["q_proj.bias", "biases"]);
    let broken = Broken::of("llama");
    broken.edit_config("num_hidden_layers", 1.into());
    broken.fails_with(&["model.layers.1", "9 tensors have no place"]);
    let broken = Broken::of("llama");
    broken.edit_config("tie_word_embeddings", true.into());
    broken.fails_with(&["lm_head.weight", "differs from the embedding"]);
}

#[test]
fn a_tied_head_that_equals_the_embedding_and_computed_buffers_are_ignored() {
    let broken = Broken::of("llama_tied");
    broken.edit_tensors(|map| {
        map.insert("lm_head.weight".into(), map["model.embed_tokens.weight"].clone());
        map.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), (vec![1], vec![0; 4]));
    });
    assert_eq!(read(broken.dir.path()).params.len(), read(&golden("models/llama_tied")).params.len());
}

#[test]
fn broken_shards_are_named() {
    let shard = "model-00002-of-00003.safetensors";
    let broken = Broken::of("llama_sharded");
    std::fs::remove_file(broken.path(shard)).unwrap();
    broken.fails_with(&[shard, "missing shard"]);
    let edit_index = |from: &str, to: &str, expected: &[&str]| {
        let broken = Broken::of("llama_sharded");
        let index = broken.path("model.safetensors.index.json");
        let text = std::fs::read_to_string(&index).unwrap();
        std::fs::write(&index, text.replacen(from, to, 1)).unwrap();
        broken.fails_with(expected);
    };
    edit_index("weight_map", "weight_mapp", &["`weight_map` is missing"]);
    edit_index("model-00001", "../model-00001", &["file name in this folder"]);
    edit_index("model-00001-of", "model-00003-of", &["but it is not"]);
    let broken = Broken::of("llama_sharded");
    std::fs::copy(broken.path("model-00001-of-00003.safetensors"), broken.path(shard)).unwrap();
    broken.fails_with(&[shard, "download both again"]);
    let broken = Broken::of("llama_sharded");
    broken.edit_file(shard, |map| {
        drop(map.insert("lm_head.weight".into(), (vec![112, 32], vec![0; 112 * 32 * 4])))
    });
    broken.fails_with(&["`lm_head.weight` is also in", "model-00001"]);
}

/// Whatever the bytes, the answer is a model or an error.
#[test]
fn damaged_bytes_never_panic() {
    let broken = Broken::of("llama_sharded");
    let stream = pt_core::rng::Stream::new(1, "damage");
    let mut refused = 0;
    for (file_idx, (name, original)) in contents(broken.dir.path()).iter().enumerate() {
        for trial in 0..60 {
            let mut draws = stream.at((file_idx * 1000 + trial) as u64);
            let mut bytes = original.clone();
            // Headers and JSON are at the front.
            let reach = bytes.len().min(1500);
            for _ in 0..=draws.below(3) {
                bytes[draws.below(reach)] = draws.next_u32() as u8;
            }
            if draws.below(4) == 0 {
                bytes.truncate(draws.below(original.len()));
            }
            std::fs::write(broken.path(name), bytes).unwrap();
            refused += usize::from(load(broken.dir.path(), &LoadOptions::default()).is_err());
        }
        std::fs::write(broken.path(name), original).unwrap();
    }
    assert!(refused > 150, "{refused} of 360 damaged folders were refused");
}

/// The library that writes safetensors makes them readable for their owner alone.
#[cfg(unix)]
#[test]
fn weights_may_be_read_by_whoever_may_read_the_configuration() {
    use std::os::unix::fs::PermissionsExt;
    let model = load_golden("models/llama", pt_engine::Dtype::F32);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    pt_models::save(&model, &out, &pt_models::SaveOptions::default(), |_| Ok(())).unwrap();
    let mode = |name: &str| std::fs::metadata(out.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("model.safetensors"), mode("config.json"));
    assert_eq!(
        std::fs::read_dir(&out).unwrap().filter(|e| e.as_ref().unwrap().path().ends_with("partial")).count(),
        0
    );
}
