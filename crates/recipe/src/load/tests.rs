//! What people write, and what they are told.

use super::*;
use crate::keys::{Dtype, Packing, SECTIONS};
use crate::reference::{MINIMAL, documented_keys};
use crate::schema::{Component, KeyDoc, Kind};

fn catalogue() -> Catalogue {
    let component = |name: &str, keys: &[&str]| Component {
        name: name.to_owned(),
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
    };
    Catalogue {
        objectives: vec![
            component("cross_entropy", &["label_smoothing"]),
            component("dft", &[]),
            component("grpo", &["beta"]),
        ],
        optimizers: vec![
            component("adamw", &["betas", "eps", "weight_decay"]),
            component("muon", &["momentum"]),
        ],
        layouts: ["text", "messages", "prompt_completion"].map(|name| component(name, &[])).into(),
        verifiers: vec![component("math", &["tolerance"]), component("exact", &[])],
        environments: vec![
            component("guess", &[]),
            component("tools", &[]),
            component("command", &["command"]),
        ],
    }
}

fn parse(text: &str, sets: &[&str]) -> Result<Recipe, RecipeErrors> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    Recipe::parse(text, Path::new("r.toml"), &sets, &catalogue())
}

/// Every expected line must be among the messages, and there are no others.
fn check_errors(text: &str, sets: &[&str], expected: &[&str]) {
    let errors = parse(text, sets).expect_err("the recipe is wrong").to_string();
    let found: Vec<&str> = errors.lines().collect();
    assert_eq!(found.len(), expected.len(), "{errors}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "expected {expected:?} in {found:?}");
    }
}

#[test]
fn the_shortest_recipe_has_sensible_defaults() {
    let recipe = parse(MINIMAL, &[]).unwrap();
    assert_eq!((recipe.name.as_deref(), recipe.seed, recipe.model.dtype), (Some("r"), 42, Dtype::Bf16));
    let stage = &recipe.stage[0];
    assert_eq!(stage.name.as_deref(), Some("sft"));
    assert_eq!(stage.data.train[0].source, "data/train.jsonl");
    assert_eq!(
        (stage.learning_rate(), stage.objective_type(), stage.packing()),
        (2e-5, "cross_entropy", Packing::Bfd)
    );
    assert_eq!((stage.data.max_length, stage.lora.rank, stage.lora.alpha), (1024, 16, 32.0));
    assert_eq!(stage.steps(7), 21);
}

#[test]
fn defaults_depend_on_type_and_method_as_documented() {
    for (sets, lr) in [
        (vec!["stage.0.train.method=lora"], 2e-4),
        (vec!["stage.0.train.method=qlora"], 2e-4),
        (vec!["stage.0.type=pretrain"], 3e-4),
        (vec!["stage.0.type=pretrain", "stage.pretrain.train.method=lora"], 3e-3),
        (vec!["stage.0.optimizer.learning_rate=1e-3", "stage.0.train.method=lora"], 1e-3),
    ] {
        assert_eq!(parse(MINIMAL, &sets).unwrap().stage[0].learning_rate(), lr, "{sets:?}");
    }
}

#[test]
fn sources_are_texts_or_tables_and_components_keep_their_parameters() {
    let text = r#"
        [model]
        base = "b"
        [[stage]]
        type = "sft"
        [stage.objective]
        type = "cross_entropy"
        label_smoothing = 0.1
        [stage.optimizer]
        betas = [0.9, 0.95]
        [[stage.data.train]]
        source = "a.jsonl"
        weight = 2
        columns = { prompt = "question" }
        [stage.data]
        eval = "b.jsonl"
    "#;
    let recipe = parse(text, &[]).unwrap_or_else(|errors| panic!("{errors}"));
    let stage = &recipe.stage[0];
    assert_eq!(stage.data.train[0].weight, Some(2.0));
    assert_eq!(stage.data.train[0].columns.as_ref().unwrap()["prompt"], "question");
    assert_eq!(stage.data.eval.as_ref().unwrap()[0].source, "b.jsonl");
    assert_eq!(stage.objective.params.values()["label_smoothing"], 0.1);
    assert_eq!(stage.optimizer.params.values()["betas"], serde_json::json!([0.9, 0.95]));
}

#[test]
fn a_component_checks_its_own_parameters_and_the_place_is_known() {
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Adamw {
        betas: [f64; 2],
        eps: f64,
    }
    impl Default for Adamw {
        fn default() -> Self {
            Adamw { betas: [0.9, 0.999], eps: 1e-8 }
        }
    }
    let text = format!("{MINIMAL}optimizer.eps = 1e-6\noptimizer.betas = 0.9\n");
    let params = parse(&text, &[]).unwrap().stage.remove(0).optimizer.params;
    assert_eq!(params.to_toml().to_string(), "betas = 0.9\neps = 0.000001\n");
    let problem = params.parse::<Adamw>().unwrap_err();
    assert_eq!(
        (problem.key.as_str(), &problem.at),
        ("stage.0.optimizer.betas", &Location::File { line: 8, column: 11 })
    );
    let good = parse(MINIMAL, &[]).unwrap().stage.remove(0).optimizer.params.parse::<Adamw>().unwrap();
    assert_eq!((good.betas, good.eps), ([0.9, 0.999], 1e-8));
}

#[test]
fn every_problem_is_reported_at_once_with_its_line() {
    let text = r#"sede = 1
seed = -1
[model]
base = ""
dtype = "fp16"
[[stage]]
type = "sfd"
colour = "red"
[stage.data]
train = []
max_length = "long"
[stage.train]
epocs = 3
steps = 0
rows_per_step = 1.5
[stage.optimizer]
learning_rate = -2e-5
betas = [0.9, 0.9]
momentum = 0.9
[stage.objective]
type = "cross_entrpy"
[stage.lora]
rank = 0
"#;
    check_errors(
        text,
        &["stage.0.train.max_grad_norm=nan", "stage.0.schedule.warmup_ratio=2"],
        &[
            "r.toml:1:1: sede: unknown key; did you mean `seed`? known: name, seed, model, stage",
            "r.toml:2:8: seed: expected a whole number from 0 to 9223372036854775807, found the integer -1",
            "r.toml:4:8: model.base: expected a string that is not empty, found the string \"\"",
            "r.toml:5:9: model.dtype: unknown value \"fp16\"; did you mean `bf16`? known: bf16, f32",
            "r.toml:7:8: stage.0.type: unknown value \"sfd\"; did you mean `sft`?",
            "r.toml:8:1: stage.0.colour: unknown key; known: type, name, base, data",
            "r.toml:10:9: stage.0.data.train: expected a list of sources that is not empty",
            "r.toml:11:14: stage.0.data.max_length: expected a whole number, found the string \"long\"",
            "r.toml:13:1: stage.0.train.epocs: unknown key; did you mean `epochs`?",
            "r.toml:14:9: stage.0.train.steps: expected a whole number from 1 to 1000000000, found the integer 0",
            "r.toml:15:17: stage.0.train.rows_per_step: expected a whole number from 1",
            "r.toml:17:17: stage.0.optimizer.learning_rate: expected a number from 1e-12 to 10.0, found the number -2e-5",
            "r.toml:19:1: stage.0.optimizer.momentum: unknown key; known: type, learning_rate, betas, eps, weight_decay",
            "r.toml:21:8: stage.0.objective.type: unknown value \"cross_entrpy\"; did you mean `cross_entropy`?",
            "r.toml:22:1: stage.0.lora: has no effect with `train.method = \"full\"`",
            "r.toml:23:8: stage.0.lora.rank: expected a whole number from 1 to 4096, found the integer 0",
            "--set stage.0.schedule.warmup_ratio=2: stage.0.schedule.warmup_ratio: expected a number from 0.0 to 1.0",
            "--set stage.0.train.max_grad_norm=nan: stage.0.train.max_grad_norm: expected a number from 0.0 to 1000000.0, found the number NaN",
        ],
    );
}

#[test]
fn keys_that_contradict_or_do_nothing_are_errors() {
    for (set, expected) in [
        (
            &["train.epochs=1", "train.steps=5"][..],
            "stage.0.train.steps: `stage.0.train.epochs` is given too",
        ),
        (
            &["train.rows_per_step=1", "train.tokens_per_step=5"],
            "tokens_per_step: `stage.0.train.rows_per_step`",
        ),
        (
            &["schedule.warmup_steps=1", "schedule.warmup_ratio=0.1"],
            "`stage.0.schedule.warmup_steps` is given too",
        ),
        (&["data.eval=x.jsonl", "data.eval_fraction=0.1"], "`stage.0.data.eval` is given too"),
        (&["train.method=lora", "quantization.type=nf4"], "has no effect with `train.method = \"lora\"`"),
        (
            &["train.method=qlora", "quantization.type=int8", "quantization.double=true"],
            "`quantization.type = \"int8\"`",
        ),
        (&["schedule.decay_ratio=0.1"], "has no effect with `schedule.type = \"linear\"`"),
        (
            &["schedule.type=constant", "schedule.min_ratio=0.1"],
            "has no effect with `schedule.type = \"constant\"`",
        ),
        (&["schedule.warmup_steps=9", "train.steps=5"], "9 steps of warm-up do not fit the stage's 5 steps"),
        (&["data.stopping_strategy=all_exhausted"], "no effect while no source has a `weight`"),
        (&["data.eval=[{ source = \"x\", repeats = 2 }]"], "every held-out row is scored once"),
        (
            &["data.train=[\"a\", { source = \"b\", weight = 1 }]"],
            "stage.0.data.train.0.weight: other sources have",
        ),
        (&["data.train=[{ source = \"b\", weight = 1, repeats = 2 }]"], "no effect beside `weight`"),
        (
            &["type=grpo", "reward=[{ type = \"math\", at_least = 0.5, at_most = 0.9 }]"],
            "reward.0.at_most: a reward has one bound",
        ),
        (
            &["type=grpo", "reward=[{ type = \"math\", multiplier_lr = 0.5 }]"],
            "reward.0.multiplier_lr: has no effect without a bound",
        ),
        (
            &["type=grpo", "reward=[{ type = \"math\", at_least = 0.5, hidden = true }]"],
            "reward.0.hidden: a reward with a bound is not only watched",
        ),
        (
            &["type=grpo", "reward=[{ type = \"math\", at_least = 0.5, multiplier_max = 0.5 }]"],
            "reward.0.multiplier_max: the multiplier begins at 1, above `multiplier_max`, which is 0.5",
        ),
        (&["name=a/b"], "\"a/b\" names a folder"),
        (&["name=\"12\""], "not digits alone"),
    ] {
        let sets: Vec<String> = set.iter().map(|set| format!("stage.0.{set}")).collect();
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        check_errors(MINIMAL, &sets, &[expected]);
    }
}

#[test]
fn models_and_stages_must_be_there_and_make_sense() {
    let stage = "[[stage]]\ntype = \"sft\"\ndata.train = \"x\"\n";
    check_errors("", &[], &["model.base: which model?", "stage: a recipe needs at least one stage"]);
    check_errors(&format!("[model]\n{stage}"), &[], &["r.toml:1:1: model.base: which model?"]);
    let new = "[model.new]\nhidden_size = 60\nnum_hidden_layers = 1\nnum_attention_heads = 4\nnum_key_value_heads = 3\n";
    check_errors(
        &format!("{new}{stage}"),
        &[],
        &[
            "r.toml:1:1: model.tokenizer: a new model needs `tokenizer",
            "r.toml:4:23: model.new.num_attention_heads: 4 heads do not divide a width of 60 into even parts",
            "r.toml:5:23: model.new.num_key_value_heads: 3 does not divide the 4 attention heads",
        ],
    );
    check_errors(
        &format!("model.base = \"b\"\nmodel.new.hidden_size = 8\n{stage}"),
        &[],
        &[
            "num_hidden_layers: is required; add it, for example `num_hidden_layers = 4`",
            "num_attention_heads: is required",
            "a model is either a `base` or a new one",
            "a new model needs `tokenizer",
        ],
    );
    check_errors(
        "stage = 1\nmodel.base = \"b\"\n",
        &[],
        &["stage: expected a list of tables, `[[stage]]`, found the integer 1"],
    );
    check_errors(&format!("model = 1\n{stage}"), &[], &["model: expected a table", "which model?"]);
    check_errors(
        &format!("{MINIMAL}{stage}"),
        &["stage.0.name=x", "stage.1.name=x"],
        &["another stage is called `x`"],
    );
}

#[test]
fn keys_of_another_section_and_of_trl_are_sent_where_they_belong() {
    for (set, expected) in [
        ("train.learning_rate=1e-5", "unknown key; `learning_rate` belongs in `[stage.optimizer]`"),
        ("max_length=512", "unknown key; `max_length` belongs in `[stage.data]`"),
        ("train.num_train_epochs=1", "call `num_train_epochs` is `stage.train.epochs` here"),
        ("lora.r=8", "call `r` is `stage.lora.rank` here"),
        ("train.name=x", "unknown key; known: method"),
    ] {
        let set = format!("stage.0.{set}");
        check_errors(MINIMAL, &["stage.0.train.method=lora", &set], &[expected]);
    }
    // Ours must exist, or be the optimiser's own.
    for (theirs, ours) in crate::keys::TRL_NAMES {
        let ours = ours.split(' ').next().unwrap();
        let known = documented_keys().any(|key| key.path() == ours)
            || ["eps", "beta1", "beta2"].iter().any(|k| ours.ends_with(k));
        assert!(known && !documented_keys().any(|key| key.name() == *theirs), "{theirs} -> {ours}");
    }
}

#[test]
fn what_a_stage_lacks_is_reported_at_the_stage() {
    let text = "[model]\nbase = \"b\"\n[[stage]]\ntype = \"sft\"\ntrain.steps = 1\n\n[[stage]]\nname = \"x\"\ndata.eval = \"e\"\n";
    check_errors(
        text,
        &[],
        &[
            "r.toml:3:1: stage.0.data.train: is required; add it, for example `train = [\"data/train.jsonl\"]`",
            "r.toml:7:1: stage.1.type: is required",
            "r.toml:9:1: stage.1.data.train: is required",
        ],
    );
}

/// Seeded fuzz: damaged text and absurd values give problems, never a panic.
#[test]
fn no_text_and_no_value_is_a_panic() {
    let whole = format!(
        "{MINIMAL}[stage.train]\nsteps = 5\n[stage.optimizer]\nbetas = [0.9, 0.95]\n# \u{e9}\u{1f600}\n"
    );
    let stream = pt_core::rng::Stream::new(3, "recipes");
    let (mut n_refused, n) = (0, 3000);
    for round in 0..n {
        let mut draws = stream.at(round);
        let mut chars: Vec<char> = whole.chars().collect();
        for _ in 0..=draws.below(3) {
            if chars.is_empty() {
                break;
            }
            let at = draws.below(chars.len());
            match draws.below(4) {
                0 => drop(chars.remove(at)),
                1 => chars
                    .insert(at, *draws.pick(&['\n', '"', '[', ']', '{', '=', '.', '\0', '\u{e9}', '9', '#'])),
                2 => chars.truncate(at.max(1)),
                _ => chars[at] = char::from(draws.below(128) as u8),
            }
        }
        let text: String = chars.into_iter().collect();
        n_refused += u64::from(parse(&text, &[]).is_err());
    }
    assert!(n_refused > n / 2 && n_refused < n, "{n_refused} of {n}");
}

#[test]
fn absurd_values_are_refused_for_every_key() {
    let absurd = [
        "nan",
        "-inf",
        "-1",
        "1e300",
        "99999999999999999999",
        "[]",
        "{ zz = 1 }",
        "1979-05-27",
        "[[[1]]]",
        "\"\"",
    ];
    for key in documented_keys() {
        for value in absurd {
            let set = format!("{}={value}", key.set_path(0));
            let mut sets = key.set_beside(0);
            sets.push(set.clone());
            let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
            let taken_as_text =
                matches!(key.kind, Kind::String | Kind::Strings | Kind::Sources) && value.starts_with("9999");
            let in_range = matches!(key.kind, Kind::Float { min, .. } if min <= -1.0) && value == "-1";
            let errors = parse(&base_recipe(key), &sets);
            assert!(errors.is_err() || taken_as_text || in_range, "{set} was accepted");
        }
    }
}

#[test]
fn repeated_types_get_numbered_names() {
    let stage = "[[stage]]\ntype = \"sft\"\ndata.train = \"x\"\n";
    let recipe = parse(&format!("{MINIMAL}{stage}{stage}"), &[]).unwrap();
    let names: Vec<_> = recipe.stage.iter().map(|stage| stage.name.clone().unwrap()).collect();
    assert_eq!(names, ["sft", "sft-2", "sft-3"]);
}

#[test]
fn syntax_errors_come_with_their_line_and_a_missing_file_with_its_path() {
    check_errors("seed = 1\nseed = 2\n", &[], &["r.toml:2:1: not valid TOML: duplicate key"]);
    let error = Recipe::load(Path::new("/no/such.toml"), &[], &catalogue()).unwrap_err();
    assert!(error.to_string().contains("/no/such.toml"));
}

#[test]
fn whole_numbers_may_be_written_with_an_exponent() {
    let recipe =
        parse(MINIMAL, &["stage.0.train.steps=1e4", "stage.0.lora.alpha=16", "stage.0.train.method=lora"]);
    let stage = recipe.unwrap().stage.remove(0);
    assert_eq!((stage.train.steps, stage.lora.alpha), (Some(10_000), 16.0));
}

fn base_recipe(key: &KeyDoc) -> String {
    let table = MINIMAL.replace("[\"data/train.jsonl\"]", "[{ source = \"data/train.jsonl\" }]");
    match key.section {
        "model.new" => table.replace(
            "base = \"models/base\"",
            "tokenizer = \"t.json\"\nnew = { hidden_size = 64, num_hidden_layers = 1, num_attention_heads = 8 }",
        ),
        _ => table,
    }
}

/// Each documented example and alternative is accepted, and the alternative changes the recipe.
#[test]
fn every_documented_key_is_read_and_its_examples_are_true() {
    let mut n_checked = 0;
    for key in documented_keys() {
        let with = |value: &str| {
            let set = format!("{}={value}", key.set_path(0));
            let mut sets = key.set_beside(0);
            sets.push(set.clone());
            let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
            parse(&base_recipe(key), &sets).unwrap_or_else(|errors| panic!("{set}:\n{errors}"))
        };
        let (example, alternative) = (with(key.example()), with(key.alternative));
        let single_choice = matches!(key.kind, Kind::Choice([_]));
        assert!(single_choice || example != alternative, "{}: the alternative changes nothing", key.path());
        n_checked += 1;
    }
    assert_eq!(n_checked, SECTIONS.iter().map(|section| section.keys.len()).sum::<usize>());
}

/// What is set in one way takes the place of what the file says in the other; two that are set, or written, stay a mistake.
#[test]
fn a_set_replaces_what_the_file_says_in_another_way() {
    let with = |key: &str| format!("{MINIMAL}[stage.train]\n{key}\n");
    let train = |text: &str, sets: &[&str]| parse(text, sets).unwrap().stage.remove(0).train;
    let found = train(&with("epochs = 2.0"), &["stage.0.train.steps=5"]);
    assert_eq!((found.epochs, found.steps), (None, Some(5)));
    let found = train(&with("steps = 5"), &["stage.sft.train.epochs=2"]);
    assert_eq!((found.epochs, found.steps), (Some(2.0), None));
    let found = train(&with("rows_per_step = 4"), &["stage.0.train.tokens_per_step=512"]);
    assert_eq!((found.rows_per_step, found.tokens_per_step), (None, Some(512)));
    let both = ["stage.0.train.steps=5", "stage.0.train.epochs=2"];
    check_errors(MINIMAL, &both, &["`stage.0.train.epochs` is given too and says the same"]);
    let written = with("epochs = 2.0\nsteps = 5");
    check_errors(&written, &[], &["`stage.0.train.epochs` is given too and says the same"]);
}

#[test]
fn keys_of_feedback_that_its_task_does_not_read_are_refused() {
    let stage = |keys: &str| {
        format!(
            "{MINIMAL}[[stage]]\ntype = \"feedback\"\n[stage.feedback]\nsources = [\"a.jsonl\"]\nmodel = \"stage:sft\"\n{keys}\n"
        )
    };
    for (task, key, because) in [
        ("revise", "votes = 2", "task = \"revise\""),
        ("revise", "swap = false", "task = \"revise\""),
        ("judge", "rounds = 2", "task = \"judge\""),
        ("both", "votes = 2", "task = \"both\""),
        ("judge", "respond = [\"model\", \"a\", \"b\"]", "one or two models"),
        ("judge", "keep_truncated = true", "task = \"judge\""),
        ("both", "respond = [\"model\"]", "task = \"both\""),
        ("judge", "respond_temperature = 0.5", "no `respond`"),
        ("revise", "parallel = 4", "no `server`"),
        ("revise", "api_key_file = \"k\"", "no `server`"),
        ("revise", "server = \"http://127.0.0.1:1/v1\"", "`model`"),
    ] {
        check_errors(&stage(&format!("task = {task:?}\n{key}")), &[], &[because]);
    }
    for (task, key) in [("both", "swap = false\nrounds = 2"), ("judge", "respond = [\"model\"]\nvotes = 2")] {
        parse(&stage(&format!("task = {task:?}\n{key}")), &[]).unwrap();
    }
}
