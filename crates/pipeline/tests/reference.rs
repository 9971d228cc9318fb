//! The reference policy: another model, one that follows the policy, and log-probabilities kept between runs.

mod common;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use common::*;
use pt_pipeline::{RunOptions, RunOutcome, Surroundings, prepare, run};
use pt_run::{Difference, compare_runs};
use tempfile::TempDir;

const PAIRS: &str = "generated:sum?level=1&n=48&seed=5&form=preference";
const LORA: &str = "train.method = \"lora\"\nlora.rank = 4\n";

/// A stage of this type on the base model, with more keys.
fn recipe_of(kind: &str, keys: &str) -> String {
    format!(
        "{}dtype = \"f32\"\n[[stage]]\ntype = \"{kind}\"\nname = \"sft\"\ndata.train = [{PAIRS:?}]\ndata.max_length = 128\n\
         train.rows_per_step = 8\ntrain.steps = 6\ntrain.log_every = 1\nschedule.type = \"constant\"\n\
         optimizer.learning_rate = 1e-3\neval.n = 1\neval.max_new_tokens = 1\n{keys}\n",
        on_base()
    )
}

/// The base model after a few steps on other text: made once for each test program.
fn other_model() -> &'static Path {
    static OTHER: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = OTHER.get_or_init(|| {
        let dir = tempdir();
        let text = format!(
            "{}[[stage]]\ntype = \"sft\"\ndata.train = [\"generated:sum?level=1&n=60&seed=4\"]\ntrain.steps = 10\n\
             optimizer.learning_rate = 5e-3\neval.n = 1\neval.max_new_tokens = 1\n",
            on_base()
        );
        let (reports, _) = finish(&text, &[], &dir.path().join("run"));
        let path = dir.path().join("run").join(&reports[0].output);
        (dir, path)
    });
    path
}

fn margins(out: &Path) -> Vec<f64> {
    metric(out, "01-sft", "rewards/margins").into_iter().map(|(_, margin)| margin).collect()
}

fn named(path: &Path) -> String {
    format!("reference.model = {:?}\n", path.display().to_string())
}

#[test]
fn another_model_is_the_reference_if_the_stage_says_so() {
    let dir = tempdir();
    for (method, keys) in [("full", ""), ("lora", LORA)] {
        let out = |name: &str| dir.path().join(format!("{method}-{name}"));
        finish(&recipe_of("dpo", keys), &[], &out("own"));
        finish(&recipe_of("dpo", &format!("{keys}{}", named(base_model()))), &[], &out("same"));
        finish(&recipe_of("dpo", &format!("{keys}{}", named(other_model()))), &[], &out("other"));
        assert_eq!(margins(&out("own"))[0], 0.0, "{method}");
        // The model the stage begins with, by its name.
        assert_eq!(margins(&out("same")), margins(&out("own")), "{method}");
        // Nothing is refused where the two differ, and the margin begins there.
        assert!(margins(&out("other"))[0].abs() > 1e-4, "{method}: {:?}", margins(&out("other")));
    }
    let kto = recipe_of("kto", &named(other_model()));
    let (_, seen) = finish(&kto, &[], &dir.path().join("kto"));
    assert!(seen.losses.iter().all(|(.., loss)| loss.is_finite()));
}

/// After a hard update the policy is its reference again, bit for bit.
#[test]
fn a_reference_follows_the_policy() {
    for (method, keys) in
        [("full", ""), ("lora", LORA), ("qlora", "train.method = \"qlora\"\nlora.rank = 4\n")]
    {
        let dir = tempdir();
        let out = |name: &str| dir.path().join(name);
        let with = |sync: &str| recipe_of("dpo", &format!("{keys}{sync}"));
        finish(&with(""), &[], &out("fixed"));
        finish(&with("reference.sync_steps = 2\nreference.mixup_alpha = 1.0\n"), &[], &out("hard"));
        finish(&with("reference.sync_steps = 2\nreference.mixup_alpha = 0.5\n"), &[], &out("soft"));
        let [fixed, hard, soft] = ["fixed", "hard", "soft"].map(|name| margins(&out(name)));
        assert_eq!(fixed[..2], hard[..2], "{method}: until the first update nothing differs");
        assert_eq!(fixed[..2], soft[..2], "{method}");
        assert!(hard[2] == 0.0 && hard[4] == 0.0 && hard[3] != 0.0, "{method}: {hard:?}");
        assert!(soft[2] != 0.0 && soft[2] != fixed[2], "{method}: {soft:?} and {fixed:?}");
    }
}

#[test]
fn a_resumed_run_with_a_moving_reference_ends_in_the_same_bytes() {
    let grpo = "data.train = [\"generated:letters?level=1&n=40&seed=5&form=prompt_only\"]\nrollout.n = 4\n\
                rollout.max_new_tokens = 5\nrollout.passes = 2\nrollout.alarms = \"off\"\nobjective.beta = 0.1\n\
                [[stage.reward]]\ntype = \"contains\"\nrequired = [\"a\", \"e\"]\npartial = true\n";
    let sync = "reference.sync_steps = 2\nreference.mixup_alpha = 0.7\ntrain.save_every = 1\n";
    let sampled = recipe_of("grpo", sync).replace(&format!("data.train = [{PAIRS:?}]\n"), "") + grpo;
    let held_out = "data.eval_fraction = 0.2\n";
    for (what, text) in [
        ("dpo", recipe_of("dpo", &format!("{sync}{held_out}"))),
        ("dpo with an adapter", recipe_of("dpo", &format!("{LORA}{sync}"))),
        ("dpo from another model", recipe_of("dpo", &format!("{sync}{}", named(other_model())))),
        ("grpo", sampled),
    ] {
        let dir = tempdir();
        let [whole, cut] = ["whole", "cut"].map(|name| dir.path().join(name));
        finish(&text, &[], &whole);
        // Before an update, after it, and in the middle of a round.
        for step in [2, 3, 5] {
            let mut seen = Seen::stopping(StopAt::Step("sft", step));
            assert!(
                matches!(go(&text, &[], &cut, &mut seen).unwrap(), RunOutcome::Interrupted { .. }),
                "{what}"
            );
        }
        finish(&text, &[], &cut);
        let only_there = |d: &Difference| !matches!(d, Difference::CheckpointOnlyIn { .. });
        let differences: Vec<_> =
            compare_runs(&whole, &cut).unwrap().into_iter().filter(only_there).collect();
        assert!(differences.is_empty(), "{what}: {differences:?}");
    }
}

fn run_with_cache(text: &str, out: &Path, cache: &Path) -> Vec<f64> {
    let surroundings = Surroundings { cache_dir: Some(cache.to_owned()), ..nothing_around() };
    let prepared = prepare(recipe(text, &[]), &surroundings).unwrap();
    let options = RunOptions { out: out.to_owned(), resume: false, reuse: Vec::new() };
    let outcome = run(prepared, &options, &surroundings, &mut Quiet, &AtomicBool::new(false)).unwrap();
    assert!(matches!(outcome, RunOutcome::Finished(_)));
    margins(out)
}

fn kept(cache: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    files(cache).into_iter().filter(|(path, _)| path.starts_with("reference-logp")).collect()
}

#[test]
fn log_probabilities_are_kept_by_content_and_used_again() {
    let dir = tempdir();
    let (cache, out) = (dir.path().join("cache"), |name: &str| dir.path().join(name));
    let first = run_with_cache(&recipe_of("dpo", ""), &out("first"), &cache);
    let files = kept(&cache);
    assert_eq!(files.len(), 1, "{:?}", files.iter().map(|(path, _)| path).collect::<Vec<_>>());
    // Another run, other options, an adapter of the same base, fewer rows: the same model says the same of the same rows.
    for (name, keys) in [
        ("again", ""),
        ("hotter", "objective.beta = 0.5\nseed = 4\n".split('\n').next().unwrap()),
        ("adapter", LORA),
        ("part", "data.eval_fraction = 0.3\n"),
    ] {
        let margins = run_with_cache(&recipe_of("dpo", keys), &out(name), &cache);
        assert_eq!(margins[0], 0.0, "{name}");
        assert_eq!(kept(&cache), files, "{name}: nothing new was to be scored");
        if name == "again" {
            assert_eq!(margins, first);
        }
    }
    // More rows: those that are new are added.
    let more = recipe_of("dpo", "").replace("n=48", "n=60");
    run_with_cache(&more, &out("more"), &cache);
    assert_eq!(kept(&cache).len(), 2);
    // Another model says other things.
    run_with_cache(&recipe_of("dpo", &named(other_model())), &out("other"), &cache);
    assert_eq!(kept(&cache).len(), 3);
}

/// Values that do not belong to the policy, whatever they claim, are found out before the first step and computed again.
#[test]
fn wrong_values_are_not_believed() {
    let dir = tempdir();
    let (cache, out) = (dir.path().join("cache"), |name: &str| dir.path().join(name));
    let first = run_with_cache(&recipe_of("dpo", ""), &out("first"), &cache);
    for (path, bytes) in kept(&cache) {
        let (body, _) = bytes.split_at(bytes.len() - 64);
        let mut body = body.to_vec();
        // The values of the first row, after its key and their number.
        let n = u32::from_le_bytes(body[32..36].try_into().unwrap()) as usize;
        body[36..36 + 4 * n].copy_from_slice(&(-7.5f32).to_le_bytes().repeat(n));
        let rows: Vec<u8> = {
            // All rows, so that the first step has a wrong one.
            let mut at = 0;
            while at < body.len() {
                let n = u32::from_le_bytes(body[at + 32..at + 36].try_into().unwrap()) as usize;
                body[at + 36..at + 36 + 4 * n].copy_from_slice(&(-7.5f32).to_le_bytes().repeat(n));
                at += 36 + 4 * n;
            }
            body
        };
        let whole = [rows.as_slice(), pt_core::hash::of_bytes(&rows).as_bytes()].concat();
        std::fs::write(cache.join(path), whole).unwrap();
    }
    assert_eq!(run_with_cache(&recipe_of("dpo", ""), &out("second"), &cache), first);
}

#[test]
fn references_that_cannot_be_are_refused() {
    let with = |kind: &str, keys: &str| recipe_of(kind, keys);
    let check = |text: &str, expected: &str| {
        let problem =
            match pt_recipe::Recipe::parse(text, Path::new("t.toml"), &[], &pt_pipeline::catalogue()) {
                Err(problem) => problem.to_string(),
                Ok(_) => refusal(text, &[]),
            };
        assert!(problem.contains(expected), "{problem}\nshould say: {expected}");
    };
    check(
        &with("simpo", "reference.sync_steps = 4\n"),
        "neither its objective `simpo` nor its rewards compare with",
    );
    check(&with("reward", "reference.sync_steps = 4\n"), "has no effect with `type = \"reward\"`");
    check(&with("dpo", "reference.mixup_alpha = 0.5\n"), "give `reference.sync_steps`");
    check(&with("dpo", "reference.model = \"nowhere/to/be/found\"\n"), "is neither a folder nor a model");
    // At run time: another tokenizer, another architecture that would have to follow.
    let dir = tempdir();
    let other = dir.path().join("other-tokens");
    for (path, bytes) in files(base_model()) {
        std::fs::create_dir_all(other.join(&path).parent().unwrap()).unwrap();
        std::fs::write(other.join(path), bytes).unwrap();
    }
    let path = other.join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let [a, b] = [vocabulary["a"].clone(), vocabulary["e"].clone()];
    (vocabulary["a"], vocabulary["e"]) = (b, a);
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let refused = |keys: &str| {
        let text = with("dpo", keys);
        let mut seen = Seen::default();
        go(&text, &[], &dir.path().join("run"), &mut seen)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    assert!(refused(&named(&other)).contains("has another tokenizer"), "{}", refused(&named(&other)));
}
