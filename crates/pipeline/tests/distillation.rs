//! Generalised knowledge distillation: a student learns its teacher's distribution on rows, on the teacher's samples, on its own.

mod common;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::*;
use pt_pipeline::{RunOutcome, catalogue};
use pt_recipe::Recipe;
use pt_run::{Difference, compare_runs};
use tempfile::TempDir;

const STAGE: &str = "01-sft";

/// The base model gone astray, which is to come back: made once for each test program.
fn student() -> &'static Path {
    static STUDENT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = STUDENT.get_or_init(|| {
        let dir = tempdir();
        let text = format!(
            "{}[[stage]]\ntype = \"sft\"\ndata.train = [\"generated:sum?level=1&n=60&seed=4\"]\ntrain.steps = 12\n\
             optimizer.learning_rate = 5e-3\neval.n = 1\neval.max_new_tokens = 1\n",
            on_base()
        );
        let (reports, _) = finish(&text, &[], &dir.path().join("run"));
        let path = dir.path().join("run").join(&reports[0].output);
        (dir, path)
    });
    path
}

fn gkd(keys: &str) -> String {
    format!(
        "seed = 3\n[model]\nbase = {:?}\n[[stage]]\ntype = \"gkd\"\nname = \"sft\"\ndistillation.teacher = {:?}\n\
         data.train = [\"generated:letters?level=1&n=40&seed=2\"]\ntrain.rows_per_step = 8\ntrain.steps = 30\n\
         train.log_every = 1\nrollout.max_new_tokens = 6\noptimizer.learning_rate = 3e-3\neval.n = 1\neval.max_new_tokens = 1\n{keys}",
        student(),
        base_model()
    )
}

fn values(run: &Path, key: &str) -> Vec<f64> {
    metric(run, STAGE, key).into_iter().map(|(_, value)| value).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn the_student_comes_nearer_whatever_the_divergence_and_whoever_writes() {
    for (what, keys, on_policy) in [
        ("forward, rows", "objective.beta = 0.0\ndistillation.lmbda = 0.0\n", 0.0..=0.0),
        ("reverse, rows", "objective.beta = 1.0\ndistillation.lmbda = 0.0\n", 0.0..=0.0),
        ("own samples", "distillation.lmbda = 1.0\n", 1.0..=1.0),
        ("teacher's samples", "distillation.lmbda = 0.0\ndistillation.seq_kd = true\n", 0.0..=0.0),
        (
            "both, tempered, an adapter",
            "objective.temperature = 2.0\ntrain.method = \"lora\"\nlora.rank = 8\n",
            0.2..=0.8,
        ),
    ] {
        let dir = tempdir();
        let out = dir.path().join("run");
        let (_, seen) = finish(&gkd(keys), &[], &out);
        let divergence = values(&out, "divergence");
        assert_eq!(divergence, seen.losses.iter().map(|(.., loss)| *loss).collect::<Vec<_>>(), "{what}");
        let (first, last) = (mean(&divergence[..3]), mean(&divergence[25..]));
        assert!(first > 0.0 && last < 0.8 * first, "{what}: {first} to {last}");
        assert!(on_policy.contains(&mean(&values(&out, "on_policy"))), "{what}");
        let sampled = values(&out, "completions/mean_length");
        assert_eq!(sampled.is_empty(), what.contains("rows"), "{what}");
    }
}

/// A teacher that is the student has nothing to teach: loss and gradient are zero but for rounding.
#[test]
fn a_student_of_itself_does_not_move() {
    let dir = tempdir();
    let out = dir.path().join("run");
    let text = gkd("distillation.lmbda = 0.0\ntrain.max_grad_norm = 0.0\n")
        .replace(&format!("{:?}", student()), &format!("{:?}", base_model()));
    finish(&text, &["stage.0.train.steps=2", "model.dtype=f32"], &out);
    // f32 sums over a vocabulary of 300.
    const ROUNDING: f64 = 1e-6;
    assert!(values(&out, "divergence")[0].abs() < ROUNDING, "{:?}", values(&out, "divergence"));
    assert!(values(&out, "grad_norm")[0] < 1e-4, "{:?}", values(&out, "grad_norm"));
}

#[test]
fn held_out_rows_are_compared_with_the_teacher_too() {
    let dir = tempdir();
    let keys =
        "data.eval = [\"generated:letters?level=1&n=10&seed=2&split=heldout\"]\ntrain.eval_every = 10\n";
    let (_, seen) = finish(&gkd(keys), &[], &dir.path().join("run"));
    let losses: Vec<f64> = seen.evals.iter().map(|(.., loss)| *loss).collect();
    assert!(losses.len() == 3 && losses[2] < losses[0], "{losses:?}");
}

#[test]
fn a_resumed_run_ends_in_the_same_bytes() {
    let text = gkd("distillation.seq_kd = true\ntrain.save_every = 2\n");
    let sets = ["stage.0.train.steps=6"];
    let dir = tempdir();
    let [whole, cut] = ["whole", "cut"].map(|name| dir.path().join(name));
    finish(&text, &sets, &whole);
    for step in [1, 3, 4] {
        let mut seen = Seen::stopping(StopAt::Step("sft", step));
        assert!(matches!(go(&text, &sets, &cut, &mut seen).unwrap(), RunOutcome::Interrupted { .. }));
    }
    finish(&text, &sets, &cut);
    let only_there = |d: &Difference| !matches!(d, Difference::CheckpointOnlyIn { .. });
    let differences: Vec<_> = compare_runs(&whole, &cut).unwrap().into_iter().filter(only_there).collect();
    assert!(differences.is_empty(), "{differences:?}");
}

#[test]
fn the_teacher_is_part_of_the_planned_memory() {
    let plan = prepared(&gkd(""), &[]).plan;
    let bytes =
        |name: &str| plan.stages[0].memory.iter().find(|part| part.part == name).map(|part| part.bytes);
    assert_eq!(bytes("teacher"), bytes("weights"));
    assert!(plan.stages[0].rewards.is_empty());
}

#[test]
fn what_cannot_be_distilled_is_refused() {
    let check = |text: &str, expected: &str| {
        let problem = match Recipe::parse(text, Path::new("t.toml"), &[], &catalogue()) {
            Err(problem) => problem.to_string(),
            Ok(_) => refusal(text, &[]),
        };
        assert!(problem.contains(expected), "{problem}\nshould say: {expected}");
    };
    let golden = pt_core::testdata::workspace_root().join("golden/models/llama").display().to_string();
    let base = format!("{:?}", base_model());
    check(&gkd("").replace("distillation.teacher", "# "), "which teacher?");
    check(&gkd("").replace(&format!("teacher = {base}"), &format!("teacher = {golden:?}")), "the teacher `");
    check(&gkd("objective.type = \"cross_entropy\"\n"), "set objective.type to one of gkd");
    check(&gkd("").replace("\"gkd\"", "\"sft\""), "has no effect with `type = \"sft\"`");
    check(&gkd("rollout.baseline = \"batch\"\n"), "has no effect with `type = \"gkd\"`");
    check(
        &gkd("[[stage.reward]]\ntype = \"contains\"\nrequired = [\"a\"]\n"),
        "has no effect with `type = \"gkd\"`",
    );
    check(&gkd("reference.sync_steps = 3\n"), "has no effect with `type = \"gkd\"`");
    let sft = gkd("objective.type = \"gkd\"\n").replace("type = \"gkd\"\nname", "type = \"sft\"\nname");
    let sft: String = sft
        .lines()
        .filter(|l| !l.starts_with("distillation") && !l.starts_with("rollout"))
        .map(|l| format!("{l}\n"))
        .collect();
    check(&sft, "nothing of a teacher");
    let raw = gkd("").replace("generated:letters?level=1&n=40&seed=2", "generated:raw?chars=4000&seed=1");
    check(&raw, "have no prompt to sample from");
    check(&gkd("data.packing = \"wrapped\"\n"), "have no prompt to sample from");
}
