//! A stage that another run has carried out is taken over, with the bytes that running it again would give.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use pt_pipeline::RunOutcome;

fn taken_over(text: &str, sets: &[&str], out: &Path, reuse: &[PathBuf]) -> Vec<String> {
    let mut seen = Seen::default();
    let outcome = go_reusing(text, sets, out, reuse, &mut seen).unwrap();
    assert!(matches!(outcome, RunOutcome::Finished(_)));
    let taken = seen.notes.iter().filter(|note| note.contains("taken over"));
    taken.map(|note| note.split(':').next().unwrap_or_default().to_owned()).collect()
}

fn lines_of(run: &Path, stage: &str) -> Vec<String> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let of_stage = |line: &&str| line.contains(&format!("\"stage\":\"{stage}\""));
    text.lines().filter(of_stage).map(str::to_owned).collect()
}

#[test]
fn what_is_the_same_is_taken_over_and_what_changed_is_run() {
    let dir = tempdir();
    let text = format!("{NEW_MODEL}{PRETRAIN}{SFT}");
    let first = dir.path().join("first");
    assert!(taken_over(&text, &[], &first, &[]).is_empty());
    let cases: [(&str, &[&str], &[&str]); 4] = [
        ("same", &[], &["pretrain", "sft"]),
        ("later stage changed", &["stage.1.optimizer.learning_rate=1e-3"], &["pretrain"]),
        ("first stage changed", &["stage.0.optimizer.learning_rate=1e-3"], &[]),
        ("seed changed", &["seed=4"], &[]),
    ];
    for (name, sets, expected) in cases {
        let out = dir.path().join(name);
        let taken = taken_over(&text, sets, &out, std::slice::from_ref(&first));
        assert_eq!(taken, expected, "{name}");
        for stage in expected.iter().map(|stage| if *stage == "pretrain" { "01-pretrain" } else { "02-sft" })
        {
            assert_eq!(lines_of(&out, stage), lines_of(&first, stage), "{name}: {stage}");
            let weights =
                |run: &Path| fs::read(run.join(format!("stages/{stage}/model/model.safetensors"))).unwrap();
            assert_eq!(weights(&out), weights(&first), "{name}: {stage}");
        }
    }
    // A run that goes on from what was taken over is the run that did everything itself.
    let alone = dir.path().join("alone");
    taken_over(&text, cases[1].1, &alone, &[]);
    let weights = |run: &Path| fs::read(run.join("stages/02-sft/model/model.safetensors")).unwrap();
    assert_eq!(weights(&alone), weights(&dir.path().join("later stage changed")));
}
