//! `posttrain rollouts`: the samples that a run learned from, and what another objective would have made of them.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use pt_pipeline::rl::{ReplayOptions, replay};
use pt_recipe::{Plan, PlannedStage};
use pt_rl::{RolloutRecord, RolloutsFolder};

use super::verify::options_of;
use crate::Context;
use crate::ui::{self, Style};

const HELP: &str = "\
A stage that samples keeps a file for every round of samples. Steps are numbered as in metrics.jsonl, from 1; with \
several mini-batches or passes, the samples shown are those that the step used. What an alarm undid is under \
rollouts/undone.

With --replay, the samples of a step are trained on again, without sampling, under the stage's objective or another: the \
loss, the gradient norm and the objective's metrics are printed, and nothing is changed. The model is that of the newest \
checkpoint before the step, or of the one after it where there is none; with --model, any other.

Examples:
  posttrain rollouts runs/grpo
  posttrain rollouts runs/grpo --step 40 --sort reward --show 4
  posttrain rollouts runs/grpo --replay --step 40 --objective dapo --set epsilon_high=0.3
  posttrain rollouts runs/grpo --json | jq .reward";

/// Options of `rollouts`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// The run's folder
    run: PathBuf,
    /// The stage, by its name [default: the last that samples]
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// The step [default: the last]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    step: Option<u64>,
    /// In which order
    #[arg(long, value_enum, default_value_t = Order::Reward)]
    sort: Order,
    /// Show so many samples
    #[arg(long, value_name = "N", default_value_t = 8)]
    show: usize,
    /// As JSON lines, all of them
    #[arg(long, conflicts_with = "replay")]
    json: bool,
    /// Train on the samples again, and say what would have happened
    #[arg(long)]
    replay: bool,
    /// The objective of the replay, of `posttrain list objectives` [default: the stage's]
    #[arg(long, value_name = "NAME", requires = "replay")]
    objective: Option<String>,
    /// An option of the replay's objective (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "replay")]
    sets: Vec<String>,
    /// The folder of the model that the replay starts from
    #[arg(long, value_name = "FOLDER", requires = "replay")]
    model: Option<PathBuf>,
}

/// The order of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Order {
    /// The best first.
    Reward,
    /// All steps, the newest first.
    Step,
    /// Group by group, as they were sampled.
    Prompt,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let plan = read_plan(&args.run)?;
    let stage = stage_of(&plan, args.stage.as_deref())?;
    let dir = args.run.join("stages").join(Plan::stage_label(stage)).join("rollouts");
    if !dir.is_dir() {
        bail!("{}: nothing was sampled yet", dir.display());
    }
    let folder = RolloutsFolder::open(&dir, true)?;
    let rounds = folder.steps()?;
    let Some(&last) = rounds.last() else { bail!("{}: nothing was sampled yet", dir.display()) };
    let per_round = stage.rollout.as_ref().map_or(1, |rollout| rollout.passes * rollout.mini_batches);
    let round = args.step.map_or(last, |step| (step - 1) / per_round);
    if args.replay {
        return replay_step(args, context, &plan, stage, args.step.unwrap_or(round * per_round + 1));
    }
    let chosen: Vec<u64> = match args.sort {
        Order::Step if args.step.is_none() => rounds.iter().rev().copied().collect(),
        _ => vec![round],
    };
    let mut records = Vec::new();
    for round in chosen {
        let Some(found) = folder.read(round)? else {
            let (first, last) = (rounds[0] * per_round + 1, (last + 1) * per_round);
            bail!(
                "there are no samples of step {}; there are those of steps {first} to {last}",
                round * per_round + 1
            );
        };
        records.extend(found);
        if args.sort == Order::Step && !args.json && records.len() >= args.show {
            break;
        }
    }
    sort(&mut records, args.sort);
    let mut out = std::io::stdout().lock();
    if args.json {
        for record in &records {
            writeln!(out, "{}", serde_json::to_string(record)?)?;
        }
        return Ok(());
    }
    let width = ui::screen_width(&context.environment);
    write!(out, "{}", summary(stage, &records, per_round, context.style))?;
    for record in records.iter().take(args.show) {
        write!(out, "{}", sample(record, per_round, width, context.style))?;
    }
    if records.len() > args.show {
        writeln!(
            out,
            "{}",
            context.style.dim(&format!("{} more; --show N shows more of them", records.len() - args.show))
        )?;
    }
    Ok(())
}

/// The run's plan, with those of stages that were planned when their turn came.
fn read_plan(run: &Path) -> anyhow::Result<Plan> {
    let path = run.join("plan.json");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{} is no run folder: cannot read its plan.json", run.display()))?;
    let not_a_plan = || format!("{}: not a plan of this version", path.display());
    let mut plan: serde_json::Value = serde_json::from_str(&text).with_context(not_a_plan)?;
    if let Some(problem) = pt_run::join_late_stages(&mut plan, run).into_iter().next() {
        return Err(problem.into());
    }
    serde_json::from_value(plan).with_context(not_a_plan)
}

/// The stage of that name, or the last that samples.
fn stage_of<'p>(plan: &'p Plan, name: Option<&str>) -> anyhow::Result<&'p PlannedStage> {
    let mut sampling = plan.stages.iter().filter(|stage| stage.rollout.is_some());
    let names: Vec<&str> = sampling.clone().map(|stage| stage.name.as_str()).collect();
    match name {
        None => sampling.next_back().context("no stage of this run samples"),
        Some(name) => sampling
            .find(|stage| stage.name == name)
            .with_context(|| format!("no stage `{name}` samples; {}", pt_core::suggest::hint(name, &names))),
    }
}

fn sort(records: &mut [RolloutRecord], order: Order) {
    match order {
        // What nothing could judge comes last.
        Order::Reward => records.sort_by(|a, b| {
            let of = |record: &RolloutRecord| record.reward.unwrap_or(f64::NEG_INFINITY);
            of(b).total_cmp(&of(a))
        }),
        Order::Step => records.sort_by_key(|record| std::cmp::Reverse(record.step)),
        Order::Prompt => records.sort_by_key(|record| (record.step, record.group, record.sample)),
    }
}

fn summary(stage: &PlannedStage, records: &[RolloutRecord], per_round: u64, style: Style) -> String {
    let rewards: Vec<f64> = records.iter().filter_map(|record| record.reward).collect();
    let mean = rewards.iter().sum::<f64>() / rewards.len().max(1) as f64;
    let steps: Vec<u64> = records.iter().map(|record| record.step).collect();
    let of = match (steps.iter().min(), steps.iter().max()) {
        (Some(first), Some(last)) if first == last => steps_of(*first, per_round),
        (Some(first), Some(last)) => format!("steps {} to {}", first * per_round + 1, (last + 1) * per_round),
        _ => String::new(),
    };
    let cut = records.iter().filter(|record| record.finish_reason == "length").count();
    let title = format!("{} {of}: {}", stage.name, ui::counted(records.len(), "sample"));
    let skips = records.len() - rewards.len();
    let skipped = if skips == 0 { String::new() } else { format!(", {skips} could not be judged") };
    format!("{}, mean reward {mean:.3}, {cut} cut{skipped}\n", style.bold(&title))
}

fn steps_of(round: u64, per_round: u64) -> String {
    match per_round {
        1 => format!("step {}", round + 1),
        _ => format!("steps {} to {}", round * per_round + 1, (round + 1) * per_round),
    }
}

fn sample(record: &RolloutRecord, per_round: u64, width: usize, style: Style) -> String {
    let reward = match record.reward {
        None => style.warning("not judged"),
        Some(reward) if record.advantage > 0.0 => style.good(&format!("reward {reward:.3}")),
        Some(reward) if record.advantage < 0.0 => style.error(&format!("reward {reward:.3}")),
        Some(reward) => format!("reward {reward:.3}"),
    };
    let head = format!(
        "{}, prompt {}, sample {}",
        steps_of(record.step, per_round),
        record.group + 1,
        record.sample + 1
    );
    let about = format!(
        "advantage {:+.3}, {}, {}",
        record.advantage,
        ui::counted(record.completion_ids.len(), "token"),
        ending(&record.finish_reason)
    );
    let mut out = format!("\n{}  {reward}  {}\n", style.name(&head), style.dim(&about));
    let mut text = |label: &str, text: &str, paint: &dyn Fn(&str) -> String| {
        // Control characters would reach the terminal; line ends are kept.
        let clean: String =
            text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect();
        for (i, line) in
            clean.lines().flat_map(|line| ui::wrap(line, width.saturating_sub(14).max(20))).enumerate()
        {
            let label = if i == 0 { label } else { "" };
            out += &format!("  {label:<11} {}\n", paint(&line));
        }
    };
    text("prompt", record.prompt_text.as_deref().unwrap_or(""), &|line| style.dim(line));
    match record.turns.is_empty() {
        true => text("completion", &record.text, &str::to_owned),
        false => record.turns.iter().for_each(|turn| match turn.role.as_str() {
            "assistant" => text("assistant", &turn.text, &str::to_owned),
            // It was said to the model, and does not train.
            role => text(role, &turn.text, &|line| style.dim(line)),
        }),
    }
    for named in &record.verdicts {
        let verdict = &named.verdict;
        let score = verdict.score.map_or_else(|| "skip".to_owned(), |score| format!("{score:.3}"));
        let parts: Vec<String> =
            verdict.parts.iter().map(|part| format!("{} {:.3}", part.name, part.score)).collect();
        let parts = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
        text("verdict", &format!("{}: {score}{parts} {}", named.name, verdict.reason), &str::to_owned);
    }
    out
}

/// How a sample ended, in words.
fn ending(finish_reason: &str) -> &'static str {
    match finish_reason {
        "length" => "cut at the limit",
        "max_turns" => "out of turns",
        "rewritten" => "ended where the template rewrites earlier turns",
        "aborted" => "its environment broke",
        _ => "ended by itself",
    }
}

fn replay_step(
    args: &Args,
    context: &Context,
    plan: &Plan,
    stage: &PlannedStage,
    step: u64,
) -> anyhow::Result<()> {
    let options = ReplayOptions {
        objective: args.objective.clone(),
        options: options_of(&args.sets)?,
        model: args.model.clone(),
    };
    let found = replay(&args.run, plan, stage, step, &options, &context.environment.surroundings())?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{}",
        context.style.bold(&format!("step {step} under {}, from {}", found.objective, found.model))
    )?;
    let width = found.values.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in &found.values {
        writeln!(out, "  {name:<width$}  {value:.6}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, group: usize, reward: Option<f64>) -> RolloutRecord {
        RolloutRecord {
            step,
            group,
            reward,
            text: "one\u{1b}[31mtwo\nthree".to_owned(),
            prompt_text: Some("a prompt".to_owned()),
            advantage: 0.5,
            finish_reason: "length".to_owned(),
            ..RolloutRecord::default()
        }
    }

    #[test]
    fn samples_are_sorted_and_shown_without_control_characters() {
        let all = [record(0, 1, Some(0.0)), record(1, 0, None), record(0, 0, Some(1.0))];
        for (order, expected) in
            [(Order::Reward, [2, 0, 1]), (Order::Step, [1, 0, 2]), (Order::Prompt, [2, 0, 1])]
        {
            let mut sorted = all.to_vec();
            sort(&mut sorted, order);
            let places = sorted.iter().map(|found| all.iter().position(|record| record == found).unwrap());
            assert_eq!(places.collect::<Vec<_>>(), expected, "{order:?}");
        }
        let text = sample(&all[0], 2, 80, Style::new(false));
        assert!(text.contains("steps 1 to 2, prompt 2, sample 1  reward 0.000  advantage +0.500"), "{text}");
        assert!(!text.contains('\u{1b}') && text.contains("cut at the limit"), "{text}");
        assert!(sample(&all[0], 1, 80, Style::new(true)).contains('\u{1b}'));
    }
}
