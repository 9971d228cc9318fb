//! `posttrain run`: carries out a recipe.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};
use pt_pipeline::{RunOptions, RunOutcome, StageReport, matrix_peak, model};
use pt_recipe::{AnyStage, Plan, Product, product_of};

use super::plan::{check_memory, prepared};
use crate::Context;
use crate::environment::default_run_folder;
use crate::ui::{Style, TrainingView, note};

/// Plans a recipe, then runs its stages one after the other into a run folder: plan.json, metrics.jsonl, TensorBoard
/// files, checkpoints, each stage's model or adapter as a Hugging Face folder, and a report.html about it all.
///
/// Ctrl-C finishes the step, saves it and stops; a second Ctrl-C stops at once. `--resume` goes on, with the same
/// bytes as if the run had never stopped, also after a crash.
///
/// Example:
///   posttrain run recipes/quickstart.toml
///   posttrain run my.toml --out runs/first --set stage.sft.train.epochs=1
///   posttrain run my.toml --out runs/first --resume
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The recipe
    recipe: PathBuf,
    /// The run folder [default: runs/NAME, with a number if that is taken]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Change a key: `stage.sft.optimizer.learning_rate=1e-4` (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Where to compute
    #[arg(long, default_value = "cpu", value_parser = ["cpu"])]
    device: String,
    /// Go on with the run in --out
    #[arg(long, requires = "out")]
    resume: bool,
    /// Take over stages that are the same from these runs, instead of running them again (may be repeated) [default: the other runs
    /// in runs/, where --out is not given]
    #[arg(long, value_name = "RUN")]
    reuse: Vec<PathBuf>,
    /// Run every stage, whatever other runs have done
    #[arg(long, conflicts_with = "reuse")]
    fresh: bool,
    /// Show where the time of each stage's steps went, by operation
    #[arg(long)]
    profile: bool,
    /// Write no report.html into the run folder when the run is finished
    #[arg(long)]
    no_report: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    if let Some(out) = &args.out {
        check_folder(out, args.resume)?;
    }
    let known = args.out.as_ref().filter(|_| args.resume).and_then(|out| known_plan(out));
    let prepared = prepared(&args.recipe, &args.sets, known.as_ref(), context)?;
    note(&prepared.plan.to_table());
    check_memory(&prepared)?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => default_run_folder(&prepared.plan.name),
    };
    let stop = stop_on_interrupt()?;
    let options = RunOptions { out: out.clone(), resume: args.resume, reuse: reusable(args, &out) };
    let plan = prepared.plan.clone();
    let peak = matrix_peak(model::engine_dtype(prepared.recipe.model.dtype));
    let mut view = TrainingView::new(context.errors, peak, args.profile);
    let surroundings = context.environment.surroundings();
    let outcome = pt_pipeline::run(prepared, &options, &surroundings, &mut view, &stop)
        .with_context(|| format!("in the run {}", out.display()))?;
    match outcome {
        RunOutcome::Finished(reports) => {
            planned_against_actual(&plan, &view, context.errors).iter().for_each(|line| note(line));
            finish(&out, &reports, &plan)?;
            if !args.no_report {
                super::report::after_run(&out);
            }
            Ok(())
        }
        RunOutcome::Interrupted { stage, step } => {
            note(&format!("stopped after step {step} of {stage}, which is saved; go on with"));
            note(&format!("  posttrain run {} --out {} --resume", args.recipe.display(), out.display()));
            Ok(())
        }
    }
}

/// Runs whose stages may be taken over: those named, or the ones beside a run folder that was chosen here.
fn reusable(args: &Args, out: &Path) -> Vec<PathBuf> {
    if args.fresh || args.out.is_some() || !args.reuse.is_empty() {
        return args.reuse.clone();
    }
    let beside = out.parent().and_then(|parent| std::fs::read_dir(parent).ok());
    let mut runs: Vec<PathBuf> = beside
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|run| run != out)
        .collect();
    runs.sort();
    runs
}

/// The plan of the run that is to go on; what is wrong with it is said when its folder is opened.
pub(super) fn known_plan(out: &Path) -> Option<Plan> {
    serde_json::from_slice(&std::fs::read(out.join("plan.json")).ok()?).ok()
}

/// Before anything is read: a folder that is taken, or nothing to go on with.
fn check_folder(out: &Path, resume: bool) -> anyhow::Result<()> {
    match (out.join("plan.json").exists(), resume) {
        (true, false) => bail!(
            "{} holds a run already; continue it with --resume, or choose another folder with --out",
            out.display()
        ),
        (false, true) => note(&format!("nothing to go on with in {}: starting the run there", out.display())),
        _ => {}
    }
    Ok(())
}

/// Asks the run to stop between steps; a second signal ends the program.
pub(super) fn stop_on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let handle = stop.clone();
    ctrlc::set_handler(move || {
        if handle.swap(true, Ordering::Relaxed) {
            // The user insists; checkpoints are whole or absent, so nothing is lost but the step.
            #[allow(clippy::exit, reason = "the second signal asks for exactly this")]
            std::process::exit(130);
        }
        note("finishing this step, then saving; press again to stop at once");
    })
    .context("cannot watch for Ctrl-C")?;
    Ok(stop)
}

/// Memory and time as planned and as they were, for the stages that were trained now.
fn planned_against_actual(plan: &Plan, view: &TrainingView, style: Style) -> Vec<String> {
    const MIB: f64 = (1u64 << 20) as f64;
    let mut lines = Vec::new();
    for stage in &plan.stages {
        let Some(actual) = view.measured().iter().find(|time| time.name == stage.name && time.steps > 0)
        else {
            continue;
        };
        let seconds = stage.expected_seconds * actual.steps as f64 / stage.steps as f64;
        let bytes: u64 = stage.memory.iter().map(|part| part.bytes).sum();
        lines.push(style.dim(&format!(
            "  {:10} {:.0} s planned, {:.0} s taken; {:.0} MiB planned, {:.0} MiB used",
            stage.name,
            seconds,
            actual.seconds,
            bytes as f64 / MIB,
            actual.peak_bytes as f64 / MIB,
        )));
    }
    if !lines.is_empty() {
        lines.insert(0, style.dim("planned against actual: training time, memory in buffers"));
    }
    lines
}

/// Says where the result is and what can be done with it: the last model that was trained or merged.
fn finish(out: &Path, reports: &[StageReport], plan: &Plan) -> anyhow::Result<()> {
    let stages = plan.all_stages();
    let makes_model =
        |stage: &AnyStage<'_>| matches!(product_of(stage.kind()), Product::Model | Product::Scorer);
    let Some((last, report)) = stages.iter().zip(reports).rev().find(|(stage, _)| makes_model(stage)) else {
        note(&format!("the run is in {}", out.display()));
        return Ok(());
    };
    let path = out.join(&report.output);
    note(&format!("the run is in {}, its result in {}", out.display(), path.display()));
    let kind = last.kind();
    if kind == "prm" {
        // It scores steps, and no command reads those yet.
        return Ok(());
    }
    let (command, data) = match kind {
        "reward" => ("score", " --data FILE --out rewards.jsonl"),
        _ => ("chat", ""),
    };
    if !path.join("adapter_config.json").exists() {
        note(&format!("  posttrain {command} --model {}{data}", path.display()));
        return Ok(());
    }
    // An adapter stands on what an earlier stage wrote, or on the recipe's base.
    let reads = last.reads();
    let before = reads.first().and_then(|name| plan.stage_named(name));
    let under = match before {
        Some(before) => out.join("stages").join(before.label()).join("model").display().to_string(),
        None => plan.model.base.as_deref().unwrap_or("MODEL").to_owned(),
    };
    note(&format!("  posttrain {command} --model {under} --adapter {}{data}", path.display()));
    if kind == "reward" {
        return Ok(());
    }
    note(&format!("  posttrain merge --model {under} --adapter {} --out MERGED", path.display()));
    Ok(())
}
