//! Reward models: their files are transformers', and so are their scores.

mod common;

use std::path::Path;

use common::*;
use pt_engine::{Dtype, Tape};
use pt_models::{LoadOptions, LoraConfig, Model, SaveOptions, ScoreHeadKind, load, save};
use serde_json::Value;

fn heads() -> Value {
    serde_json::from_slice(&std::fs::read(golden("preference_train/heads.json")).unwrap()).unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Scores of every token, or of the last one.
fn scores(model: &Model, tokens: &[u32], kind: ScoreHeadKind) -> Vec<f32> {
    let batch = packed(&[tokens.to_vec()]);
    let mut tape = Tape::inference(&model.params, &batch, Dtype::F32);
    let hidden = model.arch.hidden(&mut tape, false);
    let last = tokens.len() as u32 - 1;
    let rows: Vec<u32> = if kind == ScoreHeadKind::Sequence { vec![last] } else { (0..=last).collect() };
    tape.score_head(&hidden, model.score_head().expect("a score head"), &rows).value().to_f32()
}

fn read_scorer(dir: &Path) -> Model {
    let options = LoadOptions { score_head: true, ..LoadOptions::default() };
    load(dir, &options).unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn with_head(name: &str, kind: ScoreHeadKind, n_outputs: usize) -> Model {
    let mut model = load_golden(&format!("models/{name}"), Dtype::F32);
    model.add_score_head(kind, &numbers::<f32>(&heads()["heads"][n_outputs.to_string()])).unwrap();
    model
}

fn kind_of(class: &str) -> ScoreHeadKind {
    if class.ends_with("ForTokenClassification") { ScoreHeadKind::Token } else { ScoreHeadKind::Sequence }
}

#[test]
fn files_and_scores_are_those_of_transformers_for_every_architecture() {
    let heads = heads();
    let tokens: Vec<u32> = numbers(&heads["tokens"]);
    let cases = heads["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 23);
    for case in cases {
        let (name, class) = (case["model"].as_str().unwrap(), case["architectures"][0].as_str().unwrap());
        let (kind, n_outputs) = (kind_of(class), case["n_outputs"].as_u64().unwrap() as usize);
        let model = with_head(name, kind, n_outputs);
        assert_close(class, &scores(&model, &tokens, kind), &numbers::<f64>(&case["scores"]));
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        save(&model, &first, &SaveOptions::default(), |_| Ok(())).unwrap();
        let names: Vec<String> = tensors(&first.join("model.safetensors")).into_keys().collect();
        // transformers names a tied head twice in its state, and writes it once.
        assert_eq!(names, numbers::<String>(&case["tensors"]), "{name} {class}");
        let config = json_file(&first.join("config.json"));
        assert_eq!(config["architectures"], case["architectures"]);
        assert_eq!(config["id2label"].as_object().unwrap().len(), n_outputs);
        assert_eq!(config["label2id"]["LABEL_0"], 0);
        let again = read_scorer(&first);
        assert_eq!(again.score_head_kind(), Some(kind));
        assert_eq!(scores(&again, &tokens, kind), scores(&model, &tokens, kind), "{name} {class}");
        assert!(again.params.iter().all(|(_, param)| !param.trainable), "nothing trains yet");
        save(&again, &second, &SaveOptions::default(), |_| Ok(())).unwrap();
        for file in ["config.json", "model.safetensors"] {
            let bytes = |dir: &Path| std::fs::read(dir.join(file)).unwrap();
            assert_eq!(bytes(&first), bytes(&second), "{name} {class} {file}");
        }
    }
}

/// Texts of several lengths: transformers pads them, on the left or on the right, and reads the last token that is no padding;
/// here nothing is padded, and the last token of each is read, whatever else is in the batch.
#[test]
fn scores_are_those_of_transformers_padded_batches() {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(golden("preference_train/padded.json")).unwrap()).unwrap();
    let texts: Vec<Vec<u32>> = numbers(&golden["texts"]);
    let n_outputs = golden["n_outputs"].as_u64().unwrap() as usize;
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    let kind = ScoreHeadKind::Sequence;
    for case in cases {
        let name = case["model"].as_str().unwrap();
        let model = with_head(name, kind, n_outputs);
        let dir = tempfile::tempdir().unwrap();
        save(&model, &dir.path().join("saved"), &SaveOptions::default(), |_| Ok(())).unwrap();
        let again = read_scorer(&dir.path().join("saved"));
        let batch = packed(&texts);
        let mut tape = Tape::inference(&again.params, &batch, Dtype::F32);
        let hidden = again.arch.hidden(&mut tape, false);
        let mut end = 0;
        let last = texts.iter().map(|text| {
            end += text.len() as u32;
            end - 1
        });
        let rows: Vec<u32> = last.collect();
        let together =
            tape.score_head(&hidden, again.score_head().expect("a score head"), &rows).value().to_f32();
        for (i, text) in texts.iter().enumerate() {
            let expected = numbers::<f64>(&case["scores"][i]);
            assert_close(name, &scores(&model, text, kind), &expected);
            assert_close(name, &together[i * n_outputs..(i + 1) * n_outputs], &expected);
        }
    }
}

/// transformers would take the end of a text for padding, and read the score before it.
#[test]
fn a_pad_token_that_ends_texts_is_not_written() {
    for (ends, expected) in [([2], Value::Null), ([7], 2.into())] {
        let mut model = with_head("phi3", ScoreHeadKind::Sequence, 1);
        assert_eq!(model.config.raw()["pad_token_id"], 2);
        model.config.refuse_pad_tokens(&ends);
        let dir = tempfile::tempdir().unwrap();
        save(&model, dir.path(), &SaveOptions::default(), |_| Ok(())).unwrap();
        assert_eq!(json_file(&dir.path().join("config.json"))["pad_token_id"], expected);
    }
}

#[test]
fn adapters_of_reward_models_are_those_of_peft() {
    let heads = heads();
    let tokens: Vec<u32> = numbers(&heads["tokens"]);
    let kind = ScoreHeadKind::Sequence;
    let mut model = load_golden("models/llama", Dtype::F32);
    model.attach_peft(&golden("preference_train/peft_reward")).unwrap();
    assert_close("PEFT's", &scores(&model, &tokens, kind), &numbers::<f64>(&heads["peft_reward"]));
    let dir = tempfile::tempdir().unwrap();
    model.save_peft(dir.path(), Some("golden/models/llama")).unwrap();
    let peft = golden("preference_train/peft_reward");
    let weights = "adapter_model.safetensors";
    assert_eq!(tensors(&dir.path().join(weights)), tensors(&peft.join(weights)));
    let [ours, theirs] = [dir.path(), &peft].map(|dir| json_file(&dir.join("adapter_config.json")));
    assert_eq!(ours["task_type"], theirs["task_type"]);
    assert_eq!(ours["modules_to_save"][0], "score");
    let mut again = load_golden("models/llama", Dtype::F32);
    again.attach_peft(dir.path()).unwrap();
    assert_eq!(scores(&again, &tokens, kind), scores(&model, &tokens, kind));
    // Merged, it is a reward model of its own.
    again.merge_adapter(Dtype::F32).unwrap();
    let merged = dir.path().join("merged");
    save(&again, &merged, &SaveOptions::default(), |_| Ok(())).unwrap();
    assert_close(
        "merged",
        &scores(&read_scorer(&merged), &tokens, kind),
        &numbers::<f64>(&heads["peft_reward"]),
    );
}

#[test]
fn a_new_adapter_brings_its_head_along() {
    for (kind, task, n_outputs) in
        [(ScoreHeadKind::Sequence, "SEQ_CLS", 3), (ScoreHeadKind::Token, "TOKEN_CLS", 2)]
    {
        let mut model = load_golden("models/llama", Dtype::F32);
        let lora: LoraConfig = serde_json::from_value(serde_json::json!({"rank": 2, "alpha": 4.0})).unwrap();
        model.attach_lora(&lora, 5).unwrap();
        model.add_score_head(kind, &numbers::<f32>(&heads()["heads"][n_outputs.to_string()])).unwrap();
        let dir = tempfile::tempdir().unwrap();
        model.save_peft(dir.path(), None).unwrap();
        assert_eq!(json_file(&dir.path().join("adapter_config.json"))["task_type"], task);
        let names: Vec<String> = tensors(&dir.path().join("adapter_model.safetensors")).into_keys().collect();
        let has = |name: &str| names.iter().any(|n| n == name);
        assert!(has("base_model.model.score.weight"), "{names:?}");
        assert_eq!(has("base_model.model.score.bias"), kind == ScoreHeadKind::Token, "{names:?}");
        let mut again = load_golden("models/llama", Dtype::F32);
        again.attach_peft(dir.path()).unwrap();
        let tokens = [5, 17, 3];
        assert_eq!(scores(&again, &tokens, kind), scores(&model, &tokens, kind), "{task}");
    }
}

/// A bias is read, used and written, whole and beside an adapter, and survives a merge; zeros are none.
#[test]
fn a_bias_goes_through_files() {
    let tokens = [5, 17, 3];
    for (kind, n_outputs) in [(ScoreHeadKind::Token, 2), (ScoreHeadKind::Sequence, 3)] {
        let plain = with_head("llama", kind, n_outputs);
        let bias: Vec<f32> = (0..n_outputs).map(|i| 0.5 - i as f32).collect();
        let expected: Vec<f32> = scores(&plain, &tokens, kind)
            .chunks(n_outputs)
            .flat_map(|row| row.iter().zip(&bias).map(|(score, b)| score + b).collect::<Vec<f32>>())
            .collect();
        // One addition in another precision.
        let close = |found: Vec<f32>| found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6);
        let mut model = with_head("llama", kind, n_outputs);
        model.set_score_bias(&bias);
        assert!(close(scores(&model, &tokens, kind)), "{kind:?}");
        let dir = tempfile::tempdir().unwrap();
        save(&model, &dir.path().join("whole"), &SaveOptions::default(), |_| Ok(())).unwrap();
        let again = read_scorer(&dir.path().join("whole"));
        assert_eq!(scores(&again, &tokens, kind), scores(&model, &tokens, kind));

        let mut adapted = load_golden("models/llama", Dtype::F32);
        let lora: LoraConfig = serde_json::from_value(serde_json::json!({"rank": 2, "alpha": 4.0})).unwrap();
        adapted.attach_lora(&lora, 5).unwrap();
        adapted.add_score_head(kind, &numbers::<f32>(&heads()["heads"][n_outputs.to_string()])).unwrap();
        adapted.set_score_bias(&bias);
        let folder = dir.path().join("adapter");
        std::fs::create_dir(&folder).unwrap();
        adapted.save_peft(&folder, None).unwrap();
        let mut again = load_golden("models/llama", Dtype::F32);
        again.attach_peft(&folder).unwrap();
        assert_eq!(scores(&again, &tokens, kind), scores(&adapted, &tokens, kind));
        again.merge_adapter(Dtype::F32).unwrap();
        assert!(close(scores(&again, &tokens, kind)), "{kind:?}, merged");

        // The adapter's head takes the place of the one its base has, bias and all, and trains.
        let mut based = load_golden("models/llama", Dtype::F32);
        based.add_score_head(kind, &vec![0.5; n_outputs * based.config.hidden_size]).unwrap();
        based.set_score_bias(&vec![9.0; n_outputs]);
        based.freeze();
        based.attach_peft(&folder).unwrap();
        assert_eq!(scores(&based, &tokens, kind), scores(&adapted, &tokens, kind));
        let head = based.score_head().unwrap();
        assert!(
            [Some(head.weight), head.bias].into_iter().flatten().all(|id| based.params.get(id).trainable)
        );

        let mut zero = with_head("llama", kind, n_outputs);
        zero.set_score_bias(&vec![0.0; n_outputs]);
        save(&zero, &dir.path().join("zero"), &SaveOptions::default(), |_| Ok(())).unwrap();
        assert!(read_scorer(&dir.path().join("zero")).score_head().unwrap().bias.is_none());
    }
}

#[test]
fn a_value_head_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    save(&with_head("llama", ScoreHeadKind::Value, 1), dir.path(), &SaveOptions::default(), |_| Ok(()))
        .unwrap();
    let plain = load(dir.path(), &LoadOptions::default()).unwrap();
    assert!(plain.score_head().is_none());
}

#[test]
fn what_cannot_be_is_said() {
    let check = |problem: Result<Model, pt_models::ModelError>, parts: &[&str]| {
        let message = problem.expect_err("an error").to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message} should mention {parts:?}");
    };
    let save_head = |kind, n_outputs, change: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        save(&with_head("llama", kind, n_outputs), dir.path(), &SaveOptions::default(), |_| Ok(())).unwrap();
        change(dir.path());
        dir
    };
    let scorer = LoadOptions { score_head: true, ..LoadOptions::default() };
    let plain = save_head(ScoreHeadKind::Sequence, 1, &|_| ());
    check(
        load(plain.path(), &LoadOptions::default()),
        &["LlamaForSequenceClassification", "no head over the vocabulary"],
    );
    let labels = save_head(ScoreHeadKind::Sequence, 1, &|dir| {
        let mut config = json_file(&dir.join("config.json"));
        config["id2label"] = serde_json::json!({"0": "bad", "1": "good"});
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    });
    check(load(labels.path(), &scorer), &["score.weight", "[1, 32]", "[2, 32]"]);
    let mut gemma = load_golden("models/gemma3", Dtype::F32);
    let values = vec![0.0; 2 * gemma.config.hidden_size];
    let refused = gemma.add_score_head(ScoreHeadKind::Token, &values).map(|_| gemma);
    check(refused, &["Gemma3ForCausalLM", "Token"]);
    let mut other = with_head("llama", ScoreHeadKind::Sequence, 1);
    let refused = other.add_score_head(ScoreHeadKind::Sequence, &[0.0; 64]).map(|_| other);
    check(refused, &["of 1 outputs", "one of 2"]);
}

/// The bias that transformers' process reward models may have.
#[test]
fn a_bias_that_is_not_zero_is_read() {
    use safetensors::SafeTensors;
    let dir = tempfile::tempdir().unwrap();
    save(&with_head("llama", ScoreHeadKind::Token, 2), dir.path(), &SaveOptions::default(), |_| Ok(()))
        .unwrap();
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let bias = [0.0f32, 0.5].map(f32::to_le_bytes).concat();
    let with_bias = file.tensors().into_iter().map(|(name, view)| match name.as_str() {
        "score.bias" => {
            (name, safetensors::tensor::TensorView::new(view.dtype(), view.shape().to_vec(), &bias).unwrap())
        }
        _ => (name, view),
    });
    let changed = safetensors::serialize(with_bias.collect::<Vec<_>>(), None).unwrap();
    std::fs::write(&path, changed).unwrap();
    let tokens = [5, 17, 3];
    let kind = ScoreHeadKind::Token;
    let plain = scores(&with_head("llama", kind, 2), &tokens, kind);
    let found = scores(&read_scorer(dir.path()), &tokens, kind);
    for (row, plain) in found.chunks(2).zip(plain.chunks(2)) {
        // One addition in another precision.
        assert!(row[0] == plain[0] && (row[1] - plain[1] - 0.5).abs() < 1e-6, "{row:?} and {plain:?}");
    }
}
