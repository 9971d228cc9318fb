//! Plans: nothing left open, and a hash of what matters.

use super::*;
use crate::reference::MINIMAL;
use crate::schema::{Catalogue, Component};
use std::path::Path;

fn recipe(sets: &[&str]) -> Recipe {
    let component = |name: &str| Component { name: name.to_owned(), keys: vec![] };
    let catalogue = Catalogue {
        objectives: vec![component("cross_entropy")],
        optimizers: vec![component("adamw")],
        layouts: vec![component("text")],
        verifiers: vec![component("math")],
        environments: vec![],
    };
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    Recipe::parse(MINIMAL, Path::new("tiny.toml"), &sets, &catalogue)
        .unwrap_or_else(|errors| panic!("{errors}"))
}

fn file(path: &str, blake3: &str) -> PlannedFile {
    PlannedFile { path: path.into(), bytes: 1000, blake3: blake3.into() }
}

fn facts() -> Facts {
    let source = SourceFacts {
        layout: "messages".into(),
        has_prompt: false,
        is_conversation: true,
        files: vec![file("data/train.jsonl", "d0")],
        rows: 80,
        tokens: 12_345,
        trained_tokens: 4321,
        rows_truncated: 2,
        rows_dropped: 0,
    };
    let stage = StageFacts {
        train: vec![source],
        eval: vec![],
        ptx: vec![],
        teacher: vec![],
        critic: vec![],
        reference: vec![],
        reward_models: vec![],
        steps_per_epoch: 10,
        tokens_per_epoch: 12_345,
        chat_template: Some(PlannedTemplate { origin: "tokenizer".into(), blake3: "t0".into() }),
        trainable_parameters: 134_515_008,
        objective: serde_json::json!({"label_smoothing": 0.0}),
        optimizer: serde_json::json!({"betas": [0.9, 0.999]}),
        memory: vec![
            MemoryPart { part: "weights".into(), bytes: 269_030_016 },
            MemoryPart { part: "optimizer".into(), bytes: 1_614_180_096 },
        ],
        expected_seconds: 95.0,
    };
    Facts {
        parameters: 134_515_008,
        vocab_size: 49_152,
        files: vec![file("models/base/model.safetensors", "m0")],
        stages: vec![stage],
    }
}

fn plan(sets: &[&str]) -> Plan {
    recipe(sets).resolve(&facts()).unwrap()
}

#[test]
fn lengths_schedule_and_intervals_are_decided() {
    type Case = (&'static [&'static str], u64, u64, u64, u64, u64, u64);
    // sets; steps, tokens, warm-up, decay, eval_every, save_every
    let cases: [Case; 6] = [
        (&[], 30, 37_035, 1, 29, 10, 500),
        (&["stage.0.train.epochs=0.25"], 3, 3704, 1, 2, 10, 500),
        (&["stage.0.train.steps=200", "stage.0.data.eval_fraction=0.1"], 200, 246_900, 6, 194, 10, 10),
        (
            &["stage.0.train.steps=100", "stage.0.schedule.type=warmup_stable_decay"],
            100,
            123_450,
            3,
            10,
            10,
            500,
        ),
        (&["stage.0.schedule.type=constant", "stage.0.schedule.warmup_steps=0"], 30, 37_035, 0, 0, 10, 500),
        (&["stage.0.train.eval_every=7", "stage.0.data.eval_fraction=0.1"], 30, 37_035, 1, 29, 7, 7),
    ];
    for (sets, steps, tokens, warmup, decay, eval_every, save_every) in cases {
        let mut recipe = recipe(sets);
        recipe.stage[0].data.eval = None;
        let stage = recipe.resolve(&facts()).unwrap().stages.remove(0);
        let schedule = (stage.schedule.warmup_steps, stage.schedule.decay_steps);
        assert_eq!((stage.steps, stage.tokens, schedule), (steps, tokens, (warmup, decay)), "{sets:?}");
        assert_eq!((stage.train.eval_every, stage.train.save_every), (eval_every, save_every), "{sets:?}");
    }
}

#[test]
fn shares_are_rounded_up_but_not_by_rounding_errors() {
    for (ratio, n, expected) in
        [(0.1, 30, 3), (0.03, 30, 1), (0.0, 30, 0), (1.0, 30, 30), (0.3, 10, 3), (2.5, 7, 18)]
    {
        assert_eq!(share(ratio, n), expected, "{ratio} of {n}");
    }
}

#[test]
fn sources_mix_by_repeats_unless_they_have_weights() {
    let mixture = |sources: &str| plan_mixture(&recipe(&[&format!("stage.0.data.train={sources}")]).stage[0]);
    assert_eq!(mixture(r#"["a", { source = "b", repeats = 3 }]"#), Mixture::Repeats(vec![1.0, 3.0]));
    let shares = mixture(r#"[{ source = "a", weight = 2 }, { source = "b", weight = 0.5 }]"#);
    let stopping_strategy = crate::StoppingStrategy::FirstExhausted;
    assert_eq!(shares, Mixture::Shares { weights: vec![2.0, 0.5], stopping_strategy });
}

#[test]
fn masks_follow_the_rows_unless_the_recipe_says() {
    let (pretrain, sft) = (StageType::named("pretrain").unwrap(), StageType::named("sft").unwrap());
    for (kind, written, has_prompt, is_conversation, expected) in [
        (sft, None, false, true, Mask::AssistantOnly),
        (sft, None, true, true, Mask::CompletionOnly),
        (sft, None, false, false, Mask::All),
        (sft, Some(Mask::All), true, true, Mask::All),
        (pretrain, None, true, true, Mask::All),
    ] {
        assert_eq!(Source::mask(kind, written, has_prompt, is_conversation), expected);
    }
}

#[test]
fn a_plan_survives_json_and_its_keys_keep_their_order() {
    let plan = plan(&["stage.0.train.method=qlora"]);
    let text = serde_json::to_string_pretty(&plan).unwrap();
    let read: Plan = serde_json::from_str(&text).unwrap();
    assert_eq!(read, plan);
    assert_eq!(serde_json::to_string_pretty(&read).unwrap(), text);
    assert!(text.starts_with("{\n  \"format_version\": 1,\n  \"name\": \"tiny\""), "{text}");
}

#[test]
fn the_hash_changes_with_what_affects_the_result_and_with_nothing_else() {
    let hash = plan(&[]).hash();
    for sets in [
        ["seed=1"],
        ["model.dtype=f32"],
        ["stage.0.train.steps=31"],
        ["stage.0.optimizer.learning_rate=3e-5"],
        ["stage.0.data.mask=all"],
        ["stage.0.train.tokens_per_micro_batch=2048"],
        ["stage.0.train.log_every=2"],
    ] {
        assert_ne!(plan(&sets).hash(), hash, "{sets:?}");
    }
    for sets in [
        ["name=other"],
        ["stage.0.train.save_every=3"],
        ["stage.0.train.keep_last=9"],
        ["stage.0.data.train=elsewhere.jsonl"],
        ["model.base=elsewhere"],
    ] {
        assert_eq!(plan(&sets).hash(), hash, "{sets:?}");
    }
    type Change = fn(&mut Facts);
    let with = |change: Change| {
        let mut facts = facts();
        change(&mut facts);
        recipe(&[]).resolve(&facts).unwrap().hash()
    };
    let matter: [Change; 4] = [
        |f| f.files[0].blake3 = "m1".into(),
        |f| f.stages[0].train[0].files[0].blake3 = "d1".into(),
        |f| f.stages[0].chat_template.as_mut().unwrap().blake3 = "t1".into(),
        |f| f.stages[0].optimizer = serde_json::json!({"betas": [0.9, 0.95]}),
    ];
    let do_not: [Change; 4] = [
        |f| f.files[0].path = "elsewhere".into(),
        |f| f.stages[0].train[0].files[0].path = "elsewhere".into(),
        |f| f.stages[0].expected_seconds = 1.0,
        |f| f.stages[0].memory.clear(),
    ];
    assert!(matter.iter().all(|change| with(*change) != hash));
    assert!(do_not.iter().all(|change| with(*change) == hash));
    // A generated source has no files: its name is what it is.
    let generated = |name: &str| {
        let mut facts = facts();
        facts.stages[0].train[0].files.clear();
        recipe(&[&format!("stage.0.data.train={name}")]).resolve(&facts).unwrap().hash()
    };
    assert_ne!(generated("generated:sort"), generated("generated:add"));
}

#[test]
fn sources_and_reward_models_with_files_are_these_wherever_they_lie() {
    let hash = |source: &str, model: &str, content: &str, has_files: bool| {
        let mut plan = plan(&[]);
        let files = if has_files { vec![file(source, content)] } else { vec![] };
        let stage = &mut plan.stages[0];
        let ptx =
            PlannedSource { source: source.into(), files: files.clone(), ..stage.data.train[0].clone() };
        stage.ppo = Some(PlannedPpo {
            kl_coef: 0.05,
            kl_target: None,
            kl_horizon: 1e4,
            kl_estimator: crate::RewardKl::K1,
            gamma: 1.0,
            lam: 0.95,
            whiten_rewards: false,
            whiten_advantages: true,
            critic: None,
            ptx: vec![ptx],
            ptx_rows_per_step: 8,
        });
        stage.rewards = vec![PlannedReward {
            name: "reward_model".into(),
            r#type: "reward_model".into(),
            weight: 1.0,
            gate: None,
            gold: None,
            hidden: false,
            constraint: None,
            params: serde_json::json!({ "model": model }),
            files,
        }];
        plan.hash()
    };
    let here = hash("a.txt", "runs/a", "c0", true);
    assert_eq!(hash("b.txt", "runs/a", "c0", true), here, "moved text");
    assert_eq!(hash("a.txt", "runs/b", "c0", true), here, "moved reward model");
    assert_ne!(hash("a.txt", "runs/a", "c1", true), here, "other content at the same place");
    let named = hash("a.txt", "runs/a", "", false);
    assert_ne!(hash("b.txt", "runs/a", "", false), named, "a source without files is its name");
    assert_ne!(hash("a.txt", "runs/b", "", false), named, "and so is a model");
}

#[test]
fn the_files_of_reward_models_are_in_the_plan() {
    let mut stage = recipe(&[]).stage.remove(0);
    stage.r#type = "grpo".into();
    let facts = StageFacts {
        reward_models: vec![vec![file("rm/model.safetensors", "r0")]],
        ..facts().stages.remove(0)
    };
    assert_eq!(plan_rewards(&stage, &facts)[0].files, facts.reward_models[0]);
    let old = serde_json::to_value(&stage.planned_rewards()[0]).unwrap();
    assert!(old.get("files").is_none(), "plans without such models are as they were: {old}");
}

#[test]
fn generated_sources_are_measured_unless_tasks_are_named() {
    let tasks = |sets: &[&str]| recipe(sets).stage[0].eval_tasks();
    assert_eq!(tasks(&[]), [""; 0]);
    assert_eq!(tasks(&["stage.0.data.train=[\"x\", \"generated:sort\"]"]), ["generated:sort"]);
    let both = ["stage.0.data.train=generated:sort", "stage.0.data.eval=generated:add"];
    assert_eq!(tasks(&both), ["generated:add"]);
    assert_eq!(tasks(&["stage.0.eval.tasks=generated:x", both[0]]), ["generated:x"]);
}

#[test]
fn a_recipe_that_does_not_fit_its_data_is_an_error() {
    let mut empty = facts();
    empty.stages[0].steps_per_epoch = 0;
    let message = recipe(&[]).resolve(&empty).unwrap_err().to_string();
    assert!(message.contains("stage `sft` has no step"), "{message}");
    let message = recipe(&["stage.0.schedule.warmup_steps=31"]).resolve(&facts()).unwrap_err().to_string();
    assert!(message.contains("31 steps of warm-up and 0 of decay do not fit its 30 steps"), "{message}");
}

#[test]
fn a_new_model_takes_its_vocabulary_from_the_tokenizer() {
    let new = NewModelSection {
        architecture: crate::Architecture::Llama,
        hidden_size: 256,
        intermediate_size: None,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: None,
        vocab_size: None,
        max_position_embeddings: 128,
        rope_theta: 1e4,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        initializer_range: 0.02,
    };
    let planned = new.resolve(512).unwrap();
    assert_eq!((planned.intermediate_size, planned.num_key_value_heads, planned.vocab_size), (704, 4, 512));
    let small = NewModelSection { vocab_size: Some(100), ..new };
    assert!(small.resolve(512).unwrap_err().to_string().contains("is 100, but the tokenizer has 512"));
}

#[test]
fn the_table_says_everything_in_aligned_lines() {
    let plan = plan(&["stage.0.train.method=lora", "stage.0.data.eval_fraction=0.05"]);
    let expected = format!(
        "\
run tiny
  model              models/base
  parameters         134,515,008, bf16
  seed               42
  plan hash          {}
stage 01-sft (sft)
  method             lora, rank 16, alpha 32, on all-linear
  trains             134,515,008 parameters
  objective          cross_entropy, label_smoothing 0.0
  optimizer          adamw, betas [0.9,0.999]
  learning rate      2e-4, linear, 1 steps of warm-up, to 0 of it over the last 29
  steps              30 of 8 rows, 3 epochs
  tokens             37,035
  train data         data/train.jsonl (messages): 80 rows, 12,345 tokens, 4,321 train (assistant_only), 2 rows cut
  held out           5 % of the training rows
  rows               at most 1,024 tokens, then keep_start; packing bfd
  memory: weights    256.6 MiB
  memory: optimizer  1.5 GiB
  memory: total      1.8 GiB
  expected time      2 min
",
        plan.hash()
    );
    assert_eq!(plan.to_table(), expected);
}
