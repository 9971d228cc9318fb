//! Every documented key changes the plan, and with it what `Plan::hash` identifies, or has the effect it promises on the
//! run folder. A key that is read and never reaches the plan fails here; what the run makes of the plan is tested in
//! end_to_end.rs and, for the keys of recording, below.

mod common;

use std::path::Path;

use common::*;
use pt_recipe::{KeyDoc, Recipe, documented_keys};
use serde_json::Value;

/// A base recipe, two sources, held-out rows.
fn base_recipe(dir: &Path) -> String {
    let rows = |n: usize| -> String {
        let row = |i: usize| {
            format!(
                "{{\"prompt\": \"Say {i}, and then say what comes after it\", \"completion\": \" {i}, {}!\"}}\n",
                i + 1
            )
        };
        (0..n).map(row).collect()
    };
    std::fs::write(dir.join("rows.jsonl"), rows(60)).unwrap();
    std::fs::write(dir.join("more.jsonl"), rows(20)).unwrap();
    format!(
        "seed = 3\n[model]\nbase = {:?}\n[[stage]]\ntype = \"sft\"\n\
         data.train = [{{ source = {:?} }}, {{ source = {:?} }}]\ntrain.steps = 12\n",
        base_model(),
        dir.join("rows.jsonl"),
        dir.join("more.jsonl")
    )
}

/// What a key needs to be tried, where its documented alternative says nothing here: what is set before and after.
struct Trial {
    /// Set in both recipes.
    beside: Vec<String>,
    /// Set in the second one only.
    change: Vec<String>,
    /// The text of both recipes, if not the base recipe.
    text: Option<String>,
}

/// A copy of the base model under another name, with other content; as a TOML string.
fn model_folder(dir: &Path, name: &str) -> String {
    let folder = dir.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for (path, bytes) in files(base_model()) {
        std::fs::write(folder.join(path), bytes).unwrap();
    }
    std::fs::write(folder.join("generation_config.json"), format!("{{\"note\": {name:?}}}")).unwrap();
    format!("{:?}", folder.display().to_string())
}

fn trial(doc: &KeyDoc, dir: &Path) -> Trial {
    let file = |name: &str, content: &str| {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        format!("{path:?}")
    };
    let path = doc.set_path(0);
    let set = |value: &str| vec![format!("{path}={value}")];
    let mut trial = Trial { beside: doc.set_beside(0), change: set(doc.alternative), text: None };
    let new_model = || format!("{NEW_MODEL}{PRETRAIN}");
    let train0 = "stage.0.data.train.0";
    let with_text = |unit: &str| {
        let text = file("a.txt", "one line\nanother line\n<|endoftext|>\na third line\n");
        vec![format!("{train0}.source={text}"), format!("{train0}.format=text"), unit.to_owned()]
    };
    match doc.path().as_str() {
        // Another base, not only another name for it: the plan identifies its files.
        "model.base" => {
            let other = dir.join("other-base");
            std::fs::create_dir(&other).unwrap();
            for (path, bytes) in files(base_model()) {
                std::fs::write(other.join(path), bytes).unwrap();
            }
            std::fs::write(other.join("generation_config.json"), "{}").unwrap();
            trial.change = set(&format!("{other:?}"));
        }
        // A branch needs a hub cache with two commits.
        "model.revision" => {
            trial.beside = vec!["model.base=someone/model".to_owned()];
            trial.change = set("v1.0");
        }
        "model.tokenizer" => {
            let other = dir.join("tokenizer");
            std::fs::create_dir(&other).unwrap();
            for (path, bytes) in files(base_model()) {
                if path.to_string_lossy().starts_with("tokenizer") {
                    std::fs::write(other.join(path), bytes).unwrap();
                }
            }
            trial.change = set(&format!("{other:?}"));
        }
        // `llama` is the only value; what is tried is that the key is read: another value is refused.
        "model.new.architecture" => trial.text = Some(new_model()),
        // The alternatives of these are what the recipe here has, or do not go with it.
        "model.new.num_hidden_layers" => {
            trial.text = Some(new_model());
            trial.change = set("3");
        }
        "model.new.num_key_value_heads" => {
            trial.text = Some(new_model());
            trial.change = set("1");
        }
        path if path.starts_with("model.new.") => trial.text = Some(new_model()),
        "stage.type" => {
            trial.text = Some(base_recipe(dir));
        }
        "stage.data.train" => {
            trial.change = set(&format!("[{}]", file("new.jsonl", "{\"text\": \"a b c\"}\n")))
        }
        "stage.data.eval" => {
            trial.change = set(&format!("[{}]", file("new.jsonl", "{\"text\": \"a b c\"}\n")))
        }
        "stage.data.eval_fraction" => trial.change = set("0.25"),
        "stage.data.max_length" => trial.change = set("28"),
        "stage.data.truncation" => {
            trial.beside = vec!["stage.0.data.max_length=24".to_owned(), "stage.0.data.mask=all".to_owned()];
        }
        "stage.data.mask" => trial.change = set("all"),
        "stage.data.chat_template" => {
            let template = "{% for m in messages %}{{ m.role + ':' + m.content + '<|im_end|>' }}{% endfor %}";
            trial.text = Some(format!("{}{SFT}", on_base()));
            trial.change = set(&file("own.jinja", template));
        }
        "stage.data.stopping_strategy" => {
            trial.beside = vec![format!("{train0}.weight=1"), "stage.0.data.train.1.weight=1".to_owned()];
        }
        "stage.data.train.0.source" => trial.change = set(&file("new.jsonl", "{\"text\": \"a b c\"}\n")),
        "stage.data.train.0.weight" => {
            trial.beside = vec![format!("{path}=1"), "stage.0.data.train.1.weight=1".to_owned()];
        }
        "stage.data.train.0.layout" => {
            let rows = "{\"text\": \"a b c d\", \"question\": \"e?\", \"answer\": \"f\"}\n";
            trial.beside =
                vec![format!("{train0}.source={}", file("both.jsonl", rows)), format!("{path}=text")];
            trial.change = set("question_answer");
        }
        "stage.data.train.0.columns" => {
            let rows = "{\"a\": \"one two\", \"b\": \"three\", \"c\": \"four five\"}\n";
            trial.beside = vec![
                format!("{train0}.source={}", file("abc.jsonl", rows)),
                format!("{path}={{ prompt = \"a\", completion = \"b\" }}"),
            ];
            trial.change = set("{ prompt = \"a\", completion = \"c\" }");
        }
        // Splits and subsets belong to datasets on the hub, and to generated ones.
        "stage.data.train.0.split" => {
            trial.beside = vec![format!("{train0}.source=generated:letters?n=20")];
            trial.change = set("heldout");
        }
        "stage.data.train.0.subset" => {
            let hub = dir.join("dataset");
            for subset in ["main", "socratic"] {
                std::fs::create_dir_all(hub.join(subset)).unwrap();
                let row = format!("{{\"question\": \"q {subset}\", \"answer\": \"a\"}}\n");
                std::fs::write(hub.join(subset).join("train.jsonl"), row).unwrap();
            }
            trial.beside = vec![format!("{train0}.source={hub:?}"), format!("{path}=main")];
            trial.change = set("socratic");
        }
        "stage.data.train.0.format" => {
            let csv = "text\none row\n";
            trial.beside = vec![format!("{train0}.source={}", file("rows.csv", csv)), format!("{path}=csv")];
            trial.change = set("text");
        }
        "stage.data.train.0.text_unit" => {
            trial.beside = with_text(&format!("{path}=line"));
            trial.change = set(doc.alternative);
        }
        "stage.data.train.0.rows_key" => {
            let json = "{\"data\": [{\"text\": \"a b\"}], \"examples\": [{\"text\": \"c d e f\"}]}";
            trial.beside =
                vec![format!("{train0}.source={}", file("rows.json", json)), format!("{path}=data")];
            trial.change = set("examples");
        }
        // Either of two ways to say the same is changed alone.
        "stage.train.epochs" => trial.text = Some(base_recipe(dir).replace("train.steps = 12\n", "")),
        "stage.train.tokens_per_step" => trial.change = set("512"),
        // Three per cent of twelve steps, the default, is one step; so is the documented alternative.
        "stage.schedule.warmup_ratio" => trial.change = set("0.3"),
        "stage.eval.tasks" => trial.change = set("[\"generated:digits?level=1-2\"]"),
        "stage.distillation.teacher" => {
            trial.beside.push(format!("{path}={}", model_folder(dir, "teacher")));
            trial.change = set(&model_folder(dir, "other-teacher"));
        }
        "stage.reference.model" => trial.change = set(&model_folder(dir, "reference")),
        key if key.starts_with("stage.distillation.") => {
            let teacher = format!("stage.0.distillation.teacher={}", model_folder(dir, "teacher"));
            trial.beside = vec!["stage.0.type=gkd".to_owned(), teacher];
        }
        // A reward that is only watched, only a gate or only bounded needs another beside it.
        "stage.reward.0.gate"
        | "stage.reward.0.hidden"
        | "stage.reward.0.at_least"
        | "stage.reward.0.at_most"
        | "stage.reward.0.multiplier_init"
        | "stage.reward.0.multiplier_lr"
        | "stage.reward.0.multiplier_max" => {
            trial.beside.push("stage.0.reward.1.type=exact".to_owned());
        }
        // Files that are read when the stage is planned.
        "stage.curate.file" => {
            let curation = |n: u64| {
                format!(
                    "out = \"x.jsonl\"\n[[input]]\nsource = \"a\"\n[[step]]\ntype = \"contamination\"\nn = {n}\nagainst = [\"generated:letters?n=3\"]\n"
                )
            };
            trial.beside.push(format!("{path}={}", file("one.toml", &curation(5))));
            trial.change = set(&file("two.toml", &curation(6)));
        }
        "stage.feedback.constitution" => {
            let text = pt_feedback::BUILT_IN;
            trial.beside.push(format!("{path}={}", file("one.toml", text)));
            trial.change = set(&file("two.toml", &text.replacen("critique = \"", "critique = \"Well. ", 1)));
        }
        "stage.export.prove_on" => trial.change = set(&file("proof.txt", "One text.\n")),
        // One of the two answers.
        "stage.feedback.model" => {
            trial.beside.retain(|set| !set.contains("server"));
            trial.beside.push(format!("{path}=stage:sft"));
        }
        path if path.starts_with("stage.feedback.respond") => {
            trial.beside.push("stage.1.feedback.task=judge".to_owned());
        }
        "stage.export.format" => trial.change = set("nf4"),
        "stage.environment.type" => {
            trial.beside.push("stage.0.data.train=[\"generated:guess?n=40&form=prompt_only\"]".to_owned());
            trial.change = set("guess");
        }
        // Samples are compared with others than those they are scaled by otherwise.
        "stage.rollout.baseline" => trial.beside.push("stage.0.rollout.scale_rewards=none".to_owned()),
        "stage.server.key_file" => trial.change = set(&file("key.txt", "secret")),
        "stage.eval.samples" => trial.beside.push("stage.1.eval.temperature=0.7".to_owned()),
        path if path.starts_with("stage.eval.") => trial.text = Some(format!("{}{SFT}", on_base())),
        _ => {}
    }
    trial
}

fn parse(text: &str, sets: &[String]) -> Result<Recipe, String> {
    Recipe::parse(text, Path::new("test.toml"), sets, &pt_pipeline::catalogue())
        .map_err(|error| error.to_string())
}

/// The plan of a recipe without its estimates, which no two measurements share; and its hash.
fn plan(recipe: Recipe, dir: &Path) -> Result<(Value, String), String> {
    let around =
        pt_pipeline::Surroundings { hf_home: Some(dir.join("hf")), cache_dir: None, memory_bytes: None };
    let mut plan = pt_pipeline::prepare(recipe, &around).map_err(|error| error.to_string())?.plan;
    let hash = plan.hash();
    for stage in &mut plan.stages {
        stage.memory.clear();
        stage.expected_seconds = 0.0;
    }
    Ok((serde_json::to_value(plan).unwrap(), hash))
}

/// A hub cache with one model in two revisions.
fn hub_cache(dir: &Path) {
    let repository = dir.join("hf/hub/models--someone--model");
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    for (name, commit) in [("main", "aaaa"), ("v1.0", "bbbb")] {
        std::fs::write(repository.join("refs").join(name), commit).unwrap();
        let snapshot = repository.join("snapshots").join(commit);
        std::fs::create_dir_all(&snapshot).unwrap();
        for (path, bytes) in files(base_model()) {
            std::fs::write(snapshot.join(path), bytes).unwrap();
        }
        std::fs::write(snapshot.join("generation_config.json"), format!("{{\"note\": {name:?}}}")).unwrap();
    }
}

/// Keys that say how a run is recorded, and leave what comes out of it: in the plan, not in its hash. What each does to
/// the run folder is tested below, or is a name.
const NOT_IN_THE_HASH: &[&str] = &[
    "name",                   // a name in reports
    "stage.train.save_every", // tested below
    "stage.train.keep_last",  // tested below
];

#[test]
fn every_documented_key_changes_the_plan() {
    let (mut n_keys, mut failures) = (0, Vec::new());
    for doc in documented_keys() {
        let key = doc.path();
        let dir = tempdir();
        hub_cache(dir.path());
        let text = base_recipe(dir.path());
        let Trial { beside, change, text: other } = trial(doc, dir.path());
        let text = other.unwrap_or(text);
        let changed: Vec<String> = beside.iter().chain(&change).cloned().collect();
        n_keys += 1;
        if key == "model.new.architecture" {
            let refused = parse(&text, &["model.new.architecture=mamba".to_owned()]).unwrap_err();
            assert!(refused.contains("llama"), "{refused}");
            continue;
        }
        let planned = |sets: &[String]| {
            let plan = parse(&text, sets).and_then(|recipe| plan(recipe, dir.path()));
            plan.map_err(|error| format!("{key}: {sets:?}: {error}"))
        };
        let (before, after) = match (planned(&beside), planned(&changed)) {
            (Ok(before), Ok(after)) => (before, after),
            (Err(error), _) | (_, Err(error)) => {
                failures.push(error);
                continue;
            }
        };
        let in_hash = !NOT_IN_THE_HASH.contains(&key.as_str());
        match (before.0 != after.0, before.1 != after.1) {
            (false, _) => failures.push(format!("{key}: {changed:?} leaves the plan as it is")),
            (true, changes_hash) if changes_hash != in_hash => {
                failures.push(format!("{key}: {changed:?} changes the hash: {changes_hash}"));
            }
            _ => {}
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(n_keys > 60, "{n_keys} keys");
}

/// Runs the base recipe with some keys set, and gives what `look` sees in the run folder.
fn after_run<T>(sets: &[&str], look: impl Fn(&Path) -> T) -> T {
    let dir = tempdir();
    let text = format!("{}{}", on_base(), without_tasks(SFT));
    finish(&text, sets, &dir.path().join("run"));
    look(&dir.path().join("run"))
}

#[test]
fn keys_of_recording_do_what_they_say() {
    let lines =
        |run: &Path| metric(run, "01-sft", "loss").into_iter().map(|(step, _)| step).collect::<Vec<_>>();
    assert_eq!(after_run(&["stage.0.train.log_every=5"], lines), [5, 10, 12]);
    assert_eq!(after_run(&[], lines).len(), 12);
    let evals =
        |run: &Path| metric(run, "01-sft", "eval_loss").into_iter().map(|(step, _)| step).collect::<Vec<_>>();
    assert_eq!(after_run(&["stage.0.train.eval_every=5"], evals), [5, 10, 12]);
    let kept = |run: &Path| {
        let dir = run.join("stages/01-sft/checkpoints");
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let [no_best, every] = ["stage.0.train.keep_best=false", "stage.0.train.save_every=3"];
    assert_eq!(after_run(&[no_best, every, "stage.0.train.keep_last=1"], kept), ["step-000012"]);
    let three = ["step-000006", "step-000009", "step-000012"];
    assert_eq!(after_run(&[no_best, every, "stage.0.train.keep_last=3"], kept), three);
    assert_eq!(after_run(&[no_best, "stage.0.train.save_every=8"], kept), ["step-000008", "step-000012"]);
}

#[test]
fn rows_come_in_the_order_of_their_files_unless_they_are_shuffled() {
    let dir = tempdir();
    let text = base_recipe(dir.path());
    let origins = |sets: &[&str]| -> Vec<String> {
        let sets: Vec<&str> = sets
            .iter()
            .copied()
            .chain(["stage.0.data.packing=sequential", "stage.0.train.rows_per_step=1"])
            .collect();
        let mut prepared = prepared(&text, &sets);
        let steps = &mut prepared.stages[0].steps;
        let n_steps = steps.steps_per_epoch();
        let one = |step| {
            let batch = steps.micro_batches(step).unwrap();
            let origin = batch[0].examples()[0].origin.to_string();
            origin.rsplit('/').next().unwrap().to_owned()
        };
        (0..n_steps).map(one).collect()
    };
    let in_order = origins(&["stage.0.data.shuffle=false"]);
    let expected: Vec<String> = (1..=60)
        .map(|i| format!("rows.jsonl:{i}"))
        .chain((1..=20).map(|i| format!("more.jsonl:{i}")))
        .collect();
    assert_eq!(in_order, expected);
    let mut shuffled = origins(&[]);
    assert_ne!(shuffled, expected);
    shuffled.sort();
    let mut all = expected;
    all.sort();
    assert_eq!(shuffled, all);
    let twice = origins(&["stage.0.data.shuffle=false", "stage.0.data.train.1.repeats=2"]);
    assert_eq!(twice.len(), 100);
    assert_eq!(twice[60..80], twice[80..]);
    let shares = origins(&[
        "stage.0.data.shuffle=false",
        "stage.0.data.train.0.weight=1",
        "stage.0.data.train.1.weight=1",
    ]);
    let of =
        |file: &str| shares.iter().filter(|origin| origin.starts_with(file)).cloned().collect::<Vec<_>>();
    assert_eq!(of("rows"), (1..=20).map(|i| format!("rows.jsonl:{i}")).collect::<Vec<_>>());
    assert_eq!(of("more"), (1..=20).map(|i| format!("more.jsonl:{i}")).collect::<Vec<_>>());
    assert!(
        shares[..10].iter().any(|origin| origin.starts_with("more")),
        "sources by shares are interleaved"
    );
}
