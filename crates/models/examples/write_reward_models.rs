//! Writes a reward model of every architecture that has a sequence classifier, for `golden/preference_train/padded_scores.py`.
//!
//! ```sh
//! cargo run -p pt-models --example write_reward_models -- DIR
//! ```
use std::error::Error;
use std::path::PathBuf;

use pt_core::testdata::workspace_root;
use pt_models::{LoadOptions, SaveOptions, ScoreHeadKind, load, save};
use serde_json::Value;

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(std::env::args().nth(1).ok_or("write_reward_models DIR")?);
    let golden = workspace_root().join("golden");
    let read = |name: &str| -> Result<Value, Box<dyn Error>> {
        Ok(serde_json::from_slice(&std::fs::read(golden.join("preference_train").join(name))?)?)
    };
    let (padded, heads) = (read("padded.json")?, read("heads.json")?);
    let head: Vec<f32> = serde_json::from_value(heads["heads"][padded["n_outputs"].to_string()].clone())?;
    for case in padded["cases"].as_array().ok_or("cases")? {
        let name = case["model"].as_str().ok_or("a name")?;
        let mut model = load(&golden.join("models").join(name), &LoadOptions::default())?;
        model.add_score_head(ScoreHeadKind::Sequence, &head)?;
        save(&model, &out.join(name), &SaveOptions::default(), |_| Ok(()))?;
    }
    Ok(())
}
