//! The two TinyStories models against the reference computed from their files in double precision.

mod common;

use std::path::{Path, PathBuf};

use common::*;
use pt_core::testdata::shared_data;
use pt_engine::{Dtype, Tape};
use pt_models::{LoadOptions, Model, SaveOptions, llama2c, load, save};
use serde_json::Value;

/// The reference is rounded to five decimals and was computed in `f64`.
const TOLERANCE: f32 = 1e-3;

fn models(data: &Path) -> [(PathBuf, PathBuf); 2] {
    [("stories260K", "stories260K.bin"), ("llama2xs", "model.bin")]
        .map(|(dir, file)| (data.join(dir).join(file), data.join(dir).join("reference.json")))
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Logits after the last token.
fn next_logits(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let batch = packed(&[tokens.to_vec()]);
    let mut tape = Tape::inference(&model.params, &batch, Dtype::F32);
    let hidden = model.arch.hidden(&mut tape, false);
    let row = [tokens.len() as u32 - 1];
    tape.logits(&hidden, model.arch.head(), &row, &model.arch.logprob_options()).to_f32()
}

fn check_scores(model: &Model, reference: &Value) {
    for score in reference["score"].as_array().unwrap() {
        let tokens = ids(&score["ids"]);
        let expected: Vec<f32> = serde_json::from_value(score["logprobs"].clone()).unwrap();
        let found = logprobs(model, std::slice::from_ref(&tokens), Dtype::F32);
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!((found - expected).abs() < TOLERANCE, "token {i}: {found} and {expected}");
        }
        let logits = next_logits(model, &tokens);
        for pair in score["next_top8_logits"].as_array().unwrap() {
            let (token, expected) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap() as f32);
            assert!(
                (logits[token] - expected).abs() < TOLERANCE,
                "{token}: {} and {expected}",
                logits[token]
            );
        }
    }
}

fn check_greedy(model: &Model, reference: &Value) {
    for greedy in reference["greedy"].as_array().unwrap() {
        let (mut tokens, expected) = (ids(&greedy["prompt_ids"]), ids(&greedy["ids"]));
        while tokens.len() < expected.len() {
            let logits = next_logits(model, &tokens);
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            tokens.push(best as u32);
        }
        assert_eq!(tokens, expected);
    }
}

#[test]
fn llama2c_models_score_and_continue_as_their_reference() {
    let Some(data) = shared_data() else { return };
    for (file, reference) in models(&data) {
        let model = llama2c::import(&file, Dtype::F32).unwrap();
        let reference: Value = serde_json::from_slice(&std::fs::read(reference).unwrap()).unwrap();
        check_scores(&model, &reference);
        check_greedy(&model, &reference);
    }
}

#[test]
fn an_imported_model_saved_and_loaded_gives_the_same_bits() {
    let Some(data) = shared_data() else { return };
    let dir = tempfile::tempdir().unwrap();
    let model = llama2c::import(&models(&data)[0].0, Dtype::F32).unwrap();
    let path = dir.path().join("stories");
    save(&model, &path, &SaveOptions::default(), |_| Ok(())).unwrap();
    let again = load(&path, &LoadOptions::default()).unwrap();
    let tokens = [1, 403, 407, 261, 378];
    assert_eq!(bits(&next_logits(&model, &tokens)), bits(&next_logits(&again, &tokens)));
}
