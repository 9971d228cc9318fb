//! Recipes carried out whole, on tiny models: what is written loads again and is the model that was trained.

mod common;

use std::path::Path;

use common::*;
use pt_engine::Dtype;
use pt_models::Model;
use pt_pipeline::model::{load_model, tokenizer_at};
use pt_pipeline::{StageReport, prepare, stop_token_ids};
use pt_recipe::Method;
use serde_json::Value;

fn dtype_of(prepared: &pt_pipeline::Prepared) -> Dtype {
    pt_pipeline::model::engine_dtype(prepared.recipe.model.dtype)
}

/// The model a stage wrote, as a person would load it: the folder, or the adapter beside its base.
fn written(prepared: &pt_pipeline::Prepared, run: &Path, stage: usize, report: &StageReport) -> Model {
    let output = run.join(&report.output);
    let section = &prepared.recipe.stage[stage];
    let dtype = Some(dtype_of(prepared));
    if section.train.method == Method::Full {
        return load_model(&output, dtype).unwrap();
    }
    let config: Value =
        serde_json::from_slice(&std::fs::read(output.join("adapter_config.json")).unwrap()).unwrap();
    // A base named by the run is seen from the adapter's folder.
    let base = output.join(config["base_model_name_or_path"].as_str().expect("the adapter names its base"));
    let mut model = load_model(&base, dtype).unwrap();
    pt_pipeline::stage::quantise_model(&mut model, section).unwrap();
    model.attach_peft(&output).unwrap();
    model
}

/// Runs a recipe, and checks of every stage that its loss falls and that what it wrote has the held-out loss that the
/// model in memory had: a function of every log-probability, equal to the last bit.
fn check(name: &str, text: &str, sets: &[&str]) {
    let dir = tempdir();
    let (reports, seen) = finish(text, sets, dir.path());
    let prepared = prepare(recipe(text, sets), &nothing_around()).unwrap();
    for (i, (report, planned)) in reports.iter().zip(&prepared.plan.stages).enumerate() {
        let at = format!("{name}, stage {}", planned.name);
        let (first, last) = seen.fall(&planned.name);
        assert!(last < first - 0.05, "{at}: loss {first} to {last}");
        let model = written(&prepared, dir.path(), i, report);
        let tokenizer = tokenizer_at(&dir.path().join(&report.output)).unwrap();
        assert_eq!(tokenizer.content_hash(), prepared.tokenizer.content_hash(), "{at}");
        if prepared.stages[i].eval.is_empty() {
            continue;
        }
        let step = report.best_step.unwrap_or(planned.steps);
        let evals = metric(dir.path(), &pt_recipe::Plan::stage_label(planned), "eval_loss");
        let measured = evals.iter().find(|(s, _)| *s == step).unwrap().1;
        assert_eq!(
            eval_loss(model, &prepared, i),
            measured,
            "{at}: the written model is not the trained one"
        );
        if report.best_step.is_none() {
            assert_eq!(report.eval_loss, Some(measured), "{at}");
        }
    }
}

#[test]
fn new_models_are_pretrained_and_taught() {
    let text = format!("{NEW_MODEL}{PRETRAIN}{}", without_tasks(SFT));
    for (name, sets) in [
        ("bf16", &[][..]),
        ("f32", &["model.dtype=f32"]),
        ("recomputed", &["stage.sft.train.recompute=block", "stage.pretrain.data.packing=sequential"]),
        ("untied", &["model.new.tie_word_embeddings=false", "stage.sft.optimizer.type=muon"]),
    ] {
        check(name, &text, sets);
    }
}

#[test]
fn adapters_are_trained_beside_a_base() {
    let text = format!("{}{}", on_base(), without_tasks(SFT));
    for (name, sets) in [
        ("full", &["stage.sft.train.method=full"][..]),
        ("lora", &["stage.sft.train.method=lora"]),
        ("lora, f32", &["stage.sft.train.method=lora", "model.dtype=f32"]),
        ("dora", &["stage.sft.train.method=lora", "stage.sft.lora.dora=true"]),
        ("some layers", &["stage.sft.train.method=lora", "stage.sft.lora.targets=[\"q_proj\",\"v_proj\"]"]),
        ("qlora", &["stage.sft.train.method=qlora"]),
        ("qlora, int8", &["stage.sft.train.method=qlora", "stage.sft.quantization.type=int8"]),
    ] {
        let faster: Vec<&str> = sets
            .iter()
            .copied()
            .chain(["stage.sft.data.train=[\"generated:digits?level=1&n=120\"]"])
            .collect();
        check(name, &text, &faster);
    }
}

#[test]
fn a_stage_after_an_adapter_trains_the_merged_model() {
    let text = format!("{}{}{}{}", on_base(), without_tasks(SFT), without_tasks(SFT), without_tasks(SFT));
    let other = "data.train=[\"generated:digits?level=1&n=120\"]";
    let other = [format!("stage.0.{other}"), format!("stage.1.{other}"), "stage.2.train.steps=12".to_owned()];
    for methods in [["lora", "lora", "full"], ["qlora", "lora", "qlora"]] {
        let mut sets = other.to_vec();
        sets.extend(methods.iter().enumerate().map(|(i, m)| format!("stage.{i}.train.method={m}")));
        sets.push("stage.0.lora.targets=[\"q_proj\",\"up_proj\"]".to_owned());
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        let dir = tempdir();
        let (reports, _) = finish(&text, &sets, dir.path());
        let prepared = prepare(recipe(&text, &sets), &nothing_around()).unwrap();
        for stage in 0..2 {
            let label = pt_recipe::Plan::stage_label(&prepared.plan.stages[stage]);
            let merged = load_model(&dir.path().join("stages").join(label).join("model"), None).unwrap();
            assert!(merged.params.iter().all(|(_, param)| !param.weight.is_quantised()), "{methods:?}");
            let apart = written(&prepared, dir.path(), stage, &reports[stage]);
            let losses = [eval_loss(apart, &prepared, stage), eval_loss(merged, &prepared, stage)];
            // Merging rounds each weight once more, to bf16's 8 bits.
            assert!((losses[0] - losses[1]).abs() < 0.02, "{methods:?}: {losses:?}");
        }
    }
}

#[test]
fn a_principal_adapter_is_written_beside_the_base_it_was_taken_out_of() {
    let text = format!("{}{}", on_base(), without_tasks(SFT));
    let sets = [
        "stage.sft.train.method=lora",
        "stage.sft.lora.init=pissa",
        "stage.sft.lora.rank=4",
        "model.dtype=f32",
    ];
    let dir = tempdir();
    let (reports, _) = finish(&text, &sets, dir.path());
    let prepared = prepare(recipe(&text, &sets), &nothing_around()).unwrap();
    let loss = eval_loss(written(&prepared, dir.path(), 0, &reports[0]), &prepared, 0);
    // The base here is whole, and the adapter takes its principal part out again: f32 rounds both.
    let trained = reports[0].eval_loss.unwrap();
    assert!((loss - trained).abs() < 1e-4, "{loss} and {trained}");
}

#[test]
fn tasks_are_measured_before_and_after() {
    let dir = tempdir();
    let text = format!("{}{SFT}", on_base());
    let (reports, _) = finish(&text, &[], dir.path());
    let [gain] = reports[0].gains.as_slice() else { panic!("one task: {:?}", reports[0].gains) };
    assert_eq!(gain.n, 6);
    assert!(gain.interval95.0 <= gain.difference && gain.difference <= gain.interval95.1);
    for (when, share) in [("before", gain.before), ("after", gain.after)] {
        let path = dir.path().join(format!("stages/01-sft/eval/tasks-{when}.json"));
        let scores: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(scores[0]["accuracy"], share);
        assert_eq!(scores[0]["samples"].as_array().unwrap().len(), 6);
    }
    let outcome = std::fs::read(dir.path().join("stages/01-sft/outcome.json")).unwrap();
    assert_eq!(serde_json::from_slice::<StageReport>(&outcome).unwrap(), reports[0]);
}

#[test]
fn the_best_checkpoint_is_what_is_written() {
    // Four rows learned by heart: the held-out loss falls, then rises.
    let text = format!("{}{}", on_base(), without_tasks(SFT));
    let sets = [
        "stage.sft.data.train=[\"generated:letters?level=1&n=4&seed=2\"]",
        "stage.sft.train.steps=40",
        "stage.sft.train.eval_every=4",
        "stage.sft.optimizer.learning_rate=0.02",
    ];
    check("best", &text, &sets);
    let dir = tempdir();
    let (reports, _) = finish(&text, &sets, dir.path());
    let evals = metric(dir.path(), "01-sft", "eval_loss");
    let best = evals.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!(reports[0].best_step, Some(best.0), "{evals:?}");
    assert!(best.0 < 40, "{evals:?}");
    let without = [&sets[..], &["stage.sft.train.keep_best=false"]].concat();
    let (reports, _) = finish(&text, &without, &dir.path().join("last"));
    assert_eq!(reports[0].best_step, None);
}

#[test]
fn written_models_say_where_a_turn_ends() {
    let config: Value =
        serde_json::from_slice(&std::fs::read(base_model().join("generation_config.json")).unwrap()).unwrap();
    let tokenizer = tokenizer_at(base_model()).unwrap();
    let template = pt_pipeline::model::chat_template(None, &tokenizer).unwrap();
    let stop = stop_token_ids(&tokenizer, template.as_ref());
    assert_eq!(stop, [tokenizer.token_to_id("<|im_end|>").unwrap()]);
    assert_eq!(config["eos_token_id"], stop[0]);
    assert_eq!(config["pad_token_id"], tokenizer.token_to_id("<|pad|>").unwrap());
}

#[test]
fn other_keys_of_a_generation_config_stay() {
    let dir = tempdir();
    let base = dir.path().join("base");
    std::fs::create_dir(&base).unwrap();
    for (path, bytes) in files(base_model()) {
        std::fs::write(base.join(path), bytes).unwrap();
    }
    std::fs::write(base.join("generation_config.json"), "{\"temperature\": 0.6, \"eos_token_id\": [2, 7]}")
        .unwrap();
    let text = format!("seed = 3\n[model]\nbase = {base:?}\n{}", without_tasks(SFT));
    let (reports, _) = finish(&text, &["stage.sft.train.steps=2"], &dir.path().join("run"));
    let written = dir.path().join("run").join(&reports[0].output).join("generation_config.json");
    let config: Value = serde_json::from_slice(&std::fs::read(written).unwrap()).unwrap();
    assert_eq!(config["temperature"], 0.6);
    let ends: Vec<u64> =
        config["eos_token_id"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect();
    let im_end = u64::from(tokenizer_at(&base).unwrap().token_to_id("<|im_end|>").unwrap());
    assert!([im_end, 2, 7].iter().all(|id| ends.contains(id)), "{config}");
}

#[test]
fn a_template_of_ones_own_is_written_with_the_model() {
    let dir = tempdir();
    let template = dir.path().join("mine.jinja");
    let source = "{{ strftime_now('%d %B %Y') }}\n{% for m in messages %}{{ '<|im_start|>' + m['role'] + ': ' + \
                  m['content'] + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' \
                  }}{% endif %}";
    std::fs::write(&template, source).unwrap();
    let text = format!("{}{}", on_base(), without_tasks(SFT));
    let set = format!("stage.sft.data.chat_template={}", template.display());
    let (reports, seen) = finish(&text, &[&set, "stage.sft.train.steps=4"], &dir.path().join("run"));
    // Whatever the day, so that a resumed run trains on the same rows.
    assert!(seen.notes.iter().any(|note| note.contains("26 July 2024")), "{:?}", seen.notes);
    let tokenizer = tokenizer_at(&dir.path().join("run").join(&reports[0].output)).unwrap();
    assert_eq!(tokenizer.config().chat_template(None).unwrap(), source);
    let prepared = prepare(recipe(&text, &[&set]), &nothing_around()).unwrap();
    let ids = &prepared.stages[0].eval[0].examples()[0].token_ids;
    let row = prepared.tokenizer.decode(ids, false).unwrap();
    assert!(row.starts_with("26 July 2024\n<|im_start|>user: "), "{row}");
}

#[test]
fn a_llama2c_file_is_a_base_too() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let base = data.join("stories260K/stories260K.bin");
    let text = format!("seed = 3\n[model]\nbase = {base:?}\n[[stage]]\ntype = \"sft\"\neval.n = 1\n");
    // Its words are those of children's stories; what is learned here is another way of writing.
    check(
        "llama2.c",
        &text,
        &[
            "stage.sft.data.train=[\"generated:raw?chars=6000\"]",
            "stage.sft.data.eval_fraction=0.1",
            "stage.sft.train.steps=8",
            "stage.sft.optimizer.learning_rate=1e-3",
        ],
    );
}
