//! `posttrain sweep`: variants of a recipe, run and compared.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, bail};
use pt_pipeline::{RunOptions, RunOutcome, StageReport, TaskGain, load_recipe, matrix_peak, model};
use pt_report::{Front, FrontPoint, Measure, Measured, front_page};
use pt_tasks::stats::{Z_95, wilson_interval};
use serde::Serialize;

use super::plan::{check_memory, prepared};
use super::run::{known_plan, stop_on_interrupt};
use crate::Context;
use crate::ui::{TrainingView, note};

/// Runs a recipe once for every combination of the given values, and compares what came out.
///
/// Each run has a folder of its own under --out. Stages that a combination has in common with one that ran before are taken over, not
/// run again. Killed or stopped, the same command goes on. Several seeds (`--vary seed=[1,2,3]`) are put together as mean and spread.
/// Where the last stage measures two tasks or more, front.html draws them against each other and marks the Pareto front.
///
/// Example:
///   posttrain sweep my.toml --out sweeps/lr --vary stage.sft.optimizer.learning_rate=[1e-4,2e-4] --vary seed=[1,2,3]
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The recipe
    recipe: PathBuf,
    /// Where the runs go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A key and the values to try: `KEY=[V1,V2,...]` (may be repeated: every combination is run)
    #[arg(long = "vary", value_name = "KEY=[V,...]", required = true)]
    vary: Vec<String>,
    /// Change a key for all runs: `stage.sft.train.epochs=1` (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// A key and the values it takes.
struct Axis {
    key: String,
    values: Vec<String>,
}

/// `key=value` of each axis, in their order.
type Sets = Vec<(String, String)>;

/// One combination.
#[derive(Clone)]
struct Variant {
    sets: Sets,
}

/// One line of the result.
#[derive(Serialize)]
struct Line {
    run: PathBuf,
    sets: Sets,
    stages: Vec<StageReport>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let axes = args.vary.iter().map(|text| axis(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let variants = combinations(&axes);
    // What is wrong with the last is better known before the first has run.
    for variant in &variants {
        load_recipe(&args.recipe, &args.sets_of(variant))
            .with_context(|| format!("in the variant {}", label(variant)))?;
    }
    let stop = stop_on_interrupt()?;
    let (mut lines, mut runs): (Vec<Line>, Vec<PathBuf>) = (Vec::new(), Vec::new());
    for (i, variant) in variants.iter().enumerate() {
        let out = args.out.join(folder_name(i, variant));
        note(&format!("{} of {}: {}", i + 1, variants.len(), label(variant)));
        let Some(stages) = one(args, variant, &out, &runs, context, &stop)? else {
            note("stopped; the same command goes on");
            return Ok(());
        };
        runs.push(out.clone());
        lines.push(Line { run: out, sets: variant.sets.clone(), stages });
    }
    let text = serde_json::to_vec_pretty(&lines)?;
    let path = args.out.join("sweep.json");
    pt_core::atomic_file::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    show(&lines)?;
    note(&format!("all of it as JSON: {}", path.display()));
    if let Some(front) = front(&args.recipe, &lines) {
        let path = args.out.join("front.html");
        pt_core::atomic_file::write(&path, front_page(&front).as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        note(&format!(
            "the tasks against each other, with the variants that no other beats: {}",
            path.display()
        ));
    }
    Ok(())
}

/// The tasks of the last stage, measured after it, as a front; nothing unless there are two tasks, the same for all variants.
fn front(recipe: &Path, lines: &[Line]) -> Option<Front> {
    let gains = |line: &Line| line.stages.last().map(|stage| stage.gains.clone()).unwrap_or_default();
    let tasks: Vec<String> = gains(lines.first()?).into_iter().map(|gain| gain.task).collect();
    let is_same = |line: &Line| gains(line).iter().map(|gain| &gain.task).eq(&tasks);
    if tasks.len() < 2 || !lines.iter().all(is_same) {
        return None;
    }
    let measured = |gain: &TaskGain| {
        let n_right = (gain.after * gain.n as f64).round() as usize;
        Measured { value: gain.after, interval95: Some(wilson_interval(n_right.min(gain.n), gain.n, Z_95)) }
    };
    let short =
        |(key, value): &(String, String)| format!("{}={value}", key.rsplit('.').next().unwrap_or(key));
    let point = |line: &Line| FrontPoint {
        label: line.sets.iter().map(short).collect::<Vec<_>>().join(" "),
        values: gains(line).iter().map(measured).collect(),
    };
    Some(Front {
        title: format!("Variants of {}", recipe.file_name().unwrap_or_default().to_string_lossy()),
        varied: "variant".to_owned(),
        measures: tasks.iter().map(|task| Measure { name: task.clone(), higher_is_better: true }).collect(),
        points: lines.iter().map(point).collect(),
    })
}

impl Args {
    /// What changes the recipe into a variant.
    fn sets_of(&self, variant: &Variant) -> Vec<String> {
        self.sets.iter().cloned().chain(variant.sets.iter().map(|(k, v)| format!("{k}={v}"))).collect()
    }
}

/// Carries out one variant; `None` if it was asked to stop.
fn one(
    args: &Args,
    variant: &Variant,
    out: &Path,
    runs: &[PathBuf],
    context: &Context,
    stop: &AtomicBool,
) -> anyhow::Result<Option<Vec<StageReport>>> {
    let resume = out.join("plan.json").exists();
    let known = known_plan(out);
    let prepared = prepared(&args.recipe, &args.sets_of(variant), known.as_ref(), context)?;
    check_memory(&prepared)?;
    let peak = matrix_peak(model::engine_dtype(prepared.recipe.model.dtype));
    let mut view = TrainingView::new(context.errors, peak, false);
    let options = RunOptions { out: out.to_owned(), resume, reuse: runs.to_vec() };
    let surroundings = context.environment.surroundings();
    let outcome = pt_pipeline::run(prepared, &options, &surroundings, &mut view, stop)
        .with_context(|| format!("in the run {}", out.display()))?;
    Ok(match outcome {
        RunOutcome::Finished(stages) => Some(stages),
        RunOutcome::Interrupted { .. } => None,
    })
}

fn axis(text: &str) -> anyhow::Result<Axis> {
    let Some((key, values)) = text.split_once('=') else {
        bail!("--vary {text}: expected KEY=[V1,V2,...]");
    };
    let list: toml::Table = format!("values = {values}")
        .parse()
        .with_context(|| format!("--vary {text}: expected KEY=[V1,V2,...] with values as in TOML"))?;
    let values = match list.get("values") {
        Some(toml::Value::Array(values)) if !values.is_empty() => {
            values.iter().map(ToString::to_string).collect()
        }
        _ => bail!("--vary {text}: expected a list of values, as in {key}=[1,2]"),
    };
    Ok(Axis { key: key.trim().to_owned(), values })
}

/// Every combination, the last axis varying fastest.
fn combinations(axes: &[Axis]) -> Vec<Variant> {
    let mut all = vec![Variant { sets: Vec::new() }];
    for axis in axes {
        let longer = |variant: &Variant| {
            let with = |value: &String| {
                let mut sets = variant.sets.clone();
                sets.push((axis.key.clone(), value.clone()));
                Variant { sets }
            };
            axis.values.iter().map(with).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

fn label(variant: &Variant) -> String {
    variant.sets.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

/// A folder's name: the number, and the values as far as a file name holds them.
fn folder_name(index: usize, variant: &Variant) -> String {
    let short = |(key, value): &(String, String)| {
        let key = key.rsplit('.').next().unwrap_or(key);
        let plain: String =
            value.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
        format!("{key}-{}", plain.trim_matches('-'))
    };
    let values: Vec<String> = variant.sets.iter().map(short).collect();
    let name = format!("{:03}-{}", index + 1, values.join("-"));
    name.chars().take(80).collect()
}

/// What a stage says of itself in one number, and its name with the direction that is better.
fn headline(stage: &StageReport) -> Option<(&'static str, f64)> {
    let gains = &stage.gains;
    if !gains.is_empty() {
        return Some((
            "accuracy (larger is better)",
            gains.iter().map(|gain| gain.after).sum::<f64>() / gains.len() as f64,
        ));
    }
    // An eval stage speaks of the last model it measured.
    let measured: Vec<f64> = match stage.measures.last() {
        Some(last) => stage
            .measures
            .iter()
            .filter(|m| m.model == last.model && m.higher_is_better)
            .map(|m| m.value)
            .collect(),
        None => Vec::new(),
    };
    if !measured.is_empty() {
        return Some((
            "benchmarks' mean (larger is better)",
            measured.iter().sum::<f64>() / measured.len() as f64,
        ));
    }
    stage.eval_loss.map(|loss| ("held-out loss (smaller is better)", loss))
}

/// The headline of the last stage that has one.
fn last_headline(stages: &[StageReport]) -> Option<(&'static str, f64)> {
    stages.iter().rev().find_map(headline)
}

/// Headline, runs, mean and spread of runs that belong together: a row for each kind of headline among them.
fn summary(members: &[&Line]) -> Vec<[String; 4]> {
    let values: Vec<(&str, f64)> = members.iter().filter_map(|line| last_headline(&line.stages)).collect();
    let mut kinds: Vec<&str> = values.iter().map(|(kind, _)| *kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let row = |kind: &&str| {
        let values: Vec<f64> = values.iter().filter(|(k, _)| k == kind).map(|(_, value)| *value).collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        let spread =
            if values.len() > 1 { format!("{:.4}", (squares / (n - 1.0)).sqrt()) } else { "-".to_owned() };
        [values.len().to_string(), (*kind).to_owned(), format!("{mean:.4}"), spread]
    };
    let mut rows: Vec<[String; 4]> = kinds.iter().map(row).collect();
    let unmeasured = members.len() - values.len();
    if unmeasured > 0 {
        rows.push([
            unmeasured.to_string(),
            "nothing was measured".to_owned(),
            "-".to_owned(),
            "-".to_owned(),
        ]);
    }
    rows
}

const SEED: &str = "seed";

/// One row for every combination but for the seed: the last stage's headline, as mean and spread over seeds.
fn show(lines: &[Line]) -> anyhow::Result<()> {
    let without_seed =
        |line: &Line| -> Sets { line.sets.iter().filter(|(key, _)| key != SEED).cloned().collect() };
    let mut groups: Vec<(Sets, Vec<&Line>)> = Vec::new();
    for line in lines {
        let key = without_seed(line);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, members)) => members.push(line),
            None => groups.push((key, vec![line])),
        }
    }
    let mut rows = vec![["variant", "runs", "last stage", "mean", "spread"].map(str::to_owned)];
    for (sets, members) in groups {
        let name = match sets.is_empty() {
            true => "all".to_owned(),
            false => label(&Variant { sets }),
        };
        for [n, what, mean, spread] in summary(&members) {
            rows.push([name.clone(), n, what, mean, spread]);
        }
    }
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|col| rows.iter().map(|row| row[col].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_headlines_are_never_averaged() {
        let gain = |after: f64| TaskGain {
            task: "sums".to_owned(),
            n: 10,
            before: 0.0,
            after,
            difference: after,
            interval95: (0.0, 1.0),
            p_value: 0.5,
            win_rate: 0.5,
            win_rate_interval95: (0.0, 1.0),
        };
        let line = |gains: Vec<TaskGain>, eval_loss: Option<f64>| Line {
            run: PathBuf::new(),
            sets: Vec::new(),
            stages: vec![StageReport { steps: 1, eval_loss, gains, ..StageReport::default() }],
        };
        let lines = [
            line(vec![gain(0.5)], Some(9.0)),
            line(vec![], Some(2.0)),
            line(vec![gain(0.7)], None),
            line(vec![], None),
        ];
        let rows = summary(&lines.iter().collect::<Vec<_>>());
        let expected = [
            ["2", "accuracy (larger is better)", "0.6000", "0.1414"],
            ["1", "held-out loss (smaller is better)", "2.0000", "-"],
            ["1", "nothing was measured", "-", "-"],
        ];
        assert_eq!(rows, expected.map(|row| row.map(str::to_owned)));
    }

    #[test]
    fn axes_are_lists_and_combine() {
        let axes = [axis("a.b=[1e-4, 2e-4]").unwrap(), axis("seed=[1,2,3]").unwrap()];
        let all = combinations(&axes);
        assert_eq!(all.len(), 6);
        assert_eq!(label(&all[5]), "a.b=0.0002 seed=3");
        assert_eq!(folder_name(0, &all[0]), "001-b-0.0001-seed-1");
        for wrong in ["a", "a=1", "a=[]", "a=[1"] {
            assert!(axis(wrong).is_err(), "{wrong}");
        }
    }
}
