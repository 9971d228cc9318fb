//! The cache of tokenised rows is keyed by everything that decides them.

mod common;

use common::*;
use pt_pipeline::{Surroundings, prepare};

/// Enough rows to be kept.
const MANY: &str = "
[[stage]]
type = \"sft\"
data.train = [\"generated:letters?level=2&n=2500&seed=2\"]
train.steps = 2
";

#[test]
fn another_length_is_another_cache_however_longer_rows_are_treated() {
    let dir = tempdir();
    let around =
        Surroundings { hf_home: None, cache_dir: Some(dir.path().join("cache")), memory_bytes: None };
    let text = format!("{NEW_MODEL}{MANY}");
    let rows = |sets: &[&str]| {
        let prepared = prepare(recipe(&text, sets), &around).unwrap_or_else(|error| panic!("{error}"));
        let train = &prepared.plan.stages[0].data.train[0];
        (train.rows, train.tokens, train.rows_dropped)
    };
    let drop = "stage.0.data.truncation=\"drop\"";
    let (all, _, none) = rows(&[drop, "stage.0.data.max_length=200"]);
    assert_eq!((all, none), (2500, 0));
    let (some, tokens, dropped) = rows(&[drop, "stage.0.data.max_length=40"]);
    assert!(
        dropped > 0 && some + dropped == 2500 && tokens <= some * 40,
        "{some} rows, {tokens} tokens, {dropped} dropped"
    );
    assert_eq!(
        rows(&[drop, "stage.0.data.max_length=40"]),
        (some, tokens, dropped),
        "from the cache the same"
    );

    let error = "stage.0.data.truncation=\"error\"";
    rows(&[error, "stage.0.data.max_length=200"]);
    let refused = prepare(recipe(&text, &[error, "stage.0.data.max_length=40"]), &around);
    assert!(refused.is_err_and(|e| e.to_string().contains("max_length")), "a warm cache hides no long row");
}

#[test]
fn a_model_beyond_memory_is_refused_before_it_is_made() {
    let around = Surroundings { hf_home: None, cache_dir: None, memory_bytes: Some(64 << 20) };
    let text = format!("{NEW_MODEL}{SFT}");
    assert!(prepare(recipe(&text, &[]), &around).is_ok());
    let huge = [
        "model.new.hidden_size=32768",
        "model.new.num_hidden_layers=1024",
        "model.new.num_attention_heads=256",
    ];
    let refused =
        prepare(recipe(&text, &huge), &around).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("GiB"), "{refused}");
}
