//! What stops training names its cause; what need not stop it does not.

mod common;

use common::*;
use pt_engine::{Dtype, Weight};
use pt_models::Model;
use pt_train::{Example, MicroBatch, TrainError};

const VOCABULARY: usize = 112;
/// A token that the examples below do not use.
const RARE: u32 = 111;

/// A Llama with one value of the embedding of `token` replaced.
fn with_embedding(token: u32, value: f32) -> Model {
    let mut model = all_training(load_golden("llama", Dtype::F32));
    let id = model.params.find("model.embed_tokens.weight").unwrap();
    let param = model.params.get_mut(id);
    assert_eq!(param.shape[0], VOCABULARY);
    let mut values = param.weight.to_f32();
    values[token as usize * param.shape[1] + 3] = value;
    param.weight = Weight::from_f32(&values);
    model
}

fn examples() -> Vec<Example> {
    (0..3).map(|key| random_example(100, 6, 1, key)).collect()
}

#[test]
fn a_prediction_that_is_no_number_names_its_example() {
    for value in [f32::NAN, f32::INFINITY] {
        let mut examples = examples();
        examples[1].token_ids[2] = RARE;
        let mut trainer = Setup::default().trainer(with_embedding(RARE, value));
        let before = trained(&trainer);
        for sizes in [&[3][..], &[1, 2]] {
            let error = trainer.step(&cut(&examples, sizes)).unwrap_err();
            let of_the_example = |token| examples[1].token_ids.contains(&token);
            assert!(
                matches!(error, TrainError::NotFinite { step: 1, token, .. } if of_the_example(token)),
                "{error}"
            );
            let message = error.to_string();
            for part in ["data.jsonl:2", "log-probability", "lower learning rate"] {
                assert!(message.contains(part), "{message} should mention {part}");
            }
        }
        assert_eq!(trainer.steps_done(), 0);
        for (name, values) in trained(&trainer) {
            let same = values.iter().zip(&before[&name]).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{name} is unchanged");
        }
        // Without the example it goes on.
        examples.remove(1);
        trainer.step(&cut(&examples, &[2])).unwrap();
    }
}

#[test]
fn a_token_outside_the_vocabulary_names_its_example() {
    let mut trainer = Setup::default().trainer(with_embedding(RARE, 0.0));
    for position in 0..6 {
        let mut examples = examples();
        examples[2].token_ids[position] = VOCABULARY as u32;
        let batches = cut(&examples, &[1, 2]);
        for error in [trainer.step(&batches).unwrap_err(), trainer.evaluate(&batches).unwrap_err()] {
            assert!(
                matches!(error, TrainError::Vocabulary { token: 112, vocabulary: VOCABULARY, .. }),
                "{error}"
            );
            assert!(error.to_string().contains("data.jsonl:3"), "{error}");
        }
    }
    assert_eq!(trainer.steps_done(), 0);
}

#[test]
fn a_model_in_which_nothing_trains_is_refused() {
    let error = Setup::default().try_trainer(load_golden("llama", Dtype::F32)).err().unwrap();
    assert!(matches!(error, TrainError::NoParameters), "{error}");
}

#[test]
fn a_step_without_targets_is_refused() {
    let mut trainer = Setup::default().trainer(with_embedding(RARE, 0.0));
    let context_only = MicroBatch::new(vec![random_example(100, 5, 5, 0)]);
    for batches in [&[context_only][..], &[]] {
        let error = trainer.step(batches).unwrap_err();
        assert!(matches!(error, TrainError::Objective(_)), "{error}");
    }
}

/// A held-out row on which the model fails: the loss is logged as NaN with a warning that names the row, training goes
/// on, and no checkpoint counts as the best.
#[test]
fn a_held_out_loss_that_is_no_number_is_logged_and_decides_nothing() {
    let mut bad = random_example(100, 6, 1, 40);
    bad.token_ids[2] = RARE;
    let eval = cut(&[random_example(100, 6, 1, 41), bad], &[1, 1]);
    let mut trainer = Setup::default().trainer(with_embedding(RARE, f32::NAN));
    let dir = tempfile::tempdir().unwrap();
    let run = Run { root: dir.path(), options: loop_options(6), keep_last: 9, eval: &eval };
    run.go(&mut trainer, &mut Steps { make: |_| cut(&examples(), &[3]), per_epoch: 1 }, u64::MAX).unwrap();

    let read = |file: &str| std::fs::read_to_string(dir.path().join(file)).unwrap();
    assert_eq!(read("metrics.jsonl").matches("\"eval_loss\":\"NaN\"").count(), 2, "after steps 3 and 6");
    let events = read("events.jsonl");
    let warning = events.lines().find(|line| line.contains("\"warning\"")).expect("a warning");
    for part in ["held-out", "step 3", "data.jsonl:41", "NaN"] {
        assert!(warning.contains(part), "{warning} should mention {part}");
    }
    let saved: Vec<&str> = events.lines().filter(|line| line.contains("checkpoint_saved")).collect();
    assert_eq!(saved.len(), 2, "steps 5 and 6, and none for being the best: {saved:?}");
}
