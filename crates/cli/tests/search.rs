//! Labels of steps by rollouts, a process reward model trained on them, and search with it.

mod common;

use common::*;
use serde_json::{Value, json};

/// Solutions of two steps; the verifier asks for a letter, so that random completions are right now and then.
fn solutions(fixture: &Fixture, n: usize) {
    let row = |i: usize| json!({"prompt": format!("one {i}"), "completion": format!("two {i}\nthree e"), "letter": "e"});
    let rows: Vec<String> = (0..n).map(|i| row(i).to_string()).collect();
    fixture.write("solutions.jsonl", &(rows.join("\n") + "\n"));
}

const LABEL: &[&str] = &[
    "data",
    "step-labels",
    "--model",
    "model",
    "--data",
    "solutions.jsonl",
    "--verifier",
    "contains",
    "--set",
    "required=[\"e\"]",
    "--rollouts",
    "4",
    "--max-new-tokens",
    "6",
    "--seed",
    "3",
];

fn label(fixture: &Fixture, out: &str, more: &[&str]) -> Vec<Value> {
    let outcome = fixture.run(&[LABEL, &["--out", out], more].concat()).ok();
    assert!(outcome.stderr.contains("labelled"), "{}", outcome.stderr);
    json_lines(&fixture.read(out))
}

#[test]
fn steps_are_labelled_by_where_they_lead() {
    let fixture = Fixture::new();
    solutions(&fixture, 6);
    let soft = label(&fixture, "soft.jsonl", &[]);
    assert_eq!(soft.len(), 6);
    for row in &soft {
        assert_eq!(row["completions"].as_array().unwrap().len(), 2);
        assert_eq!(row["letter"], "e", "the other columns stay");
        assert_eq!(row["n_judged"], json!([4, 1]));
        // The solution itself holds an e.
        assert_eq!((&row["n_right"][1], &row["soft_labels"][1]), (&json!(1), &json!(1.0)));
        let share = row["n_right"][0].as_f64().unwrap() / 4.0;
        assert_eq!(row["soft_labels"][0].as_f64(), Some(share));
        assert_eq!(row["labels"], row["soft_labels"]);
        assert_eq!(row["hard_labels"][0], json!(share > 0.0));
    }
    // Seeded: the same again, and the same whatever else is labelled; another seed draws others.
    assert_eq!(label(&fixture, "again.jsonl", &[]), soft);
    assert_eq!(label(&fixture, "some.jsonl", &["--limit", "2"]), soft[..2]);
    let hard = label(&fixture, "hard.jsonl", &["--labels", "hard"]);
    assert!(hard.iter().zip(&soft).all(|(hard, soft)| hard["labels"] == soft["hard_labels"]));
    let other = [LABEL[..LABEL.len() - 1].to_vec(), vec!["4", "--out", "other.jsonl"]].concat();
    fixture.run(&other).ok();
    assert_ne!(json_lines(&fixture.read("other.jsonl")), soft);
    assert!(!fixture.path().join("soft.jsonl.partial").exists());
}

#[test]
fn labels_train_a_model_that_guides_a_search() {
    let fixture = Fixture::new();
    let task = "generated:sum?level=1&n=6&form=prompt_only";
    // Solutions of the model's own.
    let drawn =
        ["data", "step-labels", "--model", "model", "--data", task, "--solutions", "2", "--rollouts", "2"];
    let drawn = [&drawn[..], &["--max-new-tokens", "8", "--out", "drawn.jsonl"]].concat();
    let outcome = fixture.run(&drawn).ok();
    assert!(
        outcome.stderr.contains("of 12 solutions") || outcome.stderr.contains("left out"),
        "{}",
        outcome.stderr
    );
    solutions(&fixture, 8);
    label(&fixture, "steps.jsonl", &[]);
    fixture.write(
        "prm.toml",
        "seed = 1\n[model]\nbase = \"model\"\ndtype = \"f32\"\n[[stage]]\ntype = \"prm\"\ndata.train = [\"steps.jsonl\"]\n\
         train.rows_per_step = 4\ntrain.steps = 3\noptimizer.learning_rate = 1e-3\n",
    );
    fixture.run(&["run", "prm.toml", "--out", "prm"]).ok();
    let scorer = "prm/stages/01-prm/model";
    let search =
        ["search", "--model", "model", "--data", task, "--n", "2,4", "--max-new-tokens", "8", "--seed", "5"];
    let found = fixture.run(&[&search[..], &["--scorer", scorer, "--out", "found.jsonl"]].concat()).ok();
    for way in ["greedy", "any@2", "any@4", "majority@4", "best_of_n@2", "weighted_majority@4", "beam@4"] {
        assert!(found.stdout.lines().any(|line| line.starts_with(way)), "no {way} in {}", found.stdout);
    }
    let rows = json_lines(&fixture.read("found.jsonl"));
    assert_eq!(rows.len(), 6);
    for row in &rows {
        let samples = row["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 4);
        let score = |sample: &Value| sample["score"].as_f64();
        for sample in samples.iter().filter(|sample| score(sample).is_some()) {
            // The default is the least of the steps.
            let steps: Vec<f64> = serde_json::from_value(sample["step_scores"].clone()).unwrap();
            assert_eq!(score(sample), steps.iter().copied().reduce(f64::min), "{sample}");
            assert!(sample["right"].is_boolean());
        }
        if let Some(best) = row["chosen"]["best_of_n@4"].as_u64() {
            let greatest = samples.iter().filter_map(score).reduce(f64::max);
            assert_eq!(score(&samples[best as usize]), greatest);
        }
    }
    // The same again, bit for bit; without a scorer, what needs none.
    fixture.run(&[&search[..], &["--scorer", scorer, "--out", "again.jsonl"]].concat()).ok();
    assert_eq!(fixture.read("again.jsonl"), fixture.read("found.jsonl"));
    // What is wrong with a scorer is said of the kind that it is.
    std::fs::remove_file(fixture.path().join(scorer).join("model.safetensors")).unwrap();
    let broken = fixture.run(&[&search[..], &["--scorer", scorer]].concat());
    assert!(broken.code == 1 && broken.stderr.contains("safetensors"), "{}", broken.stderr);
    let plain = fixture.run(&search).ok().stdout;
    assert!(
        plain.contains("majority@2") && !plain.contains("best_of_n") && !plain.contains("beam"),
        "{plain}"
    );
}

#[test]
fn what_cannot_be_searched_or_labelled_is_refused() {
    let fixture = Fixture::new();
    solutions(&fixture, 1);
    let search = |more: &'static [&'static str]| {
        [
            &[
                "search",
                "--model",
                "model",
                "--data",
                "solutions.jsonl",
                "--verifier",
                "contains",
                "--set",
                "required=[\"e\"]",
            ],
            more,
        ]
        .concat()
    };
    let label = |more: &'static [&'static str]| [LABEL, more].concat();
    let unknown: Vec<&str> = vec![
        "data",
        "step-labels",
        "--model",
        "model",
        "--data",
        "solutions.jsonl",
        "--out",
        "o",
        "--verifier",
        "mathe",
    ];
    for (args, code, expected) in [
        (search(&["--method", "beam"]), 1, "--method beam needs a scorer"),
        (search(&["--scorer", "model"]), 1, "model is no reward model: it has no score head"),
        (search(&["--temperature", "0"]), 1, "at --temperature 0 all replies are the same"),
        (search(&["--width", "8", "--n", "4"]), 1, "--width 8 keeps more beginnings than --n 4 writes"),
        (search(&["--gold", "nothing"]), 1, "there is no column `nothing`; beside the prompt the row has"),
        (label(&["--out", "-"]), 1, "cannot be gone on with after a stop"),
        (label(&["--out", "o", "--temperature", "0"]), 1, "all 4 completions of a step are the same"),
        (label(&["--out", "o", "--separator", ""]), 2, "expected a text that is not empty"),
        (unknown, 1, "`math`"),
    ] {
        let outcome = fixture.run(&args);
        assert_eq!(outcome.code, code, "{args:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(expected), "{args:?}: {}", outcome.stderr);
    }
}

#[test]
fn a_sweep_of_fused_models_draws_its_front() {
    let [fixture, other] = [Fixture::new(), Fixture::new()];
    // The same model under another adapter, folded in: another model of the same shape.
    other.write_adapter(pt_engine::Dtype::F32);
    other.run(&["merge", "--model", "model", "--adapter", "adapter", "--out", "merged"]).ok();
    let second = other.path().join("merged").display().to_string();
    let models = format!("model,{second}");
    let fuse = ["fuse", "--models", &models, "--sweep", "0,0.5,1", "--limit", "4", "--max-new-tokens", "4"];
    let tasks = "generated:letters?level=1&n=8,generated:chat?level=1&n=8";
    let done = fixture.run(&[&fuse[..], &["--chat", "--benchmarks", tasks, "--out", "swept"]].concat()).ok();
    assert!(done.stderr.contains("the front is drawn in"), "{}", done.stderr);
    let rows = json_lines(&fixture.read("swept/sweep.jsonl"));
    assert_eq!(rows.len(), 3);
    for row in &rows {
        let measures = row["measures"].as_array().unwrap();
        assert_eq!(measures.len(), 2, "{row}");
        assert!(measures.iter().all(|m| m["value"].is_number() && m["higher_is_better"] == true), "{row}");
        assert!(
            fixture.path().join("swept").join(row["model"].as_str().unwrap()).join("results.json").is_file()
        );
    }
    assert!(rows.iter().any(|row| row["on_front"] == true), "one of them no other beats");
    let page = fixture.read("swept/front.html");
    assert!(page.contains("<svg") && page.contains("weight of merged"), "{page}");
    assert_eq!(page.matches("<circle").count(), 3);
    assert!(fixture.read("swept/sweep.md").lines().nth(2).unwrap().contains("| 0 | weight-0 |"));
    // One benchmark is no front, and is refused before anything is fused.
    let one = ["--benchmarks", "generated:chat?level=1", "--out", "one"];
    let refused = fixture.run(&[&fuse[..5], &one].concat());
    assert!(
        refused.code == 1 && refused.stderr.contains("a front is of two benchmarks or more"),
        "{}",
        refused.stderr
    );
    assert!(!fixture.path().join("one").exists());
}
